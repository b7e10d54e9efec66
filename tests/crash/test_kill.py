"""Workers are killed from outside, at any instruction, whatever they are doing."""

import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import shmipc
from tests.crash.crew import Worker
from tests.crash.stage import LIMIT, Crew

pytestmark = [pytest.mark.allows_rescue, pytest.mark.timeout(600)]

ROLES = ["send", "receive", "select", "call", "serve", "answer", "share", "name", "watch", "spawn"]
LATEST = 0.05  # seconds at most until the kill


@pytest.fixture
def crew(tmp_path: Path) -> Iterator[Crew]:
    made = Crew(tmp_path)
    yield made
    made.close()


def kill_soon(crew: Crew, eventually: Any) -> None:
    """Kill the victim a random moment after it was told to work."""
    finish = crew.start()
    threading.Event().wait(random.random() ** 2 * LATEST)
    os.kill(crew.process.pid, signal.SIGKILL)
    eventually(crew.has_ended, 3 * LIMIT)
    with pytest.raises(shmipc.PeerDead):
        crew.work.result(LIMIT)
    finish()


@pytest.mark.row("K18")
@pytest.mark.parametrize("role", ROLES)
def test_others_go_on_when_workers_are_killed_at_random_moments(
    crew: Crew, eventually: Any, rounds: Callable[[int, int], int], role: str
) -> None:
    for _ in range(rounds(200, 5)):
        crew.enlist(role)
        kill_soon(crew, eventually)
        crew.check(eventually)


@pytest.mark.row("K18")
def test_counters_return_when_many_were_killed_in_every_role(
    crew: Crew, eventually: Any, rounds: Callable[[int, int], int]
) -> None:
    """As above, with one check in the end: what a death leaves must not pile up."""
    for number in range(rounds(1000, 20)):
        crew.enlist(ROLES[number % len(ROLES)])
        kill_soon(crew, eventually)
    crew.check(eventually)


@pytest.mark.row("K18")
def test_others_go_on_when_several_are_killed_at_once(
    crew: Crew, eventually: Any, rounds: Callable[[int, int], int]
) -> None:
    """Dead senders, receivers and waiters of one mailbox, all in the same moment."""
    for _ in range(rounds(100, 4)):
        crew.enlist("send")
        crew.robbed = True
        finish = crew.start()
        more: list[Any] = [crew.system.spawn(Worker) for _ in range(4)]
        works = [
            more[0].send.submit(crew.scene, "more", 100_000),
            more[1].receive.submit(crew.scene),
            more[2].select.submit(crew.scene, os.devnull, 100_000),
            more[3].call.submit(crew.scene, 100_000),
        ]
        threading.Event().wait(random.random() * LATEST)
        processes = [shmipc.process(ref) for ref in more]
        for process in [crew.process, *processes]:
            os.kill(process.pid, signal.SIGKILL)
        for process in processes:
            assert process.join(3 * LIMIT)
        eventually(crew.has_ended, 3 * LIMIT)
        for work in [crew.work, *works]:
            with pytest.raises(shmipc.PeerDead):
                work.result(LIMIT)
        del more, works, processes
        finish()
        crew.check(eventually)
