//! The reverse zones of the two addresses and the names that answer in them.
//!
//! By default a zone's origin is the address's full reverse name, the smallest thing a campus can
//! delegate. A wider origin holds that name below its apex; any other origin is taken as a classless
//! delegation, whose owner is the address's last part under it (RFC 2317 §4).

use std::{net::IpAddr, sync::Arc};

use hickory_proto::rr::{Name, RData, Record, RecordType, rdata::PTR};

use crate::{
    authority::Authority,
    config::{Addresses, PtrNames, Reverse},
    wire::Writer,
};

/// What a message takes (RFC 1035 §4.2.2), but for an OPT record and the signature of the set.
const MESSAGE_OCTETS: usize = 65_535 - OPT_OCTETS - SIGNATURE_OCTETS;
const OPT_OCTETS: usize = 11;
/// Owner pointer, front of the record, the longest reverse origin as signer, a P-256 signature.
const SIGNATURE_OCTETS: usize = 2 + 28 + 74 + 64;
/// More names than any message holds: a record takes at least 15 octets.
pub(crate) const MOST_NAMES: usize = MESSAGE_OCTETS / 15;
/// Beyond this many records BIND refuses a set unless told otherwise.
pub const BIND_RECORDS: usize = 100;

/// One reverse zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReverseZone {
    /// The address it speaks for.
    pub address: IpAddr,
    /// Its names.
    pub authority: Arc<Authority>,
    /// SHA-256 of what DNS answers, the serial left out.
    pub digest: [u8; 32],
    /// How many names answer.
    pub names: usize,
    /// How many names found no room.
    pub omitted: usize,
}

/// What the reverse zones take from the forward ones.
pub(crate) struct Sources<'a> {
    pub(crate) nameservers: &'a [Name],
    pub(crate) hostmaster: &'a Name,
    pub(crate) ttl: u32,
    /// The server's own name, then the first of the others in order, each once.
    pub(crate) names: &'a [Name],
    /// How many names there are in all.
    pub(crate) total: usize,
}

/// The addresses, each with the origin of its reverse zone and the owner of the PTR set in it.
pub(crate) fn places(
    addresses: &Addresses,
    reverse: &Reverse,
) -> impl Iterator<Item = (IpAddr, Name, Name)> {
    let ipv4 = addresses
        .ipv4
        .map(|a| (IpAddr::V4(a), reverse.ipv4_origin.as_ref()));
    let ipv6 = addresses
        .ipv6
        .map(|a| (IpAddr::V6(a), reverse.ipv6_origin.as_ref()));
    [ipv4, ipv6].into_iter().flatten().map(|(address, origin)| {
        let (apex, owner) = place(address, origin);
        (address, apex, owner)
    })
}

/// The reverse zones of both addresses.
pub(crate) fn zones(
    addresses: &Addresses,
    reverse: &Reverse,
    sources: &Sources<'_>,
) -> Vec<ReverseZone> {
    places(addresses, reverse)
        .map(|(address, apex, owner)| {
            let (chosen, omitted) = choose(reverse.names, &owner, sources.names, sources.total);
            let mut authority = Authority::new(
                apex,
                sources.ttl,
                sources.nameservers,
                sources.hostmaster.clone(),
                Vec::new(),
            );
            for name in chosen {
                authority.add(Record::from_rdata(
                    owner.clone(),
                    sources.ttl,
                    RData::PTR(PTR(name.clone())),
                ));
            }
            ReverseZone {
                address,
                digest: authority.digest(),
                authority: Arc::new(authority),
                names: chosen.len(),
                omitted,
            }
        })
        .collect()
}

/// A reverse origin. Classless ones hold characters no host name has, "/" first of all (RFC 2317 §4).
pub(crate) fn parse_origin(text: &str) -> Option<Name> {
    let text = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'/');
    let labels = || text.split('.').map(str::as_bytes);
    if !labels().all(|label| !label.is_empty() && label.iter().copied().all(plain)) {
        return None;
    }
    let mut name = Name::from_labels(labels()).ok()?;
    name.set_fqdn(true);
    Some(name)
}

/// The origin of a reverse zone and the owner of the PTR set in it.
fn place(address: IpAddr, origin: Option<&Name>) -> (Name, Name) {
    let full = Name::from(address);
    let Some(apex) = origin.cloned() else {
        return (full.clone(), full);
    };
    if apex.zone_of(&full) {
        return (apex, full);
    }
    let last = full.iter().next().unwrap_or_default();
    let owner = apex.prepend_label(last).unwrap_or_else(|_| apex.clone());
    (apex, owner)
}

/// The first names that are wanted and fit, and how many wanted ones do not.
fn choose<'n>(
    wanted: PtrNames,
    owner: &Name,
    names: &'n [Name],
    total: usize,
) -> (&'n [Name], usize) {
    let wanted = match wanted {
        PtrNames::All => total,
        PtrNames::AtMost(count) => count.min(total),
        PtrNames::Canonical => total.min(1),
    };
    // What is written here is what the answer will be.
    let mut message = Writer::new(MESSAGE_OCTETS);
    message.question(owner, u16::from(RecordType::PTR));
    let fitting = names
        .iter()
        .take(wanted)
        .take_while(|name| {
            let data = RData::PTR(PTR((*name).clone()));
            message.record(&Record::from_rdata(owner.clone(), 0, data))
        })
        .count();
    (&names[..fitting], wanted - fitting)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placed(address: &str, origin: Option<&str>) -> (String, String) {
        let (apex, owner) = place(
            address.parse().unwrap(),
            origin.and_then(parse_origin).as_ref(),
        );
        (apex.to_string(), owner.to_string())
    }

    #[test]
    fn a_zone_is_the_address_itself_a_wider_one_or_a_classless_one() {
        assert_eq!(
            placed("192.0.2.10", None),
            (
                "10.2.0.192.in-addr.arpa.".into(),
                "10.2.0.192.in-addr.arpa.".into()
            )
        );
        assert_eq!(
            placed("192.0.2.10", Some("2.0.192.in-addr.arpa")),
            (
                "2.0.192.in-addr.arpa.".into(),
                "10.2.0.192.in-addr.arpa.".into()
            )
        );
        assert_eq!(
            placed("192.0.2.10", Some("0/25.2.0.192.in-addr.arpa")),
            (
                "0\\/25.2.0.192.in-addr.arpa.".into(),
                "10.0\\/25.2.0.192.in-addr.arpa.".into()
            )
        );
        let (apex, _) = placed("2001:db8::10", None);
        assert!(
            apex.starts_with("0.1.0.0.") && apex.ends_with("8.b.d.0.1.0.0.2.ip6.arpa."),
            "{apex}"
        );
    }

    #[test]
    fn names_that_do_not_fit_are_left_out_and_counted() {
        let names: Vec<Name> = (0..3_000)
            .map(|i| Name::from_ascii(format!("site-{i:05}.web.example.")).unwrap())
            .collect();
        let (_, owner) = place("192.0.2.10".parse().unwrap(), None);
        let (chosen, omitted) = choose(PtrNames::All, &owner, &names, 3_000);
        assert_eq!(chosen.len() + omitted, 3_000);
        assert_eq!(chosen.len(), 2_612, "a record each of 25 octets");
        assert_eq!(
            choose(PtrNames::AtMost(5), &owner, &names, 3_000).0.len(),
            5
        );
        assert_eq!(
            choose(PtrNames::Canonical, &owner, &names, 3_000).0,
            &names[..1]
        );
        assert_eq!(choose(PtrNames::Canonical, &owner, &[], 0).0.len(), 0);
    }
}
