//! Answers ready to be sent: for each zone, the octets that follow a question.
//!
//! All sites of a zone have the same records behind the same pointer (`c00c`, the name in the
//! question), so one answer for each type serves them all. A negative answer names the apex, which
//! lies at the end of the question: a pointer to be set, and nothing else. The few other names have an
//! answer of their own for each type they hold, encoded from what [`lookup`](crate::lookup()) says.
//!
//! What is not here (aliases within the zone, wildcards, delegations, odd types) the general path
//! answers from the same registry: [`Answers::give`] hands it over by returning `None`.

use std::collections::{HashMap, HashSet};

use foldhash::fast::RandomState;
use hickory_proto::{
    dnssec::rdata::NSEC,
    rr::{LowerName, Name, RData, Record, RecordType},
    serialize::binary::{BinEncodable, BinEncoder},
};

use crate::{
    authority::NEGATIVE_TTL,
    lookup,
    registry::Registry,
    served::Served,
    signed::{Place, Signature, nsec_ttl},
    wire::{HEADER_OCTETS, Writer, wire},
};

/// Names with answers of their own, in one zone; those of more are left to the general path.
const MOST_NAMES: usize = 10_000;
/// An answer section past this is not for strangers over UDP: it would make us an amplifier.
pub const LARGE_OCTETS: usize = 512;
/// About what a signature adds to an answer.
const SIGNATURE_RECORD_OCTETS: usize = 128;
/// A type nobody has (RFC 6895 §3.1: private use), for the answer to any type that is not there.
const NO_TYPE: u16 = 65_280;
const CLASS_IN: [u8; 2] = [0, 1];
/// A pointer to the name in the question.
const TO_QUESTION: [u8; 2] = [0xc0, 0x0c];
const AA: u8 = 0x04;
/// ECDSA P-256 with SHA-256 (RFC 6605).
const ALGORITHM: u8 = 13;

/// A question, parsed.
#[derive(Clone, Copy, Debug)]
pub struct Question<'q> {
    /// The name on the wire, in lower case, the root label included.
    pub name: &'q [u8],
    /// Where its labels start.
    pub starts: &'q [u8],
    /// The type.
    pub kind: u16,
    /// Whether signatures are asked for (the DO bit).
    pub dnssec: bool,
}

/// What goes into the header, and how the answer may travel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// The AA bit where it stands in the third octet.
    pub authoritative: u8,
    /// RCODE, four bits.
    pub code: u8,
    /// Records in the answer, authority and additional sections.
    pub counts: [u16; 3],
    /// Octets of the additional section at the end, where an answer is whole without it.
    pub extra: u16,
    /// Whether the answer is too large for whoever may not be who they say.
    pub large: bool,
}

/// A message being written into octets that somebody else owns.
#[derive(Debug)]
pub struct Out<'b> {
    octets: &'b mut [u8],
    length: usize,
    full: bool,
}

impl<'b> Out<'b> {
    /// Goes on after `length` octets.
    pub fn after(octets: &'b mut [u8], length: usize) -> Self {
        Self {
            length: length.min(octets.len()),
            octets,
            full: false,
        }
    }

    /// Adds octets; those that don't fit mark the message as full.
    #[inline]
    pub fn put(&mut self, octets: &[u8]) {
        match self
            .octets
            .get_mut(self.length..)
            .and_then(|rest| rest.get_mut(..octets.len()))
        {
            Some(place) => {
                place.copy_from_slice(octets);
                self.length += octets.len();
            }
            None => self.full = true,
        }
    }

    /// Adds what follows a question; without its additional section where there is no room for that.
    #[inline]
    pub fn put_answer(&mut self, octets: &[u8], mut head: Head) -> Head {
        let whole = octets.len().saturating_sub(head.extra.into());
        self.put(octets.get(..whole).unwrap_or_default());
        if head.extra > 0 && !self.full {
            self.put(octets.get(whole..).unwrap_or_default());
            if self.full {
                self.full = false;
                (head.extra, head.counts[2]) = (0, 0);
            }
        }
        head
    }

    /// How many octets there are.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Whether something did not fit.
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// Forgets what follows the first `length` octets.
    pub fn cut(&mut self, length: usize) {
        self.length = self.length.min(length);
        self.full = false;
    }

    /// What has been written.
    pub fn written(&mut self) -> &mut [u8] {
        &mut self.octets[..self.length]
    }
}

/// Octets with places for a pointer to the apex.
#[derive(Debug, Default)]
struct Relative {
    octets: Vec<u8>,
    pointers: Vec<usize>,
}

impl Relative {
    fn put(&self, apex: [u8; 2], out: &mut Out<'_>) {
        let start = out.length();
        out.put(&self.octets);
        if out.is_full() {
            return;
        }
        let written = &mut out.written()[start..];
        for &at in &self.pointers {
            written[at..at + 2].copy_from_slice(&apex);
        }
    }

    fn pointer(&mut self) {
        self.pointers.push(self.octets.len());
        self.octets.extend_from_slice(&[0, 0]);
    }

    /// A name, its end as a pointer where it lies in the zone.
    fn name(&mut self, name: &Name, apex: &[u8]) {
        let octets = wire(name).to_ascii_lowercase();
        match octets.strip_suffix(apex) {
            Some(inside) if LowerName::new(name).num_labels() > 0 => {
                self.octets.extend_from_slice(inside);
                self.pointer();
            }
            _ => self.octets.extend_from_slice(&octets),
        }
    }
}

/// The records behind a question.
#[derive(Debug)]
struct Tail {
    head: Head,
    octets: Box<[u8]>,
}

/// What stands at one name.
#[derive(Debug, Default)]
struct Prepared {
    /// An answer for each type there is, without and with signatures.
    tails: Vec<(u16, [Option<Tail>; 2])>,
    /// The answer for all other types.
    other: [Option<Tail>; 2],
    /// Whether a delegation is at or above this name.
    delegated: bool,
    /// Whether a wildcard stands right below it.
    wildcard: bool,
}

/// All ready answers of one zone.
#[derive(Debug, Default)]
pub struct Answers {
    apex: Box<[u8]>,
    names: HashMap<Box<[u8]>, Prepared, RandomState>,
    /// Whether no wildcard and no delegation can lie above a name that is not there.
    plain: bool,
    /// Whether some label lacks a type that others have.
    varied: bool,
    /// The records of a site, one of each type.
    site: Vec<(u16, Box<[u8]>)>,
    soa: Relative,
    /// The same with its signature.
    soa_signed: Relative,
    /// Type bit maps of NSEC records (RFC 4034 §4.1.2): of each link, of a label, of a plain label.
    link_types: Vec<Box<[u8]>>,
    label_types: [Box<[u8]>; 2],
}

impl Answers {
    /// Prepares the answers of a zone.
    pub(crate) fn prepare(served: &Served) -> Self {
        let authority = &*served.authority;
        let apex = wire(&Name::from(&authority.apex)).into_boxed_slice();
        let registry = Registry::of_one(&authority.apex);
        let mut names = HashMap::default();
        let mut filled = 0;
        let wildcards: HashSet<LowerName> = authority
            .nodes()
            .filter(|(name, _)| name.is_wildcard())
            .map(|(name, _)| name.base_name())
            .collect();
        for (name, node) in authority.nodes() {
            let mut prepared = Prepared {
                delegated: authority.is_delegated(name),
                wildcard: wildcards.contains(name),
                ..Prepared::default()
            };
            // A target within the zone may lie in another zone of ours: the general path knows.
            let alias = node.of_type(RecordType::CNAME).any(
                |record| matches!(&record.data, RData::CNAME(target) if authority.apex.zone_of(&LowerName::new(&target.0))),
            );
            if !prepared.delegated && !alias && !name.is_wildcard() && filled < MOST_NAMES {
                filled += 1;
                prepared.fill(
                    &registry,
                    served,
                    name,
                    node.records.iter().map(Record::record_type),
                );
            }
            names.insert(wire(&Name::from(name)).into(), prepared);
        }
        // A label can have a wildcard below it too.
        for name in &wildcards {
            let octets = wire(&Name::from(name)).into_boxed_slice();
            let prepared = names.entry(octets).or_insert_with(Prepared::default);
            prepared.wildcard = true;
        }
        let mut site = Vec::new();
        for data in authority.all_site_data() {
            let mut octets = TO_QUESTION.to_vec();
            octets.extend_from_slice(&u16::from(data.record_type()).to_be_bytes());
            octets.extend_from_slice(&CLASS_IN);
            octets.extend_from_slice(&authority.ttl.to_be_bytes());
            let data_octets = plain_data(data);
            octets.extend_from_slice(&length(&data_octets));
            octets.extend_from_slice(&data_octets);
            site.push((u16::from(data.record_type()), octets.into()));
        }
        let mut answers = Self {
            plain: !authority.has_cuts() && !authority.has_wildcards(),
            varied: authority.is_varied(),
            apex,
            names,
            site,
            ..Self::default()
        };
        answers.prepare_negative(served);
        answers
    }

    fn prepare_negative(&mut self, served: &Served) {
        let authority = &*served.authority;
        let ttl = NEGATIVE_TTL.min(authority.ttl);
        let RData::SOA(soa) = served.soa().data else {
            return;
        };
        let relative = || {
            let mut relative = Relative::default();
            relative.pointer();
            relative
                .octets
                .extend_from_slice(&u16::from(RecordType::SOA).to_be_bytes());
            relative.octets.extend_from_slice(&CLASS_IN);
            relative.octets.extend_from_slice(&ttl.to_be_bytes());
            let length_at = relative.octets.len();
            relative.octets.extend_from_slice(&[0, 0]);
            relative.name(&soa.mname, &self.apex);
            relative.name(&soa.rname, &self.apex);
            relative.octets.extend_from_slice(&soa.serial.to_be_bytes());
            for timer in [soa.refresh, soa.retry, soa.expire] {
                relative.octets.extend_from_slice(&timer.to_be_bytes());
            }
            relative
                .octets
                .extend_from_slice(&soa.minimum.to_be_bytes());
            let length = length(&relative.octets[length_at + 2..]);
            relative.octets[length_at..length_at + 2].copy_from_slice(&length);
            relative
        };
        self.soa = relative();
        let Some(signed) = &served.signed else {
            return;
        };
        self.soa_signed = relative();
        self.soa_signed.pointer();
        let mut octets = [0; 512];
        let mut out = Out::after(&mut octets, 0);
        let seal = Seal {
            covered: u16::from(RecordType::SOA),
            labels: authority.apex_labels(),
            ttl,
            original_ttl: authority.ttl,
        };
        self.seal(&seal, &signed.soa, &mut out);
        self.soa_signed.octets.extend_from_slice(out.written());
        self.link_types = signed
            .links
            .iter()
            .map(|link| bit_map(&link.types))
            .collect();
        let types = |plain: bool| -> Box<[u8]> {
            let types: Vec<RecordType> = authority
                .all_site_data()
                .map(RData::record_type)
                .filter(|kind| !plain || *kind != RecordType::HTTPS)
                .chain([RecordType::RRSIG, RecordType::NSEC])
                .collect();
            bit_map(&types)
        };
        self.label_types = [types(false), types(true)];
    }

    /// Whether a name stands in the zone and is no label's.
    pub fn holds(&self, name: &[u8]) -> bool {
        self.names.contains_key(name)
    }

    /// Writes the answer to a question whose name lies in this zone, its apex `apex_at` octets into
    /// the name. `None` hands the question to the general path.
    #[inline]
    pub fn give(
        &self,
        served: &Served,
        question: &Question<'_>,
        apex_at: usize,
        out: &mut Out<'_>,
    ) -> Option<Head> {
        let name = question.name;
        let signatures = question.dnssec && served.signed.is_some();
        let below = name.get(..apex_at)?;
        if let [length, label @ ..] = below
            && usize::from(*length) == label.len()
            && let Some(place) = served.authority.labels().find(label)
        {
            return self.give_site(served, question, place, apex_at, signatures, out);
        }
        if let Some(prepared) = self.names.get(name) {
            let tail = prepared.tail(question.kind, signatures)?;
            return Some(out.put_answer(&tail.octets, tail.head));
        }
        if self.plain && !signatures {
            self.soa.put(pointer(apex_at), out);
            return Some(negative(3, 1));
        }
        self.give_nothing(served, question, apex_at, signatures, out)
    }

    fn give_site(
        &self,
        served: &Served,
        question: &Question<'_>,
        place: u32,
        apex_at: usize,
        signatures: bool,
        out: &mut Out<'_>,
    ) -> Option<Head> {
        let found = self.site.iter().find(|(kind, _)| *kind == question.kind);
        if let Some((kind, octets)) = found
            && !(self.varied && lacks(served, place, *kind))
        {
            out.put(octets);
            let mut head = Head {
                authoritative: AA,
                counts: [1, 0, 0],
                ..Head::default()
            };
            if signatures {
                let signed = served.signed.as_ref()?;
                let signature =
                    signed.of_label(&served.authority, place, RecordType::from(*kind))?;
                out.put(&TO_QUESTION);
                let ttl = served.authority.ttl;
                let seal = Seal {
                    covered: *kind,
                    labels: served.authority.apex_labels() + 1,
                    ttl,
                    original_ttl: ttl,
                };
                self.seal(&seal, signature, out);
                head.counts[0] = 2;
            }
            return Some(head);
        }
        if !signatures {
            self.soa.put(pointer(apex_at), out);
            return Some(negative(0, 1));
        }
        self.soa_signed.put(pointer(apex_at), out);
        self.prove(served, Place::Label(place), TO_QUESTION, None, out)?;
        Some(negative(0, 4))
    }

    /// NXDOMAIN where proofs are due or something else may lie above the name.
    #[cold]
    fn give_nothing(
        &self,
        served: &Served,
        question: &Question<'_>,
        apex_at: usize,
        signatures: bool,
        out: &mut Out<'_>,
    ) -> Option<Head> {
        let name = question.name;
        // The closest encloser (RFC 4592 §3.3.1), from below.
        let mut encloser = apex_at;
        for &start in question.starts.get(1..)? {
            let start = usize::from(start);
            if start >= apex_at {
                break;
            }
            let label = name.get(start + 1..apex_at)?;
            let one = usize::from(name[start]) == label.len();
            if let Some(prepared) = self.names.get(&name[start..]) {
                if prepared.delegated || prepared.wildcard {
                    return None;
                }
                encloser = start;
                break;
            }
            if one && served.authority.labels().find(label).is_some() {
                encloser = start;
                break;
            }
        }
        if encloser == apex_at && self.names.get(&*self.apex)?.wildcard {
            return None;
        }
        let to_apex = pointer(apex_at);
        if !signatures {
            self.soa.put(to_apex, out);
            return Some(negative(3, 1));
        }
        let signed = served.signed.as_ref()?;
        self.soa_signed.put(to_apex, out);
        let authority = &*served.authority;
        let label = |name: &'_ [u8], apex_at: usize| -> std::ops::Range<usize> {
            // The label right above the apex.
            let mut at = 0;
            while at < apex_at {
                let next = at + usize::from(name[at]) + 1;
                if next >= apex_at {
                    break;
                }
                at = next;
            }
            at + 1..apex_at
        };
        let cover = signed.at_or_before(authority, name, &name[label(name, apex_at)]);
        self.prove(served, cover, to_apex, Some(cover), out)?;
        // No wildcard either (RFC 4035 §3.1.3.2).
        let mut wildcard = [0; 257];
        wildcard[..2].copy_from_slice(&[1, b'*']);
        let rest = &name[encloser..];
        wildcard.get_mut(2..2 + rest.len())?.copy_from_slice(rest);
        let wildcard = &wildcard[..2 + rest.len()];
        let wildcard_apex = 2 + apex_at - encloser;
        let star = signed.at_or_before(
            authority,
            wildcard,
            &wildcard[label(wildcard, wildcard_apex)],
        );
        if star == cover {
            return Some(negative(3, 4));
        }
        self.prove(served, star, to_apex, Some(star), out)?;
        Some(negative(3, 6))
    }

    /// The NSEC record of a place and its signature. `owner` is a pointer to the question, or to the
    /// apex below which the name of `below` goes.
    fn prove(
        &self,
        served: &Served,
        place: Place,
        owner: [u8; 2],
        below: Option<Place>,
        out: &mut Out<'_>,
    ) -> Option<()> {
        let (authority, signed) = (&*served.authority, served.signed.as_ref()?);
        let kind = RecordType::NSEC;
        let (signature, labels, types) = match place {
            Place::Label(label) => (
                signed.of_label(authority, label, kind)?,
                authority.apex_labels() + 1,
                &self.label_types[usize::from(self.varied && authority.is_plain(label))],
            ),
            Place::Link(link) => (
                signed.of_link(link, kind).next()?,
                signed.links.get(link)?.name.num_labels(),
                self.link_types.get(link)?,
            ),
        };
        let owner_at = out.length();
        if let Some(below) = below {
            self.put_relative(served, below, out);
        }
        // The signature has the same owner.
        let again = match out.length() {
            end if end == owner_at => owner,
            _ => (0xc000 | u16::try_from(owner_at).unwrap_or(0)).to_be_bytes(),
        };
        out.put(&owner);
        out.put(&u16::from(kind).to_be_bytes());
        out.put(&CLASS_IN);
        let ttl = nsec_ttl(authority);
        out.put(&ttl.to_be_bytes());
        let length_at = out.length();
        out.put(&[0, 0]);
        // Never compressed (RFC 4034 §4.1.1).
        self.put_relative(served, signed.next(authority, place), out);
        out.put(&self.apex);
        out.put(types);
        if !out.is_full() {
            let written = out.written();
            let data = length(&written[length_at + 2..]);
            written[length_at..length_at + 2].copy_from_slice(&data);
        }
        out.put(&again);
        let seal = Seal {
            covered: u16::from(kind),
            labels,
            ttl,
            original_ttl: ttl,
        };
        self.seal(&seal, signature, out);
        Some(())
    }

    /// The labels of a place above the apex.
    fn put_relative(&self, served: &Served, place: Place, out: &mut Out<'_>) {
        match place {
            Place::Label(label) => {
                let label = served.authority.labels().at(label);
                out.put(&[u8::try_from(label.len()).unwrap_or(0)]);
                out.put(label);
            }
            Place::Link(link) => {
                let link = served
                    .signed
                    .as_ref()
                    .and_then(|signed| signed.links.get(link));
                if let Some(above) = link.and_then(|link| link.octets.strip_suffix(&*self.apex)) {
                    out.put(above);
                }
            }
        }
    }

    /// An RRSIG record after its owner (RFC 4034 §3.1).
    fn seal(&self, seal: &Seal, signature: &Signature, out: &mut Out<'_>) {
        let mut front = [0; 28];
        front[..2].copy_from_slice(&u16::from(RecordType::RRSIG).to_be_bytes());
        front[2..4].copy_from_slice(&CLASS_IN);
        front[4..8].copy_from_slice(&seal.ttl.to_be_bytes());
        let length = 18 + self.apex.len() + signature.octets.len();
        front[8..10].copy_from_slice(&u16::try_from(length).unwrap_or(0).to_be_bytes());
        front[10..12].copy_from_slice(&seal.covered.to_be_bytes());
        front[12] = ALGORITHM;
        front[13] = seal.labels;
        front[14..18].copy_from_slice(&seal.original_ttl.to_be_bytes());
        front[18..22].copy_from_slice(&signature.expiration.to_be_bytes());
        front[22..26].copy_from_slice(&signature.inception.to_be_bytes());
        front[26..28].copy_from_slice(&signature.tag.to_be_bytes());
        out.put(&front);
        out.put(&self.apex);
        out.put(&signature.octets);
    }
}

/// What an RRSIG record says beside the signature.
struct Seal {
    covered: u16,
    labels: u8,
    ttl: u32,
    original_ttl: u32,
}

impl Prepared {
    fn fill(
        &mut self,
        registry: &Registry,
        served: &Served,
        name: &LowerName,
        kinds: impl Iterator<Item = RecordType>,
    ) {
        let apex = *name == served.authority.apex;
        let kinds: HashSet<RecordType> = kinds.chain(apex.then_some(RecordType::SOA)).collect();
        let name = Name::from(name);
        let tails = |kind: RecordType| {
            [false, true].map(|dnssec| {
                let wanted = !dnssec || served.signed.is_some();
                wanted
                    .then(|| {
                        Tail::of(
                            &name,
                            kind,
                            &lookup::within(registry, served, &name, kind, dnssec),
                        )
                    })
                    .flatten()
            })
        };
        self.tails = kinds
            .iter()
            .chain(&[RecordType::ANY])
            .map(|kind| (u16::from(*kind), tails(*kind)))
            .collect();
        // Every type of an alias leads to its target.
        if !kinds.contains(&RecordType::CNAME) {
            self.other = tails(RecordType::from(NO_TYPE));
        }
    }

    fn tail(&self, kind: u16, signatures: bool) -> Option<&Tail> {
        let tails = self
            .tails
            .iter()
            .find(|(other, _)| *other == kind)
            .map_or(&self.other, |(_, tails)| tails);
        tails[usize::from(signatures)].as_ref()
    }
}

impl Tail {
    fn of(name: &Name, kind: RecordType, answer: &lookup::Answer) -> Option<Self> {
        let mut writer = Writer::new(usize::from(u16::MAX));
        writer.question(name, u16::from(kind));
        let start = writer.octets().len();
        let mut counts = [0; 3];
        let sections = [&answer.answers, &answer.authorities, &answer.additionals];
        let (mut answers_end, mut extra_at) = (start, start);
        for (section, (records, count)) in sections.into_iter().zip(&mut counts).enumerate() {
            for record in records {
                if !writer.record(record) {
                    return None;
                }
                *count += 1;
            }
            match section {
                0 => answers_end = writer.octets().len(),
                1 => extra_at = writer.octets().len(),
                _ => {}
            }
        }
        let octets = writer.into_octets();
        Some(Self {
            head: Head {
                authoritative: if answer.authoritative { AA } else { 0 },
                code: answer.code.low(),
                counts,
                extra: extra(octets.len() - extra_at, answer),
                large: is_large(answers_end, answer),
            },
            octets: octets[start..].into(),
        })
    }
}

/// How many octets of an additional section may be left out: all, but for the glue of a referral, to
/// which an alias may have led (RFC 9471).
pub fn extra(octets: usize, answer: &lookup::Answer) -> u16 {
    let mut authorities = answer.authorities.iter();
    let refers = authorities.any(|record| record.record_type() == RecordType::NS);
    let octets = u16::try_from(octets).unwrap_or(0);
    if refers { 0 } else { octets }
}

/// Whether an answer whose answer section ends so far into the message is too large for whoever may not
/// be who they say.
pub fn is_large(answers_end: usize, answer: &lookup::Answer) -> bool {
    let answers = answer.answers.iter();
    let signatures = answers
        .filter(|record| record.record_type() == RecordType::RRSIG)
        .count();
    let without =
        (answers_end - HEADER_OCTETS).saturating_sub(signatures * SIGNATURE_RECORD_OCTETS);
    without > LARGE_OCTETS
}

fn lacks(served: &Served, place: u32, kind: u16) -> bool {
    kind == u16::from(RecordType::HTTPS) && served.authority.is_plain(place)
}

/// NXDOMAIN or NODATA with this many records in the authority section.
fn negative(code: u8, authorities: u16) -> Head {
    Head {
        authoritative: AA,
        code,
        counts: [0, authorities, 0],
        ..Head::default()
    }
}

/// A pointer to the apex, `apex_at` octets into the question's name.
fn pointer(apex_at: usize) -> [u8; 2] {
    let at = u16::try_from(HEADER_OCTETS + apex_at).unwrap_or(0);
    (0xc000 | at).to_be_bytes()
}

fn length(octets: &[u8]) -> [u8; 2] {
    u16::try_from(octets.len()).unwrap_or(0).to_be_bytes()
}

fn plain_data(data: &RData) -> Vec<u8> {
    let mut octets = Vec::new();
    // Address and service records of our own making always encode.
    data.emit(&mut BinEncoder::new(&mut octets))
        .unwrap_or_default();
    octets
}

fn bit_map(types: &[RecordType]) -> Box<[u8]> {
    // The set has no constructor of its own: an NSEC record with the shortest next name has one.
    let data = NSEC::new(Name::root(), types.iter().copied());
    let mut octets = Vec::new();
    data.emit(&mut BinEncoder::new(&mut octets))
        .unwrap_or_default();
    octets.get(1..).unwrap_or_default().into()
}
