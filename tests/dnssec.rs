//! Signed zones as validators see them: delv, unbound, dnssec-verify and ldns-verify-zone.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    net::{Ipv4Addr, SocketAddr},
    process::Command,
};

use common::{
    Declared, Problem, Severity,
    dnssec::{Held, Key, Role, State, Store, ZoneKeys},
};
use hickory_proto::{
    dnssec::rdata::{DNSSECRData, DS},
    op::ResponseCode,
    rr::{Name, RData, Record, RecordType},
};

use crate::{
    client::{Over, ask, question, send, send_both_ways},
    differential::{Chance, NAMES, SIGNED, ZONE},
    harness::{Folder, HEAD, Nuage, Server, free_port, run, until},
};

const REVERSE: &str = "[reverse]\ndnssec = true\n";
const REVERSE4: &str = "10.2.0.192.in-addr.arpa";
const REVERSE6: &str = "0.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa";

fn start(zone: &str) -> Nuage {
    let folder = Folder::of_dns("rate_limit = 0", REVERSE);
    folder.zone(&format!("{zone}{SIGNED}"));
    folder.serve()
}

fn export(folder: &Folder, zone: &str) -> String {
    let exported = folder.run(&["zone", "export", zone]);
    assert_eq!(exported.code, 0, "{exported:?}");
    exported.out
}

/// The KSK of an exported zone, without its dot.
fn entry_key(folder: &Folder, zone: &str) -> String {
    let key = export(folder, zone)
        .lines()
        .find(|line| line.contains("\tDNSKEY\t257 "))
        .unwrap()
        .to_owned();
    let mut words = key.split_whitespace().skip(4);
    let fixed: Vec<&str> = words.by_ref().take(3).collect();
    format!("{} \"{}\"", fixed.join(" "), words.collect::<String>())
}

#[test]
fn delv_validates_every_kind_of_answer() {
    let nuage = start(ZONE);
    let mut anchors = "trust-anchors {\n".to_owned();
    for zone in ["w.example", REVERSE4, REVERSE6] {
        let key = entry_key(&nuage.folder, zone);
        writeln!(anchors, "  \"{zone}.\" static-key {key};").unwrap();
    }
    anchors.push_str("};\n");
    let anchors = nuage.folder.write("anchors", &anchors);
    let anchors = anchors.to_str().unwrap();
    let port = nuage.dns[0].port().to_string();
    let answers = [
        ("alice.w.example", "A"),
        ("al.w.example", "AAAA"),
        ("0-first.w.example", "A"),
        ("zz9.w.example", "AAAA"),
        ("w.example", "SOA"),
        ("w.example", "NS"),
        ("w.example", "MX"),
        ("w.example", "TXT"),
        ("w.example", "DNSKEY"),
        ("chain.w.example", "A"),
        ("chain.w.example", "CNAME"),
        ("mixed.case.w.example", "CNAME"),
        ("escaped.w.example", "CNAME"),
        ("any.thing.wild.w.example", "TXT"),
        ("x.alice.w.example", "TXT"),
        ("x.y.awild.w.example", "A"),
        ("deep.under.ent.w.example", "A"),
        ("_sip._tcp.w.example", "SRV"),
        ("big.w.example", "TXT"),
        ("safe.w.example", "DS"),
        (REVERSE4, "PTR"),
        (REVERSE6, "PTR"),
    ];
    let denials = [
        ("nobody.w.example", "A"),
        ("0.w.example", "A"),
        ("zzzz.w.example", "A"),
        ("!.w.example", "A"),
        ("x.y.z.w.example", "A"),
        ("below.bob.w.example", "A"),
        ("below._dmarc.alice.w.example", "A"),
        ("nobody.under.ent.w.example", "A"),
        ("alice.w.example", "TXT"),
        ("w.example", "A"),
        ("mx.w.example", "AAAA"),
        ("ent.w.example", "A"),
        ("under.ent.w.example", "A"),
        ("_tcp.w.example", "SRV"),
        ("wild.w.example", "A"),
        ("any.wild.w.example", "A"),
        ("x.alice.w.example", "A"),
        ("known.wild.w.example", "TXT"),
        ("x.known.wild.w.example", "TXT"),
        ("sub.w.example", "DS"),
        (REVERSE4, "TXT"),
        (REVERSE6, "A"),
    ];
    std::thread::scope(|scope| {
        for (all, want) in [
            (&answers[..], "; fully validated"),
            (&denials[..], "; negative response, fully validated"),
        ] {
            for part in all.chunks(all.len().div_ceil(2)) {
                let port = &port;
                scope.spawn(move || {
                    for (name, kind) in part {
                        let zone = [REVERSE4, REVERSE6]
                            .into_iter()
                            .find(|zone| name == zone)
                            .unwrap_or("w.example");
                        let root = format!("+root={zone}");
                        let delv = ["@127.0.0.1", "-p", port, "-a", anchors, &root, name, kind];
                        let delv = run("delv", &delv);
                        assert!(delv.out.contains(want), "{name} {kind}: {delv:?}");
                        assert!(!delv.out.contains("unsigned"), "{name} {kind}: {delv:?}");
                    }
                });
            }
        }
    });
}

#[test]
fn unbound_believes_us_and_no_name_is_bogus() {
    let nuage = start(ZONE);
    let port = free_port();
    let zones = ["w.example", REVERSE4, REVERSE6];
    let mut keys = String::new();
    let mut stubs = String::new();
    for zone in zones {
        let key = entry_key(&nuage.folder, zone).replace('"', "");
        writeln!(keys, "  trust-anchor: \"{zone}. DNSKEY {key}\"").unwrap();
        let address = nuage.dns[0].port();
        writeln!(
            stubs,
            "stub-zone:\n  name: \"{zone}\"\n  stub-addr: 127.0.0.1@{address}"
        )
        .unwrap();
    }
    let config = format!(
        "server:\n  interface: 127.0.0.1\n  port: {port}\n  chroot: \"\"\n  username: \"\"\n  directory: \"@DIR@\"\n  pidfile: \"\"\n  use-syslog: no\n  \
         do-not-query-localhost: no\n  local-zone: \"2.0.192.in-addr.arpa.\" nodefault\n  local-zone: \"8.b.d.0.1.0.0.2.ip6.arpa.\" nodefault\n  \
         root-hints: \"\"\n  module-config: \"validator iterator\"\n  aggressive-nsec: no\n  qname-minimisation: no\n  val-log-level: 2\n{keys}\
         remote-control:\n  control-enable: no\n{stubs}"
    );
    let _unbound = Server::start(
        &[("unbound.conf", &config)],
        port,
        "unbound",
        &["-d", "-c", "@DIR@/unbound.conf"],
    );
    let resolver: SocketAddr = (Ipv4Addr::LOCALHOST, port).into();
    let resolve = |name: &str, kind: RecordType| {
        let mut message = question(name, kind);
        message.metadata.recursion_desired = true;
        message.edns.as_mut().unwrap().set_dnssec_ok(true);
        let octets = message.to_vec().unwrap();
        let answer = crate::client::exchange(resolver, Over::Udp, &octets);
        let answer = answer.unwrap_or_else(|| panic!("{name} {kind}"));
        hickory_proto::op::Message::from_vec(&answer).unwrap()
    };
    // What lies elsewhere can't be followed from here.
    let elsewhere = [
        "escaped.",
        "mixed.case.",
        "sub.",
        "safe.",
        "tosub.",
        "cwild.",
    ];
    let kinds = [
        RecordType::A,
        RecordType::TXT,
        RecordType::SRV,
        RecordType::HTTPS,
    ];
    let mut chance = Chance(7);
    let made_up: Vec<String> = (0..150)
        .map(|_| {
            let label = |chance: &mut Chance| -> String {
                let letters = b"abcxyz019-_";
                let length = 1 + chance.below(8);
                let octets = (0..length).map(|_| letters[chance.below(letters.len())]);
                octets.map(char::from).collect()
            };
            let below = NAMES[chance.below(NAMES.len() - 3)];
            match chance.below(3) {
                0 => format!("{}.w.example", label(&mut chance)),
                1 => format!("{}.{}.{below}", label(&mut chance), label(&mut chance)),
                _ => format!("{}.{below}", label(&mut chance)),
            }
        })
        .collect();
    let all = NAMES.iter().map(|name| (*name).to_owned()).chain(made_up);
    for name in all {
        let inside = name.strip_suffix("w.example").unwrap_or("");
        if elsewhere.iter().any(|part| inside.contains(part)) || name == "2.0.192.in-addr.arpa" {
            continue;
        }
        for kind in kinds {
            let answer = resolve(&format!("{name}."), kind);
            let code = answer.metadata.response_code;
            let looped = name.ends_with("loop.w.example");
            assert!(
                looped || matches!(code, ResponseCode::NoError | ResponseCode::NXDomain),
                "{name} {kind}: {answer}"
            );
            assert!(
                looped || answer.metadata.authentic_data,
                "{name} {kind}: {answer}"
            );
        }
    }
    for name in ["sub.w.example.", "safe.w.example."] {
        let answer = resolve(name, RecordType::DS);
        assert!(answer.metadata.authentic_data, "{name}: {answer}");
    }
}

#[test]
fn verifiers_find_nothing_in_exported_zones() {
    let many: String = (0..120)
        .map(|n| format!("[sites.s{}-{n}]\n", n * 7_919 % 120))
        .collect();
    let zones: &[(&str, String)] = &[
        ("everything", ZONE.to_owned()),
        ("nothing", String::new()),
        ("many", many),
        (
            "order",
            "[sites.0]\n[sites.a]\n[sites.a-]\n[sites.a-b]\n[sites.a0]\n[sites.ab]\n[sites.9]\n[sites.z]\n[sites.zz]\n".replace("[sites.a-]\n", ""),
        ),
        (
            "asterisk at the apex, names between and below labels, case",
            "[sites.alice]\n[sites.bob]\n".to_owned()
                + &record("*", "TXT", "star")
                + &record("_X._Tcp.ALICE", "TXT", "below")
                + &record("a.b.c.d.e.f.bob", "A", "192.0.2.1")
                + &record("alicf", "A", "192.0.2.2")
                + &record("_", "A", "192.0.2.5")
                + &record("zzz", "A", "192.0.2.3"),
        ),
        (
            "delegations",
            record("sub", "NS", "ns.sub")
                + &record("ns.sub", "A", "192.0.2.27")
                + &record("deep.ns.sub", "A", "192.0.2.27")
                + &record("safe", "NS", "ns.elsewhere.example.")
                + &record("safe", "DS", "12345 13 2 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"),
        ),
        (
            "records of many types and TTLs",
            record("@", "CAA", "0 issue \\\"ca.example\\\"")
                + &record("@", "HTTPS", "1 . alpn=h2")
                + &record("h", "SSHFP", "4 2 123456789abcdef67890123456789abcdef67890123456789abcdef123456789")
                + &record("_443._tcp.h", "TLSA", "3 1 1 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef")
                + &record("n", "NAPTR", "100 10 \\\"U\\\" \\\"E2U+sip\\\" \\\"!^.*$!sip:a@Example.com!\\\" .")
                + &record("p", "PTR", "Host.Elsewhere.Example.")
                + &record("m", "MX", "10 Mail.Elsewhere.Example.")
                + &record("m", "MX", "5 alice")
                + &record("hi", "HINFO", "\\\"CPU\\\" \\\"OS\\\"")
                + "[[records]]\nname = \"ttl\"\ntype = \"A\"\ndata = \"192.0.2.9\"\nttl = 7200\n",
        ),
    ];
    std::thread::scope(|scope| {
        for part in zones.chunks(zones.len().div_ceil(2)) {
            scope.spawn(move || {
                for (what, body) in part {
                    let folder = Folder::new(REVERSE);
                    folder.zone(&format!("{body}{SIGNED}"));
                    // The server makes the keys.
                    let declared = Declared::open_to_serve(&folder.config()).unwrap();
                    let problems = declared.problems();
                    let wrong = |problem: &Problem| problem.severity == Severity::Error;
                    assert!(!problems.iter().any(wrong), "{what}: {problems:?}");
                    for zone in ["w.example", REVERSE4, REVERSE6] {
                        let file = folder.write("exported", &export(&folder, zone));
                        let file = file.to_str().unwrap();
                        let bind = run("dnssec-verify", &["-o", zone, file]);
                        assert_eq!(bind.code, 0, "{what}: {zone}: {bind:?}");
                        let ldns = run("ldns-verify-zone", &["-V", "2", file]);
                        assert_eq!(ldns.code, 0, "{what}: {zone}: {ldns:?}");
                    }
                }
            });
        }
    });
}

fn record(name: &str, kind: &str, data: &str) -> String {
    format!("[[records]]\nname = \"{name}\"\ntype = \"{kind}\"\ndata = \"{data}\"\n")
}

/// Signatures of a zone by owner and type covered.
fn signatures(declared: &Declared, zone: &str) -> BTreeMap<(String, String), BTreeSet<String>> {
    let mut all: BTreeMap<_, BTreeSet<String>> = BTreeMap::new();
    let served = declared.registry().served.iter();
    let mut served =
        served.filter(|served| served.authority.apex.to_string() == format!("{zone}."));
    for record in served.next().unwrap().records() {
        if let RData::DNSSEC(DNSSECRData::RRSIG(signature)) = &record.data {
            let covered = signature.input().type_covered.to_string();
            let key = (record.name.to_string(), covered);
            all.entry(key).or_default().insert(record.data.to_string());
        }
    }
    all
}

/// Sites and records after a step; which signatures are others, new and gone; whether reverse zones change.
type Step<'s> = (
    &'s str,
    &'s str,
    &'s [&'s str],
    &'s [&'s str],
    &'s [&'s str],
    bool,
);

#[test]
fn an_edit_makes_the_few_signatures_it_must() {
    let folder = Folder::new(REVERSE);
    let body = |sites: &str, more: &str| {
        let sites: String = sites
            .split(' ')
            .map(|site| format!("[sites.{site}]\n"))
            .collect();
        folder.write(
            "zones/w.example.toml",
            &format!("{HEAD}{sites}{more}{SIGNED}"),
        );
    };
    body("alice bob dora emil", "");
    let mut declared = Declared::open_to_serve(&folder.config()).unwrap();
    let mut before = signatures(&declared, "w.example");
    let mut before4 = signatures(&declared, REVERSE4);
    let name = |label: &str| match label {
        "@" => "w.example.".to_owned(),
        label => format!("{label}.w.example."),
    };
    let txt = record("_note.bob", "TXT", "one");
    let txt2 = record("_note.bob", "TXT", "two");
    let two = |a: &str, b: &str| format!("{a}{b}");
    // After each step: what has other signatures than before, what is new and what is gone; and whether
    // the reverse zones, where each name has a PTR record, change.
    #[rustfmt::skip]
    let steps: &[Step<'_>] = &[
        ("alice bob carol dora emil", "", &["@ SOA", "bob NSEC"], &["carol A", "carol AAAA", "carol NSEC"], &[], true),
        ("alice bob carol dora emil", &txt, &["@ SOA", "bob NSEC"], &["_note.bob TXT", "_note.bob NSEC"], &[], false),
        ("alice bob carol dora emil", &txt2, &["@ SOA", "_note.bob TXT"], &[], &[], false),
        ("alice bob carol dora emil zoe", &txt2, &["@ SOA", "ns1 NSEC"], &["zoe A", "zoe AAAA", "zoe NSEC"], &[], true),
        ("0 alice bob carol dora emil zoe", &txt2, &["@ SOA", "@ NSEC"], &["0 A", "0 AAAA", "0 NSEC"], &[], true),
        ("0 alice bob dora emil zoe", &txt2, &["@ SOA", "_note.bob NSEC"], &[], &["carol A", "carol AAAA", "carol NSEC"], true),
        ("0 alice bob dora emil zoe", "", &["@ SOA", "bob NSEC"], &[], &["_note.bob TXT", "_note.bob NSEC"], false),
        ("0 alice bob dora emil zoe", &two(&record("@", "TXT", "one"), ""), &["@ SOA", "@ NSEC"], &["@ TXT"], &[], false),
    ];
    for (sites, more, changed, new, gone, reverse) in steps {
        body(sites, more);
        assert!(declared.refresh(), "{:?}", declared.problems());
        let after = signatures(&declared, "w.example");
        let keys = |list: &[&str]| -> BTreeSet<(String, String)> {
            let of = |entry: &&str| {
                let (label, kind) = entry.split_once(' ').unwrap();
                (name(label), kind.to_owned())
            };
            // A site may have more types than addresses.
            list.iter().map(of).collect()
        };
        let is = |key: &&(String, String)| key.1 != "HTTPS";
        let found: BTreeSet<_> = after
            .keys()
            .filter(|key| !before.contains_key(key))
            .filter(is)
            .cloned()
            .collect();
        assert_eq!(found, keys(new), "new: {sites}");
        let lost: BTreeSet<_> = before
            .keys()
            .filter(|key| !after.contains_key(key))
            .filter(is)
            .cloned()
            .collect();
        assert_eq!(lost, keys(gone), "gone: {sites}");
        let other: BTreeSet<_> = after
            .iter()
            .filter(|(key, set)| before.get(key).is_some_and(|old| old != *set))
            .map(|(key, _)| key.clone())
            .collect();
        assert_eq!(other, keys(changed), "changed: {sites}");
        let after4 = signatures(&declared, REVERSE4);
        let other: BTreeSet<&str> = after4
            .iter()
            .filter(|(key, set)| before4.get(key) != Some(set))
            .map(|((_, kind), _)| kind.as_str())
            .collect();
        let want: &[&str] = if *reverse { &["PTR", "SOA"] } else { &[] };
        assert_eq!(other, want.iter().copied().collect(), "{sites}");
        (before, before4) = (after, after4);
    }
}

#[test]
fn who_does_not_ask_for_signatures_gets_none() {
    let signed = start(ZONE);
    let folder = Folder::of_dns("rate_limit = 0", "");
    folder.zone(ZONE);
    let plain = folder.serve();
    let kinds = [
        RecordType::A,
        RecordType::AAAA,
        RecordType::TXT,
        RecordType::MX,
        RecordType::NS,
        RecordType::CNAME,
        RecordType::DS,
        RecordType::PTR,
        RecordType::SRV,
        RecordType::HTTPS,
        RecordType::Unknown(65_280),
    ];
    let of_signing =
        |record: &Record| matches!(record.record_type(), RecordType::RRSIG | RecordType::NSEC);
    // Serials are of their own times.
    let section = |records: &[Record]| -> Vec<String> {
        let records = records.iter().filter(|r| !of_signing(r));
        records
            .map(|record| match &record.data {
                RData::SOA(soa) => format!("{} {} SOA {}", record.name, record.ttl, soa.mname),
                _ => record.to_string(),
            })
            .collect()
    };
    for name in NAMES
        .iter()
        .copied()
        .chain(["nobody.w.example", "a.b.nobody.w.example"])
    {
        for kind in kinds {
            if matches!((name, kind), ("w.example", RecordType::TXT)) {
                continue;
            }
            let name = format!("{name}.");
            let theirs = ask(plain.dns[0], Over::Udp, &name, kind);
            let ours = ask(signed.dns[0], Over::Udp, &name, kind);
            let all = ours.answers.iter().chain(&ours.authorities);
            assert_eq!(all.filter(|r| of_signing(r)).count(), 0, "{name} {kind}");
            let mut with = question(&name, kind);
            let edns = with.edns.as_mut().unwrap();
            edns.set_dnssec_ok(true);
            edns.set_max_payload(4_096);
            let with = send(signed.dns[1], Over::Tcp, &with);
            for answer in [&ours, &with] {
                let same = |a: &[Record], b: &[Record]| section(a) == section(b);
                if answer.metadata.truncation || theirs.metadata.truncation {
                    continue;
                }
                assert_eq!(
                    answer.metadata.response_code, theirs.metadata.response_code,
                    "{name} {kind}"
                );
                assert!(
                    same(&answer.answers, &theirs.answers),
                    "{name} {kind}: {answer}"
                );
                if !(kind == RecordType::DS
                    || answer
                        .authorities
                        .iter()
                        .any(|r| r.record_type() == RecordType::DS))
                {
                    assert!(
                        same(&answer.authorities, &theirs.authorities),
                        "{name} {kind}: {answer}"
                    );
                }
            }
            // Each set of an answer has its signature.
            if with.metadata.response_code != ResponseCode::Refused && !with.answers.is_empty() {
                let count = |kind| {
                    with.answers
                        .iter()
                        .filter(|r| (r.record_type() == RecordType::RRSIG) == kind)
                        .count()
                };
                let sets: BTreeSet<_> = with
                    .answers
                    .iter()
                    .filter(|r| !of_signing(r))
                    .map(|r| (r.name.to_string(), r.record_type().to_string()))
                    .collect();
                assert_eq!(count(true), sets.len(), "{name} {kind}: {with}");
            }
        }
    }
    // Over the other way too, with every bit the same.
    for name in NAMES {
        for kind in [RecordType::A, RecordType::TXT] {
            let mut with = question(&format!("{name}."), kind);
            with.edns.as_mut().unwrap().set_dnssec_ok(true);
            send_both_ways(signed.dns[0], Over::Tcp, &with);
        }
    }
}

/// Lets so many hours pass for the keys of w.example, by moving the times in their file back.
fn age(folder: &Folder, hours: u64) {
    let name = "state/edge/dnssec/w.example.json";
    let text = fs::read_to_string(folder.path().join(name)).unwrap();
    let mut file: serde_json::Value = serde_json::from_str(&text).unwrap();
    for key in file["keys"].as_array_mut().unwrap() {
        let since = key["since"].as_u64().unwrap();
        key["since"] = (since - hours * 3_600).into();
    }
    folder.write(name, &file.to_string());
}

/// What is served of w.example's keys by their tags: the DNSKEY set, who signs it, who signs a site,
/// and whose DS the parent is asked for.
#[derive(Debug, PartialEq, Eq)]
struct KeysServed {
    published: BTreeSet<u16>,
    entries: BTreeSet<u16>,
    zone_key: BTreeSet<u16>,
    wanted: BTreeSet<u16>,
}

impl KeysServed {
    fn of(nuage: &Nuage) -> Self {
        let mut tags: [BTreeSet<u16>; 4] = Default::default();
        for (name, kind) in [
            ("w.example.", RecordType::DNSKEY),
            ("a.w.example.", RecordType::A),
            ("w.example.", RecordType::CDS),
        ] {
            let mut asked = question(name, kind);
            asked.edns.as_mut().unwrap().set_dnssec_ok(true);
            for record in send(nuage.dns[0], Over::Tcp, &asked).answers {
                let RData::DNSSEC(data) = &record.data else {
                    continue;
                };
                let (place, tag) = match data {
                    DNSSECRData::DNSKEY(key) => (0, key.calculate_key_tag().unwrap()),
                    DNSSECRData::RRSIG(by) if kind == RecordType::DNSKEY => (1, by.input().key_tag),
                    DNSSECRData::RRSIG(by) if kind == RecordType::A => (2, by.input().key_tag),
                    DNSSECRData::CDS(ds) => (3, ds.key_tag()),
                    _ => continue,
                };
                tags[place].insert(tag);
            }
        }
        let [published, entries, zone_key, wanted] = tags;
        Self {
            published,
            entries,
            zone_key,
            wanted,
        }
    }

    fn due(keys: &ZoneKeys) -> Self {
        Self {
            published: keys.held().iter().map(|held| held.key().tag()).collect(),
            entries: keys.signing_keys().map(Key::tag).collect(),
            zone_key: [keys.zone_key().tag()].into(),
            wanted: match keys.cds()[..] {
                [] => BTreeSet::new(),
                _ => keys.ds().iter().map(DS::key_tag).collect(),
            },
        }
    }
}

/// What is done, and where it leads: KSKs, ZSKs.
type Deed<'d> = (&'d str, &'d dyn Fn(), &'d [State], &'d [State]);

#[test]
fn keys_roll_while_validators_look_on() {
    use State::{Active, Published, Retired, Submitted};
    let folder = Folder::of_dns(
        "rate_limit = 0",
        "[[secondaries]]\naddress = \"127.0.0.1\"\nnotify = false\n",
    );
    folder.zone(&format!("[sites.a]\n{SIGNED}"));
    // What is served after a restart is signed with the same keys.
    let nuage = folder.serve();
    let first = entry_key(&nuage.folder, "w.example");
    let nuage = nuage.into_folder().serve();
    assert_eq!(entry_key(&nuage.folder, "w.example"), first);

    let store = Store::open(&nuage.folder.path().join("state/edge"));
    let origin = Name::from_ascii("w.example.").unwrap();
    let port = nuage.dns[0].port().to_string();
    let mut before = KeysServed::of(&nuage);
    // The keys resolvers may hold the DS of.
    let mut trusted: Vec<Key> = Vec::new();
    let command = |arguments: &[&str]| {
        let ran = nuage.folder.run(arguments);
        assert_eq!(ran.code, 0, "{ran:?}");
    };
    let wait = |hours| age(&nuage.folder, hours);
    let confirm = || command(&["zone", "ds", "w.example", "--published"]);
    let day = || wait(30);
    let steps: &[Deed<'_>] = &[
        ("the first DS is asked for", &day, &[Submitted], &[Active]),
        ("and there", &confirm, &[Active], &[Active]),
        (
            "a month on",
            &|| wait(30 * 24),
            &[Active],
            &[Active, Published],
        ),
        ("the new ZSK signs", &day, &[Active], &[Retired, Active]),
        ("and is alone", &day, &[Active], &[Active]),
        (
            "a KSK beside the first",
            &|| command(&["zone", "roll", "w.example", "ksk"]),
            &[Active, Published],
            &[Active],
        ),
        ("its DS is asked for", &day, &[Active, Submitted], &[Active]),
        ("and there", &confirm, &[Retired, Active], &[Active]),
        ("and it is alone", &day, &[Active], &[Active]),
    ];
    for &(what, act, ksks, zsks) in steps {
        act();
        nuage.signal("HUP");
        let mut keys = store.read(&origin).unwrap();
        let mut now = KeysServed::of(&nuage);
        until(what, || {
            keys = store.read(&origin).unwrap();
            now = KeysServed::of(&nuage);
            let states: Vec<State> = keys.held().iter().map(Held::state).collect();
            states == [ksks, zsks].concat() && now == KeysServed::due(&keys)
        });
        // What resolvers still hold fits what they get now, and the other way round.
        assert!(now.zone_key.is_subset(&before.published), "{what}");
        assert!(before.zone_key.is_subset(&now.published), "{what}");

        let of = |state| keys.held().iter().filter(move |held| held.state() == state);
        if matches!(ksks, [Active] | [Retired, Active]) {
            // Until the first has left the caches there are two.
            trusted.retain(|key| now.published.contains(&key.tag()));
            let new = of(Active).map(Held::key);
            let new = new.filter(|key| key.role() == Role::Ksk && !trusted.contains(key));
            let new: Vec<Key> = new.cloned().collect();
            trusted.extend(new);
        }
        for key in &trusted {
            let tag = &key.tag();
            assert!(
                before.entries.contains(tag) && now.entries.contains(tag),
                "{what}"
            );
            let dnskey = key.dnskey().to_string();
            let (fixed, public) = dnskey.rsplit_once(' ').unwrap();
            let anchor = format!(
                "trust-anchors {{\n  \"w.example.\" static-key {fixed} \"{public}\";\n}};\n"
            );
            let anchor = nuage.folder.write("anchor", &anchor);
            let anchor = anchor.to_str().unwrap();
            for (name, kind, want) in [
                ("a.w.example", "A", "; fully validated"),
                ("w.example", "DNSKEY", "; fully validated"),
                (
                    "nobody.w.example",
                    "A",
                    "; negative response, fully validated",
                ),
            ] {
                let root = "+root=w.example";
                let delv = ["@127.0.0.1", "-p", &port, "-a", anchor, root, name, kind];
                let delv = run("delv", &delv);
                assert!(delv.out.contains(want), "{what}: {key:?}: {name}: {delv:?}");
            }
        }
        // The zone as it is served.
        let transfer = [
            "@127.0.0.1",
            "-p",
            &port,
            "+noall",
            "+answer",
            "+onesoa",
            "w.example",
            "AXFR",
        ];
        let file = nuage
            .folder
            .write("transferred", &run("dig", &transfer).out);
        let file = file.to_str().unwrap();
        let bind = run("dnssec-verify", &["-o", "w.example", file]);
        assert_eq!(bind.code, 0, "{what}: {bind:?}");
        let ldns = run("ldns-verify-zone", &["-V", "2", file]);
        assert_eq!(ldns.code, 0, "{what}: {ldns:?}");
        before = now;
    }
    assert_ne!(entry_key(&nuage.folder, "w.example"), first);
}

#[test]
fn a_restart_after_edits_keeps_signatures_and_serials() {
    let folder = Folder::new(REVERSE);
    let body = |body: &str| {
        folder.write("zones/w.example.toml", &format!("{HEAD}{SIGNED}{body}"));
    };
    let open = || Declared::open_to_serve(&folder.config()).unwrap();
    let all = |declared: &Declared| -> Vec<String> {
        let served = declared.registry().served.iter();
        let records = served.flat_map(|served| served.records());
        records.map(|record| record.to_string()).collect()
    };
    let serial = |declared: &Declared| declared.registry().served[0].serial;
    body("[sites.a]\n[sites.b]\n");
    let mut declared = open();
    declared.save_serials().unwrap();
    for edit in [
        "[sites.a]\n[sites.b]\n[sites.c]\n".to_owned(),
        "[sites.a]\n[sites.b]\n".to_owned(),
        "[sites.b]\n".to_owned() + &record("sub", "NS", "ns.elsewhere.example."),
        // None but the SOA record's.
        "[sites.b]\n".to_owned() + &record("sub", "NS", "ns2.elsewhere.example."),
    ] {
        body(&edit);
        assert!(declared.refresh(), "{:?}", declared.problems());
        declared.save_serials().unwrap();
        assert_eq!(all(&open()), all(&declared), "{edit}");
    }
    // What is lost, the SOA record's signature alone and then all, costs a serial: two forms never share one.
    let file = folder.path().join("state/edge/dnssec/w.example.signatures");
    for lost in ["the last", "all"] {
        let file = fs::OpenOptions::new().write(true).open(&file).unwrap();
        let length = file.metadata().unwrap().len();
        file.set_len(length - 1).unwrap();
        let mut again = open();
        assert!(serial(&again) > serial(&declared), "{lost}");
        again.save_serials().unwrap();
        assert_eq!(all(&open()), all(&again), "{lost}");
        declared = again;
    }
}

#[test]
fn a_full_disk_keeps_no_edit_from_being_served() {
    // Root alone may mount.
    if run("unshare", &["-m", "true"]).code != 0 {
        return;
    }
    let mut nuage = start("[sites.a]\n");
    nuage.signal("TERM");
    assert_eq!(nuage.ended(), 0);
    let folder = nuage.into_folder();
    folder.zone(&format!("[sites.a]\n[sites.b]\n{SIGNED}"));
    let edge = folder.path().join("state/edge");
    let mut command = Command::new("unshare");
    command.args([
        "-m",
        "sh",
        "-c",
        "mkdir \"$0.full\" && mount -t tmpfs -o size=256k none \"$0.full\" && cp -a \"$0/.\" \"$0.full\" && \
         mount --bind \"$0.full\" \"$0\" && ! cat /dev/zero 2>/dev/null >\"$0/filler\" && exec \"$@\"",
    ]);
    command.arg(edge).arg(env!("CARGO_BIN_EXE_nuage"));
    let nuage = Nuage::of_role(folder, command, "all");
    let answer = ask(nuage.dns[0], Over::Tcp, "b.w.example.", RecordType::A);
    assert_eq!(answer.answers.len(), 1, "{answer}");
    let log = nuage.log();
    assert!(log.contains("can't keep the zones' serials"), "{log}");
    nuage.folder.zone(&format!("[sites.c]\n{SIGNED}"));
    until("another edit is served", || {
        let answer = ask(nuage.dns[0], Over::Tcp, "c.w.example.", RecordType::A);
        answer.answers.len() == 1
    });
}

#[test]
fn a_restart_keeps_signatures_and_serial() {
    let nuage = start(ZONE);
    let told = |nuage: &Nuage| -> Vec<String> {
        let mut told = Vec::new();
        for (name, kind) in [
            ("w.example.", RecordType::SOA),
            ("alice.w.example.", RecordType::A),
        ] {
            let mut asked = question(name, kind);
            asked.edns.as_mut().unwrap().set_dnssec_ok(true);
            let answer = send(nuage.dns[0], Over::Tcp, &asked);
            told.extend(answer.answers.iter().map(ToString::to_string));
        }
        told
    };
    let before = told(&nuage);
    assert_eq!(before.len(), 4, "{before:?}");
    // Killed at once, as by a power cut.
    let again = nuage.into_folder().serve();
    assert_eq!(told(&again), before);
    let log = again.log();
    assert!(log.contains("signatures=0"), "{log}");
}
