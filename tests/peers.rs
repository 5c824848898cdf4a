//! Real resolvers, pointed at us as the delegation of their parent would point them.

use crate::harness::{Nuage, Server, free_port, run};

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
