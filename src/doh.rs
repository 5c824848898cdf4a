//! DNS over HTTPS: the proxy's requests to the DNS server's answers.

use std::net::SocketAddr;

use dns::Answerer;
use proxy::NameServer;

/// The name server as HTTPS reaches it.
#[derive(Debug)]
pub(crate) struct OverHttps(pub(crate) Answerer);

impl NameServer for OverHttps {
    fn answer(&self, message: &[u8], source: SocketAddr) -> Option<Vec<u8>> {
        self.0.answer(message, source)
    }
}
