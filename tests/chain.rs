//! A signed zone in a world of its own, trusted from the root down: BIND is the signed root and the
//! signed parent, which hold what `nuage zone show` and `nuage zone ds` say they must.

use std::{fs, time::Duration};

use common::dnssec::{Dnssec, Moment, Policy, Role, Store};
use hickory_proto::rr::Name;

use crate::harness::{Folder, run};

const ZONE: &str = "sites.school.example";
const REVERSE: [&str; 2] = [
    "10.0.0.127.in-addr.arpa",
    "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.ip6.arpa",
];

/// Signs the parents from below, starts everybody, waits for each, and asks the resolver twice: `dig`
/// for what it found, `delv` for what another makes of it by the root's key alone.
const SCRIPT: &str = "set -eu
cd @DIR@
ip link set lo up
for host in 2 3 10; do ip address add 127.0.0.$host/8 dev lo; done
for zone in school.example .; do
  file=$(test $zone = . && echo root || echo $zone)
  key=$(dnssec-keygen -q -a ECDSAP256SHA256 -f KSK $zone)
  test $zone = . || dnssec-dsfromkey -2 $key >> root
  dnssec-signzone -q -S -z -o $zone $file > sign.log 2>&1
  mv $file.signed $file
done
cp $key.key anchor
awk '$1 == \".\" { for (i = 7; i <= NF; i++) key = key $i
  printf \"trust-anchors { . static-key %s %s %s \\\"%s\\\"; };\\n\", $4, $5, $6, key }' anchor > anchor.delv
named -f -c named.conf 2> named.log & all=$!
unbound -d -c unbound.conf 2> unbound.log & all=\"$all $!\"
@NUAGE@ serve --config nuage.toml > serve.log 2>&1 & all=\"$all $!\"
trap 'kill $all; wait' EXIT
answers() {
  for try in $(seq 200); do
    dig \"@$1\" +time=1 +tries=1 \"$2\" SOA | grep -q 'ANSWER: 1' && return
    sleep 0.1
  done
  echo \"$1 never answered $2 SOA\" >&2
}
answers 127.0.0.2 school.example
answers 127.0.0.10 sites.school.example
answers 127.0.0.3 .
while read -r name kind; do
  dig @127.0.0.3 +noall +comments +time=10 +tries=1 $name $kind | sed -nE 's/.*status: ([A-Z]+).*/\\1/p; s/.*flags: ([^;]*);.*/\\1/p' | tr '\\n' ' '
  delv @127.0.0.3 -a anchor.delv +root=. $name $kind 2>&1 | grep -oE 'fully validated|unsigned|failed: failure' | sort -u | tr '\\n' ' '
  echo
done < questions > answers
while read -r arguments; do
  @NUAGE@ doctor --config nuage.toml --resolver 127.0.0.3 $arguments 2>&1 || echo \"exit code $?\"
done < doctor > findings
";

/// What the parents hold of our zones.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Held {
    /// What they must.
    Right,
    /// The DS of some other key.
    Strange,
    /// The DS of a KSK that is being replaced: the zone asks for that of the next one already.
    Before,
}

/// What the resolver says of each question, and what `nuage doctor` says of each of `doctor`.
fn ask(held: Held, questions: &[String], doctor: &[&str]) -> (Vec<String>, String) {
    let folder = Folder::new("");
    folder.write("nuage.toml", "[address]\nipv4 = \"127.0.0.10\"\nipv6 = \"::1\"\n[paths]\nstate = \"state\"\n[dns]\nlisten = [\"127.0.0.10:53\", \"[::1]:53\"]\n[http]\nlisten = []\n[https]\nlisten = []\n[admin]\nlisten = []\n[containers]\nenabled = false\n[reverse]\ndnssec = true\n");
    folder.write(&format!("zones/{ZONE}.toml"), &format!("origin = \"{ZONE}\"\nnameservers = [\"ns1.{ZONE}\"]\n[dnssec]\nenabled = true\n[sites.alice]\naliases = [\"al\"]\n[[records]]\nname = \"*.classes\"\ntype = \"TXT\"\ndata = '\"a class\"'\n"));
    // Each time another process, so that no clock seems to be set.
    let store = || Store::open(&folder.path().join("state/edge"));
    let hours_ago = |hours: u64| {
        let mut moment = Moment::now();
        moment.wall -= Duration::from_secs(hours * 3_600);
        moment
    };
    let head = "86400 IN SOA a. b. 1 60 60 60 60\n";
    let mut root =
        format!(". {head}. 60 IN NS a.\na. 60 IN A 127.0.0.2\nschool.example. 60 IN NS a.\n");
    let mut school = format!("school.example. {head}school.example. 60 IN NS a.\n");
    for zone in [ZONE, REVERSE[0], REVERSE[1]] {
        let origin = Name::from_ascii(format!("{zone}.")).unwrap();
        let policy = Policy::new(&Dnssec::default(), 300, 300);
        // Keys of some time ago: now is when parents may take the DS records.
        store().keys(&origin, &policy, hours_ago(13)).unwrap();
        let parent = if zone == ZONE { &mut school } else { &mut root };
        for (command, key) in [("show", "delegation"), ("ds", "ds")] {
            let shown = folder.run(&["zone", command, zone, "--format", "json"]);
            for line in shown.json()[key].as_array().unwrap() {
                let line = line.as_str().unwrap();
                if command == "ds" && held == Held::Strange {
                    // The DS record of some other key.
                    let (data, digest) = line.split_at(line.len() - 64);
                    assert_ne!(digest, "AB".repeat(32));
                    parent.push_str(&format!("{data}{}\n", "AB".repeat(32)));
                } else {
                    parent.push_str(&format!("{line}\n"));
                }
            }
        }
        if held == Held::Before {
            store().keys(&origin, &policy, hours_ago(10)).unwrap();
            let at = |hours| hours_ago(hours).wall;
            store().confirm_ds(&origin, &policy, at(9)).unwrap();
            store().roll(&origin, Role::Ksk, &policy, at(8)).unwrap();
        }
    }
    folder.write("root", &root);
    folder.write("school.example", &school);
    folder.write("questions", &(questions.join("\n") + "\n"));
    folder.write("doctor", &(doctor.join("\n") + "\n"));
    let dir = folder.path().display().to_string();
    folder.write("named.conf", &format!("options {{ directory \"{dir}\"; pid-file none; session-keyfile none; listen-on {{ 127.0.0.2; }}; listen-on-v6 {{ none; }}; recursion no; dnssec-validation no; check-integrity no; }};\ncontrols {{ }};\nzone \".\" {{ type primary; file \"root\"; }};\nzone \"school.example\" {{ type primary; file \"school.example\"; }};\n"));
    folder.write("hints", ". 60 IN NS a.\na. 60 IN A 127.0.0.2\n");
    folder.write("unbound.conf", &format!("server:\n  interface: 127.0.0.3\n  access-control: 127.0.0.0/8 allow\n  chroot: \"\"\n  username: \"\"\n  directory: \"{dir}\"\n  pidfile: \"\"\n  use-syslog: no\n  do-not-query-localhost: no\n  root-hints: \"hints\"\n  module-config: \"validator iterator\"\n  trust-anchor-file: \"{dir}/anchor\"\n  local-zone: \"127.in-addr.arpa.\" nodefault\n  local-zone: \"{}.\" nodefault\nremote-control:\n  control-enable: no\n", REVERSE[1]));
    let script = SCRIPT
        .replace("@DIR@", &dir)
        .replace("@NUAGE@", env!("CARGO_BIN_EXE_nuage"));
    let script = folder.write("world.sh", &script);
    let ran = run(
        "unshare",
        &["--map-root-user", "--net", "sh", script.to_str().unwrap()],
    );
    assert_eq!(ran.err, "");
    let read = |name: &str| {
        fs::read_to_string(folder.path().join(name))
            .unwrap_or_else(|error| panic!("{name}: {error}: {ran:?}"))
    };
    let answers = read("answers");
    let answers = answers.lines().map(|line| line.trim().to_owned());
    (answers.collect(), read("findings"))
}

#[test]
fn answers_and_denials_are_proved_from_the_root_down() {
    let questions = [
        (format!("alice.{ZONE} A"), "NOERROR"),
        (format!("al.{ZONE} AAAA"), "NOERROR"),
        (format!("{ZONE} DNSKEY"), "NOERROR"),
        (format!("{ZONE} CDS"), "NOERROR"),
        (format!("{ZONE} DS"), "NOERROR"),
        (format!("one.classes.{ZONE} TXT"), "NOERROR"),
        (format!("one.classes.{ZONE} A"), "NOERROR"),
        (format!("alice.{ZONE} TXT"), "NOERROR"),
        (format!("classes.{ZONE} A"), "NOERROR"),
        (format!("nobody.{ZONE} A"), "NXDOMAIN"),
        (format!("a.b.alice.{ZONE} A"), "NXDOMAIN"),
        (format!("{} PTR", REVERSE[0]), "NOERROR"),
        (format!("{} TXT", REVERSE[0]), "NOERROR"),
        (format!("1.{} PTR", REVERSE[0]), "NXDOMAIN"),
        (format!("{} PTR", REVERSE[1]), "NOERROR"),
    ];
    let names: Vec<String> = questions.iter().map(|(name, _)| name.clone()).collect();
    let (answers, findings) = ask(
        Held::Right,
        &names,
        &["alice", ZONE, REVERSE[0], REVERSE[1]],
    );
    let want: Vec<String> = questions
        .iter()
        .map(|(_, status)| format!("{status} qr rd ra ad fully validated"))
        .collect();
    assert_eq!(answers, want, "{names:#?}");
    assert_eq!(
        findings.matches("\nnothing is wrong\n").count(),
        4,
        "{findings}"
    );
    assert!(
        findings.contains("ok       DS           school.example holds the DS of our key "),
        "{findings}"
    );
}

#[test]
fn a_parent_with_the_ds_of_another_key_is_told() {
    let (answers, findings) = ask(Held::Strange, &[format!("alice.{ZONE} A")], &["alice"]);
    assert_eq!(answers, ["SERVFAIL qr rd ra failed: failure"]);
    assert!(
        findings.contains("error    DS           school.example holds DS records")
            && findings.contains("none of them the digest of a key the zone has")
            && findings.ends_with("exit code 1\n"),
        "{findings}"
    );
}

#[test]
fn while_a_key_is_replaced_the_ds_of_the_old_one_still_proves_the_zone() {
    let (answers, findings) = ask(Held::Before, &[format!("alice.{ZONE} A")], &["alice"]);
    assert_eq!(answers, ["NOERROR qr rd ra ad fully validated"]);
    assert!(
        findings.contains("warning  DS           school.example holds the DS of our key ")
            && findings.contains(", and should hold that of our key ")
            && findings.ends_with("\nno error, 1 warning\n"),
        "{findings}"
    );
}
