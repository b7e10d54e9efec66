"""At every step of every protocol a worker is killed, or stopped for a while, and the others go on."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import shmipc
from shmipc import _native
from tests.actors import usage
from tests.conftest import our_names
from tests.crash.crew import Scene, Worker, number_of
from tests.crash.stage import LIMIT, WAKES, Crew
from tests.crash.test_sync_points import POINTS as SYNC_POINTS
from tests.programs import Program, lives

pytestmark = [pytest.mark.allows_rescue, pytest.mark.timeout(90)]

BLOCKS = ["block_lock", "block_record", "block_unlock"]
PAGES = ["pages_reserve", "pages_count", "trim_count", "trim_discard"]
WAITS = ["wait_arm", "wait_register", "wait_park", "wait_leave", "wait_deregister", "wait_pass", "wait_idle"]
TAKES = [
    *["right_flight", "right_take", "take_lease", "take_commit", "take_head", "take_count"],
    *["right_release", "right_released"],
]
REAPS = [
    *["reap_flight", "reap_cells", "reap_places", "reap_boxes", "reap_buses", "reap_leases", "reap_notices"],
    *["reap_retire", "reap_offers", "reap_syncs", "reap_ports"],
]
ROLES: dict[str, list[str]] = {
    "send": [
        *["send_flight", "send_claim", "send_claimed", "send_tail", "send_copy", "send_publish", "send_published"],
        *["send_done", *WAITS, *WAKES, *BLOCKS],
    ],
    "receive": [*TAKES, *WAITS, *WAKES, *BLOCKS, "drop_claim", "drop_clear"],
    "select": [*TAKES, "aside_link", "aside_free", "aside_unlink", "wait_leave", "wait_pass"],
    "sweep": ["right_sweep", "right_sweep_head", "right_sweep_count"],
    "call": [
        *["cell_register", "cell_close", "cell_closed", "cell_take", "send_claimed", "send_publish", "send_done"],
        *["wait_register", "wait_park", "wait_leave", *BLOCKS],
    ],
    "serve": [
        *["cell_serve", "cell_fill", "cell_copy", "cell_done", "cell_bit", "cell_letter", "cell_wake", "take_commit"],
        *["right_released", "wake_notify", "wake_post"],
    ],
    "answer": ["take_call", "cell_serve", "cell_fill", "cell_done", "take_commit", "right_released"],
    "share": [*BLOCKS, *PAGES, "take_lease", "drop_claim", "drop_clear"],
    "name": ["name_claim", "name_tentative", "name_ready", "notice_arm", "box_make", "box_open"],
    "publish": [
        *["bus_right", "bus_claim", "bus_evict", "bus_refer", "bus_fly", "bus_ready", "bus_publish", "bus_published"],
        *["bus_release", "bus_released", "bus_late"],
    ],
    "read": [
        *[
            "bus_join",
            "bus_joined",
            "bus_look",
            "bus_hold",
            "bus_take",
            "bus_taken",
            "bus_count",
            "bus_counted",
            "bus_leave",
        ],
        "bus_left",
    ],
    "found": ["bus_make", "bus_open", "bus_closing", "bus_close", "bus_closed"],
    "watch": ["notice_arm", "notice_cause", "notice_fire", "notice_fired"],
    "link": ["link_tentative", "link_ready"],
    "abort": ["abort_flag", "abort_flagged", "abort_take"],
    "endure": ["abort_mark", "abort_marked", "abort_tell", "abort_told"],
    "tick": ["timer_arm", "timer_fire", "timer_fired", "timer_take"],
    "notify": ["notify_set", "notify_tell", "notify_take"],
    "offer": ["offer_keep", "offer_name", "offer_check", "offer_tell", "offer_again"],
    "meet": ["meeting_accept"],
    "spawn": ["member_claim"],
    "leave": ["vigil_end", "member_leave", *REAPS[1:]],
    "reap": ["reap_dying", *REAPS, "notice_cause", "notice_fire", "notice_fired", "offer_drop"],
    "attach": ["member_claim", "member_lock", "member_live", "box_make", "box_open", "vigil_begin"],
}
# A reaper passes these only after particular deaths, of a root for one: tests/native/test_crash.c has those. Lanes have
# no members: tests/native/test_lane.c, tests/transport/test_rights.py.
PLAYED_IN_C = {
    "reap_root",
    "take_lost",
    "block_count",
    "reap_line",
    "sync_fail",
    "keep_lease",
    "box_receives",
    "reap_ending",
} | {
    point for point in _native.KILL_POINTS if point.startswith(("port_", "group_", "lane_", "link_back", "link_again"))
}
PLAYED_ELSEWHERE = set(SYNC_POINTS)  # by test_sync_points.py, all in one system
PLAYED_ELSEWHERE |= {"remain_give", "remain_live"}  # by tests/memory/test_death_of_holder.py
KNOWN = set(_native.KILL_POINTS) - PLAYED_IN_C - PLAYED_ELSEWHERE
TABLE = [(role, point) for role, points in ROLES.items() for point in points if point in KNOWN]
WORKING = [(role, point) for role, point in TABLE if role not in ("reap", "attach")]
# Each point takes seconds: the gate kills at each in the first role that passes it and in every third of the others,
# and stops at every eighth; `make crash` kills and stops at all.
FULL = bool(os.environ.get("SHMIPC_FULL"))
FIRST = [(role, point) for n, (role, point) in enumerate(WORKING) if point not in {p for _, p in WORKING[:n]}]
KILLED = WORKING if FULL else [*FIRST, *[entry for entry in WORKING if entry not in FIRST][::3]]
STOPPED = WORKING if FULL else WORKING[::8]


def test_every_kill_point_is_in_the_table_of_some_role() -> None:
    assert {point for points in ROLES.values() for point in points} == KNOWN


@pytest.fixture(scope="module")
def zygote() -> Iterator[None]:
    """One zygote for all systems of this module: it goes with the last system of the process."""
    with shmipc.System() as anchor:
        anchor.spawn(Worker)
        yield


@pytest.fixture
def crew(zygote: None, tmp_path: Path) -> Iterator[Callable[[str, str, bool], Crew]]:
    made: list[Crew] = []

    def make(role: str, point: str, stops: bool) -> Crew:
        made.append(Crew(tmp_path, stops))
        made[-1].enlist(role, point)
        return made[-1]

    yield make
    for entry in made:
        entry.close()


@pytest.mark.row("K18", "M1")
@pytest.mark.parametrize(("role", "point"), KILLED, ids=lambda value: value)
def test_others_go_on_when_a_worker_is_killed_at(crew: Any, eventually: Any, role: str, point: str) -> None:
    scene = crew(role, point, False)
    finish = scene.start()
    eventually(scene.has_ended, 3 * LIMIT)
    assert scene.process.join(LIMIT)
    if role != "leave":
        with pytest.raises(shmipc.PeerDead):
            scene.work.result(LIMIT)
    told = scene.system._membership.member.cause
    eventually(lambda: told(scene.process._id) == ("signal", None, signal.SIGKILL))  # so the point was passed
    finish()
    scene.check(eventually)


@pytest.mark.row("M19", "M2")
@pytest.mark.parametrize(("role", "point"), STOPPED, ids=lambda value: value)
def test_others_wait_and_see_deaths_while_a_worker_is_stopped_at(
    crew: Any, eventually: Any, role: str, point: str
) -> None:
    scene = crew(role, point, True)
    identity = scene.process.identity
    finish = scene.start()
    victim = psutil.Process(scene.process.pid)
    eventually(scene.has_stopped, 3 * LIMIT)
    scene.deaths_are_noticed()
    assert victim.status() == psutil.STATUS_STOPPED
    records = scene.system._membership.member.members()
    assert [entry["state"] for entry in records if entry["identity"] == identity] in (
        ["live"],
        ["dying"][: role == "leave"],
    )
    victim.resume()
    finish()
    if role != "leave":
        assert scene.work.result(2 * LIMIT)
        assert scene.process.stop()
    scene.check(eventually)


# --- several at once -------------------------------------------------------------------------------------------

FULL = bool(os.environ.get("SHMIPC_FULL"))
MATES = [(role, point) for role in ("send", "receive", "call", "share") for point in ROLES[role]]
CREWS = [(role, point, peers) for peers in (2, 4) for role, point in MATES if point in KNOWN]


@pytest.mark.row("M1")
@pytest.mark.parametrize(("role", "point", "peers"), CREWS if FULL else CREWS[::16], ids=str)
def test_others_go_on_when_several_are_killed_at(crew: Any, eventually: Any, role: str, point: str, peers: int) -> None:
    """The victim, and more that die at the same point or live, by turns; each beside the others on one mailbox."""
    scene = crew(role, point, False)
    scene.robbed = True
    mates: list[Any] = [scene.system.spawn(Worker) for _ in range(peers - 1)]
    processes = [shmipc.process(mate) for mate in mates]
    finish = scene.start()
    works = []
    for number, mate in enumerate(mates):
        if number % 2 == 0:
            mate.arm.cast(point, 1 if point in WAKES else number + 1, signal.SIGKILL)
        if role in ("send", "receive"):  # a receiver's mates send to it
            works.append(mate.send.submit(scene.scene, f"mate{number}", 100_000))
        else:
            works.append(getattr(mate, role).submit(scene.scene, 100_000))
    eventually(scene.has_ended, 3 * LIMIT)
    for process in processes:  # those that have not come to the point meanwhile are killed where they are
        process.kill()
        assert process.join(LIMIT)
    for work in [scene.work, *works]:
        with pytest.raises(shmipc.PeerDead):
            work.result(LIMIT)
    del works, processes, mates, mate, process
    finish()
    scene.check(eventually)


# --- at the work of a keeper -----------------------------------------------------------------------------------

ROOT = """
    import importlib
    crew = importlib.import_module("tests.crash.crew")
    system = shmipc.System("reaped")
    box = shmipc.Mailbox.create("box", slots=4)
    for name in ("other", "server"):
        system.options(name=name).spawn(crew.Worker)
    for number in range(hear()):
        system.options(name=f"reaper{number}").spawn(crew.Worker)
    hear()
    """


REAPERS = [(point, reapers) for reapers in (1, 2) for point in ROLES["reap"][:: 1 if FULL or reapers == 1 else 4]]


@pytest.mark.row("K18", "M3")
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("point", "reapers"), REAPERS, ids=lambda value: {1: "once", 2: "twice"}.get(value, value))
def test_next_reaper_finishes_when_one_is_killed_at(tmp_path: Path, eventually: Any, point: str, reapers: int) -> None:
    """The keeper is stopped; a worker does its work and dies at it, while a call, a watch and a name wait.

    Twice: the second, who finishes the first one's work, dies at the same step of it.
    """
    environment = {"PYTHONPATH": os.pathsep.join([os.environ["PYTHONPATH"], str(Path(__file__).parents[2])])}
    for _ in range(5):  # until a reaper was there first: the others do a stopped keeper's work too, now and then
        with Program(tmp_path, ROOT, env=environment) as root:
            system = shmipc.System.attach("reaped", timeout=30.0)
            try:
                died = kill_a_reaper(system, root, point, reapers, eventually)
            finally:
                system.shutdown()
                os.kill(root.pid, signal.SIGCONT)
                root.family()
        sweep(eventually)
        if died:
            return
    raise AssertionError("the reapers did not come to the point")


def kill_a_reaper(system: shmipc.System, program: Program, point: str, reapers: int, eventually: Any) -> bool:
    other: Any = system.lookup("other", timeout=30.0)
    server: Any = system.lookup("server", timeout=30.0)
    with shmipc.Mailbox.open("box") as box:
        other.call(Scene(box, server), 1)
        assert server.echo(1) == 1
        baseline = usage(system, other, server)
        died = finish_the_work_of_a_reaper(system, program, point, reapers, box, eventually)
        try:
            eventually(lambda: usage(system, other, server) | {"undelivered": 0} == baseline)
        except AssertionError:
            raise AssertionError(f"{usage(system, other, server)} after, {baseline} before") from None
        return died


def finish_the_work_of_a_reaper(
    system: shmipc.System, program: Program, point: str, reapers: int, box: shmipc.Mailbox, eventually: Any
) -> bool:
    """Did all of the reapers die at the point?"""
    other, server, root = system.lookup("other"), system.lookup("server"), program.pid
    program.tell(reapers)
    doomed: list[Any] = [system.lookup(f"reaper{number}", timeout=30.0) for number in range(reapers)]
    assert [ref.echo(1) for ref in doomed] == [1] * reapers
    dying, martyr = [shmipc.process(ref) for ref in doomed], system.options(name="martyr").spawn(Worker)
    watch = shmipc.monitor(martyr)
    busy: Any = martyr.hold.submit(shmipc.zeros(100_000), box)
    eventually(lambda: system.lookup("martyr") == martyr and is_parked(martyr))
    os.kill(root, signal.SIGSTOP)
    eventually(lambda: psutil.Process(root).status() == psutil.STATUS_STOPPED)
    for ref in doomed:
        ref.arm.cast(point, 1, signal.SIGKILL)
        ref.reap.cast(100_000)
    os.kill(shmipc.process(martyr).pid, signal.SIGKILL)
    ended = shmipc.process(martyr)
    eventually(lambda: not any(lives(reaper.pid) for reaper in dying) or ended.join(0.01), 2 * LIMIT)
    with pytest.raises(shmipc.PeerDead):
        busy.result(2 * LIMIT)
    assert shmipc.receive(kind=shmipc.Kind.EXIT, timeout=2 * LIMIT).body.monitor == watch.id
    with pytest.raises(shmipc.MailboxEmpty):
        shmipc.receive(kind=shmipc.Kind.EXIT, timeout=0)
    spared = 0
    for reaper in dying:  # one of two may have been spared: others who wait were at it first
        if lives(reaper.pid):
            spared += 1
            os.kill(reaper.pid, signal.SIGKILL)
    assert all(reaper.join(2 * LIMIT) for reaper in dying)
    again: Any = system.options(name="martyr").spawn(Worker)
    assert again.echo(1) == 1
    assert shmipc.process(again).stop()
    os.kill(root, signal.SIGCONT)
    sent = other.send.submit(Scene(box, server), "smoke", 10)
    assert [number_of(box.receive(timeout=LIMIT)) for _ in range(10)] == [("smoke", n) for n in range(10)]
    assert sent.result(LIMIT) == 10
    other.call.call(Scene(box, server), 3, timeout=LIMIT)
    return spared == 0


def is_parked(ref: Any) -> bool:
    """Does it wait, for good, at the end of what it does?"""
    time.sleep(0.3)
    return bool(psutil.Process(shmipc.process(ref).pid).status() == psutil.STATUS_SLEEPING)


def sweep(eventually: Any) -> None:
    """What a killed root has left goes with the next start."""

    def start() -> bool:
        with shmipc.System():
            pass
        return not any("reaped" in name or "attached" in name for name in our_names())

    eventually(start)


# --- coming ----------------------------------------------------------------------------------------------------

ATTACHER = """
    point, number = sys.argv[1], int(sys.argv[2])
    _native.kill_point_arm(point, 1, number)
    system = shmipc.System.attach("attached")
    say("attached")
    hear()
    """


@pytest.mark.row("K18")
@pytest.mark.parametrize("point", ROLES["attach"])
def test_others_go_on_when_one_that_attaches_is_killed_at(
    zygote: None, tmp_path: Path, eventually: Any, point: str
) -> None:
    with shmipc.System("attached") as system:
        other: Any = system.spawn(Worker)
        assert other.echo(1) == 1
        baseline = usage(system, other)
        with Program(tmp_path, ATTACHER, point, int(signal.SIGKILL)) as comer:
            assert comer.process.wait(30.0) == -signal.SIGKILL
        assert other.echo(2) == 2
        eventually(lambda: usage(system, other) == baseline)
        with Program(tmp_path, ATTACHER, point, 0) as comer:  # signal 0: it passes the point and lives
            assert comer.hear() == "attached"
            assert system.statistics().members == baseline["members"] + 1
            comer.tell("leave")
            assert comer.process.wait(10.0) == 0
        eventually(lambda: usage(system, other) == baseline)
        records = system._membership.member.members()
        assert [entry["state"] for entry in records] == ["live"] * 2


@pytest.mark.row("K18")
@pytest.mark.parametrize("point", ["member_claim", "member_lock", "member_live", "box_make", "box_open"])
def test_system_of_a_killed_creator_is_made_anew(tmp_path: Path, eventually: Any, point: str) -> None:
    creator = f"""
        _native.kill_point_arm({point!r}, 1, signal.SIGKILL)
        shmipc.System("attached")
        """
    with Program(tmp_path, creator) as program:
        assert program.process.wait(30.0) == -signal.SIGKILL
    with pytest.raises(shmipc.NotFound):
        shmipc.System.attach("attached")
    with shmipc.System("attached") as system:
        worker: Any = system.spawn(Worker)
        assert worker.echo(1) == 1
    assert not any("attached" in name for name in our_names())
