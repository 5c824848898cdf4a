//! Connections: two octets of length before each message (RFC 1035 §4.2.2), questions one after the
//! other (RFC 7766 §6.2.1.1), and every wait and number bounded (RFC 9210 §4).

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hickory_server::net::xfer::Protocol;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::timeout,
};

use crate::{Limits, handler::Authoritative};

/// Accept errors such as "too many open files" repeat at once; this keeps them from spinning.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Counts connections in all and by address.
pub(crate) struct Gate {
    limits: Limits,
    total: Arc<Semaphore>,
    by_address: Mutex<HashMap<IpAddr, usize>>,
}

impl Gate {
    pub(crate) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            total: Arc::new(Semaphore::new(limits.connections)),
            by_address: Mutex::default(),
        })
    }

    fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Pass> {
        let permit = Arc::clone(&self.total).try_acquire_owned().ok()?;
        let mut counts = self
            .by_address
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(address).or_default();
        if *count >= self.limits.connections_per_address {
            return None;
        }
        *count += 1;
        Some(Pass {
            gate: Arc::clone(self),
            address,
            _permit: permit,
        })
    }
}

/// A connection's place; given back when dropped.
struct Pass {
    gate: Arc<Gate>,
    address: IpAddr,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut counts = self
            .gate
            .by_address
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

/// Accepts until dropped, and then ends its connections.
pub(crate) async fn serve(listener: TcpListener, handler: Arc<Authoritative>, gate: Arc<Gate>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, source)) => {
                    // Over the limit the connection is closed, not queued.
                    if let Some(pass) = gate.enter(source.ip()) {
                        let handler = Arc::clone(&handler);
                        let idle = gate.limits.idle;
                        connections.spawn(async move {
                            let ended = converse(stream, source, &handler, idle).await;
                            if let Err(error) = ended {
                                tracing::debug!(%error, %source, "DNS connection ended");
                            }
                            drop(pass);
                        });
                    }
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

async fn converse(
    mut stream: TcpStream,
    source: SocketAddr,
    handler: &Authoritative,
    idle: Duration,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut question = Vec::new();
    loop {
        // One deadline for a whole message: dripping does not extend it.
        let read = timeout(idle, async {
            let length = stream.read_u16().await?;
            question.resize(usize::from(length), 0);
            stream.read_exact(&mut question).await
        });
        match read.await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Ok(Err(error)) => return Err(error),
            Err(_) => return Ok(()),
        }
        let Some(answer) = handler.respond(&question, source, Protocol::Tcp).await else {
            return Ok(());
        };
        let Ok(length) = u16::try_from(answer.len()) else {
            return Ok(());
        };
        // Length and message in one segment (RFC 7766 §8).
        let mut framed = Vec::with_capacity(answer.len() + 2);
        framed.extend_from_slice(&length.to_be_bytes());
        framed.extend_from_slice(&answer);
        timeout(idle, stream.write_all(&framed)).await??;
    }
}
