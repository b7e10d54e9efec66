"""A process that was let in writes anything into the segment: the others get `Corrupted` or go on.

Written to are the header, all tables, and of each ring everything but the bodies. Bodies are out of reach on purpose:
some are pickles, and a pickle of the same user is trusted (docs/explanation/failure-model.md, "Hostile bytes"). The
core alone is fuzzed in tests/native (test_hostile, make fuzz).
"""

import inspect
import mmap
import os
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import shmipc
from tests.programs import Program

RING_BYTES_BEFORE_SETS = 640  # at least what struct shm_ring takes, whose fields are not all named in layout()
WATCHDOG = 120.0

# What every process of a round does until it is told to stop. Bytes bodies hold no opcode of pickle, so that one which
# is taken for a pickle is refused at once.
WORK = """
import pickle, random, traceback
errors = shmipc.ShmipcError
unreadable = (pickle.UnpicklingError, EOFError, ValueError, TypeError, OverflowError, MemoryError, LookupError,
              AttributeError, ImportError, UnicodeError)
counts = {}
stop = threading.Event()

def count(what):
    counts[what] = counts.get(what, 0) + 1

def bodies(rng):
    return b"\\xff" * rng.choice((1, 60, 64, 65, 5000))

def send(rng):
    inbox.send(bodies(rng), timeout=0.05)

def send_array(rng):
    array = shmipc.zeros(rng.choice((10, 2000)), np.uint8)
    inbox.send(array, timeout=0.05)

def receive(rng):
    body = inbox.receive(timeout=0.05)
    if isinstance(body, np.ndarray):
        int(body.sum())

def receive_tagged(rng):
    inbox.receive_message(tag=rng.choice((5, 6)), timeout=0.01)

def post(rng):
    inbox.post(bodies(rng), tag=rng.choice((5, 6)), timeout=0.05)

def call(rng):
    asked.call(bodies(rng), timeout=0.1)

def submit(rng):
    future = asked.submit(bodies(rng), timeout=0.3)
    future.result(timeout=0.2)

def answer(rng):
    shmipc.reply(asked.receive_message(timeout=0.05), bodies(rng))

def look(rng):
    system.statistics(), len(inbox), inbox.name, repr(inbox.header), int(inbox.slots["len"].sum())
    system._membership.member.members()

def come_again(rng):
    shmipc.Mailbox.open(rng.choice(("inbox", "asked")), system=system).close()

def work(seed):
    rng = random.Random(seed)
    doings = [send, send_array, receive, receive, receive_tagged, post, call, submit, answer, answer, look, come_again]
    while not stop.is_set():
        doing = rng.choice(doings)
        try:
            doing(rng)
            count("ok")
        except errors as error:
            count(type(error).__name__)
        except unreadable as error:
            count("unreadable")
        except BaseException:
            count("unexpected: " + traceback.format_exc())
            return

threads = [threading.Thread(target=work, args=(int(sys.argv[2]) + n,)) for n in range(2)]
say("ready")
hear()
for thread in threads:
    thread.start()
hear()
stop.set()
for thread in threads:
    thread.join()
say(counts)
"""

ROOT = (
    """
system = shmipc.System(sys.argv[1], memory_limit=32 << 20)
inbox = shmipc.Mailbox.create("inbox", 16, 64, system=system)
asked = shmipc.Mailbox.create("asked", 16, 64, system=system)
"""
    + WORK
)

# Writes words at places it is told, as fast as it is told to, through a mapping of its own.
SCRIBBLER = """
import mmap, random
path, seed, pause = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
ranges = hear()
rng = random.Random(seed)
fd = os.open(path, os.O_RDWR)
words = np.frombuffer(mmap.mmap(fd, 0), np.uint64)
say("ready")
hear()
stop = threading.Event()

def scribble():
    while not stop.wait(pause):
        start, end = ranges[rng.randrange(len(ranges))]
        at = rng.randrange(start // 8, end // 8)
        old = int(words[at])
        words[at] = rng.choice((0, 2**64 - 1, old + 1, old - 1, old ^ 1 << rng.randrange(64), rng.randrange(64),
                                rng.randrange(2**32) << 32 | old & 0xFFFFFFFF, rng.randrange(2**64))) % 2**64

thread = threading.Thread(target=scribble)
thread.start()
hear()
stop.set()
thread.join()
"""


def paths_of(name: str) -> list[Path]:
    ours = (path for path in Path("/dev/shm").iterdir() if path.name.startswith("shmipc"))
    return [path for path in ours if path.name.removesuffix(".life").endswith(name)]


def segment_of(name: str) -> Path:
    """The file that is mapped; the other holds the life locks."""
    return max(paths_of(name), key=lambda path: path.stat().st_size)


@contextmanager
def cleared(name: str) -> Iterator[None]:
    """A scribbled header may not say any more whose files these are: they go here."""
    try:
        yield
    finally:
        for path in paths_of(name):
            path.unlink(missing_ok=True)


def ring_at(mailbox: Any) -> int:
    """Where the ring of a mailbox lies in the file."""
    address = mailbox.header.__array_interface__["data"][0]
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, offset, *rest = line.split(maxsplit=5)
        low, high = (int(part, 16) for part in span.split("-"))
        if low <= address < high:
            assert "shmipc" in rest[-1]
            return address - low + int(offset, 16)
    raise AssertionError("the ring is not mapped")


def places_of_ring(mailbox: Any) -> list[tuple[int, int]]:
    """Its head with the waiter sets, the list of what is set aside, and all of its slots but the bodies."""
    at, layout = ring_at(mailbox), mailbox.layout()
    stride, count = layout["slot_stride"], layout["slots_count"]
    slots = [at + layout["slots"] + n * stride for n in range(count)]
    slots += [at + layout["bodies"] + n * stride for n in range(mailbox.capacity)]
    ring = [
        (at, at + RING_BYTES_BEFORE_SETS),
        (at, at + layout["slots"]),
        (at + layout["asides"], at + layout["bodies"]),
    ]
    return ring * 8 + [(slot, slot + 64) for slot in slots]


def places_in_tables(path: Path) -> list[tuple[int, int]]:
    """The pages in use before the heap."""
    found = []
    fd = os.open(path, os.O_RDONLY)
    try:
        heap = int.from_bytes(os.pread(fd, 8, 80), "little")
        at = 0
        while (at := os.lseek(fd, at, os.SEEK_DATA)) < heap:
            end = os.lseek(fd, at, os.SEEK_HOLE)
            found += [(page, page + 4096) for page in range(at, min(end, heap), 4096)]
            at = end
    finally:
        os.close(fd)
    return found


def one_has_ended(*programs: Program) -> bool:
    return any(program.process.poll() is not None for program in programs)


def end_of(program: Program) -> int:
    """How it ends once nobody talks to it any more."""
    assert program.process.stdin is not None
    program.process.stdin.close()
    return program.process.wait(WATCHDOG)


# The first that it says is where the rings lie.
PEER = (
    f"""
from pathlib import Path
from typing import Any
RING_BYTES_BEFORE_SETS = {RING_BYTES_BEFORE_SETS}
{inspect.getsource(ring_at)}
{inspect.getsource(places_of_ring)}
"""
    """
system = shmipc.System.attach(sys.argv[1])
inbox = shmipc.Mailbox.open("inbox", system=system)
asked = shmipc.Mailbox.open("asked", system=system)
say([place for box in (inbox, asked) for place in places_of_ring(box)])
""" + WORK
)
# What is scribbled into: where the rings lie, and the tables.
TARGETS: dict[str, Callable[[list[Any], list[Any]], list[Any]]] = {
    "rings": lambda rings, tables: rings,
    "tables": lambda rings, tables: tables,
    "rings and tables": lambda rings, tables: rings + tables,
    "header": lambda rings, tables: [(0, 4096)],
}


@pytest.mark.row("M13")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("target", TARGETS)
def test_processes_report_corruption_or_go_on_while_another_scribbles_into_their_segment(
    tmp_path: Path, target: str, rounds: Callable[[int, int], int], eventually: Callable[..., None]
) -> None:
    first = int(os.environ.get("SHMIPC_TEST_SEED", random.SystemRandom().randrange(2**31)))
    total: Counter[str] = Counter()
    for number in range(rounds(15, 1)):
        seed = first + 100 * number
        print(f"round {number}: SHMIPC_TEST_SEED={seed}")
        name = f"hostile{os.getpid()}x{number}"
        folders = [tmp_path / f"{number}-{part}" for part in ("root", "peer", "scribbler")]
        for folder in folders:
            folder.mkdir()
        with cleared(name), ExitStack() as stack:
            root = stack.enter_context(Program(folders[0], ROOT, name, seed))
            assert root.hear() == "ready"
            peer = stack.enter_context(Program(folders[1], PEER, name, seed + 10))
            rings = peer.hear()
            assert peer.hear() == "ready"
            path = segment_of(name)
            scribbler = stack.enter_context(Program(folders[2], SCRIBBLER, path, seed + 20, (0.002, 0.02)[number % 2]))
            scribbler.tell(TARGETS[target](rings, places_in_tables(path)))
            assert scribbler.hear() == "ready"
            for program in (root, peer, scribbler):
                program.tell("go")
            with pytest.raises(AssertionError):  # a time in which nothing happens: nobody ends
                eventually(partial(one_has_ended, root, peer, scribbler), 1.5)
            scribbler.tell("stop")
            counts = [program.ask("stop") for program in (peer, root)]
            for counted in counts:
                total.update(counted)
                assert not [what for what in counted if what.startswith("unexpected")], counted
            assert [end_of(program) for program in (scribbler, peer, root)] == [0, 0, 0]
    print(dict(total), file=sys.stderr)
    assert total["ok"] > 10


# --- one field at a time, in this process ----------------------------------------------------------------------


@contextmanager
def words_of(mailbox: Any, path: Path) -> Iterator[Callable[[str, int], None]]:
    """`write(field, value)`: a word of the mailbox's ring, through a mapping that another process might have."""
    at, layout = ring_at(mailbox), mailbox.layout()
    fd = os.open(path, os.O_RDWR)
    try:
        with mmap.mmap(fd, 0) as mapped:

            def write(field: str, value: int) -> None:
                place = at + layout[field]
                mapped[place : place + 8] = (value % 2**64).to_bytes(8, "little")

            yield write
    finally:
        os.close(fd)


@pytest.mark.row("M13")
@pytest.mark.parametrize(("field", "value"), [("head", 5), ("head", 2**40), ("slots", 7 << 20), ("slots", 2**64 - 1)])
def test_receive_without_a_timeout_ends_as_corrupted_when_what_it_waits_for_cannot_come(field: str, value: int) -> None:
    name = f"hostile{os.getpid()}r"
    with cleared(name), shmipc.System(name, memory_limit=16 << 20) as system:
        with shmipc.Mailbox.create("inbox", 4, 64, system=system) as inbox:
            with words_of(inbox, segment_of(name)) as write:
                write(field, value)
            with pytest.raises(shmipc.Corrupted):
                inbox.receive()


@pytest.mark.row("M13")
@pytest.mark.parametrize(
    ("field", "value"), [("tail", 2**40), ("delivered", 2**40), ("delivered", -9), ("slots", 9 << 20)]
)
def test_send_without_a_timeout_ends_as_corrupted_when_room_cannot_come(field: str, value: int) -> None:
    name = f"hostile{os.getpid()}s"
    with cleared(name), shmipc.System(name, memory_limit=16 << 20) as system:
        with shmipc.Mailbox.create("inbox", 4, 64, system=system) as inbox:
            with words_of(inbox, segment_of(name)) as write:
                write(field, value)
            with pytest.raises(shmipc.Corrupted):
                for _ in range(20):
                    inbox.send(b"x")


# A call in flight whose reply cell is scribbled, so that nothing can come any more.
CALLER = """
import glob, mmap, struct
system = shmipc.System(sys.argv[1], memory_limit=16 << 20)
box = shmipc.Mailbox.create("box", 4, 64, system=system)
segment = max(glob.glob(f"/dev/shm/shmipc*{sys.argv[1]}"), key=os.path.getsize)
with open(segment, "r+b") as file:
    mapped = mmap.mmap(file.fileno(), 0)
POOL = "<QIIIIII"
tables = next(at for at in range(64, 4096, 64) if struct.unpack_from("<Q", mapped, at)[0] == 4096)

def pending_cells():
    offset, chunk_bytes, _, _, ready, _, _ = struct.unpack_from(POOL, mapped, tables + 2 * struct.calcsize(POOL))
    for chunk in range(ready):
        for cell in range(64):
            at = offset + chunk * chunk_bytes + 64 + cell * ((chunk_bytes - 64) // 64)
            if struct.unpack_from("<Q", mapped, at)[0] & 15 == 1:
                yield at

def scribble():
    while not (found := list(pending_cells())):
        time.sleep(0.001)
    for at in found:
        struct.pack_into("<Q", mapped, at, struct.unpack_from("<Q", mapped, at)[0] + (5 << 20))

threading.Thread(target=scribble).start()
try:
    if sys.argv[2] == "call":
        box.call(b"x", timeout=0.3)
    elif sys.argv[2] == "result":
        box.submit(b"x", timeout=0.3).result()
    else:
        told = threading.Event()
        future = box.submit(b"x", timeout=0.3)
        future.add_done_callback(lambda _: told.set())
        told.wait()
        future.result()
except shmipc.ShmipcError as error:
    say(type(error).__name__)
os._exit(0)
"""


@pytest.mark.row("M13")
@pytest.mark.timeout(60)
@pytest.mark.parametrize("how", ["call", "result", "callback"])
def test_call_with_a_short_timeout_ends_as_corrupted_when_its_reply_cell_is_another_call_s(
    tmp_path: Path, how: str
) -> None:
    name = f"hostile{os.getpid()}c{how}"
    with cleared(name), Program(tmp_path, CALLER, name, how) as caller:
        assert caller.hear() == "Corrupted"
