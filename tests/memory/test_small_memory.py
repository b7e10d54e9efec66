"""Too little shared memory: a clear error at every place that needs some, never SIGBUS, and all goes on afterwards.

The programs run in a mount namespace of their own, with a small tmpfs over /dev/shm.
"""

import ctypes
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.programs import HEAD

CLONE_NEWNS, CLONE_NEWUSER, MS_REC, MS_PRIVATE = 0x20000, 0x10000000, 0x4000, 0x40000
libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: Any) -> None:
    if getattr(libc, name)(*arguments) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")


def enter(megabytes: int) -> None:
    """In a child before it executes: /dev/shm is another one, of that size."""
    uid, gid = os.getuid(), os.getgid()
    if uid == 0:
        call("unshare", CLONE_NEWNS)
    else:
        call("unshare", CLONE_NEWNS | CLONE_NEWUSER)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    call("mount", b"none", b"/", None, MS_REC | MS_PRIVATE, None)
    call("mount", b"tmpfs", b"/dev/shm", b"tmpfs", 0, f"size={megabytes}m,mode=1777".encode())


def run(folder: Path, text: str, megabytes: int) -> str:
    """Run a program there to its end; what it printed. Skips where such a namespace is not permitted."""
    program = folder / "program.py"
    program.write_text(HEAD + textwrap.dedent(text))
    command = [sys.executable, "-X", "dev", str(program)]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
            preexec_fn=lambda: enter(megabytes),
        )
    except (subprocess.SubprocessError, PermissionError):
        pytest.skip("no private mount namespace with a tmpfs is permitted here")
    assert (done.returncode, done.stderr) == (0, ""), done.stderr + done.stdout
    return done.stdout


WORK = """
    SHM = "/dev/shm"
    class Worker:
        def __init__(self):
            self.kept = []
        def echo(self, value):
            return value
        def fail(self, text):
            raise ValueError(text)
        def repeat(self, count):
            return bytes(count)
        def keep(self, value):
            self.kept.append(value)
        def take_all(self):
            errors = 0
            for size in (1 << 20, 1 << 16, 1 << 12):
                try:
                    while True:
                        self.kept.append(shmipc.zeros(size, np.uint8))
                except shmipc.OutOfMemory:
                    errors += 1
            return errors
        def drop(self):
            self.kept.clear()
            from shmipc.memory import membership
            membership.current().member.trim()
        def on_message(self, message):
            pass

    def free_bytes():
        found = os.statvfs(SHM)
        return found.f_bavail * found.f_frsize

    def refused(act, needed=1):
        try:
            act()
        except shmipc.OutOfMemory as error:
            assert error.needed >= needed, error
            assert 0 <= error.free <= 16 << 20, error
            assert "/dev/shm" in str(error), error
            return error
        raise AssertionError("there was room")

    def fill_by_a_stranger():
        descriptor = os.open(SHM + "/stranger", os.O_RDWR | os.O_CREAT)
        while free_bytes() >= 4096:
            os.posix_fallocate(descriptor, os.fstat(descriptor).st_size, min(free_bytes(), 1 << 20) // 4096 * 4096)
        os.close(descriptor)

    def everything_works(system, worker, keeps=()):
        array = shmipc.zeros(100_000, np.uint8)
        array[:] = 7
        assert worker.echo(array).sum() == 700_000
        assert worker.echo(bytes(50_000)) == bytes(50_000)
        with shmipc.Mailbox.create() as box:
            box.send(array[1:])
            assert box.receive().sum() == 699_993
        another = system.spawn(Worker)
        assert another.echo(1) == 1
        assert shmipc.process(another).stop()
    """


@pytest.mark.row("L11")
def test_out_of_memory_names_needed_and_free_bytes_and_the_runtime_stays_usable(tmp_path: Path) -> None:
    text = """
    system = shmipc.System()
    worker = system.spawn(Worker)
    everything_works(system, worker)
    error = refused(lambda: shmipc.empty(1 << 30, np.uint8), 1 << 30)
    for size in (1 << 20, 1 << 14):
        kept = []
        def take():
            while True:
                kept.append(shmipc.empty(size, np.uint8))
                kept[-1][:] = len(kept) % 256
        error = refused(take, size)
        assert error.free < 16 << 20, error
        taken = len(kept)
        for act in (
            lambda: worker.echo(bytes(1 << 21)),
            lambda: worker.keep.cast(bytes(1 << 21)),
            lambda: shmipc.send(worker, bytes(1 << 21)),
            lambda: shmipc.share(np.zeros(1 << 21, np.uint8)),
            lambda: shmipc.Mailbox.create(slots=1 << 14),
        ):
            refused(act)
        assert worker.echo("small") == "small"
        assert worker.take_all() == 3
        assert [int(array[0]) for array in kept] == [number % 256 for number in range(1, taken + 1)]
        kept.clear()
        worker.drop()
        everything_works(system, worker)
    # An answer for which there is no room: its caller is told, and the server goes on.
    refused(lambda: worker.repeat(1 << 23), 1 << 23)
    assert worker.take_all() == 3
    refused(lambda: worker.repeat(1 << 14), 1 << 14)
    for act, kind, text in (
        (lambda: worker.fail("why" * 500), shmipc.RemoteError, "ValueError: whywhy"),
        (lambda: worker.fail("why"), ValueError, "why"),
        (lambda: worker.submit_nothing, AttributeError, "submit_nothing"),
    ):
        try:
            act()
        except kind as error:
            assert text in str(error), repr(error)
        else:
            raise AssertionError(text)
    assert worker.echo("small") == "small"
    worker.drop()
    everything_works(system, worker)
    system.shutdown()
    assert not [name for name in os.listdir(SHM) if not name.endswith(".lock")]
    say("done")
    """
    assert run(tmp_path, WORK + text, 16) == '"done"\n'


@pytest.mark.row("L11")
def test_every_table_that_cannot_grow_is_an_error_and_never_a_signal(tmp_path: Path) -> None:
    """A stranger takes all that /dev/shm has left; then everything that needs another page asks for it."""
    text = """
    system = shmipc.System(memory_limit=64 << 20)
    workers = [system.spawn(Worker) for _ in range(2)]
    everything_works(system, workers[0])
    for turn in range(3):
        kept = []
        fill_by_a_stranger()
        errors = {}
        def until_refused(what, act, count):
            for number in range(count):
                try:
                    kept.append(act(number))
                except shmipc.OutOfMemory as error:
                    assert "/dev/shm" in str(error), error
                    assert error.needed > 0, error
                    errors[what] = str(error)
                    return
                except shmipc.ShmipcError as error:
                    raise AssertionError(what) from error
        until_refused("array", lambda number: shmipc.zeros(300_000, np.uint8), 1000)
        until_refused("small array", lambda number: shmipc.zeros(10, np.uint8), 20000)
        until_refused("mailbox", lambda number: shmipc.Mailbox.create(), 5000)
        until_refused("name", lambda number: system.serve(f"name-{turn}-{number}", workers[0]), 5000)
        until_refused("body", lambda number: shmipc.send(workers[1], bytes(100_000)), 1000)
        until_refused("call", lambda number: workers[0].echo.submit(number), 16000)
        until_refused("spawn", lambda number: system.spawn(Worker), 12)
        assert {"array", "small array", "mailbox", "body", "spawn"} <= set(errors), errors
        for entry in kept:
            if isinstance(entry, shmipc.Future):
                assert isinstance(entry.result(10.0), int)
        assert workers[0].echo(1) == 1
        os.unlink(SHM + "/stranger")
        for entry in kept:
            if isinstance(entry, shmipc.Mailbox):
                entry.close()
            elif isinstance(entry, shmipc.Ref):
                assert shmipc.process(entry).stop()
        for number in range(5000):
            try:
                system.withdraw(f"name-{turn}-{number}")
            except shmipc.NotFound:
                break
        del kept
        for worker in workers:
            worker.drop()
        everything_works(system, workers[0])
    system.shutdown()
    say("done")
    """
    assert run(tmp_path, WORK + text, 16) == '"done"\n'


@pytest.mark.row("L11")
def test_system_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    text = """
    fill_by_a_stranger()
    before = sorted(os.listdir(SHM))
    for act in (shmipc.System, lambda: shmipc.System("named"), shmipc.Mailbox.create):
        refused(act)
        assert sorted(name for name in os.listdir(SHM) if not name.endswith(".lock")) == before, os.listdir(SHM)
    # Almost enough: each start fails at another place, until one succeeds.
    os.truncate(SHM + "/stranger", os.stat(SHM + "/stranger").st_size - 4096 * 4)
    for pages in range(400):
        try:
            system = shmipc.System()
            worker = system.spawn(Worker)
            break
        except shmipc.OutOfMemory:
            if "system" in globals():
                system.shutdown()
                del system
        left = sorted(name for name in os.listdir(SHM) if not name.endswith(".lock"))
        assert left == before, left
        os.truncate(SHM + "/stranger", os.stat(SHM + "/stranger").st_size - 4096 * 8)
    assert worker.echo(1) == 1
    os.unlink(SHM + "/stranger")
    everything_works(system, worker)
    system.shutdown()
    say("done")
    """
    assert run(tmp_path, WORK + text, 16) == '"done"\n'


@pytest.mark.row("L12")
def test_idle_system_with_four_actors_takes_less_than_half_of_64_megabytes(tmp_path: Path) -> None:
    text = """
    system = shmipc.System()
    workers = [system.spawn(Worker) for _ in range(4)]
    for worker in workers:
        assert worker.echo("hello") == "hello"
    say((64 << 20) - free_bytes())
    time.sleep(1.0)
    used = (64 << 20) - free_bytes()
    files = sum(os.stat(f"{SHM}/{name}").st_blocks * 512 for name in os.listdir(SHM))
    say([used, files])
    everything_works(system, workers[0])
    half = shmipc.zeros(25 << 20, np.uint8)  # and what is spared can be used
    half[:] = 1
    assert workers[0].echo(half).sum() == 25 << 20
    system.shutdown()
    """
    lines = run(tmp_path, WORK + text, 64).split("\n")
    used, files = eval(lines[1])
    assert 0 < used <= 32 << 20
    assert abs(used - files) <= 1 << 16
    print(f"an idle system with four actors takes {used / 1024:.0f} KiB of /dev/shm")


@pytest.mark.row("L11")
def test_message_that_was_accepted_needs_no_memory_to_be_received(tmp_path: Path) -> None:
    """Each array took a lease of its receiver beside the message's; without a page for it the message was gone."""
    text = """
        SHM = "/dev/shm"
        def free():
            found = os.statvfs(SHM)
            return found.f_bavail * found.f_frsize
        with shmipc.System(memory_limit=64 << 20), shmipc.Mailbox.create(slots=8) as box:
            shared, everybodys = shmipc.zeros(1000), shmipc.shared(10)
            quiet = everybodys[:]
            quiet.flags.writeable = False
            box.send([shared, {1}])
            box.receive()
            stranger = os.open(SHM + "/stranger", os.O_RDWR | os.O_CREAT)
            while free() >= 4096:
                os.posix_fallocate(stranger, os.fstat(stranger).st_size, min(free(), 1 << 20) // 4096 * 4096)
            kept, number = [], 0
            try:
                while True:
                    box.send([shared, shared[1:], everybodys, quiet, {number}], timeout=0)
                    number += 1
                    got = box.receive(0)
                    assert got[4] == {number - 1} and got[0].flags.writeable == got[3].flags.writeable == False
                    assert got[2].flags.writeable
                    kept.append(got)
            except shmipc.OutOfMemory:
                assert box.count() == 0
            print(number > 0, len(kept) == number)
            os.unlink(SHM + "/stranger")
    """
    assert run(tmp_path, text, 16) == "True True\n"
