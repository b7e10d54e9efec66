"""Kinds and tags: what is sent arrives as it was sent, and a generated tag is nobody else's."""

import random
from typing import Any

import pytest

import shmipc
from shmipc import ANY, GENERATE, Kind
from tests.actors import Actor, Client, Echo, Holder

GENERATED = 1 << 60
SENTINELS = [2**64 - 1, 2**64 - 3, 2**64 - 15, 2**64 - 31, 2**64 - 47, ANY]


class Maker(Client):
    """Makes tags by sending; nobody else sees them but by its word."""

    def make(self, to: Any, count: int) -> bytes:
        """So many tags, as bytes, eight each."""
        sent = [shmipc.send(to, None, tag=GENERATE, timeout=30) for _ in range(count)]
        return b"".join(tag.to_bytes(8, "little") for tag in sent if tag is not None)

    def take(self, count: int) -> bytes:
        """So many tags, without sending."""
        generate = shmipc.System.current()._membership.member.generate_tag
        return b"".join(generate().to_bytes(8, "little") for _ in range(count))


def tags_in(data: bytes) -> list[int]:
    return [int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data), 8)]


@pytest.mark.row("A1")
def test_each_kind_arrives_as_it_was_sent(system: shmipc.System) -> None:
    holder: Any = system.spawn(Holder)
    me = shmipc.self()
    for place, kind in enumerate((Kind.CAST, Kind.CALL, Kind.REPLY, Kind.TIMER)):
        assert shmipc.send(holder, kind.name, kind=kind, tag=place + 1) == place + 1
        assert holder.describe(place) == (me, kind, place + 1)
    assert holder.bodies() == ["CAST", "CALL", "REPLY", "TIMER"]
    ended = system.spawn(Actor)
    shmipc.monitor(ended)
    assert shmipc.process(ended).stop()
    assert shmipc.receive(timeout=10).kind is Kind.EXIT


@pytest.mark.row("A2")
@pytest.mark.parametrize("kind", [ANY, Kind.EXIT, 5, 7, -2, True, "CAST", None])
def test_kind_that_cannot_be_sent_is_refused_and_nothing_is_queued(system: shmipc.System, kind: Any) -> None:
    with pytest.raises(shmipc.InvalidArgument):
        shmipc.send(shmipc.self(), "body", kind=kind)
    assert shmipc.pending() == 0


@pytest.mark.row("A3")
def test_message_without_a_tag_has_none_on_both_sides(system: shmipc.System) -> None:
    holder: Any = system.spawn(Holder)
    tag = None
    assert shmipc.send(holder, "cast", tag=tag) is None
    assert tag is None
    assert holder.describe(0)[1:] == (Kind.CAST, None)


@pytest.mark.row("A4", "A6")
def test_generated_tags_are_unique_and_no_users_tags(system: shmipc.System, rounds: Any) -> None:
    count = rounds(100_000, 4_000)
    makers: list[Any] = [system.spawn(Maker) for _ in range(8)]
    running = [maker.take.submit(count) for maker in makers]
    found = [tag for future in running for tag in tags_in(future.result(300))]
    assert len(set(found)) == len(found) == 8 * count
    assert all(GENERATED < tag < 2 * GENERATED for tag in found)
    choose = random.Random(6)
    users = {choose.randint(1, GENERATED - 1) for _ in range(20_000)} | {1, GENERATED - 1}
    assert not users & set(found)


@pytest.mark.row("A4")
def test_generated_tag_is_returned_and_received(system: shmipc.System) -> None:
    maker: Any = system.spawn(Maker)
    sent = tags_in(maker.make(shmipc.self(), 500))
    assert [shmipc.receive(timeout=0).tag for _ in sent] == sent
    tag = shmipc.send(shmipc.self(), "mine", tag=GENERATE)
    assert tag is not None
    assert tag not in sent
    assert shmipc.receive(tag=tag, timeout=0).body == "mine"


@pytest.mark.row("A5")
def test_users_tags_have_sixty_bits(system: shmipc.System) -> None:
    for tag in (1, 2, GENERATED - 1):
        assert shmipc.send(shmipc.self(), "body", tag=tag) == tag
        assert shmipc.receive(tag=tag, timeout=0).tag == tag
    for tag in (0, GENERATED, GENERATED + 1, 2 * GENERATED - 1, 2 * GENERATED, *SENTINELS):
        with pytest.raises(shmipc.InvalidArgument):
            shmipc.send(shmipc.self(), "body", tag=tag)
        with pytest.raises(shmipc.InvalidArgument):
            shmipc.send_after(0, shmipc.self(), "body", tag=tag)
    assert shmipc.pending() == 0
    with pytest.raises(shmipc.MailboxEmpty):
        shmipc.receive(timeout=0)


@pytest.mark.row("A7")
def test_numbers_that_come_again_are_neither_zero_nor_in_flight(system: shmipc.System) -> None:
    holder: Any = system.spawn(Holder)
    held = [shmipc.send(holder, "call", kind=Kind.CALL, tag=GENERATE) for _ in range(3)]
    assert held == [GENERATED + 1, GENERATED + 2, GENERATED + 3]
    assert holder.count() == 3  # one is held by the server, and none is answered
    member = system._membership.member
    member.set_next_tag(GENERATED - 2)
    made = [member.generate_tag() for _ in range(20_000)]
    assert made[:2] == [2 * GENERATED - 2, 2 * GENERATED - 1]
    assert made[2:6] == [GENERATED + 4, GENERATED + 5, GENERATED + 6, GENERATED + 7]  # past 0 and those in flight
    assert len({*made, *held}) == len(made) + len(held)
    assert all(GENERATED < tag < 2 * GENERATED for tag in made)
    assert holder.answer(1, "answer") == "done"
    assert shmipc.receive(tag=held[1], timeout=10).body == "answer"
    member.set_next_tag(GENERATED)
    assert [member.generate_tag() for _ in range(2)] == [GENERATED + 2, GENERATED + 4]  # one may be given again


def test_generated_tag_serves_a_call(system: shmipc.System) -> None:
    echo = system.spawn(Echo)
    assert shmipc.call(echo, "body", tag=GENERATE) == "body"
