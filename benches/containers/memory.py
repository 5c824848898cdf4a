"""What fits into how much memory."""

import itertools
import random
import time

from engine import Failed, until
from load import Background, Zipf, statuses
from nuage import full
from speed import ALWAYS, spread
from world import FILES, World, names, say_memory

GIB = 1024
# What the school counted on its own servers: containers awake in so many MiB.
SCHOOL = {256: 30, 512: 180, 2048: 600}


def put_all(report, world, sites):
    for number, name in enumerate(sites):
        world.nuage.put(name, FILES)
        if number % 50 == 0:
            report.progress(f"files {number}/{len(sites)}")
    report.progress("")


def hold(report, stock, options):
    """A school's day in minutes: many sites, some hot, coming and going."""
    declared, hot, rate = (60, 15, 8) if options.quick else (900, 200, 15)
    # Of those awake at once, these are there because they are liked; the others because somebody came by.
    liked = hot // 2
    minutes = options.minutes or (1 if options.quick else 10)
    # A start and an end take about a second of a processor: a sleep much shorter than this would ask
    # two processors for more starts than they have time for.
    sleep_after, doze_after = (20, 12) if options.quick else (150, 60)
    groups = {"default": {"sleep_after": f"{sleep_after}s", "doze_after": f"{doze_after}s"}}
    with World(stock, 4 * GIB, groups) as world:
        sites = names(declared)
        world.nuage.declare(sites)
        put_all(report, world, sites)
        zipf = Zipf.for_awake(sites, liked, rate, sleep_after)
        # The favourites are awake when the day begins.
        world.wake(sites[:hot], "/page.txt")

        def pick():
            path = random.choices(["/page.txt", "/small.php", "/"], [70, 20, 10])[0]
            return full(zipf.pick()), path, random.random() < 0.5

        # Visitors of the sites hardly anybody likes: in the end every site has been asked.
        rest = itertools.cycle(reversed(sites[hot:]))
        sweep_rate = (declared - hot) / (0.9 * minutes * 60)
        loads = [
            Background(world.nuage.ca(), rate, pick),
            Background(world.nuage.ca(), sweep_rate, lambda: (full(next(rest)), "/page.txt", False)),
        ]
        woken = world.nuage.wakes()
        began = time.monotonic()
        most_rss, most_awake, awake_sum, looks, most_used = 0, 0, 0, 0, 0
        while time.monotonic() - began < minutes * 60 and all(load.process.is_alive() for load in loads):
            time.sleep(2)
            looks += 1
            awake = world.nuage.awake()
            most_awake, awake_sum = max(most_awake, awake), awake_sum + awake
            most_rss, most_used = max(most_rss, world.nuage.rss()), max(most_used, world.cgroup.used())
            report.progress(f"hold {(time.monotonic() - began) / 60:.1f} min, {awake} awake, {world.memory()}")
            report.raw("hold", awake=awake, memory=world.memory())
        report.progress("")
        answers = [answer for load in loads for answer in load.finish()]
        seconds = time.monotonic() - began
        counts = statuses(answers)
        for status, count in counts.most_common():
            times = [a.first_byte for *_, a in answers if (str(a.status) if a.status else a.error.split(":")[0]) == status]
            report.note("hold", f"status {status}: {count}, first byte {spread(times)} ms")
        for at, host, path, answer in [row for row in answers if row[-1].status != 200][:10]:
            report.note("hold", f"not 200: {host}{path} after {answer.seconds:.2f} s: {answer.status} {answer.error or ''}")
        report.figure("hold", f"requests in {seconds / 60:.1f} minutes over {declared} sites", len(answers))
        report.figure("hold", "sites asked", len({host for _, host, *_ in answers} | {full(name) for name in sites[:hot]}), least=declared)
        wakes = ", ".join(f"{count - woken.get(state, 0)} from {state}" for state, count in world.nuage.wakes().items())
        report.note("hold", f"wakes meanwhile: {wakes}")
        report.figure("hold", "awake at once, mean", round(awake_sum / max(1, looks), 1))
        report.figure("hold", "awake at once, most", most_awake)
        report.figure("hold", "requests not answered 200", len(answers) - counts["200"], most=0)
        report.figure("hold", "processes killed for want of memory", world.cgroup.oom_kills(), most=0)
        report.figure("hold", "most memory under way", most_used / 2**30, "GiB")

        # At rest: the hottest are awake, the rest sleeps, nobody asks.
        def at_rest():
            world.wake(sites[:hot], "/page.txt")
            states = {name: live["state"] for name, live in world.nuage.observed().items()}
            wanted = {full(name) for name in sites[:hot]}
            world.sleep([name.split(".")[0] for name, state in states.items()
                         if state in ("awake", "dozing", "waking") and name not in wanted])
            return sum(state in ("awake", "dozing") for state in states.values()) == hot

        until(f"just {hot} are awake", at_rest, 300, 1)
        time.sleep(min(30, sleep_after / 2))
        detail = say_memory(report, "hold", f"at rest, {world.nuage.awake()} awake", world)
        report.figure("hold", f"awake at rest, of {declared}", world.nuage.awake(), least=hot, most=hot)
        report.figure("hold", "memory at rest", detail["used"] / 1024, "GiB", most=2.4)
        report.figure("hold", "nuage's own memory at rest", detail["nuage"], "MiB", most=64)
        report.figure("hold", "nuage's own memory, most", round(most_rss, 1), "MiB")
        good = world.ask_all(sites[:hot], "/page.txt")
        report.figure("hold", "of those awake, answer 200", sum(a.status == 200 for a in good.values()), least=hot)


def small(report, stock, options):
    """Many sites on a small machine: all are served, by turns."""
    declared, wanted = (50, 20) if options.quick else (180, 40)
    with World(stock, 512, {"default": ALWAYS}) as world:
        sites = names(declared)
        world.nuage.declare(sites)
        put_all(report, world, sites)
        most, answered, times = 0, 0, []
        for number, name in enumerate(sites):
            answer = world.get(name)
            answered += answer.status == 200
            times.append(answer.first_byte)
            if answer.status != 200:
                report.note("small", f"not 200: {name} after {answer.seconds:.2f} s: {answer.status} {answer.error or ''} {answer.body[:200]!r}")
            most = max(most, world.nuage.awake())
            report.raw("small", site=number, awake=world.nuage.awake(), status=answer.status, memory=world.memory())
            report.progress(f"small {number + 1}/{declared}, {most} awake, {world.memory()}")
        report.progress("")
        report.figure("small", f"sites that answered 200, of {declared} by turns in 512 MiB", answered, least=declared)
        report.note("small", f"first byte of a site's first visit: {spread(times)} ms")
        first = answered
        # A first visit also makes the site's disk and container; the next ones only wake it.
        again = []
        for name in sites[: declared // 3]:
            answer = world.get(name)
            answered += answer.status == 200
            again.append(answer.first_byte)
            report.progress(f"small again {len(again)}/{declared // 3}")
        report.progress("")
        report.note("small", f"first byte when asked again after all the others: {spread(again)} ms")
        report.figure("small", "of those asked again, not answered 200", len(again) - (answered - first), most=0)
        # PHP ends ten seconds after its last page; then more sites fit, for as long as they are just read.
        time.sleep(12)
        most = max(most, fill(report, "small", world, sites))
        report.figure("small", "awake at once, most", most)
        together = answer_together(world)
        report.figure("small", "awake at once, that answer while the others stay awake", together, least=wanted)
        report.figure("small", "processes killed for want of memory", world.cgroup.oom_kills(), most=0)
        say_memory(report, "small", "at the end", world)


def awake_sites(world):
    return sorted(
        name.split(".")[0] for name, live in world.nuage.observed().items() if live["state"] == "awake"
    )


def answer_together(world):
    """How many are awake now, answer, and are awake still."""
    before = awake_sites(world)
    answers = world.ask_all(before, "/page.txt", at_once=1)
    good = {name for name, answer in answers.items() if answer.status == 200}
    return len(good & set(awake_sites(world)))


def table(report, stock, options):
    """How many are awake at once in how much memory."""
    steps = [256, 512] if options.quick else [256, 512, 2048, 4096]
    rows = []
    for mib in steps:
        try:
            rows.append((mib, *filled(report, stock, mib)))
        except Failed as error:
            report.problem("table", f"{mib} MiB: {error}")
            rows.append((mib, 0, 0.0, 0.0))
    report.say("\n| memory, MiB | awake at once | memory used, MiB | MiB a site | the school's own |")
    report.say("|---|---|---|---|---|")
    for mib, most, used, each in rows:
        school = SCHOOL.get(mib, "")
        report.say(f"| {mib} | {most} | {used:.0f} | {each:.1f} | {school} |")
        report.raw("table", mib=mib, awake=most, used=used, each=each, school=school)
    report.say()


def filled(report, stock, mib):
    with World(stock, mib, {"default": ALWAYS}) as world:
        empty = world.cgroup.used()
        sites = names(mib // 8 + 20)
        world.nuage.declare(sites)
        put_all(report, world, sites)
        fill(report, f"table {mib} MiB", world, sites)
        together = answer_together(world)
        kills = world.cgroup.oom_kills()
        used = world.cgroup.used()
        if kills:
            report.problem("table", f"{mib} MiB: {kills} processes killed for want of memory")
        say_memory(report, "table", f"of {mib}, {together} awake", world)
        return together, used / 2**20, (used - empty) / 2**20 / max(1, together)


def fill(report, part, world, sites):
    """Wakes one site after the other until no more are awake for it; how many were."""
    most, since = 0, 0
    for name in sites:
        answer = world.get(name, "/page.txt")
        awake = world.nuage.awake()
        if answer.status != 200:
            report.note(part, f"{awake} awake: {name} got {answer.status} {answer.error or ''} after {answer.seconds:.1f} s")
        since = 0 if awake > most else since + 1
        most = max(most, awake)
        report.progress(f"{part}: {awake} awake, most {most}")
        # What is measured moves the budget a little: full is when it stays full for a while.
        if since >= 12 or world.cgroup.own_oom_kills():
            break
    report.progress("")
    return most
