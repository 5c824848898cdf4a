//! Datagrams: a few workers share a socket, each with one buffer and one question at a time.

use std::{net::SocketAddr, sync::Arc};

use hickory_server::net::xfer::Protocol;
use tokio::net::UdpSocket;

use crate::handler::Authoritative;

/// No question needs more; longer datagrams are cut by the kernel and then malformed.
const QUESTION_OCTETS: usize = 4_096;

/// Answers until dropped. A panic in a library on some odd packet costs that packet alone.
pub(crate) async fn serve(socket: Arc<UdpSocket>, handler: Arc<Authoritative>) {
    loop {
        let worker = tokio::spawn(work(Arc::clone(&socket), Arc::clone(&handler)));
        let worker = AbortOnDrop(worker);
        worker.ended().await;
        tracing::error!("a DNS worker failed on a packet; another takes its place");
    }
}

async fn work(socket: Arc<UdpSocket>, handler: Arc<Authoritative>) {
    let mut buffer = vec![0; QUESTION_OCTETS];
    loop {
        let Ok((length, source)) = socket.recv_from(&mut buffer).await else {
            // An ICMP error of an earlier answer; the socket itself is well.
            continue;
        };
        if !answerable(source) {
            continue;
        }
        if let Some(answer) = handler
            .respond(&buffer[..length], source, Protocol::Udp)
            .await
            && let Err(error) = socket.send_to(&answer, source).await
        {
            tracing::debug!(%error, %source, "answer not sent");
        }
    }
}

/// Port 0 can't be answered, and a multicast or broadcast source only amplifies.
fn answerable(source: SocketAddr) -> bool {
    let broadcast = matches!(source, SocketAddr::V4(v4) if v4.ip().is_broadcast());
    source.port() != 0 && !source.ip().is_multicast() && !source.ip().is_unspecified() && !broadcast
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl AbortOnDrop {
    async fn ended(mut self) {
        // Whether it panicked or was cancelled, it is over.
        (&mut self.0).await.unwrap_or_default();
    }
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
