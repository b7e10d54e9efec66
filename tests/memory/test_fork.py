"""Arrays held by a process that user code forks: the child keeps its data, and gives back nothing of its parent's."""

import gc
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import shmipc
from shmipc import _native
from tests.actors import Actor
from tests.memory.holders import Census, Holder, checksum, pattern, place_is_reused
from tests.programs import Program

NBYTES = 100_000


class Forker(Holder):
    """A holder that forks; its children answer at a socket, see `Child`."""

    def make(self, key: str, seed: int) -> tuple[tuple[int, int] | None, int]:
        self.kept[key] = pattern(NBYTES, seed=seed)
        return _native.shared_block(self.kept[key]), checksum(self.kept[key])

    def fork(self, path: str) -> int:
        pid = os.fork()
        if pid == 0:
            try:
                be_child(path, self.kept)
            finally:
                os._exit(1)
        return pid

    def reuses(self, place: tuple[int, int]) -> bool:
        return place_is_reused(place, NBYTES)

    def wait_for(self, pid: int) -> int:
        return os.waitpid(pid, 0)[1]

    def end(self, how: str) -> None:
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        elif how == "exits":
            os._exit(0)
        raise SystemExit(0)


def be_child(path: str, kept: dict[str, np.ndarray]) -> None:
    """In the forked child: do what the test says, line by line."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        with connection.makefile("rw") as lines:
            for line in lines:
                word, _, key = line.strip().partition(" ")
                answer: Any = "done"
                if word == "checksum":
                    answer = checksum(kept[key])
                elif word == "drop":
                    del kept[key]
                    gc.collect()
                elif word == "exec":
                    os.execv(sys.executable, [sys.executable, "-c", "import sys; sys.stdin.read()"])
                elif word == "exit":
                    os._exit(0)
                lines.write(f"{answer}\n")
                lines.flush()


class Child:
    """The test's side of a forked child."""

    def __init__(self, server: socket.socket, pid: int) -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        server.settimeout(30.0)
        self.connection, _ = server.accept()
        self.connection.settimeout(30.0)
        self.lines = self.connection.makefile("rw")

    def say(self, line: str) -> str:
        self.lines.write(line + "\n")
        self.lines.flush()
        return self.lines.readline().strip()

    def checksum(self, key: str) -> int:
        return int(self.say(f"checksum {key}"))

    def close(self) -> None:
        try:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass
        os.close(self.pidfd)
        self.lines.close()
        self.connection.close()


class Scene:
    """A forker that holds an array of its own and one that it was sent, its child, and the census before both."""

    def __init__(self, system: shmipc.System, folder: Path) -> None:
        self.system = system
        self.forker: Any = system.spawn(Forker)
        self.other: Any = system.spawn(Forker)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(folder / "child"))
            server.listen()
            self.other.trim()
            self.forker.trim()
            self.members = system.statistics().members
            self.census = Census(system, self.forker, self.other)
            self.places, self.sums = {}, {}
            self.places["own"], self.sums["own"] = self.forker.make("own", 1)
            mine = pattern(NBYTES, seed=2)
            self.places["sent"], self.sums["sent"] = _native.shared_block(mine), checksum(mine)
            self.forker.keep("sent", mine)
            self.pid = self.forker.fork(str(folder / "child"))
            self.child = Child(server, self.pid)

    def nobody_reuses(self, *askers: Any) -> bool:
        """Does no process get the memory of either array?"""
        places = list(self.places.values())
        return not any(
            [place_is_reused(place, NBYTES) for place in places]
            + [asker.reuses(place) for asker in askers for place in places]
        )

    def child_sees_its_data(self) -> bool:
        return all(self.child.checksum(key) == self.sums[key] for key in self.sums)


@pytest.fixture
def scene(system: shmipc.System, tmp_path: Path) -> Iterator[Scene]:
    made = Scene(system, tmp_path)
    yield made
    made.child.close()


@pytest.mark.row("L18")
@pytest.mark.race
def test_child_reads_the_old_data_while_the_parent_frees_and_reuses(scene: Scene, eventually: Any) -> None:
    assert scene.child_sees_its_data()
    for key in ("own", "sent"):
        scene.forker.drop(key)
    scene.forker.trim()
    gc.collect()
    assert scene.nobody_reuses(scene.forker, scene.other)
    assert scene.child_sees_its_data()
    assert scene.system.statistics().members == scene.members + 1  # the child pins them
    assert scene.nobody_reuses(scene.forker, scene.other)
    assert scene.child_sees_its_data()
    scene.child.say("exit")
    assert scene.forker.wait_for(scene.pid) == 0
    eventually(scene.census.is_back)
    eventually(lambda: scene.system.statistics().members == scene.members)
    assert not scene.nobody_reuses(scene.forker, scene.other)


@pytest.mark.row("L18")
@pytest.mark.race
def test_garbage_collection_of_the_child_releases_nothing_of_the_parent(scene: Scene, eventually: Any) -> None:
    before = scene.census.now()
    for key in ("own", "sent"):
        scene.child.say(f"drop {key}")
    assert scene.census.now() == before
    assert scene.nobody_reuses(scene.other)
    scene.child.say("exit")
    assert scene.forker.wait_for(scene.pid) == 0
    eventually(lambda: scene.system.statistics().members == scene.members)
    assert {key: scene.forker.checksum(key) for key in scene.sums} == scene.sums
    assert scene.nobody_reuses(scene.forker, scene.other)
    assert {key: scene.forker.checksum(key) for key in scene.sums} == scene.sums
    for key in ("own", "sent"):
        scene.forker.drop(key)
    eventually(scene.census.is_back)


@pytest.mark.row("L18")
@pytest.mark.race
@pytest.mark.parametrize("end", ["exits", "killed", "returns"])
def test_child_keeps_its_data_when_the_parent_has_ended(scene: Scene, eventually: Any, end: str) -> None:
    scene.forker.end.cast(end)
    assert shmipc.process(scene.forker).join(20.0)
    assert scene.child_sees_its_data()
    assert scene.nobody_reuses(scene.other)
    assert scene.child_sees_its_data()
    scene.census.holders = (scene.other,)
    ended = scene.census.now()
    scene.child.say("exit")
    eventually(lambda: scene.system.statistics().members == scene.members - 1)
    eventually(lambda: scene.census.now() == (ended[0] - 2, ended[1] - 2))
    assert not scene.nobody_reuses(scene.other)


@pytest.mark.row("L18")
@pytest.mark.race
def test_child_that_executes_another_program_gives_the_data_back(scene: Scene, eventually: Any) -> None:
    for key in ("own", "sent"):
        scene.forker.drop(key)
    assert not scene.census.is_back()
    assert scene.child_sees_its_data()
    scene.child.lines.write("exec\n")
    scene.child.lines.flush()
    eventually(scene.census.is_back, 20.0)
    os.kill(scene.pid, 0)  # it lives
    eventually(lambda: scene.system.statistics().members == scene.members)


@pytest.mark.row("L18")
@pytest.mark.race
def test_killed_child_gives_the_data_back(scene: Scene, eventually: Any) -> None:
    for key in ("own", "sent"):
        scene.forker.drop(key)
    assert not scene.census.is_back()
    os.kill(scene.pid, signal.SIGKILL)
    eventually(scene.census.is_back)
    eventually(lambda: scene.system.statistics().members == scene.members)
    scene.forker.wait_for(scene.pid)


@pytest.mark.row("L18")
def test_forked_interpreter_ends_in_order_and_its_parent_is_unharmed(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent("""
            import gc, os, sys
            import numpy as np
            import shmipc

            system = shmipc.System()
            array = shmipc.zeros(1000, np.uint8)
            array[:] = 7
            box = shmipc.Mailbox.create()
            box.send(array)
            received = box.receive()
            pid = os.fork()
            if pid == 0:
                assert int(array.sum()) == int(received.sum()) == 7000
                array[0] = 9  # its memory is the parent's
                del array
                sys.exit(3)  # with finalisers and all
            _, status = os.waitpid(pid, 0)
            assert os.waitstatus_to_exitcode(status) == 3, status
            others = [shmipc.zeros(1000, np.uint8) for _ in range(100)]
            assert int(array.sum()) == int(received.sum()) == 7002
            box.send("still here")
            assert box.receive() == "still here"
            del array, received, others
            gc.collect()
            system.shutdown()
        """)
    )
    command = [sys.executable, "-X", "dev", "-W", "error", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# --- daemons, and children for which there is no member slot -----------------------------------------------------

CHILD_READS = """
    system = shmipc.System(max_members=int(sys.argv[1]))
    member = system._membership.member
    shmipc.share(np.full(100_000, 1.0))
    member.trim()
    before = system.statistics().leases
    (to_child, tell), (hear_child, answer) = os.pipe(), os.pipe()
    array = shmipc.share(np.full(100_000, 7.0))
    pid = os.fork()
    if pid == 0 and sys.argv[2] == "daemon" and os.fork():
        os._exit(0)
    if pid == 0:
        os.dup2(to_child, 0)
        os.dup2(answer, 1)
        if sys.argv[2] != "careful":
            os.closerange(3, 4096)
        os.write(1, b"ready")
        os.read(0, 1)
        os.write(1, f"{array.min()} {array.max()}".encode())
        os._exit(0)
    os.close(answer)
    assert os.read(hear_child, 100) == b"ready"
    if sys.argv[2] == "daemon":
        os.waitpid(pid, 0)
    del array
    for _ in range(3):
        member.reap()
        member.trim()
    others = [shmipc.share(np.full(100_000, 9.0)) for _ in range(4)]
    os.write(tell, b"x")
    seen = os.read(hear_child, 100).decode()
    os.read(hear_child, 1)  # its end
    if sys.argv[2] != "daemon":
        os.waitpid(pid, 0)
    del others
    deadline = time.monotonic() + 20
    while system.statistics().leases != before and time.monotonic() < deadline:
        member.reap()
        member.trim()
        time.sleep(0.01)
    say([seen, system.statistics().leases - before])
    system.shutdown()
"""


@pytest.mark.row("L18", "M11")
@pytest.mark.timeout(60)
@pytest.mark.parametrize("child", ["careful", "closes", "daemon"])
@pytest.mark.parametrize("members", [8, 1], ids=["slot", "no slot"])
def test_child_keeps_its_data_whatever_it_closes_and_however_full_the_system_is(
    tmp_path: Path, members: int, child: str
) -> None:
    with Program(tmp_path, CHILD_READS, members, child) as program:
        assert program.hear() == ["7.0 7.0", 0]
        assert program.process.wait(20.0) == 0


MAKES_LATE = """
import os, sys, time
made = []
os.register_at_fork(before=lambda: made.append(shmipc.share(np.full(100_000, 7.0))))  # runs after shmipc's
import numpy as np
import shmipc

system = shmipc.System(max_members=int(sys.argv[1]))
member = system._membership.member
kept = [shmipc.zeros(1000) for _ in range(int(sys.argv[2]))]
before = system.statistics().leases
read, write = os.pipe()
pid = os.fork()
if pid == 0:
    os.read(read, 1)
    os._exit(0 if made[0].min() == made[0].max() == 7.0 else 3)
made.clear()
others = [shmipc.share(np.full(100_000, 9.0)) for _ in range(4)]
os.write(write, b"x")
assert os.waitpid(pid, 0)[1] == 0, "another's data"
del others
deadline = time.monotonic() + 20
while system.statistics().leases != before:
    assert time.monotonic() < deadline, "its memory did not come back"
    member.reap()
    member.trim()
    time.sleep(0.01)
"""


@pytest.mark.row("L18")
@pytest.mark.timeout(60)
@pytest.mark.parametrize("kept", [0, 1])
@pytest.mark.parametrize("members", [8, 1], ids=["slot", "no slot"])
def test_child_keeps_an_array_that_was_made_just_before_the_fork(tmp_path: Path, members: int, kept: int) -> None:
    program = tmp_path / "program.py"
    program.write_text(MAKES_LATE)
    command = [sys.executable, str(program), str(members), str(kept)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, done.stderr) == (0, "")


class Stopper(Actor):
    """Stops while it adds a holder to the block of an array that it was sent."""

    def keep(self, array: Any) -> None:
        self.array = array

    def pass_on(self, box: shmipc.Mailbox) -> None:
        _native.kill_point_arm("block_record", 1, signal.SIGSTOP)
        box.send([self.array, {1}])


@pytest.mark.row("L18")
@pytest.mark.allows_rescue
def test_child_keeps_the_data_of_a_block_that_was_locked_when_it_was_forked(
    system: shmipc.System, eventually: Any
) -> None:
    stopper: Any = system.spawn(Stopper)
    pid, member = stopper.pid(), system._membership.member
    with shmipc.Mailbox.create() as box:
        array = shmipc.share(np.full(100_000, 7.0))
        stopper.keep(array)
        passed = stopper.pass_on.submit(box)
        eventually(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)
        (to_child, tell), (hear, answer) = os.pipe(), os.pipe()
        child = os.fork()
        if child == 0:
            os.read(to_child, 1)
            os.write(answer, f"{array.min()} {array.max()}".encode())
            os._exit(0)
        os.kill(pid, signal.SIGCONT)
        passed.result(10.0)
        box.receive()
        assert shmipc.process(stopper).stop()
        del array
        gc.collect()
        member.reap()
        others = [shmipc.share(np.full(100_000, 9.0)) for _ in range(4)]
        os.write(tell, b"x")
        assert os.read(hear, 100) == b"7.0 7.0"
        assert others[0].max() == 9.0
        os.waitpid(child, 0)
        for descriptor in (to_child, tell, hear, answer):
            os.close(descriptor)
