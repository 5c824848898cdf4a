//! What the internet measures name servers by: the cases of ISC's EDNS compliance tester and of
//! RFC 8906, and what protects others from us: cookies, limits, and no amplification.

use std::{
    net::{SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::RecordType,
};

use crate::{
    client::{Over, Trust, exchange, question, send_both_ways, socket_for},
    differential::{SIGNED, ZONE},
    harness::{Folder, Nuage, cpu, run},
};

const SOA: u16 = 6;
const NSID: u16 = 3;
const COOKIE: u16 = 10;

/// A message as octets, part by part.
#[derive(Clone, Default)]
struct Ask {
    flags: [u8; 2],
    question: Vec<u8>,
    opt: Option<Opt>,
}

#[derive(Clone, Default)]
struct Opt {
    payload: u16,
    version: u8,
    flags: u16,
    options: Vec<u8>,
}

impl Ask {
    fn of(name: &str, kind: u16) -> Self {
        let mut question = Vec::new();
        for label in name.split('.').filter(|label| !label.is_empty()) {
            question.push(u8::try_from(label.len()).unwrap());
            question.extend_from_slice(label.as_bytes());
        }
        question.push(0);
        question.extend_from_slice(&kind.to_be_bytes());
        question.extend_from_slice(&[0, 1]);
        Self {
            question,
            ..Self::default()
        }
    }

    fn flags(mut self, high: u8, low: u8) -> Self {
        self.flags = [high, low];
        self
    }

    fn edns(mut self, payload: u16, version: u8, flags: u16, options: &[u8]) -> Self {
        self.opt = Some(Opt {
            payload,
            version,
            flags,
            options: options.to_vec(),
        });
        self
    }

    fn octets(&self) -> Vec<u8> {
        let mut octets = vec![0x12, 0x67, self.flags[0], self.flags[1]];
        let one = u8::from(!self.question.is_empty());
        octets.extend([0, one, 0, 0, 0, 0, 0, u8::from(self.opt.is_some())]);
        octets.extend_from_slice(&self.question);
        if let Some(opt) = &self.opt {
            octets.extend([0, 0, 41]);
            octets.extend_from_slice(&opt.payload.to_be_bytes());
            octets.extend([0, opt.version]);
            octets.extend_from_slice(&opt.flags.to_be_bytes());
            octets.extend_from_slice(&u16::try_from(opt.options.len()).unwrap().to_be_bytes());
            octets.extend_from_slice(&opt.options);
        }
        octets
    }
}

/// An answer with the bits hickory hides.
struct Reply {
    octets: Vec<u8>,
    message: Message,
}

/// Payload, version, flags and options of an OPT record.
type Sent = (u16, u8, u16, Vec<(u16, Vec<u8>)>);

impl Reply {
    fn code(&self) -> u16 {
        self.message.metadata.response_code.into()
    }

    /// Payload, version, flags and options of the OPT record, which is the last of a message.
    fn opt(&self) -> Option<Sent> {
        self.message.edns.as_ref()?;
        // The root, type 41, and our payload: nothing else in these answers looks like it.
        let at = (12..self.octets.len())
            .rev()
            .find(|at| self.octets[*at..].starts_with(&[0, 0, 41, 4, 208]))
            .unwrap();
        let record = &self.octets[at..];
        let word = |at: usize| u16::from_be_bytes([record[at], record[at + 1]]);
        let mut rest = &record[11..];
        assert_eq!(
            rest.len(),
            usize::from(word(9)),
            "the OPT record ends the message"
        );
        let mut options = Vec::new();
        while let [c1, c2, l1, l2, more @ ..] = rest {
            let length = usize::from(u16::from_be_bytes([*l1, *l2]));
            options.push((u16::from_be_bytes([*c1, *c2]), more[..length].to_vec()));
            rest = &more[length..];
        }
        Some((word(3), record[6], word(7), options))
    }

    fn option(&self, code: u16) -> Option<Vec<u8>> {
        let (.., options) = self.opt()?;
        options
            .into_iter()
            .find(|(found, _)| *found == code)
            .map(|(_, data)| data)
    }

    fn has_soa(&self) -> bool {
        let answers = &self.message.answers;
        answers.iter().any(|r| r.record_type() == RecordType::SOA)
    }
}

fn reply(server: SocketAddr, over: Over, ask: &Ask) -> Reply {
    let octets = exchange(server, over, &ask.octets()).expect("an answer");
    assert_eq!(octets[..2], [0x12, 0x67]);
    Reply {
        message: Message::from_vec(&octets).unwrap(),
        octets,
    }
}

fn option(code: u16, data: &[u8]) -> Vec<u8> {
    let mut option = code.to_be_bytes().to_vec();
    option.extend_from_slice(&u16::try_from(data.len()).unwrap().to_be_bytes());
    option.extend_from_slice(data);
    option
}

fn start(dns: &str, zone: &str) -> Nuage {
    let folder = Folder::of_dns(dns, "");
    folder.zone(zone);
    folder.serve()
}

fn ways(nuage: &Nuage) -> Vec<(SocketAddr, Over)> {
    let tls = Over::Tls(Trust::in_file(nuage.ca()));
    let plain = nuage.dns.into_iter();
    let plain = plain.flat_map(|server| [(server, Over::Udp), (server, Over::Tcp)]);
    plain
        .chain(nuage.dot.iter().map(|dot| (*dot, tls)))
        .collect()
}

const CLIENT: [u8; 8] = [1, 2, 3, 4, 5, 6, 7, 8];

#[test]
fn every_case_of_the_compliance_tester_is_ok() {
    let nuage = start("identity = \"ns1.test\"", &format!("{ZONE}{SIGNED}"));
    let soa = || Ask::of("w.example", SOA);
    let dnskey = || Ask::of("w.example", 48);
    let (nsid, expire) = (option(NSID, &[]), option(9, &[]));
    let subnet = option(8, &[0, 1, 0, 0]);
    let (cookie, unknown) = (option(COOKIE, &CLIENT), option(100, &[]));
    let keepalive = option(11, &[]);
    let padding = option(12, &[0; 40]);
    let list = [&nsid[..], &subnet, &expire, &cookie].concat();
    let longer = [&list[..], &keepalive, &padding].concat();

    for (server, over) in ways(&nuage) {
        // Plain DNS: whatever flags a query has, the answer is the SOA record, and no flag of the query
        // but RD and CD comes back (RFC 8906 §8.1.3).
        for (name, high, low) in [
            ("dns", 0, 0),
            ("aa", 0x04, 0),
            ("ad", 0, 0x20),
            ("cd", 0, 0x10),
            ("ra", 0, 0x80),
            ("rd", 0x01, 0),
            ("tc", 0x02, 0),
            ("zflag", 0, 0x40),
        ] {
            let reply = reply(server, over, &soa().flags(high, low));
            assert!(reply.code() == 0 && reply.has_soa(), "{name}");
            assert_eq!(reply.octets[2], 0x84 | high & 0x01, "{name}");
            assert_eq!(reply.octets[3], low & 0x10, "{name}");
            assert!(reply.opt().is_none(), "{name}");
        }
        // An opcode nobody knows: its header is all that can be understood (RFC 8906 §8.1.4).
        for (name, high, low) in [("opcode", 0, 0), ("opcodeflg", 0x07, 0xf0)] {
            let alone = Ask::default().flags(15 << 3 | high, low);
            let octets = exchange(server, over, &alone.octets()).unwrap();
            let want = [0x12, 0x67, 0x80 | 15 << 3, 4, 0, 0, 0, 0, 0, 0, 0, 0];
            assert_eq!(octets, want, "{name}");
        }
        // RFC 8906 §8.1.2.
        let type666 = reply(server, over, &Ask::of("w.example", 666));
        assert_eq!(type666.code(), 0);
        assert!(type666.message.metadata.authoritative && type666.message.answers.is_empty());

        // EDNS (RFC 8906 §8.2).
        let cases: &[(&str, Ask)] = &[
            ("edns", soa().edns(4_096, 0, 0, &[])),
            ("ednsopt", soa().edns(4_096, 0, 0, &unknown)),
            ("do", soa().edns(4_096, 0, 0x8000, &[])),
            ("docd", soa().flags(0, 0x10).edns(4_096, 0, 0x8000, &[])),
            ("ednsflags", soa().edns(4_096, 0, 0x0080, &[])),
            ("optlist", soa().edns(4_096, 0, 0, &list)),
            ("longer list", soa().edns(4_096, 0, 0, &longer)),
            ("ednsnsid", soa().edns(4_096, 0, 0, &nsid)),
            ("ednscookie", soa().edns(4_096, 0, 0, &cookie)),
            ("ednsexpire", soa().edns(4_096, 0, 0, &expire)),
            ("ednssubnet", soa().edns(4_096, 0, 0, &subnet)),
            ("keepalive", soa().edns(4_096, 0, 0, &keepalive)),
            ("padding", soa().edns(4_096, 0, 0, &padding)),
            ("bind11", soa().edns(4_096, 0, 0x8000, &cookie)),
            ("dig11", soa().flags(0x01, 0x20).edns(4_096, 0, 0, &cookie)),
        ];
        for (name, ask) in cases {
            let reply = reply(server, over, ask);
            let asked = ask.opt.as_ref().unwrap();
            assert!(reply.code() == 0 && reply.has_soa(), "{name}");
            let (payload, version, flags, options) = reply.opt().expect(name);
            assert_eq!((payload, version), (1_232, 0), "{name}");
            // RFC 6891 §6.1.4: DO comes back, the other flags are zero.
            assert_eq!(flags, asked.flags & 0x8000, "{name}");
            let signed = |r: &hickory_proto::rr::Record| r.record_type() == RecordType::RRSIG;
            let has = reply.message.answers.iter().any(signed);
            assert_eq!(has, asked.flags & 0x8000 != 0, "{name}");
            for (code, data) in options {
                match code {
                    NSID => assert_eq!(data, b"ns1.test", "{name}"),
                    // The client's part, and a server's (RFC 9018 §4).
                    COOKIE => assert!(data.len() == 24 && data[..8] == CLIENT, "{name}"),
                    code => panic!("{name}: option {code} comes back"),
                }
            }
            let wants = |code: [u8; 2]| asked.options.windows(2).any(|two| two == code);
            assert_eq!(reply.option(NSID).is_some(), wants([0, 3]), "{name}");
            assert_eq!(reply.option(COOKIE).is_some(), wants([0, 10]), "{name}");
        }
        // RFC 6891 §6.1.3.
        for (name, flags, options) in [
            ("edns1", 0, &[][..]),
            ("edns1opt", 0, &unknown),
            ("edns1do", 0x8000, &[]),
            ("edns1nsid", 0, &nsid),
            ("edns1cookie", 0, &cookie),
            ("edns1expire", 0, &expire),
            ("edns1subnet", 0, &subnet),
        ] {
            let reply = reply(server, over, &soa().edns(4_096, 1, flags, options));
            assert!(reply.code() == 16 && !reply.has_soa(), "{name}");
            let (_, version, answered, options) = reply.opt().expect(name);
            assert_eq!((version, answered), (0, flags), "{name}");
            assert!(
                options
                    .iter()
                    .all(|(code, _)| matches!(*code, NSID | COOKIE)),
                "{name}"
            );
        }
        // edns@512 and ednstcp: no more than was offered, and by TCP the whole.
        let small = reply(server, over, &dnskey().edns(512, 0, 0x8000, &[]));
        assert!(small.code() == 0 && small.opt().is_some());
        match over {
            Over::Udp => assert!(small.octets.len() <= 512),
            _ => assert!(small.message.answers.len() >= 3, "keys and a signature"),
        }
        assert_eq!(
            small.message.metadata.truncation,
            small.message.answers.is_empty()
        );
        // `signed`: what DO adds is there.
        let signed = reply(server, over, &dnskey().edns(4_096, 0, 0x8000, &[]));
        assert!(!signed.message.metadata.truncation && signed.message.answers.len() >= 3);
    }
}

#[test]
fn every_type_opcode_and_class_has_an_answer() {
    let nuage = start("rate_limit = 0", ZONE);
    let (server, over) = (nuage.dns[0], Over::Udp);
    // RFC 8906 §3.1.1: unknown types are NODATA; none may be dropped.
    for kind in (1..=300).chain([512, 999, 32_768, 32_769, 65_280, 65_535]) {
        let reply = reply(server, over, &Ask::of("alice.w.example", kind));
        let code = match kind {
            // The name is no zone of ours (RFC 5936 §2.2.1).
            251 | 252 => 9,
            _ => 0,
        };
        assert_eq!(reply.code(), code, "type {kind}");
    }
    for opcode in 1..=15 {
        for ask in [
            Ask::of("w.example", SOA),
            Ask::of("w.example", SOA).edns(1_232, 0, 0, &[]),
            Ask::default(),
        ] {
            let reply = reply(server, over, &ask.flags(opcode << 3, 0));
            let code = reply.code();
            // One known by name may find its message malformed, no question being there.
            assert!(
                code == 4 || code == 1 && matches!(opcode, 2 | 4 | 5),
                "{opcode}"
            );
            assert_eq!(reply.octets[2] >> 3 & 0xf, opcode);
        }
    }
    for (class, name, code) in [
        (3, "version.bind", 5),
        (3, "id.server", 5),
        (3, "w.example", 5),
        (4, "w.example", 5),
        (254, "w.example", 5),
        (255, "w.example", 0),
        (0, "w.example", 5),
    ] {
        let mut ask = Ask::of(name, if class == 3 { 16 } else { SOA });
        let length = ask.question.len();
        ask.question[length - 1] = class;
        let reply = reply(server, over, &ask);
        assert_eq!(reply.code(), code, "{name} in class {class}");
        assert_eq!(
            reply.octets[12..12 + length],
            ask.question,
            "it comes back as asked"
        );
    }
    // RFC 8482 §4.1: one set for ANY; signatures come by the same rule.
    let any = reply(server, Over::Tcp, &Ask::of("w.example", 255));
    assert_eq!(any.message.answers.len(), 1);
    // The server tells nothing else of itself.
    let chaos = run(
        "dig",
        &[
            "@127.0.0.1",
            "-p",
            &server.port().to_string(),
            "CH",
            "TXT",
            "version.bind",
        ],
    );
    assert!(chaos.out.contains("status: REFUSED"), "{chaos:?}");
}

#[test]
fn malformed_messages_get_formerr_or_silence() {
    let nuage = start("rate_limit = 0", ZONE);
    let soa = Ask::of("w.example", SOA).octets();
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut octets = soa.clone();
        change(&mut octets);
        octets
    };
    let opt = |data: &[u8]| {
        let ask = Ask::of("w.example", SOA).edns(1_232, 0, 0, data);
        ask.octets()
    };
    let twice = {
        let mut octets = opt(&[]);
        octets[11] = 2;
        let record = octets[octets.len() - 11..].to_vec();
        octets.extend(record);
        octets
    };
    let many = {
        // Four hundred questions for the root in one message: nothing of them comes back.
        let mut octets = soa[..12].to_vec();
        octets[4..6].copy_from_slice(&400_u16.to_be_bytes());
        octets.extend([0, 0, 1, 0, 1].repeat(400));
        octets
    };
    let malformed: Vec<(&str, Vec<u8>)> = vec![
        ("a question cut short", soa[..20].to_vec()),
        ("no type", soa[..soa.len() - 4].to_vec()),
        ("a label of 64", with(&|octets| octets[12] = 64)),
        (
            "a pointer to itself",
            with(&|octets| octets[12..14].copy_from_slice(&[0xc0, 12])),
        ),
        (
            "a pointer into the header",
            with(&|octets| octets[12..14].copy_from_slice(&[0xc0, 4])),
        ),
        ("two questions, one there", with(&|octets| octets[5] = 2)),
        ("65,535 questions", with(&|octets| octets[4..6].fill(255))),
        ("four hundred questions", many),
        (
            "no question",
            with(&|octets| {
                octets.truncate(12);
                octets[5] = 0;
            }),
        ),
        ("records that are not there", with(&|octets| octets[7] = 1)),
        ("an OPT record too many", twice),
        ("an option cut short", opt(&[0, 3, 0])),
        ("an option past the end", opt(&[0, 3, 0, 9, 1])),
        (
            "an OPT record past the end",
            with(&|octets| {
                octets[11] = 1;
                octets.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 9]);
            }),
        ),
        (
            "a record past the end",
            with(&|octets| {
                octets[11] = 1;
                octets.extend([0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 1]);
            }),
        ),
        ("a name of 256 octets", {
            let mut octets = soa[..12].to_vec();
            octets.extend([1, b'x'].repeat(128));
            octets.extend([0, 0, 1, 0, 1]);
            octets
        }),
    ];
    for (what, octets) in &malformed {
        for (server, over) in ways(&nuage) {
            let answer = exchange(server, over, octets).unwrap_or_else(|| panic!("{what}"));
            assert_eq!(answer[3] & 0xf, 1, "{what}");
            assert!(
                answer.len() <= octets.len().max(23),
                "{what}: {} octets",
                answer.len()
            );
        }
    }
    // Cookies of other lengths (RFC 7873 §5.2.2).
    for length in (0..=64).filter(|length| *length != 8 && !(16..=40).contains(length)) {
        let octets = opt(&option(COOKIE, &vec![7; length]));
        let answer = exchange(nuage.dns[0], Over::Udp, &octets).unwrap();
        assert_eq!(answer[3] & 0xf, 1, "{length} octets of cookie");
    }
    // Silence for what would loop or can't be answered.
    for octets in [&soa[..11], &[0; 1], &with(&|octets| octets[2] |= 0x80)] {
        let socket = socket_for(nuage.dns[0]);
        socket
            .set_read_timeout(Some(Duration::from_millis(200)))
            .unwrap();
        socket.send_to(octets, nuage.dns[0]).unwrap();
        assert!(socket.recv(&mut [0; 512]).is_err());
    }
    assert!(!nuage.log().contains("failed"), "{}", nuage.log());
    assert!(!nuage.log().contains("panic"), "{}", nuage.log());
}

#[test]
fn a_cookie_lives_and_dies() {
    let nuage = start("", ZONE);
    let ask = |server: SocketAddr, cookie: &[u8]| {
        let ask = Ask::of("alice.w.example", 1).edns(1_232, 0, 0, &option(COOKIE, cookie));
        reply(server, Over::Udp, &ask)
    };
    for (server, other) in [(nuage.dns[0], nuage.dns[1]), (nuage.dns[1], nuage.dns[0])] {
        // RFC 7873 §5.2.3: a client's cookie alone: a whole one comes back with the answer.
        let first = ask(server, &CLIENT);
        let given = first.option(COOKIE).unwrap();
        assert_eq!((first.message.answers.len(), given.len()), (1, 24));
        // RFC 9018 §4: version 1, three octets of zero, the time.
        assert_eq!(given[8..12], [1, 0, 0, 0]);
        // §5.2.5: shown again it is good, and stays.
        assert_eq!(ask(server, &given).option(COOKIE).unwrap(), given);
        // §5.2.4: changed in any place it is not, nor is it another client's or another server's; the
        // answer to a small question comes all the same, with a new cookie.
        let made_up = [&CLIENT[..], &[9; 16]].concat();
        let longer = [&CLIENT[..], &[9; 32]].concat();
        for bad in [made_up, longer] {
            let again = ask(server, &bad);
            let new = again.option(COOKIE).unwrap();
            assert_eq!(again.message.answers.len(), 1);
            assert_eq!((new.len(), &new[..12]), (24, &given[..12]));
            assert_ne!(new, bad);
        }
        // From another address it proves nothing.
        assert_ne!(ask(other, &given).option(COOKIE).unwrap(), given);
    }
    // RFC 7873 §5.4: a question about nothing but the cookie.
    let mut alone = Ask::default().edns(1_232, 0, 0, &option(COOKIE, &CLIENT));
    let answer = reply(nuage.dns[0], Over::Udp, &alone);
    assert_eq!(
        (answer.code(), answer.option(COOKIE).unwrap().len()),
        (0, 24)
    );
    assert_eq!(answer.octets[4..12], [0, 0, 0, 0, 0, 0, 0, 1]);
    alone.opt = Some(Opt::default());
    assert_eq!(reply(nuage.dns[0], Over::Udp, &alone).code(), 1);
    // dig keeps the whole life, and says whether the cookie was good.
    let port = nuage.dns[0].port().to_string();
    let dig = run(
        "dig",
        &[
            "@127.0.0.1",
            "-p",
            &port,
            "+norec",
            "+cookie",
            "alice.w.example",
        ],
    );
    assert!(dig.out.contains("(good)"), "{dig:?}");
}

#[test]
fn identity_and_errors_are_told_to_who_asks() {
    let nuage = start("identity = \"ns1.school\"", ZONE);
    let port = nuage.dns[0].port().to_string();
    let dig = |more: &[&str]| {
        let mut all = vec!["@127.0.0.1", "-p", &port, "+norec"];
        all.extend(more);
        run("dig", &all).out
    };
    let nsid = dig(&["+nsid", "alice.w.example"]);
    assert!(nsid.contains("(\"ns1.school\")"), "{nsid}");
    assert!(!dig(&["alice.w.example"]).contains("ns1.school"));
    // RFC 8914 §4.21, §4.22, §4.19.
    let outside = dig(&["www.elsewhere.example"]);
    assert!(outside.contains("EDE: 20 (Not Authoritative)"), "{outside}");
    assert!(!dig(&["+noedns", "www.elsewhere.example"]).contains("EDE"));
    let notify = dig(&["+opcode=notify", "w.example", "SOA"]);
    assert!(notify.contains("EDE: 21 (Not Supported)"), "{notify}");
    let transfer = dig(&["+tcp", "+edns", "w.example", "IXFR=1"]);
    assert!(
        transfer.contains("REFUSED") || transfer.contains("failed"),
        "{transfer}"
    );
}

/// What came back of a flood.
struct Flood {
    whole: usize,
    cut: usize,
    /// The most that one name's limit of 20 lets through in the seconds it took.
    most: usize,
}

/// Sends a question 200 times at once.
fn flood(server: SocketAddr, octets: &[u8]) -> Flood {
    let started = Instant::now();
    let socket: UdpSocket = socket_for(server);
    let patience = Duration::from_millis(150);
    socket.set_read_timeout(Some(patience)).unwrap();
    for number in 0..200 {
        socket.send_to(octets, server).unwrap();
        if number % 20 == 19 {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    let seconds = usize::try_from(started.elapsed().as_secs()).unwrap();
    // Answers come at once or not at all.
    let (mut whole, mut cut, mut room) = (0, 0, [0; 4_096]);
    while socket.recv(&mut room).is_ok() {
        match room[2] & 0x02 {
            0 => whole += 1,
            _ => cut += 1,
        }
    }
    Flood {
        whole,
        cut,
        most: 20 * (seconds + 2),
    }
}

#[test]
fn floods_are_limited_and_slip_lets_real_clients_through() {
    let limited = |slip: u16, exempt: &str| {
        start(
            &format!("rate_limit = 20\nrate_limit_slip = {slip}\nrate_limit_exempt = [{exempt}]"),
            ZONE,
        )
    };
    let nuage = limited(2, "\"::1\"");
    for (name, kind) in [
        ("alice.w.example", 1),
        ("nobody.w.example", 1),
        ("www.elsewhere.example", 1),
        ("x.wild.w.example", 16),
    ] {
        let octets = Ask::of(name, kind).octets();
        let Flood { whole, cut, most } = flood(nuage.dns[0], &octets);
        assert!((20..=most).contains(&whole), "{name}: {whole}");
        // Half of the others, within one for each second.
        let half = (200 - whole) / 2;
        assert!(
            (half.saturating_sub(4)..=half).contains(&cut),
            "{name}: {cut}"
        );
        assert_eq!(flood(nuage.dns[1], &octets).whole, 200, "exempt");
        std::thread::sleep(Duration::from_millis(1_100));
    }
    // A client that shows its cookie is no stranger.
    let greeting = Ask::of("alice.w.example", 1).edns(1_232, 0, 0, &option(COOKIE, &CLIENT));
    let given = reply(nuage.dns[0], Over::Udp, &greeting)
        .option(COOKIE)
        .unwrap();
    let known = Ask::of("alice.w.example", 1).edns(1_232, 0, 0, &option(COOKIE, &given));
    assert_eq!(flood(nuage.dns[0], &known.octets()).whole, 200);
    // TCP is never limited.
    for _ in 0..50 {
        let answer = reply(nuage.dns[0], Over::Tcp, &Ask::of("alice.w.example", 1));
        assert_eq!(answer.message.answers.len(), 1);
    }
    let octets = Ask::of("alice.w.example", 1).octets();
    let silent = flood(limited(0, "").dns[0], &octets);
    assert!((20..=silent.most).contains(&silent.whole) && silent.cut == 0);
    let all = flood(limited(1, "").dns[0], &octets);
    assert!((20..=all.most).contains(&all.whole) && all.cut + all.whole == 200);
}

#[test]
fn a_stranger_gets_no_more_than_it_sent_of_what_is_large() {
    for sites in [40, 2_000] {
        for signed in [false, true] {
            let sites: String = (0..sites)
                .map(|n| format!("[sites.site-number-{n:05}]\n"))
                .collect();
            // A wide reverse zone: ANY there means the PTR set too.
            let folder = Folder::of_dns(
                "identity = \"a-long-identity-of-this-server\"",
                &format!("[reverse]\ndnssec = {signed}\nipv4_origin = \"2.0.192.in-addr.arpa\"\n"),
            );
            let signing = if signed { SIGNED } else { "" };
            folder.zone(&format!("{ZONE}{sites}{signing}"));
            let nuage = folder.serve();
            let server = nuage.dns[0];
            let large = [
                ("10.2.0.192.in-addr.arpa", 12),
                ("10.2.0.192.in-addr.arpa", 255),
                ("big.w.example", 16),
                ("big.w.example", 255),
            ];
            for (name, kind) in large {
                let shapes = |ask: Ask| {
                    let mut any_class = ask.clone();
                    let end = any_class.question.len() - 1;
                    any_class.question[end] = 255;
                    [ask, any_class]
                };
                let nsid = option(NSID, &[]);
                for plain in shapes(Ask::of(name, kind)) {
                    for ask in [
                        plain.clone(),
                        plain.clone().edns(1_232, 0, 0, &[]),
                        plain.clone().edns(4_096, 0, 0x8000, &[]),
                        plain.clone().edns(4_096, 0, 0x8000, &nsid),
                        plain.clone().edns(
                            4_096,
                            0,
                            0,
                            &option(COOKIE, &[CLIENT, [0; 8], [1; 8]].concat()),
                        ),
                    ] {
                        let reply = reply(server, Over::Udp, &ask);
                        let (sent, came) = (ask.octets().len(), reply.octets.len());
                        assert!(came <= sent, "{name} {kind}: {came} octets for {sent}");
                        assert!(reply.message.metadata.truncation, "{name} {kind}");
                    }
                    // A client that has no cookie yet gets one, sixteen octets more than it sent: else
                    // it would never have one (RFC 7873 §5.2.3).
                    let greeting = plain.clone().edns(1_232, 0, 0, &option(COOKIE, &CLIENT));
                    let greeted = reply(server, Over::Udp, &greeting);
                    assert_eq!(greeted.octets.len(), greeting.octets().len() + 16);
                    let given = greeted.option(COOKIE).unwrap();
                    let known = plain.clone().edns(1_232, 0, 0, &option(COOKIE, &given));
                    let known = reply(server, Over::Udp, &known);
                    let whole = reply(server, Over::Tcp, &plain);
                    assert!(!whole.message.metadata.truncation && whole.octets.len() > 524);
                    // What fits comes.
                    let fits = whole.octets.len() + 11 + 28 <= 1_232;
                    assert_eq!(known.message.metadata.truncation, !fits, "{name} {kind}");
                    assert_eq!(
                        known.message.answers.len(),
                        if fits { whole.message.answers.len() } else { 0 }
                    );
                }
            }
        }
    }
}

#[test]
fn a_cookie_has_its_room_and_what_is_only_convenient_goes_first() {
    let mut zone = ZONE.to_owned();
    let mut record = |name: &str, kind: &str, data: &str| {
        zone += &format!("[[records]]\nname = \"{name}\"\ntype = \"{kind}\"\ndata = '{data}'\n");
    };
    // With a bare OPT record this fits 512 octets, with a cookie in it not.
    record(
        "near",
        "TXT",
        &format!("\"{}\" \"{}\"", "x".repeat(255), "y".repeat(189)),
    );
    for number in 10..22 {
        record("mail", "MX", &format!("10 mx{number}"));
        record(&format!("mx{number}"), "A", "192.0.2.25");
        record(&format!("mx{number}"), "AAAA", "2001:db8::25");
    }
    record("far", "CNAME", "www.kid");
    for number in 10..22 {
        record("kid", "NS", &format!("ns{number}.kid"));
        record(&format!("ns{number}.kid"), "A", "192.0.2.26");
        record(&format!("ns{number}.kid"), "AAAA", "2001:db8::26");
    }
    let nuage = start("", &zone);
    for (server, over) in ways(&nuage) {
        let udp = matches!(over, Over::Udp);
        // Glue is no convenience, also where an alias leads to a referral (RFC 9471).
        let far = Message::from_vec(&Ask::of("far.w.example", 1).octets()).unwrap();
        let far = send_both_ways(server, over, &far);
        assert_eq!(far.metadata.truncation, udp, "{far}");
        assert_eq!(far.additionals.len(), if udp { 0 } else { 24 });
        let near = Ask::of("near.w.example", 16);
        let bare = reply(server, over, &near.clone().edns(512, 0, 0, &[]));
        assert!(!bare.message.metadata.truncation, "{}", bare.octets.len());
        assert!(bare.octets.len() > 512 - 28 && bare.octets.len() <= 512);
        let greeted = near.edns(512, 0, 0, &option(COOKIE, &CLIENT));
        let greeted = reply(server, over, &greeted);
        assert_eq!(greeted.option(COOKIE).unwrap().len(), 24);
        assert_eq!(greeted.message.metadata.truncation, udp);
        // RFC 2181 §9
        for (payload, extra) in [(None, !udp), (Some(1_232), true)] {
            let mut mail = Ask::of("mail.w.example", 15);
            if let Some(payload) = payload {
                mail = mail.edns(payload, 0, 0, &[]);
            }
            let mail = Message::from_vec(&mail.octets()).unwrap();
            let mail = send_both_ways(server, over, &mail);
            assert!(!mail.metadata.truncation, "{mail}");
            assert_eq!(mail.answers.len(), 12);
            assert_eq!(mail.additionals.len(), if extra { 24 } else { 0 });
        }
    }
}

#[test]
fn odd_questions_for_a_large_set_cost_no_more_than_plain_ones() {
    let sites: String = (0..2_300)
        .map(|n| format!("[sites.site-{n:05}]\n"))
        .collect();
    // Below the apex ANY is the set too.
    let folder = Folder::of_dns(
        "rate_limit = 0",
        "[reverse]\nipv4_origin = \"2.0.192.in-addr.arpa\"\n",
    );
    folder.zone(&format!("{ZONE}{sites}"));
    let nuage = folder.serve();
    let plain = Ask::of("10.2.0.192.in-addr.arpa", 12);
    let mut class = plain.clone();
    let end = class.question.len() - 1;
    class.question[end] = 255;
    let kind = Ask::of("10.2.0.192.in-addr.arpa", 255);
    let whole = reply(nuage.dns[0], Over::Tcp, &plain).message.answers.len();
    assert!(whole > 2_200, "{whole}");
    let cost = |ask: &Ask| {
        assert_eq!(
            reply(nuage.dns[0], Over::Tcp, ask).message.answers.len(),
            whole
        );
        let before = cpu(nuage.pid());
        for _ in 0..300 {
            let reply = reply(nuage.dns[0], Over::Udp, ask);
            assert!(reply.message.metadata.truncation);
        }
        cpu(nuage.pid()) - before
    };
    let (plain, class, kind) = (cost(&plain), cost(&class), cost(&kind));
    // Putting it together takes milliseconds in a development build; a tick of the clock is ten.
    assert!(
        class <= plain + 10 && kind <= plain + 10,
        "ticks: {plain}, {class}, {kind}"
    );
}

#[test]
fn large_questions_are_answered_and_larger_ones_not() {
    let nuage = start("", ZONE);
    // Padding to any length a datagram is read to (RFC 7830).
    for length in [0, 128, 468, 1_000, 1_900] {
        let padded = Ask::of("alice.w.example", 1).edns(1_232, 0, 0, &option(12, &vec![0; length]));
        let answer = reply(nuage.dns[0], Over::Udp, &padded);
        assert_eq!(answer.message.answers.len(), 1, "{length}");
    }
    // TCP takes what its length can say.
    let padded = Ask::of("alice.w.example", 1).edns(1_232, 0, 0, &option(12, &vec![0; 65_000]));
    let answer = reply(nuage.dns[0], Over::Tcp, &padded);
    assert_eq!(answer.message.answers.len(), 1);
    assert_eq!(answer.message.metadata.response_code, ResponseCode::NoError);
    let still = question("alice.w.example.", RecordType::A)
        .to_vec()
        .unwrap();
    assert!(exchange(nuage.dns[1], Over::Udp, &still).is_some());
}
