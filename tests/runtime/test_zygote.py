"""The zygote and its spare child: who forks what, what a worker inherits, and what an ill-timed death leaves."""

import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import shmipc
from shmipc.runtime import launcher
from tests.programs import Program, lives


class Worker:
    def pid(self) -> int:
        return os.getpid()

    def group(self) -> int:
        return os.getpgid(0)

    def surroundings(self) -> dict[str, Any]:
        mask = os.umask(0o077)
        os.umask(mask)
        return {
            "cwd": os.getcwd(),
            "umask": mask,
            "set": os.environ.get("SHMIPC_TEST_SET"),
            "unset": "SHMIPC_TEST_UNSET" in os.environ,
            "path": sys.path[0],
            "level": logging.getLogger().level,
        }

    def threads(self) -> set[int]:
        import threadpoolctl

        return {library["num_threads"] for library in threadpoolctl.threadpool_info()}

    def draw(self) -> tuple[float, float, bytes]:
        return random.random(), float(np.random.random()), os.urandom(8)

    def say(self, text: str) -> None:
        print(text, flush=True)

    def signals(self) -> list[bool]:
        numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGTTOU, signal.SIGTTIN, signal.SIGTSTP, signal.SIGCHLD)
        return [signal.getsignal(number) == signal.SIG_DFL for number in numbers]


def zygote() -> psutil.Process:
    pid = launcher.launcher().zygote_pid()
    assert pid is not None
    return psutil.Process(pid)


def children() -> list[tuple[psutil.Process, str]]:
    """Of the zygote, with their names."""
    found: list[tuple[psutil.Process, str]] = []
    if launcher.launcher().zygote_pid() is None:
        return found
    for child in zygote().children():
        try:
            found.append((child, child.name()))
        except psutil.NoSuchProcess:
            pass
    return found


def spares() -> list[psutil.Process]:
    return [child for child, name in children() if name == "shm:spare"]


@pytest.fixture
def spare(system: shmipc.System, eventually: Callable[..., None]) -> Callable[[], psutil.Process]:
    """`spare()`: the spare child, after a start when there is none."""

    def wait() -> psutil.Process:
        if not spares():
            system.spawn(Worker)
        eventually(lambda: len(spares()) == 1 and spares()[0].status() == psutil.STATUS_SLEEPING)
        return spares()[0]

    return wait


@pytest.fixture
def restored() -> Iterator[None]:
    """What the test changes of this process is as before afterwards."""
    cwd, mask, level, path = os.getcwd(), os.umask(0o077), logging.getLogger().level, list(sys.path)
    os.umask(mask)
    os.environ["SHMIPC_TEST_UNSET"] = "1"
    yield
    os.chdir(cwd)
    os.umask(mask)
    logging.getLogger().setLevel(level)
    sys.path[:] = path
    for name in ("SHMIPC_TEST_SET", "SHMIPC_TEST_UNSET"):
        os.environ.pop(name, None)


@pytest.mark.usefixtures("restored")
def test_spare_child_is_the_next_worker_and_inherits_what_is_at_its_start(
    system: shmipc.System, spare: Callable[[], psutil.Process], tmp_path: Path
) -> None:
    waiting = spare()
    assert os.getpgid(waiting.pid) == zygote().pid
    os.chdir(tmp_path)
    os.umask(0o027)
    os.environ["SHMIPC_TEST_SET"] = "since the spare was forked"
    del os.environ["SHMIPC_TEST_UNSET"]
    sys.path.insert(0, "/since/the/spare")
    logging.getLogger().setLevel(17)
    out, kept = os.open(tmp_path / "out", os.O_RDWR | os.O_CREAT, 0o600), os.dup(1)
    os.dup2(out, 1)
    try:
        worker: Any = system.spawn(Worker)
        other: Any = system.options(env={"SHMIPC_TEST_SET": "this one's"}).spawn(Worker)
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(out)
    assert worker.pid() == waiting.pid == shmipc.process(worker).pid
    assert worker.surroundings() == {
        "cwd": str(tmp_path),
        "umask": 0o027,
        "set": "since the spare was forked",
        "unset": False,
        "path": "/since/the/spare",
        "level": 17,
    }
    assert other.surroundings()["set"] == "this one's"
    assert worker.group() == (launcher.job() or worker.pid())
    assert all(worker.signals())
    worker.say("to the stdout of its start")
    assert (tmp_path / "out").read_text() == "to the stdout of its start\n"


def test_workers_draw_their_own_random_numbers(system: shmipc.System, spare: Callable[[], psutil.Process]) -> None:
    drawn = [system.spawn(Worker).draw()]
    for _ in range(3):
        spare()
        drawn.append(system.spawn(Worker).draw())
    drawn.append(system.options(env={"OMP_NUM_THREADS": "1"}).spawn(Worker).draw())
    for kind in range(3):
        assert len({draw[kind] for draw in drawn}) == len(drawn)


def test_spare_child_has_the_threads_that_its_start_asks_for(
    system: shmipc.System, spare: Callable[[], psutil.Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not Worker().threads():
        pytest.skip("this numpy has no library whose threads can be limited")
    for wanted in (3, 1, 2):  # the spare guesses at what the one before it had
        spare()
        monkeypatch.setattr(launcher, "blas_threads", lambda *_, wanted=wanted: wanted)
        assert system.spawn(Worker).threads() == {wanted}


@pytest.mark.race
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_start_does_not_depend_on_the_spare_child(
    system: shmipc.System, spare: Callable[[], psutil.Process], eventually: Callable[..., None], number: int
) -> None:
    waiting = spare()
    waiting.send_signal(number)
    ended = {psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE}
    eventually(lambda: waiting.status() in ended)
    worker: Any = system.spawn(Worker)
    assert worker.pid() != waiting.pid
    assert not waiting.is_running()
    assert spare().pid != waiting.pid


@pytest.mark.race
@pytest.mark.parametrize("stopped", [False, True])
def test_spare_child_ends_with_its_zygote(
    spare: Callable[[], psutil.Process], eventually: Callable[..., None], stopped: bool
) -> None:
    waiting = spare()
    if stopped:
        waiting.send_signal(signal.SIGSTOP)
        eventually(lambda: waiting.status() == psutil.STATUS_STOPPED)
    zygote().kill()
    eventually(lambda: not lives(waiting.pid))


def test_spare_child_goes_when_nobody_starts_anything(
    system: shmipc.System, spare: Callable[[], psutil.Process], eventually: Callable[..., None]
) -> None:
    worker: Any = system.spawn(Worker)
    waiting = spare()
    eventually(lambda: not lives(waiting.pid), 30.0)
    eventually(lambda: [name for _, name in children() if name != "shm:Worker"] == [])
    assert worker.pid() > 0
    assert system.spawn(Worker).pid() != waiting.pid


@pytest.mark.row("M7")
@pytest.mark.race
def test_worker_of_a_zygote_that_died_before_it_answered_is_the_one_that_is_shown(
    system: shmipc.System, monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., None]
) -> None:
    """The creator asks again, and a second process is started for the same place."""
    system.spawn(Worker)
    answered: list[int] = []
    receive = launcher.receive_answer

    def receive_and_lose(connection: Any) -> tuple[int, int]:
        pid, pidfd = receive(connection)
        answered.append(pid)
        if len(answered) == 1:
            os.close(pidfd)
            zygote().kill()
            raise EOFError
        return pid, pidfd

    monkeypatch.setattr(launcher, "receive_answer", receive_and_lose)
    worker: Any = system.spawn(Worker)
    process = shmipc.process(worker)
    assert len(answered) == 2
    assert worker.pid() == process.pid
    assert process.pid in answered
    assert process.is_alive()
    eventually(lambda: sum(lives(pid) for pid in answered) == 1)
    process.kill()
    assert process.join(10)
    eventually(lambda: not any(lives(pid) for pid in answered))


@pytest.mark.race
def test_start_timeout_holds_while_the_zygote_is_stopped(
    system: shmipc.System, eventually: Callable[..., None]
) -> None:
    system.spawn(Worker)
    stopped = zygote()
    stopped.send_signal(signal.SIGSTOP)
    try:
        eventually(lambda: stopped.status() == psutil.STATUS_STOPPED)
        started = time.monotonic()
        with pytest.raises(shmipc.Timeout):
            system.options(start_timeout=0.3, name="late").spawn(Worker)
        assert 0.3 <= time.monotonic() - started < 3
    finally:
        stopped.send_signal(signal.SIGCONT)
    worker: Any = system.options(name="late").spawn(Worker)  # the name is free, and answers are not mixed up
    assert worker.pid() == shmipc.process(worker).pid
    eventually(lambda: len(system._membership.member.members()) == 3)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_cause_of_death_is_known_though_the_zygote_is_stopped(
    system: shmipc.System, eventually: Callable[..., None], number: signal.Signals
) -> None:
    first, second = (system.spawn(Worker) for _ in range(2))
    shmipc.process(first).stop()
    stopped = zygote()
    ignored = f"/proc/{stopped.pid}/status"
    try:
        eventually(lambda: has_ignored(Path(ignored), signal.SIGCHLD), timeout=2.0)
    except AssertionError:
        pytest.skip("the kernel does not tell a wait status through a pidfd (Linux 6.15)")
    stopped.send_signal(signal.SIGSTOP)
    try:
        eventually(lambda: stopped.status() == psutil.STATUS_STOPPED)
        os.kill(shmipc.process(second).pid, number)
        with pytest.raises(shmipc.PeerDead) as caught:
            second.pid.call(timeout=10)
    finally:
        stopped.send_signal(signal.SIGCONT)
    assert (caught.value.reason, caught.value.signal) == ("signal", number)
    eventually(lambda: shmipc.process(second).exitcode == -number)


def has_ignored(status: Path, number: int) -> bool:
    mask = next(line for line in status.read_text().splitlines() if line.startswith("SigIgn:"))
    return bool(int(mask.split()[1], 16) >> (number - 1) & 1)


MANY = """
    import resource
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    class Worker:
        def files(self):
            return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    with shmipc.System() as system:
        refs = [system.spawn(Worker) for _ in range(int(sys.argv[2]))]
        fresh = system.options(env={"OMP_NUM_THREADS": "1"}).spawn(Worker)
        say([ref.files() for ref in [*refs, fresh]])
    """


def test_zygote_has_descriptors_for_more_children_than_its_creator_could_hold(tmp_path: Path) -> None:
    with Program(tmp_path, MANY, 160, 60) as root:
        assert root.hear() == [160] * 61
        assert root.process.wait(60.0) == 0


def test_heap_that_is_filled_has_no_free_places_left() -> None:
    text = "from shmipc import _native; print(_native.fill_heap(), _native.fill_heap())"
    first, second = map(int, subprocess.check_output([sys.executable, "-c", text]).split())
    assert 0 < first <= 8 << 20
    assert second < first // 2  # what it has freed itself lies behind all others
