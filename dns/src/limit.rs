//! Response rate limiting: who asks in another's name gets little of it.
//!
//! Answers over UDP to one network (a /24, a /56) are counted by what they say: those about one name
//! together, those about names anybody can make up in one zone together, errors together. Past the rate within a
//! second every `slip`th is cut to its question, so that a real client comes back over TCP, and the
//! others are dropped. The counts stand in a table of fixed size; a collision forgets a count, which
//! only lets more through.

use std::{
    hash::BuildHasher,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use foldhash::fast::RandomState;
use ipnet::IpNet;

/// Counts kept at once: half a MiB.
const COUNTS: usize = 1 << 16;

/// What limits answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rates {
    /// Like answers to one network in a second; 0 is without limit.
    pub answers: u16,
    /// One in so many answers past the rate is sent, cut to its question; 0 drops all.
    pub slip: u16,
    /// Networks without limit.
    pub exempt: Vec<IpNet>,
}

/// What becomes of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Send,
    /// Header, question and the TC bit.
    Slip,
    Drop,
}

/// What answers are counted by.
#[derive(Clone, Copy, Debug, Hash)]
pub(crate) enum Like<'a> {
    /// The name they are about.
    Name(&'a [u8]),
    /// A zone, by its place: names that are not there, and names that could be made up.
    Zone(usize),
    /// Errors of every kind.
    Error,
}

/// The counts.
pub(crate) struct Limiter {
    rates: Rates,
    /// Key (32 bits), second (16), answers within it (16).
    counts: Box<[AtomicU64]>,
    state: RandomState,
}

impl Limiter {
    pub(crate) fn new(rates: Rates) -> Self {
        let counts = if rates.answers == 0 { 0 } else { COUNTS };
        Self {
            rates,
            counts: (0..counts).map(|_| AtomicU64::new(0)).collect(),
            state: RandomState::default(),
        }
    }

    /// Whether answers to this address are counted at all.
    pub(crate) fn applies(&self, source: IpAddr) -> bool {
        !self.counts.is_empty() && !self.rates.exempt.iter().any(|net| net.contains(&source))
    }

    /// Counts an answer, and says what becomes of it.
    pub(crate) fn judge(&self, source: IpAddr, like: Like<'_>, now: u32) -> Verdict {
        let hash = self.state.hash_one((network(source), like));
        let index = usize::try_from(hash).unwrap_or(0) & (COUNTS - 1);
        let Some(place) = self.counts.get(index) else {
            return Verdict::Send;
        };
        let key = hash >> 32;
        let second = u64::from(now & 0xffff);
        let before = place.load(Relaxed);
        let count = if before >> 32 == key && before >> 16 & 0xffff == second {
            (before & 0xffff).saturating_add(1).min(0xffff)
        } else {
            1
        };
        // Two workers may count one answer for two: near enough, and no lock.
        place.store(key << 32 | second << 16 | count, Relaxed);
        let past = count.saturating_sub(u64::from(self.rates.answers));
        if past == 0 {
            Verdict::Send
        } else if self.rates.slip > 0 && past.is_multiple_of(u64::from(self.rates.slip)) {
            Verdict::Slip
        } else {
            Verdict::Drop
        }
    }
}

/// Who shares a count.
fn network(source: IpAddr) -> IpAddr {
    match source {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            Ipv4Addr::new(a, b, c, 0).into()
        }
        IpAddr::V6(v6) => Ipv6Addr::from(u128::from(v6) & !0 << 72).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn like_answers_to_one_network_are_limited_by_the_second() {
        let limiter = Limiter::new(Rates {
            answers: 3,
            slip: 2,
            exempt: vec!["10.0.0.0/8".parse().unwrap()],
        });
        let source: IpAddr = "192.0.2.1".parse().unwrap();
        let judge = |source: &str, like, now| limiter.judge(source.parse().unwrap(), like, now);
        let a = Like::Name(b"\x01a\x00");
        let verdicts: Vec<Verdict> = (0..7).map(|_| judge("192.0.2.1", a, 5)).collect();
        let (send, slip, drop) = (Verdict::Send, Verdict::Slip, Verdict::Drop);
        assert_eq!(verdicts, [send, send, send, drop, slip, drop, slip]);
        assert_ne!(judge("192.0.2.99", a, 5), send, "the same network");
        assert_eq!(judge("192.0.3.1", a, 5), send, "another one");
        assert_eq!(
            judge("192.0.2.1", Like::Name(b"\x01b\x00"), 5),
            send,
            "another name"
        );
        assert_eq!(judge("192.0.2.1", Like::Zone(0), 5), send);
        assert_eq!(judge("192.0.2.1", a, 6), send, "the next second");
        assert!(limiter.applies(source) && !limiter.applies("10.1.2.3".parse().unwrap()));
        let none = Limiter::new(Rates {
            answers: 0,
            slip: 0,
            exempt: vec![],
        });
        assert!(!none.applies(source));
    }
}
