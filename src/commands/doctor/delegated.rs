//! What a parent says of a zone, and what is wrong with it: pure functions of its servers' answers.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{Name, RData, Record, RecordType},
};

use super::{
    ask::{self, Server, Silence, code},
    ds::{self, Ds},
    finding::Finding,
};
use crate::commands::delegation::plain;

const SUBJECT: &str = "parent";

/// The zone above a zone, with its servers.
#[derive(Debug)]
pub(super) struct Parent {
    pub(super) zone: Name,
    pub(super) servers: Vec<Server>,
}

/// What our side calls for.
pub(super) struct Own<'o> {
    /// The zone.
    pub(super) origin: &'o Name,
    /// NS and glue, as `zone show` prints them.
    pub(super) delegation: &'o [Record],
    /// The same as lines.
    pub(super) lines: &'o [String],
    /// Whether it is signed, and DS of its keys.
    pub(super) ds: &'o ds::Own,
}

/// What one server of the parent says of a zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum View {
    Delegates(Delegation),
    /// There is no such delegation.
    Nothing(ResponseCode),
    /// The zone lies below another one, of which the resolver found nothing.
    Below(Name),
    /// It doesn't serve the parent.
    Lame(String),
    Silent(Silence),
}

/// A referral, or an answer where one server holds both zones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Delegation {
    pub(super) names: BTreeSet<Name>,
    /// Addresses of servers inside the zone.
    glue: BTreeMap<Name, BTreeSet<IpAddr>>,
    /// Whether the server answers for the zone itself: nobody needs its glue.
    itself: bool,
}

pub(super) fn read(parent: &Name, origin: &Name, message: &Message) -> View {
    let head = &message.metadata;
    let answered = names(&message.answers, origin);
    let referred = names(&message.authorities, origin);
    let elsewhere = message
        .authorities
        .iter()
        .find(|record| record.record_type() == RecordType::NS)
        .map(|record| record.name.to_lowercase());
    match head.response_code {
        ResponseCode::NoError if !answered.is_empty() => View::Delegates(Delegation::of(
            origin,
            answered,
            message,
            head.authoritative,
        )),
        ResponseCode::NoError if !referred.is_empty() => {
            View::Delegates(Delegation::of(origin, referred, message, false))
        }
        ResponseCode::NoError | ResponseCode::NXDomain if head.authoritative => {
            View::Nothing(head.response_code)
        }
        ResponseCode::NoError => match elsewhere {
            Some(zone) if zone != *parent && parent.zone_of(&zone) && zone.zone_of(origin) => {
                View::Below(zone)
            }
            _ => View::Lame("answers without authority".to_owned()),
        },
        other => View::Lame(format!("answers {}", code(other))),
    }
}

/// The targets of a zone's NS records.
pub(super) fn names(records: &[Record], zone: &Name) -> Vec<Name> {
    records
        .iter()
        .filter(|record| record.name == *zone)
        .filter_map(|record| match &record.data {
            RData::NS(server) => Some(server.0.to_lowercase()),
            _ => None,
        })
        .collect()
}

fn glue<'r>(
    origin: &Name,
    records: impl Iterator<Item = &'r Record>,
) -> BTreeMap<Name, BTreeSet<IpAddr>> {
    let mut glue: BTreeMap<Name, BTreeSet<IpAddr>> = BTreeMap::new();
    for record in records.filter(|record| origin.zone_of(&record.name)) {
        if let Some(address) = record.data.ip_addr() {
            let name = record.name.to_lowercase();
            glue.entry(name).or_default().insert(address);
        }
    }
    glue
}

impl Delegation {
    fn of(origin: &Name, names: Vec<Name>, message: &Message, itself: bool) -> Self {
        Self {
            names: names.into_iter().collect(),
            glue: glue(origin, message.additionals.iter()),
            itself,
        }
    }
}

fn list<T: ToString>(all: impl IntoIterator<Item = T>) -> String {
    let all: Vec<String> = all.into_iter().map(|each| each.to_string()).collect();
    all.join(", ")
}

pub(super) fn judge(parent: &Parent, own: &Own<'_>, said: &[(Server, View)]) -> Vec<Finding> {
    let (above, origin) = (plain(&parent.zone), plain(own.origin));
    let asked =
        |servers: &[&Server]| format!("{origin} NS of {}, without recursion", list(servers));
    let exact = format!(
        "the zone {above} must hold exactly these for {origin}:\n{}",
        own.lines.join("\n")
    );
    let mut findings = Vec::new();

    // Each distinct thing said, with who said it.
    let mut views: Vec<(&View, Vec<&Server>)> = Vec::new();
    for (server, view) in said {
        match views.iter_mut().find(|(other, _)| *other == view) {
            Some((_, servers)) => servers.push(server),
            None => views.push((view, vec![server])),
        }
    }
    // What each says of the delegation itself; one that serves both zones need not send glue.
    let mut kinds: Vec<Option<&BTreeSet<Name>>> = views
        .iter()
        .filter_map(|(view, _)| match view {
            View::Delegates(delegation) => Some(Some(&delegation.names)),
            View::Nothing(_) | View::Below(_) => Some(None),
            View::Lame(_) | View::Silent(_) => None,
        })
        .collect();
    kinds.sort_unstable();
    kinds.dedup();
    if kinds.is_empty() {
        findings.push(Finding::error(
            SUBJECT,
            asked(&said.iter().map(|(server, _)| server).collect::<Vec<_>>()),
            format!("no server of the zone above, {above}, says anything of {origin}"),
            format!(
                "tell the operator of {above}, unless this machine can't reach port 53 of others"
            ),
        ));
    }
    if kinds.len() > 1 {
        findings.push(Finding::warning(
            SUBJECT,
            asked(&said.iter().map(|(server, _)| server).collect::<Vec<_>>()),
            format!(
                "the servers of {above} disagree about {origin}: what a resolver finds is chance"
            ),
            format!(
                "after a change of {above}, wait for its servers to follow; else tell its operator"
            ),
        ));
    }
    for (view, servers) in views {
        let asked = asked(&servers);
        match view {
            View::Delegates(delegation) => {
                findings.extend(judge_delegation(parent, own, &asked, delegation, &exact));
            }
            View::Nothing(code) => findings.push(Finding::error(
                SUBJECT,
                asked,
                format!(
                    "{above} does not delegate {origin} ({}): nobody finds the zone",
                    ask::code(*code)
                ),
                exact.clone(),
            )),
            View::Below(zone) => findings.push(Finding::error(
                SUBJECT,
                asked,
                format!(
                    "{origin} lies inside {0}, whose servers the resolver can't use: nothing below {0} resolves",
                    plain(zone)
                ),
                format!(
                    "put {} right first: its own name servers don't answer",
                    plain(zone)
                ),
            )),
            View::Lame(why) => findings.push(Finding::warning(
                SUBJECT,
                asked,
                format!("{}, a server of {above}, {why}", list(servers)),
                format!("tell the operator of {above}"),
            )),
            View::Silent(silence) => {
                let cure = match silence {
                    Silence::NoRoute => "none is needed if this machine has no such network; others may see more".to_owned(),
                    _ => format!("tell the operator of {above}, unless a firewall here is in the way"),
                };
                findings.push(Finding::warning(
                    SUBJECT,
                    asked,
                    format!("{}, a server of {above}, {silence}", list(servers)),
                    cure,
                ));
            }
        }
    }
    findings
}

fn judge_delegation(
    parent: &Parent,
    own: &Own<'_>,
    asked: &str,
    delegation: &Delegation,
    exact: &str,
) -> Vec<Finding> {
    let (above, origin) = (plain(&parent.zone), plain(own.origin));
    let wanted: BTreeSet<Name> = names(own.delegation, own.origin).into_iter().collect();
    let spell = |names: &BTreeSet<&Name>| list(names.iter().map(|name| plain(name)));
    let strange: BTreeSet<&Name> = delegation.names.difference(&wanted).collect();
    let missing: BTreeSet<&Name> = wanted.difference(&delegation.names).collect();
    let mut findings = Vec::new();
    if !strange.is_empty() {
        let lacks = if missing.is_empty() {
            String::new()
        } else {
            format!(", and not to {}", spell(&missing))
        };
        findings.push(Finding::error(
            SUBJECT,
            asked,
            format!(
                "{above} delegates {origin} to {}, which `nameservers` of the zone doesn't name{lacks}",
                spell(&strange)
            ),
            exact,
        ));
    } else if !missing.is_empty() {
        findings.push(Finding::warning(
            SUBJECT,
            asked,
            format!(
                "{above} does not name {}: resolvers start without it",
                spell(&missing)
            ),
            exact,
        ));
    } else if delegation.itself {
        findings.push(Finding::ok(
            SUBJECT,
            asked,
            format!(
                "the servers of {above} are those of {origin} too: {}",
                list(delegation.names.iter().map(plain))
            ),
        ));
    } else {
        findings.push(Finding::ok(
            SUBJECT,
            asked,
            format!(
                "{above} delegates to {}",
                list(delegation.names.iter().map(plain))
            ),
        ));
    }
    findings.extend(judge_glue(parent, own, asked, delegation, exact));
    findings
}

/// The addresses at the parent of the servers inside the zone (RFC 9471 §2).
fn judge_glue(
    parent: &Parent,
    own: &Own<'_>,
    asked: &str,
    delegation: &Delegation,
    exact: &str,
) -> Vec<Finding> {
    const SUBJECT: &str = "glue";
    let above = plain(&parent.zone);
    let wanted = glue(own.origin, own.delegation.iter());
    let none = BTreeSet::new();
    let mut findings = Vec::new();
    // A server inside the zone that our file does not name has been told already.
    for (server, addresses) in &wanted {
        if !delegation.names.contains(server) {
            continue;
        }
        let held = delegation.glue.get(server).unwrap_or(&none);
        let name = plain(server);
        let wrong: Vec<&IpAddr> = held.difference(addresses).collect();
        let missing: Vec<&IpAddr> = addresses.difference(held).collect();
        if held.is_empty() {
            if !delegation.itself {
                findings.push(Finding::error(
                    SUBJECT,
                    asked,
                    format!("{above} holds no address of {name}: to find it, one must have found it already"),
                    exact,
                ));
            }
        } else if !wrong.is_empty() {
            findings.push(Finding::error(
                SUBJECT,
                asked,
                format!(
                    "{above} holds the address {} for {name}, which the zone says is at {}",
                    list(wrong),
                    list(addresses)
                ),
                exact,
            ));
        } else if !missing.is_empty() {
            findings.push(Finding::warning(
                SUBJECT,
                asked,
                format!("{above} lacks the address {} of {name}", list(missing)),
                exact,
            ));
        } else {
            findings.push(Finding::ok(
                SUBJECT,
                asked,
                format!("{name} is at {}", list(held)),
            ));
        }
    }
    findings
}

pub(super) fn judge_ds(parent: &Parent, own: &Own<'_>, held: &[(Server, Vec<Ds>)]) -> Vec<Finding> {
    let asked = |servers: &[&Server]| {
        format!(
            "{} DS of {}, without recursion",
            plain(own.origin),
            list(servers)
        )
    };
    let mut sets: Vec<(&Vec<Ds>, Vec<&Server>)> = Vec::new();
    for (server, set) in held {
        match sets.iter_mut().find(|(other, _)| *other == set) {
            Some((_, servers)) => servers.push(server),
            None => sets.push((set, vec![server])),
        }
    }
    let mut findings: Vec<Finding> = sets
        .iter()
        .map(|(set, servers)| ds::judge(own.origin, &parent.zone, &asked(servers), set, own.ds))
        .collect();
    if sets.len() > 1 {
        let all: Vec<&Server> = held.iter().map(|(server, _)| server).collect();
        findings.push(Finding::warning(
            "DS",
            asked(&all),
            format!("the servers of {} disagree about it", plain(&parent.zone)),
            "after a change, wait for its servers to follow; else tell its operator",
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use hickory_proto::{
        op::OpCode,
        rr::rdata::{A, AAAA, NS, SOA},
    };

    use super::*;
    use crate::commands::doctor::finding::Severity;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn ns(owner: &str, server: &str) -> Record {
        Record::from_rdata(name(owner), 300, RData::NS(NS(name(server))))
    }

    fn at(owner: &str, address: &str) -> Record {
        let data = match address.parse().unwrap() {
            IpAddr::V4(address) => RData::A(A(address)),
            IpAddr::V6(address) => RData::AAAA(AAAA(address)),
        };
        Record::from_rdata(name(owner), 300, data)
    }

    fn referral(authorities: &[Record], additionals: &[Record]) -> Message {
        let mut message = Message::response(1, OpCode::Query);
        message.add_authorities(authorities.iter().cloned());
        message.add_additionals(additionals.iter().cloned());
        message
    }

    /// Severities and subjects found when the parent's servers say these.
    fn judged(messages: &[Message]) -> Vec<(Severity, &'static str)> {
        let origin = name("w.example.");
        let delegation = [
            ns("w.example.", "ns1.w.example."),
            ns("w.example.", "ns.other.example."),
            at("ns1.w.example.", "192.0.2.10"),
            at("ns1.w.example.", "2001:db8::10"),
        ];
        let own = Own {
            origin: &origin,
            delegation: &delegation,
            lines: &["LINES".to_owned()],
            ds: &ds::Own::Unsigned(Vec::new()),
        };
        let parent = Parent {
            zone: name("example."),
            servers: Vec::new(),
        };
        let said: Vec<(Server, View)> = messages
            .iter()
            .zip(1..)
            .map(|(message, last)| {
                let server = Server {
                    name: name("a.example."),
                    address: IpAddr::from([192, 0, 2, last]),
                };
                (server, read(&parent.zone, &origin, message))
            })
            .collect();
        let findings = judge(&parent, &own, &said);
        let bad = findings.iter().filter(|f| f.severity != Severity::Ok);
        for finding in bad {
            assert!(finding.cure.is_some(), "{finding:?}");
        }
        findings.iter().map(|f| (f.severity, f.subject)).collect()
    }

    #[test]
    fn a_delegation_is_judged_by_names_and_glue() {
        use Severity::{Error, Ok, Warning};
        let both = [
            ns("w.example.", "NS1.w.example."),
            ns("W.example.", "ns.other.example."),
        ];
        let glue = [
            at("ns1.w.example.", "192.0.2.10"),
            at("ns1.w.example.", "2001:db8::10"),
        ];
        let good = referral(&both, &glue);
        assert_eq!(
            judged(std::slice::from_ref(&good)),
            [(Ok, "parent"), (Ok, "glue")]
        );
        for (message, want) in [
            (referral(&both, &[]), [(Ok, "parent"), (Error, "glue")]),
            (
                referral(&both, &glue[..1]),
                [(Ok, "parent"), (Warning, "glue")],
            ),
            (
                referral(&both, &[at("ns1.w.example.", "192.0.2.99")]),
                [(Ok, "parent"), (Error, "glue")],
            ),
            (
                referral(&both[..1], &glue),
                [(Warning, "parent"), (Ok, "glue")],
            ),
        ] {
            assert_eq!(judged(&[message]), want);
        }
        let wrong = referral(&[ns("w.example.", "ns9.w.example.")], &glue);
        assert_eq!(judged(std::slice::from_ref(&wrong)), [(Error, "parent")]);
        assert_eq!(
            judged(&[good.clone(), wrong]),
            [
                (Warning, "parent"),
                (Ok, "parent"),
                (Ok, "glue"),
                (Error, "parent")
            ]
        );
        assert_eq!(
            judged(&[good.clone(), good]),
            [(Ok, "parent"), (Ok, "glue")]
        );
    }

    #[test]
    fn what_is_no_delegation_is_told_apart() {
        use Severity::{Error, Ok, Warning};
        let soa = SOA::new(name("a.example."), name("h.example."), 1, 1, 1, 1, 1);
        let mut nothing = referral(
            &[Record::from_rdata(name("example."), 1, RData::SOA(soa))],
            &[],
        );
        nothing.metadata.authoritative = true;
        nothing.metadata.response_code = ResponseCode::NXDomain;
        assert_eq!(judged(&[nothing]), [(Error, "parent")]);

        // Up and away: a server that knows only the root.
        let upward = referral(&[ns(".", "a.root.example.")], &[]);
        assert_eq!(judged(&[upward]), [(Error, "parent"), (Warning, "parent")]);

        let mut refused = referral(&[], &[]);
        refused.metadata.response_code = ResponseCode::Refused;
        assert_eq!(judged(&[refused]), [(Error, "parent"), (Warning, "parent")]);

        // One server for both zones answers for the child, with or without glue.
        let mut itself = Message::response(1, OpCode::Query);
        itself.metadata.authoritative = true;
        itself.add_answer(ns("w.example.", "ns1.w.example."));
        itself.add_answer(ns("w.example.", "ns.other.example."));
        assert_eq!(judged(std::slice::from_ref(&itself)), [(Ok, "parent")]);
        // That is no disagreement with one that refers.
        let refers = referral(
            &itself.answers,
            &[
                at("ns1.w.example.", "192.0.2.10"),
                at("ns1.w.example.", "2001:db8::10"),
            ],
        );
        assert_eq!(
            judged(&[itself, refers]),
            [(Ok, "parent"), (Ok, "parent"), (Ok, "glue")]
        );
    }
}
