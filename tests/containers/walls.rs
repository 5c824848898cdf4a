//! The walls, from inside the network of real containers with more rights than any site has: the
//! tools of this machine, as root, in the container's own network namespace.

use std::{
    net::{TcpListener, UdpSocket},
    time::Duration,
};

use super::Cloud;
use crate::harness::{Ran, run, until, until_within};

/// Runs a program of this machine in a site's network namespace.
fn inside(cloud: &Cloud, site: &str, arguments: &[&str]) -> Ran {
    let pid = cloud.inspect(site, "{{.State.Pid}}");
    let mut all = vec!["-t", &pid, "-n", "timeout", "20"];
    all.extend(arguments);
    run("nsenter", &all)
}

/// Which of these a site reaches, tried all at once: `host port` by TCP, `host` by ping. To each host
/// goes a UDP datagram too, to be looked for there.
fn reached(cloud: &Cloud, site: &str, targets: &[String]) -> Vec<String> {
    const TRY: &str = "
import socket, subprocess, sys
from concurrent.futures import ThreadPoolExecutor
def reach(target):
    host, _, port = target.partition(' ')
    try:
        if not port:
            return subprocess.run(['ping', '-6' if ':' in host else '-4', '-c1', '-W1', host], capture_output=True).returncode == 0
        family = socket.AF_INET6 if ':' in host else socket.AF_INET
        try:
            socket.socket(family, socket.SOCK_DGRAM).sendto(b'x', (host, int(port)))
        except OSError:
            pass
        socket.create_connection((host, int(port)), 1).close()
        return True
    except OSError:
        return False
with ThreadPoolExecutor(64) as pool:
    for target, answer in zip(sys.argv[1:], pool.map(reach, sys.argv[1:])):
        if answer: print(target)
";
    let mut arguments = vec!["python3", "-c", TRY];
    arguments.extend(targets.iter().map(String::as_str));
    let ran = inside(cloud, site, &arguments);
    assert_eq!(ran.code, 0, "{ran:?}");
    ran.out.lines().map(str::to_owned).collect()
}

fn reaches(cloud: &Cloud, site: &str, host: &str, port: u16) -> bool {
    !reached(cloud, site, &[format!("{host} {port}")]).is_empty()
}

fn address(cloud: &Cloud, site: &str, family: &str) -> String {
    cloud.inspect(
        site,
        &format!("{{{{range .NetworkSettings.Networks}}}}{{{{.{family}}}}}{{{{end}}}}"),
    )
}

/// Connects to a site from another network namespace.
fn connect(namespace: &str, address: &str) -> Ran {
    let script = format!("import socket; socket.create_connection(('{address}', 8080), 1.5)");
    run(
        "nsenter",
        &[namespace, "timeout", "3", "python3", "-c", &script],
    )
}

#[test]
fn a_site_reaches_nothing_but_who_asks_it() {
    let cloud = Cloud::start(
        "[sites.alice]\n[sites.bob]\n[sites.carl]\ngroup = \"others\"\n[sites.open]\ngroup = \"open\"\n",
        "[groups.others]\n[groups.open]\negress = \"internet\"\n",
    );
    for site in ["alice", "bob", "carl", "open"] {
        assert_eq!(cloud.get(site, "").status, 200);
    }
    let v4 = |site: &str| address(&cloud, site, "IPAddress");
    let v6 = |site: &str| address(&cloud, site, "GlobalIPv6Address");
    let gateway = address(&cloud, "alice", "Gateway");
    let gateway6 = address(&cloud, "alice", "IPv6Gateway");
    assert!(gateway.ends_with(".1") && !gateway6.is_empty() && !v6("bob").is_empty());

    // A service of the host on every address there is, IPv4 and IPv6, TCP and UDP.
    let listener = TcpListener::bind("[::]:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let udp = UdpSocket::bind(("::", port)).unwrap();
    udp.set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    let json = run("ip", &["-j", "addr"]).out;
    let links: serde_json::Value = serde_json::from_str(&json).unwrap();
    let mut hosts: Vec<String> = links
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|link| link["addr_info"].as_array().unwrap().clone())
        .map(|info| info["local"].as_str().unwrap().to_owned())
        .filter(|host| !host.starts_with("fe80") && !host.starts_with("127.") && host != "::1")
        .collect();
    hosts.sort();
    hosts.dedup();
    assert!(
        hosts.contains(&gateway) && hosts.contains(&gateway6),
        "{hosts:?}"
    );
    for site in ["alice", "open"] {
        let mut targets: Vec<String> = hosts.iter().map(|host| format!("{host} {port}")).collect();
        targets.extend(hosts.iter().cloned());
        // Our own listeners, nuage's among them, and what else a host may have.
        for own in [
            cloud.nuage().http[0].port(),
            cloud.nuage().admin.port(),
            22,
            53,
            2375,
        ] {
            targets.push(format!("{gateway} {own}"));
            targets.push(format!("{gateway6} {own}"));
        }
        assert_eq!(
            reached(&cloud, site, &targets),
            Vec::<String>::new(),
            "from {site}"
        );
        assert!(
            udp.recv(&mut [0; 8]).is_err(),
            "a datagram of {site} arrives"
        );
    }
    // The bridge's link-local address is the host too.
    let interface = inside(
        &cloud,
        "alice",
        &[
            "sh",
            "-c",
            "ls /sys/class/net | head -1; ip -o -6 addr show scope link | awk '{print $2; exit}'",
        ],
    );
    let device = interface.out.lines().last().unwrap_or("eth0").to_owned();
    assert!(!reaches(
        &cloud,
        "alice",
        &format!("fe80::1%{device}"),
        port
    ));

    // Neighbours on the bridge, another group, and a container that is none of ours.
    let stranger = format!("stranger-walls-{}", cloud.net);
    let made = run(
        "docker",
        &["run", "-d", "--rm", "--name", &stranger, "nuage-php:8.2"],
    );
    assert_eq!(made.code, 0, "{made:?}");
    let foreign = run(
        "docker",
        &["inspect", "-f", "{{.NetworkSettings.IPAddress}}", &stranger],
    )
    .out;
    until("it listens", || {
        std::net::TcpStream::connect((foreign.trim(), 8080)).is_ok()
    });
    for site in ["alice", "open"] {
        let others = ["alice", "bob", "carl", "open"]
            .into_iter()
            .filter(|other| *other != site);
        let mut targets: Vec<String> = others
            .flat_map(|other| [v4(other), v6(other)])
            .flat_map(|host| [format!("{host} 8080"), host])
            .collect();
        targets.push(format!("{} 8080", foreign.trim()));
        assert_eq!(
            reached(&cloud, site, &targets),
            Vec::<String>::new(),
            "from {site}"
        );
    }
    let pid = run("docker", &["inspect", "-f", "{{.State.Pid}}", &stranger]).out;
    let back = connect(&format!("--net=/proc/{}/ns/net", pid.trim()), &v4("alice"));
    run("docker", &["rm", "-f", &stranger]);
    assert_ne!(back.code, 0, "a stranger reaches alice");

    // ARP: no answer from a neighbour, and none believed for one.
    let arping = |target: &str| {
        inside(
            &cloud,
            "alice",
            &["arping", "-c", "2", "-w", "2", "-I", &device, target],
        )
    };
    assert_eq!(
        arping(&gateway).code,
        0,
        "the gateway answers: {:?}",
        arping(&gateway)
    );
    assert_ne!(arping(&v4("bob")).code, 0, "bob answers ARP");
    let mac_before = run("ip", &["neigh", "show", &v4("bob")]).out;
    inside(
        &cloud,
        "alice",
        &[
            "arping",
            "-c",
            "3",
            "-w",
            "2",
            "-A",
            "-I",
            &device,
            "-S",
            &v4("bob"),
            &gateway,
        ],
    );
    let forged = format!(
        "import socket, binascii\ns = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)\ns.bind(('{device}', 0))\nmine = open('/sys/class/net/{device}/address').read().strip() if False else s.getsockname()[4].hex(':')\nm = binascii.unhexlify(mine.replace(':', ''))\nip = socket.inet_aton('{bob}')\ngw = socket.inet_aton('{gateway}')\nfor op in (1, 2):\n  s.send(b'\\xff'*6 + m + b'\\x08\\x06' + b'\\x00\\x01\\x08\\x00\\x06\\x04' + bytes([0, op]) + m + ip + b'\\xff'*6 + gw)",
        bob = v4("bob")
    );
    let sent = inside(&cloud, "alice", &["python3", "-c", &forged]);
    assert_eq!(sent.code, 0, "{sent:?}");
    let mac = |text: &str| {
        text.split_whitespace()
            .skip_while(|word| *word != "lladdr")
            .nth(1)
            .map(str::to_owned)
    };
    let after = run("ip", &["neigh", "show", &v4("bob")]).out;
    assert_eq!(
        mac(&after),
        mac(&mac_before),
        "the host believes alice is bob"
    );
    assert_eq!(cloud.get("bob", "").status, 200);

    // The outside: a namespace behind the host. Public addresses for those who may, private for none.
    let outside = Outside::new(cloud.net);
    for (host, who_may) in [
        (outside.public.clone(), "open"),
        (outside.private.clone(), ""),
    ] {
        for site in ["alice", "open"] {
            assert_eq!(
                reaches(&cloud, site, &host, 80),
                site == who_may,
                "{site} -> {host}"
            );
        }
    }
    assert_ne!(
        inside(&cloud, "alice", &["ping", "-c1", "-W1", &outside.public]).code,
        0
    );
    // And from there nobody comes in.
    let in_from_outside = connect(&format!("--net=/run/netns/{}", outside.name), &v4("open"));
    assert_ne!(in_from_outside.code, 0);

    // Somebody takes the walls down: they come back by themselves.
    let table = format!("nuage_{}", cloud.instance());
    for family in ["inet", "bridge"] {
        assert_eq!(run("nft", &["delete", "table", family, &table]).code, 0);
    }
    let started = std::time::Instant::now();
    while run("nft", &["list", "table", "inet", &table]).code != 0 {
        assert!(
            started.elapsed() < Duration::from_secs(45),
            "the walls stay down"
        );
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(!reaches(&cloud, "alice", &gateway, port));
}

/// A namespace with a web server, beyond the host.
struct Outside {
    name: String,
    public: String,
    private: String,
    server: std::process::Child,
}

impl Outside {
    fn new(net: u8) -> Self {
        let name = format!("nuage-out-{net}");
        let (link, peer) = (format!("nuo{net}"), format!("nup{net}"));
        // 198.51.100.0/24 is for documentation (RFC 5737): public, and nobody's.
        let (near, public) = (
            format!("198.51.100.{}", net.wrapping_mul(2) & 0xfc),
            format!("198.51.100.{}", (net.wrapping_mul(2) & 0xfc) + 1),
        );
        let private = format!("10.{}.255.9", net - 100);
        let steps = format!(
            "ip netns add {name} && ip link add {link} type veth peer name {peer} netns {name} && ip addr add {near}/31 dev {link} && ip link set {link} up && \
             ip -n {name} addr add {public}/31 dev {peer} && ip -n {name} link set {peer} up && ip -n {name} link set lo up && ip -n {name} addr add {private}/32 dev lo && \
             ip -n {name} route add default via {near} && ip route add {private}/32 via {public}"
        );
        let made = run("sh", &["-c", &steps]);
        assert_eq!(made.code, 0, "{made:?}");
        // Not `ip netns exec`, whose mount namespace would hold on to every disk there is.
        let server = std::process::Command::new("nsenter")
            .args([
                &format!("--net=/run/netns/{name}"),
                "python3",
                "-m",
                "http.server",
                "80",
            ])
            .current_dir("/usr/share")
            .stderr(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        until("the outside answers", || {
            std::net::TcpStream::connect((&*public, 80)).is_ok()
        });
        Self {
            name,
            public,
            private,
            server,
        }
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        self.server.kill().unwrap_or_default();
        self.server.wait().map(drop).unwrap_or_default();
        run("ip", &["netns", "del", &self.name]);
    }
}

#[test]
fn a_group_on_a_vlan_of_its_own() {
    // The VLAN: one end of a veth is the parent, the other is in the router's namespace.
    let (net, name) = (
        std::process::id() % 200,
        format!("nuage-vlan-{}", std::process::id()),
    );
    let (parent, inner, link, peer) = (
        format!("nv{net}"),
        format!("nw{net}"),
        format!("nx{net}"),
        format!("ny{net}"),
    );
    let steps = format!(
        "ip netns add {name} && ip link add {parent} type veth peer name {inner} netns {name} && ip link set {parent} up && \
         ip link add {link} type veth peer name {peer} netns {name} && ip addr add 198.18.{net}.0/31 dev {link} && ip link set {link} up && \
         ip -n {name} addr add 198.18.{net}.1/31 dev {peer} && ip -n {name} link set {peer} up && \
         ip -n {name} addr add 10.99.{net}.1/24 dev {inner} && ip -n {name} link set {inner} up && ip -n {name} link set lo up && \
         nsenter --net=/run/netns/{name} sysctl -qw net.ipv4.ip_forward=1 && ip -n {name} route add default via 198.18.{net}.0 && \
         ip route add 10.99.{net}.0/24 via 198.18.{net}.1"
    );
    let made = run("sh", &["-c", &steps]);
    assert_eq!(made.code, 0, "{made:?}");
    let ran = std::panic::catch_unwind(|| {
        let cloud = Cloud::start(
            "[sites.alice]\ngroup = \"vlan\"\n[sites.bob]\ngroup = \"vlan\"\n",
            &format!("[groups.vlan]\nparent = \"{parent}\"\nsubnets = [\"10.99.{net}.0/24\"]\n"),
        );
        assert_eq!(cloud.get("alice", "").status, 200);
        assert_eq!(cloud.get("bob", "").status, 200);
        assert!(address(&cloud, "alice", "IPAddress").starts_with(&format!("10.99.{net}.")));
        assert!(!reaches(
            &cloud,
            "alice",
            &address(&cloud, "bob", "IPAddress"),
            8080
        ));
    });
    run("ip", &["netns", "del", &name]);
    if let Err(panic) = ran {
        std::panic::resume_unwind(panic);
    }
}

/// A table of the walls; its number, which is another whenever they are raised anew, and its rules.
fn table(cloud: &Cloud, family: &str) -> String {
    let name = format!("nuage_{}", cloud.instance());
    run("nft", &["-a", "-t", "list", "table", family, &name]).out
}

#[test]
fn a_network_keeps_its_walls_until_its_last_container_has_left() {
    const FAMILIES: [&str; 2] = ["inet", "bridge"];
    // Two looks, half a minute apart, and one more for whoever came in between.
    const LOOKS: Duration = Duration::from_secs(100);
    let mut cloud = Cloud::start("[sites.alice]\n", "[groups.open]\negress = \"internet\"\n");
    assert_eq!(cloud.get("alice", "").status, 200);
    let gateway = address(&cloud, "alice", "Gateway");
    let mac = address(&cloud, "alice", "MacAddress");
    let octets: std::net::Ipv4Addr = address(&cloud, "alice", "IPAddress").parse().unwrap();
    let [a, b, c, d] = octets.octets();
    assert_eq!(mac, format!("02:42:{a:02x}:{b:02x}:{c:02x}:{d:02x}"));
    let template = "{{range $name, $it := .NetworkSettings.Networks}}{{$name}}{{end}}";
    let network = cloud.inspect("alice", template);
    let listener = TcpListener::bind((&*gateway, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let walled = |cloud: &Cloud| !reaches(cloud, "alice", &gateway, port);

    // Her group is another from now on, and her container can't be made anew: it runs on where it was.
    let moved = "[sites.alice]\ngroup = \"open\"\nsecrets = { TOKEN = \"../token\" }\n";
    cloud.nuage().folder.zone(moved);
    until("the secret is missed", || {
        cloud
            .command(&["site", "stats", "alice"])
            .out
            .contains("TOKEN")
    });
    // Flushed walls are chains without a rule.
    let name = format!("nuage_{}", cloud.instance());
    for family in FAMILIES {
        assert_eq!(run("nft", &["flush", "table", family, &name]).code, 0);
    }
    assert!(!walled(&cloud), "the walls are down");
    until_within(LOOKS, "the rules are back", || {
        FAMILIES
            .iter()
            .all(|it| table(&cloud, it).contains(" drop"))
    });

    // Another start of control does not forget them either, nor what may be on the old network.
    let folder = cloud.nuage.take().unwrap().into_folder();
    assert_eq!(run("nft", &["delete", "table", "inet", &name]).code, 0);
    cloud.nuage = Some(folder.serve());
    until("the walls are back", || {
        table(&cloud, "inet").contains(" drop")
    });
    let raised = table(&cloud, "inet");
    until_within(LOOKS, "the old network should go", || {
        cloud.nuage().log().contains("the engine keeps it")
    });
    assert!(walled(&cloud));
    assert_eq!(
        table(&cloud, "inet"),
        raised,
        "walls that stand are left alone"
    );

    cloud.nuage().folder.write("token", "x");
    until("she has moved", || {
        let now = cloud.inspect("alice", template);
        !now.is_empty() && now != network
    });
    until_within(LOOKS, "the old network is gone", || {
        cloud.docker(&["network", "inspect", &network]).code != 0
    });
    assert_eq!(cloud.get("alice", "").status, 200);
}

#[test]
fn an_uninstall_goes_on_past_a_network_that_is_in_use() {
    let mut cloud = Cloud::start(
        "[sites.alice]\n[sites.carl]\ngroup = \"others\"\n",
        "[groups.others]\n",
    );
    assert_eq!(cloud.get("alice", "").status, 200);
    assert_eq!(cloud.get("carl", "").status, 200);
    let label = format!("label=nuage.instance={}", cloud.instance());
    let networks = |cloud: &Cloud| {
        let filter = ["network", "ls", "--filter", &label, "--format", "{{.Name}}"];
        let listed = cloud.docker(&filter).out;
        listed.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let stranger = format!("stranger-uninstall-{}", cloud.net);
    let first = networks(&cloud).remove(0);
    let joined = cloud.docker(&[
        "run",
        "-d",
        "--rm",
        "--name",
        &stranger,
        "--network",
        &first,
        "nuage-php:8.2",
    ]);
    assert_eq!(joined.code, 0, "{joined:?}");
    cloud.nuage.as_mut().unwrap().kill();
    let refused = cloud.command(&["uninstall"]);
    let (left, walls) = (networks(&cloud), table(&cloud, "inet"));
    cloud.docker(&["rm", "-f", &stranger]);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.err.contains("has active endpoints"), "{refused:?}");
    assert_eq!((left, &*walls), (vec![first], ""));
}
