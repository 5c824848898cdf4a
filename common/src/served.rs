//! One zone as it is served: its names, its serial, its signatures, and answers ready to be sent.

use std::sync::Arc;

use hickory_proto::rr::{LowerName, Name, Record, RecordType};

use crate::{
    answers::Answers,
    authority::Authority,
    dnssec::{Sealed, ZoneKeys},
    signed::{Signature, Signed},
};

/// A zone, forward or reverse, in the form DNS answers from.
#[derive(Debug)]
pub struct Served {
    /// Its names; of a signed zone, the keys too.
    pub authority: Arc<Authority>,
    /// Its SOA serial.
    pub serial: u32,
    /// Its signatures, when it is signed.
    pub signed: Option<Signed>,
    /// The content alone, before keys were added to it: what the next compilation compares.
    pub content: Arc<Authority>,
    /// SHA-256 of that content, where it is signed.
    pub digest: [u8; 32],
    /// The keys it is signed with.
    pub keys: Option<Arc<ZoneKeys>>,
    /// Answers ready to be sent.
    pub answers: Answers,
    /// Names with records that are no labels, the apex first, in canonical order.
    names: Box<[LowerName]>,
}

impl Served {
    /// An unsigned zone.
    pub fn new(authority: Arc<Authority>, serial: u32) -> Self {
        Self {
            content: Arc::clone(&authority),
            authority,
            serial,
            signed: None,
            digest: [0; 32],
            keys: None,
            answers: Answers::default(),
            names: Box::default(),
        }
        .ready()
    }

    /// A signed zone: its content with keys and signatures, and the signature of its SOA record.
    pub fn signed(
        content: Arc<Authority>,
        digest: [u8; 32],
        sealed: Sealed,
        serial: u32,
        soa: Signature,
        keys: Arc<ZoneKeys>,
    ) -> Self {
        let mut signed = sealed.signed;
        signed.soa = soa;
        Self {
            authority: Arc::new(sealed.authority),
            content,
            serial,
            signed: Some(signed),
            digest,
            keys: Some(keys),
            answers: Answers::default(),
            names: Box::default(),
        }
        .ready()
    }

    fn ready(mut self) -> Self {
        let nodes = self.authority.nodes();
        let mut names: Vec<LowerName> = nodes
            .filter(|(_, node)| !node.records.is_empty())
            .map(|(name, _)| name.clone())
            .collect();
        names.sort_unstable();
        self.names = names.into();
        self.answers = Answers::prepare(&self);
        self
    }

    /// All records with their signatures, the SOA record first.
    pub fn records(&self) -> impl Iterator<Item = Record> {
        (0..).map_while(|index| self.records_at(index)).flatten()
    }

    /// All records of one name, by a number from 0 up, with their signatures; the apex comes first, and
    /// its SOA before all. `None` past the last name. A zone may have a million of them: whoever sends it
    /// asks for one after the other.
    pub fn records_at(&self, index: usize) -> Option<Vec<Record>> {
        match self.names.get(index) {
            Some(name) => Some(self.at_name(name)),
            None => self.at_label(u32::try_from(index - self.names.len()).ok()?),
        }
    }

    /// Names with records that are no labels, the apex first, in canonical order.
    pub(crate) fn names(&self) -> impl Iterator<Item = &LowerName> {
        self.names.iter()
    }

    /// All records of a name that is no label; the SOA record comes first at the apex.
    pub(crate) fn at_name(&self, name: &LowerName) -> Vec<Record> {
        let authority = &*self.authority;
        let mut records = Vec::new();
        if *name == authority.apex {
            records.push(self.soa());
        }
        let node = authority.node(name);
        records.extend(
            node.into_iter()
                .flat_map(|node| node.records.iter().cloned()),
        );
        self.sign(name, &mut records);
        records
    }

    /// All records of the label at `place`.
    pub(crate) fn at_label(&self, place: u32) -> Option<Vec<Record>> {
        let authority = &*self.authority;
        let label = authority.labels().get(place)?;
        let owner = Name::from(&authority.apex).prepend_label(label).ok()?;
        let mut records: Vec<Record> = authority.site_records(place, &owner).collect();
        self.sign(&LowerName::new(&owner), &mut records);
        Some(records)
    }

    /// Whether the sites of two forms have the same data, signatures left out.
    pub(crate) fn sites_like(&self, other: &Self) -> bool {
        let (a, b) = (&self.authority, &other.authority);
        a.ttl == b.ttl
            && a.all_site_data().eq(b.all_site_data())
            && self.signed.is_some() == other.signed.is_some()
    }

    /// Whether a label here and one of the same name there have the same records, where
    /// [`Served::sites_like`] holds.
    pub(crate) fn label_is(&self, place: u32, other: &Self, other_place: u32) -> bool {
        self.authority.is_plain(place) == other.authority.is_plain(other_place)
            && match (&self.signed, &other.signed) {
                (Some(a), Some(b)) => a.of_place(place) == b.of_place(other_place),
                _ => true,
            }
    }

    /// Adds the signatures of all sets of a name, and its NSEC record.
    fn sign(&self, name: &LowerName, records: &mut Vec<Record>) {
        let Some(signed) = &self.signed else {
            return;
        };
        let mut kinds: Vec<RecordType> = Vec::new();
        for kind in records.iter().map(Record::record_type) {
            if !kinds.contains(&kind) {
                kinds.push(kind);
            }
        }
        for kind in kinds {
            records.extend(signed.signatures(&self.authority, name, kind));
        }
        records.extend(signed.nsec(&self.authority, name).into_iter().flatten());
    }

    /// The SOA record as a positive answer.
    pub fn soa(&self) -> Record {
        self.authority.soa(self.serial, self.authority.ttl)
    }
}

/// Two are equal when they hold the same records; signatures differ each time they are made.
impl PartialEq for Served {
    fn eq(&self, other: &Self) -> bool {
        self.serial == other.serial && self.content == other.content
    }
}

impl Eq for Served {}
