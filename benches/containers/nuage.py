"""nuage as a school runs it: one process beside the engine, in the same cgroup."""

import json
import os
import pathlib
import re
import signal
import subprocess
import urllib.request

from engine import Api, Engine, Failed, ask, resident_mib, until
from load import SERVER, SERVER6

ZONE = "w.example"
ADMIN = "127.0.0.1:9153"


def full(name):
    return f"{name}.{ZONE}"


class Nuage:
    def __init__(self, folder, binary, cgroup, engine: Engine, groups=None, budget=None):
        self.folder = pathlib.Path(folder)
        self.binary, self.cgroup, self.engine = binary, cgroup, engine
        self.state = self.folder / "state"
        self.control = self.state / "control.sock"
        self.zone = self.folder / "zones" / f"{ZONE}.toml"
        self.zone.parent.mkdir(parents=True)
        self.process = None
        tables = {"default": {}} | (groups or {})
        text = "".join(
            f"[groups.{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())
            for name, keys in tables.items()
        )
        budget = f'[capacity]\nmemory = "{budget}"\n' if budget else ""
        (self.folder / "nuage.toml").write_text(f'''[address]
ipv4 = "{SERVER}"
ipv6 = "{SERVER6}"
[paths]
state = "state"
[dns]
listen = ["{SERVER}:53", "[{SERVER6}]:53"]
[http]
listen = ["{SERVER}:80", "[{SERVER6}]:80"]
[https]
listen = ["{SERVER}:443", "[{SERVER6}]:443"]
[admin]
listen = ["{ADMIN}"]
[containers]
engine = "{engine.address}"
cgroup_parent = "/{cgroup.name}/ct"
{budget}{text}''')
        self.declare([])

    # --- what is declared --------------------------------------------------------------------

    def declare(self, names, group=None):
        """Writes the zone with these sites; `group` says each one's group."""
        lines = [f'origin = "{ZONE}"\nnameservers = ["ns1.{ZONE}"]\n']
        for name in names:
            lines.append(f"[sites.{name}]\n")
            if group and (of := group(name)):
                lines.append(f'group = "{of}"\n')
        self.write_zone("".join(lines))
        if self.process:
            until("the sites are declared", lambda: self.capacity()["declared"] == len(names))

    def write_zone(self, text):
        """As an editor does: beside it, then in its place."""
        beside = self.zone.with_suffix(".tmp")
        beside.write_text(text)
        beside.rename(self.zone)

    def cli(self, *arguments, check=True):
        """A command, run on the same machine: it is part of what memory must hold."""
        ran = subprocess.run(
            [self.binary, *arguments, "--config", self.folder / "nuage.toml"],
            preexec_fn=self.cgroup.enter, capture_output=True, text=True, timeout=120,
        )
        if check and ran.returncode != 0:
            raise Failed(f"nuage {' '.join(arguments)}: {ran.returncode}: {ran.stderr or ran.stdout}")
        return ran

    # --- the process -------------------------------------------------------------------------

    def start(self):
        log = open(self.folder / "log", "ab")
        self.process = subprocess.Popen(
            [self.binary, "serve", "--config", self.folder / "nuage.toml"], stdout=log, stderr=log,
            stdin=subprocess.DEVNULL, preexec_fn=self.cgroup.enter, start_new_session=True,
        )
        until("nuage is there", self.ready, 60)
        return self

    def ready(self):
        if self.process.poll() is not None:
            raise Failed(f"nuage ended: {self.log()[-3000:]}")
        try:
            return ask(self.control, "GET", "/v1/capacity")[0] == 200 and self.ca().exists()
        except OSError:
            return False

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        if self.process is None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()
        self.process = None

    def log(self):
        return (self.folder / "log").read_text(errors="replace")

    def ca(self):
        for folder in [self.state / "keys", self.state]:
            for file in folder.rglob("ca.pem"):
                return file
        return self.state / "keys/ca.pem"

    def rss(self):
        return resident_mib(self.process.pid)

    # --- what is observed --------------------------------------------------------------------

    def capacity(self):
        return ask(self.control, "GET", "/v1/capacity")[1]

    def awake(self):
        """Sites that are in memory and answer: awake, or frozen for a moment."""
        states = self.capacity()["states"]
        return states.get("awake", 0) + states.get("dozing", 0)

    def observed(self):
        """Each site's state, as the edge hears it."""
        connection = Api(self.control)
        connection.request("GET", "/v1/observed")
        states = {}
        for line in connection.getresponse():
            change = json.loads(line)
            if change == "whole":
                break
            if "site" in change:
                name, live = change["site"]
                states[name] = live
        connection.close()
        return states

    def wakes(self):
        """Since the start, by the state a site was in."""
        with urllib.request.urlopen(f"http://{ADMIN}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        return {
            state: int(count)
            for state, count in re.findall(r'^nuage_site_wake_duration_seconds_count\{from="(\w+)"\} (\d+)', text, re.M)
        }

    def state_of(self, name):
        return self.observed().get(full(name), {}).get("state", "archived")

    def act(self, name, verb, accept=(200, 204)):
        status, answer = ask(self.control, "POST", f"/v1/sites/{full(name)}/{verb}")
        if accept and status not in accept:
            raise Failed(f"{verb} {name}: {status} {answer}")
        return status, answer

    def sleep(self, name):
        # The edge may not have noticed yet that the last visitor has gone: 409, and it stays awake.
        until(f"{name} may sleep", lambda: self.act(name, "sleep", accept=(200, 204, 409))[0] != 409, 10)
        until(f"{name} is asleep", lambda: self.state_of(name) in ("asleep", "archived"), 60)

    def containers(self):
        return [
            found for found in self.engine.containers()
            if found["Labels"].get("nuage.site")
        ]

    # --- sites' files ------------------------------------------------------------------------

    def put(self, name, files):
        """Files into a site that was awake once, or was prepared."""
        folder = self.state / "sites" / ZONE / name / "files"
        if not folder.is_dir():
            self.act(name, "prepare")
        owner = folder.stat().st_uid
        for file, text in files.items():
            (folder / file).write_text(text)
            os.chown(folder / file, owner, owner)
            (folder / file).chmod(0o640)
