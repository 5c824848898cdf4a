//! TLS: names, certificates, and connections held against requests.

use crate::harness::{Folder, Nuage, run};

const ZONE: &str = "[sites.a]\nstatic = \"../www\"\ndomains = [\"www.foreign.example\"]\n[sites.b]\nstatic = \"../www\"\n";

fn start() -> Nuage {
    let folder = Folder::new("");
    folder.write("www/index.html", "hello");
    folder.zone(ZONE);
    folder.write("zones/v.example.toml", "origin = \"v.example\"\nnameservers = [\"ns1.v.example\"]\n[sites.c]\nstatic = \"../www\"\n");
    folder.serve()
}

fn handshake(nuage: &Nuage, more: &[&str]) -> String {
    let connect = nuage.https[0].to_string();
    let ca = nuage.ca();
    let mut arguments = vec![
        "s_client",
        "-connect",
        &connect,
        "-CAfile",
        &ca,
        "-verify_return_error",
    ];
    arguments.extend(more);
    let ran = run("openssl", &arguments);
    ran.out + &ran.err
}

#[test]
fn one_wildcard_certificate_a_zone_and_one_a_foreign_domain() {
    let nuage = start();
    for (name, host) in [
        ("a.w.example", "a.w.example"),
        ("c.v.example", "c.v.example"),
        ("www.foreign.example", "www.foreign.example"),
    ] {
        let shown = handshake(
            &nuage,
            &["-servername", name, "-verify_hostname", host, "-alpn", "h2"],
        );
        assert!(
            shown.contains("Verify return code: 0 (ok)") && shown.contains("ALPN protocol: h2"),
            "{name}: {shown}"
        );
    }
    let old = handshake(&nuage, &["-servername", "a.w.example", "-tls1_2"]);
    assert!(
        old.contains("Protocol  : TLSv1.2") && old.contains("Verify return code: 0 (ok)"),
        "{old}"
    );
    let broken = handshake(&nuage, &["-servername", "a.w.example", "-tls1_1"]);
    assert!(broken.contains("Cipher is (NONE)"), "TLS 1.1 is refused");
}

#[test]
fn unknown_names_get_no_certificate() {
    let nuage = start();
    for name in [
        &["-servername", "elsewhere.example"][..],
        &["-noservername"],
        &["-servername", "a.b.w.example"],
    ] {
        let shown = handshake(&nuage, name);
        assert!(
            shown.contains("no peer certificate available"),
            "{name:?}: {shown}"
        );
    }
    let got = nuage.curl("https://elsewhere.example/", &[]);
    assert_eq!(
        (got.status, got.exit),
        (0, 35),
        "curl: 35 is a failed handshake; {got:?}"
    );
}

#[test]
fn a_connection_for_one_certificate_is_not_for_another() {
    let nuage = start();
    for version in ["--http1.1", "--http2"] {
        let host = |host: &str| {
            nuage.curl(
                "https://a.w.example/",
                &[version, "-H", &format!("Host: {host}")],
            )
        };
        // The same wildcard speaks for both.
        assert_eq!(host("b.w.example").status, 200, "{version}");
        for other in [
            "c.v.example",
            "www.foreign.example",
            "elsewhere.example",
            "nobody.w.example",
        ] {
            let got = host(other);
            assert_eq!(got.status, 421, "{version} {other} {got:?}");
            assert!(!got.body.contains("hello"));
        }
    }
    let typo = nuage.curl("https://nobody.w.example/", &[]);
    assert!(
        typo.status == 421 && typo.body.contains("No site of this name here"),
        "{typo:?}"
    );
}

#[test]
fn the_authority_survives_a_restart_and_ca_prints_it() {
    let mut nuage = start();
    let printed = nuage.folder.run(&["ca"]);
    assert_eq!(printed.code, 0);
    assert_eq!(printed.out, std::fs::read_to_string(nuage.ca()).unwrap());
    nuage.signal("TERM");
    assert_eq!(nuage.ended(), 0);
    let ca = std::fs::read_to_string(nuage.ca()).unwrap();
    let again = nuage.folder.run(&["ca"]);
    assert_eq!(again.out, ca);
    assert_eq!(again.out, printed.out);
}

#[test]
fn a_zone_with_a_certificate_of_its_own_redirects_to_it() {
    let folder = Folder::new("");
    folder.write("www/index.html", "hello");
    let (key, chain) = (
        folder.path().join("key.pem"),
        folder.path().join("chain.pem"),
    );
    let made = run(
        "openssl",
        &[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "30",
            "-subj",
            "/CN=real",
            "-addext",
            "subjectAltName=DNS:*.w.example",
            "-keyout",
            key.to_str().unwrap(),
            "-out",
            chain.to_str().unwrap(),
        ],
    );
    assert_eq!(made.code, 0, "{made:?}");
    folder.zone("[certificate]\nchain = \"../chain.pem\"\nkey = \"../key.pem\"\n[sites.a]\nstatic = \"../www\"\ndomains = [\"www.foreign.example\"]\n[sites.b]\nstatic = \"../www\"\nhttps = \"both\"\n");
    let nuage = folder.serve();
    let own = nuage.curl(
        "https://a.w.example/",
        &["--cacert", chain.to_str().unwrap()],
    );
    assert_eq!(own.status, 200, "{own:?}");
    // Visitors trust this certificate: plain HTTP redirects, but where the site says otherwise.
    assert_eq!(nuage.curl("http://a.w.example/", &[]).status, 308);
    assert_eq!(nuage.curl("http://b.w.example/", &[]).status, 200);
    // The certificate does not speak for a foreign domain.
    assert_eq!(nuage.curl("http://www.foreign.example/", &[]).status, 200);
    // A pair that is none is told before anything starts.
    assert_eq!(nuage.folder.run(&["check"]).code, 0);
    let other = run(
        "openssl",
        &[
            "genpkey",
            "-algorithm",
            "EC",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-out",
            key.to_str().unwrap(),
        ],
    );
    assert_eq!(other.code, 0);
    let checked = nuage.folder.run(&["check"]);
    assert!(
        checked.code == 1 && checked.err.contains("[certificate]: "),
        "{checked:?}"
    );
    assert_eq!(
        nuage
            .curl(
                "https://a.w.example/",
                &["--cacert", chain.to_str().unwrap()]
            )
            .status,
        200,
        "what runs goes on"
    );
    let ends = run("date", &["-d", "+30 days", "+%s"])
        .out
        .trim()
        .parse::<f64>()
        .unwrap();
    let metrics = nuage.metrics();
    let line = metrics
        .lines()
        .find(|line| {
            line.starts_with("nuage_tls_cert_not_after_timestamp_seconds{zone=\"w.example\"}")
        })
        .unwrap();
    let value: f64 = line.split_whitespace().last().unwrap().parse().unwrap();
    assert!((value - ends).abs() < 3_600.0, "{line} {ends}");
}
