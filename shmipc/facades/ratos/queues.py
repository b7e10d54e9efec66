"""Message queues, and the loop over one.

A queue is a mailbox, and its messages are tagged with their id + 1. A process is a receiver of a queue from when it has
made it, got a message or looked for one, until it closes it or ends.
"""

import logging
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Any

from shmipc import _native
from shmipc.base.deadlines import Deadline
from shmipc.base.errors import (
    AccessDenied,
    BufferTooSmall,
    Closed,
    InvalidArgument,
    MailboxEmpty,
    NotFound,
    PeerDead,
    RemoteError,
    ShmipcError,
    Timeout,
    text_of,
)
from shmipc.base.limits import LIMITS, check_count
from shmipc.facades.ratos import messages
from shmipc.facades.ratos.handles import (
    RAT_INVALID_HANDLE,
    RAT_RIGHT_READ,
    RAT_RIGHT_WRITE,
    Kind,
    RatHandle,
    adopt,
    close,
    make,
    table,
)
from shmipc.facades.ratos.memory import MARK
from shmipc.facades.ratos.messages import MAX_MESSAGE, RatMessage, RatMessageHeader
from shmipc.facades.ratos.statuses import (
    CANCELLED,
    NOT_FOUND,
    OK,
    RAT_INFINITE,
    TIMEOUT,
    UNKNOWN,
    RatIpcStatus,
    check_flag,
    check_name,
    failed,
    seconds,
    whole,
)
from shmipc.transport.loops import MessageLoop, Quit
from shmipc.transport.mailboxes import Mailbox
from shmipc.transport.messages import Message

log = logging.getLogger("shmipc.actor")

RAT_MSG_QUIT = MAX_MESSAGE  # what the message that says a quit has as its id; the code is its wparam
MAX_PRIORITY = 1023
LOOK_SECONDS = 0.1  # how often who waits for a reply looks whether anybody is there to give it

Handler = Callable[[RatMessage], object]


class Queue:
    """What a handle of a queue stands for.

    Attributes:
        box: Its mailbox.
        loop: Over it; where a quit is remembered that is not yet due.
        handlers: Of its messages, by id; None: of all others.
        requests: Received here, kept by somebody, and not replied to.
        waiting: Of those who wait here for a reply.
    """

    def __init__(self, box: Mailbox, made: bool = False) -> None:
        self.box = box
        self.loop = MessageLoop(box)
        self.handlers: dict[int | None, Handler] = {}
        self.requests: weakref.WeakSet[Request] = weakref.WeakSet()
        self.waiting: set[_native.Future] = set()
        self._says = made  # this hold is counted among the receivers
        self._receives = False  # and this process has really received
        self._had_receiver = False  # another
        if made:
            box.say_receives()
        else:
            self.is_connected()

    @property
    def member(self) -> _native.Member:
        return self.box.member

    def travelling(self) -> tuple[Mailbox, None]:
        return self.box, None

    def receives(self) -> None:
        """This process receives from it."""
        if not self._says:
            self.box.say_receives()
        self._says = self._receives = True

    def is_connected(self) -> bool:
        """Is a receiver there, or has none been seen yet?"""
        others = self.box.receivers() - (1 if self._says and not self._receives else 0)
        self._had_receiver |= others > 0
        return others > 0 or not self._had_receiver

    def close(self) -> None:
        """Give up this hold; who waits for a reply by it, or from it, is told."""
        closing = Closed("the queue was closed before the request was replied to")
        for request in list(self.requests):
            request.refuse(closing)
        self.box.close()
        for future in list(self.waiting):
            future.cancel()


class Request:
    """What waits for a reply: until it is given, or the message that it came with is dropped."""

    def __init__(self, queue: Queue, message: Message) -> None:
        self.queue = queue
        self.message = message
        self.thread = threading.get_ident()
        self._open = threading.Lock()  # taken by the one who replies
        queue.requests.add(self)

    def claim(self) -> None:
        """The caller alone replies; raises InvalidArgument, AccessDenied."""
        if self.thread != threading.get_ident():
            raise AccessDenied("only the thread that has received the message replies to it")
        if not self._open.acquire(blocking=False):
            raise InvalidArgument("the message was replied to before")
        self.queue.requests.discard(self)

    def unclaim(self) -> None:
        self.queue.requests.add(self)
        self._open.release()

    def refuse(self, error: Exception) -> None:
        """Whoever waits gets an error, if nobody has replied."""
        if not self._open.acquire(blocking=False):
            return
        self.queue.requests.discard(self)
        try:
            self.message.reply_error(error)
        except ShmipcError:
            pass  # he waits no more

    def __del__(self) -> None:
        try:
            self.refuse(Closed("the request was dropped by who had got it"))
        except Exception:  # the process ends
            pass


def open_again(member: _native.Member, index: int, life: int, _: Any) -> Queue:
    return Queue(member.open_box(index, life, cls=Mailbox))


adopt[Kind.QUEUE] = open_again

# --- queues ----------------------------------------------------------------------------------------------------


def RatCreateMessageQueue(capacity: int) -> tuple[RatIpcStatus, RatHandle]:
    """Make a queue of this process alone: its handle does not travel.

    Args:
        capacity: Messages in it at most, exactly.
    """
    try:
        check_count("capacity", capacity, 1, LIMITS.max_slots)
        queue = Queue(Mailbox.create(None, capacity), made=True)
        return OK, table.add(Kind.QUEUE, queue, travels=False)
    except Exception as error:
        return failed(error), RAT_INVALID_HANDLE


def RatCreateNamedMessageQueue(name: str, capacity: int, persistent: bool = False) -> tuple[RatIpcStatus, RatHandle]:
    """Make a queue that other processes of the system open by its name.

    Args:
        capacity: Messages in it at most, exactly.
        persistent: Keep it, and what is in it, until it is unlinked or the system ends; else it goes with the last
            handle of it, in any process, or message on its way.

    Returns:
        ALREADY_EXISTS: the name is taken, of whatever kind.
    """

    def create() -> Queue:
        check_count("capacity", capacity, 1, LIMITS.max_slots)
        keeps = check_flag("persistent", persistent)
        return Queue(Mailbox.create(check_name("message queue", name), capacity, persistent=keeps), made=True)

    return make(Kind.QUEUE, create)


def RatOpenNamedMessageQueue(name: str) -> tuple[RatIpcStatus, RatHandle]:
    """One more handle of the queue of that name: NOT_FOUND."""
    return make(Kind.QUEUE, lambda: Queue(_open(name)))


def _open(name: Any) -> Mailbox:
    box = Mailbox.open(check_name("message queue", name))
    if box.capacity == 1:
        try:
            box.peek(tag=MARK)
        except MailboxEmpty:
            pass
        else:
            box.close()
            raise NotFound(f"{name!r} names shared memory, not a message queue")
    return box


def RatCloseMessageQueue(q: int) -> RatIpcStatus:
    """Close the handle. Threads that wait by it, and requests that were got by it and not replied to: NOT_CONNECTED."""
    return close(q, Kind.QUEUE)


def RatUnlinkMessageQueue(name: str) -> RatIpcStatus:
    """Take the name away, and persistence with it; who has the queue open keeps it: NOT_FOUND."""
    try:
        with _open(name) as box:
            box.unlink()
    except Exception as error:
        return failed(error)
    return OK


# --- sending ---------------------------------------------------------------------------------------------------


def RatPostMessage(q: int, msg: RatMessage, priority: int = 0) -> RatIpcStatus:
    """Put a message into a queue, at once.

    Args:
        priority: 0, the most urgent, to 1023.

    Returns:
        NO_RESOURCES: it is full.
        ACCESS_DENIED: a handle in it cannot travel; INVALID_ARG: it is none of this process. Nothing was posted.
    """
    try:
        queue: Queue = table.find(q, Kind.QUEUE, right=RAT_RIGHT_WRITE).object
        id, body = messages.encode(msg)
        if not 0 <= whole("priority", priority) <= MAX_PRIORITY:
            raise InvalidArgument(f"priority is {priority}; it is 0 to {MAX_PRIORITY}")
        queue.box.post(body, tag=id + 1, timeout=0, priority=priority)
    except Exception as error:
        return failed(error)
    return OK


def RatSendMessage(
    q: int, msg: RatMessage, timeout_ms: int = RAT_INFINITE, want_reply: bool = True
) -> tuple[RatIpcStatus, RatMessage | None]:
    """Put a message into a queue, and wait until it is replied to.

    Args:
        timeout_ms: Then the request is withdrawn, or whoever serves it finds nobody to reply to. 0: nothing is sent.
        want_reply: False: only wait.

    Returns:
        The reply, if there is one and it is wanted.
        TIMEOUT; NO_RESOURCES: the queue is full; NOT_CONNECTED: who had the request has ended, has closed the queue or
        has dropped the message, or nobody is left to receive it, or the handle was closed meanwhile; UNKNOWN: whoever
        served it has failed.
    """
    try:
        wants = check_flag("want_reply", want_reply)
        queue: Queue = table.find(q, Kind.QUEUE, right=RAT_RIGHT_WRITE).object
        limit = seconds(timeout_ms)
        id, body = messages.encode(msg)
        if limit == 0:
            return TIMEOUT, None
        value = _wait_for_reply(queue, id, body, limit)
        if not wants or value is None:
            return OK, None
        return OK, messages.decode(queue.member, value, RAT_INVALID_HANDLE)
    except Exception as error:
        return failed(error), None


def _wait_for_reply(queue: Queue, id: int, body: Any, limit: float | None) -> Any:
    if not queue.is_connected():
        raise PeerDead("nobody is left who receives from the queue")
    future = queue.box.submit_nowait(body, limit, id + 1)
    queue.waiting.add(future)
    try:
        while True:
            try:
                return future.result(LOOK_SECONDS)
            except Timeout:
                if future.done():
                    return future.result()
            if queue.box.closed:
                future.cancel()
            elif not queue.is_connected() and future.cancel():
                raise PeerDead("nobody is left who receives from the queue")
    except CancelledError:
        raise Closed("the queue was closed in this process") from None
    except BaseException:
        future.cancel()
        raise
    finally:
        queue.waiting.discard(future)


def RatReplyMessage(msg: RatMessage, reply: RatMessage | None = None) -> RatIpcStatus:
    """Reply to a message that was sent; once, by the thread that has got it.

    Returns:
        INVALID_ARG: it was posted, was replied to, or comes from nowhere. ACCESS_DENIED: another thread has got it.
        CANCELLED: its sender waits no more; NOT_CONNECTED: its sender has ended.
    """
    try:
        if not isinstance(msg, RatMessage):
            raise TypeError(f"a RatMessage is needed, not {type(msg).__name__}")
        request = msg._request
        if not isinstance(request, Request):
            raise InvalidArgument("the message was not sent: nobody waits for a reply")
        body = None if reply is None else messages.encode(reply)[1]
        request.claim()
        try:
            request.message.reply(body)
        except (MemoryError, InvalidArgument):
            request.unclaim()  # it can be replied to with less
            raise
    except Exception as error:
        return failed(error)
    return OK


def RatPostQuitMessage(q: int, code: int = 0) -> RatIpcStatus:
    """Have the loop over a queue end, behind what is in it: `RatGetMessage` then returns CANCELLED.

    Args:
        code: 0 to 2**63 - 1.

    Returns:
        NO_RESOURCES: the queue is full.
    """
    try:
        queue: Queue = table.find(q, Kind.QUEUE, right=RAT_RIGHT_WRITE).object
        if not isinstance(code, bool) and isinstance(code, int) and code < 0:
            raise InvalidArgument(f"code is {code}, the least is 0")
        queue.loop.quit(code, timeout=0)
    except Exception as error:
        return failed(error)
    return OK


# --- receiving -------------------------------------------------------------------------------------------------


def RatGetMessage(
    q: int, timeout_ms: int, capacity: int | None = None, min_id: int = 0, max_id: int = MAX_MESSAGE
) -> tuple[RatIpcStatus, RatMessage | None]:
    """The most urgent message, of these the oldest.

    Args:
        timeout_ms: Negative: wait for ever; 0: look once.
        capacity: Bytes of payload that there is room for; None: any.
        min_id: With max_id: only messages with ids from the one to the other; others stay.

    Returns:
        TIMEOUT: there is none, in time.
        BUFFER_TOO_SMALL: the message stays; what is returned says in its header how large its payload is.
        CANCELLED: a quit, see `RatPostQuitMessage`: a message with the id `RAT_MSG_QUIT` and the code as its wparam.
        NO_RESOURCES: the queue is full of messages with other ids.
    """
    try:
        return receive(q, seconds(timeout_ms), capacity, min_id, max_id, True)
    except Exception as error:
        return failed(error), None


def RatPeekMessage(q: int, remove: bool = False) -> tuple[RatIpcStatus, RatMessage | None]:
    """The same at once: TIMEOUT when nothing is there.

    Args:
        remove: False: the message stays. It cannot be replied to, and where handles travel in it, it has
            `RAT_INVALID_HANDLE`: get it to have them.
    """
    try:
        return receive(q, 0.0, None, 0, MAX_MESSAGE, check_flag("remove", remove))
    except Exception as error:
        return failed(error), None


def receive(
    q: Any, timeout: float | None, capacity: int | None, min_id: Any, max_id: Any, removes: bool
) -> tuple[RatIpcStatus, RatMessage | None]:
    """A message and its status; raises what refuses it, MailboxEmpty when nothing is there at once."""
    queue: Queue = table.find(q, Kind.QUEUE, right=RAT_RIGHT_READ).object
    room, ids = check_receive(capacity, min_id, max_id)
    queue.receives()
    if not removes:
        seen = queue.loop.next(0, ids=ids, keeps=True)
        return _quit(seen) if isinstance(seen, Quit) else (OK, _opened(queue, seen, True))
    if room is None:
        found = queue.loop.next(timeout, ids=ids)
        return _quit(found) if isinstance(found, Quit) else (OK, _opened(queue, found, False))
    deadline = Deadline(timeout) if timeout else None
    while True:
        try:
            seen = queue.loop.look(timeout if deadline is None else deadline.left(), ids=ids)
        except _native.UnreadableBody as error:
            try:  # raises what the cause is, and it is gone
                message = queue.box.take_where(0, start=error.position, until=error.position + 1)
            except MailboxEmpty:
                continue  # another was faster
            return OK, _opened(queue, message, False)
        if isinstance(seen, Quit):
            if queue.loop.take_quit(seen):
                return _quit(seen)
            continue
        try:
            needed = messages.size_of(seen.body)
        except InvalidArgument:
            needed = 0  # `_opened` says so, when it is gone
        if needed > room:
            text = f"the next message has {needed} bytes, there is room for {room}; it was kept"
            kept = _opened(queue, seen, True)
            kept.payload = b""
            return failed(BufferTooSmall(text, needed=needed)), kept
        try:
            return OK, _opened(queue, queue.box.receive_peeked(seen), False)
        except MailboxEmpty:
            continue  # another was faster


def check_receive(capacity: Any, min_id: Any, max_id: Any) -> tuple[int | None, tuple[int, int]]:
    """The room of a receive, and its tags; raises TypeError, InvalidArgument."""
    room = None if capacity is None else check_count("capacity", capacity, 0, LIMITS.body_bytes)
    ids = messages.check_id("min_id", min_id) + 1, messages.check_id("max_id", max_id) + 1
    if ids[0] > ids[1]:
        raise InvalidArgument(f"min_id is {min_id}, and max_id only {max_id}")
    return room, ids


def _quit(end: Quit) -> tuple[RatIpcStatus, RatMessage]:
    code = end.code
    return CANCELLED, RatMessage(RatMessageHeader(RAT_MSG_QUIT, code if isinstance(code, int) and code >= 0 else 0))


def _opened(queue: Queue, message: Message, keeps: bool) -> RatMessage:
    try:
        found = messages.decode(queue.member, message.body, messages.sender_of(message), keeps)
    except BaseException as error:
        if message.is_open():
            message.reply_error(RemoteError(f"the request was no message of RatOS: {error}"))
        raise
    found._origin = queue
    if message.is_call:
        message.end()  # that its sender gives up ends no later wait of this thread: the reply says so
        message.drop_body()
        found._request = Request(queue, message)
    return found


# --- the loop --------------------------------------------------------------------------------------------------


def RatRegisterHandler(q: int, message: int | None, handler: Handler | None) -> RatIpcStatus:
    """Have `RatDispatchMessage` give messages of a queue to a function.

    Args:
        message: The id; None: all that no other handler is for.
        handler: Called with the `RatMessage`; None: nobody, from now on.
    """
    try:
        queue: Queue = table.find(q, Kind.QUEUE, right=RAT_RIGHT_READ).object
        id = None if message is None else messages.check_id("message", message)
        if handler is None:
            queue.handlers.pop(id, None)
        elif callable(handler):
            queue.handlers[id] = handler
        else:
            raise TypeError(f"a handler is called, {type(handler).__name__} cannot be")
    except Exception as error:
        return failed(error)
    return OK


def RatDispatchMessage(msg: RatMessage) -> RatIpcStatus:
    """Give a message that was got to the handler of its queue and id.

    Returns:
        NOT_FOUND: it has none. UNKNOWN: the handler has raised something, which is logged; whoever waits for the reply
        is told.
    """
    try:
        if not isinstance(msg, RatMessage):
            raise TypeError(f"a RatMessage is needed, not {type(msg).__name__}")
        queue = msg._origin
        if not isinstance(queue, Queue):
            raise InvalidArgument("the message was not got from a queue")
        handler = queue.handlers.get(msg.header.message) or queue.handlers.get(None)
        if handler is None:
            failed(NotFound(f"nobody handles messages of id {msg.header.message}"))
            return NOT_FOUND
    except Exception as error:
        return failed(error)
    try:
        handler(msg)
    except Exception as error:
        log.error("the handler of message %s failed", msg.header.message, exc_info=error)
        name = type(error).__name__
        if msg._request is not None:
            msg._request.refuse(RemoteError(f"the handler raised {name}: {text_of(error)}", type_name=name))
        failed(error)
        return UNKNOWN
    return OK
