//! The labels of a zone's sites and aliases: one hash set in a few flat pieces.
//!
//! A zone may hold a million of them, and DNS and proxy look into it for each question, so a label
//! costs its own octets and some 18 more, and finding one is one hash and one comparison. The hash is
//! keyed at random: nobody can choose names that collide.

use std::hash::BuildHasher;

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use crate::name::SiteName;

/// Labels in canonical order (RFC 4034 §6.1), each with the site it leads to.
#[derive(Clone, Debug, Default)]
pub struct Labels {
    /// All labels, one after the other.
    octets: Box<[u8]>,
    /// Where each label ends.
    ends: Box<[u32]>,
    /// The site of each label.
    sites: Box<[u32]>,
    /// Places in `ends`, found by the hash of their label.
    places: HashTable<u32>,
    state: RandomState,
}

impl Labels {
    /// A table of labels, each with its site's index.
    pub fn new<'n>(labels: impl IntoIterator<Item = (&'n SiteName, u32)>) -> Self {
        let mut labels: Vec<(&[u8], u32)> = labels
            .into_iter()
            .map(|(label, site)| (label.as_str().as_bytes(), site))
            .collect();
        labels.sort_unstable();
        let mut octets = Vec::with_capacity(labels.iter().map(|(label, _)| label.len()).sum());
        let mut ends = Vec::with_capacity(labels.len());
        for (label, _) in &labels {
            octets.extend_from_slice(label);
            // A zone file of 64 MiB has no more octets than that.
            ends.push(u32::try_from(octets.len()).unwrap_or(u32::MAX));
        }
        let mut table = Self {
            octets: octets.into(),
            ends: ends.into(),
            sites: labels.iter().map(|(_, site)| *site).collect(),
            places: HashTable::with_capacity(labels.len()),
            state: RandomState::default(),
        };
        let mut places = std::mem::take(&mut table.places);
        for (place, (label, _)) in (0..).zip(&labels) {
            let hash = table.state.hash_one(label);
            places.insert_unique(hash, place, |other| table.state.hash_one(table.at(*other)));
        }
        table.places = places;
        table
    }

    /// The place of a label, in lower case.
    pub fn find(&self, label: &[u8]) -> Option<u32> {
        let hash = self.state.hash_one(label);
        self.places
            .find(hash, |place| self.at(*place) == label)
            .copied()
    }

    /// The label at a place.
    pub fn get(&self, place: u32) -> Option<&[u8]> {
        ((place as usize) < self.len()).then(|| self.at(place))
    }

    /// The label at a place; empty past the end.
    pub fn at(&self, place: u32) -> &[u8] {
        let place = place as usize;
        let start = match place.checked_sub(1) {
            Some(before) => self.ends.get(before).copied().unwrap_or(0),
            None => 0,
        };
        let end = self.ends.get(place).copied().unwrap_or(start);
        self.octets
            .get(start as usize..end as usize)
            .unwrap_or_default()
    }

    /// The site a label leads to.
    pub fn site(&self, label: &[u8]) -> Option<u32> {
        self.sites.get(self.find(label)? as usize).copied()
    }

    /// The site of the label at a place.
    pub fn site_at(&self, place: u32) -> Option<u32> {
        self.sites.get(place as usize).copied()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// All labels in order.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        (0..).map(|place| self.at(place)).take(self.len())
    }

    /// The place of the last label that is not after `label` in order.
    pub fn at_or_before(&self, label: &[u8]) -> Option<u32> {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low.midpoint(high);
            let place = u32::try_from(middle).unwrap_or(u32::MAX);
            if self.at(place) <= label {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        u32::try_from(low.checked_sub(1)?).ok()
    }
}

/// Two tables are equal when they hold the same labels for the same sites.
impl PartialEq for Labels {
    fn eq(&self, other: &Self) -> bool {
        self.octets == other.octets && self.ends == other.ends && self.sites == other.sites
    }
}

impl Eq for Labels {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_found_by_name_and_by_order() {
        let names: Vec<SiteName> = ["bob", "al", "alice", "a-1"]
            .iter()
            .map(|name| SiteName::parse(name).unwrap())
            .collect();
        let labels = Labels::new(names.iter().zip(0..));
        let ordered: Vec<&[u8]> = labels.iter().collect();
        assert_eq!(ordered, [&b"a-1"[..], b"al", b"alice", b"bob"]);
        assert_eq!(labels.site(b"alice"), Some(2));
        assert_eq!(labels.site(b"ali"), None);
        assert_eq!((labels.site_at(1), labels.site_at(4)), (Some(1), None));
        assert_eq!(labels.at_or_before(b"alf"), Some(1));
        assert_eq!(labels.at_or_before(b"alice"), Some(2));
        assert_eq!(labels.at_or_before(b"a"), None);
        assert_eq!(labels.at(9), b"");
        assert!(Labels::new([]).find(b"").is_none());
    }
}
