"""Pools and their maps: windows, errors, slow workers."""

import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import shmipc
from shmipc.runtime import children


@pytest.mark.parametrize("window", [1, 2, 3, 7, None])
@pytest.mark.parametrize("chunksize", [1, 3])
def test_map_yields_everything_in_order_whatever_its_window(
    system: shmipc.System, window: int | None, chunksize: int
) -> None:
    with system.pool(2) as pool:
        assert list(pool.map(abs, range(-20, 0), window=window, chunksize=chunksize)) == list(range(20, 0, -1))
        assert list(pool.map(abs, [], window=window, chunksize=chunksize)) == []


def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def test_tasks_wait_in_the_queue_as_long_as_it_takes(system: shmipc.System) -> None:
    """Longer than a few looks at what a call waits for."""
    with system.pool(1) as pool:
        first, second = pool.submit(nap, 2.5), pool.submit(nap, 0.0)
        assert second.result(30) == 0.0
        assert first.result(30) == 2.5
        assert list(pool.map(nap, [1.3, 0.0, 0.0])) == [1.3, 0.0, 0.0]


def numbers(count: int, read: list[int]) -> Iterator[int]:
    for number in range(count):
        read.append(number)
        yield number


def test_map_reads_no_more_than_its_window(system: shmipc.System) -> None:
    read: list[int] = []
    with system.pool(1) as pool:
        results = pool.map(abs, numbers(100, read), window=4)
        assert len(read) == 4
        for yielded in range(1, 50):
            next(results)
            assert len(read) <= yielded + 4


def some_then_error() -> Iterator[int]:
    yield from range(10)
    raise LookupError("no more")


@pytest.mark.parametrize("window", [4, 1000])
@pytest.mark.parametrize("chunksize", [1, 4])
def test_error_of_the_iterable_is_raised_in_its_turn(system: shmipc.System, chunksize: int, window: int) -> None:
    got = []
    with system.pool(1) as pool:
        results = pool.map(abs, some_then_error(), window=window, chunksize=chunksize)
        with pytest.raises(LookupError, match="no more"):
            for value in results:
                got.append(value)
    assert got == list(range(10))


def note(item: int, path: str) -> int:
    """Noted when it runs; kills its worker the first time it is 150."""
    with open(f"{path}/log", "a") as log:
        log.write(f"{item}\n")
    if item == 150 and not os.path.exists(f"{path}/died"):
        Path(path, "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def test_finished_items_of_a_dead_worker_s_chunk_are_not_run_again(
    system: shmipc.System, tmp_path: Path, eventually: Any
) -> None:
    with system.pool(1) as pool:
        results = pool.map(note, range(200), [str(tmp_path)] * 200, chunksize=200, window=1, retries=1)
        eventually(lambda: (tmp_path / "died").exists())  # before anything is received
        assert list(results) == list(range(200))
    runs = Counter((tmp_path / "log").read_text().split())
    assert [item for item, count in runs.items() if count > 1] == ["150"]


def raise_peer_dead(number: int, path: str) -> None:
    with Path(path).open("a") as log:
        log.write(f"{number}\n")
    raise shmipc.PeerDead("somebody whom the task asked")


def raise_here() -> None:
    raise shmipc.PeerDead("as it is read")


class Unreadable:
    def __reduce__(self) -> Any:
        return raise_here, ()


def return_unreadable(number: int, path: str) -> Unreadable:
    with Path(path).open("a") as log:
        log.write(f"{number}\n")
    return Unreadable()


def test_task_whose_result_raises_peer_dead_as_it_is_read_is_not_run_again(
    system: shmipc.System, tmp_path: Path
) -> None:
    path = str(tmp_path / "log")
    with system.pool(1) as pool, pytest.raises(shmipc.PeerDead, match="as it is read"):
        list(pool.map(return_unreadable, range(2), [path] * 2, window=1, retries=3))
    assert Path(path).read_text() == "0\n"


@pytest.mark.parametrize("chunksize", [1, 2])
def test_task_that_raises_peer_dead_itself_is_not_run_again(
    system: shmipc.System, tmp_path: Path, chunksize: int
) -> None:
    path = str(tmp_path / "log")
    with system.pool(1) as pool, pytest.raises(shmipc.PeerDead, match="somebody whom the task asked"):
        list(pool.map(raise_peer_dead, range(2), [path] * 2, chunksize=chunksize, window=1, retries=3))
    assert Path(path).read_text() == "0\n"


class SlowToReturn:
    """Dies when told; the one that takes its place never gets done with its constructor."""

    def __init__(self, path: str) -> None:
        if Path(path).exists():
            time.sleep(600)

    def die(self, path: str) -> None:
        Path(path).touch()
        os.kill(os.getpid(), signal.SIGKILL)


def test_shutdown_does_not_wait_for_a_replacement_that_starts_slowly(tmp_path: Path, eventually: Any) -> None:
    system, path = shmipc.System(), str(tmp_path / "died")
    pool = system.pool(1, SlowToReturn, path)
    with pytest.raises(shmipc.PeerDead):
        pool.submit(SlowToReturn.die, path).result(10)
    eventually(lambda: any(flight.starting for flight in children.under_way(pool)))
    started = time.monotonic()
    system.shutdown(timeout=0.5)
    assert time.monotonic() - started < 10


class Mortal:
    """Dies when told; nobody can take its place."""

    def __init__(self, path: str) -> None:
        if Path(path).exists():
            raise RuntimeError("no more")

    def die(self, path: str) -> None:
        Path(path).touch()
        os.kill(os.getpid(), signal.SIGKILL)

    def same(self, item: int) -> int:
        return item


@pytest.mark.parametrize("chunksize", [1, 2])
def test_map_ends_when_its_pool_breaks_while_the_items_are_produced(
    system: shmipc.System, tmp_path: Path, eventually: Any, chunksize: int
) -> None:
    path = str(tmp_path / "died")
    pool = system.pool(1, Mortal, path)

    def items() -> Iterator[int]:
        with pytest.raises(shmipc.PeerDead):
            pool.submit(Mortal.die, path).result(10)
        eventually(lambda: "broken" in repr(pool))
        yield from range(6)

    with pytest.raises(shmipc.BrokenPool):
        list(pool.map(Mortal.same, items(), chunksize=chunksize, timeout=20))


def held(system: shmipc.System) -> dict[str, int]:
    counters = system.statistics().as_dict()
    return {name: counters[name] for name in ("members", "mailboxes", "blocks", "leases")}


class Quiet:
    def on_message(self, message: shmipc.Message) -> None:
        pass


def test_pool_that_was_shut_down_holds_no_mailbox_of_its_workers(system: shmipc.System) -> None:
    """Neither the one by which a large function was sent to them, nor those of Refs that were used and dropped."""
    before = held(system)
    with system.pool(2, Quiet) as pool:
        table = bytes(1000)  # makes the function too large to travel with each task
        assert list(pool.map(lambda quiet, n: n + len(table), range(4))) == [1000, 1001, 1002, 1003]
        for ref in pool.refs:
            shmipc.send(ref, "a message of no use")
        for process in system.processes():
            shmipc.send(process.ref, "another")
    del ref, process, pool
    assert held(system) == before


def nap_and_negate(item: int) -> int:
    time.sleep(0.001)
    return -item


@pytest.mark.parametrize("chunksize", [1, 5])
def test_map_that_is_left_early_reports_no_losses(caplog: pytest.LogCaptureFixture, chunksize: int) -> None:
    """Neither of what nobody wants any more, nor of the orders to a worker that is killed."""
    with shmipc.System() as system:
        pool = system.pool(2)
        for value in pool.map(nap_and_negate, range(1000), chunksize=chunksize):
            if value == -20:
                break
        pool.shutdown()
        assert system.statistics().undelivered == 0
        busy = system.pool(1)
        table = bytes(1000)
        future = busy.submit(time.sleep, 600)
        busy.map(lambda item: (item, table), [])
        busy.shutdown(timeout=0.2)
        with pytest.raises(shmipc.ShmipcError):
            future.result(10)
        assert system.statistics().undelivered == 0
    assert "lost" not in caplog.text


def test_pool_says_that_it_cannot_be_pickled(system: shmipc.System) -> None:
    with system.pool(1) as pool, pytest.raises(TypeError, match="Pool"):
        pool.submit(repr, pool)


class Leaver:
    """Unpickling it asks for the end of the process."""

    def __reduce__(self) -> Any:
        return sys.exit, (3,)

    def __call__(self) -> None:
        pass


def test_worker_survives_a_body_that_exits_when_it_is_unpickled(system: shmipc.System) -> None:
    with system.pool(1) as pool:
        worker = pool.submit(os.getpid).result(10)
        for future in (pool.submit(repr, Leaver()), pool.submit(Leaver())):
            with pytest.raises(shmipc.NotSupported, match="SystemExit"):
                future.result(10)
        assert pool.submit(os.getpid).result(10) == worker
    actor: Any = system.spawn(Quiet)
    shmipc.send(actor, Leaver())
    with pytest.raises(shmipc.NotSupported, match="SystemExit"):
        shmipc.call(actor, Leaver(), timeout=10)
    assert shmipc.process(actor).is_alive()


def test_worker_that_dies_in_a_full_system_is_replaced() -> None:
    with shmipc.System(max_members=3) as system, system.pool(2) as pool:
        for _ in range(4):
            os.kill(pool.submit(os.getpid).result(20.0), signal.SIGKILL)
            assert list(pool.map(nap_and_negate, range(4), retries=3)) == [0, -1, -2, -3]
            deadline = time.monotonic() + 20.0
            while len(system.processes()) < 2 and time.monotonic() < deadline:
                time.sleep(0.01)
            assert len(system.processes()) == 2
