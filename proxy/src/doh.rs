//! DNS over HTTPS (RFC 8484), on the names of our own name servers: what a request asks, and for how
//! long its answer may be kept. Who answers is handed in; of DNS this knows what frames a message.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use common::Registry;
use data_encoding::BASE64URL_NOPAD;
use http::{HeaderMap, Method, header};
use pingora::{Error, ErrorType, Result, http::ResponseHeader, proxy::Session};
use tokio::time::timeout;

use crate::connection::{awaits_continue, client, finish_unread_body, linger};

/// The path resolvers know (the example of RFC 8484 §4.1.1, and what everybody took from there).
const PATH: &str = "/dns-query";
/// RFC 8484 §6.
const MEDIA_TYPE: &str = "application/dns-message";
/// A message's length has two octets wherever DNS counts it (RFC 8484 §6).
const MOST_OCTETS: usize = 65_535;
/// RFC 1035 §4.1.1.
const HEADER_OCTETS: usize = 12;
/// In the third octet of the header: set in responses.
const QR: u8 = 0x80;
const SOA: u16 = 6;

/// Answers DNS messages; the DNS server does.
pub trait NameServer: Send + Sync + 'static {
    /// The response to a query from `source`, of up to 65,535 octets as over TCP; `None` where DNS
    /// would be silent. It only computes: an HTTP worker waits for it.
    fn answer(&self, message: &[u8], source: SocketAddr) -> Option<Vec<u8>>;
}

/// Why a request gets no DNS message; told to whoever writes a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum Refusal {
    #[error("ask by GET or POST")]
    Method,
    #[error("a question by POST is of type application/dns-message")]
    MediaType,
    #[error("a question by GET is one parameter: /dns-query?dns=...")]
    NoQuestion,
    #[error("the parameter dns is not base64url without padding")]
    Encoding,
    #[error("this is no DNS query: too short, or a response")]
    NoQuery,
    #[error("a DNS message has at most 65,535 octets")]
    TooLarge,
    #[error("the question did not come whole in time")]
    TooSlow,
    #[error("the name server has no answer to this")]
    Silence,
}

impl Refusal {
    fn status(self) -> u16 {
        match self {
            Self::NoQuestion | Self::Encoding | Self::NoQuery => 400,
            Self::Method => 405,
            Self::TooSlow => 408,
            Self::TooLarge => 413,
            Self::MediaType => 415,
            Self::Silence => 500,
        }
    }
}

/// Whether a path of a host without a site is for the name server: the host is one, just below the
/// origin of its zone, where the zone's certificate speaks for it.
pub(crate) fn is_for(registry: &Registry, host: &str, path: &str) -> bool {
    path == PATH
        && host
            .split_once('.')
            .and_then(|(_, origin)| registry.zone(origin))
            .is_some_and(|zone| zone.nameservers.iter().any(|name| name.as_str() == host))
}

/// Answers a request. Its body may take `patience` as a whole.
pub(crate) async fn serve(
    session: &mut Session,
    name_server: &dyn NameServer,
    patience: Duration,
) -> Result<()> {
    let source = client(session).ok_or_else(|| {
        Error::explain(ErrorType::InternalError, "a client without an address").into_down()
    })?;
    // What the client would accept is not asked: there is one form of an answer (RFC 8484 §4.1).
    let asked = question(session, patience).await?;
    let answered =
        asked.and_then(|query| name_server.answer(&query, source).ok_or(Refusal::Silence));
    let (response, body) = match answered {
        Ok(message) => (accepted(&message)?, message.into()),
        Err(refusal) => {
            let body = Bytes::from(format!("{refusal}\n"));
            (refused(refusal, body.len())?, body)
        }
    };
    finish_unread_body(session);
    let head_only = session.req_header().method == Method::HEAD;
    session
        .write_response_header(Box::new(response), head_only)
        .await?;
    if !head_only {
        session.write_response_body(Some(body), true).await?;
    }
    linger(session).await;
    Ok(())
}

fn accepted(message: &[u8]) -> Result<ResponseHeader> {
    let mut response = ResponseHeader::build(200, Some(4))?;
    response.insert_header(header::CONTENT_TYPE, MEDIA_TYPE)?;
    response.insert_header(header::CONTENT_LENGTH, message.len())?;
    let seconds = lifetime(message);
    response.insert_header(header::CACHE_CONTROL, format!("max-age={seconds}"))?;
    Ok(response)
}

fn refused(refusal: Refusal, length: usize) -> Result<ResponseHeader> {
    let mut response = ResponseHeader::build(refusal.status(), Some(5))?;
    response.insert_header(header::CONTENT_TYPE, "text/plain; charset=utf-8")?;
    response.insert_header(header::CONTENT_LENGTH, length)?;
    response.insert_header(header::CACHE_CONTROL, "no-store")?;
    if refusal == Refusal::Method {
        response.insert_header(header::ALLOW, "GET, HEAD, POST")?;
    }
    Ok(response)
}

/// The query a request carries (RFC 8484 §4.1).
async fn question(session: &mut Session, patience: Duration) -> Result<Result<Vec<u8>, Refusal>> {
    let request = session.req_header();
    let message = match request.method {
        Method::GET | Method::HEAD => in_parameter(request.uri.query()),
        Method::POST => match announced(&request.headers) {
            Ok(()) => match timeout(patience, body(session)).await {
                Ok(read) => read?,
                // A read of its own has a deadline too, but drips reset it.
                Err(_) => Err(Refusal::TooSlow),
            },
            Err(refusal) => Err(refusal),
        },
        _ => Err(Refusal::Method),
    };
    Ok(message.and_then(query))
}

/// Reads a body, no further than a message can be long.
async fn body(session: &mut Session) -> Result<Result<Vec<u8>, Refusal>> {
    if awaits_continue(session.req_header()) {
        let interim = ResponseHeader::build(100, Some(0))?;
        session
            .as_downstream_mut()
            .write_response_header(Box::new(interim))
            .await?;
    }
    let mut message = Vec::new();
    while let Some(piece) = session
        .as_downstream_mut()
        .read_request_body()
        .await
        .map_err(Error::into_down)?
    {
        if message.len() + piece.len() > MOST_OCTETS {
            return Ok(Err(Refusal::TooLarge));
        }
        message.extend_from_slice(&piece);
    }
    Ok(Ok(message))
}

/// What the head says of a body, before any of it is read.
fn announced(headers: &HeaderMap) -> Result<(), Refusal> {
    let field = |name| headers.get(name)?.to_str().ok();
    // The type has no parameters (RFC 8484 §6); unknown ones are ignored.
    let is_message = field(header::CONTENT_TYPE)
        .and_then(|value| value.split(';').next())
        .is_some_and(|essence| essence.trim().eq_ignore_ascii_case(MEDIA_TYPE));
    if !is_message {
        return Err(Refusal::MediaType);
    }
    match field(header::CONTENT_LENGTH).map(str::parse::<usize>) {
        None => Ok(()),
        Some(Ok(length)) if length <= MOST_OCTETS => Ok(()),
        Some(_) => Err(Refusal::TooLarge),
    }
}

/// The message in `?dns=`. The URI template's expansion escapes nothing of base64url (RFC 6570
/// §3.2.1), so an escape is refused like every other octet outside that alphabet.
fn in_parameter(query: Option<&str>) -> Result<Vec<u8>, Refusal> {
    let mut values = query
        .unwrap_or_default()
        .split('&')
        .filter_map(|pair| pair.strip_prefix("dns="));
    let (Some(text), None) = (values.next(), values.next()) else {
        return Err(Refusal::NoQuestion);
    };
    BASE64URL_NOPAD
        .decode(text.as_bytes())
        .map_err(|_| Refusal::Encoding)
}

/// Holds a message against what every query has: a header, and that it is no response.
fn query(message: Vec<u8>) -> Result<Vec<u8>, Refusal> {
    match message.get(2) {
        _ if message.len() > MOST_OCTETS => Err(Refusal::TooLarge),
        Some(flags) if message.len() >= HEADER_OCTETS && flags & QR == 0 => Ok(message),
        _ => Err(Refusal::NoQuery),
    }
}

/// The seconds a response may be kept: its records' smallest TTL, for a negative one what its SOA says
/// (RFC 8484 §5.1, RFC 2308 §5), and none where there is nothing to go by.
fn lifetime(response: &[u8]) -> u32 {
    Records(response).lifetime().unwrap_or(0)
}

/// Octets of a message still unread.
struct Records<'m>(&'m [u8]);

impl<'m> Records<'m> {
    fn lifetime(mut self) -> Option<u32> {
        self.take(4)?;
        let [questions, answers, authorities] = [self.number()?, self.number()?, self.number()?];
        self.take(2)?;
        for _ in 0..questions {
            self.name()?;
            self.take(4)?;
        }
        let mut smallest = None;
        for index in 0..u32::from(answers) + u32::from(authorities) {
            let (kind, ttl, data) = self.record()?;
            let seconds = if index < u32::from(answers) {
                ttl
            } else if kind == SOA {
                // MINIMUM comes last (RFC 1035 §3.3.13).
                ttl.min(u32::from_be_bytes(*data.last_chunk()?))
            } else {
                continue;
            };
            smallest = Some(smallest.unwrap_or(seconds).min(seconds));
        }
        smallest
    }

    /// Type, TTL and data of the next record.
    fn record(&mut self) -> Option<(u16, u32, &'m [u8])> {
        self.name()?;
        let kind = self.number()?;
        self.take(2)?;
        let ttl = u32::from_be_bytes(*self.take(4)?.first_chunk()?);
        let length = self.number()?;
        // With its first bit set a TTL is none (RFC 2181 §8).
        let ttl = if ttl > u32::MAX / 2 { 0 } else { ttl };
        Some((kind, ttl, self.take(usize::from(length))?))
    }

    /// Passes over a name (RFC 1035 §4.1.4).
    fn name(&mut self) -> Option<()> {
        loop {
            match self.take(1)?.first()? {
                0 => return Some(()),
                length @ 1..=63 => self.take(usize::from(*length))?,
                0xC0.. => return self.take(1).map(|_| ()),
                _ => return None,
            };
        }
    }

    fn number(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(*self.take(2)?.first_chunk()?))
    }

    fn take(&mut self, octets: usize) -> Option<&'m [u8]> {
        let (taken, rest) = self.0.split_at_checked(octets)?;
        self.0 = rest;
        Some(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// www.example.com A, as RFC 8484 §4.1.1 asks it.
    const ASKED: &str = "AAABAAABAAAAAAAAA3d3dwdleGFtcGxlA2NvbQAAAQAB";

    #[test]
    fn a_question_is_one_parameter_in_base64url_without_padding() {
        let message = in_parameter(Some(&format!("dns={ASKED}"))).unwrap();
        assert_eq!(&message[12..], b"\x03www\x07example\x03com\0\0\x01\0\x01");
        assert_eq!(
            in_parameter(Some(&format!("x=1&dns={ASKED}&y"))),
            Ok(message)
        );
        for (query, want) in [
            (None, Refusal::NoQuestion),
            (Some("question=AAAB"), Refusal::NoQuestion),
            (Some("dns=AAAB&dns=AAAB"), Refusal::NoQuestion),
            (Some("dns=AAAAAA=="), Refusal::Encoding),
            (Some("dns=AAAAAA%3D%3D"), Refusal::Encoding),
            // The other alphabet, and bits that say nothing.
            (Some("dns=+/+/"), Refusal::Encoding),
            (Some("dns=AB"), Refusal::Encoding),
        ] {
            assert_eq!(in_parameter(query), Err(want), "{query:?}");
        }
        assert_eq!(
            in_parameter(Some("dns=")).and_then(query),
            Err(Refusal::NoQuery)
        );
    }

    #[test]
    fn only_queries_pass() {
        let mut message = vec![0; HEADER_OCTETS];
        assert_eq!(query(message.clone()), Ok(message.clone()));
        assert_eq!(query(message[1..].to_vec()), Err(Refusal::NoQuery));
        message[2] = QR;
        assert_eq!(query(message), Err(Refusal::NoQuery));
        assert_eq!(query(vec![0; MOST_OCTETS + 1]), Err(Refusal::TooLarge));
    }

    #[test]
    fn a_body_announces_what_it_is() {
        let announced = |kind: &str, length: &str| {
            let fields = [
                (header::CONTENT_TYPE, kind),
                (header::CONTENT_LENGTH, length),
            ];
            announced(&HeaderMap::from_iter(
                fields.map(|(name, value)| (name, value.parse().unwrap())),
            ))
        };
        for kind in ["application/dns-message", "Application/DNS-Message; x=y"] {
            assert_eq!(announced(kind, "65535"), Ok(()));
        }
        assert_eq!(announced(MEDIA_TYPE, "65536"), Err(Refusal::TooLarge));
        assert_eq!(
            announced("application/dns-json", "1"),
            Err(Refusal::MediaType)
        );
        assert_eq!(announced("", "1"), Err(Refusal::MediaType));
    }

    /// Type, TTL and data.
    type Record<'r> = (u16, u32, &'r [u8]);

    fn response(answers: &[Record<'_>], authorities: &[Record<'_>]) -> Vec<u8> {
        let mut octets = vec![0, 0, 0x84, 0, 0, 1];
        for count in [answers.len(), authorities.len(), 0] {
            octets.extend(u16::try_from(count).unwrap().to_be_bytes());
        }
        octets.extend(b"\x01a\x01w\x07example\0\0\x01\0\x01");
        for (kind, ttl, data) in answers.iter().chain(authorities) {
            octets.extend(b"\xc0\x0c");
            octets.extend(kind.to_be_bytes());
            octets.extend(b"\0\x01");
            octets.extend(ttl.to_be_bytes());
            octets.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
            octets.extend(*data);
        }
        octets
    }

    #[test]
    fn an_answer_is_kept_for_its_smallest_ttl_and_a_negative_one_as_its_soa_says() {
        let address = |ttl| (1, ttl, &[192, 0, 2, 1][..]);
        let name = |kind, ttl| (kind, ttl, &b"\0"[..]);
        let mut data = [0; 22];
        data[18..].copy_from_slice(&30_u32.to_be_bytes());
        let soa = |ttl| (SOA, ttl, &data[..]);
        let cases: [(&[Record<'_>], &[Record<'_>], u32); 8] = [
            (&[address(300), address(60)], &[], 60),
            // Name servers beside an answer say nothing of it.
            (&[address(300)], &[name(2, 5)], 300),
            (&[], &[soa(300)], 30),
            (&[], &[soa(20)], 20),
            // An alias that leads nowhere is both.
            (&[name(5, 300)], &[soa(300)], 30),
            (&[], &[name(2, 300)], 0),
            (&[address(0x8000_0000)], &[], 0),
            (&[], &[], 0),
        ];
        for (answers, authorities, want) in cases {
            let found = lifetime(&response(answers, authorities));
            assert_eq!(found, want, "{answers:?} {authorities:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_octets_have_a_lifetime(octets in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            proptest::prop_assert!(lifetime(&octets) <= u32::MAX / 2);
        }
    }
}
