"""Many small messages in one call: in order, all of them or as many as fit."""

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
