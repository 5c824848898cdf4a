//! The front: accepts connections on threads of its own and decides what they may cost.
//!
//! Between requests no parser or session lives for a connection, only a small task that waits for
//! octets in a buffer all connections of its thread share. A request goes to Pingora once its whole
//! head has come within its deadline and size and is unambiguous; HTTP/2 connections go there after
//! the handshake, since a stream's head is bounded by its own settings.
//!
//! Each thread runs its own single-threaded runtime over every listening socket: work does not move
//! between threads, which costs a tenth less than work stealing.

use std::{
    cell::RefCell,
    future::poll_fn,
    io,
    net::{SocketAddr, TcpListener},
    os::fd::AsRawFd,
    pin::Pin,
    sync::Arc,
    task::{Poll, ready},
    thread::JoinHandle,
    time::Duration,
};

use bytes::BytesMut;
use common::{
    Published,
    config::Limits,
    gate::{Gate, Pass},
};
use http::HeaderMap;
use pingora::{
    apps::{HttpPersistentSettings, HttpServerApp},
    listeners::tls::Acceptor,
    protocols::{
        ALPN, Digest, GetSocketDigest, SocketDigest, Stream,
        http::{
            ServerSession,
            v2::server::{self, H2Accept, H2Options, HttpSession as H2Session},
        },
        l4::stream::Stream as L4Stream,
    },
    proxy::HttpProxy,
};
use tokio::{
    io::{AsyncRead, AsyncWriteExt, ReadBuf},
    runtime,
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, timeout, timeout_at},
};

use crate::{
    Sockets,
    certificates::Certificates,
    edge::Edge,
    head::{self, Refusal},
    metrics::Metrics,
    pages::Page,
};

/// What one read takes at most.
const READ_OCTETS: usize = 16 * 1024;
/// Threads of each worker that may wait for a disk.
const FILE_THREADS: usize = 8;
/// How long file tasks may still take when a worker ends.
const LAST_FILES: Duration = Duration::from_millis(500);
/// Accept errors such as "too many open files" repeat at once; this keeps them from spinning.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Streams at once on one HTTP/2 connection (RFC 9113 §6.5.2 recommends no less than 100).
const H2_STREAMS: u32 = 100;
/// Malformed streams a connection may open before it is closed.
const MOST_REJECTED: usize = 32;
/// Certificates are looked at this often besides every change.
const RENEW_EVERY: Duration = Duration::from_secs(3_600);

/// What all connections share.
pub(crate) struct Front {
    pub(crate) proxy: Arc<HttpProxy<Edge>>,
    pub(crate) acceptor: Acceptor,
    pub(crate) limits: Limits,
    pub(crate) gate: Arc<Gate>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) shutdown: watch::Receiver<bool>,
}

/// The threads of the edge.
#[derive(Debug)]
pub(crate) struct Workers {
    threads: Vec<JoinHandle<()>>,
    housekeeping: runtime::Handle,
}

/// One worker for each core.
pub(crate) fn worker_count() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// What HTTP/2 clients may do.
pub(crate) fn h2_options(limits: &Limits) -> H2Options {
    let mut options = H2Options::default();
    options.max_concurrent_streams(H2_STREAMS);
    options.max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX));
    options
}

impl Workers {
    /// Starts the threads on the sockets. To be called within a tokio runtime.
    pub(crate) fn start(front: &Arc<Front>, sockets: Sockets) -> io::Result<Self> {
        for socket in sockets.http.iter().chain(&sockets.https) {
            socket.set_nonblocking(true)?;
        }
        let mut threads = Vec::new();
        for number in 0..worker_count() {
            let listeners = sockets
                .http
                .iter()
                .map(|socket| Ok((socket.try_clone()?, false)))
                .chain(
                    sockets
                        .https
                        .iter()
                        .map(|socket| Ok((socket.try_clone()?, true))),
                )
                .collect::<io::Result<Vec<_>>>()?;
            let runtime = runtime::Builder::new_current_thread()
                .enable_all()
                .max_blocking_threads(FILE_THREADS)
                .build()?;
            let front = Arc::clone(front);
            let work = move || {
                runtime.block_on(serve(front, listeners));
                // A file task that hangs on its disk is not waited for.
                runtime.shutdown_timeout(LAST_FILES);
            };
            threads.push(
                std::thread::Builder::new()
                    .name(format!("proxy-{number}"))
                    .spawn(work)?,
            );
        }
        Ok(Self {
            threads,
            housekeeping: runtime::Handle::current(),
        })
    }

    /// Lets certificates and metrics follow the registry until shutdown.
    pub(crate) fn follow(
        &self,
        published: Arc<Published>,
        certificates: Arc<Certificates>,
        metrics: Arc<Metrics>,
        mut shutdown: watch::Receiver<bool>,
    ) {
        let mut generations = published.subscribe();
        self.housekeeping.spawn(async move {
            loop {
                tokio::select! {
                    changed = generations.changed() => if changed.is_err() { return },
                    () = sleep(RENEW_EVERY) => {}
                    () = down(&mut shutdown) => return,
                }
                let (certificates, metrics, published) = (
                    Arc::clone(&certificates),
                    Arc::clone(&metrics),
                    Arc::clone(&published),
                );
                let kept = tokio::task::spawn_blocking(move || {
                    certificates.renew();
                    metrics.keep(&published.load());
                });
                if kept.await.is_err() {
                    tracing::error!(
                        "keeping the certificates failed unexpectedly; those in use stay"
                    );
                }
            }
        });
    }

    /// Waits for the threads, which end some time after shutdown.
    pub(crate) async fn ended(self) {
        let joined = tokio::task::spawn_blocking(move || {
            for thread in self.threads {
                if thread.join().is_err() {
                    tracing::error!("a proxy worker had failed");
                }
            }
        });
        if joined.await.is_err() {
            tracing::error!("waiting for the proxy's workers failed");
        }
    }
}

/// One worker: serves every listening socket until each has drained.
async fn serve(front: Arc<Front>, listeners: Vec<(TcpListener, bool)>) {
    let mut accepting = JoinSet::new();
    for (listener, secure) in listeners {
        match tokio::net::TcpListener::from_std(listener) {
            Ok(listener) => drop(accepting.spawn(accept(Arc::clone(&front), listener, secure))),
            Err(error) => tracing::error!(%error, "a listening socket can't be used"),
        }
    }
    while accepting.join_next().await.is_some() {}
}

/// Accepts until shutdown, then gives its connections the drain deadline.
async fn accept(front: Arc<Front>, listener: tokio::net::TcpListener, secure: bool) {
    let mut connections = JoinSet::new();
    let mut shutdown = front.shutdown.clone();
    loop {
        tokio::select! {
            () = down(&mut shutdown) => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, client)) => match front.gate.enter(client.ip()) {
                    Some(pass) => {
                        let front = Arc::clone(&front);
                        connections.spawn(async move { front.connection(stream, client, secure, pass).await });
                    }
                    // Over the limit a connection is closed at once, not queued.
                    None => front.metrics.refused("limit"),
                },
                Err(error) => {
                    tracing::warn!(%error, "can't accept a connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
    drop(listener);
    let drained = timeout(front.limits.drain, async {
        while connections.join_next().await.is_some() {}
    });
    if drained.await.is_err() {
        tracing::warn!(after = ?front.limits.drain, "requests still under way at the drain deadline are cut");
    }
}

/// Waits for shutdown, also when whoever would tell is gone.
async fn down(shutdown: &mut watch::Receiver<bool>) {
    drop(shutdown.wait_for(|down| *down).await);
}

impl Front {
    async fn connection(
        &self,
        stream: tokio::net::TcpStream,
        client: SocketAddr,
        secure: bool,
        pass: Pass,
    ) {
        self.metrics.connections.inc();
        if let Some(stream) = self.open(stream, client, secure).await {
            if matches!(stream.selected_alpn_proto(), Some(ALPN::H2)) {
                // Boxed: an HTTP/2 connection's state should not size every connection's task.
                Box::pin(self.converse_in_streams(stream)).await;
            } else {
                self.converse(stream).await;
            }
        }
        self.metrics.connections.dec();
        drop(pass);
    }

    /// The stream as Pingora wants it, the handshake done.
    async fn open(
        &self,
        stream: tokio::net::TcpStream,
        client: SocketAddr,
        secure: bool,
    ) -> Option<Stream> {
        // Without delays between small writes; a socket that refuses is gone already.
        stream.set_nodelay(true).ok()?;
        let digest = SocketDigest::from_raw_fd(stream.as_raw_fd());
        let mut stream = L4Stream::from(stream);
        stream.set_socket_digest(digest);
        if !secure {
            return Some(Box::new(stream));
        }
        match Box::pin(timeout(
            self.limits.header,
            self.acceptor.tls_handshake(stream),
        ))
        .await
        {
            Ok(Ok(stream)) => Some(Box::new(stream)),
            Ok(Err(error)) => {
                self.metrics.refused("tls");
                tracing::debug!(%client, %error, "TLS handshake failed");
                None
            }
            Err(_) => {
                self.metrics.refused("slow");
                None
            }
        }
    }

    /// HTTP/1: one request after the other.
    async fn converse(&self, mut stream: Stream) {
        let mut settings: Option<HttpPersistentSettings> = None;
        let mut shutdown = self.shutdown.clone();
        loop {
            let first = tokio::select! {
                first = timeout(self.limits.idle, first_octets(&mut stream)) => first,
                () = down(&mut shutdown) => return,
            };
            let Ok(Some(mut octets)) = first else { return };
            let whole = timeout_at(
                Instant::now() + self.limits.header,
                self.rest_of_head(&mut stream, &mut octets),
            );
            let judged = match whole.await {
                Ok(Some(judged)) => judged,
                // Gone in the middle of a head.
                Ok(None) => return,
                Err(_) => Err(Refusal::Slow),
            };
            if let Err(refusal) = judged {
                self.refuse(stream, &refusal).await;
                return;
            }
            let mut session = ServerSession::new_http1(stream);
            match settings.take() {
                Some(settings) => settings.apply_to_session(&mut session),
                None => session.set_keepalive(Some(self.limits.idle.as_secs())),
            }
            session.set_pipelined_prefix(octets);
            let served = Box::pin(self.proxy.process_new_http(session, &self.shutdown)).await;
            let Some(reused) = served else { return };
            (stream, settings) = reused.consume();
        }
    }

    /// HTTP/2: requests side by side on one connection.
    async fn converse_in_streams(&self, stream: Stream) {
        let digest = Arc::new(Digest {
            ssl_digest: stream.get_ssl_digest(),
            timing_digest: stream.get_timing_digest(),
            proxy_digest: stream.get_proxy_digest(),
            socket_digest: stream.get_socket_digest(),
        });
        let mut shutdown = self.shutdown.clone();
        let preface = server::handshake(stream, Some(h2_options(&self.limits)));
        let begun = tokio::select! {
            begun = timeout(self.limits.header, preface) => begun,
            () = down(&mut shutdown) => return,
        };
        let Ok(Ok(mut connection)) = begun else {
            self.metrics.refused("slow");
            return;
        };
        let mut streams = JoinSet::new();
        let (mut draining, mut rejected) = (false, 0);
        loop {
            let accepted = tokio::select! {
                () = down(&mut shutdown), if !draining => {
                    connection.graceful_shutdown();
                    draining = true;
                    continue;
                }
                Some(_) = streams.join_next(), if !streams.is_empty() => continue,
                () = sleep(self.limits.idle), if streams.is_empty() => return,
                accepted = H2Session::from_h2_conn(&mut connection, Arc::clone(&digest)) => accepted,
            };
            match accepted {
                Ok(Some(H2Accept::Session(session))) => {
                    let (proxy, shutdown) = (Arc::clone(&self.proxy), self.shutdown.clone());
                    streams.spawn(async move {
                        drop(
                            proxy
                                .process_new_http(ServerSession::new_http2(session), &shutdown)
                                .await,
                        );
                    });
                }
                Ok(Some(H2Accept::Rejected)) if rejected < MOST_REJECTED => rejected += 1,
                _ => return,
            }
        }
    }

    /// Reads until the head is whole and judges it; `None` when the client left.
    async fn rest_of_head(
        &self,
        stream: &mut Stream,
        octets: &mut BytesMut,
    ) -> Option<Result<(), Refusal>> {
        let mut searched = 0;
        loop {
            if let Some(end) = head::end(octets, searched) {
                let head = octets.get(..end).unwrap_or_default();
                return Some(if end > self.limits.header_bytes {
                    Err(Refusal::TooLarge)
                } else {
                    head::judge(head)
                });
            }
            if octets.len() > self.limits.header_bytes {
                return Some(Err(Refusal::TooLarge));
            }
            searched = octets.len();
            let more = first_octets(stream).await?;
            octets.extend_from_slice(&more);
        }
    }

    /// Answers a request that never reached the proxy, and closes.
    async fn refuse(&self, mut stream: Stream, refusal: &Refusal) {
        let (page, reason) = match refusal {
            Refusal::Malformed(why) => {
                tracing::debug!(why, "request refused");
                (Page::BadRequest, "malformed")
            }
            Refusal::Slow => (Page::TooSlow, "slow"),
            Refusal::TooLarge => (Page::HeadTooLarge, "large"),
        };
        self.metrics.refused(reason);
        let rendered = page.for_client(&HeaderMap::new(), None);
        let head = format!(
            "HTTP/1.1 {} {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n",
            rendered.status,
            http::StatusCode::from_u16(rendered.status)
                .ok()
                .and_then(|status| status.canonical_reason())
                .unwrap_or_default(),
            rendered.media_type,
            rendered.body.len(),
        );
        let mut answer = head.into_bytes();
        answer.extend_from_slice(&rendered.body);
        let sent = timeout(self.limits.header, async {
            stream.write_all(&answer).await?;
            stream.flush().await?;
            stream.shutdown().await?;
            // Closing on unread octets would reset the connection before the answer is read: take
            // in a little of what still comes.
            for _ in 0..64 {
                if first_octets(&mut stream).await.is_none() {
                    break;
                }
            }
            io::Result::Ok(())
        });
        if let Ok(Err(error)) = sent.await {
            tracing::debug!(%error, "refusal not sent");
        }
    }
}

thread_local! {
    /// Waiting connections need no buffer of their own: one a thread takes what comes first.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_OCTETS]);
}

/// What comes next on a stream; `None` at its end.
async fn first_octets(stream: &mut Stream) -> Option<BytesMut> {
    poll_fn(|context| {
        BUFFER.with_borrow_mut(|buffer| {
            let mut buffer = ReadBuf::new(buffer);
            let read = ready!(Pin::new(&mut *stream).poll_read(context, &mut buffer));
            let filled = buffer.filled();
            Poll::Ready((read.is_ok() && !filled.is_empty()).then(|| BytesMut::from(filled)))
        })
    })
    .await
}
