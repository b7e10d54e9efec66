"""Segments, semaphores and message queues that another program made."""

import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import posix_ipc
import pytest

import shmipc
from shmipc.interop import posix
from tests.conftest import NAMESPACE

NAME = f"/{NAMESPACE}-posix"

MAKER = f"""
import mmap, struct, sys, posix_ipc
memory = posix_ipc.SharedMemory({NAME!r}, posix_ipc.O_CREX, size=1000)
there = mmap.mmap(memory.fd, 1000)
there[:16] = struct.pack("2d", 1.5, 2.5)
semaphore = posix_ipc.Semaphore({NAME!r}, posix_ipc.O_CREX, initial_value=1)
queue = posix_ipc.MessageQueue({NAME!r}, posix_ipc.O_CREX, max_messages=3, max_message_size=32)
queue.send(b"low", priority=1)
queue.send(b"high", priority=5)
print("made", flush=True)
for line in sys.stdin:
    if line == "release\\n":
        semaphore.release()
    elif line == "send\\n":
        queue.send(b"later", priority=0)
    elif line == "look\\n":
        print(there[100], queue.current_messages, flush=True)
for entry in (semaphore, queue, memory):
    entry.unlink()
"""


@pytest.fixture
def maker() -> Iterator[Any]:
    with subprocess.Popen(
        [sys.executable, "-P", "-c", textwrap.dedent(MAKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == "made\n"

        def tell(line: str, answers: bool = False) -> str:
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.write(line + "\n")
            child.stdin.flush()
            return child.stdout.readline() if answers else ""

        yield tell
        child.stdin.close()
        assert child.wait(30) == 0


def test_segment_is_read_and_written_in_place(maker: Any) -> None:
    with posix.Segment(NAME) as segment, posix.Segment(NAME[1:], readonly=True) as shown:
        assert (segment.size, len(segment.buf)) == (1000, 1000)
        numbers = shown.array(2, np.float64)
        assert numbers.tolist() == [1.5, 2.5]
        assert not numbers.flags.writeable
        assert shown.buf.readonly
        segment.buf[100] = 42
        assert maker("look", True) == "42 2\n"
        segment.array(1, np.float64, 8)[:] = 9
        assert numbers[1] == 9
    with pytest.raises(shmipc.Closed):
        segment.buf
    with pytest.raises(shmipc.Closed):
        segment.array(1)
    assert numbers.tolist() == [1.5, 9.0]  # it is unmapped with the last array, not under it
    del numbers
    with pytest.raises(TypeError, match="too small"):
        posix.Segment(NAME).array(2000)
    with posix.Segment(NAME) as segment:
        with pytest.raises(shmipc.InvalidArgument, match="offset is -5"):
            segment.array(10, np.uint8, -5)
        with pytest.raises(TypeError, match="objects"):
            segment.array(3, object)


def test_close_ends_the_waits_of_other_threads_as_closed(maker: Any) -> None:
    """The semaphore was unmapped under who waited in it."""
    semaphore, queue = posix.Semaphore(NAME), posix.MessageQueue(NAME)
    semaphore.acquire(0)
    while len(queue):
        queue.receive(0)
    with posix.Semaphore(NAME) as third:
        for opened, waits in (
            (semaphore, lambda: semaphore.acquire(20.0)),
            (third, third.acquire),
            (queue, queue.receive),
        ):
            told: list[BaseException] = []

            def wait(waits: Any = waits, told: list[BaseException] = told) -> None:
                try:
                    waits()
                except shmipc.Closed as error:
                    told.append(error)

            waiter = threading.Thread(target=wait)
            waiter.start()
            while not opened._inside:
                time.sleep(0.001)
            opened.close()
            opened.close()
            waiter.join(20.0)
            assert len(told) == 1
            assert not opened._opened
    with posix.Semaphore(NAME) as semaphore, posix.MessageQueue(NAME) as queue:
        began = time.process_time()
        with pytest.raises(shmipc.Timeout):
            semaphore.acquire(0.1)
        waiter = threading.Thread(target=lambda: semaphore.acquire(1e19))  # more than the system's clock has
        waiter.start()
        time.sleep(0.1)
        semaphore.release()
        waiter.join(20.0)
        assert not waiter.is_alive()
        assert time.process_time() - began < 0.1
        for body, priority, error in (("text", 0, TypeError), (b"", "1", TypeError), (b"", -1, shmipc.InvalidArgument)):
            with pytest.raises(error):
                queue.send(body, priority=priority, timeout=0)  # type: ignore[arg-type]
        assert len(queue) == 0


def test_semaphore_waits_polls_and_times_out_with_our_errors(maker: Any) -> None:
    with posix.Semaphore(NAME) as semaphore:
        assert semaphore.value == 1
        semaphore.acquire(0)
        with pytest.raises(shmipc.WouldBlock):
            semaphore.acquire(timeout=0)
        began = time.monotonic()
        with pytest.raises(shmipc.Timeout):
            semaphore.acquire(timeout=0.1)
        assert time.monotonic() - began >= 0.1
        maker("release")
        semaphore.acquire(10.0)
        semaphore.release()
        assert semaphore.value == 1
    with pytest.raises(shmipc.Closed):
        semaphore.release()


def test_queue_gives_the_most_urgent_first_and_its_errors_carry_the_message(maker: Any) -> None:
    with posix.MessageQueue(NAME) as queue:
        assert (len(queue), queue.max_messages, queue.message_bytes) == (2, 3, 32)
        assert queue.receive(1.0) == (b"high", 5)
        assert queue.receive(0) == (b"low", 1)
        with pytest.raises(shmipc.MailboxEmpty):
            queue.receive(0)
        with pytest.raises(shmipc.Timeout):
            queue.receive(0.05)
        maker("send")
        assert queue.receive(10.0) == (b"later", 0)
        for number in range(3):
            queue.send(bytes([number]), priority=number)
        with pytest.raises(shmipc.MailboxFull) as full:
            queue.send(b"more", timeout=0)
        assert full.value.message == b"more"
        with pytest.raises(shmipc.Timeout):
            queue.send(b"more", timeout=0.05)
        with pytest.raises(shmipc.TooLarge):
            queue.send(bytes(33))


class Ring(Exception):
    pass


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, Ring, None])
def test_what_a_signal_handler_raises_ends_a_wait(maker: Any, error: type[BaseException] | None) -> None:
    """posix_ipc put an error of its own in its place, unless it was a KeyboardInterrupt."""
    came: list[int] = []

    def handle(number: int, frame: Any) -> None:
        came.append(number)
        if error:
            raise error

    former = signal.signal(signal.SIGALRM, handle)
    try:
        with posix.Semaphore(NAME) as semaphore, posix.MessageQueue(NAME) as queue:
            semaphore.acquire(0)
            waits: list[Callable[[float], Any]] = [semaphore.acquire, lambda left: queue.send(b"x", timeout=left)]
            queue.send(b"third", timeout=0)
            for act in (*waits, queue.receive):
                if act == queue.receive:
                    while len(queue):
                        queue.receive(0)
                signal.setitimer(signal.ITIMER_REAL, 0.1)
                with pytest.raises(error or shmipc.Timeout):
                    act(5.0 if error else 0.3)
            assert len(came) == 3
            assert (semaphore.value, len(queue)) == (0, 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


def test_nothing_is_made_and_bad_names_are_told() -> None:
    for kind in (posix.Segment, posix.Semaphore, posix.MessageQueue):
        with pytest.raises(shmipc.NotFound):
            kind(NAME + "-none")
        with pytest.raises(shmipc.InvalidArgument):
            kind("a/b")
        with pytest.raises(TypeError):
            kind(3)  # type: ignore[arg-type]
    empty = posix_ipc.SharedMemory(NAME + "-empty", posix_ipc.O_CREX)
    try:
        with pytest.raises(shmipc.InvalidArgument, match="no bytes"):
            posix.Segment(NAME + "-empty")
    finally:
        empty.close_fd()
        empty.unlink()
