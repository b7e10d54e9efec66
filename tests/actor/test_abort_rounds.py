"""Aborts at any moment around a reply: one outcome, the same on both sides, and never of the next request."""

import random
import time
from collections.abc import Callable
from typing import Any

import pytest

import shmipc
from tests.actors import outcome

LIMIT = 300.0


def serve() -> None:
    """Answer calls, and note for each whether it was aborted and what the reply said; tell that at the end."""
    log: dict[int, tuple[bool, str]] = {}
    chance = random.Random(1)
    while True:
        message = shmipc.receive(kind=shmipc.Kind.CALL)
        if message.body is None:
            shmipc.reply(message, log)
            return
        for _ in range(chance.randrange(200)):
            pass
        told = shmipc.aborted()
        assert message.body not in log
        log[message.body] = told, outcome(lambda message=message: shmipc.reply(message, message.body))  # type: ignore[misc]


def call(server: Any, rounds: int, told: Any) -> None:
    """When somebody aborts already, call so often, and note what each call has come to."""
    with shmipc.no_abort():
        shmipc.receive(tag=8, timeout=LIMIT)
    log = []
    for number in range(rounds):
        try:
            assert shmipc.call(server, number) == number
            log.append("done")
        except shmipc.Aborted:
            log.append("Aborted")
    with shmipc.no_abort():
        shmipc.send(told, log, tag=2)
        outcome(lambda: shmipc.receive(tag=9, timeout=LIMIT))


def abort(whom: Any, ready: Any) -> None:
    """Abort it again and again until it has ended."""
    chance = random.Random(2)
    shmipc.send(ready, "aborts", tag=3)
    while True:
        try:
            shmipc.abort(whom)
        except shmipc.PeerDead:
            return
        until = time.monotonic() + chance.random() * 3e-4
        while time.monotonic() < until:
            pass


@pytest.mark.row("C8", "C11")
@pytest.mark.race
@pytest.mark.timeout(360)
def test_abort_against_reply_has_one_outcome_and_spares_the_next_request(
    system: shmipc.System, rounds: Callable[[int, int], int]
) -> None:
    count = rounds(10_000, 1_000)
    server: Any = system.spawn(serve)
    client: Any = system.spawn(call, server, count, shmipc.self())
    aborter: Any = system.spawn(abort, client, shmipc.self())
    shmipc.receive(tag=3, timeout=LIMIT)
    shmipc.send(client, "begin", tag=8)
    outcomes = shmipc.receive(tag=2, timeout=LIMIT).body
    served = shmipc.call(server, None, timeout=LIMIT)
    shmipc.send(client, "end", tag=9)
    for actor in (client, aborter, server):
        assert shmipc.process(actor).join(30.0)
    assert len(outcomes) == count
    for number, came in enumerate(outcomes):
        told, said = served.get(number, (False, "never executed"))
        assert said in ("done", "Aborted", "never executed")
        assert (said == "done") == (came == "done"), (number, came, told, said)
        assert not told or came == "Aborted", (number, came, told, said)
    seen = {said for _, said in served.values()}
    assert "done" in seen
    assert outcomes.count("Aborted") > count // 100
