//! From a site's upstream to a peer Pingora can connect to.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use common::{
    config::Limits,
    site::{Protocol, Upstream, UpstreamAddress},
};
use pingora::upstreams::peer::{HttpPeer, PeerOptions};

/// Idle upstream connections are closed before a usual server does so itself.
const IDLE: Duration = Duration::from_secs(15);
/// How long a resolved host name is used.
const RESOLVED_FOR: Duration = Duration::from_secs(10);
/// Most host names remembered; past it they are resolved anew.
const MOST_RESOLVED: usize = 4_096;
/// Connections tried for one request: the addresses of a name in their order.
pub(crate) const MOST_ATTEMPTS: usize = 4;
/// Streams at once on one h2c connection.
const H2_STREAMS: usize = 100;

/// Host and port, and the addresses found with the time of it.
type Known = HashMap<(String, u16), (Arc<[SocketAddr]>, Instant)>;

/// Resolves upstream host names, and remembers them for a moment.
#[derive(Debug, Default)]
pub(crate) struct Resolver {
    known: Mutex<Known>,
}

impl Resolver {
    /// The peer for one site's upstream, and how many others its name has. `tenant` keeps its pooled
    /// connections apart from every other site's; `attempt` counts from 0.
    pub(crate) async fn peer(
        &self,
        upstream: &Upstream,
        tenant: &str,
        limits: &Limits,
        attempt: usize,
    ) -> io::Result<(HttpPeer, usize)> {
        let mut others = 0;
        let tls = upstream.protocol == Protocol::Https;
        let mut peer = match &upstream.address {
            UpstreamAddress::Unix(path) => unix(path)?,
            UpstreamAddress::Tcp(host, port) => {
                let addresses = match host.parse() {
                    Ok(ip) => [SocketAddr::new(ip, *port)].into(),
                    Err(_) => self.resolve(host, *port, limits.connect).await?,
                };
                others = addresses.len() - 1;
                let address = addresses[attempt % addresses.len()];
                HttpPeer::new(address, tls, if tls { host.clone() } else { String::new() })
            }
        };
        peer.group_key = group(&(tenant, upstream.to_string()));
        let options = &mut peer.options;
        bound(options, limits);
        match upstream.protocol {
            Protocol::H2c => {
                options.set_http_version(2, 2);
                options.max_h2_streams = H2_STREAMS;
            }
            Protocol::Https => options.set_http_version(2, 1),
            Protocol::Http => options.set_http_version(1, 1),
        }
        Ok((peer, others))
    }

    async fn resolve(
        &self,
        host: &str,
        port: u16,
        deadline: Duration,
    ) -> io::Result<Arc<[SocketAddr]>> {
        let key = (host.to_owned(), port);
        let known = self.lock().get(&key).cloned();
        if let Some((addresses, when)) = known
            && when.elapsed() < RESOLVED_FOR
        {
            return Ok(addresses);
        }
        let found = tokio::time::timeout(deadline, tokio::net::lookup_host((host, port))).await??;
        let addresses: Arc<[SocketAddr]> = found.take(MOST_ATTEMPTS).collect();
        if addresses.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "the upstream's name has no address",
            ));
        }
        let mut known = self.lock();
        if known.len() >= MOST_RESOLVED {
            known.clear();
        }
        known.insert(key, (Arc::clone(&addresses), Instant::now()));
        Ok(addresses)
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The peer for a container. Its pooled connections are apart from every other site's, and from those
/// to itself before it last slept.
pub(crate) fn container(
    address: SocketAddr,
    tenant: &str,
    generation: u64,
    limits: &Limits,
) -> HttpPeer {
    let mut peer = HttpPeer::new(address, false, String::new());
    peer.group_key = group(&(tenant, address, generation));
    bound(&mut peer.options, limits);
    peer.options.set_http_version(1, 1);
    peer
}

fn group(identity: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    identity.hash(&mut hasher);
    hasher.finish()
}

fn bound(options: &mut PeerOptions, limits: &Limits) {
    options.connection_timeout = Some(limits.connect);
    options.total_connection_timeout = Some(limits.connect);
    options.read_timeout = Some(limits.stall);
    options.write_timeout = Some(limits.stall);
    options.idle_timeout = Some(IDLE);
}

fn unix(path: &Path) -> io::Result<HttpPeer> {
    let text = path.to_str().ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            "the socket's path is not UTF-8",
        )
    })?;
    HttpPeer::new_uds(text, false, String::new())
        .map_err(|error| io::Error::other(error.to_string()))
}
