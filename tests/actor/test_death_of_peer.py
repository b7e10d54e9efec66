"""Calls whose other side dies: before, while and after it serves, or while it waits."""

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import shmipc
from shmipc import Kind
from shmipc.facades import resea, rt_ipc, rt_ipc_sync
from tests.actors import Actor, Client, Echo, Gate, Holder, Sleeper, answer_and_end, record_of, usage


def kill(ref: Any) -> None:
    """SIGKILL from outside the library."""
    os.kill(shmipc.process(ref).pid, signal.SIGKILL)


def kill_and_reap(ref: Any) -> None:
    process = shmipc.process(ref)
    kill(ref)
    assert process.join(10)
    assert not process.is_alive()


def dies_of(error: BaseException) -> tuple[str, int | None, int | None]:
    assert isinstance(error, shmipc.PeerDead)
    assert isinstance(error, ConnectionError)
    assert not isinstance(error, TimeoutError)
    return error.reason, error.exitcode, error.signal


KILLED = ("signal", None, signal.SIGKILL)


# --- the server dies -------------------------------------------------------------------------------------------


@pytest.mark.row("B10")
def test_call_to_a_dead_actor_ends_at_once(system: shmipc.System) -> None:
    echo: Any = system.spawn(Echo)
    other: Any = system.spawn(Echo)
    assert other.echo(echo) == echo
    assert echo.echo(1) == 1
    kill_and_reap(echo)
    again = other.echo(echo)  # a Ref that is opened after the death
    for act in (
        lambda: shmipc.call(echo, "?", timeout=5),
        lambda: echo.echo.call("?", timeout=5),
        lambda: echo.echo("?"),
        lambda: echo.echo.submit("?", timeout=5).result(),
        lambda: echo.echo.cast("?"),
        lambda: shmipc.send(echo, "?"),
        lambda: shmipc.call(again, "?", timeout=5),
    ):
        started = time.monotonic()
        with pytest.raises(shmipc.PeerDead) as caught:
            act()
        assert time.monotonic() - started < 2
        assert dies_of(caught.value) == KILLED
    assert other.echo(2) == 2


class Prober(Client):
    def probe(self, to: Any) -> tuple[str, int | None, int | None]:
        with pytest.raises(shmipc.PeerDead) as caught:
            shmipc.call(to, "?", timeout=5)
        return dies_of(caught.value)


@pytest.mark.row("B10")
def test_call_of_an_actor_to_a_dead_actor_ends_at_once(system: shmipc.System) -> None:
    echo: Any = system.spawn(Echo)
    prober: Any = system.spawn(Prober)
    assert prober.call(echo, 1) == 1
    kill_and_reap(echo)
    started = time.monotonic()
    assert prober.probe(echo) == KILLED
    assert time.monotonic() - started < 2


@pytest.mark.allows_rescue
@pytest.mark.row("B11")
@pytest.mark.parametrize("way", ["call", "method", "submit"])
def test_call_whose_server_is_killed_before_it_takes_it_ends_in_peer_dead(
    system: shmipc.System, eventually: Callable[..., None], way: str
) -> None:
    gate: Any = system.spawn(Gate)
    gate.shut.cast()
    act: Callable[[], object] = {
        "call": lambda: shmipc.call(gate, "?"),
        "method": lambda: gate.pid(),
        "submit": lambda: gate.pid.submit().result(),
    }[way]
    errors: list[BaseException] = []

    def run() -> None:
        with pytest.raises(shmipc.PeerDead) as caught:
            act()
        errors.append(caught.value)

    caller = threading.Thread(target=run)
    caller.start()
    # The order to shut was taken, and the request waits.
    eventually(lambda: record_of(system, gate)["depth"] == 1)
    started = time.monotonic()
    kill(gate)
    caller.join(10)
    assert not caller.is_alive()
    assert time.monotonic() - started < 10
    assert dies_of(errors[0]) == KILLED


@pytest.mark.race
@pytest.mark.allows_rescue
@pytest.mark.row("B12")
def test_call_without_a_limit_ends_when_its_server_is_killed_at_any_moment(system: shmipc.System) -> None:
    choose = random.Random(12)
    ended: list[float] = []

    def kill_later(process: shmipc.Process, delay: float, wait: bool) -> None:
        if wait:
            shmipc.receive(tag=1, timeout=30)  # it serves
        threading.Event().wait(delay)
        ended.append(time.monotonic())
        os.kill(process.pid, signal.SIGKILL)

    for number in range(200):
        sleeper: Any = system.spawn(Sleeper)
        delay, raw, wait = choose.uniform(0, 0.01), choose.random() < 0.5, choose.random() < 0.7
        killer = threading.Thread(target=kill_later, args=(shmipc.process(sleeper), delay, wait))
        killer.start()
        with pytest.raises(shmipc.PeerDead) as caught:
            if raw:
                shmipc.call(sleeper, "?", timeout=None)
            else:
                sleeper.sleep(shmipc.self())
        elapsed = time.monotonic() - ended[-1]
        killer.join()
        assert elapsed < 10, f"round {number}"
        assert dies_of(caught.value) == KILLED
        while shmipc.pending():
            shmipc.receive(timeout=0)


@pytest.mark.race
@pytest.mark.allows_rescue
@pytest.mark.row("B13")
@pytest.mark.parametrize("way", ["_exit", "kill", "exit", "return"])
def test_answer_given_before_the_server_ended_is_delivered(
    system: shmipc.System, rounds: Callable[[int, int], int], way: str
) -> None:
    big = bytes(100_000)
    for number in range(rounds(1000, 40) if way == "_exit" else rounds(200, 15)):
        server = system.spawn(answer_and_end, way)
        body = (number, big if number % 3 == 0 else b"")
        assert shmipc.call(server, body, timeout=60 if number % 2 else None) == ("answer to", body), f"round {number}"
        process = shmipc.process(server)
        assert process.join(10)
        if number % 20 == 0:
            assert process.exitcode == {"_exit": 3, "kill": -9, "exit": 3, "return": 0}[way]


def refused(act: Callable[[], Any]) -> str:
    """The name of the status, or of the exception."""
    try:
        return str(getattr(act(), "name", "accepted"))
    except shmipc.ShmipcError as error:
        return type(error).__name__


@pytest.mark.race
@pytest.mark.allows_rescue
@pytest.mark.row("B24", "J12")
def test_who_was_told_of_a_death_is_told_so_by_whatever_it_sends_next(
    system: shmipc.System, rounds: Callable[[int, int], int]
) -> None:
    request = resea.message(1, data=b"?")
    ways: list[tuple[Callable[[Any], Any], str]] = [
        (lambda ref: shmipc.send(ref, "?", timeout=0), "PeerDead"),
        (lambda ref: shmipc.send(ref, "?"), "PeerDead"),
        (lambda ref: shmipc.rendezvous(ref, "?", timeout=0), "PeerDead"),
        (lambda ref: resea.ipc_send_noblock(ref, request), "ERR_ABORTED"),
        (lambda ref: rt_ipc.rt_ipc_cast(ref, b"?"), "RT_PEER_DEAD"),
        (lambda ref: rt_ipc_sync.rt_ipc_send(ref, b"?", rt_ipc_sync.ASYNC), "RT_PEER_DEAD"),
        (lambda ref: shmipc.notify(ref, 1), "PeerDead"),
        (lambda ref: ports[ref].send("?", 0), "Unreachable"),
    ]
    ports: dict[Any, shmipc.Port] = {}
    for _ in range(rounds(40, 20)):
        for send, wanted in ways:
            victim = system.spawn(time.sleep, 60)
            ports = {victim: shmipc.Port.default(victim)}
            killer = threading.Timer(0.01, lambda ref=victim: kill(ref))
            killer.start()
            with pytest.raises(shmipc.PeerDead):
                shmipc.call(victim, "?")
            told = refused(lambda send=send, ref=victim: send(ref))  # type: ignore[misc]
            killer.join()
            assert told == wanted


# --- the client dies -------------------------------------------------------------------------------------------


@pytest.mark.row("B14")
@pytest.mark.parametrize("answer", [b"small", bytes(100_000)], ids=["small", "large"])
def test_answer_to_a_dead_client_is_an_error_and_the_server_goes_on(
    system: shmipc.System, eventually: Callable[..., None], answer: bytes
) -> None:
    server: Any = system.spawn(Holder)
    third: Any = system.spawn(Client)
    assert server.count() == third.pending() == 0

    def lose_a_client() -> None:
        client: Any = system.spawn(Client)
        client.call.cast(server, ("question", bytes(50_000)))
        eventually(lambda: server.count() == 1)
        sender, kind, tag = server.describe(0)
        assert (sender, kind, tag) == (client, Kind.CALL, None)
        kill_and_reap(client)
        assert server.answer(0, answer) == "PeerDead"
        assert server.answer_error(0, ValueError(answer)) == "PeerDead"
        server.forget()
        # It serves the next one.
        waiting = third.call.submit(server, "question")
        eventually(lambda: server.count() == 1)
        assert server.answer(0, answer) == "done"
        assert waiting.result(10) == answer
        server.forget()

    lose_a_client()
    before = usage(system, server, third)
    for _ in range(10):
        lose_a_client()
    assert usage(system, server, third) == before


@pytest.mark.race
@pytest.mark.allows_rescue
@pytest.mark.row("B14")
def test_answer_to_a_client_that_dies_meanwhile_is_given_or_an_error(
    system: shmipc.System, eventually: Callable[..., None]
) -> None:
    server: Any = system.spawn(Holder)
    third: Any = system.spawn(Echo)
    outcomes = set()
    choose = random.Random(14)
    before = usage(system, server, third)
    for _ in range(40):
        client: Any = system.spawn(Client)
        client.call.cast(server, "question")
        eventually(lambda: server.count() == 1)
        killer = threading.Timer(choose.uniform(0, 0.002), kill, (client,))
        killer.start()
        outcomes.add(server.answer(0, bytes(100_000)))
        killer.join()
        assert shmipc.process(client).join(10)
        server.forget()
    assert outcomes <= {"done", "PeerDead"}
    del client, killer  # the last Ref goes, and with it the mailbox
    assert usage(system, server, third) == before


@pytest.mark.race
@pytest.mark.allows_rescue
@pytest.mark.row("B15")
def test_answer_meant_for_a_dead_client_never_reaches_the_process_in_its_slot(eventually: Callable[..., None]) -> None:
    with shmipc.System(max_members=3) as system:  # so there is one slot for the clients
        answer_the_dead(system, eventually)


def answer_the_dead(system: shmipc.System, eventually: Callable[..., None]) -> None:
    server: Any = system.spawn(Holder)
    client: Any = system.spawn(Client)
    seen = {record_of(system, client)["id"]}
    for number in range(60):
        calling = client.call.submit(server, ("question", number))
        eventually(lambda: server.count() == 1)
        old = record_of(system, client)
        kill_and_reap(client)
        with pytest.raises(shmipc.PeerDead):
            calling.result(10)
        client = system.spawn(Client)
        new = record_of(system, client)
        assert new["id"] not in seen, "no generation is used twice"
        seen.add(new["id"])
        assert new["slot"] == old["slot"]
        # The newcomer waits in its first call, as the old one did in its own.
        calling = client.call.submit(server, ("new question", number))
        eventually(lambda: server.count() == 2)
        assert server.answer(0, ("answer to the dead", number)) == "PeerDead"
        assert server.answer(1, ("answer", number)) == "done"
        assert calling.result(10) == ("answer", number)
        assert client.pending() == 0
        server.forget()


# --- what is lost with its receiver ----------------------------------------------------------------------------


class Maker(Actor):
    """Makes a mailbox that nobody else keeps open."""

    def make(self, name: str) -> None:
        self.box = shmipc.Mailbox.create(name, slots=16)


LOST = 7


def test_messages_lost_with_a_killed_actor_are_counted_in_its_notice_and_in_the_system(system: shmipc.System) -> None:
    sleeper: Any = system.spawn(Sleeper)
    shmipc.monitor(sleeper)
    sleeper.sleep.cast(shmipc.self())
    assert shmipc.receive(tag=1, timeout=10).body == "serving"
    for _ in range(LOST):
        shmipc.send(sleeper, "never taken")
    kill(sleeper)
    assert shmipc.receive(kind=Kind.EXIT, timeout=10).body.undelivered == LOST
    assert system.statistics().undelivered == LOST


def test_messages_lost_with_the_last_holder_of_a_mailbox_are_counted(
    system: shmipc.System, eventually: Callable[..., None]
) -> None:
    maker: Any = system.spawn(Maker)
    maker.make("alone")
    with shmipc.Mailbox.open("alone") as box:
        for number in range(LOST):
            box.send(number)
        assert box.receive() == 0
    kill(maker)
    eventually(lambda: system.statistics().undelivered == LOST - 1)


def test_loss_is_logged_once_when_its_system_ends(caplog: pytest.LogCaptureFixture) -> None:
    with shmipc.System() as system:
        box = shmipc.Mailbox.create()
        box.send(1)
        box.send(2)
        box.close()
        assert system.statistics().undelivered == 2
    assert [record.getMessage() for record in caplog.records if "lost" in record.getMessage()] == [
        f"system {system.name}: 2 messages were lost with their receivers"
    ]


@pytest.mark.row("B11")
def test_call_through_a_shared_mailbox_waits_for_whoever_serves_it(system: shmipc.System) -> None:
    maker: Any = system.spawn(Maker)
    maker.make("service")
    server: Any = system.spawn(BoxServer)
    with shmipc.Mailbox.open("service") as box:
        served = server.serve.submit("service", 2)
        assert shmipc.call(box, 1, timeout=10) == ("served", 1)
        assert shmipc.process(maker).stop()
        assert shmipc.call(box, 2, timeout=10) == ("served", 2)
        assert served.result(10) == "done"


class BoxServer(Actor):
    def serve(self, name: str, count: int) -> str:
        with shmipc.Mailbox.open(name) as box:
            for _ in range(count):
                message = box.receive_message()
                shmipc.reply(message, ("served", message.body))
        return "done"
