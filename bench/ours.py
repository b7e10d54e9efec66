"""shmipc behind the same three protocols as the peers, through its public names only.

Settings: private system, default mailbox of 1_024 slots of 256 bytes. Imported late, so that the
benchmarks' parent process stays without it.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from bench.channel import Channel, End, Payload, Port
from bench.handover import Array, Handover, Look
from bench.harness import need
from bench.tasks import Adder, Looker, identity
from bench.workers import Workers

SLOTS = 1_024


class MailboxChannel(Channel):
    """Two mailboxes of one system; ``send`` and ``receive``, one message each."""

    batched = False

    def __init__(self, payload: Payload, *, two_way: bool, producers: int = 1) -> None:
        super().__init__(payload, two_way=two_way, producers=producers)
        need("shmipc")
        import shmipc

        self.system = shmipc.System()
        self.to_near = shmipc.Mailbox.create("to_near", slots=SLOTS, system=self.system)
        self.to_far = shmipc.Mailbox.create("to_far", slots=SLOTS, system=self.system)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "system"}

    def open(self, end: End) -> Port:
        outgoing, incoming = (self.to_far, self.to_near) if end == "near" else (self.to_near, self.to_far)
        return Port(outgoing.send, incoming.receive, incoming.receive_many if self.batched else None)

    def start(self, target: Callable[..., None], *args: object) -> None:
        self.system.spawn(target, *args)

    def close(self) -> None:
        super().close()
        self.to_near.close()
        self.to_far.close()
        self.system.shutdown()


class MailboxChannelBatched(MailboxChannel):
    """``send`` singly, ``receive_many``: what a consumer that can take batches gets."""

    batched = True


class ActorWorkers(Workers):
    """One class actor; ``ref.add(k)`` written out each time, as a user does."""

    def __init__(self, count: int, cores: set[int] | None = None) -> None:
        super().__init__(count, cores)
        assert count == 1
        need("shmipc")
        import shmipc

        self.system = shmipc.System()
        self.ref = self.system.spawn(Adder, cores)
        self.process = shmipc.process(self.ref)

    def call(self, k: int) -> int:
        answer: int = self.ref.add(k)
        return answer

    def submit(self, k: int) -> Callable[[], int]:
        result: Callable[[], int] = self.ref.add.submit(k).result
        return result

    def pids(self) -> list[int]:
        return [self.process.pid]

    def close(self) -> None:
        self.system.shutdown()


class PoolWorkers(Workers):
    """``pool.map`` with chunks of one and the default window."""

    def __init__(self, count: int, cores: set[int] | None = None) -> None:
        super().__init__(count, cores)
        need("shmipc")
        import shmipc

        self.system = shmipc.System()
        self.pool = self.system.pool(count)
        list(self.pool.map(identity, range(count)))
        self.processes = [shmipc.process(ref) for ref in self.pool.refs]

    def map(self, items: Iterable[int]) -> Iterator[int]:
        answers: Iterator[int] = self.pool.map(identity, items, chunksize=1)
        return answers

    def pids(self) -> list[int]:
        return [process.pid for process in self.processes]

    def close(self) -> None:
        self.pool.shutdown()
        self.system.shutdown()


class ArrayHandover(Handover):
    """An ordinary array as the argument of a call: copied once, into a block that the worker sees."""

    def start(self, cores: set[int]) -> None:
        need("shmipc")
        import shmipc

        self.system = shmipc.System()
        self.ref = self.system.spawn(Looker)
        self.ref.pin(cores)

    def ask(self, look: Look, placed: Array) -> int:
        answer: int = self.ref.look(placed, look)
        return answer

    def close(self) -> None:
        self.system.shutdown()


class HandleHandover(ArrayHandover):
    """``share`` once, or ``empty`` and filled: the array lies in a block, and each call hands over where."""

    def place(self, array: Array) -> Array:
        import shmipc

        return shmipc.share(array)
