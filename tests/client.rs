//! A DNS client that shows every bit of an answer.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query},
    rr::{DNSClass, Name, RecordType},
};

use crate::harness::PATIENCE;

/// How to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Over {
    Udp,
    Tcp,
}

pub(crate) const BOTH: [Over; 2] = [Over::Udp, Over::Tcp];

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

/// A name; classless reverse ones hold a slash (RFC 2317), which hickory reads only label by label.
fn parse(name: &str) -> Name {
    match name.contains('/') {
        false => Name::from_ascii(name).unwrap(),
        true => {
            let labels = name.trim_end_matches('.').split('.').map(str::as_bytes);
            let mut name = Name::from_labels(labels).unwrap();
            name.set_fqdn(true);
            name
        }
    }
}

/// Sends octets and returns the octets that come back, if any do within a moment.
pub(crate) fn exchange(server: SocketAddr, over: Over, octets: &[u8]) -> Option<Vec<u8>> {
    match over {
        Over::Udp => {
            let local = if server.is_ipv4() {
                "127.0.0.1:0"
            } else {
                "[::1]:0"
            };
            let socket = UdpSocket::bind(local).unwrap();
            socket
                .set_read_timeout(Some(std::time::Duration::from_secs(2)))
                .unwrap();
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
            stream
                .write_all(&u16::try_from(octets.len()).unwrap().to_be_bytes())
                .unwrap();
            stream.write_all(octets).unwrap();
            let mut length = [0; 2];
            stream.read_exact(&mut length).ok()?;
            let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut answer).unwrap();
            Some(answer)
        }
    }
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

/// Records as `name type data`, sorted.
pub(crate) fn lines(records: &[hickory_proto::rr::Record]) -> Vec<String> {
    let mut lines: Vec<String> = records
        .iter()
        .map(|r| format!("{} {} {}", r.name, r.record_type(), r.data))
        .collect();
    lines.sort_unstable();
    lines
}
