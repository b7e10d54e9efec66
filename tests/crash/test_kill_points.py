"""At every step of every protocol a worker is killed, or stopped for a while, and the others go on."""

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import shmipc
from shmipc import _native
from tests.actors import usage
from tests.crash.crew import Scene, Worker, number_of
from tests.programs import lives

pytestmark = [pytest.mark.allows_rescue, pytest.mark.timeout(90)]

LIMIT = 10.0
BLOCKS = ["block_lock", "block_record", "block_unlock"]
WAITS = ["wait_arm", "wait_register", "wait_park", "wait_leave", "wait_deregister", "wait_pass", "wait_idle"]
WAKES = ["wake_notify", "wake_post"]
TAKES = [
    *["right_flight", "right_take", "take_lease", "take_commit", "take_head", "take_count"],
    *["right_release", "right_released"],
]
REAPS = ["reap_flight", "reap_cells", "reap_places", "reap_boxes", "reap_leases", "reap_notices", "reap_retire"]
ROLES: dict[str, list[str]] = {
    "send": [
        *["send_flight", "send_claim", "send_claimed", "send_tail", "send_copy", "send_publish", "send_published"],
        *["send_done", *WAITS, *WAKES, *BLOCKS],
    ],
    "receive": [*TAKES, *WAITS, *WAKES, *BLOCKS, "drop_claim", "drop_clear"],
    "select": [*TAKES, "aside_link", "aside_free", "aside_unlink", "wait_leave", "wait_pass"],
    "sweep": ["right_sweep", "right_sweep_head", "right_sweep_count"],
    "call": [
        *["cell_register", "cell_close", "cell_closed", "cell_take", "send_claimed", "send_publish", "send_done"],
        *["wait_register", "wait_park", "wait_leave", *BLOCKS],
    ],
    "serve": [
        *["cell_serve", "cell_fill", "cell_copy", "cell_done", "cell_bit", "cell_wake", "take_commit"],
        *["right_released", "wake_notify", "wake_post"],
    ],
    "answer": ["take_call", "cell_serve", "cell_fill", "cell_done", "take_commit", "right_released"],
    "share": [*BLOCKS, "take_lease", "drop_claim", "drop_clear"],
    "name": ["name_claim", "name_tentative", "name_ready", "notice_arm", "box_make", "box_open"],
    "watch": ["notice_arm", "notice_fire"],
    "spawn": ["member_claim"],
    "leave": ["member_leave", *REAPS],
    "reap": ["reap_dying", *REAPS, "notice_fire"],
    "attach": ["member_claim", "member_lock", "member_live", "box_make", "box_open"],
}
KNOWN = set(_native.KILL_POINTS)
TABLE = [(role, point) for role, points in ROLES.items() for point in points if point in KNOWN]
WORKING = [(role, point) for role, point in TABLE if role not in ("reap", "attach")]


def test_every_kill_point_is_in_the_table_of_some_role() -> None:
    assert {point for points in ROLES.values() for point in points} == KNOWN


@pytest.fixture(scope="module")
def zygote() -> Iterator[None]:
    """One zygote for all systems of this module: it goes with the last system of the process."""
    with shmipc.System() as anchor:
        anchor.spawn(Worker)
        yield


class Crew:
    """A system with a victim, a server, another worker, and this process, which receives."""

    def __init__(self, folder: Path, role: str, point: str, number: int) -> None:
        self.role, self.point, self.number = role, point, number
        self.after = 1 if role in ("sweep", "leave", "spawn") else random.randint(1, 4)
        self.stops = number == signal.SIGSTOP
        self.note = folder / "note"
        self.system = shmipc.System()
        self.other: Any = self.system.spawn(Worker)
        self.server: Any = self.system.spawn(Worker)
        ended: Any = self.system.spawn(Worker)
        assert shmipc.process(ended).stop()
        self.scene = Scene(shmipc.Mailbox.create(slots=4), self.server, ended)
        self.smoke()
        self.baseline = self.usage()
        self.victim: Any = self.system.spawn(Worker)
        self.process = shmipc.process(self.victim)
        self.got: list[tuple[str, int]] = []

    def usage(self) -> dict[str, int]:
        return usage(self.system, self.other, self.server)

    # --- the victim at work ---

    def start(self) -> Callable[[], None]:
        """Have the victim work in its role, armed; what is to be checked when it has ended."""
        rounds = 60 if self.stops else 100_000
        scene, victim, other = self.scene, self.victim, self.other
        if self.role == "sweep":
            self.leave_a_right_unswept()
        victim.arm.cast(self.point, self.after, self.number)  # a call's own reply would count
        if self.role == "send":
            self.work = victim.send.submit(scene, "victim", rounds)
            sent = other.send.submit(scene, "other", 60)
            return lambda: self.receive_rest(sent)
        if self.role in ("receive", "select", "sweep"):
            if self.role == "receive":
                self.work = victim.receive.submit(scene, str(self.note), 30 if self.stops else 1 << 30)
            else:
                self.work = victim.select.submit(scene, str(self.note), 30 if self.stops else rounds)
                if self.role == "sweep":  # before a sender that is refused does it
                    deadline = time.monotonic() + LIMIT
                    while not (self.has_stopped() if self.stops else self.has_ended()):
                        assert time.monotonic() < deadline
            sent = other.send.submit(scene, "other", 400)
            return lambda: self.receive_rest(sent)
        if self.role == "serve":
            self.work = other.call.submit(Scene(scene.box, victim), rounds)
            return lambda: None
        if self.role == "answer":
            self.work = victim.answer.submit(scene, 30 if self.stops else rounds)
            asked = other.ask.submit(scene, 60)
            return lambda: self.answer_rest(asked)
        if self.role == "leave":
            self.stopping = threading.Thread(target=lambda: shmipc.process(victim).stop(60.0))
            self.stopping.start()
            return self.stopping.join
        self.work = getattr(victim, self.role).submit(scene, rounds)
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

    def has_ended(self) -> bool:
        self.pump()
        return not self.process.is_alive()

    def has_stopped(self) -> bool:
        self.pump()
        return bool(psutil.Process(self.process.pid).status() == psutil.STATUS_STOPPED)

    def receive_rest(self, sent: Any) -> None:
        """Receive what is there until all was sent; nothing of a live sender is lost, doubled or overtaken."""
        deadline = time.monotonic() + 2 * LIMIT
        while not (sent.done() and self.scene.box.count() == 0):
            assert time.monotonic() < deadline, f"{self.scene.box.count()} messages stay; {len(self.got)} received"
            try:
                self.got.append(number_of(self.scene.box.receive(timeout=0.05)))
            except shmipc.Timeout:
                sent.done()
        count = sent.result(LIMIT)
        mine = [number for name, number in self.got if name == "other"]
        theirs = [number for name, number in self.noted() if name == "other"]
        if self.role == "sweep":  # two messages of an earlier run, with the same numbers, were in between
            assert len(mine) + len(theirs) in (count + 2, count + 1)
        else:
            lost = set(range(count)) - set(mine) - set(theirs)
            assert mine == sorted(set(mine))
            assert len(lost) <= (0 if self.stops or self.role == "send" else 1)  # taken, and not noted any more
            assert not set(mine) & set(theirs)
            if self.role == "receive":
                assert theirs == sorted(set(theirs))
        victims = [number for name, number in self.got if name == "victim"]
        assert victims == list(range(len(victims)))

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

    def check(self, eventually: Any) -> None:
        """The victim has ended: the others work, and what it held has come back."""
        self.smoke()
        self.walk()
        self.work = self.victim = None
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


@pytest.fixture
def crew(zygote: None, tmp_path: Path) -> Iterator[Callable[[str, str, int], Crew]]:
    made: list[Crew] = []

    def make(role: str, point: str, number: int) -> Crew:
        made.append(Crew(tmp_path, role, point, number))
        return made[-1]

    yield make
    for entry in made:
        if entry.process.pid and lives(entry.process.pid):
            os.kill(entry.process.pid, signal.SIGCONT)
        entry.system.kill()
    made.clear()  # and with it the descriptors of its processes


@pytest.mark.row("K18")
@pytest.mark.parametrize(("role", "point"), WORKING, ids=lambda value: value)
def test_others_go_on_when_a_worker_is_killed_at(crew: Any, eventually: Any, role: str, point: str) -> None:
    scene = crew(role, point, signal.SIGKILL)
    finish = scene.start()
    eventually(scene.has_ended, 3 * LIMIT)
    assert scene.process.join(LIMIT)
    if role != "leave":
        with pytest.raises(shmipc.PeerDead):
            scene.work.result(LIMIT)
        assert scene.process.cause == ("signal", None, signal.SIGKILL)
    finish()
    scene.check(eventually)


@pytest.mark.skipif(not os.environ.get("SHMIPC_FULL"), reason="not reliable yet under load; make crash runs it")
@pytest.mark.row("M19")
@pytest.mark.parametrize(("role", "point"), WORKING, ids=lambda value: value)
def test_others_wait_and_see_deaths_while_a_worker_is_stopped_at(
    crew: Any, eventually: Any, role: str, point: str
) -> None:
    scene = crew(role, point, signal.SIGSTOP)
    identity = scene.process.identity
    finish = scene.start()
    victim = psutil.Process(scene.process.pid)
    eventually(scene.has_stopped, 3 * LIMIT)
    scene.deaths_are_noticed()
    assert victim.status() == psutil.STATUS_STOPPED
    records = scene.system._membership.member.members()
    assert [entry["state"] for entry in records if entry["identity"] == identity] in (
        ["live"],
        ["dying"][: role == "leave"],
    )
    victim.resume()
    finish()
    if role != "leave":
        assert scene.work.result(2 * LIMIT)
        assert scene.process.stop()
    scene.check(eventually)
