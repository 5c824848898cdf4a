//! HTTPS and CAA records that come by themselves, beside what the proxy does.

use std::fs;

use crate::harness::{Folder, Nuage, run};

const SITES: &str = "[sites.alice]\nredirect = \"https://x.example/\"\naliases = [\"al\"]\n\
     [sites.bob]\nredirect = \"https://x.example/\"\nhttps = \"both\"\n\
     [sites.carol]\nredirect = \"https://x.example/\"\n\
     [[records]]\nname = \"carol\"\ntype = \"HTTPS\"\ndata = '1 . alpn=\"http/1.1\"'\nttl = 60\n\
     [[records]]\nname = \"carol\"\ntype = \"CAA\"\ndata = '0 issue \"ca.example\"'\n\
     [[records]]\nname = \"_8443._https.alice\"\ntype = \"HTTPS\"\ndata = '0 alice'\n";
const SIGNED: &str = "[dnssec]\nenabled = true\n";
const OURS: &str = "1 . alpn=\"h2\" ipv4hint=192.0.2.10 ipv6hint=2001:db8::10";
const THEIRS: &str = "1 . alpn=\"http/1.1\"";

/// A folder whose visitors use port 443, with a certificate at hand.
fn folder() -> Folder {
    let folder = Folder::new("");
    let config = fs::read_to_string(folder.config()).unwrap();
    folder.write(
        "nuage.toml",
        &config.replace("[admin]", "port = 443\n[admin]"),
    );
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (key, chain) = (path("key.pem"), path("chain.pem"));
    let arguments = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=real -addext subjectAltName=DNS:*.w.example";
    let mut arguments: Vec<&str> = arguments.split(' ').collect();
    arguments.extend(["-keyout", &key, "-out", &chain]);
    assert_eq!(run("openssl", &arguments).code, 0);
    folder
}

fn certified(body: &str) -> String {
    format!("[certificate]\nchain = \"../chain.pem\"\nkey = \"../key.pem\"\n{body}")
}

fn dig(nuage: &Nuage, arguments: &str) -> Vec<String> {
    let port = nuage.dns[0].port().to_string();
    let mut all = vec!["@127.0.0.1", "-p", &port, "+norec"];
    all.extend(arguments.split(' '));
    let ran = run("dig", &all);
    assert_eq!(ran.code, 0, "{ran:?}");
    let mut lines: Vec<String> = ran.out.lines().map(str::to_owned).collect();
    lines.sort_unstable();
    lines
}

#[test]
fn browsers_hear_of_https_where_plain_http_redirects_and_there_alone() {
    let folder = folder();
    folder.zone(&certified(SITES));
    let nuage = folder.serve();
    for (host, want, status) in [
        ("alice", &[OURS][..], 308),
        ("al", &[OURS], 308),
        ("bob", &[], 307),
        ("carol", &[THEIRS], 308),
        ("ns1", &[], 404),
    ] {
        let name = format!("{host}.w.example");
        // Datagram and connection, the quick way and the general one (class ANY).
        for more in ["", " +tcp", " -c ANY"] {
            for kind in ["HTTPS", "TYPE65"] {
                let got = dig(&nuage, &format!("+short {name} {kind}{more}"));
                assert_eq!(got, want, "{name} {kind}{more}");
            }
        }
        let plain = nuage.curl(&format!("http://{name}/"), &[]);
        assert_eq!(plain.status, status, "{name}");
    }
    // The rest of a site with records of its own is as before.
    for (question, want) in [
        ("carol.w.example A", "192.0.2.10"),
        ("carol.w.example AAAA", "2001:db8::10"),
        ("carol.w.example CAA", "0 issue \"ca.example\""),
        ("_8443._https.alice.w.example HTTPS", "0 alice.w.example."),
    ] {
        assert_eq!(
            dig(&nuage, &format!("+short {question}")),
            [want],
            "{question}"
        );
    }
    assert!(
        dig(&nuage, "+short -x 192.0.2.10").contains(&"carol.w.example.".to_owned()),
        "it has its PTR"
    );
    // Addresses of a target of ours come along (RFC 9460 §4.1).
    let beside = dig(
        &nuage,
        "+noall +additional _8443._https.alice.w.example HTTPS",
    );
    assert!(
        beside.iter().any(|line| line.ends_with("192.0.2.10")),
        "{beside:?}"
    );
    // A certificate of its own may be any authority's.
    assert_eq!(dig(&nuage, "+short w.example CAA"), [""; 0]);

    // Commands tell of the same records.
    let exported = nuage.folder.run(&["zone", "export", "w.example"]).out;
    let shown = nuage
        .folder
        .run(&["zone", "show", "w.example", "--format", "json"]);
    assert_eq!(shown.json()["records"], exported.lines().count());

    // Without it nobody is sent to HTTPS, and nobody else may certify these names.
    nuage.folder.zone(SITES);
    crate::harness::until("the zone has no certificate", || {
        dig(&nuage, "+short alice.w.example HTTPS").is_empty()
    });
    assert_eq!(dig(&nuage, "+short w.example CAA"), ["0 issue \";\""]);
    assert_eq!(nuage.curl("http://alice.w.example/", &[]).status, 307);
    assert_eq!(dig(&nuage, "+short carol.w.example HTTPS"), [THEIRS]);
}

#[test]
fn signed_zones_sign_them_and_prove_where_there_are_none() {
    let folder = folder();
    folder.zone(&format!("{SIGNED}{}", certified(SITES)));
    let nuage = folder.serve();
    let keys = dig(&nuage, "+short +tcp w.example DNSKEY");
    let key = keys.iter().find(|key| key.starts_with("257 ")).unwrap();
    let fields: Vec<&str> = key.split_whitespace().collect();
    let anchor = format!(
        "trust-anchors {{ w.example. static-key {} {} {} \"{}\"; }};\n",
        fields[0],
        fields[1],
        fields[2],
        fields[3..].concat()
    );
    let anchor = nuage.folder.write("anchor", &anchor);
    let port = nuage.dns[0].port().to_string();
    for (name, kind, want) in [
        ("alice", "HTTPS", OURS),
        ("al", "HTTPS", OURS),
        ("carol", "HTTPS", THEIRS),
        ("carol", "CAA", "0 issue \"ca.example\""),
        ("carol", "A", "192.0.2.10"),
        ("bob", "HTTPS", "ncache nxrrset"),
        ("carol", "SVCB", "ncache nxrrset"),
        ("caro", "HTTPS", "ncache nxdomain"),
    ] {
        let name = format!("{name}.w.example");
        let delv = run(
            "delv",
            &[
                "@127.0.0.1",
                "-p",
                &port,
                "-a",
                anchor.to_str().unwrap(),
                "+root=w.example",
                &name,
                kind,
            ],
        );
        let said = format!("{}{}", delv.out, delv.err);
        assert!(
            said.contains("fully validated") && said.contains(want),
            "{name} {kind}: {said}"
        );
    }
    let proof = |name: &str| {
        let lines = dig(
            &nuage,
            &format!("+noall +authority +dnssec {name}.w.example TYPE300"),
        );
        let nsec = lines.into_iter().find(|line| line.contains("\tNSEC\t"));
        nsec.unwrap().split('\t').next_back().unwrap().to_owned()
    };
    assert_eq!(
        proof("alice"),
        "_8443._https.alice.w.example. A AAAA RRSIG NSEC HTTPS"
    );
    assert_eq!(proof("bob"), "carol.w.example. A AAAA RRSIG NSEC");
    assert_eq!(proof("carol"), "ns1.w.example. A AAAA RRSIG NSEC HTTPS CAA");

    // The export is the whole zone, and others find it right.
    let exported = nuage.folder.run(&["zone", "export", "w.example"]);
    let file = nuage.folder.write("exported", &exported.out);
    let file = file.to_str().unwrap();
    for (program, arguments) in [
        ("named-checkzone", &["-i", "local", "w.example", file][..]),
        ("dnssec-verify", &["-o", "w.example", file]),
        ("nsd-checkzone", &["w.example", file]),
    ] {
        let checked = run(program, arguments);
        assert_eq!(checked.code, 0, "{checked:?}\n{}", exported.out);
    }
    let lines = |kind: &str| {
        let wanted = format!("\tIN\t{kind}\t");
        exported
            .out
            .lines()
            .filter(|line| line.contains(&wanted))
            .count()
    };
    assert_eq!((lines("HTTPS"), lines("CAA")), (4, 1));
}
