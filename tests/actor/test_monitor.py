"""Monitors: exactly one notice for each, behind what the dead one sent, however full the mailbox is."""

import collections
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import shmipc
from shmipc import Kind
from shmipc.memory import membership
from tests.actors import ENDS, Actor, Client, end_in, no_notice_comes, usage
from tests.programs import Program

pytestmark = [pytest.mark.race, pytest.mark.timeout(600)]

LIMIT = 10.0  # seconds; ten times the row's


def end_when_told(way: str) -> None:
    shmipc.receive(tag=1)
    end_in(way)


class Watcher(Client):
    """Watches others and counts what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, int | None, str]] = []
        self.watches: dict[Any, shmipc.Monitor] = {}

    def watch(self, ref: Any) -> int:
        self.watches[ref] = shmipc.monitor(ref)
        return self.watches[ref].id

    def cancel(self, ref: Any) -> bool:
        return self.watches.pop(ref).cancel()

    def on_message(self, message: shmipc.Message) -> None:
        if message.kind == Kind.EXIT:
            notice = message.body
            self.told.append((notice.ref, notice.monitor, notice.reason))

    def notices(self) -> list[tuple[Any, int | None, str]]:
        return self.told

    def reap(self, rounds: int) -> None:
        """Do the keeper's work beside the keeper."""
        for _ in range(rounds):
            membership.current().member.reap()


# --- K3 --------------------------------------------------------------------------------------------------------


@pytest.mark.row("K3")
@pytest.mark.allows_rescue
@pytest.mark.parametrize("way", ENDS)
def test_each_watcher_of_a_process_gets_one_notice_with_reason_and_id(system: shmipc.System, way: str) -> None:
    watcher: Any = system.spawn(Watcher)
    doomed, spared = (system.options(env={"PYTHONFAULTHANDLER": ""}).spawn(end_when_told, way) for _ in range(2))
    watch, other = shmipc.monitor(doomed), shmipc.monitor(spared)
    theirs = watcher.watch(doomed)
    assert len({watch.id, other.id, theirs}) == 3
    assert watch.ref == doomed
    shmipc.send(doomed, "end", tag=1)
    message = shmipc.receive(timeout=LIMIT)
    assert message.kind == Kind.EXIT
    assert message.sender == doomed
    notice = message.body
    assert (notice.ref, notice.monitor) == (doomed, watch.id)
    assert (notice.reason, notice.exitcode, notice.signal) == ENDS[way]
    assert shmipc.process(doomed).join(LIMIT)
    assert watcher.notices() == [(doomed, theirs, ENDS[way][0])]
    no_notice_comes()
    assert watcher.notices() == [(doomed, theirs, ENDS[way][0])]
    assert not watch.cancel()  # its notice was received
    assert other.cancel()


@pytest.mark.row("K3")
@pytest.mark.allows_rescue
@pytest.mark.parametrize("way", ENDS)
def test_no_notice_comes_to_one_that_has_cancelled(system: shmipc.System, way: str) -> None:
    watcher: Any = system.spawn(Watcher)
    doomed: Any = system.options(env={"PYTHONFAULTHANDLER": ""}).spawn(end_when_told, way)
    watch = shmipc.monitor(doomed)
    theirs = watcher.watch(doomed)
    assert watch.cancel()
    assert not watch.cancel()
    shmipc.send(doomed, "end", tag=1)
    assert shmipc.process(doomed).join(LIMIT)
    no_notice_comes()
    assert watcher.notices() == [(doomed, theirs, ENDS[way][0])]  # another's cancelling is not his


@pytest.mark.row("K3")
def test_monitor_refuses_oneself_the_dead_and_a_second_one(system: shmipc.System) -> None:
    with pytest.raises(shmipc.InvalidArgument, match="itself"):
        shmipc.monitor(shmipc.self())
    ref: Any = system.spawn(Actor)
    watch = shmipc.monitor(ref)
    with pytest.raises(shmipc.InvalidArgument, match="already"):
        shmipc.monitor(ref)
    assert watch.cancel()
    again = shmipc.monitor(ref)  # after a cancelled one there may be another
    assert again.id != watch.id
    assert shmipc.process(ref).stop()
    assert shmipc.receive(timeout=LIMIT).body.monitor == again.id
    with pytest.raises(shmipc.InvalidArgument, match="returned"):
        shmipc.monitor(ref)
    with pytest.raises(TypeError):
        shmipc.monitor("somebody")  # type: ignore[arg-type, unused-ignore]
    no_notice_comes()


@pytest.mark.row("K3")
def test_one_of_many_threads_that_monitor_one_process_succeeds(system: shmipc.System) -> None:
    ref: Any = system.spawn(Actor)
    for _ in range(20):
        made: list[shmipc.Monitor] = []
        refused: list[Exception] = []
        start = threading.Barrier(4)

        def watch(made: Any = made, refused: Any = refused, start: Any = start) -> None:
            start.wait()
            try:
                made.append(shmipc.monitor(ref))
            except shmipc.InvalidArgument as error:
                refused.append(error)

        threads = [threading.Thread(target=watch) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(made), len(refused)) == (1, 3)
        assert made[0].cancel()


# --- K4 --------------------------------------------------------------------------------------------------------


class Talker(Actor):
    def talk(self, to: Any, count: int, way: str) -> None:
        """Sends numbers, and dies the moment the last is sent."""
        for number in range(count):
            body = (number, bytes(5000) if number % 7 == 3 else shmipc.zeros(300) if number % 7 == 5 else b"")
            shmipc.send(to, body, tag=number % 3 + 1)
        if way == "SIGKILL":
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(0)


@pytest.mark.row("K4")
@pytest.mark.allows_rescue
@pytest.mark.parametrize("way", ["SIGKILL", "_exit"])
@pytest.mark.parametrize("waits", [False, True], ids=["later", "at once"])
def test_notice_comes_behind_all_that_the_dead_one_sent(
    system: shmipc.System, rounds: Callable[[int, int], int], way: str, waits: bool
) -> None:
    babbler: Any = system.spawn(Client)
    for _ in range(rounds(100, 4)):
        talker: Any = system.spawn(Talker)
        watch = shmipc.monitor(talker)
        beside = babbler.send_numbers.submit(shmipc.self(), 50, 9)
        talker.talk.cast(shmipc.self(), 100, way)
        if not waits:
            assert shmipc.process(talker).join(LIMIT)
        seen = []
        while True:
            message = shmipc.receive(timeout=LIMIT)
            if message.kind == Kind.EXIT:
                break
            if message.sender == talker:
                seen.append(message.body[0])
        assert seen == list(range(100))
        assert message.body.monitor == watch.id
        beside.result(LIMIT)
        while shmipc.pending():
            assert shmipc.receive(timeout=0).sender == babbler


@pytest.mark.row("K4")
@pytest.mark.allows_rescue
def test_notice_waits_for_what_was_set_aside_and_passes_what_nobody_asks_for(system: shmipc.System) -> None:
    talker: Any = system.spawn(Talker)
    watch = shmipc.monitor(talker)
    talker.talk.cast(shmipc.self(), 100, "SIGKILL")
    assert [shmipc.receive(tag=3, timeout=LIMIT).body[0] for _ in range(33)] == list(range(2, 100, 3))
    assert shmipc.process(talker).join(LIMIT)
    assert shmipc.pending() == 67
    seen = [shmipc.receive(sender=talker, timeout=LIMIT) for _ in range(68)]  # set aside, all of them
    assert [message.body[0] for message in seen[:67]] == [n for n in range(100) if n % 3 != 2]
    assert seen[67].kind == Kind.EXIT
    assert seen[67].body.monitor == watch.id
    # A receive that asks for notices only is not held up by messages that it does not want.
    again: Any = system.spawn(Talker)
    watch = shmipc.monitor(again)
    again.talk.cast(shmipc.self(), 10, "SIGKILL")
    assert shmipc.receive(kind=Kind.EXIT, timeout=LIMIT).body.monitor == watch.id
    assert [shmipc.receive(timeout=LIMIT).body[0] for _ in range(10)] == list(range(10))


class LastWords(Actor):
    def on_message(self, message: shmipc.Message) -> None:
        """Sends, lets a timer go off, answers, and dies."""
        shmipc.send(message.sender, "cast")
        shmipc.send_after(0, message.sender, "tick")
        shmipc.send_after(0, shmipc.self(), "later")
        shmipc.receive(kind=Kind.TIMER, timeout=LIMIT)  # set later, so it goes off later
        shmipc.reply(message, "answer")
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.row("K4")
@pytest.mark.allows_rescue
def test_notice_comes_behind_the_ticks_and_answers_of_the_dead_one(system: shmipc.System) -> None:
    for only_exits in (False, True):
        talker: Any = system.spawn(LastWords)
        shmipc.monitor(talker)
        shmipc.send(talker, "question", kind=Kind.CALL, tag=5)
        assert shmipc.process(talker).join(LIMIT)
        if only_exits:
            assert shmipc.receive(kind=Kind.EXIT, timeout=LIMIT).body.ref == talker
        kinds = [shmipc.receive(timeout=LIMIT).kind for _ in range(4 - only_exits)]
        assert sorted(kinds[:3]) == sorted([Kind.CAST, Kind.TIMER, Kind.REPLY])
        assert kinds[3:] == ([] if only_exits else [Kind.EXIT])


# --- K5, K15 ---------------------------------------------------------------------------------------------------


class Flooder(Actor):
    def fill(self, to: Any) -> int:
        count = 0
        try:
            while True:
                shmipc.send(to, bytes(3000), timeout=0)
                count += 1
        except shmipc.MailboxFull:
            return count

    def exhaust(self) -> int:
        """Take every block of shared memory that there is."""
        self.taken = []
        for size in (1 << 20, 1 << 16, 1 << 12):
            try:
                while True:
                    self.taken.append(shmipc.zeros(size, "u1"))
            except shmipc.OutOfMemory:
                continue
        return len(self.taken)

    def give_back(self) -> None:
        self.taken = []
        self.trim()

    def flood(self, to: Any) -> None:
        """Keep the mailbox full until this process is killed."""
        while True:
            shmipc.send(to, "more")


@pytest.mark.row("K5", "K15")
@pytest.mark.allows_rescue
def test_notice_comes_when_every_slot_and_every_block_is_taken(rounds: Callable[[int, int], int]) -> None:
    with shmipc.System(memory_limit=16 << 20) as system:
        flooder: Any = system.spawn(Flooder)
        for _ in range(rounds(20, 3)):
            doomed: Any = system.spawn(Actor)
            watch = shmipc.monitor(doomed)
            process = shmipc.process(doomed)
            assert flooder.fill(shmipc.self()) == 1024
            assert flooder.exhaust() > 0
            with pytest.raises(shmipc.OutOfMemory):
                shmipc.zeros(1 << 16)
            with pytest.raises(shmipc.MailboxFull):
                shmipc.send(shmipc.self(), 1, timeout=0)
            start = time.monotonic()
            os.kill(process.pid, signal.SIGKILL)
            notice = shmipc.receive(kind=Kind.EXIT, timeout=LIMIT).body
            assert time.monotonic() - start < LIMIT
            assert (notice.ref, notice.monitor, notice.signal) == (doomed, watch.id, signal.SIGKILL)
            assert shmipc.pending() == 1024
            for _ in range(1024):
                assert shmipc.receive(timeout=LIMIT).sender == flooder
            flooder.give_back()


@pytest.mark.row("K15")
@pytest.mark.allows_rescue
def test_deaths_are_told_while_others_flood_the_mailbox(
    system: shmipc.System, rounds: Callable[[int, int], int]
) -> None:
    """Three never stop to send; nobody takes anything but notices, then everything is taken at once."""
    flooders: list[Any] = [system.spawn(Flooder) for _ in range(3)]
    for flooder in flooders:
        flooder.flood.cast(shmipc.self())
    for number in range(rounds(100, 4)):
        doomed: Any = system.spawn(Actor)
        watch = shmipc.monitor(doomed)
        while shmipc.pending() < 1024:
            threading.Event().wait(0.001)
        os.kill(shmipc.process(doomed).pid, signal.SIGKILL)
        if number % 2:
            assert shmipc.receive(kind=Kind.EXIT, timeout=LIMIT).body.monitor == watch.id
        else:  # among the flood: at most what was there before it, and what comes while it is looked for
            for _ in range(20_000):
                message = shmipc.receive(timeout=LIMIT)
                if message.kind == Kind.EXIT:
                    assert message.body.monitor == watch.id
                    break
            else:
                raise AssertionError("the flood drowned the notice")
    for flooder in flooders:
        shmipc.process(flooder).kill()


CROWD = """
    from shmipc import _native
    from shmipc.memory import segments
    members = []
    while line := sys.stdin.readline():
        try:
            members += [segments.attach("crowded") for _ in range(int(line))]
            say([member.id for member, _ in members])
        except shmipc.ShmipcError as error:
            say(repr(error))
    """


@pytest.mark.row("K15", "K6")
@pytest.mark.allows_rescue
def test_a_thousand_notices_of_one_moment_all_come_to_a_full_mailbox(tmp_path: Path, eventually: Any) -> None:
    """One process that has joined a thousand times is killed: a thousand members of the system die at once."""
    count = 1000
    with (
        shmipc.System("crowded", max_members=count + 10, memory_limit=16 << 20) as system,
        Program(tmp_path, CROWD) as crowd,
    ):
        flooder: Any = system.spawn(Flooder)
        ids = crowd.ask(count)
        assert len(ids) == count
        box = membership.current().box
        watches = {box.monitor(id): id for id in ids}
        assert len(watches) == count
        assert flooder.fill(shmipc.self()) == 1024
        crowd.kill()
        seen = collections.Counter(shmipc.receive(kind=Kind.EXIT, timeout=60.0).body.monitor for _ in range(count))
        assert seen == dict.fromkeys(watches, 1)
        with pytest.raises(shmipc.MailboxEmpty):
            shmipc.receive(kind=Kind.EXIT, timeout=0)
        assert shmipc.pending() == 1024
        while shmipc.pending():
            assert shmipc.receive(timeout=LIMIT).sender == flooder
        eventually(lambda: system.statistics().members == 2, 60.0)
        with pytest.raises(shmipc.MailboxEmpty):
            shmipc.receive(timeout=0)


# --- K6 --------------------------------------------------------------------------------------------------------


@pytest.mark.row("K6")
@pytest.mark.allows_rescue
def test_every_monitor_of_the_killed_gives_exactly_one_notice(
    system: shmipc.System, rounds: Callable[[int, int], int]
) -> None:
    """Two workers reap beside the keeper all the time, so that a death is found by several at once.

    The notices are received in the end: the slots of the dead have been others' meanwhile, who ended otherwise.
    """
    watchers: list[Any] = [system.spawn(Watcher) for _ in range(2)]
    reapers: list[Any] = [system.spawn(Watcher) for _ in range(2)]
    for reaper in reapers:
        reaper.reap.cast(1 << 60)
    choose = random.Random(6)
    expected: list[list[tuple[Any, int, str]]] = [[], []]
    mine: dict[int, Any] = {}
    total, alive = rounds(1000, 40), []
    for number in range(total):
        doomed: Any = system.spawn(Actor)
        mine[shmipc.monitor(doomed).id] = doomed
        for watcher, list_ in zip(watchers, expected, strict=True):
            id = watcher.watch(doomed)
            if choose.random() < 0.2:
                assert watcher.cancel(doomed)
            else:
                list_.append((doomed, id, "signal"))
        alive.append(shmipc.process(doomed))
        if len(alive) == 5 or number == total - 1:  # several at once
            for process in alive:
                os.kill(process.pid, signal.SIGKILL)
            for process in alive:
                assert process.join(LIMIT)
            alive.clear()
    seen = collections.Counter()
    while sum(seen.values()) < total:
        notice = shmipc.receive(kind=Kind.EXIT, timeout=LIMIT).body
        assert mine[notice.monitor] == notice.ref
        assert (notice.reason, notice.signal) == ("signal", signal.SIGKILL)
        seen[notice.monitor] += 1
    assert seen == dict.fromkeys(mine, 1)
    for watcher, list_ in zip(watchers, expected, strict=True):
        assert sorted(watcher.notices(), key=lambda told: told[1]) == sorted(list_, key=lambda told: told[1])
    no_notice_comes()
    for watcher, list_ in zip(watchers, expected, strict=True):
        assert len(watcher.notices()) == len(list_)
    for reaper in reapers:
        shmipc.process(reaper).kill()


# --- K17 -------------------------------------------------------------------------------------------------------


class Busy(Client):
    """Has something of everything in hand, and is always at it."""

    def work(self, server: Any, box: shmipc.Mailbox) -> None:
        system, number = shmipc.System.current(), 0
        self.kept: list[Any] = [shmipc.zeros(5000, "u1"), shmipc.Mailbox.create()]
        while True:
            number += 1
            array = shmipc.zeros(number % 5 * 20_000 + 1, "u1")
            box.send((number, array[1:], bytes(4000)))
            self.kept.append(box.receive())
            del self.kept[2 : len(self.kept) - 4]
            watch = shmipc.monitor(server)
            futures = [server.echo.submit((n, array)) for n in range(3)]
            with shmipc.Mailbox.create(f"busy{os.getpid()}", slots=4) as mine:
                mine.send(array)
                system.serve(f"busy{number % 3}-{os.getpid()}", shmipc.self())
                assert [future.result()[0] for future in futures] == [0, 1, 2]
                system.withdraw(f"busy{number % 3}-{os.getpid()}")
            watch.cancel()


class Server(Actor):
    def echo(self, value: Any) -> Any:
        return value

    def on_message(self, message: shmipc.Message) -> None:
        pass


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.row("K17")
@pytest.mark.allows_rescue
def test_killed_process_ends_as_killed_and_everything_it_held_comes_back(
    system: shmipc.System, eventually: Any, rounds: Callable[[int, int], int]
) -> None:
    server: Any = system.spawn(Server)
    box = shmipc.Mailbox.create(slots=8)
    choose = random.Random(17)

    def one_round(pause: float) -> None:
        busy: Any = system.spawn(Busy)
        process = shmipc.process(busy)
        watch = shmipc.monitor(busy)
        working = busy.work.submit(server, box)
        threading.Event().wait(pause)
        process.kill()
        with pytest.raises(shmipc.PeerDead) as error:
            working.result(LIMIT)
        assert (error.value.reason, error.value.exitcode, error.value.signal) == ("killed", None, signal.SIGKILL)
        assert process.join(LIMIT)
        assert not process.is_alive()
        assert process.exitcode == -signal.SIGKILL
        notice = shmipc.receive(kind=Kind.EXIT, timeout=LIMIT).body
        assert (notice.monitor, notice.reason, notice.signal) == (watch.id, "killed", signal.SIGKILL)
        process.kill()  # a second one does nothing
        with pytest.raises(shmipc.PeerDead):
            busy.pid()
        while box.count():
            box.receive(timeout=LIMIT)

    for _ in range(3):  # caches of this process are filled
        one_round(0.02)
    before, open_files, tasks = usage(system, server), descriptors(), len(os.listdir("/proc/self/task"))
    for _ in range(rounds(1000, 20)):
        one_round(choose.random() ** 2 * 0.1)
    try:
        eventually(lambda: usage(system, server) | {"undelivered": 0} == before | {"undelivered": 0})
    except AssertionError:
        raise AssertionError(f"{usage(system, server)} after, {before} before") from None
    eventually(lambda: descriptors() <= open_files)
    eventually(lambda: len(os.listdir("/proc/self/task")) <= tasks)
    assert server.echo(1) == 1
    box.close()
