"""Small built-in values travel without pickle, and come back as they were."""

import math
import struct
from typing import Any

import pytest

import shmipc
from shmipc import Mailbox
from tests.actors import Actor

QUIET_NAN = struct.unpack("d", struct.pack("Q", 0x7FF8_0000_0000_0DEA))[0]
VALUES: list[Any] = [
    None,
    *[True, False, 0, 1, -1],
    *[2**31, -(2**31) - 1, 2**63 - 1, -(2**63), 2**63, -(2**63) - 1, 10**40],
    *[0.0, -0.0, 1.5, math.inf, -math.inf, math.nan, QUIET_NAN, 5e-324],
    *["", "a", "abc", "\0", "é", "ÿ", "Ā", "€", "\ud800", "a\udfff", "😀", "😀" * 30, "x" * 255, "x" * 256, "é" * 600],
    *[b"", b"a", b"\0" * 300, b"x" * 600, bytearray(b"ab")],
    *[(), (1,), (None, True, "a", b"b", 0.5), ((), ((),)), tuple(range(20)), tuple(range(300)), (10**40, "a")],
    *[[], [1, [2]], {}, {"a": (1,)}, {1, 2}, ([], {}), (1, [2])],
]


class Text(str):
    """A subclass of a plain type, which is not plain."""


class Number(int):
    pass


class Pair(tuple[int, int]):
    pass


class Echo(Actor):
    def give(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        return args, kwargs

    def same(self, first: Any, second: Any) -> bool:
        return first is second


def form(value: Any) -> Any:
    """Types and values all the way down; floats by their bits."""
    if isinstance(value, float):
        return float, struct.pack("d", value)
    if isinstance(value, tuple | list):
        return type(value), [form(entry) for entry in value]
    if isinstance(value, dict):
        return dict, [(form(key), form(entry)) for key, entry in value.items()]
    return type(value), value


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = (value,)
    return value


@pytest.mark.parametrize("slot_bytes", [8, 64, 256, 4096])
def test_value_arrives_with_its_type_and_its_bits(system: shmipc.System, slot_bytes: int) -> None:
    mailbox = Mailbox.create(slots=4, slot_bytes=slot_bytes)
    for value in [*VALUES, *map(nested, (7, 8, 9, 50))]:
        mailbox.send(value)
        assert form(mailbox.receive()) == form(value)


def test_subclass_of_a_plain_type_stays_one(system: shmipc.System) -> None:
    mailbox = Mailbox.create(slots=4)
    for value in (Text("a"), Number(7), Pair((1, 2)), (Number(7),)):
        mailbox.send(value)
        assert form(mailbox.receive()) == form(value)


def test_arguments_and_results_of_a_call_keep_type_and_bits(system: shmipc.System) -> None:
    echo: Any = system.spawn(Echo)
    for value in VALUES:
        given = echo.give.call(value, key=value, timeout=60)
        assert form(given) == form(((value,), {"key": value}))
    assert form(echo.give(*range(40))) == form((tuple(range(40)), {}))
    assert form(echo.give(**{"é": 1, "": 2, "a b": None})) == form(((), {"é": 1, "": 2, "a b": None}))


def test_one_list_passed_twice_arrives_as_one(system: shmipc.System) -> None:
    echo: Any = system.spawn(Echo)
    one: list[int] = []
    assert echo.same(one, one)
    assert not echo.same([], [])
    mailbox = Mailbox.create(slots=4)
    mailbox.send((one, {}, one))
    first, _, last = mailbox.receive()
    assert first is last


def test_tasks_of_a_pool_get_plain_and_other_arguments(system: shmipc.System) -> None:
    with system.pool(1) as pool:
        assert [form(value) for value in pool.map(same, VALUES, timeout=60)] == [form(value) for value in VALUES]
        assert pool.submit(same, value=3).result(60) == 3
        assert pool.submit(same, [4]).result(60) == [4]


def same(value: Any) -> Any:
    return value
