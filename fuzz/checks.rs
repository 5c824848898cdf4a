//! What must hold for any octets. The targets call these, and so does the test that replays their corpus.

use std::{cell::RefCell, collections::BTreeSet, fs, io::Write as _, sync::Arc};

use common::{
    Declared, Registry,
    record::{TYPES, master_line, parse_data, parse_owner},
};
use dns::{
    Transport,
    fuzzing::{Engine, Way},
};
use hickory_proto::{
    op::{Message, OpCode},
    rr::{LowerName, Name, RData, Record},
    serialize::binary::{BinDecodable, BinDecoder, BinEncodable, BinEncoder, Restrict},
};

const HEADER_OCTETS: usize = 12;
/// Without EDNS (RFC 1035 §4.2.1), and the most with it.
const PLAIN_OCTETS: usize = 512;
const DATAGRAM_OCTETS: usize = 1_232;

/// Something of everything: what `w.example` and `v.example` hold, and the reverse zones of the addresses.
const ZONE: &str = r#"
[sites.alice]
redirect = "https://x.example/"
aliases = ["al"]
[sites.bob]
redirect = "https://x.example/"
https = "both"
[sites.carol]
redirect = "https://x.example/"
[[records]]
name = "carol"
type = "HTTPS"
data = '1 svc.other.example. alpn=h2 key65280=x'
[[records]]
name = "@"
type = "MX"
data = "10 mx"
[[records]]
name = "mx"
type = "A"
data = "192.0.2.25"
[[records]]
name = "@"
type = "TXT"
data = '"v=spf1 -all"'
[[records]]
name = "big"
type = "TXT"
data = '"BIG" "BIG" "BIG" "BIG" "BIG" "BIG"'
[[records]]
name = "www"
type = "CNAME"
data = "alice"
[[records]]
name = "loop"
type = "CNAME"
data = "pool"
[[records]]
name = "pool"
type = "CNAME"
data = "loop"
[[records]]
name = "out"
type = "CNAME"
data = "alice.v.example."
[[records]]
name = "*.wild"
type = "TXT"
data = "any"
[[records]]
name = "*.star"
type = "CNAME"
data = "al"
[[records]]
name = "x.y.alice"
type = "SRV"
data = "1 2 443 bob"
[[records]]
name = "sub"
type = "NS"
data = "ns.sub"
[[records]]
name = "ns.sub"
type = "A"
data = "192.0.2.53"
[[records]]
name = "safe"
type = "NS"
data = "ns.sub"
[[records]]
name = "safe"
type = "DS"
data = "12345 13 2 49FD46E6C4B45C55D4AC49FD46E6C4B45C55D4AC49FD46E6C4B45C55D4AC1234"
"#;

/// Those zones, `w.example`, the one below it and the reverse zones signed.
fn world() -> Arc<Registry> {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().expect("it has a folder")).expect("a folder");
        let mut file = fs::File::create(path).expect("a file");
        file.write_all(text.as_bytes()).expect("room");
    };
    write(
        "nuage.toml",
        "[address]\nipv4 = \"192.0.2.10\"\nipv6 = \"2001:db8::10\"\n[paths]\nstate = \"state\"\n[reverse]\ndnssec = true\n",
    );
    write("chain.pem", "");
    write("key.pem", "");
    let zone = |origin: &str, signed: bool| {
        let body = ZONE.replace("BIG", &"b".repeat(250));
        write(
            &format!("zones/{origin}.toml"),
            &format!(
                "origin = \"{origin}\"\nnameservers = [\"ns1.{origin}\", \"ns.other.example\"]\n\
                 [dnssec]\nenabled = {signed}\n[certificate]\nchain = \"../chain.pem\"\nkey = \"../key.pem\"\n{body}"
            ),
        );
    };
    zone("w.example", true);
    zone("v.example", false);
    zone("below.w.example", true);
    let declared = Declared::open_to_serve(&folder.path().join("nuage.toml")).expect("a world");
    // That one zone lies inside another, and isn't delegated, is a warning.
    let problems = declared.problems();
    assert!(
        !problems.iter().any(common::Problem::is_error),
        "{problems:?}"
    );
    let registry = Arc::clone(declared.registry());
    let signed = registry.served.iter().filter(|zone| zone.signed.is_some());
    assert_eq!(signed.count(), 4);
    registry
}

thread_local! {
    static ENGINE: RefCell<Engine> = RefCell::new(Engine::new(world()).expect("an engine"));
}

/// Any octets as a message, over UDP and TCP.
pub(crate) fn packet(message: &[u8]) {
    ENGINE.with_borrow_mut(|engine| {
        let asked = Message::from_vec(message).ok();
        let [datagram, stream] = [Transport::Udp, Transport::Tcp].map(|transport| {
            let answer = engine.answer(message, transport, Way::Own)?;
            Some((
                answered(message, asked.as_ref(), &answer, transport),
                answer.len(),
            ))
        });
        // Silence is for what is no question.
        let question = message.len() >= HEADER_OCTETS && message[2] & 0x80 == 0;
        assert_eq!(datagram.is_some(), question, "over UDP");
        assert_eq!(stream.is_some(), question, "over TCP");
        if let (Some((datagram, _)), Some((stream, _))) = (&datagram, &stream)
            && !datagram.metadata.truncation
        {
            same(datagram, stream, "the two transports");
        }
        // Both ways agree, wherever both can answer.
        for transport in [Transport::Udp, Transport::Tcp] {
            if !question || asked.is_none() {
                break;
            }
            let Some(quick) = engine.answer(message, transport, Way::Quick) else {
                continue;
            };
            let general = engine.answer(message, transport, Way::General);
            let general = general.expect("the general way answers every question");
            let [quick, general] = [quick, general]
                .map(|answer| answered(message, asked.as_ref(), &answer, transport));
            let cut = quick.metadata.truncation || general.metadata.truncation;
            if !(cut && transport == Transport::Udp) {
                same(&quick, &general, "the two ways");
            }
        }
    });
}

/// An answer is well formed and belongs to its question.
fn answered(
    message: &[u8],
    asked: Option<&Message>,
    answer: &[u8],
    transport: Transport,
) -> Message {
    let mut decoder = BinDecoder::new(answer);
    let response = Message::read(&mut decoder).expect("the answer is a message");
    assert!(decoder.is_empty(), "octets after the answer");
    assert_eq!(answer[..2], message[..2], "its id");
    assert_eq!(answer[2] & 0xf8, 0x80 | message[2] & 0x78, "QR and opcode");
    // Z is zero, and so are RA and AD: we recurse for nobody and validate nothing.
    assert_eq!(answer[3] & 0xe0, 0, "RA, Z, AD");
    if transport == Transport::Udp {
        let payload = asked.and_then(|asked| asked.edns.as_ref());
        let most = match (asked, payload) {
            (Some(_), None) => PLAIN_OCTETS,
            (Some(_), Some(edns)) => {
                usize::from(edns.max_payload()).clamp(PLAIN_OCTETS, DATAGRAM_OCTETS)
            }
            (None, _) => DATAGRAM_OCTETS,
        };
        assert!(answer.len() <= most, "{} of {most} octets", answer.len());
    }
    if let Some(asked) = asked
        && asked.metadata.op_code == OpCode::Query
        && let [question] = &*asked.queries
        && let [echoed] = &*response.queries
    {
        assert_eq!(question, echoed, "the question");
    }
    if let Some(edns) = &response.edns {
        assert_eq!(edns.version(), 0);
    }
    response
}

/// Two answers say the same.
fn same(a: &Message, b: &Message, which: &str) {
    let code = |message: &Message| {
        let metadata = &message.metadata;
        (
            metadata.response_code,
            metadata.authoritative,
            metadata.recursion_desired,
            metadata.checking_disabled,
        )
    };
    assert_eq!(code(a), code(b), "{which}: code and flags");
    let sections = |message: &Message| {
        [&message.answers, &message.authorities, &message.additionals].map(|records| {
            // Names are the same in any case; each record once.
            let lines: Vec<String> = records
                .iter()
                .map(|r| r.to_string().to_lowercase())
                .collect();
            let set: BTreeSet<String> = lines.iter().cloned().collect();
            assert_eq!(
                lines.len(),
                set.len(),
                "{which}: a record twice in {lines:#?}"
            );
            set
        })
    };
    assert_eq!(sections(a), sections(b), "{which}: records");
    let options = |message: &Message| {
        message.edns.as_ref().map(|edns| {
            let options = edns.options().options.iter();
            let codes: Vec<u16> = options.map(|(code, _)| u16::from(*code)).collect();
            (edns.flags().dnssec_ok, edns.rcode_high(), codes)
        })
    };
    assert_eq!(options(a), options(b), "{which}: EDNS");
}

/// A connection's octets, cut anywhere: the first octet says how many pieces, one octet for each says how
/// long it is, and the rest is what is sent.
pub(crate) fn framing(octets: &[u8]) {
    let Some((count, rest)) = octets.split_first() else {
        return;
    };
    let Some((lengths, mut sent)) = rest.split_at_checked(usize::from(count % 32)) else {
        return;
    };
    let whole = sent.to_vec();
    let mut pieces = Vec::new();
    for length in lengths {
        let (piece, rest) = sent.split_at(usize::from(*length).min(sent.len()));
        pieces.push(piece.to_vec());
        sent = rest;
    }
    pieces.push(sent.to_vec());
    ENGINE.with_borrow_mut(|engine| {
        // Cookies hold the time: where a second begins in between, the next try is in one.
        let tried = (0..3).any(|_| {
            let want = conversation(engine, &whole);
            let cut = engine.converse(pieces.clone()).expect("a connection");
            let at_once = engine.converse(vec![whole.clone()]).expect("a connection");
            let slowly = whole.iter().map(|octet| vec![*octet]).collect();
            let slowly = engine.converse(slowly).expect("a connection");
            want == cut && want == at_once && want == slowly
        });
        assert!(tried, "the answers depend on how the octets come");
    });
}

/// What is said on a connection: each whole message's answer, up to the first that has none.
fn conversation(engine: &mut Engine, mut sent: &[u8]) -> Vec<u8> {
    let mut said = Vec::new();
    while let [high, low, rest @ ..] = sent {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let Some((message, rest)) = rest.split_at_checked(length) else {
            break;
        };
        let Some(answer) = engine.answer(message, Transport::Tcp, Way::Own) else {
            break;
        };
        said.extend_from_slice(&u16::try_from(answer.len()).expect("it fits").to_be_bytes());
        said.extend_from_slice(&answer);
        sent = rest;
    }
    said
}

/// A record as a zone file has it: owner, type and data, a line each.
pub(crate) fn record(octets: &[u8]) {
    let Ok(text) = std::str::from_utf8(octets) else {
        return;
    };
    let mut fields = text.splitn(3, '\n');
    let (Some(owner), Some(kind), Some(data)) = (fields.next(), fields.next(), fields.next())
    else {
        return;
    };
    let origin = Name::from_ascii("web.example.").expect("a name");
    let owner = parse_owner(owner, &origin);
    if let Ok(owner) = &owner {
        assert!(origin.zone_of(owner) && owner.is_fqdn(), "{owner}");
        assert_eq!(parse_owner(&owner.to_ascii(), &origin).as_ref(), Ok(owner));
    }
    let Ok(data) = parse_data(kind, data, &origin) else {
        return;
    };
    let kind = data.record_type();
    assert!(TYPES.contains(&&*kind.to_string()), "{kind}");
    let wire = encoded(&data);
    let back = decoded(&wire, &data);
    assert_eq!(encoded(&back), wire, "{data:?} and {back:?}");

    let owner = owner.unwrap_or_else(|_| origin.clone());
    let line = master_line(&Record::from_rdata(owner.clone(), 60, data.clone()));
    assert!(
        line.bytes().all(|byte| matches!(byte, b' '..=b'~' | b'\t')),
        "{line:?}"
    );
    let mut fields = line.splitn(5, '\t');
    let mut next = || fields.next().expect("five fields");
    let (name, ttl, class, written_kind, written) = (next(), next(), next(), next(), next());
    assert_eq!((ttl, class, written_kind), ("60", "IN", &*kind.to_string()));
    let name = parse_owner(name, &origin).expect("an owner again");
    assert_eq!(LowerName::new(&name), LowerName::new(&owner));
    // Type and length, and then the octets (RFC 3597 §5).
    let again = match written.strip_prefix("\\# ") {
        Some(generic) => {
            let (length, digits) = generic.split_once(' ').expect("length and digits");
            let octets = digits.as_bytes().chunks(2);
            let octets: Vec<u8> = octets
                .map(|pair| {
                    let pair = std::str::from_utf8(pair).expect("ASCII");
                    u8::from_str_radix(pair, 16).expect("a hexadecimal number")
                })
                .collect();
            assert_eq!(length, octets.len().to_string());
            octets
        }
        None => encoded(&parse_data(&kind.to_string(), written, &origin).expect("data again")),
    };
    assert_eq!(again, wire, "{line}");
}

fn encoded(data: &RData) -> Vec<u8> {
    let mut octets = Vec::new();
    let mut encoder = BinEncoder::new(&mut octets);
    encoder.set_canonical_form(true);
    data.emit(&mut encoder).expect("what parses encodes");
    octets
}

fn decoded(wire: &[u8], like: &RData) -> RData {
    let length = u16::try_from(wire.len()).expect("it fits a record");
    let mut decoder = BinDecoder::new(wire);
    let data = RData::read(&mut decoder, like.record_type(), Restrict::new(length));
    let data = data.expect("what is encoded decodes");
    assert!(decoder.is_empty(), "octets after {data:?}");
    data
}
