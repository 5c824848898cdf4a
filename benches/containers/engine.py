"""A Docker Engine of the benchmark's own, in a memory cgroup that holds all there is to hold: the
engine, containerd, shims, containers, their kernel memory, and whatever else is put into it.

`run` has put this process into a mount, network and PID namespace of its own before: what is mounted,
listens or filters here is nobody else's business, and ends with us, however we end.
"""

import http.client
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.parse

CGROUPS = pathlib.Path("/sys/fs/cgroup")
MIB = 1 << 20

# Debian's engine as it is, but for a proxy nobody needs.
ENGINE_OPTIONS = ["--userland-proxy=false"]


class Failed(Exception):
    """Something the benchmark needs does not work."""


def until(what, done, seconds=30, every=0.02):
    """Waits for something to become true; what it then was."""
    deadline = time.monotonic() + seconds
    while True:
        value = done()
        if value:
            return value
        if time.monotonic() > deadline:
            raise Failed(f"never, within {seconds} s: {what}")
        time.sleep(every)


class Cgroup:
    """A memory cgroup (version 1) and those of the other controllers the engine makes by its name."""

    def __init__(self, name, limit_mib=None):
        self.name = name
        self.folder = CGROUPS / "memory" / name
        self.folder.mkdir()
        (self.folder / "memory.use_hierarchy").write_text("1")
        if limit_mib:
            self.limit(limit_mib)

    def limit(self, mib):
        """So many MiB, or (None) as many as there are."""
        (self.folder / "memory.limit_in_bytes").write_text(str(int(mib * MIB) if mib else -1))

    def number(self, file):
        return int((self.folder / file).read_text())

    def enter(self):
        """For `preexec_fn`: the process to be becomes a member, of usual priority."""
        os.setpriority(os.PRIO_PROCESS, 0, 0)
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    def used(self):
        """Octets in use that can't be had back at no cost: all but file pages nobody uses."""
        stat = dict(line.split() for line in (self.folder / "memory.stat").read_text().splitlines())
        return self.number("memory.usage_in_bytes") - int(stat["total_inactive_file"])

    def detail(self):
        stat = dict(line.split() for line in (self.folder / "memory.stat").read_text().splitlines())
        mib = {
            "usage": self.number("memory.usage_in_bytes"),
            "used": self.used(),
            "anonymous": int(stat["total_rss"]),
            "files": int(stat["total_cache"]),
            "kernel": self.number("memory.kmem.usage_in_bytes"),
            "most": self.number("memory.max_usage_in_bytes"),
            # File pages thrown away too soon, and read again: what want of memory looks like first.
            "read again": int(stat.get("total_workingset_refault_file", 0)) * os.sysconf("SC_PAGE_SIZE"),
        }
        return {name: round(octets / MIB, 1) for name, octets in mib.items()}

    def oom_kills(self):
        """Processes killed because this cgroup or one within it was full."""
        kills = 0
        for file in self.folder.rglob("memory.oom_control"):
            for line in file.read_text().splitlines():
                if line.startswith("oom_kill "):
                    kills += int(line.split()[1])
        return kills

    def own_oom_kills(self):
        """Those killed because all of it was full, rather than one container in it."""
        for line in (self.folder / "memory.oom_control").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
        return 0

    def processes(self):
        found = set()
        for controller in CGROUPS.iterdir():
            top = controller / self.name
            for file in [top / "cgroup.procs", *top.rglob("cgroup.procs")]:
                try:
                    found.update(map(int, file.read_text().split()))
                except OSError:
                    pass
        return found - {0, os.getpid()}

    def remove(self):
        for attempt in range(50):
            for pid in self.processes():
                try:
                    os.kill(pid, signal.SIGKILL)
                    # One that is stopped or frozen dies only when it goes on.
                    os.kill(pid, signal.SIGCONT)
                except OSError:
                    pass
            left = False
            for controller in CGROUPS.iterdir():
                top = controller / self.name
                if not top.is_dir():
                    continue
                for frozen in top.rglob("freezer.state"):
                    try:
                        frozen.write_text("THAWED")
                    except OSError:
                        pass
                folders = sorted(top.rglob("*/"), key=lambda folder: len(folder.parts), reverse=True)
                for folder in [*folders, top]:
                    try:
                        folder.rmdir()
                    except OSError:
                        left |= folder == top and top.is_dir()
            if not left:
                return
            time.sleep(0.1)
        print(f"left behind: cgroup {self.name}")


class Api(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path, timeout=120):
        super().__init__("localhost", timeout=timeout)
        self.path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def ask(path, method, target, body=None, timeout=120):
    """One request to a Unix socket: the status, and the answer as JSON where it is."""
    connection = Api(path, timeout)
    try:
        text = None if body is None else json.dumps(body)
        connection.request(method, target, text, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        data = answer.read()
    finally:
        connection.close()
    try:
        return answer.status, json.loads(data) if data else None
    except ValueError:
        return answer.status, data.decode(errors="replace")


class Engine:
    """dockerd and its containerd in a folder and a cgroup."""

    def __init__(self, folder, cgroup, options=ENGINE_OPTIONS, environment=None):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.cgroup = cgroup
        self.socket = self.folder / "docker.sock"
        self.address = f"unix://{self.socket}"
        self.options, self.environment = options, environment or {}
        self.process = None

    def start(self):
        config = self.folder / "daemon.json"
        config.write_text("{}")
        command = [
            "dockerd", "--config-file", config, "--data-root", self.folder / "data",
            "--exec-root", self.folder / "exec", "-p", self.folder / "pid", "-H", self.address,
            "--cgroup-parent", f"/{self.cgroup.name}/ct", *self.options,
        ]
        log = open(self.folder / "log", "ab")
        self.process = subprocess.Popen(
            command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, preexec_fn=self.cgroup.enter,
            env=os.environ | self.environment, start_new_session=True,
        )
        until("the engine answers", self.answers, 60)
        return self

    def answers(self):
        if self.process.poll() is not None:
            raise Failed(f"dockerd ended: {(self.folder / 'log').read_text()[-2000:]}")
        try:
            return ask(self.socket, "GET", "/_ping")[0] == 200
        except OSError:
            return False

    def ask(self, method, target, body=None, accept=(200, 201, 204, 304)):
        status, answer = ask(self.socket, method, target, body)
        if status not in accept:
            raise Failed(f"{method} {target}: {status} {answer}")
        return answer

    def containers(self, **filters):
        text = urllib.parse.quote(json.dumps(filters))
        return self.ask("GET", f"/containers/json?all=1&filters={text}")

    def load(self, image):
        """Takes an image over from the machine's own engine."""
        save = subprocess.Popen(["docker", "save", image], stdout=subprocess.PIPE)
        # Outside the cgroup; what the engine itself takes for it is page cache.
        subprocess.run(
            ["docker", "-H", self.address, "load", "-q"], stdin=save.stdout, check=True,
            stdout=subprocess.DEVNULL,
        )
        if save.wait() != 0:
            raise Failed(f"docker save {image}")

    def events(self):
        return Events(self.socket)

    def pids(self):
        """dockerd's and containerd's."""
        children = pathlib.Path(f"/proc/{self.process.pid}/task").glob("*/children")
        return [self.process.pid, *(int(pid) for file in children for pid in file.read_text().split())]

    def stop(self):
        if self.process is None:
            return
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None


class Events:
    """What the engine says happens to containers, heard in the background."""

    def __init__(self, path):
        filters = urllib.parse.quote(json.dumps({"type": ["container"]}))
        self.connection = Api(path, None)
        self.connection.request("GET", f"/events?filters={filters}")
        self.answer = self.connection.getresponse()
        self.heard = []
        self.thread = threading.Thread(target=self.listen, daemon=True)
        self.thread.start()

    def listen(self):
        try:
            for line in self.answer:
                event = json.loads(line)
                self.heard.append((event["Action"], event["Actor"]["Attributes"]))
        except (OSError, ValueError, AttributeError, http.client.HTTPException):
            pass

    def close(self):
        try:
            self.connection.sock.shutdown(socket.SHUT_RDWR)
        except (OSError, AttributeError):
            pass
        return self.heard


def image_there(image):
    return subprocess.run(["docker", "image", "inspect", image], capture_output=True).returncode == 0


def resident_mib(pid, field="VmRSS"):
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    return 0.0


def network(ipv4, ipv6, more=()):
    """Makes the network namespace look like a machine on the internet that leads nowhere."""
    # /sys still shows the interfaces of the namespace it was mounted in.
    aside = tempfile.mkdtemp()
    for mount in [
        ["--rbind", CGROUPS, aside], ["-t", "sysfs", "sysfs", "/sys"], ["--rbind", aside, CGROUPS],
    ]:
        subprocess.run(["mount", *mount], check=True)
    subprocess.run(["umount", "-l", aside], check=True)
    os.rmdir(aside)
    for command in [
        ["link", "set", "lo", "up"],
        ["link", "add", "eth0", "type", "veth", "peer", "name", "nowhere"],
        ["link", "set", "nowhere", "up"],
        ["addr", "add", f"{ipv4}/24", "dev", "eth0"],
        ["-6", "addr", "add", f"{ipv6}/64", "dev", "eth0", "nodad"],
        ["link", "set", "eth0", "up"],
        ["route", "add", "default", "dev", "eth0"],
        *(["addr", "add", f"{address}/24", "dev", "eth0"] for address in more),
    ]:
        subprocess.run(["ip", *command], check=True)


def sweep(prefix, scratch):
    """Removes the cgroups and files of earlier runs whose process is no more."""
    memory = CGROUPS / "memory"
    for folder in memory.glob(f"{prefix}-*"):
        pid = folder.name.rsplit("-", 1)[1]
        if not pathlib.Path(f"/proc/{pid}").exists():
            leftover = Cgroup.__new__(Cgroup)
            leftover.name, leftover.folder = folder.name, folder
            leftover.remove()
    for path in pathlib.Path(scratch).glob(f"{prefix}-*"):
        pid = path.stem.rsplit("-", 1)[1]
        if not pathlib.Path(f"/proc/{pid}").exists():
            shutil.rmtree(path, ignore_errors=True)
            if path.is_file():
                path.unlink()


def unmount(folder):
    """Takes off whatever is mounted at a folder and below it."""
    folder = pathlib.Path(folder)
    mounts = [line.split()[4] for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines()]
    below = [mount for mount in mounts if mount == str(folder) or mount.startswith(f"{folder}/")]
    for mount in sorted(below, key=len, reverse=True):
        subprocess.run(["umount", "-l", mount], capture_output=True)


def remove_tree(folder):
    """A folder with whatever is mounted below it."""
    unmount(folder)
    shutil.rmtree(folder, ignore_errors=True)
    if pathlib.Path(folder).exists():
        print(f"left behind: {folder}")
