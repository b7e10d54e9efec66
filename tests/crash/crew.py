"""Actors of the crash tests: a victim that dies or stops at a kill point while it works, and a crew that goes on.

A role is a way of working that passes many kill points. Messages are numbered by their sender,
so that what arrives shows what was lost, doubled or overtaken.
"""

import gc
import os
import time
from typing import Any

import numpy as np

import shmipc
from shmipc import _native
from shmipc.memory import membership

LARGE = 3000  # bytes of a body that does not fit its slot
END = "end"


def body_of(sender: str, number: int) -> Any:
    """Every third body is in a block, every fifth an array by handle."""
    if number % 5 == 4:
        array = shmipc.empty(200, np.int64)
        array[:] = number
        return (sender, number, array)
    return (sender, number, bytes([number % 256]) * LARGE if number % 3 == 2 else b"")


def number_of(body: Any) -> tuple[str, int]:
    """Sender and number, after a look at the rest of the body."""
    sender, number, rest = body
    if isinstance(rest, bytes):
        assert rest in (b"", bytes([number % 256]) * LARGE)
    else:
        assert rest.tolist() == [number] * 200
    return sender, number


def publish(scene: "Scene", number: int) -> None:
    """A frame that is the number all over."""
    scene.bus.publish(np.full(500, number), timeout=30.0)


class Worker:
    """A process of the crew; the victim is one too, armed."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []

    def pid(self) -> int:
        return os.getpid()

    def echo(self, value: Any) -> Any:
        return value

    def on_message(self, message: shmipc.Message) -> None:
        if message.is_call:
            shmipc.reply(message, message.body)

    def trim(self) -> None:
        gc.collect()
        membership.current().member.trim()

    def arm(self, point: str, after: int, number: int) -> None:
        _native.kill_point_arm(point, after, number)

    def passed(self) -> dict[str, int]:
        counts = {point: _native.kill_point_passed(point) for point in _native.KILL_POINTS}
        _native.kill_point_disarm()
        return {point: count for point, count in counts.items() if count}

    # --- roles; each works until it has done its rounds ---

    def send(self, scene: "Scene", name: str, rounds: int) -> int:
        """To a mailbox that is often full."""
        for number in range(rounds):
            shmipc.send(scene.box, body_of(name, number), tag=number % 2 + 1)
        return rounds

    def receive(self, scene: "Scene", path: str | None = None, limit: int = 1 << 30) -> list[tuple[str, int]]:
        """What comes, until the end is said; each is noted in the file at once."""
        note = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT) if path else None
        seen = []
        while len(seen) < limit:
            message = scene.box.receive()
            if message == END:
                break
            seen.append(number_of(message))
            if note is not None:
                os.write(note, f"{seen[-1][0]} {seen[-1][1]}\n".encode())
        if note is not None:
            os.close(note)
        return seen

    def select(self, scene: "Scene", path: str, rounds: int) -> list[tuple[str, int]]:
        """Odd numbers only, so that even ones are set aside; and whatever is oldest, now and then."""
        note = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        seen = []
        for turn in range(rounds):
            try:
                message = scene.box.receive_message(tag=2, timeout=0.2).body if turn % 2 == 0 else scene.box.receive()
            except (shmipc.Timeout, shmipc.Starved):
                message = scene.box.receive()
            if message == END:
                break
            seen.append(number_of(message))
            os.write(note, f"{seen[-1][0]} {seen[-1][1]}\n".encode())
        os.close(note)
        return seen

    def call(self, scene: "Scene", rounds: int) -> int:
        """Calls, futures, and calls that are given up."""
        for number in range(rounds):
            body = body_of("call", number)
            assert number_of(scene.server.echo(body)) == ("call", number)
            futures = [scene.server.echo.submit(turn) for turn in range(4)]
            tag = shmipc.send(scene.server, body, kind=shmipc.Kind.CALL, tag=shmipc.GENERATE)
            assert [future.result() for future in futures] == list(range(4))
            letter = shmipc.receive(kind=shmipc.Kind.REPLY, tag=tag, timeout=10.0)
            if letter.is_error:
                raise letter.body
            assert number_of(letter.body) == ("call", number)
            if number % 5 == 0:
                try:
                    scene.server.wait.call(0.005, timeout=0.001)
                except shmipc.Timeout:
                    pass
        return rounds

    def ask(self, scene: "Scene", rounds: int) -> int:
        """Calls to whoever takes them from the mailbox; how many found a taker that died."""
        died = 0
        for number in range(rounds):
            try:
                assert shmipc.call(scene.box, number) == number
            except shmipc.PeerDead:
                died += 1
        return died

    def answer(self, scene: "Scene", rounds: int) -> int:
        for _ in range(rounds):
            message = scene.box.receive_message()
            shmipc.reply(message, message.body)
            if message.body == END:
                break
        return rounds

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)

    def share(self, scene: "Scene", rounds: int) -> int:
        """Blocks taken, held, passed on and given back, in many sizes."""
        kept: list[Any] = []
        box = shmipc.Mailbox.create(slots=2)
        for number in range(rounds):
            array = shmipc.zeros((number % 7 + 1) * 3000, np.uint8)
            box.send((array[5:], array))
            kept.append(box.receive())
            kept[number // 2 : number // 2 + 1] = []
            if number % 10 == 9:
                kept.clear()
                self.trim()
        box.close()
        return rounds

    def name(self, scene: "Scene", rounds: int) -> int:
        """Mailboxes, names and monitors made and taken away."""
        system = shmipc.System.current()
        for number in range(rounds):
            with shmipc.Mailbox.create(f"box{number % 3}", slots=4) as box:
                box.send(bytes(LARGE))
                system.serve(f"name{number % 5}", shmipc.self())
                watch = shmipc.monitor(scene.server)
                with shmipc.Mailbox.open(f"box{number % 3}") as again:
                    again.receive()
                    again.send(number)
                assert watch.cancel()
                system.withdraw(f"name{number % 5}")
        return rounds

    def spawn(self, scene: "Scene", rounds: int) -> int:
        for _ in range(rounds):
            child: Any = shmipc.System.current().spawn(Worker)
            assert child.echo(1) == 1
            assert shmipc.process(child).stop()
        return rounds

    def watch(self, scene: "Scene", rounds: int) -> int:
        """Monitors one that ends in that moment, so that the watcher itself fires the notice."""
        box = membership.current().box
        for _ in range(rounds):
            box.monitor(scene.ended._shm.id)
            assert shmipc.receive(kind=shmipc.Kind.EXIT, timeout=5.0).body.ref == scene.ended
        return rounds

    def link(self, scene: "Scene", rounds: int) -> int:
        """Links itself with one that lives, and with one that has ended in that moment."""
        box = membership.current().box
        for _ in range(rounds):
            shmipc.link(scene.server)
            assert shmipc.unlink(scene.server)
            assert box.link(scene.ended._shm.id, 0, 0)
            assert shmipc.receive(kind=shmipc.Kind.EXIT, timeout=5.0).body.monitor is None
        return rounds

    def abort(self, scene: "Scene", rounds: int) -> int:
        """Aborts itself, and takes it, by turns in a wait and by asking."""
        for number in range(rounds):
            shmipc.abort(shmipc.self())
            if number % 2:
                assert shmipc.aborted()
            else:
                try:
                    shmipc.receive(tag=9, timeout=10.0)
                    raise AssertionError("not aborted")
                except shmipc.Aborted:
                    pass
        return rounds

    def endure(self, scene: "Scene", rounds: int) -> int:
        """Is aborted in calls that it waits out: the server, which is told, answers."""
        for number in range(rounds):
            shmipc.abort(shmipc.self())
            with shmipc.no_abort():
                assert scene.server.until_aborted(number) == number
            assert shmipc.aborted()
        return rounds

    def until_aborted(self, value: Any) -> Any:
        try:
            shmipc.receive(tag=9, timeout=10.0)
        except shmipc.Aborted:
            return value
        raise AssertionError("not aborted")

    def tick(self, scene: "Scene", rounds: int) -> int:
        """Sets timers, receives their ticks, and cancels one that repeats."""
        for number in range(rounds):
            every = shmipc.send_every(0.001, shmipc.self(), number)
            once = shmipc.send_after(0.001, shmipc.self(), number)
            for timer in (once, every, every):
                assert shmipc.receive(tag=timer.id, timeout=5.0).body == number
            assert every.cancel()
            assert not once.cancel()
        return rounds

    def notify(self, scene: "Scene", rounds: int) -> int:
        """Bits for others, and for itself, which come together."""
        for _ in range(rounds):
            shmipc.notify(scene.server, 1)
            shmipc.notify(shmipc.self(), 2)
            shmipc.notify(shmipc.self(), 4)
            assert shmipc.receive(kind=shmipc.Kind.NOTIFY, timeout=0).body == 6
        return rounds

    def offer(self, scene: "Scene", rounds: int) -> int:
        """Offers to others, taken back, and to itself, pulled in order."""
        for number in range(rounds):
            shmipc.offer(scene.server, body_of("offer", number))
            assert number_of(shmipc.recall(scene.server)) == ("offer", number)
            for turn in range(2):
                shmipc.offer(shmipc.self(), number + turn)
            for turn in range(2):
                assert shmipc.receive(kind=shmipc.Kind.NOTIFY, timeout=0).body == shmipc.OFFERED
                assert shmipc.pull(shmipc.self()) == number + turn
        return rounds

    def meet(self, scene: "Scene", rounds: int) -> int:
        """Has the server's loop accept one message after the other."""
        for number in range(rounds):
            shmipc.rendezvous(scene.server, body_of("meet", number))
        return rounds

    def reap(self, rounds: int) -> int:
        """Does a keeper's work, for a while."""
        member = membership.current().member
        for _ in range(rounds):
            member.reap()
            time.sleep(0.002)
        return rounds

    def publish(self, scene: "Scene", rounds: int) -> int:
        """To a bus that others read; and past a reader that never reads, whose patience ends."""
        for number in range(rounds):
            publish(scene, number)
            if number % 10 == 0:
                with shmipc.Bus.create(frames=1) as bus, bus.subscribe(patience=0.001):
                    bus.publish(b"first")
                    bus.publish(b"second")
        return rounds

    def read(self, scene: "Scene", rounds: int) -> int:
        """As a reader that is waited for, and as one that is not; and frames that are for one reader only."""
        held: list[Any] = []
        for turn in range(rounds):
            if turn % 10 == 0:
                reader = scene.bus.subscribe(patience=0.2 * (turn % 20 == 0))
                last = -1
            held.append(reader.receive(timeout=30.0))
            del held[:-3]
            assert all((frame == frame[0]).all() for frame in held)
            assert reader.position is not None
            assert reader.position > last
            last = reader.position
            if turn % 10 == 9:
                reader.close()
                with scene.counted.subscribe() as one:
                    scene.counted.publish(bytes(10))
                    try:
                        one.receive(timeout=0)
                    except shmipc.MailboxEmpty:
                        pass  # another had it
        return rounds

    def found(self, scene: "Scene", rounds: int) -> int:
        """Buses made, found, and destroyed."""
        for number in range(rounds):
            with shmipc.Bus.create(f"bus{number % 3}") as bus, shmipc.Bus.open(f"bus{number % 3}") as again:
                with again.subscribe() as reader:
                    try:
                        bus.destroy()
                    except shmipc.WouldBlock:
                        bus.publish(bytes(10))
                    reader.receive(timeout=0)
                again.destroy()
        return rounds

    def hold(self, array: Any, box: shmipc.Mailbox) -> None:
        """Has something of everything: memory, a call and a submit in flight, a mailbox, a place in a line."""
        self.held = [array[1:], shmipc.zeros(1000), shmipc.Mailbox.create("held")]
        self.held[2].send(bytes(LARGE))
        self.held[2].send(self.held[1])
        server = shmipc.System.current().lookup("server")
        self.held.append(server.sleep_little.submit())
        shmipc.monitor(server)
        shmipc.offer(server, bytes(LARGE))
        box.receive_message(tag=9)

    def sleep_little(self) -> None:
        time.sleep(0.2)

    def sleep(self) -> None:
        time.sleep(600)


class Scene:
    """What the crew works on; picklable."""

    bus: shmipc.Bus  # of the stage
    counted: shmipc.Bus  # whose frames are for one reader each

    def __init__(self, box: shmipc.Mailbox, server: Any, ended: Any = None) -> None:
        self.box = box
        self.server = server
        self.ended = ended
