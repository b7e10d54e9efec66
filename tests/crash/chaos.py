"""Random kills and stops under mixed load, with the books kept: python -m tests.crash.chaos --seconds 3600.

A system of a keeper (this process), several servers, senders, receivers, callers, makers of arrays and names, and a
pool; a chaos monkey kills, or stops for a while, one of them every few milliseconds, and puts another in its place.

Kept in the books: each sender numbers its messages for each mailbox and writes down, in a file of its own, what was
accepted; each receiver writes down what it has received. In the end, for each mailbox: nothing was received twice,
each sender's numbers came in order, and each accepted message of a sender that lives, to a mailbox whose receivers
live, has arrived. A receiver that was killed may take one message with it, the one it had just taken.

Every operation has a watchdog. Written as JSON: kills, stops, rounds, what the survivors did, the time from a kill to
the error at a caller, rescued waits, what was leaked, and resident size, descriptors, /dev/shm and latency over time.
"""

import argparse
import collections
import faulthandler
import gc
import json
import os
import platform
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

import shmipc
from shmipc import _native
from shmipc.memory import membership

WATCHDOG = float(
    os.environ.get("CHAOS_WATCHDOG", "60")
)  # seconds that any operation may take, on a machine that does much else
BOXES = 3
STOP_SECONDS = (0.05, 0.7)
LEAST = (10, 2)  # kills and stops of a run


# --- what the processes do -------------------------------------------------------------------------------------


def body_of(sender: str, number: int) -> Any:
    """Inline, in a block, an array by handle, a slice inside an object."""
    way = number % 7
    if way == 3:
        return (sender, number, bytes([number % 256]) * 3000)
    if way in (4, 5):
        array = shmipc.empty(300 + number % 5 * 4000, np.int32)
        array[:] = number
        return (sender, number, array if way == 4 else {"part": array[10:20]})
    return (sender, number, None)


def check_body(body: Any) -> tuple[str, int]:
    sender, number, rest = body
    if isinstance(rest, bytes):
        assert rest == bytes([number % 256]) * 3000, "a body in a block"
    elif isinstance(rest, dict):
        assert rest["part"].tolist() == [number] * 10, "a slice"
    elif rest is not None:
        assert (rest == number).all(), "an array"
    return sender, number


class Book:
    """A file of lines, each whole or not there: one write for each."""

    def __init__(self, folder: str, name: str) -> None:
        self.file = os.open(f"{folder}/{name}", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def close(self) -> None:
        os.close(self.file)

    def note(self, *words: object) -> None:
        os.write(self.file, (" ".join(map(str, words)) + "\n").encode())


class Hand:
    """A process of the load. Its work ends when its mailbox is told so, or it is killed."""

    def __init__(self, folder: str, name: str, boxes: list[shmipc.Mailbox], seed: int) -> None:
        self.folder, self.name, self.boxes = folder, name, boxes
        self.choose = random.Random(seed)
        self.ended = False
        self.count = 0

    def on_message(self, message: shmipc.Message) -> None:
        pass  # a notice

    def pid(self) -> int:
        return os.getpid()

    def echo(self, value: Any) -> Any:
        return value

    def sleep(self) -> None:
        threading.Event().wait()

    def resident(self) -> tuple[int, int]:
        return psutil.Process().memory_info().rss, len(os.listdir("/proc/self/fd"))

    def trim(self) -> None:
        gc.collect()
        membership.current().member.trim()

    # Each is called again and again, for a slice of time, so that the process stays reachable.

    def send(self, seconds: float) -> int:
        """To all mailboxes in turn; what was accepted is in the book before the next is sent."""
        if not hasattr(self, "book"):
            self.book = Book(self.folder, f"sent-{self.name}")
            self.numbers = [0] * len(self.boxes)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            which = self.choose.randrange(len(self.boxes))
            number = self.numbers[which]
            self.numbers[which] += 1
            self.book.note("try", which, number)
            try:
                shmipc.send(self.boxes[which], body_of(self.name, number), tag=number % 2 + 1, timeout=WATCHDOG)
            except shmipc.OutOfMemory:
                self.numbers[which] -= 1
                continue
            self.book.note("sent", which, number)
            self.count += 1
        return self.count

    def receive(self, seconds: float) -> int:
        if not hasattr(self, "book"):
            self.book = Book(self.folder, f"received-{self.name}")
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            which = self.choose.randrange(len(self.boxes))
            box = self.boxes[which]
            self.book.note("take", which)
            try:
                if self.choose.random() < 0.2:
                    body = box.receive_message(tag=self.choose.choice((1, 2)), timeout=0.02).body
                else:
                    body = box.receive(timeout=0.02)
            except (shmipc.Timeout, shmipc.Starved):
                self.book.note("none", which)
                continue
            self.book.note("got", which, *check_body(body))
            self.count += 1
        return self.count

    def call(self, servers: list[Any], seconds: float) -> tuple[int, int, float]:
        """Calls, futures, calls with a limit; how many were answered, how many died, the longest wait."""
        until, done, died, longest = time.monotonic() + seconds, 0, 0, 0.0
        while time.monotonic() < until:
            server, number = self.choose.choice(servers), self.choose.randrange(1 << 30)
            start = time.monotonic()
            try:
                if number % 3 == 0:
                    assert check_body(server.echo.call(body_of("call", number), timeout=WATCHDOG)) == ("call", number)
                elif number % 3 == 1:
                    futures = [server.echo.submit((number, turn)) for turn in range(5)]
                    assert [future.result(WATCHDOG) for future in futures] == [(number, turn) for turn in range(5)]
                else:
                    try:
                        server.echo.call(number, timeout=0.0005)
                    except shmipc.Timeout:
                        pass
                done += 1
            except shmipc.PeerDead:
                died += 1
            except shmipc.OutOfMemory:
                pass
            longest = max(longest, time.monotonic() - start)
        return done, died, longest

    def make(self, others: list[Any], seconds: float) -> int:
        """Mailboxes, names, monitors, arrays: made, passed on, taken away."""
        system, until, number = shmipc.System.current(), time.monotonic() + seconds, 0
        while time.monotonic() < until:
            number += 1
            mine = f"{self.name}-{number % 3}"
            try:
                with shmipc.Mailbox.create(f"box-{mine}", slots=4) as box:
                    array = shmipc.zeros(number % 11 * 3000 + 1, np.uint8)
                    box.send((array, array[:1], bytes(2000)))
                    with shmipc.Mailbox.open(f"box-{mine}") as again:
                        assert again.receive(timeout=WATCHDOG)[1].tolist() == [0]
                    system.serve(f"name-{mine}", shmipc.self())
                    try:
                        shmipc.monitor(self.choose.choice(others)).cancel()
                    except (shmipc.InvalidArgument, shmipc.PeerDead):
                        pass
                    system.withdraw(f"name-{mine}")
            except shmipc.OutOfMemory:
                continue
            if number % 20 == 0:
                self.trim()
            self.count += 1
        return self.count


def square(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return int(value.sum())
    return value * value


# --- the monkey ------------------------------------------------------------------------------------------------


@dataclass
class Figures:
    seed: int = 0
    seconds: float = 0.0
    kills: int = 0
    stops: int = 0
    rounds: int = 0
    accepted: int = 0
    received: int = 0
    lost_with_their_receiver: int = 0
    answered: int = 0
    died_in_a_call: int = 0
    made: int = 0
    pool_items: int = 0
    notices: int = 0
    causes_unknown: int = 0
    survivors_per_s: dict[str, float] = field(default_factory=dict)
    kill_to_error_ms: dict[str, float] = field(default_factory=dict)
    rescued: int = 0
    rescued_without_cause: int = 0
    leaked: dict[str, int] = field(default_factory=dict)
    undelivered: int = 0
    drift: dict[str, Any] = field(default_factory=dict)
    longest_call_s: float = 0.0
    faults: list[str] = field(default_factory=list)
    machine: str = ""


@dataclass
class Post:
    """One place in the load, and who holds it now."""

    role: str
    ref: Any = None
    process: Any = None
    name: str = ""
    life: int = 0
    work: Any = None


class Chaos:
    def __init__(self, seed: int, seconds: float, folder: str, kills: bool = True, stops: bool = True) -> None:
        self.choose = random.Random(seed)
        self.figures = Figures(seed=seed, seconds=seconds, machine=f"{platform.release()}, {os.cpu_count()} cores")
        self.folder, self.seconds = folder, seconds
        self.kills, self.stops = kills, stops
        self.system = shmipc.System(memory_limit=256 << 20)
        self.baseline = self.usage()
        self.boxes = [shmipc.Mailbox.create(slots=slots) for slots in (4, 64, 1024)[:BOXES]]
        self.posts = [
            Post(role)
            for role in ["server"] * 2 + ["send"] * 3 + ["receive"] * 2 + ["call"] * 2 + ["make"] * 2
            for _ in range(1)
        ]
        self.book = Book(folder, "received-root")
        self.living: set[str] = set()
        self.delays: list[float] = []
        self.samples: list[dict[str, float]] = []
        self.stopped: dict[int, float] = {}
        for post in self.posts:
            self.fill(post)
        self.pool = self.system.pool(2)
        self.pool_results: Any = None
        self.made_by_post: dict[str, int] = {}

    # --- posts ---

    def fill(self, post: Post) -> None:
        post.life += 1
        place = self.posts.index(post)
        post.name = f"{post.role}{place}.{post.life}"
        seed = self.choose.randrange(1 << 30)
        post.ref = self.system.spawn(Hand, self.folder, post.name, self.boxes, seed)
        post.process = shmipc.process(post.ref)
        post.work = None
        self.living.add(post.name)

    def employ(self, post: Post) -> None:
        seconds = self.choose.uniform(0.05, 0.3)
        servers = [other.ref for other in self.posts if other.role == "server"]
        if post.role == "call":
            post.work = post.ref.call.submit(servers, seconds)
        elif post.role == "make":
            post.work = post.ref.make.submit(servers, seconds)
        elif post.role in ("send", "receive"):
            post.work = getattr(post.ref, post.role).submit(seconds)
        elif post.role == "server":
            post.work = None

    def collect(self, post: Post) -> None:
        """Take the result of a slice of work, if it is there."""
        if post.work is None or not post.work.done():
            return
        try:
            result = post.work.result(0)
        except shmipc.PeerDead:
            post.work = None
            return  # killed; seen to elsewhere
        post.work = None
        if post.role == "call":
            done, died, longest = result
            self.figures.answered += done
            self.figures.died_in_a_call += died
            self.figures.longest_call_s = max(self.figures.longest_call_s, longest)
        if post.role == "make":  # a count since its start
            self.figures.made += result - self.made_by_post.get(post.name, 0)
            self.made_by_post[post.name] = result

    # --- the monkey's acts ---

    def kill(self, post: Post) -> None:
        """Kill who holds the post, mostly while a call to it waits; the error must come."""
        figures, process = self.figures, post.process
        watch = shmipc.monitor(post.ref)
        waiting = post.ref.sleep.submit() if post.role == "server" else None
        if waiting is not None and self.choose.random() < 0.5:
            threading.Event().wait(0.002)
        start = time.monotonic()
        os.kill(process.pid, signal.SIGKILL)
        figures.kills += 1
        self.stopped.pop(process.pid, None)
        for future in (waiting, post.work):
            if future is None:
                continue
            try:
                future.result(WATCHDOG)
                self.collect(post)  # it had answered before
            except shmipc.PeerDead:
                if future is waiting:
                    self.delays.append(time.monotonic() - start)
            except shmipc.Timeout:
                figures.faults.append(f"a call to the killed {post.name} has hung for {WATCHDOG} s")
        if not process.join(WATCHDOG):
            figures.faults.append(f"the killed {post.name} was not reaped in {WATCHDOG} s")
        try:
            notice = shmipc.receive(sender=post.ref, kind=shmipc.Kind.EXIT, timeout=WATCHDOG).body
            figures.notices += 1
            # A zygote that gets no core for 50 ms has not said how its child ended: a stated limit, and counted.
            figures.causes_unknown += notice.reason == "unknown"
            if notice.monitor != watch.id or notice.reason not in ("signal", "unknown"):
                figures.faults.append(f"a wrong notice for {post.name}: {notice}")
        except shmipc.Timeout:
            figures.faults.append(f"no notice of the death of {post.name} in {WATCHDOG} s")
        self.living.discard(post.name)
        self.fill(post)

    def stop(self, post: Post) -> None:
        """Stop who holds the post for a while; the others go on meanwhile."""
        pid = post.process.pid
        if pid in self.stopped:
            return
        os.kill(pid, signal.SIGSTOP)
        self.figures.stops += 1
        self.stopped[pid] = time.monotonic() + self.choose.uniform(*STOP_SECONDS)

    def resume(self, all_of_them: bool = False) -> None:
        for pid, until in list(self.stopped.items()):
            if all_of_them or time.monotonic() >= until:
                del self.stopped[pid]
                os.kill(pid, signal.SIGCONT)

    def kill_a_pool_worker(self) -> None:
        refs = self.pool.refs
        process = shmipc.process(self.choose.choice(refs))
        if process.is_alive() and process.pid:
            os.kill(process.pid, signal.SIGKILL)
            self.figures.kills += 1

    def use_the_pool(self) -> None:
        """One item after the other comes; retried when its worker was killed."""
        if self.pool_results is None:
            items = [number if number % 5 else shmipc.zeros(1000, np.uint8) for number in range(200)]
            expected = [number * number if number % 5 else 0 for number in range(200)]
            self.pool_results = zip(self.pool.map(square, items, retries=1000), expected, strict=True)
        for _ in range(5):
            try:
                got, expected_item = next(self.pool_results)
            except StopIteration:
                self.pool_results = None
                return
            if got != expected_item:
                self.figures.faults.append(f"the pool gave {got}, not {expected_item}")
            self.figures.pool_items += 1

    # --- the run ---

    def usage(self) -> dict[str, int]:
        gc.collect()
        membership.current().member.trim()
        counters = self.system.statistics().as_dict()
        return {name: counters[name] for name in ("members", "mailboxes", "blocks", "leases", "used_bytes")}

    def who_holds(self) -> str:
        """What is left, as an observer sees it."""
        observer = _native.Observer(self.system._membership.segment.descriptor())
        slots = ("slot", "pid", "name", "state", "memory_bytes")
        members = [{name: entry[name] for name in slots} for entry in observer.members()]
        leases = observer.leases()
        return f"members {members}, mailboxes {observer.mailboxes()}, leases {leases}"

    def sample(self) -> None:
        server = next(post for post in self.posts if post.role == "server")
        if server.process.pid in self.stopped:
            return
        times = []
        for number in range(30):
            start = time.perf_counter()
            server.ref.echo(number)
            times.append(time.perf_counter() - start)
        gc.collect()  # tracebacks of the errors that were caught hold frames, and those hold pidfds
        rss, fds = psutil.Process().memory_info().rss, len(os.listdir("/proc/self/fd"))
        counters = self.system.statistics().as_dict()
        self.samples.append(
            {
                "at_s": time.monotonic(),
                "rss_kib": rss / 1024,
                "descriptors": fds,
                "threads": len(os.listdir("/proc/self/task")),
                "shm_reserved_kib": counters["reserved_bytes"] / 1024,
                "call_p50_us": statistics.median(times) * 1e6,
            }
        )

    def goes_on(self, elapsed: float) -> bool:
        """For the time given; when others have the cores until something has happened, four times as long at most."""
        busy = (not self.kills or self.figures.kills >= LEAST[0]) and (not self.stops or self.figures.stops >= LEAST[1])
        return elapsed < self.seconds or (not busy and elapsed < 4 * self.seconds)

    def run(self) -> Figures:
        figures = self.figures
        start = time.monotonic()
        next_sample = start
        while self.goes_on(time.monotonic() - start) and not figures.faults:
            figures.rounds += 1
            for post in self.posts:
                self.collect(post)
                if post.work is None:
                    self.employ(post)
            self.use_the_pool()
            self.resume()
            what = self.choose.random()
            post = self.choose.choice(self.posts)
            if self.kills and what < 0.25:
                self.kill(post)
            elif self.stops and what < 0.32:
                self.stop(post)
            elif self.kills and what < 0.35:
                self.kill_a_pool_worker()
            if time.monotonic() >= next_sample:
                self.sample()
                next_sample = time.monotonic() + max(1.0, self.seconds / 200)
            threading.Event().wait(self.choose.random() ** 2 * 0.01)
        self.finish(start)
        return figures

    def finish(self, start: float) -> None:
        figures = self.figures
        self.resume(all_of_them=True)
        if self.pool_results is not None:
            for got, expected in self.pool_results:
                if got != expected:
                    figures.faults.append(f"the pool gave {got}, not {expected}")
        # No more is sent; then all that is left is received.
        deadline = time.monotonic() + WATCHDOG
        while any(post.work is not None and not post.work.done() for post in self.posts):
            self.drain()
            if time.monotonic() > deadline:
                busy = [post.name for post in self.posts if post.work is not None and not post.work.done()]
                figures.faults.append(f"{', '.join(busy)} have not ended their work in {WATCHDOG} s")
                break
        for post in self.posts:
            self.collect(post)
        self.drain()
        self.balance()
        figures.seconds = round(time.monotonic() - start, 1)
        figures.survivors_per_s = {
            "messages": round(figures.received / figures.seconds, 1),
            "calls": round(figures.answered / figures.seconds, 1),
            "pool_items": round(figures.pool_items / figures.seconds, 1),
        }
        self.pool.shutdown()
        self.pool = self.pool_results = None
        for post in self.posts:
            if not post.process.stop(WATCHDOG):
                figures.faults.append(f"{post.name} did not stop in order")
            post.ref = post.process = post.work = None
        for box in self.boxes:
            box.close()
        deadline = time.monotonic() + WATCHDOG
        while True:
            found = self.usage()
            figures.leaked = {name: found[name] - self.baseline[name] for name in found}
            if not any(figures.leaked.values()) or time.monotonic() > deadline:
                break
            threading.Event().wait(0.05)
        if any(figures.leaked.values()):
            figures.faults.append(f"leaked: {figures.leaked}; {self.who_holds()}")
        counters = self.system.statistics().as_dict()
        figures.rescued, figures.undelivered = counters["rescued"], counters["undelivered"]
        if figures.rescued and not (self.kills or self.stops):
            figures.rescued_without_cause = figures.rescued
            figures.faults.append(f"{figures.rescued} rescued waits though nobody was stopped or killed")
        if self.delays:
            ordered = sorted(self.delays)
            figures.kill_to_error_ms = {
                "p50": round(ordered[len(ordered) // 2] * 1e3, 2),
                "p99": round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))] * 1e3, 2),
                "most": round(ordered[-1] * 1e3, 2),
                "count": len(ordered),
            }
        self.judge_drift()
        self.system.shutdown()

    def drain(self) -> None:
        """Receive what is there."""
        for which, box in enumerate(self.boxes):
            deadline = time.monotonic() + WATCHDOG
            while box.count():
                try:
                    body = box.receive(timeout=0.05)
                except shmipc.Timeout:  # others took it
                    if time.monotonic() > deadline:
                        self.figures.faults.append(f"mailbox {which} counts {box.count()} that nobody can take")
                        break
                    continue
                self.book.note("got", which, *check_body(body))

    def balance(self) -> None:
        """Compare what was accepted with what was received."""
        figures = self.figures
        accepted: dict[tuple[int, str], set[int]] = collections.defaultdict(set)
        tried: dict[tuple[int, str], set[int]] = collections.defaultdict(set)
        received: dict[tuple[int, str], list[int]] = collections.defaultdict(list)
        unfinished = 0
        for path in Path(self.folder).iterdir():
            kind, _, name = path.name.partition("-")
            open_take = False
            for line in path.read_text().splitlines():
                words = line.split()
                if kind == "sent":
                    where = tried if words[0] == "try" else accepted
                    where[int(words[1]), name].add(int(words[2]))
                elif words[0] == "take":
                    open_take = True
                elif words[0] == "none":
                    open_take = False
                else:
                    open_take = False
                    received[int(words[1]), words[2]].append(int(words[3]))
            unfinished += kind == "received" and open_take
        lost = 0
        for (which, sender), numbers in accepted.items():
            got = received[which, sender]
            if len(set(got)) != len(got):
                twice = [number for number, count in collections.Counter(got).items() if count > 1]
                figures.faults.append(f"mailbox {which}: {twice[:5]} of {sender} were received twice")
            if strange := set(got) - tried[which, sender]:
                figures.faults.append(f"mailbox {which}: {sorted(strange)[:5]} of {sender} were never sent")
            lost += len(numbers - set(got))
            figures.accepted += len(numbers)
            figures.received += len(got)
        figures.lost_with_their_receiver = lost
        if lost > unfinished:
            figures.faults.append(f"{lost} accepted messages were lost, with {unfinished} receivers killed at a take")
        self.check_order()

    def check_order(self) -> None:
        """One receiver sees the messages of one sender and tag in the order in which they were sent."""
        for path in Path(self.folder).glob("received-*"):
            last: dict[tuple[int, str, int], int] = {}
            for line in path.read_text().splitlines():
                words = line.split()
                if words[0] != "got":
                    continue
                which, sender, number = int(words[1]), words[2], int(words[3])
                key = (which, sender, number % 2)
                if number <= last.get(key, -1):
                    self.figures.faults.append(f"{path.name}, mailbox {which}: {number} of {sender} was overtaken")
                last[key] = number

    def judge_drift(self) -> None:
        """The last fifth of the samples against the second: what grows all the time is a leak."""
        fifth = len(self.samples) // 5
        if fifth < 2:
            self.figures.drift = {"samples": self.samples}
            return
        early, late = self.samples[fifth : 2 * fifth], self.samples[-fifth:]
        for key in ("rss_kib", "descriptors", "threads", "shm_reserved_kib", "call_p50_us"):
            before, after = (statistics.median(entry[key] for entry in part) for part in (early, late))
            self.figures.drift[key] = {"early": round(before, 1), "late": round(after, 1)}
            allowed = {
                "rss_kib": before * 1.25 + 8192,
                "descriptors": before + 8,
                "threads": before + 4,
                "shm_reserved_kib": before * 1.5 + 8192,
                "call_p50_us": before * 10 + 5000,
            }[key]
            if after > allowed:
                self.figures.faults.append(f"{key} drifts from {before:.1f} to {after:.1f}")


def run(seed: int, seconds: float, *, kills: bool = True, stops: bool = True) -> Figures:
    """One run; its figures. The system is gone afterwards, whatever happened."""
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        chaos = Chaos(seed, seconds, folder, kills, stops)
        try:
            return chaos.run()
        finally:
            chaos.resume(all_of_them=True)
            chaos.system.kill()
            chaos.book.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=float(os.environ.get("CHAOS_SECONDS", "3600")))
    parser.add_argument("--seed", type=int, default=int(os.environ.get("CHAOS_SEED", str(time.time_ns() % 10**9))))
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    print(f"chaos for {options.seconds:g} s, seed {options.seed}", flush=True)
    faulthandler.dump_traceback_later(options.seconds + 3 * WATCHDOG, repeat=True)  # it is late: where is it?
    figures = run(options.seed, options.seconds)
    text = json.dumps(vars(figures), indent=1)
    print(text)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(text + "\n")
    return 1 if figures.faults else 0


if __name__ == "__main__":
    sys.exit(main())
