//! The HTTP and HTTPS edge: Pingora's proxy behind a front of our own.
//!
//! - `front` accepts, counts and times connections, and lets no request into Pingora before its
//!   whole head is there and unambiguous (`head`).
//! - `certificates` chooses by SNI; `authority` is the local certificate authority.
//! - `edge` is the proxy itself: host to site, and then files (`files`), another server
//!   (`upstream`), a redirect, a DNS answer (`doh`), or a page for people (`pages`).
//!
//! Everything reads the one published registry; nothing here ever writes a zone file.

mod access_log;
pub mod authority;
pub mod certificates;
mod conditional;
mod connection;
mod doh;
mod edge;
mod files;
mod front;
mod head;
mod host;
mod metrics;
mod pages;
mod range;
mod upstream;
mod visits;
mod waking;

use std::{io, net::TcpListener, sync::Arc};

use common::{Config, Published, gate::Gate};
use pingora::{proxy::HttpProxy, server::configuration::ServerConf};
use tokio::sync::watch;

pub use crate::{
    doh::NameServer,
    visits::Visits,
    waking::{Refusal, Waker},
};

use crate::{
    access_log::AccessLog,
    certificates::Certificates,
    edge::Edge,
    front::{Front, Workers},
    metrics::Metrics,
};

/// Most upstream connections kept open between requests, by worker.
const IDLE_UPSTREAM_CONNECTIONS: usize = 256;

/// Bound sockets to answer on.
#[derive(Debug, Default)]
pub struct Sockets {
    /// Plain HTTP.
    pub http: Vec<TcpListener>,
    /// HTTP over TLS.
    pub https: Vec<TcpListener>,
}

/// How container sites are reached.
#[derive(Clone, Default)]
pub struct Sites {
    /// Who wakes them; nobody does where there are no containers.
    pub waker: Option<Arc<dyn Waker>>,
    /// Who looks at which.
    pub visits: Arc<Visits>,
}

/// A running edge.
#[derive(Debug)]
pub struct Server {
    shutdown: watch::Sender<bool>,
    workers: Workers,
}

/// Starts answering from `published` on threads of its own.
///
/// # Errors
/// The certificate authority's files, the access log's folder, a metric, or a thread.
pub fn start(
    sockets: Sockets,
    config: &Config,
    published: &Arc<Published>,
    certificates: Arc<Certificates>,
    sites: Sites,
    name_server: Arc<dyn NameServer>,
    registry: &prometheus::Registry,
) -> Result<Server, StartError> {
    let metrics = Metrics::register(registry)?;
    certificates.register(registry)?;
    let log = AccessLog::start(&config.access_log, registry).map_err(StartError::AccessLog)?;
    let acceptor = certificates.acceptor().map_err(StartError::Tls)?;

    let edge = Edge::new(
        config,
        Arc::clone(published),
        Arc::clone(&metrics),
        log,
        sites,
        name_server,
    );
    let conf = ServerConf {
        threads: front::worker_count(),
        upstream_keepalive_pool_size: IDLE_UPSTREAM_CONNECTIONS,
        // One attempt, more where a pooled connection turned out dead or a name has more addresses.
        max_retries: upstream::MOST_ATTEMPTS,
        ..ServerConf::default()
    };
    let mut proxy = HttpProxy::new(edge, Arc::new(conf));
    proxy.handle_init_modules();

    let (shutdown, watching) = watch::channel(false);
    let front = Arc::new(Front {
        proxy: Arc::new(proxy),
        acceptor,
        limits: config.limits.clone(),
        gate: Gate::new(
            config.limits.connections,
            config.limits.connections_per_address,
        ),
        metrics: Arc::clone(&metrics),
        shutdown: watching.clone(),
    });
    let workers = Workers::start(&front, sockets).map_err(StartError::Workers)?;
    workers.follow(Arc::clone(published), certificates, metrics, watching);
    Ok(Server { shutdown, workers })
}

impl Server {
    /// Stops accepting, lets requests under way finish within the drain deadline, and returns.
    pub async fn drain(self) {
        self.shutdown.send_replace(true);
        self.workers.ended().await;
    }
}

/// Why the edge did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A metric of this server exists already.
    #[error("can't register the proxy's metrics")]
    Metrics(#[from] prometheus::Error),
    /// The folder of access logs.
    #[error("can't write the access log")]
    AccessLog(#[source] io::Error),
    /// TLS could not be set up.
    #[error("can't set up TLS: {0}")]
    Tls(String),
    /// Threads could not be started.
    #[error("can't start the proxy's workers")]
    Workers(#[source] io::Error),
}
