"""Actors that own ports, for the tests of ports and groups."""

import gc
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import shmipc
from shmipc import Port, PortGroup, _native
from tests.actors import Actor


def told(action: Callable[[], Any]) -> Any:
    """What it returned, or the name of the error that it raised."""
    try:
        return action()
    except shmipc.ShmipcError as error:
        return type(error).__name__


class Wait:
    """Something that another thread does, and when it was done."""

    def __init__(self, action: Callable[[], Any]) -> None:
        self.began = time.monotonic()
        self.result: Any = None
        self.took: float | None = None
        self.thread = threading.Thread(target=self._run, args=(action,), daemon=True)
        self.thread.start()

    def _run(self, action: Callable[[], Any]) -> None:
        self.result = told(action)
        self.took = time.monotonic() - self.began

    def begun(self) -> Self:
        """When it sleeps: in its wait, for nothing else keeps it so long."""
        path, asleep = Path(f"/proc/self/task/{self.thread.native_id}/stat"), 0
        while asleep < 3:
            assert self.took is None, f"it did not wait: {self.result!r}"
            time.sleep(0.005)
            asleep = asleep + 1 if path.read_text().rpartition(")")[2].split()[0] == "S" else 0
        return self

    def end(self, timeout: float = 20.0) -> tuple[Any, float]:
        """(what it returned or the name of its error, seconds it took)."""
        self.thread.join(timeout)
        assert self.took is not None, f"it still waits after {timeout} s"
        return self.result, self.took


class Host(Actor):
    """Owns ports, each under a name."""

    def __init__(self) -> None:
        self.ports: dict[str, Port] = {}
        self.held: dict[str, shmipc.Message] = {}
        self.waits: list[Wait] = []

    def trim(self) -> None:
        gc.collect()  # what an error's traceback holds
        super().trim()

    def make(self, name: str, slots: int = 64, site: str | None = None) -> Port:
        self.ports[name] = Port.create(slots, site=site)
        return self.ports[name]

    def make_default(self) -> Port:
        self.ports["default"] = Port.default()
        return self.ports["default"]

    def forget(self, *names: str) -> None:
        for name in names:
            self.ports.pop(name).close()
            self.held.pop(name, None)

    def know(self, name: str, port: Port) -> None:
        self.ports[name] = port

    def name_of(self, port: Port) -> str:
        return next(name for name, known in self.ports.items() if known == port)

    def enable(self, name: str, priority: int = 0) -> Any:
        return told(lambda: self.ports[name].enable(priority))

    def disable(self, name: str) -> Any:
        return told(self.ports[name].disable)

    def delete(self, name: str) -> Any:
        return told(self.ports[name].delete)

    def migrate(self, name: str, to: Any, messages: bool = True) -> Any:
        return told(lambda: self.ports[name].migrate(to, messages=messages))

    def die_while_migrating(self, name: str, to: Any, point: str) -> Any:
        _native.kill_point_arm(point, 1, signal.SIGKILL)
        return self.migrate(name, to)

    def count(self, name: str) -> int:
        return len(self.ports[name])

    def local(self, name: str) -> int:
        return self.ports[name].local

    def send(self, port: Port, body: Any, timeout: float | None = 0) -> Any:
        return told(lambda: port.send(body, timeout))

    # -- receiving ----------------------------------------------------------------------------------------------

    def take(self, name: str, timeout: float | None = 0) -> Any:
        return told(lambda: self.ports[name].receive(timeout).body)

    def take_numbers(self, name: str) -> list[tuple[Any, int]]:
        """(body, number) of all that is there."""
        found = []
        while True:
            try:
                message = self.ports[name].receive(0)
            except shmipc.MailboxEmpty:
                return found
            found.append((message.body, message.count))

    def take_some(self, name: str, count: int) -> list[Any]:
        """So many at most, of what is there."""
        found = []
        while len(found) < count and (body := self.take(name)) != "MailboxEmpty":
            found.append(body)
        return found

    def take_any(self, timeout: float | None = 0) -> Any:
        def act() -> Any:
            port, message = shmipc.receive_any(timeout)
            return self.name_of(port), message.body

        return told(act)

    def drain_any(self) -> list[tuple[str, Any]]:
        found = []
        while isinstance(one := self.take_any(), tuple):
            found.append(one)
        return found

    def hold(self, name: str, timeout: float | None = 10.0) -> Any:
        """Receive a message, a request for one, and keep it."""
        self.held[name] = self.ports[name].receive(timeout)
        return self.held[name].body

    def answer(self, name: str, value: Any) -> Any:
        return told(lambda: self.held[name].reply(value))

    def serve(self, name: str, count: int) -> int:
        """Answer so many requests with what was asked, and who has served it."""
        for _ in range(count):
            message = self.ports[name].receive(20.0)
            message.reply((self.pid(), message.body))
        return count

    # -- waiting in another thread ------------------------------------------------------------------------------

    def begin(self, what: str, *args: Any) -> int:
        action = getattr(self, what)
        self.waits.append(Wait(lambda: action(*args)))
        return len(self.waits) - 1

    def begin_to_wait(self, what: str, *args: Any) -> int:
        """The same, when it waits."""
        place = self.begin(what, *args)
        self.waits[place].begun()
        return place

    def end(self, place: int) -> tuple[Any, float]:
        return self.waits[place].end()

    def waits_still(self, place: int) -> bool:
        return self.waits[place].took is None

    def call(self, port: Port, body: Any, timeout: float | None = 20.0) -> Any:
        return port.call(body, timeout)

    def stream(self, port: Port, count: int, pause_every: int = 0) -> int:
        """Send the numbers below `count`."""
        for number in range(count):
            port.send(number, 20.0)
            if pause_every and number % pause_every == 0:
                time.sleep(0.0005)
        return count

    def stream_until_gone(self, port: Port) -> int:
        """Send numbers from 0 on, until the port is gone; how many were accepted."""
        count = 0
        while self.send(port, count, 20.0) is None:
            count += 1
        return count

    # -- groups -------------------------------------------------------------------------------------------------

    def insert(self, name: str, group: PortGroup) -> Any:
        return told(lambda: group.insert(self.ports[name]))

    def group_id(self, stamp: int) -> int:
        return PortGroup.static_id(stamp)

    def open_group(self, stamp: int) -> Any:
        def act() -> Any:
            with PortGroup.open(stamp=stamp) as group:
                return group.id

        return told(act)

    def create_group(self, stamp: int) -> Any:
        def act() -> Any:
            with PortGroup.create(stamp=stamp) as group:
                return group.id

        return told(act)
