"""multiprocessing.SimpleQueue: pickles in the caller, then a pipe under a lock."""

from bench.channel import Channel, End, Payload, Port
from bench.harness import FORK


class MpSimpleQueue(Channel):
    def __init__(self, payload: Payload, *, two_way: bool, producers: int = 1) -> None:
        super().__init__(payload, two_way=two_way, producers=producers)
        self.to_near = FORK.SimpleQueue()
        self.to_far = FORK.SimpleQueue()

    def open(self, end: End) -> Port:
        outgoing, incoming = (self.to_far, self.to_near) if end == "near" else (self.to_near, self.to_far)
        return Port(outgoing.put, incoming.get)
