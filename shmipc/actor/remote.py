"""Exceptions that cross processes: packed to bytes, made again with their type, text and traceback.

The traceback of the other process hangs below the exception as its ``__cause__``, as `concurrent.futures` does it.
An exception whose constructor takes other arguments than it passes on is made without its constructor; one whose
class cannot be had here arrives as `RemoteError`.
"""

import pickle
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cloudpickle

from shmipc.base.errors import OutOfMemory, RemoteError, bare, text_of


class RemoteTraceback(Exception):
    """Carries the text of another process's traceback; shown as the cause of the exception."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text.rstrip()}\n"""'


def dumps(value: Any) -> bytes:
    """Pickle by value whatever plain pickle cannot, or names ``__main__``: functions, classes, closures."""
    blob: bytes = cloudpickle.dumps(value, protocol=5)
    return blob


def encode(value: Any) -> bytes:
    """Plain pickle where it serves, else `dumps`: plain pickle would find another ``__main__`` over there."""
    try:
        blob = pickle.dumps(value, protocol=5)
    except Exception:
        return dumps(value)
    return dumps(value) if b"__main__" in blob else blob


def try_encode(value: Any) -> bytes | None:
    try:
        return encode(value)
    except Exception:
        return None


def safe(value: Any) -> Any:
    """The value, or its repr when it cannot be pickled."""
    if try_encode(value) is not None:
        return value
    try:
        return repr(value)
    except Exception:
        return f"<{type(value).__name__}>"


def traceback_text(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error))
    except Exception:
        return f"{type(error).__name__}: {text_of(error)}\n"


def pack_error(error: BaseException, limit: int = 0) -> bytes:
    """An exception as bytes, whatever it holds; never raises.

    Args:
        limit: Bytes at most, 0: as many as it takes. At least 100: type and text must go into them, cut if need be.
    """
    if limit:
        return pack_short(error, limit)
    kind = type(error)
    parts = {
        "text": text_of(error),
        "name": f"{kind.__module__}.{kind.__qualname__}",
        "traceback": traceback_text(error),
        "whole": try_encode(error),
        "members": [pack_error(entry) for entry in error.exceptions] if isinstance(error, BaseExceptionGroup) else None,
        "class": try_encode(kind),
        "args": try_encode(tuple(safe(argument) for argument in error.args)),
        "state": try_encode({key: safe(value) for key, value in vars(error).items()}),
    }
    return pickle.dumps(parts, protocol=5)


def pack_short(error: BaseException, limit: int) -> bytes:
    """Type and arguments, if they fit; else name and text, cut; `OutOfMemory` keeps its figures and no text."""
    if isinstance(error, OutOfMemory):
        return pickle.dumps((error.needed, error.free), protocol=5)
    kind = type(error)
    whole = try_encode((kind, error.args))
    if whole is not None and len(whole) <= limit:
        return whole
    room = limit - 40
    name = f"{kind.__module__}.{kind.__qualname__}".encode(errors="replace")[: room // 2]
    text = text_of(error).encode(errors="replace")[: room - len(name)]
    return pickle.dumps((name.decode(errors="ignore"), text.decode(errors="ignore")), protocol=5)


def make_short(first: Any, second: Any) -> BaseException:
    """What `pack_short` packed."""
    where = "of the process that answers"
    if isinstance(first, int):
        text = f"an answer needs {first} bytes of shared memory {where}, {second} are free; make /dev/shm larger"
        return OutOfMemory(text, needed=first, free=second)
    if isinstance(first, str):
        return RemoteError(f"{first}: {second}", type_name=first, traceback="")
    error: BaseException = bare(first, second)
    error.__cause__ = RemoteTraceback(f"there was no room in shared memory for the traceback {where}")
    return error


def make_error(blob: bytes | BaseException) -> BaseException:
    """The exception that `pack_error` packed, its traceback as its cause; never raises.

    Or one that an answer has raised as it was read, which is to look like one that was answered.
    """
    if isinstance(blob, BaseException):
        if not is_answer(blob):
            CAUSE.__set__(last_of(blob), RemoteTraceback("the answer came, and could not be read here"))
        return blob
    try:
        parts = pickle.loads(blob)
        if isinstance(parts, tuple):
            return make_short(*parts)
    except Exception as reason:
        return RemoteError(f"an exception of another process could not be read: {reason}")
    error = whole(parts) or rebuilt(parts) or stand_in(parts)
    CAUSE.__set__(error, RemoteTraceback(parts["traceback"]))
    error.__suppress_context__ = True
    return error


CAUSE: Any = vars(BaseException)["__cause__"]  # whatever a class makes of the attribute


def last_of(error: BaseException) -> BaseException:
    """The last of its causes; itself, if it has none."""
    seen = {id(error)}
    while (cause := CAUSE.__get__(error)) is not None and id(cause) not in seen:
        error = cause
        seen.add(id(error))
    return error


def is_answer(error: BaseException) -> bool:
    """Did it come of an answer, and was not raised by what waits for one?"""
    return isinstance(last_of(error), RemoteTraceback)


@contextmanager
def answers_as_exceptions() -> Iterator[None]:
    """An answered error that is no Exception leaves this block as RemoteError; Ctrl-C in this process as it is."""
    try:
        yield
    except Exception:
        raise
    except BaseException as error:
        if not isinstance(error.__cause__, RemoteTraceback):
            raise
        name = f"{type(error).__module__}.{type(error).__qualname__}"
        text = f"{name}: {text_of(error)}"
        raise RemoteError(text, type_name=name, traceback=error.__cause__.text) from error.__cause__


def whole(parts: dict[str, Any]) -> BaseException | None:
    """The exception by its own pickle, if that gives back the same class and text."""
    if parts["whole"] is None:
        return None
    try:
        error = pickle.loads(parts["whole"])
        kind = type(error)
        same = f"{kind.__module__}.{kind.__qualname__}" == parts["name"] and text_of(error) == parts["text"]
    except Exception:
        return None
    return error if same and isinstance(error, BaseException) else None


def rebuilt(parts: dict[str, Any]) -> BaseException | None:
    """The exception made without its constructor, from class, arguments and attributes."""
    try:
        kind = pickle.loads(parts["class"])
        arguments = pickle.loads(parts["args"])
        if parts["members"] is not None:
            arguments = (arguments[0], [make_error(blob) for blob in parts["members"]])
        error = bare(kind, arguments)
        vars(error).update(pickle.loads(parts["state"]))
    except Exception:
        return None
    if not isinstance(error, BaseException):
        return None
    if text_of(error) != parts["text"]:
        error.add_note(parts["text"])
    return error


def stand_in(parts: dict[str, Any]) -> BaseException:
    return RemoteError(f"{parts['name']}: {parts['text']}", type_name=parts["name"], traceback=parts["traceback"])
