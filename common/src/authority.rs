//! What DNS knows of one zone, forward or reverse: a tree of names flattened into hash maps.
//!
//! Sites share one pair of addresses, so they are kept as labels; everything else is a [`Node`] with
//! its records. A node without records is an empty non-terminal (RFC 4592 §2.2.2).

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use hickory_proto::rr::{
    LowerName, Name, RData, Record, RecordType,
    rdata::{NS, SOA},
};

use crate::labels::Labels;

/// Seconds a resolver may keep a negative answer: short, so that a new name shows at once.
pub const NEGATIVE_TTL: u32 = 30;
/// Timers secondaries live by, in seconds, within the bounds of RFC 1912 §2.2. They learn of changes by
/// NOTIFY; when that is lost, a new name shouldn't take more than an hour to be everywhere. RIPE-203's day
/// is meant for zones that hardly change.
const REFRESH: i32 = 3_600;
const RETRY: i32 = 900;
/// How long secondaries answer when we don't: signatures last longer.
pub(crate) const EXPIRE: i32 = 1_209_600;

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
    /// A site or alias, by its place among the labels: the addresses of this server.
    Site(u32),
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
    /// Labels of sites and aliases, but for the few with records of their own, which are nodes.
    labels: Arc<Labels>,
    /// What each site has: A and AAAA data of this server, and how it offers HTTPS.
    site: Vec<RData>,
    /// Places of labels that have no HTTPS record, where others do.
    plain: Arc<HashSet<u32>>,
    primary: Name,
    hostmaster: Name,
    has_cuts: bool,
    has_wildcards: bool,
}

impl Authority {
    /// An empty zone: its apex with name servers.
    pub fn new(
        apex: Name,
        ttl: u32,
        nameservers: &[Name],
        hostmaster: Name,
        site: Vec<RData>,
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
            site,
            plain: Arc::default(),
            hostmaster,
            has_cuts: false,
            has_wildcards: false,
        }
    }

    /// Sets the labels that answer with this server's addresses; `plain` labels have no HTTPS record.
    pub fn set_labels(&mut self, labels: Arc<Labels>, plain: HashSet<u32>) {
        self.labels = labels;
        self.plain = Arc::new(plain);
    }

    /// Lets sites say how they are reached over HTTPS (RFC 9460).
    pub fn offer_https(&mut self, data: RData) {
        self.site.push(data);
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
        self.has_wildcards |= name.is_wildcard();
        self.nodes.entry(name).or_default().records.push(record);
    }

    /// Labels of sites and aliases, but for those with records of their own.
    pub fn labels(&self) -> &Labels {
        &self.labels
    }

    /// The same, to be shared.
    pub(crate) fn shared_labels(&self) -> Arc<Labels> {
        Arc::clone(&self.labels)
    }

    /// Names with records and empty non-terminals, in no order.
    pub fn nodes(&self) -> impl Iterator<Item = (&LowerName, &Node)> {
        self.nodes.iter()
    }

    /// What stands exactly at `name`, which lies in this zone.
    pub fn find(&self, name: &LowerName) -> Option<Found<'_>> {
        if let Some(node) = self.nodes.get(name) {
            return Some(Found::Node(node));
        }
        self.site_place(name).map(Found::Site)
    }

    /// The node at a name, when it is one.
    pub fn node(&self, name: &LowerName) -> Option<&Node> {
        self.nodes.get(name)
    }

    /// The place of the label a name consists of, one label below the apex.
    pub fn site_place(&self, name: &LowerName) -> Option<u32> {
        if name.num_labels() != self.apex.num_labels() + 1 {
            return None;
        }
        self.labels.find(name.iter().next()?)
    }

    fn is_site(&self, name: &LowerName) -> bool {
        self.site_place(name).is_some()
    }

    /// Whether some name below the apex is delegated elsewhere.
    pub fn has_cuts(&self) -> bool {
        self.has_cuts
    }

    /// Whether some name begins with an asterisk (RFC 4592).
    pub fn has_wildcards(&self) -> bool {
        self.has_wildcards
    }

    /// The address records of this server under a name.
    pub fn addresses(&self, owner: &Name) -> impl Iterator<Item = Record> {
        self.site
            .iter()
            .filter(|data| data.record_type().is_ip_addr())
            .map(|data| Record::from_rdata(owner.clone(), self.ttl, data.clone()))
    }

    /// The records of the label at `place`, under a name.
    pub fn site_records(&self, place: u32, owner: &Name) -> impl Iterator<Item = Record> {
        self.site_data(place)
            .map(|data| Record::from_rdata(owner.clone(), self.ttl, data.clone()))
    }

    /// The data of the label at `place`, a record of each type.
    pub fn site_data(&self, place: u32) -> impl Iterator<Item = &RData> {
        let plain = self.is_plain(place);
        let data = self.site.iter();
        data.filter(move |data| !plain || data.record_type() != RecordType::HTTPS)
    }

    /// All data a site can have.
    pub fn all_site_data(&self) -> impl Iterator<Item = &RData> {
        self.site.iter()
    }

    /// Whether some label lacks a type that others have.
    pub fn is_varied(&self) -> bool {
        !self.plain.is_empty()
    }

    /// Whether the label at `place` has no HTTPS record where others do.
    pub fn is_plain(&self, place: u32) -> bool {
        self.plain.contains(&place)
    }

    /// Whether a delegation is at or above a name below the apex.
    pub fn is_delegated(&self, name: &LowerName) -> bool {
        let mut at = name.clone();
        while self.has_cuts && at != self.apex && !at.is_root() {
            if self
                .nodes
                .get(&at)
                .is_some_and(|node| node.has(RecordType::NS))
            {
                return true;
            }
            at = at.base_name();
        }
        false
    }

    /// Which of a site's types it is, counted from 0.
    pub fn site_slot(&self, kind: RecordType) -> Option<usize> {
        self.site.iter().position(|data| data.record_type() == kind)
    }

    /// How many types a site has.
    pub fn site_types(&self) -> usize {
        self.site.len()
    }

    /// How many labels the apex has.
    pub fn apex_labels(&self) -> u8 {
        self.apex.num_labels()
    }

    /// The TTL of a set.
    pub fn ttl_of(&self, owner: &LowerName, kind: RecordType) -> Option<u32> {
        match (self.find(owner)?, kind) {
            (_, RecordType::NSEC) => Some(NEGATIVE_TTL.min(self.ttl)),
            (_, RecordType::SOA) | (Found::Site(_), _) => Some(self.ttl),
            (Found::Node(node), _) => node.of_type(kind).next().map(|record| record.ttl),
        }
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

    /// The longest TTL of all records, in seconds.
    pub fn longest_ttl(&self) -> u32 {
        let records = self.nodes.values().flat_map(|node| &node.records);
        records.map(|record| record.ttl).fold(self.ttl, u32::max)
    }

    /// SHA-256 of everything a resolver can see but the serial: the same content has the same digest
    /// on every machine and after every restart.
    pub fn digest(&self) -> [u8; 32] {
        let mut context = ring::digest::Context::new(&ring::digest::SHA256);
        let mut names: Vec<_> = self.nodes.iter().collect();
        names.sort_unstable_by_key(|(name, _)| *name);
        let mut feed = |text: &[u8]| {
            context.update(text);
            context.update(b"\n");
        };
        feed(self.soa(0, self.ttl).to_string().as_bytes());
        for record in names.iter().flat_map(|(_, node)| &node.records) {
            feed(crate::record::master_line(record).as_bytes());
        }
        for data in &self.site {
            feed(data.to_string().as_bytes());
        }
        for label in self.labels.iter() {
            feed(label);
        }
        let mut plain: Vec<u32> = self.plain.iter().copied().collect();
        plain.sort_unstable();
        for place in plain {
            feed(self.labels.at(place));
        }
        let digest = context.finish();
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest.as_ref());
        bytes
    }
}
