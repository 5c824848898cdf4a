//! The compiled, immutable snapshot of all zones: the one thing DNS and proxy answer from.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::SystemTime,
};

use foldhash::fast::RandomState;
use hickory_proto::rr::{LowerName, Name, RecordType};

use crate::{
    config::{Addresses, Config},
    dnssec::{Dnssec, Signers},
    group::Groups,
    name::HostName,
    observed::Observed,
    problem::{Problem, Severity},
    reverse::{self, BIND_RECORDS, ReverseZone, Sources},
    secondary::{Secondaries, Secondary},
    serial::Serials,
    served::Served,
    site::{HttpsPolicy, Site},
    wire::wire,
    zone::{Zone, name_of},
};

/// Everything served, as one consistent world. Two registries are equal when they answer the same.
/// A copy shares everything, so that news of one site costs no compilation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registry {
    /// The addresses every site name points at.
    pub addresses: Addresses,
    /// Forward zones in the order of their origins.
    pub zones: Arc<Vec<Arc<Zone>>>,
    /// Reverse zones.
    pub reverse: Arc<Vec<Arc<ReverseZone>>>,
    /// What DNS answers from: the forward zones in their order, then the reverse ones.
    pub served: Arc<Vec<Arc<Served>>>,
    /// Groups of tenants and their limits.
    pub groups: Arc<Groups>,
    /// Who may transfer zones.
    pub secondaries: Arc<Secondaries>,
    /// What is known of sites' containers.
    pub observed: Arc<Observed>,
    /// Which publication of the files this is, from 1; 0 before it is published.
    pub generation: u64,
    index: Arc<Index>,
}

/// Where names are found.
#[derive(Debug, Default)]
struct Index {
    by_origin: HashMap<HostName, usize>,
    /// Places in `served` by apex.
    apexes: HashMap<LowerName, usize>,
    /// The same by the apex on the wire, for questions that were never more than octets.
    apex_octets: HashMap<Box<[u8]>, usize, RandomState>,
    /// Which numbers of labels an apex has, a bit for each: most suffixes need no look.
    apex_depths: u128,
    domains: HashMap<HostName, (usize, usize)>,
}

impl Index {
    fn insert_apex(&mut self, apex: &LowerName, place: usize) {
        self.apexes.insert(apex.clone(), place);
        self.apex_octets
            .insert(wire(&Name::from(apex)).into(), place);
        self.apex_depths |= 1 << (apex.num_labels() & 127);
    }
}

/// The same names lead to the same places.
impl PartialEq for Index {
    fn eq(&self, other: &Self) -> bool {
        (&self.by_origin, &self.apexes, &self.domains)
            == (&other.by_origin, &other.apexes, &other.domains)
    }
}

impl Eq for Index {}

/// Where a host name leads.
#[derive(Clone, Copy, Debug)]
pub struct Route<'r> {
    /// The zone that declares the site.
    pub zone: &'r Arc<Zone>,
    /// The site.
    pub site: &'r Arc<Site>,
    /// Whether the host is a foreign domain of the site, not a name in its zone.
    pub foreign: bool,
}

impl Route<'_> {
    /// What plain HTTP does.
    pub fn https(&self) -> HttpsPolicy {
        // A zone's own certificate does not speak for foreign domains.
        let trusted = self.zone.certificate.is_some() && !self.foreign;
        self.site.https_where(trusted)
    }
}

impl Registry {
    /// An empty world at these addresses.
    pub fn empty(addresses: Addresses) -> Self {
        Self {
            addresses,
            zones: Arc::default(),
            reverse: Arc::default(),
            served: Arc::default(),
            groups: Arc::default(),
            secondaries: Arc::default(),
            observed: Arc::default(),
            generation: 0,
            index: Arc::default(),
        }
    }

    /// The same declarations with other observations, as a certain publication.
    #[must_use]
    pub(crate) fn with(&self, observed: Arc<Observed>, generation: u64) -> Self {
        Self {
            observed,
            generation,
            ..self.clone()
        }
    }

    /// A world in which one zone is known, by its apex alone, as place 0.
    pub(crate) fn of_one(apex: &LowerName) -> Self {
        let mut index = Index::default();
        index.insert_apex(apex, 0);
        Self {
            index: index.into(),
            ..Self::empty(Addresses {
                ipv4: None,
                ipv6: None,
            })
        }
    }

    /// The place of the zone that answers for a name and a type: the nearest at or above it, but for
    /// DS at an apex, which is the parent's (RFC 4035 §3.1.4.1) where the parent is ours too and knows
    /// the name.
    pub(crate) fn nearest_place(&self, name: &LowerName, kind: RecordType) -> Option<usize> {
        let mut origin = name.clone();
        let mut own = None;
        loop {
            if let Some(place) = self.index.apexes.get(&origin) {
                if kind != RecordType::DS {
                    return Some(*place);
                }
                match own {
                    None if origin == *name => own = Some(*place),
                    None => return Some(*place),
                    Some(own) => {
                        let parent = self.served.get(*place);
                        let knows = parent.is_some_and(|it| it.authority.find(name).is_some());
                        return Some(if knows { *place } else { own });
                    }
                }
            }
            if origin.is_root() {
                return own;
            }
            origin = origin.base_name();
        }
    }

    /// The zone that answers for a name and a type, with its place.
    pub fn nearest(&self, name: &LowerName, kind: RecordType) -> Option<(usize, &Arc<Served>)> {
        let place = self.nearest_place(name, kind)?;
        Some((place, self.served.get(place)?))
    }

    /// The same for a name on the wire, in lower case, whose labels begin at `starts`: the zone's place,
    /// the zone, and where its apex begins in the name.
    #[inline]
    pub fn nearest_octets(
        &self,
        name: &[u8],
        starts: &[u8],
    ) -> Option<(usize, &Arc<Served>, usize)> {
        for (index, start) in starts.iter().enumerate() {
            if self.index.apex_depths >> ((starts.len() - index) & 127) & 1 == 0 {
                continue;
            }
            let start = usize::from(*start);
            if let Some(place) = self.index.apex_octets.get(name.get(start..)?) {
                return Some((*place, self.served.get(*place)?, start));
            }
        }
        None
    }

    /// The zone whose apex is exactly `origin`.
    pub fn served_at(&self, origin: &LowerName) -> Option<&Arc<Served>> {
        self.served.get(*self.index.apexes.get(origin)?)
    }

    /// The forward zone of that origin.
    pub fn zone(&self, origin: &str) -> Option<&Arc<Zone>> {
        self.index
            .by_origin
            .get(origin)
            .and_then(|index| self.zones.get(*index))
    }

    /// The site a host name leads to; `host` is lower case, without port and final dot.
    pub fn route(&self, host: &str) -> Option<Route<'_>> {
        if let Some((label, origin)) = host.split_once('.')
            && let Some(zone) = self.zone(origin)
            && let Some(site) = zone.site(label)
        {
            return Some(Route {
                zone,
                site,
                foreign: false,
            });
        }
        let (zone, site) = *self.index.domains.get(host)?;
        let zone = self.zones.get(zone)?;
        Some(Route {
            zone,
            site: zone.sites.get(site)?,
            foreign: true,
        })
    }

    /// How many sites there are.
    pub fn site_count(&self) -> usize {
        self.zones.iter().map(|zone| zone.sites.len()).sum()
    }
}

/// Conflicts between zones, each with the origins that take part.
pub(crate) struct Conflict {
    pub(crate) origins: [HostName; 2],
    pub(crate) problem: Problem,
}

/// What no single zone file shows: an origin or a domain taken twice, a domain inside another zone,
/// a zone inside a site.
pub(crate) fn conflicts(zones: &[Arc<Zone>]) -> Vec<Conflict> {
    let mut found = Vec::new();
    let mut conflict = |first: &Zone, second: &Zone, position, message: String| {
        found.push(Conflict {
            origins: [first.origin.clone(), second.origin.clone()],
            problem: Problem {
                severity: Severity::Error,
                file: second.file.as_path().into(),
                position,
                message,
            },
        });
    };
    let mut origins: BTreeMap<&str, &Zone> = BTreeMap::new();
    for zone in zones {
        if let Some(first) = origins.get(zone.origin.as_str()) {
            conflict(
                first,
                zone,
                None,
                format!(
                    "{} is declared by {} already",
                    zone.origin,
                    first.file.display()
                ),
            );
        } else {
            origins.insert(zone.origin.as_str(), zone);
        }
    }
    let mut domains: HashMap<&HostName, (&Zone, &Site)> = HashMap::new();
    for zone in zones {
        for (site, domain) in zone
            .sites
            .iter()
            .flat_map(|site| site.domains.iter().map(move |domain| (site, domain)))
        {
            if let Some((first, by)) = domains.get(domain) {
                conflict(
                    first,
                    zone,
                    Some(site.position),
                    format!(
                        "\"{domain}\" of {} is taken by {} in {}: a name belongs to one site",
                        site.name, by.name, first.origin
                    ),
                );
                continue;
            }
            domains.insert(domain, (zone, site));
            // From the domain itself upwards: is it in a zone of ours?
            let mut above = Some(domain.as_str());
            while let Some(name) = above {
                if let Some(inside) = origins
                    .get(name)
                    .filter(|inside| inside.origin != zone.origin)
                {
                    conflict(
                        inside,
                        zone,
                        Some(site.position),
                        format!(
                            "\"{domain}\" of {} lies inside the zone {}: make it an alias there",
                            site.name, inside.origin
                        ),
                    );
                }
                above = name.split_once('.').map(|(_, rest)| rest);
            }
        }
        let mut above = zone.origin.as_str();
        while let Some((label, rest)) = above.split_once('.') {
            if let Some(outer) = origins.get(rest)
                && let Some(site) = outer.site(label)
            {
                conflict(
                    outer,
                    zone,
                    Some(site.position),
                    format!(
                        "the zone {} lies inside the site {} of {}",
                        zone.origin, site.name, outer.origin
                    ),
                );
            }
            above = rest;
        }
    }
    found
}

/// Puts zones together; they must have no [`conflicts`]. What did not change is taken over from
/// `previous`.
pub(crate) fn compile(
    config: &Config,
    mut zones: Vec<Arc<Zone>>,
    previous: &Registry,
    signers: &mut Signers,
    serials: &mut Serials,
    now: SystemTime,
) -> Registry {
    zones.sort_unstable_by(|a, b| a.origin.cmp(&b.origin));
    // One origin is one zone: which of two was left out is told by `left_out`.
    let mut reverse: Vec<Arc<ReverseZone>> = Vec::new();
    for zone in reverse_zones(config, &zones) {
        let apex = &zone.authority.apex;
        let taken = zones.iter().any(|other| other.authority.apex == *apex)
            || reverse.iter().any(|other| other.authority.apex == *apex);
        if !taken {
            reverse.push(zone.into());
        }
    }
    let mut index = Index::default();
    let reverse_dnssec = config.reverse.dnssec.then(Dnssec::default);
    let forward = zones
        .iter()
        .map(|zone| (&zone.authority, zone.digest, zone.dnssec.as_ref()));
    let contents = forward.chain(
        reverse
            .iter()
            .map(|zone| (&zone.authority, zone.digest, reverse_dnssec.as_ref())),
    );
    let mut served = Vec::with_capacity(zones.len() + reverse.len());
    for (place, (authority, digest, dnssec)) in contents.enumerate() {
        index.insert_apex(&authority.apex, place);
        let before = previous.served_at(&authority.apex);
        let signed = dnssec
            .and_then(|dnssec| signers.sign(authority, &digest, dnssec, before, serials, now));
        served.push(signed.unwrap_or_else(|| {
            let origin = authority.apex.to_string();
            let origin = origin.trim_end_matches('.');
            let serial = match serials.last(origin) {
                // Only who signs knows whether the content is another.
                Some(serial) if dnssec.is_some() && !signers.signs() => serial,
                _ => serials.assign(origin, &digest, now),
            };
            let same = before.filter(|before| {
                before.serial == serial
                    && before.signed.is_none()
                    && (Arc::ptr_eq(&before.content, authority) || before.content == *authority)
            });
            match same {
                Some(same) => Arc::clone(same),
                None => Arc::new(Served::new(Arc::clone(authority), serial)),
            }
        }));
    }
    for (place, zone) in zones.iter().enumerate() {
        index.by_origin.insert(zone.origin.clone(), place);
        for (number, site) in zone.sites.iter().enumerate() {
            for domain in &site.domains {
                index.domains.insert(domain.clone(), (place, number));
            }
        }
    }
    Registry {
        addresses: config.addresses,
        zones: zones.into(),
        reverse: reverse.into(),
        served: served.into(),
        groups: Arc::new(config.groups.clone()),
        secondaries: Arc::new(config.secondaries.clone()),
        observed: Arc::default(),
        generation: 0,
        index: index.into(),
    }
}

/// Reverse zones of everything; none while there is no zone to take name servers from.
fn reverse_zones(config: &Config, zones: &[Arc<Zone>]) -> Vec<ReverseZone> {
    let Some(first) = zones.first() else {
        return Vec::new();
    };
    let own = config.reverse.canonical.clone().or_else(|| {
        let in_zone = |zone: &Zone| {
            zone.nameservers
                .iter()
                .find(|server| server.below(&zone.origin).is_some())
                .cloned()
        };
        zones.iter().find_map(|zone| in_zone(zone))
    });
    let own = name_of(own.as_ref().unwrap_or(&first.origin));
    let mut names: Vec<Name> = Vec::new();
    for zone in zones {
        let apex = Name::from(&zone.authority.apex);
        names.extend(
            zone.nameservers
                .iter()
                .filter(|server| server.below(&zone.origin).is_some())
                .map(name_of),
        );
        names.extend(
            zone.labels
                .iter()
                .filter_map(|label| apex.prepend_label(label).ok()),
        );
    }
    names.retain(|name| *name != own);
    let total = names.len() + 1;
    // No message holds more than this many: among 100,000 names only the first need their order.
    if names.len() > reverse::MOST_NAMES {
        names.select_nth_unstable(reverse::MOST_NAMES);
        names.truncate(reverse::MOST_NAMES);
    }
    names.sort_unstable();
    names.insert(0, own);

    let nameservers: Vec<Name> = first.nameservers.iter().map(name_of).collect();
    let sources = Sources {
        nameservers: &nameservers,
        hostmaster: &first.hostmaster,
        ttl: first.authority.ttl,
        names: &names,
        total,
    };
    reverse::zones(&config.addresses, &config.reverse, &sources)
}

/// Reverse zones that are not served, since another zone has their origin.
pub(crate) fn left_out(
    registry: &Registry,
    config: &Config,
    config_file: &std::path::Path,
) -> Vec<Problem> {
    reverse::places(&config.addresses, &config.reverse)
        .filter(|(address, ..)| registry.reverse.iter().all(|zone| zone.address != *address))
        .filter_map(|(address, apex, _)| {
            let apex = LowerName::new(&apex);
            let origin = apex.to_string();
            let origin = origin.trim_end_matches('.');
            let key = if address.is_ipv4() { "ipv4_origin" } else { "ipv6_origin" };
            let forward = registry.zones.iter().find(|zone| zone.authority.apex == apex);
            let message = match forward {
                Some(zone) => format!(
                    "{} declares {origin}, which is the reverse zone of {address} too, so {address} has no PTR records: remove that file, or name another origin with [reverse] {key}",
                    zone.file.display()
                ),
                // There is none while there is no zone at all.
                None => format!(
                    "[reverse]: {} has the origin {origin} already, so {address} has no PTR records: name another with {key}",
                    registry.reverse.iter().find(|zone| zone.authority.apex == apex)?.address
                ),
            };
            Some(Problem::whole_file(config_file, message))
        })
        .collect()
}

/// What deserves a look though it is served.
pub(crate) fn warnings(registry: &Registry, config_file: &std::path::Path) -> Vec<Problem> {
    let unknown = registry
        .secondaries
        .iter()
        .flat_map(Secondary::zones)
        .filter(|zone| registry.served_at(zone).is_none())
        .map(|zone| Problem {
            severity: Severity::Warning,
            ..Problem::whole_file(
                config_file,
                format!(
                    "[[secondaries]] zones: {zone} is no zone of ours, so nobody can transfer it"
                ),
            )
        });
    registry
        .reverse
        .iter()
        .filter_map(|zone| {
            let (address, names) = (zone.address, zone.names);
            let message = if zone.omitted > 0 {
                format!(
                    "{} names of {address} have no PTR record, for want of room in one DNS message ({names} have): set [reverse] names to a number or \"canonical\"",
                    zone.omitted
                )
            } else if names > BIND_RECORDS {
                format!(
                    "{address} has {names} PTR records, and BIND resolvers refuse sets of more than {BIND_RECORDS}: set [reverse] names to {BIND_RECORDS} or \"canonical\", or raise max-records-per-type there"
                )
            } else {
                return None;
            };
            Some(Problem { severity: Severity::Warning, ..Problem::whole_file(config_file, message) })
        })
        .chain(unknown)
        .chain(unproved(registry))
        .collect()
}

/// Zones inside a signed one that doesn't delegate them: its proofs say that they aren't there.
fn unproved(registry: &Registry) -> impl Iterator<Item = Problem> {
    registry.zones.iter().filter_map(|inner| {
        let mut rest = inner.origin.as_str();
        let outer = loop {
            rest = rest.split_once('.')?.1;
            if let Some(outer) = registry.index.by_origin.get(rest) {
                break registry.zones.get(*outer)?;
            }
        };
        let mut at = inner.authority.apex.clone();
        let mut delegated = false;
        while at != outer.authority.apex && !delegated {
            let node = outer.authority.node(&at);
            delegated = node.is_some_and(|node| node.has(RecordType::NS));
            at = at.base_name();
        }
        if outer.dnssec.is_none() || delegated {
            return None;
        }
        let message = format!(
            "{} lies inside {}, which is signed and doesn't delegate it: resolvers that validate hold that it does not exist; add its NS records to [[records]] of {}, and its DS records if it is signed",
            inner.origin, outer.origin, outer.origin
        );
        Some(Problem { severity: Severity::Warning, ..Problem::whole_file(&*outer.file, message) })
    })
}
