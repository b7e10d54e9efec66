"""Calls that wait for each other in a circle: one ends as Deadlock, and nothing else ever does."""

import pickle
import random
import threading
import time
from typing import Any

import pytest

import shmipc
from tests.actors import Actor, in_threads, outcome

SLICE = 0.5


class Node(Actor):
    """Calls the next, which calls the next."""

    def meet(self, other: Any) -> None:
        self.other = other

    def sum(self, hops: int, timeout: float | None = None) -> int:
        return 1 if hops == 0 else 1 + int(self.other.sum.call(hops - 1, timeout, timeout=timeout))

    def sum_with_handler(self, hops: int) -> Any:
        """What the call that finds the circle says: its members, and whether this actor can still be of use."""
        try:
            return self.sum(hops)
        except shmipc.Deadlock as error:
            return error

    def on_message(self, message: shmipc.Message) -> None:
        try:
            hops = message.body
            value = 1 if hops == 0 else 1 + int(shmipc.call(self.other, hops - 1))
        except Exception as error:
            shmipc.reply_error(message, error)
        else:
            shmipc.reply(message, value)

    def slow(self, seconds: float) -> str:
        time.sleep(seconds)
        return "done"

    def call_slow(self, other: Any, seconds: float) -> str:
        return str(other.slow(seconds))


class AsyncNode(Actor):
    def meet(self, other: Any) -> None:
        self.other = other

    async def sum(self, hops: int, timeout: float | None = None) -> int:
        return 1 if hops == 0 else 1 + int(await self.other.sum.submit(hops - 1, timeout))


def is_circle(cycle: tuple[Any, ...], nodes: list[Any]) -> bool:
    """Are these the nodes in the order of their calls? It begins with the one whose wait began last: most often the
    one that closed the circle, but another may have lost its core between its request and its wait."""
    return any(cycle == (*nodes[place:], *nodes[:place]) for place in range(len(nodes)))


def ring(system: shmipc.System, count: int, kind: type = Node) -> list[Any]:
    """So many actors, each of which knows the next, and the last the first."""
    made: list[Any] = [system.spawn(kind) for _ in range(count)]
    for place, actor in enumerate(made):
        actor.meet(made[(place + 1) % count])
    return made


@pytest.mark.row("B19")
def test_nested_calls_work_or_are_reported_as_the_circle_that_they_are(system: shmipc.System) -> None:
    a, *_ = ring(system, 3)
    assert a.sum(2) == 3  # A -> B -> C

    a, b = ring(system, 2)
    before = time.monotonic()
    with pytest.raises(shmipc.Deadlock) as caught:
        a.sum(2)  # A -> B -> A, which has one thread
    assert SLICE <= time.monotonic() - before < 10 * 1.0 + SLICE
    error = caught.value
    assert isinstance(error, RuntimeError)
    assert is_circle(error.cycle, [a, b])
    pids = [shmipc.process(ref).pid for ref in error.cycle]
    assert f"process {pids[0]} (Node) -> process {pids[1]} (Node) -> process {pids[0]} (Node)" in str(error)
    assert a.sum(1) == 2  # still usable, both
    assert b.sum(1) == 2
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.cycle) == (shmipc.Deadlock, str(error), error.cycle)

    served = system.spawn(serve_in_two_threads, b)
    b.meet(served)
    assert shmipc.call(served, "go", timeout=60.0) == "served while it waits"  # A has another thread


def serve_in_two_threads(other: Any) -> None:
    """A's one thread calls B, which calls back, and the other serves that."""

    def serve() -> None:
        while True:
            try:
                message = shmipc.receive(kind=shmipc.Kind.CALL)
            except shmipc.Closed:
                return
            if message.body == "go":
                shmipc.reply(message, shmipc.call(other, 1) and "served while it waits")
            else:
                shmipc.reply(message, 1)

    in_threads([serve, serve])


@pytest.mark.row("B19")
def test_circle_of_raw_calls_is_found_when_a_process_has_one_thread(system: shmipc.System) -> None:
    a, b = ring(system, 2)
    with pytest.raises(shmipc.Deadlock) as caught:
        shmipc.call(a, 2)
    assert is_circle(caught.value.cycle, [a, b])
    assert shmipc.call(a, 1) == 2


@pytest.mark.parametrize("count", [3, 5])
def test_longer_circle_is_named_whole_and_one_call_of_it_ends(system: shmipc.System, count: int) -> None:
    nodes = ring(system, count)
    error = nodes[0].sum_with_handler(count)
    assert isinstance(error, shmipc.Deadlock)
    assert is_circle(error.cycle, nodes)
    # All go on: one call ended, and its error came along the others.
    told = nodes[1].sum_with_handler(count)
    assert is_circle(told.cycle, nodes)
    assert nodes[0].sum(count - 1) == count


def test_handler_that_catches_it_lets_the_others_go_on(system: shmipc.System) -> None:
    a, b = ring(system, 2, Forgiving)
    assert a.sum(2) in (100, 1 + 100)
    assert a.caught() + b.caught() == 1


class Forgiving(Node):
    count = 0

    def sum(self, hops: int, timeout: float | None = None) -> int:
        try:
            return super().sum(hops, timeout)
        except shmipc.Deadlock:
            self.count += 1
            return 100

    def caught(self) -> int:
        return self.count


def test_async_actors_and_calls_with_a_limit_are_on_no_circle(system: shmipc.System) -> None:
    a, _ = ring(system, 2, AsyncNode)
    assert a.sum.call(6, timeout=60.0) == 7
    a, _ = ring(system, 2)
    with pytest.raises(shmipc.Timeout):
        a.sum.call(2, 2 * SLICE + 0.3, timeout=60.0)
    assert outcome(lambda: a.sum(2, None)) == "Deadlock"


def test_long_calls_without_a_circle_are_never_taken_for_one(system: shmipc.System) -> None:
    """Actors that call higher ones, many at once, each for longer than a slice."""
    nodes: list[Any] = [system.spawn(Node) for _ in range(5)]
    order = random.Random(3)
    futures = []
    for _ in range(12):
        low, high = sorted(order.sample(range(len(nodes)), 2))
        futures.append(nodes[low].call_slow.submit(nodes[high], order.uniform(0.3, 0.9)))
    threads = [threading.Thread(target=lambda node=node: node.slow(0.7)) for node in nodes]  # type: ignore[misc]
    for thread in threads:
        thread.start()
    assert [future.result(110.0) for future in futures] == ["done"] * len(futures)
    for thread in threads:
        thread.join()


def test_member_of_a_circle_that_dies_is_dead_to_its_callers(system: shmipc.System) -> None:
    a, b = ring(system, 2)
    c: Any = system.spawn(Node)
    c.meet(a)
    future = c.sum.submit(3)  # C -> A -> B -> A
    process = shmipc.process(b)
    time_out = time.monotonic() + SLICE / 2
    while a.pid.submit().done() and time.monotonic() < time_out:
        pass
    process.kill()
    with pytest.raises((shmipc.PeerDead, shmipc.Deadlock)):
        future.result(60.0)
    assert a.sum(0) == 1


class PortNode(Actor):
    """Serves its port by itself, and asks another's in that."""

    def make(self) -> Any:
        self.port = shmipc.Port.create()
        return self.port

    def ask(self, port: Any) -> Any:
        try:
            return port.call("asked")
        except (shmipc.Deadlock, shmipc.Aborted) as error:  # the other has found it, and leaves the call that is served
            return error

    def ask_itself(self) -> Any:
        return self.ask(self.port)

    def serve(self, port: Any) -> Any:
        message = self.port.receive(20.0)
        found = self.ask(port)
        outcome(lambda: message.reply("served"))
        return found

    def ask_itself_with_a_handler(self) -> Any:
        self.port.connect(lambda message: message.reply("by the handler"))
        found = self.ask(self.port)
        self.port.disconnect()
        return found


@pytest.mark.row("B16", "B19")
def test_circle_of_calls_through_ports_is_found(system: shmipc.System) -> None:
    a, b = ring_of_ports = [system.spawn(PortNode) for _ in range(2)]
    ports = [node.make() for node in ring_of_ports]
    error = a.ask_itself()
    assert (type(error), error.cycle) == (shmipc.Deadlock, (a,))
    assert a.ask_itself_with_a_handler() == "by the handler"
    serving = b.serve.submit(ports[0])
    asked = a.ask.submit(ports[1])
    found = [serving.result(20.0), asked.result(20.0)]
    [error] = [one for one in found if isinstance(one, shmipc.Deadlock)]
    assert is_circle(error.cycle, [a, b])
    for port in ports:
        port.close()
