"""Frames of 1 MiB from one writer to four readers, none lost, each process its own.

Measures: first publish() to the last reader's last frame, frames per second; CPU time and page faults per frame of the
writer and of all readers together; how many warm copies of a frame, made by the writer afterwards, take as long as one
frame takes. Nothing is pinned: five processes share the cores.
Excludes: process start and warm-up (32 frames). Readers compare the first and the last bytes of each frame.
Peers: peers/four_pipes.py, a pipe for each reader, each frame written to all of them.
"""

from functools import partial

from bench.broadcast import Broadcast, Reads, measure_broadcast
from bench.harness import Settings, Subject, best, measure_all, need, ours
from bench.peers.four_pipes import ConnectionPipes, RawPipes
from bench.rows import Bench, Group, judge

ROWS = ("P16",)
COLUMNS = (
    ("rate", "frames/s", 1.0, 0),
    ("rate:min", "least", 1.0, 0),
    ("rate:max", "most", 1.0, 0),
    ("copies", "time in copies", 1.0, 2),
    ("near_cpu", "writer us/frame", 1e-3, 1),
    ("far_cpu", "readers us/frame", 1e-3, 1),
    ("near_faults", "writer faults/frame", 1.0, 2),
    ("far_faults", "readers faults/frame", 1.0, 2),
)
PATIENCE = 60.0  # seconds: nothing is lost
FRAMES = 8


class Bus(Broadcast):
    """``publish`` of an array: one copy in all."""

    in_place = False

    def start_writing(self) -> str:
        import shmipc

        self.system = shmipc.System()
        self.bus = shmipc.Bus.create("frames", frames=FRAMES)
        return self.system.name

    def start_reading(self, index: int, address: str) -> Reads:
        need("shmipc")
        import shmipc

        self.system = shmipc.System.attach(address)
        self.bus = shmipc.Bus.open("frames", system=self.system)
        return self.bus.subscribe(patience=PATIENCE).receive

    def write(self, frame: "Broadcast.Frame", number: int) -> None:
        if self.in_place:
            with self.bus.begin(len(frame)) as made:
                made[:8] = made[-8:] = frame[:8]
        else:
            self.bus.publish(frame)

    def end(self) -> None:
        self.bus.close()
        self.system.shutdown()


class BusInPlace(Bus):
    """``begin``: the frame is made where it stays, so nothing is copied."""

    in_place = True


def run(settings: Settings, wanted: frozenset[str]) -> Bench:
    subjects = [
        Subject("shmipc bus", "ours", partial(measure_broadcast, Bus)),
        Subject("four mp.Pipe", "peer", partial(measure_broadcast, ConnectionPipes)),
        Subject("four raw pipes", "peer", partial(measure_broadcast, RawPipes)),
        Subject("shmipc bus, in place", "beside", partial(measure_broadcast, BusInPlace)),
    ]
    results = measure_all("P16 bus", subjects, settings)
    peer = best(results, "rate", highest=True)
    row = judge(
        "P16", "1 writer, 4 readers, 1 MiB frames", "1/s", ours=ours(results), key="rate", peer=peer, at_least=3.0
    )
    group = Group("P16: frames of 1 MiB to four readers", COLUMNS, results, "rate", "1/s")
    return Bench("bench_bus", __doc__ or "", [row], [group])
