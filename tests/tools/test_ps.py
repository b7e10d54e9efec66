"""``shmipc ps`` and the texts of waits that give up: who, whose, in which state, doing what, for how long, how full."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import shmipc
from shmipc.memory import segments
from shmipc.tools import cli, looks, ps
from tests.actors import Holder, outcome, usage
from tests.programs import Program
from tests.tools.stuck import Stuck, member, tool, tool_json

Eventually = Callable[..., None]


class Scene:
    """A system in which somebody is stuck in every way."""

    def __init__(self, system: shmipc.System, folder: Path) -> None:
        self.system = system
        names = ("alice", "bob", "halted", "holder", "filler", "idle")
        self.actors: dict[str, Any] = {name: system.options(name=name).spawn(Stuck) for name in names}
        self.pids = {name: actor.pid() for name, actor in self.actors.items()}
        self.fifo = folder / "fifo"
        os.mkfifo(self.fifo)
        self.narrow = shmipc.Mailbox.create("narrow", slots=3)
        self.actors["alice"].meet(self.actors["bob"])
        self.actors["bob"].meet(self.actors["alice"])
        self.actors["holder"].hold_lock_in_c.submit(str(self.fifo))
        self.actors["holder"].echo.cast(1)  # waits behind
        self.actors["filler"].fill.submit(self.narrow)
        os.kill(self.pids["halted"], signal.SIGSTOP)
        self.circle = self.actors["alice"].call_other.submit(60.0)

    def is_stuck(self) -> bool:
        """Has everybody come where it gets stuck?"""
        systems, _ = ps.run([self.system.name], 3600.0)
        waits = {
            name: [thread["waits"] for thread in member(systems, pid)["threads"]] for name, pid in self.pids.items()
        }
        return (
            waits["alice"] == ["call"]
            and waits["bob"] == ["call"]
            and waits["filler"] == ["send"]
            and member(systems, self.pids["halted"])["process"] == "stopped"
            and [thread["runs"] for thread in member(systems, self.pids["holder"])["threads"]] == ["hold_lock_in_c"]
        )

    def release(self) -> None:
        os.kill(self.pids["halted"], signal.SIGCONT)
        descriptor = os.open(self.fifo, os.O_RDWR)
        os.write(descriptor, b"1")
        self.system.kill()
        os.close(descriptor)


@pytest.fixture
def scene(system: shmipc.System, tmp_path: Path, eventually: Eventually) -> Iterator[Scene]:
    made = Scene(system, tmp_path)
    try:
        eventually(made.is_stuck, 60.0)
        yield made
    finally:
        made.release()


@pytest.mark.row("M18")
@pytest.mark.allows_rescue
def test_ps_names_what_each_member_of_a_stuck_system_runs_or_waits_for(scene: Scene, tmp_path: Path) -> None:
    code, systems = tool_json("ps", scene.system.name, "--stuck", "0.1", cwd=tmp_path)
    assert code == 1
    (told,) = systems
    assert (told["name"], told["state"]) == (scene.system.name, "alive")
    assert told["bytes"] > 0
    assert len(told["members"]) == 7  # this process too
    entries = {name: member(systems, pid) for name, pid in scene.pids.items()}

    alice, bob = entries["alice"], entries["bob"]
    for entry, runs, peer in ((alice, "call_other", bob), (bob, "call_back", alice)):
        (thread,) = entry["threads"]
        assert (thread["runs"], thread["waits"], thread["peer"]) == (runs, "call", peer["pid"])
        assert 0.0 < thread["waits_for"] <= thread["runs_for"] + 0.1
        assert 0.0 < thread["limit"] <= 60.0
        assert sorted(entry["cycle"]) == sorted([alice["pid"], bob["pid"]])
        assert "circle of calls" in entry["stuck"]
        assert f"{peer['pid']} ({peer['name']})" in thread["text"]
    assert alice["depth"] == 1  # the call of bob, which nobody takes
    assert bob["depth"] == 0

    assert entries["halted"]["process"] == "stopped"
    assert "SIGCONT" in entries["halted"]["stuck"]

    (holder,) = entries["holder"]["threads"]
    assert (holder["runs"], holder["waits"], entries["holder"]["depth"]) == ("hold_lock_in_c", None, 1)
    assert "1 messages wait" in entries["holder"]["stuck"]

    (filler,) = entries["filler"]["threads"]
    assert (filler["runs"], filler["waits"]) == ("fill", "send")
    assert "room in mailbox narrow [3/3]" in filler["text"]
    assert entries["filler"]["stuck"].startswith("has waited")
    (box,) = told["mailboxes"]
    assert (box["name"], box["depth"], box["capacity"], box["owner"]) == ("narrow", 3, 3, os.getpid())

    (idle,) = entries["idle"]["threads"]
    assert (idle["runs"], idle["waits"], entries["idle"]["stuck"]) == (None, "receive", None)
    assert all(entry["memory_bytes"] > 0 and entry["kind"] == "worker" for entry in entries.values())
    # The stuck ones first.
    assert [entry["stuck"] is not None for entry in told["members"]] == [True] * 5 + [False] * 2

    text = tool("ps", "--stuck", "0.1", cwd=tmp_path)
    assert text.returncode == 1
    for name, pid in scene.pids.items():
        assert f"{pid} {name}" in text.stdout
    assert text.stdout.count("STUCK") == 5

    calm, systems = tool_json("ps", "--stuck", "3600", cwd=tmp_path)
    assert calm == 1  # a circle and a stopped process are stuck however short a time
    assert sum(entry["stuck"] is not None for entry in systems[0]["members"]) == 3


# --- waits that give up ----------------------------------------------------------------------------------------


@pytest.mark.row("M18")
@pytest.mark.allows_rescue
def test_wait_that_gives_up_names_object_owner_state_doing_and_depth(scene: Scene) -> None:
    pids, actors = scene.pids, scene.actors
    own = os.getpid()

    def text_of(act: Callable[[], object]) -> str:
        with pytest.raises(shmipc.Timeout) as caught:
            act()
        return str(caught.value)

    call = text_of(lambda: actors["alice"].echo.call(1, timeout=0.2))
    assert f"process {pids['alice']} (alice), sleeping, which runs call_other for " in call
    assert f"waits for a reply of process {pids['bob']} (bob) for " in call
    assert "; 2 messages wait there" in call  # bob's call, and this one

    halted = text_of(lambda: actors["halted"].echo.call(1, timeout=0.2))
    assert f"process {pids['halted']} (halted), stopped, " in halted

    future = text_of(lambda: actors["holder"].echo.submit(1).result(0.2))
    assert f"process {pids['holder']} (holder), " in future
    assert "which runs hold_lock_in_c for " in future
    assert "messages wait there" in future
    limited = actors["holder"].echo.submit(1, timeout=0.2)
    assert "runs hold_lock_in_c for " in text_of(limited.result)

    send = text_of(lambda: scene.narrow.send(1, timeout=0.2))
    assert f"mailbox 'narrow', open, which holds 3 of 3 messages and is this process's, {own}" in send
    other = text_of(lambda: actors_mailbox_send(actors["halted"]))
    assert f"which holds 1024 of 1024 messages and is owned by process {pids['halted']} (halted), stopped" in other

    empty = shmipc.Mailbox.create(slots=4)
    shared = text_of(lambda: shmipc.call(empty, 1, timeout=0.2))
    assert "from nobody: it was not taken yet; it was sent to mailbox" in shared
    taker: Any = scene.system.spawn(take_and_wait, empty)
    taken = text_of(lambda: shmipc.call(empty, 2, timeout=3.0))
    assert f"from process {shmipc.process(taker).pid} (take_and_wait), " in taken
    assert "which runs take_and_wait for " in taken
    shmipc.send(taker, "end")
    assert f"mailbox {empty.index}, open, which holds 0 of 4 messages" in text_of(lambda: empty.receive(timeout=0.1))
    filtered = text_of(lambda: empty.receive_message(tag=9, timeout=0.1))
    assert "no message that matches came" in filtered
    assert f"mailbox {empty.index}, open, which holds 0 of 4 messages" in filtered
    with pytest.raises(shmipc.Starved, match="mailbox 'narrow', open, which holds 3 of 3 messages") as starved:
        scene.narrow.receive_message(tag=9, timeout=0.1)
    assert (starved.value.depth, starved.value.filter[2]) == (3, 9)
    assert f"is this process's, {own}" in text_of(lambda: shmipc.receive(timeout=0.1))


def take_and_wait(mailbox: shmipc.Mailbox) -> None:
    mailbox.receive_message()
    shmipc.receive()


def actors_mailbox_send(ref: Any) -> None:
    """Fill the mailbox of an actor that takes nothing, until there is no room."""
    while True:
        shmipc.send(ref, b"more", timeout=0.2)


class NeverThere:
    def __init__(self) -> None:
        threading.Event().wait()


@pytest.mark.row("M18")
def test_start_that_gives_up_says_where_it_was(system: shmipc.System) -> None:
    for limit in (2.0, 8.0, 32.0):  # it may take long until the constructor runs
        with pytest.raises(shmipc.Timeout) as caught:
            system.options(name="slow", start_timeout=limit).spawn(NeverThere)
        text = str(caught.value)
        del caught
        if "runs __init__" in text:
            break
    assert "slow" in text
    assert "runs __init__ for" in text


# --- harmless --------------------------------------------------------------------------------------------------


def table_bytes(name: str) -> str:
    """A digest of all that a system's segment holds."""
    digest = hashlib.sha256()
    path = segments.Paths.of(name).segment
    with open(path, "rb", buffering=0) as file:
        size, at = os.fstat(file.fileno()).st_size, 0
        while at < size:
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            end = os.lseek(file.fileno(), at, os.SEEK_HOLE)
            digest.update(at.to_bytes(8, "little"))
            while at < end:
                part = os.pread(file.fileno(), min(end - at, 1 << 20), at)
                digest.update(part)
                at += len(part)
    digest.update(str(os.stat(path).st_blocks).encode())
    return digest.hexdigest()


@pytest.mark.allows_rescue  # everybody is stopped in the middle of what he does
def test_tools_change_no_byte_of_a_system_that_is_stopped(tmp_path: Path, eventually: Eventually) -> None:
    text = """
    class Worker:
        def pid(self): return os.getpid()
    with shmipc.System("halted") as system:
        say([os.getpid(), *[system.spawn(Worker).pid() for _ in range(2)]])
        hear()
    """
    with Program(tmp_path, text) as program:
        pids = program.hear()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        eventually(lambda: all(looks._native.process_state(pid) == "stopped" for pid in pids))
        before = table_bytes("halted")
        assert tool("gc", "--dry-run", cwd=tmp_path).returncode == 0
        assert tool("gc", cwd=tmp_path).returncode == 0
        code, told = tool_json("ps", "halted", cwd=tmp_path)
        assert code == 1
        assert all(entry["process"] == "stopped" for entry in told[0]["members"])
        code, told = tool_json("stack", "halted", cwd=tmp_path)
        assert code == 1
        assert [entry["status"] for entry in told[0]["members"]] == ["stopped"] * 3
        tool("doctor", cwd=tmp_path)
        assert table_bytes("halted") == before
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        program.tell("end")
        assert program.process.wait(30.0) == 0


def test_fifty_runs_on_a_busy_system_change_no_counter_and_lose_no_message(
    system: shmipc.System, tmp_path: Path
) -> None:
    count = 20_000
    box = shmipc.Mailbox.create("busy", slots=64)
    workers: list[Any] = [system.spawn(Busy) for _ in range(3)]
    before = usage(system, *workers)
    sending = workers[0].send.submit(box, count)
    receiving = workers[1].receive.submit(box)
    command = (
        "import sys; from shmipc.tools.cli import main; [main([name]) for _ in range(50) for name in sys.argv[1:]]"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", command, "ps", "stack", "gc"],
        capture_output=True,
        text=True,
        timeout=110.0,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"system {system.name}: alive") == 100
    assert done.stdout.count("nothing is left of dead systems") == 50
    assert sending.result(60.0) == count
    box.send(None)
    assert receiving.result(60.0) == list(range(count))
    del sending, receiving
    assert usage(system, *workers) == before
    statistics = system.statistics()
    assert (statistics.undelivered, statistics.rescued, statistics.reaped) == (0, 0, 0)


class Busy:
    def send(self, box: shmipc.Mailbox, count: int) -> int:
        for number in range(count):
            box.send(number)
        return count

    def receive(self, box: shmipc.Mailbox) -> list[int]:
        found = []
        while (number := box.receive()) is not None:
            found.append(number)
        return found

    def echo(self, value: Any) -> Any:
        return value

    def trim(self) -> None:
        from shmipc.memory import membership

        membership.current().member.trim()


# --- half dead, garbage, usage ---------------------------------------------------------------------------------


def test_ps_shows_what_has_ended_and_what_is_left(tmp_path: Path, eventually: Eventually) -> None:
    text = """
    class Worker:
        def pid(self): return os.getpid()
    system = shmipc.System("left")
    say([os.getpid(), system.spawn(Worker).pid()])
    hear()
    """
    with Program(tmp_path, text) as program:
        program.hear()
        code, told = tool_json("ps", "left", cwd=tmp_path)
        assert (code, told[0]["state"], len(told[0]["members"])) == (0, "alive", 2)
        program.seen.update(program.family())
        for process in program.seen:  # the zygote would sweep
            process.kill()
        program.kill_all()
        eventually(lambda: looks.look_at("left").state == "dead")
        code, told = tool_json("ps", "left", cwd=tmp_path)
        assert code == 1
        assert {entry["process"] for entry in told[0]["members"]} == {"ended"}
        assert tool("gc", cwd=tmp_path).returncode == 1
        assert tool("ps", "left", cwd=tmp_path).returncode == 1  # there is no such system
        assert tool("ps", cwd=tmp_path).stdout == "no systems\n"


@pytest.mark.parametrize(
    "content",
    [b"", b"shmipc01", bytes(8192), os.urandom(65536), b"shmipc01" + bytes(100000)],
    ids=["empty", "magic", "zeros", "random", "magic and zeros"],
)
def test_tools_survive_a_segment_of_garbage(content: bytes, tmp_path: Path) -> None:
    path = segments.Paths.of("garbage").segment
    path.write_bytes(content)
    try:
        code, told = tool_json("ps", cwd=tmp_path)
        assert code == 1
        assert [(system["name"], system["members"]) for system in told] == [("garbage", [])]
        assert told[0]["state"] in ("dead", "corrupted", "other-layout")
        assert tool("stack", cwd=tmp_path).returncode == 0
        assert tool("doctor", cwd=tmp_path).returncode == 1
    finally:
        path.unlink()


def test_look_at_a_live_segment_whose_tables_hold_garbage_stays_within_it(
    system: shmipc.System, tmp_path: Path
) -> None:
    """A copy of a living system's file, spoiled at many places: an error or a listing, and never a crash."""
    original = segments.Paths.of(system.name).segment
    path = segments.Paths.of("spoiled").segment
    with open(original, "rb") as file:
        head = file.read(4 << 20)
    program = """
import os, random, sys
from shmipc import _native
path, rounds = sys.argv[1], 300
head = open(path, "rb").read(4 << 20)
size, good = os.stat(path).st_size, 0
random.seed(7)
for number in range(rounds):
    spoiled = bytearray(head)
    for _ in range(200):
        spoiled[random.randrange(512 if number % 10 == 0 else 4096, len(spoiled))] = random.randrange(256)
    with open(path, "r+b") as file:
        file.write(spoiled)
    fd = os.open(path, os.O_RDONLY)
    try:
        seen = _native.Observer(fd)
        seen.header(), seen.members(), seen.mailboxes()
        good += 1
    except Exception:
        pass
    os.close(fd)
print(good)
"""
    try:
        with open(path, "wb") as file:
            file.truncate(original.stat().st_size)
            file.write(head)
        done = subprocess.run([sys.executable, "-P", "-c", program, str(path)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert int(done.stdout) > 100
    finally:
        path.unlink()


def test_exit_codes_tell_fine_found_and_usage(
    system: shmipc.System, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["ps", system.name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["name"] == system.name
    assert cli.main(["ps", "absent"]) == 1
    assert "absent" in capsys.readouterr().err
    assert cli.main(["ps", "no/such/name"]) == 2
    for wrong in (["ps", "--stuck", "-1"], ["ps", "--stuck", "x"], ["gc", "extra"], ["nothing"], []):
        done = tool(*wrong, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert "usage: shmipc" in done.stderr


def test_async_actor_says_which_handlers_it_runs(system: shmipc.System, eventually: Eventually) -> None:
    actor: Any = system.spawn(Patient)
    futures = [actor.stay.submit() for _ in range(3)]

    def runs() -> list[str]:
        systems, _ = ps.run([system.name], 10.0)
        pid = shmipc.process(actor).pid
        return [thread["runs"] for thread in member(systems, pid)["threads"] if thread["runs"]]

    eventually(lambda: runs() == ["3 handlers, stay"])
    actor.go.call(timeout=60.0)
    assert [future.result(60.0) for future in futures] == [None] * 3
    eventually(lambda: runs() == [])


class Patient:
    def __init__(self) -> None:
        self.gate: Any = None

    async def stay(self) -> None:
        import asyncio

        self.gate = self.gate or asyncio.Event()
        await self.gate.wait()

    async def go(self) -> None:
        self.gate.set()


def test_pool_worker_says_which_function_it_runs(system: shmipc.System, eventually: Eventually, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    pool = system.pool(1)
    future = pool.submit(read_one, str(fifo))

    def runs() -> set[str]:
        systems, _ = ps.run([system.name], 10.0)
        return {
            thread["runs"]
            for entry in systems[0]["members"]
            for thread in entry["threads"]
            if thread["runs"] is not None
        }

    eventually(lambda: runs() == {"read_one"})
    with open(fifo, "wb") as file:
        file.write(b"1")
    assert future.result(60.0) == b"1"
    eventually(lambda: runs() == set())


def read_one(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(1)


def test_member_that_serves_a_raw_call_says_on_message(system: shmipc.System, eventually: Eventually) -> None:
    holder: Any = system.spawn(Holder)
    assert outcome(lambda: shmipc.call(holder, 1, timeout=0.3)) == "Timeout"
    systems, _ = ps.run([system.name], 10.0)
    (thread,) = member(systems, shmipc.process(holder).pid)["threads"]
    assert (thread["runs"], thread["waits"]) == (None, "receive")  # it has taken it, and waits for the next
