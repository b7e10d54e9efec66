"""pyzmq over ipc: PUSH/PULL one-way, PAIR for round trips; blocking, and polled with NOBLOCK.

Settings: high-water marks at 100_000 messages, no linger, reconnect after 1 ms; tuples by pickle 5.
"""

import os
import pickle
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

from bench.channel import Channel, End, Payload, Port, own_name
from bench.harness import need

HIGH_WATER = 100_000
FAN_IN_HIGH_WATER = 1_000


class ZmqIpc(Channel):
    def __init__(self, payload: Payload, *, two_way: bool, producers: int = 1) -> None:
        super().__init__(payload, two_way=two_way, producers=producers)
        need("zmq")
        self.address = "ipc://" + os.path.join(tempfile.gettempdir(), own_name("zmq"))

    def open(self, end: End) -> Port:
        import zmq

        one_way = zmq.PULL if end == "near" else zmq.PUSH
        self.context = zmq.Context()
        socket = self.socket = self.context.socket(zmq.PAIR if self.two_way else one_way)
        socket.set_hwm(HIGH_WATER if self.producers == 1 else FAN_IN_HIGH_WATER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RECONNECT_IVL, 1)
        if end == "near":
            socket.bind(self.address)
        else:
            socket.connect(self.address)
        if self.payload == "bytes":
            return self._port(socket)
        return Port(lambda body: socket.send(pickle.dumps(body, 5)), lambda: pickle.loads(socket.recv()))

    def _port(self, socket: Any) -> Port:
        return Port(socket.send, socket.recv)

    def close(self) -> None:
        super().close()
        self.context.destroy(linger=0)


class ZmqIpcPolled(ZmqIpc):
    def _port(self, socket: Any) -> Port:
        import zmq

        return Port(
            partial(_until_done, partial(socket.send, flags=zmq.NOBLOCK), zmq.Again),
            partial(_until_done, partial(socket.recv, flags=zmq.NOBLOCK), zmq.Again),
        )


def _until_done(operation: Callable[..., Any], again: type[Exception], *arguments: Any) -> Any:
    while True:
        try:
            return operation(*arguments)
        except again:
            pass
