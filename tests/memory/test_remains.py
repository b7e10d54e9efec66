"""What a next start finds: half made systems, files deleted by hand, systems of another layout, of other users."""

import os
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import pytest

import shmipc
from shmipc import _native
from shmipc.memory import segments
from tests.conftest import NAMESPACE, ROOT, SHM
from tests.programs import Program, lives

NAME = "found"
MAGIC, SIGNATURE, STATE, SEGMENT_BYTES, MEMBERS, MEMBER_BYTES = 0, 8, 20, 32, 48, 56  # native/memory/layout.h
HEADER_ROOT = 152
MAKING, READY, CLOSED = 1, 2, 3
JOINING, LIVE = 1, 2
WATCHDOG_SECONDS = 10.0

CREATE_AND_DIE = """
    system = shmipc.System(sys.argv[1]) if sys.argv[1] != "default" else None
    box = shmipc.Mailbox.create("box", persistent=True)
    box.send(list(range(100)))
    say("made")
    hear()
    """


def our_names() -> set[str]:
    return {name for name in os.listdir(SHM) if NAMESPACE in name}


def make_and_kill(folder: Path, name: str = NAME) -> segments.Paths:
    """A system whose every process was killed."""
    with Program(folder, CREATE_AND_DIE, name) as program:
        assert program.hear() == "made"
        program.kill_all()
    paths = segments.Paths.of(segments.default_name() if name == "default" else name)
    assert paths.segment.exists()
    assert paths.life.exists()
    return paths


def poke(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def peek(path: Path, offset: int, form: str) -> Any:
    with path.open("rb") as file:
        file.seek(offset)
        return struct.unpack(form, file.read(struct.calcsize(form)))[0]


def next_start_works(name: str = NAME) -> None:
    with shmipc.System(name):
        box = shmipc.Mailbox.create("box")
        box.send("fresh")
        assert box.receive(timeout=0) == "fresh"
    assert our_names() == set()


# --- half made -------------------------------------------------------------------------------------------------


def first_member(paths: segments.Paths) -> int:
    return int(peek(paths.segment, MEMBERS, "<Q") + peek(paths.segment, MEMBER_BYTES, "<I"))


def zero(paths: segments.Paths, offset: int, count: int) -> None:
    poke(paths.segment, offset, bytes(count))


def set_state(paths: segments.Paths, state: int) -> None:
    poke(paths.segment, STATE, struct.pack("<I", state))


def set_member_state(paths: segments.Paths, state: int) -> None:
    at = first_member(paths)
    word = peek(paths.segment, at, "<Q")
    poke(paths.segment, at, struct.pack("<Q", word & ~0xF | state))


def only_claimed(paths: segments.Paths) -> None:
    zero(paths, first_member(paths), peek(paths.segment, MEMBER_BYTES, "<I"))
    poke(paths.segment, first_member(paths), struct.pack("<Q", 1 << 20 | JOINING))


HALF_MADE: dict[str, Callable[[segments.Paths], object]] = {
    "life locks alone": lambda p: p.segment.unlink(),
    "segment alone, empty": lambda p: (p.life.unlink(), os.truncate(p.segment, 0)),
    "empty": lambda p: os.truncate(p.segment, 0),
    "shorter than its header": lambda p: os.truncate(p.segment, 40),
    "sized": lambda p: zero(p, 0, 4096),
    "laid out, no magic": lambda p: (zero(p, MAGIC, 8), set_state(p, MAKING)),
    "making": lambda p: set_state(p, MAKING),
    "magic torn": lambda p: poke(p.segment, MAGIC, b"shmi"),
    "ready, no member": lambda p: zero(p, first_member(p), peek(p.segment, MEMBER_BYTES, "<I")),
    "slot claimed": only_claimed,
    "slot described": lambda p: set_member_state(p, JOINING),
    "live, no root": lambda p: zero(p, HEADER_ROOT, 8),
    "closed": lambda p: set_state(p, CLOSED),
    "cut off": lambda p: os.truncate(p.segment, 1 << 16),
    "sizes that cannot be": lambda p: poke(p.segment, SEGMENT_BYTES, struct.pack("<Q", 1 << 50)),
}
STATES_SEEN = {
    "empty": "empty",
    "shorter than its header": "making",
    "sized": "making",
    "laid out, no magic": "making",
    "making": "making",
    "ready, no member": "ready",
    "slot claimed": "ready",
    "slot described": "ready",
    "live, no root": "ready",
    "closed": "closed",
    "sizes that cannot be": "corrupted",
    "cut off": "corrupted",
}


OPENINGS = [(state, opener) for state in HALF_MADE for opener in ("attach", "create", "sweep")]


@pytest.mark.row("M5")
@pytest.mark.parametrize(("state", "opener"), OPENINGS if os.environ.get("SHMIPC_FULL") else OPENINGS[::2])
def test_opener_of_a_half_made_system_reports_or_repairs_it(tmp_path: Path, state: str, opener: str) -> None:
    paths = make_and_kill(tmp_path)
    HALF_MADE[state](paths)
    if state in STATES_SEEN:
        descriptor = os.open(paths.segment, os.O_RDWR)
        try:
            assert _native.segment_state(descriptor) == STATES_SEEN[state]
        finally:
            os.close(descriptor)
    started = time.monotonic()
    if opener == "attach":
        with pytest.raises(shmipc.NotFound):
            shmipc.System.attach(NAME)
        with pytest.raises(shmipc.NotFound):
            shmipc.System.attach(NAME, timeout=0.2)
        assert our_names() == set()
    elif opener == "sweep":
        with shmipc.System("another"):
            assert not any(name.endswith((f"~{NAME}", f"~{NAME}.life")) for name in our_names())
    next_start_works()
    assert time.monotonic() - started < WATCHDOG_SECONDS


KILLED_CREATOR = """
    import posix_ipc
    from shmipc.memory import segments
    where = sys.argv[1]
    made = 0
    real = segments.make_file
    def make_file(path, size):
        global made
        if where == f"before file {made}":
            os.kill(os.getpid(), signal.SIGKILL)
        descriptor = real(path, size)
        made += 1
        if where == f"after file {made}":
            os.kill(os.getpid(), signal.SIGKILL)
        return descriptor
    segments.make_file = make_file
    if where in _native.KILL_POINTS:
        _native.kill_point_arm(where)
    shmipc.System("found")
    say("alive")
    """
KILLED_AT = ["before file 0", "after file 1", "after file 2", "member_claim", "member_lock", "member_live"]


@pytest.mark.row("M5")
@pytest.mark.race
@pytest.mark.parametrize("where", KILLED_AT)
def test_next_opener_is_not_held_up_by_a_creator_that_was_killed(tmp_path: Path, where: str) -> None:
    with Program(tmp_path, KILLED_CREATOR, where) as creator:
        assert creator.process.wait(60.0) == -signal.SIGKILL
    started = time.monotonic()
    with pytest.raises(shmipc.NotFound):
        shmipc.System.attach(NAME)
    with Program(tmp_path, KILLED_CREATOR, where) as creator:
        assert creator.process.wait(60.0) == -signal.SIGKILL
    next_start_works()
    assert time.monotonic() - started < 6 * WATCHDOG_SECONDS


# --- deleted by hand -------------------------------------------------------------------------------------------

FILES = ("segment", "life", "lock")
SUBSETS = list(chain.from_iterable(combinations(FILES, count) for count in range(len(FILES) + 1)))
DEFAULT = """
    box = shmipc.Mailbox.create("box")
    box.send("fresh")
    say(box.receive(timeout=0))
    """


@pytest.mark.xdist_group("lock of the user")  # which these delete, and all tests share
@pytest.mark.row("M6")
@pytest.mark.parametrize("name", [NAME, "default"])
@pytest.mark.parametrize("deleted", SUBSETS, ids=lambda subset: "+".join(subset) or "none")
def test_next_start_works_whatever_was_deleted_while_stopped(
    tmp_path: Path, deleted: tuple[str, ...], name: str
) -> None:
    paths = make_and_kill(tmp_path, name)
    lock = SHM / f".shmipc.{os.getuid()}.lock"
    files = {"segment": paths.segment, "life": paths.life, "lock": lock}
    for which in deleted:
        files[which].unlink(missing_ok=True)
    if name == "default":
        with Program(tmp_path, DEFAULT) as program:
            assert program.hear() == "fresh"
            assert program.process.wait(60.0) == 0
    else:
        next_start_works()
    assert our_names() == set()
    assert lock.exists()


# --- another layout --------------------------------------------------------------------------------------------

OTHER_BUILD = """
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "memory/member.h"

int main(int argc, char **argv)
{
    struct shm_segment segment;
    struct shm_member member;
    struct shm_config config = {.uid = getuid(), .max_members = 8, .memory_limit = 1 << 20};
    if (argc == 3 && strcmp(argv[1], "attach") == 0) {
        printf("%d\\n", shm_segment_attach(&segment, open(argv[2], O_RDWR)));
        return 0;
    }
    int fd = open(argv[1], O_RDWR | O_CREAT | O_EXCL, 0600);
    int life = open(argv[2], O_RDWR | O_CREAT | O_EXCL, 0600);
    if (fd < 0 || life < 0 || shm_segment_format(&segment, fd, &config) ||
        shm_member_join(&member, &segment, 0, SHM_KIND_ROOT, "other", argv[2]))
        return 1;
    puts("ready");
    fflush(stdout);
    pause();
}
"""
SHM_LAYOUT = -14  # native/base/status.h


@pytest.fixture(scope="module")
def other_build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program made of the core's sources with another version, and with longer member records."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        pytest.skip("no C compiler to make the other build with")
    folder = tmp_path_factory.mktemp("other")
    shutil.copytree(ROOT / "native", folder / "native")
    layout = folder / "native/memory/layout.h"
    text = layout.read_text()
    changed = text.replace("#define SHM_VERSION 1\n", "#define SHM_VERSION 2\n").replace(
        "    char name[SHM_NAME_BYTES];\n", "    char name[SHM_NAME_BYTES];\n    uint64_t of_a_later_version[8];\n", 1
    )
    assert changed.count("\n") == text.count("\n") + 1
    size = "_Static_assert(sizeof(struct shm_member_record) == 256,"
    assert size in changed
    layout.write_text(changed.replace(size, size.replace("256", "320")))
    (folder / "main.c").write_text(OTHER_BUILD)
    sources = [str(path) for part in ("base", "memory", "transport") for path in (folder / "native" / part).glob("*.c")]
    program = folder / "program"
    command = [compiler, "-std=gnu11", "-w", "-I", str(folder / "native"), str(folder / "main.c"), *sources]
    subprocess.run([*command, "-o", str(program), "-lpthread", "-lrt"], check=True, timeout=120)
    return program


@pytest.fixture
def others(other_build: Path) -> Iterator[subprocess.Popen[str]]:
    """A living system ``found`` of the other build."""
    paths = segments.Paths.of(NAME)
    with subprocess.Popen(
        [str(other_build), str(paths.segment), str(paths.life)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()
        process.wait()
    segments.sweep()


@pytest.mark.row("M21")
def test_living_system_of_another_layout_is_refused_and_left_alone(others: subprocess.Popen[str]) -> None:
    paths = segments.Paths.of(NAME)
    before = [os.stat(path).st_ino for path in (paths.segment, paths.life)]
    for timeout in (0.0, 0.1):
        with pytest.raises(shmipc.LayoutMismatch, match=NAME):
            shmipc.System.attach(NAME, timeout=timeout)
    with pytest.raises(shmipc.NameTaken):
        shmipc.System(NAME)
    for _ in range(2):
        with shmipc.System("ours"):  # its start and its end look at all that is there
            assert NAME not in segments.sweep()
    assert [os.stat(path).st_ino for path in (paths.segment, paths.life)] == before
    assert lives(others.pid)


@pytest.mark.row("M21")
@pytest.mark.parametrize("opener", ["attach", "create", "sweep"])
def test_dead_remains_of_another_layout_are_swept(others: subprocess.Popen[str], opener: str) -> None:
    others.kill()
    others.wait()
    assert len(our_names()) == 2
    if opener == "attach":
        with pytest.raises(shmipc.NotFound):
            shmipc.System.attach(NAME)
        assert our_names() == set()
    elif opener == "sweep":
        assert segments.sweep() == [NAME]
    next_start_works()


@pytest.mark.row("M21")
def test_other_build_refuses_ours(system: shmipc.System, other_build: Path) -> None:
    path = segments.Paths.of(system.name).segment
    done = subprocess.run(
        [str(other_build), "attach", str(path)], capture_output=True, text=True, timeout=60, check=True
    )
    assert int(done.stdout) == SHM_LAYOUT


# --- other users -----------------------------------------------------------------------------------------------

NOBODY = 65534


@pytest.fixture
def strangers_file() -> Iterator[Callable[[Path, str], Path]]:
    """`strangers_file(path, kind)`: a file there that belongs to another user, or what is none."""
    if os.getuid() != 0:
        pytest.skip("only root can make another user's file")
    made: list[Path] = []

    def make(path: Path, kind: str) -> Path:
        made.append(path)
        if kind == "file":
            path.write_bytes(bytes(4096))
        elif kind == "link":
            path.symlink_to("/etc/passwd")
        elif kind == "fifo":
            os.mkfifo(path)
        else:
            path.mkdir()
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
        return path

    yield make
    for path in made:
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()


@pytest.mark.row("M9")
@pytest.mark.parametrize("kind", ["file", "link", "fifo", "folder"])
@pytest.mark.parametrize("which", ["segment", "life"])
def test_file_of_another_user_is_reported_and_never_removed(
    strangers_file: Callable[[Path, str], Path], which: str, kind: str
) -> None:
    """/dev/shm is sticky: we could not remove it, and must not take its locks for a liveness."""
    path = strangers_file(getattr(segments.Paths.of(NAME), which), kind)
    with pytest.raises(shmipc.AccessDenied):
        shmipc.System(NAME)
    with pytest.raises((shmipc.AccessDenied, shmipc.NotFound)):
        shmipc.System.attach(NAME)
    with shmipc.System("ours"):  # and its sweep does not stop at it
        assert segments.sweep() == []
    assert path.lstat().st_uid == NOBODY
    assert our_names() == {path.name}
