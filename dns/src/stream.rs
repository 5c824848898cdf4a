//! Connections, plain and over TLS: two octets of length before each message (RFC 1035 §4.2.2), as many
//! questions as the client sends, answered in the order they come (RFC 7766 §6.2.1.1), and every wait
//! and number bounded (RFC 9210 §4).
//!
//! Each core has a runtime of its own, and each runtime accepts on every socket, as the HTTP front does.

use std::{
    cell::Cell,
    io,
    net::{SocketAddr, TcpListener},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use common::gate::Gate;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use crate::{
    engine::{Asked, Desk, Responder, Transport, now},
    metrics::Tally,
    transfer::{self, Received},
    udp::REST,
};

/// Accept errors such as "too many open files" repeat at once; this keeps them from spinning.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// What most questions fit.
const QUESTION_OCTETS: usize = 1_024;
/// Answers to pipelined questions go out together up to this size.
const FLUSH_OCTETS: usize = 16 << 10;
const LENGTH_OCTETS: usize = 2;

thread_local! {
    /// How many connections this thread answered since it last had nothing to do.
    static ANSWERED: Cell<usize> = const { Cell::new(0) };
}

/// Rests before waiting, as the workers of datagrams do and for the same reason: only where several
/// connections were answered since the last time.
pub(crate) fn rest() {
    if ANSWERED.replace(0) > 1 {
        std::thread::sleep(REST);
    }
}

/// Where connections come from.
pub(crate) enum Door {
    Plain(TcpListener),
    Tls(TcpListener, TlsAcceptor),
}

/// What all connections share.
pub(crate) struct Streams {
    pub(crate) responder: Arc<Responder>,
    pub(crate) gate: Arc<Gate>,
    /// Silence after which a connection ends (RFC 7766 §6.2.3).
    pub(crate) idle: Duration,
}

/// One core's worker: accepts on every door until told to stop.
pub(crate) async fn serve(
    doors: Vec<Door>,
    streams: Arc<Streams>,
    tally: Tally,
    mut stop: watch::Receiver<bool>,
) -> io::Result<()> {
    let desk = Arc::new(Mutex::new(Desk::new(tally)));
    // They end with it.
    let mut accepting = JoinSet::new();
    for door in doors {
        let (listener, acceptor, transport) = match door {
            Door::Plain(listener) => (listener, None, Transport::Tcp),
            Door::Tls(listener, acceptor) => (listener, Some(acceptor), Transport::Tls),
        };
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let (streams, desk) = (Arc::clone(&streams), Arc::clone(&desk));
        accepting.spawn(accept(listener, acceptor, transport, streams, desk));
    }
    // The sender's end is a stop too.
    stop.wait_for(|stop| *stop)
        .await
        .map(drop)
        .unwrap_or_default();
    Ok(())
}

/// What a worker's connections share. They run on one thread, so that nobody ever waits for the lock.
type Shared = Arc<Mutex<Desk>>;

async fn accept(
    listener: tokio::net::TcpListener,
    acceptor: Option<TlsAcceptor>,
    transport: Transport,
    streams: Arc<Streams>,
    desk: Shared,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, source)) => {
                    // Over the limit the connection is closed, not queued.
                    let Some(pass) = streams.gate.enter(source.ip()) else { continue };
                    let (streams, desk) = (Arc::clone(&streams), Arc::clone(&desk));
                    let acceptor = acceptor.clone();
                    connections.spawn(async move {
                        let talk = Talk { source, transport, streams: &streams, desk: &desk };
                        let ended = talk.open(stream, acceptor).await;
                        if let Err(error) = ended {
                            tracing::debug!(%error, %source, "DNS connection ended");
                        }
                        drop(pass);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "can't accept a DNS connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

/// One connection.
struct Talk<'s> {
    source: SocketAddr,
    transport: Transport,
    streams: &'s Streams,
    desk: &'s Mutex<Desk>,
}

/// One plain connection, from its first octet to its end.
pub(crate) async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send,
    source: SocketAddr,
    streams: &Streams,
    desk: &Mutex<Desk>,
) -> io::Result<()> {
    let talk = Talk {
        source,
        transport: Transport::Tcp,
        streams,
        desk,
    };
    talk.converse(stream).await
}

impl Talk<'_> {
    async fn open(&self, stream: TcpStream, acceptor: Option<TlsAcceptor>) -> io::Result<()> {
        match acceptor {
            None => self.converse(stream).await,
            Some(acceptor) => {
                let shaken = timeout(self.streams.idle, acceptor.accept(stream)).await??;
                self.converse(shaken).await
            }
        }
    }

    async fn converse(
        &self,
        mut stream: impl AsyncRead + AsyncWrite + Unpin + Send,
    ) -> io::Result<()> {
        let idle = self.streams.idle;
        let mut questions = Vec::with_capacity(QUESTION_OCTETS);
        let mut answers = Vec::new();
        loop {
            // One deadline for a whole message: dripping does not extend it.
            let whole = timeout(idle, async {
                while frame(&questions).is_none() {
                    if let Some(length) = length_of(&questions) {
                        questions.reserve(LENGTH_OCTETS + length - questions.len());
                    }
                    if stream.read_buf(&mut questions).await? == 0 {
                        return Ok(false);
                    }
                }
                io::Result::Ok(true)
            });
            match whole.await {
                Ok(Ok(true)) => {}
                Ok(Ok(false)) | Err(_) => return Ok(()),
                Ok(Err(error)) => return Err(error),
            }
            ANSWERED.set(ANSWERED.get() + 1);
            let (mut taken, mut open) = (0, true);
            while open && let Some(message) = frame(&questions[taken..]) {
                taken += LENGTH_OCTETS + message.len();
                open = self.take(message, &mut answers, &mut stream).await?;
                if answers.len() > FLUSH_OCTETS {
                    timeout(idle, stream.write_all(&answers)).await??;
                    answers.clear();
                }
            }
            questions.drain(..taken);
            questions.shrink_to(QUESTION_OCTETS);
            // Lengths and messages together (RFC 7766 §8).
            timeout(idle, stream.write_all(&answers)).await??;
            timeout(idle, stream.flush()).await??;
            if !open {
                return Ok(());
            }
            answers.clear();
            // One large answer must not keep its memory for as long as the connection lasts.
            answers.shrink_to(FLUSH_OCTETS);
        }
    }

    /// Answers a message: signed ones and those of secondaries in their way, all others in the common
    /// one. `false` where the connection should end instead.
    async fn take(
        &self,
        message: &[u8],
        answers: &mut Vec<u8>,
        stream: &mut (impl AsyncWrite + Unpin + Send),
    ) -> io::Result<bool> {
        let transfers = &self.streams.responder.transfers;
        let answer = match transfers.receive(message, self.source, self.transport) {
            Received::Ordinary => return Ok(self.answer(message, answers)),
            Received::Signed(question, session, most) => {
                let mut framed = Vec::new();
                if !self.answer(&question, &mut framed) {
                    return Ok(false);
                }
                let answer = framed.split_off(LENGTH_OCTETS);
                transfer::signed(answer, &question, session, most)
            }
            Received::Answer(answer) => answer,
            Received::Transfer(transfer) => match transfers.turn().await {
                None => transfer.refusal(),
                Some(turn) => {
                    for message in transfer.messages() {
                        // Cut off, a transfer must not look whole: the connection ends.
                        let Some(message) = message else {
                            return Ok(false);
                        };
                        add(&message, answers);
                        timeout(self.streams.idle, stream.write_all(answers)).await??;
                        answers.clear();
                    }
                    transfer.sent();
                    drop(turn);
                    return Ok(true);
                }
            },
        };
        add(&answer, answers);
        Ok(true)
    }

    /// Adds the answer to a message; `false` where the connection should end instead.
    fn answer(&self, message: &[u8], answers: &mut Vec<u8>) -> bool {
        let mut desk = self.desk.lock().unwrap_or_else(PoisonError::into_inner);
        let asked = Asked {
            source: self.source,
            transport: self.transport,
            now: now(),
        };
        let answer = desk.answer(&self.streams.responder, message, &asked);
        if answer.is_empty() {
            return false;
        }
        add(answer, answers);
        true
    }
}

/// Adds a message with its length.
fn add(message: &[u8], answers: &mut Vec<u8>) {
    // None of ours is longer.
    let length = u16::try_from(message.len()).unwrap_or(0);
    answers.extend_from_slice(&length.to_be_bytes());
    answers.extend_from_slice(&message[..usize::from(length)]);
}

fn length_of(octets: &[u8]) -> Option<usize> {
    let [high, low, ..] = octets else {
        return None;
    };
    Some(usize::from(u16::from_be_bytes([*high, *low])))
}

/// The first whole message of what was read.
fn frame(octets: &[u8]) -> Option<&[u8]> {
    octets.get(LENGTH_OCTETS..LENGTH_OCTETS + length_of(octets)?)
}
