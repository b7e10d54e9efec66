"""Systems end in order and in time, whatever is under way, and whoever is stopped."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import shmipc
from shmipc.runtime import launcher
from tests.actors import Actor
from tests.conftest import NAMESPACE, SHM
from tests.programs import Program, lives

LIMIT = 10.0  # of a shutdown that was given one second or less, on a machine that is busy


def our_files() -> set[str]:
    return {name for name in os.listdir(SHM) if NAMESPACE in name}


def timed_shutdown(system: shmipc.System, timeout: float) -> float:
    start = time.monotonic()
    system.shutdown(timeout=timeout)
    return time.monotonic() - start


class Thread(threading.Thread):
    """Runs a function and keeps its error."""

    def __init__(self, act: Any) -> None:
        super().__init__(daemon=True)
        self.act = act
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.act()
        except BaseException as error:
            self.error = error


# --- a zygote that is stopped ----------------------------------------------------------------------------------


@pytest.fixture
def stopped_zygote(eventually: Any) -> Iterator[Any]:
    """Starts nothing; stops the zygote when called, for 20 seconds at most."""
    pids: list[int] = []

    def go_on() -> None:
        for pid in pids:
            if lives(pid):
                os.kill(pid, signal.SIGCONT)

    def stop() -> int:
        pid = launcher.launcher().zygote_pid()
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        pids.append(pid)
        eventually(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)
        return pid

    timer = threading.Timer(20.0, go_on)
    timer.start()
    yield stop
    timer.cancel()
    go_on()


def test_shutdown_ends_in_time_when_a_pool_s_replacement_waits_for_a_stopped_zygote(
    stopped_zygote: Any, eventually: Any
) -> None:
    system = shmipc.System()
    pool = system.pool(1)
    worker = pool.submit(os.getpid).result(10)
    zygote = stopped_zygote()
    os.kill(worker, signal.SIGKILL)
    eventually(lambda: launcher.launcher().lock.locked())  # asked for another
    assert timed_shutdown(system, 1.0) < LIMIT
    assert not lives(zygote)
    with pytest.raises(shmipc.Closed):
        pool.submit(os.getpid)


def test_shutdown_ends_in_time_after_a_spawn_that_a_stopped_zygote_did_not_answer(stopped_zygote: Any) -> None:
    system = shmipc.System()
    system.spawn(Actor)
    zygote = stopped_zygote()
    with pytest.raises(shmipc.Timeout):
        system.options(start_timeout=0.2).spawn(Actor)
    assert timed_shutdown(system, 1.0) < LIMIT
    assert not lives(zygote)
    with shmipc.System() as other:  # and another starts
        assert other.spawn(Actor).pid()


# --- starts under way ------------------------------------------------------------------------------------------


class SlowToStart:
    def __init__(self, path: str) -> None:
        Path(path).write_text(str(os.getpid()))
        time.sleep(600)


def test_shutdown_ends_a_spawn_that_another_thread_waits_for(tmp_path: Path, eventually: Any) -> None:
    before, path = our_files(), tmp_path / "started"
    system = shmipc.System()
    spawn = Thread(lambda: system.spawn(SlowToStart, str(path)))
    pool = Thread(lambda: system.pool(1, SlowToStart, str(tmp_path / "pool")))
    eventually(lambda: path.exists() and path.read_text() and (tmp_path / "pool").exists())
    eventually(lambda: (tmp_path / "pool").read_text())
    assert timed_shutdown(system, 0.5) < LIMIT
    for thread in (spawn, pool):
        thread.join(LIMIT)
        assert isinstance(thread.error, shmipc.Closed)
    assert not any(lives(int(file.read_text())) for file in (path, tmp_path / "pool"))
    eventually(lambda: our_files() == before)


def test_shutdown_ends_a_spawn_that_waits_for_a_stopped_zygote(stopped_zygote: Any, eventually: Any) -> None:
    before = our_files()
    system = shmipc.System()
    system.spawn(Actor)
    stopped_zygote()
    spawn = Thread(lambda: system.spawn(Actor))
    eventually(lambda: launcher.launcher().lock.locked())
    assert timed_shutdown(system, 0.5) < LIMIT
    spawn.join(LIMIT)
    assert isinstance(spawn.error, shmipc.Closed)
    assert our_files() == before


# --- pools -----------------------------------------------------------------------------------------------------


def test_shutdown_ends_in_time_when_a_large_function_waits_for_room_at_a_busy_worker(eventually: Any) -> None:
    system, table, maps = shmipc.System(), bytes(1000), []
    pool = system.options(slots=2).pool(1)
    pool.submit(time.sleep, 600)
    eventually(lambda: pool._tasks.depth() == 0)

    def use() -> None:
        for number in range(4):
            maps.append(pool.map(lambda item, number=number: (item, number, table), []))

    user = Thread(use)
    eventually(lambda: len(maps) == 2)
    user.join(0.2)  # until it waits
    assert timed_shutdown(system, 0.5) < LIMIT
    user.join(LIMIT)
    assert isinstance(user.error, shmipc.Closed)


# --- who has attached ------------------------------------------------------------------------------------------

ATTACHED = """
    class Actor:
        def pid(self):
            return os.getpid()
        def stop(self):
            os.kill(os.getpid(), signal.SIGSTOP)

    system = shmipc.System.attach(sys.argv[1])
    actor, stopped = system.spawn(Actor), system.spawn(Actor)
    pool = system.pool(1)
    pids = [actor.pid(), stopped.pid(), pool.submit(os.getpid).result()]
    stopped.stop.cast()
    say(pids)
    hear()
    try:
        actor.pid()
        say("answered")
    except (shmipc.Closed, shmipc.PeerDead) as error:
        say(type(error).__name__)
    hear()
    system.shutdown(timeout=1.0)
    say([system.closed, shmipc.System("another").closed])
    hear()
    """


@pytest.mark.allows_rescue
def test_workers_of_an_attached_process_end_with_the_root_that_leaves_in_order(tmp_path: Path, eventually: Any) -> None:
    before = our_files()
    system = shmipc.System("rooted")
    with Program(tmp_path, ATTACHED, "rooted") as attached:
        pids = attached.hear()
        attached.family()
        eventually(lambda: psutil.Process(pids[1]).status() == psutil.STATUS_STOPPED)
        assert timed_shutdown(system, 1.0) < LIMIT
        eventually(lambda: not any(lives(pid) for pid in pids), 1.0)
        assert lives(attached.pid)
        assert attached.ask("call") in ("Closed", "PeerDead")
        assert attached.ask("shut down") == [True, False]
        attached.tell("end")
        assert attached.process.wait(LIMIT) == 0
    eventually(lambda: our_files() == before)


# --- who was forked --------------------------------------------------------------------------------------------

FORKED = """
    import ctypes
    system = shmipc.System()
    array = shmipc.share(np.full(100_000, 7.0))
    near, far = os.pipe()
    ours = sys.argv[1] == "forked"
    pid = os.fork() if ours else ctypes.CDLL(None).fork()
    if pid == 0:
        os.close(far)
        os.read(near, 1)
        os._exit(0 if not ours or (array == 7).all() else 1)
    system.shutdown()
    say("left")
    hear()
    os.close(far)
    say(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    hear()
    """


@pytest.mark.parametrize("how", ["forked", "forked and told nothing"])
def test_forked_child_that_outlives_its_system_leaves_no_files(tmp_path: Path, how: str) -> None:
    """A child in which no handler has run is as one that has not run yet: it shares its parent's descriptors."""
    before = our_files()
    with Program(tmp_path, FORKED, how) as program:
        assert program.hear() == "left"
        assert our_files() == before
        assert program.ask("end the child") == 0
