"""Calls in two steps: the request is sent, the answer is received like a message; and what a server knows of both."""

import os
import random
import signal
import threading
from typing import Any

import pytest

import shmipc
from shmipc import GENERATE, Kind
from shmipc.base import errors
from tests.actors import Actor, Client, Echo, Holder, outcome, usage

LIMIT = 10.0  # seconds; a watchdog


class Server(Actor):
    """Answers, each in its own way."""

    def on_message(self, message: shmipc.Message) -> None:
        if message.kind != Kind.CALL:
            return
        if message.body == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif isinstance(message.body, type):
            shmipc.reply_error(message, message.body("on purpose"))
        else:
            shmipc.reply(message, ("answer to", message.body))


class Forger(Client):
    """Answers in the name of nobody."""

    def forge(self, to: Any, tag: int) -> None:
        shmipc.send(to, "forged", kind=Kind.REPLY, tag=tag)


# --- the two-step form -----------------------------------------------------------------------------------------


def test_answer_is_received_by_its_tag_without_a_slot(system: shmipc.System) -> None:
    server: Any = system.spawn(Server)
    tags = [shmipc.send(server, number, kind=Kind.CALL, tag=GENERATE) for number in range(20)]
    me = shmipc.self()
    with pytest.raises(shmipc.MailboxFull):
        while True:
            shmipc.send(me, "flood", tag=1, timeout=0)
    full = shmipc.pending()
    for number, tag in reversed(list(enumerate(tags))):
        message = shmipc.receive(sender=server, kind=Kind.REPLY, tag=tag, timeout=LIMIT)
        assert (message.sender, message.kind, message.tag) == (server, Kind.REPLY, tag)
        assert message.body == ("answer to", number)
        assert not message.is_error
        assert not message.is_call
    assert shmipc.pending() == full
    with pytest.raises(shmipc.MailboxEmpty):
        shmipc.receive(kind=Kind.REPLY, timeout=0)


def test_error_and_death_of_the_server_are_answers(system: shmipc.System) -> None:
    server: Any = system.spawn(Server)
    shmipc.send(server, KeyError, kind=Kind.CALL, tag=1)
    message = shmipc.receive(tag=1, timeout=LIMIT)
    assert message.is_error
    assert isinstance(message.body, KeyError)
    pid = shmipc.process(server).pid
    os.kill(pid, signal.SIGSTOP)  # it dies when both are queued
    tags = [shmipc.send(server, body, kind=Kind.CALL, tag=GENERATE) for body in ("die", "after")]
    os.kill(pid, signal.SIGCONT)
    for tag in tags:
        message = shmipc.receive(kind=Kind.REPLY, tag=tag, timeout=LIMIT)
        assert message.sender == server
        assert message.is_error
        assert isinstance(message.body, shmipc.PeerDead)
        assert message.body.signal == signal.SIGKILL
    assert shmipc.process(server).join(LIMIT)  # until then its mailbox takes letters, whose answers say the same
    with pytest.raises(shmipc.PeerDead):
        shmipc.send(server, "late", kind=Kind.CALL)
    with pytest.raises(shmipc.InvalidArgument):
        shmipc.send(shmipc.self(), "to myself", kind=Kind.CALL)
    with pytest.raises(shmipc.MailboxEmpty):
        shmipc.receive(timeout=0)


def test_letters_to_a_mailbox_are_answered_by_whoever_takes_them(system: shmipc.System) -> None:
    box = shmipc.Mailbox.create(slots=4)
    holder: Any = system.spawn(take_and_answer, box)
    shmipc.send(box, "question", kind=Kind.CALL, tag=3)
    message = shmipc.receive(kind=Kind.REPLY, timeout=LIMIT)
    assert (message.sender, message.tag, message.body) == (holder, 3, "question")
    for _ in range(4):
        shmipc.send(box, "full", timeout=0)
    with pytest.raises(shmipc.MailboxFull) as caught:
        shmipc.send(box, "one more", kind=Kind.CALL, timeout=0)
    assert caught.value.message == "one more"


@pytest.mark.row("B12")
def test_answer_is_of_the_server_that_died_with_the_question_also_of_a_mailbox(system: shmipc.System) -> None:
    box = shmipc.Mailbox.create()
    server = system.spawn(take_and_wait, box, shmipc.self())
    tag = shmipc.send(box, "question", kind=Kind.CALL, tag=GENERATE)
    assert shmipc.receive(kind=Kind.CAST, timeout=LIMIT).body == "question"
    shmipc.process(server).kill()
    answer = shmipc.receive(sender=server, kind=Kind.REPLY, tag=tag, timeout=LIMIT)
    assert (answer.sender, answer.is_error, type(answer.body)) == (server, True, shmipc.PeerDead)


def take_and_wait(box: shmipc.Mailbox, told: Any) -> None:
    shmipc.send(told, box.receive_message().body)
    threading.Event().wait()


def take_and_answer(box: shmipc.Mailbox) -> None:
    """A function actor that takes one call."""
    message = box.receive_message(kind=Kind.CALL)
    shmipc.reply(message, message.body)
    shmipc.receive()


def test_letters_that_nobody_receives_leave_nothing(system: shmipc.System, eventually: Any) -> None:
    server: Any = system.spawn(Server)
    server.pid()
    before = usage(system, server)
    for number in range(200):
        shmipc.send(server, bytes(5000), kind=Kind.CALL, tag=number + 1)
        assert shmipc.receive(tag=number + 1, timeout=LIMIT).body == ("answer to", bytes(5000))
    assert usage(system, server) == before


# --- rows ------------------------------------------------------------------------------------------------------


@pytest.mark.row("B8")
@pytest.mark.parametrize("two_steps", [False, True])
def test_who_knows_the_tag_cannot_answer(system: shmipc.System, eventually: Any, two_steps: bool) -> None:
    holder: Any = system.spawn(Holder)
    forger: Any = system.spawn(Forger)
    client: Any = system.spawn(Client)
    me, tag = shmipc.self(), 7
    if two_steps:
        shmipc.send(holder, "question", kind=Kind.CALL, tag=tag)
        forger.forge(me, tag)
        with pytest.raises(shmipc.MailboxEmpty):
            shmipc.receive(sender=holder, kind=Kind.REPLY, tag=tag, timeout=0)
        assert holder.answer(0, "true") == "done"
        assert shmipc.receive(sender=holder, kind=Kind.REPLY, tag=tag, timeout=LIMIT).body == "true"
        assert shmipc.receive(timeout=0).sender == forger, "an ordinary message"
        return
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(shmipc.call(holder, "question", tag=tag)))
    thread.start()
    eventually(lambda: holder.count() == 1)
    assert holder.describe(0) == (me, Kind.CALL, tag)
    forger.forge(me, tag)
    assert client.pending() == 0
    assert not found
    assert holder.answer(0, "true") == "done"
    thread.join(LIMIT)
    assert found == ["true"]
    message = shmipc.receive(timeout=0)
    assert (message.sender, message.kind, message.body) == (forger, Kind.REPLY, "forged")
    assert shmipc.pending() == 0


ERRORS = [
    getattr(errors, name)
    for name in dir(errors)
    if isinstance(getattr(errors, name), type) and issubclass(getattr(errors, name), errors.ShmipcError)
]


@pytest.mark.row("B20")
@pytest.mark.parametrize("two_steps", [False, True])
def test_client_gets_exactly_the_error_that_was_answered(system: shmipc.System, two_steps: bool) -> None:
    server: Any = system.spawn(Server)
    assert len(ERRORS) > 20
    for error in [*ERRORS, ValueError, OSError, KeyError]:
        if two_steps:
            shmipc.send(server, error, kind=Kind.CALL, tag=1)
            answered = shmipc.receive(tag=1, timeout=LIMIT).body
        else:
            with pytest.raises(error) as caught:
                shmipc.call(server, error, timeout=LIMIT)
            answered = caught.value
        assert type(answered) is error
        assert answered.args == error("on purpose").args
        assert vars(answered).get("message") is None, "no body comes with it"
    assert shmipc.pending() == 0


def serve_in_two_steps() -> None:
    """Receive and reply, by turns in two steps and in one."""
    message = shmipc.receive(kind=Kind.CALL)
    while True:
        if message.body % 2:
            shmipc.reply(message, message.body + 1)
            message = shmipc.receive(kind=Kind.CALL)
        else:
            message = shmipc.reply_receive(message, message.body + 1, kind=Kind.CALL)


@pytest.mark.row("B21")
def test_calls_in_one_step_and_in_two_have_the_same_answers(system: shmipc.System, rounds: Any) -> None:
    server = system.spawn(serve_in_two_steps)
    for number in range(rounds(100_000, 3000)):
        if number // 2 % 2:
            assert shmipc.call(server, number, timeout=LIMIT) == number + 1
        else:
            tag = shmipc.send(server, number, kind=Kind.CALL, tag=GENERATE)
            answer = shmipc.receive(sender=server, kind=Kind.REPLY, tag=tag, timeout=LIMIT)
            assert answer.body == number + 1
    assert shmipc.pending() == 0


@pytest.mark.row("B21")
def test_reply_receive_takes_what_its_conditions_say(system: shmipc.System) -> None:
    me, client, other = shmipc.self(), *[system.spawn(Client) for _ in range(2)]
    for condition in ({"sender": other}, {"kind": Kind.REPLY}, {"tag": 2}):
        called = client.call.submit(me, "question")
        message = shmipc.receive(kind=Kind.CALL, timeout=LIMIT)
        shmipc.send(me, "queued", tag=1)
        with pytest.raises(shmipc.MailboxEmpty):
            shmipc.reply_receive(message, "answer", timeout=0, **condition)
        assert called.result(LIMIT) == "answer"
        called = client.call.submit(me, "question")
        message = shmipc.receive(kind=Kind.CALL, timeout=LIMIT)
        if "sender" in condition:
            other.send(me, "wanted")
        else:
            shmipc.send(me, "wanted", **condition)
        assert shmipc.reply_receive(message, "answer", timeout=LIMIT, **condition).body == "wanted"
        assert called.result(LIMIT) == "answer"
        assert shmipc.receive(timeout=0).body == "queued"


def test_reply_receive_that_is_refused_has_answered_nothing(system: shmipc.System) -> None:
    holder: Any = system.spawn(Client)
    holder.send(shmipc.self(), "cast")
    message = shmipc.receive(timeout=0)
    with pytest.raises(shmipc.InvalidArgument):
        shmipc.reply_receive(message, "answer", timeout=0)
    with pytest.raises(shmipc.InvalidArgument):
        shmipc.reply_receive(message, "answer", tag=0)


def test_answers_are_given_later_and_in_any_order(system: shmipc.System, eventually: Any) -> None:
    holder: Any = system.spawn(Holder)
    tags = [shmipc.send(holder, number, kind=Kind.CALL, tag=GENERATE) for number in range(10)]
    eventually(lambda: holder.count() == 10)
    order = random.Random(22).sample(range(10), 10)
    for place in order:
        assert holder.answer(place, ("answer", place)) == "done"
        assert shmipc.receive(kind=Kind.REPLY, timeout=LIMIT).body == ("answer", place)
        assert holder.answer(place, "again") == "Aborted"
    assert len(tags) == 10
    assert shmipc.pending() == 0


class Knower(Actor):
    """Tells what it knows of a request, before and after its answer."""

    def __init__(self, box: shmipc.Mailbox) -> None:
        self.box = box
        self.held: list[shmipc.Message] = []

    def on_message(self, message: shmipc.Message) -> None:
        self.held.append(message)

    def take(self) -> None:
        """One that stands in the other mailbox."""
        self.held.append(self.box.receive_message(timeout=LIMIT))

    def info(self, place: int) -> shmipc.RequestInfo:
        return shmipc.request_info(self.held[place])

    def answer(self, place: int) -> str:
        return outcome(lambda: shmipc.reply(self.held[place], place))


class Asker(Client):
    def ask(self, to: Any) -> tuple[Any, int, int]:
        """What this client knows of itself."""
        shmipc.send(to, "question", kind=Kind.CALL)
        return shmipc.self(), os.getpid(), shmipc.System.current()._membership.member.identity


@pytest.mark.row("B23")
def test_server_knows_who_asked_whom_in_which_transaction(system: shmipc.System) -> None:
    box = shmipc.Mailbox.create(slots=4)
    knower: Any = system.spawn(Knower, box)
    clients: list[Any] = [system.spawn(Asker) for _ in range(3)]
    truth = [clients[0].ask(knower), clients[1].ask(knower), clients[2].ask(box)]
    knower.take()
    infos = [knower.info(place) for place in range(3)]
    for (ref, pid, identity), info, target in zip(truth, infos, (knower, knower, box), strict=True):
        assert (info.sender, info.pid, info.identity) == (ref, pid, identity)
        assert info.uid == os.getuid()
        if target is box:
            assert info.target.count() == box.count()
            assert (info.target.index, info.target.life) == (box.index, box.life)
        else:
            assert info.target == target
    assert len({info.transaction for info in infos}) == 3
    assert None not in {info.transaction for info in infos}
    for place in range(3):
        assert knower.answer(place) == "done"
        again = knower.info(place)
        assert (again.sender, again.transaction, again.pid) == (
            infos[place].sender,
            infos[place].transaction,
            infos[place].pid,
        )
    os.kill(truth[0][1], signal.SIGKILL)
    assert shmipc.process(clients[0]).join(LIMIT)
    assert knower.info(0).pid == truth[0][1]
    shmipc.send(shmipc.self(), "cast")
    assert shmipc.request_info(shmipc.receive(timeout=0)).transaction is None


@pytest.mark.row("B24")
def test_send_says_what_is_known_and_promises_no_more(system: shmipc.System, rounds: Any) -> None:
    client: Any = system.spawn(Echo)
    before = usage(system, client)
    for _ in range(rounds(100, 15)):
        peer: Any = system.spawn(Client)
        assert shmipc.send(peer, "to the living", tag=1) == 1
        process = shmipc.process(peer)
        shmipc.send(peer, bytes(100_000))
        os.kill(process.pid, signal.SIGKILL)
        assert process.join(LIMIT)
        with pytest.raises(shmipc.PeerDead):
            shmipc.send(peer, bytes(100_000))
        del peer, process
    after = usage(system, client)
    after["undelivered"] = before["undelivered"]  # what was lost was counted
    assert after == before
