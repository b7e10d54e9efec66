"""Completion queues: one completion for each submission, in the right order, with the outcome of the blocking form."""

import asyncio
import errno
import gc
import os
import pickle
import random
import signal
import socket
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmipc
from shmipc import (
    BytePipe,
    CompletionQueue,
    Event,
    Mailbox,
    Outcome,
    Semaphore,
    _native,
    select,
    wait_all,
    wait_any,
)
from shmipc.actor import channels, completion_workers
from tests.actors import Actor, Client
from tests.conftest import wait_until

pytestmark = pytest.mark.xdist_group("completion queue")  # one crew for all


class Peer(Client):
    """Does in another process what the queue's operations wait for, and answers calls."""

    def __init__(self) -> None:
        self.read: list[bytes] = []

    def on_message(self, message: shmipc.Message) -> None:
        if message.kind != shmipc.Kind.CALL:
            return
        if message.body == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if isinstance(message.body, str):
            shmipc.reply_error(message, KeyError(message.body))
        else:
            shmipc.reply(message, ("answer to", message.body))

    def send_all(self, box: Mailbox, bodies: list[Any]) -> None:
        for body in bodies:
            box.send(body)

    def send_with(self, box: Mailbox, body: Any, tag: int) -> None:
        shmipc.send(box, body, tag=tag)

    def send_slowly(self, box: Mailbox, count: int) -> None:
        """Numbers, at odd moments."""
        for number in range(count):
            box.send(number)
            if number % 40:
                for _ in range(random.randrange(4000)):
                    pass
            else:  # long enough for the mailbox to be empty
                time.sleep(0.003)

    def take_all(self, box: Mailbox, count: int) -> list[Any]:
        return [box.receive(60.0) for _ in range(count)]

    def write_all(self, pipe: BytePipe, parts: list[bytes]) -> None:
        for part in parts:
            pipe.write(part)

    def read_all(self, pipe: BytePipe, count: int) -> bytes:
        found = b""
        while len(found) < count:
            found += pipe.read(4096, 60.0)
        return found

    def release(self, semaphore: Semaphore, count: int) -> None:
        for _ in range(count):
            semaphore.release()

    def own_end(self, pipe: BytePipe) -> None:
        """Keep the end open until this process dies."""
        self.kept = pipe


@pytest.fixture(autouse=True, scope="module")
def crew(request: pytest.FixtureRequest) -> Iterator[list[Any]]:
    """Two who live, and those who are to die: their pidfds stay with the system."""
    with shmipc.System() as system:
        # Four of them die in the tests.
        yield [system.spawn(Peer) for _ in range(4 + 4 * request.config.option.repeat)]


@pytest.fixture
def peer(crew: list[Any]) -> Any:
    return crew[0]


def collect(queue: CompletionQueue, count: int) -> list[Any]:
    return [queue.get(60.0) for _ in range(count)]


def close(*things: Any) -> None:
    for thing in things:
        thing.close()


@pytest.mark.row("G1")
def test_ten_thousand_mixed_operations_have_one_completion_each(crew: list[Any]) -> None:
    peer, other = crew[:2]
    each = 1250
    inbox, outbox, plain = Mailbox.create(slots=64), Mailbox.create(slots=64), Mailbox.create(slots=8)
    reader, far_writer = BytePipe.pair(capacity=1024)
    far_reader, writer = BytePipe.pair(capacity=1024)
    semaphore, (here, there) = Semaphore(0), socket.socketpair()
    tags = [(kind, number) for number in range(each) for kind in range(8)]
    with CompletionQueue(depth=len(tags)) as queue:
        work = [
            peer.send_all.submit(inbox, list(range(each))),
            other.write_all.submit(far_writer, [b"12345678"] * each),
        ]
        numbers = []
        for tag in tags:
            kind = tag[0]
            if kind == 0:
                number = queue.receive(inbox, tag=tag)
            elif kind == 1:
                number = queue.send(outbox, tag[1], tag=tag)
            elif kind == 2:
                number = queue.read(reader, 8, tag=tag)
            elif kind == 3:
                number = queue.write(writer, b"abcdefgh", tag=tag)
            elif kind == 4:
                number = queue.wait(semaphore, tag=tag)
            elif kind == 5:
                number = queue.write(here, b"xy", tag=tag) if tag[1] % 2 else queue.read(there, 2, tag=tag)
            elif kind == 6:
                number = queue.receive(plain, tag=tag, timeout=0)  # fails
            else:
                number = queue.receive(plain, tag=tag, message_tag=7)
                queue.cancel(number)
            numbers.append(number)
        assert len(set(numbers)) == len(tags)
        work += [
            other.take_all.submit(outbox, each),
            other.read_all.submit(far_reader, 8 * each),
            other.release.submit(semaphore, each),
        ]
        completions = collect(queue, len(tags))
        for future in work:
            future.result(60.0)
        assert Counter(completion.tag for completion in completions) == Counter(tags)
        assert Counter(completion.number for completion in completions) == Counter(numbers)
        with pytest.raises(shmipc.WouldBlock):
            queue.get(0)
        outcomes = Counter((completion.tag[0], completion.outcome) for completion in completions)
        expected = {(kind, Outcome.DONE): each for kind in range(6)}
        assert outcomes == {**expected, (6, Outcome.FAILED): each, (7, Outcome.CANCELLED): each}
        assert [completion.value for completion in completions if completion.tag[0] == 0] == list(range(each))
        assert all(completion.bytes == 8 for completion in completions if completion.tag[0] in (2, 3))
    close(inbox, outbox, plain, reader, writer, far_reader, far_writer, semaphore, here, there)


@pytest.mark.row("G2")
def test_submissions_with_one_tag_both_complete(peer: Any) -> None:
    box = Mailbox.create(slots=8)
    with CompletionQueue() as queue:
        assert queue.receive(box, tag="same") != queue.receive(box, tag="same")
        assert len(queue.submissions("same")) == 2
        peer.send_all(box, ["a", "b"])
        first, second = collect(queue, 2)
        assert (first.tag, first.value, second.tag, second.value) == ("same", "a", "same", "b")
        assert queue.submissions("same") == []
    box.close()


@pytest.mark.row("G3")
def test_writes_to_one_handle_appear_in_order(crew: list[Any]) -> None:
    reader, writer = BytePipe.pair(capacity=256)
    box = Mailbox.create(slots=8)
    words = [f"w{number:07}".encode() * (1 + number % 3) for number in range(1, 1001)]
    with CompletionQueue(depth=3000) as queue:
        for number, word in enumerate(words):
            queue.write(writer, word, tag=number)
            queue.receive(box, tag="other")  # completions of others come between
        reads = crew[1].read_all.submit(reader, sum(map(len, words)))
        sends = crew[0].send_all.submit(box, [0] * len(words))
        completions = collect(queue, 2 * len(words))
        assert reads.result(60.0) == b"".join(words)
        sends.result(60.0)
        written = [(completion.tag, completion.bytes) for completion in completions if completion.tag != "other"]
        assert written == list(enumerate(map(len, words)))
        # of any size, and to a descriptor as well
        near, far = os.pipe()
        for number in range(200):
            queue.write(far, bytes([number]) * 1000)
        found = b""
        while len(found) < 200_000:
            found += os.read(near, 65536)
        assert found == b"".join(bytes([number]) * 1000 for number in range(200))
        queue.write(writer, b"z" * 100_000, tag="large")
        assert crew[1].read_all(reader, 100_000) == b"z" * 100_000
        assert {completion.outcome for completion in collect(queue, 201)} == {Outcome.DONE}
        os.close(near)
        os.close(far)
    close(reader, writer, box)


@pytest.mark.row("G4")
def test_cancelled_receive_loses_no_message(peer: Any, rounds: Callable[[int, int], int]) -> None:
    box = Mailbox.create(slots=4)
    with CompletionQueue(depth=4) as queue:
        # pending: cancelled, once; done: the real one; unknown and collected: refused
        number = queue.receive(box)
        assert queue.cancel(number)
        assert queue.cancel(number)
        completion = queue.get(10.0)
        assert (completion.number, completion.outcome, completion.value) == (number, Outcome.CANCELLED, None)
        with pytest.raises(shmipc.Cancelled):
            completion.result()
        number = queue.receive(box)
        peer.send_all(box, ["real"])
        wait_any([queue], 10.0)
        assert not queue.cancel(number)
        assert queue.get(10.0).result() == "real"
        for unknown in (number, 12345, -1, None):
            with pytest.raises(shmipc.InvalidArgument):
                queue.cancel(unknown)  # type: ignore[arg-type]
        # the race
        count = rounds(10_000, 1000)
        sends = peer.send_slowly.submit(box, count)
        found: list[Any] = []
        outcomes: Counter[Outcome] = Counter()
        while len(found) < count:
            number = queue.receive(box)
            for _ in range(random.randrange(200)):
                pass
            cancelled = queue.cancel(number)
            completion = queue.get(10.0)
            assert completion.number == number
            assert (completion.outcome is Outcome.CANCELLED) == cancelled
            outcomes[completion.outcome] += 1
            if completion.outcome is Outcome.DONE:
                found.append(completion.value)
            assert queue.statistics() == shmipc.QueueStatistics(4, 0, 0)
        sends.result(60.0)
        assert found == list(range(count))
        assert set(outcomes) == {Outcome.DONE, Outcome.CANCELLED}
        assert box.count() == 0
    box.close()


@pytest.mark.row("G5")
def test_get_waits_polls_and_times_out(peer: Any) -> None:
    box = Mailbox.create(slots=4)
    with CompletionQueue() as queue:
        with pytest.raises(shmipc.WouldBlock):
            queue.get(0)
        began = time.monotonic()
        with pytest.raises(shmipc.Timeout):
            queue.get(0.1)
        assert time.monotonic() - began >= 0.1
        queue.receive(box)
        helper = threading.Timer(0.1, peer.send_all.cast, (box, ["late"]))
        helper.start()
        assert queue.get().value == "late"
        helper.join()
        queue.receive(box)
        peer.send_all(box, ["there"])
        wait_any([queue])
        assert queue.get(0).value == "there"
        for strange in (-1, float("nan")):
            with pytest.raises(shmipc.InvalidArgument):
                queue.get(strange)
    box.close()


@pytest.mark.row("G6")
def test_submission_beyond_the_depth_is_refused_and_nothing_is_lost(peer: Any) -> None:
    box = Mailbox.create(slots=16)
    for depth in (1, 3):
        with CompletionQueue(depth=depth) as queue:
            for number in range(depth):
                queue.receive(box, tag=number)
            with pytest.raises(shmipc.WouldBlock, match=str(depth)):
                queue.receive(box, tag="too many")
            peer.send_all(box, list(range(depth)))
            with pytest.raises(shmipc.WouldBlock):  # done, and not collected
                wait_any([queue], 10.0)
                queue.send(box, "x")
            assert queue.get(10.0).tag == 0
            queue.receive(box, tag=depth)
            with pytest.raises(shmipc.WouldBlock):
                queue.receive(box)
            assert box.count() == 0
            peer.send_all(box, [depth])
            assert [(c.tag, c.value) for c in collect(queue, depth)] == [(n, n) for n in range(1, depth + 1)]
    for depth in (0, -1, 1 << 21):
        with pytest.raises(shmipc.InvalidArgument):
            CompletionQueue(depth)
    box.close()


@pytest.mark.row("G7")
def test_close_cancels_what_is_outstanding_and_swallows_nothing(peer: Any) -> None:
    box, full = Mailbox.create(slots=16), Mailbox.create(slots=1)
    full.send(0)
    queue = CompletionQueue()
    waiter = threading.Thread(target=lambda: [queue.get(60.0) for _ in range(3)])
    waiter.start()
    for number in range(10):
        queue.receive(box, tag=number)
    queue.send(full, "never", tag="send")
    queue.wait(Event(), tag="wait")
    queue.call(full, "unanswered", tag="call")
    began = time.monotonic()
    queue.close()
    assert time.monotonic() - began < 10.0
    waiter.join(30.0)
    peer.send_all(box, list(range(5)))
    assert queue.ready == 10
    assert {completion.outcome for completion in collect(queue, 10)} == {Outcome.CANCELLED}
    for act in (queue.get, lambda: queue.receive(box), lambda: wait_any([queue], 0)):
        with pytest.raises(shmipc.Closed):
            act()
    queue.close()
    assert box.receive_many() == list(range(5))
    assert full.receive_many() == [0]
    # what was cancelled before its turn, and a get that waits while others collect the last
    with CompletionQueue() as other:
        failed: list[str] = []

        def wait_in_vain() -> None:
            try:
                other.get()
            except shmipc.Closed:
                failed.append("Closed")

        threads = [threading.Thread(target=wait_in_vain) for _ in range(2)]
        for thread in threads:
            thread.start()
    for thread in threads:
        thread.join(30.0)
    assert failed == ["Closed", "Closed"]
    close(box, full)


@pytest.mark.row("G8")
def test_waits_are_delivered_as_completions(crew: list[Any]) -> None:
    peer, victim = crew[0], crew.pop()
    event, auto, semaphore, box = Event(), Event(manual_reset=False), Semaphore(0), Mailbox.create(slots=4)
    lock, stop, (near, far) = shmipc.Lock(), threading.Event(), os.pipe()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    lock.acquire()
    alarm = shmipc.Alarm(0.05)
    with CompletionQueue() as queue, CompletionQueue() as inner:
        inner.receive(box, message_tag=5)
        steps: list[tuple[Any, Callable[[], object]]] = [
            (event, event.set),
            (auto, auto.set),
            (semaphore, lambda: peer.release(semaphore, 1)),
            (lock, lock.release),
            (box.matching(tag=3), lambda: peer.send_with(box, "to be looked at", 3)),
            (inner, lambda: peer.send_with(box, "inner", 5)),
            (near, lambda: os.write(far, b"x")),
            (thread, stop.set),
            (shmipc.process(victim), lambda: os.kill(shmipc.process(victim).pid, signal.SIGKILL)),
        ]
        for source, _ in steps:
            queue.wait(source, tag=id(source))
        queue.wait(alarm, tag="alarm")
        assert queue.get(10.0).tag == "alarm"
        assert queue.outstanding == len(steps)
        for source, signalled in steps:
            signalled()
            completion = queue.get(30.0)
            assert (completion.tag, completion.result()) == (id(source), source)
            assert queue.outstanding + queue.ready < len(steps)
        assert (event.is_set(), auto.is_set(), semaphore.get_value(), lock.acquire(False)) == (True, False, 0, False)
        assert box.receive_message(tag=3, timeout=0).body == "to be looked at"
        assert inner.get(0).value == "inner"
        queue.wait(shmipc.process(victim))  # one that has ended
        assert queue.get(10.0).operation == "wait"
        for strange in ("x", None, 1.5, threading.Thread()):
            with pytest.raises((TypeError, shmipc.InvalidArgument)):
                queue.wait(strange)
    thread.join()
    os.close(near)
    os.close(far)
    close(event, auto, semaphore, box, lock)


@pytest.mark.row("G9")
def test_messages_and_calls_end_as_their_blocking_forms_do(crew: list[Any]) -> None:
    peer, victim = crew[0], crew.pop()
    box, port = Mailbox.create(slots=8), shmipc.Port.create()
    with CompletionQueue() as queue:
        # receive: body, sender, kind and tag
        for _ in range(2):
            peer.send_with(box, {"a": 1}, 9)
        queue.receive(box)
        completion, blocking = queue.get(10.0), box.receive_message()
        message = completion.message
        assert completion.value == blocking.body == {"a": 1}
        assert [getattr(message, name) for name in ("sender", "kind", "tag", "body")] == [
            getattr(blocking, name) for name in ("sender", "kind", "tag", "body")
        ]
        # what matches, and what fits
        queue.receive(box, message_tag=4, tag="filtered")
        queue.receive(box, sender=peer, kind=shmipc.Kind.CAST, message_tag=5, tag="more")
        peer.send_with(box, b"12345", 5)
        peer.send_with(box, b"1234", 4)
        assert {c.tag: (c.value, c.bytes) for c in collect(queue, 2)} == {
            "filtered": (b"1234", 4),
            "more": (b"12345", 5),
        }
        peer.send_with(box, b"123456789", 1)
        queue.receive(box, capacity=8)
        error = queue.get(10.0).error
        assert isinstance(error, shmipc.BufferTooSmall)
        assert error.needed == 9
        queue.receive(box, capacity=9)
        assert queue.get(10.0).value == b"123456789"
        # call: the answer, and the error that was answered
        queue.call(peer, 5)
        assert queue.get(10.0).result() == shmipc.call(peer, 5) == ("answer to", 5)
        queue.call(peer, "key")
        with pytest.raises(KeyError, match="key"):
            queue.get(10.0).result()
        queue.call(box, "x", timeout=0.05)
        assert isinstance(queue.get(10.0).error, shmipc.Timeout)
        for act in (lambda: queue.call(peer, 1, timeout=0), lambda: queue.call(shmipc.self(), 1)):
            with pytest.raises(shmipc.InvalidArgument):
                act()
        # serve by the queue, of a mailbox and of a port
        for place in (box, port):
            calls = peer.call.submit(place, "question")
            queue.receive(place)
            completion = queue.get(10.0)
            assert completion.message is not None
            shmipc.reply(completion.message, completion.value + "!")
            assert calls.result(10.0) == "question!"
        # who collects a call serves it: its end ends what he waits for
        call = peer.call.submit(box, "question", 1.0)
        queue.receive(box)
        assert queue.get(10.0).value == "question"
        with Event() as event, pytest.raises(shmipc.Aborted):
            event.wait(10.0)
        with pytest.raises(shmipc.Timeout):
            call.result(10.0)
        # send: by name too, and to one's own mailbox, from which one receives
        queue.receive(shmipc.self(), message_tag=8)
        queue.send(shmipc.self(), "own", message_tag=8)
        queue.send(port, b"to the port")
        queue.receive(port)
        found = Counter((completion.operation, completion.value) for completion in collect(queue, 4))
        assert found == {("receive", "own"): 1, ("receive", b"to the port"): 1, ("send", None): 2}
        # the server is killed
        queue.call(victim, "die")
        queue.call(victim, 7)
        errors = [completion.error for completion in collect(queue, 2)]
        assert all(isinstance(error, shmipc.PeerDead) for error in errors)
        assert getattr(errors[0], "signal", None) == signal.SIGKILL
        assert shmipc.process(victim).join(30.0)
        queue.send(victim, 1)
        assert isinstance(queue.get(10.0).error, shmipc.PeerDead)
        with pytest.raises(shmipc.NotFound):
            queue.send("nobody", 1)
        queue.receive(port)
        port.delete()
        assert isinstance(queue.get(10.0).error, shmipc.NoPort)
    close(box, port)


@pytest.mark.row("G10")
def test_query_equals_a_counter_model_after_each_step(eventually: Callable[..., None]) -> None:
    box, depth = Mailbox.create(slots=64), 8
    rng = random.Random(os.environ.get("PYTEST_XDIST_TESTRUNUID", "1"))
    with CompletionQueue(depth=depth) as queue:
        pending: list[int] = []
        done = 0
        for _ in range(400):
            step = rng.choice(("submit", "send", "cancel", "get"))
            if step == "submit":
                if len(pending) + done < depth:
                    pending.append(queue.receive(box))
                else:
                    with pytest.raises(shmipc.WouldBlock):
                        queue.receive(box)
            elif step == "send" and pending:
                box.send(0)
                pending.pop(0)
                done += 1
                eventually(lambda expected=done: queue.ready == expected)
            elif step == "cancel" and pending:
                assert queue.cancel(pending.pop(rng.randrange(len(pending))))
                done += 1
            elif step == "get" and done:
                queue.get(0)
                done -= 1
            assert queue.statistics() == shmipc.QueueStatistics(depth, len(pending), done)
            assert (queue.depth, queue.outstanding, queue.ready) == (depth, len(pending), done)
    box.close()


@pytest.mark.row("G11")
def test_short_transfer_is_done_with_the_real_count(peer: Any) -> None:
    reader, writer = BytePipe.pair(capacity=1024)
    (near, far), (here, there) = os.pipe(), socket.socketpair()
    with CompletionQueue() as queue:
        for source in (reader, near, here):
            queue.read(source, 100, tag=source)
        peer.write_all(writer, [b"x" * 30])
        os.write(far, b"x" * 30)
        there.send(b"x" * 30)
        for completion in collect(queue, 3):
            assert (completion.outcome, completion.bytes, completion.value) == (Outcome.DONE, 30, b"x" * 30)
        # the end of each stream, which the queue's own duplicates do not hold open
        os.close(far)
        close(writer, there)
        peer.write_all(reader.other("w"), [])
        for source in (reader, near, here):
            queue.read(source, 100)
        assert [(c.bytes, c.value) for c in collect(queue, 3)] == [(0, b"")] * 3
    os.close(near)
    close(reader, here)


@pytest.mark.row("K16")
def test_select_and_waits_take_completion_queues_among_others(peer: Any) -> None:
    rng = random.Random(1)
    boxes = [Mailbox.create(slots=4) for _ in range(4)]
    queues = [CompletionQueue() for _ in range(2)]
    event, auto = Event(), Event(manual_reset=False)
    reader = shmipc.Bus.create()
    place = reader.subscribe()
    port = shmipc.Port.create()
    sources: list[Any] = [
        *(queues[0], event, boxes[0], queues[1], place, boxes[1].matching(tag=2), port, shmipc.process(peer), auto)
    ]
    for queue, box in zip(queues, boxes[2:], strict=True):
        queue.receive(box)
    raise_: list[Callable[[], object]] = [
        *(lambda: peer.send_all(boxes[2], [1]), event.set, lambda: boxes[0].send(1), lambda: boxes[3].send(1)),
        *(lambda: reader.publish(b"x"), lambda: peer.send_with(boxes[1], 1, 2), lambda: port.send(1), None, auto.set),
    ]
    lower: list[Callable[[], object]] = [
        *(lambda: (queues[0].get(10.0), queues[0].receive(boxes[2])), event.clear, boxes[0].receive),
        *(lambda: (queues[1].get(10.0), queues[1].receive(boxes[3])), place.receive, boxes[1].receive),
        *(port.receive, None, lambda: auto.wait(0)),
    ]
    for _ in range(40):
        there = sorted(i for i in range(len(sources)) if raise_[i] is not None and rng.random() < 0.3)
        for i in there:
            raise_[i]()
        if there:  # what a queue's thread does takes a moment
            wait_all([sources[i] for i in there if i != 8], 10.0) if set(there) != {8} else None
        assert select(sources, 0) == there
        if there:
            assert wait_any(sources, 0) == there[0]
        for i in there:
            if (i, there[0]) != (8, 8):  # that one was taken
                lower[i]()
        assert select(sources, 0) == []
    with pytest.raises(shmipc.InvalidArgument):
        wait_any([queues[0], event, queues[0]], 0)
    peer.send_with.cast(boxes[2], 1, 1)
    assert select([queues[1], queues[0]], 30.0) == [1]
    close(*queues, *boxes, event, auto, place, reader)
    port.delete()


# --- deaths ----------------------------------------------------------------------------------------------------


def test_death_of_the_other_side_is_a_completion(crew: list[Any]) -> None:
    victim = crew.pop()
    reader, far_writer = BytePipe.pair(capacity=64)
    far_reader, writer = BytePipe.pair(capacity=64)
    victim.own_end(far_writer)
    other = crew.pop()
    other.own_end(far_reader)
    close(far_writer, far_reader)
    with CompletionQueue() as queue:
        queue.read(reader, 10, tag="read")
        queue.write(writer, b"y" * 1000, tag="write")
        queue.write(writer, b"y", tag="behind")
        attempted = Event(initial=True)
        queue.wait(attempted)
        assert queue.get(10.0).value is attempted
        for one in (victim, other):
            os.kill(shmipc.process(one).pid, signal.SIGKILL)
        found = {completion.tag: completion for completion in collect(queue, 3)}
        assert found["read"].result() == b""
        broken = found["write"].error
        assert isinstance(broken, shmipc.BrokenPipe)
        assert broken.written == found["write"].bytes == 64
        assert isinstance(found["behind"].error, shmipc.BrokenPipe)
    close(reader, writer, attempted)


def test_fork_leaves_the_queue_to_the_parent() -> None:
    box = Mailbox.create(slots=4)
    with CompletionQueue() as queue:
        queue.receive(box)
        child = os.fork()
        if child == 0:
            refused = 0
            for act in (queue.get, lambda: queue.receive(box), lambda: queue.cancel(1), queue.statistics):
                try:
                    act()
                except shmipc.ForkedHandle:
                    refused += 1
            queue.close()
            os._exit(refused)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 4
        box.send("still")
        assert queue.get(10.0).value == "still"
    box.close()


def test_end_of_the_system_completes_what_is_outstanding() -> None:
    before = shmipc.System.current()
    with shmipc.System() as system:
        peer, box, other = system.spawn(Peer), Mailbox.create(slots=4), Mailbox.create(slots=4)
        queue = CompletionQueue()
        queue.receive(box)
        queue.call(other, 1)
        queue.wait(shmipc.process(peer), timeout=60.0)
    completions = [queue.get(10.0) for _ in range(queue.ready + queue.outstanding)]
    assert len(completions) == 3
    found = {completion.operation: type(completion.error) for completion in completions}
    assert found.pop("wait") in (shmipc.Closed, type(None))  # it may have ended first
    assert found == dict.fromkeys(("receive", "call"), shmipc.Closed)
    with pytest.raises(shmipc.Closed):
        queue.get(10.0)
    queue.close()
    assert shmipc.System.current() is before


def test_queue_that_is_dropped_cancels_and_tells_callers(peer: Any, caplog: pytest.LogCaptureFixture) -> None:
    box = Mailbox.create(slots=4)
    for closes in (False, True):
        queue = CompletionQueue()
        queue.receive(box)
        queue.receive(box)
        answer = peer.call.submit(box, "question")
        wait_any([queue], 10.0)
        if closes:
            queue.close()
        del queue
        with pytest.raises(shmipc.Closed):
            answer.result(10.0)
        box.send("mine")
        assert box.receive(10.0) == "mine"
    assert "1 received messages were lost" in caplog.text
    box.close()


# --- the rest --------------------------------------------------------------------------------------------------


def test_timeouts_are_completions_and_never_early() -> None:
    box, full = Mailbox.create(slots=4), Mailbox.create(slots=1)
    full.send(0)
    with CompletionQueue() as queue:
        began = time.monotonic()
        queue.receive(box, timeout=0.1, tag=0.1)
        queue.send(full, 1, timeout=0.05, tag=0.05)
        queue.receive(box, timeout=0, tag=0)
        for timeout in (0, 0.05, 0.1):
            completion = queue.get(10.0)
            assert completion.tag == timeout
            assert time.monotonic() - began >= timeout
            assert type(completion.error) is (shmipc.Timeout if timeout else shmipc.WouldBlock)
        assert full.receive_many() == [0]
    close(box, full)


def test_queue_can_be_awaited() -> None:
    box = Mailbox.create(slots=4)

    async def both(queue: CompletionQueue) -> list[Any]:
        first, second = asyncio.create_task(queue.get_async()), asyncio.create_task(queue.get_async(30.0))
        await asyncio.sleep(0)
        box.send(1)
        box.send(2)
        return [(await first).value, (await second).value]

    with CompletionQueue() as queue:
        queue.receive(box)
        queue.receive(box)
        assert sorted(asyncio.run(both(queue))) == [1, 2]
        with pytest.raises(shmipc.Timeout):
            asyncio.run(queue.get_async(0.05))
    with pytest.raises(shmipc.Closed):
        asyncio.run(queue.get_async())
    box.close()


def test_mutex_that_was_waited_for_is_the_collectors(peer: Any) -> None:
    mutex = shmipc.Mutex()
    queue = CompletionQueue()
    first, second = queue.wait(mutex, tag=1), queue.wait(mutex, tag=2)
    wait_any([queue], 10.0)
    with pytest.raises(shmipc.WouldBlock):
        mutex.lock(0)
    assert queue.get(10.0).number == first
    assert mutex.is_mine()
    mutex.unlock()
    wait_any([queue], 10.0)
    queue.close()
    with pytest.raises(shmipc.WouldBlock):
        mutex.lock(0)
    assert queue.get(10.0).number == second
    assert mutex.is_mine()
    mutex.unlock()
    # nobody collects it
    queue = CompletionQueue()
    queue.wait(mutex)
    wait_any([queue], 10.0)
    del queue
    assert mutex.lock(10.0) == shmipc.Locked.ABANDONED
    mutex.unlock()
    mutex.close()


def test_generic_submission_is_attempted_when_its_source_is_signalled() -> None:
    event, attempts = Event(), []

    def attempt() -> str:
        attempts.append(event.is_set())
        if not event.is_set():
            raise shmipc.WouldBlock
        return "had"

    with CompletionQueue() as queue:
        queue.submit(attempt, event, tag="t")
        queue.submit(lambda: 1 // 0, event)
        assert isinstance(queue.get(10.0).error, ZeroDivisionError)
        event.set()
        completion = queue.get(10.0)
        assert (completion.operation, completion.result()) == ("submit", "had")
        assert attempts[-1]
    event.close()


def test_more_objects_than_one_thread_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completion_workers, "HOMES", 20)
    boxes = [Mailbox.create(slots=2) for _ in range(50)]
    with CompletionQueue() as queue:
        for box in boxes:
            queue.receive(box, tag=box.index)
        for box in random.sample(boxes, 50):
            box.send(box.index)
            completion = queue.get(10.0)
            assert completion.tag == completion.value == box.index
        numbers = [queue.receive(box) for box in boxes]
        # what one handle's writes wait for differs with their sizes, and their order stays
        reader, writer = BytePipe.pair(capacity=64)
        words = [bytes([number]) * (1 + number % 60) for number in range(200)]
        for word in words:
            queue.write(writer, word, tag="word")
        found = b""
        while len(found) < sum(map(len, words)):
            found += reader.read(100, 30.0)
        assert found == b"".join(words)
        assert all(queue.cancel(number) for number in numbers)
    close(*boxes, reader, writer)


def test_submissions_for_one_descriptor_wait_for_it_together() -> None:
    near, far = socket.socketpair()
    near.setblocking(False)
    with CompletionQueue() as queue:
        queue.wait(near, tag="wait")
        for tag in ("first", "second"):
            queue.submit(lambda: near.recv(1), near, tag=tag)
        with pytest.raises(shmipc.Timeout):
            queue.get(0.05)
        cancelled = queue.submit(lambda: near.recv(1), near)
        assert queue.cancel(cancelled)
        assert queue.get(10.0).outcome is Outcome.CANCELLED
        far.send(b"aaa")
        found = {completion.tag: completion.result() for completion in collect(queue, 3)}
        assert found == {"wait": near, "first": b"a", "second": b"a"}
    close(near, far)


def test_what_cannot_be_waited_for_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "too many watches")

    event, (near, far), box = Event(), socket.socketpair(), Mailbox.create(slots=2)
    with CompletionQueue() as queue:
        queue.receive(box, tag="other")
        with pytest.raises(TypeError):
            queue.submit(bool, event, order=[1])  # type: ignore[arg-type]
        assert queue.outstanding == 1
        with monkeypatch.context() as patch:
            patch.setattr(completion_workers.Worker, "watch", refuse)
            for _ in range(2):
                queue.read(near, 1)
            assert [getattr(completion.error, "errno", None) for completion in collect(queue, 2)] == [errno.ENOSPC] * 2
        far.send(b"a")
        queue.read(near, 1)
        assert queue.get(10.0).result() == b"a"
        box.send(1)
        assert queue.get(10.0).tag == "other"
    close(event, near, far, box)


def test_nothing_is_kept_of_what_was_collected_before_its_deadline(eventually: Callable[..., None]) -> None:
    class Tag:
        pass

    box, refs = Mailbox.create(slots=2), []
    with CompletionQueue() as queue:
        queue.receive(box, message_tag=9, timeout=600.0)
        for number in range(300):
            tag = Tag()
            refs.append(weakref.ref(tag))
            submission = queue.receive(box, tag=tag, timeout=600.0)
            if number % 2:
                box.send(number)
            else:
                queue.cancel(submission)
            del tag
            queue.get(10.0)
        gc.collect()
        eventually(lambda: all(ref() is None for ref in refs))
        assert len(queue._engine.workers[0].due) < 100
        # what is over is not due, and what is not over is
        queue.receive(box, timeout=0.05)
        assert isinstance(queue.get(10.0).error, shmipc.Timeout)
        assert queue.outstanding == 1
    box.close()


@pytest.mark.row("G4")
def test_cancelled_behind_a_pending_one_completes_at_once_and_nothing_is_kept_of_it(
    eventually: Callable[..., None],
) -> None:
    class Tag:
        pass

    box, refs = Mailbox.create(slots=2), []
    with CompletionQueue() as queue:
        head = queue.receive(box)
        for number in range(100):
            tag = Tag()
            refs.append(weakref.ref(tag))
            submission = queue.receive(box, tag=tag, timeout=600.0 if number % 4 else 0.001)
            assert number % 4 == 0 or queue.cancel(submission)
            del tag
            completion = queue.get(10.0)
            outcome = Outcome.CANCELLED if number % 4 else Outcome.FAILED
            assert (completion.number, completion.outcome) == (submission, outcome)
            del completion
        gc.collect()
        eventually(lambda: all(ref() is None for ref in refs))
        assert [len(lane) for lane in queue._engine.workers[0].lanes.values()] == [1]
        assert queue.outstanding == 1
        last = queue.receive(box)
        box.send("first")
        box.send("second")
        found = {completion.number: completion.value for completion in collect(queue, 2)}
        assert found == {head: "first", last: "second"}
    box.close()


def test_number_that_was_closed_and_came_again_is_another_descriptor(tmp_path: Path) -> None:
    path, gate, event = tmp_path / "digits", threading.Event(), Event()
    path.write_bytes(b"0123456789")
    with CompletionQueue() as queue:
        number, other = os.eventfd(0), os.eventfd(1)
        queue.wait(number, tag="old")
        os.dup2(other, number)
        for tag in ("new", "again"):
            queue.wait(number, tag=tag)
        assert {completion.tag for completion in collect(queue, 2)} == {"new", "again"}
        assert queue.outstanding == 1
        # a file that is opened twice is read in two places, each in order
        queue.submit(gate.wait, event)  # nothing is read meanwhile
        place, second = os.open(path, os.O_RDONLY), os.open(path, os.O_RDONLY)
        os.lseek(place, 5, os.SEEK_SET)
        queue.read(place, 2, tag=0)
        os.dup2(second, place)
        for tag in (1, 2):
            queue.read(place, 3, tag=tag)
        gate.set()
        found = {completion.tag: completion.result() for completion in collect(queue, 4)}
        assert found == {None: True, 0: b"56", 1: b"012", 2: b"345"}
    for descriptor in (number, other, place, second):
        os.close(descriptor)
    event.close()


def test_pipe_that_may_not_be_opened_again_is_read_and_written(monkeypatch: pytest.MonkeyPatch) -> None:
    really = os.open

    def refuse(path: Any, *arguments: Any, **keywords: Any) -> int:
        if str(path).startswith("/proc/self/fd/"):
            raise PermissionError(errno.EACCES, "not yours")
        return really(path, *arguments, **keywords)

    near, far = os.pipe()
    with CompletionQueue() as queue:
        monkeypatch.setattr(os, "open", refuse)
        queue.read(near, 20000, tag="read")
        queue.write(far, b"x" * 10000, tag="write")
        found = {completion.tag: completion for completion in collect(queue, 2)}
        assert found["write"].bytes == 10000
        assert found["read"].result() == b"x" * found["read"].bytes
    os.close(near)
    os.close(far)


def test_get_async_that_gave_up_waits_no_more() -> None:
    async def give_up(queue: CompletionQueue) -> None:
        for _ in range(5):
            with pytest.raises(shmipc.Timeout):
                await queue.get_async(0.001)
        task = asyncio.create_task(queue.get_async())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with CompletionQueue() as queue:
        asyncio.run(give_up(queue))
        assert queue._engine.waiters == []


def test_tags_that_are_arrays_and_queues_that_are_not_sent() -> None:
    box, array = Mailbox.create(slots=2), np.arange(3)
    with CompletionQueue() as queue:
        numbers = [queue.receive(box, tag=tag) for tag in (array, "x", np.arange(3))]
        assert queue.submissions("x") == [numbers[1]]
        assert queue.submissions(array) == [numbers[0]]
        with pytest.raises(shmipc.NotSupported, match="pickle"):
            pickle.dumps(queue)
    box.close()


class Stop(Exception):
    """By the signal handler of the next tests."""


def test_submission_that_was_broken_off_keeps_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise Stop

    near, far = os.pipe()
    os.set_blocking(near, False)
    with CompletionQueue() as queue:
        monkeypatch.setattr(completion_workers.Engine, "enter", stop)
        with pytest.raises(Stop):
            queue.write(far, b"x")
        os.close(far)
        gc.collect()
        assert os.read(near, 1) == b""  # nobody has the other end
    os.close(near)


def places_of(act: Callable[[], object], file: str) -> Iterator[tuple[int, bool]]:
    """Do it again and again, each time with an exception at the next place where a signal handler may run: where a
    function begins and where one of the interpreter's own has returned. The number of the place; was it reached?
    """
    number, hit = 0, True
    while hit:
        number += 1
        left, hit = number, False

        def interrupt(frame: Any, event: str, _: Any) -> None:
            nonlocal left, hit
            if event in ("call", "c_return") and frame.f_code.co_filename == file:
                left -= 1
                if left == 0:
                    hit = True
                    raise Stop

        sys.setprofile(interrupt)
        try:
            act()
        except Stop:
            pass
        finally:
            sys.setprofile(None)
        yield number, hit


def test_submission_that_a_signal_handler_breaks_off_leaves_no_descriptor() -> None:
    near, far = socket.socketpair()
    pipe = os.pipe()
    event = os.eventfd(0)

    def submit() -> None:
        for act in (
            lambda: queue.write(near, b"x"),
            lambda: queue.write(pipe[1], b"x"),
            lambda: queue.wait(event, timeout=0.0),
        ):
            act()

    with CompletionQueue() as queue:
        submit()
        collect(queue, 3)
        gc.collect()
        before = len(os.listdir("/proc/self/fd"))
        count = 0
        for _, hit in places_of(submit, channels.__file__):
            count += hit
            while queue.outstanding or queue.ready:
                queue.get(10.0)
        assert count > 30
        gc.collect()
        assert wait_until(lambda: len(os.listdir("/proc/self/fd")) == before, 10)
        assert far.recv(1 << 16).strip(b"x") == b""
    close(near, far)
    for number in (*pipe, event):
        os.close(number)


def test_signal_handler_that_raises_anywhere_loses_nothing(peer: Any) -> None:
    armed = False

    def stop(*_: object) -> None:
        nonlocal armed
        if armed:
            armed = False
            raise Stop

    box, count, hits = Mailbox.create(slots=16), 3000, 0
    found: list[Any] = []
    before = signal.signal(signal.SIGUSR2, stop)
    sends = peer.send_all.submit(box, list(range(count)))
    over, me = threading.Event(), threading.main_thread().ident
    assert me is not None

    def disturb() -> None:
        while not over.wait(0.0005):
            signal.pthread_kill(me, signal.SIGUSR2)

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        with CompletionQueue(depth=64) as queue:
            while len(found) < count:
                completion = None
                try:
                    armed = True
                    try:
                        chance = random.random()
                        if chance < 0.6 and queue.outstanding + queue.ready < 64:
                            number = queue.receive(box)
                            if chance < 0.1:
                                queue.cancel(number)
                        else:
                            completion = queue.get(0)
                    except (shmipc.WouldBlock, shmipc.InvalidArgument):
                        pass
                    armed = False
                except Stop:
                    hits += 1
                if completion is not None and completion.outcome is Outcome.DONE:
                    found.append(completion.value)
    finally:
        over.set()
        thread.join()
        signal.signal(signal.SIGUSR2, before)
    sends.result(30.0)
    assert found == list(range(count))
    assert hits > 10
    box.close()


def test_object_that_is_closed_here_fails_its_own_operations_alone() -> None:
    boxes = [Mailbox.create(slots=2) for _ in range(3)]
    bus = shmipc.Bus.create(frames=2)
    reader = bus.subscribe()
    with CompletionQueue() as queue:
        for box in boxes:
            queue.receive(box, tag=box.index)
        queue.receive(reader, tag="frame")
        index = boxes[1].index
        boxes[1].close()
        completion = queue.get(10.0)
        assert (completion.tag, type(completion.error)) == (index, shmipc.Closed)
        queue.send(bus, np.arange(5))
        boxes[0].send(1)
        assert {completion.tag for completion in collect(queue, 3)} == {boxes[0].index, "frame", None}
        assert queue.outstanding == 1
    close(*boxes, reader, bus)


# --- the process that has the queue is killed ------------------------------------------------------------------

TAKES = ["right_flight", "right_take", "take_commit", "take_head", "take_count", "right_release", "right_released"]
WAITS = ["wait_arm", "wait_register", "wait_park", "wait_leave", "wait_deregister", "wait_idle"]
WRITES = ["pipe_right", "pipe_copy", "pipe_commit", "pipe_release", "send_claimed", "send_publish", "send_done"]


class Owner(Actor):
    """Has a queue with receives, sends and writes outstanding, and dies at a step of one of them."""

    def live(self, inbox: Mailbox, outbox: Mailbox, pipe: BytePipe, told: Event, point: str, after: int) -> None:
        self.queue = CompletionQueue(depth=64)
        for number in range(5):
            self.queue.receive(inbox, tag=number)
            self.queue.send(outbox, number)
            self.queue.write(pipe, b"%4d" % number)
        self.queue.get(60.0)
        _native.kill_point_arm(point, after, signal.SIGKILL)
        told.set()
        while True:
            completion = self.queue.get()
            if completion.operation == "write":
                self.queue.write(pipe, b"more")
            if completion.operation == "send":
                self.queue.send(outbox, "more")


def test_others_go_on_when_the_owner_of_a_queue_is_killed_at_any_step(rounds: Callable[[int, int], int]) -> None:
    points = [*TAKES, *WAITS, *WRITES]
    points = points if rounds(1, 0) else random.sample(points, 5)
    with shmipc.System() as system:
        for place, point in enumerate(points):
            owner = system.spawn(Owner)
            inbox, outbox, told = Mailbox.create(slots=32), Mailbox.create(slots=2), Event()
            reader, writer = BytePipe.pair(capacity=8)
            owner.live.cast(inbox, outbox, writer, told, point, 1 + place % 2)
            assert told.wait(30.0)
            with CompletionQueue() as queue:  # whose owner lives, with the same objects
                process = shmipc.process(owner)
                queue.wait(process, tag="end")
                queue.read(reader, 8, tag="read")
                queue.receive(outbox, tag="received")
                inbox.send_many(range(20))
                ends = {"read": 0, "received": 0}
                while (tag := (completion := queue.get(30.0)).tag) != "end":
                    assert completion.error is None, (point, completion)
                    ends[tag] += 1
                    queue.read(reader, 8, tag="read") if tag == "read" else queue.receive(outbox, tag="received")
                assert process.join(30.0)
                assert process.exitcode == -signal.SIGKILL, point
                # what it had taken was from the front, and no more than it had asked for; the rest is there, in order
                rest = inbox.receive_many(timeout=10.0)
                assert rest == list(range(20 - len(rest), 20)), point
                assert 15 <= len(rest) <= 20, point
                # all of it works
                writer_of_mine = writer.other("w")
                queue.write(writer_of_mine, b"x" * 100, tag="mine")
                queue.send(outbox, "mine", tag="mine")
                found = b""
                bodies: list[Any] = []
                mine = 0
                while mine < 2 or not found.endswith(b"x" * 100) or "mine" not in bodies:
                    completion = queue.get(30.0)
                    mine += completion.tag == "mine"
                    if completion.tag == "read":
                        found += completion.result()
                        queue.read(reader, 8, tag="read")
                    elif completion.tag == "received":
                        bodies.append(completion.result())
                        queue.receive(outbox, tag="received")
                assert inbox.count() == 0
            close(inbox, outbox, told, reader, writer, writer_of_mine)
