"""The judges, what each is asked, and when it is content."""

import collections
import json
import re
import subprocess

from world import NS1, NS2, NUAGE, ZONE, Failure, run


class Verdict:
    def __init__(self, judge, what, faults, note=""):
        """`faults`: what the judge objects to, a line each."""
        self.judge = judge
        self.holds = not faults
        self.text = f"{judge}, {what}" + (f": {note}" if note else "")
        if faults:
            self.text += f": {len(faults)} fault{'s' if len(faults) > 1 else ''}"

    def __str__(self):
        return f"{'PASS' if self.holds else 'FAIL'}  {self.text}"


def heading(text):
    print(f"\n== {text}", flush=True)


# Left out of Zonemaster's tests, with the reason.
WITHOUT = {
    "address01": "our addresses are those of documentation, which are not for use (RFC 5737, RFC 3849)",
    "connectivity03": "which network an address belongs to is asked of a service on the internet",
}


def zonemaster(world, everything):
    default = run("perl", "-MFile::ShareDir=dist_file", "-MFile::Slurp", "-e",
                  "print read_file(dist_file('Zonemaster-Engine', 'profile.json'))")
    cases = [case for case in json.loads(default)["test_cases"] if case not in WITHOUT]
    profile = world.write("profile.json", json.dumps({"test_cases": cases}))
    for case, reason in WITHOUT.items():
        print(f"zonemaster runs without {case}: {reason}")
    verdicts = []
    for zone in world.zones:
        heading(f"zonemaster-cli --level INFO {zone}")
        out = run("zonemaster-cli", "--hints", world.folder / "hints", "--profile", profile, "--level", "INFO",
                  "--no-time", "--show-testcase", "--no-progress", "--locale", "C.UTF-8", zone)
        lines = [line.rstrip() for line in out.splitlines() if re.match(r"[A-Z]+ ", line)]
        levels = collections.Counter()
        faults = []
        for line in lines:
            level = line.split()[0]
            levels[level] += 1
            if level in ("WARNING", "ERROR", "CRITICAL"):
                faults.append(line)
            if everything or level != "INFO":
                print(line)
        if not levels["INFO"]:
            faults.append(f"it judged nothing:\n{out}")
        note = ", ".join(f"{count} {level}" for level, count in levels.items() if level in ("INFO", "NOTICE", "WARNING", "ERROR", "CRITICAL"))
        verdicts.append(Verdict("zonemaster", zone, faults, note))
    return verdicts


# grok asks pygraphviz for its version where Debian's no longer tells it; nothing is drawn here.
GROK = ["/usr/bin/python3", "-c", """
import runpy, sys, types, pygraphviz
if not hasattr(pygraphviz, "release"):
    pygraphviz.release = types.SimpleNamespace(version=pygraphviz.__version__)
sys.argv[:1] = ["/usr/bin/dnsviz", "grok"]
runpy.run_path("/usr/bin/dnsviz", run_name="__main__")
"""]


def dnsviz(world, _everything):
    """From the root down. The root's own servers are given; those of all others are found by delegation."""
    hints = [f"{name}={address}" for name, address in root_servers(world)]
    verdicts = []
    for zone in world.zones:
        names = [zone]
        if zone == ZONE:
            names += [f"{label}.{zone}" for label in ("library", "books", "moodle", "nobody", "one.classes")]
        for name in names:
            heading(f"dnsviz probe -A -a . {name} | dnsviz grok -l warning")
            probe = subprocess.run(["dnsviz", "probe", "-d", "0", "-A", "-E", "-a", ".", "-x", ".:" + ",".join(hints), name],
                                   capture_output=True, text=True)
            if probe.returncode or probe.stderr.strip():
                raise Failure(f"dnsviz probe {name}: exit code {probe.returncode}\n{probe.stderr}")
            found = run(*GROK, "-l", "warning", "-t", world.folder / "anchor", input=probe.stdout)
            whole = json.loads(run(*GROK, "-l", "info", "-t", world.folder / "anchor", input=probe.stdout))
            faults = complaints(json.loads(found or "{}"))
            told = statuses(whole, name)
            if set(told) != {"SECURE"}:
                faults.append(f"not all is SECURE: {dict(told)}")
            print("\n".join(faults) or "(silent)")
            verdicts.append(Verdict("dnsviz", name, faults, f"{told['SECURE']} SECURE"))
    return verdicts


def root_servers(world):
    for line in (world.folder / "hints").read_text().splitlines():
        name, _, _, kind, data = line.split()
        if kind in ("A", "AAAA"):
            yield name.rstrip("."), data if kind == "A" else f"[{data}]"


def complaints(found, where=""):
    """Every warning and error in what grok says, with where it stands."""
    if isinstance(found, list):
        return [line for value in found for line in complaints(value, where)]
    if not isinstance(found, dict):
        return []
    lines = []
    for key, value in found.items():
        if key in ("warnings", "errors"):
            for item in value:
                text = item["description"] if isinstance(item, dict) else item
                servers = ", ".join(item.get("servers", [])) if isinstance(item, dict) else ""
                lines.append(f"{key[:-1]}: {where}: {text} {f'({servers})' if servers else ''}".rstrip())
        else:
            lines += complaints(value, f"{where} {key}".strip())
    return lines


def statuses(found, name):
    """What grok, trusting the root's key alone, says of a name's answers and denials, and how often."""
    here = found.get(name + ".", {})
    answers = [answer for query in here.get("queries", {}).values() for kind in ("answer", "nodata", "nxdomain") for answer in query.get(kind, [])]
    delegation = [here["delegation"]["status"]] if "delegation" in here else []
    return collections.Counter(delegation + [answer.get("status") for answer in answers])


# What is asked: a name, a type, and how it is told in the answer.
QUESTIONS = [
    ("a site", f"library.{ZONE}", "A"),
    ("its other address", f"library.{ZONE}", "AAAA"),
    ("an alias", f"books.{ZONE}", "A"),
    ("a CNAME", f"moodle.{ZONE}", "A"),
    ("the apex", ZONE, "SOA"),
    ("the keys", ZONE, "DNSKEY"),
    ("mail", ZONE, "MX"),
    ("a service", f"_sip._tcp.{ZONE}", "SRV"),
    ("HTTPS", f"library.{ZONE}", "HTTPS"),
    ("a wildcard", f"one.classes.{ZONE}", "A"),
    ("a wildcard's missing type", f"one.classes.{ZONE}", "TXT"),
    ("a site of today", f"chemistry.{ZONE}", "A"),
    ("no such name any more", f"gone.{ZONE}", "A"),
    ("no such name", f"nobody.{ZONE}", "A"),
    ("no such name below a site", f"a.b.library.{ZONE}", "A"),
    ("no such type", f"library.{ZONE}", "TXT"),
    ("an empty non-terminal", f"_tcp.{ZONE}", "A"),
    ("the parent's DS", ZONE, "DS"),
    ("no such DS", f"library.{ZONE}", "DS"),
]


def questions(world):
    """All questions with the zone each is about."""
    asked = [(what, name, kind, ZONE) for what, name, kind in QUESTIONS]
    for zone in world.zones:
        if zone != ZONE:
            asked += [("PTR", zone, "PTR", zone), ("no such type, reverse", zone, "TXT", zone), ("no such name, reverse", f"1.{zone}", "PTR", zone)]
    return asked


def anchors(file, name, keys):
    """A file of delv's, and of named's: keys trusted as they are."""
    lines = "".join(f'    "{name}" static-key {flags} {protocol} {algorithm} "{key}";\n' for flags, protocol, algorithm, key in keys)
    file.write_text(f"trust-anchors {{\n{lines}}};\n")
    return file


def key_signing_keys(lines):
    for line in lines:
        words = line.split()
        flags = words.index("257") if "257" in words else None
        if flags is not None:
            yield (*words[flags:flags + 3], "".join(words[flags + 3:]))


def delv_says(server, anchor, root, name, kind):
    ran = subprocess.run(["delv", f"@{server}", "-a", str(anchor), f"+root={root}", name, kind], capture_output=True, text=True)
    comments = [line[2:] for line in (ran.stdout + ran.stderr).splitlines() if line.startswith("; ")]
    failed = re.findall(r"^;; (?:resolution failed|.*broken|.*error).*", ran.stdout + ran.stderr, re.M)
    return comments, failed


def delv(world, everything):
    """By the zone's key at each of its servers, and by the root's through the resolver."""
    root = anchors(world.folder / "root.delv", ".", key_signing_keys((world.folder / "anchor").read_text().splitlines()))
    verdicts = []

    def ask(what, asked, server, anchor_of):
        heading(f"delv, {what}")
        faults = []
        for about, name, kind, zone in asked:
            comments, failed = delv_says(server, *anchor_of(zone), name, kind)
            # Negative answers are told as such, and then validated too.
            well = any(line.endswith("fully validated") for line in comments) and not any("unsigned" in line for line in comments)
            line = f"{'ok' if well else 'FAULT':6} {about}: {name} {kind}: {'; '.join(dict.fromkeys(comments + ([] if well else failed)))}"
            if not well:
                faults.append(line)
            if everything or not well:
                print(line)
        print(f"{len(asked) - len(faults)} of {len(asked)} fully validated")
        verdicts.append(Verdict("delv", what, faults, f"{len(asked) - len(faults)} of {len(asked)} fully validated"))

    own = {}
    for number, zone in enumerate(world.zones):
        keys = run("dig", f"@{NS1[1]}", "+noall", "+answer", "+norecurse", zone, "DNSKEY").splitlines()
        own[zone] = (anchors(world.folder / f"own-{number}.delv", zone, key_signing_keys(keys)), zone)
    # A server of the zone knows nothing of its parent's DS record.
    direct = [question for question in questions(world) if question[0] != "the parent's DS"]
    for name, v4, v6 in (NS1, NS2):
        for address in (v4, v6):
            ask(f"the zone's key, {name} {address}", direct, address, own.get)
    ask("the root's key, through the resolver", questions(world), world.resolver, lambda _zone: (root, "."))
    # What would it say of a zone by another's key?
    stranger = (anchors(world.folder / "stranger.delv", ZONE, key_signing_keys((world.folder / "anchor").read_text().splitlines())), ZONE)
    comments, failed = delv_says(NS1[1], *stranger, f"library.{ZONE}", "A")
    refused = not any("fully validated" in line for line in comments)
    verdicts.append(Verdict("delv", "refuses our zone by another's key", [] if refused else ["it took it"], failed[0].strip("; ") if failed else ""))
    return verdicts


def unbound(world, everything):
    heading("unbound, validating from the root")
    faults = []
    asked = questions(world)
    for about, name, kind, _ in asked:
        out = run("dig", f"@{world.resolver}", "+dnssec", "+time=10", "+tries=1", name, kind)
        status = re.search(r"status: (\w+)", out)
        flags = re.search(r";; flags: ([\w ]*);", out)
        well = bool(flags) and "ad" in flags[1].split() and status[1] == ("NXDOMAIN" if about.startswith("no such name") else "NOERROR")
        line = f"{'ok' if well else 'FAULT':6} {about}: {name} {kind}: {status and status[1]}, flags {flags and flags[1]}"
        if not well:
            faults.append(line)
        if everything or not well:
            print(line)
    print(f"{len(asked) - len(faults)} of {len(asked)} with AD")
    return [Verdict("unbound", "AD from the root", faults, f"{len(asked) - len(faults)} of {len(asked)} with AD")]


def doctor(world, everything):
    verdicts = []
    for name in [*world.zones, "library"]:
        heading(f"nuage doctor {name}")
        ran = subprocess.run([NUAGE, "doctor", name, "--resolver", world.resolver, "--config", world.folder / "nuage.toml"],
                             capture_output=True, text=True)
        lines = (ran.stdout + ran.stderr).splitlines()
        faults = [line for line in lines if line.startswith(("error", "warning"))]
        if ran.returncode and not faults:
            faults = lines
        if everything or faults:
            print("\n".join(lines))
        verdicts.append(Verdict("nuage doctor", name, faults))
    return verdicts


ALL = {"zonemaster": zonemaster, "dnsviz": dnsviz, "delv": delv, "unbound": unbound, "doctor": doctor}
