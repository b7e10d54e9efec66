"""The tasks of a pool, as bytes and in a worker.

All workers of a pool take from one mailbox, so a task belongs to nobody until it is taken: when a worker dies, only
the task it had taken dies with it. A task is ``(head, args, kwargs, chunk)``. ``head`` stands for the function: its
pickle, or the number of a definition, which each worker finds in its own mailbox. A chunk ``(mailbox, number)`` says
that ``args`` is a list of items; the result of each item is sent to the mailbox when it is there. Tasks of one item
whose function is known are served in the binding; the loop here sees the others.
"""

import pickle
from typing import Any

from shmipc import _native
from shmipc.actor import inbox
from shmipc.actor.loop import STOP, TASK, Servant, answer, fail, logger, next_deferred
from shmipc.base.deadlines import Deadline
from shmipc.base.errors import Closed, MailboxEmpty, MailboxFull, NotFound, NotSupported, Timeout, WouldBlock
from shmipc.transport.mailboxes import Mailbox
from shmipc.transport.messages import Message

HEAD_LIMIT = 200  # bytes of a pickled function that travel with each task of a map
CACHED = 256
DEFINE_SECONDS = 10.0
Head = bytes | int


class Functions:
    """The functions of a worker's tasks, each unpickled once.

    Args:
        own: The worker's mailbox, to which the pool sends definitions before the tasks that need them.
    """

    def __init__(self, own: _native.Box) -> None:
        self.own = own
        self.known: dict[Head, Any] = {}
        self.broken: dict[Head, Exception] = {}  # definitions that could not be unpickled

    def find(self, head: Head) -> Any:
        """The function; raises what unpickling it raises, NotFound."""
        function = self.known.get(head)
        if function is not None:
            return function
        if isinstance(head, bytes):
            return self.learn(head, head)
        deadline = Deadline(DEFINE_SECONDS)
        while head not in self.known:
            if head in self.broken:
                raise self.broken[head].with_traceback(None)
            try:
                message = self.own.take_next(deadline.left(), noted=False)
            except (WouldBlock, Timeout):
                raise NotFound(f"the function of task {head} did not come within {DEFINE_SECONDS} s") from None
            except _native.UnreadableBody:
                logger.exception("a message could not be read")
                continue
            if message.flags == _native.DEFINE:
                self.define(message)
            else:
                inbox.deferred.append(message)
        return self.known[head]

    def learn(self, head: Head, blob: bytes) -> Any:
        while len(self.known) >= CACHED:
            self.known.pop(next(iter(self.known)))
        try:
            function = self.known[head] = pickle.loads(blob)
        except SystemExit as error:  # it is a task's, and not the worker's end
            raise NotSupported(f"a function whose unpickling raises {error!r} cannot be run") from None
        return function

    def define(self, message: Message) -> None:
        """Keep a definition for the tasks that need it; an error too, for they are to raise it."""
        number, blob = message.body
        try:
            self.learn(number, blob)
        except Exception as error:
            self.broken[number] = error


def serve_tasks(own: _native.Box, servant: Servant, tasks: Mailbox, instance: Any) -> str:
    """Serve a pool's tasks, and before each what is sent to this worker alone; the reason of the end. Blocks.

    STOP, which comes to the worker alone, goes behind the tasks that are queued.

    Args:
        own: The worker's own mailbox.
        tasks: The pool's.
        instance: First argument of each task; None: they get none.
    """
    functions = Functions(own)
    find, known, deferred = functions.find, functions.known, inbox.deferred
    note, stopping = own.member.note, False
    while True:
        try:
            if deferred:
                left = next_deferred()
                if left is None:
                    continue
                message = left
            elif stopping:
                message = tasks.take_next(0)
            else:
                found = _native.serve_tasks(own, tasks, instance, known, deferred, fail)
                if found is None:
                    continue
                message = found
                del found
        except (Closed, MailboxEmpty):
            return "returned"
        except _native.UnreadableBody:
            servant.unreadable()
            continue
        flags = message.flags
        if flags == TASK and message.is_call:
            head, args, kwargs, chunk = message.body
            try:
                function = find(head)
                note(name_of(function))
                value: Any
                if chunk is not None:
                    value = run_chunk(function, args, chunk, instance)
                elif instance is not None:
                    value = function(instance, *args, **kwargs) if kwargs else function(instance, *args)
                else:
                    value = function(*args, **kwargs) if kwargs else function(*args)
            except SystemExit:
                raise
            except BaseException as error:
                args = kwargs = None
                fail(message, error)
            else:
                args = kwargs = None
                message.forget()
                answer(message, value)
            del message, args, kwargs, chunk  # they may hold arrays
            function = value = None
        elif flags == STOP:
            stopping = True
            own.close_box()
        elif flags == _native.DEFINE:
            functions.define(message)
        else:
            servant.handle(message)


def name_of(function: Any) -> str:
    """What a look at this worker says that it runs."""
    name = getattr(function, "__qualname__", None) or type(function).__name__
    return name if isinstance(name, str) else "task"


def run_chunk(function: Any, items: list[Any], chunk: tuple[Mailbox, int], instance: Any) -> list[Any]:
    """Run the items of a chunk; each result is sent at once, so that it counts should this worker die at the next.

    Returns:
        The results, with their places, that found no room in the mailbox.
    """
    results, number = chunk
    held = []
    first = () if instance is None else (instance,)
    for place, args in enumerate(items):
        value = function(*first, *args)
        try:
            results.post((number, place, value), _native.CAST, 0, _native.RESULT, 0)
        except MailboxFull:
            held.append((place, value))
    return held
