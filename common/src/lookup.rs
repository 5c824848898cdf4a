//! From a question to its answer, as RFC 1034 §4.3.2 lays out, for a server that never recurses; with
//! signatures and proofs where they are asked for and there are any (RFC 4035 §3.1).

use hickory_proto::{
    op::ResponseCode,
    rr::{LowerName, Name, RData, Record, RecordType},
};

use crate::{
    authority::{Authority, Found, NEGATIVE_TTL, Node},
    registry::Registry,
    served::Served,
    signed::Signed,
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
    /// Authority section: SOA of a negative answer, NS of a referral, proofs.
    pub authorities: Vec<Record>,
    /// Additional section: addresses of what the others name.
    pub additionals: Vec<Record>,
    /// The zone that answered, by its place in the registry.
    pub zone: Option<usize>,
}

/// Answers a question of class IN. `name` keeps the case it was asked in; `dnssec` is the DO bit.
pub fn lookup(registry: &Registry, name: &Name, kind: RecordType, dnssec: bool) -> Answer {
    let lower = LowerName::new(name);
    match registry.nearest(&lower, kind) {
        Some((zone, served)) => {
            Lookup::new(registry, zone, served, kind, dnssec).run(name.clone(), lower)
        }
        None => Answer {
            authoritative: false,
            code: ResponseCode::Refused,
            ..Answer::empty()
        },
    }
}

/// Answers from one zone, the only one of its registry.
pub(crate) fn within(
    registry: &Registry,
    served: &Served,
    name: &Name,
    kind: RecordType,
    dnssec: bool,
) -> Answer {
    Lookup::new(registry, 0, served, kind, dnssec).run(name.clone(), LowerName::new(name))
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
}

struct Lookup<'r> {
    registry: &'r Registry,
    zone: usize,
    served: &'r Served,
    authority: &'r Authority,
    kind: RecordType,
    dnssec: bool,
    answer: Answer,
}

impl<'r> Lookup<'r> {
    fn new(
        registry: &'r Registry,
        zone: usize,
        served: &'r Served,
        kind: RecordType,
        dnssec: bool,
    ) -> Self {
        Self {
            registry,
            zone,
            served,
            authority: &served.authority,
            kind,
            dnssec: dnssec && served.signed.is_some(),
            answer: Answer {
                zone: Some(zone),
                ..Answer::empty()
            },
        }
    }

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
            let seen = |record: &Record| {
                record.record_type() == RecordType::CNAME && LowerName::new(&record.name) == lower
            };
            // A target in another zone, be it one of ours, is the resolver's to follow; one that was
            // visited is a loop.
            if self.registry.nearest_place(&lower, self.kind) != Some(self.zone)
                || self.answer.answers.iter().any(seen)
            {
                return self.answer;
            }
        }
        self.answer
    }

    /// Adds what stands at a name; returns the target when that is an alias.
    fn answer_at(&mut self, name: &Name, lower: &LowerName) -> Option<Name> {
        match self.authority.find(lower) {
            Some(Found::Site(place)) => {
                self.site(name, lower, place);
                None
            }
            Some(Found::Node(node)) => self.node(name, lower, lower, node),
            None => {
                let encloser = self.closest_encloser(lower);
                let wildcard = Name::from(&encloser).prepend_label("*").unwrap_or_default();
                let wildcard = LowerName::new(&wildcard);
                match self.authority.node(&wildcard) {
                    Some(node) => {
                        let target = self.node(name, lower, &wildcard, node);
                        // That no closer name exists (RFC 4035 §3.1.3.3, §3.1.3.4).
                        self.prove_covering(lower);
                        target
                    }
                    None => {
                        // The code speaks of the last name of a chain (RFC 6604 §3).
                        self.answer.code = ResponseCode::NXDomain;
                        self.negative();
                        // Neither the name nor a wildcard for it exists (RFC 4035 §3.1.3.2).
                        self.prove_covering(lower);
                        self.prove_covering(&wildcard);
                        None
                    }
                }
            }
        }
    }

    fn site(&mut self, name: &Name, lower: &LowerName, place: u32) {
        let mut found: Vec<Record> = self
            .authority
            .site_records(place, name)
            .filter(|record| self.kind == record.record_type() || self.kind == RecordType::ANY)
            .collect();
        if self.kind == RecordType::ANY {
            // One set of those there are (RFC 8482 §4.1).
            found.truncate(1);
        }
        self.give(found, name, lower);
    }

    /// `owner` is where the records stand: the name itself, or the wildcard it matches.
    fn node(
        &mut self,
        name: &Name,
        lower: &LowerName,
        owner: &LowerName,
        node: &Node,
    ) -> Option<Name> {
        let under = |record: &Record| {
            let mut record = record.clone();
            record.name = name.clone();
            record
        };
        if !matches!(
            self.kind,
            RecordType::CNAME | RecordType::NSEC | RecordType::RRSIG
        ) && let Some(record) = node.of_type(RecordType::CNAME).next()
        {
            self.answer.answers.push(under(record));
            self.sign_answer(name, owner, RecordType::CNAME);
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
            vec![under(&self.served.soa())]
        } else {
            node.of_type(kind).map(under).collect()
        };
        self.give(found, name, owner);
        None
    }

    fn give(&mut self, mut found: Vec<Record>, name: &Name, owner: &LowerName) {
        if let Some(signed) = &self.served.signed
            && let Some(of_signing) = self.of_signing(signed, owner)
        {
            found.extend(of_signing.into_iter().map(|mut record| {
                record.name = name.clone();
                record
            }));
            self.answer.answers.extend(found);
            return;
        }
        let Some(kind) = found.first().map(Record::record_type) else {
            self.negative();
            self.prove_no_data(owner);
            return;
        };
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
        self.sign_answer(name, owner, kind);
    }

    /// Signing's own records, for who asks for them by name: NSEC, or some of the signatures
    /// (RFC 8482 §7).
    fn of_signing(&self, signed: &Signed, owner: &LowerName) -> Option<Vec<Record>> {
        let [nsec, signature] = signed.nsec(self.authority, owner)?;
        match self.kind {
            RecordType::NSEC if self.dnssec => Some(vec![nsec, signature]),
            RecordType::NSEC => Some(vec![nsec]),
            RecordType::RRSIG => Some(vec![signature]),
            _ => None,
        }
    }

    /// Adds the signature of a set just answered.
    fn sign_answer(&mut self, name: &Name, owner: &LowerName, kind: RecordType) {
        for mut signature in self.signatures(owner, kind) {
            signature.name = name.clone();
            self.answer.answers.push(signature);
        }
    }

    fn signatures(&self, owner: &LowerName, kind: RecordType) -> Vec<Record> {
        match &self.served.signed {
            Some(signed) if self.dnssec => signed.signatures(self.authority, owner, kind),
            _ => Vec::new(),
        }
    }

    /// The SOA of a negative answer, for no longer than its own minimum (RFC 2308 §3).
    fn negative(&mut self) {
        let ttl = NEGATIVE_TTL.min(self.authority.ttl);
        let mut soa = self.served.soa();
        soa.ttl = ttl;
        self.answer.authorities.push(soa);
        for mut signature in self.signatures(&self.authority.apex, RecordType::SOA) {
            signature.ttl = ttl;
            self.answer.authorities.push(signature);
        }
    }

    /// That a name has no such type (RFC 4035 §3.1.3.1); an empty non-terminal has no NSEC of its own.
    fn prove_no_data(&mut self, owner: &LowerName) {
        let own = self
            .served
            .signed
            .as_ref()
            .filter(|_| self.dnssec)
            .and_then(|signed| signed.nsec(self.authority, owner));
        match own {
            Some(proof) => self.prove(proof),
            None => self.prove_covering(owner),
        }
    }

    /// That nothing stands at a name.
    fn prove_covering(&mut self, name: &LowerName) {
        if self.dnssec
            && let Some(signed) = &self.served.signed
            && let Some(proof) = signed.covering(self.authority, name)
        {
            self.prove(proof);
        }
    }

    fn prove(&mut self, [nsec, signature]: [Record; 2]) {
        if !self.answer.authorities.contains(&nsec) {
            self.answer.authorities.extend([nsec, signature]);
        }
    }

    /// The nearest name above that exists (RFC 4592 §3.3.1); the apex always does.
    fn closest_encloser(&self, name: &LowerName) -> LowerName {
        let mut encloser = name.base_name();
        while self.authority.find(&encloser).is_none() {
            encloser = encloser.base_name();
        }
        encloser
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

    /// A referral: NS in the authority section, glue beside it, no AA (RFC 1034 §4.3.2 step 3b), and
    /// whether the child is signed (RFC 4035 §3.1.4).
    fn refer(&mut self, cut: &LowerName) {
        let Some(node) = self.authority.node(cut) else {
            return;
        };
        self.answer.authoritative = !self.answer.answers.is_empty();
        let servers: Vec<Record> = node.of_type(RecordType::NS).cloned().collect();
        let glue: Vec<Record> = servers
            .iter()
            .filter_map(target)
            .flat_map(|name| self.glue(name))
            .collect();
        self.answer.additionals.extend(glue);
        // The alias that led here may have brought the proof of a wildcard.
        self.answer.authorities.extend(servers);
        let signatures = self.signatures(cut, RecordType::DS);
        if signatures.is_empty() {
            self.prove_no_data(cut);
        } else {
            let set = node.of_type(RecordType::DS).cloned();
            self.answer.authorities.extend(set.chain(signatures));
        }
    }

    fn glue(&self, name: &Name) -> Vec<Record> {
        let lower = LowerName::new(name);
        if !self.authority.apex.zone_of(&lower) {
            return Vec::new();
        }
        let records: Vec<Record> = match self.authority.find(&lower) {
            Some(Found::Site(_)) => self.authority.addresses(name).collect(),
            Some(Found::Node(node)) => node
                .records
                .iter()
                .filter(|record| record.record_type().is_ip_addr())
                .cloned()
                .collect(),
            None => Vec::new(),
        };
        records
    }
}

/// The name whose addresses help with a record.
fn target(record: &Record) -> Option<&Name> {
    match &record.data {
        RData::NS(server) => Some(&server.0),
        RData::MX(mx) => Some(&mx.exchange),
        RData::SRV(srv) => Some(&srv.target),
        // RFC 9460 §4.1; of our own records, which have no target, the hints say as much.
        RData::SVCB(service) => Some(&service.target_name),
        RData::HTTPS(service) => Some(&service.0.target_name),
        _ => None,
    }
}
