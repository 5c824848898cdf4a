//! `nuage doctor`: whether the world finds a zone and a name, and what to do when it doesn't.
//!
//! Everything is looked at from outside: who a resolver would ask is asked, and what comes back is
//! compared with our files. Asking is in `ask`; what is wrong and its cure are pure functions of the
//! answers.

mod ask;
mod delegated;
mod ds;
mod finding;
mod names;
mod parent;
mod servers;

use std::{
    fs::File,
    io::Read,
    net::{IpAddr, SocketAddr},
    path::Path,
};

use anyhow::{Context, anyhow, bail};
use common::{
    Declared, HostName, Registry, authority::Authority, reverse::ReverseZone, zone::name_of,
};
use hickory_proto::rr::Name;

use self::{
    ask::Asker,
    delegated::Own,
    finding::{Finding, Report, Severity},
    names::Wanted,
};
use super::{
    complain_of_errors,
    delegation::{self, plain},
    open,
};
use crate::output::{Done, Output};

/// Where the system's resolvers are named.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// As much of it as is read.
const RESOLV_CONF_BYTES: u64 = 64 << 10;
/// Names listed when none of ours was meant.
const MOST_LISTED: usize = 20;

/// Looks at a zone or a name from outside; exit code 1 when there is an error.
pub(crate) fn run(
    text: &str,
    resolver: Option<SocketAddr>,
    config: &Path,
    output: &Output,
) -> anyhow::Result<Done> {
    let declared = open(config)?;
    complain_of_errors(&declared)?;
    let subject = Subject::find(declared.registry(), text)?;
    let resolver = match resolver {
        Some(resolver) => resolver,
        None => system_resolver()?,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("can't start a runtime")?;
    let report = runtime.block_on(examine(&declared, &subject, resolver));
    output.print(&report, || report.text())?;
    Ok(if report.count(Severity::Error) == 0 {
        Done::Well
    } else {
        Done::WithProblems
    })
}

/// What is looked at.
struct Subject<'r> {
    authority: &'r Authority,
    /// The zone, when it is a reverse one.
    reverse: Option<&'r ReverseZone>,
    /// A name in it or, with the site it leads to, outside.
    name: Option<(Name, Option<Name>)>,
}

impl<'r> Subject<'r> {
    /// What a text means, of what we have.
    fn find(registry: &'r Registry, text: &str) -> anyhow::Result<Self> {
        let wanted = text.trim_end_matches('.').to_ascii_lowercase();
        let address = wanted.parse::<IpAddr>().ok();
        let reverse = registry
            .reverse
            .iter()
            .find(|zone| address == Some(zone.address) || plain(&zone.authority.apex) == wanted);
        if let Some(zone) = reverse {
            return Ok(Self {
                authority: &zone.authority,
                reverse: Some(zone),
                name: None,
            });
        }
        let Ok(host) = HostName::parse(text) else {
            return Err(Self::missing(registry, text));
        };
        if let Some(zone) = registry.zone(host.as_str()) {
            return Ok(Self {
                authority: &zone.authority,
                reverse: None,
                name: None,
            });
        }
        if let Some(route) = registry.route(host.as_str()) {
            let site = name_of(&route.zone.origin.child(&route.site.name));
            return Ok(Self {
                authority: &route.zone.authority,
                reverse: None,
                name: Some((name_of(&host), route.foreign.then_some(site))),
            });
        }
        let mut labelled = registry
            .zones
            .iter()
            .filter(|zone| zone.site(host.as_str()).is_some());
        match (labelled.next(), labelled.next()) {
            (Some(zone), None) => Ok(Self {
                authority: &zone.authority,
                reverse: None,
                name: Some((name_of(&host).append_domain(&name_of(&zone.origin))?, None)),
            }),
            (Some(first), Some(second)) => bail!(
                "{host} is a name in several zones: write {host}.{} or {host}.{}",
                first.origin,
                second.origin
            ),
            (None, _) => Err(Self::missing(registry, text)),
        }
    }

    fn missing(registry: &Registry, text: &str) -> anyhow::Error {
        let zones: Vec<String> = registry
            .served
            .iter()
            .take(MOST_LISTED)
            .map(|zone| plain(&zone.authority.apex))
            .collect();
        if zones.is_empty() {
            return anyhow!("there is no zone yet: write one into the folder of [paths] zones");
        }
        let sites = registry.zones.iter().flat_map(|zone| {
            zone.sites
                .iter()
                .map(|site| zone.origin.child(&site.name).to_string())
        });
        let mut sites: Vec<String> = sites.take(MOST_LISTED).collect();
        match registry.site_count().saturating_sub(sites.len()) {
            0 => {}
            more => sites.push(format!("{more} more (`nuage site list`)")),
        }
        let sites = if sites.is_empty() {
            "no sites yet".to_owned()
        } else {
            format!("the sites {}", sites.join(", "))
        };
        anyhow!(
            "{text} is no zone, site, alias or domain of ours; there are the zones {}, and {sites}",
            zones.join(", ")
        )
    }
}

/// The first name server of the system's configuration.
fn system_resolver() -> anyhow::Result<SocketAddr> {
    const CURE: &str = "name a resolver with --resolver ADDR";
    let mut text = String::new();
    File::open(RESOLV_CONF)
        .and_then(|file| file.take(RESOLV_CONF_BYTES).read_to_string(&mut text))
        .with_context(|| format!("can't read {RESOLV_CONF}: {CURE}"))?;
    first_nameserver(&text)
        .map(|address| SocketAddr::new(address, 53))
        .ok_or_else(|| anyhow!("{RESOLV_CONF} names no nameserver by a plain address: {CURE}"))
}

fn first_nameserver(text: &str) -> Option<IpAddr> {
    text.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        if words.next()? == "nameserver" {
            words.next()?.parse().ok()
        } else {
            None
        }
    })
}

async fn examine(declared: &Declared, subject: &Subject<'_>, resolver: SocketAddr) -> Report {
    let registry = declared.registry();
    let asker = Asker::new(resolver);
    let origin = Name::from(&subject.authority.apex);
    let mut findings = Vec::new();
    let mut servers: Vec<Name> = delegation::servers(subject.authority)
        .iter()
        .map(Name::to_lowercase)
        .collect();

    let mut usable = true;
    match parent::find(&asker, &origin).await {
        Ok(parent) => {
            let own = Own {
                origin: &origin,
                delegation: &delegation::delegation(subject.authority),
                lines: &delegation::lines(subject.authority),
                ds: &ds::own(declared, &origin),
            };
            let seen = parent::look(&asker, &parent, &own).await;
            findings.extend(seen.findings);
            for name in seen.names {
                if !servers.contains(&name) {
                    servers.push(name);
                }
            }
        }
        Err(finding) => {
            usable = finding.subject != "resolver";
            findings.push(finding);
        }
    }

    let at_servers = servers::look(&asker, registry, &origin, &servers, usable);
    let at_resolver = async {
        if usable {
            through_the_resolver(&asker, registry, subject).await
        } else {
            Vec::new()
        }
    };
    let (at_servers, at_resolver) = tokio::join!(at_servers, at_resolver);
    findings.extend(at_servers);
    findings.extend(at_resolver);
    Report {
        zone: plain(&origin),
        name: subject.name.as_ref().map(|(name, _)| plain(name)),
        resolver: asker.resolver(),
        findings,
    }
}

async fn through_the_resolver(
    asker: &Asker,
    registry: &Registry,
    subject: &Subject<'_>,
) -> Vec<Finding> {
    let name = subject.name.as_ref();
    let forward = async {
        match name {
            Some((name, site)) => {
                let wanted = Wanted {
                    name,
                    site: site.as_ref(),
                };
                names::look(asker, &registry.addresses, wanted).await
            }
            None => Vec::new(),
        }
    };
    // To a forward zone a missing reverse is a blemish, to the reverse zone it is the fault itself.
    let (zones, severity): (Vec<&ReverseZone>, _) = match subject.reverse {
        Some(zone) => (vec![zone], Severity::Error),
        None => {
            let all = registry.reverse.iter();
            (all.map(|zone| &**zone).collect(), Severity::Warning)
        }
    };
    let (mut findings, back) = tokio::join!(
        forward,
        names::look_back(asker, &zones, name.map(|(name, _)| name), severity)
    );
    findings.extend(back);
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_first_resolver_is_taken() {
        let text =
            "# nameserver 192.0.2.1\nsearch example\nnameserver fe80::1%eth0\nnameserver 9.9.9.9\n";
        assert_eq!(first_nameserver(text), Some(IpAddr::from([9, 9, 9, 9])));
        assert_eq!(first_nameserver("nameserver\n\n"), None);
    }
}
