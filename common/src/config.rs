//! `nuage.toml`: addresses, folders, listeners and limits.

mod dns;

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

pub use dns::Dns;
use hickory_proto::rr::Name;

use crate::{
    containers::Containers,
    group::Groups,
    name::{HostName, Reserved, SiteName},
    paths,
    problem::Problem,
    reverse,
    secondary::Secondaries,
    table::{At, Reading, Table},
};

/// Everything `nuage.toml` says, checked, with defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The addresses every name points at.
    pub addresses: Addresses,
    /// Folder of zone files, absolute or relative to the working folder.
    pub zones: PathBuf,
    /// Folder of what must survive: keys, leases, sites' files, and by default the edge's folder.
    pub state: PathBuf,
    /// Folder of what the edge keeps for itself: serials, logs, what was observed last.
    pub edge: PathBuf,
    /// `[dns]`.
    pub dns: Dns,
    /// `[http]`.
    pub http: Vec<SocketAddr>,
    /// `[https]`.
    pub https: Https,
    /// `[admin] listen`.
    pub admin: Vec<SocketAddr>,
    /// `[reverse]`.
    pub reverse: Reverse,
    /// Names nobody can take.
    pub reserved: Reserved,
    /// `[limits]`.
    pub limits: Limits,
    /// `[access_log]`.
    pub access_log: AccessLog,
    /// `[containers]`, `[capacity]` and `[database]`.
    pub containers: Containers,
    /// `[groups]`.
    pub groups: Groups,
    /// `[[secondaries]]` and `[keys]`.
    pub secondaries: Secondaries,
}

/// A configuration that can't be used.
#[derive(Clone, Debug)]
pub struct Broken {
    /// Everything wrong with it.
    pub problems: Vec<Problem>,
    /// What could be made of it all the same, to find more problems with.
    pub best_effort: Option<Box<Config>>,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.problems.iter().map(ToString::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for Broken {}

/// The public addresses; at least one is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// For A records and the IPv4 reverse zone.
    pub ipv4: Option<Ipv4Addr>,
    /// For AAAA records and the IPv6 reverse zone.
    pub ipv6: Option<Ipv6Addr>,
}

/// `[https]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Https {
    /// Addresses for TLS.
    pub listen: Vec<SocketAddr>,
    /// The port visitors use, in redirects and printed URLs.
    pub port: Option<u16>,
    /// Where certificates come from unless a zone brings its own.
    pub certificates: Certificates,
}

/// Where certificates come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Certificates {
    /// An authority of our own, made on first start.
    LocalCa,
}

/// `[reverse]`: PTR records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reverse {
    /// Which names get a PTR.
    pub names: PtrNames,
    /// Origin of the IPv4 reverse zone; by default the address's own reverse name.
    pub ipv4_origin: Option<Name>,
    /// Origin of the IPv6 reverse zone; likewise.
    pub ipv6_origin: Option<Name>,
    /// The server's own name, first in every PTR set; by default the first in-zone name server.
    pub canonical: Option<HostName>,
    /// Whether the reverse zones are signed.
    pub dnssec: bool,
}

/// How many names answer for an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PtrNames {
    /// As many as fit a message.
    All,
    /// At most this many, the server's own name counted.
    AtMost(usize),
    /// Only the server's own name.
    Canonical,
}

/// `[limits]` of the HTTP side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Client connections at once, in all.
    pub connections: usize,
    /// Client connections at once from one address (IPv6: from one /64).
    pub connections_per_address: usize,
    /// Request head, in octets.
    pub header_bytes: usize,
    /// From the first octet of a request to the end of its head; also the TLS handshake.
    pub header: Duration,
    /// Between requests on one connection.
    pub idle: Duration,
    /// Request body, in octets.
    pub body_bytes: u64,
    /// Without progress from client or upstream.
    pub stall: Duration,
    /// To open a connection to an upstream.
    pub connect: Duration,
    /// After SIGTERM, for requests under way.
    pub drain: Duration,
}

/// `[access_log]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessLog {
    /// Off by default.
    pub enabled: bool,
    /// Where the files go, one a site.
    pub folder: PathBuf,
    /// A file past this size is set aside.
    pub rotate_bytes: u64,
    /// How many set-aside files stay.
    pub keep: usize,
}

impl Config {
    /// Reads and checks `nuage.toml`.
    ///
    /// # Errors
    /// Every problem of the file, or that it can't be read.
    pub fn load(path: &Path) -> Result<Self, Broken> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            let how = match error.kind() {
                std::io::ErrorKind::NotFound => {
                    "no such file: name another with --config FILE".to_owned()
                }
                _ => format!("can't read the configuration: {error}"),
            };
            Broken {
                problems: vec![Problem::whole_file(path, how)],
                best_effort: None,
            }
        })?;
        Self::parse(path, &text)
    }

    /// Checks the text of `nuage.toml`; relative paths start at `path`'s folder.
    ///
    /// # Errors
    /// Every problem of the text.
    pub fn parse(path: &Path, text: &str) -> Result<Self, Broken> {
        let mut reading = Reading::of(path, text);
        let config = read(path, text, &mut reading);
        match config {
            Some(config) if !reading.failed() => Ok(config),
            config => Err(Broken {
                problems: reading.problems,
                best_effort: config.map(Box::new),
            }),
        }
    }

    /// The sections in which a change from `old` takes effect only at the next start.
    pub fn restart_needed(&self, old: &Self) -> Vec<&'static str> {
        let changed = [
            (
                "[paths] state",
                self.state != old.state || self.edge != old.edge,
            ),
            ("[dns]", self.dns != old.dns),
            ("[http]", self.http != old.http),
            ("[https]", self.https != old.https),
            ("[admin]", self.admin != old.admin),
            ("[limits]", self.limits != old.limits),
            ("[access_log]", self.access_log != old.access_log),
            (
                "[containers], [capacity] or [database]",
                self.containers != old.containers,
            ),
        ];
        changed
            .into_iter()
            .filter(|(_, changed)| *changed)
            .map(|(section, _)| section)
            .collect()
    }

    /// The port visitors use for HTTPS.
    pub fn https_port(&self) -> u16 {
        let listening = self.https.listen.first().map_or(443, SocketAddr::port);
        self.https.port.unwrap_or(listening)
    }
}

fn read(path: &Path, text: &str, reading: &mut Reading<'_>) -> Option<Config> {
    const SECTIONS: &[&str] = &[
        "address",
        "paths",
        "dns",
        "http",
        "https",
        "admin",
        "reverse",
        "names",
        "limits",
        "access_log",
        "containers",
        "capacity",
        "database",
        "groups",
        "secondaries",
        "keys",
    ];
    let document = reading.document(0, text)?;
    let root = Table::strict(document.get_ref(), 0..0, SECTIONS, reading);
    let base = path.parent().unwrap_or(Path::new(""));

    let addresses = addresses(&root, reading);

    let paths = root.table("paths", &["zones", "state", "edge"], reading);
    let folder =
        |table: &Option<Table<'_>>, key: &str, default: &str, reading: &mut Reading<'_>| {
            let written = table.as_ref().and_then(|t| t.string(key, reading));
            paths::join(base, written.map_or(default, |w| w.value))
        };
    let zones = folder(&paths, "zones", "zones", reading);
    let state = folder(&paths, "state", "/var/lib/nuage", reading);
    let edge = match &paths {
        Some(table) if table.has("edge") => folder(&paths, "edge", "", reading),
        _ => state.join("edge"),
    };

    let dns = Dns::read(&root, reading);
    let http = listen(
        &root.table("http", &["listen"], reading),
        &["0.0.0.0:80", "[::]:80"],
        reading,
    );
    let https = https(&root, reading);
    let admin = listen(
        &root.table("admin", &["listen"], reading),
        &["127.0.0.1:9153"],
        reading,
    );
    let reverse = reverse(&root, reading);
    let reserved = reserved(&root, reading);
    let limits = limits(&root, reading);

    let log = root.table(
        "access_log",
        &["enabled", "folder", "rotate_bytes", "keep"],
        reading,
    );
    let log_folder = log
        .as_ref()
        .and_then(|t| t.string("folder", reading))
        .map(|w| paths::join(base, w.value));
    let log_enabled = log.as_ref().and_then(|t| t.boolean("enabled", reading));
    let numbers = Numbers(log);
    let access_log = AccessLog {
        enabled: log_enabled.unwrap_or(false),
        folder: log_folder.unwrap_or_else(|| edge.join("logs")),
        rotate_bytes: numbers.number("rotate_bytes", 4_096..=1 << 40, 10 << 20, reading),
        keep: numbers.count("keep", 0..=1_000, 5, reading),
    };

    let containers = Containers::read(&root, base, &state, reading);
    let groups = Groups::read(&root, reading);
    let secondaries = Secondaries::read(&root, base, reading);
    if dns.tls_listen.is_empty() && secondaries.iter().any(|secondary| secondary.tls) {
        reading.warning(
            root.at,
            "[[secondaries]] tls = true needs [dns] tls_listen, such as [\"0.0.0.0:853\", \"[::]:853\"]: without it nobody can transfer over TLS",
        );
    }

    Some(Config {
        addresses,
        zones,
        state,
        edge,
        dns,
        http,
        https,
        admin,
        reverse,
        reserved,
        limits,
        access_log,
        containers,
        groups,
        secondaries,
    })
}

fn addresses(root: &Table<'_>, reading: &mut Reading<'_>) -> Addresses {
    let Some(table) = root.table("address", &["ipv4", "ipv6"], reading) else {
        if !root.has("address") {
            reading.error(
                0,
                "[address] is missing: give ipv4 = \"…\", ipv6 = \"…\" or both, the addresses of this server",
            );
        }
        return Addresses {
            ipv4: None,
            ipv6: None,
        };
    };
    let ipv4 = parsed(
        &table,
        "ipv4",
        "an IPv4 address, such as \"192.0.2.10\"",
        reading,
    );
    let ipv6 = parsed(
        &table,
        "ipv6",
        "an IPv6 address, such as \"2001:db8::10\"",
        reading,
    );
    if !table.has("ipv4") && !table.has("ipv6") {
        reading.error(table.at, "[address] needs ipv4, ipv6 or both");
    }
    Addresses { ipv4, ipv6 }
}

fn https(root: &Table<'_>, reading: &mut Reading<'_>) -> Https {
    let table = root.table("https", &["listen", "certificates", "port"], reading);
    if let Some(written) = table
        .as_ref()
        .and_then(|t| t.string("certificates", reading))
        && written.value != "local-ca"
    {
        reading.error(
            written.at,
            format!(
                "`certificates` can't be \"{}\": write \"local-ca\", and [certificate] in the zones that bring their own",
                written.value
            ),
        );
    }
    let listen = listen(&table, &["0.0.0.0:443", "[::]:443"], reading);
    let port = table
        .as_ref()
        .and_then(|t| t.integer("port", 1..=65_535, reading));
    Https {
        listen,
        port: port.and_then(|port| u16::try_from(port).ok()),
        certificates: Certificates::LocalCa,
    }
}

fn reverse(root: &Table<'_>, reading: &mut Reading<'_>) -> Reverse {
    let table = root.table(
        "reverse",
        &["names", "ipv4_origin", "ipv6_origin", "canonical", "dnssec"],
        reading,
    );
    let mut names = PtrNames::All;
    let mut origins = [None, None];
    let mut canonical = None;
    let mut dnssec = false;
    if let Some(table) = &table {
        dnssec = table.boolean("dnssec", reading).unwrap_or(false);
        names = ptr_names(table, reading);
        origins = ["ipv4_origin", "ipv6_origin"].map(|key| {
            let written = table.string(key, reading)?;
            let origin = reverse::parse_origin(written.value);
            if origin.is_none() {
                reading.error(
                    written.at,
                    format!("`{key}` is not a domain name: \"{}\"", written.value),
                );
            }
            origin
        });
        canonical = table.string("canonical", reading).and_then(|written| {
            HostName::parse(written.value)
                .map_err(|error| reading.error(written.at, error.to_string()))
                .ok()
        });
    }
    let [ipv4_origin, ipv6_origin] = origins;
    Reverse {
        names,
        ipv4_origin,
        ipv6_origin,
        canonical,
        dnssec,
    }
}

/// `names = "all"`, `"canonical"` or a number.
fn ptr_names(table: &Table<'_>, reading: &mut Reading<'_>) -> PtrNames {
    if let Some(count) = table.quiet_integer("names") {
        return match usize::try_from(count) {
            Ok(count) if count > 0 => PtrNames::AtMost(count),
            _ => {
                reading.error(table.at, "`names` must be at least 1");
                PtrNames::All
            }
        };
    }
    match table.string("names", reading) {
        None | Some(At { value: "all", .. }) => PtrNames::All,
        Some(At {
            value: "canonical", ..
        }) => PtrNames::Canonical,
        Some(other) => {
            reading.error(
                other.at,
                "`names` must be \"all\", \"canonical\" or a number",
            );
            PtrNames::All
        }
    }
}

fn reserved(root: &Table<'_>, reading: &mut Reading<'_>) -> Reserved {
    let Some(table) = root.table("names", &["reserved"], reading) else {
        return Reserved::default();
    };
    let mut names = Vec::new();
    for written in table.strings("reserved", reading) {
        match SiteName::parse(written.value) {
            Ok(name) => names.push(name),
            Err(error) => reading.error(written.at, error.to_string()),
        }
    }
    Reserved::with(names)
}

fn limits(root: &Table<'_>, reading: &mut Reading<'_>) -> Limits {
    const KEYS: &[&str] = &[
        "connections",
        "connections_per_address",
        "header_bytes",
        "header_seconds",
        "idle_seconds",
        "body_bytes",
        "stall_seconds",
        "connect_seconds",
        "drain_seconds",
    ];
    let numbers = Numbers(root.table("limits", KEYS, reading));
    Limits {
        connections: numbers.count("connections", 1..=1_000_000, 8_000, reading),
        connections_per_address: numbers.count(
            "connections_per_address",
            1..=1_000_000,
            1_000,
            reading,
        ),
        // Pingora itself reads at most 64 KiB of head.
        header_bytes: numbers.count("header_bytes", 1_024..=65_536, 32_768, reading),
        header: numbers.seconds("header_seconds", 1..=300, 10, reading),
        idle: numbers.seconds("idle_seconds", 1..=3_600, 60, reading),
        body_bytes: numbers.number("body_bytes", 0..=1 << 50, 1 << 30, reading),
        stall: numbers.seconds("stall_seconds", 1..=86_400, 60, reading),
        connect: numbers.seconds("connect_seconds", 1..=300, 5, reading),
        drain: numbers.seconds("drain_seconds", 0..=3_600, 10, reading),
    }
}

/// A section of numbers with defaults.
struct Numbers<'d>(Option<Table<'d>>);

impl Numbers<'_> {
    fn number(
        &self,
        key: &str,
        range: std::ops::RangeInclusive<u64>,
        default: u64,
        reading: &mut Reading<'_>,
    ) -> u64 {
        self.0
            .as_ref()
            .and_then(|t| t.integer(key, range, reading))
            .unwrap_or(default)
    }

    fn count(
        &self,
        key: &str,
        range: std::ops::RangeInclusive<u64>,
        default: u64,
        reading: &mut Reading<'_>,
    ) -> usize {
        usize::try_from(self.number(key, range, default, reading)).unwrap_or(usize::MAX)
    }

    fn seconds(
        &self,
        key: &str,
        range: std::ops::RangeInclusive<u64>,
        default: u64,
        reading: &mut Reading<'_>,
    ) -> Duration {
        Duration::from_secs(self.number(key, range, default, reading))
    }
}

fn listen(
    table: &Option<Table<'_>>,
    default: &[&str],
    reading: &mut Reading<'_>,
) -> Vec<SocketAddr> {
    let written = match table {
        Some(table) if table.has("listen") => table.strings("listen", reading),
        _ => default
            .iter()
            .map(|value| At {
                value: *value,
                at: 0,
            })
            .collect(),
    };
    addresses_of(written, reading)
}

/// Addresses with ports.
pub(crate) fn addresses_of(written: Vec<At<&str>>, reading: &mut Reading<'_>) -> Vec<SocketAddr> {
    let mut addresses = Vec::new();
    for At { value, at } in written {
        match value.parse() {
            Ok(address) => addresses.push(address),
            Err(_) => reading.error(at, format!("\"{value}\" is not an address and port: write \"192.0.2.10:53\" or \"[2001:db8::10]:53\"")),
        }
    }
    addresses
}

fn parsed<T: std::str::FromStr>(
    table: &Table<'_>,
    key: &str,
    wanted: &str,
    reading: &mut Reading<'_>,
) -> Option<T> {
    let written = table.string(key, reading)?;
    let value = written.value.parse().ok();
    if value.is_none() {
        reading.error(
            written.at,
            format!("`{key}` must be {wanted}, found \"{}\"", written.value),
        );
    }
    value
}

impl fmt::Display for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.ipv4, self.ipv6) {
            (Some(v4), Some(v6)) => write!(f, "{v4} and {v6}"),
            (Some(v4), None) => write!(f, "{v4}"),
            (None, Some(v6)) => write!(f, "{v6}"),
            (None, None) => write!(f, "no address"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str) -> Vec<String> {
        match Config::parse(Path::new("nuage.toml"), text) {
            Ok(config) => panic!("no problem in {config:?}"),
            Err(broken) => broken.problems.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn an_address_is_enough() {
        let config = Config::parse(
            Path::new("/etc/nuage/nuage.toml"),
            "[address]\nipv4 = \"192.0.2.10\"\n",
        )
        .unwrap();
        assert_eq!(config.zones, Path::new("/etc/nuage/zones"));
        assert_eq!(config.dns.listen.len(), 2);
        assert_eq!(config.https_port(), 443);
        assert!(!config.access_log.enabled);
    }

    #[test]
    fn every_problem_is_told_at_once_with_its_place() {
        let text = "[address]\nipv4 = \"192.0.2.300\"\n[dns]\nlisten = [\"53\"]\ntcp_idle_seconds = 0\n[htpp]\n";
        assert_eq!(
            problems(text),
            [
                "nuage.toml:6:2: unknown key \"htpp\": did you mean \"http\"?",
                "nuage.toml:2:8: `ipv4` must be an IPv4 address, such as \"192.0.2.10\", found \"192.0.2.300\"",
                "nuage.toml:4:11: \"53\" is not an address and port: write \"192.0.2.10:53\" or \"[2001:db8::10]:53\"",
                "nuage.toml:5:20: `tcp_idle_seconds` must be between 1 and 3600",
            ]
        );
    }

    #[test]
    fn reverse_names_and_origins() {
        let read = |reverse: &str| {
            let text = format!("[address]\nipv4 = \"192.0.2.10\"\n[reverse]\n{reverse}\n");
            Config::parse(Path::new("n.toml"), &text).map(|config| config.reverse)
        };
        assert_eq!(read("names = 50").unwrap().names, PtrNames::AtMost(50));
        assert_eq!(
            read("names = \"canonical\"").unwrap().names,
            PtrNames::Canonical
        );
        assert_eq!(
            read("ipv4_origin = \"0/25.2.0.192.in-addr.arpa.\"")
                .unwrap()
                .ipv4_origin
                .unwrap()
                .num_labels(),
            6
        );
        assert!(read("dnssec = true").unwrap().dnssec && !read("").unwrap().dnssec);
        assert!(read("dnssec = \"yes\"").is_err());
        assert!(read("names = 0").is_err());
        assert!(read("names = \"some\"").is_err());
    }

    #[test]
    fn no_address_is_an_error() {
        assert!(problems("")[0].contains("[address] is missing"));
        assert!(problems("[address]\n")[0].contains("needs ipv4, ipv6 or both"));
    }
}
