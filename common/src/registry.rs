//! The compiled, immutable snapshot of all zones: the one thing DNS and proxy answer from.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::SystemTime,
};

use hickory_proto::rr::{LowerName, Name};

use crate::{
    authority::Authority,
    config::{Addresses, Config},
    group::Groups,
    name::HostName,
    observed::Observed,
    problem::{Problem, Severity},
    reverse::{self, BIND_RECORDS, ReverseZone, Sources},
    serial::Serials,
    site::{HttpsPolicy, Site},
    zone::{Zone, name_of},
};

/// Everything served, as one consistent world. Two registries are equal when they answer the same.
/// A copy shares everything, so that news of one site costs no compilation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registry {
    /// The addresses every site name points at.
    pub addresses: Addresses,
    /// Forward zones in the order of their origins, each with its serial.
    pub zones: Arc<Vec<(Arc<Zone>, u32)>>,
    /// Reverse zones, each with its serial.
    pub reverse: Arc<Vec<(ReverseZone, u32)>>,
    /// Groups of tenants and their limits.
    pub groups: Arc<Groups>,
    /// What is known of sites' containers.
    pub observed: Arc<Observed>,
    index: Arc<Index>,
}

/// Where names are found.
#[derive(Debug, Default, PartialEq, Eq)]
struct Index {
    by_origin: HashMap<HostName, usize>,
    authorities: HashMap<LowerName, Place>,
    domains: HashMap<HostName, (usize, usize)>,
}

/// Where an authority is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Forward(usize),
    Reverse(usize),
}

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
    /// What plain HTTP does: what the site says, or else to redirect where visitors trust the
    /// certificate, which they can't with the local authority's.
    pub fn https(&self) -> HttpsPolicy {
        // A zone's own certificate does not speak for foreign domains.
        let trusted = self.zone.certificate.is_some() && !self.foreign;
        self.site.https.unwrap_or(if trusted {
            HttpsPolicy::Redirect
        } else {
            HttpsPolicy::Both
        })
    }
}

impl Registry {
    /// An empty world at these addresses.
    pub fn empty(addresses: Addresses) -> Self {
        Self {
            addresses,
            zones: Arc::default(),
            reverse: Arc::default(),
            groups: Arc::default(),
            observed: Arc::default(),
            index: Arc::default(),
        }
    }

    /// The same declarations with other observations.
    #[must_use]
    pub(crate) fn with(&self, observed: Arc<Observed>) -> Self {
        Self {
            observed,
            ..self.clone()
        }
    }

    /// The authority nearest above `name`, with its serial.
    pub fn authority(&self, name: &LowerName) -> Option<(&Authority, u32)> {
        let mut origin = name.clone();
        loop {
            if let Some(place) = self.index.authorities.get(&origin) {
                return match *place {
                    Place::Forward(index) => self
                        .zones
                        .get(index)
                        .map(|(zone, serial)| (&zone.authority, *serial)),
                    Place::Reverse(index) => self
                        .reverse
                        .get(index)
                        .map(|(zone, serial)| (&zone.authority, *serial)),
                };
            }
            if origin.is_root() {
                return None;
            }
            origin = origin.base_name();
        }
    }

    /// The authority whose apex is exactly `origin`.
    pub fn authority_at(&self, origin: &LowerName) -> Option<(&Authority, u32)> {
        self.authority(origin)
            .filter(|(authority, _)| authority.apex == *origin)
    }

    /// Every authority with its serial, forward zones first.
    pub fn authorities(&self) -> impl Iterator<Item = (&Authority, u32)> {
        let forward = self
            .zones
            .iter()
            .map(|(zone, serial)| (&zone.authority, *serial));
        forward.chain(
            self.reverse
                .iter()
                .map(|(zone, serial)| (&zone.authority, *serial)),
        )
    }

    /// The forward zone of that origin.
    pub fn zone(&self, origin: &str) -> Option<&Arc<Zone>> {
        self.index
            .by_origin
            .get(origin)
            .and_then(|index| self.zones.get(*index))
            .map(|(zone, _)| zone)
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
        let (zone, _) = self.zones.get(zone)?;
        Some(Route {
            zone,
            site: zone.sites.get(site)?,
            foreign: true,
        })
    }

    /// How many sites there are.
    pub fn site_count(&self) -> usize {
        self.zones.iter().map(|(zone, _)| zone.sites.len()).sum()
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

/// Puts zones together; they must have no [`conflicts`].
pub(crate) fn compile(
    config: &Config,
    mut zones: Vec<Arc<Zone>>,
    serials: &mut Serials,
    now: SystemTime,
) -> Registry {
    zones.sort_unstable_by(|a, b| a.origin.cmp(&b.origin));
    let reverse = reverse_zones(config, &zones);
    let mut found = Index::default();
    for (index, zone) in zones.iter().enumerate() {
        found.by_origin.insert(zone.origin.clone(), index);
        found
            .authorities
            .insert(zone.authority.apex.clone(), Place::Forward(index));
        for (number, site) in zone.sites.iter().enumerate() {
            for domain in &site.domains {
                found.domains.insert(domain.clone(), (index, number));
            }
        }
    }
    let zones: Vec<(Arc<Zone>, u32)> = zones
        .into_iter()
        .map(|zone| {
            let serial = serials.assign(zone.origin.as_str(), &zone.digest, now);
            (zone, serial)
        })
        .collect();
    let mut reverse_zones = Vec::with_capacity(reverse.len());
    for (index, zone) in reverse.into_iter().enumerate() {
        found
            .authorities
            .entry(zone.authority.apex.clone())
            .or_insert(Place::Reverse(index));
        let origin = zone.authority.apex.to_string();
        let serial = serials.assign(origin.trim_end_matches('.'), &zone.authority.digest(), now);
        reverse_zones.push((zone, serial));
    }
    Registry {
        addresses: config.addresses,
        zones: zones.into(),
        reverse: reverse_zones.into(),
        groups: Arc::new(config.groups.clone()),
        observed: Arc::default(),
        index: found.into(),
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
            zone.authority
                .labels()
                .filter_map(|label| apex.prepend_label(label.as_str()).ok()),
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

/// What deserves a look though it is served.
pub(crate) fn warnings(registry: &Registry, config_file: &std::path::Path) -> Vec<Problem> {
    registry
        .reverse
        .iter()
        .filter_map(|(zone, _)| {
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
        .collect()
}
