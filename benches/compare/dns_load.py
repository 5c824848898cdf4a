"""Questions and what became of them.

dnsperf is the load over UDP. Two small programs beside it do what it can't, and report like it:
tcp_load.c many short connections, udp_flood.c a flood that waits for no answers.
"""

import collections
import pathlib
import random
import re
import socket
import struct
import subprocess

from bench import CLIENT_CPU, Failure
from dns_zones import ADDRESS, ORIGIN, REVERSE, run, site

PATIENCE = 120

Answers = collections.namedtuple("Answers", "sent completed lost seconds octets codes")


def mixed(folder, names):
    """70 % A and AAAA, 10 % PTR, 20 % for names that do not exist; the same at every run."""
    chance = random.Random(1)

    def question():
        draw, name = chance.random(), f"{site(chance.randrange(names))}.{ORIGIN}"
        if draw < 0.35:
            return f"{name} A"
        if draw < 0.7:
            return f"{name} AAAA"
        if draw < 0.8:
            return f"{REVERSE} PTR"
        return f"missing-{chance.randrange(10**9)}.{ORIGIN} A"

    return lines(folder / "mixed", (question() for _ in range(50_000)))


def existing(folder, names):
    """Names that exist: what visitors' resolvers ask."""
    chance = random.Random(2)
    return lines(folder / "existing", (f"{site(chance.randrange(names))}.{ORIGIN} A" for _ in range(50_000)))


def lines(path, texts):
    path.write_text("".join(f"{text}\n" for text in texts))
    return path


def right(port, name):
    """Whether a server gives the right answer now: the site's address, without an error.

    An echo gives the question back; for it that is right.
    """
    labels = b"".join(bytes([len(label)]) + label.encode() for label in f"{name}.{ORIGIN}".split("."))
    question = struct.pack("!6H", 0x4E55, 0, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!2H", 1, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.settimeout(0.05)
        try:
            asker.connect(("127.0.0.1", port))
            asker.send(question)
            reply = asker.recv(4096)
        except OSError:
            return False
    return reply == question or (reply[3] & 15 == 0 and socket.inet_aton(ADDRESS) in reply)


def start(command, cpus=CLIENT_CPU):
    """Starts a load; `finish` waits for it."""
    words = ["taskset", "-c", cpus, *map(str, command)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def dnsperf(port, file, seconds, *more):
    """Questions with EDNS for some seconds."""
    return ["dnsperf", "-s", "127.0.0.1", "-p", port, "-d", file, "-e", "-l", seconds, *more]


def compiled(folder, name):
    """A program from name.c beside this file. As it's C, none of the code that is measured is in it."""
    binary = folder / name
    if not binary.exists():
        run(folder, "cc", "-O2", "-o", binary, pathlib.Path(__file__).with_name(f"{name}.c"))
    return binary


def finish(child):
    """What a load counted: octets are those of the average answer, codes a count by name.

    dnsperf can hang where answers fail to come, so there is an end to waiting.
    """
    try:
        said, _ = child.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired as late:
        child.kill()
        child.wait()
        raise Failure(f"{' '.join(child.args)}: no end after {PATIENCE} s") from late

    def number(label):
        found = re.search(label + r"\s+([\d.]+)", said)
        if child.returncode or not found:
            raise Failure(f"{' '.join(child.args)} failed:\n{said[-2000:]}")
        return float(found[1])

    sent, completed, lost = (int(number(f"Queries {what}:")) for what in ("sent", "completed", "lost"))
    octets = number(r"packet size:.*response") if completed else 0
    codes = {name: int(count) for name, count in re.findall(r"([A-Z]+) (\d+) \(", said)}
    return Answers(sent, completed, lost, number(r"Run time \(s\):"), octets, codes)


def ask(server, command, cpus=CLIENT_CPU):
    """One round of load. A server that loses questions or answers with errors isn't measured but told."""
    answers = finish(start(command, cpus))
    if not answers.completed or answers.lost > 0.001 * answers.sent:
        raise Failure(f"{server.name} left more than one in a thousand questions unanswered: {answers}")
    if set(answers.codes) - {"NOERROR", "NXDOMAIN"}:
        raise Failure(f"{server.name} answered with errors: {answers.codes}")
    return answers
