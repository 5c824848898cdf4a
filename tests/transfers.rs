//! Secondaries: real NSD, Knot and BIND take our zones, follow them, and answer as we do.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    net::TcpStream,
    time::{Duration, Instant},
};

use crate::{
    differential::SIGNED,
    harness::{Folder, HEAD, Nuage, Server, free_port, run, until, until_within},
};

const SHA256: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
const SHA512: &str = "ZmVkY2JhOTg3NjU0MzIxMGZlZGNiYTk4NzY1NDMyMTBmZWRjYmE5ODc2NTQzMjEw";
const ZONES: [&str; 3] = [
    "w.example",
    "10.2.0.192.in-addr.arpa",
    "0.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa",
];
const RECORDS: &str = "[[records]]\nname = \"@\"\ntype = \"MX\"\ndata = \"10 mx\"\n[[records]]\nname = \"mx\"\ntype = \"A\"\ndata = \"192.0.2.25\"\n\
     [[records]]\nname = \"*.dev\"\ntype = \"TXT\"\ndata = '\"any thing\"'\n[[records]]\nname = \"a.deep.below\"\ntype = \"CNAME\"\ndata = \"mx\"\n\
     [[records]]\nname = \"sub\"\ntype = \"NS\"\ndata = \"ns.sub\"\n[[records]]\nname = \"ns.sub\"\ntype = \"A\"\ndata = \"192.0.2.77\"\n";

/// Where a secondary finds us: the port, and over TLS (RFC 9103) the authority our certificate is of.
#[derive(Clone, Copy)]
struct Primary<'p> {
    port: u16,
    ca: Option<&'p str>,
}

impl From<u16> for Primary<'_> {
    fn from(port: u16) -> Self {
        Self { port, ca: None }
    }
}

/// One secondary: its name, which is its key's too, and its key.
struct Kind {
    name: &'static str,
    algorithm: &'static str,
    secret: &'static str,
}

const NSD: Kind = Kind {
    name: "nsd",
    algorithm: "hmac-sha256",
    secret: SHA256,
};
const KNOT: Kind = Kind {
    name: "knot",
    algorithm: "hmac-sha512",
    secret: SHA512,
};
const BIND: Kind = Kind {
    name: "bind",
    algorithm: "hmac-sha256",
    secret: SHA512,
};

impl Kind {
    /// Its part of nuage.toml.
    fn config(&self, port: u16) -> String {
        let Self {
            name,
            algorithm,
            secret,
        } = self;
        format!(
            "[[secondaries]]\naddress = \"127.0.0.1:{port}\"\nkey = \"{name}\"\n[keys.{name}]\nalgorithm = \"{algorithm}\"\nsecret = \"{secret}\"\n"
        )
    }

    /// Starts the server as a secondary of `primary` for these zones. Whoever is here may transfer them
    /// from it, and it adds nothing to answers that they could do without.
    fn start<'p>(&self, port: u16, primary: impl Into<Primary<'p>>, zones: &[&str]) -> Server {
        let Primary { port: primary, ca } = primary.into();
        let Self {
            name,
            algorithm,
            secret,
        } = self;
        let each = |zone: &dyn Fn(&str) -> String| -> String {
            zones.iter().map(|name| zone(name)).collect()
        };
        match *name {
            "nsd" => {
                let (bundle, auth, tls) = match ca {
                    None => Default::default(),
                    Some(ca) => (
                        format!("  tls-cert-bundle: \"{ca}\"\n"),
                        "tls-auth:\n  name: \"nuage\"\n  auth-domain-name: \"ns1.w.example\"\n",
                        " nuage",
                    ),
                };
                let zones = each(&|zone| {
                    format!(
                        "zone:\n  name: \"{zone}\"\n  zonefile: \"{zone}.zone\"\n  allow-notify: 127.0.0.1 nsd\n  request-xfr: 127.0.0.1@{primary} nsd{tls}\n  provide-xfr: 127.0.0.1 NOKEY\n"
                    )
                });
                let config = format!(
                    "server:\n  ip-address: 127.0.0.1@{port}\n  zonesdir: \"@DIR@\"\n  xfrdfile: \"@DIR@/xfrd\"\n  xfrdir: \"@DIR@\"\n  zonelistfile: \"@DIR@/zones\"\n  database: \"\"\n  pidfile: \"\"\n  \
                     username: \"\"\n  server-count: 1\n  xfrd-reload-timeout: 0\n  minimal-responses: yes\n  verbosity: 2\n{bundle}remote-control:\n  control-enable: no\n\
                     key:\n  name: \"nsd\"\n  algorithm: {algorithm}\n  secret: \"{secret}\"\n{auth}{zones}"
                );
                Server::start(
                    &[("nsd.conf", &config)],
                    port,
                    "nsd",
                    &["-d", "-c", "@DIR@/nsd.conf"],
                )
            }
            "knot" => {
                assert!(ca.is_none(), "Debian's can't");
                let zones = each(&|zone| format!("  - domain: \"{zone}\"\n"));
                let config = format!(
                    "server:\n  listen: 127.0.0.1@{port}\n  rundir: \"@DIR@\"\nlog:\n  - target: stderr\n    any: info\ndatabase:\n  storage: \"@DIR@\"\n\
                     key:\n  - id: knot\n    algorithm: {algorithm}\n    secret: \"{secret}\"\nremote:\n  - id: nuage\n    address: 127.0.0.1@{primary}\n    key: knot\n\
                     acl:\n  - id: news\n    address: 127.0.0.1\n    key: knot\n    action: notify\n  - id: all\n    address: 127.0.0.1\n    action: transfer\n\
                     template:\n  - id: default\n    storage: \"@DIR@\"\n    master: nuage\n    acl: [news, all]\nzone:\n{zones}"
                );
                Server::start(
                    &[("knot.conf", &config)],
                    port,
                    "knotd",
                    &["-c", "@DIR@/knot.conf"],
                )
            }
            _ => {
                let (block, tls) = match ca {
                    None => Default::default(),
                    Some(ca) => (
                        format!(
                            "tls nuage {{ ca-file \"{ca}\"; remote-hostname \"ns1.w.example\"; }};\n"
                        ),
                        " tls nuage",
                    ),
                };
                let zones = each(&|zone| {
                    format!(
                        "zone \"{zone}\" {{ type secondary; file \"{zone}.zone\"; primaries {{ 127.0.0.1 port {primary} key bind{tls}; }}; allow-notify {{ key bind; }}; }};\n"
                    )
                });
                let config = format!(
                    "options {{ directory \"@DIR@\"; pid-file none; session-keyfile none; listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }}; recursion no; notify no; \
                     empty-zones-enable no; minimal-responses yes; }};\ncontrols {{ }};\n{block}key bind {{ algorithm {algorithm}; secret \"{secret}\"; }};\n{zones}"
                );
                Server::start(
                    &[("named.conf", &config)],
                    port,
                    "named",
                    &["-g", "-c", "@DIR@/named.conf"],
                )
            }
        }
    }
}

/// A folder with the usual zone and these in nuage.toml, DNS on one port for all restarts.
fn folder(body: &str, extra: &str) -> (Folder, u16) {
    let folder = Folder::new(extra);
    let port = free_port();
    let config = fs::read_to_string(folder.config()).unwrap();
    let config = config.replacen("\"127.0.0.1:0\"", &format!("\"127.0.0.1:{port}\""), 1);
    folder.write("nuage.toml", &config);
    folder.zone(body);
    (folder, port)
}

/// The same with DNS over TLS on the second port, and no limit to what may be asked.
fn folder_with_tls(body: &str, extra: &str) -> (Folder, u16, u16) {
    let folder = Folder::of_dns("rate_limit = 0", extra);
    let (port, tls) = (free_port(), free_port());
    let mut config = fs::read_to_string(folder.config()).unwrap();
    for port in [port, tls] {
        config = config.replacen("\"127.0.0.1:0\"", &format!("\"127.0.0.1:{port}\""), 1);
    }
    folder.write("nuage.toml", &config);
    folder.zone(body);
    (folder, port, tls)
}

fn dig(port: u16, arguments: &[&str]) -> String {
    let port = port.to_string();
    let mut all = vec!["@127.0.0.1", "-p", &port, "+norec", "+time=2", "+tries=1"];
    all.extend(arguments);
    run("dig", &all).out
}

fn sorted(text: &str) -> Vec<String> {
    // Compression differs, and so does the case a name was first seen in.
    let mut lines: Vec<String> = text.lines().map(str::to_ascii_lowercase).collect();
    lines.sort_unstable();
    lines
}

fn serial(port: u16, zone: &str) -> Option<u32> {
    let soa = dig(port, &["+short", zone, "SOA"]);
    let mut fields = soa.split_whitespace();
    fields
        .next()
        .filter(|primary| *primary == "ns1.w.example.")?;
    fields.nth(1)?.parse().ok()
}

/// Waits until a secondary holds what we hold.
fn follows(who: &str, patience: Duration, ours: u16, theirs: u16) -> Duration {
    let started = Instant::now();
    for zone in ZONES {
        until_within(patience, &format!("{who} has {zone}"), || {
            let wanted = serial(ours, zone);
            wanted.is_some() && serial(theirs, zone) == wanted
        });
    }
    started.elapsed()
}

/// Every name and type has the same answer there and here, and so have names that aren't.
fn agrees(who: &str, nuage: &Nuage, ours: u16, theirs: u16) {
    let mut asked = 0;
    for zone in ZONES {
        let exported = nuage.folder.run(&["zone", "export", zone]).out;
        let mut questions: Vec<(String, String)> = exported
            .lines()
            .map(|line| {
                let fields: Vec<&str> = line.split_whitespace().collect();
                (fields[0].to_owned(), fields[3].to_owned())
            })
            .collect();
        for (name, kind) in [
            ("nobody.", "A"),
            ("x.dev.", "TXT"),
            ("deep.below.", "A"),
            ("", "TXT"),
        ] {
            questions.push((format!("{name}{zone}."), kind.to_owned()));
        }
        questions.sort_unstable();
        questions.dedup();
        for (name, kind) in questions {
            let answer = |port| {
                let text = dig(
                    port,
                    &["+noall", "+comments", "+answer", "+nocrypto", &name, &kind],
                );
                let kept = |line: &&str| {
                    !line.starts_with(';') || line.contains("status:") && !line.contains("EDNS")
                };
                let text: Vec<String> = text
                    .lines()
                    .filter(kept)
                    .map(|line| line.split(", id:").next().unwrap_or_default().to_owned())
                    .collect();
                sorted(&text.join("\n"))
            };
            let ours = answer(ours);
            assert!(!ours.is_empty());
            assert_eq!(ours, answer(theirs), "{who}: {name} {kind}");
            asked += 1;
        }
    }
    assert!(asked > 20, "{asked}");
}

/// How many transfers of a zone went out, by kind and result.
fn transfers(nuage: &Nuage, zone: &str, kind: &str, result: &str) -> u32 {
    let wanted = format!(
        "nuage_dns_transfers_total{{zone=\"{zone}\",kind=\"{kind}\",result=\"{result}\"}} "
    );
    let metrics = nuage.metrics();
    metrics
        .lines()
        .find_map(|line| line.strip_prefix(&wanted))
        .map_or(0, |count| count.parse().unwrap())
}

/// The whole life of a secondary: it loads, follows an edit by its changes, and goes on after a
/// restart of ours.
fn lives(kind: &Kind) {
    let theirs = free_port();
    let (folder, ours) = folder(
        &format!("[sites.alice]\naliases = [\"al\"]\n[sites.bob]\n{RECORDS}"),
        &kind.config(theirs),
    );
    let nuage = folder.serve();
    let _server = kind.start(theirs, ours, &ZONES);
    follows(kind.name, Duration::from_secs(20), ours, theirs);
    agrees(kind.name, &nuage, ours, theirs);
    let whole = transfers(&nuage, "w.example", "axfr", "sent");
    assert!(whole >= 1);

    // Gone, new, changed.
    nuage.folder.zone(&format!(
        "[sites.alice]\naliases = [\"all\"]\n[sites.carol]\n{}",
        RECORDS.replace("192.0.2.25", "192.0.2.26")
    ));
    let edited = Instant::now();
    until("we have the edit", || {
        dig(ours, &["+short", "carol.w.example", "A"]) == "192.0.2.10\n"
    });
    follows(kind.name, Duration::from_secs(2), ours, theirs);
    assert!(edited.elapsed() < Duration::from_secs(4));
    agrees(kind.name, &nuage, ours, theirs);
    for zone in ZONES {
        assert_eq!(
            transfers(&nuage, zone, "ixfr", "sent"),
            1,
            "{}",
            nuage.metrics()
        );
    }
    assert_eq!(transfers(&nuage, "w.example", "axfr", "sent"), whole);
    let told = format!(
        "nuage_dns_notify_total{{secondary=\"127.0.0.1:{theirs}\",result=\"acknowledged\"}}"
    );
    until("all is acknowledged", || nuage.metrics().contains(&told));

    // What it missed meanwhile it gets by its changes, out of the journal.
    let nuage = nuage.into_folder().serve();
    nuage
        .folder
        .zone(&format!("[sites.alice]\n[sites.dave]\n{RECORDS}"));
    until("we have the second edit", || {
        dig(ours, &["+short", "dave.w.example", "A"]) == "192.0.2.10\n"
    });
    follows(kind.name, Duration::from_secs(20), ours, theirs);
    agrees(kind.name, &nuage, ours, theirs);
    assert!(transfers(&nuage, "w.example", "ixfr", "sent") >= 1);
    assert_eq!(transfers(&nuage, "w.example", "axfr", "sent"), 0);
}

#[test]
fn nsd_follows_our_zones() {
    lives(&NSD);
}

#[test]
fn knot_follows_our_zones() {
    lives(&KNOT);
}

#[test]
fn bind_follows_our_zones() {
    lives(&BIND);
}

/// What a server gives of a zone, in no order.
fn whole(port: u16, zone: &str, more: &[&str]) -> Vec<String> {
    let mut all = vec!["+noall", "+answer", "+onesoa", zone, "AXFR"];
    all.extend(more);
    sorted(&dig(port, &all))
}

/// All that can be asked of these zones with DO set, and what a server answers, code and flags with it.
fn signed_answers(folder: &Folder, port: u16, questions: &[(String, String)]) -> Vec<String> {
    let lines: String = questions
        .iter()
        .map(|(name, kind)| {
            format!("@127.0.0.1 -p {port} +norec +time=2 +tries=2 +dnssec +noall +comments +answer +authority {name} {kind}\n")
        })
        .collect();
    let file = folder.write("questions", &lines);
    let all = run("dig", &["-f", file.to_str().unwrap()]);
    let answers: Vec<String> = all
        .out
        .split(";; Got answer:")
        .skip(1)
        .map(|answer| {
            let kept: Vec<&str> = answer
                .lines()
                .filter(|line| !line.is_empty())
                .filter_map(|line| match line.strip_prefix(";; ") {
                    Some(head) if head.starts_with("->>HEADER") => head.split(", id:").next(),
                    Some(head) if head.starts_with("flags:") => head.split(';').next(),
                    _ => (!line.starts_with(';')).then_some(line),
                })
                .collect();
            sorted(&kept.join("\n")).join("\n")
        })
        .collect();
    assert_eq!(answers.len(), questions.len(), "{all:?}");
    answers
}

/// The zones are the same here and there, signature for signature; they verify; and so is every answer.
fn agree_signed(nuage: &Nuage, ours: u16, servers: &[(&str, u16)]) {
    let ours_key = format!("hmac-sha256:nsd:{SHA256}");
    let mut questions = Vec::new();
    for zone in ZONES {
        let text = dig(
            ours,
            &[
                "+noall", "+answer", "+onesoa", "-y", &ours_key, zone, "AXFR",
            ],
        );
        let records = sorted(&text);
        for (who, port) in servers {
            assert_eq!(whole(*port, zone, &[]), records, "{who}: {zone}");
        }
        let file = nuage.folder.write("transferred", &text);
        let file = file.to_str().unwrap();
        let bind = run("dnssec-verify", &["-o", zone, file]);
        assert_eq!(bind.code, 0, "{zone}: {bind:?}");
        let ldns = run("ldns-verify-zone", &["-V", "2", file]);
        assert_eq!(ldns.code, 0, "{zone}: {ldns:?}");

        for line in text.lines() {
            let mut fields = line.split_whitespace();
            let (name, kind) = (fields.next().unwrap(), fields.nth(2).unwrap());
            // BIND answers for the child's NSEC at a delegation, the others with ours.
            if kind != "RRSIG" && !(kind == "NSEC" && name.starts_with("sub.")) {
                questions.push((name.to_owned(), kind.to_owned()));
            }
        }
        // Names that aren't, types that aren't, wildcards, empty non-terminals, referrals.
        for (name, kind) in [
            ("nobody.", "A"),
            ("x.y.nobody.", "PTR"),
            ("x.alice.", "A"),
            ("", "TXT"),
            ("", "PTR"),
            ("alice.", "TXT"),
            ("x.dev.", "TXT"),
            ("x.y.dev.", "TXT"),
            ("x.dev.", "A"),
            ("dev.", "TXT"),
            ("deep.below.", "A"),
            ("a.deep.below.", "A"),
            ("a.deep.below.", "MX"),
            ("sub.", "DS"),
            ("sub.", "A"),
            ("x.sub.", "A"),
        ] {
            questions.push((format!("{name}{zone}."), kind.to_owned()));
        }
    }
    questions.sort_unstable();
    questions.dedup();
    let wanted = signed_answers(&nuage.folder, ours, &questions);
    let shown = |code: &str, text: &str| {
        let has = |answer: &&String| answer.contains(code) && answer.contains(text);
        assert!(wanted.iter().any(|answer| has(&answer)), "{code} {text}");
    };
    shown("noerror", "rrsig\tptr 13");
    shown("noerror", "rrsig\tdnskey 13");
    shown("noerror", "rrsig\tsoa 13");
    shown("nxdomain", "rrsig\tnsec 13");
    for (who, port) in servers {
        let theirs = signed_answers(&nuage.folder, *port, &questions);
        for ((question, wanted), theirs) in questions.iter().zip(&wanted).zip(&theirs) {
            // On a busy machine dig gives up on one of hundreds, and shows what it asked: no QR flag.
            let again =
                || signed_answers(&nuage.folder, *port, std::slice::from_ref(question)).remove(0);
            let answered = theirs.contains("flags: qr");
            let theirs = if answered { theirs.clone() } else { again() };
            assert_eq!(theirs, *wanted, "{who}: {question:?}");
        }
    }
}

#[test]
fn signed_zones_are_followed_signature_for_signature() {
    let kinds = [NSD, KNOT, BIND];
    let servers = kinds.each_ref().map(|kind| (kind.name, free_port()));
    let configs: String = kinds
        .iter()
        .zip(servers)
        .map(|(kind, (_, port))| kind.config(port))
        .collect();
    let body = |sites: &str, last: u8| {
        format!(
            "{SIGNED}{sites}{}",
            RECORDS.replace("192.0.2.25", &format!("192.0.2.{last}"))
        )
    };
    let first = "[sites.alice]\naliases = [\"al\"]\n[sites.bob]\n";
    let (folder, ours, _) = folder_with_tls(
        &body(first, 25),
        &format!("{configs}[reverse]\ndnssec = true\n"),
    );
    let nuage = folder.serve();
    let _running: Vec<Server> = kinds
        .iter()
        .zip(servers)
        .map(|(kind, (_, port))| kind.start(port, ours, &ZONES))
        .collect();
    let follow = |patience| {
        for (who, port) in servers {
            follows(who, patience, ours, port);
        }
    };
    follow(Duration::from_secs(20));
    agree_signed(&nuage, ours, &servers);

    // Our own look at them counts too.
    let whole = transfers(&nuage, "w.example", "axfr", "sent");
    let before = serial(ours, "w.example");
    nuage.folder.zone(&body(
        "[sites.alice]\naliases = [\"all\"]\n[sites.carol]\n",
        26,
    ));
    until("we have the edit", || {
        serial(ours, "w.example").is_some_and(|now| Some(now) > before)
    });
    follow(Duration::from_secs(2));
    for zone in ZONES {
        assert_eq!(
            transfers(&nuage, zone, "ixfr", "sent"),
            3,
            "{zone}: {}",
            nuage.metrics()
        );
    }
    assert_eq!(transfers(&nuage, "w.example", "axfr", "sent"), whole);
    agree_signed(&nuage, ours, &servers);

    // A new key is an edit as well.
    let before = serial(ours, "w.example");
    let rolled = nuage.folder.run(&["zone", "roll", "w.example", "zsk"]);
    assert_eq!(rolled.code, 0, "{rolled:?}");
    nuage.signal("HUP");
    until("we have the new key", || {
        serial(ours, "w.example").is_some_and(|now| Some(now) > before)
    });
    follow(Duration::from_secs(2));
    assert_eq!(
        dig(ours, &["+short", "w.example", "DNSKEY"])
            .lines()
            .count(),
        3
    );
    assert_eq!(transfers(&nuage, "w.example", "ixfr", "sent"), 6);
    agree_signed(&nuage, ours, &servers);
}

#[test]
fn over_tls_alone_where_the_file_says_so() {
    let theirs = [free_port(), free_port()];
    let configs: String = [NSD, BIND]
        .iter()
        .zip(theirs)
        .map(|(kind, port)| kind.config(port).replace("[keys", "tls = true\n[keys"))
        .collect();
    let open = "[[secondaries]]\naddress = \"127.0.0.4\"\nnotify = false\ntls = true\n";
    let (folder, ours, tls) = folder_with_tls(
        &format!("{SIGNED}[sites.alice]\n{RECORDS}"),
        &format!("{open}{configs}[reverse]\ndnssec = true\n"),
    );
    let nuage = folder.serve();
    let key = format!("hmac-sha256:nsd:{SHA256}");

    // By key and by address alone: not in clear, neither the zone nor its changes.
    for who in [&["-y", &key][..], &["-b", "127.0.0.4"]] {
        for question in [&["AXFR"][..], &["IXFR=1"], &["+notcp", "IXFR=1"]] {
            let all = [&["w.example"][..], question, who].concat();
            let answer = dig(ours, &all);
            // Of a refusal over UDP dig shows nothing but the signature.
            let udp = question.contains(&"+notcp");
            assert!(
                udp || answer.contains("Transfer failed"),
                "{all:?}: {answer}"
            );
            assert!(!answer.contains("SOA"), "{all:?}: {answer}");
        }
    }
    let port = tls.to_string();
    let ca = nuage.ca();
    let (ca_option, name_option) = (format!("+tls-ca={ca}"), "+tls-hostname=ns1.w.example");
    let kdig = |more: &[&str]| {
        let mut all = vec![
            "@127.0.0.1",
            "-p",
            &port,
            "+norec",
            "+tls",
            &ca_option,
            name_option,
        ];
        all.extend(more);
        let kdig = run("kdig", &all);
        kdig.out + &kdig.err
    };
    for who in [&["-y", &key][..], &["-b", "127.0.0.4"]] {
        let all = kdig(&[who, &["w.example", "AXFR"]].concat());
        assert!(
            all.contains("alice.w.example.")
                && all.contains("RRSIG")
                && all.contains("(1 messages, "),
            "{who:?}: {all}"
        );
        let dug = dig(
            tls,
            &[&["+tls", &ca_option, name_option, "w.example", "AXFR"], who].concat(),
        );
        assert!(
            dug.contains("XFR size:") && !dug.contains("Couldn't verify"),
            "{dug}"
        );
        let known = serial(ours, "w.example").unwrap();
        let none = kdig(&[who, &["w.example", &format!("IXFR={known}")]].concat());
        assert!(none.contains("(1 messages, 1 records)"), "{none}");
    }
    let wrong = format!("hmac-sha256:nsd:{SHA512}");
    let answer = kdig(&["-y", &wrong, "w.example", "AXFR"]);
    assert!(!answer.contains("alice"), "{answer}");
    let stranger = kdig(&["w.example", "AXFR"]);
    assert!(stranger.contains("REFUSED"), "{stranger}");

    let primary = Primary {
        port: tls,
        ca: Some(&ca),
    };
    let servers = [("nsd", theirs[0]), ("bind", theirs[1])];
    let _running = [NSD, BIND].map(|kind| {
        let at = if kind.name == "nsd" { 0 } else { 1 };
        kind.start(theirs[at], primary, &ZONES)
    });
    for (who, port) in servers {
        follows(who, Duration::from_secs(20), ours, port);
    }
    let before = serial(ours, "w.example");
    nuage
        .folder
        .zone(&format!("{SIGNED}[sites.alice]\n[sites.bob]\n{RECORDS}"));
    until("we have the edit", || {
        serial(ours, "w.example").is_some_and(|now| Some(now) > before)
    });
    for (who, port) in servers {
        follows(who, Duration::from_secs(2), ours, port);
        for zone in ZONES {
            let all = whole(port, zone, &[]);
            let ours = whole(tls, zone, &["+tls", "-y", &key]);
            assert_eq!(all, ours, "{who}: {zone}");
        }
    }
    for zone in ZONES {
        assert_eq!(
            transfers(&nuage, zone, "ixfr", "sent"),
            2,
            "{zone}: {}",
            nuage.metrics()
        );
    }
    assert_eq!(transfers(&nuage, "w.example", "axfr", "refused"), 3);
    assert_eq!(transfers(&nuage, "w.example", "ixfr", "refused"), 4);
}

#[test]
fn three_secondaries_at_once_hold_twenty_thousand_sites() {
    let ports = [free_port(), free_port(), free_port()];
    let kinds = [NSD, KNOT, BIND];
    let configs: String = kinds
        .iter()
        .zip(ports)
        .map(|(kind, port)| kind.config(port))
        .collect();
    let sites: String = (0..20_000)
        .map(|number| format!("[sites.site-{number:05}]\n"))
        .collect();
    let (folder, ours) = folder(
        &sites,
        &format!("{configs}\n[reverse]\nnames = \"canonical\"\n"),
    );
    let nuage = folder.serve();
    let servers: Vec<Server> = kinds
        .iter()
        .zip(ports)
        .map(|(kind, port)| kind.start(port, ours, &ZONES))
        .collect();
    for (kind, port) in kinds.iter().zip(ports) {
        follows(kind.name, Duration::from_secs(60), ours, port);
        for number in ["00000", "09999", "19999"] {
            let name = format!("site-{number}.w.example");
            assert_eq!(dig(port, &["+short", &name, "A"]), "192.0.2.10\n");
            assert_eq!(dig(port, &["+short", &name, "AAAA"]), "2001:db8::10\n");
        }
    }
    nuage
        .folder
        .zone(&format!("{}[sites.new]\n", &sites[..sites.len() / 2]));
    until("we have the edit", || {
        dig(ours, &["+short", "new.w.example", "A"]) == "192.0.2.10\n"
    });
    for (kind, port) in kinds.iter().zip(ports) {
        follows(kind.name, Duration::from_secs(20), ours, port);
        assert_eq!(dig(port, &["+short", "new.w.example", "A"]), "192.0.2.10\n");
        assert_eq!(dig(port, &["+short", "site-19999.w.example", "A"]), "");
    }
    assert_eq!(transfers(&nuage, "w.example", "ixfr", "sent"), 3);

    // SOA, two NS, CAA, ns1's two, two for each site, and the SOA again.
    let key = format!("hmac-sha256:nsd:{SHA256}");
    let whole = dig(ours, &["-y", &key, "w.example", "AXFR"]);
    let wanted = format!(
        ";; XFR size: {} records (messages ",
        1 + 2 + 1 + 2 + 2 * 10_001 + 1
    );
    let size = whole.lines().find_map(|line| line.strip_prefix(&*wanted));
    let messages: u32 = size
        .and_then(|rest| rest.split(',').next()?.parse().ok())
        .unwrap_or_else(|| panic!("{}", &whole[whole.len().saturating_sub(600)..]));
    assert!((10..100).contains(&messages), "{messages}");
    drop(servers);
}

#[test]
fn transfers_are_for_those_who_are_named() {
    let extra = format!(
        "[[secondaries]]\naddress = \"127.0.0.1\"\nnotify = false\nkey = \"campus\"\nzones = [\"w.example\", \"{}\"]\n\
         [[secondaries]]\naddress = \"127.0.0.0/29\"\nnotify = false\nkey = \"other\"\nzones = [\"v.example\"]\n\
         [[secondaries]]\naddress = \"127.0.0.3\"\nnotify = false\n\
         [[secondaries]]\naddress = \"127.0.0.4\"\nnotify = false\ntls = true\n\
         [keys.campus]\nalgorithm = \"hmac-sha512\"\nsecret_file = \"campus.key\"\n[keys.other]\nalgorithm = \"hmac-sha256\"\nsecret = \"{SHA256}\"\n",
        ZONES[1]
    );
    let (folder, port) = folder("[sites.alice]\n", &extra);
    folder.write("campus.key", &format!("{SHA512}\n"));
    let nuage = folder.serve();
    let campus = format!("hmac-sha512:campus:{SHA512}");
    let other = format!("hmac-sha256:other:{SHA256}");
    let ask = |arguments: &[&str]| dig(port, arguments);
    let has_all =
        |text: &str| text.contains("alice.w.example.") && text.contains(";; XFR size: 9 records");

    let whole = ask(&["-y", &campus, "w.example", "AXFR"]);
    assert!(has_all(&whole), "{whole}");
    let whole = run(
        "kdig",
        &[
            "@127.0.0.1",
            "-p",
            &port.to_string(),
            "-y",
            &campus,
            "w.example",
            "AXFR",
        ],
    );
    assert!(
        whole.out.contains("alice.w.example.") && whole.out.contains("(1 messages, 9 records)"),
        "{whole:?}"
    );
    let reverse = ask(&["-y", &campus, ZONES[1], "AXFR"]);
    assert!(reverse.contains("alice.w.example."), "{reverse}");
    let open = ask(&["-b", "127.0.0.3", "w.example", "AXFR"]);
    assert!(has_all(&open), "{open}");

    // An ordinary question may be signed, and its answer is.
    let signed = ask(&["-y", &campus, "alice.w.example", "A"]);
    assert!(
        signed.contains("192.0.2.10") && signed.contains("NOERROR 0"),
        "{signed}"
    );
    let signed = ask(&["+tcp", "-y", &other, "alice.w.example", "AAAA"]);
    assert!(signed.contains("2001:db8::10"), "{signed}");

    let unknown = format!("hmac-sha256:nobody:{SHA256}");
    let wrong = format!("hmac-sha512:campus:{SHA256}");
    let weaker = format!("hmac-sha256:campus:{SHA512}");
    for (arguments, told) in [
        (&["w.example", "AXFR"][..], "Transfer failed"),
        (&["-y", &other, "w.example", "AXFR"], "Transfer failed"),
        (&["-y", &campus, ZONES[2], "AXFR"], "Transfer failed"),
        (
            &["-y", &campus, "nowhere.example", "AXFR"],
            "Transfer failed",
        ),
        (
            &["-b", "127.0.0.2", "-y", &campus, "w.example", "AXFR"],
            "Transfer failed",
        ),
        (&["-b", "127.0.0.4", "w.example", "AXFR"], "Transfer failed"),
        (&["-y", &unknown, "w.example", "AXFR"], "BADKEY"),
        (&["-y", &wrong, "w.example", "AXFR"], "BADSIG"),
        (&["-y", &weaker, "w.example", "AXFR"], "BADKEY"),
        (&["-y", &wrong, "alice.w.example", "A"], "BADSIG"),
    ] {
        let answer = ask(arguments);
        assert!(answer.contains(told), "{arguments:?}: {answer}");
        assert!(!answer.contains("192.0.2.10"), "{arguments:?}: {answer}");
    }
    assert_eq!(transfers(&nuage, "w.example", "axfr", "sent"), 3);
    assert_eq!(transfers(&nuage, "w.example", "axfr", "refused"), 4);
    assert_eq!(transfers(&nuage, "other", "axfr", "refused"), 1);

    // Who may transfer changes with the file, without a restart.
    let config = fs::read_to_string(nuage.folder.config()).unwrap();
    nuage
        .folder
        .write("nuage.toml", &config.replace("127.0.0.3", "127.0.0.2"));
    nuage.signal("HUP");
    until("the file is in force", || {
        has_all(&ask(&["-b", "127.0.0.2", "w.example", "AXFR"]))
    });
    let gone = ask(&["-b", "127.0.0.3", "w.example", "AXFR"]);
    assert!(gone.contains("Transfer failed"), "{gone}");
}

/// The serials of a transfer's SOA records, in their order.
fn steps(transfer: &str) -> Vec<u32> {
    transfer
        .lines()
        .map(|line| line.split_whitespace().collect())
        .filter(|fields: &Vec<&str>| fields.get(3) == Some(&"SOA"))
        .map(|fields| fields[6].parse().unwrap())
        .collect()
}

#[test]
fn changes_are_served_from_a_journal_that_survives_what_can_happen_to_it() {
    // Too much for a datagram as a whole.
    let long = ["x".repeat(250), "y".repeat(250), "z".repeat(250)].map(|text| {
        format!("[[records]]\nname = \"long\"\ntype = \"TXT\"\ndata = '\"{text}\" \"{text}\"'\n")
    });
    let body = |number: u32| format!("[sites.site-{number}]\n[sites.always]\n{}", long.concat());
    let open = "[[secondaries]]\naddress = \"127.0.0.1\"\nnotify = false\n";
    let (folder, port) = folder(&body(0), open);
    let mut nuage = folder.serve();
    let edit = |nuage: &Nuage, number: u32| {
        nuage.folder.zone(&body(number));
        let name = format!("site-{number}.w.example");
        until("the edit is served", || {
            dig(port, &["+short", &name, "A"]) == "192.0.2.10\n"
        });
        serial(port, "w.example").unwrap()
    };
    let changes = |from: u32, more: &[&str]| {
        let question = format!("IXFR={from}");
        let mut all = vec!["+onesoa", "w.example", &question];
        all[0] = "+nocomments";
        all.extend(more);
        dig(port, &all)
    };
    let mut serials = vec![serial(port, "w.example").unwrap()];
    for number in 1..4 {
        serials.push(edit(&nuage, number));
    }
    let [first, second, third, last] = serials[..] else {
        panic!("{serials:?}");
    };
    let in_sequence = [last, first, second, second, third, third, last, last];
    for more in [&[][..], &["+notcp"]] {
        let all = changes(first, more);
        assert_eq!(steps(&all), in_sequence, "{all}");
        for number in 0..4 {
            assert!(all.contains(&format!("site-{number}.w.example.")), "{all}");
        }
        assert!(!all.contains("always"), "{all}");
    }
    assert_eq!(steps(&changes(third, &[])), [last, third, last, last]);
    assert_eq!(steps(&changes(last, &[])), [last], "nothing new");
    assert_eq!(steps(&changes(last.wrapping_add(5), &[])), [last]);
    let unknown = changes(first - 1, &[]);
    assert_eq!(steps(&unknown), [last, last], "all of it");
    assert!(unknown.contains("always"), "{unknown}");
    assert_eq!(
        steps(&changes(first - 1, &["+notcp"])),
        [last],
        "ask over TCP"
    );

    // Killed and started: the journal is still there.
    nuage = nuage.into_folder().serve();
    assert_eq!(steps(&changes(first, &[])), in_sequence);

    // Octets of an entry that never was finished.
    let journal = nuage
        .folder
        .path()
        .join("state/edge/journal/w.example.journal");
    nuage.kill();
    let mut file = OpenOptions::new().append(true).open(&journal).unwrap();
    file.write_all(b"\0\0\x02\0half an entry").unwrap();
    nuage = nuage.into_folder().serve();
    let log = nuage.log();
    let journal = nuage
        .folder
        .path()
        .join("state/edge/journal/w.example.journal");
    assert!(log.contains("the end of the journal is torn"), "{log}");
    assert_eq!(steps(&changes(first, &[])), in_sequence);
    let next = edit(&nuage, 4);
    assert_eq!(steps(&changes(last, &[])), [next, last, next, next]);
    assert_eq!(steps(&changes(first, &[])).len(), 10);

    // Cut short: what is left does not lead to what is served.
    nuage.kill();
    let length = fs::metadata(&journal).unwrap().len();
    let file = OpenOptions::new().write(true).open(&journal).unwrap();
    file.set_len(length - 3).unwrap();
    nuage = nuage.into_folder().serve();
    let all = changes(first, &[]);
    assert_eq!(steps(&all), [next, next], "{all}");
    let after = edit(&nuage, 5);
    assert_eq!(steps(&changes(next, &[])), [after, next, after, after]);

    // Edited while it was down.
    nuage.kill();
    nuage
        .folder
        .write("zones/w.example.toml", &format!("{HEAD}{}", body(6)));
    nuage = nuage.into_folder().serve();
    let newest = serial(port, "w.example").unwrap();
    assert_eq!(steps(&changes(after, &[])), [newest, newest]);
    drop(nuage);
}

#[test]
fn the_journal_of_a_signed_zone_survives_a_restart_too() {
    let open =
        "[[secondaries]]\naddress = \"127.0.0.1\"\nnotify = false\n[reverse]\ndnssec = true\n";
    let (folder, port) = folder(&format!("{SIGNED}[sites.site-0]\n"), open);
    let mut nuage = folder.serve();
    let serials = || ZONES.map(|zone| serial(port, zone).unwrap());
    let first = serials();
    let edit = |nuage: &Nuage, number: u32| {
        nuage
            .folder
            .zone(&format!("{SIGNED}[sites.site-{number}]\n"));
        let name = format!("site-{number}.w.example");
        until("the edit is served", || {
            dig(port, &["+short", &name, "A"]) == "192.0.2.10\n"
        });
    };
    let changes = |zone: &str, from: u32| {
        let question = format!("IXFR={from}");
        dig(port, &["+nocomments", "+onesoa", zone, &question])
    };
    for number in 1..4 {
        edit(&nuage, number);
        let (last, all) = (serials(), ZONES.map(|zone| whole(port, zone, &[])));
        if number == 2 {
            nuage.kill();
        } else {
            nuage.signal("TERM");
            assert_eq!(nuage.ended(), 0);
        }
        nuage = nuage.into_folder().serve();
        assert_eq!(serials(), last);
        for ((zone, all), (first, last)) in
            ZONES.into_iter().zip(all).zip(first.into_iter().zip(last))
        {
            assert_eq!(whole(port, zone, &[]), all, "{zone}");
            let steps = steps(&changes(zone, first));
            assert_eq!(steps.len(), 2 + 2 * number as usize, "{zone}: {steps:?}");
            assert_eq!((steps[0], steps[1]), (last, first), "{zone}");
        }
    }
    let log = nuage.log();
    assert!(log.contains("signatures=0"), "{log}");
}

#[test]
fn secondaries_that_do_not_answer_are_told_again_and_then_left() {
    // Somebody who never answers.
    let deaf = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    deaf.set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let extra = format!(
        "[[secondaries]]\naddress = \"{}\"\nzones = [\"w.example\"]\n",
        deaf.local_addr().unwrap()
    );
    let (folder, port) = folder("[sites.alice]\n", &extra);
    let nuage = folder.serve();
    let hear = || {
        let mut buffer = [0; 512];
        let (length, from) = deaf.recv_from(&mut buffer).unwrap();
        let message = hickory_proto::op::Message::from_vec(&buffer[..length]).unwrap();
        let hickory_proto::rr::RData::SOA(soa) = &message.answers[0].data else {
            panic!("{message}");
        };
        (soa.serial, from, message)
    };
    let started = Instant::now();
    let (first, _, message) = hear();
    assert_eq!(message.metadata.op_code, hickory_proto::op::OpCode::Notify);
    assert!(message.metadata.authoritative);
    assert_eq!(Some(first), serial(port, "w.example"));
    assert_eq!(hear().0, first);
    assert_eq!(hear().0, first);
    assert!(started.elapsed() > Duration::from_millis(1_500));

    // Only the newest serial matters, and an acknowledgement from elsewhere is none.
    nuage.folder.zone("[sites.bob]\n");
    let (second, from, message) = hear();
    assert!(second > first);
    let mut answer = message.to_vec().unwrap();
    answer[2] |= 0x80;
    let stranger = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    stranger.send_to(&answer, from).unwrap();
    let (again, from, message) = hear();
    assert_eq!(again, second);
    let mut answer = message.to_vec().unwrap();
    answer[2] |= 0x80;
    deaf.send_to(&answer, from).unwrap();
    until("it is acknowledged", || {
        nuage.metrics().contains(",result=\"acknowledged\"} 1")
    });
}

#[test]
fn transfers_that_stand_still_end_and_hold_no_more_than_their_turn() {
    let open = "[[secondaries]]\naddress = \"127.0.0.1\"\nnotify = false\n[reverse]\nnames = \"canonical\"\n";
    let sites: String = (0..20_000)
        .map(|number| format!("[sites.site-{number:05}]\n"))
        .collect();
    let (folder, port) = folder(&sites, open);
    let nuage = folder.serve();
    let before = nuage.resident_kib();
    let question = crate::client::question("w.example.", hickory_proto::rr::RecordType::AXFR);
    let question = question.to_vec().unwrap();
    let length = u16::try_from(question.len()).unwrap().to_be_bytes();
    // More than the kernel takes for a client that reads nothing.
    let framed = [&length[..], &question].concat().repeat(20);
    let stalled: Vec<TcpStream> = (0..8)
        .map(|_| {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            stream.write_all(&framed).unwrap();
            stream
        })
        .collect();
    until("some are under way", || {
        transfers(&nuage, "w.example", "axfr", "sent") >= 8
    });
    let long = Duration::from_secs(60);
    until_within(long, "the others are refused for want of a turn", || {
        dig(port, &["+time=8", "w.example", "AXFR"]).contains("Transfer failed")
    });
    assert!(transfers(&nuage, "w.example", "axfr", "refused") >= 1);
    let grown = nuage.resident_kib().saturating_sub(before);
    assert!(grown < 32 << 10, "{grown} KiB for eight transfers");
    until_within(Duration::from_secs(40), "all of them end", || {
        transfers(&nuage, "w.example", "axfr", "failed") == 8
    });
    let whole = dig(port, &["w.example", "AXFR"]);
    assert!(whole.contains(";; XFR size: 40007 records"));
    drop(stalled);
}

#[test]
fn a_secondary_that_lacks_our_key_refuses_what_it_is_told() {
    let theirs = free_port();
    let stranger = KNOT
        .config(theirs)
        .replace("[keys.knot]", "[keys.stranger]")
        .replace(
            "key = \"knot\"",
            "key = \"stranger\"\nzones = [\"w.example\"]",
        );
    let (folder, ours) = folder("[sites.alice]\n", &stranger);
    let _server = KNOT.start(theirs, ours, &ZONES);
    let nuage = folder.serve();
    let result = |result: &str| {
        let line = format!(
            "nuage_dns_notify_total{{secondary=\"127.0.0.1:{theirs}\",result=\"{result}\"}} "
        );
        nuage.metrics().contains(&line)
    };
    // Anybody could say so: it is told again for as long as one that is silent.
    let told = Instant::now();
    until_within(Duration::from_secs(60), "it has refused", || {
        result("refused") || result("unanswered")
    });
    assert!(
        told.elapsed() > Duration::from_secs(25),
        "{:?}",
        told.elapsed()
    );
    assert!(
        result("refused") && !result("unanswered"),
        "{}",
        nuage.metrics()
    );
    let log = nuage.log();
    assert_eq!(log.matches("does it have our key?").count(), 1, "{log}");
}
