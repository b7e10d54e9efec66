"""Buses: what each reader gets and is told, who waits for whom and for how long, and what a failed publish leaves."""

import gc
import math
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmipc
from shmipc import Bus, _native
from shmipc.transport.buses import head_of, make_head
from tests.actors import Actor, usage
from tests.programs import Program
from tests.transport.hosts import Wait

MIB = 1 << 20


def frame_of(number: int, size: int = 1000) -> np.ndarray[Any, Any]:
    return np.full(size, number, np.int64)


def number_in(frame: np.ndarray[Any, Any]) -> int:
    assert (frame == frame.flat[0]).all()
    return int(frame.flat[0])


class Subscriber(Actor):
    """Reads a bus when it is told to."""

    reader: shmipc.BusReader

    def join(self, bus: Bus, patience: float = 0.0) -> None:
        self.reader = bus.subscribe(patience=patience)

    def leave(self) -> None:
        self.reader.close()

    def take(self, timeout: float = 0.0) -> int:
        return number_in(self.reader.receive(timeout))

    def drain(self) -> list[int]:
        """The numbers of all frames that are there."""
        found = []
        while True:
            try:
                found.append(self.take())
            except shmipc.MailboxEmpty:
                return found

    def told(self) -> tuple[int, int]:
        return self.reader.missed, self.reader.skipped

    def into(self, size: int, timeout: float) -> int:
        return self.reader.receive_into(bytearray(size), timeout)

    def where(self) -> tuple[tuple[int, int] | None, bool, bool]:
        """The next frame: its place in shared memory, whether it can be written, whether it owns its bytes."""
        frame = self.reader.receive(0)
        return _native.shared_block(frame), frame.flags.writeable, frame.flags.owndata

    def follow(self, bus: Bus, total: int, pause_every: int) -> tuple[int, int, bool]:
        """Read until `total` frames were received or missed: (received, missed, in order)."""
        with bus.subscribe() as reader:
            bus.publish(b"here")
            received, last, in_order = 0, -1, True
            while True:
                frame = reader.receive(timeout=60)
                if frame.nbytes < 100:
                    continue  # somebody else is here
                received += 1
                in_order &= number_in(frame) > last
                last = number_in(frame)
                if last == total - 1:
                    return received, reader.missed, in_order
                if pause_every and received % pause_every == 0:
                    time.sleep(0.002)


@pytest.mark.row("K12")
def test_each_reader_has_its_own_place_and_rules_end_frames(system: shmipc.System) -> None:
    one, two, three = (system.spawn(Subscriber) for _ in range(3))
    bus = Bus.create(frames=4)

    # 1: only what is published after it subscribed
    bus.publish(frame_of(0))
    one.join(bus)
    assert one.drain() == []
    with pytest.raises(shmipc.Timeout):
        one.take(0.05)
    bus.publish(frame_of(1))
    assert one.drain() == [1]
    # a place that is used again is a new one
    small = Bus.create(frames=4, readers=1)
    two.join(small)
    with pytest.raises(shmipc.LimitExceeded):
        three.join(small)
    small.publish(frame_of(2))
    two.leave()
    three.join(small)
    assert three.drain() == []
    small.publish(frame_of(3))
    assert three.drain() == [3]
    three.leave()

    # 2: its own cursor; a full ring ends the oldest, whoever has not read it, and says how many
    two.join(bus)
    for number in range(10, 20):
        bus.publish(frame_of(number))
        assert two.drain() == [number]
    assert one.drain() == [16, 17, 18, 19]
    assert one.told() == (6, 0)
    assert two.told() == (0, 0)
    for number in range(20, 26):
        bus.publish(frame_of(number))
    assert one.drain() == two.drain() == [22, 23, 24, 25]
    assert (one.told(), two.told()) == ((8, 0), (2, 0))

    # a short buffer: polled and waited for, and the frame is kept
    bus.publish(frame_of(26, 10))
    for timeout in (0.0, 5.0):
        with pytest.raises(shmipc.BufferTooSmall) as caught:
            one.into(79, timeout)
        assert caught.value.needed == 80
    assert one.into(80, 0.0) == 80
    waits = one.into.submit(10, 5.0)
    bus.publish(frame_of(27, 10))
    with pytest.raises(shmipc.BufferTooSmall):
        waits.result(10)
    assert one.drain() == [27]

    # it cannot be destroyed while it has subscribers
    with pytest.raises(shmipc.WouldBlock):
        bus.destroy()
    one.leave()
    with pytest.raises(shmipc.WouldBlock):
        bus.destroy()
    assert two.drain() == [26, 27]
    two.leave()
    bus.destroy()
    with pytest.raises(shmipc.Closed):
        bus.publish(b"")
    with pytest.raises(shmipc.Closed):
        one.join(bus)

    # 3: consume_after counts distinct subscribers
    counted = Bus.create(frames=4, consume_after=2)
    for reader in (one, two, three):
        reader.join(counted)
    counted.publish(frame_of(30))
    counted.publish(frame_of(31))
    assert one.drain() == [30, 31]
    assert one.drain() == []  # one counts once
    assert two.take() == 30
    assert three.drain() == [31]
    assert two.drain() == []
    assert [reader.told() for reader in (one, two, three)] == [(0, 0), (0, 1), (0, 1)]

    # max_age
    aged = Bus.create(frames=4, max_age=0.05)
    one.join(aged)
    start = time.monotonic()
    aged.publish(frame_of(40))
    time.sleep(max(0.0, start + 0.06 - time.monotonic()))  # the row's time
    assert one.drain() == []
    assert one.told() == (0, 1)
    young = Bus.create(frames=4, max_age=60)
    one.join(young)
    young.publish(frame_of(41))
    assert one.drain() == [41]


@pytest.mark.row("K12")
@pytest.mark.parametrize("gone_before", [False, True])
@pytest.mark.parametrize("rule", [{"consume_after": 1}, {"max_age": 0.3}], ids=str)
def test_reader_with_patience_is_not_waited_for_when_the_frame_is_gone(
    system: shmipc.System, rule: dict[str, Any], gone_before: bool
) -> None:
    with Bus.create(frames=2, **rule) as bus, bus.subscribe(patience=60.0) as patient, bus.subscribe() as taker:

        def let_them_go() -> None:
            if "consume_after" in rule:
                assert [number_in(taker.receive(0)) for _ in range(2)] == [0, 1]
            elif gone_before:
                time.sleep(0.31)  # the row's time

        for number in range(2):
            bus.publish(frame_of(number))
        if gone_before:
            let_them_go()
        third = Wait(lambda: bus.publish(frame_of(2), timeout=20.0))
        if not gone_before:
            third.begun()
            let_them_go()
        assert third.end(30.0)[0] is None
        assert number_in(patient.receive(0)) == 2
        assert patient.missed + patient.skipped == 2


@pytest.mark.row("K13")
def test_a_publish_that_fails_removes_nothing() -> None:
    with shmipc.System(memory_limit=shmipc.LIMITS.memory_limit) as system:
        slow = system.spawn(Subscriber)
        bus = Bus.create(frames=3)
        slow.join(bus)
        for number in range(3):
            bus.publish(frame_of(number, MIB // 8))
        pool = []
        with pytest.raises(shmipc.OutOfMemory):
            while True:
                pool.append(shmipc.empty(MIB // 4, np.uint8))
        for _ in range(5):
            with pytest.raises(shmipc.OutOfMemory):
                bus.publish(frame_of(9, MIB // 8))
        assert slow.take() == 0
        pool.clear()
        bus.publish(frame_of(3, MIB // 8))
        assert slow.drain() == [1, 2, 3]
        assert slow.told() == (0, 0)
        # nor does one that a reader with patience refuses, or one that is too large
        patient = system.spawn(Subscriber)
        patient.join(bus, 60.0)
        for number in range(4, 7):
            bus.publish(frame_of(number, 10))
        for timeout, error in ((0, shmipc.MailboxFull), (0.01, shmipc.Timeout)):
            with pytest.raises(error) as caught:
                bus.publish(b"not now", timeout)
            assert caught.value.message == b"not now"
        with pytest.raises(shmipc.TooLarge):
            Bus.create(frame_bytes=10).publish(bytes(11))
        assert patient.drain() == slow.drain() == [4, 5, 6]
        assert patient.told() == (0, 0)


@pytest.mark.row("L15")
@pytest.mark.allows_rescue
def test_four_readers_read_large_frames_in_place_and_one_is_slow(system: shmipc.System) -> None:
    readers = [system.spawn(Subscriber) for _ in range(4)]
    slow = readers[3]
    bus = Bus.create("frames", frames=4, frame_bytes=MIB)
    for reader in readers:
        reader.join(bus)
    # Written once, and read where it was written.
    with bus.begin((MIB // 8,), np.int64) as frame:
        frame[...] = 7
        written = _native.shared_block(frame)
    del frame
    places = [reader.where() for reader in readers]
    assert places == [(written, False, False)] * 4
    # Whoever is slow loses, and is told; the others get everything.
    for number in range(20):
        bus.publish(frame_of(number, MIB // 8), timeout=0)
        assert [reader.drain() for reader in readers[:3]] == [[number]] * 3
    assert slow.drain() == [16, 17, 18, 19]
    assert [reader.told()[0] for reader in readers] == [0, 0, 0, 16]
    # Or the writer waits for it, as long as it has chosen.
    slow.leave()
    slow.join(bus, 0.5)
    for number in range(4):
        bus.publish(frame_of(number, MIB // 8), timeout=0)
    start = time.monotonic()
    with pytest.raises(shmipc.MailboxFull):
        bus.publish(frame_of(4), timeout=0)
    with pytest.raises(shmipc.Timeout):
        bus.publish(frame_of(4), timeout=0.1)
    assert time.monotonic() - start >= 0.1
    bus.publish(frame_of(4))
    assert 0.5 <= time.monotonic() - start < 5
    assert slow.drain() == [1, 2, 3, 4]
    assert slow.told() == (1, 0)
    # One that reads in time is waited for, and loses nothing.
    slow.leave()
    slow.join(bus, 60.0)
    waits = threading.Thread(target=lambda: [bus.publish(frame_of(number)) for number in range(9)])
    waits.start()
    assert [slow.take(10.0) for _ in range(9)] == list(range(9))
    waits.join()
    assert slow.told() == (0, 0)
    slow.leave()
    slow.join(bus, 0.5)
    # Stopped, it holds the writer up once, for that long.
    pid = shmipc.process(slow).pid
    os.kill(pid, signal.SIGSTOP)
    try:
        start = time.monotonic()
        for number in range(100):
            bus.publish(frame_of(number))
        assert 0.5 <= time.monotonic() - start < 5
    finally:
        os.kill(pid, signal.SIGCONT)
    assert slow.drain() == [96, 97, 98, 99]
    assert slow.told() == (96, 0)
    # Killed, until its death is seen.
    patient = readers[2]
    patient.leave()
    patient.join(bus, 1000.0)
    for number in range(4):
        bus.publish(frame_of(number), timeout=1)
        assert slow.take(10.0) == number
    with pytest.raises(shmipc.MailboxFull):
        bus.publish(frame_of(4), timeout=0)
    start = time.monotonic()
    killer = threading.Timer(0.1, lambda: os.kill(shmipc.process(patient).pid, signal.SIGKILL))
    killer.start()
    bus.publish(frame_of(4))
    assert time.monotonic() - start < 10
    killer.join()
    assert slow.take() == 4


@pytest.mark.race
def test_readers_that_run_freely_receive_or_are_told_every_frame(
    system: shmipc.System, rounds: Callable[[int, int], int], eventually: Any
) -> None:
    bus, total = Bus.create(frames=4), rounds(100_000, 3_000)
    work = [
        reader.follow.submit(bus, total, pause)
        for reader, pause in ((system.spawn(Subscriber), p) for p in (0, 0, 0, 7))
    ]
    eventually(lambda: bus.readers == 4, 30)
    for number in range(total):
        bus.publish(frame_of(number, 500))
    for future in work:
        received, missed, in_order = future.result(120)
        assert in_order
        # those who came later greet those who are here, and a greeting may be missed as a frame may
        assert total <= received + missed <= total + 3


def test_a_frame_is_as_it_was_published(system: shmipc.System) -> None:
    bus = Bus.create(frames=2)
    reader = bus.subscribe()
    record = np.dtype([("at", "<f8"), ("box", "<i4", (2, 2)), ("name", "S5")])
    arrays = [
        np.arange(24.0).reshape(2, 3, 4),
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.arange(100)[::-7],
        np.array(3.5),
        np.zeros((0, 5), np.float32),
        np.array([(1.5, [[1, 2], [3, 4]], b"abc")], record),
        np.array(["2026-01-01"], "M8[s]"),
    ]
    for array in arrays:
        bus.publish(array)
        frame = reader.receive(0)
        assert (frame.dtype, frame.shape, frame.tobytes()) == (array.dtype, array.shape, array.tobytes())
        assert not frame.flags.writeable
    for data in (b"abc", bytearray(b"abc"), memoryview(b"abc")):
        bus.publish(data)
        assert reader.receive(0).tobytes() == b"abc"
    for wrong in (np.array([object()]), np.ma.masked_array([1], [True])):
        with pytest.raises(TypeError):
            bus.publish(wrong)
    with pytest.raises(shmipc.InvalidArgument):
        bus.begin((-1,))


def test_a_frame_of_any_structure_is_as_it_was_published(system: shmipc.System) -> None:
    """numpy's own description of a dtype has none for fields that overlap, and forgets that they are aligned."""
    bus = Bus.create(frames=2)
    reader = bus.subscribe()
    dtypes: list[Any] = [
        {"names": ["a", "b"], "formats": ["<f8", "u1"], "offsets": [8, 0]},
        {"names": ["a", "b"], "formats": ["<u4", "<u2"], "offsets": [0, 2], "itemsize": 12},
        [(("title", "a"), "f8"), ("b", [("c", "S3"), ("d", "<M8[ms]", (2, 3))])],
        np.dtype([("a", "u1"), ("b", "f8")], align=True),
        [(f"field_number_{i:05}", "u1") for i in range(4000)],
        np.dtype("f8", metadata={"x": 1}),
        "V5",
        ">i4",
    ]
    for dtype in map(np.dtype, dtypes):
        array = np.zeros(3, dtype)
        bus.publish(array)
        frame = reader.receive(0)
        assert (frame.dtype, frame.shape, frame.tobytes()) == (dtype, (3,), array.tobytes())
        assert frame.dtype.isalignedstruct == dtype.isalignedstruct
        assert (frame.dtype.fields or {}).keys() == (dtype.fields or {}).keys()
    with bus.begin((3,), np.dtype(("f4", (2,)))) as begun:
        begun[...] = 1
    frame = reader.receive(0)
    assert (frame.dtype, frame.tolist()) == (np.float32, [[1, 1]] * 3)
    for shape in ((2.7,), 2.7, True, (True,), "3", (2, "3")):
        with pytest.raises(TypeError):
            bus.begin(shape, np.float32)  # type: ignore[arg-type]
    draft = bus.begin((np.int8(3),))
    with draft as begun:
        begun[:] = 5
    with pytest.raises(shmipc.InvalidArgument, match="begun before"), draft:
        pass
    assert reader.receive(0).tolist() == [5, 5, 5]
    with pytest.raises(shmipc.MailboxEmpty):
        reader.receive(0)


@pytest.mark.filterwarnings("ignore")  # of what a text that is none looks like
def test_a_head_that_is_none_is_corrupted(system: shmipc.System) -> None:
    rng = random.Random(7)
    record = np.dtype([("at", "<f8"), ("box", "<i4", (2, 2))])
    for _ in range(3000):
        head = bytearray(make_head(rng.choice((np.dtype(float), record)), (3, 4)))
        for _ in range(rng.randint(1, 4)):
            head[rng.randrange(len(head))] = rng.randrange(256)
        try:
            dtype, shape = head_of(bytes(head), 100_000)
        except shmipc.Corrupted:
            continue
        assert not dtype.hasobject
        assert dtype.itemsize * math.prod(shape) <= 100_000
    # what is no head at all, and one of an array that no numpy has
    bus = Bus.create(frames=2)
    reader = bus.subscribe()
    for head in (b"", b"\xff" * 64, make_head(np.dtype(float), (0, 1 << 63))):
        block = bus.member.allocate(200)
        memoryview(block)[: len(head)] = head
        bus.publish_block(block, len(head), 200)
        with pytest.raises(shmipc.Corrupted):
            reader.receive(0)


def test_a_frame_that_is_held_is_not_written_over_and_its_memory_comes_back(system: shmipc.System) -> None:
    bus = Bus.create(frames=2)
    reader = bus.subscribe()
    bus.publish(frame_of(0))
    bus.publish(frame_of(1))
    before = usage(system)
    held = [reader.receive()[3:], reader.receive()]
    for number in range(2, 50):
        bus.publish(frame_of(number))
    assert [number_in(frame) for frame in held] == [0, 1]
    assert usage(system)["blocks"] == before["blocks"] + 2
    del held
    assert usage(system) == before
    reader.close()
    bus.close()
    gc.collect()
    assert usage(system)["blocks"] < before["blocks"]


def test_a_draft_is_dropped_when_an_exception_leaves_it(system: shmipc.System) -> None:
    bus = Bus.create(frame_bytes=100)
    reader = bus.subscribe()
    before = usage(system)
    with pytest.raises(KeyError), bus.begin() as frame:
        assert frame.shape == (100,)
        raise KeyError
    del frame
    with pytest.raises(shmipc.MailboxEmpty):
        reader.receive(0)
    assert usage(system) == before
    with bus.begin(3) as frame:
        frame[:] = 5
    assert reader.receive(0).tolist() == [5, 5, 5]


def test_names_of_buses_are_names_of_the_system(system: shmipc.System) -> None:
    with Bus.create("cam") as bus:
        assert bus.name == "cam"
        for make in (Bus.create, shmipc.Mailbox.create):
            with pytest.raises(shmipc.NameTaken):
                make("cam")
        with pytest.raises(shmipc.NotFound):
            shmipc.Mailbox.open("cam")
        with Bus.open("cam") as again, again.subscribe() as reader:
            bus.publish(b"x")
            assert reader.receive(0).tobytes() == b"x"
    with pytest.raises(shmipc.NotFound):
        Bus.open("cam")
    with shmipc.Mailbox.create("cam"), pytest.raises(shmipc.NotFound):
        Bus.open("cam")


def test_a_reader_that_nobody_has_any_more_has_left(system: shmipc.System) -> None:
    bus = Bus.create()
    reader = bus.subscribe()
    del reader
    assert bus.readers == 0
    readers = [bus.subscribe(patience=9)]
    thread = threading.Thread(target=readers.clear)  # which has no context, and ends
    thread.start()
    thread.join()
    bus.publish(b"x")
    again = bus.subscribe()
    assert bus.readers == 1
    with pytest.raises(TypeError):
        again.__reduce__()


def test_who_waits_is_told_when_the_reader_or_the_bus_is_closed(system: shmipc.System) -> None:
    bus = Bus.create()
    told: list[str] = []

    def wait(reader: shmipc.BusReader) -> None:
        try:
            reader.receive()
        except shmipc.Closed:
            told.append("closed")

    for how in ("reader", "bus"):
        reader = bus.subscribe()
        thread = threading.Thread(target=wait, args=(reader,))
        thread.start()
        (reader if how == "reader" else bus).close()
        thread.join(10)
        assert not thread.is_alive()
        with pytest.raises(shmipc.Closed):
            reader.receive(0)
    assert told == ["closed", "closed"]
    with pytest.raises(shmipc.Closed):
        bus.publish(b"x")


def test_another_writer_takes_over_when_one_is_killed(system: shmipc.System) -> None:
    class Writer(Actor):
        def publish(self, bus: Bus, number: int) -> None:
            bus.publish(frame_of(number))

        def die(self, bus: Bus) -> None:
            _native.kill_point_arm("bus_ready", 1, signal.SIGKILL)
            bus.publish(frame_of(99))

    bus = Bus.create(frames=2)
    reader = bus.subscribe()
    for number in range(0, 6, 3):
        first, second = system.spawn(Writer), system.spawn(Writer)
        first.publish(bus, number)
        with pytest.raises(shmipc.PeerDead):
            first.die(bus)
        second.publish(bus, number + 1)
        bus.publish(frame_of(number + 2))
        assert [number_in(reader.receive(0)) for _ in range(2)] == [number + 1, number + 2]
        assert reader.missed == 1 + number // 3  # the oldest, which the dead one had ended


def test_a_program_that_has_the_bus_by_name_reads_it(system: shmipc.System, tmp_path: Path) -> None:
    bus = Bus.create("cam")
    text = """
        with shmipc.System.attach(sys.argv[1]) as system:
            with shmipc.Bus.open("cam") as bus, bus.subscribe() as reader:
                say("ready")
                say([int(reader.receive(timeout=30)[0]) for _ in range(3)])
    """
    with Program(tmp_path, text, system.name) as program:
        assert program.hear() == "ready"
        for number in range(3):
            bus.publish(frame_of(number))
        assert program.hear() == [0, 1, 2]


@pytest.mark.row("L15")
def test_reader_that_is_dropped_in_a_thread_of_no_other_use_lets_who_waits_go_on(system: shmipc.System) -> None:
    with shmipc.Bus.create(frames=2) as bus:
        held = [bus.subscribe(patience=60.0)]
        for number in range(2):
            bus.publish(bytes([number]))
        dropper = threading.Timer(0.3, held.clear)
        dropper.start()
        began = time.monotonic()
        bus.publish(b"third", timeout=30.0)
        assert time.monotonic() - began < 20
        dropper.join()
