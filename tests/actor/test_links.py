"""Links: when either end of one goes, the other is told, exactly once, whoever made it."""

import collections
import os
import random
import signal
import threading
from typing import Any

import pytest

import shmipc
from shmipc import Kind
from tests.actors import ENDS, Actor, Client, end_in, in_threads, no_notice_comes, outcome

pytestmark = [pytest.mark.race, pytest.mark.timeout(600)]

LIMIT = 10.0  # seconds; ten times the row's


class Linker(Client):
    """Links itself with others, and counts what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, int | None, str]] = []

    def link(self, ref: Any) -> str:
        return outcome(lambda: shmipc.link(ref))

    def unlink(self, ref: Any) -> bool:
        return shmipc.unlink(ref)

    def watch(self, ref: Any) -> int:
        return shmipc.monitor(ref).id

    def end(self, way: str) -> None:
        if way == "exception":
            raise SystemExit(1)
        if way == "_exit":
            os._exit(7)
        if way in ("SIGKILL", "SIGSEGV"):
            signal.signal(signal.SIGSEGV, signal.SIG_DFL)
            os.kill(os.getpid(), signal.Signals[way])
            threading.Event().wait()

    def on_message(self, message: shmipc.Message) -> None:
        if message.kind == Kind.EXIT:
            notice = message.body
            self.told.append((notice.ref, notice.monitor, notice.reason))
        elif message.kind == Kind.CALL:
            shmipc.reply(message, message.body)

    def notices(self) -> list[tuple[Any, int | None, str]]:
        return self.told


def link_and_end(to: Any, way: str) -> None:
    """A function actor that ends in this way when it is told to."""
    shmipc.link(to)
    shmipc.send(to, "linked")
    shmipc.receive(tag=1)
    end_in(way)


@pytest.mark.row("K3")
@pytest.mark.allows_rescue
@pytest.mark.parametrize("way", ENDS)
def test_end_of_who_made_the_link_is_told_with_its_reason(system: shmipc.System, way: str) -> None:
    doomed = system.options(env={"PYTHONFAULTHANDLER": ""}).spawn(link_and_end, shmipc.self(), way)
    assert shmipc.receive(timeout=LIMIT).body == "linked"
    watch = shmipc.monitor(doomed)
    shmipc.send(doomed, "end", tag=1)
    found = [shmipc.receive(kind=Kind.EXIT, timeout=LIMIT) for _ in range(2)]
    assert {message.sender for message in found} == {doomed}
    assert {message.body.monitor for message in found} == {watch.id, None}, "a link's and a monitor's"
    for message in found:
        assert (message.body.reason, message.body.exitcode, message.body.signal) == ENDS[way]
    no_notice_comes()
    assert not shmipc.unlink(doomed)


@pytest.mark.row("K3")
@pytest.mark.allows_rescue
@pytest.mark.parametrize("way", ENDS)
def test_end_of_who_was_linked_is_told_and_not_after_unlinking(system: shmipc.System, way: str) -> None:
    linkers: list[Any] = [system.spawn(Linker) for _ in range(3)]
    doomed: Any = system.options(env={"PYTHONFAULTHANDLER": ""}).spawn(Linker)
    for linker in linkers[:2]:
        assert linker.link(doomed) == "done"
    assert doomed.link(linkers[2]) == "done"
    shmipc.link(doomed)
    assert linkers[1].unlink(doomed)
    assert doomed.unlink(shmipc.self())  # the other end may, too
    assert not shmipc.unlink(doomed)
    process = shmipc.process(doomed)
    if way == "return":
        assert process.stop()
    else:
        doomed.end.cast(way)
    assert process.join(LIMIT)
    reason = "exited" if way == "exception" else ENDS[way][0]  # SystemExit(1) is an exit
    told = [(doomed, None, reason)]
    deadline = threading.Event()
    for _ in range(200):
        if linkers[0].notices() and linkers[2].notices():
            break
        deadline.wait(0.01)
    no_notice_comes()
    assert [linker.notices() for linker in linkers] == [told, [], told]


@pytest.mark.row("K3")
def test_link_with_oneself_the_dead_or_twice_is_refused(system: shmipc.System) -> None:
    with pytest.raises(shmipc.InvalidArgument, match="itself"):
        shmipc.link(shmipc.self())
    ref: Any = system.spawn(Linker)
    shmipc.link(ref)
    with pytest.raises(shmipc.InvalidArgument, match="already"):
        shmipc.link(ref)
    assert ref.link(shmipc.self()) == "InvalidArgument", "from the other end, too"
    assert shmipc.unlink(ref)
    assert not shmipc.unlink(ref)
    assert ref.link(shmipc.self()) == "done"
    assert shmipc.process(ref).stop()
    assert shmipc.receive(timeout=LIMIT).body.monitor is None
    with pytest.raises(shmipc.InvalidArgument, match="ended"):
        shmipc.link(ref)
    with pytest.raises(TypeError):
        shmipc.link("name")
    no_notice_comes()


@pytest.mark.row("K3")
def test_two_that_link_each_other_at_once_are_linked_once(system: shmipc.System, rounds: Any) -> None:
    left, right = (system.spawn(Linker) for _ in range(2))
    one: Any = left
    other: Any = right
    for _ in range(rounds(500, 30)):
        both = [one.link.submit(other), other.link.submit(one)]
        assert sorted(future.result(LIMIT) for future in both) == ["InvalidArgument", "done"]
        assert one.unlink(other)
        assert not other.unlink(one)
        assert one.link(other) == "done"
        assert other.unlink(one)


@pytest.mark.row("B18")
def test_a_call_neither_makes_nor_takes_a_notice(system: shmipc.System) -> None:
    peer: Any = system.spawn(Linker)
    shmipc.link(peer)
    assert shmipc.call(peer, "question") == "question"
    assert peer.pid() > 0
    in_flight = peer.end.submit("SIGKILL")
    with pytest.raises(shmipc.PeerDead):
        in_flight.result(LIMIT)
    with pytest.raises(shmipc.PeerDead):
        shmipc.call(peer, "anybody?", timeout=LIMIT)
    assert shmipc.receive(timeout=LIMIT).body.ref == peer
    no_notice_comes()
    assert shmipc.pending() == 0


@pytest.mark.row("K6")
@pytest.mark.allows_rescue
def test_exits_are_as_many_as_links_and_monitors(system: shmipc.System, rounds: Any) -> None:
    """Peers are killed, some by two at once while others reap; each link and each monitor tells it once."""
    watcher: Any = system.spawn(Linker)
    expected: collections.Counter[tuple[Any, bool]] = collections.Counter()
    choose = random.Random(6)
    for _ in range(rounds(1000, 20)):
        doomed: Any = system.spawn(Linker)
        if choose.random() < 0.7:
            shmipc.link(doomed)
            expected["me", True] += 1
        if choose.random() < 0.7:
            shmipc.monitor(doomed)
            expected["me", False] += 1
        if choose.random() < 0.7:
            assert (watcher.link(doomed) if choose.random() < 0.5 else doomed.link(watcher)) == "done"
            expected["watcher", True] += 1
        watcher.watch(doomed)
        expected["watcher", False] += 1
        member = system._membership.member
        os.kill(shmipc.process(doomed).pid, signal.SIGKILL)
        in_threads([member.reap, member.reap])
    found: collections.Counter[tuple[Any, bool]] = collections.Counter()
    for _ in range(expected["me", True] + expected["me", False]):
        found["me", shmipc.receive(kind=Kind.EXIT, timeout=LIMIT).body.monitor is None] += 1
    no_notice_comes(0.5)
    for _, monitor, _ in watcher.notices():
        found["watcher", monitor is None] += 1
    assert found == expected


def test_link_of_two_that_die_at_once_leaves_nothing(system: shmipc.System, eventually: Any) -> None:
    notices = system._membership.member
    for _ in range(4):
        pair: list[Any] = [system.spawn(Linker) for _ in range(2)]
        assert pair[0].link(pair[1]) == "done"
        for ref in pair:
            os.kill(shmipc.process(ref).pid, signal.SIGKILL)
        assert all(shmipc.process(ref).join(LIMIT) for ref in pair)
    assert notices.reap() == 0
    no_notice_comes(0.1)


def test_linked_actor_without_on_message_goes_on(system: shmipc.System) -> None:
    plain, ended = system.spawn(Actor), system.spawn(Linker)
    linker: Any = ended
    assert linker.link(plain) == "done"
    assert shmipc.process(ended).stop()
    assert plain.pid() > 0
