"""Message loops: messages of a mailbox, the most urgent first, given to the handlers of their ids."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from shmipc import _native
from shmipc.base.closing import Closing
from shmipc.base.errors import (
    Aborted,
    InvalidArgument,
    MailboxEmpty,
    MailboxFull,
    NotSupported,
    PeerDead,
    ShmipcError,
)
from shmipc.base.limits import LIMITS
from shmipc.transport.mailboxes import HasMembership, Mailbox, check_range
from shmipc.transport.messages import ANY, GENERATED, Message, carry, check_tag

log = logging.getLogger("shmipc.actor")

Handler = Callable[[Message], Any]
H = TypeVar("H", bound=Handler)

QUIT: Final = (
    2 * GENERATED - 2
)  # the tag of the message that ends a loop; nobody can send it, and no tag is generated so
MIN_CODE, MAX_CODE = -(1 << 63), (1 << 63) - 1


@dataclass(frozen=True)
class Quit:
    """The end of a loop that is next.

    Attributes:
        code: What it says.
        shown: Its message, or the copy of it that was looked at.
    """

    code: int
    shown: Message


class MessageLoop(Closing):
    """Gives each message of a mailbox to the handler of its id, which is its tag.

    Of the messages that are there the most urgent is next, of these the oldest. What a handler returns answers a
    message that is a call, unless it has answered it; what it raises goes to the caller, or to the log, and the loop
    goes on. Several processes may run loops on one mailbox: each message goes to one of them, `quit` too.

    Args:
        mailbox: To receive from; None: a new one without a name, which `close` closes.
        slots: Of the new one: messages undelivered at most.
        system: Of the new one; the current system by default.

    Attributes:
        mailbox: That it receives from. Others send to it with `shmipc.send` and `shmipc.call`, by `tag` and `priority`.
        code: What the last `quit` that it met has said; None: it has met none.
        failed: How many handlers have raised something.
    """

    def __init__(
        self, mailbox: Mailbox | None = None, *, slots: int = LIMITS.slots, system: HasMembership | None = None
    ) -> None:
        if mailbox is not None and not isinstance(mailbox, Mailbox):
            raise TypeError(f"a Mailbox is needed, not {type(mailbox).__name__}")
        self._owns = mailbox is None
        self.mailbox = Mailbox.create(None, slots, system=system) if mailbox is None else mailbox
        self.code: int | None = None
        self.failed = 0
        self._handlers: dict[int, Handler] = {}
        self._default: Handler | None = None

    # -- handlers -----------------------------------------------------------------------------------------------

    def on(self, *ids: int) -> Callable[[H], H]:
        """A decorator: the function handles the messages of these ids, 1 to 2**60 - 1, instead of who did before.

        Raises:
            InvalidArgument: No id, or a number that is none.
        """
        if not ids:
            raise InvalidArgument("no id is given; at least one is needed")
        for id in ids:
            if not check_tag(id):
                raise TypeError("an id must be an int, not None")

        def keep(handler: H) -> H:
            for id in ids:
                self._handlers[id] = check_handler(handler)
            return handler

        return keep

    def default(self, handler: H) -> H:
        """A decorator: the function handles what no other does; without one that is logged."""
        self._default = check_handler(handler)
        return handler

    def handler(self, id: int | None) -> Handler | None:
        """Who handles a message of this id, None: nobody."""
        return self._default if id is None else self._handlers.get(id, self._default)

    # -- sending ------------------------------------------------------------------------------------------------

    def post(self, id: int, body: Any = None, *, priority: int = 0, timeout: float | None = 0.0) -> None:
        """Put a message into the mailbox.

        Args:
            priority: 0, the most urgent, to 1023.
            timeout: Seconds to wait for room; 0 does not wait.

        Raises:
            MailboxFull, Timeout: No room, at once or in time; carries the body.
            InvalidArgument: A number outside its limits.
        """
        number = check_tag(id)
        if not number:
            raise TypeError("an id must be an int, not None")
        self.mailbox.post(body, tag=number, timeout=timeout, priority=priority)

    def quit(self, code: int = 0, *, timeout: float | None = None) -> None:
        """End the loop: the messages before this one are handled, the later ones stay, and `run` returns the code.

        Args:
            code: An int of 64 bits.
            timeout: Seconds to wait for room in a full mailbox.

        Raises:
            MailboxFull, Timeout: No room, at once or in time.
        """
        if isinstance(code, bool) or not isinstance(code, int):
            raise TypeError(f"code must be an int, not {type(code).__name__}")
        if not MIN_CODE <= code <= MAX_CODE:
            raise InvalidArgument(f"code is {code}; it must be an int of 64 bits")
        try:
            self.mailbox.post(code, tag=QUIT, timeout=0)
        except MailboxFull:
            if timeout == 0:
                raise
            self.mailbox.post(code, tag=QUIT, timeout=timeout)

    # -- receiving ----------------------------------------------------------------------------------------------

    def get(self, timeout: float | None = None, *, ids: tuple[int, int] | None = None) -> Message | None:
        """The next message; None: a `quit` is next, and `code` says its code.

        Args:
            timeout: Seconds; None waits, 0 looks once.
            ids: The lowest and the highest id; others stay. A `quit` matches too.

        Raises:
            MailboxEmpty, Timeout: None was there, or came in time.
            Starved: The mailbox is full of others, see `Mailbox.receive_message`.
        """
        taken: list[Message] = []
        try:
            return self._unless_quit(self._next(timeout, check_range(ids), keeps=False, into=taken))
        except BaseException as error:
            carry(error, taken)
            raise

    def next(
        self, timeout: float | None = None, *, ids: tuple[int, int] | None = None, keeps: bool = False
    ) -> Message | Quit:
        """As `get`, or `peek`, and the quit itself: of several threads each gets one of its own."""
        return self._next(timeout, check_range(ids), keeps=keeps)

    def peek(self, timeout: float | None = 0.0, *, ids: tuple[int, int] | None = None) -> Message | None:
        """What `get` would return, which stays; see `Mailbox.peek`."""
        return self._unless_quit(self._next(timeout, check_range(ids), keeps=True))

    def look(self, timeout: float | None = 0.0, *, ids: tuple[int, int] | None = None) -> Message | Quit:
        """As `peek`, for one who then takes exactly what was shown: a message with `Mailbox.receive_peeked`, a quit
        with `take_quit`.

        Raises:
            UnreadableBody: The message there cannot be unpickled; it stays.
        """
        return self._next(timeout, check_range(ids), keeps=True, tells=True)

    def take_quit(self, end: Quit) -> bool:
        """Take the quit that `look` has shown; False: another was faster."""
        try:
            self.mailbox.receive_peeked(end.shown)
        except MailboxEmpty:
            return False
        return True

    def _next(
        self,
        timeout: float | None,
        tags: tuple[int, int],
        keeps: bool,
        tells: bool = False,
        into: list[Message] | None = None,
    ) -> Message | Quit:
        """The next message, or the quit that nothing is before any more: until then it stays in the mailbox."""
        also = QUIT if tags[1] else None
        found = self.mailbox.take_where(
            timeout, ANY, ANY, ANY, *tags, also=also, urgent=True, keeps=keeps, tells=tells, ends=QUIT, into=into
        )
        if found.tag != QUIT:
            return found
        self.code = found.body
        return Quit(found.body, found)

    def _unless_quit(self, found: Message | Quit) -> Message | None:
        return None if isinstance(found, Quit) else found

    # -- running ------------------------------------------------------------------------------------------------

    def dispatch(self, message: Message) -> bool:
        """Have a message handled.

        Returns:
            Was it, and did its handler raise nothing?
        """
        return self._dispatch(message, [])

    def _dispatch(self, message: Message, taken: list[Message]) -> bool:
        """See `dispatch`. The list is emptied when the handler begins."""
        handler = self.handler(message.tag)
        try:
            if handler is None:
                raise InvalidArgument(f"nobody handles messages of id {message.tag}")
            del taken[:]
            answer = handler(message)
            if message.is_open():
                message.reply(answer)
        except (Aborted, PeerDead) as error:
            if message.is_call and not message.is_open() and not message.is_replied:  # who called has left
                return True
            return self._report(message, error)
        except Exception as error:
            return self._report(message, error)
        finally:
            if message.is_call:
                message.end()  # also when it is answered later: that its caller gives up does not end the loop
        return True

    def _report(self, message: Message, error: Exception) -> bool:
        self.failed += 1
        try:
            if message.is_open():
                message.reply_error(error)
                return False
        except ShmipcError:
            pass  # who called has left meanwhile
        log.error("the handler of message %s failed", message.tag, exc_info=error)
        return False

    def run(self, *, ids: tuple[int, int] | None = None) -> int:
        """Handle messages until a `quit` comes.

        Args:
            ids: Only from the lowest to the highest; others stay.

        Returns:
            Its code.

        Raises:
            Closed: The mailbox was closed in this process, or the system has ended.
            Starved: As of `get`.
        """
        tags = check_range(ids)
        taken: list[Message] = []
        try:
            while True:
                try:
                    message = self._next(None, tags, keeps=False, tells=True, into=taken)
                except _native.UnreadableBody as error:
                    log.error("a message of %r could not be read", self.mailbox, exc_info=error.__cause__)
                    self.failed += 1
                    continue
                if isinstance(message, Quit):
                    return message.code
                self._dispatch(message, taken)
                del message, taken[:]
        except BaseException as error:
            carry(error, taken)
            raise

    def close(self) -> None:
        """Close the mailbox, if the loop has made it; a second close does nothing."""
        if self._owns:
            self.mailbox.close()

    def __reduce__(self) -> Any:
        raise NotSupported(
            "a loop's handlers are of its process; send its mailbox, and make a MessageLoop of that there"
        )

    def __repr__(self) -> str:
        return f"<MessageLoop on {self.mailbox!r}>"


def check_handler(handler: H) -> H:
    if not callable(handler):
        raise TypeError(f"a handler is called, {type(handler).__name__} cannot be")
    return handler
