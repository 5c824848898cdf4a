//! Messages signed with a shared secret (RFC 8945): verified and taken apart, and their responses
//! signed, one message or many.
//!
//! hickory's own signer is not used: it needs its DNSSEC feature, encodes whole messages anew, and
//! does not chain the messages of a transfer.

use std::sync::Arc;

use common::secondary::{Algorithm, Key, Secondaries};
use hickory_proto::{
    rr::{LowerName, Name},
    serialize::binary::{BinDecodable, BinDecoder},
};
use ring::hmac;

use crate::wire::{self, Cursor, HEADER};

const TSIG: u16 = 250;
const ANY: u16 = 255;
const FORMERR: u8 = 1;
const NOTAUTH: u8 = 9;
/// How far the two clocks may be apart, in seconds (RFC 8945 §10).
const FUDGE: u16 = 300;
/// Fewer octets of a MAC than this are no MAC (RFC 8945 §5.2.2.1).
const LEAST_MAC: usize = 10;

/// What is wrong with a signature: BADSIG, BADKEY, BADTIME, BADTRUNC (RFC 8945 §3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Signature = 16,
    Key = 17,
    Time = 18,
    Truncation = 22,
}

/// A message as it came in.
#[derive(Debug)]
pub enum Opened {
    /// There is no signature.
    Unsigned,
    /// The signature is right.
    Verified {
        /// The message without it.
        stripped: Vec<u8>,
        /// Signs the response.
        session: Session,
    },
    /// The signature is wrong: this goes back, and nothing else is done.
    Refused(Vec<u8>),
}

/// Signs the response, message by message.
#[derive(Clone, Debug)]
pub struct Session {
    key: Arc<Key>,
    /// The MAC of what came before: the request's, then our last.
    prior: Vec<u8>,
    first: bool,
}

/// A request of ours, until its response comes.
#[derive(Debug)]
pub struct Asked(Session);

/// The last record of a signed message, taken apart.
struct Signature<'m> {
    start: usize,
    key: Vec<u8>,
    algorithm: Vec<u8>,
    time: u64,
    fudge: u16,
    mac: &'m [u8],
    original_id: &'m [u8],
    error: u16,
    other: &'m [u8],
}

/// There is a signature where none may be, or one that can't be read.
struct Malformed;

/// Whether a message may have a signature: a look that costs nothing.
pub fn may_be_signed(message: &[u8]) -> bool {
    let mut found = false;
    let additional = wire::counts(message).map_or(0, |counts| counts[3]);
    additional > 0
        && wire::each_record(message, |_, record| found |= record.kind == TSIG).is_some()
        && found
}

/// Verifies a request; `now` is seconds since 1970.
pub fn open(message: &[u8], keys: &Secondaries, now: u64) -> Opened {
    let signature = match find(message) {
        Ok(Some(signature)) => signature,
        Ok(None) => return Opened::Unsigned,
        Err(Malformed) => return Opened::Refused(wire::bare_answer(message, FORMERR)),
    };
    // In this order: key, MAC, time, truncation (RFC 8945 §5.2).
    let name = Name::read(&mut BinDecoder::new(&signature.key)).ok();
    let key = name.and_then(|name| keys.key(&LowerName::new(&name)));
    let Some(key) = key.filter(|key| algorithm_name(key.algorithm) == signature.algorithm) else {
        return Opened::Refused(refuse(message, &signature, Fault::Key, None, now));
    };
    let full = digest_octets(key.algorithm);
    let length = signature.mac.len();
    // RFC 8945 §5.2.2.1
    if length > full || length < LEAST_MAC.max(full / 2) {
        return Opened::Refused(wire::bare_answer(message, FORMERR));
    }
    if !matches(key, &[], message, &signature) {
        return Opened::Refused(refuse(message, &signature, Fault::Signature, None, now));
    }
    let session = Session {
        key: Arc::clone(key),
        prior: signature.mac.to_vec(),
        first: true,
    };
    let fault = if now.abs_diff(signature.time) > u64::from(signature.fudge) {
        Fault::Time
    } else if length < full {
        // Nobody here asks for less than the whole of it (RFC 8945 §5.2.4).
        Fault::Truncation
    } else {
        return Opened::Verified {
            stripped: strip(message, &signature),
            session,
        };
    };
    Opened::Refused(refuse(message, &signature, fault, Some(session), now))
}

impl Session {
    /// The key both sides hold.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// How much a signature adds to a message.
    pub fn octets(&self) -> usize {
        let names = name_octets(&self.key.name).len() + algorithm_name(self.key.algorithm).len();
        // Fixed part of the record, and of its data.
        names + 10 + 16 + digest_octets(self.key.algorithm)
    }

    /// Signs the next message of the response; `now` is seconds since 1970.
    pub fn sign(&mut self, message: &mut Vec<u8>, now: u64) {
        let end = ending(now, FUDGE, 0, &[]);
        let mut parts = prefixed(&self.prior);
        parts.extend_from_slice(message);
        if self.first {
            parts.extend(variables(&self.key, &end));
        } else {
            // Later messages cover the timers alone (RFC 8945 §5.3.1).
            parts.extend_from_slice(&end[..8]);
        }
        let mac = hmac::sign(&hmac_key(&self.key), &parts);
        self.prior = mac.as_ref().to_vec();
        self.first = false;
        let key = name_octets(&self.key.name);
        let algorithm = algorithm_name(self.key.algorithm);
        append(message, &key, &algorithm, mac.as_ref(), &end);
    }
}

impl Asked {
    /// Signs a request of ours.
    pub fn sign(message: &mut Vec<u8>, key: &Arc<Key>, now: u64) -> Self {
        let end = ending(now, FUDGE, 0, &[]);
        let mut parts = message.clone();
        parts.extend(variables(key, &end));
        let mac = hmac::sign(&hmac_key(key), &parts);
        let algorithm = algorithm_name(key.algorithm);
        append(
            message,
            &name_octets(&key.name),
            &algorithm,
            mac.as_ref(),
            &end,
        );
        Self(Session {
            key: Arc::clone(key),
            prior: mac.as_ref().to_vec(),
            first: true,
        })
    }

    /// Whether a response is signed as the answer to this (RFC 8945 §5.4).
    pub fn verify(&self, response: &[u8], now: u64) -> bool {
        let Ok(Some(signature)) = find(response) else {
            return false;
        };
        let Session { key, prior, .. } = &self.0;
        signature.key == name_octets(&key.name)
            && signature.algorithm == algorithm_name(key.algorithm)
            && signature.mac.len() == digest_octets(key.algorithm)
            && matches(key, prior, response, &signature)
            && now.abs_diff(signature.time) <= u64::from(signature.fudge)
    }
}

/// The signature of a message: the last record, and the only one of its type (RFC 8945 §5.1).
fn find(message: &[u8]) -> Result<Option<Signature<'_>>, Malformed> {
    let additional = wire::counts(message).map_or(0, |counts| counts[3]);
    if additional == 0 {
        return Ok(None);
    }
    let (mut signatures, mut last) = (0, None);
    let read_all = wire::each_record(message, |section, record| {
        signatures += usize::from(record.kind == TSIG);
        last = Some((section, record));
    });
    // What is no message at all is told so elsewhere.
    if read_all.is_none() || signatures == 0 {
        return Ok(None);
    }
    let Some((2, record)) = last.filter(|(_, last)| signatures == 1 && last.kind == TSIG) else {
        return Err(Malformed);
    };
    if record.class != ANY || record.ttl != 0 || record.end != message.len() {
        return Err(Malformed);
    }
    read(message, &record).map(Some).ok_or(Malformed)
}

fn read<'m>(message: &'m [u8], record: &wire::Record) -> Option<Signature<'m>> {
    let key = Cursor::new(message, record.start).name()?;
    let mut data = Cursor::new(message, record.data);
    let algorithm = data.name()?;
    let (time, fudge) = (data.u48()?, data.u16()?);
    let length = data.u16()?;
    let mac = data.take(usize::from(length))?;
    let original_id = data.take(2)?;
    let error = data.u16()?;
    let length = data.u16()?;
    let other = data.take(usize::from(length))?;
    (data.at == record.end).then_some(Signature {
        start: record.start,
        key,
        algorithm,
        time,
        fudge,
        mac,
        original_id,
        error,
        other,
    })
}

/// Whether the MAC, or what is left of it, is right; in a time that does not tell how much of it.
fn matches(key: &Key, prior: &[u8], message: &[u8], signature: &Signature<'_>) -> bool {
    let mut parts = if prior.is_empty() {
        Vec::new()
    } else {
        prefixed(prior)
    };
    // As it was signed: without the signature, and with the id its author gave it (RFC 8945 §4.3.1).
    let start = parts.len();
    parts.extend(strip(message, signature));
    parts[start..start + 2].copy_from_slice(signature.original_id);
    let end = ending(
        signature.time,
        signature.fudge,
        signature.error,
        signature.other,
    );
    parts.extend(variables(key, &end));
    let secret = hmac_key(key);
    if signature.mac.len() == digest_octets(key.algorithm) {
        return hmac::verify(&secret, &parts, signature.mac).is_ok();
    }
    let whole = hmac::sign(&secret, &parts);
    let differing = whole.as_ref().iter().zip(signature.mac);
    differing.fold(0, |all, (a, b)| all | (a ^ b)) == 0
}

/// The message without its signature.
fn strip(message: &[u8], signature: &Signature<'_>) -> Vec<u8> {
    let mut stripped = message[..signature.start].to_vec();
    count_additional(&mut stripped, false);
    stripped
}

/// One additional record more or less.
fn count_additional(message: &mut [u8], more: bool) {
    if let Some([high, low]) = message.get_mut(10..HEADER) {
        let count = u16::from_be_bytes([*high, *low]);
        let count = if more {
            count.saturating_add(1)
        } else {
            count.saturating_sub(1)
        };
        [*high, *low] = count.to_be_bytes();
    }
}

/// The answer to a wrong signature. With a session it is signed itself (RFC 8945 §5.3.2).
fn refuse(
    message: &[u8],
    signature: &Signature<'_>,
    fault: Fault,
    session: Option<Session>,
    now: u64,
) -> Vec<u8> {
    let mut answer = wire::bare_answer(message, NOTAUTH);
    let clock = now.to_be_bytes();
    // The client's time comes back, ours beside it (RFC 8945 §5.2.3).
    let other = if fault == Fault::Time {
        &clock[2..]
    } else {
        &[]
    };
    let end = ending(signature.time, signature.fudge, fault as u16, other);
    let mut mac = Vec::new();
    if let Some(session) = session {
        let mut parts = prefixed(&session.prior);
        parts.extend_from_slice(&answer);
        parts.extend(variables(&session.key, &end));
        mac = hmac::sign(&hmac_key(&session.key), &parts)
            .as_ref()
            .to_vec();
    }
    append(
        &mut answer,
        &signature.key,
        &signature.algorithm,
        &mac,
        &end,
    );
    // Names that were pointers when they came would make us an amplifier for somebody without a key.
    if mac.is_empty() && answer.len() > message.len() {
        return wire::bare_answer(message, NOTAUTH);
    }
    answer
}

/// Time, fudge, error and other data as they are signed.
fn ending(time: u64, fudge: u16, error: u16, other: &[u8]) -> Vec<u8> {
    let mut end = time.to_be_bytes()[2..].to_vec();
    let length = u16::try_from(other.len()).unwrap_or(u16::MAX);
    for number in [fudge, error, length] {
        end.extend_from_slice(&number.to_be_bytes());
    }
    end.extend_from_slice(other);
    end
}

/// The variables of a signature as they are signed (RFC 8945 §4.3.3).
fn variables(key: &Key, end: &[u8]) -> Vec<u8> {
    let mut octets = name_octets(&key.name);
    octets.extend_from_slice(&ANY.to_be_bytes());
    octets.extend_from_slice(&[0; 4]);
    octets.extend(algorithm_name(key.algorithm));
    octets.extend_from_slice(end);
    octets
}

/// Appends the record itself.
fn append(message: &mut Vec<u8>, key: &[u8], algorithm: &[u8], mac: &[u8], end: &[u8]) {
    let length = |octets: usize| u16::try_from(octets).unwrap_or(u16::MAX).to_be_bytes();
    let id = message.get(..2).unwrap_or_default().to_vec();
    // Time and fudge, then MAC and id, then error and other data.
    let (timers, rest) = end.split_at(8);
    message.extend_from_slice(key);
    message.extend_from_slice(&TSIG.to_be_bytes());
    message.extend_from_slice(&ANY.to_be_bytes());
    message.extend_from_slice(&[0; 4]);
    message.extend_from_slice(&length(algorithm.len() + end.len() + mac.len() + 4));
    message.extend_from_slice(algorithm);
    message.extend_from_slice(timers);
    message.extend_from_slice(&length(mac.len()));
    message.extend_from_slice(mac);
    message.extend_from_slice(&id);
    message.extend_from_slice(rest);
    count_additional(message, true);
}

/// A MAC with its length before it.
fn prefixed(mac: &[u8]) -> Vec<u8> {
    let length = u16::try_from(mac.len()).unwrap_or(u16::MAX);
    let mut octets = length.to_be_bytes().to_vec();
    octets.extend_from_slice(mac);
    octets
}

fn hmac_key(key: &Key) -> hmac::Key {
    let algorithm = match key.algorithm {
        Algorithm::HmacSha256 => hmac::HMAC_SHA256,
        Algorithm::HmacSha512 => hmac::HMAC_SHA512,
    };
    hmac::Key::new(algorithm, &key.secret)
}

fn digest_octets(algorithm: Algorithm) -> usize {
    match algorithm {
        Algorithm::HmacSha256 => 32,
        Algorithm::HmacSha512 => 64,
    }
}

fn algorithm_name(algorithm: Algorithm) -> Vec<u8> {
    let mut octets = vec![11];
    octets.extend_from_slice(algorithm.name().as_bytes());
    octets.push(0);
    octets
}

fn name_octets(name: &LowerName) -> Vec<u8> {
    let mut octets = Vec::new();
    for label in name.iter() {
        octets.push(u8::try_from(label.len()).unwrap_or(u8::MAX));
        octets.extend_from_slice(label);
    }
    octets.push(0);
    octets
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::Config;
    use hickory_proto::{
        op::{Edns, Message, MessageType, OpCode, Query},
        rr::RecordType,
    };
    use proptest::prelude::*;

    const NOW: u64 = 1_800_000_000;

    fn keys() -> Secondaries {
        let text = "[address]\nipv4 = \"192.0.2.1\"\n[keys.a]\nalgorithm = \"hmac-sha256\"\nsecret = \"MDEyMzQ1Njc4OWFiY2RlZg==\"\n[keys.b]\nalgorithm = \"hmac-sha512\"\nsecret = \"MDEyMzQ1Njc4OWFiY2RlZg==\"\n";
        Config::parse(std::path::Path::new("n.toml"), text)
            .unwrap()
            .secondaries
    }

    fn key(name: &str) -> Arc<Key> {
        let name = LowerName::new(&Name::from_ascii(name).unwrap());
        Arc::clone(keys().key(&name).unwrap())
    }

    fn question() -> Vec<u8> {
        let mut message = Message::new(7, MessageType::Query, OpCode::Query);
        message.add_query(Query::query(
            Name::from_ascii("w.example.").unwrap(),
            RecordType::SOA,
        ));
        message.set_edns(Edns::new());
        message.to_vec().unwrap()
    }

    /// RCODE and TSIG error of a refusal, and whether it is signed.
    fn refusal(opened: Opened, asked: &Asked) -> (u8, Option<u16>, bool) {
        let Opened::Refused(answer) = opened else {
            panic!("{opened:?}");
        };
        let signature = find(&answer).ok().flatten();
        let time = signature.as_ref().map_or(0, |s| s.time);
        (
            answer[3],
            signature.map(|s| s.error),
            asked.verify(&answer, time),
        )
    }

    #[test]
    fn a_refusal_is_no_longer_than_what_it_refuses() {
        let mut message = vec![0, 7, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1];
        for length in [63_u8, 63, 63, 61] {
            message.push(length);
            message.extend(std::iter::repeat_n(b'a', length.into()));
        }
        message.extend([0, 0, 6, 0, 1]);
        // A signature without a MAC, whose names point at the longest there can be.
        message.extend([0xc0, 12, 0, 250, 0, 255, 0, 0, 0, 0, 0, 18, 0xc0, 12]);
        message.extend([0; 16]);
        let Opened::Refused(answer) = open(&message, &keys(), NOW) else {
            panic!("not refused");
        };
        assert_eq!(answer[3], NOTAUTH);
        assert!(answer.len() <= message.len(), "{}", answer.len());
    }

    #[test]
    fn a_signed_request_is_opened_and_its_response_verified() {
        for name in ["a.", "b."] {
            let mut message = question();
            let asked = Asked::sign(&mut message, &key(name), NOW);
            // On the way the id may change (RFC 8945 §5.2).
            message[1] = 8;
            let Opened::Verified {
                stripped,
                mut session,
            } = open(&message, &keys(), NOW + 300)
            else {
                panic!("not verified");
            };
            assert_eq!(stripped[2..], question()[2..]);
            let mut answer = wire::bare_answer(&stripped, 0);
            let bare = answer.len();
            session.sign(&mut answer, NOW);
            assert_eq!(answer.len(), bare + session.octets());
            assert!(asked.verify(&answer, NOW + 200));
            assert!(!asked.verify(&answer, NOW + 301));
            let other = Asked::sign(&mut question(), &key(name), NOW + 1);
            assert!(!other.verify(&answer, NOW), "the answer to another request");
        }
    }

    #[test]
    fn what_is_wrong_is_told_as_the_protocol_wants() {
        let mut message = question();
        let asked = Asked::sign(&mut message, &key("a."), NOW);
        let at = |message: &[u8], now| refusal(open(message, &keys(), now), &asked);
        assert_eq!(at(&message, NOW + 301), (9, Some(18), true), "BADTIME");
        let mut changed = message.clone();
        changed[15] ^= 1;
        assert_eq!(at(&changed, NOW), (9, Some(16), false), "BADSIG");
        let stranger = Key {
            name: LowerName::new(&Name::from_ascii("c.").unwrap()),
            ..Key::clone(&key("a."))
        };
        let mut unknown = question();
        Asked::sign(&mut unknown, &Arc::new(stranger), NOW);
        assert_eq!(at(&unknown, NOW), (9, Some(17), false), "BADKEY");
        let other = Key {
            algorithm: Algorithm::HmacSha512,
            ..Key::clone(&key("a."))
        };
        let mut unknown = question();
        Asked::sign(&mut unknown, &Arc::new(other), NOW);
        assert_eq!(at(&unknown, NOW), (9, Some(17), false), "its algorithm");

        let signature = find(&message).ok().flatten().unwrap();
        let shortened = |octets: usize| {
            let mut short = message[..signature.start].to_vec();
            count_additional(&mut short, false);
            let end = ending(NOW, FUDGE, 0, &[]);
            let (name, algorithm) = (signature.key.clone(), signature.algorithm.clone());
            append(
                &mut short,
                &name,
                &algorithm,
                &signature.mac[..octets],
                &end,
            );
            short
        };
        // The answer covers what was sent of the MAC.
        let mut sent = asked.0.clone();
        sent.prior.truncate(20);
        let refused = refusal(open(&shortened(20), &keys(), NOW), &Asked(sent));
        assert_eq!(refused, (9, Some(22), true), "BADTRUNC");
        assert_eq!(at(&shortened(8), NOW), (1, None, false));
        let mut twice = message.clone();
        Asked::sign(&mut twice, &key("a."), NOW);
        assert_eq!(at(&twice, NOW), (1, None, false));
        assert!(matches!(open(&question(), &keys(), NOW), Opened::Unsigned));
    }

    proptest! {
        #[test]
        fn a_signed_message_with_octets_changed_is_never_verified(changes in prop::collection::vec((2_usize..140, 1_u8..=255), 1..4)) {
            let mut message = question();
            Asked::sign(&mut message, &key("a."), NOW);
            let before = message.clone();
            for (at, change) in changes {
                if let Some(octet) = message.get_mut(at) {
                    *octet ^= change;
                }
            }
            // Upper case in the names of key and algorithm is no change.
            let same = message.eq_ignore_ascii_case(&before);
            let verified = matches!(open(&message, &keys(), NOW), Opened::Verified { .. });
            prop_assert!(same || !verified);
        }
    }
}
