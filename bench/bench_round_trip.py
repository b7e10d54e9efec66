"""Round trip of one 64-byte message between two pinned processes, both busy and receiver parked.

Measures: send() to reply seen, ns, each reply compared; p50, p99, p99.9 of each run, then their medians over
the runs; CPU time and voluntary context switches per trip of both processes. P3 leaves 300 us between trips,
the near side busy on its own core or asleep, so that the far side is parked when the message comes; the two
semaphores of the limit keep the same gaps on the same cores. Idle CPU: an actor that waits, watched for 2 s.
Excludes: process start and first page touch (1_000 warm-up trips; 100 with gaps); the gaps.
Peers: peers/mp_pipe.py, peers/mp_queue.py, peers/mp_simple_queue.py, peers/zmq_ipc.py, peers/faster_fifo.py,
peers/posix_mq.py, peers/iceoryx2.py; limits: limits/ring_trips.c, limits/semaphore_trips.c.
"""

import time
from functools import partial

from bench import machine
from bench.channel import GAP_US, Channel, Gap, measure_round_trip
from bench.harness import Role, Sample, Settings, Subject, best, limit, measure_all, need, ours
from bench.limits.ring import BareRing, measure_ring_trips
from bench.limits.semaphores import measure_semaphore_trips
from bench.ours import MailboxChannel
from bench.peers.faster_fifo import FasterFifo
from bench.peers.iceoryx2 import Iceoryx2, Iceoryx2Polled
from bench.peers.mp_pipe import MpPipe, MpPipePolled
from bench.peers.mp_queue import MpQueue
from bench.peers.mp_simple_queue import MpSimpleQueue
from bench.peers.posix_mq import PosixMq, PosixMqPolled
from bench.peers.zmq_ipc import ZmqIpc, ZmqIpcPolled
from bench.rows import Bench, Group, Row, judge
from bench.tasks import Adder

ROWS = ("P2", "P3")
COLUMNS = (
    ("p50", "p50 us", 1e-3, 3),
    ("p50:min", "least", 1e-3, 3),
    ("p50:max", "most", 1e-3, 3),
    ("p99", "p99 us", 1e-3, 2),
    ("p99.9", "p99.9 us", 1e-3, 2),
    ("near_cpu", "near us/trip", 1e-3, 2),
    ("far_cpu", "far us/trip", 1e-3, 2),
    ("near_parks", "near parks/trip", 1.0, 3),
    ("far_parks", "far parks/trip", 1.0, 3),
)
IDLE_COLUMNS = (("idle", "% of a core", 100.0, 4), ("idle:min", "least", 100.0, 4), ("idle:max", "most", 100.0, 4))


def run(settings: Settings, wanted: frozenset[str]) -> Bench:
    rows: list[Row] = []
    groups: list[Group] = []
    if "P2" in wanted:
        results = measure_all("P2 round trip busy", _busy_subjects(), settings)
        mine, ring, work = ours(results), limit(results), "round trip 64 B, both busy"
        blocking = best(results, "p50", highest=False, polls=False)
        polling = best(results, "p50", highest=False, polls=True)
        figure = partial(judge, "P2", work, "us", ours=mine, key="p50", factor=1e-3)
        rows += [
            figure(limit=ring, at_most=10.0, against="limit"),
            figure(peer=blocking, at_least=40.0, note="that blocks"),
            figure(peer=polling, at_least=1.0, note="that polls"),
        ]
        groups.append(Group("P2: round trip 64 B, both busy", COLUMNS, results, "p50", "us"))
    if "P3" in wanted:
        for gap in ("busy", "sleep"):
            results = measure_all(f"P3 round trip parked, near {gap}", _parked_subjects(gap), settings)
            work = f"round trip 64 B, receiver parked, near side {'asleep' if gap == 'sleep' else 'busy'} between"
            rows.append(
                judge(
                    "P3",
                    work,
                    "us",
                    ours=ours(results),
                    key="p50",
                    factor=1e-3,
                    peer=best(results, "p50", highest=False),
                    limit=limit(results),
                    at_most=1.15,
                    against="limit",
                )
            )
            title = f"P3: round trip 64 B, receiver parked; near side {gap} for {GAP_US} us between trips"
            groups.append(Group(title, COLUMNS, results, "p50", "us"))
        results = measure_all("P3 idle", [Subject("waiting actor", "ours", measure_idle, most_repeats=3)], settings)
        rows.append(
            judge(
                "P3",
                "idle CPU of a waiting actor",
                "%",
                ours=ours(results),
                key="idle",
                factor=100.0,
                at_most=0.1,
                against="none",
            )
        )
        groups.append(Group("P3: CPU of an actor that waits", IDLE_COLUMNS, results, "idle", "%"))
    return Bench("bench_round_trip", __doc__ or "", rows, groups)


def measure_idle(settings: Settings) -> Sample:
    """Share of one core that a waiting class actor uses, all its threads, over two seconds."""
    need("shmipc")
    import shmipc

    watched_s = 0.2 if settings.quick else 2.0
    with shmipc.System() as system:
        ref = system.spawn(Adder)
        assert ref.add(1) == 2
        pid = shmipc.process(ref).pid
        time.sleep(0.2)  # the end of its spinning is not idleness
        before_ns, started_ns = machine.cpu_ns_of(pid), time.monotonic_ns()
        time.sleep(watched_s)
        spent_ns = machine.cpu_ns_of(pid) - before_ns
        return {"idle": spent_ns / (time.monotonic_ns() - started_ns)}


def _busy_subjects() -> list[Subject]:
    return [
        _subject("shmipc", "ours", MailboxChannel),
        *_blocking_peers("none"),
        _subject("raw pipe polled", "peer", MpPipePolled, polls=True),
        _subject("pyzmq polled", "peer", ZmqIpcPolled, polls=True),
        _subject("POSIX mq polled", "peer", PosixMqPolled, polls=True),
        _subject("iceoryx2 polled", "peer", Iceoryx2Polled, polls=True),
        Subject("bare ring in C", "limit", measure_ring_trips, polls=True),
        _subject("bare ring from Python", "beside", BareRing, polls=True),
    ]


def _parked_subjects(gap: Gap) -> list[Subject]:
    return [
        _subject("shmipc", "ours", MailboxChannel, gap),
        *_blocking_peers(gap),
        Subject("two semaphores in C", "limit", partial(measure_semaphore_trips, gap=gap)),
    ]


def _blocking_peers(gap: Gap) -> list[Subject]:
    return [
        _subject("mp.Queue", "peer", MpQueue, gap),
        _subject("mp.SimpleQueue", "peer", MpSimpleQueue, gap),
        _subject("mp.Pipe", "peer", MpPipe, gap),
        _subject("pyzmq", "peer", ZmqIpc, gap),
        _subject("faster-fifo", "peer", FasterFifo, gap),
        _subject("POSIX mq", "peer", PosixMq, gap),
        _subject("iceoryx2 events", "peer", Iceoryx2, gap),
    ]


def _subject(name: str, role: Role, channel: type[Channel], gap: Gap = "none", *, polls: bool = False) -> Subject:
    return Subject(name, role, partial(_measure, channel, gap), polls)


def _measure(channel: type[Channel], gap: Gap, settings: Settings) -> Sample:
    return measure_round_trip(channel("bytes", two_way=True), settings, gap)
