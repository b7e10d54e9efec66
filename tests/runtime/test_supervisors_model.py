"""A supervisor held against a small model, under random ends, stops and starts."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import shmipc
from shmipc import Child, Supervisor
from shmipc.runtime.supervisors import RESTARTS, STRATEGIES
from tests.runtime.family import Kid

pytestmark = [pytest.mark.race, pytest.mark.allows_rescue, pytest.mark.timeout(300)]

LIMIT = 30.0
KIDS = st.lists(st.sampled_from(RESTARTS), min_size=2, max_size=3)
AT = st.integers(0, 99)
END = st.sampled_from(["SIGKILL", "exit 0", "exit 3"])


class Entry:
    """What the model knows of a child."""

    def __init__(self, name: str, restart: str) -> None:
        self.name, self.restart = name, restart
        self.runs, self.wanted, self.restarts = True, True, 0


class Model:
    def __init__(self, strategy: str) -> None:
        self.strategy = strategy
        self.entries: list[Entry] = []

    def end(self, entry: Entry, way: str) -> None:
        """It ends by itself, in that way."""
        entry.runs = False
        if entry.restart == "temporary":
            self.entries.remove(entry)
            return
        if entry.restart == "transient" and way == "exit 0":
            return
        at = self.entries.index(entry)
        with_it = {"one_for_one": [entry], "one_for_all": self.entries[:], "rest_for_one": self.entries[at:]}
        for other in with_it[self.strategy]:
            if not other.wanted:
                continue
            if other.restart == "temporary":
                self.entries.remove(other)
            else:
                other.runs, other.restarts = True, other.restarts + 1

    def told(self) -> list[tuple[str, bool, int]]:
        return [(entry.name, entry.runs, entry.restarts) for entry in self.entries]


def test_supervisor_does_what_its_model_does(
    system: shmipc.System, tmp_path: Path, eventually: Callable[..., None], rounds: Callable[[int, int], int]
) -> None:
    path = str(tmp_path / "log")

    class Machine(RuleBasedStateMachine):
        supervisor: Any = None

        @initialize(strategy=st.sampled_from(STRATEGIES), restarts=KIDS)
        def begin(self, strategy: str, restarts: list[str]) -> None:
            self.model = Model(strategy)
            self.supervisor = system.spawn(Supervisor, strategy=strategy, max_restarts=1000)
            self.made = 0
            for restart in restarts:
                self.start(restart)

        def start(self, restart: str) -> None:
            entry = Entry(f"kid{self.made}", restart)
            self.made += 1
            self.supervisor.start_child(Child(Kid, (path, entry.name), name=entry.name, restart=restart))
            self.model.entries.append(entry)

        def pick(self, at: int, runs: bool = True) -> Entry:
            entries = [entry for entry in self.model.entries if entry.runs or not runs]
            return entries[at % len(entries)]

        def any_runs(self) -> bool:
            return any(entry.runs for entry in self.model.entries)

        @rule(restart=st.sampled_from(RESTARTS))
        @precondition(lambda self: len(self.model.entries) < 4)
        def start_one_more(self, restart: str) -> None:
            self.start(restart)

        @rule(at=AT, way=END)
        @precondition(lambda self: self.any_runs())
        def end_by_itself(self, at: int, way: str) -> None:
            entry = self.pick(at)
            ref = self.supervisor.child(entry.name)
            if way == "SIGKILL":
                os.kill(ref.pid(), signal.SIGKILL)
            else:
                ref.leave.submit(int(way[-1])).exception(LIMIT)
            self.model.end(entry, way)

        @rule(at=AT)
        @precondition(lambda self: self.any_runs())
        def stop(self, at: int) -> None:
            entry = self.pick(at)
            self.supervisor.stop_child(entry.name)
            entry.runs = entry.wanted = False
            if entry.restart == "temporary":
                self.model.entries.remove(entry)

        @rule(at=AT)
        @precondition(lambda self: self.model.entries)
        def restart(self, at: int) -> None:
            entry = self.pick(at, runs=False)
            self.supervisor.restart_child(entry.name)
            entry.runs = entry.wanted = True
            entry.restarts += 1

        @invariant()
        def they_agree(self) -> None:
            if self.supervisor is None:
                return

            def told() -> list[tuple[str, bool, int]]:
                states = self.supervisor.children()
                return [(state.name, state.ref is not None, state.restarts) for state in states]

            eventually(lambda: told() == self.model.told(), LIMIT)
            refs = [state.ref for state in self.supervisor.children() if state.ref is not None]
            assert {process.pid for process in system.processes()} == {
                shmipc.process(ref).pid for ref in [*refs, self.supervisor]
            }

        def teardown(self) -> None:
            if self.supervisor is not None:
                assert shmipc.process(self.supervisor).stop(LIMIT)
            assert system.processes() == []

    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Machine,
        settings=settings(
            max_examples=rounds(50, 2),
            stateful_step_count=rounds(15, 6),
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
