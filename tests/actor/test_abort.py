"""Aborts: a wait ends, a call is closed, and whoever works for it is told."""

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import shmipc
from tests.actors import Actor, outcome

LIMIT = 10.0  # ten times what the rows allow


class Person(Actor):
    """Calls, serves, aborts, and reports to whoever is to know."""

    def __init__(self, told: Any) -> None:
        self.told = told

    def tell(self, *what: object) -> None:
        shmipc.send(self.told, (*what, time.monotonic()), tag=1)

    def on_message(self, message: shmipc.Message) -> None:
        if message.is_call:
            self.answer_late(message)

    # --- as one who works ---

    def poll(self, who: str = "server") -> str:
        """Busy until it is aborted."""
        self.tell(who, "works")
        until = time.monotonic() + 3 * LIMIT
        while not shmipc.aborted():
            assert time.monotonic() < until
        self.tell(who, "aborted", shmipc.aborted())
        return "the real reply"

    def answer_late(self, message: shmipc.Message) -> None:
        """Ignores that nobody waits for it any more, and answers then."""
        self.tell("server", "works")
        until = time.monotonic() + 3 * LIMIT
        while message.is_open():
            assert time.monotonic() < until
        self.tell("server", outcome(lambda: shmipc.reply(message, "late")))

    def nested(self, way: str) -> None:
        """Waits for something, for good."""
        self.tell("server", "works")
        self.tell("server", outcome(lambda: self.wait_for_ever(way)))

    def wait_for_ever(self, way: str) -> Any:
        if way == "receive":
            return shmipc.receive(tag=9)
        if way == "mailbox":
            return shmipc.Mailbox.create(slots=2).receive()
        if way == "send":
            full = shmipc.Mailbox.create(slots=1)
            full.send(1)
            return full.send(2)
        if way == "bus":
            return shmipc.Bus.create(frames=1).subscribe().receive()
        raise AssertionError(way)

    # --- as one who calls ---

    def call(self, server: Any, how: str = "call", timeout: float | None = None) -> tuple[str, float]:
        """What ends a call to `poll`, and when."""
        acts: dict[str, Callable[[], object]] = {
            "call": lambda: server.poll.call(timeout=timeout),
            "future": lambda: server.poll.submit().result(),
            "raw": lambda: shmipc.call(server, "work"),
            "chain": lambda: server[0].relay(server[1:]),
        }
        return outcome(acts[how]), time.monotonic()

    def call_parts(self, loop: Any, server: Any) -> None:
        loop.parts(server)

    def relay(self, others: list[Any]) -> None:
        """Part of a chain; the last one works."""
        ended = outcome(lambda: others[0].relay(others[1:]) if len(others) > 1 else others[0].poll("last"))
        self.tell("relay", ended)

    def call_without_abort(self, server: Any) -> list[Any]:
        with shmipc.no_abort():
            first = server.poll()
            still = outcome(lambda: shmipc.receive(tag=9, timeout=0.05))
        ended = outcome(lambda: shmipc.receive(tag=9, timeout=LIMIT))
        return [first, still, ended, outcome(lambda: shmipc.receive(tag=9, timeout=0.05))]

    def call_in_chain(self, server: Any, left: float) -> list[Any]:
        """How long a call lasts that is made in the service of another; without a time-out, and with a shorter one."""
        found: list[Any] = []
        for timeout in (left / 4, None):
            start = time.monotonic()
            found.append(
                (outcome(lambda timeout=timeout: server.sleep.call(timeout=timeout)), time.monotonic() - start)
            )  # type: ignore[misc]
        self.tell("nested", found)
        if found[-1][0] == "Timeout":  # before the caller's own is over, perhaps
            outcome(lambda: shmipc.receive(tag=9, timeout=LIMIT))
        return found

    def sleep(self) -> None:
        outcome(lambda: shmipc.receive(tag=9))

    def wait_and_receive(self) -> list[Any]:
        """Aborted in each of two receives; what comes then is received, and what came before."""
        found: list[Any] = []
        for tag in (7, shmipc.ANY):
            self.tell("client", "waits")
            try:
                shmipc.receive(tag=tag, kind=shmipc.Kind.TIMER)
            except shmipc.Aborted:
                found.append(time.monotonic())
        self.tell("client", "receives")
        return [*found, shmipc.receive(tag=7).body, shmipc.receive(tag=6, timeout=0).body]

    def compute_and_receive(self) -> list[Any]:
        self.tell("client", "computes")
        while shmipc.pending() == 0:
            pass
        began = time.monotonic()
        first = outcome(lambda: shmipc.receive(tag=9, timeout=5.0))
        took = time.monotonic() - began
        second = outcome(lambda: shmipc.receive(tag=9, timeout=0.1))
        return [first, took, second, time.monotonic() - began - took, shmipc.receive(tag=6, timeout=0).body]

    def look(self) -> tuple[int, str]:
        return shmipc.pending(), outcome(lambda: shmipc.receive(tag=1, timeout=0))

    def abort(self, whom: Any) -> float:
        """When it was about to abort it."""
        now = time.monotonic()
        shmipc.abort(whom)
        return now

    def abort_itself(self) -> list[bool]:
        shmipc.abort(shmipc.self())
        shmipc.abort(shmipc.self())
        return [shmipc.aborted(), shmipc.aborted()]

    def echo(self, value: Any) -> Any:
        return value


def wait_for_calls(told: Any) -> None:
    """Sleeps, then polls for what is there."""
    shmipc.receive(tag=1)
    try:
        message = shmipc.receive(kind=shmipc.Kind.CALL, timeout=0)
        found = f"executed {message.body}"
    except shmipc.MailboxEmpty:
        found = "nothing"
    shmipc.send(told, (found, shmipc.pending(), time.monotonic()), tag=1)


class AsyncPerson(Actor):
    def __init__(self, told: Any) -> None:
        self.told = told

    def tell(self, *what: object) -> None:
        shmipc.send(self.told, (*what, time.monotonic()), tag=1)

    async def work(self, who: str) -> str:
        self.tell(who, "works")
        try:
            await asyncio.sleep(3 * LIMIT)
        except asyncio.CancelledError:
            self.tell(who, "cancelled", shmipc.aborted())
            raise
        return "done"

    async def poll(self) -> str:
        return await self.work("polled")

    async def brief(self, server: Any) -> Any:
        """Waits for another's work."""
        self.tell("relay", "works")
        try:
            return await server.poll.submit("last")
        except asyncio.CancelledError:
            self.tell("relay", "cancelled")
            raise

    def plain(self, server: Any) -> None:
        self.tell("plain", "works")
        self.tell("plain", outcome(server.poll))

    async def parts(self, server: Any) -> None:
        """Blocks the loop for another's work, after its first await."""
        await asyncio.sleep(0)
        self.tell("part", 0)
        self.tell("part", outcome(server.poll), shmipc.aborted())

    async def poll_in_parts(self) -> None:
        """Hears once of the abort, and is cancelled."""
        await asyncio.sleep(0)
        self.tell("polled", "works")
        while not shmipc.aborted():
            pass
        self.tell("polled", shmipc.aborted())
        try:
            await asyncio.sleep(3 * LIMIT)
        except asyncio.CancelledError:
            self.tell("polled", "cancelled", shmipc.aborted())
            raise

    async def echo_by(self, server: Any) -> Any:
        await asyncio.sleep(0)
        return server.echo(5)

    async def leave_a_task(self, server: Any) -> None:
        self.task = asyncio.create_task(self.work_on(server))
        await asyncio.sleep(0)

    async def work_on(self, server: Any) -> None:
        """After its maker's caller has its answer, and its deadline."""
        await asyncio.sleep(0.2)
        self.tell("task", outcome(lambda: server.echo(1)))

    async def left(self, server: Any) -> list[Any]:
        start = time.monotonic()
        ended = "returned"
        try:
            await server.sleep.submit()
        except shmipc.Timeout:
            ended = "Timeout"
        except asyncio.CancelledError:
            ended = "CancelledError"
        self.tell("nested", [(ended, time.monotonic() - start)])
        return []


class Scene:
    """One system for all tests of this module: P1 calls, P2 serves, P3 aborts."""

    def __init__(self, repeat: int) -> None:
        self.system = shmipc.System()
        me = shmipc.self()
        self.p1, self.p2, self.p3, self.p4 = (self.system.spawn(Person, me) for _ in range(4))
        self.sleeper = self.system.spawn(wait_for_calls, me)
        self.ended, *self.martyrs = (self.system.spawn(Person, me) for _ in range(1 + 4 * repeat))  # four die
        self.loop: Any = self.system.options(max_concurrency=3).spawn(AsyncPerson, me)
        assert shmipc.process(self.ended).stop()

    def told(self, *what: object) -> float:
        """Wait for exactly this report; when it was made."""
        body = shmipc.receive(tag=1, timeout=3 * LIMIT).body
        assert body[:-1] == what
        return float(body[-1])

    def wait_for_depth(self, ref: Any, messages: int) -> None:
        """Until so many messages are in its mailbox."""
        until, member = time.monotonic() + LIMIT, self.system._membership.member
        while [entry["depth"] for entry in member.members() if entry["id"] == ref._shm.id] != [messages]:
            assert time.monotonic() < until

    def abort(self, whom: Any) -> float:
        """By a third party; when."""
        return float(self.p3.abort(whom))


@pytest.fixture(scope="module")
def shared(request: pytest.FixtureRequest) -> Iterator[Scene]:
    made = Scene(request.config.option.repeat)
    with made.system:
        yield made


@pytest.fixture
def scene(shared: Scene) -> Iterator[Scene]:
    yield shared
    assert shmipc.pending() == 0
    assert [person.echo.call(1, timeout=LIMIT) for person in (shared.p1, shared.p2, shared.p3, shared.p4)] == [1] * 4


# --- one thread ------------------------------------------------------------------------------------------------


@pytest.mark.row("C1")
def test_abort_ends_a_receive_and_leaves_the_messages(scene: Scene) -> None:
    work = scene.p1.wait_and_receive.submit()
    aborts = []
    for turn in range(2):
        scene.told("client", "waits")
        if turn == 0:
            shmipc.send(scene.p1, "before", tag=6)
        aborts.append(scene.abort(scene.p1))
    scene.told("client", "receives")
    shmipc.send(scene.p1, "after", tag=7)
    first, second, *bodies = work.result(LIMIT)
    assert bodies == ["after", "before"]
    assert 0 <= first - aborts[0] < 1.0
    assert 0 <= second - aborts[1] < 1.0


@pytest.mark.row("C2")
def test_abort_of_a_running_thread_ends_its_next_wait_and_no_other(scene: Scene) -> None:
    work = scene.p1.compute_and_receive.submit()
    scene.told("client", "computes")
    scene.abort(scene.p1)
    scene.abort(scene.p1)
    shmipc.send(scene.p1, "go on", tag=6)
    first, took, second, waited, body = work.result(LIMIT)
    assert (first, second, body) == ("Aborted", "Timeout", "go on")
    assert took < 0.5
    assert waited >= 0.1


@pytest.mark.row("C3")
def test_aborted_is_true_once(scene: Scene) -> None:
    assert not shmipc.aborted()
    shmipc.abort(shmipc.self())
    assert shmipc.aborted()
    assert not shmipc.aborted()
    assert scene.p1.abort_itself() == [True, False]
    shmipc.abort(shmipc.self())
    with pytest.raises(shmipc.Aborted):
        scene.p1.echo(1)  # not sent
    shmipc.abort(shmipc.self())
    submitted = scene.p1.echo.submit(2)  # which does not wait
    assert shmipc.aborted()
    assert submitted.result(LIMIT) == 2
    future = scene.p2.poll.submit()
    scene.told("server", "works")
    shmipc.abort(shmipc.self())
    with pytest.raises(shmipc.Aborted):
        future.result()
    scene.told("server", "aborted", False)
    assert not shmipc.aborted()


@pytest.mark.row("C3")
def test_abort_means_a_process_that_lives(scene: Scene) -> None:
    with pytest.raises(TypeError):
        shmipc.abort("p1")
    with pytest.raises(shmipc.PeerDead):
        shmipc.abort(scene.ended)
    scene.abort(scene.p1)  # which is idle: it is not disturbed, nor its next handler
    assert scene.p1.look() == (0, "MailboxEmpty")
    member = scene.system._membership.member
    named: list[int] = []
    over, tell = threading.Event(), threading.Event()

    def other() -> None:
        named.append(member.thread)
        tell.set()
        named.append(outcome(lambda: shmipc.receive(tag=9)) == "Aborted")
        over.set()

    thread = threading.Thread(target=other)
    thread.start()
    assert tell.wait(LIMIT)
    member.abort(member.id, named[0])
    assert over.wait(LIMIT)
    thread.join()
    assert named[1] is True
    assert not shmipc.aborted()  # it was that thread's


# --- a call ----------------------------------------------------------------------------------------------------


@pytest.mark.row("C4")
@pytest.mark.parametrize("how", ["call", "future"])
def test_abort_of_a_caller_reaches_its_server(scene: Scene, how: str) -> None:
    work = scene.p1.call.submit(scene.p2, how)
    scene.told("server", "works")
    aborted = scene.abort(scene.p1)
    ended, when = work.result(LIMIT)
    assert ended == "Aborted"
    assert when - aborted < LIMIT
    assert scene.told("server", "aborted", False) - aborted < LIMIT  # and told once


@pytest.mark.row("C4", "C10")
@pytest.mark.parametrize("way", ["receive", "mailbox", "send", "bus"])
def test_server_of_a_call_that_is_over_is_told_in_its_wait(scene: Scene, way: str) -> None:
    start = time.monotonic()
    with pytest.raises(shmipc.Timeout):
        scene.p2.nested.call(way, timeout=0.2)
    given_up = time.monotonic()
    assert given_up - start >= 0.2
    scene.told("server", "works")
    assert scene.told("server", "Aborted") - given_up < LIMIT


@pytest.mark.row("C5")
def test_request_that_nobody_took_is_withdrawn(scene: Scene) -> None:
    server: Any = scene.sleeper
    work = scene.p1.call.submit(server, "raw")
    scene.wait_for_depth(server, 1)
    scene.abort(scene.p1)
    assert work.result(LIMIT)[0] == "Aborted"
    shmipc.send(server, "look", tag=1)
    scene.told("nothing", 0)
    assert shmipc.process(server).join(LIMIT)


@pytest.mark.row("C5")
def test_method_call_that_waits_behind_a_handler_is_withdrawn(scene: Scene) -> None:
    busy = scene.p2.nested.submit("receive")
    scene.told("server", "works")
    work = scene.p1.call.submit(scene.p2)
    late = scene.p4.call.submit(scene.p2, "call", 0.1)  # its time is over before it is taken
    assert late.result(LIMIT)[0] == "Timeout"
    scene.wait_for_depth(scene.p2, 2)
    scene.abort(scene.p1)
    assert work.result(LIMIT)[0] == "Aborted"
    shmipc.send(scene.p2, "end", tag=9)
    scene.told("server", "done")
    assert busy.result(LIMIT) is None


@pytest.mark.row("C6")
def test_abort_reaches_the_end_of_a_chain(scene: Scene) -> None:
    work = scene.p1.call.submit([scene.p4, scene.p2], "chain")
    scene.told("last", "works")
    aborted = scene.abort(scene.p1)
    assert work.result(LIMIT)[0] == "Aborted"
    reports = [shmipc.receive(tag=1, timeout=LIMIT).body for _ in range(2)]
    assert {report[:-1] for report in reports} == {("relay", "Aborted"), ("last", "aborted", False)}
    assert all(report[-1] - aborted < LIMIT for report in reports)


@pytest.mark.row("C7")
def test_call_that_is_not_to_be_aborted_gets_the_real_reply(scene: Scene) -> None:
    work = scene.p1.call_without_abort.submit(scene.p2)
    scene.told("server", "works")
    scene.abort(scene.p1)
    scene.told("server", "aborted", False)
    assert work.result(LIMIT) == ["the real reply", "Timeout", "Aborted", "Timeout"]


class Cleaner(Actor):
    """Its work is rolled back whatever becomes of the call."""

    def __init__(self) -> None:
        self.got: list[str] = []

    def slow(self) -> str:
        time.sleep(0.3)
        return "done"

    def work(self, helper: Any) -> None:
        with shmipc.no_abort():
            self.got.append(outcome(lambda: self.got.append(helper.slow())))
        try:
            self.got.append(helper.slow())
        except (shmipc.Timeout, shmipc.Aborted):
            self.got.append("ended")

    def told(self) -> list[str]:
        return self.got


@pytest.mark.row("C7", "C10")
def test_call_that_is_not_to_be_aborted_outlasts_the_deadline_of_the_served_one(system: shmipc.System) -> None:
    server: Any = system.spawn(Cleaner)
    helper: Any = system.spawn(Cleaner)
    with pytest.raises(shmipc.Timeout):
        server.work.call(helper, timeout=0.1)
    assert server.told() == ["done", outcome(lambda: None), "ended"]


@pytest.mark.row("C9")
def test_reply_to_an_aborted_call_is_dropped_and_says_so(scene: Scene) -> None:
    work = scene.p1.call.submit(scene.p2, "raw")
    scene.told("server", "works")
    scene.abort(scene.p1)
    assert work.result(LIMIT)[0] == "Aborted"
    scene.told("server", "Aborted")
    assert scene.p1.look() == (0, "MailboxEmpty")


@pytest.mark.row("C10")
def test_server_hears_of_a_call_that_has_timed_out(scene: Scene) -> None:
    start = time.monotonic()
    work = scene.p1.call.submit(scene.p2, "call", 0.2)
    scene.told("server", "works")
    ended, when = work.result(LIMIT)
    assert ended == "Timeout"
    assert when - start >= 0.2
    assert scene.told("server", "aborted", False) - when < LIMIT


@pytest.mark.row("C10")
@pytest.mark.parametrize("taken", [True, False])
def test_call_whose_future_nobody_looks_at_is_over_at_its_limit(system: shmipc.System, taken: bool) -> None:
    with shmipc.Port.create() as port:
        late: Any = system.spawn(Late)
        late.submit(port, 0.3)
        if taken:
            message = port.receive(LIMIT)
            assert message.is_open()
            assert not shmipc.aborted()
        time.sleep(0.5)
        if taken:
            assert not message.is_open()
            assert shmipc.aborted()
            assert not shmipc.aborted()
            with pytest.raises(shmipc.Aborted):
                message.reply("too late")
        else:
            with pytest.raises(shmipc.MailboxEmpty):
                port.receive(0)
        assert late.outcome() == "Timeout"  # and no call of ours is limited by it
        port.delete()


class Late(Actor):
    """Asks, and does not look at what comes."""

    def submit(self, port: shmipc.Port, limit: float | None = None) -> None:
        self.future = port.submit("question", limit)

    def outcome(self) -> str:
        deadline = time.monotonic() + LIMIT
        while not self.future.done() and time.monotonic() < deadline:
            time.sleep(0.01)
        return type(self.future.exception(0)).__name__

    def drop(self, port: shmipc.Port, count: int, limit: float) -> None:
        for _ in range(count):
            port.submit(None, limit)

    def ask(self, ref: Any, to: Any, limit: float) -> None:
        self.future = ref.sleep.submit(to, timeout=limit)


class Sleeper(Actor):
    async def sleep(self, to: Any) -> None:
        try:
            await asyncio.sleep(LIMIT)
        except asyncio.CancelledError:
            shmipc.send(to, "cancelled", tag=7)
            raise


@pytest.mark.row("C10")
def test_async_handler_of_a_call_that_is_over_is_cancelled_though_nobody_looks(system: shmipc.System) -> None:
    late, sleeper = system.spawn(Late), system.spawn(Sleeper)
    began = time.monotonic()
    late.ask(sleeper, shmipc.self(), 0.3)
    assert shmipc.receive(tag=7, timeout=LIMIT).body == "cancelled"
    assert 0.3 <= time.monotonic() - began < LIMIT / 2


@pytest.mark.row("C10")
def test_calls_that_are_over_and_that_nobody_looks_at_take_no_place_for_good(system: shmipc.System) -> None:
    late: Any = system.spawn(Late)
    with shmipc.Port.create(20_000, 64) as port:
        late.drop(port, 17_000, 0.01)  # more than may be in flight
        time.sleep(0.1)
        late.submit(port)
        message = port.receive(LIMIT)
        assert message.body == "question"
        message.reply("answer")
        assert late.outcome() == "NoneType"
        port.delete()


@pytest.mark.row("C10")
def test_call_without_a_limit_outlives_the_call_in_whose_service_it_was_submitted(system: shmipc.System) -> None:
    late: Any = system.spawn(Late)
    with shmipc.Port.create() as port:
        late.submit.call(port, timeout=0.3)
        time.sleep(0.5)
        message = port.receive(0)
        assert message.is_open()
        message.reply("answer")
        port.delete()


@pytest.mark.row("C12")
@pytest.mark.parametrize("how", ["call", "raw"])
def test_death_of_a_caller_is_an_abort(scene: Scene, how: str) -> None:
    client: Any = scene.martyrs.pop()
    work = client.call.submit(scene.p2, how)
    scene.told("server", "works")
    killed = time.monotonic()
    os.kill(shmipc.process(client).pid, signal.SIGKILL)
    seen = scene.told("server", "aborted", False) if how == "call" else scene.told("server", "PeerDead")
    assert seen - killed < LIMIT
    with pytest.raises(shmipc.PeerDead):
        work.result(LIMIT)


# --- futures, deadlines, event loops ---------------------------------------------------------------------------


@pytest.mark.row("C4")
def test_cancelling_a_future_or_the_task_that_awaits_it_aborts_the_call(scene: Scene) -> None:
    future = scene.p2.poll.submit()
    scene.told("server", "works")
    assert future.cancel()
    scene.told("server", "aborted", False)

    async def awaited() -> None:
        await scene.p2.poll.submit()

    async def run() -> None:
        task = asyncio.create_task(awaited())
        await asyncio.sleep(0)
        await asyncio.to_thread(scene.told, "server", "works")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    scene.told("server", "aborted", False)


@pytest.mark.row("C10")
def test_nested_call_lasts_no_longer_than_the_call_it_serves(scene: Scene) -> None:
    start = time.monotonic()
    with pytest.raises(shmipc.Timeout):
        scene.p1.call_in_chain.call(scene.p2, 0.8, timeout=0.8)
    assert time.monotonic() - start >= 0.8
    (name, found, _) = shmipc.receive(tag=1, timeout=LIMIT).body
    (first, lasted), (second, rest) = found
    assert (name, first) == ("nested", "Timeout")
    assert lasted >= 0.2
    assert second in ("Timeout", "Aborted")
    assert rest < LIMIT


@pytest.mark.row("C4", "C10", "C12")
def test_abort_cancels_the_async_handler_of_that_call_only(scene: Scene) -> None:
    loop = scene.loop
    kept = loop.work.submit("kept")
    scene.told("kept", "works")
    with pytest.raises(shmipc.Timeout):
        loop.work.call("timed out", timeout=0.2)
    scene.told("timed out", "works")
    scene.told("timed out", "cancelled", True)
    client: Any = scene.martyrs.pop()
    client.call.submit(loop)
    scene.told("polled", "works")
    shmipc.process(client).kill()
    scene.told("polled", "cancelled", True)
    future = loop.brief.submit(scene.p2)  # a chain: the loop, then P2
    scene.told("relay", "works")
    scene.told("last", "works")
    full = loop.work.submit("full")  # as many as may be: the actor takes nothing more, and hears all the same
    scene.told("full", "works")
    assert future.cancel()
    reports = {shmipc.receive(tag=1, timeout=LIMIT).body[:-1] for _ in range(2)}
    assert reports == {("relay", "cancelled"), ("last", "aborted", False)}
    assert not kept.done()
    scene.abort(loop)  # which is all that it does
    reports = {shmipc.receive(tag=1, timeout=LIMIT).body[:-1] for _ in range(2)}
    assert reports == {("kept", "cancelled", False), ("full", "cancelled", False)}
    for work in (kept, full):
        with pytest.raises(shmipc.Aborted):
            work.result(LIMIT)


@pytest.mark.row("C4")
def test_abort_ends_the_wait_of_a_plain_handler_on_a_loop(scene: Scene) -> None:
    loop = scene.loop
    future = loop.plain.submit(scene.p2)
    scene.told("plain", "works")
    scene.told("server", "works")
    assert future.cancel()
    reports = {shmipc.receive(tag=1, timeout=LIMIT).body[:-1] for _ in range(2)}
    assert reports == {("plain", "Aborted"), ("server", "aborted", False)}
    assert outcome(lambda: loop.left.call(scene.p2, timeout=0.3)) in ("Timeout", "done")  # both are over at once
    name, found, _ = shmipc.receive(tag=1, timeout=LIMIT).body
    assert name == "nested"
    assert found[0][0] in ("Timeout", "CancelledError")
    assert found[0][1] < LIMIT


@pytest.mark.row("C4", "C6")
def test_abort_ends_the_blocking_call_of_an_async_handler(scene: Scene) -> None:
    """Only what ran before its coroutine was made was a wait that an abort ended."""
    loop = scene.loop
    future = loop.parts.submit(scene.p2)
    scene.told("part", 0)
    scene.told("server", "works")
    assert future.cancel()
    reports = {shmipc.receive(tag=1, timeout=LIMIT).body[:-1] for _ in range(2)}
    assert reports == {("part", "Aborted", False), ("server", "aborted", False)}
    # the caller is dead
    client: Any = scene.martyrs.pop()
    client.call_parts.submit(loop, scene.p2)
    scene.told("part", 0)
    scene.told("server", "works")
    shmipc.process(client).kill()
    reports = {shmipc.receive(tag=1, timeout=LIMIT).body[:-1] for _ in range(2)}
    assert reports == {("part", "Aborted", False), ("server", "aborted", False)}
    # the actor is aborted
    future = loop.parts.submit(scene.p2)
    scene.told("part", 0)
    scene.told("server", "works")
    scene.abort(loop)
    reports = {shmipc.receive(tag=1, timeout=LIMIT).body[:-1] for _ in range(2)}
    assert reports == {("part", "Aborted", False), ("server", "aborted", False)}
    assert future.result(LIMIT) is None  # it has dealt with it
    # its next handler is not
    assert loop.echo_by.call(scene.p2, timeout=LIMIT) == 5


@pytest.mark.row("C3", "C4")
def test_async_handler_hears_of_an_abort_once(scene: Scene) -> None:
    future = scene.loop.poll_in_parts.submit()
    scene.told("polled", "works")
    assert future.cancel()
    scene.told("polled", False)
    scene.told("polled", "cancelled", False)


@pytest.mark.row("C8", "C10")
def test_task_that_a_handler_has_left_outlives_the_deadline_of_its_caller(scene: Scene) -> None:
    scene.loop.leave_a_task.call(scene.p2, timeout=0.15)
    scene.told("task", "done")


class Tidy(Actor):
    """Gives back what it has taken, whatever ends its work."""

    async def work(self, store: Any) -> None:
        shmipc.send(store, "begun")
        try:
            await asyncio.sleep(60.0)
        finally:
            shmipc.call(store, "give back", timeout=LIMIT)


@pytest.mark.row("C4")
def test_async_handler_that_was_cancelled_cleans_up_by_calls(system: shmipc.System) -> None:
    work = system.spawn(Tidy).work.submit(shmipc.self())
    assert shmipc.receive(timeout=LIMIT).body == "begun"
    assert work.cancel()
    asked = shmipc.receive(timeout=LIMIT)
    assert (asked.body, asked.is_call) == ("give back", True)
    asked.reply(None)
