//! Real resolvers, pointed at us as the delegation of their parent would point them.

use crate::harness::{Folder, Nuage, Server, free_port, run, until};

const ZONE: &str = "[sites.alice]\naliases = [\"al\"]\n[[records]]\nname = \"chain\"\ntype = \"CNAME\"\ndata = \"alice\"\n";

/// Asks a resolver for positive, reverse and negative answers.
fn resolves(port: u16, who: &str) {
    let dig = |arguments: &[&str]| {
        let port = port.to_string();
        let mut all = vec!["@127.0.0.1", "-p", &port, "+time=5"];
        all.extend(arguments);
        run("dig", &all).out
    };
    assert_eq!(
        dig(&["+short", "alice.w.example", "A"]),
        "192.0.2.10\n",
        "{who}"
    );
    assert_eq!(
        dig(&["+short", "al.w.example", "AAAA"]),
        "2001:db8::10\n",
        "{who}"
    );
    assert_eq!(
        dig(&["+short", "chain.w.example", "A"]),
        "alice.w.example.\n192.0.2.10\n",
        "{who}"
    );
    for address in ["192.0.2.10", "2001:db8::10"] {
        let names = dig(&["+short", "-x", address]);
        let mut names: Vec<&str> = names.lines().collect();
        names.sort_unstable();
        assert_eq!(
            names,
            ["al.w.example.", "alice.w.example.", "ns1.w.example."],
            "{who} {address}"
        );
    }
    let missing = dig(&["nobody.w.example", "A"]);
    assert!(
        missing.contains("status: NXDOMAIN") && missing.contains("SOA"),
        "{who}: {missing}"
    );
    let empty = dig(&["alice.w.example", "TXT"]);
    assert!(
        empty.contains("status: NOERROR") && empty.contains("ANSWER: 0") && empty.contains("SOA"),
        "{who}: {empty}"
    );
}

const REVERSE: [&str; 2] = [
    "10.2.0.192.in-addr.arpa",
    "0.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa",
];

#[test]
fn unbound_resolves_our_names() {
    let nuage = Nuage::start(ZONE);
    let port = free_port();
    let stubs: String = ["w.example"]
        .iter()
        .chain(&REVERSE)
        .map(|zone| {
            format!(
                "stub-zone:\n  name: \"{zone}\"\n  stub-addr: 127.0.0.1@{}\n",
                nuage.dns[0].port()
            )
        })
        .collect();
    let config = format!(
        "server:\n  interface: 127.0.0.1\n  port: {port}\n  chroot: \"\"\n  username: \"\"\n  directory: \"@DIR@\"\n  pidfile: \"\"\n  use-syslog: no\n  \
         do-not-query-localhost: no\n  local-zone: \"2.0.192.in-addr.arpa.\" nodefault\n  local-zone: \"8.b.d.0.1.0.0.2.ip6.arpa.\" nodefault\n  \
         domain-insecure: \"example\"\n  domain-insecure: \"arpa\"\n  root-hints: \"\"\n  qname-minimisation: yes\n  qname-minimisation-strict: yes\n\
         remote-control:\n  control-enable: no\n{stubs}"
    );
    let _unbound = Server::start(
        &[("unbound.conf", &config)],
        port,
        "unbound",
        &["-d", "-c", "@DIR@/unbound.conf"],
    );
    resolves(port, "unbound");
}

#[test]
fn bind_resolves_our_names() {
    let nuage = Nuage::start(ZONE);
    let port = free_port();
    let stubs: String = ["w.example"]
        .iter()
        .chain(&REVERSE)
        .map(|zone| {
            format!("zone \"{zone}\" {{ type static-stub; server-addresses {{ 127.0.0.1; }}; }};\n")
        })
        .collect();
    // static-stub takes no port of its own: every query of this BIND goes to ours.
    let config = format!(
        "options {{ directory \"@DIR@\"; pid-file none; listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }}; port {}; \
         recursion yes; dnssec-validation no; empty-zones-enable no; }};\ncontrols {{ }};\n{stubs}",
        nuage.dns[0].port()
    );
    let _bind = Server::start(
        &[("named.conf", &config)],
        port,
        "named",
        &["-g", "-c", "@DIR@/named.conf"],
    );
    resolves(port, "BIND");
}

/// A world of its own on port 53: BIND is the root and the parent, unbound knows only the root.
const WORLD: &str = "set -eu
ip link set lo up
for host in 2 3 10; do ip address add 127.0.0.$host/8 dev lo; done
named -f -c @DIR@/named.conf & named=$!
unbound -d -c @DIR@/unbound.conf & unbound=$!
@NUAGE@ serve --config @DIR@/nuage.toml > @DIR@/out & nuage=$!
trap 'kill $named $unbound $nuage; wait' EXIT
for try in $(seq 100); do
  # dig tells of refused connections where answers go.
  dig @127.0.0.3 +time=1 +tries=1 +short alice.w.example A | grep -qx 127.0.0.10 && break
  sleep 0.1
done
for question in 'alice.w.example A' 'al.w.example AAAA' '-x 127.0.0.10' '-x ::1' 'nobody.w.example A' 'alice.w.example TXT'; do
  dig @127.0.0.3 +noall +comments +answer $question | grep -oE 'status: [A-Z]+|IN.*' | tr '\\n\\t' '  '
  echo
done
";

#[test]
fn unbound_finds_us_from_the_root_through_the_parents_delegation() {
    let folder = Folder::new("");
    let v6 = "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.ip6.arpa";
    let config = "[address]\nipv4 = \"127.0.0.10\"\nipv6 = \"::1\"\n[paths]\nstate = \"state\"\n[dns]\nlisten = [\"127.0.0.10:53\", \"[::1]:53\"]\n[http]\nlisten = []\n[https]\nlisten = []\n[admin]\nlisten = []\n[reverse]\nnames = \"canonical\"\n";
    folder.write("nuage.toml", config);
    folder.write("zones/w.example.toml", "origin = \"w.example\"\nnameservers = [\"ns1.w.example\"]\n[sites.alice]\naliases = [\"al\"]\n");
    // What the parent holds is what `zone show` says it must hold.
    let mut root =
        ". 60 IN SOA a. b. 1 60 60 60 60\n. 60 IN NS a.\na. 60 IN A 127.0.0.2\n".to_owned();
    for zone in ["w.example", "10.0.0.127.in-addr.arpa", v6] {
        let shown = folder
            .run(&["zone", "show", zone, "--format", "json"])
            .json();
        for line in shown["delegation"].as_array().unwrap() {
            root.push_str(line.as_str().unwrap());
            root.push('\n');
        }
    }
    folder.write("root", &root);
    let dir = folder.path().display().to_string();
    folder.write("named.conf", &format!("options {{ directory \"{dir}\"; pid-file none; listen-on {{ 127.0.0.2; }}; listen-on-v6 {{ none; }}; recursion no; dnssec-validation no; }};\ncontrols {{ }};\nzone \".\" {{ type primary; file \"root\"; }};\n"));
    folder.write("hints", ". 60 IN NS a.\na. 60 IN A 127.0.0.2\n");
    folder.write("unbound.conf", &format!("server:\n  interface: 127.0.0.3\n  access-control: 127.0.0.0/8 allow\n  chroot: \"\"\n  username: \"\"\n  directory: \"{dir}\"\n  pidfile: \"\"\n  use-syslog: no\n  do-not-query-localhost: no\n  root-hints: \"hints\"\n  module-config: \"iterator\"\n  local-zone: \"127.in-addr.arpa.\" nodefault\n  local-zone: \"{v6}.\" nodefault\nremote-control:\n  control-enable: no\n"));
    let script = WORLD
        .replace("@DIR@", &dir)
        .replace("@NUAGE@", env!("CARGO_BIN_EXE_nuage"));
    let script = folder.write("world.sh", &script);
    let ran = run(
        "unshare",
        &["--map-root-user", "--net", "sh", script.to_str().unwrap()],
    );
    let answers: Vec<&str> = ran.out.lines().map(str::trim).collect();
    let want = [
        "status: NOERROR IN A 127.0.0.10",
        "status: NOERROR IN AAAA ::1",
        "status: NOERROR IN PTR ns1.w.example.",
        "status: NOERROR IN PTR ns1.w.example.",
        "status: NXDOMAIN",
        "status: NOERROR",
    ];
    assert_eq!(answers, want, "{ran:?}");
}

#[test]
fn an_exported_zone_is_what_is_served_and_loads_elsewhere() {
    let body = format!(
        "{ZONE}[[records]]\nname = \"@\"\ntype = \"TXT\"\ndata = '\"a b;c\" \"say \\\"hi\\\"\"'\n[[records]]\nname = \"@\"\ntype = \"CAA\"\ndata = '0 issue \"ca.example\"'\n\
         [[records]]\nname = \"_sip._tcp\"\ntype = \"SRV\"\ndata = \"1 2 5060 alice\"\n[[records]]\nname = \"@\"\ntype = \"HTTPS\"\ndata = \"1 . alpn=h2\"\n"
    );
    let nuage = Nuage::start(&body);
    for zone in ["w.example", REVERSE[0], REVERSE[1]] {
        let exported = nuage.folder.run(&["zone", "export", zone]);
        assert_eq!(exported.code, 0, "{exported:?}");
        let file = nuage.folder.write("exported", &exported.out);
        let checked = run(
            "named-checkzone",
            &["-i", "local", zone, file.to_str().unwrap()],
        );
        assert_eq!(checked.code, 0, "{checked:?}\n{}", exported.out);
        let checked = run("nsd-checkzone", &[zone, file.to_str().unwrap()]);
        assert_eq!(checked.code, 0, "{checked:?}");
    }
    // BIND serves the export; every name and type has the same answer there and here, serial and all.
    let exported = nuage.folder.run(&["zone", "export", "w.example"]).out;
    let port = free_port();
    let config = format!(
        "options {{ directory \"@DIR@\"; pid-file none; listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }}; recursion no; }};\n\
         controls {{ }};\nzone \"w.example\" {{ type primary; file \"zone\"; check-names ignore; }};\n"
    );
    let _bind = Server::start(
        &[("named.conf", &config), ("zone", &exported)],
        port,
        "named",
        &["-g", "-c", "@DIR@/named.conf"],
    );
    until("named has loaded the zone", || {
        let port = port.to_string();
        // dig tells of refused connections where answers go.
        let soa = &["@127.0.0.1", "-p", &port, "+short", "w.example", "SOA"];
        run("dig", soa).out.starts_with("ns1.w.example.")
    });
    for line in exported.lines() {
        let mut fields = line.split_whitespace();
        let (name, kind) = (fields.next().unwrap(), fields.nth(2).unwrap());
        let answer = |port: u16| {
            let dig = run(
                "dig",
                &[
                    "@127.0.0.1",
                    "-p",
                    &port.to_string(),
                    "+norec",
                    "+noall",
                    "+answer",
                    "+onesoa",
                    name,
                    kind,
                ],
            );
            let mut lines: Vec<String> = dig.out.lines().map(str::to_owned).collect();
            lines.sort_unstable();
            lines
        };
        let ours = answer(nuage.dns[0].port());
        assert!(!ours.is_empty(), "{line}");
        assert_eq!(ours, answer(port), "{name} {kind}");
    }
}
