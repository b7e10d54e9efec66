"""shmipc.SharedMemory beside multiprocessing's: the same surface, and no tracker that unlinks under others."""

import errno
import inspect
import os
import pickle
import signal
import stat
import subprocess
import sys
import textwrap
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import numpy as np
import posix_ipc
import pytest

import shmipc
from shmipc.memory import sealed
from tests.conftest import NAMESPACE, our_names
from tests.memory.test_small_memory import WORK, run


def program(text: str, *arguments: str) -> subprocess.Popen[str]:
    head = "import os, select, signal, sys, shmipc\nimport numpy as np\n"
    return subprocess.Popen(
        [sys.executable, "-P", "-X", "dev", "-c", head + textwrap.dedent(text), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(child: subprocess.Popen[str], told: str = "") -> str:
    out, errors = child.communicate(told, timeout=60)
    assert (child.returncode, errors) == (0, ""), errors
    return out


def test_surface_is_that_of_multiprocessing_and_sizes_are_exact() -> None:
    theirs = inspect.signature(shared_memory.SharedMemory).parameters
    ours = inspect.signature(shmipc.SharedMemory).parameters
    assert [name for name in ours if name != "track"] == [name for name in theirs if name != "track"]
    assert all(ours[name].default == theirs[name].default for name in theirs)
    for size in (1, 100, 4096, 5000, 1 << 20):
        made = shmipc.SharedMemory(create=True, size=size)
        assert made.name in our_names()
        opened = shmipc.SharedMemory(made.name)
        again = pickle.loads(pickle.dumps(made))
        assert (made.size, len(made.buf), opened.size, len(opened.buf), again.size) == (size,) * 5
        made.buf[size - 1] = 77
        assert opened.buf[size - 1] == again.buf[size - 1] == 77
        for entry in (made, made, opened, again):
            entry.close()
        assert made.name not in our_names()
        with pytest.raises(ValueError, match="closed"):
            made.buf
    name = f"{NAMESPACE}-named"
    with pytest.raises(FileNotFoundError, match="not there"):
        shmipc.SharedMemory(name)
    made = shmipc.SharedMemory(name, True, 10, track=False)
    with pytest.raises(FileExistsError):
        shmipc.SharedMemory(name, create=True, size=10)
    made.close()
    opened = shmipc.SharedMemory(name)
    opened.unlink()
    with pytest.raises(FileNotFoundError, match="removed before"):
        opened.unlink()
    opened.close()
    for arguments in ({}, {"create": True}, {"create": True, "size": -1}, {"name": "a/b"}, {"name": ""}):
        with pytest.raises(ValueError, match=r"size|name"):
            shmipc.SharedMemory(**arguments)  # type: ignore[arg-type]


def test_views_keep_it_mapped_after_it_was_closed_or_dropped() -> None:
    made = shmipc.SharedMemory(create=True, size=80)
    array: Any = np.ndarray((10,), np.float64, buffer=made.buf)
    array[:] = 3
    view = made.buf[8:16]
    made.close()
    assert not our_names()
    assert array.sum() == 30  # multiprocessing's would have unmapped it under the array
    assert view.cast("d")[0] == 3.0
    dropped = shmipc.SharedMemory(create=True, size=80)
    array = np.frombuffer(dropped.buf, np.uint8)
    del dropped
    assert not our_names()
    assert array.sum() == 0


def test_process_that_only_opened_it_does_not_remove_it_when_it_ends() -> None:
    made = shmipc.SharedMemory(create=True, size=100)
    reader = "memory = shmipc.SharedMemory(sys.argv[1]); memory.buf[0] += 1; print(memory.size)"
    assert finish(program(reader, made.name)) == "100\n"
    assert finish(program("import multiprocessing.shared_memory\n" + reader + "; memory.close()", made.name)) == "100\n"
    assert made.buf[0] == 2
    killed = program(reader + "; os.kill(os.getpid(), signal.SIGKILL)", made.name)
    killed.communicate(timeout=60)
    assert made.name in our_names()
    made.close()
    assert not our_names()


def test_last_one_removes_it_whoever_made_it() -> None:
    maker = program("memory = shmipc.SharedMemory(create=True, size=9); print(memory.name, flush=True); input()")
    assert maker.stdout is not None
    name = maker.stdout.readline().strip()
    opened = shmipc.SharedMemory(name)
    finish(maker, "\n")
    assert name in our_names()
    assert shmipc.SharedMemory(name).size == 9
    opened.close()
    assert name not in our_names()


def test_what_killed_processes_left_goes_with_the_next_that_is_made() -> None:
    child = program("""
        kept = [shmipc.SharedMemory(create=True, size=9) for _ in range(3)]
        print(kept[0].name, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        """)
    out, _ = child.communicate(timeout=60)
    assert child.returncode == -signal.SIGKILL
    assert out.strip() in our_names()
    made = shmipc.SharedMemory(create=True, size=9)
    assert our_names() == {made.name}
    made.close()


def test_segment_of_multiprocessing_is_opened_and_left_alone() -> None:
    # Made elsewhere: multiprocessing's class starts a tracker process in whoever makes or opens one.
    maker = program(
        """
        from multiprocessing.shared_memory import SharedMemory
        memory = SharedMemory(sys.argv[1], create=True, size=100)
        print("made", flush=True)
        input()
        print(memory.buf[3])
        memory.close()
        memory.unlink()
        """,
        f"{NAMESPACE}-theirs",
    )
    assert maker.stdout is not None
    assert maker.stdout.readline() == "made\n"
    ours = shmipc.SharedMemory(f"{NAMESPACE}-theirs")
    ours.buf[3] = 9
    ours.close()
    assert f"{NAMESPACE}-theirs" in our_names()
    mine = shmipc.SharedMemory(create=True, size=50)
    mine.buf[0] = 5
    reader = """
        from multiprocessing.shared_memory import SharedMemory
        from multiprocessing import resource_tracker
        memory = SharedMemory(sys.argv[1])
        resource_tracker.unregister("/" + memory.name, "shared_memory")  # it would unlink what is not its own
        print(memory.size, memory.buf[0])
        memory.close()
        """
    assert finish(program(reader, mine.name)) == "50 5\n"
    mine.close()
    assert finish(maker, "\n") == "9\n"


def test_forked_child_does_not_remove_the_name_of_its_parent() -> None:
    made = shmipc.SharedMemory(create=True, size=10)
    child = os.fork()
    if child == 0:
        made.close()
        os._exit(0)
    os.waitpid(child, 0)
    assert made.name in our_names()
    assert shmipc.SharedMemory(made.name).size == 10
    made.close()
    assert not our_names()


@pytest.mark.parametrize("last", ["parent", "child"])
@pytest.mark.parametrize("killed", [False, True])
def test_forked_child_has_it_open_like_any_other_process(last: str, killed: bool) -> None:
    """The parent and the child have one descriptor at first: whoever closed it thought that he was the last."""
    text = """
    name, last, killed = sys.argv[1:]
    there = lambda: os.path.exists("/dev/shm/" + name)
    made = shmipc.SharedMemory(name, create=True, size=10)
    array = np.frombuffer(made.buf, np.uint8)  # which maps it, and says nothing of who has it open
    (hear, go), (told, done) = os.pipe(), os.pipe()
    parent, child = os.getpid(), os.fork()
    if (child == 0) == (last == "child"):
        os.close(done)
        other = os.pidfd_open(child or parent)
        os.write(go, b"x")
        os.read(told, 1)
        if killed == "True":
            select.select([other], [], [])  # its locks have gone by then
        seen = there(), shmipc.SharedMemory(name).size
        made.close()
        print(*seen, there(), flush=True)
    else:
        os.read(hear, 1)
        if killed == "True":
            os.kill(os.getpid(), signal.SIGKILL)
        made.close()
        os.write(done, b"x")
    os._exit(0)
    """
    name = f"{NAMESPACE}-forked"
    with program(text, name, last, str(killed)) as run:
        assert run.stdout is not None
        assert run.stdout.read() == "True 10 False\n"


def test_name_goes_with_the_last_close_though_arrays_of_others_are_left() -> None:
    made = shmipc.SharedMemory(f"{NAMESPACE}-arrays", create=True, size=10)
    array = np.frombuffer(made.buf, np.uint8)
    opened = shmipc.SharedMemory(made.name)
    made.close()
    assert shmipc.SharedMemory(made.name).size == 10
    opened.close()
    assert not Path("/dev/shm", made.name).exists()
    assert array.sum() == 0


def test_too_little_room_is_an_error_and_nothing_stays(tmp_path: Path) -> None:
    text = """
    error = refused(lambda: shmipc.SharedMemory(create=True, size=64 << 20), 64 << 20)
    assert error.free > 1 << 20
    memory = shmipc.SharedMemory(create=True, size=8 << 20)
    memory.buf[:] = bytes(8 << 20)
    memory.close()
    print([name for name in os.listdir(SHM) if "memory" in name])
    """
    assert run(tmp_path, WORK + text, 16) == "[]\n"


def test_size_beyond_what_is_free_is_refused_before_a_page_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was found out by taking all of /dev/shm, from everybody."""
    text = """
    taken, allocate = [], os.posix_fallocate
    def note(fd, start, count):
        taken.append(count)
        allocate(fd, start, count)
    os.posix_fallocate = note
    for size in (64 << 20, 1 << 62, 1 << 63, 1 << 70):
        refused(lambda: shmipc.SharedMemory(create=True, size=size), size)
        assert not taken and not [name for name in os.listdir(SHM) if "memory" in name]
    print(taken)
    """
    assert run(tmp_path, WORK + text, 16) == "[]\n"
    monkeypatch.setattr(sealed, "free_bytes", lambda: 2 << 20)  # of a machine whose /dev/shm is larger than it
    with pytest.raises(shmipc.OutOfMemory) as caught:
        shmipc.SharedMemory(create=True, size=3 << 20)
    assert (caught.value.needed, caught.value.free) == (3 << 20, 2 << 20)
    assert not our_names()


@pytest.mark.parametrize("track", [True, False])
def test_segment_that_cannot_be_mapped_leaves_no_name(track: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        @staticmethod
        def mmap(*arguments: Any) -> Any:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")

    opened = shmipc.SharedMemory(create=True, size=100)
    monkeypatch.setattr("shmipc.memory.shared_memory.mmap", Full)
    with pytest.raises(shmipc.OutOfMemory, match="cannot map 5000 bytes"):
        shmipc.SharedMemory(create=True, size=5000, track=track)
    with pytest.raises(shmipc.OutOfMemory, match="cannot map 100 bytes"):
        shmipc.SharedMemory(opened.name)
    assert set(our_names()) == {opened.name}
    opened.close()


def test_unlink_removes_no_later_segment_of_the_same_name() -> None:
    name = f"{NAMESPACE}-twice"
    first = shmipc.SharedMemory(name, True, 10, track=False)
    first.unlink()
    second = shmipc.SharedMemory(name, True, 20, track=False)
    with pytest.raises(FileNotFoundError, match="removed before"):
        first.unlink()
    first.close()
    assert shmipc.SharedMemory(name).size == 20
    second.close()
    second.unlink()  # closed, and it is that one's still
    with pytest.raises(shmipc.NotFound):
        second.unlink()


def test_tracked_segment_is_so_from_the_moment_that_it_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after that, it stayed for ever; who opened it in between had no lock, and took itself to be tracked."""
    seen = []
    make = posix_ipc.SharedMemory

    def look(name: str, *arguments: Any, **keywords: Any) -> Any:
        made = make(name, *arguments, **keywords)
        seen.append(stat.S_IMODE(os.stat(f"/dev/shm{name}").st_mode))
        return made

    monkeypatch.setattr(posix_ipc, "SharedMemory", look)
    before = os.umask(0o077)
    try:
        for track in (True, False):
            shmipc.SharedMemory(create=True, size=10, track=track).unlink()
    finally:
        os.umask(before)
    assert seen == [0o1600, 0o600]
