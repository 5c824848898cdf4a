//! Binding every socket before anything starts, so that a port in use is told, not half-served.

use std::{
    io,
    net::{SocketAddr, TcpListener, UdpSocket},
};

use common::Config;
use rustix::thread::{CpuSet, sched_getaffinity};
use socket2::{Domain, Protocol, Socket, Type};

/// Connections the kernel holds for us while we accept others.
const BACKLOG: i32 = 4_096;
/// Datagrams the kernel holds for us, in octets; it may grant less.
const DATAGRAM_BUFFER: usize = 4 << 20;

/// All sockets, bound.
#[derive(Debug, Default)]
pub(crate) struct Listeners {
    pub(crate) dns: dns::Sockets,
    pub(crate) web: proxy::Sockets,
    pub(crate) admin: Vec<TcpListener>,
}

/// A socket that can't be had.
#[derive(Debug, thiserror::Error)]
#[error("can't listen on {address} ({key}): {reason}")]
pub(crate) struct BindError {
    address: SocketAddr,
    key: &'static str,
    reason: String,
}

impl Listeners {
    /// Binds everything the configuration names.
    ///
    /// # Errors
    /// Every socket that can't be had.
    pub(crate) fn bind(config: &Config) -> Result<Self, Vec<BindError>> {
        let mut listeners = Self::default();
        let mut refused = Vec::new();
        let mut keep = |key: &'static str, address: SocketAddr, bound: io::Result<()>| {
            if let Err(error) = bound {
                refused.push(BindError {
                    address,
                    key,
                    reason: reason(&error, address),
                });
            }
        };
        for &address in &config.dns.listen {
            let bound = dns_pair(address).map(|(udp, tcp)| {
                listeners.dns.udp.extend(udp);
                listeners.dns.tcp.push(tcp);
            });
            keep("[dns] listen", address, bound);
        }
        let kinds = [
            (
                "[dns] tls_listen",
                &config.dns.tls_listen,
                &mut listeners.dns.tls,
            ),
            ("[http] listen", &config.http, &mut listeners.web.http),
            (
                "[https] listen",
                &config.https.listen,
                &mut listeners.web.https,
            ),
            ("[admin] listen", &config.admin, &mut listeners.admin),
        ];
        for (key, addresses, sockets) in kinds {
            for &address in addresses {
                keep(
                    key,
                    address,
                    tcp(address).map(|socket| sockets.push(socket)),
                );
            }
        }
        for socket in &listeners.dns.tls {
            // An answer must not wait for the client to have acknowledged its session tickets; without
            // this it only comes later.
            socket2::SockRef::from(socket)
                .set_tcp_nodelay(true)
                .unwrap_or_default();
        }
        if refused.is_empty() {
            Ok(listeners)
        } else {
            Err(refused)
        }
    }
}

/// UDP and TCP on one port; port 0 lets the kernel choose it. Each worker has a UDP socket of its own,
/// and the kernel spreads the clients over them. The TCP socket shares its port with nobody, so that
/// another server there is told.
fn dns_pair(address: SocketAddr) -> io::Result<(Vec<UdpSocket>, TcpListener)> {
    let tcp = tcp(address)?;
    // Answers go out at once, also those that are written in two pieces; connections inherit it.
    socket2::SockRef::from(&tcp).set_tcp_nodelay(true)?;
    let address = tcp.local_addr()?;
    let udp = processors().into_iter().map(|processor| {
        let udp = unbound(address, Type::DGRAM, Protocol::UDP)?;
        udp.set_reuse_port(true)?;
        // Of the sockets that share the port, the kernel takes that of the processor a datagram came in
        // on; one that can't spreads them by their source.
        udp.set_cpu_affinity(processor).unwrap_or_default();
        udp.bind(&address.into())?;
        // A smaller buffer than asked for only loses more under a flood.
        udp.set_recv_buffer_size(DATAGRAM_BUFFER)
            .unwrap_or_default();
        Ok(udp.into())
    });
    Ok((udp.collect::<io::Result<_>>()?, tcp))
}

/// The processors this process may use, one for each worker.
fn processors() -> Vec<usize> {
    let workers = dns::worker_count();
    let allowed = sched_getaffinity(None).map_or_else(
        |_| Vec::new(),
        |set| {
            (0..CpuSet::MAX_CPU)
                .filter(|processor| set.is_set(*processor))
                .collect()
        },
    );
    let known: Vec<usize> = if allowed.is_empty() {
        (0..workers).collect()
    } else {
        allowed
    };
    known.into_iter().cycle().take(workers).collect()
}

fn tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = unbound(address, Type::STREAM, Protocol::TCP)?;
    // A restart need not wait for old connections to time out.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn unbound(address: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    if address.is_ipv6() {
        // 0.0.0.0 and [::] are two sockets.
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

fn reason(error: &io::Error, address: SocketAddr) -> String {
    let port = address.port();
    match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "another program uses port {port}; see which with `ss -lptun 'sport = :{port}'`, or choose another port"
        ),
        io::ErrorKind::PermissionDenied => {
            format!("port {port} needs root or CAP_NET_BIND_SERVICE")
        }
        io::ErrorKind::AddrNotAvailable => {
            "this machine has no such address; see which it has with `ip address`".to_owned()
        }
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn every_port_in_use_is_told_with_its_key() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let text = format!(
            "[address]\nipv4 = \"192.0.2.1\"\n[dns]\nlisten = [\"127.0.0.1:0\"]\n[http]\nlisten = [\"{address}\"]\n[https]\nlisten = []\n[admin]\nlisten = [\"{address}\"]\n"
        );
        let config = Config::parse(Path::new("n.toml"), &text).unwrap();
        let refused = Listeners::bind(&config).unwrap_err();
        let texts: Vec<String> = refused.iter().map(ToString::to_string).collect();
        assert_eq!(texts.len(), 2, "{texts:?}");
        assert!(
            texts[0].contains(&address.to_string()) && texts[0].contains("[http] listen"),
            "{texts:?}"
        );
        assert!(texts[1].contains("[admin] listen"), "{texts:?}");
    }
}
