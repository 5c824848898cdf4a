//! Made-up questions, the same for all: the way of common questions beside the general one, and Nuage
//! beside NSD and Knot with the exported zones.
//!
//! `NUAGE_QUESTIONS=5000000 cargo test differential` asks more of them, `NUAGE_SEED=7` others.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use common::{Declared, Published, record::master_line};
use dns::{Limits, Rates, Sockets, Transport};
use hickory_proto::{
    op::{Message, Query},
    rr::{Name, Record, RecordType},
};

use crate::{
    client::{framed, read_framed, same, socket_for},
    harness::{Folder, Server, free_port, run, until},
};

/// One of everything.
pub(crate) const ZONE: &str = r#"ttl = 300
[sites.alice]
aliases = ["al", "alice-2"]
[sites.bob]
[sites.0-first]
[sites.zz9]
[sites.a-b-c]
[[records]]
name = "@"
type = "MX"
data = "10 mx"
[[records]]
name = "@"
type = "TXT"
data = '"a b;c" "\"d\""'
[[records]]
name = "Mixed.Case"
type = "CNAME"
data = "WWW.Elsewhere.Example."
[[records]]
name = "mx"
type = "A"
data = "192.0.2.25"
[[records]]
name = "escaped"
type = "CNAME"
data = "a\\.b.elsewhere.example."
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
name = "loop"
type = "CNAME"
data = "loop"
[[records]]
name = "tosub"
type = "CNAME"
data = "www.sub"
[[records]]
name = "*.wild"
type = "TXT"
data = "star"
[[records]]
name = "*.alice"
type = "TXT"
data = "below a site"
[[records]]
name = "*.cwild"
type = "CNAME"
data = "www.sub"
[[records]]
name = "*.awild"
type = "CNAME"
data = "alice"
[[records]]
name = "known.wild"
type = "A"
data = "192.0.2.28"
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
name = "safe"
type = "NS"
data = "ns.elsewhere.example."
[[records]]
name = "safe"
type = "DS"
data = "12345 13 2 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
[[records]]
name = "_dmarc.alice"
type = "TXT"
data = "v=DMARC1"
[[records]]
name = "_sip._tcp"
type = "SRV"
data = "1 2 5060 alice"
[[records]]
name = "big"
type = "TXT"
data = '"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx" "yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy" "zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz"'
"#;

pub(crate) const SIGNED: &str = "[dnssec]\nenabled = true\n";
const REVERSE: &str = "[reverse]\ndnssec = true\nipv4_origin = \"2.0.192.in-addr.arpa\"\n";
pub(crate) const NAMES: &[&str] = &[
    "w.example",
    "alice.w.example",
    "al.w.example",
    "alice-2.w.example",
    "bob.w.example",
    "0-first.w.example",
    "zz9.w.example",
    "a-b-c.w.example",
    "ns1.w.example",
    "mx.w.example",
    "mixed.case.w.example",
    "case.w.example",
    "escaped.w.example",
    "chain.w.example",
    "link.w.example",
    "dangling.w.example",
    "loop.w.example",
    "tosub.w.example",
    "wild.w.example",
    "*.wild.w.example",
    "x.wild.w.example",
    "known.wild.w.example",
    "x.known.wild.w.example",
    "x.alice.w.example",
    "x.cwild.w.example",
    "x.y.awild.w.example",
    "ent.w.example",
    "under.ent.w.example",
    "deep.under.ent.w.example",
    "sub.w.example",
    "ns.sub.w.example",
    "www.sub.w.example",
    "safe.w.example",
    "www.safe.w.example",
    "_dmarc.alice.w.example",
    "_tcp.w.example",
    "_sip._tcp.w.example",
    "big.w.example",
    "10.2.0.192.in-addr.arpa",
    "2.0.192.in-addr.arpa",
    "0.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa",
];
const KINDS: &[u16] = &[
    1, 1, 1, 28, 28, 65, 16, 15, 2, 6, 5, 12, 33, 43, 48, 47, 46, 255, 257, 59, 60, 64, 52, 39,
];

/// SplitMix64: the same questions from the same seed.
pub(crate) struct Chance(pub(crate) u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, most: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(most).unwrap()).unwrap()
    }

    pub(crate) fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }

    fn octet(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }

    fn word(&mut self) -> u16 {
        u16::from_le_bytes([self.octet(), self.octet()])
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    fn label(&mut self) -> Vec<u8> {
        let length = match self.below(20) {
            0 => 63,
            1 => 1,
            _ => 1 + self.below(12),
        };
        let any = self.percent(10);
        (0..length)
            .map(|_| match any {
                true => self.octet(),
                false => self.of(b"abcdefghijklmnopqrstuvwxyz0123456789-_*"),
            })
            .collect()
    }

    /// A name's labels: one of ours, near one of ours, or nobody's.
    fn name(&mut self) -> Vec<Vec<u8>> {
        let known = |chance: &mut Self| -> Vec<Vec<u8>> {
            let name = chance.of(NAMES);
            name.split('.')
                .map(|label| label.as_bytes().to_vec())
                .collect()
        };
        let mut labels = match self.below(20) {
            0..=8 => known(self),
            9..=10 => {
                let mut labels = known(self);
                for _ in 0..=self.below(3) {
                    labels.insert(0, self.label());
                }
                labels
            }
            11..=13 => {
                let mut labels = vec![self.label()];
                labels.extend(["w", "example"].map(|label| label.as_bytes().to_vec()));
                labels
            }
            14..=15 => {
                let mut labels = known(self);
                let at = self.below(labels.len());
                match self.below(3) {
                    0 => drop(labels.remove(at)),
                    1 => labels[at] = self.label(),
                    _ => {
                        let octet = self.octet();
                        let label = &mut labels[at];
                        let place = self.below(label.len());
                        label[place] = octet;
                    }
                }
                labels
            }
            16 => {
                let mut labels = known(self);
                labels.insert(0, b"*".to_vec());
                labels
            }
            17 => {
                let mut labels = known(self);
                while labels.iter().map(|label| label.len() + 1).sum::<usize>() < 253 {
                    labels.insert(0, vec![b'l']);
                }
                labels
            }
            18 => Vec::new(),
            _ => (0..=self.below(4)).map(|_| self.label()).collect(),
        };
        while labels.iter().map(|label| label.len() + 1).sum::<usize>() > 254 {
            labels.remove(0);
        }
        if self.percent(20) {
            for octet in labels.iter_mut().flatten() {
                if self.percent(50) {
                    octet.make_ascii_uppercase();
                }
            }
        }
        labels
    }

    fn options(&mut self) -> Vec<u8> {
        let mut options = Vec::new();
        for _ in 0..self.below(4) {
            let (code, data): (u16, Vec<u8>) = match self.below(10) {
                0 => (3, vec![]),
                1 => (10, (0..8).map(|_| self.octet()).collect()),
                2 => (10, (0..24).map(|_| self.octet()).collect()),
                3 => (10, (0..self.below(50)).map(|_| self.octet()).collect()),
                4 => (8, vec![0, 1, 24, 0, 192, 0, 2]),
                5 => (11, vec![]),
                6 => (12, vec![0; self.below(64)]),
                7 => (9, vec![]),
                8 => (
                    u16::from(self.octet() % 24),
                    (0..self.below(20)).map(|_| self.octet()).collect(),
                ),
                _ => (
                    self.word(),
                    (0..self.below(20)).map(|_| self.octet()).collect(),
                ),
            };
            options.extend_from_slice(&code.to_be_bytes());
            options.extend_from_slice(&u16::try_from(data.len()).unwrap().to_be_bytes());
            options.extend_from_slice(&data);
        }
        options
    }

    /// A whole message; a `tame` one is a query as it should be.
    fn message(&mut self, tame: bool) -> Vec<u8> {
        let mut message = self.word().to_be_bytes().to_vec();
        message.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        if self.percent(50) {
            message[2] |= 1;
        }
        if self.percent(20) {
            message[3] |= 0x10;
        }
        if !tame && self.percent(10) {
            message[2] = self.octet() & 0x7f;
            message[3] = self.octet();
        }
        for label in self.name() {
            message.push(u8::try_from(label.len()).unwrap());
            message.extend_from_slice(&label);
        }
        message.push(0);
        let kind = match self.below(10) {
            0 => self.word(),
            1 => u16::from(self.octet()),
            _ => self.of(KINDS),
        };
        let class = match self.below(if tame { 1 } else { 30 }) {
            28 => 255,
            29 => self.word(),
            27 => 3,
            _ => 1,
        };
        message.extend_from_slice(&kind.to_be_bytes());
        message.extend_from_slice(&u16::to_be_bytes(class));
        if !tame && self.percent(5) {
            message.extend_from_slice(&[0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 192, 0, 2, 1]);
            message[11] += 1;
        }
        if self.percent(65) {
            message[11] += 1;
            message.extend_from_slice(&[0, 0, 41]);
            let payload = self.of(&[0, 512, 1_232, 1_400, 4_096, 65_535]);
            message.extend_from_slice(&u16::to_be_bytes(payload));
            let version = u8::from(!tame && self.percent(3));
            let dnssec = if self.percent(50) { 0x80 } else { 0 };
            let strange = if !tame && self.percent(5) { 0x40 } else { 0 };
            message.extend_from_slice(&[0, version, dnssec | strange, 0]);
            let options = if tame { Vec::new() } else { self.options() };
            message.extend_from_slice(&u16::try_from(options.len()).unwrap().to_be_bytes());
            message.extend_from_slice(&options);
        }
        if !tame && self.percent(5) {
            self.damage(&mut message);
        }
        message
    }

    /// Breaks a message a little.
    pub(crate) fn damage(&mut self, message: &mut Vec<u8>) {
        for _ in 0..=self.below(3) {
            let at = self.below(message.len().max(1));
            match self.below(4) {
                0 => message.truncate(at),
                1 => message.extend((0..self.below(40)).map(|_| self.octet())),
                2 => message.insert(at, self.octet()),
                _ => {
                    if let Some(place) = message.get_mut(at) {
                        *place = self.octet();
                    }
                }
            }
        }
    }
}

/// A made-up message for whoever wants to send some.
pub(crate) fn wild(chance: &mut Chance) -> Vec<u8> {
    chance.message(false)
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |value| value.parse().unwrap())
}

/// A server of a folder's zones in this process, and what it serves: `nuage zone export` signs anew.
fn serve(folder: &Folder, sockets: Sockets) -> (dns::Server, Arc<common::Registry>) {
    let declared = Declared::open_to_serve(&folder.config()).unwrap();
    assert!(declared.problems().is_empty(), "{:?}", declared.problems());
    let published = Published::new(Arc::clone(declared.registry()));
    let limits = Limits {
        connections: 100,
        connections_per_address: 100,
        idle: Duration::from_secs(1),
        rates: Rates {
            answers: 0,
            slip: 0,
            exempt: Vec::new(),
        },
        identity: "ns1".to_owned(),
    };
    let registry = prometheus::Registry::new();
    let journal =
        common::journal::Journal::open(std::path::Path::new("/nonexistent"), &published.load());
    // Secondaries would be told on it.
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _inside = runtime.enter();
    let server = dns::start(sockets, published, journal, limits, None, &registry).unwrap();
    (server, Arc::clone(declared.registry()))
}

fn folder(signed: bool) -> Folder {
    let folder = Folder::of_dns("rate_limit = 0", if signed { REVERSE } else { "" });
    folder.zone(&if signed {
        format!("{ZONE}{SIGNED}")
    } else {
        ZONE.to_owned()
    });
    folder
}

#[test]
fn both_ways_of_answering_say_the_same() {
    let questions = number("NUAGE_QUESTIONS", 10_000);
    let source: SocketAddr = (Ipv4Addr::LOCALHOST, 5_353).into();
    std::thread::scope(|scope| {
        for signed in [false, true] {
            scope.spawn(move || {
                let folder = folder(signed);
                let (server, _) = serve(&folder, Sockets::default());
                let answerer = server.answerer();
                let mut chance = Chance(number("NUAGE_SEED", 1) << 1 | u64::from(signed));
                let (mut quick_ones, mut readable) = (0, 0);
                for _ in 0..questions {
                    let message = chance.message(false);
                    let transport = chance.of(&[Transport::Udp, Transport::Tcp]);
                    let [quick, general] = answerer.both_ways(&message, source, transport);
                    if message.len() < 12 || message[2] & 0x80 != 0 {
                        continue;
                    }
                    let general = general.unwrap_or_else(|| panic!("no answer to {message:x?}"));
                    check(&message, &general, transport);
                    let Some(quick) = quick else { continue };
                    quick_ones += 1;
                    check(&message, &quick, transport);
                    let (a, b) = (decoded(&quick), decoded(&general));
                    readable += u64::from(!a.answers.is_empty());
                    if let Err(difference) = same(&a, &b) {
                        // What one compresses a little better may just fit.
                        if transport == Transport::Udp {
                            let whole = answerer.both_ways(&message, source, Transport::Tcp);
                            let [x, y] = whole.map(Option::unwrap_or_default);
                            let most = x.len().max(y.len());
                            if x.len() != y.len()
                                && most > 512
                                && same(&decoded(&x), &decoded(&y)).is_ok()
                            {
                                continue;
                            }
                        }
                        panic!("{difference}: {transport:?} {message:x?}\none:\n{a}\nother:\n{b}");
                    }
                }
                assert!(quick_ones > questions / 4, "{quick_ones}");
                assert!(readable > questions / 100, "{readable}");
            });
        }
    });
}

fn decoded(octets: &[u8]) -> Message {
    Message::from_vec(octets).unwrap_or_else(|error| panic!("{error}: {octets:x?}"))
}

/// What is true of every answer.
fn check(message: &[u8], answer: &[u8], transport: Transport) {
    assert_eq!(answer[..2], message[..2], "the id");
    assert_eq!(answer[2] & 0xf8, message[2] & 0x78 | 0x80, "QR, opcode");
    assert_eq!(answer[3] & 0xe0, 0, "RA, Z, AD: {message:x?}");
    if transport == Transport::Udp {
        assert!(answer.len() <= 1_232, "{message:x?}");
    } else {
        assert_eq!(answer[2] & 0x02, 0, "TC: {message:x?}");
    }
    decoded(answer);
}

/// A peer with our zones.
struct Peer {
    name: &'static str,
    address: SocketAddr,
    _server: Server,
}

fn nsd(zones: &[(String, String)]) -> Peer {
    let port = free_port();
    let mut config = format!(
        "server:\n  ip-address: 127.0.0.1@{port}\n  username: \"\"\n  chroot: \"\"\n  zonesdir: \"@DIR@\"\n  pidfile: \"\"\n  xfrdfile: \"@DIR@/xfrd\"\n  \
         zonelistfile: \"@DIR@/list\"\n  xfrdir: \"@DIR@\"\n  cookie-secret-file: \"@DIR@/cookies\"\n  minimal-responses: yes\n  refuse-any: no\n  rrl-ratelimit: 0\n  hide-version: yes\n\
         remote-control:\n  control-enable: no\n"
    );
    let mut files = Vec::new();
    for (number, (origin, text)) in zones.iter().enumerate() {
        let file = format!("zone{number}");
        config.push_str(&format!(
            "zone:\n  name: \"{origin}\"\n  zonefile: \"{file}\"\n"
        ));
        files.push((file, text.as_str()));
    }
    let mut all: Vec<(&str, &str)> = vec![("nsd.conf", &config)];
    all.extend(files.iter().map(|(file, text)| (file.as_str(), *text)));
    let server = Server::start(&all, port, "nsd", &["-d", "-c", "@DIR@/nsd.conf"]);
    ready("NSD", port, server)
}

fn knot(zones: &[(String, String)]) -> Peer {
    let port = free_port();
    let mut config = format!(
        "server:\n  rundir: \"@DIR@\"\n  listen: 127.0.0.1@{port}\n  udp-workers: 1\n  tcp-workers: 1\n  background-workers: 1\n  version: \"\"\n\
         database:\n  storage: \"@DIR@/db\"\ntemplate:\n  - id: default\n    storage: \"@DIR@\"\n    zonefile-sync: -1\n    journal-content: none\nzone:\n"
    );
    let mut files = Vec::new();
    for (number, (origin, text)) in zones.iter().enumerate() {
        let file = format!("zone{number}");
        config.push_str(&format!("  - domain: \"{origin}\"\n    file: \"{file}\"\n"));
        files.push((file, text.as_str()));
    }
    let mut all: Vec<(&str, &str)> = vec![("knot.conf", &config)];
    all.extend(files.iter().map(|(file, text)| (file.as_str(), *text)));
    let server = Server::start(&all, port, "knotd", &["-c", "@DIR@/knot.conf"]);
    ready("Knot", port, server)
}

fn ready(name: &'static str, port: u16, server: Server) -> Peer {
    until(&format!("{name} has loaded the zone"), || {
        let port = port.to_string();
        let soa = &["@127.0.0.1", "-p", &port, "+short", "w.example", "SOA"];
        run("dig", soa).out.starts_with("ns1.w.example.")
    });
    Peer {
        name,
        address: (Ipv4Addr::LOCALHOST, port).into(),
        _server: server,
    }
}

/// One question and two answers to it.
struct Case<'a> {
    peer: &'static str,
    name: Name,
    kind: RecordType,
    ours: &'a Message,
    theirs: &'a Message,
}

/// Where a peer may differ: whether the case is one of these, and why it may.
type Explained = (&'static str, fn(&Case<'_>) -> bool);

const EXPLAINED: &[Explained] = &[
    (
        "ANY gets one set here (RFC 8482 §4.1); peers give another one, or all",
        |case| case.kind == RecordType::ANY,
    ),
    (
        "types that are no data (RFC 6895 §3.1) are refused by peers in ways of their own",
        |case| {
            let kind = u16::from(case.kind);
            matches!(kind, 0 | 41 | 128..=254)
        },
    ),
    (
        "RRSIG by name: one signature is enough here (RFC 8482 §7), peers give all",
        |case| case.kind == RecordType::RRSIG,
    ),
    (
        "NSD follows an alias for NSEC, and not for NSEC3, of which no zone here has any; RFC 4035 §2.5 lets NSEC and CNAME stand at one name",
        |case| {
            let aliases = |message: &Message| {
                let answers = message.answers.iter();
                answers
                    .filter(|r| r.record_type() == RecordType::CNAME)
                    .count()
            };
            matches!(
                (case.peer, case.kind),
                ("NSD", RecordType::NSEC | RecordType::NSEC3)
            ) && aliases(case.ours) != aliases(case.theirs)
        },
    ),
    (
        "Knot takes a name that begins with an asterisk for the wildcard itself, and leaves out the proof that it does not exist",
        |case| case.peer == "Knot" && case.name.is_wildcard(),
    ),
    (
        "the NSEC record of a wildcard under the name it was made for is its own proof to Knot",
        |case| case.peer == "Knot" && case.kind == RecordType::NSEC && case.ours.answers.len() == 2,
    ),
    (
        "a loop of aliases is cut after different numbers of rounds",
        |case| {
            let aliases = case.ours.answers.iter();
            case.name.to_lowercase().to_string() == "loop.w.example."
                && aliases
                    .filter(|r| r.record_type() == RecordType::CNAME)
                    .count()
                    > 0
        },
    ),
];

/// Types and data of a section, in no order; TTLs too.
fn set(records: &[Record]) -> Vec<String> {
    let mut lines: Vec<String> = records
        .iter()
        .map(|record| format!("{record}").to_lowercase())
        .collect();
    lines.sort_unstable();
    lines.dedup();
    lines
}

fn difference(ours: &Message, theirs: &Message) -> Option<String> {
    let fields = [
        (
            "code",
            ours.metadata.response_code == theirs.metadata.response_code,
        ),
        (
            "AA",
            ours.metadata.authoritative == theirs.metadata.authoritative,
        ),
        ("answers", set(&ours.answers) == set(&theirs.answers)),
        (
            "authorities",
            set(&ours.authorities) == set(&theirs.authorities),
        ),
    ];
    let different: Vec<&str> = fields
        .into_iter()
        .filter(|(_, same)| !same)
        .map(|(field, _)| field)
        .collect();
    (!different.is_empty()).then(|| different.join(", "))
}

fn over_tcp(server: SocketAddr, message: &[u8]) -> Message {
    let mut stream = std::net::TcpStream::connect(server).unwrap();
    std::io::Write::write_all(&mut stream, &framed(message)).unwrap();
    decoded(&read_framed(&mut stream).unwrap())
}

/// The answer to this message: what an earlier one got too late is passed over.
fn talk(socket: &UdpSocket, server: SocketAddr, message: &[u8]) -> Option<Message> {
    socket.send_to(message, server).unwrap();
    let mut room = [0; 4_096];
    loop {
        let length = socket.recv(&mut room).ok()?;
        if room[..length].starts_with(&message[..2]) {
            return Some(decoded(&room[..length]));
        }
    }
}

#[test]
fn an_answer_that_comes_too_late_is_not_taken_for_the_next() {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let socket = socket_for(server.local_addr().unwrap());
    let mut chance = Chance(7);
    let (late, message) = (chance.message(true), chance.message(true));
    assert_ne!(late[..2], message[..2]);
    for answer in [&late, &message] {
        let mut answer = answer.clone();
        answer[2] |= 0x80;
        server
            .send_to(&answer, socket.local_addr().unwrap())
            .unwrap();
    }
    let answer = talk(&socket, server.local_addr().unwrap(), &message).unwrap();
    assert_eq!(answer.metadata.id.to_be_bytes(), message[..2]);
}

fn beside_peers(signed: bool) {
    let folder = folder(signed);
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = tcp.local_addr().unwrap();
    let sockets = Sockets {
        udp: vec![UdpSocket::bind(address).unwrap()],
        tcp: vec![tcp],
        tls: Vec::new(),
    };
    let (_server, registry) = serve(&folder, sockets);
    let zones: Vec<(String, String)> = registry
        .served
        .iter()
        .map(|zone| {
            let lines: Vec<String> = zone.records().map(|record| master_line(&record)).collect();
            (zone.authority.apex.to_string(), lines.join("\n") + "\n")
        })
        .collect();
    let peers = [nsd(&zones), knot(&zones)];
    let mut chance = Chance(number("NUAGE_SEED", 1) << 8 | u64::from(signed));
    let mut unexplained: BTreeMap<String, (usize, String)> = BTreeMap::new();
    let sockets = peers.each_ref().map(|peer| socket_for(peer.address));
    let own = socket_for(address);
    let mut seen = 0;
    for _ in 0..number("NUAGE_QUESTIONS", 2_000).min(1_000_000) {
        let message = chance.message(true);
        if message.len() < 12 || message[2] & 0x80 != 0 {
            continue;
        }
        let ours =
            talk(&own, address, &message).unwrap_or_else(|| panic!("no answer to {message:x?}"));
        for (peer, socket) in peers.iter().zip(&sockets) {
            let Some(theirs) = talk(socket, peer.address, &message) else {
                continue;
            };
            seen += 1;
            // Sizes differ, and what doesn't fit one's datagram may fit the other's.
            let cut = ours.metadata.truncation || theirs.metadata.truncation;
            let (ours, theirs) = match cut {
                true => (
                    over_tcp(address, &message),
                    over_tcp(peer.address, &message),
                ),
                false => (ours.clone(), theirs),
            };
            let Some(difference) = difference(&ours, &theirs) else {
                continue;
            };
            let query = ours.queries.first().or(theirs.queries.first());
            let case = Case {
                peer: peer.name,
                name: query.map_or_else(Name::root, |query| query.name().clone()),
                kind: query.map_or(RecordType::ZERO, Query::query_type),
                ours: &ours,
                theirs: &theirs,
            };
            if EXPLAINED.iter().any(|(_, explains)| explains(&case)) {
                continue;
            }
            let class = format!("{}: {difference}, {}", case.peer, case.kind);
            let shown = format!(
                "{} {}\nours\n{}\ntheirs\n{}",
                case.name, case.kind, case.ours, case.theirs
            );
            unexplained.entry(class).or_insert((0, shown)).0 += 1;
        }
    }
    assert!(seen > 1_000, "{seen} answers of peers");
    let told: Vec<String> = unexplained
        .iter()
        .map(|(class, (count, first))| format!("{count} times {class}, first {first}"))
        .collect();
    assert!(told.is_empty(), "{}", told.join("\n"));
}

#[test]
fn nsd_and_knot_answer_the_exported_zones_alike() {
    beside_peers(false);
}

#[test]
fn nsd_and_knot_answer_the_signed_zones_alike() {
    beside_peers(true);
}
