"""The hint that memory ran out: from files as the kernel writes them, and once by the kernel itself."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from shmipc.base import oom
from tests.programs import Program

V1 = "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n"
V2 = "low 0\nhigh 0\nmax 3\noom 2\noom_kill {}\noom_group_kill 0\n"
# /proc/self/cgroup, and where the kernel counts then
TREES = {
    "v2": ("0::/user.slice/a\n", "user.slice/a/memory.events", V2),
    "v1": ("5:cpu:/b\n4:memory:/user/a\n0::/\n", "memory/user/a/memory.oom_control", V1),
    "v1, joined with another": ("4:cpuset,memory:/a\n", "cpuset,memory/a/memory.oom_control", V1),
    "both, v2 counts memory": ("9:name=systemd:/\n0::/a\n", "unified/a/memory.events", V2),
    "v2, a container's own root": ("0::/docker/0123\n", "memory.events", V2),
    "v1, a container's own root": ("4:memory:/docker/0123\n", "memory/memory.oom_control", V1),
}


class Tree:
    def __init__(self, root: Path, kind: str) -> None:
        lines, place, self.text = TREES[kind]
        self.mount, self.own = root / "cgroup", root / "own"
        self.file = self.mount / place
        self.file.parent.mkdir(parents=True)
        self.own.write_text(lines)
        self.count(0)
        self.kills = oom.Kills(self.mount, self.own)
        self.kills.begin()

    def count(self, kills: int) -> None:
        self.file.write_text(self.text.format(kills))


@pytest.mark.row("M8")
@pytest.mark.parametrize("kind", TREES)
def test_each_kill_that_the_cgroup_counts_explains_one_death(tmp_path: Path, kind: str) -> None:
    tree = Tree(tmp_path, kind)
    assert not tree.kills.claim()
    tree.count(2)
    assert [tree.kills.claim() for _ in range(4)] == [True, True, False, False]
    tree.count(3)
    assert [tree.kills.claim() for _ in range(2)] == [True, False]


def test_kills_before_this_process_began_to_look_explain_nothing(tmp_path: Path) -> None:
    tree = Tree(tmp_path, "v2")
    tree.count(7)
    later = oom.Kills(tree.mount, tree.own)
    later.begin()
    assert not later.claim()


def test_forked_child_counts_from_when_its_parent_was_about_to_fork_it(tmp_path: Path) -> None:
    tree = Tree(tmp_path, "v2")
    parent = oom.Kills(tree.mount, tree.own)
    parent.find()
    tree.count(3)
    parent.begin_for_child()
    tree.count(4)  # while the child starts
    told = os.pipe()
    child = os.fork()
    if child == 0:
        parent.begin()
        os.write(told[1], bytes([parent.claim(), parent.claim()]))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert os.read(told[0], 8) == bytes([True, False])
    for descriptor in told:
        os.close(descriptor)


def test_kill_that_was_seen_long_ago_explains_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = Tree(tmp_path, "v1")
    tree.count(2)
    assert tree.kills.claim()
    later = oom.time.monotonic() + 2 * oom.FRESH_SECONDS
    monkeypatch.setattr(oom.time, "monotonic", lambda: later)
    assert not tree.kills.claim()


@pytest.mark.parametrize("text", ["", "oom_kill\n", "oom_kill many\n", "under_oom 0\n"])
def test_file_without_a_count_explains_nothing(tmp_path: Path, text: str) -> None:
    tree = Tree(tmp_path, "v1")
    tree.file.write_text(text)
    assert not tree.kills.claim()


def test_machine_without_a_memory_controller_explains_nothing(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("4:memory:/a\n0::/\n")
    assert not oom.Kills(tmp_path / "nowhere", own).claim()
    assert not oom.Kills(tmp_path, tmp_path / "nothing").claim()


MEMORY_BYTES = 300 << 20
PROGRAM = """
class Eater:
    def eat(self):
        eaten = []
        while True:
            eaten.append(np.ones(1 << 20, np.uint64))

with shmipc.System(memory_limit=16 << 20) as system:
    eater = system.spawn(Eater)
    watch = shmipc.monitor(eater)
    try:
        eater.eat.call(timeout=60)
    except shmipc.PeerDead as error:
        say([str(error), error.reason, error.signal, error.service, error.hint])
    say(shmipc.receive(kind=shmipc.Kind.EXIT, timeout=10).body.hint)
    assert shmipc.process(eater).join(60)  # its memory is given back, or the kernel might end one more for it
    other = system.spawn(Eater)
    os.kill(shmipc.process(other).pid, signal.SIGKILL)
    try:
        other.eat.call(timeout=60)
    except shmipc.PeerDead as error:
        say([error.reason, error.signal, error.hint])
"""


def cgroup_of_our_own(name: str) -> Path:
    """A new memory cgroup below ours with a limit; skips where none can be made."""
    counter = oom.counter_file(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"))
    if counter is None:
        pytest.skip("no memory controller counts what the out-of-memory killer does here")
    v1 = counter.name == "memory.oom_control"
    if not v1 and "memory" not in (counter.parent / "cgroup.subtree_control").read_text().split():
        pytest.skip(f"{counter.parent} gives its children no memory controller")
    folder = counter.parent / name
    try:
        folder.mkdir()
        (folder / ("memory.limit_in_bytes" if v1 else "memory.max")).write_text(str(MEMORY_BYTES))
        swap = folder / ("memory.memsw.limit_in_bytes" if v1 else "memory.swap.max")
        if swap.exists():
            swap.write_text(str(MEMORY_BYTES) if v1 else "0")
    except OSError as error:
        if folder.exists():
            folder.rmdir()
        pytest.skip(f"no cgroup can be made below {counter.parent}: {error.strerror}")
    return folder


def counter_in(folder: Path) -> Path:
    return next(path for name in ("memory.events", "memory.oom_control") if (path := folder / name).is_file())


def is_removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError:
        return False
    return True


@pytest.mark.row("M8")
@pytest.mark.allows_rescue
def test_death_for_want_of_memory_says_so_and_another_does_not(tmp_path: Path, eventually: Callable[..., None]) -> None:
    folder = cgroup_of_our_own(f"shmipc-test-{os.getpid()}")
    try:
        enter = ("sh", "-c", f'echo $$ > "{folder}/cgroup.procs" && exec "$@"', "sh")
        with Program(tmp_path, PROGRAM, prefix=enter) as program:
            text, *told = program.hear()
            assert told == ["signal", 9, "eat", oom.HINT]
            assert text.endswith(f"signal 9) while it ran eat; {oom.HINT}")
            assert program.hear() == oom.HINT
            kills = oom.count_in(counter_in(folder))  # the kernel ends one more now and then, and each explains a death
            assert program.hear() in (["signal", 9, None], ["signal", 9, oom.HINT if kills != 1 else None])
            assert program.process.wait(30.0) == 0
    finally:
        eventually(lambda: is_removed(folder))  # a process that has ended is still of it for a moment
