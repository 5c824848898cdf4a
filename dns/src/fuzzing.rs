//! What hostile octets reach first, for the targets in `fuzz/` and the tests that replay their corpus. No
//! interface of this crate: it changes as the parts behind it do.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use common::{Published, Registry, gate::Gate, journal::Journal};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{
    cookie::Cookies,
    engine::{Asked, Desk, Query, Responder, Transport, Worker, now},
    limit::{Limiter, Rates},
    metrics::Metrics,
    stream::{Streams, converse},
    transfer::Transfers,
};

/// Who asks.
const SOURCE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 53);

/// The engine on one registry, without limits of rate.
pub struct Engine {
    responder: Arc<Responder>,
    worker: Worker,
    /// For connections.
    desk: Mutex<Desk>,
}

/// Which of the two ways answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The one a message takes by itself.
    Own,
    /// The quick one, or none.
    Quick,
    /// The general one.
    General,
}

impl Engine {
    /// An engine that answers from `registry`; `None` without random octets or with metrics in the way.
    pub fn new(registry: Arc<Registry>) -> Option<Self> {
        // Without secondaries nothing is read there, and nothing written.
        let journal = Journal::open(Path::new("/nonexistent"), &registry);
        let published = Published::new(registry);
        let scraped = prometheus::Registry::new();
        let metrics = Metrics::register(&published, &scraped).ok()?;
        let transfers =
            Transfers::register(&published, journal, metrics.worker(), &scraped).ok()?;
        let rates = Rates {
            answers: 0,
            slip: 0,
            exempt: Vec::new(),
        };
        let responder = Responder::new(
            published,
            Cookies::new().ok()?,
            Limiter::new(rates),
            "fuzzed",
            transfers,
        );
        Some(Self {
            responder: responder.into(),
            worker: Worker::new(metrics.worker()),
            desk: Mutex::new(Desk::new(metrics.worker())),
        })
    }

    /// The answer to a message, if any.
    pub fn answer(&mut self, message: &[u8], transport: Transport, way: Way) -> Option<Vec<u8>> {
        let world = self.responder.published.load();
        self.worker.follow(&world);
        let asked = Asked {
            source: SOURCE,
            transport,
            now: now(),
        };
        let mut out = vec![0; usize::from(u16::MAX)];
        let query = Query {
            world: &world,
            message,
            asked: &asked,
        };
        let (responder, worker) = (&*self.responder, &mut self.worker);
        let length = match way {
            Way::Own => responder.respond(&query, worker, &mut out),
            Way::Quick => responder.quick(&query, worker, &mut out)?,
            Way::General => responder.general(&query, worker, &mut out),
        };
        out.truncate(length);
        (length > 0).then_some(out)
    }

    /// What a connection answers when its octets come in these pieces.
    ///
    /// # Errors
    /// There is no runtime, or the connection failed.
    pub fn converse(&self, pieces: Vec<Vec<u8>>) -> io::Result<Vec<u8>> {
        let streams = Streams {
            responder: Arc::clone(&self.responder),
            gate: Gate::new(1, 1),
            idle: Duration::from_secs(60),
        };
        let mut pieces = Pieces {
            coming: pieces.into_iter(),
            here: Vec::new(),
            sent: Vec::new(),
        };
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()?
            .block_on(converse(&mut pieces, SOURCE, &streams, &self.desk))?;
        Ok(pieces.sent)
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").finish_non_exhaustive()
    }
}

/// A connection whose other end sends one piece for each read, and takes everything.
struct Pieces {
    coming: std::vec::IntoIter<Vec<u8>>,
    here: Vec<u8>,
    sent: Vec<u8>,
}

impl AsyncRead for Pieces {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.here.is_empty() {
            let next = self.coming.find(|piece| !piece.is_empty());
            self.here = next.unwrap_or_default();
        }
        let length = self.here.len().min(into.remaining());
        let rest = self.here.split_off(length);
        into.put_slice(&self.here);
        self.here = rest;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pieces {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        octets: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.sent.extend_from_slice(octets);
        Poll::Ready(Ok(octets.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
