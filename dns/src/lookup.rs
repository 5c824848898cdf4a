//! From a question to its answer, as RFC 1034 §4.3.2 lays out, for a server that never recurses.

use common::{
    Registry,
    authority::{Authority, Found, NEGATIVE_TTL, Node},
};
use hickory_proto::{
    op::ResponseCode,
    rr::{LowerName, Name, RData, Record, RecordType},
};

/// A chain of aliases longer than this is cut.
const MOST_ALIASES: usize = 8;

/// What goes into a response.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// NOERROR, NXDOMAIN or REFUSED.
    pub code: ResponseCode,
    /// Whether the AA bit is set.
    pub authoritative: bool,
    /// Answer section.
    pub answers: Vec<Record>,
    /// Authority section: SOA of a negative answer, NS of a referral.
    pub authorities: Vec<Record>,
    /// Additional section: addresses of what the others name.
    pub additionals: Vec<Record>,
    /// Apex of the zone that answered.
    pub zone: Option<LowerName>,
}

/// Answers a question of class IN. `name` keeps the case it was asked in.
pub fn lookup(registry: &Registry, name: &Name, kind: RecordType) -> Answer {
    let lower = LowerName::new(name);
    match registry.authority(&lower) {
        Some((authority, serial)) => Lookup {
            registry,
            authority,
            serial,
            kind,
            answer: Answer::within(authority),
        }
        .run(name.clone(), lower),
        None => Answer {
            authoritative: false,
            code: ResponseCode::Refused,
            ..Answer::empty()
        },
    }
}

impl Answer {
    fn empty() -> Self {
        Self {
            code: ResponseCode::NoError,
            authoritative: true,
            answers: Vec::new(),
            authorities: Vec::new(),
            additionals: Vec::new(),
            zone: None,
        }
    }

    fn within(authority: &Authority) -> Self {
        Self {
            zone: Some(authority.apex.clone()),
            ..Self::empty()
        }
    }
}

struct Lookup<'r> {
    registry: &'r Registry,
    authority: &'r Authority,
    serial: u32,
    kind: RecordType,
    answer: Answer,
}

impl<'r> Lookup<'r> {
    fn run(mut self, mut name: Name, mut lower: LowerName) -> Answer {
        for _ in 0..MOST_ALIASES {
            if let Some(cut) = self.cut_above(&lower) {
                self.refer(&cut);
                return self.answer;
            }
            let Some(target) = self.answer_at(&name, &lower) else {
                return self.answer;
            };
            name = target;
            lower = LowerName::new(&name);
            let seen = |record: &Record| LowerName::new(&record.name) == lower;
            // A target in another zone, be it one of ours, is the resolver's to follow; one that was
            // visited is a loop.
            let nearest = self
                .registry
                .authority(&lower)
                .map(|(authority, _)| &authority.apex);
            if nearest != Some(&self.authority.apex) || self.answer.answers.iter().any(seen) {
                return self.answer;
            }
        }
        self.answer
    }

    /// Adds what stands at a name; returns the target when that is an alias.
    fn answer_at(&mut self, name: &Name, lower: &LowerName) -> Option<Name> {
        match self.authority.find(lower) {
            Some(Found::Site) => {
                self.site(name);
                None
            }
            Some(Found::Node(node)) => self.node(name, lower, node),
            None => match self.wildcard(lower) {
                Some(node) => self.node(name, lower, node),
                None => {
                    // The code speaks of the last name of a chain (RFC 6604 §3).
                    self.answer.code = ResponseCode::NXDomain;
                    self.negative();
                    None
                }
            },
        }
    }

    fn site(&mut self, name: &Name) {
        let wanted =
            |record: &Record| self.kind == record.record_type() || self.kind == RecordType::ANY;
        let mut found: Vec<Record> = self.authority.addresses(name).filter(wanted).collect();
        if self.kind == RecordType::ANY {
            // One set of those there are (RFC 8482 §4.1).
            found.truncate(1);
        }
        self.give(found);
    }

    fn node(&mut self, name: &Name, lower: &LowerName, node: &Node) -> Option<Name> {
        let under = |record: &Record| {
            let mut record = record.clone();
            record.name = name.clone();
            record
        };
        if self.kind != RecordType::CNAME
            && let Some(record) = node.of_type(RecordType::CNAME).next()
        {
            self.answer.answers.push(under(record));
            return match (&record.data, self.kind) {
                (_, RecordType::ANY) => None,
                (RData::CNAME(target), _) => Some(target.0.clone()),
                _ => None,
            };
        }
        let apex = *lower == self.authority.apex;
        let kind = match self.kind {
            // One set of those there are (RFC 8482 §4.1): the first.
            RecordType::ANY if apex => RecordType::SOA,
            RecordType::ANY => node
                .records
                .first()
                .map_or(RecordType::ANY, Record::record_type),
            kind => kind,
        };
        let found: Vec<Record> = if kind == RecordType::SOA && apex {
            vec![under(&self.authority.soa(self.serial, self.authority.ttl))]
        } else {
            node.of_type(kind).map(under).collect()
        };
        self.give(found);
        None
    }

    fn give(&mut self, found: Vec<Record>) {
        if found.is_empty() {
            self.negative();
        }
        let additionals: Vec<Record> = found
            .iter()
            .filter_map(target)
            .flat_map(|name| self.glue(name))
            .collect();
        for record in additionals {
            if !self.answer.additionals.contains(&record) {
                self.answer.additionals.push(record);
            }
        }
        self.answer.answers.extend(found);
    }

    /// The SOA of a negative answer, for no longer than its own minimum (RFC 2308 §3).
    fn negative(&mut self) {
        self.answer.authorities.push(
            self.authority
                .soa(self.serial, NEGATIVE_TTL.min(self.authority.ttl)),
        );
    }

    /// The wildcard under the closest encloser, if any (RFC 4592 §3.3.1).
    fn wildcard(&self, name: &LowerName) -> Option<&'r Node> {
        let mut encloser = name.base_name();
        while self.authority.find(&encloser).is_none() {
            // The apex always exists, and `name` lies below it.
            encloser = encloser.base_name();
        }
        let wildcard = Name::from(&encloser).prepend_label("*").ok()?;
        self.authority.node(&LowerName::new(&wildcard))
    }

    /// The delegation at or above a name; DS is the parent's to answer (RFC 4035 §3.1.4.1).
    fn cut_above(&self, name: &LowerName) -> Option<LowerName> {
        if !self.authority.has_cuts() {
            return None;
        }
        let mut found = None;
        let mut at = name.clone();
        while at.num_labels() > self.authority.apex.num_labels() {
            let asked_of_parent = at == *name && self.kind == RecordType::DS;
            if !asked_of_parent
                && self
                    .authority
                    .node(&at)
                    .is_some_and(|node| node.has(RecordType::NS))
            {
                found = Some(at.clone());
            }
            at = at.base_name();
        }
        found
    }

    /// A referral: NS in the authority section, glue beside it, no AA (RFC 1034 §4.3.2 step 3b).
    fn refer(&mut self, cut: &LowerName) {
        let Some(node) = self.authority.node(cut) else {
            return;
        };
        self.answer.authoritative = !self.answer.answers.is_empty();
        let servers: Vec<Record> = node.of_type(RecordType::NS).cloned().collect();
        self.answer.additionals = servers
            .iter()
            .filter_map(target)
            .flat_map(|name| self.glue(name))
            .collect();
        self.answer.authorities = servers;
    }

    fn glue(&self, name: &Name) -> Vec<Record> {
        let lower = LowerName::new(name);
        if !self.authority.apex.zone_of(&lower) {
            return Vec::new();
        }
        match self.authority.find(&lower) {
            Some(Found::Site) => self.authority.addresses(name).collect(),
            Some(Found::Node(node)) => node
                .records
                .iter()
                .filter(|record| record.record_type().is_ip_addr())
                .cloned()
                .collect(),
            None => Vec::new(),
        }
    }
}

/// The name whose addresses help with a record.
fn target(record: &Record) -> Option<&Name> {
    match &record.data {
        RData::NS(server) => Some(&server.0),
        RData::MX(mx) => Some(&mx.exchange),
        RData::SRV(srv) => Some(&srv.target),
        _ => None,
    }
}
