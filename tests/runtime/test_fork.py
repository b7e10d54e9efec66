"""Forks in user code: the child's inherited handles refuse to work, and the parent does not notice.

What becomes of the arrays that a child inherits is in tests/memory/test_fork.py.
"""

import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
import pytest

import shmipc
from shmipc import Mailbox
from tests.actors import Actor, Echo, Gate, usage


class Handles:
    """One of everything that a process may hold of a system."""

    def __init__(self, system: shmipc.System) -> None:
        self.system = system
        self.echo: Any = system.spawn(Echo)
        self.method = self.echo.echo
        assert self.method(1) == 1
        self.mailbox = Mailbox.create("shared", slots=8)
        self.mailbox.send("waiting")
        self.header = self.mailbox.header
        self.pool = system.pool(1)
        assert self.pool.submit(abs, -1).result(10) == 1
        self.process = shmipc.process(self.echo)
        self.gate: Any = system.spawn(Gate)
        self.shutting = self.gate.shut.submit()
        self.future = self.gate.pid.submit()
        self.monitor = shmipc.monitor(self.gate)
        self.array = shmipc.share(np.arange(1000))
        self.me = shmipc.self()
        shmipc.send(self.me, "to the root")
        self.unopened: Any = pickle.loads(pickle.dumps(self.echo))

    def uses(self) -> dict[str, Callable[[], object]]:
        return {
            "system.spawn": lambda: self.system.spawn(Echo),
            "system.pool": lambda: self.system.pool(1),
            "system.statistics": lambda: self.system.statistics(),
            "system.processes": lambda: self.system.processes(),
            "system.lookup": lambda: self.system.lookup("absent"),
            "system.serve": lambda: self.system.serve("name", self.echo),
            "system.withdraw": lambda: self.system.withdraw("shared"),
            "system.shutdown": lambda: self.system.shutdown(),
            "System.current": lambda: shmipc.System.current().statistics(),
            "ref.m": lambda: self.echo.echo(1),
            "ref.m, kept": lambda: self.method(1),
            "ref.m, new": lambda: self.echo.pid(),
            "ref.m.call": lambda: self.echo.echo.call(1, timeout=10),
            "ref.m.cast": lambda: self.echo.echo.cast(1),
            "ref.m.submit": lambda: self.echo.echo.submit(1),
            "ref.m, unopened": lambda: self.unopened.echo(1),
            "send": lambda: shmipc.send(self.echo, 1),
            "send to self": lambda: shmipc.send(self.me, 1),
            "send to a mailbox": lambda: shmipc.send(self.mailbox, 1),
            "call": lambda: shmipc.call(self.echo, 1, timeout=10),
            "receive": lambda: shmipc.receive(timeout=0),
            "pending": lambda: shmipc.pending(),
            "self": lambda: shmipc.self(),
            "monitor": lambda: shmipc.monitor(self.echo),
            "monitor.cancel": lambda: self.monitor.cancel(),
            "mailbox.send": lambda: self.mailbox.send(1),
            "mailbox.send_nowait": lambda: self.mailbox.send_nowait(1),
            "mailbox.send_many": lambda: self.mailbox.send_many([1]),
            "mailbox.receive": lambda: self.mailbox.receive(timeout=0),
            "mailbox.receive_nowait": lambda: self.mailbox.receive_nowait(),
            "mailbox.receive_many": lambda: self.mailbox.receive_many(timeout=0),
            "mailbox.receive_message": lambda: self.mailbox.receive_message(timeout=0),
            "mailbox.count": lambda: self.mailbox.count(),
            "mailbox.header": lambda: self.mailbox.header,
            "mailbox.slots": lambda: self.mailbox.slots,
            "mailbox.name": lambda: self.mailbox.name,
            "mailbox.unlink": lambda: self.mailbox.unlink(),
            "Mailbox.create": lambda: Mailbox.create(),
            "Mailbox.open": lambda: Mailbox.open("shared"),
            "pool.submit": lambda: self.pool.submit(abs, 1),
            "pool.map": lambda: list(self.pool.map(abs, [1])),
            "pool.shutdown": lambda: self.pool.shutdown(),
            "process": lambda: shmipc.process(self.gate),
            "process.is_alive": lambda: self.process.is_alive(),
            "process.exitcode": lambda: self.process.exitcode,
            "process.join": lambda: self.process.join(10),
            "process.stop": lambda: self.process.stop(),
            "process.kill": lambda: self.process.kill(),
            "future.result": lambda: self.future.result(10),
            "future.cancel": lambda: self.future.cancel(),
            "empty": lambda: shmipc.empty(10),
            "share": lambda: shmipc.share(np.arange(3)),
        }

    def harmless(self) -> None:
        """What a child may do with what it inherited, and what happens to it anyhow."""
        repr(self.system), repr(self.echo), repr(self.mailbox), repr(self.process), repr(self.pool)
        hash(self.echo), self.echo == self.unopened, self.mailbox.capacity, self.future.done()
        self.mailbox.close()
        self.mailbox.close()
        assert self.array[999] == 999
        del self.mailbox, self.header, self.array, self.method, self.future, self.shutting, self.monitor
        del self.echo, self.gate, self.pool, self.process, self.unopened

    def check(self) -> None:
        """In the parent: everything is as it was, and works."""
        assert self.mailbox.count() == 1
        assert self.mailbox.receive(timeout=0) == "waiting"
        assert self.header["tail"] == 1
        assert self.echo.echo(2) == 2
        assert self.method(3) == 3
        assert self.process.is_alive()
        assert self.pool.submit(abs, -4).result(10) == 4
        assert shmipc.pending() == 1
        assert shmipc.receive(timeout=0).body == "to the root"
        shmipc.send(self.gate, "go on", tag=1)
        assert self.shutting.result(10) is None
        assert self.future.result(10) == shmipc.process(self.gate).pid
        assert self.array.sum() == 499_500
        assert Mailbox.open("shared").count() == 0
        fresh: Any = self.system.spawn(Echo)
        assert fresh.echo(self.array)[5] == 5
        shmipc.process(self.gate).kill()
        notice = shmipc.receive(timeout=10)
        assert notice.body.ref == self.gate

    def close(self) -> None:
        """Before its descriptors are counted."""
        self.pool.shutdown()
        vars(self).clear()


def complain(handles: Handles) -> list[str]:
    """In the child: each use that does not raise ForkedHandle."""
    wrong = []
    for name, use in handles.uses().items():
        try:
            value = use()
        except shmipc.ForkedHandle:
            continue
        except BaseException as error:
            wrong.append(f"{name} raised {error!r}")
        else:
            wrong.append(f"{name} returned {value!r}")
    try:
        handles.harmless()
    except BaseException:
        wrong.append(traceback.format_exc())
    return wrong


def in_child(act: Callable[[], list[str]], leave: Callable[[], object] = lambda: os._exit(0)) -> list[str]:
    """Run it in a forked child; its complaints. `leave` ends the child."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(reader)
            with open(writer, "wb") as pipe:
                pickle.dump(act(), pipe)
            leave()
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    with open(reader, "rb") as pipe:
        text = pipe.read()
    assert os.waitpid(pid, 0)[1] == 0
    found: list[str] = pickle.loads(text)
    return found


@pytest.mark.row("M11")
def test_child_of_os_fork_gets_forked_handle_and_the_parent_is_unharmed(
    system: shmipc.System, eventually: Callable[..., None]
) -> None:
    handles = Handles(system)
    before = usage(system)
    assert in_child(lambda: complain(handles)) == []
    eventually(lambda: usage(system) == before)  # the child's place in the member table is free again
    handles.check()
    handles.close()


@pytest.mark.row("M11")
def test_child_of_multiprocessing_fork_gets_forked_handle_and_the_parent_is_unharmed(
    system: shmipc.System, eventually: Callable[..., None]
) -> None:
    handles = Handles(system)
    before = usage(system)
    context = multiprocessing.get_context("fork")
    near, far = context.Pipe()
    child = context.Process(target=lambda: far.send(complain(handles)))
    child.start()
    assert near.poll(60)
    assert near.recv() == []
    child.join(10)
    assert child.exitcode == 0
    child.close()
    near.close()
    far.close()
    eventually(lambda: usage(system) == before)
    handles.check()
    handles.close()


PROGRAM = """
import os, sys, time
import shmipc
from tests.runtime.test_fork import Handles, usage

system = shmipc.System()
handles = Handles(system)
before = usage(system)
pid = os.fork()
if pid == 0:
    {child}
    sys.exit(0)
assert os.waitpid(pid, 0)[1] == 0
deadline = time.monotonic() + 10
while usage(system) != before and time.monotonic() < deadline:
    pass
assert usage(system) == before
handles.check()
system.shutdown()
print("unharmed")
"""
ENDS = {
    "with all its handles": "pass",
    "after dropping them": "handles.harmless(); handles.__dict__.clear(); del handles, system",
    "in the midst of with blocks": """with system, handles.pool, handles.mailbox:
        sys.exit(0)""",
    "behind with blocks": """with system, handles.pool, handles.mailbox:
        pass""",
    "after a shutdown it was refused": "\n    try: system.shutdown()\n    except shmipc.ForkedHandle: pass",
}


@pytest.mark.row("M11")
@pytest.mark.parametrize("end", ENDS)
def test_child_that_ends_as_programs_do_leaves_the_system_alone(end: str) -> None:
    """Its atexit functions and finalisers run, as those of the parent will."""
    done = run(PROGRAM.format(child=ENDS[end]))
    assert (done.returncode, done.stdout) == (0, "unharmed\n"), done.stderr
    assert done.stderr == ""


def run(program: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)


class Forker(Actor):
    """An actor whose own code forks."""

    def __init__(self, mailbox: Mailbox) -> None:
        self.mailbox = mailbox

    def fork_child(self, how: str) -> list[str]:
        uses: dict[str, Callable[[], object]] = {
            "receive": lambda: shmipc.receive(timeout=0),
            "self": lambda: shmipc.self(),
            "send": lambda: shmipc.send(self.mailbox, "from the child"),
            "mailbox": lambda: self.mailbox.receive(timeout=0),
            "current": lambda: shmipc.System.current().statistics(),
            "spawn": lambda: shmipc.System.current().spawn(Echo),
            "empty": lambda: shmipc.empty(3),
        }

        def complain() -> list[str]:
            return [f"{name}: {found}" for name, use in uses.items() if (found := name_of_error(use)) != "ForkedHandle"]

        if how == "os.fork":
            return in_child(complain)
        context = multiprocessing.get_context("fork")
        near, far = context.Pipe()
        child = context.Process(target=lambda: far.send(complain()))
        child.start()
        found: list[str] = near.recv()
        child.join()
        return found


def name_of_error(act: Callable[[], object]) -> str:
    try:
        return repr(act())
    except Exception as error:
        return type(error).__name__


@pytest.mark.row("M11")
@pytest.mark.parametrize("how", ["os.fork", "multiprocessing"])
def test_child_of_an_actor_gets_forked_handle_and_the_actor_goes_on(system: shmipc.System, how: str) -> None:
    mailbox = Mailbox.create(slots=4)
    forker: Any = system.spawn(Forker, mailbox)
    mailbox.send("waiting")
    for _ in range(3):
        assert forker.fork_child.call(how, timeout=60) == []
        assert forker.pid() == shmipc.process(forker).pid
    assert mailbox.receive(timeout=0) == "waiting"
    assert mailbox.count() == 0


@pytest.mark.row("M11")
def test_child_may_open_a_system_of_its_own(system: shmipc.System) -> None:
    handles = Handles(system)

    def use_own() -> list[str]:
        with shmipc.System() as own:
            echo: Any = own.spawn(Echo)
            if echo.echo("own") != "own" or shmipc.System.current() is not own:
                return ["its own system does not work"]
            if name_of_error(lambda: handles.echo.echo(1)) != "ForkedHandle":
                return ["the inherited Ref works"]
        return []

    assert in_child(use_own) == []
    handles.check()
    handles.close()


@pytest.mark.race
@pytest.mark.row("M11")
def test_parent_goes_on_while_its_threads_use_the_system_and_children_come_and_go(system: shmipc.System) -> None:
    echo: Any = system.spawn(Echo)
    mailbox = Mailbox.create(slots=16)
    over, errors, counts = threading.Event(), [], [0] * 3

    def call(mine: int) -> None:
        try:
            while not over.is_set():
                assert echo.echo((mine, counts[mine])) == (mine, counts[mine])
                mailbox.send((mine, counts[mine]))
                mailbox.receive(timeout=10)
                counts[mine] += 1
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=call, args=(mine,)) for mine in range(3)]
    for thread in threads:
        thread.start()
    try:
        for number in range(30):
            wrong = in_child(
                lambda: [
                    found
                    for use in (lambda: echo.echo(1), lambda: mailbox.send(1), lambda: shmipc.pending())
                    if (found := name_of_error(use)) != "ForkedHandle"
                ]
            )
            assert wrong == [], f"child {number}"
    finally:
        over.set()
        for thread in threads:
            thread.join(20)
    assert errors == []
    assert min(counts) > 0
    assert mailbox.count() == 0


@pytest.mark.row("M11")
def test_child_that_outlives_the_parent_holds_nothing_up() -> None:
    """The parent leaves its system while a forked child still lives: no name stays."""
    reader, writer = os.pipe()
    with shmipc.System() as system:
        echo: Any = system.spawn(Echo)
        assert echo.echo(1) == 1
        name = system.name
        pid = os.fork()
        if pid == 0:
            os.close(writer)
            os.read(reader, 1)  # until the parent lets it go
            os._exit(0 if name_of_error(lambda: echo.echo(1)) == "ForkedHandle" else 1)
    os.close(reader)
    assert not any(name in entry for entry in os.listdir("/dev/shm"))
    assert psutil.pid_exists(pid)
    os.close(writer)
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.row("M11")
def test_program_that_a_child_executes_is_none_of_the_parents(system: shmipc.System) -> None:
    echo: Any = system.spawn(Echo)
    before = usage(system, echo)
    done = run(
        "import shmipc\nfrom tests.actors import Echo\n"
        "with shmipc.System() as own: print(own.spawn(Echo).echo('own'), len(own.processes()))"
    )
    assert (done.stdout, done.stderr) == ("own 1\n", "")
    assert usage(system, echo) == before
    assert echo.echo(1) == 1
