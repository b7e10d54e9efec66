"""Receiving from a process's own mailbox: which message, in whose thread, and what stays."""

import collections
import itertools
import os
import random
import signal
import threading
import time
from typing import Any

import psutil
import pytest

import shmipc
from shmipc import ANY, Kind, Match, _native
from tests.actors import Client, in_threads, outcome

LIMIT = 20.0  # seconds


class Late(Client):
    """Sends at moments of its own choice."""

    def send_at(self, to: Any, number: int, moment: float) -> None:
        while time.monotonic() < moment:
            pass
        shmipc.send(to, number, tag=14)

    def send_mixed(self, to: Any, count: int, seed: int) -> None:
        """Each of the tags 1 and 2 so many times, interleaved at random."""
        tags = [1] * count + [2] * count
        random.Random(seed).shuffle(tags)
        numbers = {1: itertools.count(), 2: itertools.count()}
        for tag in tags:
            shmipc.send(to, (seed, next(numbers[tag])), tag=tag)


@pytest.mark.row("A11")
def test_oldest_of_several_matches_is_received(system: shmipc.System) -> None:
    for tag, body in ((5, "a"), (6, "x"), (5, "b")):
        shmipc.send(shmipc.self(), body, tag=tag)
    assert shmipc.receive(tag=5, timeout=0).body == "a"
    assert shmipc.receive(tag=5, timeout=0).body == "b"
    assert shmipc.receive(timeout=0).body == "x"


@pytest.mark.row("A14")
def test_message_that_comes_at_the_deadline_is_received_or_stays(system: shmipc.System, rounds: Any) -> None:
    late: Any = system.spawn(Late)
    count, choose, received = rounds(10_000, 400), random.Random(14), 0
    me = shmipc.self()
    for number in range(count):
        moment = time.monotonic() + 0.002
        late.send_at.cast(me, number, moment)
        limit = max(0.0, moment + choose.uniform(-0.0003, 0.0005) - time.monotonic())
        try:
            assert shmipc.receive(tag=14, timeout=limit).body >= 0
            received += 1
        except (shmipc.Timeout, shmipc.MailboxEmpty):
            pass
    assert late.pending() is not None  # it has sent them all
    left = [shmipc.receive(tag=14, timeout=0).body for _ in range(shmipc.pending())]
    assert received + len(left) == count
    assert received
    assert left


@pytest.mark.row("A15")
def test_two_threads_with_different_conditions_get_their_own(system: shmipc.System) -> None:
    senders: list[Any] = [system.spawn(Late) for _ in range(2)]
    count, me = 1500, shmipc.self()

    def take(tag: int) -> list[Any]:
        return [shmipc.receive(tag=tag, timeout=LIMIT).body for _ in range(2 * count)]

    running = [sender.send_mixed.submit(me, count, seed) for seed, sender in enumerate(senders)]
    for found in in_threads([lambda: take(1), lambda: take(2)]):
        for seed in range(2):
            assert [number for its, number in found if its == seed] == list(range(count))
    assert [future.result(LIMIT) for future in running] == [None, None]
    assert shmipc.pending() == 0


WRONG: list[Any] = [None, True, 1.5, "x", b"x", [], {}, object(), -1, 2**64, float("nan"), lambda: 0]


@pytest.mark.row("A19")
def test_arguments_of_wrong_types_are_refused_and_change_nothing(system: shmipc.System) -> None:
    choose, me = random.Random(19), shmipc.self()
    shmipc.send(me, "stays", tag=3)
    refused = 0
    for _ in range(2000):
        wrong = [choose.choice(WRONG) for _ in range(4)]
        acts: list[Any] = [
            lambda w=wrong: shmipc.send(w[0], "body"),
            lambda w=wrong: shmipc.send(me, "body", kind=w[1] if w[1] not in (0, 1) else "CAST"),
            lambda w=wrong: shmipc.send(me, "body", tag=w[2] if w[2] is not None else 0),
            lambda w=wrong: shmipc.send(me, "body", timeout="soon"),
            lambda w=wrong: shmipc.call(w[0], "body", timeout=1),
            lambda w=wrong: shmipc.receive(sender=w[0] if w[0] != ANY else 0, timeout=0),
            lambda w=wrong: shmipc.receive(kind="CAST", tag=w[3], timeout=0),
            lambda w=wrong: shmipc.receive_matching([w[1] or 3], timeout=0),  # one that is empty asks for nothing
            lambda w=wrong: shmipc.receive_matching(w[1] if not isinstance(w[1], (list, dict, str, bytes)) else 3),
            lambda w=wrong: shmipc.send_after(w[1] if w[1] not in (True, 1.5, 2**64) else "later", me, "body"),
            lambda w=wrong: shmipc.send_every(0, me, "body"),
            lambda w=wrong: shmipc.send(me, lambda: unpicklable, tag=w[2] if w[2] is not None else 0),
            lambda w=wrong: shmipc.link(w[0]),
            lambda w=wrong: shmipc.unlink(w[0]),
            lambda w=wrong: shmipc.monitor(w[0]),
        ]
        with pytest.raises((TypeError, shmipc.InvalidArgument, shmipc.NotFound)):
            choose.choice(acts)()
        refused += 1
    assert refused == 2000
    assert shmipc.pending() == 1
    assert shmipc.receive(timeout=0).body == "stays"
    for empty in ([], [Match()] * 65):
        with pytest.raises(shmipc.InvalidArgument):
            shmipc.receive_matching(empty, timeout=0)


unpicklable = threading.Lock()


@pytest.mark.row("A21")
def test_pending_is_the_length_of_this_process_s_mailbox(system: shmipc.System) -> None:
    other: Any = system.spawn(Client)
    me, choose = shmipc.self(), random.Random(21)
    model: collections.deque[tuple[int, int]] = collections.deque()
    for number in range(3000):
        act = choose.choice(("send", "send", "receive", "by tag", "other's"))
        tag = choose.randint(1, 3)
        if act == "send" and len(model) < 1000:
            shmipc.send(me, number, tag=tag)
            model.append((tag, number))
        elif act == "receive":
            if model:
                assert shmipc.receive(timeout=0).body == model.popleft()[1]
        elif act == "by tag":
            wanted = next((entry for entry in model if entry[0] == tag), None)
            if wanted is None:
                with pytest.raises(shmipc.MailboxEmpty):
                    shmipc.receive(tag=tag, timeout=0)
            else:
                assert shmipc.receive(tag=tag, timeout=0).body == wanted[1]
                model.remove(wanted)
        elif number % 50 == 0:
            shmipc.send(other, number)
            assert other.pending() in (0, 1)
        assert shmipc.pending() == len(model)


@pytest.mark.row("A22")
def test_received_body_outlives_every_later_receive(system: shmipc.System) -> None:
    client: Any = system.spawn(Client)
    array = shmipc.zeros(1000)
    bodies = [b"first", bytes(range(256)) * 400, array]
    for body in bodies:
        client.send(shmipc.self(), body)
    held = [shmipc.receive(timeout=0).body for _ in bodies]
    seen = [bytes(memoryview(body)) for body in held]
    with pytest.raises(shmipc.MailboxEmpty):
        shmipc.receive(timeout=0)
    assert [bytes(memoryview(body)) for body in held] == seen, "a failed receive keeps it"
    for number in range(200):
        shmipc.send(shmipc.self(), bytes([number]) * 100_000)
        shmipc.receive(timeout=0)
    assert [bytes(memoryview(body)) for body in held] == seen, "so does a successful one"
    assert seen[:2] == [b"first", bytes(range(256)) * 400]


@pytest.mark.row("A23")
def test_receive_matching_takes_the_oldest_match_overall_and_says_which_condition(system: shmipc.System) -> None:
    client: Any = system.spawn(Client)
    me = shmipc.self()
    client.send(me, "x", Kind.CAST, 9)
    client.send(me, "second", Kind.REPLY, 2)
    index, message = shmipc.receive_matching([Match(tag=1), Match(kind=Kind.REPLY)], timeout=0)
    assert (index, message.body, message.sender) == (1, "second", client)
    for body, tag in (("later", 2), ("oldest", 3), ("first", 1)):
        client.send(me, body, Kind.CAST, tag)
    found = [shmipc.receive_matching([(ANY, ANY, 1), (ANY, ANY, 3), (client, ANY, 2)], timeout=0) for _ in range(3)]
    assert [(index, message.body) for index, message in found] == [(2, "later"), (1, "oldest"), (0, "first")]
    with pytest.raises(shmipc.MailboxEmpty):
        shmipc.receive_matching([Match(tag=1), Match(tag=2)], timeout=0)
    started = time.monotonic()
    with pytest.raises(shmipc.Timeout):
        shmipc.receive_matching([Match(tag=1), Match(tag=2)], timeout=0.05)
    assert time.monotonic() - started >= 0.05
    client.send(me, "both", Kind.CAST, 9)
    index, message = shmipc.receive_matching([Match(tag=9), Match()], timeout=0)
    assert (index, message.body) == (0, "x"), "the oldest, and the first of the conditions that it matches"
    assert shmipc.receive(timeout=0).body == "both"
    client.send.cast(me, "woken", Kind.CAST, 5)
    assert shmipc.receive_matching([Match(tag=4), Match(tag=5)], timeout=LIMIT)[0] == 1
    assert shmipc.pending() == 0


@pytest.mark.row("A24")
def test_receive_that_can_never_end_says_so_and_leaves_all_in_place(system: shmipc.System) -> None:
    box = shmipc.Mailbox.create(slots=16)
    for number in range(16):
        shmipc.send(box, number, tag=1)
    for timeout in (None, 30.0, 0.05):
        started = time.monotonic()
        with pytest.raises(shmipc.Starved) as caught:
            box.receive_message(tag=2, timeout=timeout)
        assert time.monotonic() - started < 10
        assert caught.value.depth == 16
        assert caught.value.filter == (ANY, ANY, 2)
    with pytest.raises(shmipc.MailboxEmpty):
        box.receive_message(tag=2, timeout=0)
    assert box.count() == 16
    client: Any = system.spawn(Client)
    sent = client.send.submit(box, "two", Kind.CAST, 2)  # waits for room
    assert box.receive_message(tag=1, timeout=0).body == 0
    assert box.receive_message(tag=2, timeout=LIMIT).body == "two"
    assert sent.result(LIMIT) is None
    assert [box.receive_message(tag=1, timeout=0).body for _ in range(15)] == list(range(1, 16))


class HalfWriting(Client):
    def stop_within(self, box: Any, tag: int) -> None:
        _native.kill_point_arm("send_publish", 1, signal.SIGSTOP)
        try:
            shmipc.send(box, "half", tag=tag)
        finally:
            _native.kill_point_disarm()


@pytest.mark.row("A24")
@pytest.mark.parametrize("tag", [1, 2])
def test_receive_does_not_starve_while_a_message_is_half_written(
    system: shmipc.System, eventually: Any, tag: int
) -> None:
    box = shmipc.Mailbox.create(slots=4)
    writer: Any = system.spawn(HalfWriting)
    pid = shmipc.process(writer).pid
    for number in range(3):
        shmipc.send(box, number, tag=1)
    writing = writer.stop_within.submit(box, tag)
    eventually(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    assert box.count() == 4
    with pytest.raises(shmipc.Timeout):
        box.receive_message(tag=2, timeout=0.3)
    os.kill(pid, signal.SIGCONT)
    assert writing.result(LIMIT) is None
    if tag == 2:
        assert box.receive_message(tag=2, timeout=LIMIT).body == "half"
    else:
        with pytest.raises(shmipc.Starved):
            box.receive_message(tag=2, timeout=LIMIT)


@pytest.mark.row("A24")
def test_receive_starves_when_the_mailbox_fills_up_and_not_before(system: shmipc.System, eventually: Any) -> None:
    box = shmipc.Mailbox.create(slots=16)
    ended: list[Any] = []

    def wait() -> None:
        try:
            box.receive_message(tag=2, timeout=LIMIT)
        except shmipc.Starved as error:
            ended.append((error.depth, box.count()))

    thread = threading.Thread(target=wait)
    thread.start()
    for number in range(16):
        assert not ended
        shmipc.send(box, number, tag=1, timeout=LIMIT)
    thread.join(LIMIT)
    assert ended == [(16, 16)]


@pytest.mark.row("A24")
def test_another_thread_that_could_take_one_prevents_starving(system: shmipc.System, eventually: Any) -> None:
    box = shmipc.Mailbox.create(slots=16)
    outcomes: dict[int, Any] = {}

    def wait(tag: int) -> None:
        try:
            outcomes[tag] = box.receive_message(tag=tag, timeout=LIMIT).body
        except shmipc.Starved as error:
            outcomes[tag] = error

    threads = [threading.Thread(target=wait, args=(tag,)) for tag in (2, 3)]
    for thread in threads:
        thread.start()
    for number in range(15):
        shmipc.send(box, number, tag=1)
    client: Any = system.spawn(Client)
    client.send(box, "three", Kind.CAST, 3)  # the sixteenth: full until the second thread takes it
    threads[1].join(LIMIT)
    assert outcomes == {3: "three"}
    client.send(box, "two", Kind.CAST, 2)
    threads[0].join(LIMIT)
    assert outcomes == {2: "two", 3: "three"}


@pytest.mark.row("A24")
def test_all_starve_when_the_last_that_could_take_one_has_gone(system: shmipc.System) -> None:
    box = shmipc.Mailbox.create(slots=16)
    for number in range(16):
        shmipc.send(box, number, tag=1)

    def wait(tag: int) -> str:
        try:
            box.receive_message(tag=tag)
        except shmipc.Starved:
            return "starved"
        return "received"

    assert in_threads([lambda: wait(2), lambda: wait(3), lambda: wait(4)]) == ["starved"] * 3
    assert box.count() == 16


@pytest.mark.row("A24")
def test_receive_does_not_starve_while_something_without_a_slot_could_end_it(system: shmipc.System) -> None:
    ending: Any = system.spawn(Client)
    me = shmipc.self()
    timer = shmipc.send_after(0.3, me, "tick")
    while True:
        try:
            shmipc.send(me, "full", tag=1, timeout=0)
        except shmipc.MailboxFull:
            break
    assert shmipc.receive(tag=timer.id).body == "tick"
    with pytest.raises(shmipc.Starved):
        shmipc.receive(tag=timer.id)
    with pytest.raises(shmipc.Starved):
        shmipc.receive(sender=ending)
    shmipc.monitor(ending)
    threading.Timer(0.2, lambda: shmipc.process(ending).stop()).start()
    assert shmipc.receive(sender=ending).kind is Kind.EXIT
    holder: Any = system.spawn(Client)
    shmipc.send(holder, "question", kind=Kind.CALL, tag=8)
    threading.Timer(0.2, lambda: shmipc.process(holder).kill()).start()
    answer = shmipc.receive(tag=8)
    assert isinstance(answer.body, shmipc.PeerDead)
    with pytest.raises(shmipc.Starved):
        shmipc.receive(tag=8)


class Selective(Client):
    """Receives one tag."""

    def receive_one(self, told: Any) -> Any:
        shmipc.send(told, "receives")
        return shmipc.receive(tag=1, timeout=LIMIT).body


@pytest.mark.row("A24")
@pytest.mark.row("B5")
def test_requests_that_nobody_waits_for_take_no_room(system: shmipc.System) -> None:
    server: Any = system.options(slots=4).spawn(Selective)
    for _ in range(2):
        waits = server.receive_one.submit(shmipc.self())
        assert shmipc.receive(timeout=LIMIT).body == "receives"
        for _ in range(9):
            with pytest.raises(shmipc.Timeout):
                shmipc.call(server, "question", tag=2, timeout=0.02)
            with pytest.raises(shmipc.WouldBlock):
                shmipc.rendezvous(server, "meeting", tag=2, timeout=0)
        shmipc.send(server, "one", tag=1, timeout=LIMIT)
        assert waits.result(LIMIT) == "one"


def test_notice_is_received_at_once_though_its_sender_left_a_question(system: shmipc.System) -> None:
    client: Any = system.spawn(Client)
    shmipc.monitor(client)
    asked = client.call.submit(shmipc.self(), "question", 0.05)
    assert isinstance(asked.exception(LIMIT), shmipc.Timeout)
    assert shmipc.process(client).stop(LIMIT)
    assert shmipc.receive(timeout=0).kind is Kind.EXIT


def test_bits_are_of_the_condition_that_asks_for_them(system: shmipc.System) -> None:
    me = shmipc.self()
    for matches, index in (
        ([Match(tag=None), Match(kind=Kind.NOTIFY)], 1),
        ([Match(sender=me), Match(), Match(kind=Kind.NOTIFY)], 1),
    ):
        shmipc.notify(me, 5)
        found, message = shmipc.receive_matching(matches, timeout=0)
        assert (found, message.kind, message.body) == (index, Kind.NOTIFY, 5)


class Noting(Client):
    """Takes no order from its own code's receive."""

    def __init__(self) -> None:
        self.noted: list[int] = []

    def wait_then(self, told: Any) -> str:
        shmipc.send(told, "waits", tag=8)
        return outcome(lambda: shmipc.receive(tag=5, timeout=LIMIT))

    def note(self, number: int) -> int:
        self.noted.append(number)
        return number


class AsyncNoting(Noting):
    async def nothing(self) -> None:
        pass


@pytest.mark.parametrize("kind", [Noting, AsyncNoting])
def test_order_to_stop_that_a_handler_meets_goes_behind_what_was_queued(system: shmipc.System, kind: type) -> None:
    actor: Any = system.options(slots=4).spawn(kind)
    waits = actor.wait_then.submit(shmipc.self())
    assert shmipc.receive(tag=8, timeout=LIMIT).body == "waits"
    queued = [actor.note.submit(number) for number in range(3)]
    process = shmipc.process(actor)
    stopping = threading.Thread(target=lambda: process.stop(LIMIT))
    line = [threading.Thread(target=lambda: outcome(lambda: actor.note.cast(9))) for _ in range(2)]
    for thread in (stopping, *line):  # who stand in line for room behind the order
        thread.start()
    assert waits.result(LIMIT) == "Closed"
    assert [future.result(LIMIT) for future in queued] == [0, 1, 2]
    for thread in (stopping, *line):
        thread.join(LIMIT)
    assert not process.is_alive()


def test_end_of_one_system_ends_no_receive_in_another() -> None:
    with shmipc.System() as first:
        heard: list[str] = []
        listener = threading.Thread(target=lambda: heard.append(outcome(shmipc.receive)))
        listener.start()
        first.spawn(Client)
        listener.join(0.2)
        assert listener.is_alive()
    listener.join(LIMIT)
    assert heard == ["Closed"]
    with shmipc.System():
        shmipc.send(shmipc.self(), "hello")
        assert shmipc.receive(timeout=0).body == "hello"


@pytest.mark.row("A24")
def test_requests_whose_callers_leave_while_a_receiver_sleeps_make_room(system: shmipc.System) -> None:
    sender: Any = system.spawn(Client)
    callers = [system.spawn(Client) for _ in range(4)]
    server: Any = system.options(slots=4).spawn(Watching)
    waits = server.receive_from.submit(sender, shmipc.self())
    assert shmipc.receive(tag=8, timeout=LIMIT).body == "waits"
    asked = [caller.call.submit(server, "question", 0.3) for caller in callers]
    assert [type(future.exception(LIMIT)) for future in asked] == [shmipc.Timeout] * 4
    sender.send(server, "there is room")
    assert waits.result(LIMIT) == "there is room"


class Watching(Client):
    """Receives of one sender, whose end would end the wait: so it never starves."""

    def receive_from(self, sender: Any, told: Any) -> Any:
        shmipc.monitor(sender)
        shmipc.send(told, "waits", tag=8)
        return shmipc.receive(sender=sender, timeout=LIMIT).body


def test_timeouts_that_no_float_can_hold_are_long_or_refused(system: shmipc.System) -> None:
    me, never = shmipc.self(), 10**400
    shmipc.send(me, 1)
    assert shmipc.receive(timeout=never).body == 1
    assert shmipc.call(system.spawn(Answering), 2, timeout=never) == 2
    shmipc.send_after(never, me, 3).cancel()
    with pytest.raises(shmipc.InvalidArgument):
        shmipc.receive(timeout=-never)


class Answering(Client):
    def on_message(self, message: shmipc.Message) -> None:
        shmipc.reply(message, message.body)
