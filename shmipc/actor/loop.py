"""How an actor serves its mailbox: one message at a time, in order of arrival.

An exception in a call goes to the caller, whatever its base; in a cast it is logged on ``shmipc.actor``, counted,
and the actor goes on. SystemExit ends the actor with its code.
"""

import inspect
import logging
import sys
from collections.abc import Callable
from typing import Any

from shmipc import _native
from shmipc.actor import inbox, refs
from shmipc.base.errors import Aborted, Closed, NotSupported, PeerDead, ShmipcError
from shmipc.transport.messages import Kind, Message

logger = logging.getLogger("shmipc.actor")

METHOD, TASK, RAW, STOP = _native.METHOD, _native.TASK, _native.RAW, _native.STOP


def answer(message: Message, value: Any) -> None:
    """Reply with a value, or with the error of a value that does not pickle; a caller that left is no error."""
    try:
        message.reply(value)
    except (Aborted, PeerDead) as error:
        if message.is_open():  # it was the value's own
            fail(message, error)
    except SystemExit:
        raise
    except BaseException as error:
        fail(message, error)


def fail(message: Message, error: BaseException) -> None:
    """Reply with the error of a handler that is over; a caller that left is no error."""
    try:
        message.fail(error)
    except (Aborted, PeerDead):
        pass
    except Exception as reason:
        try:
            message.reply_error(NotSupported(f"{type(error).__name__} could not be sent: {reason}"))
        except ShmipcError:
            pass


class Servant:
    """An actor's instance with what serves it.

    Args:
        instance: The object whose public methods are called; None for one without methods.
        about: Its description.
        member: Counts casts that fail.
    """

    def __init__(self, instance: Any, about: refs.Description, member: _native.Member) -> None:
        self.instance = instance
        self.about = about
        self.names = about.names
        self.member = member
        self.on_message: Callable[[Message], Any] | None = getattr(instance, "on_message", None)
        self.on_stop: Callable[[str], Any] | None = getattr(instance, "on_stop", None)

    def is_async(self) -> bool:
        """Has it any ``async def`` handler?"""
        handlers = [getattr(self.instance, name, None) for name in self.names]
        return any(inspect.iscoroutinefunction(handler) for handler in [*handlers, self.on_message])

    def handler(self, message: Message) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
        """The function that serves a message, and its arguments; raises NoSuchMethod, NotSupported."""
        if message.flags == METHOD:
            name, args, kwargs = message.body
            if name in self.names:
                return getattr(self.instance, name), args, kwargs
            if name == refs.DESCRIBE:
                return (lambda: self.about), (), {}
            raise refs.no_such_method(name, self.about.kind, self.names)
        if self.on_message is None:
            raise NotSupported(
                f"{self.about.kind} has no on_message; it takes no messages of kind {kind_name(message)}"
            )
        return self.on_message, (message,), {}

    def handle(self, message: Message) -> None:
        """Serve one message to its end; raises SystemExit only."""
        try:
            value = self.run(message)
        except SystemExit:
            raise
        except BaseException as error:
            self.failed(message, error)
        else:
            self.served(message, value)

    def run(self, message: Message) -> Any:
        """Run the handler; in a frame of its own, which holds the arguments no longer than that."""
        function, args, kwargs = self.handler(message)
        return function(*args, **kwargs)

    def served(self, message: Message, value: Any) -> None:
        """Answer a method call. `on_message` answers by itself, when it likes."""
        if message.is_call and message.flags == METHOD:
            message.forget()
            answer(message, value)

    def unreadable(self) -> None:
        """A cast could not be unpickled; call it where that was caught."""
        self.member.count_failed_cast()
        logger.exception("%s: a message could not be read", self.about.kind)

    def failed(self, message: Message, error: BaseException) -> None:
        if message.is_call:
            fail(message, error)
            return
        if message.kind == Kind.EXIT and isinstance(error, NotSupported):
            return  # a notice that nobody asked to see
        if isinstance(error, Closed) and inbox.stopping():
            return  # the actor is being ended, and its code was told so
        self.member.count_failed_cast()
        what = message.body[0] if message.flags == METHOD else f"on_message, {kind_name(message)}"
        logger.error("%s: a cast failed in %s", self.about.kind, what, exc_info=error)


def kind_name(message: Message) -> str:
    name: str = message.kind.name
    return name


def next_deferred() -> Message | None:
    """The first that was deferred, to be served now; None: nobody waits for its answer any more."""
    message = inbox.deferred.popleft()
    if message.is_call and not message.is_open():
        return None
    return message.noted()


def serve(box: _native.Box, servant: Servant) -> str:
    """Serve the mailbox until the actor is told to stop or its mailbox is closed; the reason of the end.

    Blocks. Method calls are served in the binding, the path of every call; what comes out of it is all the rest.
    """
    deferred, instance = inbox.deferred, servant.instance
    known = {name: name for name in map(sys.intern, servant.names)}
    while True:
        try:
            message = next_deferred() if deferred else _native.serve_calls(box, instance, known, deferred, fail)
        except Closed:
            return "returned"
        except _native.UnreadableBody:
            servant.unreadable()
            continue
        if message is None:
            continue
        if message.flags == STOP:
            box.close_box()
            return "returned"
        servant.handle(message)
        del message  # its body may hold arrays
