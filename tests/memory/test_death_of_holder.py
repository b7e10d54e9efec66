"""What arrays hold comes back: from killed holders, from mailboxes that are closed, and from owners that die."""

import gc
import os
import random
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmipc
from tests.actors import outcome
from tests.memory.holders import Census, Holder, pattern
from tests.programs import Program

pytestmark = [pytest.mark.race, pytest.mark.allows_rescue, pytest.mark.timeout(600)]

LIMIT = 10.0


class Juggler(Holder):
    """Makes, keeps, slices, sends, receives and drops arrays until it is killed."""

    def juggle(self, box: shmipc.Mailbox, friend: Any, given: Any) -> None:
        kept = [given]
        number = 0
        while True:
            number += 1
            array = pattern(number % 7 * 9000 + 1, seed=number)
            box.send({"whole": array, "part": array[number % 3 :], "bytes": bytes(3000)})
            kept.append(box.receive())
            answers = [friend.same.submit(array), friend.same.submit((array[:10], bytes(4000)))]
            kept.append([answer.result() for answer in answers])
            if number % 4 == 0:
                del kept[random.randrange(len(kept)) :]
            if number % 9 == 0:
                self.trim()

    def same(self, value: Any) -> Any:
        return value


@pytest.mark.row("L9")
def test_everything_a_killed_process_held_comes_back(
    system: shmipc.System, eventually: Any, rounds: Callable[[int, int], int]
) -> None:
    friend: Any = system.spawn(Juggler)
    box = shmipc.Mailbox.create(slots=8)
    mine = pattern(50_000)
    expected = mine.tobytes()
    choose = random.Random(9)

    def one_round(pause: float) -> None:
        juggler: Any = system.spawn(Juggler)
        process = shmipc.process(juggler)
        working = juggler.juggle.submit(box, friend, mine)
        threading.Event().wait(pause)
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(shmipc.PeerDead):
            working.result(LIMIT)
        assert process.join(LIMIT)
        while box.count():
            box.receive(timeout=LIMIT)

    one_round(0.1)
    census = Census(system, friend)
    for number in range(rounds(1000, 20)):
        one_round(choose.random() ** 2 * 0.1)
        if number % 10 == 9:
            try:
                eventually(census.is_back)
            except AssertionError:
                raise AssertionError(f"{census.now()} after {number + 1}, {census.baseline} before") from None
    eventually(census.is_back)
    assert mine.tobytes() == expected
    assert friend.same(mine).tobytes() == expected
    box.close()


# --- L10 -------------------------------------------------------------------------------------------------------


def fill(box: Any, count: int = 10) -> None:
    """Arrays, slices and arrays inside bodies that need a block."""
    for number in range(count):
        array = pattern(20_000 + number)
        shmipc.send(box, {"array": array, "part": array[7:], "bytes": bytes(5000)}, tag=number % 2 + 1)


class Owner(Holder):
    def __init__(self) -> None:
        super().__init__()
        self.box: shmipc.Mailbox | None = None

    def own(self, name: str, persistent: bool = False) -> None:
        self.box = shmipc.Mailbox.create(name, persistent=persistent)

    def set_aside(self, name: str) -> None:
        """Take one message of tag 2, so that those before it are set aside."""
        with shmipc.Mailbox.open(name) as box:
            box.receive_message(tag=2, timeout=LIMIT)

    def sleep(self, *given: Any) -> None:
        threading.Event().wait()

    def nap(self, seconds: float, array: Any) -> Any:
        threading.Event().wait(seconds)
        return pattern(len(array) * 2)

    def on_message(self, message: shmipc.Message) -> None:
        pass


def close_a_filled_mailbox(system: shmipc.System, eventually: Any) -> None:
    box = shmipc.Mailbox.create("full")
    fill(box)
    box.close()


def close_one_with_messages_set_aside(system: shmipc.System, eventually: Any) -> None:
    with shmipc.Mailbox.create("full") as box:
        fill(box)
        box.receive_message(tag=2, timeout=LIMIT)
        assert box.count() == 9


def kill_the_owner(system: shmipc.System, eventually: Any) -> None:
    """Its own mailbox is full, and one that only it had open."""
    owner: Any = system.spawn(Owner)
    owner.own("full")
    with shmipc.Mailbox.open("full") as box:
        owner.set_aside.cast("full")
        fill(box)
        eventually(lambda: box.count() == 9)
        owner.sleep.cast()
    fill(owner)
    owner.sleep.cast(pattern(30_000))
    process = shmipc.process(owner)
    watch = shmipc.monitor(owner)
    os.kill(process.pid, signal.SIGKILL)
    assert process.join(LIMIT)
    notice = shmipc.receive(kind=shmipc.Kind.EXIT, timeout=LIMIT).body
    assert notice.monitor == watch.id
    assert 10 <= notice.undelivered <= 12  # those of its mailbox, and a cast or two: none is lost silently


def stop_the_owner(system: shmipc.System, eventually: Any) -> None:
    owner: Any = system.spawn(Owner)
    fill(owner)
    process = shmipc.process(owner)
    process.drop_queue()
    assert process.join(LIMIT)


def give_up_calls(system: shmipc.System, eventually: Any) -> None:
    """The request is withdrawn, or the answer comes when nobody waits for it any more."""
    owner: Any = system.spawn(Owner)
    owner.nap.cast(3.0, pattern(10_000))
    assert outcome(lambda: owner.nap.call(0.0, pattern(10_000), timeout=0.01)) == "Timeout"
    assert outcome(lambda: owner.nap.call(0.0, pattern(10_000), timeout=0.01)) == "Timeout"
    late = owner.nap.submit(0.1, pattern(10_000))
    assert late.cancel() or True
    del late
    assert len(owner.nap(0.0, pattern(10_000))) == 20_000
    assert shmipc.process(owner).stop()


def kill_a_server_with_requests(system: shmipc.System, eventually: Any) -> None:
    owner: Any = system.spawn(Owner)
    futures = [owner.sleep.submit(pattern(10_000), bytes(5000)) for _ in range(10)]
    process = shmipc.process(owner)
    os.kill(process.pid, signal.SIGKILL)
    for future in futures:
        with pytest.raises(shmipc.PeerDead):
            future.result(LIMIT)
    assert process.join(LIMIT)


def kill_a_caller_with_answers(system: shmipc.System, eventually: Any) -> None:
    owner: Any = system.spawn(Owner)
    caller: Any = system.spawn(Caller)
    caller.call_many.cast(owner)
    threading.Event().wait(0.1)
    shmipc.process(caller).kill()
    assert shmipc.process(caller).join(LIMIT)
    assert len(owner.nap(0.0, pattern(10_000))) == 20_000
    assert shmipc.process(owner).stop()


class Caller(Holder):
    def call_many(self, owner: Any) -> None:
        self.futures = [owner.nap.submit(0.02, pattern(10_000)) for _ in range(10)]
        threading.Event().wait()


def drop_a_pool(system: shmipc.System, eventually: Any) -> None:
    pool = system.pool(1)
    futures = [pool.submit(take_time, pattern(10_000)) for _ in range(20)]
    pool.shutdown(timeout=0.05)
    assert {type(future.exception(LIMIT)).__name__ for future in futures} <= {"Closed", "PeerDead", "NoneType"}


def take_time(array: Any) -> Any:
    threading.Event().wait(0.05)
    return array


LOSSES = [
    close_a_filled_mailbox,
    close_one_with_messages_set_aside,
    kill_the_owner,
    stop_the_owner,
    give_up_calls,
    kill_a_server_with_requests,
    kill_a_caller_with_answers,
    drop_a_pool,
]


@pytest.mark.row("L10")
@pytest.mark.parametrize("lose", LOSSES, ids=lambda lose: lose.__name__)
def test_handles_that_nobody_receives_are_released(
    system: shmipc.System, eventually: Any, rounds: Callable[[int, int], int], lose: Any
) -> None:
    lose(system, eventually)
    gc.collect()
    census = Census(system)
    before = system.statistics().mailboxes
    for _ in range(rounds(20, 2)):
        lose(system, eventually)
        gc.collect()
        try:
            eventually(census.is_back)
        except AssertionError:
            raise AssertionError(f"leases and blocks {census.now()}, before {census.baseline}") from None
    assert system.statistics().mailboxes == before


def consume(box: shmipc.Mailbox) -> None:
    """Hand each array to a thread that drops it, and wait for the next."""

    def look(arrays: list[np.ndarray]) -> None:
        arrays.pop().sum()

    while True:
        arrays = [box.receive()]
        thread = threading.Thread(target=look, args=(arrays,))
        thread.start()
        thread.join()


@pytest.mark.row("L7")
def test_memory_that_threads_have_dropped_comes_back_while_the_process_waits(eventually: Any) -> None:
    """A thread without a parking place left it to the next that had one: there is none while all wait."""
    with shmipc.System(memory_limit=64 << 20) as system, shmipc.Mailbox.create() as box:
        system.spawn(consume, box)
        for _ in range(6):
            array = shmipc.zeros(1 << 20, np.uint8)
            box.send(array)
            del array
        eventually(lambda: box.count() == 0)
        eventually(lambda: system.statistics().used_bytes < 2 << 20)
        system.kill()


LEAVER = """
arrays = []
with shmipc.System.attach(sys.argv[1]) as system:
    with shmipc.Bus.open("cam") as bus, bus.subscribe() as reader:
        for _ in range(2):
            say("ready")
            arrays.append(reader.receive(timeout=20))
    if sys.argv[2].startswith("remain"):
        _native.kill_point_arm(sys.argv[2], 2 if sys.argv[2] == "remain_give" else 1, signal.SIGKILL)
say([int(array.sum()) for array in arrays])
hear()
arrays.pop()
say(int(arrays[0].sum()))
hear()
del arrays
say("dropped")
hear()
"""


@pytest.mark.row("L7", "L8")
@pytest.mark.parametrize("end", ["dropped", "killed", "remain_give", "remain_live"])
def test_arrays_of_a_client_that_left_come_back_with_the_last_of_them(
    system: shmipc.System, tmp_path: Path, eventually: Any, end: str
) -> None:
    """They were the system's until it ended; `with` blocks that receive in a loop leave such."""
    with shmipc.Bus.create("cam", frames=1) as bus:
        bus.publish(np.ones(100_000, np.uint8))
        census = Census(system)
        with Program(tmp_path, LEAVER, system.name, end) as leaver:
            for number in (1, 2):
                assert leaver.hear() == "ready"
                bus.publish(np.full(100_000, number, np.uint8))
            if end.startswith("remain"):
                assert leaver.process.wait(LIMIT) == -signal.SIGKILL
            else:
                assert leaver.hear() == [100_000, 200_000]
                assert not census.is_back()
                assert leaver.ask("drop one") == 100_000
                if end == "killed":
                    leaver.kill()
                else:
                    assert leaver.ask("drop") == "dropped"
            eventually(census.is_back)
