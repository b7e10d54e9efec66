"""A POSIX message queue through posix_ipc; blocking, and polled with a timeout of 0.

Settings: the deepest queue that this user may have, tried from 8_192 messages down; tuples by pickle 5.
"""

import contextlib
import pickle
import resource
from typing import Any

from bench.channel import Channel, End, Payload, Port, own_name
from bench.harness import need

DEPTHS = (8_192, 2_048, 512, 128, 32, 10)
FAN_IN_DEPTHS = (1_024, 128, 32, 10)
BODY_BYTES = 64  # a pickled tuple of ours is shorter


class PosixMq(Channel):
    def __init__(self, payload: Payload, *, two_way: bool, producers: int = 1) -> None:
        super().__init__(payload, two_way=two_way, producers=producers)
        need("posix_ipc")
        _lift_limit()
        self.names = [f"/{own_name(direction)}" for direction in ("to_near", "to_far")]
        depths = DEPTHS if producers == 1 else FAN_IN_DEPTHS
        self.queues = [_make_deepest(name, depths) for name in (self.names if two_way else self.names[:1])]

    def open(self, end: End) -> Port:
        to_near, to_far = self.queues[0], self.queues[-1]
        outgoing, incoming = (to_far, to_near) if end == "near" else (to_near, to_far)
        return self._port(outgoing, incoming)

    def _port(self, outgoing: Any, incoming: Any) -> Port:
        receive = incoming.receive
        if self.payload == "bytes":
            return Port(outgoing.send, lambda: receive()[0])
        send = outgoing.send
        return Port(lambda body: send(pickle.dumps(body, 5)), lambda: pickle.loads(receive()[0]))

    def close(self) -> None:
        super().close()
        for queue in self.queues:
            queue.close()
            queue.unlink()


class PosixMqPolled(PosixMq):
    def _port(self, outgoing: Any, incoming: Any) -> Port:
        import posix_ipc

        def send(body: bytes) -> None:
            while True:
                try:
                    outgoing.send(body, timeout=0)
                    return
                except posix_ipc.BusyError:
                    pass

        def receive() -> bytes:
            while True:
                try:
                    body: bytes = incoming.receive(timeout=0)[0]
                    return body
                except posix_ipc.BusyError:
                    pass

        return Port(send, receive)


def _make_deepest(name: str, depths: tuple[int, ...]) -> Any:
    import posix_ipc

    for depth in depths:
        with contextlib.suppress(ValueError, OSError):
            return posix_ipc.MessageQueue(
                name, posix_ipc.O_CREX, max_messages=depth, max_message_size=BODY_BYTES, write=True, read=True
            )
    raise RuntimeError(f"no POSIX message queue of {depths[-1]} messages can be made")


def _lift_limit() -> None:
    """Ask for as many bytes in message queues as the user may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_MSGQUEUE)
    for wanted in (resource.RLIM_INFINITY, hard):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_MSGQUEUE, (wanted, wanted))
            return
