"""How long things take: a new site, one that sleeps, one that dozes, many at once."""

import asyncio
import random
import socket
import time

from engine import Failed, until
from load import Background, percentile, resolves, statuses
from nuage import ZONE, full
from world import FILES, World, names, say_memory

LARGE = 4096
ALWAYS = {"doze_after": "never", "sleep_after": "never", "archive_after": "never"}


def spread(values):
    """Times in ms, for a note."""
    return ", ".join(f"p{share} {percentile(values, share / 100) * 1e3:.0f}" for share in (50, 95, 100))


def add(report, stock, options):
    """From `nuage site add` to the first page PHP makes, by the site's name over HTTPS."""
    awake, samples = (20, 5) if options.quick else (200, 30)
    with World(stock, LARGE, {"default": ALWAYS}) as world:
        others = names(awake)
        world.nuage.declare(others)
        world.wake(others)
        whole, parts = [], {"command": [], "name": [], "page": []}
        for number in range(samples):
            name = f"alice-{number}"
            started = time.perf_counter()
            world.nuage.cli("site", "add", f"{name}.{ZONE}")
            told = time.perf_counter()
            until(f"{name} has an address", lambda: resolves(full(name)), 30, 0.005)
            named = time.perf_counter()
            answer = world.get(name)
            while answer.status != 200 and time.perf_counter() - started < 60:
                answer = world.get(name)
            if answer.status != 200:
                raise Failed(f"{name}: {answer}")
            ended = time.perf_counter()
            whole.append(ended - started)
            for part, value in zip(parts, (told - started, named - told, ended - named)):
                parts[part].append(value)
            # The edge notices a moment later that nobody looks any more.
            time.sleep(0.5)
            world.sleep([name])
            report.progress(f"add {number + 1}/{samples}")
        report.progress("")
        for part, values in parts.items():
            report.note("add", f"of which {part:8} {spread(values)} ms")
        report.figure("add", f"p50 of {samples}, {world.nuage.awake()} others awake", percentile(whole, 0.5), "s")
        report.figure("add", f"p95 of {samples}, {world.nuage.awake()} others awake", percentile(whole, 0.95), "s", most=1.5)


class Bare:
    """A container like a site's, started through the engine's API with nothing of ours before it."""

    def __init__(self, world, like):
        self.engine = world.engine
        model = self.engine.ask("GET", f"/containers/{like}/json")
        files = world.folder / "bare"
        scratch = world.folder / "bare-scratch"
        uid = int(model["Config"]["User"].split(":")[0])
        for folder in (files, scratch):
            folder.mkdir()
            folder.chmod(0o777)
        self.engine.ask("POST", "/networks/create", {
            "Name": "bare", "Driver": "bridge", "EnableIPv6": True,
            "IPAM": {"Config": [{"Subnet": "10.99.0.0/24"}, {"Subnet": "fd00:99::/64"}]},
            "Options": {"com.docker.network.bridge.enable_icc": "false",
                        "com.docker.network.bridge.enable_ip_masquerade": "false"},
        })
        host = {key: value for key, value in model["HostConfig"].items() if value is not None}
        # The same limits and walls, another network and other folders.
        host |= {"NetworkMode": "bare", "Mounts": [], "Binds": [], "Dns": [], "IpcMode": "private"}
        targets = [mount["Destination"] for mount in model["Mounts"] if mount["Type"] == "bind"]
        host["Mounts"] = [
            {"Type": "bind", "Source": str(files if target == "/var/www/html" else scratch), "Target": target}
            for target in targets
        ]
        made = self.engine.ask("POST", "/containers/create?name=bare", {
            "Image": model["Config"]["Image"], "User": f"{uid}:{uid}", "Hostname": "bare",
            "Env": model["Config"]["Env"], "HostConfig": host,
            "NetworkingConfig": {"EndpointsConfig": {"bare": {"IPAMConfig": {"IPv4Address": "10.99.0.9"}}}},
        })
        self.id = made["Id"]

    def first_byte(self):
        started = time.perf_counter()
        self.engine.ask("POST", f"/containers/{self.id}/start")
        deadline = started + 30
        while time.perf_counter() < deadline:
            try:
                with socket.create_connection(("10.99.0.9", 8080), timeout=5) as peer:
                    peer.sendall(b"GET / HTTP/1.1\r\nHost: bare\r\nConnection: close\r\n\r\n")
                    if peer.recv(1):
                        return time.perf_counter() - started
            except OSError:
                time.sleep(0.002)
        raise Failed("the bare container never answered")

    def stop(self):
        self.engine.ask("POST", f"/containers/{self.id}/stop?t=1")


def wake(report, stock, options):
    """Sleep and doze to the first byte through the proxy, beside a bare start."""
    awake, samples = (20, 6) if options.quick else (200, 40)
    dozers = names(10, "dozer")
    groups = {"default": ALWAYS, "dozers": ALWAYS | {"doze_after": "2s"}}
    with World(stock, LARGE, groups) as world:
        others, ours = names(awake), names(3, "sleeper")
        world.nuage.declare([*others, *ours, *dozers], lambda name: "dozers" if name in dozers else None)
        world.wake(others)
        world.wake(ours)
        container = next(c for c in world.nuage.containers() if c["Labels"]["nuage.site"] == full(ours[0]))
        bare = Bare(world, container["Id"])
        bare.first_byte()
        bare.stop()
        sleeping, plain = [], []
        for number in range(samples):
            name = ours[number % len(ours)]

            def through_us():
                world.nuage.sleep(name)
                time.sleep(0.5)
                answer = world.get(name)
                if answer.status != 200:
                    raise Failed(f"{name}: {answer}")
                sleeping.append(answer.first_byte)

            def without_us():
                time.sleep(0.5)
                plain.append(bare.first_byte())
                bare.stop()

            # Who is first changes, so that neither always follows the other's tidying up.
            turns = [through_us, without_us]
            for turn in turns if number % 2 else reversed(turns):
                turn()
            report.progress(f"wake {number + 1}/{samples}")
        report.progress("")
        report.note("wake", f"bare start to first byte:  {spread(plain)} ms")
        report.note("wake", f"sleep to first byte:       {spread(sleeping)} ms")
        ratio = percentile(sleeping, 0.95) / percentile(plain, 0.95)
        report.figure("wake", f"sleep, p50 to the bare engine's, {awake} awake", percentile(sleeping, 0.5) / percentile(plain, 0.5))
        report.figure("wake", f"sleep, p95 to the bare engine's, {awake} awake", ratio, most=1.25)

        world.wake(dozers, "/")
        for name in dozers:
            world.nuage.put(name, FILES)
        for path, most in (("/page.txt", 40), ("/small.php", None)):
            dozing = []
            for _ in range(max(1, samples // len(dozers))):
                world.wake(dozers, path)

                def all_doze():
                    seen = world.nuage.observed()
                    return all(seen.get(full(name), {}).get("state") == "dozing" for name in dozers)

                until("all of them doze", all_doze, 60, 0.2)
                time.sleep(1)
                for name in dozers:
                    state = world.nuage.state_of(name)
                    if state != "dozing":
                        raise Failed(f"{name} dozes no more but is {state}")
                    answer = world.get(name, path)
                    if answer.status != 200:
                        raise Failed(f"{name}: {answer}")
                    dozing.append(answer.first_byte)
                    time.sleep(0.1)
                report.progress(f"doze {path} {len(dozing)}")
            report.progress("")
            report.note("wake", f"doze to first byte of {path}: {spread(dozing)} ms")
            report.figure("wake", f"doze, p95 of {path}, {awake} awake", percentile(dozing, 0.95) * 1e3, "ms", most=most)


def burst(report, stock, options):
    """Many different sleeping sites asked at the same moment, while others are in use."""
    awake, asleep = (10, 10) if options.quick else (50, 50)
    with World(stock, LARGE, {"default": ALWAYS}) as world:
        busy, crowd = names(awake, "busy"), names(asleep, "crowd")
        world.nuage.declare([*busy, *crowd])
        world.wake(busy)
        for name in busy:
            world.nuage.put(name, FILES)
        world.wake(crowd)
        for name in crowd:
            world.nuage.sleep(name)

        def pick():
            path = "/small.php" if random.random() < 0.3 else "/page.txt"
            return full(random.choice(busy)), path, False

        background = Background(world.nuage.ca(), 20, pick)
        time.sleep(10)
        events = world.engine.events()
        budget, most = world.nuage.capacity()["budget_bytes"], 0

        async def all_at_once():
            return await asyncio.gather(*(world.client.get(full(name)) for name in crowd))

        async def watched():
            nonlocal most
            task = asyncio.create_task(all_at_once())
            while not task.done():
                used = await asyncio.to_thread(lambda: world.nuage.capacity()["used_bytes"])
                most = max(most, used)
                await asyncio.sleep(0.5)
            return task.result()

        began = time.time()
        answers = asyncio.run(watched())
        ended = time.time()
        time.sleep(2)
        steady = background.finish()
        starts = {}
        for action, attributes in events.close():
            if action == "start":
                site = attributes.get("nuage.site")
                starts[site] = starts.get(site, 0) + 1
        good = sum(answer.status == 200 for answer in answers)
        report.figure("burst", f"sites that answered 200, of {asleep} asked at once", good, least=asleep)
        if good < asleep:
            report.note("burst", f"statuses {dict(statuses((a,) for a in answers))}")
        report.figure("burst", "slowest of them", max(answer.first_byte for answer in answers), "s")
        report.figure("burst", "containers started", len(starts), least=asleep, most=asleep)
        report.figure("burst", "most starts of one of them", max(starts.values(), default=0), most=1)
        report.figure("burst", "most memory of sites to the budget", most / budget, most=1)
        before = [a.seconds for at, _, _, a in steady if at < began and a.status == 200]
        during = [a.seconds for at, _, _, a in steady if began <= at <= ended and a.status == 200]
        bad = [row for row in steady if row[-1].status != 200]
        report.note("burst", f"the {awake} awake, before: {spread(before)} ms of {len(before)}; during: {spread(during)} ms of {len(during)}")
        report.figure("burst", f"p99 of the {awake} awake meanwhile", percentile(during, 0.99) * 1e3, "ms", most=250)
        report.figure("burst", "requests to the awake that were not answered 200", len(bad), most=0)
        say_memory(report, "burst", "at the end", world)
