"""faster-fifo: a byte ring under process-shared mutexes; received singly, and with get_many.

Settings: a ring of 4 MiB; bytes pass without pickle (``dumps`` hands them through, ``loads`` copies them out).
"""

from functools import partial
from typing import Any

from bench.channel import Channel, End, Payload, Port
from bench.harness import need

RING_BYTES = 4 << 20
FAN_IN_RING_BYTES = 64 << 10
PATIENCE = 60.0


class FasterFifo(Channel):
    batched = False

    def __init__(self, payload: Payload, *, two_way: bool, producers: int = 1) -> None:
        super().__init__(payload, two_way=two_way, producers=producers)
        need("faster_fifo")
        self.to_near = self._make_queue()
        self.to_far = self._make_queue()

    def _make_queue(self) -> Any:
        import faster_fifo

        size = RING_BYTES if self.producers == 1 else FAN_IN_RING_BYTES
        if self.payload == "bytes":
            return faster_fifo.Queue(size, loads=bytes, dumps=_as_it_is)
        return faster_fifo.Queue(size)

    def open(self, end: End) -> Port:
        outgoing, incoming = (self.to_far, self.to_near) if end == "near" else (self.to_near, self.to_far)
        return Port(
            partial(outgoing.put, timeout=PATIENCE),
            partial(incoming.get, timeout=PATIENCE),
            partial(incoming.get_many, timeout=PATIENCE) if self.batched else None,
        )


class FasterFifoBatched(FasterFifo):
    batched = True


def _as_it_is(body: bytes) -> bytes:
    return body
