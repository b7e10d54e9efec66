"""What a blocked process does not do: use the CPU, hold the GIL, or ignore Ctrl-C."""

import os
import random
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import shmipc
from shmipc import Mailbox
from shmipc.runtime import launcher
from tests.actors import Echo, Gate, SlowStart, Waiter

# --- no busy wait ----------------------------------------------------------------------------------------------

IDLE_SECONDS = 2.0
IDLE_CPU = 0.02  # seconds of CPU in that time, at most
ENDS = {"open": "NotFound", "join": "done"}  # the others end in Timeout
WAYS = ("receive", "filtered receive", "mailbox", "filtered mailbox", "send", "call", "submit", "open", "join")


def cpu_seconds(pid: int) -> float:
    """What all threads of a process have used, by the scheduler's own account in nanoseconds."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


@pytest.mark.row("K19")
def test_blocked_and_idle_processes_use_no_cpu(system: shmipc.System) -> None:
    gate: Any = system.spawn(Gate)
    idle: Any = system.spawn(Echo)
    full, some = Mailbox.create(slots=1), Mailbox.create(slots=4)
    full.send(b"full")
    some.send(b"set aside")
    waiters: list[Any] = [system.spawn(Waiter) for _ in WAYS]
    assert [waiter.pid() for waiter in waiters] == [shmipc.process(waiter).pid for waiter in waiters]
    shutting = gate.shut.submit()
    with system.pool(2) as pool:
        assert pool.submit(abs, -1).result(10) == 1
        watched = {"class actor": idle, "function that receives": gate}
        watched |= {f"pool worker {place}": ref for place, ref in enumerate(pool.refs)}
        pids = {name: shmipc.process(ref).pid for name, ref in watched.items()}
        pids["zygote"] = launcher.launcher().zygote_pid() or 0
        futures = [
            waiter.wait.submit(way, IDLE_SECONDS, full, some, gate) for way, waiter in zip(WAYS, waiters, strict=True)
        ]
        before = {name: cpu_seconds(pid) for name, pid in pids.items()}
        own, started = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
        results = dict(zip(WAYS, [future.result(60) for future in futures], strict=True))
        elapsed, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_SELF)
        used = {name: cpu_seconds(pid) - before[name] for name, pid in pids.items()}
    used["root, which waits for results"] = after.ru_utime + after.ru_stime - own.ru_utime - own.ru_stime
    for way, (end, seconds, cpu) in results.items():
        assert end == ENDS.get(way, "Timeout"), way
        assert seconds >= IDLE_SECONDS, way
        used[f"actor blocked in {way}"] = cpu
    assert elapsed >= IDLE_SECONDS - 0.1
    busy = {name: cpu for name, cpu in used.items() if cpu >= IDLE_CPU}
    assert busy == {}
    shmipc.send(gate, "go on", tag=1)
    assert shutting.result(10) is None


# --- the GIL, and Ctrl-C ---------------------------------------------------------------------------------------


class Scene:
    """Everything that a blocking operation may block on."""

    def __init__(self, system: shmipc.System) -> None:
        self.system = system
        self.gate: Any = system.spawn(Gate)
        self.shutting = self.gate.shut.submit()
        self.full, self.some = Mailbox.create(slots=1), Mailbox.create(slots=4)
        self.full.send(b"full")
        self.some.send(b"other")
        self.pool = system.pool(1)
        self.future = self.gate.pid.submit()

    def blocking(self, timeout: float | None) -> dict[str, Callable[[], object]]:
        """Operations that last until the limit; for ever without."""
        return {
            "receive": lambda: shmipc.receive(timeout=timeout),
            "filtered receive": lambda: shmipc.receive(tag=9, timeout=timeout),
            "mailbox.receive_message": lambda: self.some.receive_message(tag=9, timeout=timeout),
            "mailbox.receive_many": lambda: Mailbox.create(slots=1).receive_many(timeout=timeout),
            "mailbox.send": lambda: self.full.send(b"more", timeout=timeout),
            "mailbox.send_many": lambda: self.full.send_many([b"more"], timeout=timeout),
            "send": lambda: shmipc.send(self.full, b"more", tag=5, timeout=timeout),
            "call": lambda: shmipc.call(self.gate, "?", timeout=timeout),
            "method": lambda: self.gate.pid.call(timeout=timeout),
            "future": lambda: self.future.result(timeout),
            "pool.map": lambda: list(self.pool.map(wait_for_ever, [1], timeout=timeout)),
            "lookup": lambda: self.system.lookup("absent", timeout=timeout),
            "open": lambda: Mailbox.open("absent", timeout=timeout),
            "join": lambda: shmipc.process(self.gate).join(timeout),
        }

    def check(self) -> None:
        """Nothing was lost, nothing was sent twice, and everything still works."""
        assert self.full.count() == 1
        assert self.full.receive(timeout=0) == b"full"
        assert self.some.count() == 1
        assert self.some.receive(timeout=0) == b"other"
        assert shmipc.pending() == 0
        shmipc.send(self.gate, "go on", tag=1)
        assert self.shutting.result(10) is None
        pid = shmipc.process(self.gate).pid
        assert self.future.result(10) == pid
        assert self.gate.pid() == pid
        shmipc.send(shmipc.self(), "to me")
        assert shmipc.receive(timeout=0).body == "to me"


def wait_for_ever(number: int) -> None:
    threading.Event().wait()


BLOCKING = (
    "receive",
    "filtered receive",
    "mailbox.receive_message",
    "mailbox.receive_many",
    "mailbox.send",
    "mailbox.send_many",
    "send",
    "call",
    "method",
    "future",
    "pool.map",
    "lookup",
    "open",
    "join",
)


@pytest.fixture
def scene(system: shmipc.System) -> Iterator[Scene]:
    made = Scene(system)
    yield made
    for ref in made.pool.refs:
        shmipc.process(ref).kill()
    made.pool.shutdown(timeout=0)
    vars(made).clear()  # its processes' descriptors, which pytest would keep


@pytest.mark.row("K22")
@pytest.mark.parametrize("way", BLOCKING)
def test_another_thread_runs_while_one_is_blocked(scene: Scene, way: str) -> None:
    counted, over = 0, threading.Event()

    def count() -> None:
        nonlocal counted
        while not over.is_set():
            counted += 1

    act = scene.blocking(0.3)[way]
    thread = threading.Thread(target=count)
    thread.start()
    started, at = time.monotonic(), counted
    try:
        if way == "join":
            assert act() is False
        else:
            with pytest.raises(shmipc.NotFound if way in ("lookup", "open") else shmipc.Timeout):
                act()
        grown = counted - at
    finally:
        over.set()
        thread.join()
    assert time.monotonic() - started >= 0.3
    assert grown > 10_000, "counting goes on while the call is blocked"
    scene.check()


def is_asleep(task: int) -> bool:
    """Does this thread of ours sleep in the kernel?"""
    return Path(f"/proc/self/task/{task}/stat").read_text().rsplit(")", 1)[1].split()[0] == "S"


class Interrupter:
    """Sends a signal to this process, as a terminal does, when its main thread has gone to sleep."""

    def __init__(self, number: int) -> None:
        self.sent = 0.0
        self.thread = threading.Thread(target=self.run, args=(number, threading.get_native_id()))
        self.thread.start()

    def run(self, number: int, task: int) -> None:
        asleep = 0
        while asleep < 20:  # not for a moment only
            asleep = asleep + 1 if is_asleep(task) else 0
            threading.Event().wait(0.005)
        self.sent = time.monotonic()
        os.kill(os.getpid(), number)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C means what it means in a program: the runner's workers ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.row("K22")
@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize(
    ("way", "timeout"),
    [*[(way, None) for way in BLOCKING], *[(way, 100.0) for way in ("receive", "mailbox.send", "call")]],
)
def test_ctrl_c_interrupts_a_blocked_call_and_leaves_everything_usable(
    scene: Scene, way: str, timeout: float | None
) -> None:
    act = scene.blocking(timeout)[way]
    interrupter = Interrupter(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        act()
    elapsed = time.monotonic() - interrupter.sent
    interrupter.thread.join()
    assert elapsed < 5
    scene.check()


@pytest.mark.row("K22")
@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_interrupts_a_spawn_and_ends_what_was_started(system: shmipc.System) -> None:
    interrupter = Interrupter(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        system.spawn(SlowStart)
    assert time.monotonic() - interrupter.sent < 10
    interrupter.thread.join()
    assert system.processes() == []
    echo: Any = system.spawn(Echo)
    assert echo.echo(1) == 1


@pytest.mark.race
@pytest.mark.allows_rescue
@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_at_any_moment_of_a_spawn_leaves_no_process_and_no_mix_up(
    system: shmipc.System, eventually: Callable[..., None]
) -> None:
    choose = random.Random(22)
    for number in range(30):
        delay = choose.uniform(0, 0.5 if number == 0 else 0.02)
        interrupter = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            interrupter.start()
            system.spawn(SlowStart)
        interrupter.join()
        echo: Any = system.spawn(Echo)
        assert echo.pid() == shmipc.process(echo).pid, "it is not the one that was interrupted"
        shmipc.process(echo).kill()
        assert shmipc.process(echo).join(10)
        eventually(lambda: len(system._membership.member.members()) == 1)
    zygote = psutil.Process(launcher.launcher().zygote_pid())
    eventually(lambda: zygote.children() == [], 30.0)  # a spare child stays for ten seconds


@pytest.mark.row("K22")
def test_signal_handler_that_returns_does_not_end_a_wait_early(system: shmipc.System) -> None:
    mailbox = Mailbox.create(slots=4)
    handled: list[float] = []

    def handle(number: int, frame: object) -> None:
        handled.append(time.monotonic())
        if len(handled) == 2:
            mailbox.send("from the handler")  # uses the system in the midst of a wait of the same thread

    before = signal.signal(signal.SIGUSR2, handle)
    try:
        interrupter = Interrupter(signal.SIGUSR2)
        started = time.monotonic()
        with pytest.raises(shmipc.Timeout):
            mailbox.receive(timeout=0.5)
        assert time.monotonic() - started >= 0.5
        interrupter.thread.join()
        assert len(handled) == 1
        assert handled[0] - started < 0.5, "it ran while the wait went on"
        interrupter = Interrupter(signal.SIGUSR2)
        assert mailbox.receive(timeout=100) == "from the handler"
        interrupter.thread.join()
        assert len(handled) == 2
    finally:
        signal.signal(signal.SIGUSR2, before)
