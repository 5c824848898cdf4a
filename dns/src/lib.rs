//! The authoritative DNS server: UDP and TCP over sockets it is given, answers from the published
//! registry.
//!
//! - [`lookup()`] is the heart: a pure function of registry and question (RFC 1034 §4.3.2).
//! - `handler` is hickory-server's request handling around it: opcodes, EDNS, classes.
//! - `reply` puts an answer on the wire and cuts it to size.
//! - `udp` and `tcp` move bytes, with every queue bounded.
//!
//! A faster front can stand before `handler`: it shares nothing with it but the registry.

mod answerer;
mod handler;
pub mod lookup;
mod metrics;
mod reply;
mod tcp;
mod udp;

use std::{
    net::{TcpListener, UdpSocket},
    sync::Arc,
    time::Duration,
};

use common::{Published, gate::Gate};
use tokio::task::JoinSet;

pub use answerer::Answerer;
pub use lookup::{Answer, lookup};

use crate::{handler::Authoritative, metrics::Metrics};

/// Bound sockets to answer on.
#[derive(Debug, Default)]
pub struct Sockets {
    /// For datagrams.
    pub udp: Vec<UdpSocket>,
    /// For connections.
    pub tcp: Vec<TcpListener>,
}

/// Bounds of the TCP side.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once, in all.
    pub connections: usize,
    /// Connections at once from one address.
    pub connections_per_address: usize,
    /// Silence after which a connection is closed (RFC 7766 §6.2.3).
    pub idle: Duration,
}

/// A running server; dropping it stops answering at once.
#[derive(Debug)]
pub struct Server {
    tasks: JoinSet<()>,
    answerer: Answerer,
}

/// Starts answering from `published` on the runtime of the caller.
///
/// # Errors
/// A socket can't be put into the runtime, or a metric is registered twice.
pub fn start(
    sockets: Sockets,
    published: Arc<Published>,
    limits: Limits,
    registry: &prometheus::Registry,
) -> Result<Server, StartError> {
    let metrics = Metrics::register(&published, registry)?;
    let mut tasks = JoinSet::new();
    let handler = Arc::new(Authoritative::new(
        Arc::clone(&published),
        Arc::clone(&metrics),
    ));
    for socket in sockets.udp {
        socket.set_nonblocking(true)?;
        let socket = Arc::new(tokio::net::UdpSocket::from_std(socket)?);
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        for _ in 0..workers {
            tasks.spawn(udp::serve(Arc::clone(&socket), Arc::clone(&handler)));
        }
    }
    let gate = Gate::new(limits.connections, limits.connections_per_address);
    for listener in sockets.tcp {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        tasks.spawn(tcp::serve(
            listener,
            Arc::clone(&handler),
            Arc::clone(&gate),
            limits.idle,
        ));
    }
    tasks.spawn(metrics::follow(published, metrics));
    Ok(Server {
        tasks,
        answerer: Answerer(handler),
    })
}

impl Server {
    /// What answers messages that came by another way than the server's own sockets.
    pub fn answerer(&self) -> Answerer {
        self.answerer.clone()
    }

    /// Waits until a task of the server ends, which it does not by itself.
    pub async fn ended(&mut self) {
        self.tasks.join_next().await;
    }
}

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The runtime refused a socket.
    #[error("can't use a bound DNS socket")]
    Socket(#[from] std::io::Error),
    /// A metric of this server exists already.
    #[error("can't register the DNS metrics")]
    Metrics(#[from] prometheus::Error),
}
