"""What an idle process holds is told for an actor and for a child of multiprocessing alike."""

import pytest

from tests.bench.programs import answer_of


@pytest.mark.parametrize("kind", ["actor", "fork"])
def test_memory_of_an_idle_process_is_told(kind: str) -> None:
    told = answer_of(f"from bench import idle; answer = idle.main({kind!r}, 2, 0.0)")
    assert 0 < told["private"] <= told["pss"] < 200 << 20
    assert told["whole"] > 0
    assert told["helpers"] >= (kind == "actor")
