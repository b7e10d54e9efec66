"""The short form of `make chaos`; and the same load undisturbed, where no wait may need a rescue."""

import os
import random
from collections.abc import Callable

import pytest

from tests.crash import chaos

GATE_SEED = 77
pytestmark = pytest.mark.timeout(900)


@pytest.mark.row("M1", "M17")
@pytest.mark.allows_rescue
def test_books_balance_when_workers_are_killed_and_stopped_at_random(rounds: Callable[[int, int], int]) -> None:
    seed = int(os.environ.get("CHAOS_SEED", GATE_SEED if rounds(0, 1) else random.randrange(10**9)))
    print(f"seed {seed}")
    figures = chaos.run(seed, rounds(120, 8))
    print(vars(figures))
    assert figures.faults == []
    assert figures.kills >= chaos.LEAST[0]
    assert figures.stops >= chaos.LEAST[1]
    assert figures.accepted > 100
    assert figures.answered > 100
    assert figures.pool_items > 50


@pytest.mark.row("M20")
def test_no_wait_of_the_same_load_needs_a_rescue_when_nobody_is_disturbed(rounds: Callable[[int, int], int]) -> None:
    figures = chaos.run(1, rounds(60, 5), kills=False, stops=False)
    print(vars(figures))
    assert figures.faults == []
    assert (figures.kills, figures.stops, figures.rescued, figures.undelivered) == (0, 0, 0, 0)
    assert figures.lost_with_their_receiver == figures.died_in_a_call == figures.causes_unknown == 0
    assert figures.accepted == figures.received > 100
