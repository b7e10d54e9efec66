"""Rendezvous, notifications and pulled asynchronous messages, in the spelling of a microkernel's library.

A function takes the C function's in-parameters in C order and returns its `error_t` first, then its out-parameters. A
message that is in and out comes back unchanged on failure, one that is out comes back empty. Nothing is raised, except
by `ASSERT_OK`: `detail` says why the calling thread's last failure happened.

What is this interface's own:
- A task is a process of the current system that receives in one thread. Its number, as in ``m.src``, is never used
  again; a Ref is taken as well. Types of messages are 1 to 2**31 - 1, and data is bytes-like.
- `ipc_send` returns when the message was received. `ipc_send_noblock` and `ipc_reply` to a task that does not call need
  a receiver that waits: `ERR_WOULD_BLOCK`. A receiver that dies is `ERR_ABORTED`, to oneself is `ERR_INVALID_ARG`.
- ``m.src`` of a call answers that call and no other, once: `ERR_ABORTED` when it was answered, or its caller gave up.
  The bare number, as of ``int(m.src)``, answers the oldest call of the task that is not answered, given up or not.
- `ipc_recv` of one task takes from it alone, also the end of a watched one; notifications and all others wait. When it
  has ended and nothing of it is left: `ERR_ABORTED`.
- `async_recv` takes from the sender's queue by itself, whatever the sender does, so that it never waits. `async_reply`
  answers tasks that pull by hand, by `ipc_call` with `ASYNC_MSG`. Tasks that offer something are told apart:
  ``async_recv(IPC_ANY)`` takes from one of them after the other, and ``m.src`` says whose it is.
- `async_send` refuses with `ERR_WOULD_BLOCK` what has no room: 128 messages for each pair of tasks.

Source: shmipc/actor/calls.py, shmipc/actor/offers.py.
"""

import itertools
import pickle
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from shmipc.actor import calls, offers, refs, timers
from shmipc.actor.remote import answers_as_exceptions
from shmipc.base import errors
from shmipc.base.deadlines import in_seconds
from shmipc.base.failures import Failures
from shmipc.memory import membership
from shmipc.memory.membership import Membership
from shmipc.runtime import systems
from shmipc.transport.messages import Kind, Match, Message

IPC_ANY = 0

ASYNC_MSG = 0x7FFF_FFF1  # a request for the oldest asynchronous message
NOTIFICATIONS_MSG = 0x7FFF_FFF2
TASK_EXITED_MSG = 0x7FFF_FFF3
OTHER_MSG = 0x7FFF_FFF4  # of another interface; the data is its body, or the pickle of one that is not bytes
RECEIVED_ONLY = (NOTIFICATIONS_MSG, TASK_EXITED_MSG, OTHER_MSG)

NOTIFY_TIMER = 1 << 0
NOTIFY_ASYNC = 1 << 3

LOOK_SECONDS = 1.0  # between two looks whether a task lives: the notice of its end may be taken by another receive


class error_t(IntEnum):  # the seed's spelling
    """What a function says of itself."""

    OK = 0
    ERR_NO_MEMORY = -1
    ERR_NOT_PERMITTED = -2
    ERR_WOULD_BLOCK = -3
    ERR_ABORTED = -4
    ERR_TOO_LARGE = -5
    ERR_TOO_SMALL = -6
    ERR_NOT_FOUND = -7
    ERR_INVALID_ARG = -8
    ERR_INVALID_TASK = -9
    ERR_ALREADY_EXISTS = -10
    ERR_UNAVAILABLE = -11
    ERR_NOT_ACCEPTABLE = -12
    ERR_EMPTY = -13
    DONT_REPLY = -14
    ERR_IN_USE = -15
    ERR_TRY_AGAIN = -16
    ERR_TIMEOUT = -17
    ERR_PEER_DEAD = -18
    ERR_DEADLOCK = -19


OK = error_t.OK

_failures: Failures[error_t] = Failures(
    [
        (errors.TooLarge, error_t.ERR_TOO_LARGE),
        (errors.MailboxEmpty, error_t.ERR_EMPTY),
        (errors.WouldBlock, error_t.ERR_WOULD_BLOCK),
        (MemoryError, error_t.ERR_NO_MEMORY),
        (errors.Timeout, error_t.ERR_TIMEOUT),
        (errors.PeerDead, error_t.ERR_PEER_DEAD),
        (errors.NotFound, error_t.ERR_NOT_FOUND),
        (errors.NameTaken, error_t.ERR_ALREADY_EXISTS),
        (errors.AccessDenied, error_t.ERR_NOT_PERMITTED),
        (errors.Aborted, error_t.ERR_ABORTED),
        (errors.Deadlock, error_t.ERR_DEADLOCK),
        ((TypeError, errors.InvalidArgument), error_t.ERR_INVALID_ARG),
    ],
    error_t.ERR_UNAVAILABLE,
)

detail = _failures.detail

ANYTHING = Match(kind=Kind.NOTIFY), Match()  # bits by themselves too: these need no room in a mailbox that is full


@dataclass
class notifications_t:  # the seed's spelling
    """The part of a message of type `NOTIFICATIONS_MSG`: all bits that were set since the last."""

    data: int = 0


@dataclass
class task_exited_t:  # the seed's spelling
    """The part of a message of type `TASK_EXITED_MSG`: who has ended."""

    task: int = 0


@dataclass
class message:  # the seed's spelling
    """What is sent and received.

    Attributes:
        type: What it is; the program's own numbers, or one of `ASYNC_MSG`, `NOTIFICATIONS_MSG`, `TASK_EXITED_MSG`.
        src: The task that sent it, set by the runtime; 0 of notifications, who has ended of `TASK_EXITED_MSG`. Of a
            call a `Caller`.
        data: Its bytes.
    """

    type: int = 0
    src: int = 0
    data: bytes = b""
    notifications: notifications_t = field(default_factory=notifications_t)
    task_exited: task_exited_t = field(default_factory=task_exited_t)


class Caller(int):
    """The task that has called; as the argument of a reply, that call. A copy by pickle is a bare number."""

    call: Message | None = None  # None: its caller gave up
    number = 0  # in the order of their coming

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        return int, (int(self),)


class Task:
    """What this process, as a task of one system, remembers."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # these two may be wanted by a signal handler of a thread that has them
        self.refs: dict[int, Any] = {}
        self.numbers = itertools.count(1)  # of callers
        self.open_calls: dict[int, deque[Caller]] = {}  # not answered, by their tasks, the oldest first
        self.watches: dict[int, calls.Monitor] = {}
        self.awaited: dict[int, calls.Monitor] = {}  # of closed receives; nobody else is told of them
        self.timer: timers.Timer | None = None
        self.pulled = 0  # from whom the last message of anybody was pulled
        self.offering = threading.RLock()  # held by who changes the order of what is offered
        self.taken_back: dict[int, deque[Any]] = {}  # by receivers; older than all that is offered to them


_tasks: "weakref.WeakKeyDictionary[Membership, Task]" = weakref.WeakKeyDictionary()
KNOWN_LIMIT = 1024


def _self() -> Task:
    found = membership.current()
    task = _tasks.get(found)
    if task is None:
        task = _tasks.setdefault(found, Task())
    return task


def _ref(task: Any) -> Any:
    """The Ref of a task; raises TypeError, InvalidArgument."""
    if isinstance(task, refs.ActorRef):
        return task
    if isinstance(task, bool) or not isinstance(task, int):
        raise TypeError(f"a task is needed, not {type(task).__name__}")
    if not 0 < task < 1 << 60:
        raise errors.InvalidArgument(f"{task} is no task")
    task, known = int(task), _self().refs
    ref = known.get(task)
    if ref is None:
        if len(known) >= KNOWN_LIMIT:
            known.clear()
        ref = known[task] = refs.make_ref(membership.current().member, task)
    return ref


def _id(task: Any) -> int:
    number: int = _ref(task)._shm.id
    return number


def _checked(m: Any) -> tuple[int, bytes]:
    """A message as it travels."""
    if not isinstance(m, message):
        raise TypeError(f"a message is needed, not {type(m).__name__}")
    if isinstance(m.type, bool) or not isinstance(m.type, int):
        raise TypeError(f"the type of a message must be an int, not {type(m.type).__name__}")
    if not 0 < m.type < 1 << 31 or m.type in RECEIVED_ONLY:
        raise errors.InvalidArgument(f"type {m.type} cannot be sent; types are 1 to 2**31 - 1")
    return int(m.type), bytes(memoryview(m.data))


def _unpacked(body: Any, src: int, *, answer: bool = False) -> message:
    """What has travelled; only an answer may be an error, and nobody can send what the runtime says."""
    if type(body) is tuple and len(body) == 2 and isinstance(body[0], int) and isinstance(body[1], bytes):
        type_ = body[0]
        if (type_ > 0 or answer) and type_ < 1 << 31 and type_ not in RECEIVED_ONLY:
            return message(type_, src, body[1])
    return message(OTHER_MSG, src, body if isinstance(body, bytes) else pickle.dumps(body))


def _aborted(error: BaseException) -> error_t:
    """A rendezvous or a call ends with its receiver."""
    status = _failures.status(error)
    return error_t.ERR_ABORTED if status == error_t.ERR_PEER_DEAD else status


def ASSERT_OK(result: Any) -> Any:
    """The out-parameter of a function that succeeded.

    Raises:
        AssertionError: It did not; the text says why.
    """
    status, out = result if isinstance(result, tuple) else (result, None)
    if status < 0:
        raise AssertionError(f"{error_t(status).name}: {detail()}")
    return out


def task_self() -> int:
    """The number of this task; 0 when there is no system."""
    try:
        return membership.current().member.id
    except Exception as error:
        _failures.status(error)
        return 0


# --- rendezvous ------------------------------------------------------------------------------------------------


def _send(dst: Any, m: Any, timeout: float | None) -> error_t:
    try:
        calls.rendezvous(_ref(dst), _checked(m), timeout=timeout)
    except Exception as error:
        return _aborted(error)
    return OK


def ipc_send(dst: Any, m: message) -> error_t:
    """Send a message, and wait until it is received: `ERR_ABORTED` when the receiver dies before."""
    return _send(dst, m, None)


def ipc_send_noblock(dst: Any, m: message) -> error_t:
    """The same, if the receiver waits for it: else `ERR_WOULD_BLOCK`, and it was not sent."""
    return _send(dst, m, 0)


def _bits(found: int, task: Task) -> message:
    """A message of all that has been notified."""
    bits = found & ~offers.OFFERED | (NOTIFY_ASYNC if found & offers.OFFERED else 0)
    timer = task.timer
    try:
        if timer is not None and not bits & NOTIFY_TIMER:
            calls.receive(kind=Kind.TIMER, tag=timer.id, timeout=0)
            task.timer, bits = None, bits | NOTIFY_TIMER
    except errors.WouldBlock:
        pass
    return message(NOTIFICATIONS_MSG, notifications=notifications_t(bits))


def _understood(got: Message, task: Task) -> message:
    """What was received, as a message of this interface."""
    if got.kind == Kind.NOTIFY:
        return _bits(got.body, task)
    if got.kind == Kind.TIMER and task.timer is not None and got.tag == task.timer.id:
        task.timer = None
        try:
            more = calls.receive(kind=Kind.NOTIFY, timeout=0).body
        except errors.WouldBlock:
            more = 0
        return _bits(more | NOTIFY_TIMER, task)
    if got.kind == Kind.EXIT:
        task.watches.pop(got.sender_id, None)
        return message(TASK_EXITED_MSG, got.sender_id, task_exited=task_exited_t(got.sender_id))
    if not got.is_call:
        return _unpacked(got.body, got.sender_id)
    got.end()  # what becomes of its client is told by the reply, not by this task's next wait
    caller = Caller(got.sender_id)
    caller.call, caller.number = got, next(task.numbers)
    try:
        m = _unpacked(got.body, caller)
    except Exception as error:  # it cannot be unpickled, or pickled again; its caller does not wait for ever
        with suppress(errors.PeerDead, errors.Aborted):
            got.reply_error(error)
        raise
    _remember(caller, task)
    return m


def _remember(caller: Caller, task: Task) -> None:
    """A call to be answered. Those that were given up keep their places, without their data, as long as the task lives:
    each is owed a reply, which is not to go to the next."""
    with task.lock:
        waiting = task.open_calls.setdefault(int(caller), deque())
        for other in waiting:
            if other.call is not None and not other.call.is_open():
                other.call = None
        waiting.append(caller)
        while len(waiting) > KNOWN_LIMIT and waiting[0].call is None:
            waiting.popleft()
        if len(task.open_calls) > KNOWN_LIMIT:
            lives = membership.current().member.lives
            for gone in [id for id in task.open_calls if not lives(id)]:
                del task.open_calls[gone]


def _is_end_awaited(got: Message, task: Task) -> bool:
    """Is it the notice that a closed receive has asked for? It is then taken for good."""
    if got.kind != Kind.EXIT or (watch := task.awaited.get(got.sender_id)) is None or got.body.monitor != watch.id:
        return False
    return task.awaited.pop(got.sender_id, None) is not None


def _receive_of(src: Any, task: Task) -> message:
    """The next message of one task; its end, which is watched meanwhile, is the end of the wait.

    A signal handler may take the notice of its end or cease to watch it, so there is a look now and then.
    """
    ref = _ref(src)
    id: int = ref._shm.id
    member = membership.current().member
    if id == member.id:
        raise errors.InvalidArgument("a task that waits for itself would wait for ever")
    got, mine = _poll(ref, 0), False
    try:
        if got is None and id not in task.watches and id not in task.awaited:
            with suppress(errors.InvalidArgument):  # it has ended, or the program monitors it itself
                task.awaited[id] = calls.monitor(ref)
                mine = True
        while got is None:
            lives = member.lives(id)  # if not, what it sent last has come
            got = _poll(ref, LOOK_SECONDS if lives or id in task.watches else 0)
            if got is None and not lives:
                raise errors.Aborted(f"task {id} has ended, and nothing of it is left")
        if _is_end_awaited(got, task):
            raise errors.Aborted(f"task {id} has ended: {got.body.reason}")
    finally:
        if mine and (watch := task.awaited.pop(id, None)) is not None:
            watch.cancel()
    return _understood(got, task)


def _poll(ref: Any, timeout: float) -> Message | None:
    try:
        return calls.receive(ref, timeout=timeout)
    except (errors.WouldBlock, errors.Timeout):
        return None


def ipc_recv(src: Any) -> tuple[error_t, message]:
    """Wait for a message.

    Args:
        src: `IPC_ANY`: notifications first, then the oldest message of any task, and ends of watched ones. A task: the
            oldest message of it, and nothing else.
    """
    try:
        task = _self()
        if isinstance(src, int) and src == IPC_ANY and not isinstance(src, bool):
            while _is_end_awaited(got := calls.receive_matching(ANYTHING)[1], task):
                pass
            return OK, _understood(got, task)
        return OK, _receive_of(src, task)
    except Exception as error:
        return _failures.status(error), message()


# --- calls -----------------------------------------------------------------------------------------------------


def ipc_call(dst: Any, m: message) -> tuple[error_t, message]:
    """Send a request and wait for its answer: `ERR_ABORTED` when the other task dies before.

    Returns:
        OK and the answer; or the error that was answered, by `ipc_reply_err`, and a message of it without data.
    """
    try:
        ref = _ref(dst)
        with answers_as_exceptions():
            answer = _unpacked(calls.call(ref, _checked(m)), ref._shm.id, answer=True)
        if answer.type > 0:
            return OK, answer
        error = error_t(answer.type)
        _failures.last.text = f"{error.name}: answered by task {answer.src}"
        return error, answer
    except Exception as error:
        return _aborted(error), m


@contextmanager
def _open_call(dst: Any) -> Iterator[Message | None]:
    """The call that a `Caller` is of, or the oldest of a task; it keeps its place when it can be answered again."""
    task, id = _self(), _id(dst)
    with task.lock:
        waiting = task.open_calls.get(id, deque())
        at = 0
        if isinstance(dst, Caller):
            at = next((place for place, one in enumerate(waiting) if one is dst), len(waiting))
        caller = waiting[at] if at < len(waiting) else None
        if caller is not None:
            del waiting[at]
        if not waiting:
            task.open_calls.pop(id, None)
    got = caller.call if caller is not None else None
    if got is None and (caller is not None or isinstance(dst, Caller)):
        raise errors.Aborted(f"the call of task {id} was given up, or answered before")
    try:
        yield got
    except (errors.Aborted, errors.PeerDead):
        raise
    except BaseException:
        if caller is not None and got is not None and got.is_open():
            with task.lock:
                waiting = task.open_calls.setdefault(id, deque())
                waiting.insert(sum(one.number < caller.number for one in waiting), caller)
        raise


def _reply(dst: Any, body: tuple[int, bytes]) -> None:
    """Answer a task that called; meet one that did not, if it waits."""
    with _open_call(dst) as got:
        if got is not None:
            calls.reply(got, body)
        else:
            calls.rendezvous(_ref(dst), body, timeout=0)


def ipc_reply(dst: Any, m: message) -> error_t:
    """Answer a task that called, now or later: `ERR_ABORTED` when it does not wait any more.

    Args:
        dst: ``m.src`` of a call: that one. A number or a Ref: the oldest that is not answered; to a task of which there
            is none it is `ipc_send_noblock`.

    After any other failure the call can be answered again.
    """
    try:
        _reply(dst, _checked(m))
    except Exception as error:
        return _aborted(error)
    return OK


def ipc_reply_err(dst: Any, error: error_t) -> error_t:
    """Let the call of a task return this error; as `ipc_reply`."""
    try:
        if error not in list(error_t):
            raise errors.InvalidArgument(f"{error!r} is no error_t")
        _reply(dst, (int(error), b""))
    except Exception as wrong:
        return _aborted(wrong)
    return OK


def ipc_replyrecv(dst: Any, m: message) -> tuple[error_t, message]:
    """`ipc_reply`, and then `ipc_recv` of any task. When the reply fails, nothing is received."""
    status = ipc_reply(dst, m)
    if status != OK:
        return status, m
    status, got = ipc_recv(IPC_ANY)
    return status, got if status == OK else m


# --- notifications ---------------------------------------------------------------------------------------------


def ipc_notify(dst: Any, notifications: int) -> error_t:
    """Set bits, 1 to 2**63 - 1, which the other task's next `ipc_recv` of `IPC_ANY` returns; it never waits."""
    try:
        if isinstance(notifications, bool) or not isinstance(notifications, int):
            raise TypeError(f"notifications must be an int, not {type(notifications).__name__}")
        if not 0 < notifications < 1 << 63:
            raise errors.InvalidArgument(f"notifications are {notifications:#x}; they must be 1 to 2**63 - 1")
        bits = notifications & ~NOTIFY_ASYNC | (offers.OFFERED if notifications & NOTIFY_ASYNC else 0)
        calls.notify(_ref(dst), bits)
    except Exception as error:
        return _failures.status(error)
    return OK


def timer_set(msec: int) -> error_t:
    """Notify this task of `NOTIFY_TIMER` after so many milliseconds, never early. It has one timer; 0 ends it."""
    try:
        if isinstance(msec, bool) or not isinstance(msec, int):
            raise TypeError(f"msec must be an int, not {type(msec).__name__}")
        delay = in_seconds(msec)
        if delay is None:
            raise errors.InvalidArgument(f"msec is {msec}; it must be at least 0")
        task = _self()
        last, task.timer = task.timer, None
        if last is not None:
            last.cancel()
        if delay:
            task.timer = timers.send_after(delay, calls.self(), None)
    except Exception as error:
        return _failures.status(error)
    return OK


# --- asynchronous messages -------------------------------------------------------------------------------------


def _recalled(ref: Any) -> list[Any]:
    """All that a task has not pulled, the oldest first, as far as it can be taken back."""
    found = []
    with suppress(errors.WouldBlock):
        while True:
            found.append(offers.recall(ref))
    return found


def _offer_again(ref: Any, task: Task) -> None:
    """Offer what was taken back and received by nobody, in front; what then has no room stays. Under `offering`.

    Raises:
        As `offer`; of a receiver that has ended nothing is kept.
    """
    kept = task.taken_back.get(ref._shm.id)
    if not kept:
        return
    try:
        kept.extend(_recalled(ref))
        if offers.offered(ref):
            raise errors.WouldBlock("what is queued cannot be taken back at the moment")
        while kept:
            offers.offer(ref, kept[0])
            kept.popleft()
    except errors.PeerDead:
        kept.clear()
        raise
    except BaseException:
        kept.extendleft(reversed(_recalled(ref)))
        raise
    finally:
        if not kept:
            task.taken_back.pop(ref._shm.id, None)


def async_send(dst: Any, m: message) -> error_t:
    """Queue a message, which the other task pulls, and notify it of `NOTIFY_ASYNC`. It never waits.

    Returns:
        `ERR_WOULD_BLOCK` when the queue is full; `ERR_PEER_DEAD`.
    """
    try:
        ref, body, task = _ref(dst), _checked(m), _self()
        with task.offering:
            _offer_again(ref, task)
            offers.offer(ref, body)
    except Exception as error:
        return _failures.status(error)
    return OK


def async_recv(src: Any) -> tuple[error_t, message]:
    """Pull the oldest asynchronous message of a task, or with `IPC_ANY` of the next that has one. It never waits.

    When more is left, this task is notified of `NOTIFY_ASYNC` again.

    Returns:
        `ERR_EMPTY` when nothing is queued; `ERR_PEER_DEAD` when the task has ended, and its queue with it.
    """
    try:
        if not (isinstance(src, int) and src == IPC_ANY and not isinstance(src, bool)):
            ref = _ref(src)
            return OK, _unpacked(offers.pull(ref), ref._shm.id)
        task = _self()
        senders = {ref._shm.id: ref for ref in offers.offers()}
        for id in sorted(senders, key=lambda id: (id <= task.pulled, id)):
            try:
                m = _unpacked(offers.pull(senders[id]), id)
            except (errors.WouldBlock, errors.PeerDead):
                continue
            task.pulled = id
            if offers.offers():  # another's notification may have been this one
                membership.current().box.notify(offers.OFFERED)
            return OK, m
        raise errors.MailboxEmpty("no task has an asynchronous message for this one")
    except Exception as error:
        return _failures.status(error), message()


def async_reply(dst: Any) -> error_t:
    """Answer the request `ASYNC_MSG` of a task with the oldest message that is queued for it, or with `ERR_EMPTY`.

    When this fails, the message is the next to be pulled.
    """
    try:
        ref, task = _ref(dst), _self()
        with _open_call(dst) as got, task.offering:
            if got is None:
                raise errors.InvalidArgument("the task has no request for an asynchronous message open")
            if got.is_open():
                _answer_with_oldest(got, ref, task)
            else:
                calls.reply(got, (int(error_t.ERR_EMPTY), b""))  # it says why not, and nothing is taken back for it
    except Exception as error:
        return _aborted(error)
    return OK


def _answer_with_oldest(got: Message, ref: Any, task: Task) -> None:
    kept = task.taken_back.setdefault(ref._shm.id, deque())
    try:
        if not kept:
            with suppress(errors.MailboxEmpty):
                kept.append(offers.recall(ref))
        calls.reply(got, kept[0] if kept else (int(error_t.ERR_EMPTY), b""))
        if kept:
            kept.popleft()
    finally:
        if not kept:
            task.taken_back.pop(ref._shm.id, None)
        elif not got.is_open():  # else it can be answered again
            with suppress(errors.ShmipcError, MemoryError):
                _offer_again(ref, task)
    if kept or offers.offered(ref):
        calls.notify(ref, offers.OFFERED)


def async_is_empty(dst: Any) -> bool:
    """Has a task pulled all that was queued for it?"""
    try:
        ref, task = _ref(dst), _self()
        with task.offering:
            with suppress(errors.ShmipcError, MemoryError):
                _offer_again(ref, task)
            return ref._shm.id not in task.taken_back and offers.offered(ref) == 0
    except Exception as error:
        _failures.status(error)
        return True


# --- names and ends --------------------------------------------------------------------------------------------


def ipc_serve(name: str) -> error_t:
    """Give this task a name, which goes with it: `ERR_ALREADY_EXISTS` when another living task has it."""
    try:
        systems.System.current().serve(name, calls.self())
    except Exception as error:
        return _failures.status(error)
    return OK


def ipc_lookup(name: str, timeout_ms: int = -1) -> tuple[error_t, int]:
    """The task of that name; waits until one has it.

    Args:
        timeout_ms: A limit, then `ERR_TIMEOUT`; 0 looks once, `ERR_NOT_FOUND`; negative: none.
    """
    try:
        if isinstance(timeout_ms, bool) or not isinstance(timeout_ms, int):
            raise TypeError(f"timeout_ms must be an int, not {type(timeout_ms).__name__}")
        return OK, _id(systems.System.current().lookup(name, timeout=in_seconds(timeout_ms)))
    except errors.NotFound as error:
        status = _failures.status(error)
        return (error_t.ERR_TIMEOUT if timeout_ms else status), 0
    except Exception as error:
        return _failures.status(error), 0


def task_watch(task: Any) -> error_t:
    """Have one message of type `TASK_EXITED_MSG` come when a task has ended, behind all that it sent.

    Returns:
        `ERR_ALREADY_EXISTS` when it is watched, or monitored by the program; `ERR_INVALID_TASK` when it has ended,
        or is this one; `ERR_NO_MEMORY` when the system has no room for one more watch.
    """
    try:
        mine, ref = _self(), _ref(task)
        if ref._shm.id in mine.watches:
            raise errors.NameTaken(f"task {ref._shm.id} is watched already")
        awaited = mine.awaited.pop(ref._shm.id, None)
        if awaited is not None:  # by the receive that a signal handler has interrupted
            mine.watches[ref._shm.id] = awaited
            return OK
    except Exception as error:
        return _failures.status(error)
    try:
        mine.watches[ref._shm.id] = calls.monitor(ref)
    except errors.LimitExceeded as error:
        _failures.status(error)
        return error_t.ERR_NO_MEMORY
    except errors.InvalidArgument as error:
        _failures.status(error)
        if ref._shm.id != membership.current().member.id and membership.current().member.lives(ref._shm.id):
            return error_t.ERR_ALREADY_EXISTS
        return error_t.ERR_INVALID_TASK
    except Exception as error:
        return _failures.status(error)
    return OK


def task_unwatch(task: Any) -> error_t:
    """End a watch, also when the task has ended and was not told of yet: `ERR_NOT_FOUND` when there is none."""
    try:
        watch = _self().watches.pop(_id(task), None)
        if watch is None:
            raise errors.NotFound(f"task {_id(task)} is not watched")
        watch.cancel()
    except Exception as error:
        return _failures.status(error)
    return OK
