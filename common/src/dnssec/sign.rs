//! Signing a zone: what changed, and what would expire.
//!
//! A signature is taken over from the zone's last form when the set it covers, the key and the clock
//! allow; so an edit among 100,000 sites costs a handful of signatures, and the first signing all of
//! them, on all processors. Signatures live three weeks and a random part of four days more, and are made
//! anew 15 days before their end: those made together don't end together.

use std::{
    hash::{BuildHasher, RandomState},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::{SystemTime, UNIX_EPOCH},
};

use hickory_proto::{
    dnssec::rdata::{DNSSECRData, NSEC},
    rr::{LowerName, Name, RData, Record, RecordType},
    serialize::binary::{BinEncodable, BinEncoder},
};

use ring::digest::{Context, SHA256};

use super::{
    Key, KeyFailure, ZoneKeys,
    kept::{DIGEST_OCTETS, Kept, SetDigest},
};
use crate::{
    authority::{Authority, EXPIRE, Node},
    signed::{Link, Place, Signature, Signed, nsec_ttl},
    wire::wire,
};

const DAY: u32 = 86_400;
/// A validator's clock may be behind ours.
const BEFORE_SECONDS: u32 = 3_600;
const LIFE_SECONDS: u32 = 21 * DAY;
const JITTER_SECONDS: u32 = 4 * DAY;
/// What is left of a signature when it is made anew: longer than any TTL, and than secondaries answer
/// without us. One that still answers with expired signatures is bogus to its askers (RFC 6781 §4.4.1).
const REFRESH_SECONDS: u32 = EXPIRE.unsigned_abs() + DAY;
/// When signatures are due, all that would be within this time are made too: a zone changes twice a day
/// for it, not with each of them.
const AHEAD_SECONDS: u32 = DAY / 2;
/// Labels signed by one thread at a time.
const CHUNK: usize = 64;
/// ECDSA P-256 with SHA-256 (RFC 6605).
const ALGORITHM: u8 = 13;

/// A zone with its keys in it, signed but for its SOA record, which waits for the serial.
#[derive(Debug)]
pub struct Sealed {
    /// The zone with DNSKEY, CDS and CDNSKEY records at its apex.
    pub authority: Authority,
    /// Its signatures.
    pub signed: Signed,
    /// How many of them were made now.
    pub made: usize,
    /// Signatures with what they sign, for the next start: those made now, or all of them.
    pub(super) to_keep: Vec<(SetDigest, Signature)>,
}

/// The signature of a SOA record.
pub(super) struct SealedSoa {
    pub(super) set: SetDigest,
    pub(super) signature: Signature,
    /// Whether it was made now.
    pub(super) is_new: bool,
}

/// Signs a zone. Signatures are taken from `previous`, its last form, or without one from `kept`, those
/// from before a restart. With `whole`, `Sealed::to_keep` gets those taken over too.
///
/// # Errors
/// A key can't sign.
pub fn sign(
    content: &Authority,
    keys: &ZoneKeys,
    previous: Option<(&Authority, &Signed)>,
    kept: Option<&Kept>,
    whole: bool,
    now: SystemTime,
) -> Result<Sealed, KeyFailure> {
    let mut authority = content.clone();
    let apex = Name::from(&authority.apex);
    let dnskeys = keys
        .dnskeys()
        .into_iter()
        .map(|key| RData::DNSSEC(DNSSECRData::DNSKEY(key)));
    for data in dnskeys.chain(keys.cds()) {
        authority.add(Record::from_rdata(apex.clone(), authority.ttl, data));
    }
    let due = previous.is_some_and(|(_, before)| before.is_due(now));
    let mut pen = Pen::new(&authority, keys, kept, now);
    if due {
        pen.least_seconds += AHEAD_SECONDS;
    }
    pen.keeps_all = whole;
    let mut signed = Signed {
        links: links(&authority),
        labels: Box::default(),
        stride: authority.site_types() + 1,
        soa: Signature::empty(),
        refresh: 0,
        since: 0,
        version: 0,
    };
    for index in 0..signed.links.len() {
        let signatures = pen.link(&signed, index, previous)?;
        if let Some(link) = signed.links.get_mut(index) {
            link.signatures = signatures.into();
        }
    }
    signed.labels = pen.labels(&signed, previous)?.into();
    let made = pen.made.load(Relaxed);
    let all = signed
        .links
        .iter()
        .flat_map(|link| link.signatures.iter().map(|(_, signature)| signature))
        .chain(
            signed
                .labels
                .iter()
                .filter(|signature| !signature.is_empty()),
        );
    let left = all
        .map(|signature| signature.expiration.wrapping_sub(pen.now))
        .min()
        .unwrap_or(LIFE_SECONDS);
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    signed.since = since.as_secs();
    signed.refresh = signed.since + u64::from(left.saturating_sub(REFRESH_SECONDS));
    signed.version = match previous {
        Some((_, before)) if made == 0 => before.version,
        None if made == 0 && kept.is_some() => kept.map_or(0, |kept| kept.version),
        _ => new_version(now),
    };
    let signatures = pen
        .signatures
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    Ok(Sealed {
        to_keep: signatures,
        authority,
        signed,
        made,
    })
}

/// A [`Signed::version`] that was not there before.
pub(super) fn new_version(now: SystemTime) -> u64 {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos() & u128::from(u64::MAX)).unwrap_or(0)
}

/// Signs the SOA record, or takes its signature from `kept`.
///
/// # Errors
/// The key can't sign.
pub(super) fn sign_soa(
    authority: &Authority,
    serial: u32,
    keys: &ZoneKeys,
    kept: Option<&Kept>,
    now: SystemTime,
) -> Result<SealedSoa, KeyFailure> {
    let pen = Pen::new(authority, keys, kept, now);
    let soa = authority.soa(serial, authority.ttl);
    let set = Set {
        owner: &pen.apex,
        labels: authority.apex_labels(),
        kind: RecordType::SOA,
        ttl: authority.ttl,
        data: vec![canonical(&soa.data)],
    };
    let key = keys.zone_key();
    let signature = pen.seal(&set, key)?;
    Ok(SealedSoa {
        set: set.digest(key),
        signature,
        is_new: pen.made.load(Relaxed) > 0,
    })
}

/// The names of the chain that are no labels, in canonical order, without signatures.
fn links(authority: &Authority) -> Box<[Link]> {
    let below_cut =
        |name: &LowerName| *name != authority.apex && authority.is_delegated(&name.base_name());
    let mut named: Vec<(&LowerName, &Node)> = authority
        .nodes()
        .filter(|(name, node)| !node.records.is_empty() && !below_cut(name))
        .collect();
    named.sort_unstable_by_key(|(name, _)| *name);
    let apex_labels = usize::from(authority.apex_labels());
    named
        .into_iter()
        .map(|(name, node)| {
            let labels: Vec<&[u8]> = name.iter().collect();
            let above = labels
                .len()
                .checked_sub(apex_labels + 1)
                .and_then(|at| labels.get(at));
            let before = above.and_then(|label| authority.labels().at_or_before(label));
            let mut types: Vec<RecordType> = Vec::new();
            for kind in node.records.iter().map(Record::record_type) {
                if !types.contains(&kind) {
                    types.push(kind);
                }
            }
            // Addresses at a delegation are glue, and the child's (RFC 4035 §2.3).
            if *name != authority.apex && authority.is_delegated(name) {
                types.retain(|kind| matches!(kind, RecordType::NS | RecordType::DS));
            }
            if *name == authority.apex {
                types.push(RecordType::SOA);
            }
            types.extend([RecordType::RRSIG, RecordType::NSEC]);
            Link {
                octets: wire(&Name::from(name)).to_ascii_lowercase().into(),
                name: name.clone(),
                after: before.map_or(0, |place| place + 1),
                types: types.into(),
                signatures: Box::default(),
            }
        })
        .collect()
}

/// One set of records to be signed.
struct Set<'a> {
    owner: &'a [u8],
    labels: u8,
    kind: RecordType,
    ttl: u32,
    /// Each record's data in canonical form.
    data: Vec<Vec<u8>>,
}

impl Set<'_> {
    /// What tells it, signed by a key, from all others.
    fn digest(&self, key: &Key) -> SetDigest {
        let mut context = Context::new(&SHA256);
        context.update(key.octets());
        context.update(self.owner);
        context.update(&u16::from(self.kind).to_be_bytes());
        context.update(&self.ttl.to_be_bytes());
        let mut data: Vec<&Vec<u8>> = self.data.iter().collect();
        data.sort_unstable();
        for data in data {
            context.update(&data.len().to_be_bytes());
            context.update(data);
        }
        let mut digest = [0; DIGEST_OCTETS];
        digest.copy_from_slice(&context.finish().as_ref()[..DIGEST_OCTETS]);
        digest
    }
}

struct Pen<'a> {
    authority: &'a Authority,
    apex: Vec<u8>,
    keys: &'a ZoneKeys,
    kept: Option<&'a Kept>,
    now: u32,
    /// A signature with less left than this is made anew.
    least_seconds: u32,
    chance: RandomState,
    made: AtomicUsize,
    /// Whether also signatures taken over are written down for the next start.
    keeps_all: bool,
    signatures: Mutex<Vec<(SetDigest, Signature)>>,
}

impl<'a> Pen<'a> {
    fn new(
        authority: &'a Authority,
        keys: &'a ZoneKeys,
        kept: Option<&'a Kept>,
        now: SystemTime,
    ) -> Self {
        Self {
            authority,
            apex: wire(&Name::from(&authority.apex)).to_ascii_lowercase(),
            keys,
            kept,
            now: seconds(now),
            least_seconds: REFRESH_SECONDS,
            chance: RandomState::new(),
            made: AtomicUsize::new(0),
            keeps_all: false,
            signatures: Mutex::default(),
        }
    }

    /// A signature from before a restart, or a new one.
    fn seal(&self, set: &Set<'_>, key: &Key) -> Result<Signature, KeyFailure> {
        let digest = set.digest(key);
        let kept = self
            .kept
            .and_then(|kept| kept.find(&digest, key.tag()))
            .filter(|signature| self.lasts(signature));
        let signature = match kept {
            Some(signature) => signature.clone(),
            None => {
                self.made.fetch_add(1, Relaxed);
                self.sign(set, key)?
            }
        };
        if self.keeps_all || kept.is_none() {
            self.keep(digest, &signature);
        }
        Ok(signature)
    }

    fn keep(&self, digest: SetDigest, signature: &Signature) {
        let mut signatures = self
            .signatures
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        signatures.push((digest, signature.clone()));
    }

    /// The signature of a set (RFC 4034 §3.1.8.1).
    fn sign(&self, set: &Set<'_>, key: &Key) -> Result<Signature, KeyFailure> {
        let inception = self.now.wrapping_sub(BEFORE_SECONDS);
        let jitter = if set.kind == RecordType::SOA {
            // Signed with every change, and after all others: so it is never due before them.
            JITTER_SECONDS
        } else {
            let chance = self.chance.hash_one((set.owner, u16::from(set.kind)));
            u32::try_from(chance % u64::from(JITTER_SECONDS)).unwrap_or(0)
        };
        let expiration = self.now.wrapping_add(LIFE_SECONDS + jitter);
        let kind = u16::from(set.kind).to_be_bytes();
        let mut message = Vec::with_capacity(256);
        message.extend_from_slice(&kind);
        message.extend_from_slice(&[ALGORITHM, set.labels]);
        message.extend_from_slice(&set.ttl.to_be_bytes());
        message.extend_from_slice(&expiration.to_be_bytes());
        message.extend_from_slice(&inception.to_be_bytes());
        message.extend_from_slice(&key.tag().to_be_bytes());
        message.extend_from_slice(&self.apex);
        let mut data: Vec<&Vec<u8>> = set.data.iter().collect();
        // Canonical order, each once (RFC 4034 §6.3).
        data.sort_unstable();
        data.dedup();
        for data in data {
            message.extend_from_slice(set.owner);
            message.extend_from_slice(&kind);
            message.extend_from_slice(&[0, 1]);
            message.extend_from_slice(&set.ttl.to_be_bytes());
            let length = u16::try_from(data.len()).unwrap_or(u16::MAX);
            message.extend_from_slice(&length.to_be_bytes());
            message.extend_from_slice(data);
        }
        Ok(Signature {
            inception,
            expiration,
            tag: key.tag(),
            octets: key.sign(&message)?,
        })
    }

    /// Whether a signature may be used for some time yet.
    fn lasts(&self, signature: &Signature) -> bool {
        let left = signature.expiration.wrapping_sub(self.now);
        let age = self.now.wrapping_sub(signature.inception);
        // A clock set back makes both wrap around.
        (self.least_seconds + 1..=LIFE_SECONDS + JITTER_SECONDS).contains(&left)
            && age <= LIFE_SECONDS + JITTER_SECONDS + BEFORE_SECONDS
    }

    /// The signatures of a link.
    fn link(
        &self,
        signed: &Signed,
        index: usize,
        previous: Option<(&Authority, &Signed)>,
    ) -> Result<Vec<(RecordType, Signature)>, KeyFailure> {
        let mut signatures = Vec::new();
        let Some(link) = signed.links.get(index) else {
            return Ok(signatures);
        };
        let cut = link.name != self.authority.apex && link.types.contains(&RecordType::NS);
        let before = previous.and_then(|(authority, signed)| {
            let index = signed
                .links
                .binary_search_by(|other| other.name.cmp(&link.name));
            index.ok().map(|index| (authority, signed, index))
        });
        for &kind in &*link.types {
            let unsigned = matches!(kind, RecordType::RRSIG | RecordType::SOA)
                || cut && kind == RecordType::NS;
            if unsigned {
                continue;
            }
            let Some(set) = self.link_set(self.authority, signed, index, kind) else {
                continue;
            };
            let old = before.and_then(|(authority, signed, index)| {
                let old = self.link_set(authority, signed, index, kind)?;
                let same = old.ttl == set.ttl && old.data == set.data;
                same.then(|| signed.links.get(index)).flatten()
            });
            // The keys' own sets are for whoever follows the parent's DS: the KSKs sign them.
            let entry = matches!(
                kind,
                RecordType::DNSKEY | RecordType::CDS | RecordType::CDNSKEY
            );
            let keys: Vec<&Key> = if entry {
                self.keys.signing_keys().collect()
            } else {
                vec![self.keys.zone_key()]
            };
            for key in keys {
                let kept = old.and_then(|old| {
                    old.signatures
                        .iter()
                        .find(|(covered, signature)| {
                            *covered == kind && signature.tag == key.tag() && self.lasts(signature)
                        })
                        .map(|(_, signature)| signature.clone())
                });
                let signature = match kept {
                    Some(signature) => {
                        if self.keeps_all {
                            self.keep(set.digest(key), &signature);
                        }
                        signature
                    }
                    None => self.seal(&set, key)?,
                };
                signatures.push((kind, signature));
            }
        }
        Ok(signatures)
    }

    fn link_set<'s>(
        &self,
        authority: &Authority,
        signed: &'s Signed,
        index: usize,
        kind: RecordType,
    ) -> Option<Set<'s>> {
        let link = signed.links.get(index)?;
        let mut set = Set {
            owner: &link.octets,
            labels: link.name.num_labels(),
            kind,
            ttl: authority.ttl_of(&link.name, kind)?,
            data: Vec::new(),
        };
        if kind == RecordType::NSEC {
            set.data.push(nsec(authority, signed, Place::Link(index)));
        } else {
            let node = authority.node(&link.name)?;
            set.data = node
                .of_type(kind)
                .map(|record| canonical(&record.data))
                .collect();
        }
        (!set.data.is_empty()).then_some(set)
    }

    /// The signatures of all labels.
    fn labels(
        &self,
        signed: &Signed,
        previous: Option<(&Authority, &Signed)>,
    ) -> Result<Vec<Signature>, KeyFailure> {
        let count = self.authority.labels().len();
        let mut all = vec![Signature::empty(); count * signed.stride];
        let data: Vec<(RecordType, Vec<u8>)> = self
            .authority
            .all_site_data()
            .map(|data| (data.record_type(), canonical(data)))
            .collect();
        // Where the last form keeps the signature of the same data.
        let slots: Vec<Option<usize>> = data
            .iter()
            .map(|(kind, octets)| {
                let (before, _) =
                    previous.filter(|(before, _)| before.ttl == self.authority.ttl)?;
                before
                    .all_site_data()
                    .position(|old| old.record_type() == *kind && canonical(old) == *octets)
            })
            .collect();
        let workers = thread::available_parallelism().map_or(1, usize::from);
        let share = count.div_ceil(workers).max(CHUNK);
        thread::scope(|scope| {
            let tasks: Vec<_> = all
                .chunks_mut(share * signed.stride)
                .zip(0..)
                .map(|(chunk, number): (&mut [Signature], usize)| {
                    let (data, slots) = (&data, &slots);
                    scope.spawn(move || {
                        for (index, place) in chunk.chunks_mut(signed.stride).zip(number * share..)
                        {
                            let place = u32::try_from(place).unwrap_or(u32::MAX);
                            self.label(signed, place, data, slots, previous, index)?;
                        }
                        Ok::<(), KeyFailure>(())
                    })
                })
                .collect();
            tasks
                .into_iter()
                .try_for_each(|task| task.join().unwrap_or(Err(KeyFailure::Random)))
        })?;
        Ok(all)
    }

    /// The signatures of one label, into `into`.
    fn label(
        &self,
        signed: &Signed,
        place: u32,
        data: &[(RecordType, Vec<u8>)],
        slots: &[Option<usize>],
        previous: Option<(&Authority, &Signed)>,
        into: &mut [Signature],
    ) -> Result<(), KeyFailure> {
        let (authority, key) = (self.authority, self.keys.zone_key());
        let label = authority.labels().at(place);
        let plain = authority.is_plain(place);
        let old = previous.and_then(|(before, signed)| {
            let place = before.labels().find(label)?;
            let start = place as usize * signed.stride;
            let signatures = signed.labels.get(start..start + signed.stride)?;
            Some((before, signed, place, signatures))
        });
        let usable = |signature: &&Signature| signature.tag == key.tag() && self.lasts(signature);
        let sign = |kind: RecordType, ttl: u32, data: Vec<u8>, kept: Option<&Signature>| {
            let mut owner = vec![u8::try_from(label.len()).unwrap_or(0)];
            owner.extend_from_slice(label);
            owner.extend_from_slice(&self.apex);
            let set = Set {
                owner: &owner,
                labels: authority.apex_labels() + 1,
                kind,
                ttl,
                data: vec![data],
            };
            match kept {
                Some(signature) => {
                    self.keep(set.digest(key), signature);
                    Ok(signature.clone())
                }
                None => self.seal(&set, key),
            }
        };
        for (((kind, octets), slot), into) in data.iter().zip(slots).zip(&mut *into) {
            if plain && *kind == RecordType::HTTPS {
                continue;
            }
            let kept = old
                .and_then(|(_, _, _, signatures)| signatures.get((*slot)?))
                .filter(usable);
            *into = match kept {
                Some(signature) if !self.keeps_all => signature.clone(),
                kept => sign(*kind, authority.ttl, octets.clone(), kept)?,
            };
        }
        let place = Place::Label(place);
        let kept = old
            .filter(|(before, old, old_place, _)| {
                let old_place = Place::Label(*old_place);
                nsec_ttl(before) == nsec_ttl(authority)
                    && old.types(before, old_place) == signed.types(authority, place)
                    && same_name(
                        (before, old, old.next(before, old_place)),
                        (authority, signed, signed.next(authority, place)),
                    )
            })
            .and_then(|(_, _, _, signatures)| signatures.last())
            .filter(usable);
        if let Some(into) = into.last_mut() {
            *into = match kept {
                Some(signature) if !self.keeps_all => signature.clone(),
                kept => {
                    let octets = nsec(authority, signed, place);
                    sign(RecordType::NSEC, nsec_ttl(authority), octets, kept)?
                }
            };
        }
        Ok(())
    }
}

/// Whether places in two forms of a zone have one name.
fn same_name(a: (&Authority, &Signed, Place), b: (&Authority, &Signed, Place)) -> bool {
    match (a, b) {
        ((a, _, Place::Label(x)), (b, _, Place::Label(y))) => a.labels().at(x) == b.labels().at(y),
        ((_, a, Place::Link(x)), (_, b, Place::Link(y))) => {
            let name =
                |signed: &Signed, link: usize| signed.links.get(link).map(|link| link.name.clone());
            name(a, x) == name(b, y)
        }
        _ => false,
    }
}

/// The data of an NSEC record.
fn nsec(authority: &Authority, signed: &Signed, place: Place) -> Vec<u8> {
    let next = signed.name(authority, signed.next(authority, place));
    canonical(&RData::DNSSEC(DNSSECRData::NSEC(NSEC::new(
        next,
        signed.types(authority, place),
    ))))
}

/// Record data in canonical form (RFC 4034 §6.2).
fn canonical(data: &RData) -> Vec<u8> {
    let mut octets = Vec::new();
    let mut encoder = BinEncoder::new(&mut octets);
    encoder.set_canonical_form(true);
    // What a zone holds was encoded when it was read.
    data.emit(&mut encoder).unwrap_or_default();
    octets
}

fn seconds(time: SystemTime) -> u32 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u32::try_from(since.as_secs() & u64::from(u32::MAX)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, sync::Arc, time::Duration};

    use hickory_proto::rr::rdata::{A, AAAA};

    use super::*;
    use crate::{
        dnssec::{Dnssec, Policy},
        labels::Labels,
        name::SiteName,
    };

    fn content(labels: &[String]) -> Authority {
        let apex = Name::from_ascii("w.example.").unwrap();
        let mut authority = Authority::new(
            apex.clone(),
            300,
            &[Name::from_ascii("ns1.w.example.").unwrap()],
            apex,
            vec![
                RData::A(A("192.0.2.10".parse().unwrap())),
                RData::AAAA(AAAA("2001:db8::10".parse().unwrap())),
            ],
        );
        let names: Vec<SiteName> = labels
            .iter()
            .map(|label| SiteName::parse(label).unwrap())
            .collect();
        authority.set_labels(Arc::new(Labels::new(names.iter().zip(0..))), HashSet::new());
        authority
    }

    fn labels(count: usize) -> Vec<String> {
        (0..count)
            .map(|number| format!("site-{number:03}"))
            .collect()
    }

    fn keys(content: &Authority, now: SystemTime) -> ZoneKeys {
        let policy = Policy::of(&Dnssec::default(), content);
        let origin = Name::from(&content.apex);
        ZoneKeys::first(origin, &policy, now, &mut Key::generate).unwrap()
    }

    fn start() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn days(count: u64) -> Duration {
        Duration::from_secs(count * u64::from(DAY))
    }

    #[test]
    fn an_edit_makes_the_signatures_of_what_it_changed() {
        let old = content(&labels(200));
        let keys = keys(&old, start());
        let first = sign(&old, &keys, None, None, true, start()).unwrap();
        // Each label's A, AAAA and NSEC; the apex's NS, DNSKEY and NSEC.
        assert_eq!(first.made, 200 * 3 + 3);
        let again = |content: &Authority, before: &Sealed, now| {
            sign(
                content,
                &keys,
                Some((&before.authority, &before.signed)),
                None,
                false,
                now,
            )
            .unwrap()
        };
        let same = again(&old, &first, start() + days(1));
        assert_eq!((same.made, same.signed.version), (0, first.signed.version));
        assert_eq!(same.signed.labels, first.signed.labels);

        let mut more = labels(200);
        more.push("site-100-b".to_owned());
        let added = again(&content(&more), &first, start() + days(1));
        // Its own three, and the NSEC record that now leads to it.
        assert_eq!((added.made, added.to_keep.len()), (4, 4));
        assert_ne!(added.signed.version, first.signed.version);
        let removed = again(&old, &added, start() + days(1));
        assert_eq!(removed.made, 1, "the NSEC record that led to it");
        let other_keys = tests::keys(&old, start());
        let rolled = sign(
            &old,
            &other_keys,
            Some((&first.authority, &first.signed)),
            None,
            false,
            start(),
        )
        .unwrap();
        assert_eq!(rolled.made, 200 * 3 + 3, "another key signs all");
    }

    #[test]
    fn a_restart_takes_the_signatures_there_were() {
        let old = content(&labels(50));
        let keys = keys(&old, start());
        let first = sign(&old, &keys, None, None, true, start()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("signatures");
        Kept::write(&file, first.signed.version, &first.to_keep).unwrap();
        let kept = Kept::read(&file).unwrap();
        let after =
            |content: &Authority, now| sign(content, &keys, None, Some(&kept), true, now).unwrap();
        let same = after(&old, start() + days(1));
        assert_eq!((same.made, same.signed.version), (0, first.signed.version));
        assert_eq!(same.signed.labels, first.signed.labels);
        let more = after(&content(&labels(51)), start() + days(1));
        assert_eq!((more.made, more.to_keep.len()), (4, 51 * 3 + 3));
        assert_eq!(after(&old, start() + days(20)).made, 50 * 3 + 3, "too old");
    }

    #[test]
    fn the_soa_record_is_never_due_before_others() {
        let content = content(&labels(50));
        let keys = keys(&content, start());
        let sealed = sign(&content, &keys, None, None, false, start()).unwrap();
        let labels = sealed.signed.labels.iter();
        let last = labels.map(|signature| signature.expiration).max();
        let sign = |kept: Option<&Kept>, now| sign_soa(&sealed.authority, 7, &keys, kept, now);
        for _ in 0..20 {
            let soa = sign(None, start()).unwrap();
            assert!(soa.is_new && Some(soa.signature.expiration) >= last);
            // As long as any other is good after a restart, so is this one.
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("signatures");
            Kept::write(&file, 1, &[(soa.set, soa.signature.clone())]).unwrap();
            let kept = Kept::read(&file).unwrap();
            let later = last.unwrap() - REFRESH_SECONDS - 1;
            let later = UNIX_EPOCH + Duration::from_secs(later.into());
            let again = sign(Some(&kept), later).unwrap();
            assert_eq!((again.is_new, again.signature), (false, soa.signature));
        }
    }

    #[test]
    fn signatures_are_made_anew_in_time_and_not_all_at_once() {
        let content = content(&labels(300));
        let keys = keys(&content, start());
        let mut sealed = sign(&content, &keys, None, None, false, start()).unwrap();
        let mut by_day = Vec::new();
        for day in 0..60 {
            let now = start() + days(day);
            sealed = sign(
                &content,
                &keys,
                Some((&sealed.authority, &sealed.signed)),
                None,
                false,
                now,
            )
            .unwrap();
            by_day.push(sealed.made);
            let clock = seconds(now);
            for signature in &sealed.signed.labels {
                assert!(signature.inception < clock);
                // A secondary that hears no more of us from now on.
                assert!(signature.expiration > clock + EXPIRE.unsigned_abs());
            }
            // The next look is due before anything gets old.
            assert!(sealed.signed.refresh >= u64::from(clock));
        }
        assert_eq!(by_day[1..7].iter().sum::<usize>(), 0, "{by_day:?}");
        let most = by_day.iter().max().unwrap();
        assert!(
            by_day[7..12].iter().sum::<usize>() == 903 && *most < 450,
            "{by_day:?}"
        );

        // A clock set back: what seems to come from the future is made anew.
        let back = sign(
            &content,
            &keys,
            Some((&sealed.authority, &sealed.signed)),
            None,
            false,
            start(),
        )
        .unwrap();
        assert_eq!(back.made, 903);
    }
}
