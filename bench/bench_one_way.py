"""One-way flow of small messages between two pinned processes, sent and received singly.

Measures: first send() to last receive(), messages per second; median and spread over the runs; CPU time per
message of both processes. P1 is 64 bytes, P4 a tuple of an int, a str and a float.
Excludes: process start, first page touch and calibration (5_120 messages, each compared); in the timed part
the last of every 256 messages is compared.
Peers: peers/mp_queue.py, peers/mp_simple_queue.py, peers/mp_pipe.py, peers/zmq_ipc.py, peers/faster_fifo.py,
peers/posix_mq.py, peers/iceoryx2.py; limit: limits/ring.py, driven from Python.
"""

from functools import partial

from bench.channel import Channel, Payload, measure_one_way
from bench.harness import Role, Sample, Settings, Subject, best, limit, measure_all, ours
from bench.limits.ring import BareRing
from bench.ours import MailboxChannel, MailboxChannelBatched
from bench.peers.faster_fifo import FasterFifo, FasterFifoBatched
from bench.peers.iceoryx2 import Iceoryx2, Iceoryx2Polled
from bench.peers.mp_pipe import MpPipe, MpPipePolled
from bench.peers.mp_queue import MpQueue
from bench.peers.mp_simple_queue import MpSimpleQueue
from bench.peers.posix_mq import PosixMq, PosixMqPolled
from bench.peers.zmq_ipc import ZmqIpc, ZmqIpcPolled
from bench.rows import Bench, Group, judge

ROWS = ("P1", "P4")
COLUMNS = (
    ("rate", "M/s", 1e-6, 3),
    ("rate:min", "least", 1e-6, 3),
    ("rate:max", "most", 1e-6, 3),
    ("far_cpu", "producer ns/msg", 1.0, 0),
    ("near_cpu", "consumer ns/msg", 1.0, 0),
    ("far_parks", "producer parks/msg", 1.0, 4),
    ("near_parks", "consumer parks/msg", 1.0, 4),
)


def run(settings: Settings, wanted: frozenset[str]) -> Bench:
    rows, groups = [], []
    if "P1" in wanted:
        results = measure_all("P1 one-way bytes", _subjects("bytes"), settings)
        mine, peer, ring = ours(results), best(results, "rate", highest=True), limit(results)
        work = "one-way, 64 B bytes"
        rows += [
            judge("P1", work, "M/s", ours=mine, key="rate", factor=1e-6, peer=peer, at_least=8.0),
            judge("P1", work, "M/s", ours=mine, key="rate", factor=1e-6, limit=ring, at_least=0.4, against="limit"),
        ]
        groups.append(Group("P1: one-way, 64 B bytes, single sends", COLUMNS, results, "rate", "M/s"))
    if "P4" in wanted:
        results = measure_all("P4 one-way tuple", _subjects("tuple"), settings)
        simple = next(measured for measured in results if measured.subject.name == "mp.SimpleQueue")
        rows.append(
            judge(
                "P4",
                "one-way, small tuple",
                "M/s",
                ours=ours(results),
                key="rate",
                factor=1e-6,
                peer=simple,
                at_least=4.0,
                note="the row names mp.SimpleQueue",
            )
        )
        groups.append(Group("P4: one-way, small tuple, single sends", COLUMNS, results, "rate", "M/s"))
    return Bench("bench_one_way", __doc__ or "", rows, groups)


def _subjects(payload: Payload) -> list[Subject]:
    def subject(name: str, role: Role, channel: type[Channel], *, polls: bool = False) -> Subject:
        return Subject(name, role, partial(_measure, channel, payload), polls)

    both = [
        subject("shmipc", "ours", MailboxChannel),
        subject("mp.Queue", "peer", MpQueue),
        subject("mp.SimpleQueue", "peer", MpSimpleQueue),
        subject("mp.Pipe", "peer", MpPipe),
        subject("pyzmq", "peer", ZmqIpc),
        subject("faster-fifo", "peer", FasterFifo),
        subject("faster-fifo get_many", "peer", FasterFifoBatched),
        subject("POSIX mq", "peer", PosixMq),
        subject("shmipc receive_many", "beside", MailboxChannelBatched),
    ]
    if payload == "tuple":
        return both
    return [
        *both,
        subject("raw pipe polled", "beside", MpPipePolled, polls=True),  # no Connection: not in the row's set
        subject("pyzmq polled", "peer", ZmqIpcPolled, polls=True),
        subject("POSIX mq polled", "peer", PosixMqPolled, polls=True),
        subject("iceoryx2 polled", "peer", Iceoryx2Polled, polls=True),
        subject("iceoryx2 events", "peer", Iceoryx2),
        subject("bare ring", "limit", BareRing, polls=True),
    ]


def _measure(channel: type[Channel], payload: Payload, settings: Settings) -> Sample:
    return measure_one_way(channel(payload, two_way=False), settings)
