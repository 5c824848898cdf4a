//! What DNS knows of one zone, forward or reverse: a tree of names flattened into hash maps.
//!
//! Sites share one pair of addresses, so they are kept as labels; everything else is a [`Node`] with
//! its records. A node without records is an empty non-terminal (RFC 4592 §2.2.2).

use std::{collections::HashMap, sync::Arc};

use hickory_proto::rr::{
    LowerName, Name, RData, Record, RecordType,
    rdata::{NS, SOA},
};

use crate::name::SiteName;

/// Seconds a resolver may keep a negative answer: short, so that a new name shows at once.
pub const NEGATIVE_TTL: u32 = 30;
/// Timers secondaries live by (RFC 1912 §2.2), in seconds.
const REFRESH: i32 = 3_600;
const RETRY: i32 = 900;
const EXPIRE: i32 = 1_209_600;

/// The records at one name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// All records, those of one type together.
    pub records: Vec<Record>,
}

impl Node {
    /// The records of one type.
    pub fn of_type(&self, kind: RecordType) -> impl Iterator<Item = &Record> {
        self.records
            .iter()
            .filter(move |record| record.record_type() == kind)
    }

    /// Whether there is any record of a type.
    pub fn has(&self, kind: RecordType) -> bool {
        self.of_type(kind).next().is_some()
    }
}

/// What stands at a name.
#[derive(Clone, Copy, Debug)]
pub enum Found<'a> {
    /// Records of its own, or none: an empty non-terminal.
    Node(&'a Node),
    /// A site or alias: the addresses of this server.
    Site,
}

/// The names of one zone and their records, without the serial, which is state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    /// The zone's origin.
    pub apex: LowerName,
    /// Seconds a resolver may keep a positive answer.
    pub ttl: u32,
    /// Names with records, and empty non-terminals; the apex holds NS but no SOA.
    nodes: HashMap<LowerName, Node>,
    /// Labels of sites and aliases, each with its site's index.
    labels: Arc<HashMap<SiteName, u32>>,
    /// A and AAAA data of this server.
    addresses: Vec<RData>,
    primary: Name,
    hostmaster: Name,
    has_cuts: bool,
}

impl Authority {
    /// An empty zone: its apex with name servers.
    pub fn new(
        apex: Name,
        ttl: u32,
        nameservers: &[Name],
        hostmaster: Name,
        addresses: Vec<RData>,
    ) -> Self {
        let apex = LowerName::new(&apex);
        let records = nameservers
            .iter()
            .map(|server| Record::from_rdata(Name::from(&apex), ttl, RData::NS(NS(server.clone()))))
            .collect();
        Self {
            primary: nameservers
                .first()
                .cloned()
                .unwrap_or_else(|| Name::from(&apex)),
            nodes: HashMap::from([(apex.clone(), Node { records })]),
            apex,
            ttl,
            labels: Arc::default(),
            addresses,
            hostmaster,
            has_cuts: false,
        }
    }

    /// Sets the labels that answer with this server's addresses.
    pub fn set_labels(&mut self, labels: HashMap<SiteName, u32>) {
        self.labels = Arc::new(labels);
    }

    /// Adds a record and the empty non-terminals above it.
    pub fn add(&mut self, record: Record) {
        let name = LowerName::new(&record.name);
        let mut parent = name.base_name();
        while parent.num_labels() > self.apex.num_labels() && !self.is_site(&parent) {
            self.nodes.entry(parent.clone()).or_default();
            parent = parent.base_name();
        }
        self.has_cuts |= record.record_type() == RecordType::NS && name != self.apex;
        self.nodes.entry(name).or_default().records.push(record);
    }

    /// The site a label leads to.
    pub fn site_index(&self, label: &str) -> Option<u32> {
        self.labels.get(label).copied()
    }

    /// Labels of sites and aliases.
    pub fn labels(&self) -> impl Iterator<Item = &SiteName> {
        self.labels.keys()
    }

    /// What stands exactly at `name`, which lies in this zone.
    pub fn find(&self, name: &LowerName) -> Option<Found<'_>> {
        if let Some(node) = self.nodes.get(name) {
            return Some(Found::Node(node));
        }
        self.is_site(name).then_some(Found::Site)
    }

    /// The node at a name, when it is one.
    pub fn node(&self, name: &LowerName) -> Option<&Node> {
        self.nodes.get(name)
    }

    fn is_site(&self, name: &LowerName) -> bool {
        // One label below the apex.
        name.num_labels() == self.apex.num_labels() + 1
            && name
                .iter()
                .next()
                .and_then(|label| std::str::from_utf8(label).ok())
                .is_some_and(|label| self.labels.contains_key(label))
    }

    /// Whether some name below the apex is delegated elsewhere.
    pub fn has_cuts(&self) -> bool {
        self.has_cuts
    }

    /// The address records of this server under a name.
    pub fn addresses(&self, owner: &Name) -> impl Iterator<Item = Record> {
        self.addresses
            .iter()
            .map(|data| Record::from_rdata(owner.clone(), self.ttl, data.clone()))
    }

    /// The SOA record; `ttl` differs between positive and negative answers (RFC 2308 §5).
    pub fn soa(&self, serial: u32, ttl: u32) -> Record {
        let data = SOA::new(
            self.primary.clone(),
            self.hostmaster.clone(),
            serial,
            REFRESH,
            RETRY,
            EXPIRE,
            NEGATIVE_TTL,
        );
        Record::from_rdata(Name::from(&self.apex), ttl, RData::SOA(data))
    }

    /// Every record of the zone, SOA first, then by name.
    pub fn records(&self, serial: u32) -> Vec<Record> {
        let mut names: Vec<_> = self.nodes.keys().collect();
        names.sort_unstable();
        let mut records = vec![self.soa(serial, self.ttl)];
        records.extend(
            names
                .into_iter()
                .flat_map(|name| self.nodes[name].records.iter().cloned()),
        );
        let mut labels: Vec<_> = self.labels.keys().collect();
        labels.sort_unstable();
        for label in labels {
            if let Ok(owner) = Name::from(&self.apex).prepend_label(label.as_str()) {
                records.extend(self.addresses(&owner));
            }
        }
        records
    }

    /// SHA-256 of everything a resolver can see but the serial: the same content has the same digest
    /// on every machine and after every restart.
    pub fn digest(&self) -> [u8; 32] {
        let mut context = ring::digest::Context::new(&ring::digest::SHA256);
        let mut names: Vec<_> = self.nodes.iter().collect();
        names.sort_unstable_by_key(|(name, _)| *name);
        let mut feed = |text: &str| {
            context.update(text.as_bytes());
            context.update(b"\n");
        };
        feed(&self.soa(0, self.ttl).to_string());
        for record in names.iter().flat_map(|(_, node)| &node.records) {
            feed(&crate::record::master_line(record));
        }
        for data in &self.addresses {
            feed(&data.to_string());
        }
        let mut labels: Vec<_> = self.labels.keys().collect();
        labels.sort_unstable();
        for label in labels {
            feed(label.as_str());
        }
        let digest = context.finish();
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest.as_ref());
        bytes
    }
}
