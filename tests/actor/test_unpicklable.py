"""What does not pickle, or not back, is an error on the side that can act, and never a hang."""

import dataclasses
import logging
import pickle
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import shmipc
from shmipc import Mailbox
from tests.actors import Actor, usage
from tests.odd import (
    CLASSES,
    MAKERS,
    PAYLOADS,
    BadStart,
    LateAsync,
    Odd,
    Unloadable,
    Unpicklable,
    raise_odd,
    return_late,
    return_unloadable,
    return_unpicklable,
)


@pytest.fixture(scope="module")
def odd() -> Iterator[Any]:
    with shmipc.System() as system:
        yield system.spawn(Odd)


def caught(act: Callable[[], object]) -> BaseException:
    try:
        act()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def text_of(error: BaseException) -> str | None:
    try:
        return str(error)
    except Exception:
        return None


def told(error: BaseException) -> str:
    """What a user sees."""
    return "".join(traceback.format_exception(error))


# --- exceptions ------------------------------------------------------------------------------------------------


@pytest.mark.row("M10")
@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("text", ["some text", ""])
def test_odd_exception_keeps_type_text_and_traceback(odd: Any, name: str, text: str) -> None:
    original = MAKERS[name](text)
    for act in (
        lambda: odd.raise_one.call(name, text, timeout=60),
        lambda: odd.raise_one.submit(name, text).result(60),
    ):
        error = caught(act)
        assert type(error) is CLASSES[name]
        assert text_of(error) == text_of(original)
        assert "in raise_one" in told(error), "the other process's traceback"
        assert "odd.py" in told(error)
    assert odd.take(1) == "int"


@pytest.mark.row("M10")
def test_exception_without_a_text_keeps_its_type_and_traceback(odd: Any) -> None:
    recipe = {"base": Exception, "name": "Mute", "text": "t", "constructor": "two", "payload": "none"}
    error = caught(lambda: odd.raise_made.call({**recipe, "reduce": "no", "text_method": "raises"}, timeout=60))
    assert type(error).__name__ == "Mute"
    assert "in raise_made" in told(error)


@pytest.mark.row("M10")
def test_cause_of_an_exception_is_in_its_traceback(odd: Any) -> None:
    error = caught(lambda: odd.raise_with_cause.call("deep", timeout=60))
    assert type(error) is CLASSES["two arguments"]
    assert str(error) == "deep and outer"
    shown = told(error)
    assert "HoldsALock: deep" in shown
    assert "direct cause" in shown
    assert "in raise_one" in shown
    assert shown.index("HoldsALock: deep") < shown.index("direct cause") < shown.index("TwoArguments: deep and outer")


recipes = st.fixed_dictionaries(
    {
        "base": st.sampled_from([Exception, ValueError, OSError, KeyError, RuntimeError, AttributeError]),
        "name": st.sampled_from(["Odd", "Ünïcode", "X"]),
        "text": st.text(max_size=50),
        "constructor": st.sampled_from(["plain", "two", "keyword", "silent"]),
        "payload": st.sampled_from(sorted(PAYLOADS)),
        "reduce": st.sampled_from(["default", "raises", "lies", "unloadable"]),
        "text_method": st.sampled_from(["default", "custom", "raises"]),
    }
)


@pytest.mark.row("M10")
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(recipe=recipes)
def test_any_exception_class_arrives_with_type_text_and_traceback(odd: Any, recipe: dict[str, Any]) -> None:
    error = caught(lambda: odd.raise_made.call(recipe, timeout=60))
    shown = told(error)
    assert "in raise_made" in shown
    expected = expected_text(recipe)
    if isinstance(error, shmipc.RemoteError):  # the class itself cannot be had here, but what it was is said
        assert error.type_name.endswith(recipe["name"])
        assert "in raise_made" in error.traceback
        assert expected is None or expected in str(error)
    else:
        assert type(error).__name__ == recipe["name"]
        assert isinstance(error, recipe["base"])
        assert expected is None or text_of(error) == expected or expected in "\n".join(error.__notes__)
    assert odd.take(recipe["text"]) == "str", "the actor goes on"


def expected_text(recipe: dict[str, Any]) -> str | None:
    """The text the exception has over there, where it can be said beforehand."""
    if recipe["text_method"] == "custom":
        return f"custom {recipe['text']}"
    if recipe["text_method"] == "raises" or recipe["constructor"] in ("plain", "keyword"):
        return None
    if recipe["base"] is KeyError and recipe["constructor"] == "two":
        return repr(recipe["text"])
    return recipe["text"] if recipe["constructor"] == "two" else None


@pytest.mark.row("M10")
@pytest.mark.parametrize("name", ["two arguments", "holds a lock", "reduce raises", "needs new", "large"])
def test_exception_in_a_constructor_is_raised_by_spawn(system: shmipc.System, name: str) -> None:
    before = usage(system)
    error = caught(lambda: system.spawn(BadStart, name, "in the constructor"))
    assert type(error) is CLASSES[name]
    assert text_of(error) == text_of(MAKERS[name]("in the constructor"))
    assert "in __init__" in told(error)
    assert system.processes() == []
    del error
    assert usage(system) == before


# --- arguments -------------------------------------------------------------------------------------------------


@pytest.mark.row("M10")
def test_argument_that_does_not_pickle_is_raised_at_the_sender_and_nothing_is_queued(system: shmipc.System) -> None:
    odd: Any = system.spawn(Odd)
    mailbox = Mailbox.create(slots=4)
    value = Unpicklable()
    with system.pool(1) as pool:
        assert pool.submit(abs, -1).result(10) == 1
        before = usage(system, odd)
        for act in (
            lambda: odd.take(value),
            lambda: odd.take.call(value, timeout=60),
            lambda: odd.take.submit(value).result(60),
            lambda: odd.take.cast(value),
            lambda: odd.take(key=[value]),
            lambda: shmipc.call(odd, value, timeout=60),
            lambda: shmipc.send(odd, value),
            lambda: shmipc.send(odd, value, tag=5),
            lambda: mailbox.send(value),
            lambda: mailbox.send_nowait(value),
            lambda: mailbox.send_many([value]),
            lambda: system.spawn(Odd, value),
            lambda: pool.submit(abs, value),
            lambda: pool.submit(value.__reduce__),
            lambda: list(pool.map(abs, [value])),
            lambda: list(pool.map(abs, [1, value], chunksize=2)),
        ):
            error = caught(act)
            assert type(error) is TypeError
            assert "stays where it is" in str(error)
            del error
        assert mailbox.count() == 0
        assert usage(system, odd) == before
        assert odd.take(1) == "int"
        assert pool.submit(abs, -2).result(10) == 2
        assert len(system.processes()) == 2


@pytest.mark.row("M10")
def test_argument_that_does_not_unpickle_is_raised_at_the_caller(system: shmipc.System) -> None:
    odd: Any = system.spawn(Odd)
    value = Unloadable()
    with system.pool(1) as pool:
        for act in (
            lambda: odd.take.call(value, timeout=60),
            lambda: odd.take.submit(value).result(60),
            lambda: shmipc.call(odd, value, timeout=60),
            lambda: pool.submit(abs, value).result(60),
            lambda: list(pool.map(abs, [value], timeout=60)),
            lambda: list(pool.map(abs, [value, 1], chunksize=2, timeout=60)),
        ):
            error = caught(act)
            assert type(error) is RuntimeError
            assert str(error) == "cannot be made again"
            assert "in refuse" in told(error)
            del error
        assert odd.take(1) == "int"
        assert pool.submit(abs, -2).result(10) == 2
    assert type(caught(lambda: system.spawn(Odd, value))) is RuntimeError
    assert len(system.processes()) == 1


@pytest.mark.row("M10")
def test_cast_that_does_not_unpickle_is_logged_and_the_actor_goes_on(
    system: shmipc.System, caplog: pytest.LogCaptureFixture, eventually: Callable[..., None]
) -> None:
    odd: Any = system.spawn(Odd)
    with caplog.at_level(logging.ERROR, "shmipc.actor"):
        odd.take.cast(Unloadable())
        shmipc.send(odd, Unloadable())
        assert odd.take(1) == "int"
        eventually(lambda: len(caplog.records) == 2)
    for entry in caplog.records:
        assert entry.name == "shmipc.actor"
        assert "cannot be made again" in (entry.exc_text or "")


@pytest.mark.row("M10")
def test_message_that_does_not_unpickle_is_raised_at_the_receiver_once(system: shmipc.System) -> None:
    mailbox = Mailbox.create(slots=4)
    before = usage(system)
    for receive in (mailbox.receive, mailbox.receive_nowait, mailbox.receive_message, mailbox.receive_many):
        mailbox.send(Unloadable())
        mailbox.send("next")
        error = caught(receive)
        assert type(error) is RuntimeError
        assert str(error) == "cannot be made again"
        del error
        assert mailbox.count() == 1
        assert mailbox.receive(timeout=0) == "next"
    mailbox.send([bytes(100_000), Unloadable()])
    with pytest.raises(RuntimeError):
        mailbox.receive()
    assert usage(system) == before


# --- results ---------------------------------------------------------------------------------------------------


@pytest.mark.row("M10")
def test_result_that_does_not_pickle_is_raised_at_the_caller(system: shmipc.System) -> None:
    odd: Any = system.spawn(Odd)
    with system.pool(1) as pool:
        for act in (
            lambda: odd.return_unpicklable.call(timeout=60),
            lambda: odd.return_unpicklable.submit().result(60),
            lambda: shmipc.call(odd, "reply unpicklable", timeout=60),
            lambda: pool.submit(return_unpicklable, 1).result(60),
            lambda: list(pool.map(return_unpicklable, [1], timeout=60)),
            lambda: list(pool.map(return_unpicklable, [1, 2], chunksize=2, timeout=60)),
        ):
            error = caught(act)
            assert type(error) is TypeError
            assert str(error) == "this value stays where it is"
            assert "in __reduce__" in told(error)
            del error
        assert odd.take(1) == "int"
        assert pool.submit(abs, -2).result(10) == 2


@pytest.mark.row("M10")
@pytest.mark.parametrize("name", ["PeerDead", "Aborted"])
def test_result_whose_pickling_raises_as_if_the_caller_had_left_is_answered(system: shmipc.System, name: str) -> None:
    odd, late = system.spawn(Odd), system.spawn(LateAsync)
    with system.pool(1) as pool:
        for act in (
            lambda: odd.return_late.call(name, timeout=20),
            lambda: late.return_late.call(name, timeout=20),
            lambda: pool.submit(return_late, name).result(20),
            lambda: list(pool.map(return_late, [name], timeout=20)),
        ):
            error = caught(act)
            assert type(error) is getattr(shmipc, name)
            assert str(error) == "in __reduce__"
            del error


@pytest.mark.row("M10")
def test_result_that_does_not_unpickle_is_raised_at_the_caller(system: shmipc.System) -> None:
    odd: Any = system.spawn(Odd)
    with system.pool(1) as pool:
        for act in (
            lambda: odd.return_unloadable.call(timeout=60),
            lambda: odd.return_unloadable.submit().result(60),
            lambda: pool.submit(return_unloadable, 1).result(60),
            lambda: list(pool.map(return_unloadable, [1], timeout=60)),
            lambda: list(pool.map(return_unloadable, [1, 2], chunksize=2, timeout=60)),
        ):
            error = caught(act)
            assert type(error) is RuntimeError
            assert str(error) == "cannot be made again"
            del error
        assert odd.take(1) == "int"
        assert pool.submit(abs, -2).result(10) == 2


@pytest.mark.row("M10")
def test_odd_exception_of_a_task_is_raised_at_the_one_who_submitted_it(system: shmipc.System) -> None:
    with system.pool(2) as pool:
        futures = {name: pool.submit(raise_odd, name) for name in MAKERS}
        for name, future in futures.items():
            error = caught(lambda: future.result(60))  # noqa: B023
            assert type(error) is CLASSES[name]
            assert text_of(error) == text_of(MAKERS[name]("from a task"))
            assert "in raise_odd" in told(error)
        for chunksize in (1, 3):
            error = caught(lambda: list(pool.map(raise_odd, ["needs new"] * 5, chunksize=chunksize)))  # noqa: B023
            assert type(error) is CLASSES["needs new"]
            assert "in raise_odd" in told(error)


@pytest.mark.parametrize("name", [name for name in vars(shmipc) if isinstance(vars(shmipc)[name], type)])
def test_every_error_of_ours_pickles_with_what_it_carries(name: str) -> None:
    kind = vars(shmipc)[name]
    if not issubclass(kind, shmipc.ShmipcError):
        return
    error = kind("some text")
    error.extra = ("carried", 1)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == str(error)
    assert vars(again) == vars(error)


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    why: str


class Wrapper(Actor):
    def fail(self) -> None:
        try:
            raise Frozen("cause")
        except Frozen:
            raise ValueError("effect")  # noqa: B904  # the context is the point


def test_error_that_came_of_one_that_cannot_be_changed_arrives(system: shmipc.System) -> None:
    with pytest.raises(ValueError, match="effect"):
        system.spawn(Wrapper).fail()
