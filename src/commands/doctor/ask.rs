//! Asking name servers: one question, the answer that belongs to it, in bounded time.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{DNSClass, Name, RData, RecordType},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::{Instant, timeout},
};

use crate::commands::delegation::plain;

/// How long one try may take.
const TRY: Duration = Duration::from_secs(2);
const TRIES: u32 = 2;
/// How long everything together may take.
const WHOLE: Duration = Duration::from_secs(30);
/// What fits any path without fragments (RFC 9715 §3.2).
const PAYLOAD: u16 = 1_232;
/// Servers looked at in a zone: more than 13 names don't fit where delegations come from.
pub(super) const MOST_SERVERS: usize = 13;
/// Addresses looked at of one server.
const MOST_ADDRESSES: usize = 4;
/// A chain of aliases longer than this is not followed.
const MOST_ALIASES: usize = 8;

/// What carries a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Over {
    Udp,
    Tcp,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Silence {
    /// Nothing came back.
    #[error("doesn't answer ({TRIES} tries of {} seconds)", TRY.as_secs())]
    Timeout,
    /// Nobody listens there.
    #[error("doesn't listen (connection refused)")]
    Refused,
    /// This machine can't send there, which says nothing of the server.
    #[error("can't be reached from this machine (no route)")]
    NoRoute,
    /// The time for everything together is over.
    #[error("was not asked: the {} seconds for everything are over", WHOLE.as_secs())]
    Late,
    /// The connection or what came over it failed otherwise.
    #[error("fails: {0}")]
    Broken(String),
}

impl From<io::Error> for Silence {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::NetworkUnreachable | io::ErrorKind::AddrNotAvailable => Self::NoRoute,
            _ => Self::Broken(error.to_string()),
        }
    }
}

/// A name server at one of its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Server {
    pub(super) name: Name,
    pub(super) address: IpAddr,
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", plain(&self.name), self.address)
    }
}

/// What a question asks for beyond name and type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// What the server itself knows.
    Direct,
    /// What a visitor gets.
    Recursive,
    /// What is there, valid or not (RFC 4035 §3.2.2): faults of DNSSEC hide nothing else.
    Unchecked,
}

/// Asks a resolver and servers until its time is over.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asker {
    resolver: SocketAddr,
    deadline: Instant,
}

impl Asker {
    /// An asker whose time starts now.
    pub(super) fn new(resolver: SocketAddr) -> Self {
        Self {
            resolver,
            deadline: Instant::now() + WHOLE,
        }
    }

    /// The resolver as people write it: its port only where it is another than 53.
    pub(super) fn resolver(&self) -> String {
        match self.resolver.port() {
            53 => self.resolver.ip().to_string(),
            _ => self.resolver.to_string(),
        }
    }

    /// What the resolver says to visitors.
    pub(super) async fn resolve(&self, name: &Name, kind: RecordType) -> Result<Message, Silence> {
        self.whole(self.resolver, name, kind, Manner::Recursive)
            .await
    }

    /// What the resolver finds, without checking signatures.
    pub(super) async fn find(&self, name: &Name, kind: RecordType) -> Result<Message, Silence> {
        self.whole(self.resolver, name, kind, Manner::Unchecked)
            .await
    }

    /// What a server itself says.
    pub(super) async fn ask(
        &self,
        server: IpAddr,
        name: &Name,
        kind: RecordType,
    ) -> Result<Message, Silence> {
        self.whole(SocketAddr::new(server, 53), name, kind, Manner::Direct)
            .await
    }

    /// The same over one transport, truncated or not.
    pub(super) async fn ask_over(
        &self,
        over: Over,
        server: IpAddr,
        name: &Name,
        kind: RecordType,
    ) -> Result<Message, Silence> {
        let to = SocketAddr::new(server, 53);
        self.exchange(to, over, name, kind, Manner::Direct).await
    }

    /// The addresses of a name, through the resolver; why there are none when nothing was found out.
    pub(super) async fn addresses(&self, name: &Name) -> Result<Vec<IpAddr>, String> {
        let (v4, v6) = tokio::join!(
            self.find(name, RecordType::A),
            self.find(name, RecordType::AAAA)
        );
        let mut found = Vec::new();
        let mut failed = None;
        for answer in [v4, v6] {
            match answer {
                Ok(message) if negative_or_good(&message) => {
                    found.extend(addresses(&message, name));
                }
                Ok(message) => failed = Some(code(message.metadata.response_code)),
                Err(silence) => failed = Some(format!("the resolver {silence}")),
            }
        }
        found.truncate(MOST_ADDRESSES);
        match failed {
            Some(why) if found.is_empty() => Err(why),
            _ => Ok(found),
        }
    }

    /// An answer in full: over TCP where UDP has no room (RFC 7766 §5).
    async fn whole(
        &self,
        to: SocketAddr,
        name: &Name,
        kind: RecordType,
        manner: Manner,
    ) -> Result<Message, Silence> {
        let message = self.exchange(to, Over::Udp, name, kind, manner).await?;
        if message.metadata.truncation {
            return self.exchange(to, Over::Tcp, name, kind, manner).await;
        }
        Ok(message)
    }

    async fn exchange(
        &self,
        to: SocketAddr,
        over: Over,
        name: &Name,
        kind: RecordType,
        manner: Manner,
    ) -> Result<Message, Silence> {
        let mut edns = true;
        for _ in 0..TRIES {
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Silence::Late);
            }
            let asked = question(name, kind, manner, edns);
            let answer = async {
                match over {
                    Over::Udp => udp(to, &asked).await,
                    Over::Tcp => tcp(to, &asked).await,
                }
            };
            match timeout(left.min(TRY), answer).await {
                // A server too old for EDNS says so (RFC 6891 §7).
                Ok(Ok(message))
                    if edns && message.metadata.response_code == ResponseCode::FormErr =>
                {
                    edns = false;
                }
                Ok(answer) => return answer,
                Err(_) => {}
            }
        }
        Err(Silence::Timeout)
    }
}

fn question(name: &Name, kind: RecordType, manner: Manner, edns: bool) -> Message {
    // Its ID is random; so is the port, which the kernel chooses (RFC 5452 §9.2).
    let mut message = Message::query();
    message.metadata.recursion_desired = manner != Manner::Direct;
    message.metadata.checking_disabled = manner == Manner::Unchecked;
    message.add_query(Query::query(name.clone(), kind));
    if edns {
        let mut edns = Edns::new();
        edns.set_max_payload(PAYLOAD);
        message.set_edns(edns);
    }
    message
}

/// Whether a message answers a question (RFC 5452 §9.1); a connected socket has checked the address.
fn answers(message: &Message, asked: &Message) -> bool {
    let (head, want) = (&message.metadata, &asked.metadata);
    // Servers that don't understand a question need not repeat it.
    let bare = message.queries.is_empty() && head.response_code == ResponseCode::FormErr;
    head.id == want.id
        && head.message_type == MessageType::Response
        && head.op_code == OpCode::Query
        && (message.queries == asked.queries || bare)
}

fn octets(asked: &Message) -> Result<Vec<u8>, Silence> {
    asked
        .to_vec()
        .map_err(|error| Silence::Broken(error.to_string()))
}

async fn udp(to: SocketAddr, asked: &Message) -> Result<Message, Silence> {
    let any = match to {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(to).await?;
    socket.send(&octets(asked)?).await?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // What doesn't belong to the question may be forged: the true answer may still come.
        if let Ok(message) = Message::from_vec(&buffer[..length])
            && answers(&message, asked)
        {
            return Ok(message);
        }
    }
}

async fn tcp(to: SocketAddr, asked: &Message) -> Result<Message, Silence> {
    let mut stream = TcpStream::connect(to).await?;
    let octets = octets(asked)?;
    let length = u16::try_from(octets.len()).map_err(|error| Silence::Broken(error.to_string()))?;
    // Length and message in one segment (RFC 7766 §8).
    let framed = [&length.to_be_bytes()[..], &octets].concat();
    stream.write_all(&framed).await?;
    let mut buffer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut buffer).await?;
    let message = Message::from_vec(&buffer).map_err(|error| Silence::Broken(error.to_string()))?;
    if answers(&message, asked) {
        Ok(message)
    } else {
        Err(Silence::Broken(
            "the answer is to another question".to_owned(),
        ))
    }
}

/// Whether a message says what there is, be it nothing.
pub(super) fn negative_or_good(message: &Message) -> bool {
    matches!(
        message.metadata.response_code,
        ResponseCode::NoError | ResponseCode::NXDomain
    )
}

/// The owner of the records an answer leads to: the end of its chain of aliases.
pub(super) fn end_of_chain(message: &Message, name: &Name) -> Name {
    let mut end = name.clone();
    for _ in 0..MOST_ALIASES {
        let next = message
            .answers
            .iter()
            .find_map(|record| match &record.data {
                RData::CNAME(target) if record.name == end => Some(target.0.clone()),
                _ => None,
            });
        match next {
            Some(next) => end = next,
            None => break,
        }
    }
    end
}

/// The data of an answer, at the end of its chain of aliases.
pub(super) fn data<'m>(
    message: &'m Message,
    name: &Name,
) -> impl Iterator<Item = (&'m RData, u32)> + use<'m> {
    let end = end_of_chain(message, name);
    message
        .answers
        .iter()
        .filter(move |record| record.name == end && record.dns_class == DNSClass::IN)
        .map(|record| (&record.data, record.ttl))
}

/// The addresses in an answer.
pub(super) fn addresses(message: &Message, name: &Name) -> Vec<IpAddr> {
    data(message, name)
        .filter_map(|(data, _)| data.ip_addr())
        .collect()
}

/// A response code as `dig` prints it, with what it means.
pub(super) fn code(code: ResponseCode) -> String {
    match code {
        ResponseCode::NoError => "NOERROR".to_owned(),
        ResponseCode::FormErr => "FORMERR, the question is not understood".to_owned(),
        ResponseCode::ServFail => "SERVFAIL".to_owned(),
        ResponseCode::NXDomain => "NXDOMAIN, no such name".to_owned(),
        ResponseCode::NotImp => "NOTIMP, not implemented".to_owned(),
        ResponseCode::Refused => "REFUSED".to_owned(),
        ResponseCode::NotAuth => "NOTAUTH, no authority for the zone".to_owned(),
        other => format!("response code {}", u16::from(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    #[test]
    fn an_answer_belongs_to_its_question() {
        let asked = question(&name("w.example."), RecordType::NS, Manner::Direct, true);
        let mut answer = Message::response(asked.metadata.id, OpCode::Query);
        answer.add_query(Query::query(name("W.Example."), RecordType::NS));
        assert!(answers(&answer, &asked));
        let mut other_id = answer.clone();
        other_id.metadata.id ^= 1;
        assert!(!answers(&other_id, &asked));
        let mut other_question = answer.clone();
        other_question.queries[0].query_type = RecordType::A;
        assert!(!answers(&other_question, &asked));
        let mut none = answer.clone();
        none.queries.clear();
        assert!(!answers(&none, &asked));
        none.metadata.response_code = ResponseCode::FormErr;
        assert!(answers(&none, &asked));
        assert!(!answers(&asked, &asked), "a question is no answer");
    }

    #[test]
    fn a_loop_of_aliases_ends() {
        use hickory_proto::rr::{Record, rdata::CNAME};
        let mut message = Message::response(1, OpCode::Query);
        for (from, to) in [("a.", "b."), ("b.", "a.")] {
            let data = RData::CNAME(CNAME(name(to)));
            message.add_answer(Record::from_rdata(name(from), 60, data));
        }
        assert!(addresses(&message, &name("a.")).is_empty());
        assert_eq!(end_of_chain(&message, &name("c.")), name("c."));
    }
}
