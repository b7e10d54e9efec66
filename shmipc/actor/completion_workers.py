"""The threads of a completion queue: they attempt what can be done, and wait for all that cannot be done yet.

One thread waits for up to `HOMES` objects, and for any number of descriptors; a queue with more objects has more
threads. All that happens to a submission between its making and its collection happens in them: no signal handler runs
there, and so none breaks a step off in the midst.
"""

import asyncio
import heapq
import logging
import select
import threading
import time
from collections import OrderedDict, deque
from contextlib import suppress
from typing import Any

from shmipc import _native
from shmipc.actor.channels import Channel, Channels
from shmipc.actor.completions import Completion, Done, Outcome, Request, Sent, State, Submission, size_of
from shmipc.base.errors import Aborted, Closed, ShmipcError, Timeout, WouldBlock
from shmipc.transport.events import Event
from shmipc.transport.mailboxes import HasMembership

log = logging.getLogger("shmipc")

HOMES = 256  # objects that one thread waits for
BURST = 64  # operations of one order that are done before another order has its turn
RETRY_SECONDS = 0.01  # between attempts at what nothing can be waited for
SPENT = 64  # deadlines of what is collected that are kept, besides twice as many as submissions are not
IN_VAIN = 16  # attempts in vain, one after the other, after which its source is not waited for
NOTHING = object()
Waiter = tuple[asyncio.AbstractEventLoop, "asyncio.Future[None]"]


class Engine:
    """What the threads of a queue share with those who submit and collect.

    Attributes:
        lock: Of all that follows; held for a few steps only.
        live: Submissions that are not collected, by number.
        ready: Their completions, as far as there are any.
        held: Completions that nobody has collected whose mutexes the threads have.
        signal: Set while there is a completion; closed when there can be none any more.
        is_closed: Nothing can be submitted any more.
        is_over: The threads have ended.
        is_dropped: Nobody can collect any more.
        channels: Descriptors of what is live.
    """

    def __init__(self, depth: int, system: HasMembership | None) -> None:
        self.depth = depth
        self.lock = threading.Lock()
        self.settled = threading.Condition(self.lock)
        self.live: dict[int, Submission] = {}
        self.ready: deque[Completion] = deque()
        self.numbers = self.held = 0
        self.is_closed = self.is_over = self.is_dropped = False
        self.signal = Event(system=system)
        self.member = self.signal.member
        self.waiters: list[Waiter] = []
        self.homes: dict[Any, Worker] = {}
        self.residents: dict[Any, int] = {}
        self.futures: dict[_native.Future, Submission] = {}
        self.channels = Channels()
        self.system = system
        self.workers = [Worker(self)]
        self.bell = self.workers[0].bell

    # -- by those who submit and collect ------------------------------------------------------------------------

    def enter(self, submission: Submission) -> int:
        """Take it in; raises WouldBlock, Closed. A signal handler that raises meanwhile leaves it in or out."""
        with self.lock:
            if self.is_closed:
                raise Closed("the completion queue is closed")
            if len(self.live) >= self.depth:
                raise WouldBlock(f"{self.depth} submissions are not collected, the depth of the queue; get one first")
            self.numbers += 1
            number = submission.number = self.numbers
            try:
                self.live[number] = submission
            finally:
                self.bell(submission)
        return number

    def take(self) -> Completion | None:
        """The oldest completion, which is then collected; None: there is none. None is lost when a signal handler
        raises meanwhile: between the removals nothing is called.
        """
        completion = submission = None
        try:
            with self.lock:
                if self.ready:
                    submission = self.live[self.ready[0].number]
                    completion = self.ready[0]
                    del self.ready[0]
                    del self.live[completion.number]
                if not self.ready:
                    self.lower()
            if completion is not None and completion.message is not None:
                completion.message.adopt()
            if submission is not None and submission.holds is not None:
                self.hand_over(submission)
        except BaseException:
            if completion is not None and submission is not None:
                self.give_back(submission, completion)
            raise
        return completion

    def hand_over(self, submission: Submission) -> None:
        """The mutex that a thread of the queue has is the caller's now."""
        if submission.holds is not None:
            with suppress(ShmipcError):  # the system is closed
                submission.holds.adopt()
        with self.lock:
            if submission.holds is not None:
                submission.holds = None
                self.held -= 1
            self.bell(None)

    def give_back(self, submission: Submission, completion: Completion) -> None:
        with self.lock:
            self.ready.appendleft(completion)
            self.live[submission.number] = submission
            self.rise()

    def ask(self, request: Request) -> bool:
        """Have the threads do it, and wait until it is done, unless this is one of them; its answer."""
        with self.lock:
            waits = not self.is_over and not any(worker.is_current() for worker in self.workers)
            self.bell(request)
        if waits:
            request.over.acquire()
        elif request.submission is not None:
            request.answer = is_cancelled(request.submission)
        return request.answer

    def is_spent(self) -> bool:
        """Can nothing be collected any more?"""
        with self.lock:
            return self.is_closed and not self.live

    def wait_until_settled(self, timeout: float | None) -> None:
        """Until there is a completion or the threads have ended, when the signal can be waited for no more."""
        with self.settled:
            self.settled.wait_for(lambda: self.ready or self.is_over, timeout)

    # -- with the lock ------------------------------------------------------------------------------------------

    def rise(self) -> None:
        """There is a completion."""
        with suppress(ShmipcError):  # the system is closed
            self.signal.put(True)

    def lower(self) -> None:
        """There is none; perhaps there will be none any more."""
        with suppress(ShmipcError):
            if self.is_closed and not self.live:
                self.signal.close()
            else:
                self.signal.put(False)

    def outstanding(self) -> int:
        return len(self.live) - len(self.ready)

    def complete(self, submission: Submission, completion: Completion) -> None:
        """Its end; once."""
        if submission.state is State.OVER:
            return
        submission.state = State.OVER
        submission.completion = completion
        submission.attempt = submission.source = submission.channel = None
        if submission.future is not None:
            self.futures.pop(submission.future, None)
            submission.future = None
        home, submission.home = submission.home, None
        if home is not None:
            self.residents[home] -= 1
            if not self.residents[home]:
                del self.residents[home], self.homes[home]
        self.ready.append(completion)
        if len(self.ready) == 1:
            self.rise()
        self.settled.notify_all()
        self.wake_waiters()

    def wake_waiters(self) -> None:
        """Those who wait in event loops look again."""
        waiters, self.waiters = self.waiters, []
        for loop, waiter in waiters:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(wake, waiter)

    # -- by the threads -----------------------------------------------------------------------------------------

    def home_of(self, submission: Submission) -> "Worker":
        """The thread that waits for its source: one for all who wait for the same, and for all of one order."""
        if submission.key is None:
            return self.workers[0]
        # What a write waits for depends on its size.
        place = submission.order if submission.operation == "write" else submission.key
        with self.lock:
            if submission.state is State.OVER:
                return self.workers[0]
            home = self.homes.get(place)
            if home is None:
                crowd = dict.fromkeys(self.workers, 0)
                for worker in self.homes.values():
                    crowd[worker] += 1
                home = min(crowd, key=lambda worker: (crowd[worker] >= HOMES, self.workers.index(worker)))
                if crowd[home] >= HOMES:
                    home = Worker(self)
                    self.workers.append(home)
                    home.start()
                self.homes[place] = home
                self.residents[place] = 0
            self.residents[place] += 1
            submission.home = place
        return home

    def cancel(self, submission: Submission) -> bool:
        """Complete it as cancelled, unless it is done; blocks while another thread attempts it. Of a call whose answer
        was first the completion comes by itself.
        """
        with self.settled:
            submission.is_unwanted = True
            self.settled.wait_for(lambda: submission.state is not State.RUNNING)
            future = submission.future
            if submission.state in (State.ENTERED, State.WAITING):
                self.complete(submission, submission.cancelled())
                for worker in self.workers:
                    worker.bell(submission)  # the one that has it waits for its source no more
        if submission.state is State.SENT and future is not None:
            with suppress(ShmipcError):
                if future.cancel():
                    self.answered(future)
        return is_cancelled(submission)

    def answered(self, future: _native.Future) -> None:
        """A call is over."""
        with self.lock:
            submission = self.futures.get(future)
        if submission is None:
            return
        if future.cancelled():
            completion = submission.cancelled()
        elif (error := future.exception(0)) is not None:
            completion = submission.failed(error)
        else:
            value = future.result(0)
            completion = submission.done(Done(value, size_of(value)))
        with self.lock:
            self.complete(submission, completion)

    def drop(self) -> None:
        """Nobody will collect: close, and say what is lost with it. By the collector, so without the lock."""
        self.is_dropped = True
        if self.is_over:
            self.mourn()
        else:
            self.bell(Request(None))

    def mourn(self) -> None:
        """Callers whose calls were received and not collected are told so; messages are counted in the log."""
        messages = [completion.message for completion in self.ready if completion.message is not None]
        self.ready.clear()
        for message in messages:
            if message.is_call:
                with suppress(ShmipcError):
                    message.reply_error(Closed("the call was received by a completion queue that nobody collects from"))
        if messages:
            log.warning("%d received messages were lost with a completion queue that was dropped", len(messages))

    def end(self, error: BaseException | None) -> None:
        """Nothing more is done: what is left fails with this error, or is cancelled."""
        with self.lock:
            self.is_closed = self.is_over = True
            for submission in list(self.live.values()):
                self.complete(submission, submission.failed(error) if error is not None else submission.cancelled())
            if not self.live:
                self.lower()
            self.settled.notify_all()
            self.wake_waiters()
            for worker in self.workers:
                worker.bell(None)
                for thing in list(worker.bell.noted):
                    answer(thing)


class Worker:
    """One thread, and what it waits for.

    Attributes:
        bell: Who has something for it, rings it.
        lanes: What is to be done one after the other, by order: submissions by number, none that is over behind others.
        changed: Orders whose next submission may be another than that which is waited for.
        awaited: Key of the source, channel or None (it is attempted every so often) that an order waits for.
        sources: The orders that wait for a source, by its key; the same that `list` gives when it is there.
        due: Deadlines and the numbers of their submissions, a heap; some are of submissions that are over.
        hurry: Orders that are to be attempted now.
        files: Descriptors that are waited for, by order.
        retries: How many orders wait for nothing that can be waited for.
        vain: How often, one after the other, an order was attempted and could not be done. One whose source is there
            and does not do is attempted every so often.
        faults: Waits, one after the other, that were refused.
        closers: Who waits for the end of the queue.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.bell = _native.Bell(deque(), Event(system=engine.system))
        self.event = self.bell.event
        self.lanes: dict[Any, OrderedDict[int, Submission]] = {}
        self.changed: dict[Any, None] = {}
        self.awaited: dict[Any, Any] = {}
        self.sources: dict[Any, dict[Any, None]] = {}
        self.list = _native.WaitList(engine.member)
        self.list.add(None, self.event, ())
        self.due: list[tuple[float, int]] = []
        self.hurry: dict[Any, None] = {}
        self.files: dict[Any, Channel] = {}
        self.epoll: select.epoll | None = None
        self.closers: list[Request] = []
        self.vain: dict[Any, int] = {}
        self.retries = self.faults = 0
        self.thread = threading.Thread(target=self.run, name="shmipc completion queue", daemon=True)

    def start(self) -> None:
        self.thread.start()

    def is_current(self) -> bool:
        return threading.current_thread() is self.thread

    def run(self) -> None:
        """The thread."""
        error: BaseException | None = None
        try:
            while not self.is_done():
                self.listen()
                hurry, self.hurry = self.hurry, {}
                for order in hurry:
                    self.advance(order)
                self.expire()
                if not self.hurry and not self.bell.noted and not self.is_done():
                    self.wait()
        except BaseException as raised:
            error = raised
        finally:
            if self is self.engine.workers[0] or error is not None:
                self.engine.end(error)
            self.lanes.clear()
            self.changed.clear()
            self.awaited.clear()
            self.sources.clear()
            del self.list
            if self.epoll is not None:
                self.epoll.close()
            self.files.clear()
            for request in self.closers:
                answer(request)
            if self.engine.is_dropped and self is self.engine.workers[0]:
                self.engine.mourn()
            with suppress(ShmipcError):
                self.event.release_hold()

    def is_done(self) -> bool:
        engine = self.engine
        with engine.lock:
            if engine.is_over:
                return True
            is_idle = engine.is_closed and not engine.outstanding()
            if is_idle:
                while self.closers:
                    answer(self.closers.pop())
            return is_idle and (not engine.held or engine.is_dropped)

    # -- what others say ----------------------------------------------------------------------------------------

    def listen(self) -> None:
        self.event.put(False)  # before what was noted is read
        while self.bell.noted:
            thing = self.bell.noted.popleft()
            if isinstance(thing, Submission) and thing.state is State.OVER:
                self.forget(thing)
            elif isinstance(thing, Submission):
                home = self.engine.home_of(thing) if self is self.engine.workers[0] else self
                if home is self:
                    self.accept(thing)
                else:
                    home.bell(thing)
            elif isinstance(thing, Request):
                self.serve(thing)
            elif thing is not None:
                self.engine.answered(thing)

    def accept(self, submission: Submission) -> None:
        with self.engine.lock:
            if submission.state is not State.ENTERED:
                return
            submission.state = State.WAITING
        self.changed[submission.order] = None
        lane = self.lanes.setdefault(submission.order, OrderedDict())
        lane[submission.number] = submission
        if submission.deadline is not None:
            heapq.heappush(self.due, (submission.deadline, submission.number))
            if len(self.due) > 2 * len(self.engine.live) + SPENT:
                self.sweep()
        if next(iter(lane)) == submission.number:  # before one who has thought better of it cancels it
            self.advance(submission.order)

    def sweep(self) -> None:
        """Forget the deadlines of what is collected."""
        with self.engine.lock:
            self.due = [entry for entry in self.due if entry[1] in self.engine.live]
        heapq.heapify(self.due)

    def serve(self, request: Request) -> None:
        if request.submission is not None:
            request.answer = self.engine.cancel(request.submission)
            answer(request)
            return
        self.closers.append(request)
        with self.engine.lock:
            self.engine.is_closed = True
            live = list(self.engine.live.values())
        for submission in live:
            self.engine.cancel(submission)

    # -- doing --------------------------------------------------------------------------------------------------

    def head(self, order: Any) -> Submission | None:
        """What is to be done next of an order; None: nothing."""
        lane = self.lanes.get(order)
        while lane:
            first = next(iter(lane.values()))
            if first.state is State.WAITING:
                return first
            del lane[first.number]
        self.lanes.pop(order, None)
        return None

    def forget(self, submission: Submission) -> None:
        """It is over, perhaps behind others, which may wait for long."""
        lane = self.lanes.get(submission.order)
        if lane is not None:
            lane.pop(submission.number, None)
        self.changed[submission.order] = None

    def advance(self, order: Any) -> None:
        """Do what can be done of an order."""
        self.changed[order] = None
        for _ in range(BURST):
            submission = self.head(order)
            if submission is None:
                return
            with self.engine.lock:
                attempt = submission.attempt
                if submission.state is not State.WAITING or attempt is None:
                    continue
                submission.state = State.RUNNING
            made: Done | Sent | BaseException | None = None
            before = submission.bytes
            try:
                made = attempt(submission)
            except BlockingIOError:
                pass
            except BaseException as error:
                made = error.__cause__ or error if isinstance(error, _native.UnreadableBody) else error
            if not self.settle(submission, made):
                self.vain[order] = self.vain.get(order, 0) + 1 if submission.bytes == before else 0
                return
            self.vain.pop(order, None)
        self.hurry[order] = None

    def settle(self, submission: Submission, made: Done | Sent | BaseException | None) -> bool:
        """What has become of an attempt; False: nothing."""
        engine = self.engine
        with engine.lock:
            if submission.state is State.OVER:  # the queue has ended meanwhile
                return True
            submission.state = State.WAITING
            if isinstance(made, Sent):
                submission.state = State.SENT
                submission.future = made.future
                engine.futures[made.future] = submission
            elif isinstance(made, Done):
                submission.holds = made.holds
                engine.held += made.holds is not None
                engine.complete(submission, submission.done(made))
            elif made is not None:
                engine.complete(submission, submission.failed(made))
            elif submission.is_unwanted:
                engine.complete(submission, submission.cancelled())
            elif submission.timeout == 0:
                engine.complete(submission, submission.failed(WouldBlock("it could not be done at once")))
            engine.settled.notify_all()
        if isinstance(made, Sent):
            made.future.add_done_callback(self.engine.bell)
        return submission.state is not State.WAITING

    def expire(self) -> None:
        """Complete what is late."""
        while self.due and self.due[0][0] <= time.monotonic():
            number = heapq.heappop(self.due)[1]
            with self.engine.lock:
                submission = self.engine.live.get(number)
            if submission is None:
                continue
            if submission.timeout == 0:
                error: ShmipcError = WouldBlock("others of its order came first, and it was not to wait")
            else:
                error = Timeout(f"a {submission.operation} was not done within {submission.timeout} s")
            with self.engine.lock:
                if submission.state is State.WAITING:
                    self.engine.complete(submission, submission.failed(error))
            if submission.state is State.OVER:
                self.forget(submission)

    # -- waiting ------------------------------------------------------------------------------------------------

    def wait(self) -> None:
        """Until something can be done, is due, or is said."""
        changed, self.changed = self.changed, {}
        for order in changed:
            try:
                self.follow(order)
            except Exception as error:  # the system has no memory, or no room for one more file to wait for
                self.fail(order, error)
        if self.hurry:  # a file that is always ready, or what is behind one that failed
            return
        timeout = self.due[0][0] - time.monotonic() if self.due else None
        if retried := [order for order, awaited in self.awaited.items() if awaited is None] if self.retries else []:
            timeout = RETRY_SECONDS if timeout is None else min(timeout, RETRY_SECONDS)
        for orders in self.look(None if timeout is None else max(0.0, timeout)):
            if orders is None:
                self.look_at_files()
            else:
                self.hurry.update(dict.fromkeys(orders))
        self.hurry.update(dict.fromkeys(retried))

    def look(self, timeout: float | None) -> list[Any]:
        """The orders whose sources are there, None for files; none: the time was up, or attempts are to find out."""
        try:
            found = self.list.look(timeout)
            self.faults = 0
            return found
        except Aborted:
            return []
        except ShmipcError:  # an object was closed here, perhaps: its operations say so when they are attempted
            if self.engine.member.closed or self.event.closed or self.faults > IN_VAIN:
                raise
            for order, awaited in self.awaited.items():
                self.leave(order, awaited)
            self.awaited.clear()
            self.changed.update(dict.fromkeys(self.lanes))
            self.hurry.update(dict.fromkeys(self.lanes))
            self.faults += 1
            return []

    def follow(self, order: Any) -> None:
        """Wait for what the next of an order needs, and no more for what the last did."""
        head = self.head(order)
        wanted: Any = NOTHING
        if head is not None:
            wanted = None if self.vain.get(order, 0) > IN_VAIN else head.channel or head.key
        before = self.awaited.get(order, NOTHING)
        if wanted is before or (wanted == before and not isinstance(wanted, Channel)):
            return
        if before is not NOTHING:
            del self.awaited[order]
            self.leave(order, before)
        if head is None:
            self.vain.pop(order, None)
        else:
            self.awaited[order] = self.enter(order, head, wanted)

    def fail(self, order: Any, error: Exception) -> None:
        """What is next of an order cannot be waited for."""
        head = self.head(order)
        with self.engine.lock:
            if head is not None and head.state is State.WAITING:
                self.engine.complete(head, head.failed(error))
        self.hurry[order] = None

    def leave(self, order: Any, awaited: Any) -> None:
        if awaited is None:
            self.retries -= 1
        elif isinstance(awaited, Channel):
            del self.files[order]
            awaited.watchers -= 1
            if self.epoll is not None and not awaited.watchers and not awaited.is_always_ready:
                with suppress(OSError):  # somebody has closed all descriptors
                    self.epoll.unregister(awaited.number)
        else:
            orders = self.sources[awaited]
            del orders[order]
            if not orders:
                del self.sources[awaited]
                self.list.remove(awaited)

    def enter(self, order: Any, head: Submission, awaited: Any) -> Any:
        """What it waits for."""
        if isinstance(awaited, Channel):
            self.watch(order, awaited)
            return awaited
        if awaited in self.sources:
            self.sources[awaited][order] = None
            return awaited
        if awaited is not None:
            orders = {order: None}
            with suppress(ShmipcError):  # it was closed here meanwhile, as the next attempt says
                self.list.add(awaited, head.source, orders)
                self.sources[awaited] = orders
                return awaited
        self.retries += 1
        return None

    def watch(self, order: Any, channel: Channel) -> None:
        """Have the epoll descriptor ready while this one is."""
        if self.epoll is None:
            self.epoll = select.epoll()
            self.list.add("files", self.epoll.fileno(), None)
        if not channel.watchers and not channel.is_always_ready:
            try:
                self.epoll.register(channel.number, channel.events)
            except PermissionError:  # a file that is always ready
                channel.is_always_ready = True
        channel.watchers += 1
        self.files[order] = channel
        if channel.is_always_ready:
            self.hurry[order] = None

    def look_at_files(self) -> None:
        if self.epoll is None:
            return
        numbers = {number for number, _ in self.epoll.poll(0)}
        for order, channel in self.files.items():
            if channel.number in numbers:
                self.hurry[order] = None


def is_cancelled(submission: Submission) -> bool:
    completion = submission.completion
    return completion is not None and completion.outcome is Outcome.CANCELLED


def answer(thing: object) -> None:
    """Let go who waits for a request."""
    if isinstance(thing, Request):
        if thing.submission is not None:
            thing.answer = is_cancelled(thing.submission)
        with suppress(RuntimeError):
            thing.over.release()


def wake(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)
