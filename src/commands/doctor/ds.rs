//! DS: what the parent says of the zone's keys (RFC 4034 §5), beside the keys there are.

use std::{fmt, time::SystemTime};

use common::{
    Declared,
    dnssec::{Held, Key, Role, State, Store, ZoneKeys},
};
use hickory_proto::{
    dnssec::rdata::DS,
    rr::{LowerName, Name, Record, RecordType},
    serialize::binary::BinEncodable,
};

use super::finding::Finding;
use crate::commands::delegation::plain;

const SUBJECT: &str = "DS";

/// What our side calls for.
#[derive(Clone, Debug)]
pub(super) enum Own {
    /// The files don't have the zone signed. Keys it was signed with may still be there: these.
    Unsigned(Vec<Ds>),
    /// The files have it signed.
    Signed(Keys),
    /// They do, but why its keys can't be read here.
    Unknown(String),
}

/// The DS records of a signed zone's KSKs.
#[derive(Clone, Debug, Default)]
pub(super) struct Keys {
    /// Of every KSK: each is published and signs the keys, so that any of them proves the zone.
    held: Vec<Ds>,
    /// Of those the parent should hold.
    wanted: Vec<Ds>,
    /// Of one that was replaced and leaves the zone.
    retired: Vec<Ds>,
    /// Until when the first DS should wait, when that is still to come.
    early: Option<SystemTime>,
}

/// What the files and the keys beside them say of a zone.
pub(super) fn own(declared: &Declared, origin: &Name) -> Own {
    let apex = LowerName::new(origin);
    let mut zones = declared.registry().zones.iter();
    let signed = match zones.find(|zone| zone.authority.apex == apex) {
        Some(zone) => zone.dnssec.is_some(),
        None => declared.config().reverse.dnssec,
    };
    match Store::open(&declared.config().edge).read(origin) {
        Ok(keys) if signed => Own::Signed(Keys::of(&keys)),
        Err(error) if signed => Own::Unknown(format!("{:#}", anyhow::Error::from(error))),
        keys => Own::Unsigned(keys.map_or_else(|_| Vec::new(), |keys| Keys::of(&keys).held)),
    }
}

impl Keys {
    fn of(keys: &ZoneKeys) -> Self {
        let origin = keys.origin();
        let ds = |key: &Key| Ds::from(key.ds(origin));
        let retired =
            |held: &&Held| held.state() == State::Retired && held.key().role() == Role::Ksk;
        Self {
            held: keys.signing_keys().map(ds).collect(),
            wanted: keys.ds().into_iter().map(Ds::from).collect(),
            retired: keys
                .held()
                .iter()
                .filter(retired)
                .map(|held| ds(held.key()))
                .collect(),
            early: keys.ds_not_before().filter(|at| *at > SystemTime::now()),
        }
    }
}

/// A DS record's data.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ds {
    tag: u16,
    algorithm: u8,
    digest_type: u8,
    digest: Vec<u8>,
}

impl Ds {
    /// Reads a record by its octets, which are the same whether its type is known or not.
    pub(super) fn of(record: &Record) -> Option<Self> {
        if record.record_type() != RecordType::DS {
            return None;
        }
        let octets = record.data.to_bytes().ok()?;
        let (&[high, low, algorithm, digest_type], digest) = octets.split_first_chunk()?;
        Some(Self {
            tag: u16::from_be_bytes([high, low]),
            algorithm,
            digest_type,
            digest: digest.to_vec(),
        })
    }
}

impl From<DS> for Ds {
    fn from(ds: DS) -> Self {
        Self {
            tag: ds.key_tag(),
            algorithm: ds.algorithm().into(),
            digest_type: ds.digest_type().into(),
            digest: ds.digest().to_vec(),
        }
    }
}

impl fmt::Display for Ds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} ", self.tag, self.algorithm, self.digest_type)?;
        self.digest
            .iter()
            .try_for_each(|octet| write!(f, "{octet:02X}"))
    }
}

/// Compares what the parent holds with what our side calls for. `asked` is of whom.
pub(super) fn judge(origin: &Name, parent: &Name, asked: &str, held: &[Ds], own: &Own) -> Finding {
    let above = plain(parent);
    match own {
        Own::Signed(keys) => judge_signed(origin, &above, asked, held, keys),
        Own::Unsigned(_) if held.is_empty() => Finding::ok(
            SUBJECT,
            asked,
            "none at the parent, as it should be: the zone is not signed",
        ),
        // RFC 4035 §5.2: a DS promises signatures, and there are none.
        Own::Unsigned(kept) => Finding::error(
            SUBJECT,
            asked,
            format!(
                "{above} holds DS records (key {}), but the zone is not signed: it is bogus for every validating resolver",
                tags(held)
            ),
            if held.iter().any(|ds| kept.contains(ds)) {
                format!(
                    "sign it again, for its keys are still there; to end signing, first remove these from the zone {above} and wait until they have expired:{}",
                    lines(origin, held)
                )
            } else {
                format!("remove these from the zone {above}:{}", lines(origin, held))
            },
        ),
        Own::Unknown(why) => Finding::warning(
            SUBJECT,
            asked,
            if held.is_empty() {
                format!("none at the parent, and it can't be told whether one should be: {why}")
            } else {
                format!(
                    "{above} holds DS records (key {}), and it can't be told whether they are right: {why}",
                    tags(held)
                )
            },
            "run this on the machine where `nuage serve` runs, as its user",
        ),
    }
}

fn judge_signed(origin: &Name, above: &str, asked: &str, held: &[Ds], keys: &Keys) -> Finding {
    let wanted = lines(origin, &keys.wanted);
    let (ours, strange): (Vec<Ds>, Vec<Ds>) =
        held.iter().cloned().partition(|ds| keys.held.contains(ds));
    if held.is_empty() {
        return match keys.early {
            Some(at) => Finding::ok(
                SUBJECT,
                asked,
                format!(
                    "none at the parent, as it should be until {}: resolvers may still hold answers that were not signed",
                    date(at)
                ),
            ),
            None => Finding::warning(
                SUBJECT,
                asked,
                "none at the parent, but the zone is signed: nobody checks the signatures",
                format!("give these to the zone {above}:{wanted}"),
            ),
        };
    }
    if ours.is_empty() {
        return Finding::error(
            SUBJECT,
            asked,
            format!(
                "{above} holds DS records (key {}), none of them the digest of a key the zone has (key {}): it is bogus for every validating resolver",
                tags(held),
                tags(&keys.held)
            ),
            match keys.early {
                Some(at) => format!(
                    "remove those it holds from the zone {above}, and put these there, but not before {}:{wanted}",
                    date(at)
                ),
                None => {
                    format!("in the zone {above}, put these in place of those it holds:{wanted}")
                }
            },
        );
    }
    if !keys.wanted.iter().all(|ds| ours.contains(ds)) {
        let end = if ours.iter().all(|ds| keys.retired.contains(ds)) {
            ": once the zone is without the old one, it is bogus for every validating resolver"
        } else {
            ""
        };
        return Finding::warning(
            SUBJECT,
            asked,
            format!(
                "{above} holds the DS of our key {}, and should hold that of our key {}{end}",
                tags(&ours),
                tags(&keys.wanted)
            ),
            format!(
                "in the zone {above}, put these in place of those it holds; `nuage zone ds {}` says what comes then:{wanted}",
                plain(origin)
            ),
        );
    }
    if !strange.is_empty() {
        return Finding::warning(
            SUBJECT,
            asked,
            format!(
                "{above} holds the DS of our key {}, and others of keys the zone doesn't have (key {})",
                tags(&ours),
                tags(&strange)
            ),
            format!(
                "remove these from the zone {above}:{}",
                lines(origin, &strange)
            ),
        );
    }
    Finding::ok(
        SUBJECT,
        asked,
        format!("{above} holds the DS of our key {}", tags(&ours)),
    )
}

/// As lines of a master file, each on a line of its own.
fn lines(origin: &Name, all: &[Ds]) -> String {
    let line = |ds: &Ds| format!("\n{}\tIN\tDS\t{ds}", origin.to_ascii());
    all.iter().map(line).collect()
}

fn tags(all: &[Ds]) -> String {
    let mut tags: Vec<String> = all.iter().map(|ds| ds.tag.to_string()).collect();
    tags.dedup();
    tags.join(", ")
}

fn date(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use common::dnssec::{Dnssec, Moment, Policy};
    use hickory_proto::rr::{RData, rdata::NULL};

    use super::*;
    use crate::commands::doctor::finding::Severity;

    const HOUR: Duration = Duration::from_secs(3_600);

    fn ds(tag: u16, digest: u8) -> Ds {
        let mut octets = tag.to_be_bytes().to_vec();
        octets.extend([13, 2]);
        octets.extend([digest; 32]);
        let data = RData::Unknown {
            code: RecordType::DS,
            rdata: NULL::with(octets),
        };
        Ds::of(&Record::from_rdata(origin(), 3_600, data)).unwrap()
    }

    fn origin() -> Name {
        Name::from_ascii("w.example.").unwrap()
    }

    fn judged(parent: &[Ds], own: &Own) -> Finding {
        let above = Name::from_ascii("example.").unwrap();
        judge(&origin(), &above, "a. for w.example DS", parent, own)
    }

    /// A zone with these keys, of which the parent should hold one.
    fn signed(held: &[Ds], wanted: &Ds) -> Keys {
        Keys {
            held: held.to_vec(),
            wanted: vec![wanted.clone()],
            ..Keys::default()
        }
    }

    /// Whether a cure names the first of two keys, and the second.
    fn named(finding: &Finding) -> (bool, bool) {
        let cure = finding.cure.as_deref().unwrap();
        (
            cure.contains("DS\t1 13 2 0707"),
            cure.contains("DS\t2 13 2 0808"),
        )
    }

    #[test]
    fn a_zone_without_signatures_has_no_ds() {
        let none = Own::Unsigned(Vec::new());
        assert_eq!(judged(&[], &none).severity, Severity::Ok);
        let bogus = judged(&[ds(1, 7)], &none);
        assert_eq!(bogus.severity, Severity::Error);
        assert!(
            bogus.found.contains("bogus for every validating resolver"),
            "{bogus:?}"
        );
        let line = format!("\nw.example.\tIN\tDS\t1 13 2 {}", "07".repeat(32));
        assert!(bogus.cure.unwrap().ends_with(&line));
    }

    #[test]
    fn keys_alone_do_not_make_a_zone_signed() {
        let kept = Own::Unsigned(vec![ds(1, 7)]);
        // Signing ended in the right order; the file of the keys is still there.
        let ended = judged(&[], &kept);
        assert_eq!((ended.severity, ended.cure), (Severity::Ok, None));
        // It ended before the parent knew.
        let bogus = judged(&[ds(1, 7)], &kept);
        assert_eq!(bogus.severity, Severity::Error);
        assert!(
            bogus.found.contains("but the zone is not signed"),
            "{bogus:?}"
        );
        let cure = bogus.cure.unwrap();
        assert!(
            cure.starts_with("sign it again, for its keys are still there"),
            "{cure}"
        );
    }

    #[test]
    fn a_signed_zone_has_the_ds_of_its_key() {
        let (one, two) = (ds(1, 7), ds(2, 8));
        let own = Own::Signed(signed(std::slice::from_ref(&two), &two));
        let missing = judged(&[], &own);
        assert_eq!(missing.severity, Severity::Warning);
        assert_eq!(named(&missing), (false, true));
        assert_eq!(
            judged(std::slice::from_ref(&two), &own).severity,
            Severity::Ok
        );

        let other = judged(std::slice::from_ref(&one), &own);
        assert_eq!(other.severity, Severity::Error);
        assert_eq!(named(&other), (false, true));

        let extra = judged(&[one, two], &own);
        assert_eq!(extra.severity, Severity::Warning);
        assert_eq!(named(&extra), (true, false));
        // A tag alone is not a key.
        assert_eq!(judged(&[ds(2, 9)], &own).severity, Severity::Error);
    }

    #[test]
    fn a_new_ds_waits_until_nobody_holds_what_was_not_signed() {
        let (one, two) = (ds(1, 7), ds(2, 8));
        let at = SystemTime::UNIX_EPOCH + 500_000 * HOUR;
        let own = Own::Signed(Keys {
            early: Some(at),
            ..signed(std::slice::from_ref(&two), &two)
        });
        let wait = judged(&[], &own);
        assert_eq!((wait.severity, wait.cure), (Severity::Ok, None));
        assert!(
            wait.found.contains("until 2027-01-15T08:00:00Z"),
            "{}",
            wait.found
        );
        // That of a key that was lost.
        let other = judged(&[one], &own);
        assert_eq!(other.severity, Severity::Error);
        assert_eq!(named(&other), (false, true));
        let cure = other.cure.unwrap();
        assert!(cure.contains("not before 2027-01-15T08:00:00Z"), "{cure}");
    }

    #[test]
    fn while_a_key_is_replaced_either_ds_is_right() {
        let (old, new) = (ds(1, 7), ds(2, 8));
        let both = [old.clone(), new.clone()];
        let submitted = signed(&both, &new);
        let own = Own::Signed(submitted.clone());
        // The parent has not followed yet: nothing is broken.
        let waits = judged(std::slice::from_ref(&old), &own);
        assert_eq!(waits.severity, Severity::Warning);
        assert_eq!(
            waits.found,
            "example holds the DS of our key 1, and should hold that of our key 2"
        );
        assert_eq!(named(&waits), (false, true));
        assert_eq!(judged(&both, &own).severity, Severity::Ok);
        assert_eq!(judged(&both[1..], &own).severity, Severity::Ok);
        let lost = judged(&[], &own);
        assert_eq!(named(&lost), (false, true));
        let strange = judged(&[ds(3, 9)], &own);
        assert_eq!(strange.severity, Severity::Error);
        assert_eq!(named(&strange), (false, true));

        // Somebody said that the parent has followed, and it has not.
        let own = Own::Signed(Keys {
            retired: vec![old.clone()],
            ..submitted
        });
        let soon = judged(std::slice::from_ref(&old), &own);
        assert_eq!(soon.severity, Severity::Warning);
        assert!(
            soon.found
                .ends_with("it is bogus for every validating resolver"),
            "{soon:?}"
        );
        assert_eq!(judged(&both, &own).severity, Severity::Ok);
    }

    #[test]
    fn of_keys_that_are_not_here_nothing_is_said() {
        let own = Own::Unknown("can't read them".to_owned());
        for parent in [&[][..], &[ds(1, 7)]] {
            let finding = judged(parent, &own);
            assert_eq!(finding.severity, Severity::Warning);
            assert!(finding.found.ends_with(": can't read them"), "{finding:?}");
        }
    }

    #[test]
    fn every_ksk_counts_wherever_it_stands() {
        let folder = tempfile::tempdir().unwrap();
        let policy = Policy::new(&Dnssec::default(), 300, 300);
        let start = SystemTime::now() - 40 * HOUR;
        let store = || Store::open(folder.path());
        // Each by a process of its own, so that no clock seems to be set.
        let at = |hours: u32| {
            let mut moment = Moment::now();
            moment.wall = start + hours * HOUR;
            Keys::of(&store().keys(&origin(), &policy, moment).unwrap())
        };
        let first = at(40);
        assert!(first.early.is_some());
        assert_eq!((first.held.len(), &first.held), (1, &first.wanted));

        std::fs::remove_file(store().path(&origin())).unwrap();
        let old = at(0).held;
        assert_eq!(at(3).early, None);
        let confirm = |hours: u32| {
            let keys = store().confirm_ds(&origin(), &policy, start + hours * HOUR);
            Keys::of(&keys.unwrap())
        };
        confirm(3);
        let rolled = store().roll(&origin(), Role::Ksk, &policy, start + 4 * HOUR);
        let rolled = Keys::of(&rolled.unwrap());
        assert_eq!((rolled.held.len(), &rolled.wanted), (2, &old));
        let submitted = at(6);
        assert_eq!(submitted.held, rolled.held);
        assert_eq!(submitted.wanted, rolled.held[1..]);
        assert_eq!(submitted.retired, []);
        let confirmed = confirm(7);
        assert_eq!(confirmed.held, rolled.held);
        assert_eq!(confirmed.retired, old);
    }

    #[test]
    fn what_is_no_ds_is_none() {
        let short = RData::Unknown {
            code: RecordType::DS,
            rdata: NULL::with(vec![0, 1, 2]),
        };
        assert_eq!(Ds::of(&Record::from_rdata(origin(), 1, short)), None);
    }
}
