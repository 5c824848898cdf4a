//! The signatures of a zone and its chain of NSEC records (RFC 4034, RFC 4035 §2).
//!
//! Sites differ in nothing but their name, so for each label only the signatures themselves are kept,
//! and its NSEC record is made when it is asked for. The canonical order of names (RFC 4034 §6.1) is
//! that of the labels, with the few other names ([`Link`]) in between: each knows how many labels come
//! before it.

use std::{
    cmp::Ordering,
    time::{SystemTime, UNIX_EPOCH},
};

use hickory_proto::{
    dnssec::{
        Algorithm,
        rdata::{DNSSECRData, NSEC, RRSIG, SigInput},
    },
    rr::{LowerName, Name, RData, Record, RecordType, SerialNumber},
};

use crate::{
    authority::{Authority, NEGATIVE_TTL},
    wire,
};

/// A P-256 signature as it travels (RFC 6605 §4).
pub const SIGNATURE_OCTETS: usize = 64;

/// One signature, without what all of a zone's have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// Seconds since 1970, modulo 2^32 (RFC 4034 §3.1.5).
    pub inception: u32,
    /// Likewise.
    pub expiration: u32,
    /// Of the key that made it.
    pub tag: u16,
    /// The signature itself.
    pub octets: [u8; SIGNATURE_OCTETS],
}

/// A name other than a label's in the NSEC chain.
#[derive(Clone, Debug)]
pub struct Link {
    /// The name.
    pub name: LowerName,
    /// The same on the wire, lower case.
    pub octets: Box<[u8]>,
    /// How many labels come before it.
    pub after: u32,
    /// The types at this name, NSEC and RRSIG among them.
    pub types: Box<[RecordType]>,
    /// A signature for each signed type.
    pub signatures: Box<[(RecordType, Signature)]>,
}

/// A name in the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A label, by its place.
    Label(u32),
    /// A link, by its index.
    Link(usize),
}

/// All signatures of one zone. It belongs to one [`Authority`], which is handed in again for each use.
#[derive(Clone, Debug)]
pub struct Signed {
    /// In canonical order; the apex comes first.
    pub links: Box<[Link]>,
    /// For each label one signature for each type of a site, in the order of the authority's data, and
    /// then the NSEC record's.
    pub labels: Box<[Signature]>,
    /// How many those are for each label.
    pub stride: usize,
    /// Of the SOA record, which changes with each serial.
    pub soa: Signature,
    /// When the first signature wants to be made anew, in seconds since 1970.
    pub refresh: u64,
    /// When it was looked at last, in seconds since 1970.
    pub since: u64,
    /// Changes whenever a signature does.
    pub version: u64,
}

impl Signature {
    /// A place for a signature.
    pub(crate) fn empty() -> Self {
        Self {
            inception: 0,
            expiration: 0,
            tag: 0,
            octets: [0; SIGNATURE_OCTETS],
        }
    }

    /// Whether none was made.
    pub(crate) fn is_empty(&self) -> bool {
        self.inception == self.expiration
    }
}

/// A clock that is this far behind the last look was set back, and signatures seem to come from the future.
const SET_BACK_SECONDS: u64 = 1_800;

impl Signed {
    /// Whether signatures want to be made anew.
    pub fn is_due(&self, now: SystemTime) -> bool {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        self.refresh <= now || now + SET_BACK_SECONDS < self.since
    }

    /// How many signatures there are, with places for some that labels don't need.
    pub(crate) fn count(&self) -> usize {
        let links = self.links.iter().map(|link| link.signatures.len());
        links.sum::<usize>() + self.labels.len() + 1
    }

    /// The signatures of a set, as records under its owner: one, but for the keys' own sets.
    pub fn signatures(
        &self,
        authority: &Authority,
        owner: &LowerName,
        kind: RecordType,
    ) -> Vec<Record> {
        let (Some(ttl), Some(place)) =
            (authority.ttl_of(owner, kind), self.place(authority, owner))
        else {
            return Vec::new();
        };
        let record = |signature| rrsig(authority, owner, kind, ttl, signature);
        match place {
            Place::Label(place) => self
                .of_label(authority, place, kind)
                .map(record)
                .into_iter()
                .collect(),
            Place::Link(link) => self.of_link(link, kind).map(record).collect(),
        }
    }

    /// The signature of a type of the label at `place`.
    pub fn of_label(
        &self,
        authority: &Authority,
        place: u32,
        kind: RecordType,
    ) -> Option<&Signature> {
        let index = if kind == RecordType::NSEC {
            self.stride.checked_sub(1)?
        } else {
            // A label without HTTPS keeps its slot.
            authority
                .site_data(place)
                .find(|data| data.record_type() == kind)?;
            authority.site_slot(kind)?
        };
        self.labels.get(place as usize * self.stride + index)
    }

    /// All signatures of the label at `place`.
    pub(crate) fn of_place(&self, place: u32) -> Option<&[Signature]> {
        let start = place as usize * self.stride;
        self.labels.get(start..start + self.stride)
    }

    /// The signatures of a type of a link.
    pub fn of_link(&self, link: usize, kind: RecordType) -> impl Iterator<Item = &Signature> {
        let link = self.links.get(link);
        let soa = link
            .filter(|link| kind == RecordType::SOA && link.types.contains(&RecordType::SOA))
            .map(|_| &self.soa);
        link.into_iter()
            .flat_map(|link| &link.signatures)
            .filter(move |(covered, _)| *covered == kind)
            .map(|(_, signature)| signature)
            .chain(soa)
    }

    /// Where a name stands in the chain, when it has a place there.
    pub fn place(&self, authority: &Authority, name: &LowerName) -> Option<Place> {
        if let Some(place) = authority.site_place(name) {
            return Some(Place::Label(place));
        }
        let found = self.links.binary_search_by(|link| link.name.cmp(name));
        found.ok().map(Place::Link)
    }

    /// What comes after a place; the last is followed by the apex.
    pub fn next(&self, authority: &Authority, place: Place) -> Place {
        let (next_link, next_label) = match place {
            Place::Label(label) => {
                let before = label.saturating_add(1);
                (
                    self.links.partition_point(|link| link.after < before),
                    before,
                )
            }
            Place::Link(link) => (link + 1, self.links.get(link).map_or(0, |link| link.after)),
        };
        let labels = u32::try_from(authority.labels().len()).unwrap_or(u32::MAX);
        match self.links.get(next_link) {
            Some(link) if link.after <= next_label => Place::Link(next_link),
            _ if next_label < labels => Place::Label(next_label),
            Some(_) => Place::Link(next_link),
            None => Place::Link(0),
        }
    }

    /// The last place that is not after a name of this zone, lower case and on the wire. `label` is the
    /// name's label right below the apex.
    pub fn at_or_before(&self, authority: &Authority, octets: &[u8], label: &[u8]) -> Place {
        let link = self
            .links
            .partition_point(|link| canonical_order(&link.octets, octets) != Ordering::Greater)
            .saturating_sub(1);
        let after = self.links.get(link).map_or(0, |link| link.after);
        match authority.labels().at_or_before(label) {
            Some(place) if place >= after => Place::Label(place),
            _ => Place::Link(link),
        }
    }

    /// The types at a place, for its NSEC record.
    pub fn types(&self, authority: &Authority, place: Place) -> Vec<RecordType> {
        match place {
            Place::Label(label) => authority
                .site_data(label)
                .map(RData::record_type)
                .chain([RecordType::RRSIG, RecordType::NSEC])
                .collect(),
            Place::Link(link) => self
                .links
                .get(link)
                .map_or_else(Vec::new, |link| link.types.to_vec()),
        }
    }

    /// The name of a place.
    pub fn name(&self, authority: &Authority, place: Place) -> Name {
        match place {
            Place::Label(label) => Name::from(&authority.apex)
                .prepend_label(authority.labels().at(label))
                .unwrap_or_default(),
            Place::Link(link) => self
                .links
                .get(link)
                .map_or_else(Name::root, |link| Name::from(&link.name)),
        }
    }

    /// The NSEC record at a name and its signature.
    pub fn nsec(&self, authority: &Authority, name: &LowerName) -> Option<[Record; 2]> {
        let place = self.place(authority, name)?;
        self.nsec_of(authority, place)
    }

    /// The NSEC record of a place and its signature.
    pub fn nsec_of(&self, authority: &Authority, place: Place) -> Option<[Record; 2]> {
        let owner = self.name(authority, place);
        let next = self.name(authority, self.next(authority, place));
        let data = NSEC::new(next, self.types(authority, place));
        let ttl = nsec_ttl(authority);
        let nsec = Record::from_rdata(owner.clone(), ttl, RData::DNSSEC(DNSSECRData::NSEC(data)));
        let signature = match place {
            Place::Label(label) => self.of_label(authority, label, RecordType::NSEC)?,
            Place::Link(link) => self.of_link(link, RecordType::NSEC).next()?,
        };
        let signature = rrsig(
            authority,
            &LowerName::new(&owner),
            RecordType::NSEC,
            ttl,
            signature,
        );
        Some([nsec, signature])
    }

    /// The NSEC record that proves that nothing stands at a name of this zone, and its signature.
    pub fn covering(&self, authority: &Authority, name: &LowerName) -> Option<[Record; 2]> {
        let below = usize::from(authority.apex_labels());
        let labels: Vec<&[u8]> = name.iter().collect();
        let label = labels.get(labels.len().checked_sub(below + 1)?)?;
        let octets = wire::wire(name);
        self.nsec_of(authority, self.at_or_before(authority, &octets, label))
    }
}

/// NSEC records live as long as negative answers (RFC 9077 §3).
pub fn nsec_ttl(authority: &Authority) -> u32 {
    NEGATIVE_TTL.min(authority.ttl)
}

fn rrsig(
    authority: &Authority,
    owner: &LowerName,
    kind: RecordType,
    ttl: u32,
    signature: &Signature,
) -> Record {
    let input = SigInput {
        type_covered: kind,
        algorithm: Algorithm::ECDSAP256SHA256,
        num_labels: owner.num_labels(),
        original_ttl: ttl,
        sig_expiration: SerialNumber::from(signature.expiration),
        sig_inception: SerialNumber::from(signature.inception),
        key_tag: signature.tag,
        signer_name: Name::from(&authority.apex),
    };
    let data = RRSIG::from_sig(input, signature.octets.to_vec());
    Record::from_rdata(
        Name::from(owner),
        ttl,
        RData::DNSSEC(DNSSECRData::RRSIG(data)),
    )
}

/// Orders lower-case names on the wire by their labels from the right (RFC 4034 §6.1).
pub fn canonical_order(a: &[u8], b: &[u8]) -> Ordering {
    let (mut a_starts, mut b_starts) = ([0_u8; 128], [0_u8; 128]);
    let a_count = starts(a, &mut a_starts);
    let b_count = starts(b, &mut b_starts);
    let label = |name: &'_ [u8], at: u8| -> std::ops::Range<usize> {
        let at = usize::from(at);
        let length = name.get(at).copied().unwrap_or(0);
        at + 1..(at + 1 + usize::from(length)).min(name.len())
    };
    for (x, y) in a_starts[..a_count]
        .iter()
        .rev()
        .zip(b_starts[..b_count].iter().rev())
    {
        let order = a[label(a, *x)].cmp(&b[label(b, *y)]);
        if order != Ordering::Equal {
            return order;
        }
    }
    a_count.cmp(&b_count)
}

/// Where the labels of a name start; how many there are.
fn starts(name: &[u8], starts: &mut [u8; 128]) -> usize {
    let (mut at, mut count) = (0, 0);
    while let Some(length) = name.get(at).filter(|length| **length > 0)
        && let Some(start) = starts.get_mut(count)
    {
        // A name has at most 255 octets.
        *start = u8::try_from(at).unwrap_or(u8::MAX);
        at += usize::from(*length) + 1;
        count += 1;
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_ordered_as_the_rfc_shows() {
        // RFC 4034 §6.1, but for the case, which is lowered before.
        let sorted: [&[&[u8]]; 9] = [
            &[b"example"],
            &[b"a", b"example"],
            &[b"yljkjljk", b"a", b"example"],
            &[b"z", b"a", b"example"],
            &[b"zabc", b"a", b"example"],
            &[b"z", b"example"],
            &[b"\x01", b"z", b"example"],
            &[b"*", b"z", b"example"],
            &[b"\xc8", b"z", b"example"],
        ];
        let names: Vec<Vec<u8>> = sorted
            .iter()
            .map(|labels| wire::wire(&Name::from_labels(labels.iter().copied()).unwrap()))
            .collect();
        for pair in names.windows(2) {
            assert_eq!(
                canonical_order(&pair[0], &pair[1]),
                Ordering::Less,
                "{pair:?}"
            );
            assert_eq!(canonical_order(&pair[1], &pair[0]), Ordering::Greater);
        }
        assert_eq!(canonical_order(&names[2], &names[2]), Ordering::Equal);
    }
}
