"""Timers: never early, one tick for each late period, none after cancelling, and no traffic suppresses them."""

import os
import pickle
import signal
import threading
import time
from typing import Any

import psutil
import pytest

import shmipc
from shmipc import Kind
from tests.actors import Actor, Client, usage

LIMIT = 10.0  # seconds; a watchdog


def no_tick_comes(seconds: float) -> None:
    """Watched for that long: nothing. A sleep by intent."""
    with pytest.raises(shmipc.Timeout):
        shmipc.receive(kind=Kind.TIMER, timeout=seconds)


def test_timer_for_one_who_has_ended_is_refused(system: shmipc.System) -> None:
    ref: Any = system.spawn(Setter)
    assert ref.pid() == shmipc.process(ref).pid  # its mailbox is open here
    shmipc.process(ref).kill()
    shmipc.process(ref).join(LIMIT)
    for set_timer in (shmipc.send_after, shmipc.send_every):
        with pytest.raises(shmipc.PeerDead):
            set_timer(0.01, ref, "tick")


class Setter(Actor):
    """Sets timers, to itself and to others."""

    def __init__(self) -> None:
        self.ticks: list[tuple[Any, Any]] = []
        self.timers: list[shmipc.Timer] = []

    def every(self, period: float, to: Any = None) -> shmipc.Timer:
        timer = shmipc.send_every(period, to or shmipc.self(), "tick")
        self.timers.append(timer)
        return timer

    def after(self, delay: float, to: Any, body: Any = "tick") -> int:
        return shmipc.send_after(delay, to, body).id

    def cancel(self) -> bool:
        return self.timers.pop().cancel()

    def cancel_and_count(self) -> int:
        self.cancel()
        return self.count()

    def on_message(self, message: shmipc.Message) -> None:
        self.ticks.append((message.kind, message.tag))

    def count(self) -> int:
        return len(self.ticks)

    def be_busy(self, seconds: float) -> list[float]:
        """Keep the interpreter from every other thread; when a tick that was due in the midst of it had fired."""
        timer = shmipc.send_after(seconds / 4, shmipc.self(), "tick")
        ends = time.monotonic() + seconds
        pattern = b"x" * 50_000_000
        while time.monotonic() < ends:
            pattern.count(b"y")  # holds the lock
        fired = time.monotonic()
        shmipc.receive(kind=Kind.TIMER, tag=timer.id, timeout=0)  # there already: fired meanwhile
        return [ends, fired]


@pytest.mark.row("K1")
def test_tick_comes_once_and_not_early_and_bears_the_id(system: shmipc.System) -> None:
    me = shmipc.self()
    for delay in (0.05, 0.0, 0.001):
        started = time.monotonic()
        timer = shmipc.send_after(delay, me, ("body", delay))
        message = shmipc.receive(timeout=LIMIT)
        assert time.monotonic() - started >= delay
        assert (message.kind, message.tag, message.body) == (Kind.TIMER, timer.id, ("body", delay))
        assert message.sender == me
        assert timer.id >> 60 == 1, "no user's tag"
        no_tick_comes(0.1)
        assert not timer.cancel(), "its tick was received"
    assert shmipc.send_after(0, me, "tagged", tag=5).id != 5
    assert shmipc.receive(tag=5, timeout=LIMIT).body == "tagged"


@pytest.mark.row("K1")
def test_cancelled_timer_sends_nothing_also_when_its_tick_had_come(system: shmipc.System, eventually: Any) -> None:
    me = shmipc.self()
    timer = shmipc.send_after(0.05, me, "tick")
    assert timer.cancel()
    no_tick_comes(0.15)
    with pytest.raises(shmipc.InvalidArgument, match="before"):
        timer.cancel()
    came = shmipc.send_after(0, me, "tick")
    witness = shmipc.send_after(0.02, me, "witness")
    assert shmipc.receive(tag=witness.id, timeout=LIMIT).body == "witness"  # so the other is queued
    assert came.cancel()
    no_tick_comes(0.1)
    again = shmipc.send_every(0.01, me, "tick")
    assert shmipc.receive(tag=again.id, timeout=LIMIT).body == "tick"
    assert again.cancel()
    no_tick_comes(0.1)


@pytest.mark.row("K1")
def test_timer_of_another_process_is_unknown_here(system: shmipc.System) -> None:
    setter: Any = system.spawn(Setter)
    timer = setter.every(100)
    with pytest.raises(shmipc.InvalidArgument, match="none of this process"):
        timer.cancel()
    assert not system._membership.member.cancel_timer(12345)
    assert setter.cancel()
    for wrong in (-1, float("nan")):
        with pytest.raises(shmipc.InvalidArgument):
            shmipc.send_after(wrong, shmipc.self(), "tick")
        with pytest.raises(shmipc.InvalidArgument):
            shmipc.send_every(wrong, shmipc.self(), "tick")
    with pytest.raises(shmipc.InvalidArgument):
        shmipc.send_every(0, shmipc.self(), "tick")
    with pytest.raises(shmipc.InvalidArgument, match="shared memory"):
        shmipc.send_after(0, shmipc.self(), shmipc.zeros(10))
    with pytest.raises(shmipc.TooLarge, match="400"):
        shmipc.send_after(0, shmipc.self(), bytes(401))
    shmipc.send_after(0, shmipc.self(), bytes(400))
    assert shmipc.receive(timeout=LIMIT).body == bytes(400)
    assert pickle.loads(pickle.dumps(shmipc.send_after(100, shmipc.self(), ""))).id


@pytest.mark.row("K1")
def test_late_periods_are_one_tick(system: shmipc.System, eventually: Any) -> None:
    me, period = shmipc.self(), 0.01
    timer = shmipc.send_every(period, me, "tick")
    started = time.monotonic()
    for number in range(1, 6):
        assert shmipc.receive(tag=timer.id, timeout=LIMIT).body == "tick"
        assert time.monotonic() - started >= number * period
    threading.Event().wait(0.1)  # nobody receives meanwhile
    assert timer.cancel()
    setter: Any = system.spawn(Setter)
    setter.every(period)
    eventually(lambda: setter.count() >= 2)
    pid = shmipc.process(setter).pid
    os.kill(pid, signal.SIGSTOP)
    eventually(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    before = setter.count.submit()
    threading.Event().wait(0.5)
    going_on = time.monotonic()
    os.kill(pid, signal.SIGCONT)
    late = setter.cancel_and_count()
    periods = (time.monotonic() - going_on) / period
    # One for the time it was stopped, one that may have been due when it was, and those since: not fifty.
    assert late - before.result(LIMIT) <= 2 + periods


@pytest.mark.row("K1")
def test_stopped_process_gets_one_tick_for_the_time_it_was_stopped(system: shmipc.System) -> None:
    """The timer's process is stopped for ten periods: of another process's mailbox, one tick waits."""
    setter: Any = system.spawn(Setter)
    setter.every(0.01, shmipc.self())
    shmipc.receive(kind=Kind.TIMER, timeout=LIMIT)
    os.kill(shmipc.process(setter).pid, signal.SIGSTOP)
    while True:
        try:
            shmipc.receive(kind=Kind.TIMER, timeout=0.1)
        except shmipc.Timeout:
            break
    os.kill(shmipc.process(setter).pid, signal.SIGCONT)
    shmipc.receive(kind=Kind.TIMER, timeout=LIMIT)
    assert setter.cancel()
    assert len([1 for _ in range(20) if polls()]) == 0


def polls() -> bool:
    try:
        shmipc.receive(kind=Kind.TIMER, timeout=0)
    except shmipc.MailboxEmpty:
        return False
    return True


@pytest.mark.row("K2")
def test_waiting_for_a_timer_keeps_other_messages_in_order(system: shmipc.System) -> None:
    client: Any = system.spawn(Client)
    client.send_numbers(shmipc.self(), 5)
    started = time.monotonic()
    pause = shmipc.send_after(0.05, shmipc.self(), None)
    assert shmipc.receive(kind=Kind.TIMER, tag=pause.id, timeout=LIMIT).tag == pause.id
    assert time.monotonic() - started >= 0.05
    every = shmipc.send_every(0.01, shmipc.self(), None)
    assert shmipc.receive(kind=Kind.TIMER, timeout=LIMIT).tag == every.id
    every.cancel()
    assert [shmipc.receive(timeout=0).body for _ in range(5)] == list(range(5))
    assert shmipc.pending() == 0


@pytest.mark.row("K15")
def test_timer_fires_though_every_slot_is_taken(system: shmipc.System) -> None:
    me = shmipc.self()
    peer: Any = system.spawn(Setter)
    shmipc.monitor(peer)
    theirs = peer.after(0.02, me, "from a peer")
    started = time.monotonic()
    timer = shmipc.send_after(0.02, me, "tick")
    with pytest.raises(shmipc.MailboxFull):
        while True:
            shmipc.send(me, "flood", timeout=0)
    full = shmipc.pending()
    assert full == 1024
    assert shmipc.receive(tag=timer.id, timeout=LIMIT).body == "tick"
    assert time.monotonic() - started >= 0.02
    assert shmipc.receive(tag=theirs, timeout=LIMIT).body == "from a peer"
    os.kill(shmipc.process(peer).pid, signal.SIGKILL)
    assert shmipc.receive(kind=Kind.EXIT, timeout=LIMIT).sender == peer
    assert shmipc.pending() == full


@pytest.mark.row("K15")
def test_timer_fires_while_the_interpreter_is_busy(system: shmipc.System) -> None:
    setter: Any = system.spawn(Setter)
    ends, fired = setter.be_busy(0.4)
    assert fired >= ends


def test_ticks_come_in_the_order_in_which_they_are_due(system: shmipc.System) -> None:
    delays = [0.05, 0.01, 0.03, 0.0, 0.04, 0.02]
    timers = [shmipc.send_after(delay, shmipc.self(), delay) for delay in delays]
    last = shmipc.send_after(0.06, shmipc.self(), 0.06)
    assert shmipc.receive(tag=last.id, timeout=LIMIT).body == 0.06
    assert [shmipc.receive(kind=Kind.TIMER, timeout=0).body for _ in timers] == sorted(delays)


def test_ten_thousand_timers_are_set_and_cancelled_and_leave_nothing(system: shmipc.System) -> None:
    before = usage(system)
    for _ in range(10_000):
        assert shmipc.send_after(1000, shmipc.self(), None).cancel()
    assert usage(system) == before


def test_tick_that_has_come_outlives_its_setter_and_one_that_has_not_goes(system: shmipc.System) -> None:
    box = shmipc.Mailbox.create(slots=4)
    setter: Any = system.spawn(Setter)
    came, due = setter.after(0.0, box), setter.after(100, box)
    assert came != due
    witness = setter.after(0.02, shmipc.self())
    assert shmipc.receive(tag=witness, timeout=LIMIT)
    os.kill(shmipc.process(setter).pid, signal.SIGKILL)
    assert shmipc.process(setter).join(LIMIT)
    assert box.receive_message(timeout=LIMIT).tag == came
    with pytest.raises(shmipc.MailboxEmpty):
        box.receive(timeout=0)
    box.close()


def test_timer_of_a_mailbox_that_has_gone_ends(system: shmipc.System, eventually: Any) -> None:
    before = usage(system)
    ended: Any = system.spawn(Client)
    timer = shmipc.send_every(0.005, ended, "tick")
    assert shmipc.process(ended).stop()
    del ended
    box = shmipc.Mailbox.create(slots=4)
    second = shmipc.send_every(0.005, box, "tick")
    box.receive(timeout=LIMIT)
    box.close()
    witness = shmipc.send_after(0.05, shmipc.self(), "")
    shmipc.receive(tag=witness.id, timeout=LIMIT)
    assert not timer.cancel()
    assert not second.cancel()
    eventually(lambda: usage(system) == before)
