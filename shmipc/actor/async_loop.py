"""How an actor with ``async def`` handlers serves its mailbox.

Handlers start in order of arrival and interleave, at most ``max_concurrency`` of them; a plain ``def`` runs alone
on the loop. The loop runs in the main thread; a helper thread takes from the mailbox, one message, and the next only
when that has begun: its handler has come to its first await, or is done. So what waits stays in the mailbox, where
it is counted, also while the limit is reached; and while a plain handler runs, what it receives by itself is its own.
The helper also hears of calls that are closed while a handler serves them, and has the handler cancelled.
"""

import asyncio
import functools
import inspect
import threading
import types
from collections.abc import Awaitable, Callable, Generator
from typing import Any

from shmipc import _native
from shmipc.actor import inbox
from shmipc.actor.loop import METHOD, STOP, Servant
from shmipc.base.errors import Aborted, Closed, ShmipcError
from shmipc.memory import membership
from shmipc.transport.messages import Message

LISTEN_SECONDS = 0.1  # for aborts, while no message may be taken


class AsyncServer:
    """One run of the loop.

    Args:
        box: The actor's mailbox.
        servant: The actor.
        max_concurrency: Handlers under way at most.
    """

    def __init__(self, box: _native.Box, servant: Servant, max_concurrency: int) -> None:
        self.box = box
        self.servant = servant
        self.max_concurrency = max_concurrency
        self.under_way = 0  # of the handlers; changes under `room`
        self.taken: Message | None = None  # and not begun; changes under `room` too
        self.over = False
        self.room = threading.Condition()
        self.tasks: dict[asyncio.Task[None], str] = {}  # and what each runs
        self.calls: dict[asyncio.Task[None], Message] = {}  # that each serves
        self.aborted: set[asyncio.Task[None]] = set()  # and are cancelled
        self.plain: Message | None = None  # what the loop's thread serves alone
        self.main_thread = 0
        self.ended: asyncio.Future[str] | None = None
        self.loop: asyncio.AbstractEventLoop | None = None

    async def run(self) -> str:
        """Serve until told to stop; the reason of the end. Handlers under way are finished first."""
        self.loop = asyncio.get_running_loop()
        self.ended = self.loop.create_future()
        self.main_thread = self.box.member.thread
        helper = threading.Thread(target=self.feed, name="shmipc-mailbox", daemon=True)
        helper.start()
        try:
            reason = await self.ended
            while self.tasks:
                await asyncio.wait(self.tasks)
            if self.servant.on_stop is not None and inspect.iscoroutinefunction(self.servant.on_stop):
                await self.servant.on_stop(reason)
            return reason
        finally:
            with self.room:
                self.over = True
                self.room.notify_all()
            self.box.close_box()
            helper.join(5.0)

    def feed(self) -> None:
        """In the helper thread: hand each message to the loop."""
        assert self.loop is not None
        self.box.member.hear()
        while self.wait_for_room():
            try:
                message = self.box.take_or_hear()
            except Closed:
                self.loop.call_soon_threadsafe(self.finish, "returned", None)
                return
            except _native.UnreadableBody:
                self.servant.unreadable()
                continue
            except Exception as error:
                self.loop.call_soon_threadsafe(self.finish, "exception", error)
                return
            if message is None:
                self.listen()
                continue
            self.taken = message
            self.take_over(message)
            stops = message.flags == STOP
            del message  # its body may hold arrays, and the next may be long in coming
            if stops:
                self.wait_for_end()
                return

    def wait_for_room(self) -> bool:
        """Until another handler may start; False when none will any more."""
        while True:
            with self.room:
                if self.room.wait_for(self.has_room, LISTEN_SECONDS):
                    return not self.over
            self.listen()

    def has_room(self) -> bool:
        return self.over or (self.taken is None and self.under_way < self.max_concurrency)

    def begun(self, message: Message) -> None:
        """In the loop: the next may be taken."""
        if message is self.taken:
            with self.room:
                self.taken = None
                self.room.notify_all()

    def wait_for_end(self) -> None:
        """While the last handlers are under way."""
        while True:
            with self.room:
                if self.room.wait_for(lambda: self.over, LISTEN_SECONDS):
                    return
            self.listen()

    # --- aborts ---

    def listen(self) -> None:
        """In the helper thread: cancel the handlers whose calls were closed; all of them when the actor was aborted."""
        assert self.loop is not None
        member = self.box.member
        try:
            thread, call = member.heard()
            if not (thread or call):
                return
            for task, message in list(self.calls.items()):
                if thread or (message.is_call and message.is_aborted()):
                    self.loop.call_soon_threadsafe(self.abort, task)
            if self.plain is not None and thread:
                member.abort(member.id, self.main_thread)
            member.call_loop()  # a plain handler that waits is to look
        except (ShmipcError, RuntimeError):
            pass  # the system is closed, or the loop

    def look_at(self, task: asyncio.Task[None]) -> None:
        """In the loop: at the limit of its call."""
        message = self.calls.get(task)
        if message is not None and message.is_call and message.is_aborted():
            self.abort(task)

    def abort(self, task: asyncio.Task[None]) -> None:
        """In the loop: once for each task."""
        message = self.calls.pop(task, None)
        if message is not None and not task.done():
            self.aborted.add(task)
            message.hear()
            task.cancel("the caller was aborted, has given up, or has ended")

    def take_over(self, message: Message) -> None:
        """From any thread: a message that came out of the mailbox goes to the loop, in its turn."""
        assert self.loop is not None
        with self.room:
            inbox.deferred.append(message)
            if message.flags == STOP:
                inbox.stop(membership.current())  # handlers that wait for a message are told
        self.loop.call_soon_threadsafe(self.start_next)

    def start_next(self) -> None:
        """In the loop: start what waits, as far as there is room."""
        while inbox.deferred and not self.is_broken():
            with self.room:
                if inbox.deferred[0].flags != STOP:
                    if self.under_way >= self.max_concurrency:
                        return
                    self.under_way += 1
                message = inbox.deferred.popleft()
            if message.flags == STOP:
                self.finish("returned", None)
            else:
                self.start(message)

    def finish(self, reason: str, error: BaseException | None) -> None:
        if self.ended is None or self.ended.done():
            return
        if error is None:
            self.ended.set_result(reason)
        else:
            self.ended.set_exception(error)

    def start(self, message: Message) -> None:
        """In the loop: tasks begin in the order in which they are made, plain handlers too."""
        assert self.loop is not None
        task = self.loop.create_task(self.handle(message))
        self.calls[task] = message
        self.tasks[task] = message.body[0] if message.flags == METHOD and message.body else "on_message"
        task.add_done_callback(functools.partial(self.done, message))
        if (left := message.left) is not None:  # at its limit nobody tells, if the caller does not look
            limit = self.loop.call_later(left, self.look_at, task)
            task.add_done_callback(lambda _: limit.cancel())
        self.note()

    def note(self) -> None:
        """Tell those who look which handler is the oldest, and how many there are."""
        if not self.tasks:
            self.box.member.note(None)
            return
        oldest, others = str(next(iter(self.tasks.values()))), len(self.tasks) - 1
        self.box.member.note(f"{others + 1} handlers, {oldest}" if others else oldest)

    def done(self, message: Message, task: asyncio.Task[None]) -> None:
        self.tasks.pop(task, None)
        self.calls.pop(task, None)
        self.aborted.discard(task)
        self.note()
        with self.room:
            if message is self.taken:  # it never waited
                self.taken = None
            self.under_way -= 1
            self.room.notify_all()
        self.start_next()
        if not task.cancelled():
            error = task.exception()
            if error is not None:
                self.finish("exited", error)
        elif not self.is_broken():  # before its first step
            self.servant.failed(message, asyncio.CancelledError("the handler was cancelled before it began"))

    def is_broken(self) -> bool:
        """Has the actor been ended by an exception? Then handlers under way are cancelled, and nobody is answered."""
        return self.ended is not None and self.ended.done() and self.ended.exception() is not None

    async def handle(self, message: Message) -> None:
        servant = self.servant
        try:
            if message.is_call and not message.is_open():
                return  # nobody waits for it any more: it is not executed
            value: Any = self.run_plain(message)
            if inspect.isawaitable(value):
                _native.serve_in_task(message)
                assert self.loop is not None
                self.loop.call_soon(self.begun, message)  # when it waits for the first time
                value = await self.in_parts(message, value)
        except SystemExit as error:
            self.finish("exited", error)
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and self.is_broken():
                raise
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task in self.aborted:
                error = Aborted(f"the handler was cancelled: {error}")
            servant.failed(message, error)
        else:
            servant.served(message, value)

    def run_plain(self, message: Message) -> Any:
        """Run the handler; of an ``async def`` one that makes its coroutine, which `in_parts` runs."""
        function, args, kwargs = self.servant.handler(message)
        self.begin_part(message)
        try:
            return function(*args, **kwargs)
        finally:
            self.end_part(message)

    def begin_part(self, message: Message) -> None:
        """What serves the message runs until it is over or awaits something: till then no cancellation reaches it, but
        an abort ends its waits.
        """
        message.begin_step()
        self.plain = message

    def end_part(self, message: Message) -> None:
        self.plain = None
        message.end_step()

    @types.coroutine
    def in_parts(self, message: Message, value: Awaitable[Any]) -> Generator[Any, Any, Any]:
        """Await it, each part from one await to the next being one that an abort ends."""
        coroutine = value if inspect.iscoroutine(value) else as_coroutine(value)
        step: Callable[[], Any] | None = functools.partial(coroutine.send, None)
        while step is not None:
            self.begin_part(message)
            try:
                awaited = step()
            except StopIteration as end:
                return end.value
            finally:
                step = None  # it may hold an exception, and with that this frame
                self.end_part(message)
            try:
                step = functools.partial(coroutine.send, (yield awaited))
            except GeneratorExit:
                coroutine.close()
                raise
            except BaseException as error:
                step = functools.partial(coroutine.throw, error)


async def as_coroutine(value: Awaitable[Any]) -> Any:
    return await value


def serve_async(box: _native.Box, servant: Servant, max_concurrency: int) -> str:
    """Serve the mailbox until the actor is told to stop; the reason of the end. Blocks; raises SystemExit."""
    return asyncio.run(AsyncServer(box, servant, max_concurrency).run())
