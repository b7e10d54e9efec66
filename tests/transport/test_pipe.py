"""Byte pipes: the stream, its end, and what the ends are told."""

import gc
import hashlib
import random
import signal
import threading
import time
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest

import shmipc
from shmipc import BytePipe, Event, wait_any
from tests.actors import Actor
from tests.transport.hands import kill, queue_up

MIB = 1 << 20


class End(Actor):
    """Has one end of a pipe."""

    pipe: BytePipe

    def have(self, pipe: BytePipe) -> None:
        self.pipe = pipe

    def write(self, data: bytes, chunk: int) -> int:
        return sum(self.pipe.write(data[at : at + chunk]) for at in range(0, len(data), chunk))

    def digest(self) -> tuple[int, str]:
        """Read to the end of the stream."""
        found, total = hashlib.sha256(), 0
        while data := self.pipe.read(random.randrange(1, 9000)):
            found.update(data)
            total += len(data)
        return total, found.hexdigest()

    def lines(self, mark: bytes, count: int, size: int) -> None:
        for _ in range(count):
            self.pipe.write(mark * size)

    def close(self) -> None:
        self.pipe.close()


pytestmark = pytest.mark.xdist_group("sync pipe")  # one crew for all


@pytest.fixture(autouse=True, scope="module")
def people() -> Iterator[list[Any]]:
    with shmipc.System() as system:
        yield [system.spawn(End) for _ in range(5)]


@pytest.mark.row("F17")
def test_pipe_carries_a_stream_and_ends_with_its_last_writer(people: list[Any]) -> None:
    p2, p3 = people[:2]
    data = random.Random(17).randbytes(MIB)
    digest = (MIB, hashlib.sha256(data).hexdigest())

    # 1 MiB in chunks of every size, through a pipe smaller than that; closing ends it
    for chunk in (777, 5000, MIB):
        reader, writer = BytePipe.pair(capacity=1 << 14)
        p2.have(reader)
        p3.have(writer)
        writer.close()
        reader.close()
        reads = p2.digest.submit()
        assert p3.write(data, chunk) == MIB
        p3.close()
        assert reads.result(60) == digest
        p2.close()

    # not before the last writer, and a writer that is killed counts as closed
    reader, writer = BytePipe.pair()
    victim = people.pop()
    victim.have(writer)
    assert reader.writing == 2
    assert victim.write(b"last words", 100) == 10
    writer.close()
    assert reader.read(4) == b"last"
    with reader.other("r") as second:
        assert second.read(6, 0) == b" words"
    with pytest.raises(shmipc.Timeout):
        reader.read(1, 0.01)
    ends = threading.Timer(0.05, kill, (victim,))
    ends.start()
    assert reader.read(100, 30.0) == b""
    ends.join()
    assert reader.read(100, 0) == b""
    assert wait_any([reader], 0) == 0

    # a reader that is gone is told to the writer, also to one who waits
    for gone in ("close", "kill"):
        reader, writer = BytePipe.pair(capacity=4096)
        other = people.pop() if gone == "kill" else p2
        other.have(reader)
        reader.close()
        writer.write(b"x" * 4000)
        fate: list[Any] = []

        def write(writer: BytePipe = writer, fate: list[Any] = fate) -> None:
            try:
                writer.write(b"y" * 10000)
            except shmipc.BrokenPipe as error:
                fate.append(error)

        thread = threading.Thread(target=write)
        thread.start()
        if gone == "kill":
            kill(other)
        else:
            other.close()
        thread.join(20)
        assert isinstance(fate[0], BrokenPipeError)
        assert 0 <= fate[0].written < 10000
        with pytest.raises(shmipc.BrokenPipe):
            writer.write(b"z", 0)
        writer.close()

    # blocking or not, switchable; an empty pipe and a full one
    reader, writer = BytePipe.pair(capacity=4096)
    reader.blocking = writer.blocking = False
    with pytest.raises(shmipc.WouldBlock):
        reader.read()
    assert writer.write(b"x" * 5000) == 4096
    with pytest.raises(shmipc.WouldBlock):
        writer.write(b"y")
    assert len(reader.read(100)) == 100
    with pytest.raises(shmipc.WouldBlock):
        writer.write(b"y" * 101)  # 4096 bytes or less: all or none
    assert writer.write(b"y" * 100) == 100
    reader.blocking = True
    for timeout in (0.1, 0.0):
        rest = reader.read(1 << 20)
        assert rest == b"x" * 3996 + b"y" * 100 or rest == b"."
        began = time.monotonic()
        with pytest.raises(shmipc.Timeout if timeout else shmipc.WouldBlock):
            reader.read(1, timeout)
        assert time.monotonic() - began >= timeout
        writer.write(b".")
    for pipe, act in ((writer, lambda: writer.read(1)), (reader, lambda: reader.write(b"x"))):
        with pytest.raises(shmipc.NotSupported):
            act()
        pipe.close()
        with pytest.raises(shmipc.Closed):
            act()


def test_short_writes_of_several_writers_are_never_mixed(people: list[Any]) -> None:
    reader, writer = BytePipe.pair(capacity=8192)
    writers = people[:2]
    for person in writers:
        person.have(writer)
    writer.close()
    works = [
        person.lines.submit(mark, 300, size)
        for person, mark, size in zip(writers, (b"a", b"b"), (1000, 777), strict=True)
    ]

    def close_after() -> None:
        for work, person in zip(works, writers, strict=True):
            work.result(60)
            person.close()

    closing = threading.Thread(target=close_after)
    closing.start()
    found = bytearray()
    while data := reader.read():
        found += data
    closing.join()
    reader.close()
    assert len(found) == 300 * 1777
    at = 0
    while at < len(found):
        size = 1000 if found[at] == ord("a") else 777
        assert found[at : at + size] == found[at : at + 1] * size
        at += size


def test_read_makes_room_for_no_more_than_can_come() -> None:
    for capacity, most in ((4096, 4096), (MIB, 1 << 18)):
        reader, writer = BytePipe.pair(capacity=capacity)
        writer.write(b"x")
        tracemalloc.start()
        try:
            assert reader.read(1 << 30) == b"x"
            assert tracemalloc.get_traced_memory()[1] < 2 * most
        finally:
            tracemalloc.stop()
        writer.write(b"y" * capacity)
        assert reader.read(1 << 30) == b"y" * most
        reader.close()
        writer.close()


def test_stream_that_is_over_goes_on_with_a_new_writer() -> None:
    reader, writer = BytePipe.pair()
    writer.close()
    assert reader.read() == b""
    with reader.other("w") as late:
        with pytest.raises(shmipc.WouldBlock):
            reader.read(timeout=0)
        late.write(b"more")
        assert reader.read() == b"more"
    assert reader.read() == b""
    reader.close()


def test_pipe_is_waited_for_among_others_and_found_by_name() -> None:
    with shmipc.System():
        reader = BytePipe.create("stream")
        with pytest.raises(shmipc.WouldBlock):  # nobody has written yet, which is not the end
            wait_any([reader], 0)
        writer = BytePipe.open("stream", "w")
        event = Event()
        timer = threading.Timer(0.05, writer.write, (b"hello",))
        timer.start()
        assert wait_any([event, reader], 30.0) == 1
        timer.join()
        assert wait_any([event, reader], 0) == 1
        assert reader.read() == b"hello"
        with pytest.raises(TypeError):
            wait_any([writer], 0)
        waits = threading.Thread(target=wait_any, args=([event, reader], 30.0))
        waits.start()
        queue_up(event, 1)
        del writer, timer  # an end that nobody refers to is closed
        gc.collect()
        waits.join(20)
        assert not waits.is_alive()
        assert reader.read() == b""
        with pytest.raises(shmipc.NameTaken):
            BytePipe.create("stream")
        for wrong in ("a", ""):
            with pytest.raises(shmipc.InvalidArgument):
                BytePipe.create(mode=wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="mode"):
            BytePipe.create(mode=["r"])  # type: ignore[arg-type]
        small = BytePipe.create(ends=2)
        second = small.other("w")
        with pytest.raises(shmipc.LimitExceeded):
            small.other("r")
        assert second.writing == 1


@pytest.mark.parametrize("how", ["closed", "interrupted"])
def test_write_that_is_broken_off_says_what_was_written(how: str) -> None:
    reader, writer = BytePipe.pair(capacity=4096)

    def interrupt(*_: Any) -> None:
        raise InterruptedError

    before = signal.signal(signal.SIGUSR1, interrupt)
    me = threading.main_thread().ident
    assert me is not None

    def end() -> None:
        wait_any([reader], 20.0)  # the pipe is full, then
        writer.close() if how == "closed" else signal.pthread_kill(me, signal.SIGUSR1)

    thread = threading.Thread(target=end)
    thread.start()
    try:
        with pytest.raises(shmipc.Closed if how == "closed" else InterruptedError) as error:
            writer.write(b"x" * 10_000, 20.0)
    finally:
        thread.join(20.0)
        signal.signal(signal.SIGUSR1, before)
    assert error.value.written == 4096  # type: ignore[attr-defined]
    assert len(reader.read(10_000)) == 4096
    writer.close()
    reader.close()
