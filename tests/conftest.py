"""What holds for every test: its own names, nothing left behind, stacks on a hang, rows of the specification.

Each test process works in a namespace, SHMIPC_NAMESPACE, which shmipc puts into the name of every system and which
its processes inherit; so what a test leaves is told from what its neighbours are using.
"""

import gc
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
NAMESPACE = f"t{os.getpid()}{os.environ.get('PYTEST_XDIST_WORKER', 'main')}"
os.environ["SHMIPC_NAMESPACE"] = NAMESPACE  # before the first import of shmipc
os.environ.setdefault("PYTHONFAULTHANDLER", "1")
# Actors defined in a test module are found by their workers; last, so that shmipc is the test build, not the sources.
sys.path.append(str(ROOT))

import psutil  # noqa: E402
import pytest  # noqa: E402

SHM = Path("/dev/shm")
LASTING = {f"shmipc.{os.getuid()}.lock"}  # the user's creation lock, which is never swept

# --- the session -----------------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rows", metavar="A12,B3", help="only tests of these rows; a letter means all its rows")
    parser.addoption(
        "--patience", type=float, default=5.0, metavar="S", help="how long what a test leaves may take to go"
    )
    parser.addoption("--repeat", type=int, default=1, metavar="N", help="run each test N times")
    parser.addoption("--full", action="store_true", help="as many rounds as the rows say, where the gate runs fewer")


def pytest_sessionstart(session: pytest.Session) -> None:
    if session.config.option.collectonly:
        return
    try:
        from shmipc import _native
    except ImportError as error:
        pytest.exit(f"the test build cannot be imported ({error}): run `make test`", returncode=4)
    if not getattr(_native, "KILL_POINTS", ()):
        pytest.exit(f"{_native.__file__} has no kill points, so it is no test build: run `make test`", returncode=4)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if (count := metafunc.config.option.repeat) > 1:
        metafunc.fixturenames.append("repetition")
        metafunc.parametrize("repetition", range(count))


def pytest_itemcollected(item: pytest.Item) -> None:
    if item.path.parent.name == "crash":
        item.add_marker("race")
    for mark in item.iter_markers("row"):
        for row in mark.args:
            if not re.fullmatch(r"[A-Z][1-9][0-9]*", row):
                raise pytest.UsageError(f"{item.nodeid}: {row!r} is no row")
            item.user_properties.append(("row", row))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.option.rows:
        return
    wanted = {row.strip() for row in config.option.rows.split(",")}
    kept = [item for item in items if any(row in wanted or row[0] in wanted for _, row in item.user_properties)]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


def pytest_terminal_summary(terminalreporter: Any) -> None:
    rows: dict[str, set[str]] = {}
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            for key, row in getattr(report, "user_properties", []):
                if key == "row":
                    rows.setdefault(row, set()).add(outcome)
    if not rows:
        return
    ordered = sorted(rows, key=lambda row: (row[0], int(row[1:])))
    held = [row for row in ordered if rows[row] == {"passed"}]
    terminalreporter.write_line(f"rows asserted ({len(held)}): {' '.join(held)}")
    if broken := [row for row in ordered if rows[row] != {"passed"}]:
        terminalreporter.write_line(f"rows failed or skipped ({len(broken)}): {' '.join(broken)}")


# --- a hang ----------------------------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> Iterator[None]:
    """Before pytest-timeout ends the test, its processes tell their stacks: afterwards they are gone."""
    result = yield
    alarm = signal.getsignal(signal.SIGALRM)
    if callable(alarm):

        def tell_and_end(signum: int, frame: Any) -> None:
            for process in our_processes():
                tell_stacks(process)
            threading.Event().wait(0.5)  # for them to write
            alarm(signum, frame)

        signal.signal(signal.SIGALRM, tell_and_end)
    return result


def tell_stacks(process: psutil.Process) -> None:
    """Ask a process for its stacks, on its own stderr; one without the handler would die of the question."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
        caught = int(status.split("SigCgt:")[1].split()[0], 16)
        if caught >> (signal.SIGUSR1 - 1) & 1:
            process.send_signal(signal.SIGUSR1)
            process.send_signal(signal.SIGCONT)
    except (OSError, psutil.Error, IndexError):
        pass


# --- nothing left ----------------------------------------------------------------------------------------------


def our_names() -> set[str]:
    return {name for name in os.listdir(SHM) if NAMESPACE in name}


def our_processes(known: Container[int] = frozenset()) -> set[psutil.Process]:
    """Processes, but those of the pids `known`, that carry our namespace in their environment or descend from us."""
    mark = f"SHMIPC_NAMESPACE={NAMESPACE}\0".encode()
    found = set()
    for pid in psutil.pids():
        if pid == os.getpid() or pid in known:
            continue
        try:
            if is_descendant(pid) or mark in Path(f"/proc/{pid}/environ").read_bytes() + b"\0":
                found.add(psutil.Process(pid))
        except (OSError, psutil.Error):
            continue
    return found


def is_descendant(pid: int) -> bool:
    """Whether this process is an ancestor of `pid`."""
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        if pid == os.getpid():
            return True
    return False


def our_descriptors() -> dict[int, tuple[int, int]]:
    """Each open descriptor and the identity of its file."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            status = os.fstat(int(name))
        except OSError:  # the listing's own
            continue
        found[int(name)] = (status.st_dev, status.st_ino)
    return found


def wait_until(condition: Callable[[], bool], timeout: float) -> bool:
    """Whether the condition came true within `timeout` seconds."""
    deadline, pause = time.monotonic() + timeout, threading.Event()
    while not condition():
        if time.monotonic() > deadline:
            return False
        pause.wait(0.005)
    return True


class Remains:
    """What is there now and was not there when this was made."""

    def __init__(self) -> None:
        self.names = our_names()
        self.pids = frozenset(psutil.pids())
        self.descriptors = our_descriptors()

    def new_names(self) -> set[str]:
        return our_names() - self.names

    def new_processes(self) -> set[psutil.Process]:
        return {process for process in our_processes(self.pids) if not self.is_spare(process)}

    def is_spare(self, process: psutil.Process) -> bool:
        """The spare child of a zygote that a module shares goes by itself, or with its zygote."""
        try:
            return process.name() == "shm:spare" and process.ppid() in self.pids
        except psutil.Error:
            return False

    def new_descriptors(self) -> list[int]:
        return [fd for fd, file in our_descriptors().items() if self.descriptors.get(fd) != file]

    def gone(self) -> bool:
        return not (self.new_names() or self.new_descriptors() or self.new_processes())

    def clean(self, patience: float) -> list[str]:
        """Remove names and processes that stay; one line for each, and for each descriptor."""
        if not self.gone():
            gc.collect()
            wait_until(self.gone, patience)
        return [
            *[describe_and_kill(process) for process in sorted(self.new_processes(), key=lambda p: p.pid)],
            *[describe_and_unlink(name) for name in sorted(self.new_names())],
            *[f"descriptor {fd}: {target(f'/proc/self/fd/{fd}')}" for fd in self.new_descriptors()],
        ]


def target(link: str) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return "closed meanwhile"


def describe_and_kill(process: psutil.Process) -> str:
    text = f"process {process.pid}"
    try:
        text += f", {process.status()}, child of {process.ppid()}"
        text += f": {' '.join(process.cmdline())}"
    except psutil.Error:
        pass
    try:
        process.kill()  # by number and start time, so never a stranger
        process.wait(5.0)
    except psutil.Error:
        pass
    return text


def describe_and_unlink(name: str) -> str:
    path = SHM / name
    try:
        text = f"name {path}, {path.stat().st_size} bytes"
        path.unlink()
    except OSError as error:
        return f"name {path}: {error}"
    return text


def take_rescued() -> int:
    """How many waits of this process a slice had to rescue since the last question."""
    from shmipc import _native

    return int(getattr(_native, "take_rescued", lambda: 0)())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report: Any = yield
    item.stash.setdefault(FAILED, False)
    item.stash[FAILED] |= report.failed
    return report


FAILED = pytest.StashKey[bool]()


@pytest.fixture(autouse=True)
def leaves_nothing(request: pytest.FixtureRequest) -> Iterator[None]:
    """No name, process or descriptor outlives the test, and no wait of it was rescued by a slice."""
    if request.path.parent.name == "architecture":  # reads files only
        yield
        return
    take_rescued()
    before = Remains()
    yield
    faults = before.clean(request.config.option.patience)
    rescued = take_rescued()
    if rescued and request.node.get_closest_marker("allows_rescue") is None:
        faults.append(f"{rescued} rescued waits: a slice found true what nobody had posted")
    if faults:
        told = "the test left\n  " + "\n  ".join(faults)
        if request.node.stash.get(FAILED, False):  # its traceback may be what holds them
            request.node.add_report_section("teardown", "left behind", told)
        else:
            pytest.fail(told, pytrace=False)


@pytest.fixture(autouse=True, scope="session")
def session_leaves_nothing(request: pytest.FixtureRequest) -> Iterator[None]:
    """The same for what modules share, and for names made by a process that had lost the namespace."""
    before, strangers = Remains(), nameless()
    yield
    faults = [line for line in before.clean(request.config.option.patience) if not line.startswith("descriptor")]
    faults += [f"name {SHM / name}, made outside the namespace" for name in nameless() - strangers - mapped_names()]
    if faults:
        pytest.fail("the session left\n  " + "\n  ".join(faults), pytrace=False)


def nameless() -> set[str]:
    """Names of shmipc in no test's namespace."""
    return {name for name in os.listdir(SHM) if name.startswith("shmipc") and "~" not in name} - LASTING


def mapped_names() -> set[str]:
    """Names that some process is using; those are its own affair."""
    found = set()
    for pid in psutil.pids():
        try:
            found |= set(re.findall(r"/dev/shm/(\S+)", Path(f"/proc/{pid}/maps").read_text()))
            found |= {Path(target(link)).name for link in Path(f"/proc/{pid}/fd").iterdir()}
        except OSError:
            continue
    return found


# --- for tests -------------------------------------------------------------------------------------------------


@pytest.fixture
def eventually() -> Callable[..., None]:
    """`eventually(condition, timeout=10.0)`: wait for a condition instead of sleeping."""

    def wait(condition: Callable[[], object], timeout: float = 10.0) -> None:
        assert wait_until(lambda: bool(condition()), timeout), f"not within {timeout} s"

    return wait


@pytest.fixture
def rounds(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    """`rounds(of_the_row, in_the_gate)`: how many to run; `--full` asks for the first."""
    full = bool(request.config.option.full)
    return lambda of_the_row, in_the_gate: of_the_row if full else in_the_gate


@pytest.fixture(scope="module")
def home() -> Iterator[Any]:
    """A system of all tests of a module. What is spawned in it for all is spawned by an autouse fixture: else a test
    with a system of its own leaves the zygote to this one.
    """
    import shmipc

    with shmipc.System() as made:
        yield made


@pytest.fixture
def system() -> Iterator[Any]:
    """A system of this process, shut down in order afterwards."""
    import shmipc

    with shmipc.System() as made:
        yield made
