//! Answers for messages that came by another way than the server's own sockets: HTTPS, that is.

use std::{
    net::SocketAddr,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use hickory_server::net::xfer::Protocol;

use crate::handler::Authoritative;

/// Answers messages like the server it comes from, and counts them with the others.
#[derive(Clone, Debug)]
pub struct Answerer(pub(crate) Arc<Authoritative>);

impl Answerer {
    /// The response to a message as over TCP; `None` where silence is right.
    pub fn answer(&self, message: &[u8], source: SocketAddr) -> Option<Vec<u8>> {
        // Async by hickory's trait alone: nothing in it waits.
        let response = pin!(self.0.respond(message, source, Protocol::Tcp));
        match response.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(response) => response,
            Poll::Pending => None,
        }
    }
}
