//! `[dns]`: where questions come in, and how much is answered.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use ipnet::IpNet;

use super::{Numbers, addresses_of, listen};
use crate::table::{At, Reading, Table};

/// Longest identity, in octets: it goes into every answer that asks for it.
const IDENTITY_OCTETS: usize = 64;

/// `[dns]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dns {
    /// Addresses for UDP and TCP.
    pub listen: Vec<SocketAddr>,
    /// Addresses for DNS over TLS.
    pub tls_listen: Vec<SocketAddr>,
    /// Connections at once, in all.
    pub tcp_connections: usize,
    /// Connections at once from one address.
    pub tcp_connections_per_address: usize,
    /// How long a connection may be silent.
    pub tcp_idle: Duration,
    /// Like answers over UDP to one network in a second; 0 is without limit.
    pub rate_limit: u16,
    /// One in so many answers past that is sent, cut to its question; 0 is none.
    pub rate_limit_slip: u16,
    /// Networks without that limit.
    pub rate_limit_exempt: Vec<IpNet>,
    /// What NSID tells of this server; empty tells nothing.
    pub identity: String,
}

impl Dns {
    /// Reads the section, or takes its defaults.
    pub(super) fn read(root: &Table<'_>, reading: &mut Reading<'_>) -> Self {
        const KEYS: &[&str] = &[
            "listen",
            "tls_listen",
            "tcp_connections",
            "tcp_connections_per_address",
            "tcp_idle_seconds",
            "rate_limit",
            "rate_limit_slip",
            "rate_limit_exempt",
            "identity",
        ];
        let numbers = Numbers(root.table("dns", KEYS, reading));
        let strings = |key: &str, reading: &mut Reading<'_>| {
            let table = numbers.0.as_ref();
            table.map_or_else(Vec::new, |table| table.strings(key, reading))
        };
        let small = |key: &str, default: u64, reading: &mut Reading<'_>| {
            let number = numbers.number(key, 0..=u64::from(u16::MAX), default, reading);
            u16::try_from(number).unwrap_or(u16::MAX)
        };
        let tls_listen = strings("tls_listen", reading);
        let exempt = strings("rate_limit_exempt", reading);
        Self {
            listen: listen(&numbers.0, &["0.0.0.0:53", "[::]:53"], reading),
            tls_listen: addresses_of(tls_listen, reading),
            tcp_connections: numbers.count("tcp_connections", 1..=100_000, 1_000, reading),
            tcp_connections_per_address: numbers.count(
                "tcp_connections_per_address",
                1..=100_000,
                100,
                reading,
            ),
            tcp_idle: numbers.seconds("tcp_idle_seconds", 1..=3_600, 10, reading),
            rate_limit: small("rate_limit", 200, reading),
            rate_limit_slip: small("rate_limit_slip", 2, reading),
            rate_limit_exempt: networks(exempt, reading),
            identity: identity(numbers.0.as_ref(), reading),
        }
    }
}

/// Networks, or single addresses.
fn networks(written: Vec<At<&str>>, reading: &mut Reading<'_>) -> Vec<IpNet> {
    let mut networks = Vec::new();
    for At { value, at } in written {
        match value.parse().or_else(|_| value.parse::<IpAddr>().map(IpNet::from)) {
            Ok(network) => networks.push(network),
            Err(_) => reading.error(
                at,
                format!("\"{value}\" is not a network: write \"192.0.2.0/24\", \"2001:db8::/32\" or one address"),
            ),
        }
    }
    networks
}

fn identity(table: Option<&Table<'_>>, reading: &mut Reading<'_>) -> String {
    let Some(At { value, at }) = table.and_then(|table| table.string("identity", reading)) else {
        return String::new();
    };
    if value.len() > IDENTITY_OCTETS || value.chars().any(char::is_control) {
        reading.error(
            at,
            format!(
                "`identity` must have at most {IDENTITY_OCTETS} octets and no control characters"
            ),
        );
    }
    value.to_owned()
}
