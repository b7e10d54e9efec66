"""The stage of the crash tests: a crew, what its victim does in each role, and what must hold when it has ended."""

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

import shmipc
from tests.actors import usage
from tests.crash.crew import END, Scene, Worker, number_of, publish
from tests.programs import lives

LIMIT = 10.0  # seconds; ten times what the rows allow
WAKES = ["wake_notify", "wake_post"]


class Crew:
    """A system with a server, another worker, a victim, and this process, which receives.

    Args:
        folder: Where the victim notes what it has received.
        stops: The victim stops at its kill point and goes on later; else it dies there.
    """

    def __init__(self, folder: Path, stops: bool = False) -> None:
        self.stops = stops
        self.note = folder / "note"
        self.system = shmipc.System()
        self.other: Any = self.system.spawn(Worker)
        self.server: Any = self.system.spawn(Worker)
        ended: Any = self.system.spawn(Worker)
        assert shmipc.process(ended).stop()
        self.scene = Scene(shmipc.Mailbox.create(slots=4), self.server, ended)
        self.scene.bus = shmipc.Bus.create(frames=3)
        self.scene.counted = shmipc.Bus.create(frames=2, consume_after=1)
        self.smoke()
        self.baseline = self.usage()

    def enlist(self, role: str, point: str | None = None) -> None:
        """A new victim, for one role; it dies or stops when it passes the point for the first or a later time."""
        rare = role in ("sweep", "leave", "spawn", "offer") or point in WAKES
        self.role, self.point, self.after = role, point, 1 if rare else random.randint(1, 4)
        self.note.unlink(missing_ok=True)
        self.got: list[tuple[str, int]] = []
        self.robbed = False  # have others received that keep no notes?
        self.victim: Any = self.system.spawn(Worker)
        self.process = shmipc.process(self.victim)

    def usage(self) -> dict[str, int]:
        return usage(self.system, self.other, self.server)

    # --- the victim at work ---

    def start(self) -> Callable[[], None]:
        """Have the victim work in its role, armed; what is to be checked when it has ended."""
        rounds = 60 if self.stops else 100_000
        scene, victim, other = self.scene, self.victim, self.other
        if self.role == "sweep":
            self.leave_a_right_unswept()
        if self.point is not None:  # by a cast, for a call's own reply would count
            victim.arm.cast(self.point, self.after, signal.SIGSTOP if self.stops else signal.SIGKILL)
        if self.role == "send":
            self.work = victim.send.submit(scene, "victim", rounds)
            sent = other.send.submit(scene, "other", 60)
            return lambda: self.receive_rest(sent)
        if self.role in ("receive", "select", "sweep"):
            if self.role == "receive":
                self.work = victim.receive.submit(scene, str(self.note), 300 if self.stops else 1 << 30)
            else:
                self.work = victim.select.submit(scene, str(self.note), 300 if self.stops else rounds)
                if self.role == "sweep":  # before a sender that is refused does it
                    deadline = time.monotonic() + LIMIT
                    while not (self.has_stopped() if self.stops else self.has_ended()):
                        assert time.monotonic() < deadline
            sent = other.send.submit(scene, "other", 400)
            return lambda: self.receive_rest(sent)
        if self.role == "serve":
            self.work = other.call.submit(Scene(scene.box, victim), rounds)
            return lambda: None
        if self.role == "meet":
            self.work = other.meet.submit(Scene(scene.box, victim), rounds)
            return lambda: None
        if self.role == "answer":
            self.work = victim.answer.submit(scene, 100_000)
            asked = other.ask.submit(scene, 60)
            return lambda: self.answer_rest(asked)
        if self.role == "leave":
            self.stopping = threading.Thread(target=lambda: shmipc.process(victim).stop(60.0))
            self.stopping.start()
            return self.stopping.join
        self.work = getattr(victim, self.role).submit(scene, rounds)
        if self.role == "publish":
            beside = other.read.submit(scene, 30)
            return lambda: self.publish_until(beside)
        if self.role == "read" and self.stops:
            return lambda: self.publish_until(self.work)
        if self.role in ("call", "share"):
            beside = getattr(other, self.role).submit(scene, 20)
            return lambda: beside.result(LIMIT) and None
        return lambda: None

    def leave_a_right_unswept(self) -> None:
        """A martyr dies between linking an entry to the set-aside list and freeing its slot."""
        martyr: Any = self.system.spawn(Worker)
        martyr.arm("aside_free", 1, signal.SIGKILL)
        work = martyr.select.submit(self.scene, str(self.note), 4)
        sent = self.other.send.submit(self.scene, "other", 2)  # the first is set aside
        with pytest.raises(shmipc.PeerDead):
            work.result(LIMIT)
        assert sent.result(LIMIT) == 2
        assert shmipc.process(martyr).join(LIMIT)
        assert self.scene.box.count() == 2
        self.got_before = 2

    def noted(self) -> list[tuple[str, int]]:
        """What the victim says it has received."""
        if not self.note.exists():
            return []
        lines = [line.split() for line in self.note.read_text().splitlines()]
        return [(name, int(number)) for name, number in lines]

    def pump(self) -> None:
        """Make room for the senders, when nobody else does."""
        if self.role == "send":
            for _ in range(20):
                try:
                    self.got.append(number_of(self.scene.box.receive(timeout=0.005)))
                except shmipc.Timeout:
                    return

        if self.role == "read":
            publish(self.scene, 0)

    def publish_until(self, reader: Any) -> None:
        deadline = time.monotonic() + 2 * LIMIT
        while not reader.done():
            assert time.monotonic() < deadline
            publish(self.scene, 1)
        assert reader.result()

    def has_ended(self) -> bool:
        self.pump()
        return not self.process.is_alive()

    def has_stopped(self) -> bool:
        self.pump()
        return bool(psutil.Process(self.process.pid).status() == psutil.STATUS_STOPPED)

    def receive_rest(self, sent: Any) -> None:
        """Receive what is there until all was sent; nothing of a live sender is lost, doubled or overtaken."""
        deadline = time.monotonic() + 2 * LIMIT
        both = [sent, self.work] if self.stops and self.role == "send" else [sent]
        while not (all(future.done() for future in both) and self.scene.box.count() == 0):
            assert time.monotonic() < deadline, f"{self.scene.box.count()} messages stay; {len(self.got)} received"
            try:
                self.got.append(number_of(self.scene.box.receive(timeout=0.05)))
            except shmipc.Timeout:
                pass
        if self.stops and self.role != "send":
            while not self.work.done():  # others had what it waits for
                try:
                    self.scene.box.send(END, timeout=0.05)
                except shmipc.Timeout:
                    pass
            while self.scene.box.count():
                assert self.scene.box.receive(timeout=LIMIT) == END
        count = sent.result(LIMIT)
        mine = [number for name, number in self.got if name == "other"]
        theirs = [number for name, number in self.noted() if name == "other"]
        if self.role == "sweep":  # two messages of an earlier run, with the same numbers, were in between
            assert len(mine) + len(theirs) in (count + 2, count + 1)
        else:
            lost = set(range(count)) - set(mine) - set(theirs)
            assert mine == sorted(set(mine))
            if not self.robbed:
                assert len(lost) <= (0 if self.stops or self.role == "send" else 1)  # taken, and not noted any more
            assert not set(mine) & set(theirs)
            if self.role == "receive":
                assert theirs == sorted(set(theirs))
        victims = [number for name, number in self.got if name == "victim"]
        assert victims == (sorted(set(victims)) if self.robbed else list(range(len(victims))))

    def answer_rest(self, asked: Any) -> None:
        """Take the victim's place. Its death cost one call at most."""
        deadline = time.monotonic() + 2 * LIMIT
        while not asked.done():
            assert time.monotonic() < deadline
            try:
                message = self.scene.box.receive_message(timeout=0.05)
                shmipc.reply(message, message.body)
            except shmipc.Timeout:
                pass
        assert asked.result() <= (0 if self.stops else 1)
        if self.stops:
            assert shmipc.call(self.scene.box, END, timeout=LIMIT) == END

    # --- what holds afterwards ---

    def smoke(self) -> None:
        """Everything works between those that live."""
        box = self.scene.box
        sent = self.other.send.submit(self.scene, "smoke", 10)
        assert [number_of(box.receive(timeout=LIMIT)) for _ in range(10)] == [("smoke", n) for n in range(10)]
        assert sent.result(LIMIT) == 10
        received = self.server.select.submit(self.scene, str(self.note) + "-smoke", 6)
        assert self.other.send.call(self.scene, "smoke", 6, timeout=LIMIT) == 6
        assert len(received.result(LIMIT)) == 6
        self.other.call.call(self.scene, 2, timeout=LIMIT)
        self.other.name.call(self.scene, 6, timeout=LIMIT)
        self.other.share.call(self.scene, 4, timeout=LIMIT)
        with self.scene.bus.subscribe() as reader, self.scene.counted.subscribe() as one:
            self.other.publish.call(self.scene, 3, timeout=LIMIT)
            assert [int(reader.receive(timeout=LIMIT)[0]) for _ in range(3)] == [0, 1, 2]
            for _ in range(2):
                self.scene.counted.publish(bytes(10))
                assert one.receive(timeout=0).nbytes == 10

    def walk(self) -> None:
        """Every member is one that lives, and every word is at rest."""
        records = self.system._membership.member.members()
        assert {record["pid"] for record in records} == {os.getpid(), self.other.pid(), self.server.pid()}
        for record in records:
            assert record["state"] == "live"
            assert record["depth"] == 0
        header = self.scene.box.header
        assert int(header["tail"]) == int(header["head"]) == int(header["delivered"])
        assert int(header["right"]) & 0xF == 0  # nobody holds it
        assert self.scene.box.count() == 0
        assert self.scene.bus.readers == self.scene.counted.readers == 0

    def check(self, eventually: Any) -> None:
        """The victim has ended: the others work, and what it held has come back."""
        self.smoke()
        if self.process is not None:  # who runs no more has its record until the kernel has taken it apart
            assert self.process.join(LIMIT)
        self.walk()
        self.work = self.victim = self.process = None
        expected = {**self.baseline, "undelivered": 0}
        try:
            eventually(lambda: {**self.usage(), "undelivered": 0} == expected)
        except AssertionError:
            raise AssertionError(f"{self.usage()} after, {self.baseline} before") from None

    def deaths_are_noticed(self) -> None:
        """Row M19: while the victim is stopped, another's end is told to its caller, its watcher and its name."""
        martyr: Any = self.system.options(name="martyr").spawn(Worker)
        watch = shmipc.monitor(martyr)
        future = martyr.sleep.submit()
        os.kill(shmipc.process(martyr).pid, signal.SIGKILL)
        start = time.monotonic()
        with pytest.raises(shmipc.PeerDead):
            future.result()
        assert shmipc.receive(kind=shmipc.Kind.EXIT, timeout=LIMIT).body.monitor == watch.id
        again: Any = self.system.options(name="martyr").spawn(Worker)
        assert again.echo(1) == 1
        assert time.monotonic() - start < LIMIT
        assert shmipc.process(again).stop()

    def close(self) -> None:
        process = getattr(self, "process", None)
        if process is not None and process.pid and lives(process.pid):
            os.kill(process.pid, signal.SIGCONT)
        self.system.kill()
        self.work = self.victim = self.process = None  # and with them their descriptors
