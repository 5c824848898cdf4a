//! The walls: what a site's container may reach, as packet filter tables of our own.
//!
//! The engine never rewrites tables it didn't make, and a drop in ours is final whatever its chains
//! accept. Three layers, each enough for most of it: `table inet` (who may talk to whom, by bridge
//! name), `table bridge` (the same by content, for frames which never reach IP, ARP above all), and
//! the bridge port itself (`seat`: isolated from its neighbours and locked to one MAC address).
//! Boundary: this file makes text and hands it to `nft` and `bridge`; which bridges and sites exist
//! isn't its business. It leans on two facts: a container's MAC is `02:42` and its IPv4 address, as
//! we ask of the engine, and `br_netfilter` is on (the engine turns it on for `enable_icc=false`).
//! It doesn't use `meta ibrname`, which some kernels lack.

use std::{
    collections::BTreeSet,
    fmt::Display,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    process::Stdio,
    time::Duration,
};

use ipnet::{Ipv4Net, Ipv6Net};
use tokio::{io::AsyncWriteExt as _, process::Command, time::timeout};

/// Both tools answer in milliseconds; ten seconds mean that something holds the kernel's lock.
const PATIENCE: Duration = Duration::from_secs(10);

/// One bridge network of sites.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bridge {
    /// The interface's name, at most 15 bytes of `[a-z0-9-]`.
    pub(crate) interface: String,
    /// Its IPv4 network.
    pub(crate) subnet4: Ipv4Net,
    /// The host's address there.
    pub(crate) gateway4: Ipv4Addr,
    /// Its IPv6 network, of at most 96 bits of prefix.
    pub(crate) subnet6: Option<Ipv6Net>,
    /// The host's address there.
    pub(crate) gateway6: Option<Ipv6Addr>,
    /// Whether its sites reach the public internet; otherwise nothing leaves.
    pub(crate) internet: bool,
    /// The TCP port of the shared database on its gateway addresses.
    pub(crate) database_port: Option<u16>,
}

/// All walls of one instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Walls {
    /// The instance, `[0-9a-f]{4,8}`: the tables are called `nuage_<id>`.
    pub(crate) id: String,
    /// The bridges of sites.
    pub(crate) bridges: Vec<Bridge>,
    /// The address of every site, awake or not; `mac` and `address6` make its others of it.
    pub(crate) addresses: Vec<Ipv4Addr>,
    /// Resolvers that sites with internet may ask on port 53 even at private addresses.
    pub(crate) resolvers: Vec<IpAddr>,
}

/// Why the walls could not be raised.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WallsError {
    /// The tool isn't there.
    #[error("`{program}` is not installed: run `apt install nftables iproute2`")]
    Missing {
        /// The tool.
        program: &'static str,
    },
    /// The tool could not be run.
    #[error("running `{program}` for the walls")]
    Run {
        /// The tool.
        program: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The tool did not answer in time.
    #[error("`{program}` did not finish in {} s: is another program changing the packet filter?", PATIENCE.as_secs())]
    TimedOut {
        /// The tool.
        program: &'static str,
    },
    /// The tool refused; the kernel may lack a part.
    #[error("`{program}` refused the walls, no site may start without them: {stderr}")]
    Refused {
        /// The tool.
        program: &'static str,
        /// What it said.
        stderr: String,
    },
    /// The container's end of the wire was not found on the bridge.
    #[error("process {pid} has no port on bridge {bridge}: is its container still running?")]
    NoPort {
        /// The container's first process.
        pid: u32,
        /// The bridge.
        bridge: String,
    },
}

/// The MAC address of a container with this IPv4 address: what the engine made of it by itself up to
/// version 27, and is asked for since.
pub(crate) fn mac(address: Ipv4Addr) -> String {
    let [a, b, c, d] = address.octets();
    format!("02:42:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}

/// The IPv6 address a site with this IPv4 address must be given: the bridge's prefix, then the IPv4
/// address.
pub(crate) fn address6(subnet6: Ipv6Net, address: Ipv4Addr) -> Ipv6Addr {
    Ipv6Addr::from_bits(subnet6.network().to_bits() | u128::from(address.to_bits()))
}

/// The link-local address the kernel makes from that MAC (RFC 4291 appendix A).
fn link_local(address: Ipv4Addr) -> Ipv6Addr {
    let [a, b, c, d] = address.octets().map(u128::from);
    let interface = 0x0042_00ff_fe00_0000 | a << 40 | b << 16 | c << 8 | d;
    Ipv6Addr::from_bits(0xfe80 << 112 | interface)
}

/// Writes one named set; sorted, because the digest must not depend on the order of anything.
fn set<T: Display>(
    text: &mut String,
    name: &str,
    kind: &str,
    elements: impl IntoIterator<Item = T>,
) {
    let elements: BTreeSet<String> = elements
        .into_iter()
        .map(|element| element.to_string())
        .collect();
    let elements: Vec<&str> = elements.iter().map(String::as_str).collect();
    // An empty list of elements is a syntax error.
    let list = if elements.is_empty() {
        String::new()
    } else {
        format!("elements = {{ {} }};", elements.join(", "))
    };
    text.push_str(&format!("  set {name} {{ {kind}; {list} }}\n"));
}

impl Walls {
    /// A whole `nft -f -` script, which replaces both tables in one transaction: there is no moment
    /// without walls.
    pub(crate) fn ruleset(&self) -> String {
        let (id, digest) = (&self.id, self.digest());
        // Declaring before deleting makes the deletion work when there is nothing yet.
        let table = |family: &str, body: String| {
            format!(
                "table {family} nuage_{id}\ndelete table {family} nuage_{id}\n\
                 table {family} nuage_{id} {{\n  chain digest_{digest} {{ }}\n{body}}}\n"
            )
        };
        table("inet", self.inet()) + &table("bridge", self.bridge())
    }

    /// A short name for exactly these walls, the same for the same walls as long as the program is
    /// the same. It names an empty chain in each table, so that `standing` need not compare sets.
    pub(crate) fn digest(&self) -> String {
        let mut hasher = DefaultHasher::new();
        (&self.id, self.inet(), self.bridge()).hash(&mut hasher);
        format!("{:016x}", hasher.finish())
    }

    /// Every site with its bridge.
    fn sites(&self) -> impl Iterator<Item = (&Bridge, Ipv4Addr)> {
        self.addresses.iter().filter_map(|address| {
            let home = self
                .bridges
                .iter()
                .find(|bridge| bridge.subnet4.contains(address))?;
            Some((home, *address))
        })
    }

    /// Every site with its IPv6 address.
    fn sites6(&self) -> impl Iterator<Item = (&Bridge, Ipv4Addr, Ipv6Addr)> {
        self.sites()
            .filter_map(|(home, site)| Some((home, site, address6(home.subnet6?, site))))
    }

    fn inet(&self) -> String {
        let mut text = String::new();
        let out = &mut text;
        let bridges = &self.bridges;
        let open = || bridges.iter().filter(|bridge| bridge.internet);
        let name = |bridge: &Bridge| format!("\"{}\"", bridge.interface);
        let net6 = |bridge: &Bridge| bridge.subnet6.map(|subnet| subnet.trunc());
        set(out, "bridges", "type ifname", bridges.iter().map(name));
        set(out, "internet", "type ifname", open().map(name));
        set(
            out,
            "nets6_internet",
            "type ipv6_addr; flags interval",
            open().filter_map(net6),
        );
        set(
            out,
            "gateways4",
            "type ipv4_addr",
            bridges.iter().map(|bridge| bridge.gateway4),
        );
        set(
            out,
            "gateways6",
            "type ipv6_addr",
            bridges.iter().filter_map(|bridge| bridge.gateway6),
        );
        let (four, six): (Vec<&IpAddr>, Vec<&IpAddr>) =
            self.resolvers.iter().partition(|it| it.is_ipv4());
        set(out, "resolvers4", "type ipv4_addr", four);
        set(out, "resolvers6", "type ipv6_addr", six);
        let database4 = |bridge: &Bridge| {
            let port = bridge.database_port?;
            Some(format!("{} . {} . {port}", name(bridge), bridge.gateway4))
        };
        let database6 = |bridge: &Bridge| {
            let port = bridge.database_port?;
            Some(format!("{} . {} . {port}", name(bridge), bridge.gateway6?))
        };
        let databases = bridges.iter().filter_map(database4);
        set(
            out,
            "databases4",
            "type ifname . ipv4_addr . inet_service",
            databases,
        );
        let databases = bridges.iter().filter_map(database6);
        set(
            out,
            "databases6",
            "type ifname . ipv6_addr . inet_service",
            databases,
        );
        let sites = self
            .sites()
            .map(|(home, site)| format!("{} . {site}", name(home)));
        set(out, "sites4", "type ifname . ipv4_addr", sites);
        let sites = self
            .sites6()
            .map(|(home, _, site)| format!("{} . {site}", name(home)));
        set(out, "sites6", "type ifname . ipv6_addr", sites);
        // Whom a neighbour advertisement may speak for; `icmpv6 taddr` is too new, hence the raw
        // 128 bits.
        let targets = self.sites6().flat_map(|(_, site, global)| {
            [global, link_local(site)]
                .map(|target| format!("{} . {:#034x}", mac(site), target.to_bits()))
        });
        set(out, "targets", "typeof ether saddr . @th,64,128", targets);
        out.push_str(INET);
        text
    }

    fn bridge(&self) -> String {
        let mut text = String::new();
        let out = &mut text;
        let nets4 = self.bridges.iter().map(|bridge| bridge.subnet4.trunc());
        set(out, "nets4", "type ipv4_addr; flags interval", nets4);
        let nets6 = self
            .bridges
            .iter()
            .filter_map(|bridge| bridge.subnet6.map(|subnet| subnet.trunc()));
        set(out, "nets6", "type ipv6_addr; flags interval", nets6);
        set(
            out,
            "macs",
            "type ether_addr",
            self.sites().map(|(_, site)| mac(site)),
        );
        let pairs = self
            .sites()
            .map(|(_, site)| format!("{} . {site}", mac(site)));
        set(out, "pairs4", "type ether_addr . ipv4_addr", pairs);
        let pairs = self.sites6().flat_map(|(_, site, global)| {
            [global, link_local(site)].map(|address| format!("{} . {address}", mac(site)))
        });
        set(out, "pairs6", "type ether_addr . ipv6_addr", pairs);
        out.push_str(BRIDGE);
        text
    }
}

/// The chains of `table inet`. Ours come before the engine's (priority 0) and before connection
/// tracking (-200); an `accept` only means "not dropped here".
const INET: &str = r#"
  # Only rightful senders. Neighbour discovery is the one link-local or multicast thing a site
  # needs: to find its gateway and to be found by it. Router advertisements, redirects, MLD, mDNS
  # and broadcasts end here.
  chain prerouting {
    type filter hook prerouting priority -310; policy accept;
    iifname @bridges jump from_site
  }
  chain from_site {
    ip daddr 224.0.0.0/3 drop
    iifname . ip saddr @sites4 accept
    icmpv6 type nd-neighbor-advert ip6 hoplimit 255 ether saddr . @th,64,128 @targets accept
    icmpv6 type nd-neighbor-solicit ip6 hoplimit 255 ip6 saddr fe80::/64 accept
    icmpv6 type nd-neighbor-solicit ip6 hoplimit 255 iifname . ip6 saddr @sites6 accept
    icmpv6 type { nd-router-solicit, nd-router-advert, nd-redirect } drop
    icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } drop
    ip6 daddr ff00::/8 drop
    iifname . ip6 saddr @sites6 accept
    drop
  }
  # The host answers neighbour discovery and takes the answers to what it asked; nothing else but
  # the database. Our gateway addresses are for our bridges only: a neighbour of the host could
  # route to them (weak host model).
  chain input {
    type filter hook input priority -10; policy accept;
    iifname @bridges jump host
    iifname != "lo" ip daddr @gateways4 drop
    iifname != "lo" ip6 daddr @gateways6 drop
  }
  chain host {
    ct state established accept
    ct state related meta l4proto { icmp, ipv6-icmp } accept
    icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
    iifname . ip daddr . tcp dport @databases4 accept
    iifname . ip6 daddr . tcp dport @databases6 accept
    drop
  }
  chain forward {
    type filter hook forward priority -10; policy accept;
    iifname @bridges jump leaving
    oifname @bridges jump entering
  }
  # A campus network isn't the internet. IPv6 is global unicast only, without the tunnels that embed
  # IPv4 (Teredo, 6to4).
  chain leaving {
    oifname @bridges drop
    iifname != @internet drop
    ip daddr @resolvers4 meta l4proto { tcp, udp } th dport 53 accept
    ip6 daddr @resolvers6 meta l4proto { tcp, udp } th dport 53 accept
    ip daddr { 0.0.0.0/8, 10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 169.254.0.0/16, 172.16.0.0/12 } drop
    ip daddr { 192.0.0.0/24, 192.168.0.0/16, 198.18.0.0/15, 224.0.0.0/3 } drop
    ip6 daddr { 2001::/32, 2002::/16 } drop
    ip6 daddr != 2000::/3 drop
  }
  chain entering {
    ct state established,related accept
    drop
  }
  # The engine does this for IPv4 only.
  chain postrouting {
    type nat hook postrouting priority 100; policy accept;
    ip6 saddr @nets6_internet oifname != @bridges masquerade
  }
"#;

/// The chains of `table bridge`: before a frame is learned from, and before it's passed to another
/// port.
const BRIDGE: &str = r#"
  chain prerouting {
    type filter hook prerouting priority -310; policy accept;
    ip saddr @nets4 ether saddr . ip saddr != @pairs4 drop
    arp saddr ip @nets4 ether saddr . arp saddr ip != @pairs4 drop
    ip6 saddr @nets6 ether saddr . ip6 saddr != @pairs6 drop
    ether saddr @macs jump from_site
  }
  chain from_site {
    ether type arp ether saddr . arp saddr ip != @pairs4 drop
    ether type ip ether saddr . ip saddr != @pairs4 drop
    ether type ip6 ether saddr . ip6 saddr != @pairs6 drop
    ether type != { arp, ip, ip6 } drop
  }
  # Nothing of ours passes from port to port. Frames of unknown protocols can't be told by content
  # once their sender lies about its address: those pass between no two containers of this machine.
  chain forward {
    type filter hook forward priority -310; policy accept;
    ether saddr @macs drop
    ether daddr @macs drop
    ip saddr @nets4 drop
    ip daddr @nets4 drop
    arp saddr ip @nets4 drop
    arp daddr ip @nets4 drop
    ip6 saddr @nets6 drop
    ip6 daddr @nets6 drop
    iifname "veth*" oifname "veth*" ether type != { arp, ip, ip6 } drop
  }
"#;

/// Puts up the walls, replacing older ones of the same instance in one transaction.
///
/// # Errors
/// When `nft` is missing, refuses or hangs; the old walls then still stand.
pub(crate) async fn raise(walls: &Walls) -> Result<(), WallsError> {
    run("nft", &["-f", "-"], &walls.ruleset()).await.map(drop)
}

/// Whether exactly these walls stand. Something else on the machine may have flushed the packet
/// filter: its chains stay then, without a rule.
pub(crate) async fn standing(walls: &Walls) -> bool {
    let name = format!("nuage_{}", walls.id);
    let mut listed = String::new();
    for family in ["inet", "bridge"] {
        // Without what is in the sets: the digest speaks for that. One table at a time, since nft 1.0.6
        // finds only the last of several.
        let arguments = ["-t", "list", "table", family, &name];
        let Ok(table) = run("nft", &arguments, "").await else {
            return false;
        };
        listed.push_str(&table);
    }
    shows(&listed, walls)
}

/// Whether a listing of both tables shows these walls with all their rules.
fn shows(listed: &str, walls: &Walls) -> bool {
    let chain = format!("chain digest_{} ", walls.digest());
    listed.matches(&chain).count() == 2 && rules(listed) == rules(INET) + rules(BRIDGE)
}

/// How many rules there are in a text of tables: each has a line to itself.
fn rules(text: &str) -> usize {
    const NO_RULE: [&str; 8] = [
        "table", "set", "type", "flags", "elements", "chain", "}", "#",
    ];
    let rule = |line: &&str| !line.is_empty() && !NO_RULE.iter().any(|it| line.starts_with(it));
    text.lines().map(str::trim).filter(rule).count()
}

/// Takes the walls of an instance down; fine when there are none.
///
/// # Errors
/// When `nft` is missing, refuses or hangs.
pub(crate) async fn raze(id: &str) -> Result<(), WallsError> {
    let gone = |family| format!("table {family} nuage_{id}\ndelete table {family} nuage_{id}\n");
    run("nft", &["-f", "-"], &(gone("inet") + &gone("bridge")))
        .await
        .map(drop)
}

/// Runs a tool with a script on its standard input; what it prints is the answer.
pub(crate) async fn run(
    program: &'static str,
    arguments: &[&str],
    script: &str,
) -> Result<String, WallsError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => WallsError::Missing { program },
        _ => WallsError::Run { program, source },
    };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let stdin = child.stdin.take();
    let feed = async {
        // A tool that refuses early closes its end: its own words say more than our broken pipe.
        if let Some(mut stdin) = stdin {
            let _told_by_stderr = stdin.write_all(script.as_bytes()).await;
        }
    };
    let both = async { tokio::join!(feed, child.wait_with_output()).1 };
    let output = timeout(PATIENCE, both)
        .await
        .map_err(|_| WallsError::TimedOut { program })?
        .map_err(failed)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr)
        .chars()
        .take(2_000)
        .collect();
    Err(WallsError::Refused { program, stderr })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walls() -> Walls {
        let bridge = |number: u8, internet, database_port| Bridge {
            interface: format!("nu3fa9-{number}"),
            subnet4: format!("10.200.{number}.0/24").parse().unwrap(),
            gateway4: [10, 200, number, 1].into(),
            subnet6: Some(format!("fd3f:a9:0:{number}::/64").parse().unwrap()),
            gateway6: Some(format!("fd3f:a9:0:{number}::1").parse().unwrap()),
            internet,
            database_port,
        };
        Walls {
            id: "3fa9".to_owned(),
            bridges: vec![bridge(0, true, Some(3306)), bridge(1, false, None)],
            addresses: ["10.200.0.10", "10.200.0.11", "10.200.1.10", "192.0.2.1"]
                .map(|it| it.parse().unwrap())
                .to_vec(),
            resolvers: vec!["10.99.0.53".parse().unwrap(), "fd99::53".parse().unwrap()],
        }
    }

    #[test]
    fn a_site_is_bound_to_its_bridge_its_mac_and_its_addresses() {
        let text = walls().ruleset();
        for piece in [
            "\"nu3fa9-0\" . 10.200.0.10",
            "\"nu3fa9-1\" . fd3f:a9:0:1::ac8:10a",
            "02:42:0a:c8:01:0a . 10.200.1.10",
            "02:42:0a:c8:01:0a . fe80::42:aff:fec8:10a",
            "02:42:0a:c8:00:0a . 0xfe8000000000000000420afffec8000a",
        ] {
            assert!(text.contains(piece), "{piece}\n{text}");
        }
        assert!(
            !text.contains("192.0.2.1"),
            "an address of no bridge has no rights"
        );
    }

    #[test]
    fn only_the_open_bridge_leaves_and_only_one_has_the_database() {
        let text = walls().ruleset();
        assert!(text.contains("set internet { type ifname; elements = { \"nu3fa9-0\" }; }"));
        assert!(text.contains("elements = { \"nu3fa9-0\" . 10.200.0.1 . 3306 };"));
        assert!(text.contains("elements = { \"nu3fa9-0\" . fd3f:a9::1 . 3306 };"));
    }

    #[test]
    fn empty_walls_have_no_empty_lists() {
        let none = Walls {
            id: "0000".to_owned(),
            bridges: vec![],
            addresses: vec![],
            resolvers: vec![],
        };
        assert!(!none.ruleset().contains("elements"));
    }

    #[test]
    fn the_digest_follows_the_walls_and_not_their_order() {
        let (one, mut other) = (walls(), walls());
        other.addresses.reverse();
        other.bridges.reverse();
        assert_eq!(one.digest(), other.digest());
        assert!(
            one.ruleset()
                .contains(&format!("chain digest_{}", one.digest()))
        );
        other.addresses.pop();
        assert_ne!(one.digest(), other.digest());
    }

    #[test]
    fn flushed_walls_do_not_stand() {
        let walls = walls();
        let whole: Vec<String> = walls.ruleset().lines().map(str::to_owned).collect();
        let listed = |keep: &dyn Fn(&str) -> bool| {
            let lines = whole.iter().filter(|line| !line.starts_with("delete"));
            let kept: Vec<&str> = lines.map(String::as_str).filter(|it| keep(it)).collect();
            kept.join("\n")
        };
        assert!(shows(&listed(&|_| true), &walls));
        assert!(!shows(&listed(&|line| !line.ends_with(" drop")), &walls));
        let one = "    iifname . ip saddr @sites4 accept";
        assert!(!shows(&listed(&|line| line != one), &walls));
    }
}
