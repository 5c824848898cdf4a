"""What the comparisons share: servers as child processes, their CPU time and memory, and the table."""

import atexit
import os
import pathlib
import signal
import socket
import statistics
import subprocess
import sys
import time

TICKS = os.sysconf("SC_CLK_TCK")
SERVER_CPU, CLIENT_CPU = "0", "1"


def tree(pid):
    """A process and all below it."""
    pids = [pid]
    for task in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            pids += tree(int(child))
    return pids


class Server:
    """A server on one CPU, with everything it starts."""

    def __init__(self, name, command, ready, folder):
        self.name = name
        self.log = open(pathlib.Path(folder) / f"{name}.log", "wb")
        command = ["taskset", "-c", SERVER_CPU, *command]
        self.process = subprocess.Popen(command, cwd=folder, stdout=self.log, stderr=self.log)
        atexit.register(self.stop)
        deadline = time.monotonic() + 60
        while not ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"{name} did not start: see {self.log.name}")
            time.sleep(0.05)

    def cpu_seconds(self):
        total = 0
        for pid in tree(self.process.pid):
            fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            total += int(fields[11]) + int(fields[12])
        return total / TICKS

    def memory_mib(self):
        """Proportional set size: memory shared between processes counts once."""
        total = 0
        for pid in tree(self.process.pid):
            for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
        return total / 1024

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


def measure(server, rounds, load):
    """Runs a load some times; `load` returns (operations, seconds). Medians of rate and CPU."""
    rates, costs = [], []
    for _ in range(rounds):
        before = server.cpu_seconds()
        operations, seconds = load()
        cost = server.cpu_seconds() - before
        rates.append(operations / seconds)
        costs.append(cost / operations * 1e6)
    return {
        "name": server.name,
        "rate": statistics.median(rates),
        "cpu": statistics.median(costs),
        "memory": server.memory_mib(),
    }


def table(title, unit, rows):
    """Prints each server's figures, and nuage's as ratios of each other's."""
    ours = next(row for row in rows if row["name"] == "nuage")
    print(f"\n{title}\n")
    print(f"| server | {unit}/s | CPU per {unit}, µs | memory, MiB | nuage's CPU to its | nuage's memory to its |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        cpu, memory = ours["cpu"] / row["cpu"], ours["memory"] / row["memory"]
        print(f"| {row['name']} | {row['rate']:,.0f} | {row['cpu']:.2f} | {row['memory']:.1f} | {cpu:.2f} | {memory:.2f} |")
