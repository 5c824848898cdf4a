//! EDNS: the OPT record of a question, and the one that goes back (RFC 6891).

use common::answers::Out;

use crate::{
    cookie::{self, Cookies, Standing},
    wire::after_name,
};

/// What the OPT record of every response offers: what passes all paths unfragmented (DNS flag day 2020).
pub(crate) const UDP_OCTETS: u16 = 1_232;
/// Without EDNS (RFC 1035 §4.2.1).
const PLAIN_OCTETS: u16 = 512;
const OPT: u16 = 41;
const NSID: u16 = 3;
const COOKIE: u16 = 10;
const EXTENDED_ERROR: u16 = 15;
/// Owner (the root), type, payload, extended code, version, flags, length.
pub(crate) const FIXED_OCTETS: usize = 11;
/// A cookie as an option.
pub(crate) const COOKIE_OCTETS: usize = 4 + cookie::OCTETS;

/// The OPT record of a question.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Opt {
    pub(crate) payload: u16,
    pub(crate) version: u8,
    /// The DO bit (RFC 3225).
    pub(crate) dnssec: bool,
    /// Whether the server's identifier is asked for (RFC 5001).
    pub(crate) nsid: bool,
    /// The client's cookie, and a server cookie that may be ours.
    pub(crate) cookie: Option<([u8; 8], Option<[u8; cookie::SERVER_OCTETS]>)>,
}

/// A message that RFC 6891 or RFC 7873 calls malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// An extended error (RFC 8914 §4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExtendedError {
    Prohibited = 18,
    NotAuthoritative = 20,
    NotSupported = 21,
}

impl Opt {
    /// Reads the record at the start of `octets`, and how long it is; `None` when it is another one.
    pub(crate) fn read(octets: &[u8]) -> Result<Option<(Self, usize)>, Malformed> {
        let [
            0,
            t1,
            t2,
            p1,
            p2,
            _code,
            version,
            f1,
            _f2,
            l1,
            l2,
            rest @ ..,
        ] = octets
        else {
            return Ok(None);
        };
        if u16::from_be_bytes([*t1, *t2]) != OPT {
            return Ok(None);
        }
        let length = usize::from(u16::from_be_bytes([*l1, *l2]));
        let mut options = rest.get(..length).ok_or(Malformed)?;
        let mut opt = Self {
            payload: u16::from_be_bytes([*p1, *p2]),
            version: *version,
            dnssec: f1 & 0x80 != 0,
            ..Self::default()
        };
        while let [c1, c2, l1, l2, rest @ ..] = options {
            let length = usize::from(u16::from_be_bytes([*l1, *l2]));
            let data = rest.get(..length).ok_or(Malformed)?;
            match u16::from_be_bytes([*c1, *c2]) {
                NSID => opt.nsid = true,
                // The first one counts (RFC 7873 §5.2).
                COOKIE if opt.cookie.is_none() => {
                    opt.cookie = Some(cookie::read(data).ok_or(Malformed)?);
                }
                _ => {}
            }
            options = &rest[length..];
        }
        // Less than the front of an option is no option.
        if options.is_empty() {
            Ok(Some((opt, FIXED_OCTETS + length)))
        } else {
            Err(Malformed)
        }
    }

    /// Finds the OPT record anywhere in a message that may hold other records.
    pub(crate) fn scan(message: &[u8]) -> Result<Option<Self>, Malformed> {
        let count = |at: usize| match message.get(at..at + 2) {
            Some(&[a, b]) => u16::from_be_bytes([a, b]),
            _ => 0,
        };
        let mut at = 12;
        for _ in 0..count(4) {
            at = after_name(message, at).ok_or(Malformed)? + 4;
        }
        let mut found = None;
        for section in [6, 8, 10] {
            for _ in 0..count(section) {
                let record = message.get(at..).ok_or(Malformed)?;
                if let Some((opt, length)) = Self::read(record)? {
                    // One of them, in the additional section (RFC 6891 §6.1.1).
                    if section != 10 || found.replace(opt).is_some() {
                        return Err(Malformed);
                    }
                    at += length;
                    continue;
                }
                let fixed = after_name(message, at).ok_or(Malformed)?;
                if count(fixed) == OPT {
                    // Its owner is the root (RFC 6891 §6.1.2).
                    return Err(Malformed);
                }
                let length = message.get(fixed + 8..fixed + 10).ok_or(Malformed)?;
                at = fixed + 10 + usize::from(u16::from_be_bytes([length[0], length[1]]));
            }
        }
        // The last one may say that it goes on past the end.
        if at > message.len() {
            return Err(Malformed);
        }
        Ok(found)
    }

    /// Most octets of a datagram in answer to a question with this record, or without one.
    pub(crate) fn datagram_octets(opt: Option<&Self>) -> usize {
        usize::from(opt.map_or(PLAIN_OCTETS, |opt| {
            // A smaller offer counts as 512 (RFC 6891 §6.2.3).
            opt.payload.clamp(PLAIN_OCTETS, UDP_OCTETS)
        }))
    }
}

/// What the OPT record of a response says.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Reply<'a> {
    /// The upper eight bits of the response code.
    pub(crate) code_high: u8,
    /// The DO bit comes back as it was sent (RFC 3225 §3).
    pub(crate) dnssec: bool,
    pub(crate) cookie: Option<&'a [u8; cookie::OCTETS]>,
    pub(crate) nsid: Option<&'a [u8]>,
    pub(crate) error: Option<ExtendedError>,
}

impl Reply<'_> {
    /// Writes the record; options that find no room are left out, the record itself has it.
    pub(crate) fn put(&self, out: &mut Out<'_>, room: usize) {
        let start = out.length();
        let high = UDP_OCTETS.to_be_bytes();
        let flags = if self.dnssec { 0x80 } else { 0 };
        out.put(&[
            0,
            0,
            41,
            high[0],
            high[1],
            self.code_high,
            0,
            flags,
            0,
            0,
            0,
        ]);
        let options = out.length();
        let mut option = |code: u16, data: &[u8]| {
            if out.length() + 4 + data.len() <= room {
                out.put(&code.to_be_bytes());
                out.put(&u16::try_from(data.len()).unwrap_or(0).to_be_bytes());
                out.put(data);
            }
        };
        if let Some(cookie) = self.cookie {
            option(COOKIE, cookie);
        }
        if let Some(nsid) = self.nsid {
            option(NSID, nsid);
        }
        if let Some(error) = self.error {
            option(EXTENDED_ERROR, &(error as u16).to_be_bytes());
        }
        let length = out.length() - options;
        if length > 0 {
            let length = u16::try_from(length).unwrap_or(0).to_be_bytes();
            out.written()[start + 9..start + 11].copy_from_slice(&length);
        }
    }
}

/// Judges the cookie of a question, and makes the one that goes back.
pub(crate) fn greet(
    opt: Option<&Opt>,
    cookies: &Cookies,
    source: std::net::IpAddr,
    now: u32,
) -> (Standing, Option<[u8; cookie::OCTETS]>) {
    match opt.and_then(|opt| opt.cookie) {
        Some((client, server)) => {
            let (standing, cookie) = cookies.judge(client, server, source, now);
            (standing, Some(cookie))
        }
        None => (Standing::Unknown, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opt(options: &[u8]) -> Vec<u8> {
        let mut octets = vec![0, 0, 41, 0x10, 0, 0, 0, 0x80, 0, 0];
        octets.push(u8::try_from(options.len()).unwrap());
        octets.extend_from_slice(options);
        octets
    }

    #[test]
    fn options_are_read_and_broken_ones_are_malformed() {
        let read = |options: &[u8]| Opt::read(&opt(options)).map(|found| found.unwrap().0);
        let plain = read(&[]).unwrap();
        assert!(plain.dnssec && !plain.nsid && plain.payload == 4_096);
        assert!(read(&[0, 3, 0, 0]).unwrap().nsid);
        assert!(
            read(&[0xfd, 0xe9, 0, 1, 7]).is_ok(),
            "unknown ones are ignored"
        );
        assert_eq!(read(&[0, 3, 0]), Err(Malformed));
        assert_eq!(read(&[0, 3, 0, 9, 1]), Err(Malformed));
        // RFC 7873 §5.2.2: a cookie of 8, or of 16 to 40 octets; anything else is a format error.
        assert!(
            read(&[0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8])
                .unwrap()
                .cookie
                .is_some()
        );
        assert_eq!(read(&[0, 10, 0, 7, 1, 2, 3, 4, 5, 6, 7]), Err(Malformed));
        assert_eq!(
            read(&[0, 10, 0, 9, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
            Err(Malformed)
        );
    }

    #[test]
    fn one_opt_owned_by_the_root_in_the_additional_section() {
        let message = |counts: [u8; 4], records: &[u8]| {
            let mut octets = vec![
                0, 1, 0, 0, 0, counts[0], 0, counts[1], 0, counts[2], 0, counts[3],
            ];
            octets.extend_from_slice(&[1, b'a', 0, 0, 1, 0, 1]);
            octets.extend_from_slice(records);
            octets
        };
        assert!(
            Opt::scan(&message([1, 0, 0, 1], &opt(&[])))
                .unwrap()
                .is_some()
        );
        let twice = [opt(&[]), opt(&[])].concat();
        assert_eq!(Opt::scan(&message([1, 0, 0, 2], &twice)), Err(Malformed));
        assert_eq!(Opt::scan(&message([1, 1, 0, 0], &opt(&[]))), Err(Malformed));
        let owned = [&[1, b'x'], &opt(&[])[..]].concat();
        assert_eq!(Opt::scan(&message([1, 0, 0, 1], &owned)), Err(Malformed));
        assert_eq!(
            Opt::scan(&message([1, 0, 0, 2], &opt(&[]))),
            Err(Malformed),
            "cut"
        );
        assert_eq!(Opt::scan(&message([1, 0, 0, 0], &[])), Ok(None));
    }
}
