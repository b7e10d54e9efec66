"""An actor seen as a process, with the names that `multiprocessing.Process` has."""

import os
import select
import signal
from typing import Any

from shmipc import _native
from shmipc.actor import refs
from shmipc.base.deadlines import Deadline
from shmipc.base.descriptors import Descriptor
from shmipc.base.errors import Closed, ForkedHandle, NotSupported, PeerDead, ShmipcError, WouldBlock
from shmipc.memory import membership

KILL_SECONDS = 5.0
DROP_SECONDS = 0.5  # to open the mailbox of one whose queue is dropped, while another is stopped at it


class Process:
    """One life of one process of a system. Made by `process`; holds a pidfd, closed with it.

    Attributes:
        pid: Its process id; 0 when it had ended before anybody looked.
        identity: A number that no other process of the system ever has.
        name: Its name in the system, or of its class.
    """

    def __init__(self, ref: refs.ActorRef, pid: int, identity: int, name: str, sentinel: int | None = None) -> None:
        self._handle = refs.Handle(ref._shm.system, ref._shm.member, ref._shm.id, ref._shm.about)
        self.pid = pid
        self.identity = identity
        self.name = name
        self._id: int = ref._shm.id
        self._sentinel = None if sentinel is None else Descriptor(sentinel)
        self._end: tuple[str, int | None, int | None] | None = None

    @property
    def ref(self) -> refs.ActorRef:
        """A Ref of its own at each look: the mailbox that it opens goes with it, and is not held by what remembers
        this process.
        """
        own = self._handle
        return refs.ActorRef(own.system, own.member, own.id, own.about)

    @property
    def _member(self) -> _native.Member:
        return self._handle.use()

    @property
    def sentinel(self) -> int:
        """A pidfd, readable when the process has ended; for select, poll and `multiprocessing.connection.wait`.

        Raises:
            PeerDead: It had ended before the descriptor was first asked for.
        NotSupported: It lives in another pid namespace, in which its pid is another process's than here.
        """
        if self._sentinel is None or not self._sentinel.is_open():
            self._sentinel = Descriptor(self._open_pidfd())
        return self._sentinel.number

    def _wait_source(self) -> tuple[int, int]:
        """For a wait among others: its id, and its pidfd, -1 when there is none."""
        try:
            return self._id, self.sentinel
        except (PeerDead, NotSupported):
            return self._id, -1

    def _is_over(self, timeout: float | None = 0.0) -> bool | None:
        """Does the pidfd say within the timeout that the process has ended? None: we have none."""
        if self._sentinel is None or not self._sentinel.is_open():
            return None
        return readable(self._sentinel.number, timeout)

    def _open_pidfd(self) -> int:
        if self._member.lives(self._id) and self._member.is_elsewhere(self._id):
            raise NotSupported(f"{self.name} lives in another pid namespace; it can be asked to stop, not killed")
        try:
            descriptor = os.pidfd_open(self.pid) if self.pid > 0 else -1
        except ProcessLookupError:
            descriptor = -1
        if descriptor < 0 or not self._member.lives(self._id):
            if descriptor >= 0:
                os.close(descriptor)  # perhaps another process with the same pid
            raise refs.peer_dead(self._member, self._id)
        return descriptor

    def check_pid(self) -> None:
        """It has joined: be the process that did. A zygote that dies between a fork and its answer leaves a worker of
        whom nobody was told, and the next zygote starts another for the same place; one of the two gets it.
        """
        pid, _ = self._member.who(self._id)
        if pid in (0, self.pid):
            return
        sentinel, self._sentinel, self.pid = self._sentinel, None, pid
        if sentinel is not None:
            sentinel.close()

    def is_alive(self) -> bool:
        """Has it not ended? Does not block."""
        return self._end is None and self._may_live() and not self._is_over()

    def _may_live(self) -> bool:
        """What the system says; without one its sentinel alone can tell."""
        try:
            return bool(self._member.lives(self._id))
        except Closed:
            if self._is_over() is None:
                raise
            return True

    @property
    def cause(self) -> tuple[str, int | None, int | None] | None:
        """Reason, exit code and signal of its end; None while it lives."""
        if self._end is not None or self._member.lives(self._id):
            return self._end
        end = self._member.cause(self._id)
        if end[0] != "unknown":  # else whoever waits for the process may say it in a moment
            self._end = end
        return end

    @property
    def exitcode(self) -> int | None:
        """Its exit code, or minus the signal that ended it; None while it lives or when nobody knows."""
        end = self.cause
        if end is None:
            return None
        _, code, number = end
        return -number if number is not None else code

    def join(self, timeout: float | None = None) -> bool:
        """Wait until it has ended and what it held was given back; False when the timeout passed first."""
        deadline = Deadline(timeout)
        if self._end is None:
            try:
                if not self._member.wait_end(self._id, deadline.left()):
                    return False
            except WouldBlock:
                return False
            except Closed:  # nothing is given back any more
                if self._is_over() is None:
                    raise
            else:
                if self.cause is None:
                    return False
        return self._is_over(deadline.left()) is not False

    def stop(self, timeout: float | None = 5.0) -> bool:
        """Have it end behind what is queued; SIGKILL after ``timeout`` seconds. True when it ended in order."""
        deadline = Deadline(timeout)
        if self.ask_to_stop(deadline) and self.join(deadline.left()):
            return True
        self.kill()
        self.join(KILL_SECONDS)
        return False

    def ask_to_stop(self, deadline: Deadline) -> bool:
        """Queue the order to stop; False when there was no room in time."""
        try:
            box = refs.open_mailbox(self._member, self._id, deadline.left())
            try:
                box.post(None, _native.CAST, _native.ORDER, _native.STOP, deadline.left())
            finally:
                box.release()
        except PeerDead:
            return True
        except ShmipcError:
            return not self.is_alive()
        return True

    def drop_queue(self) -> None:
        """Close its mailbox: what is queued is dropped, and it ends when it is done with what it does."""
        try:
            box = refs.open_mailbox(self._member, self._id, DROP_SECONDS)
            box.close_box()
            box.release()
        except ShmipcError:
            pass  # it has ended

    def kill(self) -> None:
        """SIGKILL; nothing when it has ended. NotSupported: it lives in another pid namespace."""
        try:
            descriptor = self.sentinel
            if readable(descriptor, 0):
                return
            try:
                self._member.say_killed(self._id, signal.SIGKILL)
            except Closed:
                pass  # nobody will ask
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        except (PeerDead, ProcessLookupError):
            pass

    def __repr__(self) -> str:
        try:
            state = "alive" if self.is_alive() else f"ended, {self.exitcode}"
        except ShmipcError as error:  # its system is closed, or the parent's
            state = type(error).__name__
        return f"<Process {self.name!r} pid {self.pid} {state}>"

    def __del__(self) -> None:
        if getattr(self, "_sentinel", None) is not None:
            self._sentinel.close()  # type: ignore[union-attr]


def readable(descriptor: int, timeout: float | None) -> bool:
    """Is the descriptor readable within ``timeout`` seconds?"""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(None if timeout is None else timeout * 1000))


def process(ref: Any) -> Process:
    """The process behind a Ref.

    Raises:
        TypeError: Not a Ref.
        NotFound: It is of a system that this process does not have open.
        ForkedHandle: The Ref belongs to the process that forked this one.
    """
    target = refs.check_ref(ref)
    member = target._shm.use()
    if member.forked:
        raise ForkedHandle("this Ref belongs to the process that forked this one")
    key = (target._shm.system, target._shm.id)
    if key in _started:
        return _started[key]
    record = refs.record_of(member, target._shm.id)
    if record is not None:
        return of_record(target, record)
    ended = Process(target, *_ended[key][:3]) if key in _ended else Process(target, 0, 0, "")
    ended._end = _ended[key][3] if key in _ended else None
    return ended


def of_record(ref: refs.ActorRef, record: dict[str, Any]) -> Process:
    return Process(ref, record["pid"], record["identity"], record["name"])


def workers_of(found: membership.Membership) -> list[Process]:
    """The actors of a system that live, in order of identity."""
    records = [
        entry for entry in found.member.members() if entry["kind"] == _native.WORKER and entry["state"] == "live"
    ]
    made = []
    for record in sorted(records, key=lambda record: record["identity"]):
        ref = refs.make_ref(found.member, record["id"])
        if ref is not None:
            made.append(_started.get((found.name, record["id"])) or of_record(ref, record))
    return made


_started: dict[tuple[str, int], Process] = {}  # by this process, and not known to have ended
_ended: dict[tuple[str, int], tuple[int, int, str, tuple[str, int | None, int | None] | None]] = {}
ENDED_LIMIT = 1024


def remember(process: Process) -> None:
    """Keep a process that this one started, so that its pid and exit code are known after its end."""
    for key, kept in list(_started.items()):
        if not kept.is_alive() and kept.cause is not None:
            del _started[key]  # and its descriptor, unless the user has it
            _ended[key] = (kept.pid, kept.identity, kept.name, kept.cause)
    while len(_ended) > ENDED_LIMIT:
        del _ended[next(iter(_ended))]
    _started[process._handle.system, process._id] = process


def started_in(name: str) -> list[Process]:
    """What this process started in a system, and is not known to have ended."""
    return [kept for (system, _), kept in list(_started.items()) if system == name]


def forget_system(name: str) -> None:
    """Give back what is remembered of a system that is closed."""
    for known in (_started, _ended):
        for key in [key for key in known if key[0] == name]:
            known.pop(key, None)


def _after_fork() -> None:
    _started.clear()
    _ended.clear()


os.register_at_fork(after_in_child=_after_fork)
