//! The zone's name servers: whether each answers for it, over both transports, with the same serial.

use std::net::IpAddr;

use common::{Registry, authority::Found, config::Addresses, serial::later};
use futures_util::future::join_all;
use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{LowerName, Name, RData, RecordType},
};

use super::{
    ask::{Asker, MOST_SERVERS, Over, Server, Silence, code},
    finding::Finding,
};
use crate::commands::delegation::plain;

const SUBJECT: &str = "name server";

/// A name server and where it is.
#[derive(Clone, Debug)]
struct Located {
    name: Name,
    /// What was asked for the addresses, or where they are written.
    asked: String,
    /// Or why none are known.
    addresses: Result<Vec<IpAddr>, String>,
}

/// What a server at an address said.
#[derive(Clone, Debug)]
struct Said {
    server: Server,
    udp: Result<u32, Fault>,
    tcp: Result<u32, Fault>,
}

/// Why a server is no server of the zone.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fault {
    Silent(Silence),
    Code(ResponseCode),
    /// It answers, but not for the zone.
    NoAuthority,
}

impl Fault {
    fn text(&self) -> String {
        match self {
            Self::Silent(silence) => silence.to_string(),
            Self::Code(found) => format!("answers {}", code(*found)),
            Self::NoAuthority => "answers without authority".to_owned(),
        }
    }
}

/// Asks each of `names` (each once) for the zone's SOA, and judges the answers. Without a resolver only
/// those whose addresses our files hold are asked.
pub(super) async fn look(
    asker: &Asker,
    registry: &Registry,
    origin: &Name,
    names: &[Name],
    resolver: bool,
) -> Vec<Finding> {
    let located = join_all(
        names
            .iter()
            .take(MOST_SERVERS)
            .map(|name| locate(asker, registry, name, resolver)),
    )
    .await;
    let mut findings = Vec::new();
    let mut servers = Vec::new();
    for Located {
        name,
        asked,
        addresses,
    } in located.into_iter().flatten()
    {
        match addresses {
            Ok(addresses) if !addresses.is_empty() => {
                servers.extend(addresses.into_iter().map(|address| Server {
                    name: name.clone(),
                    address,
                }));
            }
            missing => {
                let why = missing
                    .err()
                    .unwrap_or_else(|| "no such records".to_owned());
                findings.push(Finding::error(
                    SUBJECT,
                    asked,
                    format!("{} has no address: {why}", plain(&name)),
                    format!(
                        "give the name its A and AAAA records, or take it out of `nameservers` of {} and out of the parent",
                        plain(origin)
                    ),
                ));
            }
        }
    }
    let said = join_all(servers.into_iter().map(|server| async {
        let (udp, tcp) = tokio::join!(
            asker.ask_over(Over::Udp, server.address, origin, RecordType::SOA),
            asker.ask_over(Over::Tcp, server.address, origin, RecordType::SOA)
        );
        Said {
            udp: serial(origin, udp),
            tcp: serial(origin, tcp),
            server,
        }
    }))
    .await;
    findings.extend(judge(origin, &registry.addresses, &said));
    findings
}

/// The addresses of a name server: from our own files where it is in a zone of ours. Nothing when that
/// takes a resolver and there is none.
async fn locate(
    asker: &Asker,
    registry: &Registry,
    name: &Name,
    resolver: bool,
) -> Option<Located> {
    let known = known(registry, name);
    let (asked, addresses) = if known.is_empty() {
        if !resolver {
            return None;
        }
        let asked = format!("{} A and AAAA of the resolver", plain(name));
        (asked, asker.addresses(name).await)
    } else {
        (format!("{} in the zone files", plain(name)), Ok(known))
    };
    Some(Located {
        name: name.clone(),
        asked,
        addresses,
    })
}

fn known(registry: &Registry, name: &Name) -> Vec<IpAddr> {
    let lower = LowerName::new(name);
    let found = registry
        .nearest(&lower, RecordType::A)
        .and_then(|(_, served)| served.authority.find(&lower));
    match found {
        Some(Found::Node(node)) => node
            .records
            .iter()
            .filter_map(|record| record.data.ip_addr())
            .collect(),
        Some(Found::Site(_)) => all(&registry.addresses),
        None => Vec::new(),
    }
}

/// Our addresses, IPv4 first.
pub(super) fn all(addresses: &Addresses) -> Vec<IpAddr> {
    let v4 = addresses.ipv4.map(IpAddr::V4);
    let v6 = addresses.ipv6.map(IpAddr::V6);
    v4.into_iter().chain(v6).collect()
}

fn serial(origin: &Name, answer: Result<Message, Silence>) -> Result<u32, Fault> {
    let message = answer.map_err(Fault::Silent)?;
    let soa = message
        .answers
        .iter()
        .find_map(|record| match &record.data {
            RData::SOA(soa) if record.name == *origin => Some(soa.serial),
            _ => None,
        });
    match (message.metadata.response_code, soa) {
        (ResponseCode::NoError, Some(serial)) if message.metadata.authoritative => Ok(serial),
        (ResponseCode::NoError, _) => Err(Fault::NoAuthority),
        (other, _) => Err(Fault::Code(other)),
    }
}

fn judge(origin: &Name, ours: &Addresses, said: &[Said]) -> Vec<Finding> {
    let zone = plain(origin);
    let serials = said
        .iter()
        .flat_map(|said| [&said.udp, &said.tcp])
        .filter_map(|serial| serial.as_ref().ok().copied());
    let newest = serials.reduce(|a, b| if later(b, a) { b } else { a });
    let ours = all(ours);
    let one = |said: &Said| {
        let Said { server, udp, tcp } = said;
        let asked = format!("{zone} SOA of {server} over UDP and TCP, without recursion");
        let own = ours.contains(&server.address);
        let error = |found: String, cure: String| Finding::error(SUBJECT, &*asked, found, cure);
        match (udp, tcp) {
            (Err(Fault::Silent(Silence::NoRoute)), _) => Finding::warning(
                SUBJECT,
                &*asked,
                format!("{server} {}", Silence::NoRoute),
                "none is needed if this machine has no such network: ask from one that has",
            ),
            (Err(Fault::Silent(Silence::Late)), _) | (_, Err(Fault::Silent(Silence::Late))) => {
                Finding::warning(
                    SUBJECT,
                    &*asked,
                    format!("{server} {}", Silence::Late),
                    "put right what else does not answer, and ask again",
                )
            }
            (Err(fault), Err(other)) => {
                let found = if fault == other {
                    format!("{server} {}", fault.text())
                } else {
                    format!(
                        "{server} {} over UDP and {} over TCP",
                        fault.text(),
                        other.text()
                    )
                };
                error(found, cure(fault, own, server, &zone))
            }
            (Ok(_), Err(fault)) => error(
                format!(
                    "{server} answers over UDP, but over TCP it {}",
                    fault.text()
                ),
                format!(
                    "let TCP port 53 through to {}: large answers need it, and every server must have it (RFC 7766 §5)",
                    server.address
                ),
            ),
            (Err(fault), Ok(_)) => error(
                format!(
                    "{server} answers over TCP, but over UDP it {}",
                    fault.text()
                ),
                format!(
                    "let UDP port 53 through to {}: resolvers ask there first",
                    server.address
                ),
            ),
            (Ok(serial), Ok(_)) => match newest {
                Some(newest) if later(newest, *serial) => Finding::warning(
                    SUBJECT,
                    &*asked,
                    format!("{server} is behind: it has serial {serial}, another has {newest}"),
                    if own {
                        format!(
                            "another server has a later {zone} than this one hands out: see where it takes it from"
                        )
                    } else {
                        "a secondary follows when it is notified, or within the hour: if it stays behind, its log says why it can't transfer the zone".to_owned()
                    },
                ),
                _ => Finding::ok(
                    SUBJECT,
                    &*asked,
                    format!("{server} answers with authority over UDP and TCP, serial {serial}"),
                ),
            },
        }
    };
    said.iter().map(one).collect()
}

fn cure(fault: &Fault, own: bool, server: &Server, zone: &str) -> String {
    let Server { name, address } = server;
    let name = plain(name);
    match (fault, own) {
        (Fault::Silent(_), true) => format!(
            "that is this installation: see that `nuage serve` runs, that [dns] listen covers {address} port 53, and that firewalls let UDP and TCP port 53 through"
        ),
        (_, true) => format!(
            "that is this installation, but what answers there does not serve {zone}: see which program has port 53 of {address}, and that `nuage check` finds no error"
        ),
        (Fault::Silent(_), false) => format!(
            "start the name server there or open UDP and TCP port 53 to it; if it is no more, take {name} out of `nameservers` of {zone} and out of the parent"
        ),
        (_, false) => format!(
            "make {name} a secondary of {zone}, or take it out of `nameservers` and out of the parent"
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::commands::doctor::finding::Severity;

    /// The last octet of a server's address, and what it said over UDP and TCP.
    type Voice = (u8, Result<u32, Fault>, Result<u32, Fault>);

    fn judged(said: &[Voice]) -> Vec<Finding> {
        let said: Vec<Said> = said
            .iter()
            .map(|(last, udp, tcp)| Said {
                server: Server {
                    name: Name::from_ascii(format!("ns{last}.w.example.")).unwrap(),
                    address: IpAddr::from([192, 0, 2, *last]),
                },
                udp: udp.clone(),
                tcp: tcp.clone(),
            })
            .collect();
        let ours = Addresses {
            ipv4: Some(Ipv4Addr::new(192, 0, 2, 1)),
            ipv6: None,
        };
        judge(&Name::from_ascii("w.example.").unwrap(), &ours, &said)
    }

    #[test]
    fn every_server_answers_for_the_zone_over_both() {
        let silent = Err(Fault::Silent(Silence::Refused));
        let lame = Err(Fault::NoAuthority);
        let findings = judged(&[
            (1, Ok(7), Ok(7)),
            (2, silent.clone(), silent.clone()),
            (3, Ok(7), silent.clone()),
            (4, silent, Ok(7)),
            (5, lame.clone(), lame),
            (6, Err(Fault::Silent(Silence::NoRoute)), Ok(7)),
        ]);
        let severities: Vec<Severity> = findings.iter().map(|f| f.severity).collect();
        use Severity::{Error, Ok as Good, Warning};
        assert_eq!(severities, [Good, Error, Error, Error, Error, Warning]);
        assert!(findings[2].cure.as_ref().unwrap().contains("TCP port 53"));
        assert!(findings[4].cure.as_ref().unwrap().contains("secondary"));
    }

    #[test]
    fn a_serial_behind_is_told_also_where_numbers_wrap() {
        for (first, second, behind) in [(7, 6, 1), (6, 7, 0), (3, u32::MAX, 1)] {
            let findings = judged(&[(1, Ok(first), Ok(first)), (2, Ok(second), Ok(second))]);
            assert_eq!(findings[behind].severity, Severity::Warning);
            assert_eq!(findings[1 - behind].severity, Severity::Ok);
        }
    }
}
