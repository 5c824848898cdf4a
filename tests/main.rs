//! Tests through the public face: the real binary, real sockets, real clients and servers from
//! Debian's packages (`scripts/test` installs them).

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test fails by panicking"
)]

mod battery;
mod chain;
mod cli;
mod client;
mod containers;
mod corpus;
mod differential;
mod dnssec;
mod doctor;
mod doh;
mod edns_compliance;
mod harness;
mod hostile;
mod http;
mod https_records;
mod keys;
mod limits;
mod live;
mod metrics;
mod peers;
mod tls;
mod transfers;
