//! A DNS client that shows every bit of an answer.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    path::Path,
    sync::Arc,
};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query},
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::{A, opt::EdnsCode},
    },
};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};

use crate::harness::PATIENCE;

/// How to ask.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Over {
    Udp,
    Tcp,
    Tls(Trust),
}

/// Whose certificates are believed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trust(&'static Arc<ClientConfig>);

impl Trust {
    /// The authority in a PEM file. A test has few of them, and keeps them to its end.
    pub(crate) fn in_file(path: impl AsRef<Path>) -> Self {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_file(path).unwrap())
            .unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"dot".to_vec()];
        Self(Box::leak(Box::new(Arc::new(config))))
    }

    /// A connection to the name server of w.example.
    pub(crate) fn connect(self, server: SocketAddr) -> StreamOwned<ClientConnection, TcpStream> {
        let stream = TcpStream::connect(server).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let name = ServerName::try_from("ns1.w.example").unwrap();
        StreamOwned::new(
            ClientConnection::new(Arc::clone(self.0), name).unwrap(),
            stream,
        )
    }
}

/// A question as most resolvers put it: EDNS with 1,232 octets.
pub(crate) fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(4_711, MessageType::Query, OpCode::Query);
    let mut query = Query::query(parse(name), kind);
    query.set_query_class(DNSClass::IN);
    message.add_query(query);
    let mut edns = Edns::new();
    edns.set_max_payload(1_232);
    message.set_edns(edns);
    message
}

/// A name, label by label: hickory reads no slashes (RFC 2317) and no hyphens at the front.
fn parse(name: &str) -> Name {
    let labels = name.trim_end_matches('.').split('.').map(str::as_bytes);
    let mut name = Name::from_labels(labels.filter(|label| !label.is_empty())).unwrap();
    name.set_fqdn(true);
    name
}

/// Sends octets and returns the octets that come back, if any do within a moment.
pub(crate) fn exchange(server: SocketAddr, over: Over, octets: &[u8]) -> Option<Vec<u8>> {
    match over {
        Over::Udp => {
            let socket = socket_for(server);
            socket.send_to(octets, server).unwrap();
            let mut answer = vec![0; 65_535];
            let (length, from) = socket.recv_from(&mut answer).ok()?;
            assert_eq!(from, server, "answers come from where the question went");
            answer.truncate(length);
            Some(answer)
        }
        Over::Tcp => {
            let mut stream = TcpStream::connect(server).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.write_all(&framed(octets)).unwrap();
            read_framed(&mut stream)
        }
        Over::Tls(trust) => {
            let mut stream = trust.connect(server);
            stream.write_all(&framed(octets)).unwrap();
            stream.flush().unwrap();
            read_framed(&mut stream)
        }
    }
}

/// A UDP socket of the server's family, with a little patience.
pub(crate) fn socket_for(server: SocketAddr) -> UdpSocket {
    let local = if server.is_ipv4() {
        "127.0.0.1:0"
    } else {
        "[::1]:0"
    };
    let socket = UdpSocket::bind(local).unwrap();
    let patience = std::time::Duration::from_secs(2);
    socket.set_read_timeout(Some(patience)).unwrap();
    socket
}

/// A message behind its length (RFC 1035 §4.2.2).
pub(crate) fn framed(octets: &[u8]) -> Vec<u8> {
    let length = u16::try_from(octets.len()).unwrap().to_be_bytes();
    [&length[..], octets].concat()
}

/// The next message of a connection; `None` at its end.
pub(crate) fn read_framed(stream: &mut impl Read) -> Option<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).ok()?;
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer).unwrap();
    Some(answer)
}

/// Asks and decodes.
pub(crate) fn send(server: SocketAddr, over: Over, message: &Message) -> Message {
    let octets = message.to_vec().unwrap();
    let answer = exchange(server, over, &octets).expect("an answer");
    let answer = Message::from_vec(&answer).unwrap();
    assert_eq!(answer.metadata.id, message.metadata.id);
    assert_eq!(answer.metadata.message_type, MessageType::Response);
    assert!(
        !answer.metadata.recursion_available,
        "an authoritative server does not offer recursion"
    );
    answer
}

/// Asks for a name and a type.
pub(crate) fn ask(server: SocketAddr, over: Over, name: &str, kind: RecordType) -> Message {
    send(server, over, &question(name, kind))
}

/// Asks twice: as the message is, and with a record in its additional section that says nothing, which
/// the way of common questions hands to the general one. Both must say the same.
pub(crate) fn send_both_ways(server: SocketAddr, over: Over, message: &Message) -> Message {
    let quick = send(server, over, message);
    let mut odd = message.clone();
    odd.add_additional(Record::from_rdata(
        Name::from_ascii("nothing.invalid.").unwrap(),
        0,
        RData::A(A::new(192, 0, 2, 99)),
    ));
    agree(&quick, &send(server, over, &odd), &format!("{message}"));
    quick
}

/// The same for a name and a type.
pub(crate) fn ask_both_ways(
    server: SocketAddr,
    over: Over,
    name: &str,
    kind: RecordType,
) -> Message {
    send_both_ways(server, over, &question(name, kind))
}

/// Panics where two answers differ in more than compression, the id and the time in a cookie.
pub(crate) fn agree(a: &Message, b: &Message, question: &str) {
    if let Err(difference) = same(a, b) {
        panic!("{difference}\nthe question:\n{question}\none:\n{a}\nthe other:\n{b}");
    }
}

/// What two answers differ in.
pub(crate) fn same(a: &Message, b: &Message) -> Result<(), &'static str> {
    let (mut x, mut y) = (a.metadata, b.metadata);
    (x.id, y.id) = (0, 0);
    let options = |message: &Message| {
        let edns = message.edns.as_ref()?;
        let kept = |code: &EdnsCode| *code != EdnsCode::Cookie;
        let options = edns.options().as_ref().iter();
        let options: Vec<_> = options.filter(|(code, _)| kept(code)).cloned().collect();
        let cookie = edns.option(EdnsCode::Cookie).is_some();
        let (flags, payload) = (*edns.flags(), edns.max_payload());
        Some((payload, edns.version(), flags, options, cookie))
    };
    // Names of different case are equal: compression takes the case of what it points at.
    let records = |a: &[Record], b: &[Record]| {
        a.iter().zip(b).all(|(a, b)| {
            (a.ttl, a.dns_class, &a.name, &a.data) == (b.ttl, b.dns_class, &b.name, &b.data)
        }) && a.len() == b.len()
    };
    match () {
        () if x != y => Err("the headers differ"),
        () if a.queries != b.queries => Err("the questions differ"),
        () if options(a) != options(b) => Err("the OPT records differ"),
        () if !records(&a.answers, &b.answers) => Err("the answer sections differ"),
        () if !records(&a.authorities, &b.authorities) => Err("the authority sections differ"),
        () if !records(&a.additionals, &b.additionals) => Err("the additional sections differ"),
        () => Ok(()),
    }
}

/// Records as `name type data`, sorted.
pub(crate) fn lines(records: &[Record]) -> Vec<String> {
    let mut lines: Vec<String> = records
        .iter()
        .map(|r| format!("{} {} {}", r.name, r.record_type(), r.data))
        .collect();
    lines.sort_unstable();
    lines
}
