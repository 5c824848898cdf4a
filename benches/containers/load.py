"""Visitors: requests over fresh connections, from several addresses, each status and time kept."""

import asyncio
import bisect
import collections
import itertools
import math
import multiprocessing
import random
import socket
import ssl
import struct
import time

SERVER = "192.0.2.10"
SERVER6 = "2001:db8::10"
# Visitors have addresses of their own; one alone would meet the limits for one address.
VISITORS = [f"192.0.2.{last}" for last in range(101, 117)]
# No robot: those wake nothing.
AGENT = "Mozilla/5.0 (X11; Linux x86_64)"

Answer = collections.namedtuple("Answer", "status first_byte seconds body error")


def percentile(values, share):
    """The smallest value that so large a share of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * share) - 1)] if ordered else float("nan")


class Client:
    """What all visitors know: the authority's certificate."""

    def __init__(self, ca=None):
        self.tls = ssl.create_default_context(cafile=ca) if ca else None
        self.sources = itertools.cycle(VISITORS)

    async def get(self, host, path="/", https=True, accept="*/*", patience=60, source=None):
        """One request; a failure is an answer with status 0."""
        started = time.perf_counter()
        try:
            async with asyncio.timeout(patience):
                return await self.exchange(host, path, https, accept, started, source)
        except (OSError, asyncio.TimeoutError, asyncio.IncompleteReadError, ValueError) as error:
            seconds = time.perf_counter() - started
            return Answer(0, seconds, seconds, b"", f"{type(error).__name__}: {error}")

    async def exchange(self, host, path, https, accept, started, source):
        port, tls = (443, {"ssl": self.tls, "server_hostname": host}) if https else (80, {})
        source = source or next(self.sources)
        reader, writer = await asyncio.open_connection(SERVER, port, local_addr=(source, 0), **tls)
        try:
            writer.write(
                f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: {AGENT}\r\n"
                f"Accept: {accept}\r\nConnection: close\r\n\r\n".encode()
            )
            line = await reader.readline()
            first_byte = time.perf_counter() - started
            body = line + await reader.read()
            while len(piece := await reader.read()) > 0:
                body += piece
            status = int(line.split()[1])
            return Answer(status, first_byte, time.perf_counter() - started, body, None)
        except IndexError:
            raise ValueError("closed without an answer") from None
        finally:
            writer.close()


def resolves(name, server=SERVER):
    """Whether our own DNS has an A record for a name."""
    question = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    query = struct.pack(">6H", random.randrange(1 << 16), 0, 1, 0, 0, 0) + question + b"\0\0\1\0\1"
    with socket.socket(type=socket.SOCK_DGRAM) as asked:
        asked.settimeout(1)
        asked.sendto(query, (server, 53))
        try:
            answer = asked.recv(512)
        except OSError:
            return False
    return answer[:2] == query[:2] and answer[3] & 15 == 0 and answer[6:8] != b"\0\0"


class Zipf:
    """Sites as visitors like them: a few much, most hardly ever."""

    def __init__(self, sites, exponent):
        self.sites = sites
        weights = [rank**-exponent for rank in range(1, len(sites) + 1)]
        total = sum(weights)
        self.shares = [weight / total for weight in weights]
        self.sums = list(itertools.accumulate(self.shares))

    def pick(self):
        place = bisect.bisect(self.sums, random.random())
        return self.sites[min(place, len(self.sites) - 1)]

    def awake(self, rate, seconds):
        """How many are asked within so many seconds, on average."""
        return sum(1 - math.exp(-rate * seconds * share) for share in self.shares)

    @classmethod
    def for_awake(cls, sites, wanted, rate, seconds):
        """The liking that keeps so many awake."""
        low, high = 0.0, 4.0
        for _ in range(30):
            middle = (low + high) / 2
            if cls(sites, middle).awake(rate, seconds) > wanted:
                low = middle
            else:
                high = middle
        return cls(sites, low)


async def traffic(client, rate, seconds, pick, stop=lambda: False):
    """Requests at random moments at a mean rate, however long the answers take."""
    answers, pending = [], set()
    ends = time.monotonic() + seconds
    moment = time.monotonic()

    async def one():
        host, path, https = pick()
        began = time.time()
        answers.append((began, host, path, await client.get(host, path, https)))

    while time.monotonic() < ends and not stop():
        moment += random.expovariate(rate)
        await asyncio.sleep(max(0, moment - time.monotonic()))
        task = asyncio.create_task(one())
        pending.add(task)
        task.add_done_callback(pending.discard)
    while pending:
        await asyncio.wait(pending)
    return answers


class Background:
    """Traffic from a process of its own, so that one load never waits for another's."""

    def __init__(self, ca, rate, pick):
        # Forked: `pick` may be any function.
        context = multiprocessing.get_context("fork")
        self.end = context.Event()
        self.reader, writer = context.Pipe(False)
        self.process = context.Process(target=self.work, args=(ca, rate, pick, writer), daemon=True)
        self.process.start()

    def work(self, ca, rate, pick, writer):
        random.seed()
        answers = asyncio.run(traffic(Client(ca), rate, 86_400, pick, self.end.is_set))
        writer.send([(began, host, path, answer._replace(body=b"")) for began, host, path, answer in answers])

    def finish(self):
        self.end.set()
        answers = self.reader.recv()
        self.process.join()
        return answers


def statuses(answers):
    """How many of each status; failures by their words."""
    return collections.Counter(
        str(answer.status) if answer.status else answer.error.split(":")[0] for *_, answer in answers
    )
