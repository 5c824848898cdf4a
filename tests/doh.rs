//! DNS over HTTPS (RFC 8484) on the names of our name servers.

use std::{fs, path::PathBuf};

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::RecordType,
};

use crate::{
    client::question,
    harness::{Folder, Nuage, Response, run, until},
};

const ZONE: &str =
    "ttl = 120\n[sites.a]\nstatic = \"../www\"\ndomains = [\"www.foreign.example\"]\n";
const TYPE: &str = "Content-Type: application/dns-message";
const VERSIONS: [&str; 2] = ["--http1.1", "--http2"];

fn start() -> Nuage {
    let folder = Folder::new("[limits]\nstall_seconds = 2\n");
    folder.write("www/index.html", "hello");
    folder.zone(ZONE);
    folder.write(
        "zones/v.example.toml",
        "origin = \"v.example\"\nnameservers = [\"ns1.v.example\", \"ns.in.v.example\", \"ns1.w.example\"]\n",
    );
    folder.serve()
}

/// curl's answer of octets: `--output` keeps them as they are.
fn fetch(nuage: &Nuage, url: &str, more: &[&str]) -> (Response, Vec<u8>) {
    let body = nuage.folder.path().join("body");
    fs::remove_file(&body).unwrap_or_default();
    let mut arguments = vec!["-D", "-", "--no-include", "-o", body.to_str().unwrap()];
    arguments.extend(more);
    let mut response = nuage.curl(url, &arguments);
    response.head = response.head.trim_end().to_owned();
    (response, fs::read(&body).unwrap_or_default())
}

fn file(nuage: &Nuage, octets: &[u8]) -> PathBuf {
    let path = nuage.folder.path().join("question");
    fs::File::create(&path)
        .and_then(|mut file| std::io::Write::write_all(&mut file, octets))
        .unwrap();
    path
}

/// base64url without padding, by coreutils.
fn encoded(nuage: &Nuage, octets: &[u8]) -> String {
    let path = file(nuage, octets);
    let ran = run("basenc", &["--base64url", "-w0", path.to_str().unwrap()]);
    ran.out.trim_end_matches('=').to_owned()
}

fn asked(name: &str, kind: RecordType) -> Vec<u8> {
    // An id of 0 lets caches share the answer (RFC 8484 §4.1).
    let mut message = question(name, kind);
    message.metadata.id = 0;
    message.to_vec().unwrap()
}

fn get(nuage: &Nuage, query: &str, more: &[&str]) -> (Response, Vec<u8>) {
    fetch(
        nuage,
        &format!("https://ns1.w.example/dns-query{query}"),
        more,
    )
}

fn post(nuage: &Nuage, octets: &[u8], more: &[&str]) -> (Response, Vec<u8>) {
    let body = format!("@{}", file(nuage, octets).display());
    let mut arguments = vec!["--data-binary", &*body];
    arguments.extend(more);
    get(nuage, "", &arguments)
}

#[test]
fn kdig_asks_by_get_and_by_post() {
    let nuage = start();
    let (port, ca) = (nuage.https[0].port().to_string(), nuage.ca());
    let kdig = |server: &str, more: &[&str]| {
        let (ca, name) = (format!("+tls-ca={ca}"), format!("+tls-hostname={server}"));
        let https = format!("+https={server}/dns-query");
        let mut arguments = vec!["@127.0.0.1", "-p", &port, &https, &ca, &name];
        arguments.extend(more);
        run("kdig", &arguments)
    };
    for more in [&[][..], &["+https-get"]] {
        let mut arguments = vec!["a.w.example", "A"];
        arguments.extend(more);
        let got = kdig("ns1.w.example", &arguments);
        assert!(
            got.out.contains("HTTP/2") && got.out.contains("192.0.2.10"),
            "{got:?}"
        );
        arguments.push("+short");
        // Every in-zone name server answers for every zone, reverse ones too.
        for server in ["ns1.w.example", "ns1.v.example"] {
            assert_eq!(kdig(server, &arguments).out, "192.0.2.10\n", "{server}");
        }
    }
    let missing = kdig("ns1.w.example", &["nobody.w.example", "AAAA"]);
    assert!(missing.out.contains("NXDOMAIN"), "{missing:?}");
    let reverse = kdig("ns1.w.example", &["-x", "192.0.2.10", "+short"]);
    assert!(reverse.out.contains("a.w.example."), "{reverse:?}");
}

#[test]
fn an_answer_says_how_long_it_may_be_kept() {
    let nuage = start();
    for version in VERSIONS {
        for (name, kind, code, age) in [
            (
                "a.w.example.",
                RecordType::A,
                ResponseCode::NoError,
                "max-age=120",
            ),
            // Negative answers: the SOA's minimum (RFC 8484 §5.1).
            (
                "nobody.w.example.",
                RecordType::A,
                ResponseCode::NXDomain,
                "max-age=30",
            ),
            (
                "a.w.example.",
                RecordType::MX,
                ResponseCode::NoError,
                "max-age=30",
            ),
            (
                "elsewhere.example.",
                RecordType::A,
                ResponseCode::Refused,
                "max-age=0",
            ),
        ] {
            let octets = asked(name, kind);
            let dns = format!("?dns={}", encoded(&nuage, &octets));
            for (response, body) in [
                get(&nuage, &dns, &[version]),
                // What a client accepts makes no difference (RFC 8484 §4.1).
                get(&nuage, &dns, &[version, "-H", "Accept: text/html"]),
                post(&nuage, &octets, &[version, "-H", TYPE]),
                post(
                    &nuage,
                    &octets,
                    &[version, "-H", TYPE, "-H", "Expect: 100-continue"],
                ),
                post(
                    &nuage,
                    &octets,
                    &[version, "-H", TYPE, "-H", "Transfer-Encoding: chunked"],
                ),
            ] {
                assert_eq!(response.status, 200, "{version} {name} {response:?}");
                assert_eq!(response.head.starts_with("HTTP/2"), version == "--http2");
                assert_eq!(
                    response.header("content-type"),
                    Some("application/dns-message")
                );
                assert_eq!(response.header("cache-control"), Some(age), "{name}");
                let message = Message::from_vec(&body).unwrap();
                assert_eq!(
                    (message.metadata.id, message.metadata.response_code),
                    (0, code)
                );
            }
            let head = nuage.curl(
                &format!("https://ns1.w.example/dns-query{dns}"),
                &[version, "--head"],
            );
            assert_eq!((head.status, &*head.body), (200, ""));
            assert_eq!(head.header("cache-control"), Some(age));
        }
    }
}

#[test]
fn what_is_no_question_is_refused() {
    let nuage = start();
    let octets = asked("a.w.example.", RecordType::A);
    let dns = format!("?dns={}", encoded(&nuage, &octets));
    let mut response = octets.clone();
    response[2] |= 0x80;
    let large = vec![0; 65_536];
    for version in VERSIONS {
        let get = |query: &str| get(&nuage, query, &[version]).0.status;
        assert_eq!(get(&dns), 200);
        for query in [
            "".to_owned(),
            "?dns=".to_owned(),
            "?dns=AAAA".to_owned(),
            format!("{dns}="),
            format!("{dns}&{}", &dns[1..]),
            "?name=a.w.example".to_owned(),
            format!("?dns={}", encoded(&nuage, &response)),
        ] {
            assert_eq!(get(&query), 400, "{version} {query}");
        }
        let post = |octets: &[u8], more: &[&str]| {
            let mut arguments = vec![version];
            arguments.extend(more);
            post(&nuage, octets, &arguments).0
        };
        for (octets, more, want) in [
            (&octets[..], &["-H", TYPE][..], 200),
            (&octets, &["-H", "Content-Type: application/dns-json"], 415),
            (&octets, &["-H", "Content-Type:"], 415),
            (&octets[..11], &["-H", TYPE], 400),
            (&response, &["-H", TYPE], 400),
            (&[], &["-H", TYPE], 400),
            (&large, &["-H", TYPE], 413),
            (
                &large,
                &["-H", TYPE, "-H", "Transfer-Encoding: chunked"],
                413,
            ),
        ] {
            let got = post(octets, more);
            assert_eq!(got.status, want, "{version} {more:?} {got:?}");
        }
        // The longest message there can be is read, and answered as DNS answers nonsense.
        assert_eq!(post(&large[..65_535], &["-H", TYPE]).status, 200);
        for method in ["PUT", "DELETE", "OPTIONS"] {
            let got = post(&octets, &["-X", method, "-H", TYPE]);
            assert_eq!(
                (got.status, got.header("allow")),
                (405, Some("GET, HEAD, POST")),
                "{version} {method}"
            );
        }
    }
    // A client that asks for more than it sends is not waited for.
    let drip = format!(
        "(printf 'POST /dns-query HTTP/1.1\\r\\nHost: ns1.w.example\\r\\n{TYPE}\\r\\nContent-Length: 40\\r\\n\\r\\n'; \
         for i in 1 2 3 4 5 6 7 8; do printf x; sleep 0.5; done) | \
         timeout 15 openssl s_client -quiet -connect {} -servername ns1.w.example 2>/dev/null",
        nuage.https[0]
    );
    let slow = run("sh", &["-c", &drip]);
    assert!(slow.out.starts_with("HTTP/1.1 408"), "{slow:?}");
}

#[test]
fn only_name_servers_answer_and_only_over_https() {
    let nuage = start();
    let octets = asked("a.w.example.", RecordType::A);
    let dns = format!("dns-query?dns={}", encoded(&nuage, &octets));
    for (url, want) in [
        ("https://ns1.w.example/", 421),
        ("https://ns1.w.example/dns-query/", 421),
        ("https://ns2.w.example/DNS", 421),
        // The path is the site's.
        ("https://a.w.example/DNS", 404),
        ("https://www.foreign.example/DNS", 404),
        // Not one of the zone's name servers, and plain HTTP.
        ("https://ns3.v.example/DNS", 421),
        ("http://ns1.w.example/DNS", 404),
        ("http://a.w.example/DNS", 404),
    ] {
        let got = nuage.curl(&url.replace("DNS", &dns), &[]);
        assert_eq!(got.status, want, "{url} {got:?}");
    }
    // The wildcard certificate does not reach two labels down, so nobody gets as far as asking.
    let below = nuage.curl(&format!("https://ns.in.v.example/{dns}"), &[]);
    assert_eq!((below.status, below.exit), (0, 35), "{below:?}");
    // A connection for one zone's names is not for another's (RFC 9110 §15.5.20).
    let crossed = nuage.curl(
        &format!("https://a.w.example/{dns}"),
        &["-H", "Host: ns1.v.example"],
    );
    assert_eq!(crossed.status, 421, "{crossed:?}");
    // Within one zone it is: browsers share connections of one certificate.
    let shared = nuage.curl(
        &format!("https://a.w.example/{dns}"),
        &["-H", "Host: ns1.w.example"],
    );
    assert_eq!(shared.status, 200, "{shared:?}");
    // A zone that comes brings its name servers with it, and one that goes takes them away.
    nuage.folder.write(
        "zones/u.example.toml",
        "origin = \"u.example\"\nnameservers = [\"ns1.u.example\"]\n",
    );
    until("the new zone's name server answers", || {
        nuage
            .curl(&format!("https://ns1.u.example/{dns}"), &[])
            .status
            == 200
    });
}
