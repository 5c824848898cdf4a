"""What the comparisons share: servers as child processes, their CPU time and memory, and the tables."""

import atexit
import collections
import os
import pathlib
import signal
import socket
import statistics
import subprocess
import time

TICKS = os.sysconf("SC_CLK_TCK")
SERVER_CPU, CLIENT_CPU = "0", "1"
ROOT = pathlib.Path(__file__).resolve().parents[2]
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
NUAGE = pathlib.Path(os.environ.get("NUAGE", TARGET / "release/nuage"))
os.environ["PATH"] += ":/usr/sbin:/sbin"


class Failure(SystemExit):
    """What could not be measured, and why. Uncaught, it ends the run with its text and exit code 1."""


# One round of one server: what it answered, in which time, and the CPU time that took.
Sample = collections.namedtuple("Sample", "operations seconds cpu")


def tree(pid):
    """A process and all below it."""
    pids = [pid]
    for task in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            pids += tree(int(child))
    return pids


class Server:
    """A server on CPUs of its own, with everything it starts."""

    def __init__(self, name, command, ready, folder, cpus=SERVER_CPU, patience=60):
        """Returns once `ready` says so, asked every 5 ms; `ready_seconds` is the time that took."""
        self.name = name
        self.log = pathlib.Path(folder) / f"{name}.log"
        started = time.monotonic()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(["taskset", "-c", cpus, *command], cwd=folder, stdout=log, stderr=log)
        atexit.register(self.stop)
        while not ready():
            if self.process.poll() is not None or time.monotonic() > started + patience:
                self.stop()
                tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-8:])
                raise Failure(f"{name} did not start within {patience} s; it said:\n{tail}")
            time.sleep(0.005)
        self.ready_seconds = time.monotonic() - started

    def cpu_seconds(self):
        """CPU time used so far, utime and stime (proc(5)): the kernel's work for the server counts."""
        total = 0
        for pid in tree(self.process.pid):
            fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            total += int(fields[11]) + int(fields[12])
        return total / TICKS

    def _mib(self, file, label):
        """The sum of one line of a /proc file over all processes."""
        kib = 0
        for pid in tree(self.process.pid):
            for line in pathlib.Path(f"/proc/{pid}/{file}").read_text().splitlines():
                if line.startswith(label + ":"):
                    kib += int(line.split()[1])
        return kib / 1024

    def memory_mib(self):
        """Proportional set size: memory shared between processes counts once."""
        return self._mib("smaps_rollup", "Pss")

    def resident_mib(self):
        """Resident set size: memory shared between processes counts for each."""
        return self._mib("status", "VmRSS")

    def peak_mib(self):
        """The most that was ever resident."""
        return self._mib("status", "VmHWM")

    def stop(self):
        if self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def listens(port):
    with socket.socket() as attempt:
        return attempt.connect_ex(("127.0.0.1", port)) == 0


def sample(server, load):
    """Runs a load once; `load` returns (operations, seconds)."""
    before = server.cpu_seconds()
    operations, seconds = load()
    return Sample(operations, seconds, server.cpu_seconds() - before)


def rate(samples):
    """Operations a second, median of the rounds."""
    return statistics.median(s.operations / s.seconds for s in samples)


def cost(samples):
    """CPU time per operation in microseconds, median of the rounds."""
    return statistics.median(s.cpu / s.operations for s in samples) * 1e6


def measure(server, rounds, load):
    """Runs a load some times. Medians of rate and CPU."""
    samples = [sample(server, load) for _ in range(rounds)]
    return {"name": server.name, "rate": rate(samples), "cpu": cost(samples), "memory": server.memory_mib()}


def markdown(title, head, rows):
    """Prints one table."""
    print(f"\n{title}\n")
    for row in (head, ["---"] * len(head), *rows):
        print("| " + " | ".join(map(str, row)) + " |")


def table(title, unit, rows):
    """Prints each server's figures, and nuage's as ratios of each other's."""
    ours = next(row for row in rows if row["name"] == "nuage")
    head = ["server", f"{unit}/s", f"CPU per {unit}, µs", "memory, MiB", "nuage's CPU to its", "nuage's memory to its"]
    markdown(title, head, [
        [row["name"], f"{row['rate']:,.0f}", f"{row['cpu']:.2f}", f"{row['memory']:.1f}",
         f"{ours['cpu'] / row['cpu']:.2f}", f"{ours['memory'] / row['memory']:.2f}"]
        for row in rows
    ])
