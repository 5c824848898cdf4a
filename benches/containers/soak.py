"""An hour of everything at random, and whether it all settles."""

import collections
import json
import pathlib
import random
import re
import signal
import subprocess
import time

from engine import Failed, until
from load import Background, statuses
from nuage import ZONE, full
from world import World, say_memory

# How long whatever is under way may take to settle once nobody disturbs it any more: removed sites
# keep their files for 30 s, and a hung engine is asked again within as long.
SETTLE = 90
MIB = 2048
GROUPS = {
    "default": {"doze_after": "10s", "sleep_after": "30s", "archive_after": "3m"},
    "teachers": {"doze_after": "never", "sleep_after": "20s", "memory": "64MiB"},
    "plain": {"disk": "none", "doze_after": "5s", "sleep_after": "never"},
}


class Soak:
    def __init__(self, report, world, generator, started):
        self.report, self.world, self.nuage, self.random = report, world, world.nuage, generator
        self.started = started
        self.sites, self.number = {}, 0
        self.done = collections.Counter()
        self.trouble = []

    # --- disturbances ------------------------------------------------------------------------

    def act(self):
        actions = {
            self.add_by_cli: 6, self.remove_by_cli: 4, self.rewrite: 3, self.break_file: 1, self.wake: 10,
            self.sleep: 6, self.restart: 2, self.kill_container: 4, self.remove_container: 3,
            self.kill_nuage: 1, self.stop_nuage: 1, self.hang_engine: 1, self.come_back: 2,
        }
        action = self.random.choices(list(actions), list(actions.values()))[0]
        began = time.monotonic()
        try:
            said = action()
        except (Failed, OSError, subprocess.SubprocessError) as error:
            said = f"{type(error).__name__}: {error}"
            # While the engine hangs or a zone is broken, not everything can work.
            self.trouble.append(f"{action.__name__}: {said}"[:500])
        self.done[action.__name__] += 1
        self.report.raw("soak", at=round(began - self.started, 1), action=action.__name__, said=said, took=round(time.monotonic() - began, 2))
        return action.__name__

    def any_site(self):
        return self.random.choice(sorted(self.sites)) if self.sites else None

    def new(self):
        self.number += 1
        name = f"s{self.number}"
        self.sites[name] = self.random.choice([None, None, "teachers", "plain"])
        return name

    def add_by_cli(self):
        if len(self.sites) >= 60:
            return self.remove_by_cli()
        name = self.new()
        group = self.sites[name]
        try:
            self.nuage.cli("site", "add", full(name), *(["--group", group] if group else []))
        except Failed:
            del self.sites[name]
            raise
        return name

    def remove_by_cli(self):
        if len(self.sites) <= 10:
            return self.add_by_cli()
        name = self.any_site()
        self.nuage.cli("site", "remove", full(name))
        del self.sites[name]
        return name

    def write(self):
        """The whole zone anew, without waiting for it to be read."""
        text = f'origin = "{ZONE}"\nnameservers = ["ns1.{ZONE}"]\n'
        for name, group in self.sites.items():
            text += f"[sites.{name}]\n" + (f'group = "{group}"\n' if group else "")
        self.nuage.write_zone(text)

    def rewrite(self):
        """Some go, some come, some change their group: all at once."""
        for name in self.random.sample(sorted(self.sites), min(len(self.sites) - 5, self.random.randint(1, 5))):
            del self.sites[name]
        for _ in range(self.random.randint(1, 6)):
            if len(self.sites) < 60:
                self.new()
        changed = self.any_site()
        self.sites[changed] = self.random.choice([None, "teachers", "plain"])
        self.write()
        return changed

    def break_file(self):
        """A half-written file, then the whole one."""
        text = self.nuage.zone.read_text()
        self.nuage.zone.write_text(text[: self.random.randrange(len(text))])
        time.sleep(self.random.uniform(0.01, 3))
        self.write()

    def come_back(self):
        """A site that is removed and added again within moments."""
        name = self.any_site()
        self.nuage.cli("site", "remove", full(name))
        time.sleep(self.random.choice([0.01, 1, 4, 6, 10]))
        self.nuage.cli("site", "add", full(name))
        self.sites[name] = None
        return name

    def wake(self):
        name = self.any_site()
        answer = self.world.get(name, patience=40, https=self.random.random() < 0.5)
        return f"{name} {answer.status} {answer.seconds:.2f}"

    def sleep(self):
        name = self.any_site()
        return f"{name} {self.nuage.act(name, 'sleep', accept=None)}"

    def restart(self):
        name = self.any_site()
        return f"{name} {self.nuage.act(name, 'restart', accept=None)}"

    def any_container(self, **filters):
        found = self.world.engine.containers(**filters)
        return self.random.choice(found) if found else None

    def kill_container(self):
        if container := self.any_container(status=["running"]):
            self.world.engine.ask("POST", f"/containers/{container['Id']}/kill", accept=(204, 404, 409))
            return container["Names"][0]

    def remove_container(self):
        if container := self.any_container():
            self.world.engine.ask("DELETE", f"/containers/{container['Id']}?force=1", accept=(204, 404, 409))
            return container["Names"][0]

    def kill_nuage(self):
        self.nuage.kill()
        time.sleep(self.random.uniform(0, 2))
        self.nuage.start()

    def stop_nuage(self):
        self.nuage.stop()
        self.nuage.start()

    def hang_engine(self):
        seconds = self.random.uniform(1, 8)
        self.world.engine.process.send_signal(signal.SIGSTOP)
        try:
            # What is asked meanwhile has to wait, and must not be done twice.
            name = self.any_site()
            self.world.get(name, patience=seconds)
            time.sleep(max(0, seconds - 1))
        finally:
            self.world.engine.process.send_signal(signal.SIGCONT)
        return round(seconds, 1)

    # --- what must be so in the end ----------------------------------------------------------

    def check(self):
        report, nuage, world = self.report, self.nuage, self.world
        wanted = {full(name) for name in self.sites}
        report.figure("soak", "sites declared by nuage, of those in the file", nuage.capacity()["declared"], least=len(wanted), most=len(wanted))
        answers = world.ask_all(sorted(self.sites), at_once=2)
        bad = {name: answer for name, answer in answers.items() if answer.status != 200}
        for name, answer in list(bad.items())[:5]:
            live = nuage.observed().get(full(name))
            report.note("soak", f"{name} ({self.sites[name]}): {answer.status} {answer.error or ''} after {answer.seconds:.1f} s; {live}")
        report.figure("soak", f"declared sites that do not answer 200, of {len(wanted)}", len(bad), most=0)

        instance, networks, leases = self.leases()
        containers = world.engine.containers()
        found = collections.Counter(c["Labels"].get("nuage.site", c["Names"][0]) for c in containers)
        self.none("containers of sites that are not declared", set(found) - wanted)
        self.none("sites with two containers", {site for site, count in found.items() if count > 1})
        self.none("containers of another instance", {c["Names"][0] for c in containers if c["Labels"].get("nuage.instance") != instance})
        self.none("sites said to be otherwise than they are", self.disagreeing())

        known = {n["Name"] for n in world.engine.ask("GET", "/networks")} - {"bridge", "host", "none"}
        self.none("networks nobody leased", known - set(networks))
        taken = collections.Counter(
            (lease["network"], lease["index"]) for lease in leases.values() if not lease.get("released"))
        self.none("addresses of two sites", {place for place, count in taken.items() if count > 1})
        users = collections.Counter(lease["uid"] for lease in leases.values())
        self.none("uids of two sites", {uid for uid, count in users.items() if count > 1})
        self.none("leases of sites that are not declared",
                  {site for site, lease in leases.items() if not lease.get("released")} - wanted)

        tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True).stdout.split("\n")
        ours = {f"table inet nuage_{instance}", f"table bridge nuage_{instance}"}
        self.none("firewall tables of nuage's other than its two", {t for t in tables if "nuage" in t} - ours)
        self.none("firewall tables missing", ours - set(tables))
        links = json.loads(subprocess.run(["ip", "-j", "link"], capture_output=True, text=True).stdout)
        bridges = {link["ifname"] for link in links if link["ifname"].startswith("nu")}
        self.none("bridges nobody leased", bridges - {network["interface"] for network in networks.values()})
        ports = [link for link in links if link["ifname"].startswith("veth") and link.get("master")]
        alive = sum(c["State"] in ("running", "paused") for c in world.engine.containers())
        self.none("bridge ports of no container", range(max(0, len(ports) - alive)))

        self.disks(wanted)
        report.figure("soak", "processes killed for want of memory in all", world.cgroup.own_oom_kills(), most=0)

    def none(self, what, found):
        found = list(found)
        if not self.report.figure("soak", what, len(found), most=0):
            self.report.note("soak", f"such as {found[:5]}")

    def disagreeing(self):
        """Sites whose state and container differ, and go on to: some change between two questions."""
        said = {"running": "awake", "paused": "dozing", "exited": "asleep", "created": "asleep"}
        wrong = None
        # What can't be frozen is tried again within a minute.
        for _ in range(25):
            found = {c["Labels"].get("nuage.site"): c["State"] for c in self.world.engine.containers()}
            live = {site: live["state"] for site, live in self.nuage.observed().items()}
            now = {
                f"{site}: said {live.get(site, 'archived')}, is {found.get(site, 'not there')}"
                for site in set(found) | set(live)
                if live.get(site, "archived") != said.get(found.get(site), "archived")
            }
            wrong = now if wrong is None else wrong & now
            if not wrong:
                break
            time.sleep(3)
        return wrong

    def leases(self):
        leases = json.loads((self.nuage.state / "leases.json").read_text())
        return leases["instance"], leases["networks"], leases["sites"]

    def disks(self, wanted):
        state = self.nuage.state
        loops = json.loads(subprocess.run(["losetup", "-J", "-l"], capture_output=True, text=True).stdout or '{"loopdevices": []}')
        images = [loop["back-file"] for loop in loops["loopdevices"] if loop["back-file"].startswith(str(state))]
        site = lambda path: f"{pathlib.Path(path.replace(' (deleted)', '')).stem}.{pathlib.Path(path).parent.name}"
        self.none("loop devices of sites that are not declared", {path for path in images if site(path) not in wanted})
        self.none("images on two loop devices", {path for path, count in collections.Counter(images).items() if count > 1})
        mounts = [line.split()[4] for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines()]
        mounts = [mount for mount in mounts if mount.startswith(f"{state}/")]
        folder = lambda mount: f"{pathlib.Path(mount).name}.{pathlib.Path(mount).parent.name}"
        self.none("mounts of sites that are not declared", {mount for mount in mounts if folder(mount) not in wanted})
        self.none("mounts upon mounts", {mount for mount, count in collections.Counter(mounts).items() if count > 1})
        folders = {f"{path.name}.{path.parent.name}" for path in (state / "sites").glob("*/*")}
        self.none("folders of sites that are not declared", folders - wanted)
        disks = {site(str(path)) for path in (state / "disks").glob("*/*.ext4")}
        self.none("disk images of sites that are not declared", disks - wanted)
        odd = [
            str(path.relative_to(state)) for path in state.rglob("*")
            # What is in sites and in the bin belongs to others.
            if path.relative_to(state).parts[0] not in ("bin",)
            and not (path.relative_to(state).parts[0] == "sites" and len(path.relative_to(state).parts) > 3)
            and re.search(r"\.(new|tmp|mnt|part|restore|old)$", path.name)
        ]
        self.none("files half-made", odd)
        self.none("work folders left", [path.name for path in (state / "work").glob("*") if any(path.iterdir())] if (state / "work").is_dir() else [])


def soak(report, stock, options):
    minutes = options.minutes or (2 if options.quick else 60)
    seed = options.seed if options.seed is not None else random.randrange(1 << 30)
    report.note("soak", f"seed {seed}, {minutes:g} minutes")
    with World(stock, MIB, GROUPS) as world:
        started = time.monotonic()
        run = Soak(report, world, random.Random(seed), started)
        for _ in range(30):
            run.new()
        run.write()
        until("the sites are declared", lambda: world.nuage.capacity()["declared"] == len(run.sites))
        world.wake(sorted(run.sites)[:10])

        def pick():
            # By number rather than by what is declared just now: names of nobody are part of it.
            return full(f"s{random.randint(max(1, run.number - 40), max(30, run.number))}"), "/", False

        background = Background(world.nuage.ca(), 3, pick)
        early, next_look = None, started
        # The first few minutes fill caches, of names and of metrics.
        warm = min(300, minutes * 60 / 4)
        while time.monotonic() - started < minutes * 60:
            action = run.act()
            now = time.monotonic()
            if world.nuage.process.poll() is not None:
                report.problem("soak", f"nuage ended by itself after {action}: {world.nuage.log()[-2000:]}")
                world.nuage.start()
            if world.engine.process.poll() is not None:
                raise Failed("the engine ended by itself")
            if early is None and now - started > warm:
                early = world.nuage.rss()
            if now > next_look:
                next_look = now + 10
                report.raw("soak", memory=world.memory(), sites=len(run.sites), awake=world.nuage.awake())
            report.progress(f"soak {(now - started) / 60:.1f} min, {len(run.sites)} sites, {sum(run.done.values())} acts, last {action}")
            time.sleep(run.random.uniform(0, 2))
        answers = background.finish()
        report.progress(f"soak: settling for {SETTLE} s")
        time.sleep(SETTLE)
        report.progress("")
        report.note("soak", "done: " + ", ".join(f"{name} {count}" for name, count in run.done.most_common()))
        report.note("soak", f"visitors meanwhile: {dict(statuses(answers))} (kills, hangs and names of nobody among them)")
        for trouble in run.trouble[:10]:
            report.note("soak", f"while disturbed: {trouble}")
        run.check()
        say_memory(report, "soak", "at the end", world)
        # A new process after a kill begins anew, so the end is what counts, against what it was.
        late = world.nuage.rss()
        report.figure("soak", "nuage's own memory after the first minutes", round(early or 0, 1), "MiB")
        report.figure("soak", "nuage's own memory at the end to that", late / (early or late), most=1.25)
