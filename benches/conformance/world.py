"""A small internet in this network namespace: who is where, and which zones they serve.

Its addresses are those of documentation (RFC 5737, RFC 3849), all on the loopback device.
"""

import ipaddress
import json
import os
import pathlib
import re
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
NUAGE = pathlib.Path(os.environ.get("NUAGE", TARGET / "release/nuage")).resolve()
os.environ["PATH"] += ":/usr/sbin:/sbin"

PATIENCE = 30
# A zone's DS record is for others once resolvers have forgotten that it was unsigned: a zone that is this
# old has its CDS records too.
AGE_SECONDS = 3 * 3600

ZONE = "sites.school.example"
NS1 = ("ns1.sites.school.example.", "192.0.2.10", "2001:db8::10")
NS2 = ("ns2.school.example.", "198.51.100.53", "2001:db8:100::53")
RESOLVER = "203.0.113.99"
# The servers above us: two addresses of each family for each.
ABOVE = {
    "root": [("a.root.example.", "203.0.113.1", "2001:db8:f::1"), ("b.root.example.", "203.0.113.2", "2001:db8:f::2")],
    "tld": [("a.nic.example.", "203.0.113.11", "2001:db8:f::11"), ("b.nic.example.", "203.0.113.12", "2001:db8:f::12")],
    "arpa": [("a.arpa.example.", "203.0.113.21", "2001:db8:f::21"), ("b.arpa.example.", "203.0.113.22", "2001:db8:f::22")],
    "school": [("a.ns.school.example.", "203.0.113.31", "2001:db8:f::31"), ("b.ns.school.example.", "203.0.113.32", "2001:db8:f::32")],
}
# Who serves which zone. A parent and its child are never on one server.
SERVED = {
    ".": "root",
    "example.": "tld",
    "arpa.": "tld",
    "in-addr.arpa.": "arpa",
    "ip6.arpa.": "arpa",
    "school.example.": "school",
    "2.0.192.in-addr.arpa.": "school",
    "100.51.198.in-addr.arpa.": "school",
    "8.b.d.0.1.0.0.2.ip6.arpa.": "school",
}

NUAGE_TOML = f"""[address]
ipv4 = "{NS1[1]}"
ipv6 = "{NS1[2]}"
[paths]
state = "state"
[dns]
listen = ["{NS1[1]}:53", "[{NS1[2]}]:53"]
[http]
listen = ["{NS1[1]}:80", "[{NS1[2]}]:80"]
[https]
listen = ["{NS1[1]}:443", "[{NS1[2]}]:443"]
[admin]
listen = []
[reverse]
dnssec = true
[containers]
enabled = false
[[secondaries]]
address = "{NS2[1]}"
key = "campus"
[keys.campus]
algorithm = "hmac-sha256"
secret_file = "campus.key"
"""

# A zone as a school would have it.
ZONE_TOML = f"""origin = "{ZONE}"
nameservers = ["{NS1[0].rstrip('.')}", "{NS2[0].rstrip('.')}"]
hostmaster = "hostmaster@school.example"

[dnssec]
enabled = true

[sites.www]
redirect = "https://www.school.example/"
[sites.library]
static = "pages"
aliases = ["books", "catalogue"]
owner = "library"
[sites.robotics]
upstream = "http://127.0.0.1:9001"
domains = ["robotics.example"]
https = "redirect"
[sites.gone]
redirect = "https://www.school.example/"
[sites.xn--lve-6la]
redirect = "https://www.school.example/eleves/"

[[records]]
name = "@"
type = "A"
data = "{NS1[1]}"
[[records]]
name = "@"
type = "AAAA"
data = "{NS1[2]}"
[[records]]
name = "@"
type = "MX"
data = "10 mx.school.example."
[[records]]
name = "@"
type = "TXT"
data = '"v=spf1 mx -all"'
[[records]]
name = "_dmarc"
type = "TXT"
data = '"v=DMARC1; p=reject"'
[[records]]
name = "_sip._tcp"
type = "SRV"
data = "0 5 5060 sip.school.example."
[[records]]
name = "*.classes"
type = "A"
data = "{NS1[1]}"
[[records]]
name = "moodle"
type = "CNAME"
data = "library"
"""
CAMPUS_KEY = "bnVhZ2UgYmVmb3JlIHRoZSBqdWRnZXMgb2YgRE5TLi4="


class Failure(SystemExit):
    """The small internet could not be built, and why. Uncaught, it ends the run with its text and exit code 1."""


def run(*command, **more):
    """A program's output; that it fails is a failure of the run."""
    ran = subprocess.run([str(part) for part in command], capture_output=True, text=True, **more)
    if ran.returncode:
        raise Failure(f"{' '.join(map(str, command))}: exit code {ran.returncode}\n{ran.stdout}{ran.stderr}")
    return ran.stdout


class World:
    """Everybody, started and answering; stopped at the end."""

    resolver = RESOLVER

    def __init__(self, folder, wrong_ds=False):
        """`wrong_ds`: the parents hold DS records that are of no key of ours."""
        self.folder = folder
        self.wrong_ds = wrong_ds
        self.servers = []
        self.zones = []

    def __enter__(self):
        try:
            self._addresses()
            self._nuage()
            self._secondary()
            self._edit()
            self._parents()
            self._unbound()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        for server in self.servers:
            server.terminate()
        for server in self.servers:
            server.wait()
        self.servers = []

    def write(self, name, text):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def nuage(self, *command):
        """A command's answer as JSON."""
        return json.loads(run(NUAGE, *command, "--format", "json", "--config", self.folder / "nuage.toml"))

    def start(self, name, *command):
        log = (self.folder / f"{name}.log").open("ab")
        server = subprocess.Popen([str(part) for part in command], cwd=self.folder, stdout=log, stderr=log)
        self.servers.append(server)
        return server

    def until(self, name, what, holds):
        """Waits for something of a server whose log is `name`.log."""
        end = time.monotonic() + PATIENCE
        while not holds():
            if time.monotonic() > end:
                log = (self.folder / f"{name}.log").read_text(errors="replace").splitlines()
                raise Failure("\n".join([f"never: {what}; {name} said:", *log[-20:]]))
            time.sleep(0.05)

    def _addresses(self):
        run("ip", "link", "set", "lo", "mtu", "1500", "up")
        pairs = [NS1, NS2, *(server for servers in ABOVE.values() for server in servers)]
        for _, v4, v6 in pairs:
            run("ip", "address", "add", f"{v4}/32", "dev", "lo")
            run("ip", "address", "add", f"{v6}/128", "dev", "lo", "nodad")
        run("ip", "address", "add", f"{RESOLVER}/32", "dev", "lo")

    def _nuage(self):
        """Nuage with zones that were signed three hours ago."""
        self.write("nuage.toml", NUAGE_TOML)
        self.write(f"zones/{ZONE}.toml", ZONE_TOML)
        self.write("zones/pages/index.html", "<title>Library</title>\n")
        self.write("campus.key", CAMPUS_KEY + "\n").chmod(0o600)
        keys = self.folder / "state/edge/dnssec"

        def serve():
            server = self.start("nuage", NUAGE, "serve", "--config", self.folder / "nuage.toml")
            self.until("nuage", f"{NS1[1]} answers", lambda: server.poll() is not None or soa(NS1[1], ZONE))
            if server.poll() is not None:
                raise Failure(f"nuage ended:\n{(self.folder / 'nuage.log').read_text()}")
            return server

        first = serve()
        self.servers.remove(first)
        first.terminate()
        first.wait()
        for file in keys.glob("*.json"):
            document = json.loads(file.read_text())
            for key in document["keys"]:
                key["since"] -= AGE_SECONDS
            file.write_text(json.dumps(document))
        serve()
        self.zones = [zone["origin"].rstrip(".") for zone in self.nuage("zone", "list")]

    def _secondary(self):
        zones = "".join(f"  - domain: {zone}\n    master: nuage\n    acl: nuage\n" for zone in self.zones)
        self.write("knot.conf", f"""server:
  listen: [{NS2[1]}@53, {NS2[2]}@53]
  rundir: knot
  identity: ""
  version: ""
database:
  storage: knot
log:
  - target: stderr
    any: info
key:
  - id: campus
    algorithm: hmac-sha256
    secret: {CAMPUS_KEY}
remote:
  - id: nuage
    address: {NS1[1]}
    via: {NS2[1]}
    key: campus
acl:
  - id: nuage
    address: {NS1[1]}
    key: campus
    action: notify
template:
  - id: default
    storage: knot
zone:
{zones}""")
        (self.folder / "knot").mkdir()
        self.start("knot", "knotd", "-c", "knot.conf")
        for zone in self.zones:
            self.until("knot", f"{NS2[0]} has {zone} of serial {soa(NS1[1], zone)}", lambda: soa(NS2[1], zone) == soa(NS1[1], zone))

    def _edit(self):
        """A site more and one less, which the secondary gets as a difference (IXFR)."""
        self.nuage("site", "add", "chemistry", "--redirect", "https://www.school.example/chemistry/")
        self.nuage("site", "remove", "gone")
        for server, log in ((NS1, "nuage"), (NS2, "knot")):
            self.until(log, f"{server[0]} knows the change", lambda: has(server[1], f"chemistry.{ZONE}") and not has(server[1], f"gone.{ZONE}"))
        for zone in self.zones:
            self.until("knot", f"{NS2[0]} has the last of {zone}", lambda: soa(NS2[1], zone) == soa(NS1[1], zone))
            if not re.search(rf"\[{re.escape(zone)}\.\] IXFR, incoming, .* finished", (self.folder / "knot.log").read_text()):
                raise Failure(f"{NS2[0]} got {zone} anew, rather than what changed in it (IXFR): --keep FOLDER keeps knot.log")

    def _zone(self, origin):
        """The head of a zone above us."""
        servers = ABOVE[SERVED[origin]]
        lines = ["$TTL 86400", f"{origin} IN SOA {servers[0][0]} hostmaster.school.example. 2024010101 14400 3600 1209600 3600"]
        lines += [f"{origin} IN NS {name}" for name, _, _ in servers]
        return lines

    def _parents(self):
        """Zones from the leaves up, since each parent takes the DS records of its children."""
        zones = {origin: self._zone(origin) for origin in SERVED}

        def parent_of(name):
            above = [origin for origin in SERVED if origin != name and (origin == "." or name.endswith("." + origin))]
            return max(above, key=len)

        def addresses(origin, server):
            name, v4, v6 = server
            zones[origin] += [f"{name} IN A {v4}", f"{name} IN AAAA {v6}"]

        for origin, holder in SERVED.items():
            if origin == ".":
                continue
            parent = parent_of(origin)
            zones[parent] += [f"{origin} IN NS {name}" for name, _, _ in ABOVE[holder]]
        # `root.example` and the like are names of `example`; the root holds them as glue.
        for holder in ("root", "tld", "arpa"):
            for server in ABOVE[holder]:
                addresses("example.", server)
        for server in [*ABOVE["root"], *ABOVE["tld"]]:
            addresses(".", server)
        for server in ABOVE["school"]:
            addresses("school.example.", server)
            addresses("example.", server)
        addresses("school.example.", NS2)
        addresses("school.example.", ("www.school.example.", NS1[1], NS1[2]))
        addresses("school.example.", ("mx.school.example.", NS1[1], NS1[2]))
        zones["school.example."] += ["school.example. IN MX 10 mx.school.example.", 'school.example. IN TXT "v=spf1 mx -all"']
        zones["100.51.198.in-addr.arpa."].append(f"53.100.51.198.in-addr.arpa. IN PTR {NS2[0]}")
        zones["8.b.d.0.1.0.0.2.ip6.arpa."].append(f"{reverse6(NS2[2])} IN PTR {NS2[0]}")
        for zone in self.zones:
            parent = zones[parent_of(zone + ".")]
            ds = self.nuage("zone", "ds", zone)["ds"]
            parent += self.nuage("zone", "show", zone)["delegation"]
            parent += map(of_no_key, ds) if self.wrong_ds else ds
        for origin in sorted(zones, key=lambda origin: origin.count(".") if origin != "." else 0, reverse=True):
            self._sign(origin, zones[origin])
            if origin != ".":
                zones[parent_of(origin)].append((self.folder / "signed" / f"dsset-{origin}").read_text())
        for holder, servers in ABOVE.items():
            listen = "".join(f"  ip-address: {v4}\n  ip-address: {v6}\n" for _, v4, v6 in servers)
            served = "".join(f"zone:\n  name: {origin}\n  zonefile: {self.folder}/signed/{file_of(origin)}\n" for origin in SERVED if SERVED[origin] == holder)
            self.write(f"{holder}.conf", f"""server:
{listen}  server-count: 1
  username: ""
  chroot: ""
  database: ""
  zonesdir: "{self.folder}"
  zonelistfile: "{self.folder}/{holder}.list"
  xfrdfile: "{self.folder}/{holder}.xfrd"
  xfrdir: "{self.folder}"
  pidfile: ""
  hide-version: yes
  minimal-responses: yes
remote-control:
  control-enable: no
{served}""")
            self.start(holder, "nsd", "-d", "-c", f"{holder}.conf")
        for origin, holder in SERVED.items():
            self.until(holder, f"{holder} answers for {origin}", lambda: soa(ABOVE[holder][0][1], origin))
        for zone in self.zones:
            self.nuage("zone", "ds", zone, "--published")
        self.write("hints", "".join(f". 3600 IN NS {name}\n{name} 3600 IN A {v4}\n{name} 3600 IN AAAA {v6}\n" for name, v4, v6 in ABOVE["root"]))

    def _sign(self, origin, lines):
        folder = self.folder / "signed"
        folder.mkdir(exist_ok=True)
        names = [run("dnssec-keygen", "-q", "-a", "ECDSAP256SHA256", *flags, "-K", folder, origin).strip() for flags in ([], ["-f", "KSK"])]
        file = self.write(f"signed/{file_of(origin)}.plain", "\n".join(lines) + "\n")
        run("dnssec-signzone", "-q", "-S", "-K", folder, "-d", folder, "-o", origin, "-f", folder / file_of(origin), file)
        if origin == ".":
            (self.folder / "anchor").write_text("".join(
                line + "\n" for line in (folder / f"{names[1]}.key").read_text().splitlines() if not line.startswith(";")))

    def _unbound(self):
        nodefault = "".join(f"  local-zone: \"{origin}\" nodefault\n" for origin in SERVED if origin.count(".") > 2)
        self.write("unbound.conf", f"""server:
  interface: {RESOLVER}
  access-control: 0.0.0.0/0 allow
  chroot: ""
  username: ""
  directory: "{self.folder}"
  pidfile: ""
  use-syslog: no
  log-servfail: yes
  verbosity: 1
  root-hints: "hints"
  trust-anchor-file: "{self.folder}/anchor"
  module-config: "validator iterator"
  harden-below-nxdomain: yes
  harden-algo-downgrade: yes
  qname-minimisation-strict: yes
{nodefault}remote-control:
  control-enable: no
""")
        self.start("unbound", "unbound", "-d", "-c", "unbound.conf")
        self.until("unbound", "unbound knows the root", lambda: soa(RESOLVER, "."))


def soa(server, zone):
    """The serial a server has of a zone; None without an answer."""
    dig = subprocess.run(["dig", f"@{server}", "+time=1", "+tries=1", "+short", zone, "SOA"], capture_output=True, text=True)
    words = dig.stdout.split()
    # dig tells of refused connections where answers go.
    return words[2] if dig.returncode == 0 and len(words) == 7 else None


def has(server, name):
    """Whether a server gives a name an address."""
    dig = subprocess.run(["dig", f"@{server}", "+time=1", "+tries=1", "+short", name, "A"], capture_output=True, text=True)
    return dig.returncode == 0 and bool(re.fullmatch(r"[\d.]+\n", dig.stdout))


def of_no_key(ds):
    """A DS record with another digest."""
    return ds[:-1] + ("1" if ds[-1] == "0" else "0")


def file_of(origin):
    return "root" if origin == "." else origin.rstrip(".")


def reverse6(address):
    return ipaddress.ip_address(address).reverse_pointer + "."
