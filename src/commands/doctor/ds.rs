//! DS: what the parent says of the zone's keys (RFC 4034 §5), beside the keys there are.

use std::fmt;

use common::{Declared, dnssec::Store};
use hickory_proto::{
    dnssec::rdata::DNSSECRData,
    rr::{Name, RData, Record, RecordType},
    serialize::binary::BinEncodable,
};

use super::finding::Finding;
use crate::commands::delegation::plain;

const SUBJECT: &str = "DS";
/// What a parent's DS records commonly live, in seconds.
const TTL: u32 = 86_400;

/// The DS records our own keys call for: what the parent should hold. An unsigned zone has none.
pub(super) fn own_ds(declared: &Declared, origin: &Name) -> Vec<Record> {
    // Without keys nothing was ever served signed.
    let Ok(keys) = Store::open(&declared.config().edge).read(origin) else {
        return Vec::new();
    };
    let record = |ds| {
        let data = RData::DNSSEC(DNSSECRData::DS(ds));
        Record::from_rdata(origin.clone(), TTL, data)
    };
    keys.ds().into_iter().map(record).collect()
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

impl fmt::Display for Ds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} ", self.tag, self.algorithm, self.digest_type)?;
        self.digest
            .iter()
            .try_for_each(|octet| write!(f, "{octet:02X}"))
    }
}

/// Compares what the parent holds with what our keys call for. `asked` is of whom.
pub(super) fn judge(
    origin: &Name,
    parent: &Name,
    asked: &str,
    held: &[Ds],
    own: &[Record],
) -> Finding {
    let above = plain(parent);
    let line = |ds: &Ds| format!("{}\tIN\tDS\t{ds}", origin.to_ascii());
    let lines = |all: &[Ds]| -> String { all.iter().map(|ds| format!("\n{}", line(ds))).collect() };
    let wanted: Vec<Ds> = own.iter().filter_map(Ds::of).collect();
    let tags = |all: &[Ds]| -> String {
        let mut tags: Vec<String> = all.iter().map(|ds| ds.tag.to_string()).collect();
        tags.dedup();
        tags.join(", ")
    };
    let (ours, strange): (Vec<Ds>, Vec<Ds>) =
        held.iter().cloned().partition(|ds| wanted.contains(ds));
    match (wanted.is_empty(), held.is_empty()) {
        (true, true) => Finding::ok(
            SUBJECT,
            asked,
            "none at the parent, as it should be: the zone is not signed",
        ),
        // RFC 4035 §5.2: a DS promises signatures, and there are none.
        (true, false) => Finding::error(
            SUBJECT,
            asked,
            format!(
                "{above} holds DS records (key {}), but the zone is not signed: it is bogus for every validating resolver",
                tags(held)
            ),
            format!("remove these from the zone {above}:{}", lines(held)),
        ),
        (false, true) => Finding::warning(
            SUBJECT,
            asked,
            "none at the parent, but the zone is signed: nobody checks the signatures",
            format!("give these to the zone {above}:{}", lines(&wanted)),
        ),
        (false, false) if ours.is_empty() => Finding::error(
            SUBJECT,
            asked,
            format!(
                "{above} holds DS records (key {}), none of them the digest of a key the zone has (key {}): it is bogus for every validating resolver",
                tags(held),
                tags(&wanted)
            ),
            format!(
                "in the zone {above}, put these in place of those it holds:{}",
                lines(&wanted)
            ),
        ),
        (false, false) if !strange.is_empty() => Finding::warning(
            SUBJECT,
            asked,
            format!(
                "{above} holds the DS of our key {}, and others of keys the zone doesn't have (key {})",
                tags(&ours),
                tags(&strange)
            ),
            format!(
                "once no rollover is under way, remove these from the zone {above}:{}",
                lines(&strange)
            ),
        ),
        (false, false) => Finding::ok(
            SUBJECT,
            asked,
            format!("{above} holds the DS of our key {}", tags(&ours)),
        ),
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::{RData, rdata::NULL};

    use super::*;
    use crate::commands::doctor::finding::Severity;

    fn record(tag: u16, digest: u8) -> Record {
        let mut octets = tag.to_be_bytes().to_vec();
        octets.extend([13, 2]);
        octets.extend([digest; 32]);
        let data = RData::Unknown {
            code: RecordType::DS,
            rdata: NULL::with(octets),
        };
        Record::from_rdata(origin(), 3_600, data)
    }

    fn origin() -> Name {
        Name::from_ascii("w.example.").unwrap()
    }

    fn judged(parent: &[Record], own: &[Record]) -> Finding {
        let held: Vec<Ds> = parent.iter().filter_map(Ds::of).collect();
        let above = Name::from_ascii("example.").unwrap();
        judge(&origin(), &above, "a. for w.example DS", &held, own)
    }

    #[test]
    fn a_zone_without_signatures_has_no_ds() {
        assert_eq!(judged(&[], &[]).severity, Severity::Ok);
        let bogus = judged(&[record(1, 7)], &[]);
        assert_eq!(bogus.severity, Severity::Error);
        assert!(
            bogus.found.contains("bogus for every validating resolver"),
            "{bogus:?}"
        );
        let line = format!("\nw.example.\tIN\tDS\t1 13 2 {}", "07".repeat(32));
        assert!(bogus.cure.unwrap().ends_with(&line));
    }

    #[test]
    fn a_signed_zone_has_the_ds_of_its_keys() {
        let (old, new) = (record(1, 7), record(2, 8));
        let both = [old.clone(), new.clone()];
        let missing = judged(&[], &both);
        assert_eq!(missing.severity, Severity::Warning);
        let cure = missing.cure.unwrap();
        assert!(
            cure.contains("DS\t1 13 2 0707") && cure.contains("DS\t2 13 2 0808"),
            "{cure}"
        );
        assert_eq!(judged(&both, &both).severity, Severity::Ok);
        // One of several keys is enough: the others may be on their way in or out.
        assert_eq!(judged(&both[..1], &both).severity, Severity::Ok);

        let other = judged(std::slice::from_ref(&old), std::slice::from_ref(&new));
        assert_eq!(other.severity, Severity::Error);
        let cure = other.cure.unwrap();
        assert!(
            cure.contains("DS\t2 13 2") && !cure.contains("DS\t1 13 2"),
            "{cure}"
        );

        let extra = judged(&both, std::slice::from_ref(&new));
        assert_eq!(extra.severity, Severity::Warning);
        let cure = extra.cure.unwrap();
        assert!(
            cure.contains("DS\t1 13 2") && !cure.contains("DS\t2 13 2"),
            "{cure}"
        );
        // A tag alone is not a key.
        assert_eq!(judged(&[record(2, 9)], &[new]).severity, Severity::Error);
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
