//! Records that follow from what the proxy offers: how sites are reached over HTTPS (RFC 9460), and which
//! authorities may certify their names (RFC 8659). A record of the zone file takes the place of ours.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use hickory_proto::rr::{
    Name, RData, Record, RecordType,
    rdata::{
        CAA, HTTPS, SVCB,
        svcb::{Alpn, IpHint, SvcParamKey, SvcParamValue},
    },
};

use super::sites;
use crate::{
    authority::Authority,
    config::Config,
    site::{HttpsPolicy, Site},
};

/// Adds them to a zone that is complete but for them. `certified` is whether it has a certificate of its
/// own, which visitors trust.
pub(super) fn add(
    authority: &mut Authority,
    sites: &[Arc<Site>],
    certified: bool,
    config: &Config,
) {
    // Browsers go to HTTPS wherever they see the record (RFC 9460 §9.5): only sites that send visitors
    // there have it, and none whose certificate makes them afraid.
    let https = https(config).filter(|_| certified);
    let upgrades = |site: Option<u32>| {
        let site = site.and_then(|site| sites.get(site as usize));
        site.is_some_and(|site| site.https_where(certified) == HttpsPolicy::Redirect)
    };

    // Sites differ in nothing but their name; one with records in the file is a name like any other.
    let own: HashMap<Vec<u8>, Name> = authority
        .nodes()
        .filter(|(name, _)| authority.site_place(name).is_some())
        .filter_map(|(name, _)| Some((name.iter().next()?.to_vec(), Name::from(name))))
        .collect();
    for (label, name) in &own {
        let declared = authority
            .node(&name.into())
            .is_some_and(|node| node.has(RecordType::HTTPS));
        let mut records: Vec<Record> = authority.addresses(name).collect();
        if let Some(data) = &https
            && !declared
            && upgrades(authority.labels().site(label))
        {
            records.push(Record::from_rdata(
                name.clone(),
                authority.ttl,
                data.clone(),
            ));
        }
        for record in records {
            authority.add(record);
        }
    }
    if !own.is_empty() {
        let rest = sites::labels(sites, |label| !own.contains_key(label));
        authority.set_labels(rest.into(), HashSet::new());
    }

    if let Some(data) = https {
        let labels = authority.shared_labels();
        let plain: HashSet<u32> = (0..)
            .take(labels.len())
            .filter(|place| !upgrades(labels.site_at(*place)))
            .collect();
        if plain.len() < labels.len() {
            authority.offer_https(data);
            authority.set_labels(labels, plain);
        }
    }

    // Certificates come from our own authority alone: no other may make one (RFC 8659 §4.2). It would
    // bind the names of other servers as well, and whose certificates they have, nobody here knows.
    let declared = authority
        .node(&authority.apex)
        .is_some_and(|apex| apex.has(RecordType::CAA));
    if !certified && !declared && !leads_elsewhere(authority) {
        let nobody = RData::CAA(CAA::new_issue(false, None, Vec::new()));
        authority.add(Record::from_rdata(
            Name::from(&authority.apex),
            authority.ttl,
            nobody,
        ));
    }
}

/// How sites are reached over HTTPS: by HTTP/2, and by HTTP/1.1, which goes without saying (RFC 9460 §9).
/// `None` while nobody listens, or on a port that is not known yet.
///
/// Where visitors use another port than 443, the record leads them there from the URL without one.
/// Clients must not use it if they don't know `port` (RFC 9460 §8, §9). A URL that names the port would be
/// asked for under a name of its own (`_8443._https.alice`, RFC 9460 §9.1): it is reached without.
fn https(config: &Config) -> Option<RData> {
    let port = config.https_port();
    if config.https.listen.is_empty() || port == 0 {
        return None;
    }
    // In the order of their keys (RFC 9460 §2.2).
    let mut parameters = vec![(
        SvcParamKey::Alpn,
        SvcParamValue::Alpn(Alpn(vec!["h2".to_owned()])),
    )];
    if port != 443 {
        parameters.push((SvcParamKey::Port, SvcParamValue::Port(port)));
    }
    let (ipv4, ipv6) = (config.addresses.ipv4, config.addresses.ipv6);
    // They spare a question or two (RFC 9460 §7.3).
    parameters.extend(ipv4.map(|address| {
        (
            SvcParamKey::Ipv4Hint,
            SvcParamValue::Ipv4Hint(IpHint(vec![address.into()])),
        )
    }));
    parameters.extend(ipv6.map(|address| {
        (
            SvcParamKey::Ipv6Hint,
            SvcParamValue::Ipv6Hint(IpHint(vec![address.into()])),
        )
    }));
    Some(RData::HTTPS(HTTPS(SVCB::new(1, Name::root(), parameters))))
}

/// Whether some name of the zone is another server's.
fn leads_elsewhere(authority: &Authority) -> bool {
    let outside = |name: &Name| !name.is_root() && !authority.apex.zone_of(&name.into());
    authority.nodes().any(|(name, node)| {
        node.records.iter().any(|record| match &record.data {
            data @ (RData::A(_) | RData::AAAA(_)) => {
                authority.all_site_data().all(|ours| ours != data)
            }
            RData::NS(_) => *name != authority.apex,
            RData::CNAME(target) => outside(&target.0),
            RData::SVCB(service) => outside(&service.target_name),
            RData::HTTPS(service) => outside(&service.0.target_name),
            _ => false,
        })
    })
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use hickory_proto::rr::LowerName;
    use tempfile::TempDir;

    use super::*;
    use crate::zone::{Zone, parse};

    const SITES: &str = "[sites.alice]\naliases = [\"al\"]\n[sites.bob]\nhttps = \"both\"\n[sites.carol]\nhttps = \"redirect\"\n";

    /// The zone w.example in a folder with a certificate, which it has when `certified`.
    fn zone(https: &str, certified: bool, body: &str) -> Zone {
        let folder = TempDir::new().unwrap();
        for name in ["chain.pem", "key.pem"] {
            fs::File::create(folder.path().join(name)).unwrap();
        }
        let config = format!(
            "[address]\nipv4 = \"192.0.2.10\"\nipv6 = \"2001:db8::10\"\n[https]\n{https}\n"
        );
        let config = Config::parse(Path::new("nuage.toml"), &config).unwrap();
        let certificate = if certified {
            "[certificate]\nchain = \"chain.pem\"\nkey = \"key.pem\"\n"
        } else {
            ""
        };
        let text = format!(
            "origin = \"w.example\"\nnameservers = [\"ns1.w.example\"]\n{certificate}{body}"
        );
        let parsed = parse(&folder.path().join("w.example.toml"), &text, &config);
        assert_eq!(parsed.problems, []);
        parsed.zone.unwrap()
    }

    /// What stands at a name, below the apex, of a type.
    fn at(zone: &Zone, label: &str, kind: RecordType) -> Vec<String> {
        let authority = &zone.authority;
        let apex = Name::from(&authority.apex);
        let name = if label == "@" {
            apex
        } else {
            Name::from_ascii(label)
                .unwrap()
                .append_domain(&apex)
                .unwrap()
        };
        let lower = LowerName::new(&name);
        let records: Vec<Record> = match authority.node(&lower) {
            Some(node) => node.records.clone(),
            None => {
                let place = authority.site_place(&lower).unwrap();
                authority.site_records(place, &name).collect()
            }
        };
        let records = records.iter().filter(|record| record.record_type() == kind);
        records.map(|record| record.data.to_string()).collect()
    }

    #[test]
    fn sites_that_send_visitors_to_https_say_so() {
        let (https, caa) = (RecordType::HTTPS, RecordType::CAA);
        let certified = zone("", true, SITES);
        let ours = ["1 . alpn=h2, ipv4hint=192.0.2.10, ipv6hint=2001:db8::10,"];
        for label in ["alice", "al", "carol"] {
            assert_eq!(at(&certified, label, https), ours, "{label}");
        }
        for label in ["bob", "ns1", "@"] {
            assert_eq!(at(&certified, label, https), [""; 0], "{label}");
        }
        assert_eq!(at(&certified, "@", caa), [""; 0]);

        // Nobody trusts the local authority's certificate, whatever the site wants.
        let local = zone("", false, SITES);
        for label in ["alice", "al", "bob", "carol"] {
            assert_eq!(at(&local, label, https), [""; 0], "{label}");
        }
        assert_eq!(at(&local, "@", caa), ["0 issue \";\""]);
        assert!(!local.authority.is_varied());
        assert_ne!(local.digest, certified.digest);
    }

    #[test]
    fn the_port_is_that_of_visitors() {
        let of = |section: &str| at(&zone(section, true, SITES), "alice", RecordType::HTTPS);
        let with = |port| {
            vec![format!(
                "1 . alpn=h2,{port} ipv4hint=192.0.2.10, ipv6hint=2001:db8::10,"
            )]
        };
        assert_eq!(of("listen = [\"0.0.0.0:8443\"]"), with(" port=8443"));
        assert_eq!(of("port = 4443"), with(" port=4443"));
        assert_eq!(of("listen = [\"0.0.0.0:8443\"]\nport = 443"), with(""));
        assert_eq!(of("listen = []"), [""; 0]);
        assert_eq!(of("listen = [\"127.0.0.1:0\"]"), [""; 0]);
    }

    #[test]
    fn a_record_of_the_file_takes_the_place_of_ours() {
        let record = |name: &str, kind: &str, data: &str| {
            format!("[[records]]\nname = \"{name}\"\ntype = \"{kind}\"\ndata = '{data}'\n")
        };
        let (https, caa) = (RecordType::HTTPS, RecordType::CAA);
        let zone_of = |certified, records: &str| zone("", certified, &format!("{SITES}{records}"));
        let one = zone_of(true, &record("alice", "HTTPS", "1 . alpn=http/1.1"));
        assert_eq!(at(&one, "alice", https), ["1 . alpn=http/1.1,"]);
        assert_eq!(at(&one, "alice", RecordType::A), ["192.0.2.10"]);
        assert_eq!(at(&one, "alice", RecordType::AAAA), ["2001:db8::10"]);
        assert!(at(&one, "al", https)[0].contains("h2"));
        // It is a site all the same, and so are its neighbours.
        for (label, site) in [("alice", "alice"), ("al", "alice"), ("carol", "carol")] {
            assert_eq!(one.site(label).unwrap().name.as_str(), site);
        }
        assert_eq!(one.labels.len(), 4);

        // Another type leaves ours where it is, and where it is not.
        let other = record("alice", "CAA", "0 issue \"ca.example\"")
            + &record("bob", "CAA", "0 issue \";\"");
        let other = zone_of(true, &other);
        assert!(at(&other, "alice", https)[0].contains("h2"));
        assert_eq!(at(&other, "alice", caa), ["0 issue \"ca.example\""]);
        assert_eq!(at(&other, "bob", https), [""; 0]);
        let forced = zone_of(false, &record("bob", "HTTPS", "1 . alpn=h2"));
        assert_eq!(at(&forced, "bob", https), ["1 . alpn=h2,"]);

        let apex = zone_of(false, &record("@", "CAA", "0 issue \"ca.example\""));
        assert_eq!(at(&apex, "@", caa), ["0 issue \"ca.example\""]);
    }

    #[test]
    fn no_authority_is_shut_out_where_names_lead_elsewhere() {
        for (record, ours) in [
            (
                "name = \"mail\"\ntype = \"A\"\ndata = \"192.0.2.25\"",
                false,
            ),
            (
                "name = \"www\"\ntype = \"CNAME\"\ndata = \"cdn.example.\"",
                false,
            ),
            (
                "name = \"lab\"\ntype = \"NS\"\ndata = \"ns.lab.example.\"",
                false,
            ),
            (
                "name = \"alice\"\ntype = \"HTTPS\"\ndata = \"0 cdn.example.\"",
                false,
            ),
            ("name = \"here\"\ntype = \"A\"\ndata = \"192.0.2.10\"", true),
            ("name = \"www\"\ntype = \"CNAME\"\ndata = \"alice\"", true),
            (
                "name = \"@\"\ntype = \"MX\"\ndata = \"10 mx.example.\"",
                true,
            ),
        ] {
            let zone = zone("", false, &format!("{SITES}[[records]]\n{record}\n"));
            assert_eq!(at(&zone, "@", RecordType::CAA).len() == 1, ours, "{record}");
        }
    }
}
