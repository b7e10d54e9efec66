"""Actors that tests run in processes of their own, and what a test asks of a whole system.

A test module's own classes work as well; here is what several modules need.
"""

import gc
import os
import threading
from collections.abc import Callable
from typing import Any

import shmipc
from shmipc.memory import membership

COUNTED = ("members", "mailboxes", "blocks", "leases", "undelivered")


class Actor:
    """What every actor of the tests can do."""

    def pid(self) -> int:
        return os.getpid()

    def trim(self) -> None:
        membership.current().member.trim()


class Echo(Actor):
    """Answers with what it was sent, by a method and as a raw message."""

    def echo(self, value: Any) -> Any:
        return value

    def on_message(self, message: shmipc.Message) -> None:
        if message.kind == shmipc.Kind.CALL:
            shmipc.reply(message, message.body)


class Holder(Actor):
    """Keeps every raw message, and answers calls when it is told to."""

    def __init__(self) -> None:
        self.held: list[shmipc.Message] = []

    def on_message(self, message: shmipc.Message) -> None:
        self.held.append(message)

    def count(self) -> int:
        return len(self.held)

    def bodies(self) -> list[Any]:
        return [message.body for message in self.held]

    def describe(self, place: int) -> tuple[Any, int, int | None]:
        """Sender, kind and tag of what it holds at that place."""
        message = self.held[place]
        return message.sender, message.kind, message.tag

    def answer(self, place: int, value: Any) -> str:
        return outcome(lambda: shmipc.reply(self.held[place], value))

    def answer_error(self, place: int, error: BaseException) -> str:
        return outcome(lambda: shmipc.reply_error(self.held[place], error))

    def forget(self) -> None:
        self.held.clear()


class Client(Actor):
    """Sends and calls on behalf of a test."""

    def send(self, to: Any, body: Any, kind: int = 0, tag: int | None = None) -> None:
        shmipc.send(to, body, kind=shmipc.Kind(kind), tag=tag)

    def send_numbers(self, to: Any, count: int, tag: int | None = None) -> None:
        for number in range(count):
            shmipc.send(to, number, tag=tag)

    def call(self, to: Any, body: Any, timeout: float | None = None) -> Any:
        return shmipc.call(to, body, timeout=timeout)

    def call_in_threads(self, to: Any, bodies: list[Any]) -> list[Any]:
        """One thread for each body, all at once; the answers in the order of the bodies."""
        return in_threads([lambda body=body: shmipc.call(to, body) for body in bodies])  # type: ignore[misc]

    def pending(self) -> int:
        return shmipc.pending()

    def on_message(self, message: shmipc.Message) -> None:
        pass


def outcome(act: Callable[[], object]) -> str:
    """Name of the error it raises, or "done"."""
    try:
        act()
    except Exception as error:
        return type(error).__name__
    return "done"


def in_threads(acts: list[Callable[[], Any]]) -> list[Any]:
    """Run all at once, one thread each; their values, or the first error."""
    results: list[Any] = [None] * len(acts)
    errors: list[BaseException] = []

    def run(place: int) -> None:
        try:
            results[place] = acts[place]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(acts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


def usage(system: shmipc.System, *refs: Any) -> dict[str, int]:
    """What the system holds, when this process and the given actors have let go of their warm blocks."""
    gc.collect()
    for ref in refs:
        ref.trim()
    system._membership.member.trim()
    counters = system.statistics().as_dict()
    return {name: counters[name] for name in COUNTED}
