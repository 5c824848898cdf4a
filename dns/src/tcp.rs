//! Connections: two octets of length before each message (RFC 1035 §4.2.2), questions one after the
//! other (RFC 7766 §6.2.1.1), and every wait and number bounded (RFC 9210 §4).

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use common::gate::Gate;
use hickory_server::net::xfer::Protocol;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::timeout,
};

use crate::handler::Authoritative;

/// Accept errors such as "too many open files" repeat at once; this keeps them from spinning.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Accepts until dropped, and then ends its connections.
pub(crate) async fn serve(
    listener: TcpListener,
    handler: Arc<Authoritative>,
    gate: Arc<Gate>,
    idle: Duration,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, source)) => {
                    // Over the limit the connection is closed, not queued.
                    if let Some(pass) = gate.enter(source.ip()) {
                        let handler = Arc::clone(&handler);
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
