"""Whole systems die: everybody, the root, a creator, the zygote; what is left works, and nothing is left over."""

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

import shmipc
from tests.conftest import NAMESPACE, SHM
from tests.programs import Program, lives

ROW_SECONDS = 1.0  # orphans are gone within; a test waits ten times as long
LIMIT = 10 * ROW_SECONDS


def our_files() -> dict[str, int]:
    """Names of this test process in /dev/shm and the bytes that they take there."""
    found = {}
    for name in os.listdir(SHM):
        if NAMESPACE in name:
            try:
                found[name] = os.stat(SHM / name).st_blocks * 512
            except FileNotFoundError:
                continue
    return found


# --- everybody -------------------------------------------------------------------------------------------------

WORLD = """
    class Actor:
        def __init__(self):
            self.kept = []
        def keep(self, array):
            self.kept.append(array)
            return os.getpid()
        def spawn(self):
            self.child = shmipc.System.current().spawn(Actor)
            return self.child.keep(None)
        def stay(self, array):
            self.kept.append(array)
            time.sleep(600)

    system = shmipc.System(sys.argv[1])
    stale = []
    for find, name in [(system.lookup, "actor"), (shmipc.Mailbox.open, "box"), (shmipc.Mailbox.open, "kept")]:
        try:
            find(name)
            stale.append(name)
        except shmipc.NotFound:
            pass
    first = system.options(name="actor").spawn(Actor)
    more = sys.argv[2] == "more"  # a worker in a fresh interpreter, a zygote of an actor
    second = system.options(env={"OMP_NUM_THREADS": "1"} if more else None).spawn(Actor)
    box, kept = shmipc.Mailbox.create("box"), shmipc.Mailbox.create("kept", persistent=True)
    array = shmipc.zeros(1 << 22, np.uint8)
    pids = [first.keep(array), second.keep(array[5:])] + ([first.spawn()] if more else [])
    box.send({"array": array, "bytes": bytes(100_000)})
    kept.send(array[::2])
    pending = second.stay.submit(array)
    say({"stale": stale, "pids": pids, "members": len(system.processes())})
    hear()
    pending.cancel()
    system.shutdown(timeout=0.2)
    say("left")
    """


def start_world(folder: Path, more: bool = False) -> Program:
    world = Program(folder, WORLD, "same-name", "more" if more else "less")
    told = world.hear()
    assert told["stale"] == []
    assert told["members"] == 2 + more
    assert {process.pid for process in world.family()} >= set(told["pids"])
    return world


@pytest.mark.row("M4", "K20")
@pytest.mark.race
@pytest.mark.allows_rescue
def test_next_start_works_and_memory_returns_when_every_process_was_killed(
    tmp_path: Path, eventually: Any, rounds: Callable[[int, int], int]
) -> None:
    before = our_files()
    sizes = []
    for number in range(rounds(20, 6)):
        with start_world(tmp_path, number % 5 == 0) as world:
            files = our_files()
            assert len(files) == len(before) + 2
            sizes.append(sum(files.values()))
            everybody = world.family()
            if number % 2:
                world.kill_all()
            else:
                victims = [world.pid, *(process.pid for process in everybody)]
                random.shuffle(victims)
                for pid in victims:
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        pass  # another's end ended it
                world.process.wait(10.0)
            eventually(lambda everybody=everybody: not any(lives(process.pid) for process in everybody))
            assert set(our_files()) <= set(files)
    assert max(sizes) <= min(sizes) * 1.5  # nothing of one round is there in the next
    with start_world(tmp_path) as world:
        assert len(our_files()) == len(before) + 2
        assert world.ask("leave") == "left"
        assert world.process.wait(10.0) == 0
    assert our_files() == before


@pytest.mark.row("K20")
@pytest.mark.race
def test_next_start_works_when_the_last_user_left_in_order(tmp_path: Path, rounds: Callable[[int, int], int]) -> None:
    before = our_files()
    for _ in range(rounds(20, 5)):
        with start_world(tmp_path) as world:
            assert world.ask("leave") == "left"
            assert world.process.wait(10.0) == 0
        assert our_files() == before


@pytest.mark.row("K20")
def test_system_without_a_root_ends_with_its_last_user_and_starts_anew(tmp_path: Path, eventually: Any) -> None:
    user = """
        system = shmipc.System.current()
        fresh = True
        try:
            shmipc.Mailbox.open("box")
            fresh = False
        except shmipc.NotFound:
            try:
                box = shmipc.Mailbox.create("box", persistent=True)
                box.send("from the first")
            except shmipc.NameTaken:  # the other was faster
                fresh = False
        say({"name": system.name, "fresh": fresh})
        hear()
        """
    before = our_files()
    for number in range(3):
        with Program(tmp_path, user) as first, Program(tmp_path, user) as second:
            told = first.hear(), second.hear()
            assert told[0]["name"] == told[1]["name"]
            assert sorted(entry["fresh"] for entry in told) == [False, True]
            for program in (first, second):
                if number == 0:
                    program.tell("leave")
                    assert program.process.wait(20.0) == 0
                else:
                    program.kill()
    with shmipc.System():  # the next start sweeps
        pass
    assert our_files() == before


# --- the root --------------------------------------------------------------------------------------------------

FAMILY = """
    import ctypes

    class Worker:
        def __init__(self):
            self.children = []
        def pid(self):
            return os.getpid()
        def spin(self):
            while True:
                pass
        def hold_the_interpreter(self):
            ctypes.PyDLL(None).sleep(600)
        def sleep(self):
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
            time.sleep(600)
        def receive(self):
            shmipc.receive(tag=5)
        def fill(self, box):
            while True:
                box.send(b"x")
        def call(self, other):
            other.sleep()
        def stop(self):
            os.kill(os.getpid(), signal.SIGSTOP)
        def spawn(self):
            self.children.append(shmipc.System.current().spawn(Worker))
            return self.children[-1]

    system = shmipc.System()
    box = shmipc.Mailbox.create(slots=4)
    states = ["spin", "hold_the_interpreter", "sleep", "receive", "fill", "call", "stop", "idle"]
    refs = {state: system.spawn(Worker) for state in states}
    pids = {state: ref.pid() for state, ref in refs.items()}
    if "grandchild" in sys.argv:
        grandchild = refs["idle"].spawn()
        pids["grandchild"] = grandchild.pid()
        grandchild.stop.cast()
    for state, ref in refs.items():
        if state != "idle":
            getattr(ref, state).cast(*({"fill": [box], "call": [refs["sleep"]]}.get(state, [])))
    say(pids)
    hear()
    """


def wait_for_states(pids: dict[str, int], eventually: Any) -> None:
    """Until everybody is at what he was told to do."""
    for state in {"stop", "grandchild"} & pids.keys():
        eventually(lambda state=state: psutil.Process(pids[state]).status() == psutil.STATUS_STOPPED)
    eventually(lambda: psutil.Process(pids["spin"]).cpu_times().user > 0.02)
    for state in ("sleep", "receive", "call"):
        eventually(lambda state=state: psutil.Process(pids[state]).status() == psutil.STATUS_SLEEPING)


def gone_within(pids: list[int], eventually: Any, limit: float = LIMIT) -> float:
    """Wait for all of them to end; how long it took."""
    start = time.monotonic()
    eventually(lambda: not any(lives(pid) for pid in pids), limit)
    return time.monotonic() - start


def swept(eventually: Any) -> None:
    """The next start removes what the killed have left; a thread of theirs may outlive its process for a moment."""

    def start() -> bool:
        with shmipc.System():
            pass
        return not our_files()

    eventually(start)


@pytest.mark.row("M7")
@pytest.mark.race
@pytest.mark.allows_rescue
def test_workers_are_killed_with_their_root_busy_blocked_or_stopped(
    tmp_path: Path, eventually: Any, rounds: Callable[[int, int], int]
) -> None:
    for number in range(rounds(200, 8)):
        with Program(tmp_path, FAMILY, *(["grandchild"] if number % 5 == 0 else [])) as root:
            pids = root.hear()
            if number % 4:
                wait_for_states(pids, eventually)  # else at whatever they are
            everybody = [process.pid for process in root.family()]
            assert set(pids.values()) <= set(everybody)
            root.kill()
            gone_within(everybody, eventually)
    swept(eventually)


@pytest.mark.row("M7")
@pytest.mark.race
@pytest.mark.allows_rescue
@pytest.mark.parametrize("zygote_first", [True, False], ids=["zygote too", "zygote lives"])
def test_worker_dies_when_its_creator_died_before_it_was_armed(
    tmp_path: Path, eventually: Any, zygote_first: bool
) -> None:
    """The worker is stopped at its first instruction, long before it watches anybody."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal\n"
        f"open({str(tmp_path / 'pid.new')!r}, 'w').write(str(os.getpid()))\n"
        f"os.rename({str(tmp_path / 'pid.new')!r}, {str(tmp_path / 'pid')!r})\n"
        "os.kill(os.getpid(), signal.SIGSTOP)\n"
    )
    creator = """
        class Worker:
            pass
        system = shmipc.System()
        system.spawn(Worker)
        path = sys.argv[1] + os.pathsep + os.environ["PYTHONPATH"]
        say("ready")
        system.options(env={"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}).spawn(Worker)
        """
    with Program(tmp_path, creator, tmp_path) as root:
        assert root.hear() == "ready"
        eventually(lambda: (tmp_path / "pid").exists(), 30.0)
        worker = int((tmp_path / "pid").read_text())
        eventually(lambda: psutil.Process(worker).status() == psutil.STATUS_STOPPED)
        everybody = root.family()
        zygote = next(process for process in everybody if process.ppid() == root.pid)
        if zygote_first:
            zygote.kill()
            eventually(lambda: not lives(zygote.pid))
        root.kill()
        if zygote_first:
            assert lives(worker)
            os.kill(worker, signal.SIGCONT)
        gone_within([process.pid for process in everybody], eventually)
    swept(eventually)


@pytest.mark.row("M7")
@pytest.mark.race
def test_worker_dies_with_the_actor_that_created_it_while_the_root_lives(tmp_path: Path, eventually: Any) -> None:
    with Program(tmp_path, FAMILY, "grandchild") as root:
        pids = root.hear()
        os.kill(pids["idle"], signal.SIGKILL)
        gone_within([pids["grandchild"]], eventually)
        assert lives(root.pid)
        assert lives(pids["sleep"])
        root.kill()
        gone_within(list(pids.values()), eventually)
    swept(eventually)


class Counter:
    def __init__(self) -> None:
        self.count = 0

    def add(self) -> int:
        self.count += 1
        return self.count

    def pid(self) -> int:
        return os.getpid()


@pytest.mark.row("M7")
@pytest.mark.race
def test_workers_live_on_when_the_zygote_alone_is_killed(system: shmipc.System, eventually: Any) -> None:
    from shmipc.runtime import launcher

    old: list[Any] = [system.spawn(Counter) for _ in range(2)]
    zygote = launcher.launcher().zygote_pid()
    assert zygote is not None
    os.kill(zygote, signal.SIGKILL)
    eventually(lambda: not lives(zygote))
    for count in (1, 2, 3):
        assert [ref.add() for ref in old] == [count] * 2
    new: Any = system.spawn(Counter)
    assert new.add() == 1
    assert launcher.launcher().zygote_pid() not in (None, zygote)
    assert [ref.add() for ref in old] == [4, 4]
    os.kill(old[0].pid(), signal.SIGKILL)  # and the end of one is still noticed
    with pytest.raises(shmipc.PeerDead):
        old[0].add()
    assert old[1].add() == 5
    assert shmipc.process(old[1]).stop()


@pytest.mark.row("M7")
@pytest.mark.race
@pytest.mark.allows_rescue
def test_workers_of_a_killed_zygote_still_die_with_the_root(tmp_path: Path, eventually: Any) -> None:
    with Program(tmp_path, FAMILY, "grandchild") as root:
        pids = root.hear()
        wait_for_states(pids, eventually)
        everybody = root.family()
        for process in everybody:
            if process.pid not in pids.values():
                process.kill()  # the zygotes, of root and of the actor that spawned
        assert all(lives(pid) for pid in pids.values())
        root.kill()
        gone_within([process.pid for process in everybody], eventually)
    swept(eventually)


# --- stopped, not dead -----------------------------------------------------------------------------------------

KEPT = """
    class Server:
        def pid(self):
            return os.getpid()
        def sleep(self):
            time.sleep(600)
        def fill(self, to):
            count = 0
            try:
                while True:
                    shmipc.send(to, count, timeout=0)
                    count += 1
            except shmipc.MailboxFull:
                return count

    def spawn(name):
        return system.options(name=name).spawn(Server)

    system = shmipc.System("kept")
    servers = [spawn(f"server{number}") for number in range(4)]
    from shmipc.runtime import launcher
    say({"zygote": launcher.launcher().zygote_pid(), "servers": [server.pid() for server in servers]})
    while True:
        hear()
        say("here")
    """
KEEPER_WORD = 128  # native/memory/layout.h, struct shm_header


def keeper_pid(system: shmipc.System) -> int:
    """The process that the header's keeper word names."""
    with open(SHM / f"shmipc.{os.getuid()}.{NAMESPACE}~{system.name}", "rb") as file:
        file.seek(KEEPER_WORD)
        word = int.from_bytes(file.read(8), "little")
    assert word & 0xF == 1
    slot = word >> 4 & 0xFFFF
    return next(int(entry["pid"]) for entry in system._membership.member.members() if entry["slot"] == slot)


class Kept:
    """A root with four servers, and this process attached to its system."""

    def __init__(self, folder: Path) -> None:
        self.root = Program(folder, KEPT)
        told = self.root.hear()
        self.zygote: int = told["zygote"]
        self.pids: list[int] = told["servers"]
        self.system = shmipc.System.attach("kept")
        self.servers: list[Any] = [self.system.lookup(f"server{number}") for number in range(4)]

    def deaths_are_noticed(self) -> None:
        """Rows B12, K5 and K7, of server 0 and server 1; server 2 fills this process's mailbox."""
        for timeout, server, pid in ((None, self.servers[0], self.pids[0]), (60.0, self.servers[1], self.pids[1])):
            name = f"server{self.pids.index(pid)}"
            watch = shmipc.monitor(server)
            assert self.servers[2].fill(shmipc.self()) > 0
            with pytest.raises(shmipc.MailboxFull):
                shmipc.send(shmipc.self(), "one more", timeout=0)
            future = server.sleep.submit(timeout=timeout)
            wait_until_served(future)
            start = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(shmipc.PeerDead):  # B12
                future.result()
            assert time.monotonic() - start < LIMIT
            notice = shmipc.receive(kind=shmipc.Kind.EXIT, timeout=LIMIT).body  # K5
            assert (notice.ref, notice.monitor) == (server, watch.id)
            assert time.monotonic() - start < LIMIT
            with pytest.raises(shmipc.PeerDead):
                server.pid()
            assert self.name_is_free(name, start)
            while shmipc.pending():
                shmipc.receive(timeout=1.0)
        start = time.monotonic()
        os.kill(self.pids[2], signal.SIGKILL)
        assert self.name_is_free("server2", start)  # K7, and nobody waits for anything
        assert self.servers[3].pid() == self.pids[3]

    def name_is_free(self, name: str, since: float) -> bool:
        """Give the name to server 3; False when it stays a dead one's."""
        while time.monotonic() - since < LIMIT:
            try:
                self.system.serve(name, self.servers[3])
                return bool(self.system.lookup(name).pid() == self.pids[3])
            except shmipc.NameTaken:
                threading.Event().wait(0.01)
        return False

    def close(self, eventually: Any) -> None:
        for pid in (self.root.pid, self.zygote):
            if lives(pid):
                os.kill(pid, signal.SIGCONT)
        self.system.shutdown()
        self.root.family()
        self.root.close()
        swept(eventually)


def wait_until_served(future: Any) -> None:
    """The handler has the call; nothing says so from outside, but a moment is enough and never needed."""
    try:
        future.result(timeout=0.05)
    except shmipc.Timeout:
        pass


@pytest.mark.row("M19")
@pytest.mark.race
@pytest.mark.allows_rescue
@pytest.mark.parametrize("stopped", ["keeper", "zygote", "keeper and zygote"])
def test_deaths_are_noticed_while_keeper_or_zygote_is_stopped(tmp_path: Path, eventually: Any, stopped: str) -> None:
    kept = Kept(tmp_path)
    try:
        assert keeper_pid(kept.system) == kept.root.pid
        victims = [kept.root.pid] * ("keeper" in stopped) + [kept.zygote] * ("zygote" in stopped)
        for pid in victims:
            os.kill(pid, signal.SIGSTOP)
            eventually(lambda pid=pid: psutil.Process(pid).status() == psutil.STATUS_STOPPED)
        kept.deaths_are_noticed()
        for pid in victims:
            assert psutil.Process(pid).status() == psutil.STATUS_STOPPED  # nobody took it for dead
            os.kill(pid, signal.SIGCONT)
        assert kept.root.ask("are you there?") == "here"
    finally:
        kept.close(eventually)
