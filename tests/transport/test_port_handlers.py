"""The thread of a port's handler: what it hears of the requests that it serves, and what it goes on after."""

import functools
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

import shmipc
from shmipc import Port
from shmipc.facades import chorus
from tests.actors import Client, outcome
from tests.transport.hosts import Host, told

LIMIT = 10.0  # ten times what the rows allow


class Served:
    """A port of this process whose handler works until it is aborted, in one of three ways."""

    def __init__(self) -> None:
        self.port, self.silent = Port.create(), Port.create()
        self.begun, self.over = threading.Event(), threading.Event()
        self.heard: Any = None

    def handler(self, message: shmipc.Message) -> None:
        if message.body == "echo":
            message.reply("echo")
            return
        self.begun.set()
        if message.body == "polls":
            until = time.monotonic() + 2 * LIMIT
            while not shmipc.aborted() and time.monotonic() < until:
                time.sleep(0.001)
            self.heard = "Aborted" if time.monotonic() < until and not shmipc.aborted() else "nothing"
        elif message.body == "receives":
            self.heard = told(lambda: self.silent.receive(2 * LIMIT))
        else:
            self.heard = told(lambda: self.silent.call("anybody?"))
        self.heard = self.heard, told(lambda: message.reply("late"))
        self.over.set()

    def ask(self) -> None:
        """Wait until it works."""
        assert self.begun.wait(LIMIT)

    def end(self) -> Any:
        """(how it has heard, what its reply was told); it serves the next request as if there had been none."""
        assert self.over.wait(LIMIT)
        self.begun.clear()
        self.over.clear()
        assert self.port.call("echo", LIMIT) == "echo"
        return self.heard


WAYS = ["polls", "receives", "calls"]
MARTYRS = ["polls", "calls"]  # and what each asks for


@pytest.fixture(scope="module")
def world(request: pytest.FixtureRequest) -> Iterator[tuple[shmipc.System, Any, Served, list[Any]]]:
    martyrs = len(MARTYRS) * request.config.option.repeat
    with shmipc.System() as system:
        served = Served()
        served.port.connect(served.handler)
        yield system, system.spawn(Host), served, [system.spawn(Host) for _ in range(martyrs)]
        served.port.disconnect()


@pytest.mark.row("C4", "C6", "C9")
@pytest.mark.parametrize("way", WAYS)
def test_handler_hears_that_its_caller_was_aborted(world: Any, way: str) -> None:
    _, one, served, _ = world
    asked = one.call.submit(served.port, way, None)
    served.ask()
    shmipc.abort(one)
    with pytest.raises(shmipc.Aborted):
        asked.result(LIMIT)
    assert served.end() == ("Aborted", "Aborted")


@pytest.mark.row("C10")
@pytest.mark.parametrize("way", WAYS)
def test_handler_hears_that_its_caller_has_timed_out(world: Any, way: str) -> None:
    _, one, served, _ = world
    asked = one.call.submit(served.port, way, 0.2)
    served.ask()
    ended = told(lambda: asked.result(LIMIT))
    heard, replied = served.end()
    if way == "calls":  # without a timeout of its own: both end at the same moment
        assert heard in ("Timeout", "Aborted")
        assert (ended, replied) in (("Timeout", "Aborted"), ("late", None))
    else:
        assert (ended, heard, replied) == ("Timeout", "Aborted", "Aborted")


@pytest.mark.row("C12")
def test_handler_hears_that_its_caller_has_died(world: Any) -> None:
    _, _, served, martyrs = world
    for way in MARTYRS:
        client = martyrs.pop()
        client.call.submit(served.port, way, None)
        served.ask()
        shmipc.process(client).kill()
        assert served.end() == ("Aborted", "PeerDead")


@pytest.fixture
def port(world: Any) -> Iterator[Port]:
    with Port.create() as made:
        yield made
        made.delete()


class Failing(Port):
    """Nothing can be received from it."""

    tries = 0

    def take_from(self, *args: Any, **options: Any) -> Any:
        type(self).tries += 1
        raise shmipc.Corrupted("on purpose")


def test_handler_whose_port_fails_for_good_tries_now_and_then(port: Port, caplog: Any) -> None:
    Failing.tries = 0
    with Failing.open(port.id) as failing:
        failing.connect(print)
        time.sleep(0.4)  # a wait by intent: how often it tries
        failing.disconnect()
    assert 2 <= Failing.tries <= 4
    assert [record.exc_info[0] for record in caplog.records] == [shmipc.Corrupted]


@pytest.mark.row("D33")
def test_disconnect_restores_whether_the_port_is_enabled(port: Port) -> None:
    for priority in (None, 3):
        if priority is not None:
            port.enable(priority)
        port.connect(print)
        assert port.priority is None
        port.disconnect()
        assert port.priority == priority
    port.send("x")
    assert shmipc.receive_any(0)[1].body == "x"


async def answer(message: shmipc.Message) -> None:
    message.reply("never")


class Answer:
    async def __call__(self, message: shmipc.Message) -> None:
        message.reply("never")


def test_handler_that_would_have_to_be_awaited_is_refused(port: Port) -> None:
    for handler in (answer, Answer(), functools.partial(answer)):
        with pytest.raises(TypeError, match="async def"):
            port.connect(handler)
        assert chorus.svMsgHandler(None, port.local, handler) == chorus.KnError.K_EINVAL
    port.send("x")
    assert port.receive(0).body == "x"


@pytest.mark.row("B16")
def test_handler_that_calls_its_own_port_is_refused(port: Port) -> None:
    def handler(message: shmipc.Message) -> None:
        own = Port.open(port.id)
        ways = (lambda: own.call("again"), lambda: shmipc.call(own, "again"), lambda: shmipc.rendezvous(own, "again"))
        message.reply([outcome(way) for way in ways])
        own.close()

    port.connect(handler)
    assert port.call("question", 20.0) == ["InvalidArgument"] * 3
    port.disconnect()


@pytest.mark.row("C4")
@pytest.mark.row("C10")
def test_handler_hears_of_its_caller_also_when_it_has_received_another_request(
    system: shmipc.System, port: Port
) -> None:
    told: list[bool] = []
    inner = Port.create()
    inner_caller: Any = system.spawn(Client)
    asked = inner_caller.call.submit(inner, "inner")

    def handler(message: shmipc.Message) -> None:
        inner.receive(20.0).reply("answered")
        until = time.monotonic() + 5.0
        while not (aborted := shmipc.aborted()) and time.monotonic() < until:
            time.sleep(0.01)
        told.append(aborted)

    port.connect(handler)
    with pytest.raises(shmipc.Timeout):
        port.call("outer", 0.3)
    port.disconnect()
    assert asked.result(20.0) == "answered"
    assert told == [True]
    inner.delete()
    inner.close()
