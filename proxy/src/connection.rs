//! How a request came: in clear or over TLS, from whom, and whether its connection goes on.

use std::{net::SocketAddr, time::Duration};

use http::{Version, header};
use pingora::{http::RequestHeader, proxy::Session};
use tokio::time::timeout;

use crate::certificates::ServerName;

/// What still comes of a body that was answered already is taken in for this long,
const LINGER: Duration = Duration::from_secs(1);
/// and for this many reads.
const MOST_READS: usize = 64;

/// How a request came.
pub(crate) enum Connection<'s> {
    Plain,
    /// Over TLS, with the server name of the handshake.
    Secure(Option<&'s str>),
}

impl<'s> Connection<'s> {
    pub(crate) fn of(session: &'s Session) -> Self {
        match session
            .digest()
            .and_then(|digest| digest.ssl_digest.as_ref())
        {
            None => Connection::Plain,
            Some(tls) => Connection::Secure(tls.extension.get::<ServerName>().map(|name| &*name.0)),
        }
    }

    pub(crate) fn scheme(&self) -> &'static str {
        match self {
            Connection::Plain => "http",
            Connection::Secure(_) => "https",
        }
    }
}

/// Who asks; an IPv4 client of an IPv6 socket is an IPv4 one.
pub(crate) fn client(session: &Session) -> Option<SocketAddr> {
    session
        .client_addr()
        .and_then(|address| address.as_inet())
        .map(|address| SocketAddr::new(address.ip().to_canonical(), address.port()))
}

/// Lets the connection end with the answer when the request has a body nobody reads.
pub(crate) fn finish_unread_body(session: &mut Session) {
    if !session.as_downstream_mut().is_body_done() {
        session.set_keepalive(None);
    }
}

/// Takes in a little of what a client still sends after its answer: a stream reset at once makes it
/// lose the answer (curl 7.88 does over HTTP/2).
pub(crate) async fn linger(session: &mut Session) {
    // Who was not told to go on sends nothing.
    if awaits_continue(session.req_header()) {
        return;
    }
    let session = session.as_downstream_mut();
    let rest = async {
        for _ in 0..MOST_READS {
            if session.is_body_done() || !matches!(session.read_request_body().await, Ok(Some(_))) {
                break;
            }
        }
    };
    // What is over is over: there is nothing to do when the time is up.
    timeout(LINGER, rest).await.unwrap_or_default();
}

/// Whether the client sends its body only once told to (RFC 9110 §10.1.1).
pub(crate) fn awaits_continue(request: &RequestHeader) -> bool {
    request.version == Version::HTTP_11
        && request
            .headers
            .get(header::EXPECT)
            .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}
