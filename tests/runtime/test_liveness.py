"""Pids, locks and descriptors lie; who lives and who does not is still told right."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import shmipc
from shmipc.memory import segments
from tests.programs import Program, lives

WATCH_SECONDS = 3.0  # longer than two looks at a lock in another namespace, and than three rounds of a keeper
LIMIT = 30.0


def namespace_command() -> list[str]:
    """What starts a program in a pid namespace of its own, as root there."""
    if shutil.which("unshare") is None:
        pytest.skip("no unshare(1) on this machine")
    command = ["unshare", *([] if os.getuid() == 0 else ["-Ur"]), "--pid", "--fork", "--kill-child", "--mount-proc"]
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine allows no pid namespaces")
    return command


def members(system: shmipc.System) -> list[dict[str, Any]]:
    return list(system._membership.member.members())


def watch(condition: Callable[[], object]) -> None:
    """The condition holds for a stated time."""
    until = time.monotonic() + WATCH_SECONDS
    while time.monotonic() < until:
        assert condition()
        threading.Event().wait(0.1)


# --- pids ------------------------------------------------------------------------------------------------------

REUSED = """
    import subprocess

    def reuse(pid):
        for _ in range(1000):
            with open("/proc/sys/kernel/ns_last_pid", "w") as file:
                file.write(str(pid - 1))
            child = os.fork()
            if child == 0:
                while True:
                    signal.pause()
            if child == pid:
                return
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        say("pid was not free")
        sys.exit(3)

    def outcome(act):
        try:
            act()
            return "done"
        except Exception as error:
            return type(error).__name__

    MEMBER = "import os, shmipc, signal; s = shmipc.System{0}; print(os.getpid(), flush=True); signal.pause()"

    def start(how):
        process = subprocess.Popen([sys.executable, "-c", MEMBER.format(how)], stdout=subprocess.PIPE, text=True)
        assert int(process.stdout.readline()) == process.pid
        return process

    def kill(process):
        process.kill()
        process.wait()
        process.stdout.close()
        return process.pid

    open("/proc/sys/kernel/ns_last_pid", "w").close()
    # A system whose only process was killed, and whose pid somebody else has now.
    for name, life in (("first", True), ("second", False)):
        pid = kill(start(f"({name!r})"))
        if not life:
            from shmipc.memory import segments
            segments.Paths.of(name).life.unlink()
        reuse(pid)
        attached = outcome(lambda: shmipc.System.attach(name))
        say({"attach": attached, "alive": outcome(lambda: os.kill(pid, 0))})
        shmipc.System(name).shutdown()
    # A member that is killed while the others are stopped, and whose pid somebody else has when they go on.
    system = shmipc.System("third")
    member = start(".attach('third')")
    keeper = start(".attach('third')")
    count = lambda: sum(entry["kind_name"] == "attached" for entry in system._membership.member.members())
    before = count()
    box = shmipc.Mailbox.create("held")
    keeper.send_signal(signal.SIGSTOP)
    pid = kill(member)
    reuse(pid)
    keeper.send_signal(signal.SIGCONT)
    deadline = time.monotonic() + 20
    while count() != before - 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    say({"before": before, "after": count(), "alive": outcome(lambda: os.kill(pid, 0))})
    kill(keeper)
    system.shutdown()
    say("done")
    """


@pytest.mark.row("M9")
@pytest.mark.race
@pytest.mark.allows_rescue
def test_reused_pid_is_not_taken_for_the_dead_one(tmp_path: Path) -> None:
    with Program(tmp_path, REUSED, prefix=namespace_command()) as program:
        for _ in range(2):
            told = program.hear()
            assert told["alive"] == "done", "somebody has the pid"
            assert told["attach"] == "NotFound"
        told = program.hear()
        assert told == {"before": 2, "after": 1, "alive": "done"}
        assert program.hear() == "done"


ELSEWHERE = """
    system = shmipc.System.attach(sys.argv[1])
    box, back = shmipc.Mailbox.open("there"), shmipc.Mailbox.open("back")
    say({"pid": os.getpid(), "ppid": os.getppid()})
    while True:
        message = box.receive()
        if message == "work":
            ref = system.options(name="there-too").spawn(dict)
            back.send((shmipc.process(ref).is_alive(), shmipc.process(ref).pid))
        else:
            back.send(message)
    """


@pytest.mark.row("M9")
@pytest.mark.race
@pytest.mark.allows_rescue
def test_member_in_another_pid_namespace_lives_until_it_has_ended(
    tmp_path: Path, system: shmipc.System, eventually: Callable[..., None]
) -> None:
    command = namespace_command()
    there, back = shmipc.Mailbox.create("there"), shmipc.Mailbox.create("back")
    with Program(tmp_path, ELSEWHERE, system.name, prefix=command) as program:
        told = program.hear()
        assert told["ppid"] == 0, "it sees nobody outside"

        def answers() -> bool:
            there.send("you")
            return bool(back.receive(timeout=LIMIT) == "you")

        watch(lambda: answers() and len(members(system)) == 2)
        there.send("work")  # its zygote and worker live there-too
        alive, pid = back.receive(timeout=2 * LIMIT)
        assert alive
        assert len(members(system)) == 3
        watch(lambda: answers() and len(members(system)) == 3)
        worker = shmipc.process(system.lookup("there-too"))
        assert worker.pid == pid, "its number there: a stranger's here"
        assert worker.is_alive()
        with pytest.raises(shmipc.NotSupported):
            worker.kill()
        with pytest.raises(shmipc.NotSupported):
            _ = worker.sentinel
        program.kill()  # unshare takes its child with it
        eventually(lambda: len(members(system)) == 1, LIMIT)
    assert system.statistics().members == 1


# --- descriptors -----------------------------------------------------------------------------------------------


class Careless:
    """Closes every descriptor it has, as daemons do, and opens its own in their place."""

    def close_all(self) -> int:
        os.closerange(3, 4096)
        self.pipes = [os.pipe() for _ in range(40)]
        for _, write in self.pipes:
            os.write(write, b"12345678")
        self.file = os.open("/proc/self/status", os.O_RDONLY)
        return os.getpid()

    def untouched(self) -> bool:
        """Nobody has read or written what was opened in the place of others."""
        return all(
            os.read(read, 100) == b"12345678" and not os.write(write, b"12345678") - 8 for read, write in self.pipes
        )

    def cpu(self) -> float:
        used = resource.getrusage(resource.RUSAGE_SELF)
        return used.ru_utime + used.ru_stime

    def echo(self, value: Any) -> Any:
        return value

    def make(self, count: int) -> Any:
        return shmipc.zeros(count)


@pytest.mark.row("M9")
@pytest.mark.race
@pytest.mark.allows_rescue
def test_actor_that_closed_all_descriptors_lives_and_its_death_is_seen(
    system: shmipc.System, eventually: Callable[..., None]
) -> None:
    careless: Any = system.spawn(Careless)
    pid = careless.close_all()
    before = careless.cpu()
    started = time.monotonic()
    watch(lambda: careless.echo(1) == 1 and shmipc.process(careless).is_alive() and lives(pid))
    assert careless.untouched()
    assert careless.cpu() - before < 0.5 * (time.monotonic() - started), "nothing polls what is closed"
    assert careless.make(1 << 20).sum() == 0  # memory is still reserved before it is used
    assert len(members(system)) == 2
    monitor = shmipc.monitor(careless)
    os.kill(pid, signal.SIGKILL)
    notice = shmipc.receive(kind=shmipc.Kind.EXIT, timeout=LIMIT).body
    assert (notice.monitor, notice.signal) == (monitor.id, signal.SIGKILL)
    with pytest.raises(shmipc.PeerDead):
        careless.echo(1)


class Closer:
    """Closes every descriptor it has."""

    def close_all(self) -> None:
        os.closerange(3, 4096)


@pytest.mark.row("M9")
@pytest.mark.race
@pytest.mark.allows_rescue
def test_actor_that_closed_all_descriptors_ends_in_order_and_says_nothing(
    system: shmipc.System, capfd: pytest.CaptureFixture[str]
) -> None:
    closer: Any = system.spawn(Closer)
    closer.close_all()
    assert shmipc.process(closer).stop(LIMIT)
    assert shmipc.process(closer).exitcode == 0
    assert capfd.readouterr().err == ""


CARELESS_ROOT = """
    import tests.runtime.test_liveness as t
    system = shmipc.System()
    careless = system.spawn(t.Careless)
    say(careless.close_all())
    hear()
    """


@pytest.mark.row("M9", "M7")
@pytest.mark.race
def test_worker_that_closed_all_descriptors_still_dies_with_its_root(
    tmp_path: Path, eventually: Callable[..., None]
) -> None:
    with Program(
        tmp_path, CARELESS_ROOT, env={"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    ) as root:
        pid = root.hear()
        zygote = next(process for process in root.family() if process.pid != pid and process.ppid() == root.pid)
        zygote.kill()  # so that nobody else does it
        root.kill()
        eventually(lambda: not lives(pid))
    eventually(segments.sweep)  # nobody was left to do it; a zombie's other threads may still be ending


CARELESS_MEMBER = """
    system = shmipc.System.attach(sys.argv[1])
    box, back = shmipc.Mailbox.open("there"), shmipc.Mailbox.open("back")
    os.closerange(3, 4096)
    files = [os.open(sys.argv[2], os.O_RDWR) for _ in range(40)]
    say(os.getpid())
    while (message := box.receive()) != "leave":
        back.send(message)
    system.shutdown()
    for file in files:
        os.fstat(file)  # nobody has closed it
    say("left")
    """


@pytest.mark.row("M9")
@pytest.mark.race
@pytest.mark.allows_rescue
def test_program_that_closed_all_descriptors_stays_a_member_until_it_leaves(
    tmp_path: Path, system: shmipc.System, eventually: Callable[..., None]
) -> None:
    there, back = shmipc.Mailbox.create("there"), shmipc.Mailbox.create("back")
    file = tmp_path / "of the program"
    file.write_bytes(b"untouched")
    with Program(tmp_path, CARELESS_MEMBER, system.name, file) as program:
        pid = program.hear()

        def answers() -> bool:
            there.send("you")
            return bool(back.receive(timeout=LIMIT) == "you")

        watch(lambda: answers() and lives(pid) and len(members(system)) == 2)
        there.send("leave")
        assert program.hear() == "left"
        assert program.process.wait(LIMIT) == 0
        eventually(lambda: len(members(system)) == 1, LIMIT)
    assert file.read_bytes() == b"untouched"


CARELESS_CREATOR = """
    import tests.runtime.test_liveness as t
    system = shmipc.System()
    pool = system.pool(1)
    pool.submit(int).result()
    actor = system.spawn(t.Careless)
    process = shmipc.process(actor)
    os.closerange(3, 4096)
    files = [os.open(f"{sys.argv[1]}/{number}", os.O_RDWR | os.O_CREAT) for number in range(60)]
    for file in files:
        os.write(file, b"hello")

    def is_untouched(number, file):
        try:
            mine, named = os.fstat(file), os.stat(f"{sys.argv[1]}/{number}")
        except OSError:
            return False
        with open(f"{sys.argv[1]}/{number}", "rb") as found:
            return os.path.samestat(mine, named) and found.read() == b"hello"

    def after(step):
        say([step, [file for number, file in enumerate(files) if not is_untouched(number, file)]])

    after("closing")
    assert actor.echo(1) == 1 and process.is_alive()
    assert pool.submit(int).result() == 0
    after("calls")
    other = system.spawn(t.Careless)
    assert other.echo(2) == 2
    after("spawn")
    worker = pool.refs[0]
    os.kill(shmipc.process(worker).pid, signal.SIGKILL)
    shmipc.process(worker).join()
    while pool.refs[0] == worker:
        time.sleep(0.01)
    assert pool.submit(int).result() == 0
    after("a worker's replacement")
    assert process.stop()
    assert process.exitcode == 0
    del process, actor
    after("stop")
    pool.shutdown()
    after("the pool's end")
    system.shutdown()
    after("shutdown")
    """


@pytest.mark.row("M9")
@pytest.mark.race
@pytest.mark.timeout(120)
def test_creator_that_closed_all_descriptors_goes_on_and_its_files_are_left_alone(tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    path = {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    with Program(tmp_path, CARELESS_CREATOR, files, env=path) as root:
        for step in ("closing", "calls", "spawn", "a worker's replacement", "stop", "the pool's end", "shutdown"):
            assert root.hear() == [step, []]
        assert root.process.wait(2 * LIMIT) == 0
    assert {file.read_bytes() for file in files.iterdir()} == {b"hello"}


EXECUTES = """
    system = shmipc.System.attach(sys.argv[1])
    array = shmipc.zeros(1 << 16)
    shmipc.Mailbox.open("there").send(array)
    say(os.getpid())
    hear()
    os.execv("/bin/sleep", ["sleep", "600"])
    """


@pytest.mark.row("M9")
@pytest.mark.race
@pytest.mark.allows_rescue
def test_program_that_executes_another_without_an_exit_has_ended(
    tmp_path: Path, system: shmipc.System, eventually: Callable[..., None]
) -> None:
    there = shmipc.Mailbox.create("there")
    with Program(tmp_path, EXECUTES, system.name) as program:
        pid = program.hear()
        assert len(members(system)) == 2
        program.tell("execute")
        eventually(lambda: len(members(system)) == 1, LIMIT)
        assert lives(pid), "its process goes on as another program"
        assert there.receive(timeout=0).sum() == 0
