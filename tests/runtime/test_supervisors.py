"""Supervisors: who is started again with whom, how often, in which order, and what a restart leaves behind."""

import os
import pickle
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

import shmipc
from shmipc import Child, Kind, Supervisor
from shmipc.runtime.supervisors import GAVE_UP, RESTARTS, STRATEGIES
from tests.programs import lives
from tests.runtime.family import (
    Failing,
    Kid,
    Large,
    Logging,
    Looking,
    Owner,
    Slow,
    Unwatching,
    give_up,
    noted,
    return_at_once,
)
from tests.runtime.family import restart as ask_for_restart

pytestmark = [pytest.mark.race, pytest.mark.allows_rescue, pytest.mark.timeout(300)]

LIMIT = 30.0
NAMES = ("a", "b", "c")


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "log")


def kids(path: str, names: str = "abc", **options: Any) -> list[Child]:
    return [Child(Kid, (path, name), name=name, **options) for name in names]


def pids(supervisor: Any) -> dict[str, int | None]:
    return {state.name: state.pid for state in supervisor.children()}


def kill(pid: int | None) -> None:
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


def end_of(watch: shmipc.Monitor) -> shmipc.ExitNotice:
    body = shmipc.receive(sender=watch.ref, kind=Kind.EXIT, timeout=LIMIT).body
    assert isinstance(body, shmipc.ExitNotice)
    return body


def no_actor_is_left(system: shmipc.System) -> bool:
    return system.processes() == [] and not any(has_name(system, name) for name in NAMES)


def has_name(system: shmipc.System, name: str) -> bool:
    try:
        return system.lookup(name) is not None
    except shmipc.NotFound:
        return False


# --- K8: strategies and restart types --------------------------------------------------------------------------

GROUPS = {"one_for_one": "b", "one_for_all": "abc", "rest_for_one": "bc"}  # that end with b


@pytest.mark.row("K8")
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_that_is_killed_is_started_again_with_those_of_its_strategy(
    system: shmipc.System, tmp_path: Path, eventually: Callable[..., None], strategy: str
) -> None:
    for restart in RESTARTS:
        kill_and_leave(system, str(tmp_path / restart), eventually, strategy, restart)


def kill_and_leave(
    system: shmipc.System, path: str, eventually: Callable[..., None], strategy: str, restart: str
) -> None:
    """The middle one of three ends in each way, as long as it is there."""
    supervisor: Any = system.spawn(Supervisor, kids(path, restart=restart), strategy=strategy, max_restarts=10)
    assert noted(path) == ["start a", "start b", "start c"]
    before, alive = pids(supervisor), "abc"
    for turn, way in enumerate(("SIGKILL", "abnormal", "normal")):
        if "b" not in alive:
            break
        restarted = restart == "permanent" or (restart == "transient" and way != "normal")
        seen = len(noted(path))
        if way == "SIGKILL":
            kill(before["b"])
        else:
            supervisor.child("b").leave.cast(0 if way == "normal" else 3)
        eventually(lambda: pids(supervisor).get("b") != before["b"], LIMIT)  # noqa: B023
        after, group = pids(supervisor), GROUPS[strategy] if restarted else ""
        if not restarted:
            alive = "ac"
        assert [name for name in "abc" if after.get(name) == before[name]] == [n for n in "ac" if n not in group]
        assert list(after) == list("abc" if restart != "temporary" else alive)
        assert restarted or after.get("b") is None
        lines = [line for line in noted(path)[seen:] if line != "stop b"]  # which it wrote itself, if it could
        assert lines == [f"stop {name}" for name in reversed(group) if name != "b"] + [f"start {n}" for n in group]
        assert all(not lives(before[name] or 0) for name in group)
        for state in supervisor.children():
            assert (state.restart, state.kind) == (restart, "Kid")
            assert state.restarts == (turn + 1 if restarted and state.name in group else state.restarts)
        before = after
    assert shmipc.process(supervisor).stop(LIMIT)
    assert noted(path)[-len(alive) :] == [f"stop {name}" for name in reversed(alive)]
    assert no_actor_is_left(system)


@pytest.mark.row("K8")
def test_temporary_sibling_is_stopped_with_the_others_and_not_started_again(
    system: shmipc.System, path: str, eventually: Callable[..., None]
) -> None:
    a, b, c = kids(path)
    b = Child(Kid, b.args, name="b", restart="temporary")
    supervisor: Any = system.spawn(Supervisor, [a, b, c], strategy="one_for_all")
    before = pids(supervisor)
    kill(before["a"])
    eventually(lambda: pids(supervisor).get("a") not in (None, before["a"]), LIMIT)
    assert list(pids(supervisor)) == ["a", "c"]
    assert noted(path)[3:] == ["stop c", "stop b", "start a", "start c"]
    assert not lives(before["b"] or 0)


@pytest.mark.row("K8")
def test_equal_children_without_names_are_replaced_one_by_one_and_a_task_that_returns_is_done(
    system: shmipc.System, path: str, eventually: Callable[..., None]
) -> None:
    done = [Child(return_at_once, (path,), restart=restart) for restart in ("transient", "temporary")]
    supervisor: Any = system.spawn(Supervisor, [*(Child(Kid, (path, "kid")) for _ in range(3)), *done])
    eventually(lambda: len(supervisor.children()) == 4 and supervisor.children()[3].ref is None, LIMIT)
    assert noted(path).count("ran") == 2
    first = supervisor.children()
    kill(first[1].pid)
    eventually(lambda: supervisor.children()[1].ref not in (None, first[1].ref), LIMIT)
    second = supervisor.children()
    assert [second[0], *second[2:]] == [first[0], *first[2:]]
    assert [state.restarts for state in second] == [0, 1, 0, 0]


# --- K9: intensity ---------------------------------------------------------------------------------------------


@pytest.mark.row("K9")
@pytest.mark.parametrize("limit", [1, 3, 20])
def test_exactly_so_many_restarts_are_made_and_then_all_are_stopped(
    system: shmipc.System, path: str, eventually: Callable[..., None], limit: int
) -> None:
    supervisor: Any = system.spawn(
        Supervisor, kids(path), strategy="one_for_one", max_restarts=limit, period=600, on_give_up=give_up(path)
    )
    watch, victim = shmipc.monitor(supervisor), supervisor.child("b", LIMIT)
    for turn in range(limit):
        pid = victim.pid()
        kill(pid)
        eventually(lambda: outcome_of(victim) not in (pid, None), LIMIT)  # noqa: B023
        assert noted(path).count("start b") == turn + 2
    assert [state.restarts for state in supervisor.children()] == [0, limit, 0]
    kill(victim.pid())
    notice = end_of(watch)
    assert (notice.reason, notice.exitcode) == ("exited", GAVE_UP)
    assert "TooManyRestarts" in str(notice.traceback)
    assert "child 'b' ended" in str(notice.traceback)
    assert noted(path)[-3:] == ["stop c", "stop a", f"given up {limit} 600"]
    assert noted(path).count("start b") == limit + 1
    assert no_actor_is_left(system)


def outcome_of(victim: Any) -> int | None:
    try:
        return int(victim.pid())
    except shmipc.PeerDead:
        return None


@pytest.mark.row("K9")
def test_restarts_longer_ago_than_the_period_do_not_count(
    system: shmipc.System, path: str, eventually: Callable[..., None]
) -> None:
    supervisor: Any = system.spawn(Supervisor, kids(path, "a"), max_restarts=1, period=0.2)
    watch, victim = shmipc.monitor(supervisor), supervisor.child("a", LIMIT)
    for _ in range(4):
        pid = victim.pid()
        kill(pid)
        eventually(lambda: outcome_of(victim) not in (pid, None), LIMIT)  # noqa: B023
        time.sleep(0.21)  # the period passes, by intent
    supervisor.stop_child("a")
    assert shmipc.process(supervisor).stop(LIMIT)
    assert end_of(watch).reason == "returned"


@pytest.mark.row("K9")
def test_no_restart_is_allowed_when_the_limit_is_0(system: shmipc.System, path: str) -> None:
    supervisor: Any = system.spawn(Supervisor, kids(path), max_restarts=0)
    watch = shmipc.monitor(supervisor)
    kill(pids(supervisor)["a"])
    assert end_of(watch).exitcode == GAVE_UP
    assert noted(path)[3:] == ["stop c", "stop b"]


# --- K10: atomic start -----------------------------------------------------------------------------------------


@pytest.mark.row("K10")
def test_when_one_child_fails_to_start_the_rest_are_stopped_and_nothing_is_left(
    system: shmipc.System, tmp_path: Path
) -> None:
    left = tmp_path / "left"
    for way, error in {"raises": LookupError, "dies": shmipc.PeerDead, "hangs": shmipc.Timeout}.items():
        path = str(tmp_path / way)
        left.write_text("100")
        a, _, c = kids(path)
        limit = 0.5 if way == "hangs" else None
        b = Child(Failing, (path, "b", way, str(left)), name="b", start_timeout=limit)
        with pytest.raises(error, match="b cannot start" if way == "raises" else None):
            system.spawn(Supervisor, [a, b, c])
        assert [line for line in noted(path) if line != "start b"] == ["start a", "stop a"]
        assert way == "hangs" or "start b" in noted(path)  # it may not have got so far
        assert no_actor_is_left(system)
    left.write_text("0")
    supervisor: Any = system.spawn(Supervisor, kids(path))  # the names are free
    assert list(pids(supervisor)) == ["a", "b", "c"]


# --- K11: after a restart --------------------------------------------------------------------------------------


@pytest.mark.row("K11")
def test_restarted_child_keeps_its_name_and_nothing_else(
    system: shmipc.System, path: str, eventually: Callable[..., None]
) -> None:
    supervisor: Any = system.spawn(Supervisor, kids(path, "ab"))
    stable = supervisor.child("a", LIMIT)
    key, old, pid = hash(stable), supervisor.children()[0].ref, stable.pid()
    sent = pickle.loads(pickle.dumps(stable))
    stable.tick_soon(0.3)
    stable.wait_for_ever.cast(shmipc.self())
    assert shmipc.receive(timeout=LIMIT).body == "waits"
    for number in range(5):
        shmipc.send(stable, number, tag=7)
    waiting = stable.pid.submit()
    asked = time.monotonic()
    kill(pid)
    with pytest.raises(shmipc.PeerDead):
        waiting.result(LIMIT)
    assert stable.pid() != pid
    assert (hash(stable), supervisor.child("a"), sent) == (key, stable, stable)
    new = supervisor.children()[0]
    assert new.ref != old
    assert stable.pending() == 0
    assert new.undelivered == 5  # the caller was told, and is not counted
    assert system.statistics().undelivered == 5
    for act in (
        lambda: shmipc.send(old, "of the old generation", tag=7),
        lambda: shmipc.call(old, "of the old generation", timeout=LIMIT),
        lambda: old.pid(),
        lambda: old.pid.cast(),
    ):
        with pytest.raises(shmipc.PeerDead):
            act()
    assert stable.pending() == 0
    shmipc.send(sent, "to the new one")
    while time.monotonic() < asked + 0.5:  # watched: no timer of the old one fires
        assert stable.pid() == new.pid
    assert [line for line in noted(path) if line.startswith("message")] == ["message a to the new one"]


def test_named_ref_waits_for_the_restart_or_says_how_the_last_life_ended(system: shmipc.System, path: str) -> None:
    supervisor: Any = system.spawn(Supervisor, kids(path, "ba"))
    stable, patient = supervisor.child("a"), supervisor.child("a", LIMIT)
    assert stable == patient
    kill(stable.pid())
    patient.pid.submit().exception(LIMIT)  # of the old life, or of the new one
    assert patient.pid() == stable.pid()
    supervisor.stop_child(stable)
    with pytest.raises(shmipc.PeerDead, match="returned"):
        stable.pid()
    with pytest.raises(shmipc.NoSuchMethod):
        stable.no_such_method()
    with pytest.raises(shmipc.NotFound):
        supervisor.child("nobody")
    with pytest.raises(shmipc.NotFound):
        pickle.loads(pickle.dumps(stable)).pid()
    supervisor.restart_child(stable)
    assert stable.pid() == supervisor.children()[1].pid
    assert "named" in repr(stable)


def test_next_life_is_started_when_the_memory_of_the_last_is_free(
    system: shmipc.System, path: str, eventually: Callable[..., None]
) -> None:
    supervisor: Any = system.spawn(Looking, path, [Child(Large, (path, "a"), name="a")])
    before = pids(supervisor)["a"]
    for count in range(2, 5):
        kill(before)
        eventually(lambda: noted(path).count("start a") == count, LIMIT)  # noqa: B023
        before = pids(supervisor)["a"]
    assert noted(path) == ["first start", "start a", *(["restart, lives False", "start a"] * 3)]


# --- deaths of all kinds ---------------------------------------------------------------------------------------


def test_two_that_die_at_once_are_both_started_again(
    system: shmipc.System, path: str, eventually: Callable[..., None]
) -> None:
    for strategy in STRATEGIES:
        supervisor: Any = system.spawn(Supervisor, kids(path), strategy=strategy, max_restarts=2, period=600)
        before = pids(supervisor)
        for name in "ac":
            kill(before[name])
        eventually(lambda: all(pids(supervisor)[name] not in (None, before[name]) for name in "ac"), LIMIT)  # noqa: B023
        eventually(lambda: None not in pids(supervisor).values(), LIMIT)  # noqa: B023
        after = pids(supervisor)
        assert (after["b"] == before["b"]) == (strategy == "one_for_one")
        living = {process.pid for process in system.processes()}
        assert living == {shmipc.process(supervisor).pid, *after.values()}
        assert shmipc.process(supervisor).stop(LIMIT)
        assert no_actor_is_left(system)


def test_stopped_child_is_left_alone_and_killed_when_its_time_to_end_is_over(
    system: shmipc.System, path: str, eventually: Callable[..., None]
) -> None:
    supervisor: Any = system.spawn(Supervisor, kids(path, "ab", shutdown=0.3), strategy="one_for_all")
    before = pids(supervisor)
    os.kill(before["a"] or 0, signal.SIGSTOP)
    time.sleep(0.3)  # watched: stopped is not dead
    assert pids(supervisor) == before
    kill(before["b"])
    eventually(lambda: pids(supervisor)["a"] not in (None, before["a"]), LIMIT)
    assert not lives(before["a"] or 0)
    os.kill(pids(supervisor)["b"] or 0, signal.SIGSTOP)
    started = time.monotonic()
    assert shmipc.process(supervisor).stop(LIMIT)
    assert 0.3 <= time.monotonic() - started < LIMIT
    assert no_actor_is_left(system)


def test_start_that_fails_in_a_restart_is_tried_again_and_counts(
    system: shmipc.System, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    left = tmp_path / "left"
    for way in ("raises", "dies", "closed", "times out", "taken"):
        path = str(tmp_path / way)
        left.write_text("0")
        a, _, c = kids(path)
        b = Child(Failing, (path, "b", way, str(left)), name="b")
        supervisor: Any = system.spawn(Supervisor, [a, b, c], strategy="rest_for_one", max_restarts=4, period=600)
        watch, before = shmipc.monitor(supervisor), pids(supervisor)
        left.write_text("2")
        kill(before["b"])
        eventually(lambda: pids(supervisor)["c"] not in (None, before["c"]), LIMIT)  # noqa: B023
        assert pids(supervisor)["a"] == before["a"]
        assert noted(path).count("start b") == 4
        left.write_text("100")
        kill(pids(supervisor)["b"])
        notice = end_of(watch)
        assert (notice.exitcode, noted(path).count("start b")) == (GAVE_UP, 5)
        assert noted(path)[-1] == "stop a"
        assert no_actor_is_left(system)


@pytest.mark.row("K8")
def test_caller_who_leaves_ends_nothing_that_he_has_asked_for(system: shmipc.System, path: str) -> None:
    supervisor: Any = system.spawn(Supervisor, [Child(Slow, (path, "a"), name="a")])
    lives = [pids(supervisor)["a"]]

    def restarted() -> bool:
        lives.append(pids(supervisor)["a"])
        return None not in lives and len(set(lives)) == len(lives)

    with pytest.raises(shmipc.Timeout):  # in the stop
        supervisor.restart_child.call("a", timeout=0.1)
    assert restarted()
    called = supervisor.restart_child.submit("a")
    wait_until_noted(path, "stop a", 2)
    time.sleep(0.05)  # in the start, which takes longer
    assert called.cancel()
    assert restarted()
    client = system.spawn(ask_for_restart, supervisor, "a")
    wait_until_noted(path, "stop a", 3)
    kill(shmipc.process(client).pid)
    assert restarted()
    with pytest.raises(shmipc.Timeout):
        supervisor.stop_child.call("a", timeout=0.1)
    assert pids(supervisor) == {"a": None}
    assert noted(path)[-1] == "stop a"
    with pytest.raises(shmipc.Timeout):
        supervisor.start_child.call(Child(Slow, (path, "b"), name="b"), timeout=0.1)
    assert pids(supervisor)["b"] is not None


def wait_until_noted(path: str, what: str, count: int) -> None:
    limit = time.monotonic() + LIMIT
    while noted(path).count(what) < count:
        assert time.monotonic() < limit
        time.sleep(0.005)


@pytest.mark.row("K8")
def test_name_of_a_child_that_does_not_run_is_taken(
    system: shmipc.System, path: str, eventually: Callable[..., None]
) -> None:
    supervisor: Any = system.spawn(
        Supervisor, [*kids(path, "a"), *kids(path, "b", restart="transient"), *kids(path, "c")], strategy="one_for_all"
    )
    supervisor.stop_child("c")
    system.lookup("b").leave.cast(0)
    eventually(lambda: pids(supervisor)["b"] is None, LIMIT)
    for name in "bc":
        with pytest.raises(shmipc.NameTaken):
            supervisor.start_child(kids(path, name)[0])
    before = pids(supervisor)["a"]
    kill(before)
    eventually(lambda: pids(supervisor)["a"] not in (None, before), LIMIT)
    assert pids(supervisor)["b"] is not None
    assert pids(supervisor)["c"] is None, "it was stopped, and is not started with the others"
    supervisor.restart_child("c")
    eventually(lambda: None not in pids(supervisor).values(), LIMIT)
    assert list(pids(supervisor)) == ["a", "b", "c"]


@pytest.mark.row("K8")
def test_start_that_fails_when_its_caller_has_left_is_logged(
    system: shmipc.System, tmp_path: Path, path: str, eventually: Callable[..., None]
) -> None:
    left, log = tmp_path / "left", tmp_path / "log"
    left.write_text("0")
    child = Child(Failing, (path, "b", "raises late", str(left)), name="b")
    supervisor: Any = system.spawn(Logging, str(log), [child])
    left.write_text("1")
    with pytest.raises(shmipc.Timeout):
        supervisor.restart_child.call("b", timeout=0.1)
    eventually(lambda: "LookupError: b cannot start" in log.read_text(), LIMIT)
    assert "child 'b' could not be started" in log.read_text()
    assert pids(supervisor) == {"b": None}


def test_child_that_cannot_be_watched_is_stopped_and_the_error_raised(system: shmipc.System, path: str) -> None:
    supervisor: Any = system.spawn(Unwatching, kids(path, "a"))
    with pytest.raises(shmipc.LimitExceeded):
        supervisor.start_child(kids(path, "b")[0])
    assert [state.name for state in supervisor.children()] == ["a"]
    assert not has_name(system, "b")
    assert noted(path)[-2:] == ["start b", "stop b"]


def test_pool_of_a_child_replaces_its_worker_and_the_supervisor_sees_nothing(
    system: shmipc.System, path: str, eventually: Callable[..., None]
) -> None:
    supervisor: Any = system.spawn(Supervisor, [Child(Owner, (path, "a"), name="a")])
    owner, before = supervisor.child("a"), supervisor.children()
    workers = owner.workers()
    kill(workers[0])
    eventually(lambda: workers[0] not in owner.workers() and owner.workers()[1] == workers[1], LIMIT)
    assert owner.work([-1, 2, -3]) == [1, 2, 3]
    assert supervisor.children() == before


# --- trees, and the death of supervisors -----------------------------------------------------------------------


def inner(path: str, names: str = "ab", **options: Any) -> Child:
    return Child(Supervisor, (kids(path, names),), options)


def test_killed_supervisor_takes_its_children_along_and_comes_back_with_them(
    system: shmipc.System, path: str, eventually: Callable[..., None]
) -> None:
    top: Any = system.spawn(Supervisor, [inner(path), *kids(path, "c")])
    first = top.children()
    named = [first[0].ref.child(name, LIMIT) for name in "ab"]
    before = [ref.pid() for ref in named]
    kill(before[0])  # the inner one sees to it
    eventually(lambda: outcome_of(named[0]) not in (before[0], None), LIMIT)
    assert named[1].pid() == before[1]
    assert top.children() == first
    before[0] = named[0].pid()
    os.kill(before[1], signal.SIGSTOP)  # a stopped one goes too
    kill(first[0].pid)
    eventually(lambda: top.children()[0].ref not in (None, first[0].ref), LIMIT)
    after = [ref.pid() for ref in named]
    assert set(after).isdisjoint(before)
    eventually(lambda: not any(lives(pid) for pid in before), LIMIT)
    assert top.children()[1] == first[1]
    assert shmipc.process(top).stop(LIMIT)
    assert no_actor_is_left(system)


@pytest.mark.row("K9")
def test_supervisor_above_starts_again_one_that_gave_up(
    system: shmipc.System, path: str, eventually: Callable[..., None]
) -> None:
    top: Any = system.spawn(Supervisor, [inner(path, max_restarts=0)], max_restarts=1, period=600)
    watch, first = shmipc.monitor(top), top.children()[0]
    kill(pids(first.ref)["a"])
    eventually(lambda: top.children()[0].ref not in (None, first.ref), LIMIT)
    assert list(pids(top.children()[0].ref)) == ["a", "b"]
    kill(pids(top.children()[0].ref)["b"])
    assert end_of(watch).exitcode == GAVE_UP
    assert no_actor_is_left(system)


def test_supervisor_that_is_killed_in_the_midst_of_restarts_leaves_one_life_of_each(
    system: shmipc.System, path: str, eventually: Callable[..., None], rounds: Callable[[int, int], int]
) -> None:
    choose = random.Random(11)
    spec = inner(path, strategy="one_for_all", max_restarts=1000)
    top: Any = system.spawn(Supervisor, [spec], max_restarts=1000)
    refs = [top.children()[0].ref.child(name, LIMIT) for name in "ab"]
    for _ in range(rounds(100, 3)):
        before = [ref.pid() for ref in refs]
        state = top.children()[0]
        kill(choose.choice(before))
        time.sleep(choose.uniform(0, 0.1))  # the moment is what is tested
        kill(state.pid)
        eventually(lambda: top.children()[0].ref not in (None, state.ref), LIMIT)  # noqa: B023
        eventually(lambda: None not in [outcome_of(ref) for ref in refs], LIMIT)
        assert set(before).isdisjoint(ref.pid() for ref in refs)
        eventually(lambda: len(system.processes()) == 4, LIMIT)
    assert shmipc.process(top).stop(LIMIT)
    assert no_actor_is_left(system)


def test_children_end_with_a_supervisor_that_nobody_starts_again_and_its_watcher_is_told(
    system: shmipc.System, path: str, eventually: Callable[..., None]
) -> None:
    supervisor: Any = system.spawn(Supervisor, kids(path))
    watch, before = shmipc.monitor(supervisor), pids(supervisor)
    kill(shmipc.process(supervisor).pid)
    assert end_of(watch).reason in ("signal", "unknown")  # nobody may have been able to say it in time
    eventually(lambda: not any(lives(pid or 0) for pid in before.values()), LIMIT)
    eventually(lambda: no_actor_is_left(system), LIMIT)
    assert psutil.pid_exists(os.getpid())


# --- what is refused -------------------------------------------------------------------------------------------


def test_what_is_no_child_or_no_strategy_is_refused(system: shmipc.System, path: str) -> None:
    for act, error in [
        (lambda: Child("no target"), TypeError),  # type: ignore[arg-type]
        (lambda: Child(Kid, restart="sometimes"), shmipc.InvalidArgument),
        (lambda: Child(Kid, shutdown=-1), shmipc.InvalidArgument),
        (lambda: Child(Kid, name="no/such"), shmipc.InvalidArgument),
        (lambda: Child(Kid, slots=0), shmipc.InvalidArgument),
        (lambda: Supervisor([Kid]), TypeError),  # type: ignore[list-item]
        (lambda: Supervisor(strategy="all_for_one"), shmipc.InvalidArgument),
        (lambda: Supervisor(max_restarts=-1), shmipc.InvalidArgument),
        (lambda: Supervisor(period=0), shmipc.InvalidArgument),
        (lambda: Supervisor(period=None), shmipc.InvalidArgument),  # type: ignore[arg-type]
    ]:
        with pytest.raises(error):
            act()
    with pytest.raises(shmipc.NameTaken):
        system.spawn(Supervisor, [*kids(path, "a"), *kids(path, "a")])
    assert no_actor_is_left(system)
    supervisor: Any = system.spawn(Supervisor)
    assert supervisor.children() == []
    with pytest.raises(shmipc.NotSupported):
        shmipc.call(supervisor, "a message", timeout=LIMIT)
    added = supervisor.start_child(kids(path, "a", shutdown=0)[0])
    assert added == supervisor.child("a")
    old = added.pid()
    supervisor.restart_child(added)
    assert added.pid() != old
    supervisor.stop_child("a")
    assert [state.pid for state in supervisor.children()] == [None]
