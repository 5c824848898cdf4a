//! What changed between two contents of a zone, kept as octets: a journal may hold many.

use std::{
    cmp::Ordering,
    collections::{BTreeSet, HashSet},
};

use hickory_proto::{
    rr::{LowerName, Name, Record, RecordType},
    serialize::binary::{BinDecodable, BinDecoder},
};

use crate::{record, served::Served};

/// Larger ones are not kept: whoever is that far behind takes the whole zone.
pub(crate) const MOST_OCTETS: usize = 4 << 20;

/// One step from a serial to the next (RFC 1995 §4): each side starts with its SOA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The serial before.
    pub from: u32,
    /// The serial after.
    pub to: u32,
    removed: Box<[u8]>,
    added: Box<[u8]>,
}

impl Difference {
    /// What leads from one form of a zone to another; `None` when it is too large to keep.
    pub fn between(old: &Served, new: &Served) -> Option<Self> {
        let (removed, added) = changes(old, new)?;
        let side = |served: &Served, records: &[Record]| {
            let mut octets = record::octets(&served.soa())?;
            for record in records {
                octets.extend(record::octets(record)?);
            }
            Some(octets.into_boxed_slice())
        };
        let difference = Self {
            from: old.serial,
            to: new.serial,
            removed: side(old, &removed)?,
            added: side(new, &added)?,
        };
        (difference.octets() <= MOST_OCTETS).then_some(difference)
    }

    /// What was there: the old SOA first.
    pub fn removed(&self) -> impl Iterator<Item = Record> + Send + '_ {
        Records::of(&self.removed)
    }

    /// What is there now: the new SOA first.
    pub fn added(&self) -> impl Iterator<Item = Record> + Send + '_ {
        Records::of(&self.added)
    }

    /// How much it takes.
    pub fn octets(&self) -> usize {
        self.removed.len() + self.added.len() + 12
    }

    /// As it is kept on disk.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut octets = Vec::with_capacity(self.octets());
        let removed = u32::try_from(self.removed.len()).unwrap_or(u32::MAX);
        for number in [self.from, self.to, removed] {
            octets.extend_from_slice(&number.to_be_bytes());
        }
        octets.extend_from_slice(&self.removed);
        octets.extend_from_slice(&self.added);
        octets
    }

    /// Back from disk; `None` when it is not whole.
    pub(crate) fn decode(octets: &[u8]) -> Option<Self> {
        let (from, rest) = octets.split_first_chunk()?;
        let (to, rest) = rest.split_first_chunk()?;
        let (removed, rest) = rest.split_first_chunk()?;
        let removed = usize::try_from(u32::from_be_bytes(*removed)).ok()?;
        let (removed, added) = rest.split_at_checked(removed)?;
        let difference = Self {
            from: u32::from_be_bytes(*from),
            to: u32::from_be_bytes(*to),
            removed: removed.into(),
            added: added.into(),
        };
        let whole = |octets| {
            let mut records = Records::of(octets);
            let soa = records.next().is_some_and(|record| is_soa(&record));
            soa && records.by_ref().all(|record| record.name != Name::root()) && records.at_end()
        };
        (whole(removed) && whole(added)).then_some(difference)
    }
}

/// The records that only the old form has, and those that only the new one has; SOA left out.
fn changes(old: &Served, new: &Served) -> Option<(Vec<Record>, Vec<Record>)> {
    let (mut removed, mut added) = (Vec::new(), Vec::new());
    let mut room = MOST_OCTETS;
    let names: BTreeSet<&LowerName> = old.names().chain(new.names()).collect();
    for name in names {
        compare(
            old.at_name(name),
            new.at_name(name),
            &mut removed,
            &mut added,
            &mut room,
        )?;
    }
    // Sites share their data: those that are in both differ only where all do, or in signatures.
    let alike = old.sites_like(new);
    let (before, after) = (old.authority.labels(), new.authority.labels());
    let (mut a, mut b) = (0, 0);
    loop {
        let order = match (before.get(a), after.get(b)) {
            (None, None) => break,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(x), Some(y)) => x.cmp(y),
        };
        let gone = order != Ordering::Greater;
        let come = order != Ordering::Less;
        if !(gone && come && alike && old.label_is(a, new, b)) {
            let there = |served: &Served, place: u32, is: bool| {
                if is {
                    served.at_label(place).unwrap_or_default()
                } else {
                    Vec::new()
                }
            };
            compare(
                there(old, a, gone),
                there(new, b, come),
                &mut removed,
                &mut added,
                &mut room,
            )?;
        }
        a += u32::from(gone);
        b += u32::from(come);
    }
    Some((removed, added))
}

/// Adds what differs, octet for octet: a copy follows a change of case, too.
fn compare(
    old: Vec<Record>,
    new: Vec<Record>,
    removed: &mut Vec<Record>,
    added: &mut Vec<Record>,
    room: &mut usize,
) -> Option<()> {
    let octets = |records: &[Record]| -> HashSet<Vec<u8>> {
        records.iter().filter_map(record::octets).collect()
    };
    let (before, after) = (octets(&old), octets(&new));
    let mut keep = |records: Vec<Record>, there: &HashSet<Vec<u8>>, into: &mut Vec<Record>| {
        for record in records.into_iter().filter(|record| !is_soa(record)) {
            let octets = record::octets(&record)?;
            if !there.contains(&octets) {
                // Whoever is too far behind takes the whole zone: no use in building more.
                *room = room.checked_sub(octets.len())?;
                into.push(record);
            }
        }
        Some(())
    };
    keep(old, &after, removed)?;
    keep(new, &before, added)
}

fn is_soa(record: &Record) -> bool {
    record.record_type() == RecordType::SOA
}

/// Reads records one after the other.
struct Records<'o>(BinDecoder<'o>);

impl<'o> Records<'o> {
    fn of(octets: &'o [u8]) -> Self {
        Self(BinDecoder::new(octets))
    }

    fn at_end(&self) -> bool {
        self.0.is_empty()
    }
}

impl Iterator for Records<'_> {
    type Item = Record;

    fn next(&mut self) -> Option<Record> {
        if self.at_end() {
            return None;
        }
        Record::read(&mut self.0).ok()
    }
}

#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, sync::Arc};

    use hickory_proto::rr::{
        RData,
        rdata::{A, TXT},
    };

    use super::*;
    use crate::{authority::Authority, labels::Labels, name::SiteName};

    pub(crate) fn zone(ttl: u32, addresses: &[u8], labels: &[&str], text: &[&str]) -> Served {
        let apex = Name::from_ascii("w.example.").unwrap();
        let data = |last: &u8| RData::A(A(Ipv4Addr::new(192, 0, 2, *last)));
        let mut authority = Authority::new(
            apex.clone(),
            ttl,
            &[Name::from_ascii("ns.other.").unwrap()],
            apex.clone(),
            addresses.iter().map(data).collect(),
        );
        let labels: Vec<SiteName> = labels
            .iter()
            .map(|label| SiteName::parse(label).unwrap())
            .collect();
        let places = labels.iter().map(|label| (label, 0));
        authority.set_labels(Arc::new(Labels::new(places)), HashSet::new());
        for text in text {
            let txt = RData::TXT(TXT::new(vec![(*text).to_owned()]));
            authority.add(Record::from_rdata(apex.clone(), ttl, txt));
        }
        Served::new(Arc::new(authority), 1)
    }

    fn lines(records: &[Record]) -> Vec<String> {
        let mut lines: Vec<String> = records
            .iter()
            .map(|r| format!("{} {} {}", r.name, r.ttl, r.data))
            .collect();
        lines.sort_unstable();
        lines
    }

    #[test]
    fn only_what_differs_is_found() {
        let old = zone(60, &[1], &["a", "b"], &["one", "two"]);
        let (removed, added) =
            changes(&old, &zone(60, &[1], &["b", "c"], &["two", "Three"])).unwrap();
        assert_eq!(
            lines(&removed),
            ["a.w.example. 60 192.0.2.1", "w.example. 60 one"]
        );
        assert_eq!(
            lines(&added),
            ["c.w.example. 60 192.0.2.1", "w.example. 60 Three"]
        );
        let (removed, added) =
            changes(&old, &zone(60, &[3], &["a", "b"], &["one", "two"])).unwrap();
        assert_eq!(
            lines(&removed),
            ["a.w.example. 60 192.0.2.1", "b.w.example. 60 192.0.2.1"]
        );
        assert_eq!(
            lines(&added),
            ["a.w.example. 60 192.0.2.3", "b.w.example. 60 192.0.2.3"]
        );
        let (removed, added) =
            changes(&old, &zone(61, &[1], &["a", "b"], &["one", "two"])).unwrap();
        assert_eq!((removed.len(), added.len()), (5, 5), "another TTL is all");
        let same = changes(&old, &zone(60, &[1], &["a", "b"], &["one", "two"])).unwrap();
        assert_eq!(same, (vec![], vec![]));
    }
}
