"""Calls: one request, one answer, whatever else goes on meanwhile."""

import random
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import shmipc
from shmipc import LIMITS, Kind, _native
from shmipc.facades import rt_ipc
from tests.actors import Actor, Client, Echo, Gate, Holder, in_threads, outcome, usage

BIG = bytes(100_000)  # goes to a block


# --- answers ---------------------------------------------------------------------------------------------------


class Witness(Actor):
    """Answers with what it was sent, with its own Ref, and with what it knows of the caller."""

    def on_message(self, message: shmipc.Message) -> None:
        shmipc.reply(message, (message.body, shmipc.self(), message.sender, message.kind, message.tag))

    def echo(self, body: Any) -> tuple[Any, Any]:
        return body, shmipc.self()


def random_payload(choose: random.Random) -> Any:
    size = choose.choice([0, 1, 7, 100, 240, 256, 257, 300, 4000, 16_384, 16_385])
    data = choose.randbytes(choose.randint(0, size))
    return choose.choice([data, (len(data), data), {"data": [data, None, -1.5]}, data.hex()])


@pytest.mark.row("B1")
def test_call_returns_what_the_callee_answered(system: shmipc.System) -> None:
    witness: Any = system.spawn(Witness)
    other = system.spawn(Echo)
    me, choose = shmipc.self(), random.Random(1)
    for number in range(5000):
        payload = random_payload(choose)
        tag = choose.choice([None, 1 + number])
        assert shmipc.call(witness, payload, tag=tag) == (payload, witness, me, Kind.CALL, tag)
        payload = random_payload(choose)
        assert witness.echo(payload) == (payload, witness)
        if number % 50 == 0:
            assert shmipc.call(other, payload) == payload
    assert witness != other
    assert shmipc.pending() == 0, "an answer is no message"


class Caller(Client):
    def call_and_collect(self, to: Any, helper: Any, raw: bool) -> tuple[Any, list[Any]]:
        """Call while 100 casts arrive; the answer, and the casts in their order."""
        me = shmipc.self()
        answer = shmipc.call(to, (helper, me)) if raw else to.fill(helper, me)
        waiting = shmipc.pending()
        found = [shmipc.receive(timeout=0) for _ in range(waiting)]
        return answer, [(message.kind, message.body) for message in found]


class Filler(Actor):
    """Has another process send 100 casts to the caller before it answers him."""

    def fill(self, helper: Any, to: Any) -> str:
        helper.send_numbers(to, 100)
        return "filled"

    def on_message(self, message: shmipc.Message) -> None:
        shmipc.reply(message, self.fill(*message.body))


@pytest.mark.row("B2")
@pytest.mark.parametrize("raw", [False, True])
def test_what_arrives_during_a_call_stays_queued_in_order(system: shmipc.System, raw: bool) -> None:
    filler, helper = system.spawn(Filler), system.spawn(Client)
    expected = ("filled", [(Kind.CAST, number) for number in range(100)])
    assert Caller().call_and_collect(filler, helper, raw) == expected, "the root as caller"
    caller: Any = system.spawn(Caller)
    assert caller.call_and_collect(filler, helper, raw) == expected, "an actor as caller, in the midst of a handler"
    assert caller.pending() == 0
    assert shmipc.pending() == 0


def answer_in_reverse(count: int) -> None:
    """Take so many calls, then answer them, the last first."""
    held = [shmipc.receive(kind=Kind.CALL) for _ in range(count)]
    for message in reversed(held):
        shmipc.reply(message, ("answer to", message.body))


@pytest.mark.race
@pytest.mark.row("B3")
def test_each_of_fifty_threads_gets_its_own_answer_though_they_come_in_reverse(system: shmipc.System) -> None:
    server = system.spawn(answer_in_reverse, 50)
    calls = [lambda number=number: shmipc.call(server, number) for number in range(50)]  # type: ignore[misc]
    assert in_threads(calls) == [("answer to", number) for number in range(50)]


@pytest.mark.race
@pytest.mark.row("B3")
def test_threads_of_several_processes_get_their_own_answers(system: shmipc.System) -> None:
    server = system.spawn(answer_in_reverse, 60)
    clients: list[Any] = [system.spawn(Client) for _ in range(3)]
    bodies = [[(client, number) for number in range(20)] for client in range(3)]
    running = [client.call_in_threads.submit(server, mine) for client, mine in zip(clients, bodies, strict=True)]
    for future, mine in zip(running, bodies, strict=True):
        assert future.result(60) == [("answer to", body) for body in mine]


@pytest.mark.race
def test_futures_of_many_threads_complete_with_their_own_answers(system: shmipc.System) -> None:
    echo: Any = system.spawn(Echo)

    def run(first: int) -> list[Any]:
        futures = [echo.echo.submit(number) for number in range(first, first + 200)]
        return [future.result(60) for future in reversed(futures)]

    found = in_threads([lambda first=first: run(first) for first in range(0, 2000, 200)])  # type: ignore[misc]
    assert found == [list(range(first + 199, first - 1, -1)) for first in range(0, 2000, 200)]


# --- timeouts --------------------------------------------------------------------------------------------------


def times_out(act: Callable[[], object], least: float, pid: int) -> None:
    started = time.monotonic()
    with pytest.raises(shmipc.Timeout) as caught:
        act()
    assert least <= time.monotonic() - started < 10
    assert isinstance(caught.value, TimeoutError)
    assert str(pid) in str(caught.value), "names the process that owes the answer"


@pytest.mark.row("B4")
def test_call_that_is_taken_and_never_answered_ends_in_timeout(system: shmipc.System) -> None:
    holder: Any = system.spawn(Holder)
    pid = shmipc.process(holder).pid
    times_out(lambda: shmipc.call(holder, "anybody there?", timeout=0.1), 0.1, pid)
    assert holder.bodies() == ["anybody there?"]
    assert shmipc.process(holder).is_alive()
    assert holder.pid() == pid


@pytest.mark.row("B4")
def test_call_that_nobody_takes_ends_in_timeout_in_all_its_forms(system: shmipc.System) -> None:
    gate: Any = system.spawn(Gate)
    pid = shmipc.process(gate).pid
    shutting = gate.shut.submit()
    times_out(lambda: gate.pid.call(timeout=0.1), 0.1, pid)
    times_out(lambda: gate.pid.options(timeout=0.1)(), 0.1, pid)
    times_out(lambda: shmipc.call(gate, "raw", timeout=0.1), 0.1, pid)
    times_out(lambda: gate.pid.submit(timeout=0.1).result(), 0.1, pid)
    future = gate.pid.submit()
    started = time.monotonic()
    with pytest.raises(shmipc.Timeout):
        future.result(0.1)
    assert 0.1 <= time.monotonic() - started < 10
    assert not future.done(), "only the wait for the result was limited"
    shmipc.send(gate, "go on", tag=1)
    assert shutting.result(10) is None
    assert future.result(10) == pid
    assert gate.pid.call(timeout=10) == pid


@pytest.mark.parametrize("timeout", [0, 0.0])
def test_call_with_no_time_for_an_answer_is_refused(system: shmipc.System, timeout: float) -> None:
    echo: Any = system.spawn(Echo)
    for act in (
        lambda: shmipc.call(echo, 1, timeout=timeout),
        lambda: echo.echo.call(1, timeout=timeout),
        lambda: echo.echo.submit(1, timeout=timeout),
    ):
        with pytest.raises(shmipc.InvalidArgument):
            act()
    assert echo.echo(2) == 2


def test_timeout_that_is_a_bool_is_refused_everywhere(system: shmipc.System) -> None:
    echo: Any = system.spawn(Echo)
    mailbox, done = shmipc.Mailbox.create(), echo.echo.submit(1)
    assert done.result(60) == 1
    acts: list[Callable[[Any], object]] = [
        lambda timeout: shmipc.call(echo, 1, timeout=timeout),
        lambda timeout: shmipc.send(echo, 1, timeout=timeout),
        lambda timeout: shmipc.receive(timeout=timeout),
        lambda timeout: echo.echo.call(1, timeout=timeout),
        lambda timeout: echo.echo.submit(1, timeout=timeout),
        lambda timeout: echo.echo.options(timeout=timeout),
        lambda timeout: done.result(timeout),
        lambda timeout: done.exception(timeout),
        lambda timeout: mailbox.send(1, timeout),
        lambda timeout: mailbox.send_many([1], timeout),
        lambda timeout: mailbox.receive(timeout),
        lambda timeout: mailbox.receive_many(timeout=timeout),
        lambda timeout: mailbox.receive_message(timeout=timeout),
        lambda timeout: shmipc.Mailbox.open("absent", timeout=timeout),
        lambda timeout: shmipc.process(echo).join(timeout),
    ]
    for act in acts:
        for timeout in (True, False, "1"):
            with pytest.raises(TypeError):
                act(timeout)
    assert echo.echo(2) == 2


def test_timeout_of_a_call_covers_sending_and_waiting_together(system: shmipc.System) -> None:
    mailbox = shmipc.Mailbox.create(slots=1)
    mailbox.send("fills it")
    room = threading.Timer(0.9, mailbox.receive)
    room.start()
    started = time.monotonic()
    with pytest.raises(shmipc.Timeout):
        shmipc.call(mailbox, "nobody answers", timeout=1.0)
    assert 1.0 <= time.monotonic() - started < 1.7, "not from its arrival on, which would be 1.9"
    room.join()


class LateServer(Gate):
    """Answers at once, but calls whose body says so only when told that their caller has gone."""

    def __init__(self) -> None:
        self.late: list[shmipc.Message] = []

    def on_message(self, message: shmipc.Message) -> None:
        if message.body[0] == "late":
            self.late.append(message)
        else:
            shmipc.reply(message, (message.body, BIG))

    def answer_late(self) -> list[tuple[Any, str, str]]:
        told = [
            (
                message.body[1],
                outcome(lambda: shmipc.reply(message, (message.body, BIG))),  # noqa: B023
                outcome(lambda: shmipc.reply_error(message, ValueError(BIG))),  # noqa: B023
            )
            for message in self.late
        ]
        self.late.clear()
        return told


@pytest.mark.row("B5")
def test_late_answer_reaches_neither_a_later_call_nor_a_receive_and_frees_what_it_held(system: shmipc.System) -> None:
    server: Any = system.options(slots=LIMITS.calls + 100).spawn(LateServer)

    late = 0

    def lose_one(number: int) -> None:
        nonlocal late
        with pytest.raises(shmipc.Timeout):
            shmipc.call(server, ("late", number, BIG), timeout=0.01)
        future = server.answer_late.submit()  # takes place before the next call is served
        assert shmipc.call(server, ("in time", number)) == (("in time", number), BIG)
        told = future.result(10)
        assert told in ([(number, "Aborted", "Aborted")], []), "[]: it timed out before it was taken"
        late += len(told)
        with pytest.raises(shmipc.WouldBlock):
            shmipc.receive(timeout=0)

    lose_one(-1)
    before = usage(system, server)
    for number in range(50):
        lose_one(number)
    assert usage(system, server) == before
    assert late >= 25
    # No reply cell is missing: as many calls as ever can be under way at once.
    shutting = server.shut.submit()
    with pytest.raises(shmipc.Timeout):
        shmipc.call(server, ("late", 50), timeout=0.01)
    futures = [server.pid.submit() for _ in range(LIMITS.calls - 1)]
    shmipc.send(server, "go on", tag=1)
    pid = shmipc.process(server).pid
    assert shutting.result(60) is None
    assert all(future.result(60) == pid for future in futures)
    assert server.answer_late() == [], "who has given up is not served"
    assert usage(system, server) == before


def test_deadline_of_a_call_holds_when_no_more_may_be_in_flight(system: shmipc.System) -> None:
    gate: Any = system.options(slots=LIMITS.calls + 100).spawn(Gate)
    echo: Any = system.spawn(Holder)
    shutting = gate.shut.submit()
    futures = [gate.pid.submit() for _ in range(LIMITS.calls - 1)]
    for timed in (
        lambda: shmipc.call(echo, 1, timeout=0.1),
        lambda: gate.pid.call(timeout=0.1),
        lambda: gate.pid.submit(timeout=0.1),
        lambda: shmipc.send(echo, 1, kind=shmipc.Kind.CALL, timeout=0.1),
        lambda: shmipc.rendezvous(echo, 1, timeout=0.1),
    ):
        started = time.monotonic()
        with pytest.raises(shmipc.Timeout):
            timed()
        assert 0.1 <= time.monotonic() - started < 2
    for at_once in (
        lambda: shmipc.send(echo, 1, kind=shmipc.Kind.CALL, timeout=0),
        lambda: shmipc.rendezvous(echo, 1, timeout=0),
    ):
        with pytest.raises(shmipc.LimitExceeded):
            at_once()
    assert rt_ipc.rt_ipc_send(echo, rt_ipc.RT_MESSAGE_CLASS_CALL, 5, b"")[0] == rt_ipc.rt_status.RT_NOMEM
    shmipc.send(gate, "go on", tag=1)
    assert shutting.result(60) is None
    assert futures[-1].result(60) == shmipc.process(gate).pid
    shmipc.send(
        echo, 1, kind=shmipc.Kind.CALL, timeout=0
    )  # what is answered makes room, though nobody has asked for it


def test_future_that_timed_out_stays_timed_out(system: shmipc.System) -> None:
    gate: Any = system.spawn(Gate)
    shutting = gate.shut.submit()
    future = gate.pid.submit(timeout=0.05)
    with pytest.raises(shmipc.Timeout):
        future.result()
    shmipc.send(gate, "go on", tag=1)
    assert shutting.result(10) is None
    assert gate.pid() == shmipc.process(gate).pid
    with pytest.raises(shmipc.Timeout):
        future.result()


# --- who may answer, and what ----------------------------------------------------------------------------------


@pytest.mark.row("B7")
def test_second_answer_is_refused_while_the_first_waits_to_be_read(
    system: shmipc.System, eventually: Callable[..., None]
) -> None:
    holder: Any = system.spawn(Holder)
    future = holder._shm.open().submit("question", _native.RAW)
    eventually(lambda: holder.count() == 1)
    assert holder.answer(0, "first") == "done"
    for second in ("second", b"", BIG):
        assert holder.answer(0, second) == "Aborted"
    assert holder.answer_error(0, ValueError("third")) == "Aborted"
    assert future.result(10) == "first"
    assert shmipc.pending() == 0


@pytest.mark.row("B7")
def test_second_answer_is_refused_and_not_seen_by_the_caller(
    system: shmipc.System, eventually: Callable[..., None]
) -> None:
    holder: Any = system.spawn(Holder)
    answers: list[Any] = []
    caller = threading.Thread(target=lambda: answers.append(shmipc.call(holder, "question")))
    caller.start()
    eventually(lambda: holder.count() == 1)
    assert holder.answer(0, "first") == "done"
    caller.join(10)
    assert answers == ["first"]
    assert holder.answer(0, "second") == "Aborted"
    assert holder.answer(0, BIG) == "Aborted"
    assert holder.answer_error(0, ValueError("third")) == "Aborted"
    assert shmipc.pending() == 0
    with pytest.raises(shmipc.MailboxEmpty):
        shmipc.receive(timeout=0)
    assert answers == ["first"]
    # Nor by a call that uses the same reply cell.
    caller = threading.Thread(target=lambda: answers.append(shmipc.call(holder, "another question")))
    caller.start()
    eventually(lambda: holder.count() == 2)
    assert holder.answer(0, "fourth") == "Aborted"
    assert holder.answer(1, "true") == "done"
    caller.join(10)
    assert answers == ["first", "true"]


@pytest.mark.row("B9")
@pytest.mark.parametrize("kind", [Kind.CAST, Kind.REPLY, Kind.TIMER])
def test_reply_to_what_is_no_call_is_refused_and_its_sender_gets_nothing(
    system: shmipc.System, eventually: Callable[..., None], kind: Kind
) -> None:
    holder: Any = system.spawn(Holder)
    shmipc.send(holder, "no question", kind=kind, tag=5)
    eventually(lambda: holder.count() == 1)
    assert holder.describe(0) == (shmipc.self(), kind, 5)
    assert holder.answer(0, "answer") == "InvalidArgument"
    assert holder.answer_error(0, ValueError("answer")) == "InvalidArgument"
    assert shmipc.pending() == 0
    with pytest.raises(shmipc.MailboxEmpty):
        shmipc.receive(timeout=0)


class Selfish(Actor):
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def call_itself(self, way: str, timeout: float | None) -> str:
        me: Any = shmipc.self()
        act: Callable[[], object] = {
            "call": lambda: shmipc.call(me, "?", timeout=timeout),
            "method": lambda: given.pid(),
            "method call": lambda: given.pid.call(timeout=timeout),
            "submit": lambda: given.pid.submit(timeout=timeout).result(10),
        }[way]
        given = self.given
        return outcome(act)

    def know(self, given: Any) -> None:
        self.given = given

    def cast_itself(self) -> None:
        self.given.note.cast("cast")
        shmipc.send(self.given, "sent")

    def note(self, what: str) -> None:
        self.seen.append(what)

    def on_message(self, message: shmipc.Message) -> None:
        self.seen.append(message.body)

    def all(self) -> list[Any]:
        return self.seen


@pytest.mark.row("B16")
@pytest.mark.parametrize("way", ["call", "method", "method call", "submit"])
@pytest.mark.parametrize("timeout", [None, 60.0])
def test_actor_that_calls_itself_is_refused_at_once(system: shmipc.System, way: str, timeout: float | None) -> None:
    selfish: Any = system.spawn(Selfish)
    selfish.know(selfish)
    started = time.monotonic()
    assert selfish.call_itself.call(way, timeout, timeout=30) == "InvalidArgument"
    assert time.monotonic() - started < 10
    assert selfish.all() == [], "nothing was queued"


@pytest.mark.row("B16")
@pytest.mark.parametrize("timeout", [None, 60.0])
def test_root_that_calls_itself_is_refused_at_once(system: shmipc.System, timeout: float | None) -> None:
    started = time.monotonic()
    with pytest.raises(shmipc.InvalidArgument):
        shmipc.call(shmipc.self(), "?", timeout=timeout)
    assert time.monotonic() - started < 10
    assert shmipc.pending() == 0


def test_actor_may_send_to_itself(system: shmipc.System) -> None:
    selfish: Any = system.spawn(Selfish)
    selfish.know(selfish)
    selfish.cast_itself()
    assert selfish.all() == ["cast", "sent"]
