"""Values and exceptions that do not pickle, or not back, or only with care; and an actor that is full of them."""

import threading
from typing import Any

import shmipc
from tests.actors import Actor


class Unpicklable:
    """Refuses to be pickled, by whatever means."""

    def __reduce__(self) -> Any:
        raise TypeError("this value stays where it is")


class Unloadable:
    """Pickles well, and cannot be made again."""

    def __reduce__(self) -> Any:
        return refuse, ("cannot be made again",)


def refuse(text: str) -> None:
    raise RuntimeError(text)


class TwoArguments(Exception):
    """Its constructor takes more than it passes on: plain pickle cannot make it again."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")
        self.first = first
        self.second = second


class KeywordOnly(Exception):
    def __init__(self, *, text: str) -> None:
        super().__init__()
        self.text = text

    def __str__(self) -> str:
        return self.text


class NothingPassedOn(Exception):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def __str__(self) -> str:
        return f"custom: {self.text}"


class CountsItsArguments(ValueError):
    """Changes its text each time it is made."""

    def __init__(self, *parts: str) -> None:
        super().__init__(*parts, f"({len(parts)} parts)")


class HoldsALock(Exception):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


class LockAmongItsArguments(Exception):
    def __init__(self, text: str) -> None:
        super().__init__(text, threading.Lock())

    def __str__(self) -> str:
        return str(self.args[0])


class ReduceRaises(Exception):
    def __reduce__(self) -> Any:
        raise TypeError("not picklable at all")


class ReduceLies(Exception):
    """Comes back as something else."""

    def __reduce__(self) -> Any:
        return ValueError, ("another text",)


class ComesBackAsNoException(Exception):
    def __reduce__(self) -> Any:
        return str, ("no exception",)


class SetStateRaises(Exception):
    def __reduce__(self) -> Any:
        return type(self), self.args, {"some": "state"}

    def __setstate__(self, state: Any) -> None:
        raise RuntimeError("no state is taken")


class StrRaises(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Slotted(Exception):
    __slots__ = ("extra",)

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.extra = text


class NeedsNew(Exception):
    """Even its __new__ takes other arguments."""

    def __new__(cls, text: str, *, key: str) -> "NeedsNew":
        made = super().__new__(cls, text)
        made.key = key  # type: ignore[attr-defined]
        return made

    def __init__(self, text: str, *, key: str) -> None:
        super().__init__(text)


MAKERS: dict[str, Any] = {
    "plain": ValueError,
    "two arguments": lambda text: TwoArguments(text, text),
    "keyword only": lambda text: KeywordOnly(text=text),
    "nothing passed on": NothingPassedOn,
    "counts its arguments": CountsItsArguments,
    "holds a lock": HoldsALock,
    "lock among its arguments": LockAmongItsArguments,
    "reduce raises": ReduceRaises,
    "reduce lies": ReduceLies,
    "comes back as no exception": ComesBackAsNoException,
    "setstate raises": SetStateRaises,
    "slotted": Slotted,
    "needs new": lambda text: NeedsNew(text, key=text),
    "os error": lambda text: FileNotFoundError(2, text, "a file"),
    "key error": KeyError,
    "unicode error": lambda text: UnicodeDecodeError("utf-8", b"\xff", 0, 1, text),
    "system error of ours": lambda text: shmipc.MailboxFull(text, message=threading.Lock()),
    "ours": lambda text: shmipc.PeerDead(text, reason="exited", exitcode=3),
    "group": lambda text: ExceptionGroup(text, [ValueError(text), HoldsALock(text)]),
    "large": lambda text: ValueError(text + "x" * 300_000),
}
CLASSES = {name: type(make("")) for name, make in MAKERS.items()}


def made_of(recipe: dict[str, Any]) -> BaseException:
    """An exception of a class that exists nowhere else, with these habits.

    Keys: base, name, text, constructor, payload, reduce, text_method.
    """
    text, payload = recipe["text"], PAYLOADS[recipe["payload"]]()
    constructor, habit = recipe["constructor"], recipe["reduce"]

    class Odd(recipe["base"]):  # type: ignore[misc]
        if constructor == "two":

            def __init__(self, first: str, second: Any) -> None:
                super().__init__(first)
                self.second = second

        elif constructor == "keyword":

            def __init__(self, *, first: str, second: Any) -> None:
                super().__init__(first)
                self.second = second

        elif constructor == "silent":

            def __init__(self, first: str, second: Any) -> None:
                super().__init__()
                self.first, self.second = first, second

        if habit == "raises":

            def __reduce__(self) -> Any:
                raise TypeError("not picklable")

        elif habit == "lies":

            def __reduce__(self) -> Any:
                return ValueError, ("another text",)

        elif habit == "unloadable":

            def __reduce__(self) -> Any:
                return refuse, ("cannot be made again",)

        if recipe["text_method"] == "custom":

            def __str__(self) -> str:
                return f"custom {text}"

        elif recipe["text_method"] == "raises":

            def __str__(self) -> str:
                raise RuntimeError("no text")

    Odd.__name__ = Odd.__qualname__ = recipe["name"]
    if constructor == "plain":
        return Odd(text, payload)
    if constructor == "keyword":
        return Odd(first=text, second=payload)
    return Odd(text, payload)


PAYLOADS: dict[str, Any] = {
    "none": lambda: None,
    "lock": threading.Lock,
    "lambda": lambda: lambda: None,
    "unpicklable": Unpicklable,
    "unloadable": Unloadable,
    "bytes": lambda: bytes(1000),
    "exception": lambda: ValueError("inner"),
}


class Late:
    """Raises an error of the library as it is pickled, as one does that asks an actor for what it holds."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __reduce__(self) -> Any:
        raise getattr(shmipc, self.name)("in __reduce__")


def return_late(name: str) -> Any:
    return Late(name)


class LateAsync(Actor):
    async def return_late(self, name: str) -> Any:
        return Late(name)


class Odd(Actor):
    """Raises and returns what is hard to send."""

    def raise_one(self, name: str, text: str) -> None:
        raise MAKERS[name](text)

    def raise_made(self, recipe: dict[str, Any]) -> None:
        raise made_of(recipe)

    def raise_with_cause(self, text: str) -> None:
        try:
            self.raise_one("holds a lock", text)
        except HoldsALock as error:
            raise TwoArguments(text, "outer") from error

    def return_unpicklable(self) -> Any:
        return Unpicklable()

    def return_late(self, name: str) -> Any:
        return Late(name)

    def return_unloadable(self) -> Any:
        return Unloadable()

    def take(self, value: Any) -> str:
        return type(value).__name__

    def on_message(self, message: shmipc.Message) -> None:
        if message.body == "reply unpicklable":
            try:
                shmipc.reply(message, Unpicklable())
            except TypeError as error:
                shmipc.reply_error(message, error)
        elif message.kind == shmipc.Kind.CALL:
            shmipc.reply(message, "taken")


class BadStart:
    """Its constructor raises."""

    def __init__(self, name: str, text: str) -> None:
        raise MAKERS[name](text)


def raise_odd(name: str) -> None:
    raise MAKERS[name]("from a task")


def return_unpicklable(number: int) -> Any:
    return Unpicklable()


def return_unloadable(number: int) -> Any:
    return Unloadable()
