"""No wait of a live system is ever ended by a slice instead of a post; and one that is, is counted and seen."""

import os
import signal
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest

import shmipc
from shmipc import _native
from shmipc.base.deadlines import Deadline


class Worker:
    """An actor that waits in every way there is."""

    def pid(self) -> int:
        return os.getpid()

    def echo(self, value: Any) -> Any:
        return value

    def send(self, box: shmipc.Mailbox, count: int) -> int:
        """Blocks on a full mailbox most of the time."""
        for number in range(count):
            shmipc.send(box, (os.getpid(), number), tag=number % 3 + 1)
        return count

    def receive(self, box: shmipc.Mailbox, tag: int | None, count: int) -> int:
        """Blocks on an empty mailbox, and on one with messages of other tags."""
        for _ in range(count):
            if tag is None:
                box.receive()
            else:
                box.receive_message(tag=tag)
        return count

    def call(self, to: Any, count: int) -> int:
        for number in range(count):
            assert to.echo(number) == number
        futures = [to.echo.submit(number) for number in range(count)]
        assert [future.result() for future in futures] == list(range(count))
        return 2 * count

    def stop_at(self, point: str, box: shmipc.Mailbox) -> None:
        """Send, and stop at a kill point of that."""
        _native.kill_point_arm(point, 1, signal.SIGSTOP)
        box.send("late")
        _native.kill_point_disarm()


@pytest.mark.row("M20")
@pytest.mark.race
def test_no_wait_of_a_busy_system_needs_a_rescue(system: shmipc.System) -> None:
    """Senders of a small mailbox, receivers with and without filter, calls both ways, late wakes beyond a slice."""
    narrow, mixed = shmipc.Mailbox.create(slots=2), shmipc.Mailbox.create(slots=1024)  # never full: nobody starves
    workers: list[Any] = [system.spawn(Worker) for _ in range(6)]
    servers: list[Any] = [system.spawn(Worker) for _ in range(2)]
    count = 600
    futures = [
        workers[0].send.submit(narrow, count),
        workers[1].send.submit(narrow, count),
        workers[2].receive.submit(narrow, None, 2 * count),
        workers[3].send.submit(mixed, count),
        workers[4].receive.submit(mixed, 2, count // 3),
        workers[5].call.submit(servers[0], count // 2),
        servers[1].receive.submit(mixed, 1, count // 3),
    ]
    assert workers[5].echo(1) == 1
    threads = [threading.Thread(target=lambda: [servers[0].echo(n) for n in range(count)]) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(count // 3):
        mixed.receive_message(tag=3)
    assert all(future.result(60.0) for future in futures)
    for thread in threads:
        thread.join()
    # Waits that last longer than two slices before their wake comes.
    slow = workers[0].receive.submit(narrow, None, 1)
    filtered = workers[1].receive.submit(mixed, 7, 1)
    pause = threading.Event()
    pause.wait(1.3)
    narrow.send(1)
    shmipc.send(mixed, 2, tag=7)
    assert slow.result(10.0) == filtered.result(10.0) == 1
    for worker in workers:
        assert shmipc.process(worker).stop()
    assert system.statistics().rescued == 0
    assert system.statistics().undelivered == 0


class Receiver:
    """A thread that waits for an exit notice, or for what ends the wait without one."""

    def __init__(self) -> None:
        self.message: Any = None
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self) -> None:
        self.message = shmipc.receive(kind=shmipc.Kind.EXIT, timeout=30)

    def sleeps(self) -> bool:
        stat = Path(f"/proc/self/task/{self.thread.native_id}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] == "S"


@pytest.mark.row("M20")
@pytest.mark.race
def test_no_wait_for_an_end_in_order_needs_a_rescue(system: shmipc.System, eventually: Any) -> None:
    """The one that ends tells its watchers itself; watches are cancelled in the same moment."""
    for number in range(8):
        worker, other = system.spawn(Worker), system.spawn(Worker)
        watch, second = shmipc.monitor(worker), shmipc.monitor(other)
        receiver = Receiver()
        eventually(receiver.sleeps)
        process = shmipc.process(worker)
        assert process.ask_to_stop(Deadline(10.0))
        if number % 2 and watch.cancel():
            assert shmipc.process(other).ask_to_stop(Deadline(10.0))
            ends = second
        else:
            ends = watch
            second.cancel()
        receiver.thread.join(30)
        assert receiver.message.body.monitor == ends.id
        assert receiver.message.body.reason == "returned"
        assert process.join(10.0)
        shmipc.process(other).stop()
        assert system.statistics().rescued == 0


@pytest.mark.row("M20")
@pytest.mark.allows_rescue
@pytest.mark.parametrize("end", ["continues", "is killed"])
def test_rescue_is_counted_when_a_waker_was_stopped_and_stays_counted(eventually: Any, end: str) -> None:
    """What the fixture asserts after every test is not lost when the process that was rescued leaves."""
    with shmipc.System() as system:
        box = shmipc.Mailbox.create()
        waiter: Any = system.spawn(Worker)
        waker: Any = system.spawn(Worker)
        pid = waker.pid()
        got = waiter.receive.submit(box, None, 1)
        eventually(lambda: psutil.Process(shmipc.process(waiter).pid).status() == psutil.STATUS_SLEEPING)
        late = waker.stop_at.submit("wake_notify", box)
        assert got.result(10.0) == 1  # nobody posted
        assert system.statistics().rescued >= 1
        assert psutil.Process(pid).status() == psutil.STATUS_STOPPED
        if end == "continues":
            os.kill(pid, signal.SIGCONT)
            assert late.result(10.0) is None
            assert waker.echo(2) == 2
        else:
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(shmipc.PeerDead):
                late.result(10.0)
        assert shmipc.process(waiter).stop()
        assert system.statistics().rescued >= 1
        box.close()
    assert _native.take_rescued() >= 1
    assert _native.take_rescued() == 0
