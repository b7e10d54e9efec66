"""Many small messages in one call: in order, all of them or as many as fit."""

import threading
from collections import deque
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import shmipc

BODIES = st.lists(st.one_of(st.integers(), st.binary(max_size=400), st.text(max_size=5), st.none()), max_size=12)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), BODIES),
        st.tuples(st.just("receive"), st.one_of(st.none(), st.integers(1, 9))),
        st.tuples(st.just("one"), st.integers()),
    ),
    max_size=20,
)


class Echo:
    """Sends on what it receives, in batches of its own sizes."""

    def relay(self, source: shmipc.Mailbox, drain: shmipc.Mailbox, count: int, size: int) -> list[int]:
        sizes: list[int] = []
        while count:
            batch = source.receive_many(size)
            count -= len(batch)
            sizes.append(len(batch))
            sent = 0
            while sent < len(batch):  # what did not fit goes with the next
                sent += drain.send_many(batch[sent:], timeout=10.0)
        return sizes


@pytest.mark.row("L16")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(capacity=st.integers(1, 8), steps=STEPS)
def test_batches_keep_order_and_move_all_or_as_many_as_fit(system: shmipc.System, capacity: int, steps: Any) -> None:
    waiting: deque[Any] = deque()
    with shmipc.Mailbox.create(slots=capacity) as box:
        for step, given_ in steps:
            if step == "send":
                fits = min(len(given_), capacity - len(waiting))
                if given_ and fits == 0:
                    with pytest.raises(shmipc.MailboxFull):
                        box.send_many(given_, timeout=0)
                else:
                    assert box.send_many(given_, timeout=0) == fits
                waiting.extend(given_[:fits])
            elif step == "one":
                if len(waiting) < capacity:
                    box.send_nowait(given_)
                    waiting.append(given_)
            elif waiting:
                most = len(waiting) if given_ is None else given_
                expected = [waiting.popleft() for _ in range(min(most, len(waiting)))]
                assert box.receive_many(given_, timeout=0) == expected
            else:
                with pytest.raises(shmipc.MailboxEmpty):
                    box.receive_many(given_, timeout=0)
            assert box.count() == len(waiting)


@pytest.mark.row("L16")
def test_batches_between_processes_arrive_once_and_in_order(system: shmipc.System) -> None:
    echo: Any = system.spawn(Echo)
    with shmipc.Mailbox.create(slots=7) as there, shmipc.Mailbox.create(slots=5) as back:
        count, sent = 3000, 0
        future = echo.relay.submit(there, back, count, 4)
        got: list[Any] = []
        numbers = list(range(count))
        while len(got) < count:
            if sent < count:
                try:
                    sent += there.send_many(numbers[sent : sent + 6], timeout=0)
                except shmipc.MailboxFull:
                    pass
            try:
                got += back.receive_many(3, timeout=0 if sent < count else 10.0)
            except shmipc.MailboxEmpty:
                pass
        assert got == numbers
        sizes = future.result(10.0)
        assert sum(sizes) == count
        assert max(sizes) <= 4


class Source:
    def pour(self, box: shmipc.Mailbox, count: int) -> None:
        for number in range(count):
            box.send(number)


@pytest.mark.race
@pytest.mark.row("L16")
def test_batch_ends_though_the_mailbox_is_filled_as_fast_as_it_is_emptied(system: shmipc.System) -> None:
    """Without an end of its own one batch took all of a second of messages, when the sender was as fast."""
    source: Any = system.spawn(Source)
    with shmipc.Mailbox.create(slots=8) as box:
        source.pour.cast(box, 20_000)
        got: list[int] = []
        while len(got) < 20_000:
            batch = box.receive_many(timeout=10.0)
            assert len(batch) <= 8
            got += batch
        assert got == list(range(20_000))


@pytest.mark.row("L16")
def test_batch_of_an_iterator_is_refused_before_anything_is_taken_from_it(system: shmipc.System) -> None:
    """What found no room had been taken from it, and was in nobody's hands."""
    with shmipc.Mailbox.create(slots=4) as box:
        turns = iter(range(10))
        for bodies in (turns, (number for number in turns)):
            with pytest.raises(TypeError, match="needs a sequence"):
                box.send_many(bodies, timeout=0)
        assert box.count() == 0
        assert list(turns) == list(range(10))
        assert box.send_many({"a": 1, "b": 2}.keys()) == 2


@pytest.mark.row("L16")
def test_error_in_the_midst_of_a_batch_says_how_many_were_sent(system: shmipc.System) -> None:
    with shmipc.Mailbox.create(slots=4) as box:
        bodies = [1, 2, (x for x in ()), 4]
        with pytest.raises(TypeError, match="generator") as caught:
            box.send_many(bodies)
        assert caught.value.sent == 2  # type: ignore[attr-defined]
        bodies[2] = 3
        assert box.send_many(bodies[2:]) == 2
        with pytest.raises(shmipc.MailboxFull) as full:
            box.send_many([5], timeout=0)
        assert full.value.sent == 0  # type: ignore[attr-defined]
        assert box.receive_many() == [1, 2, 3, 4]


class NeverAnswered:
    """What its pickling asks for does not come in time."""

    def __reduce__(self) -> Any:
        raise shmipc.Timeout("no answer came")


@pytest.mark.row("L16")
def test_body_whose_pickling_times_out_is_not_taken_for_a_full_mailbox(system: shmipc.System) -> None:
    with shmipc.Mailbox.create(slots=4) as box:
        with pytest.raises(shmipc.Timeout, match="no answer") as caught:
            box.send_many([1, NeverAnswered(), 3], timeout=10.0)
        assert caught.value.sent == 1  # type: ignore[attr-defined]
        assert box.send_many([2, 3, 4, 5], timeout=0.01) == 3


class Turn:
    """Unpickled in its turn: another thread goes on meanwhile."""

    reached, goes = threading.Event(), threading.Event()

    def __reduce__(self) -> Any:
        return wait_for_turn, ()


def wait_for_turn() -> str:
    Turn.reached.set()
    assert Turn.goes.wait(20.0)
    return "turn"


class Unreadable:
    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        return fail_with, (self.error,)


def fail_with(error: type[BaseException]) -> None:
    raise error("cannot be read")


@pytest.mark.row("L16")
@pytest.mark.parametrize("error", [RuntimeError, shmipc.Closed])
def test_what_one_batch_cannot_read_costs_no_batch_its_messages(system: shmipc.System, error: type[Exception]) -> None:
    """What another thread's batch had met was raised in the midst of this one's, whose messages were gone."""
    Turn.reached, Turn.goes = threading.Event(), threading.Event()
    with shmipc.Mailbox.create(slots=8) as box:
        got: list[Any] = []
        box.send_many(["first", Turn()])
        other = threading.Thread(target=lambda: got.append(box.receive_many(timeout=10.0)))
        other.start()
        assert Turn.reached.wait(20.0)
        box.send_many(["second", Unreadable(error)])
        assert box.receive_many(timeout=0) == ["second"]
        Turn.goes.set()
        other.join()
        assert got == [["first", "turn"]]
        with pytest.raises(error, match="cannot be read"):
            box.receive(timeout=0)
        box.send_many(["third", Unreadable(KeyboardInterrupt), "fourth"])
        assert box.receive_many(timeout=0) == ["third"]
        with pytest.raises(KeyboardInterrupt):
            box.receive_many(timeout=0)
        assert box.receive_many(timeout=0) == ["fourth"]
