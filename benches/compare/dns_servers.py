"""The servers that are compared, each with the settings its own manual recommends for this work.

Equal for all: no statistics, no log of queries, no rate limit that would hold back the client, zones
from files, and one thread (or process) for each CPU given.
"""

import contextlib
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import dns_load
import dns_zones
from bench import NUAGE, SERVER_CPU, Failure, Server
from dns_zones import ADDRESS, ORIGIN, REVERSE

FIRST_PORT = 15300

# Keys and tables that Nuage's newer abilities take. A binary that doesn't know one yet is measured
# without; what was left out is told, and fails the bounds that count on it.
OPTIONAL = ("rate_limit", "rate_limit_exempt", "secondaries", "dnssec")


class Arena:
    """A folder with one set of zones, and the servers of it, each on a port of its own."""

    def __init__(self, folder, names, signed=False, exempt="127.0.0.0/8"):
        self.folder, self.names, self.signed, self.exempt = folder, names, signed, exempt
        self.missing = set()
        self.servers = []
        dns_zones.write(folder, names, signed)

    def start(self, name, cpus=SERVER_CPU, threads=1, patience=120):
        """Starts a server and waits for its first right answer. None if it isn't installed.

        Nuage comes first: what it serves is what the others load.
        """
        port = FIRST_PORT + len(self.servers)
        command = COMMANDS[name](self, port, threads)
        if not shutil.which(command[0]):
            print(f"{name} is left out: there is no {command[0]}", file=sys.stderr)
            return None
        last = dns_zones.site(self.names - 1)
        server = Server(name, command, lambda: dns_load.right(port, last), self.folder, cpus, patience)
        server.port = port
        self.servers.append(server)
        return server

    def start_all(self, *names):
        return [server for server in map(self.start, names) if server]

    def zones(self):
        """Has the master files written for the peers, if they aren't yet."""
        if (self.folder / REVERSE).exists():
            return
        nuage = next((server for server in self.servers if server.name == "nuage"), None)
        if self.signed and nuage and dns_zones.transfer(self.folder, nuage.port):
            return
        port = nuage.port if nuage else FIRST_PORT
        dns_zones.export(self.folder, nuage_toml(self, port))
        if self.signed and not re.search(r"\sRRSIG\s", (self.folder / REVERSE).read_text()):
            print("nuage transfers no signed zone: its peers load one signed by dnssec-signzone", file=sys.stderr)
            dns_zones.sign(self.folder)

    def stop(self):
        while self.servers:
            self.servers.pop().stop()


@contextlib.contextmanager
def arena(names, **more):
    """An arena in a folder that goes away, together with its servers."""
    with tempfile.TemporaryDirectory(prefix="nuage-dns-") as folder:
        folder = pathlib.Path(folder)
        folder.chmod(0o755)
        here = Arena(folder, names, **more)
        try:
            yield here
        finally:
            here.stop()


def echo(here, port, _threads):
    """The floor: a loop that sends datagrams back, batched like Nuage, compiled on the spot."""
    return [dns_load.compiled(here.folder, "udp_echo"), "127.0.0.1", str(port)]


def nuage(here, port, _threads):
    """One thread for each CPU it may use: the CPUs it is started on say how many."""
    config = nuage_toml(here, port)
    return [NUAGE, "serve", "-c", config]


def nuage_toml(here, port):
    """Nuage with DNS alone, and in that everything switched on: cookies always are.

    The PTR set is cut to 8 names: a set of 100,000 names would measure copying.
    """
    config = here.folder / f"nuage-{port}.toml"
    if config.exists():
        return config
    config.write_text(f'''[address]
ipv4 = "{ADDRESS}"
ipv6 = "2001:db8::10"
[paths]
state = "state-{port}"
[reverse]
names = 8
{"dnssec = true" if here.signed else ""}
[dns]
listen = ["127.0.0.1:{port}"]
tcp_connections_per_address = 1000
rate_limit = 200
rate_limit_exempt = ["{here.exempt}"]
[http]
listen = []
[https]
listen = []
[admin]
listen = []
[containers]
enabled = false
{'[[secondaries]]' if here.signed else ""}
{'address = "127.0.0.1"' if here.signed else ""}
''')
    leave_out_unknown(here, config)
    return config


def leave_out_unknown(here, config):
    """Takes those OPTIONAL keys out of the files that `nuage check` doesn't know, and notes them."""
    for _ in OPTIONAL:
        problems = errors(config)
        # From the last line up, so that the numbers of those above stay right.
        for problem in sorted(problems, key=lambda problem: -problem["line"]):
            key = re.match(r'unknown key "(\w+)"', problem["message"])
            if not key or key[1] not in OPTIONAL:
                raise Failure(f"nuage check: {problem['file']}:{problem['line']}: {problem['message']}")
            here.missing.add(key[1])
            drop(config.parent / problem["file"], problem["line"] - 1)
        if not problems:
            return


def errors(config):
    """What `nuage check` finds wrong."""
    command = [NUAGE, "check", "--format", "json", "-c", config]
    said = subprocess.run(command, cwd=config.parent, capture_output=True, text=True)
    try:
        return [problem for problem in json.loads(said.stdout)["problems"] if problem["severity"] == "error"]
    except (ValueError, KeyError) as wrong:
        raise Failure(f"nuage check: {said.stdout}{said.stderr}") from wrong


def drop(file, line):
    """Removes one line of a TOML file, and if it heads a table, the table."""
    lines = file.read_text().splitlines(keepends=True)
    end = line + 1
    if lines[line].startswith("["):
        while end < len(lines) and not lines[end].startswith("["):
            end += 1
    file.write_text("".join(lines[:line] + lines[end:]))


def nsd(here, port, threads):
    """No database file (less memory, as nsd.conf(5) says), SO_REUSEPORT where there are two processes
    (nsd.conf(5) recommends it there alone), and minimal responses, which Knot and Nuage always give. No rate limit, so no table for one either."""
    here.zones()
    config = here.folder / f"nsd-{port}.conf"
    zones = "".join(f"zone:\n  name: {origin}\n  zonefile: {origin}\n" for origin in (ORIGIN, REVERSE))
    config.write_text(f'''server:
  server-count: {threads}
  reuseport: {"yes" if threads > 1 else "no"}
  ip-address: 127.0.0.1@{port}
  username: ""
  zonesdir: "{here.folder}"
  database: ""
  pidfile: ""
  xfrdfile: ""
  zonelistfile: "{here.folder}/nsd-{port}.list"
  logfile: "{here.folder}/nsd-{port}.out"
  verbosity: 0
  statistics: 0
  minimal-responses: yes
  tcp-count: 1000
  rrl-ratelimit: 0
  rrl-size: 1
remote-control:
  control-enable: no
{zones}''')
    return ["nsd", "-d", "-c", config]


def knot(here, port, threads):
    """Zones from files alone: no journal and nothing written back, as for zones that something else
    makes. No module is loaded, so no statistics and no rate limit."""
    here.zones()
    config = here.folder / f"knot-{port}.conf"
    config.write_text(f'''server:
  listen: 127.0.0.1@{port}
  rundir: {here.folder}
  udp-workers: {threads}
  tcp-workers: {threads}
  background-workers: 1
  tcp-max-clients: 1000
log:
  - target: stderr
    any: warning
database:
  storage: {here.folder}/knot-{port}
template:
  - id: default
    storage: {here.folder}
    file: "%s"
    journal-content: none
    zonefile-sync: -1
zone:
  - domain: {ORIGIN}
  - domain: {REVERSE}
''')
    return ["knotd", "-c", config]


def bind(here, port, threads):
    """Authoritative alone, minimal responses as the others, no query log (off by default)."""
    here.zones()
    config = here.folder / f"named-{port}.conf"
    zones = "".join(f'zone "{origin}" {{ type primary; file "{origin}"; check-names ignore; }};\n' for origin in (ORIGIN, REVERSE))
    config.write_text(f'''options {{ directory "{here.folder}"; pid-file none; listen-on port {port} {{ 127.0.0.1; }};
  listen-on-v6 {{ none; }}; recursion no; minimal-responses yes; zone-statistics none; notify no; tcp-clients 1000; }};
controls {{ }};
{zones}''')
    return ["named", "-f", "-n", str(threads), "-c", config]


COMMANDS = {"echo": echo, "nuage": nuage, "NSD": nsd, "Knot": knot, "BIND": bind}
