//! The parent of a zone: finding it, and asking its servers for ours.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use hickory_proto::{
    op::ResponseCode,
    rr::{Name, RecordType},
};

use super::{
    ask::{self, Asker, MOST_SERVERS, Server, Silence, code},
    delegated::{Own, Parent, View, judge, judge_ds, names, read},
    ds::Ds,
    finding::Finding,
};
use crate::commands::delegation::plain;

const SUBJECT: &str = "parent";

/// What is to be known of a delegation.
pub(super) struct Seen {
    pub(super) findings: Vec<Finding>,
    /// The servers the parent names.
    pub(super) names: Vec<Name>,
}

/// Finds the closest enclosing zone through the resolver, and its servers.
pub(super) async fn find(asker: &Asker, origin: &Name) -> Result<Parent, Finding> {
    let zone = enclosing(asker, origin).await?;
    let asked = format!("{} NS of the resolver", plain(&zone));
    let names = match asker.find(&zone, RecordType::NS).await {
        Ok(message) => names(&message.answers, &zone),
        Err(silence) => return Err(deaf(asker, &asked, &silence)),
    };
    let found = join_all(
        names
            .iter()
            .take(MOST_SERVERS)
            .map(|name| asker.addresses(name)),
    )
    .await;
    let servers: Vec<Server> = names
        .iter()
        .zip(found)
        .flat_map(|(name, addresses)| {
            let name = name.clone();
            let addresses = addresses.unwrap_or_default().into_iter();
            addresses.map(move |address| Server {
                name: name.clone(),
                address,
            })
        })
        .collect();
    if servers.is_empty() {
        return Err(Finding::error(
            SUBJECT,
            asked,
            format!(
                "the zone above, {}, has no name server that can be found",
                plain(&zone)
            ),
            "nothing below it resolves until that is put right: tell its operator, or ask another resolver with --resolver",
        ));
    }
    Ok(Parent { zone, servers })
}

/// The name of the zone an origin is delegated from.
async fn enclosing(asker: &Asker, origin: &Name) -> Result<Name, Finding> {
    let mut above = origin.base_name();
    let mut trouble = None;
    loop {
        let asked = format!("{} SOA of the resolver", plain(&above));
        match asker.find(&above, RecordType::SOA).await {
            Err(silence) => return Err(deaf(asker, &asked, &silence)),
            Ok(message) if message.metadata.response_code == ResponseCode::Refused => {
                return Err(Finding::error(
                    "resolver",
                    asked,
                    format!("{} refuses to resolve for us", asker.resolver()),
                    "let this machine use it, or name another with --resolver ADDR; a server that answers only for its own zones, as nuage does, is no resolver",
                ));
            }
            Ok(message) if ask::negative_or_good(&message) => {
                // The SOA of a negative answer tells the zone as well (RFC 2308 §3).
                let soa = message.answers.iter().chain(&message.authorities);
                let zone = soa
                    .filter(|record| record.record_type() == RecordType::SOA)
                    .map(|record| &record.name)
                    .find(|zone| zone.zone_of(&above));
                if let Some(zone) = zone {
                    return Ok(zone.to_lowercase());
                }
            }
            Ok(message) => {
                trouble = trouble.or(Some((asked, code(message.metadata.response_code))));
            }
        }
        if above.is_root() {
            break;
        }
        above = above.base_name();
    }
    let (asked, found) = trouble.unwrap_or_else(|| {
        let asked = "SOA of each name above, of the resolver".to_owned();
        (asked, "no SOA anywhere".to_owned())
    });
    Err(Finding::error(
        "resolver",
        asked,
        format!("the zone above can't be found: {found}"),
        "see whether this resolver resolves anything at all, or name another with --resolver ADDR",
    ))
}

fn deaf(asker: &Asker, asked: &str, silence: &Silence) -> Finding {
    Finding::error(
        "resolver",
        asked,
        format!("{} {silence}", asker.resolver()),
        "start it or open the way to it, or name another with --resolver ADDR; what needs a resolver was not looked at",
    )
}

/// Asks every server of the parent, and judges what they say.
pub(super) async fn look(asker: &Asker, parent: &Parent, own: &Own<'_>) -> Seen {
    let asked = parent.servers.iter().map(|server| async {
        let (ns, ds) = tokio::join!(
            asker.ask(server.address, own.origin, RecordType::NS),
            asker.ask(server.address, own.origin, RecordType::DS)
        );
        (server.clone(), ns, ds)
    });
    let mut said = Vec::new();
    let mut held: Vec<(Server, Vec<Ds>)> = Vec::new();
    for (server, ns, ds) in join_all(asked).await {
        let view = match ns {
            Ok(message) => read(&parent.zone, own.origin, &message),
            Err(silence) => View::Silent(silence),
        };
        // What another zone than the parent says of DS binds nobody: it must be an authoritative answer.
        if let Ok(message) = ds
            && message.metadata.authoritative
            && ask::negative_or_good(&message)
        {
            let mut set: Vec<Ds> = message
                .answers
                .iter()
                .filter(|record| record.name == *own.origin)
                .filter_map(Ds::of)
                .collect();
            set.sort_unstable();
            held.push((server.clone(), set));
        }
        said.push((server, view));
    }
    let mut findings = judge(parent, own, &said);
    // Without a delegation there is nothing a DS could speak of.
    if said
        .iter()
        .any(|(_, view)| matches!(view, View::Delegates(_)))
    {
        findings.extend(judge_ds(parent, own, &held));
    }
    let names: BTreeSet<Name> = said
        .into_iter()
        .filter_map(|(_, view)| match view {
            View::Delegates(delegation) => Some(delegation.names),
            _ => None,
        })
        .flatten()
        .collect();
    Seen {
        findings,
        names: names.into_iter().collect(),
    }
}
