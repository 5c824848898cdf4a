//! What visitors get: the addresses of a name, and the names of our addresses.

use std::{collections::BTreeSet, net::IpAddr};

use common::{config::Addresses, reverse::ReverseZone};
use futures_util::future::join_all;
use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{Name, RData, RecordType},
};

use super::{
    ask::{self, Asker, Silence, code},
    finding::{Finding, Severity},
};
use crate::commands::delegation::plain;

/// The cure where a resolver is silent that answered other questions before.
const STUCK: &str = "it answered before, so it is waiting for servers that don't answer it: put right what is found above, and ask again";

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted<'w> {
    pub(super) name: &'w Name,
    /// The site's name in our zone, where `name` is a foreign domain of it.
    pub(super) site: Option<&'w Name>,
}

/// Looks a name up as a visitor would.
pub(super) async fn look(asker: &Asker, ours: &Addresses, wanted: Wanted<'_>) -> Vec<Finding> {
    let one = |kind: RecordType, ours: Option<IpAddr>| async move {
        let answer = asker.resolve(wanted.name, kind).await;
        // An answer that is there but refused for its signatures is another fault than a dead server.
        let bogus = matches!(&answer, Ok(message) if message.metadata.response_code == ResponseCode::ServFail)
            && matches!(asker.find(wanted.name, kind).await, Ok(message) if ask::negative_or_good(&message));
        judge(wanted, kind, ours, answer, bogus)
    };
    let (v4, v6) = tokio::join!(
        one(RecordType::A, ours.ipv4.map(IpAddr::V4)),
        one(RecordType::AAAA, ours.ipv6.map(IpAddr::V6))
    );
    [v4, v6].into_iter().flatten().collect()
}

fn judge(
    wanted: Wanted<'_>,
    kind: RecordType,
    ours: Option<IpAddr>,
    answer: Result<Message, Silence>,
    bogus: bool,
) -> Option<Finding> {
    const SUBJECT: &str = "name";
    let name = plain(wanted.name);
    let asked = format!("{name} {kind} of the resolver");
    let message = match answer {
        Ok(message) => message,
        Err(silence) => {
            let severity = match silence {
                Silence::Late => Severity::Warning,
                _ => Severity::Error,
            };
            return Some(Finding::bad(
                severity,
                SUBJECT,
                asked,
                format!("{name} {kind} does not resolve: the resolver {silence}"),
                STUCK,
            ));
        }
    };
    let found: BTreeSet<IpAddr> = ask::addresses(&message, wanted.name).into_iter().collect();
    let end = ask::end_of_chain(&message, wanted.name);
    let by_way = if end == *wanted.name {
        String::new()
    } else {
        format!(" by way of {}", plain(&end))
    };
    let list: Vec<String> = found.iter().map(ToString::to_string).collect();
    let list = list.join(", ");
    // Who can change it: we in our zone, somebody else for a foreign domain.
    let cure = match (wanted.site, ours) {
        (Some(site), _) if found.is_empty() => format!(
            "where {name} is managed, add:\n{}\tIN\tCNAME\t{}",
            wanted.name.to_ascii(),
            site.to_ascii()
        ),
        (Some(site), Some(ours)) => format!(
            "where {name} is managed, let it lead here and nowhere else:\n{}\tIN\tCNAME\t{}\nor, where a CNAME can't be:\n{}\tIN\t{kind}\t{ours}",
            wanted.name.to_ascii(),
            site.to_ascii(),
            wanted.name.to_ascii()
        ),
        (Some(_), None) => format!("where {name} is managed, remove its {kind} records"),
        (None, _) => "put right what is found above; if there is nothing, see that the running `nuage serve` has the zone file as it is now, and wait for the resolver's older answer to end".to_owned(),
    };
    if !ask::negative_or_good(&message) {
        let code = code(message.metadata.response_code);
        return Some(if bogus {
            Finding::error(
                SUBJECT,
                asked,
                format!(
                    "{name} {kind} does not resolve: {code}, for its signatures are not valid (it is there when they are not checked)"
                ),
                "put right what is found of DS above",
            )
        } else {
            Finding::error(
                SUBJECT,
                asked,
                format!("{name} {kind} does not resolve: {code}"),
                cure,
            )
        });
    }
    let right = ours.map(|address| BTreeSet::from([address]));
    match right {
        None if found.is_empty() => None,
        Some(right) if found == right => Some(Finding::ok(
            SUBJECT,
            asked,
            format!("{name} is at {list}{by_way}"),
        )),
        // Nobody is led astray by an address that a foreign domain does not have.
        Some(right) if found.is_empty() => {
            let foreign_v6 = wanted.site.is_some() && kind == RecordType::AAAA;
            let severity = if foreign_v6 {
                Severity::Warning
            } else {
                Severity::Error
            };
            let ours: Vec<String> = right.iter().map(ToString::to_string).collect();
            let code = code(message.metadata.response_code);
            Some(Finding::bad(
                severity,
                SUBJECT,
                asked,
                format!(
                    "{name} has no {kind} record ({code}){by_way}; it should be {}",
                    ours.join(", ")
                ),
                cure,
            ))
        }
        right => {
            let should = right.into_iter().flatten().next();
            let should = should.map_or("none".to_owned(), |address| address.to_string());
            let ttl = ask::data(&message, wanted.name).map(|(_, ttl)| ttl).max();
            Some(Finding::error(
                SUBJECT,
                asked,
                format!(
                    "{name} is at {list}{by_way}; it should be {should} (the resolver keeps this for {} more seconds)",
                    ttl.unwrap_or_default()
                ),
                cure,
            ))
        }
    }
}

/// Looks up the names of addresses, those of `zones`. `severity` is how much a missing name matters.
pub(super) async fn look_back(
    asker: &Asker,
    zones: &[&ReverseZone],
    name: Option<&Name>,
    severity: Severity,
) -> Vec<Finding> {
    let asked = zones.iter().map(|zone| async move {
        let address = Name::from(zone.address);
        let answer = asker.resolve(&address, RecordType::PTR).await;
        judge_back(zone, &address, name, answer, severity)
    });
    join_all(asked).await
}

fn judge_back(
    zone: &ReverseZone,
    address: &Name,
    name: Option<&Name>,
    answer: Result<Message, Silence>,
    severity: Severity,
) -> Finding {
    const SUBJECT: &str = "reverse";
    let (at, origin) = (zone.address, plain(&zone.authority.apex));
    let asked = format!("{} PTR of the resolver", plain(address));
    let bad = |found: String, cure: String| Finding::bad(severity, SUBJECT, &*asked, found, cure);
    // One name of the zone holds them, the server's own first.
    let records = zone.authority.nodes().flat_map(|(_, node)| &node.records);
    let served: Vec<(&Name, &Name)> = records
        .filter_map(|record| match &record.data {
            RData::PTR(target) => Some((&record.name, &target.0)),
            _ => None,
        })
        .collect();
    let Some(&(owner, own)) = served.first() else {
        return bad(
            format!("no name is declared for {at}"),
            "set [reverse] names in nuage.toml".to_owned(),
        );
    };
    let message = match answer {
        Ok(message) => message,
        Err(silence) => {
            return bad(
                format!("{at} has no name: the resolver {silence}"),
                STUCK.to_owned(),
            );
        }
    };
    let found: BTreeSet<Name> = ask::data(&message, address)
        .filter_map(|(data, _)| match data {
            RData::PTR(target) => Some(target.0.to_lowercase()),
            _ => None,
        })
        .collect();
    // The address's own name must lead into a zone that does not hold it (RFC 2317 §4).
    let alias = if owner == address {
        String::new()
    } else {
        format!(
            ". The zone of the address must hold:\n{}\tIN\tCNAME\t{}",
            address.to_ascii(),
            owner.to_ascii()
        )
    };
    let cure = format!("`nuage doctor {origin}` says why{alias}");
    // Of a large set, what has room.
    let count = found.len();
    let some = |names: &BTreeSet<Name>| {
        let more = if count > 3 { ", …" } else { "" };
        let names: Vec<String> = names.iter().take(3).map(plain).collect();
        names.join(", ") + more
    };
    if found.is_empty() {
        return bad(
            format!(
                "{at} has no name ({})",
                code(message.metadata.response_code)
            ),
            cure,
        );
    }
    let expected = name.filter(|name| served.iter().any(|(_, target)| target == name));
    match expected {
        Some(name) if found.contains(name) => Finding::ok(
            SUBJECT,
            asked.clone(),
            format!("{at} leads back to {}", plain(name)),
        ),
        Some(name) if found.contains(own) => Finding::warning(
            SUBJECT,
            asked.clone(),
            format!(
                "{at} leads back to {}, not yet to {}",
                some(&found),
                plain(name)
            ),
            "if the name is new, wait for the resolver's older answer to end; else see that secondaries of the reverse zone follow",
        ),
        _ if found.contains(own) => Finding::ok(
            SUBJECT,
            asked.clone(),
            format!("{at} leads back to {}, this server's own name", plain(own)),
        ),
        _ => bad(
            format!("{at} leads to {}, which is none of our names", some(&found)),
            format!(
                "whoever has the zone of that address answers instead of us: have {origin} delegated; {cure}"
            ),
        ),
    }
}
