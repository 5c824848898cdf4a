//! DNS cookies: a client that shows the one it was given is who it says (RFC 7873, RFC 9018).

use std::{hash::Hasher, net::IpAddr};

use ring::rand::{SecureRandom, SystemRandom};
use siphasher::sip::SipHasher24;

/// A server cookie (RFC 9018 §4): version, reserved, time, hash.
pub(crate) const SERVER_OCTETS: usize = 16;
/// Client and server cookie together.
pub(crate) const OCTETS: usize = 8 + SERVER_OCTETS;
const VERSION: u8 = 1;
/// How long a cookie is good, and how far it may be ahead of our clock (RFC 9018 §4.3).
const LIFE_SECONDS: u32 = 3_600;
const AHEAD_SECONDS: u32 = 300;
/// After half its life a client gets another.
const RENEW_SECONDS: u32 = 1_800;
const DAY_SECONDS: u32 = 86_400;

/// Whether a client is known to be who it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It may be anybody.
    Unknown,
    /// It showed a cookie of ours.
    Verified,
}

/// The secret cookies are made with, which lives as long as the process: after a restart clients get new
/// ones with the answers they would have got anyway. Each day has a secret of its own made of it (RFC 7873
/// §7.1), and a cookie says when it was made.
pub(crate) struct Cookies {
    secret: [u8; 16],
}

impl Cookies {
    /// A secret nobody knows.
    ///
    /// # Errors
    /// The system gives no random octets.
    pub(crate) fn new() -> Result<Self, ring::error::Unspecified> {
        let mut secret = [0; 16];
        SystemRandom::new().fill(&mut secret)?;
        Ok(Self { secret })
    }

    /// Judges the server part of a cookie, and makes the whole one that goes back.
    pub(crate) fn judge(
        &self,
        client: [u8; 8],
        server: Option<[u8; SERVER_OCTETS]>,
        source: IpAddr,
        now: u32,
    ) -> (Standing, [u8; OCTETS]) {
        let mut cookie = [0; OCTETS];
        cookie[..8].copy_from_slice(&client);
        if let Some(server) = server
            && let [VERSION, _, _, _, t1, t2, t3, t4, ..] = server
            && server == self.server(client, server[..8].try_into().unwrap_or_default(), source)
        {
            let made = u32::from_be_bytes([t1, t2, t3, t4]);
            // Serial arithmetic (RFC 9018 §4.3): it works past 2106.
            let age = now.wrapping_sub(made);
            let ahead = made.wrapping_sub(now);
            if age <= LIFE_SECONDS || ahead <= AHEAD_SECONDS {
                let kept = if age <= RENEW_SECONDS || ahead <= AHEAD_SECONDS {
                    server
                } else {
                    self.fresh(client, source, now)
                };
                cookie[8..].copy_from_slice(&kept);
                return (Standing::Verified, cookie);
            }
        }
        cookie[8..].copy_from_slice(&self.fresh(client, source, now));
        (Standing::Unknown, cookie)
    }

    fn fresh(&self, client: [u8; 8], source: IpAddr, now: u32) -> [u8; SERVER_OCTETS] {
        let mut front = [VERSION, 0, 0, 0, 0, 0, 0, 0];
        front[4..].copy_from_slice(&now.to_be_bytes());
        self.server(client, front, source)
    }

    fn server(&self, client: [u8; 8], front: [u8; 8], source: IpAddr) -> [u8; SERVER_OCTETS] {
        let [_, _, _, _, t1, t2, t3, t4] = front;
        let day = u32::from_be_bytes([t1, t2, t3, t4]) / DAY_SECONDS;
        server(&self.secret_of(day), client, front, source)
    }

    fn secret_of(&self, day: u32) -> [u8; 16] {
        let half = |which: u8| {
            let mut hasher = SipHasher24::new_with_key(&self.secret);
            hasher.write(&day.to_be_bytes());
            hasher.write(&[which]);
            u128::from(hasher.finish())
        };
        (half(0) << 64 | half(1)).to_be_bytes()
    }
}

/// SipHash-2-4 over client cookie, front and address (RFC 9018 §4.4).
fn server(
    secret: &[u8; 16],
    client: [u8; 8],
    front: [u8; 8],
    source: IpAddr,
) -> [u8; SERVER_OCTETS] {
    let mut hasher = SipHasher24::new_with_key(secret);
    hasher.write(&client);
    hasher.write(&front);
    match source {
        IpAddr::V4(v4) => hasher.write(&v4.octets()),
        IpAddr::V6(v6) => hasher.write(&v6.octets()),
    }
    let mut server = [0; SERVER_OCTETS];
    server[..8].copy_from_slice(&front);
    server[8..].copy_from_slice(&hasher.finish().to_le_bytes());
    server
}

/// The client's part of a cookie option, and a server part that may be ours; `None` when the option is
/// malformed (RFC 7873 §5.2.2).
pub(crate) fn read(option: &[u8]) -> Option<([u8; 8], Option<[u8; SERVER_OCTETS]>)> {
    let (client, server) = option.split_first_chunk::<8>()?;
    match server.len() {
        0 => Some((*client, None)),
        SERVER_OCTETS => Some((*client, server.try_into().ok())),
        // Another server's.
        8..=32 => Some((*client, None)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn octets(hex: &str) -> Vec<u8> {
        (0..hex.len() / 2)
            .map(|at| u8::from_str_radix(&hex[at * 2..at * 2 + 2], 16).unwrap())
            .collect()
    }

    #[test]
    fn the_example_of_the_rfc() {
        // RFC 9018 appendix A.1.
        let secret: [u8; 16] = octets("e5e973e5a6b2a43f48e7dc849e37bfcf")
            .try_into()
            .unwrap();
        let client: [u8; 8] = octets("2464c4abcf10c957").try_into().unwrap();
        let front: [u8; 8] = octets("010000005cf79f11").try_into().unwrap();
        let source: IpAddr = "198.51.100.100".parse().unwrap();
        assert_eq!(
            server(&secret, client, front, source)[..],
            octets("010000005cf79f111f8130c3eee29480")
        );
    }

    #[test]
    fn each_day_has_its_secret_and_a_cookie_outlives_midnight() {
        let cookies = Cookies::new().unwrap();
        assert_ne!(cookies.secret_of(0), cookies.secret_of(1));
        let (client, source): ([u8; 8], IpAddr) = ([7; 8], "192.0.2.1".parse().unwrap());
        let midnight = 20_000 * DAY_SECONDS;
        let (_, given) = cookies.judge(client, None, source, midnight - 60);
        let given = given[8..].try_into().ok();
        let (standing, _) = cookies.judge(client, given, source, midnight + 60);
        assert_eq!(standing, Standing::Verified);
    }

    #[test]
    fn cookies_of_others_and_old_ones_prove_nothing() {
        let cookies = Cookies::new().unwrap();
        let (client, source): ([u8; 8], IpAddr) = ([7; 8], "2001:db8::1".parse().unwrap());
        let (_, given) = cookies.judge(client, None, source, 1_000_000);
        let server: [u8; 16] = given[8..].try_into().unwrap();
        let judge = |client, source, now| cookies.judge(client, Some(server), source, now).0;
        assert_eq!(judge(client, source, 1_003_600), Standing::Verified);
        assert_eq!(judge(client, source, 1_003_601), Standing::Unknown);
        assert_eq!(judge(client, source, 999_700), Standing::Verified);
        assert_eq!(judge(client, source, 999_699), Standing::Unknown);
        assert_eq!(judge([8; 8], source, 1_000_000), Standing::Unknown);
        assert_eq!(
            judge(client, "2001:db8::2".parse().unwrap(), 1_000_000),
            Standing::Unknown
        );
        let (_, renewed) = cookies.judge(client, Some(server), source, 1_002_000);
        assert_ne!(renewed[8..], server);
    }
}
