"""What every facade keeps that has it: one suite for all. `interfaces.py` says which facade has what."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

import shmipc
from shmipc import _native
from shmipc.facades import resea, rt_ipc_sync
from tests.facades.interfaces import INTERFACES, Speaker

LIMIT = 20.0  # seconds; a watchdog


def those_with(what: str) -> Any:
    return pytest.mark.parametrize("name", [name for name, one in INTERFACES.items() if getattr(one, what)])


@pytest.fixture(autouse=True, scope="module")
def zygote() -> Iterator[None]:
    """One zygote for all systems of this module: it goes with the last system of the process."""
    with shmipc.System() as anchor:
        anchor.spawn(Speaker)
        yield


@pytest.fixture
def home() -> Iterator[shmipc.System]:
    with shmipc.System() as made:
        yield made


@pytest.fixture
def speakers(home: shmipc.System) -> list[Any]:
    return [home.spawn(Speaker) for _ in range(3)]


@pytest.mark.parametrize("name", INTERFACES)
def test_messages_of_each_sender_arrive_once_and_in_order(name: str, speakers: list[Any]) -> None:
    interface, count = INTERFACES[name], 50
    named = [interface.who(speaker) for speaker in speakers]
    sent = [
        speaker.send.submit(name, interface.here(), [b"%d %d" % (n, i) for i in range(count)])
        for n, speaker in enumerate(speakers)
    ]
    got: dict[int, list[int]] = {n: [] for n in range(3)}
    for _ in range(3 * count):
        who, data, _ = interface.receive()
        n, i = map(int, data.split())
        assert who in (None, named[n])
        got[n].append(i)
    assert list(got.values()) == [list(range(count))] * 3
    assert [future.result(LIMIT) for future in sent] == [[True] * count] * 3


@those_with("calls")
def test_reply_reaches_only_its_caller(name: str, speakers: list[Any]) -> None:
    interface, count = INTERFACES[name], 20
    named = [interface.who(speaker) for speaker in speakers]
    asked = [
        speaker.call.submit(name, interface.here(), [b"%d %d" % (n, i) for i in range(count)])
        for n, speaker in enumerate(speakers)
    ]
    for _ in range(count):  # each has one call open at a time: all are held, then answered from the last on
        held = [interface.receive() for _ in speakers]
        for who, data, request in reversed(held):
            assert who == named[int(data.split()[0])]
            assert interface.answer(request, b"to " + data)
    for n, future in enumerate(asked):
        assert future.result(LIMIT) == [b"to %d %d" % (n, i) for i in range(count)]


@those_with("filters")
def test_filtered_receive_leaves_the_others_in_order(name: str, speakers: list[Any], eventually: Any) -> None:
    interface, sent = INTERFACES[name], []
    second = interface.who(speakers[1])
    for n, speaker in enumerate(speakers):
        sent.append(speaker.send.submit(name, interface.here(), [b"%d" % n]))
        eventually(lambda n=n: shmipc.pending() == n + 1)
    assert interface.receive(second)[1] == b"1"
    assert [interface.receive()[1] for _ in range(2)] == [b"0", b"2"]
    assert [future.result(LIMIT) for future in sent] == [[True]] * 3


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Rude(Speaker):
    """Answers whatever it is asked with an exception that has no text."""

    def on_message(self, message: shmipc.Message) -> None:
        if message.is_call:
            message.reply_error(Mute())


@pytest.mark.parametrize("name", ["rt_ipc", "rt_ipc_sync", "resea"])
def test_answer_that_is_an_exception_without_a_text_is_a_status(name: str, home: shmipc.System) -> None:
    interface = INTERFACES[name]
    assert interface.call(interface.who(home.spawn(Rude)), b"anybody?") is None


@pytest.mark.parametrize("name", ["rt_ipc", "rt_ipc_sync", "resea", "ratos"])  # to chorus it is an abort
def test_receive_goes_on_when_the_caller_of_an_open_call_has_died(name: str, home: shmipc.System) -> None:
    interface = INTERFACES[name]
    caller, sender = (home.spawn(Speaker) for _ in range(2))
    asked = caller.call.submit(name, interface.here(), [b"question"])
    data, request = interface.take()
    assert data == b"question"
    os.kill(shmipc.process(caller).pid, signal.SIGKILL)
    assert isinstance(asked.exception(LIMIT), shmipc.PeerDead)
    del request
    sent = sender.send.submit(name, interface.here(), [b"next"])
    assert interface.receive()[1] == b"next"
    assert sent.result(LIMIT) == [True]


@those_with("tells")
def test_death_of_the_other_ends_the_wait_for_it(name: str, home: shmipc.System) -> None:
    interface = INTERFACES[name]
    other: Any = home.spawn(Speaker)
    busy = other.hold.submit(name, shmipc.self())
    to = shmipc.receive(tag=1, timeout=LIMIT).body
    outcomes: list[bytes | None] = []
    waits = threading.Thread(target=lambda: outcomes.append(interface.call(to, b"anybody?")))
    waits.start()
    waits.join(0.1)
    assert waits.is_alive()
    os.kill(shmipc.process(other).pid, signal.SIGKILL)
    waits.join(LIMIT)
    assert outcomes == [None]
    assert interface.call(to, b"and now?") is None
    with pytest.raises(shmipc.PeerDead):
        busy.result(LIMIT)


@those_with("calls")
def test_server_learns_that_its_caller_has_died(name: str, home: shmipc.System) -> None:
    interface = INTERFACES[name]
    other: Any = home.spawn(Speaker)
    asked = other.call.submit(name, interface.here(), [b"question"])
    _, data, request = interface.receive()
    assert data == b"question"
    os.kill(shmipc.process(other).pid, signal.SIGKILL)
    assert shmipc.process(other).join(LIMIT)
    assert not interface.answer(request, b"answer")
    with pytest.raises(shmipc.PeerDead):
        asked.result(LIMIT)


class Odd:
    """Arrives as what cannot be pickled again."""

    def __reduce__(self) -> Any:
        return threading.Lock, ()


def receive_one(name: str) -> None:
    with suppress(BaseException):
        INTERFACES[name].receive()
    threading.Event().wait()


@pytest.mark.parametrize("name", ["rt_ipc", "resea"])
def test_caller_is_told_that_its_request_has_no_bytes(name: str, home: shmipc.System) -> None:
    server: Any = home.spawn(receive_one, name)
    with pytest.raises(TypeError):
        server._shm.open().submit(Odd(), _native.RAW).result(LIMIT)


@pytest.mark.parametrize("what", ["resea", "rt_ipc_sync"])
def test_signal_handler_goes_where_its_thread_was(what: str, home: shmipc.System) -> None:
    peer: Any = home.spawn(Speaker)
    lock, act = {
        "resea": (resea._self().offering, lambda: resea.async_send(peer, resea.message(1))),
        "rt_ipc_sync": (rt_ipc_sync._lock, lambda: rt_ipc_sync.rt_ipc_recv(0)),
    }[what]

    def interrupted() -> None:
        with lock:  # here the signal arrives, whose handler does the same
            act()

    thread = threading.Thread(target=interrupted, daemon=True)
    thread.start()
    thread.join(LIMIT)
    assert not thread.is_alive()
