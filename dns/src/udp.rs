//! Datagrams: a thread for each socket, one socket for each core and address.

use std::{
    io::ErrorKind,
    net::UdpSocket,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use crate::{
    batch::{Batch, DATAGRAMS},
    engine::{Asked, Query, Responder, Transport, Worker, answerable, now},
    metrics::Tally,
};

/// Rest after a batch of some datagrams, so that the next is a batch too: a waking thread costs as much
/// as two answers, here and at whoever waits for them (measured: a fifth of the processor time a question).
/// With the timer's slack it is some 250 us. A question that comes alone never waits for others.
pub(crate) const REST: Duration = Duration::from_micros(200);
/// A batch from here on shows that more are waiting already.
const BUSY: usize = DATAGRAMS / 2;

/// A socket that fails again and again is tried, and told of, no faster.
const PAUSE: Duration = Duration::from_millis(500);

/// Answers until told to stop, which a waiting worker hears when its socket is shut down. A fault that
/// escapes costs a batch, and another takes its place.
pub(crate) fn serve(
    socket: &UdpSocket,
    responder: &Responder,
    worker: &mut Worker,
    stop: &AtomicBool,
) {
    while !stop.load(Relaxed) {
        let worked = catch_unwind(AssertUnwindSafe(|| work(socket, responder, worker, stop)));
        match worked {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::error!(%error, "a DNS socket can't be read");
                std::thread::sleep(PAUSE);
            }
            Err(_) => tracing::error!("a DNS worker failed; another takes its place"),
        }
    }
}

fn work(
    socket: &UdpSocket,
    responder: &Responder,
    worker: &mut Worker,
    stop: &AtomicBool,
) -> std::io::Result<()> {
    let mut batch = Batch::new(socket)?;
    while !stop.load(Relaxed) {
        let count = match batch.receive(socket) {
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let world = responder.published.load();
        worker.follow(&world);
        let now = now();
        batch.answer(socket, count, |question, source, out| {
            if !answerable(source) {
                return 0;
            }
            let asked = Asked {
                source,
                transport: Transport::Udp,
                now,
            };
            let query = Query {
                world: &world,
                message: question,
                asked: &asked,
            };
            responder.respond(&query, worker, out)
        });
        drop(world);
        if (2..BUSY).contains(&count) {
            std::thread::sleep(REST);
        }
    }
    Ok(())
}

/// The threads of all sockets; dropping it ends them.
#[derive(Debug, Default)]
pub(crate) struct Workers {
    sockets: Vec<Arc<UdpSocket>>,
    threads: Vec<std::thread::JoinHandle<()>>,
    stop: Arc<AtomicBool>,
}

impl Workers {
    /// Starts a thread for a socket.
    pub(crate) fn add(
        &mut self,
        socket: UdpSocket,
        responder: Arc<Responder>,
        tally: Tally,
    ) -> std::io::Result<()> {
        let socket = Arc::new(socket);
        let (own, stop) = (Arc::clone(&socket), Arc::clone(&self.stop));
        let thread = std::thread::Builder::new()
            .name("dns-udp".to_owned())
            .spawn(move || serve(&own, &responder, &mut Worker::new(tally), &stop))?;
        self.sockets.push(socket);
        self.threads.push(thread);
        Ok(())
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        for socket in &self.sockets {
            // It fails, since nothing is connected, and wakes whoever waits all the same.
            socket2::SockRef::from(&**socket)
                .shutdown(std::net::Shutdown::Both)
                .unwrap_or_default();
        }
        for thread in self.threads.drain(..) {
            thread.join().unwrap_or_default();
        }
    }
}
