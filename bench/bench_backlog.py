"""With a thousand unrelated messages waiting in the caller's mailbox: a call, and a receive by tag.

Measures: P12 a raw call of 64 bytes to one pinned worker, call to result, ns, each result compared; by turns with an
empty mailbox and with 1_000 messages in it: the ratio of the two p50 of one run. The time of a receive by tag, ns, p50
and p99, when 1_000 older messages were set aside and the newest, which was sent before the clock starts, matches.
Excludes: process start, warm-up (500 calls, 200 receives), the sends.
Peers: none; no queue of the standard library receives by tag.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from bench import machine
from bench.harness import Sample, Settings, Subject, measure_all, need, ours, percentiles
from bench.rows import Bench, Group, judge

ROWS = ("P12",)
WAITING = 1_000
TURNS = 10  # of both mailboxes in a run
BODY = bytes(64)
COLUMNS = (
    ("ratio", "waiting/empty", 1.0, 3),
    ("empty", "call, empty, p50 us", 1e-3, 3),
    ("waiting", "call, 1 000 wait, p50 us", 1e-3, 3),
    ("p50", "receive by tag, p50 us", 1e-3, 3),
    ("p50:max", "most", 1e-3, 3),
    ("p99", "p99 us", 1e-3, 2),
)


def run(settings: Settings, wanted: frozenset[str]) -> Bench:
    results = measure_all("P12 backlog", [Subject("shmipc", "ours", measure_backlog)], settings)
    mine = ours(results)
    bar = partial(judge, "P12", ours=mine, against="none")
    rows = [
        bar("a call with 1 000 messages waiting, over an empty mailbox", "", key="ratio", at_most=1.1),
        bar("receive by tag, 1 000 set aside", "us", key="p50", factor=1e-3, at_most=10.0),
    ]
    return Bench("bench_backlog", __doc__ or "", rows, [Group("P12: 1 000 wait", COLUMNS, results, "p50", "us")])


class Answerer:
    """Pins itself, and answers raw calls with what they bring."""

    def __init__(self, cores: set[int]) -> None:
        machine.pin(cores)

    def on_message(self, message: Any) -> None:
        if message.is_call:
            message.reply(message.body)


def measure_backlog(settings: Settings) -> Sample:
    need("shmipc")
    import shmipc

    near_core, far_core = machine.two_cores()
    calls = settings.count(max(200, round(settings.run_seconds * 20_000 / TURNS)), 20)
    receives = settings.count(2_000, 50)
    with shmipc.System() as system:
        server = system.options(slots=2 * WAITING).spawn(Answerer, {far_core})
        machine.pin({near_core})
        me = shmipc.self()
        _time(lambda: shmipc.call(server, BODY), 500)
        times: dict[str, list[int]] = {"empty": [], "waiting": []}
        for _ in range(TURNS):
            times["empty"] += _time(lambda: shmipc.call(server, BODY), calls)
            for _ in range(WAITING):
                shmipc.send(me, BODY, tag=1)
            times["waiting"] += _time(lambda: shmipc.call(server, BODY), calls)
            if shmipc.pending() != WAITING:
                raise AssertionError(f"{shmipc.pending()} messages are left of {WAITING}")
            for _ in range(WAITING):
                shmipc.receive(tag=1, timeout=0)
        for _ in range(WAITING):
            shmipc.send(me, BODY, tag=1)
        by_tag = [_receive_by_tag(shmipc, me, number) for number in range(200 + receives)][200:]
        empty, waiting = (percentiles(times[name])["p50"] for name in ("empty", "waiting"))
        return {"ratio": waiting / empty, "empty": empty, "waiting": waiting, **percentiles(by_tag)}


def _time(call: Callable[[], Any], count: int) -> list[int]:
    clock = time.perf_counter_ns
    samples = []
    for _ in range(count):
        started = clock()
        answer = call()
        samples.append(clock() - started)
        if answer != BODY:
            raise AssertionError("another answer")
    return samples


def _receive_by_tag(shmipc: Any, me: Any, number: int) -> int:
    clock = time.perf_counter_ns
    shmipc.send(me, BODY, tag=2 + number)
    started = clock()
    message = shmipc.receive(tag=2 + number, timeout=0)
    took = clock() - started
    if message.tag != 2 + number:
        raise AssertionError(f"tag {message.tag} was received by tag {2 + number}")
    return took
