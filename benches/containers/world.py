"""A machine of a given size: engine and nuage in one memory cgroup, nothing else in it."""

import asyncio
import os
import pathlib
import shutil
import subprocess

from engine import Cgroup, Engine, Failed, remove_tree, unmount
from load import Client
from nuage import Nuage, full

IMAGE = "nuage-php:8.2"
PROGRAMS = ["dockerd", "containerd", "containerd-shim-runc-v2", "runc", "docker-proxy", "docker-init"]
READ_AHEAD_KIB = 128
# What a site of a student looks like, for our purposes.
PAGE = "p" * 4096
FILES = {"page.txt": PAGE, "small.php": "<?php echo 'php ', 6 * 7;\n"}


def forget(folder):
    """Drops a folder's pages from memory, so that the next to read them pays for them."""
    for root, _, files in os.walk(folder):
        for file in files:
            try:
                descriptor = os.open(os.path.join(root, file), os.O_RDONLY | os.O_NOFOLLOW)
            except OSError:
                continue
            try:
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            except OSError:
                pass
            finally:
                os.close(descriptor)


class Stock:
    """What all parts share: programs of our own and an engine's folder with the image in it.

    The programs are copies because pages of a file are charged to whoever reads them first: another
    engine on this machine would pay for the dockerd of ours.
    """

    def __init__(self, scratch, binary, settings=None):
        self.folder = pathlib.Path(scratch)
        self.folder.mkdir(parents=True)
        self.image = self.folder.with_suffix(".disk")
        self.disk()
        self.settings = settings or {}
        programs = self.folder / "bin"
        programs.mkdir()
        for name in PROGRAMS:
            if path := shutil.which(name):
                shutil.copy2(path, programs / name)
        self.nuage = shutil.copy2(binary, programs / "nuage")
        os.environ["PATH"] = f"{programs}:{os.environ['PATH']}"
        self.worlds = 0
        cgroup = Cgroup(self.cgroup_name())
        engine = Engine(self.folder / "engine", cgroup, **self.settings)
        try:
            engine.start().load(IMAGE)
        finally:
            engine.stop()
            cgroup.remove()

    def disk(self):
        """A disk of our own, that reads ahead as much as a Linux disk does unless told otherwise.

        Little memory means that programs are read again and again; a machine that reads 8 MiB ahead
        of every page, as some virtual ones do, then measures its disk and nothing else.
        """
        with open(self.image, "wb") as image:
            image.truncate(64 << 30)
        for command in [
            ["mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1", self.image],
            # Its loop device goes with the mount, and the mount with our namespace.
            ["mount", "-o", "loop,discard,noatime", self.image, self.folder],
        ]:
            subprocess.run(command, check=True)
        found = subprocess.run(["losetup", "-n", "-O", "NAME", "-j", self.image], capture_output=True, text=True, check=True)
        device = found.stdout.split()[0]
        # Not in memory twice.
        subprocess.run(["losetup", "--direct-io=on", device], check=True)
        subprocess.run(["blockdev", "--setra", str(READ_AHEAD_KIB * 2), device], check=True)

    def cgroup_name(self):
        self.worlds += 1
        # The number of the process as the machine sees it: `sweep` asks whether it is still there.
        return f"nuage-bench-{self.worlds}-{os.environ['NUAGE_BENCH_PID']}"

    def close(self):
        # What the engine mounted within comes first.
        unmount(self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.image.unlink(missing_ok=True)


class World:
    """An engine and nuage in so many MiB; all of it is gone at the end."""

    def __init__(self, stock, mib, groups=None, budget=None):
        self.stock = stock
        forget(stock.folder / "engine/data")
        forget(stock.folder / "bin")
        self.mib = mib
        self.cgroup = Cgroup(stock.cgroup_name(), mib)
        # Saves some 15 MiB with 40 sites awake, and makes each start and end a third dearer (0.88 s of a
        # processor against 0.66): for small machines alone.
        environment = {"GOGC": "20"} if mib <= 512 else {}
        self.engine = Engine(stock.folder / "engine", self.cgroup, environment=environment, **stock.settings)
        self.folder = stock.folder / f"nuage-{stock.worlds}"
        self.folder.mkdir()
        self.nuage = Nuage(self.folder, stock.nuage, self.cgroup, self.engine, groups, budget)
        self.client = None

    def __enter__(self):
        try:
            self.engine.start()
            # An engine may count containers on a network that are gone, until it starts again.
            self.engine.ask("POST", "/networks/prune")
            self.nuage.start()
        except BaseException:
            self.__exit__()
            raise
        self.client = Client(self.nuage.ca())
        return self

    def __exit__(self, *_):
        # Kept for whoever asks why.
        keep = os.environ.get("NUAGE_BENCH_LOGS")
        if keep:
            pathlib.Path(keep).mkdir(parents=True, exist_ok=True)
            for name, log in [("nuage", self.folder / "log"), ("engine", self.engine.folder / "log")]:
                if log.exists():
                    shutil.copy(log, pathlib.Path(keep) / f"{self.cgroup.name}-{name}.log")
        try:
            self.nuage.stop()
            # Tidying up is not what is measured, and needs an engine that is there.
            self.cgroup.limit(None)
            if self.engine.process and self.engine.process.poll() is not None:
                self.engine.start()
            # The next nuage in these namespaces has the same addresses: this one's walls must be gone.
            self.nuage.cli("uninstall", check=False)
        except (OSError, Failed, subprocess.SubprocessError) as error:
            print(f"while tidying up: {error}")
        try:
            self.clear()
        except (OSError, Failed) as error:
            print(f"while tidying up: {error}")
        finally:
            self.engine.stop()
            # The engine makes its own rules anew when it starts.
            subprocess.run(["nft", "flush", "ruleset"], check=False)
            self.cgroup.remove()
            remove_tree(self.folder)

    def clear(self):
        """Removes what is left at the engine: all of it is ours."""
        if not self.engine.process or self.engine.process.poll() is not None:
            return
        # Everything in it is to end anyway, and killing them at once is faster than one by one.
        for container in self.engine.containers():
            if container["State"] == "paused":
                self.engine.ask("POST", f"/containers/{container['Id']}/unpause", accept=(204, 404, 409, 500))
            self.engine.ask("DELETE", f"/containers/{container['Id']}?force=1&v=1", accept=(204, 404, 409))
        self.engine.ask("POST", "/networks/prune", accept=(200, 409))

    # --- sites -------------------------------------------------------------------------------

    def get(self, name, path="/", **more):
        return asyncio.run(self.client.get(full(name), path, **more))

    def ask_all(self, names, path="/", at_once=4, https=False):
        """Every one of them, some at a time; answers by name."""
        answers = {}

        async def work():
            queue = list(reversed(names))

            async def worker():
                while queue:
                    name = queue.pop()
                    answers[name] = await self.client.get(full(name), path, https)

            await asyncio.gather(*(worker() for _ in range(at_once)))

        asyncio.run(work())
        return answers

    def wake(self, names, path="/"):
        """Wakes them by visiting them, and fails unless each answers."""
        for name, answer in self.ask_all(names, path).items():
            if answer.status != 200:
                raise Failed(f"{name} did not wake: {answer.status} {answer.error} {answer.body[:300]!r}\n{self.nuage.log()[-1500:]}")

    def sleep(self, names):
        for name in names:
            self.nuage.sleep(name)

    def memory(self):
        detail = self.cgroup.detail()
        detail["nuage"] = round(self.nuage.rss(), 1)
        return detail


def say_memory(report, part, when, world):
    detail = world.memory()
    words = ", ".join(f"{name} {value:g}" for name, value in detail.items())
    report.note(part, f"memory {when}, MiB: {words}")
    report.raw(part, memory=detail, when=when)
    return detail


def names(count, prefix="site"):
    return [f"{prefix}-{number:03}" for number in range(count)]
