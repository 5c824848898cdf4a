//! What a site's container is made from: pure, so that the same declaration makes the same container.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};

use ring::digest::{SHA256, digest};
use serde::Serialize;

/// A container, whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Spec {
    /// The site's full name.
    pub(crate) site: Arc<str>,
    pub(crate) image: String,
    /// Instead of the image's own command; empty is that one.
    pub(crate) command: Vec<String>,
    pub(crate) port: u16,
    /// Variables in order, secrets and database among them.
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) uid: u32,
    pub(crate) memory_bytes: u64,
    pub(crate) cpu_millis: u64,
    pub(crate) pids: u64,
    pub(crate) network: String,
    pub(crate) ipv4: Ipv4Addr,
    pub(crate) ipv6: Option<Ipv6Addr>,
    /// On a bridge, what the walls know it by. It follows from `ipv4`, and tells no containers apart.
    #[serde(skip)]
    pub(crate) mac: Option<String>,
    pub(crate) resolvers: Vec<IpAddr>,
    /// The folder of the site's files, on this machine.
    pub(crate) files: PathBuf,
    /// And of what it may lose.
    pub(crate) scratch: PathBuf,
}

impl Spec {
    /// Tells one container from another; nothing can be read back from it.
    pub(crate) fn digest(&self) -> String {
        // A struct of plain values always has a JSON form.
        let text = serde_json::to_vec(self).unwrap_or_default();
        let digest = digest(&SHA256, &text);
        digest.as_ref()[..8]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    /// Where its server listens.
    pub(crate) fn address(&self) -> SocketAddr {
        SocketAddr::new(self.ipv4.into(), self.port)
    }
}
