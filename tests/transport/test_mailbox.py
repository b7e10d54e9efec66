"""Mailboxes: sizes, order, exact capacity, and views that outlive their handle."""

import gc
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import shmipc
from shmipc import LIMITS, Mailbox
from tests.actors import Actor, Client, outcome, usage

# --- sizes -----------------------------------------------------------------------------------------------------


class Relay(Actor):
    """Sends back what it finds in one mailbox through another."""

    def relay(self, source: Mailbox, to: Mailbox, count: int) -> None:
        for _ in range(count):
            to.send(source.receive())

    def measure(self, source: Mailbox) -> tuple[int, int]:
        """Length of the next body, and how many of its bytes are zero."""
        body = source.receive(60)
        return len(body), body.count(0)


def needs_room(size: int) -> None:
    """Skip where a body of that size does not fit several times."""
    room = os.statvfs("/dev/shm")
    if room.f_bavail * room.f_frsize < 4.5 * size or psutil.virtual_memory().available < 8 * size:
        pytest.skip(f"a body of {size} bytes needs 4.5 times that of /dev/shm, and 8 times that of memory")


@pytest.mark.row("A18")
def test_the_largest_body_arrives_whole(system: shmipc.System) -> None:
    needs_room(LIMITS.body_bytes)
    relay, mailbox = system.spawn(Relay), Mailbox.create(slots=2)
    body = bytes(LIMITS.body_bytes)
    assert len(body) == 1 << 30
    measured = relay.measure.submit(mailbox)
    mailbox.send(body, timeout=60)
    assert measured.result(100) == (len(body), len(body))
    assert mailbox.count() == 0


@pytest.mark.row("A18")
@pytest.mark.timeout(300)
def test_a_large_body_comes_back_equal(system: shmipc.System, rounds: Callable[[int, int], int]) -> None:
    size = rounds(LIMITS.body_bytes, 1 << 26)
    needs_room(size)
    relay, there, back = system.spawn(Relay), Mailbox.create(slots=2), Mailbox.create(slots=2)
    body = os.urandom(1 << 20) * (size >> 20)
    relay.relay.cast(there, back, 1)
    there.send(body, timeout=60)
    received = back.receive(timeout=200)
    assert len(received) == size
    assert received == body


@pytest.mark.row("A18")
def test_a_body_above_the_largest_is_refused_and_nothing_is_queued(system: shmipc.System) -> None:
    body = bytes(LIMITS.body_bytes + 1)
    mailbox = Mailbox.create(slots=4)
    client = system.spawn(Client)
    before = usage(system, client)
    for send in (
        lambda: mailbox.send(body),
        lambda: mailbox.send_nowait(body),
        lambda: mailbox.send_many([body]),
        lambda: shmipc.send(mailbox, body, tag=5),
        lambda: shmipc.send(client, body),
        lambda: shmipc.call(client, body, timeout=10),
    ):
        with pytest.raises(shmipc.TooLarge) as caught:
            send()
        assert isinstance(caught.value, shmipc.InvalidArgument)
        assert str(len(body)) in str(caught.value), "says the value"
        assert str(LIMITS.body_bytes) in str(caught.value), "says the limit"
    assert mailbox.count() == 0
    assert client.pending() == 0
    with pytest.raises(shmipc.MailboxEmpty):
        mailbox.receive(timeout=0)
    assert usage(system, client) == before
    mailbox.send(b"goes on")
    assert mailbox.receive(timeout=0) == b"goes on"


class Maker(Actor):
    def make(self, size: int) -> bytes:
        return bytes(size)


def test_a_result_above_the_largest_is_raised_at_the_caller(system: shmipc.System) -> None:
    maker = system.spawn(Maker)
    with pytest.raises(shmipc.TooLarge):
        maker.make.call(LIMITS.body_bytes + 1, timeout=60)
    assert maker.make(3) == bytes(3)


@pytest.mark.parametrize("slot_bytes", [8, 256, 65_536])
def test_bodies_around_the_size_of_a_slot_come_back_equal(system: shmipc.System, slot_bytes: int) -> None:
    relay = system.spawn(Relay)
    there, back = Mailbox.create(slots=64, slot_bytes=slot_bytes), Mailbox.create(slots=64, slot_bytes=slot_bytes)
    sizes = [0, 1, *range(slot_bytes - 9, slot_bytes + 10), 2 * slot_bytes, 100_000, 1 << 20, (1 << 20) + 1]
    sent = [os.urandom(size) for size in sizes if size >= 0]
    relay.relay.cast(there, back, len(sent))
    for body in sent:
        there.send(body, timeout=10)
    assert [back.receive(timeout=10) for _ in sent] == sent


# --- order -----------------------------------------------------------------------------------------------------


class Numberer(Actor):
    """Sends numbered messages as fast as it can."""

    def run(self, mailbox: Mailbox, mine: int, count: int) -> None:
        for number in range(count):
            mailbox.send((mine << 32 | number).to_bytes(8, "little"))


@pytest.mark.race
@pytest.mark.row("A20")
@pytest.mark.parametrize("slots", [1, 1024])
def test_messages_of_each_of_eight_senders_arrive_once_and_in_order(
    system: shmipc.System, slots: int, rounds: Callable[[int, int], int]
) -> None:
    count = 50_000 if slots > 1 else rounds(50_000, 1000)
    mailbox = Mailbox.create(slots=slots)
    senders = [system.spawn(Numberer) for _ in range(8)]
    running = [sender.run.submit(mailbox, mine, count) for mine, sender in enumerate(senders)]
    expected = [0] * 8
    for _ in range(8 * count):
        word = int.from_bytes(mailbox.receive(timeout=60), "little")
        mine, number = word >> 32, word & 0xFFFFFFFF
        assert number == expected[mine], f"sender {mine}: a gap, a duplicate, or out of order"
        expected[mine] += 1
    assert [future.result(60) for future in running] == [None] * 8
    assert expected == [count] * 8
    assert mailbox.count() == 0
    with pytest.raises(shmipc.MailboxEmpty):
        mailbox.receive(timeout=0)


class Recorder(Actor):
    """Writes down what reaches it, in whatever form it was sent."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def note(self, number: int) -> int:
        self.seen.append(number)
        return number

    def on_message(self, message: shmipc.Message) -> None:
        self.seen.append(message.body)
        if message.kind == shmipc.Kind.CALL:
            shmipc.reply(message, message.body)

    def all(self) -> list[int]:
        return self.seen


def test_order_holds_across_send_cast_submit_and_call(system: shmipc.System) -> None:
    recorder = system.spawn(Recorder)
    choose = random.Random(20)
    for number in range(2000):
        way = choose.choice(["send", "cast", "submit", "call", "raw call"])
        if way == "send":
            shmipc.send(recorder, number, tag=choose.choice([None, 5]))
        elif way == "cast":
            recorder.note.cast(number)
        elif way == "submit":
            recorder.note.submit(number)
        elif way == "call":
            assert recorder.note(number) == number
        else:
            assert shmipc.call(recorder, number) == number
    assert recorder.all() == list(range(2000))


# --- exact capacity --------------------------------------------------------------------------------------------


class Racer(Actor):
    """Sends messages with random tags whenever there is room, until it has sent so many."""

    def run(self, mailbox: Mailbox, mine: int, count: int) -> int:
        choose, sent = random.Random(mine), 0
        while sent < count:
            try:
                shmipc.send(mailbox, (mine, sent), tag=choose.randint(1, 4), timeout=choose.choice([0, 0, 0.001]))
                sent += 1
            except (shmipc.MailboxFull, shmipc.Timeout) as error:
                if error.message != (mine, sent):
                    raise
        return sent

    def fill(self, mailbox: Mailbox, tag: int) -> int:
        """Send until the mailbox is full; how many it took."""
        sent = 0
        while True:
            try:
                shmipc.send(mailbox, sent, tag=tag, timeout=0)
                sent += 1
            except shmipc.MailboxFull:
                return sent


@pytest.mark.race
@pytest.mark.row("A25")
def test_four_racing_senders_never_exceed_the_capacity_while_a_receiver_sets_aside(system: shmipc.System) -> None:
    mailbox = Mailbox.create(slots=16)
    racers = [system.spawn(Racer) for _ in range(4)]
    count = 5000
    running = [racer.run.submit(mailbox, mine, count) for mine, racer in enumerate(racers)]
    highest = 0
    over = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not over.is_set():
            highest = max(highest, mailbox.count())

    watcher = threading.Thread(target=watch)
    watcher.start()
    choose = random.Random(25)
    left = [dict.fromkeys(range(1, 5), -1) for _ in range(4)]  # the last number of each sender and tag
    received = 0
    try:
        while received < 4 * count:
            try:
                tag = choose.randint(1, 4)
                message = mailbox.receive_message(tag=tag, timeout=0)
            except shmipc.MailboxEmpty:
                message = mailbox.receive_message(timeout=60)
            mine, number = message.body
            assert number > left[mine][message.tag], "in order within sender and tag"
            left[mine][message.tag] = number
            received += 1
            highest = max(highest, mailbox.count())
    finally:
        over.set()
        watcher.join()
    assert [future.result(60) for future in running] == [count] * 4
    assert highest == 16, "it was full, and never more than full"
    assert mailbox.count() == 0


@pytest.mark.race
@pytest.mark.row("A25")
def test_racing_senders_get_in_exactly_as_many_as_there_is_room_for(system: shmipc.System) -> None:
    mailbox = Mailbox.create(slots=16)
    racers = [system.spawn(Racer) for _ in range(4)]
    choose = random.Random(16)
    room = 16
    for _ in range(200):
        taken = [racer.fill.submit(mailbox, mine + 1) for mine, racer in enumerate(racers)]
        assert sum(future.result(60) for future in taken) == room
        assert mailbox.count() == 16
        with pytest.raises(shmipc.MailboxEmpty):
            mailbox.receive_message(tag=9, timeout=0)  # sets all of them aside
        assert mailbox.count() == 16
        with pytest.raises(shmipc.MailboxFull) as caught:
            mailbox.send_nowait("one more")
        assert caught.value.message == "one more"
        room = 0
        for _ in range(choose.randint(1, 16)):
            try:
                mailbox.receive_message(tag=choose.randint(1, 4), timeout=0)
                room += 1
            except shmipc.MailboxEmpty:
                continue
        assert mailbox.count() == 16 - room


@pytest.mark.row("A25")
@pytest.mark.parametrize("slots", [1, 2, 3, 15, 16, 17, 100])
def test_mailbox_agrees_with_a_list_under_any_sequence_of_operations(system: shmipc.System, slots: int) -> None:
    for seed in range(20):
        choose = random.Random(f"{slots} {seed}")
        mailbox, model = Mailbox.create(slots=slots), []
        bias = choose.choice([0.4, 0.5, 0.6])
        for step in range(300):
            told = f"slots {slots}, seed {seed}, step {step}"
            if choose.random() < bias:
                tag = choose.choice([None, 1, 2, 3])
                body = (step, bytes(choose.choice([0, 10, 300])))
                full = outcome(lambda: shmipc.send(mailbox, body, tag=tag, timeout=0))  # noqa: B023
                assert full == ("done" if len(model) < slots else "MailboxFull"), told
                if full == "done":
                    model.append((tag, body))
            else:
                tag = choose.choice([shmipc.ANY, None, 1, 2, 3])
                wanted = [entry for entry in model if tag in (shmipc.ANY, entry[0])]
                try:
                    message = mailbox.receive_message(tag=tag, timeout=0)
                except shmipc.MailboxEmpty:
                    assert wanted == [], told
                else:
                    assert (message.tag, message.body) == wanted[0], told
                    model.remove(wanted[0])
            assert mailbox.count() == len(mailbox) == len(model), told
        assert [mailbox.receive_message(timeout=0).body for _ in model] == [body for _, body in model]
        mailbox.close()


# --- views -----------------------------------------------------------------------------------------------------


class Opener(Actor):
    """Has a mailbox open, and lets go of it in every way there is."""

    def open(self, name: str) -> None:
        self.mailbox = Mailbox.open(name)

    def send(self, body: bytes) -> None:
        self.mailbox.send(body)

    def unlink(self) -> None:
        self.mailbox.unlink()
        self.mailbox.close()

    def churn(self) -> None:
        """Use the memory that has come free, if any has."""
        for _ in range(20):
            with Mailbox.create(slots=16) as mailbox:
                for _ in range(16):
                    mailbox.send(b"stranger" * 20)


def mapped(path: str) -> bool:
    return path in Path("/proc/self/maps").read_text()


@pytest.mark.row("A26")
@pytest.mark.parametrize("persistent", [False, True])
def test_views_stay_readable_after_close_and_after_the_peer_unlinked(system: shmipc.System, persistent: bool) -> None:
    opener = system.spawn(Opener)
    before = usage(system, opener)
    mailbox = Mailbox.create("seen", slots=16, persistent=persistent)
    opener.open("seen")
    opener.send(b"payload of the peer")
    header, slots = mailbox.header, mailbox.slots
    part = slots["body"][0, :19]
    words = header.copy(), slots.copy()
    assert part.tobytes() == b"payload of the peer"
    assert not header.flags.writeable
    assert not slots.flags.writeable
    mailbox.close()
    with pytest.raises(shmipc.Closed):
        mailbox.count()
    assert part.tobytes() == b"payload of the peer"
    opener.unlink()
    with pytest.raises(shmipc.NotFound):
        Mailbox.open("seen")
    opener.churn()
    assert part.tobytes() == b"payload of the peer"
    assert np.array_equal(header, words[0])
    assert np.array_equal(slots, words[1])
    del header, slots
    opener.churn()
    assert part.tobytes() == b"payload of the peer", "the last view keeps it"
    assert usage(system, opener)["blocks"] == before["blocks"] + 1
    del part
    after = usage(system, opener)
    assert after.pop("undelivered") == 2 * 20 * 16 + 1, "what was left in mailboxes that were closed"
    assert after | {"undelivered": 0} == before


@pytest.mark.row("A26")
def test_views_stay_readable_after_the_peer_was_killed_and_the_system_was_left() -> None:
    with shmipc.System() as system:
        opener = system.spawn(Opener)
        mailbox = Mailbox.create("seen", slots=16)
        opener.open("seen")
        opener.send(b"payload of the peer")
        header, slots = mailbox.header, mailbox.slots
        shmipc.process(opener).kill()
        assert shmipc.process(opener).join(10)
        assert slots["body"][0, :19].tobytes() == b"payload of the peer"
        name = system.name
    assert slots["body"][0, :19].tobytes() == b"payload of the peer"
    assert header["tail"] - header["delivered"] == 1
    assert mapped(name)
    del mailbox, header, slots, system, opener
    gc.collect()
    assert not mapped(name), "the mapping goes with the last view"


class Unreadable:
    """Cannot be made again."""

    def __reduce__(self) -> tuple[object, ...]:
        return fail_to_read, ()


def fail_to_read() -> None:
    raise LookupError("nobody can read this")


def test_what_was_received_before_an_unreadable_message_is_returned_and_its_error_comes_next(
    system: shmipc.System,
) -> None:
    with Mailbox.create(slots=8) as mailbox:
        for body in (1, 2, Unreadable(), 4, 5):
            mailbox.send(body)
        assert mailbox.receive_many() == [1, 2]
        with pytest.raises(LookupError, match="nobody can read this"):
            mailbox.receive_many()
        assert mailbox.receive_many() == [4, 5]
        mailbox.send(Unreadable())
        with pytest.raises(LookupError):
            mailbox.receive_many()
        with pytest.raises(shmipc.MailboxEmpty):
            mailbox.receive_many(timeout=0)


# --- one length, bounded receives, one maker -------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 64, 5000])
def test_mailbox_of_one_length_refuses_every_other_body_and_queues_nothing(system: shmipc.System, size: int) -> None:
    mailbox = Mailbox.create("fixed", slots=4, message_bytes=size)
    client = system.spawn(Client)
    assert (mailbox.message_bytes, Mailbox.open("fixed").message_bytes) == (size, size)
    wrong = [bytes(size + 1), "x" * size, 5, None, [1], bytearray(size), np.zeros(size, np.uint8)]
    for body in [*wrong, *([bytes(size - 1), b""] if size > 1 else [b""])]:
        for send in (mailbox.send, mailbox.send_nowait, lambda body: shmipc.send(mailbox, body, tag=3)):
            with pytest.raises(shmipc.InvalidArgument, match=f"exactly {size}") as caught:
                send(body)
            assert isinstance(caught.value, shmipc.TooLarge) == (body is wrong[0])
        with pytest.raises(shmipc.InvalidArgument):
            shmipc.call(mailbox, body, timeout=5)
        assert outcome(lambda: client.send(mailbox, body)) == outcome(lambda: mailbox.send(body))  # noqa: B023
    assert mailbox.count() == 0
    body = os.urandom(size)
    client.send(mailbox, body)
    assert mailbox.receive(timeout=5) == body
    for bad in (0, -1, LIMITS.body_bytes + 1):
        with pytest.raises(shmipc.InvalidArgument, match="message_bytes"):
            Mailbox.create(message_bytes=bad)


@pytest.mark.parametrize("size", [64, 100_000])
def test_bounded_receive_keeps_what_does_not_fit(system: shmipc.System, size: int) -> None:
    mailbox, bodies = Mailbox.create(slots=4), [os.urandom(size), os.urandom(size), "a str"]
    for body in bodies:
        mailbox.send(body)
    for capacity in (0, 8, size - 1):
        for timeout in (0, 0.05, None):
            with pytest.raises(shmipc.BufferTooSmall) as caught:
                mailbox.receive_bounded(capacity, timeout)
            assert caught.value.needed == size
            assert str(size) in str(caught.value)
            assert str(capacity) in str(caught.value)
    with pytest.raises(shmipc.MailboxEmpty):
        mailbox.receive_message(tag=9, timeout=0)  # all are set aside
    with pytest.raises(shmipc.BufferTooSmall):
        mailbox.receive_bounded(8)
    assert mailbox.count() == 3
    assert mailbox.receive_bounded(size) == bodies[0]
    assert mailbox.receive() == bodies[1]
    assert mailbox.receive_bounded(100) == "a str"
    with pytest.raises(shmipc.MailboxEmpty):
        mailbox.receive_bounded(8, 0)
    for bad, error in ((-1, shmipc.InvalidArgument), (None, TypeError), (1.0, TypeError), (True, TypeError)):
        with pytest.raises(error):
            mailbox.receive_bounded(bad)  # type: ignore[arg-type]


def test_receiver_with_room_gets_what_another_s_buffer_was_too_small_for(system: shmipc.System) -> None:
    for _ in range(20):
        mailbox = Mailbox.create(slots=4)
        ended: list[str] = []
        small = threading.Thread(target=lambda: ended.append(outcome(lambda: mailbox.receive_bounded(8, 30))))  # noqa: B023
        large = threading.Thread(target=lambda: ended.append(str(mailbox.receive(30))))  # noqa: B023
        for thread in (small, large):
            thread.start()
        mailbox.send(bytes(9))
        large.join()
        if small.is_alive():  # it had not come yet
            mailbox.send(bytes(8))
        small.join()
        assert str(bytes(9)) in ended
        assert {"BufferTooSmall", "done"} & set(ended)


class NamedMaker(Actor):
    def make_named(self, name: str, slots: int, begin: Mailbox, end: Mailbox) -> tuple[int, int]:
        begin.receive()
        with Mailbox.create(name, slots, exist_ok=True) as made:
            made.send(os.getpid())
            end.receive()
            return made.index, made.life


def test_of_all_who_make_a_mailbox_that_may_exist_one_makes_it(system: shmipc.System) -> None:
    makers: list[Any] = [system.spawn(NamedMaker) for _ in range(6)]
    for turn in range(20):
        begin, end = Mailbox.create(slots=16), Mailbox.create(slots=16)
        made = [maker.make_named.submit(f"shared{turn}", 16, begin, end) for maker in makers]
        begin.send_many([None] * 6)
        with Mailbox.create(f"shared{turn}", 16, exist_ok=True) as mine:
            senders = {mine.receive(30) for _ in makers}
            end.send_many([None] * 6)
            assert {future.result(30) for future in made} == {(mine.index, mine.life)}
            assert len(senders) == 6
        with pytest.raises(shmipc.NotFound):
            Mailbox.open(f"shared{turn}")


def test_mailbox_that_may_exist_must_have_the_measures_asked_for(system: shmipc.System) -> None:
    with Mailbox.create("taken", 16, message_bytes=64):
        with pytest.raises(shmipc.NameTaken):
            Mailbox.create("taken", 16, message_bytes=64)
        Mailbox.create("taken", 16, message_bytes=64, exist_ok=True).close()
        for slots, length in ((17, 64), (16, 63), (16, None)):
            with pytest.raises(shmipc.InvalidArgument, match="exists with 16 slots and message_bytes 64"):
                Mailbox.create("taken", slots, message_bytes=length, exist_ok=True)
    actor = system.options(name="actor").spawn(Actor)
    with pytest.raises(shmipc.NameTaken):
        Mailbox.create("actor", exist_ok=True)
    assert actor.pid() > 0
