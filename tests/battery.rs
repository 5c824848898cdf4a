//! The DNS battery: each case under the words of the RFC that binds it, over UDP, TCP and TLS, IPv4 and
//! IPv6, and by both ways of answering.

use std::net::SocketAddr;

use hickory_proto::{
    op::{Edns, Message, OpCode, ResponseCode},
    rr::{
        DNSClass, RData, RecordType,
        rdata::opt::{EdnsCode, EdnsOption},
    },
};

use crate::{
    client::{
        Over, Trust, ask as ask_once, ask_both_ways as ask, exchange, lines, question,
        send_both_ways as send,
    },
    harness::{Folder, Nuage, run, until},
};

const ZONE: &str = r#"ttl = 300
[sites.alice]
aliases = ["al"]
[sites.bob]
[[records]]
name = "@"
type = "MX"
data = "10 mx"
[[records]]
name = "mx"
type = "A"
data = "192.0.2.25"
[[records]]
name = "chain"
type = "CNAME"
data = "link"
[[records]]
name = "link"
type = "CNAME"
data = "alice"
[[records]]
name = "dangling"
type = "CNAME"
data = "nowhere"
[[records]]
name = "away"
type = "CNAME"
data = "www.elsewhere.example."
[[records]]
name = "loop"
type = "CNAME"
data = "loop"
[[records]]
name = "*.wild"
type = "TXT"
data = "star"
[[records]]
name = "deep.under.ent"
type = "A"
data = "192.0.2.26"
[[records]]
name = "sub"
type = "NS"
data = "ns.sub"
[[records]]
name = "ns.sub"
type = "A"
data = "192.0.2.27"
[[records]]
name = "_dmarc.alice"
type = "TXT"
data = "v=DMARC1"
"#;

fn each(nuage: &Nuage, mut case: impl FnMut(SocketAddr, Over)) {
    let tls = Over::Tls(Trust::in_file(nuage.ca()));
    for (server, dot) in nuage.dns.into_iter().zip(&nuage.dot) {
        case(server, Over::Udp);
        case(server, Over::Tcp);
        case(*dot, tls);
    }
}

fn start(body: &str) -> Nuage {
    let folder = Folder::of_dns("", "");
    folder.zone(body);
    folder.serve()
}

fn soa_minimum(message: &Message) -> Option<(u32, u32)> {
    message
        .authorities
        .iter()
        .find_map(|record| match &record.data {
            RData::SOA(soa) => Some((record.ttl, soa.minimum)),
            _ => None,
        })
}

#[test]
fn positive_answers() {
    let nuage = start(ZONE);
    each(&nuage, |server, over| {
        // RFC 1034 §3.7: "The AA bit is set in authoritative answers".
        let answer = ask(server, over, "alice.w.example.", RecordType::A);
        assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
        assert!(answer.metadata.authoritative);
        assert_eq!(lines(&answer.answers), ["alice.w.example. A 192.0.2.10"]);
        assert_eq!(answer.answers[0].ttl, 300);

        let answer = ask(server, over, "al.w.example.", RecordType::AAAA);
        assert_eq!(lines(&answer.answers), ["al.w.example. AAAA 2001:db8::10"]);

        // RFC 1035 §3.3.11: NS records cause additional section processing to locate an A record.
        let answer = ask(server, over, "w.example.", RecordType::NS);
        assert_eq!(
            lines(&answer.answers),
            [
                "w.example. NS ns.other.example.",
                "w.example. NS ns1.w.example."
            ]
        );
        assert_eq!(
            lines(&answer.additionals),
            [
                "ns1.w.example. A 192.0.2.10",
                "ns1.w.example. AAAA 2001:db8::10"
            ]
        );

        let answer = ask(server, over, "w.example.", RecordType::MX);
        assert_eq!(lines(&answer.answers), ["w.example. MX 10 mx.w.example."]);
        assert_eq!(lines(&answer.additionals), ["mx.w.example. A 192.0.2.25"]);

        // RFC 1035 §3.3.13: RNAME with a dot in its first label is escaped.
        let answer = ask(server, over, "w.example.", RecordType::SOA);
        assert!(
            answer.answers[0]
                .data
                .to_string()
                .starts_with("ns1.w.example. host\\.master.w.example. "),
            "{}",
            answer.answers[0]
        );
    });
}

#[test]
fn reverse_answers() {
    let nuage = start(ZONE);
    let names = [
        "al.w.example.",
        "alice.w.example.",
        "bob.w.example.",
        "ns1.w.example.",
    ];
    each(&nuage, |server, over| {
        for owner in [
            "10.2.0.192.in-addr.arpa.",
            "0.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa.",
        ] {
            let answer = ask(server, over, owner, RecordType::PTR);
            assert!(answer.metadata.authoritative);
            let want: Vec<String> = names
                .iter()
                .map(|name| format!("{owner} PTR {name}"))
                .collect();
            assert_eq!(lines(&answer.answers), want);
            // The server's own name comes first.
            assert_eq!(answer.answers[0].data.to_string(), "ns1.w.example.");
            let soa = ask(server, over, owner, RecordType::SOA);
            assert_eq!(soa.answers.len(), 1, "{owner} is a zone of its own");
        }
    });
    let configured = Folder::of_dns(
        "",
        "[reverse]\nnames = \"canonical\"\nipv4_origin = \"0/25.2.0.192.in-addr.arpa\"\nipv6_origin = \"8.b.d.0.1.0.0.2.ip6.arpa\"\n",
    );
    configured.zone(ZONE);
    let nuage = configured.serve();
    each(&nuage, |server, over| {
        // RFC 2317 §4: the zone of a classless delegation holds "the last octet" as owner.
        let answer = ask(
            server,
            over,
            "10.0/25.2.0.192.in-addr.arpa.",
            RecordType::PTR,
        );
        assert_eq!(answer.answers.len(), 1);
        assert_eq!(answer.answers[0].data.to_string(), "ns1.w.example.");
        let outside = ask(server, over, "10.2.0.192.in-addr.arpa.", RecordType::PTR);
        assert_eq!(outside.metadata.response_code, ResponseCode::Refused);
        // RFC 8020 §2: names above an existing one exist.
        let between = ask(
            server,
            over,
            "0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa.",
            RecordType::PTR,
        );
        assert_eq!(between.metadata.response_code, ResponseCode::NoError);
        assert_eq!(soa_minimum(&between), Some((30, 30)));
    });
}

#[test]
fn negative_answers() {
    let nuage = start(ZONE);
    each(&nuage, |server, over| {
        let case = |name: &str, kind, code| {
            let answer = ask(server, over, name, kind);
            assert_eq!(answer.metadata.response_code, code, "{name} {kind}");
            assert!(answer.metadata.authoritative, "{name}");
            assert!(answer.answers.is_empty(), "{name}");
            // RFC 2308 §3: "Name servers authoritative for a zone MUST include the SOA record of the
            // zone in the authority section of the response"; §5: its TTL is the lesser of both.
            assert_eq!(soa_minimum(&answer), Some((30, 30)), "{name}");
        };
        // RFC 2308 §1: NXDOMAIN, "the domain name does not exist".
        case("nobody.w.example.", RecordType::A, ResponseCode::NXDomain);
        case("x.y.z.w.example.", RecordType::A, ResponseCode::NXDomain);
        case(
            "below.alice.w.example.",
            RecordType::A,
            ResponseCode::NXDomain,
        );
        // RFC 2308 §1: NODATA, "the name is valid, for the given class, but there are no records of
        // the given type".
        case("alice.w.example.", RecordType::TXT, ResponseCode::NoError);
        case("w.example.", RecordType::A, ResponseCode::NoError);
        case("mx.w.example.", RecordType::AAAA, ResponseCode::NoError);
        // RFC 4592 §2.2.2: empty non-terminals "own no resource records but have subdomains that do".
        case("ent.w.example.", RecordType::A, ResponseCode::NoError);
        case("under.ent.w.example.", RecordType::A, ResponseCode::NoError);
        case("wild.w.example.", RecordType::TXT, ResponseCode::NoError);
        // A type from the private range.
        case(
            "alice.w.example.",
            RecordType::Unknown(65_280),
            ResponseCode::NoError,
        );

        // RFC 8906 §3: outside its zones a server answers REFUSED.
        let outside = ask(server, over, "www.elsewhere.example.", RecordType::A);
        assert_eq!(outside.metadata.response_code, ResponseCode::Refused);
        assert!(!outside.metadata.authoritative && outside.authorities.is_empty());
        let parent = ask(server, over, "example.", RecordType::NS);
        assert_eq!(parent.metadata.response_code, ResponseCode::Refused);
    });
}

#[test]
fn aliases_wildcards_and_delegations() {
    let nuage = start(ZONE);
    each(&nuage, |server, over| {
        // RFC 1034 §4.3.2 step 3a: copy the CNAME and go back to step 1 with its target.
        let answer = ask(server, over, "chain.w.example.", RecordType::A);
        let data: Vec<String> = answer.answers.iter().map(ToString::to_string).collect();
        assert_eq!(
            data,
            [
                "chain.w.example. 300 IN CNAME link.w.example.",
                "link.w.example. 300 IN CNAME alice.w.example.",
                "alice.w.example. 300 IN A 192.0.2.10",
            ]
        );
        let itself = ask(server, over, "chain.w.example.", RecordType::CNAME);
        assert_eq!(
            lines(&itself.answers),
            ["chain.w.example. CNAME link.w.example."]
        );
        // RFC 6604 §3: the RCODE is that of the last name in the chain.
        let dangling = ask(server, over, "dangling.w.example.", RecordType::A);
        assert_eq!(
            (dangling.metadata.response_code, dangling.answers.len()),
            (ResponseCode::NXDomain, 1)
        );
        let away = ask(server, over, "away.w.example.", RecordType::A);
        assert_eq!(
            (away.metadata.response_code, away.answers.len()),
            (ResponseCode::NoError, 1)
        );
        let looped = ask(server, over, "loop.w.example.", RecordType::A);
        assert_eq!(looped.metadata.response_code, ResponseCode::NoError);
        assert!((1..=8).contains(&looped.answers.len()));

        // RFC 4592 §2.2.1: the owner of a synthesised record is the name asked for.
        let wild = ask(server, over, "any.thing.wild.w.example.", RecordType::TXT);
        assert_eq!(lines(&wild.answers), ["any.thing.wild.w.example. TXT star"]);
        let nodata = ask(server, over, "any.wild.w.example.", RecordType::A);
        assert_eq!(nodata.metadata.response_code, ResponseCode::NoError);
        assert!(nodata.answers.is_empty() && soa_minimum(&nodata).is_some());

        // RFC 1034 §4.3.2 step 3b: a referral has the NS records in the authority section.
        for name in ["sub.w.example.", "www.sub.w.example."] {
            let referral = ask(server, over, name, RecordType::A);
            assert!(!referral.metadata.authoritative && referral.answers.is_empty());
            assert_eq!(
                lines(&referral.authorities),
                ["sub.w.example. NS ns.sub.w.example."]
            );
            assert_eq!(
                lines(&referral.additionals),
                ["ns.sub.w.example. A 192.0.2.27"]
            );
        }
        // RFC 4035 §3.1.4.1: DS at the cut is the parent's.
        let ds = ask(server, over, "sub.w.example.", RecordType::DS);
        assert!(ds.metadata.authoritative && soa_minimum(&ds).is_some());

        // RFC 8482 §4.1: ANY gets a subset of what there is.
        let any = ask(server, over, "alice.w.example.", RecordType::ANY);
        assert_eq!(any.answers.len(), 1);
    });
}

#[test]
fn a_zone_inside_a_zone_answers_for_itself() {
    let folder = Folder::of_dns("", "");
    folder.zone("[[records]]\nname = \"away\"\ntype = \"CNAME\"\ndata = \"www.in\"\n[[records]]\nname = \"a\"\ntype = \"CNAME\"\ndata = \"b\"\n[[records]]\nname = \"b\"\ntype = \"CNAME\"\ndata = \"a\"\n");
    folder.write(
        "zones/in.w.example.toml",
        "origin = \"in.w.example\"\nnameservers = [\"ns1.in.w.example\"]\n[sites.www]\n",
    );
    let nuage = folder.serve();
    each(&nuage, |server, over| {
        assert_eq!(
            lines(&ask(server, over, "www.in.w.example.", RecordType::A).answers),
            ["www.in.w.example. A 192.0.2.10"]
        );
        // The alias is answered, and its target left to the resolver: another zone has it.
        let away = ask(server, over, "away.w.example.", RecordType::A);
        assert_eq!(
            (away.metadata.response_code, away.answers.len()),
            (ResponseCode::NoError, 1)
        );
        let looped = ask(server, over, "a.w.example.", RecordType::A);
        assert_eq!(looped.answers.len(), 2, "each alias of a loop once");
        // Its parent does not know it: that is no reason to deny it.
        let ds = ask(server, over, "in.w.example.", RecordType::DS);
        assert_eq!(ds.metadata.response_code, ResponseCode::NoError);
        assert_eq!(ds.authorities[0].name.to_string(), "in.w.example.");
    });
    let cut = "[[records]]\nname = \"in\"\ntype = \"NS\"\ndata = \"ns1.in\"\n[[records]]\nname = \"in\"\ntype = \"DS\"\n\
               data = \"12345 13 2 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\"\n";
    nuage.folder.zone(cut);
    until("the parent knows its child", || {
        let ds = ask_once(nuage.dns[0], Over::Udp, "in.w.example.", RecordType::DS);
        ds.answers.len() == 1
    });
    each(&nuage, |server, over| {
        // RFC 4035 §3.1.4.1: DS at the apex is answered by the parent.
        let ds = ask(server, over, "in.w.example.", RecordType::DS);
        assert!(ds.metadata.authoritative && ds.answers.len() == 1);
        let ns = ask(server, over, "in.w.example.", RecordType::NS);
        assert!(
            ns.metadata.authoritative && ns.answers.len() == 1,
            "the child's"
        );
    });
}

#[test]
fn questions_that_are_none() {
    let nuage = start(ZONE);
    each(&nuage, |server, over| {
        let code = |message: &Message| send(server, over, message).metadata.response_code;
        // RFC 1035 §4.1.1: RCODE 4, "does not support the requested kind of query".
        let mut notify = question("w.example.", RecordType::SOA);
        notify.metadata.op_code = OpCode::Status;
        assert_eq!(code(&notify), ResponseCode::NotImp);
        // RFC 9619 §4: QDCOUNT of a query is one.
        let mut none = question("w.example.", RecordType::SOA);
        none.queries.clear();
        assert_eq!(code(&none), ResponseCode::FormErr);
        let mut chaos = question("version.bind.", RecordType::TXT);
        chaos.queries[0].set_query_class(DNSClass::CH);
        assert_eq!(code(&chaos), ResponseCode::Refused);
        assert_eq!(
            code(&question("w.example.", RecordType::AXFR)),
            ResponseCode::Refused
        );

        // A message that ends in the middle: FORMERR with its id, nothing of it echoed.
        let whole = question("alice.w.example.", RecordType::A)
            .to_vec()
            .unwrap();
        let cut = exchange(server, over, &whole[..20]).unwrap();
        assert_eq!((&cut[..2], cut[3] & 0xf, cut.len()), (&whole[..2], 1, 12));
    });
    // A response, and what is shorter than a header, get silence: answers would feed loops.
    let mut response = question("alice.w.example.", RecordType::A)
        .to_vec()
        .unwrap();
    response[2] |= 0x80;
    assert_eq!(exchange(nuage.dns[0], Over::Udp, &response), None);
    assert_eq!(exchange(nuage.dns[0], Over::Udp, &[0; 5]), None);
    assert_eq!(
        ask(nuage.dns[0], Over::Udp, "alice.w.example.", RecordType::A)
            .answers
            .len(),
        1,
        "and it still answers"
    );
}

#[test]
fn edns() {
    let nuage = start(ZONE);
    each(&nuage, |server, over| {
        // RFC 6891 §6.1.1: an OPT record in the request means one in the response.
        let answer = ask(server, over, "alice.w.example.", RecordType::A);
        assert_eq!(answer.edns.as_ref().map(Edns::version), Some(0));
        let mut plain = question("alice.w.example.", RecordType::A);
        plain.edns = None;
        assert!(send(server, over, &plain).edns.is_none());

        // RFC 6891 §6.1.3: a version above 0 gets BADVERS.
        let mut later = question("alice.w.example.", RecordType::A);
        later.edns.as_mut().unwrap().set_version(1);
        let answer = send(server, over, &later);
        // 16 is BADSIG in the TSIG registry and BADVERS here: one number.
        assert_eq!(u16::from(answer.metadata.response_code), 16);
        assert!(answer.answers.is_empty() && answer.edns.is_some());

        // RFC 6891 §6.1.2: unknown options are ignored. RFC 3225 §3: DO is copied.
        let mut odd = question("alice.w.example.", RecordType::A);
        let edns = odd.edns.as_mut().unwrap();
        edns.options_mut()
            .insert(EdnsOption::Unknown(65_001, vec![1, 2, 3]));
        edns.set_dnssec_ok(true);
        let answer = send(server, over, &odd);
        assert_eq!(answer.answers.len(), 1);
        let edns = answer.edns.unwrap();
        assert!(edns.flags().dnssec_ok && edns.option(EdnsCode::Unknown(65_001)).is_none());

        // Case comes back as it was sent (draft-vixie-dnsext-dns0x20 §2).
        let answer = ask(server, over, "aLiCe.W.eXample.", RecordType::A);
        assert_eq!(answer.queries[0].name().to_string(), "aLiCe.W.eXample.");
        assert_eq!(answer.answers[0].name.to_string(), "aLiCe.W.eXample.");
    });
}

#[test]
fn truncation_keeps_the_opt_and_tcp_has_the_whole_set() {
    let sites: String = (0..150).map(|n| format!("[sites.site-{n:03}]\n")).collect();
    let nuage = start(&sites);
    let owner = "10.2.0.192.in-addr.arpa.";
    for server in nuage.dns {
        // RFC 2181 §9: "the TC bit should be set only when a set can't be included in its entirety".
        let cut = ask(server, Over::Udp, owner, RecordType::PTR);
        assert!(cut.metadata.truncation && cut.answers.is_empty());
        // RFC 6891 §7: "the OPT record MUST be included in a truncated response".
        assert!(cut.edns.is_some());
        let whole = ask(server, Over::Tcp, owner, RecordType::PTR);
        assert!(!whole.metadata.truncation);
        assert_eq!(whole.answers.len(), 151);
    }
    // RFC 1035 §4.2.1: 512 octets without EDNS; a large offer is not taken up either.
    let mut plain = question(owner, RecordType::PTR);
    plain.edns = None;
    let octets = exchange(nuage.dns[0], Over::Udp, &plain.to_vec().unwrap()).unwrap();
    assert!(octets.len() <= 512);
    let mut greedy = question(owner, RecordType::PTR);
    greedy.edns.as_mut().unwrap().set_max_payload(65_000);
    let octets = exchange(nuage.dns[0], Over::Udp, &greedy.to_vec().unwrap()).unwrap();
    assert!(octets.len() <= 1_232, "{}", octets.len());
}

#[test]
fn a_very_large_ptr_set_is_cut_to_one_message() {
    let sites: String = (0..4_000)
        .map(|n| format!("[sites.site-{n:05}]\n"))
        .collect();
    let nuage = start(&sites);
    let first = ask(
        nuage.dns[0],
        Over::Tcp,
        "10.2.0.192.in-addr.arpa.",
        RecordType::PTR,
    );
    assert_eq!(first.metadata.response_code, ResponseCode::NoError);
    assert!(!first.metadata.truncation);
    assert!(first.answers.len() > 1_000, "{}", first.answers.len());
    assert_eq!(first.answers[0].data.to_string(), "ns1.w.example.");
    let again = ask(
        nuage.dns[1],
        Over::Tcp,
        "10.2.0.192.in-addr.arpa.",
        RecordType::PTR,
    );
    assert_eq!(
        lines(&first.answers),
        lines(&again.answers),
        "the cut is the same each time"
    );
    let omitted = 4_001 - first.answers.len();
    assert!(nuage.metrics().contains(&format!(
        "nuage_dns_ptr_names_omitted{{address=\"192.0.2.10\"}} {omitted}"
    )));
    assert!(
        nuage.log().contains("have no PTR record"),
        "{}",
        nuage.log()
    );
}

#[test]
fn debian_clients_read_the_answers() {
    let nuage = start(ZONE);
    let [v4, v6] = nuage
        .dns
        .map(|address| (format!("@{}", address.ip()), address.port().to_string()));
    for (server, port) in [&v4, &v6] {
        for transport in ["+notcp", "+tcp"] {
            let dig = run(
                "dig",
                &[
                    server,
                    "-p",
                    port,
                    transport,
                    "+norec",
                    "+short",
                    "alice.w.example",
                    "AAAA",
                ],
            );
            assert_eq!((dig.code, &*dig.out), (0, "2001:db8::10\n"));
        }
        let kdig = run(
            "kdig",
            &[server, "-p", port, "+norec", "+short", "-x", "192.0.2.10"],
        );
        assert!(
            kdig.out.lines().count() == 4 && kdig.out.contains("alice.w.example."),
            "{kdig:?}"
        );
    }
    // delv iterates like a resolver; without signatures an answer is "unsigned".
    let delv = run(
        "delv",
        &[&v4.0, "-p", &v4.1, "+noroot", "-i", "alice.w.example", "A"],
    );
    assert!(delv.out.contains("192.0.2.10"), "{delv:?}");
}
