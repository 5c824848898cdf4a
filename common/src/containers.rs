//! The sections of `nuage.toml` about the engine that runs sites: `[containers]`, `[capacity]` and
//! `[database]`.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use ipnet::{Ipv4Net, Ipv6Net};

use crate::{
    config, group, paths,
    table::{At, Reading, Table},
};

/// The uid of the first site by default: above the subordinate uids of local users (to 600,100,000),
/// those of systemd's containers (to 1,879,048,191) and those SSSD makes (to 2,000,200,000). A user of
/// this machine who could take on a site's uid could enter its folder.
const FIRST_UID: u64 = 2_100_000_000;

/// How sites are run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Containers {
    /// Whether there is an engine at all.
    pub enabled: bool,
    /// Where the engine listens.
    pub engine: Engine,
    /// The Unix socket at which control listens.
    pub socket: PathBuf,
    /// Metrics of a control of its own; with the edge in one process they are at `[admin]`.
    pub admin: Vec<SocketAddr>,
    /// The user the edge runs as, when it is another than control's.
    pub edge_user: Option<String>,
    /// Networks are taken from here, a /23 each.
    pub subnet4: Ipv4Net,
    /// And from here, a /64 each.
    pub subnet6: Ipv6Net,
    /// The uid of the first site.
    pub first_uid: u32,
    /// Starts at once; 0 is one for each processor.
    pub starts: usize,
    /// Name servers of sites that may reach the internet; none are those of the server.
    pub resolvers: Vec<std::net::IpAddr>,
    /// The parent cgroup of containers, as the engine names it.
    pub cgroup_parent: Option<String>,
    /// Memory for all awake sites, in octets; 0 is what there is, less an eighth and 136 MiB.
    pub memory_bytes: u64,
    /// The shared database server.
    pub database: Option<Database>,
}

/// Where an engine listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Engine {
    /// A Unix socket.
    Unix(PathBuf),
    /// Host and port, over TLS with a folder of `ca.pem`, `cert.pem` and `key.pem`.
    Tcp(String, PathBuf),
}

/// The shared MariaDB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Database {
    /// Its Unix socket, where root needs no password.
    pub socket: PathBuf,
    /// Where it listens on the gateways of our networks.
    pub port: u16,
    /// Connections at once of one site.
    pub connections: u64,
}

impl Containers {
    pub(crate) fn read(
        root: &Table<'_>,
        base: &Path,
        state: &Path,
        reading: &mut Reading<'_>,
    ) -> Self {
        const KEYS: &[&str] = &[
            "enabled",
            "engine",
            "tls",
            "socket",
            "admin",
            "edge_user",
            "subnet4",
            "subnet6",
            "first_uid",
            "starts",
            "resolvers",
            "cgroup_parent",
        ];
        let table = root.table("containers", KEYS, reading);
        let table = table.as_ref();
        let text =
            |key: &str, reading: &mut Reading<'_>| table.and_then(|t| t.string(key, reading));
        let number = |key: &str, range, default: u64, reading: &mut Reading<'_>| {
            table
                .and_then(|t| t.integer(key, range, reading))
                .unwrap_or(default)
        };
        let tls = text("tls", reading).map(|written| paths::join(base, written.value));
        let engine = text("engine", reading);
        let engine = engine_at(engine, tls, reading);
        let socket = text("socket", reading).map_or_else(
            || state.join("control.sock"),
            |w| paths::join(base, w.value),
        );
        let subnet4 = net(
            text("subnet4", reading),
            "10.89.0.0/16",
            |net: &Ipv4Net| net.prefix_len() <= 23,
            reading,
        );
        let subnet6 = net(
            text("subnet6", reading),
            "fd4e:7561:6765::/48",
            |net: &Ipv6Net| net.prefix_len() <= 60,
            reading,
        );
        let mut resolvers = Vec::new();
        for written in table
            .map(|t| t.strings("resolvers", reading))
            .unwrap_or_default()
        {
            match written.value.parse() {
                Ok(address) => resolvers.push(address),
                Err(_) => reading.error(
                    written.at,
                    format!("\"{}\" is not an IP address", written.value),
                ),
            }
        }
        let admin = match table {
            Some(table) if table.has("admin") => {
                config::addresses_of(table.strings("admin", reading), reading)
            }
            _ => vec![SocketAddr::from(([127, 0, 0, 1], 9154))],
        };
        let enabled = table
            .and_then(|t| t.boolean("enabled", reading))
            .unwrap_or(true);
        let edge_user = text("edge_user", reading).map(|w| w.value.to_owned());
        let cgroup_parent = text("cgroup_parent", reading).map(|w| w.value.to_owned());
        let first_uid = number("first_uid", 1_000..=FIRST_UID, FIRST_UID, reading);
        let starts = number("starts", 1..=1_000, 0, reading);

        let capacity = root.table("capacity", &["memory"], reading);
        let memory = capacity.and_then(|t| group::size(&t, "memory", reading));
        let database = root
            .table("database", &["socket", "port", "connections"], reading)
            .map(|t| Database {
                socket: t.string("socket", reading).map_or_else(
                    || "/run/mysqld/mysqld.sock".into(),
                    |w| paths::join(base, w.value),
                ),
                port: t
                    .integer("port", 1..=65_535, reading)
                    .and_then(|port| u16::try_from(port).ok())
                    .unwrap_or(3306),
                connections: t.integer("connections", 1..=10_000, reading).unwrap_or(10),
            });
        Self {
            enabled,
            engine,
            socket,
            admin,
            edge_user,
            subnet4,
            subnet6,
            first_uid: u32::try_from(first_uid).unwrap_or(u32::MAX),
            starts: usize::try_from(starts).unwrap_or(usize::MAX),
            resolvers,
            cgroup_parent,
            memory_bytes: memory.unwrap_or(0),
            database,
        }
    }
}

/// The uid and gid of the edge's user.
///
/// # Errors
/// There is no such user, or the system can't be asked.
pub fn edge_ids(user: &str) -> io::Result<(u32, u32)> {
    // Users may come from anywhere the system knows of: its own command asks them all.
    let id = |of: &str| {
        let output = Command::new("id").args([of, "--", user]).output()?;
        let id = String::from_utf8_lossy(&output.stdout).trim().parse();
        id.map_err(|_| {
            io::Error::new(
                io::ErrorKind::NotFound,
                format!("there is no user {user} ([containers] edge_user): add it with `adduser --system --group {user}`"),
            )
        })
    };
    Ok((id("-u")?, id("-g")?))
}

/// `engine = "unix:///var/run/docker.sock"` or `"tcp://host:2376"`.
fn engine_at(written: Option<At<&str>>, tls: Option<PathBuf>, reading: &mut Reading<'_>) -> Engine {
    let default = Engine::Unix("/var/run/docker.sock".into());
    let Some(written) = written else {
        return default;
    };
    if let Some(path) = written.value.strip_prefix("unix://") {
        return Engine::Unix(path.into());
    }
    match (written.value.strip_prefix("tcp://"), tls) {
        (Some(host), Some(tls)) if !host.is_empty() => return Engine::Tcp(host.to_owned(), tls),
        (Some(_), None) => reading.error(
            written.at,
            "an engine over TCP needs `tls`, a folder of ca.pem, cert.pem and key.pem: whoever reaches it unguarded is root there",
        ),
        _ => reading.error(
            written.at,
            "`engine` must be \"unix:///path\" or \"tcp://host:port\"",
        ),
    }
    default
}

fn net<N: std::str::FromStr>(
    written: Option<At<&str>>,
    default: &str,
    usable: impl Fn(&N) -> bool,
    reading: &mut Reading<'_>,
) -> N {
    let parse = |text: &str| text.parse::<N>().ok().filter(&usable);
    if let Some(written) = written {
        match parse(written.value) {
            Some(net) => return net,
            None => reading.error(
                written.at,
                format!(
                    "\"{}\" is not a network, or too small a one: write one such as \"{default}\"",
                    written.value
                ),
            ),
        }
    }
    parse(default).unwrap_or_else(|| unreachable!("the default is a network"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_that_is_not_there_is_told_with_the_cure() {
        assert_eq!(edge_ids("root").unwrap(), (0, 0));
        let error = edge_ids("no-such-user").unwrap_err().to_string();
        assert!(
            error.contains("adduser --system --group no-such-user"),
            "{error}"
        );
    }
}
