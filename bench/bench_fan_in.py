"""N producers sending 64-byte messages to one consumer, with the consumer keeping up and not.

Measures: messages received per second in a window that starts and ends at the same instant for all; each
producer's share of what all of them sent in it, 1.0 being equal, and beside it his share of the CPU time that all
of them got. Keeping up: the consumer takes with receive_many where there is one and does nothing else. Not: it
takes singly and works 2 us on each message, so that the producers wait. The consumer has one core, the producers
all others. Every message sent must arrive.
The window is a second, and at least 100 ms for each producer: those who share a core run in turns of some 3 ms, and
while the consumer keeps up nobody waits for a mailbox, so that a producer's share is what the scheduler gives him.
In one second each of 64 gets five turns on an idle machine and one on a busy one, and shares from 0.2 to 4 follow
his share of the CPU; so do 0.2 to 2 of four producers in 50 ms. What a mailbox does to them is seen over many turns.
Excludes: process start; draining after the window.
Peers: peers/faster_fifo.py, peers/posix_mq.py, peers/zmq_ipc.py (N = 1, 16, 64), printed beside; the bar is
ours against ours.
"""

import math
import time
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from bench import machine
from bench.channel import Channel, Port, bodies, opened_far
from bench.harness import Measured, Role, Sample, Settings, Subject, measure_all
from bench.ours import MailboxChannel, MailboxChannelBatched
from bench.peers.faster_fifo import FasterFifo, FasterFifoBatched
from bench.peers.posix_mq import PosixMq
from bench.peers.zmq_ipc import ZmqIpc
from bench.rows import Bench, Group, Row

ROWS = ("P11",)
PRODUCERS = (1, 2, 4, 8, 16, 32, 64)
PEER_PRODUCERS = (1, 16, 64)
QUICK_PRODUCERS = (1, 4)
REPEATS = 3
WORK_NS = 2_000
WINDOW_NS = 1_000_000_000
PRODUCER_WINDOW_NS = 100_000_000
QUICK_WINDOW_NS = 50_000_000
COLUMNS = (
    ("rate", "M/s", 1e-6, 3),
    ("rate:min", "least", 1e-6, 3),
    ("rate:max", "most", 1e-6, 3),
    ("least_share", "least share", 1.0, 2),
    ("most_share", "most share", 1.0, 2),
    ("least_cpu", "least CPU share", 1.0, 2),
    ("most_cpu", "most CPU share", 1.0, 2),
    ("far_cpu", "producers ns/msg", 1.0, 0),
    ("near_cpu", "consumer ns/msg", 1.0, 0),
)


def run(settings: Settings, wanted: frozenset[str]) -> Bench:
    rows: list[Row] = []
    groups: list[Group] = []
    for keeps_up in (True, False):
        subjects = _subjects(settings, keeps_up)
        case = "keeps up" if keeps_up else "does not keep up"
        results = measure_all(f"P11 consumer {case}", subjects, settings)
        rows += _judge([measured for measured in results if measured.subject.role == "ours"], case)
        groups.append(Group(f"P11: N producers, consumer {case}", COLUMNS, results, "rate", "M/s"))
    return Bench("bench_fan_in", __doc__ or "", rows, groups)


def measure_fan_in(channel_type: type[Channel], producers: int, keeps_up: bool, settings: Settings) -> Sample:
    """Rate in the window, and the least and the greatest share of any producer in it."""
    channel = channel_type("bytes", two_way=False, producers=producers)
    near_core = machine.two_cores()[0]
    far_cores = machine.other_cores(near_core)
    window_ns = settings.count(max(WINDOW_NS, producers * PRODUCER_WINDOW_NS), producers * QUICK_WINDOW_NS)
    with opened_far(channel, [far_cores] * producers) as (port, controls):
        machine.pin({near_core})
        start_ns = time.monotonic_ns() + 20_000_000 + producers * 2_000_000
        stop_ns = start_ns + window_ns
        for control in controls:
            control.send(("produce_until", start_ns, stop_ns))
        before = machine.usage()
        take = _take_all if keeps_up else _take_slowly
        in_window, received = take(port, producers, stop_ns)
        near = machine.usage().since(before)
        counts, cpu_ns = _collect(controls)
    if received != sum(counts):
        raise AssertionError(f"{sum(counts)} messages were sent, {received} came")
    return {
        "rate": in_window * 1e9 / window_ns,
        "producers": float(producers),
        "least_share": min(counts) * producers / sum(counts),
        "most_share": max(counts) * producers / sum(counts),
        "least_cpu": min(cpu_ns) * producers / sum(cpu_ns),
        "most_cpu": max(cpu_ns) * producers / sum(cpu_ns),
        "near_cpu": near.cpu_ns / received,
        "far_cpu": sum(cpu_ns) / received,
    }


def _subjects(settings: Settings, keeps_up: bool) -> list[Subject]:
    counts, peer_counts = (QUICK_PRODUCERS,) * 2 if settings.quick else (PRODUCERS, PEER_PRODUCERS)

    def subject(name: str, role: Role, channel: type[Channel], producers: int) -> Subject:
        measure = partial(measure_fan_in, channel, producers, keeps_up)
        repeats = REPEATS if role == "ours" else 1
        return Subject(f"{name}, N = {producers}", role, measure, most_repeats=repeats)

    mine, fifo = (MailboxChannelBatched, FasterFifoBatched) if keeps_up else (MailboxChannel, FasterFifo)
    return [
        *(subject("shmipc", "ours", mine, producers) for producers in counts),
        *(subject("faster-fifo", "peer", fifo, producers) for producers in peer_counts),
        *(subject("POSIX mq", "peer", PosixMq, producers) for producers in peer_counts),
        *(subject("pyzmq", "peer", ZmqIpc, producers) for producers in peer_counts),
    ]


def _take_all(port: Port, producers: int, stop_ns: int) -> tuple[int, int]:
    """Messages taken before ``stop_ns``, and all of them up to the closing message of every producer."""
    end = bodies("bytes")[-1]
    clock = time.monotonic_ns
    take = port.receive_many or partial(_one_as_list, port.receive)
    count = in_window = ended = 0
    while ended < producers:
        batch = take()
        count += len(batch)
        if clock() < stop_ns:  # nobody closes earlier
            in_window = count
        else:
            ended += batch.count(end)
    return in_window, count - producers


def _take_slowly(port: Port, producers: int, stop_ns: int) -> tuple[int, int]:
    end = bodies("bytes")[-1]
    clock = time.monotonic_ns
    receive = port.receive
    count = in_window = ended = 0
    while ended < producers:
        ended += receive() == end
        count += 1
        now = clock()
        if now < stop_ns:
            in_window = count
        until = now + WORK_NS
        while clock() < until:
            pass
    return in_window, count - producers


def _one_as_list(receive: Any) -> list[Any]:
    return [receive()]


def _collect(controls: list[Connection]) -> tuple[list[int], list[int]]:
    """Messages sent by each producer, and his CPU time."""
    counts, cpu_ns = [], []
    for control in controls:
        count, spent = control.recv()
        counts.append(count)
        cpu_ns.append(spent.cpu_ns)
    return counts, cpu_ns


def _judge(mine: list[Measured], case: str) -> list[Row]:
    """The worst N against N = 1, and the worst share of any N; None where ours was not measured."""
    measured = [result for result in mine if result.runs]
    complete = len(measured) == len(mine)
    rates = [result.median("rate") for result in measured] or [math.nan]
    worst = min(range(len(rates)), key=rates.__getitem__)
    least = min((result.median("least_share") for result in measured), default=math.nan)
    most = max((result.median("most_share") for result in measured), default=math.nan)

    def row(work: str, unit: str, figure: float, ratio: float, bar: str, met: bool) -> Row:
        judged = complete and bool(measured)
        return Row(
            row="P11",
            work=f"{work}, consumer {case}",
            unit=unit,
            ours=figure if measured else None,
            best_peer=None,
            best_peer_name="",
            limit=rates[0] * 1e-6 if unit == "M/s" and measured else None,
            limit_name="N = 1" if unit == "M/s" and measured else "",
            ratio=ratio if judged else None,
            bar=bar,
            met=met if judged else None,
        )

    falls = rates[worst] / rates[0]
    return [
        row("worst N of 1 to 64", "M/s", rates[worst] * 1e-6, falls, "at least 0.5x of N = 1", falls >= 0.5),
        row("least share of a producer", "of equal", least, least, "at least 0.5", least >= 0.5),
        row("greatest share of a producer", "of equal", most, most, "at most 2", most <= 2.0),
    ]
