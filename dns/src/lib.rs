//! The authoritative DNS server: UDP, TCP and TLS over sockets it is given, answers from the published
//! registry.
//!
//! - `engine` turns the octets of a question into the octets of its answer. What is common is copied
//!   from answers that stand ready in the registry ([`common::answers`]);
//! - `general` answers the rest: hickory-server's request handling around [`common::lookup()`];
//! - `edns`, `cookie` and `limit` are what both ways share: options, who is who, and how much for whom;
//! - `udp` moves datagrams by the batch (`batch`), a thread for each core and address; `stream` serves
//!   connections, a runtime for each core;
//! - `transfer` gives secondaries zones and their changes, [`tsig`] the signatures, `notify` the news.

mod batch;
mod cookie;
mod edns;
mod engine;
#[doc(hidden)]
pub mod fuzzing;
mod general;
mod limit;
mod metrics;
mod notify;
mod stream;
mod transfer;
pub mod tsig;
mod udp;
mod wire;

use std::{
    io,
    net::{SocketAddr, TcpListener, UdpSocket},
    sync::Arc,
    thread,
    time::Duration,
};

use common::{Published, gate::Gate, journal::Journal};
use tokio::{sync::watch, task::JoinSet};

pub use crate::{
    engine::{Answerer, Transport},
    limit::Rates,
};

use crate::{
    cookie::Cookies,
    engine::Responder,
    limit::Limiter,
    metrics::Metrics,
    notify::Notifier,
    stream::{Door, Streams},
    transfer::Transfers,
};

/// Bound sockets to answer on.
#[derive(Debug, Default)]
pub struct Sockets {
    /// For datagrams: one for each worker and address, all of an address bound to it together.
    pub udp: Vec<UdpSocket>,
    /// For connections.
    pub tcp: Vec<TcpListener>,
    /// For connections over TLS (RFC 7858).
    pub tls: Vec<TcpListener>,
}

/// How much is answered, and to whom.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections at once, in all.
    pub connections: usize,
    /// Connections at once from one address.
    pub connections_per_address: usize,
    /// Silence after which a connection is closed (RFC 7766 §6.2.3).
    pub idle: Duration,
    /// Of answers over UDP.
    pub rates: Rates,
    /// What NSID tells (RFC 5001); empty tells nothing.
    pub identity: String,
}

/// A running server; dropping it stops answering at once.
#[derive(Debug)]
pub struct Server {
    _datagrams: udp::Workers,
    stop: watch::Sender<bool>,
    streams: Vec<thread::JoinHandle<()>>,
    ended: watch::Receiver<bool>,
    _telling: JoinSet<()>,
    answerer: Answerer,
}

/// How many workers an address has: one for each core this process may use.
pub fn worker_count() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// Starts answering from `published` on threads of its own; secondaries get changes out of `journal`,
/// and are told of them on the runtime of the caller. `tls` is for the sockets that want it.
///
/// # Errors
/// A thread can't be started, a metric is registered twice, or the system gives no random octets.
pub fn start(
    sockets: Sockets,
    published: Arc<Published>,
    journal: Arc<Journal>,
    limits: Limits,
    tls: Option<Arc<rustls::ServerConfig>>,
    registry: &prometheus::Registry,
) -> Result<Server, StartError> {
    let metrics = Metrics::register(&published, registry)?;
    let transfers = Transfers::register(&published, journal, metrics.worker(), registry)?;
    let listening: Vec<SocketAddr> = sockets
        .tcp
        .iter()
        .filter_map(|socket| socket.local_addr().ok())
        .collect();
    let notifier = Notifier::register(&published, &listening, registry)?;
    let mut telling = JoinSet::new();
    telling.spawn(notifier.run());
    let cookies = Cookies::new().map_err(|_| StartError::Random)?;
    let responder = Arc::new(Responder::new(
        published,
        cookies,
        Limiter::new(limits.rates),
        &limits.identity,
        transfers,
    ));
    let mut datagrams = udp::Workers::default();
    for socket in sockets.udp {
        socket.set_nonblocking(false)?;
        datagrams.add(socket, Arc::clone(&responder), metrics.worker())?;
    }
    let streams = Arc::new(Streams {
        responder: Arc::clone(&responder),
        gate: Gate::new(limits.connections, limits.connections_per_address),
        idle: limits.idle,
    });
    let (stop, stopping) = watch::channel(false);
    let (ending, ended) = watch::channel(false);
    let ending = Arc::new(ending);
    let acceptor = tls.map(tokio_rustls::TlsAcceptor::from);
    let mut threads = Vec::new();
    for _ in 0..worker_count() {
        let mut doors = Vec::new();
        for listener in &sockets.tcp {
            doors.push(Door::Plain(listener.try_clone()?));
        }
        for (listener, acceptor) in sockets.tls.iter().zip(acceptor.iter().cycle()) {
            doors.push(Door::Tls(listener.try_clone()?, acceptor.clone()));
        }
        if doors.is_empty() {
            break;
        }
        let (streams, tally) = (Arc::clone(&streams), metrics.worker());
        let (stopping, ending) = (stopping.clone(), Arc::clone(&ending));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .on_thread_park(stream::rest)
            .build()?;
        threads.push(
            thread::Builder::new()
                .name("dns-tcp".to_owned())
                .spawn(move || {
                    if let Err(error) =
                        runtime.block_on(stream::serve(doors, streams, tally, stopping))
                    {
                        tracing::error!(%error, "DNS connections can't be accepted");
                    }
                    ending.send_replace(true);
                })?,
        );
    }
    Ok(Server {
        _datagrams: datagrams,
        stop,
        streams: threads,
        ended,
        _telling: telling,
        answerer: Answerer::new(responder, (0..worker_count()).map(|_| metrics.worker())),
    })
}

impl Server {
    /// Waits until a worker ends, which it does not by itself.
    pub async fn ended(&mut self) {
        if self.streams.is_empty() || self.ended.wait_for(|ended| *ended).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Answers messages that come some other way.
    pub fn answerer(&self) -> Answerer {
        self.answerer.clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        for thread in self.streams.drain(..) {
            thread.join().unwrap_or_default();
        }
    }
}

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A socket can't be used, or a thread can't be started.
    #[error("can't use a bound DNS socket, or start its worker")]
    Socket(#[from] io::Error),
    /// A metric of this server exists already.
    #[error("can't register the DNS metrics")]
    Metrics(#[from] prometheus::Error),
    /// No secret for cookies.
    #[error("the system gives no random octets")]
    Random,
}
