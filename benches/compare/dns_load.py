"""Questions and what became of them: dnsperf for the load, a socket of our own for a single one."""

import collections
import random
import re
import socket
import struct
import subprocess

from bench import CLIENT_CPU, Failure
from dns_zones import ADDRESS, ORIGIN, REVERSE, site

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


def absent(folder):
    """Random names, hardly one twice: the flood that no cache of answers helps against."""
    chance = random.Random(3)
    return lines(folder / "absent", (f"{chance.getrandbits(60):x}.{ORIGIN} A" for _ in range(500_000)))


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


def dnsperf(port, file, seconds, *more, cpus=CLIENT_CPU):
    """Starts dnsperf with EDNS; `finish` waits for it."""
    command = ["taskset", "-c", cpus, "dnsperf", "-s", "127.0.0.1", "-p", port, "-d", file, "-e", "-l", seconds, *more]
    return subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(child):
    """What dnsperf counted: octets are those of the average answer, codes a count by name."""
    said, _ = child.communicate()

    def number(label):
        found = re.search(label + r"\s+([\d.]+)", said)
        if child.returncode or not found:
            raise Failure(f"dnsperf failed:\n{said[-2000:]}")
        return float(found[1])

    sent, completed, lost = (int(number(f"Queries {what}:")) for what in ("sent", "completed", "lost"))
    octets = number(r"packet size:.*response") if completed else 0
    codes = {name: int(count) for name, count in re.findall(r"([A-Z]+) (\d+) \(", said)}
    return Answers(sent, completed, lost, number(r"Run time \(s\):"), octets, codes)


def ask(server, file, seconds, *more, cpus=CLIENT_CPU):
    """One round of load. A server that loses questions or answers with errors isn't measured but told."""
    answers = finish(dnsperf(server.port, file, seconds, *more, cpus=cpus))
    if answers.lost > 0.001 * answers.sent:
        raise Failure(f"{server.name} left more than one in a thousand questions unanswered: {answers}")
    if set(answers.codes) - {"NOERROR", "NXDOMAIN"}:
        raise Failure(f"{server.name} answered with errors: {answers.codes}")
    return answers
