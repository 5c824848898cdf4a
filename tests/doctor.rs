//! `nuage doctor` in worlds of its own, right ones and wrong ones: BIND is the root and the parent,
//! unbound the resolver, nuage on port 53, in a network namespace where nobody else is.

use std::{
    fs,
    time::{Duration, Instant},
};

use common::dnssec::{Dnssec, Moment, Policy, Store};
use hickory_proto::rr::Name;

use crate::harness::{Folder, PATIENCE, Ran, run};

const REVERSE: [&str; 2] = [
    "10.0.0.127.in-addr.arpa",
    "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.ip6.arpa",
];
const GLUE: &str = "w.example. 60 IN NS ns1.w.example.\nns1.w.example. 60 IN A 127.0.0.10\nns1.w.example. 60 IN AAAA ::1\n";

/// A world: what differs from one in which all is right.
struct World<'w> {
    /// `nameservers` of our zone.
    nameservers: &'w str,
    /// What the parent, `example`, holds of our zone.
    parent: &'w str,
    /// Whether our reverse zones are delegated.
    reverse: bool,
    /// w.example at 127.0.0.4, by another server of this serial.
    secondary: Option<u32>,
    /// Whether the parent is signed, and the resolver validates.
    signed: bool,
    /// Whether our zone was signed once, and its keys are still there.
    keys: bool,
    /// More of the root zone, and of nuage.toml.
    more: [&'w str; 2],
}

const RIGHT: World<'_> = World {
    nameservers: "\"ns1.w.example\"",
    parent: GLUE,
    reverse: true,
    secondary: None,
    signed: false,
    keys: false,
    more: ["", ""],
};

/// Starts everybody, waits for each (dig tells of refused connections where answers go), and runs
/// `nuage doctor` as often as it is asked to.
const SCRIPT: &str = "set -eu
ip link set lo up
for host in 2 3 4 10; do ip address add 127.0.0.$host/8 dev lo; done
# Whoever writes there never hears anything.
ip route add 192.0.2.0/24 dev lo
if test -e @DIR@/signed; then
  dnssec-keygen -q -a ECDSAP256SHA256 -f KSK -K @DIR@ example > @DIR@/key
  dnssec-signzone -q -S -z -K @DIR@ -d @DIR@ -o example @DIR@/example > @DIR@/sign.log 2>&1
  mv @DIR@/example.signed @DIR@/example
  cp @DIR@/$(cat @DIR@/key).key @DIR@/anchor
fi
named -f -c @DIR@/named.conf 2> @DIR@/named.log & all=$!
unbound -d -c @DIR@/unbound.conf 2> @DIR@/unbound.log & all=\"$all $!\"
@NUAGE@ serve --config @DIR@/nuage.toml > @DIR@/serve.log 2>&1 & all=\"$all $!\"
if test -e @DIR@/secondary.conf; then named -f -c @DIR@/secondary.conf 2> @DIR@/secondary.log & all=\"$all $!\"; fi
trap 'kill $all; wait' EXIT
answers() {
  for try in $(seq 200); do
    dig \"@$1\" +time=1 +tries=1 +short \"$2\" \"$3\" | grep -qxF \"$4\" && return
    sleep 0.1
  done
  echo \"$1 never answered $2 $3\" >&2
}
answers 127.0.0.2 example SOA 'a. b. 1 60 60 60 60'
answers 127.0.0.3 . NS a.
answers 127.0.0.10 alice.w.example A 127.0.0.10
if test -e @DIR@/secondary.conf; then answers 127.0.0.4 alice.w.example A 127.0.0.10; fi
number=0
while read -r arguments; do
  code=0
  @NUAGE@ doctor --config @DIR@/nuage.toml $arguments > @DIR@/out.$number 2> @DIR@/err.$number || code=$?
  echo $code > @DIR@/code.$number
  number=$((number + 1))
done < @DIR@/doctor
";

impl World<'_> {
    /// Runs `nuage doctor` there with each of these arguments.
    fn ask(&self, commands: &[&str]) -> Vec<Ran> {
        let folder = Folder::new("");
        folder.write("nuage.toml", &"[address]\nipv4 = \"127.0.0.10\"\nipv6 = \"::1\"\n[paths]\nstate = \"state\"\n[dns]\nlisten = [\"127.0.0.10:53\", \"[::1]:53\"]\n[http]\nlisten = []\n[https]\nlisten = []\n[admin]\nlisten = []\n[containers]\nenabled = false\n@MORE@".replace("@MORE@", self.more[1]));
        folder.write(
            "zones/w.example.toml",
            &format!(
                "origin = \"w.example\"\nnameservers = [{}]\n[sites.alice]\naliases = [\"al\"]\ndomains = [\"www.alice.example\", \"gone.alice.example\"]\n",
                self.nameservers
            ),
        );
        let head = "60 IN SOA a. b. 1 60 60 60 60\n";
        let mut root =
            format!(". {head}. 60 IN NS a.\na. 60 IN A 127.0.0.2\nexample. 60 IN NS a.\n");
        if self.reverse {
            for zone in REVERSE {
                root.push_str(&format!("{zone}. 60 IN NS ns1.w.example.\n"));
            }
        }
        root.push_str(self.more[0]);
        folder.write("root", &root);
        folder.write(
            "example",
            &format!(
                "example. {head}example. 60 IN NS a.\nns.other.example. 60 IN A 127.0.0.4\nwww.alice.example. 60 IN CNAME alice.w.example.\n{}",
                self.parent
            ),
        );
        let dir = folder.path().display().to_string();
        let named = |address: &str, zones: &str| {
            format!(
                "options {{ directory \"{dir}\"; pid-file none; session-keyfile none; listen-on {{ {address}; }}; listen-on-v6 {{ none; }}; recursion no; dnssec-validation no; check-integrity no; }};\ncontrols {{ }};\n{zones}"
            )
        };
        folder.write("named.conf", &named("127.0.0.2", "zone \".\" { type primary; file \"root\"; };\nzone \"example\" { type primary; file \"example\"; };\n"));
        if let Some(serial) = self.secondary {
            folder.write(
                "secondary.conf",
                &named(
                    "127.0.0.4",
                    "zone \"w.example\" { type primary; file \"w.example\"; };\n",
                ),
            );
            folder.write("w.example", &format!("w.example. 60 IN SOA a. b. {serial} 60 60 60 60\n{GLUE}w.example. 60 IN NS ns.other.example.\nalice.w.example. 60 IN A 127.0.0.10\nalice.w.example. 60 IN AAAA ::1\n"));
        }
        if self.keys {
            let store = Store::open(&folder.path().join("state/edge"));
            let origin = Name::from_ascii("w.example.").unwrap();
            let policy = Policy::new(&Dnssec::default(), 300, 300);
            // Old enough for the parent to be given their DS.
            let mut moment = Moment::now();
            moment.wall -= Duration::from_secs(3 * 3_600);
            store.keys(&origin, &policy, moment).unwrap();
        }
        let validator = if self.signed {
            folder.write("signed", "");
            format!(
                "  module-config: \"validator iterator\"\n  trust-anchor-file: \"{dir}/anchor\"\n"
            )
        } else {
            "  module-config: \"iterator\"\n".to_owned()
        };
        folder.write("hints", ". 60 IN NS a.\na. 60 IN A 127.0.0.2\n");
        folder.write("unbound.conf", &format!("server:\n  interface: 127.0.0.3\n  access-control: 127.0.0.0/8 allow\n  chroot: \"\"\n  username: \"\"\n  directory: \"{dir}\"\n  pidfile: \"\"\n  use-syslog: no\n  do-not-query-localhost: no\n  root-hints: \"hints\"\n{validator}  local-zone: \"127.in-addr.arpa.\" nodefault\n  local-zone: \"{}.\" nodefault\nremote-control:\n  control-enable: no\n", REVERSE[1]));
        let lines: String = commands
            .iter()
            .map(|command| {
                if command.contains("--resolver") {
                    format!("{command}\n")
                } else {
                    format!("{command} --resolver 127.0.0.3\n")
                }
            })
            .collect();
        folder.write("doctor", &lines);
        let script = SCRIPT
            .replace("@DIR@", &dir)
            .replace("@NUAGE@", env!("CARGO_BIN_EXE_nuage"));
        let script = folder.write("world.sh", &script);
        let ran = run(
            "unshare",
            &["--map-root-user", "--net", "sh", script.to_str().unwrap()],
        );
        let read = |name: String| {
            fs::read_to_string(folder.path().join(&name))
                .unwrap_or_else(|error| panic!("{name}: {error}: {ran:?}"))
        };
        assert_eq!(ran.err, "");
        (0..commands.len())
            .map(|number| Ran {
                code: read(format!("code.{number}")).trim().parse().unwrap(),
                out: read(format!("out.{number}")),
                err: read(format!("err.{number}")),
            })
            .collect()
    }

    /// The findings about w.example, with the exit code.
    fn findings(&self, command: &str) -> (i32, Vec<Finding>) {
        let ran = self.ask(&[&format!("{command} --format json")]).remove(0);
        let found = findings(&ran);
        (ran.code, found)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    severity: String,
    subject: String,
    found: String,
    cure: String,
}

fn findings(ran: &Ran) -> Vec<Finding> {
    let value = ran.json();
    let text = |finding: &serde_json::Value, key: &str| {
        finding[key].as_str().unwrap_or_default().to_owned()
    };
    let all = value["findings"].as_array().unwrap();
    all.iter()
        .map(|finding| Finding {
            severity: text(finding, "severity"),
            subject: text(finding, "subject"),
            found: text(finding, "found"),
            cure: text(finding, "cure"),
        })
        .collect()
}

/// The one finding of a subject that is not ok.
fn bad<'f>(findings: &'f [Finding], severity: &str, subject: &str) -> &'f Finding {
    let mut bad = findings
        .iter()
        .filter(|finding| finding.severity == severity && finding.subject == subject);
    match (bad.next(), bad.next()) {
        (Some(finding), None) => finding,
        _ => panic!("not one {severity} about {subject}: {findings:#?}"),
    }
}

#[test]
fn nothing_is_wrong_in_a_world_where_all_is_right() {
    let ran = RIGHT.ask(&[
        "al",
        "w.example. --format json",
        "www.alice.example",
        "gone.alice.example --format json",
        REVERSE[0],
        "::1",
        "nobody",
    ]);
    let serial = &findings(&ran[1])
        .into_iter()
        .find(|finding| finding.subject == "name server")
        .map(|finding| finding.found)
        .unwrap();
    let (_, serial) = serial.rsplit_once(' ').unwrap();
    let servers = format!(
        "ok       name server  ns1.w.example (127.0.0.10) answers with authority over UDP and TCP, serial {serial}\n\
         ok       name server  ns1.w.example (::1) answers with authority over UDP and TCP, serial {serial}\n"
    );
    let parent = "ok       parent       example delegates to ns1.w.example\n\
        ok       glue         ns1.w.example is at 127.0.0.10, ::1\n\
        ok       DS           none at the parent, as it should be: the zone is not signed\n";
    assert_eq!(
        (ran[0].code, &*ran[0].out),
        (
            0,
            &*format!(
                "al.w.example, as the resolver 127.0.0.3 sees it\n\n{parent}{servers}\
                 ok       name         al.w.example is at 127.0.0.10\n\
                 ok       name         al.w.example is at ::1\n\
                 ok       reverse      127.0.0.10 leads back to al.w.example\n\
                 ok       reverse      ::1 leads back to al.w.example\n\nnothing is wrong\n"
            )
        )
    );
    let value = ran[1].json();
    assert_eq!(value["zone"], "w.example");
    assert_eq!(value["name"], serde_json::Value::Null);
    assert_eq!(ran[1].code, 0);
    let foreign = &ran[2];
    assert_eq!(foreign.code, 0, "{foreign:?}");
    assert!(
        foreign
            .out
            .contains("www.alice.example is at 127.0.0.10 by way of alice.w.example"),
        "{foreign:?}"
    );
    // A domain whose owner has not pointed it here.
    assert_eq!(ran[3].code, 1);
    let gone = findings(&ran[3]);
    let a = gone.iter().find(|f| f.subject == "name").unwrap();
    assert!(
        a.cure
            .ends_with("\ngone.alice.example.\tIN\tCNAME\talice.w.example."),
        "{a:?}"
    );
    for reverse in &ran[4..6] {
        assert_eq!(reverse.code, 0, "{reverse:?}");
        assert!(
            reverse
                .out
                .contains("ok       parent       . delegates to ns1.w.example"),
            "{reverse:?}"
        );
        assert!(
            reverse.out.contains("this server's own name"),
            "{reverse:?}"
        );
    }
    assert_eq!(ran[6].code, 1);
    assert!(
        ran[6].err.contains(
            "nobody is no zone, site, alias or domain of ours; there are the zones w.example, "
        ) && ran[6].err.contains("the sites alice.w.example"),
        "{:?}",
        ran[6]
    );
}

#[test]
fn a_parent_that_names_other_servers_is_told_the_right_ones() {
    let world = World {
        parent: "w.example. 60 IN NS ns9.w.example.\nns9.w.example. 60 IN A 127.0.0.10\n",
        ..RIGHT
    };
    let (code, findings) = world.findings("w.example");
    assert_eq!(code, 1);
    let parent = bad(&findings, "error", "parent");
    assert!(
        parent.found.contains("to ns9.w.example") && parent.found.contains("not to ns1.w.example"),
        "{parent:?}"
    );
    // The cure is what `zone show` says the parent must hold.
    for line in [
        "\nw.example.\t300\tIN\tNS\tns1.w.example.",
        "\nns1.w.example.\t300\tIN\tA\t127.0.0.10",
        "\nns1.w.example.\t300\tIN\tAAAA\t::1",
    ] {
        assert!(parent.cure.contains(line), "{parent:?}");
    }
    let server = bad(&findings, "error", "name server");
    assert!(
        server.found.starts_with("ns9.w.example has no address"),
        "{server:?}"
    );
}

#[test]
fn a_zone_nobody_delegates_is_told_so() {
    let world = World {
        parent: "",
        ..RIGHT
    };
    let (code, findings) = world.findings("alice");
    assert_eq!(code, 1);
    let parent = bad(&findings, "error", "parent");
    assert!(
        parent.found.contains("does not delegate w.example"),
        "{parent:?}"
    );
}

#[test]
fn glue_is_there_and_right() {
    let missing = World {
        parent: "w.example. 60 IN NS ns1.w.example.\n",
        ..RIGHT
    };
    let (code, findings) = missing.findings("alice");
    assert_eq!(code, 1);
    let glue = bad(&findings, "error", "glue");
    assert!(
        glue.found.contains("no address of ns1.w.example"),
        "{glue:?}"
    );
    assert!(
        glue.cure
            .contains("\nns1.w.example.\t300\tIN\tA\t127.0.0.10"),
        "{glue:?}"
    );

    let wrong = World {
        parent: "w.example. 60 IN NS ns1.w.example.\nns1.w.example. 60 IN A 127.0.0.99\n",
        ..RIGHT
    };
    let (code, findings) = wrong.findings("w.example");
    assert_eq!(code, 1);
    let glue = bad(&findings, "error", "glue");
    assert!(
        glue.found.contains("127.0.0.99") && glue.found.contains("127.0.0.10, ::1"),
        "{glue:?}"
    );
}

const TWO: World<'_> = World {
    nameservers: "\"ns1.w.example\", \"ns.other.example\"",
    parent: "w.example. 60 IN NS ns.other.example.\nw.example. 60 IN NS ns1.w.example.\nns1.w.example. 60 IN A 127.0.0.10\nns1.w.example. 60 IN AAAA ::1\n",
    ..RIGHT
};

#[test]
fn a_secondary_that_is_not_there_is_told() {
    let (code, findings) = TWO.findings("w.example");
    assert_eq!(code, 1);
    let server = bad(&findings, "error", "name server");
    assert_eq!(
        server.found,
        "ns.other.example (127.0.0.4) doesn't listen (connection refused)"
    );
    assert!(
        server.cure.contains("take ns.other.example out of"),
        "{server:?}"
    );
}

#[test]
fn silence_is_told_and_waited_for_only_so_long() {
    let world = World {
        nameservers: "\"ns1.w.example\", \"ns.far.example\"",
        parent: &format!(
            "{GLUE}w.example. 60 IN NS ns.far.example.\nns.far.example. 60 IN A 192.0.2.4\n"
        ),
        ..RIGHT
    };
    let started = Instant::now();
    let (code, findings) = world.findings("w.example --resolver 192.0.2.53");
    assert_eq!(code, 1);
    let resolver = bad(&findings, "error", "resolver");
    assert_eq!(
        resolver.found,
        "192.0.2.53 doesn't answer (2 tries of 2 seconds)"
    );
    let (code, findings) = world.findings("w.example");
    assert_eq!(code, 1);
    let server = bad(&findings, "error", "name server");
    assert_eq!(
        server.found,
        "ns.far.example (192.0.2.4) doesn't answer (2 tries of 2 seconds)"
    );
    assert!(started.elapsed() < PATIENCE);
}

#[test]
fn a_secondary_that_is_behind_is_told() {
    let world = World {
        secondary: Some(7),
        ..TWO
    };
    let (code, findings) = world.findings("w.example");
    assert_eq!(code, 0, "{findings:#?}");
    let server = bad(&findings, "warning", "name server");
    assert!(
        server
            .found
            .starts_with("ns.other.example (127.0.0.4) is behind: it has serial 7,"),
        "{server:?}"
    );
}

#[test]
fn a_reverse_zone_nobody_delegates_is_told() {
    let world = World {
        reverse: false,
        ..RIGHT
    };
    let ran = world.ask(&[
        "alice --format json",
        &format!("{} --format json", REVERSE[0]),
    ]);
    // To the site it is a blemish, and says where to look on.
    assert_eq!(ran[0].code, 0, "{ran:?}");
    let found = findings(&ran[0]);
    let reverse = found
        .iter()
        .find(|finding| finding.subject == "reverse")
        .unwrap();
    assert_eq!(reverse.severity, "warning");
    assert_eq!(
        reverse.cure,
        format!("`nuage doctor {}` says why", REVERSE[0])
    );
    assert_eq!(ran[1].code, 1);
    let found = findings(&ran[1]);
    let parent = bad(&found, "error", "parent");
    let line = format!("\n{}.\t300\tIN\tNS\tns1.w.example.", REVERSE[0]);
    assert!(parent.cure.contains(&line), "{parent:?}");
    bad(&found, "error", "reverse");
}

#[test]
fn a_classless_reverse_zone_needs_a_delegation_and_an_alias() {
    const ZONE: &str = "0/25.0.0.127.in-addr.arpa";
    let config = format!("[reverse]\nipv4_origin = \"{ZONE}\"\n");
    let delegated = format!("{ZONE}. 60 IN NS ns1.w.example.\n");
    let aliased = format!("{delegated}10.0.0.127.in-addr.arpa. 60 IN CNAME 10.{ZONE}.\n");
    let v6 = format!("{}. 60 IN NS ns1.w.example.\n", REVERSE[1]);
    let world = |root: &str| {
        let root = format!("{root}{v6}");
        let world = World {
            reverse: false,
            more: [&root, &config],
            ..RIGHT
        };
        world.findings(ZONE)
    };
    let (code, findings) = world(&aliased);
    assert_eq!(code, 0, "{findings:#?}");
    let (code, findings) = world(&delegated);
    assert_eq!(code, 1);
    let reverse = bad(&findings, "error", "reverse");
    assert!(
        reverse
            .cure
            .contains("\n10.0.0.127.in-addr.arpa.\tIN\tCNAME\t10.0"),
        "{reverse:?}"
    );
}

#[test]
fn a_ds_for_a_zone_without_signatures_is_told() {
    let ds = format!("12345 13 2 {}", "AB".repeat(32));
    let world = World {
        parent: &format!("{GLUE}w.example. 60 IN DS {ds}\n"),
        signed: true,
        ..RIGHT
    };
    let (code, findings) = world.findings("alice");
    assert_eq!(code, 1);
    let found = bad(&findings, "error", "DS");
    assert!(
        found.found.contains("key 12345")
            && found.found.contains("bogus for every validating resolver"),
        "{found:?}"
    );
    assert!(
        found.cure.ends_with(&format!("\nw.example.\tIN\tDS\t{ds}")),
        "{found:?}"
    );
    // What a visitor of this resolver sees, and that nothing else is the reason.
    let mut names = findings.iter().filter(|f| f.subject == "name");
    assert!(
        names.all(|f| f.severity == "error" && f.found.contains("its signatures are not valid")),
        "{findings:#?}"
    );
    let server = findings.iter().find(|f| f.subject == "name server");
    assert_eq!(server.unwrap().severity, "ok");

    // Without it all is well, also where signing has ended and the keys are still there.
    let (code, findings) = World {
        signed: true,
        keys: true,
        ..RIGHT
    }
    .findings("alice");
    assert_eq!(code, 0, "{findings:#?}");
    let ds = findings.iter().find(|f| f.subject == "DS").unwrap();
    assert!(
        ds.severity == "ok" && ds.found.contains("the zone is not signed"),
        "{ds:?}"
    );
}

#[test]
fn a_resolver_that_is_not_there_hides_nothing_of_our_own_servers() {
    let (code, findings) = RIGHT.findings("alice --resolver 127.0.0.66");
    assert_eq!(code, 1);
    let resolver = bad(&findings, "error", "resolver");
    assert_eq!(
        resolver.found,
        "127.0.0.66 doesn't listen (connection refused)"
    );
    let rest: Vec<&str> = findings[1..].iter().map(|f| &*f.subject).collect();
    assert_eq!(rest, ["name server", "name server"], "{findings:#?}");
    assert!(findings[1..].iter().all(|f| f.severity == "ok"));
}
