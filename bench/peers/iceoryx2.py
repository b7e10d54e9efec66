"""iceoryx2's Python package: publish/subscribe in shared memory; polled, and blocking with an event service.

Settings: ``loan_uninit`` and one memmove (``send_copy`` is slower), a buffer of 1_024 samples, the publisher
retries until delivered, no overflow. The subscriber copies 64 bytes out, so that the sample goes back.
"""

import ctypes
from collections.abc import Callable
from typing import Any

from bench.channel import Channel, End, Payload, Port, own_name
from bench.harness import need

BUFFER_SAMPLES = 1_024
BODY_BYTES = 64


class Iceoryx2Polled(Channel):
    waits = False

    def __init__(self, payload: Payload, *, two_way: bool, producers: int = 1) -> None:
        super().__init__(payload, two_way=two_way, producers=producers)
        assert payload == "bytes"
        need("iceoryx2")
        self.names = [f"bench/{own_name(direction)}" for direction in ("to_near", "to_far")]

    def open(self, end: End) -> Port:
        import iceoryx2

        iceoryx2.set_log_level(iceoryx2.LogLevel.Error)
        builder = iceoryx2.NodeBuilder.new().signal_handling_mode(iceoryx2.SignalHandlingMode.Disabled)
        node = builder.create(iceoryx2.ServiceType.Ipc)  # lives as long as its ports, and leaves no files then
        to_near, to_far = self.names
        outgoing, incoming = (to_far, to_near) if end == "near" else (to_near, to_far)
        return Port(self._make_send(node, outgoing), self._make_receive(node, incoming))

    def _service(self, node: Any, name: str) -> Any:
        import iceoryx2

        body = type("Body", (ctypes.Structure,), {"_fields_": [("octets", ctypes.c_uint8 * BODY_BYTES)]})
        return (
            node.service_builder(iceoryx2.ServiceName.new(name))
            .publish_subscribe(body)
            .enable_safe_overflow(False)
            .subscriber_max_buffer_size(BUFFER_SAMPLES)
            .open_or_create()
        )

    def _events(self, node: Any, name: str) -> Any:
        import iceoryx2

        return node.service_builder(iceoryx2.ServiceName.new(f"{name}-event")).event().open_or_create()

    def _make_send(self, node: Any, name: str) -> Callable[[bytes], None]:
        import iceoryx2

        strategy = iceoryx2.BackpressureStrategy.RetryUntilDelivered
        loan = self._service(node, name).publisher_builder().backpressure_strategy(strategy).create().loan_uninit
        notify = self._events(node, name).notifier_builder().create().notify if self.waits else None
        memmove = ctypes.memmove

        def send(body: bytes) -> None:
            sample = loan()
            memmove(sample.payload_ptr, body, BODY_BYTES)
            sample.assume_init().send()
            if notify is not None:
                notify()

        return send

    def _make_receive(self, node: Any, name: str) -> Callable[[], bytes]:
        take = self._service(node, name).subscriber_builder().create().receive
        wait = self._events(node, name).listener_builder().create().blocking_wait if self.waits else None
        copy_out = ctypes.string_at

        def receive() -> bytes:
            while (sample := take()) is None:
                if wait is not None:
                    wait()
            return copy_out(sample.payload_ptr, BODY_BYTES)

        return receive


class Iceoryx2(Iceoryx2Polled):
    waits = True
