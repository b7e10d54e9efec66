"""Events, mutexes, semaphores and read-write locks."""

from typing import Any

from shmipc import _native
from shmipc.base.errors import InvalidArgument, WouldBlock
from shmipc.facades.ratos.handles import (
    RAT_RIGHT_WAIT,
    RAT_RIGHT_WRITE,
    Kind,
    RatHandle,
    adopt,
    close,
    make,
    table,
)
from shmipc.facades.ratos.statuses import (
    ABANDONED,
    OK,
    RAT_INFINITE,
    RatIpcStatus,
    check_flag,
    check_name,
    failed,
    seconds,
    whole,
)
from shmipc.transport.events import Event
from shmipc.transport.locks import Locked, Mutex, RWLock
from shmipc.transport.semaphores import Semaphore
from shmipc.transport.sync_objects import SyncObject

CLASSES: dict[Kind, type[SyncObject]] = {
    Kind.EVENT: Event,
    Kind.MUTEX: Mutex,
    Kind.SEMAPHORE: Semaphore,
    Kind.RWLOCK: RWLock,
}


def _adopting(cls: type[SyncObject]) -> Any:
    def open_again(member: _native.Member, index: int, life: int, state: Any) -> SyncObject:
        return cls._adopt(member, index, life, *state)

    return open_again


for _kind, _class in CLASSES.items():
    adopt[_kind] = _adopting(_class)


def _named(what: str, name: str | None) -> str | None:
    return None if name is None else check_name(what, name)


def _open(kind: Kind, name: str) -> tuple[RatIpcStatus, RatHandle]:
    return make(kind, lambda: CLASSES[kind].open(check_name(kind.value, name)))


# --- events ----------------------------------------------------------------------------------------------------


def RatCreateEvent(manualReset: bool, initialState: bool, name: str | None = None) -> tuple[RatIpcStatus, RatHandle]:
    """Make an event.

    Args:
        manualReset: True: when set it releases all who wait, and stays set until it is reset. False: it releases one,
            and is not set any more.
        initialState: Is it set?
        name: Under which others of the system open it; None: none.
    """
    return make(
        Kind.EVENT,
        lambda: Event.create(
            _named("an event", name),
            manual_reset=check_flag("manualReset", manualReset),
            initial=check_flag("initialState", initialState),
        ),
    )


def RatOpenEvent(name: str) -> tuple[RatIpcStatus, RatHandle]:
    """One more handle of the event of that name: NOT_FOUND."""
    return _open(Kind.EVENT, name)


def RatSetEvent(ev: int) -> RatIpcStatus:
    """Set it."""
    try:
        table.find(ev, Kind.EVENT, right=RAT_RIGHT_WRITE).object.set()
    except Exception as error:
        return failed(error)
    return OK


def RatResetEvent(ev: int) -> RatIpcStatus:
    """It is not set any more."""
    try:
        table.find(ev, Kind.EVENT, right=RAT_RIGHT_WRITE).object.clear()
    except Exception as error:
        return failed(error)
    return OK


def RatCloseEvent(ev: int) -> RatIpcStatus:
    """Close the handle. Threads that wait by it: NOT_CONNECTED."""
    return close(ev, Kind.EVENT)


# --- mutexes ---------------------------------------------------------------------------------------------------


def RatCreateMutex(name: str | None = None) -> tuple[RatIpcStatus, RatHandle]:
    """Make a mutex, which a thread may lock several times and then unlocks as often."""
    return make(Kind.MUTEX, lambda: Mutex.create(_named("a mutex", name)))


def RatOpenMutex(name: str) -> tuple[RatIpcStatus, RatHandle]:
    """One more handle of the mutex of that name: NOT_FOUND."""
    return _open(Kind.MUTEX, name)


def RatLockMutex(mutex: int, timeout_ms: int = RAT_INFINITE) -> RatIpcStatus:
    """Wait for it, and have it. ABANDONED: the caller has it, and whoever had it before has ended."""
    try:
        held: Mutex = table.find(mutex, Kind.MUTEX, right=RAT_RIGHT_WAIT).object
        return ABANDONED if held.lock(seconds(timeout_ms)) == Locked.ABANDONED else OK
    except Exception as error:
        return failed(error)


def RatUnlockMutex(mutex: int) -> RatIpcStatus:
    """Give it back. ACCESS_DENIED: another thread has it, or nobody."""
    try:
        table.find(mutex, Kind.MUTEX, right=RAT_RIGHT_WAIT).object.unlock()
    except Exception as error:
        return failed(error)
    return OK


def RatCloseMutex(mutex: int) -> RatIpcStatus:
    """Close the handle."""
    return close(mutex, Kind.MUTEX)


# --- semaphores ------------------------------------------------------------------------------------------------


def RatCreateSemaphore(initial: int, maximum: int, name: str | None = None) -> tuple[RatIpcStatus, RatHandle]:
    """Make a semaphore: a count of ``initial``, that never exceeds ``maximum``."""

    def create() -> Semaphore:
        value, most = whole("initial", initial), whole("maximum", maximum)
        if value > most:
            raise InvalidArgument(f"initial is {value}, and maximum only {most}")
        return Semaphore.create(_named("a semaphore", name), value=value, max=most)

    return make(Kind.SEMAPHORE, create)


def RatOpenSemaphore(name: str) -> tuple[RatIpcStatus, RatHandle]:
    """One more handle of the semaphore of that name: NOT_FOUND."""
    return _open(Kind.SEMAPHORE, name)


def RatAcquireSemaphore(semaphore: int, timeout_ms: int = RAT_INFINITE) -> RatIpcStatus:
    """Take one, waiting while there is none."""
    try:
        limit = seconds(timeout_ms)
        counted: Semaphore = table.find(semaphore, Kind.SEMAPHORE, right=RAT_RIGHT_WAIT).object
        if not counted.acquire(timeout=limit):
            raise WouldBlock("the semaphore is at 0")
    except Exception as error:
        return failed(error)
    return OK


def RatReleaseSemaphore(semaphore: int, count: int = 1) -> tuple[RatIpcStatus, int]:
    """Give some back: the count before. NO_RESOURCES: that would be above the maximum; nothing has changed."""
    try:
        return OK, table.find(semaphore, Kind.SEMAPHORE, right=RAT_RIGHT_WRITE).object.release(count)
    except Exception as error:
        return failed(error), 0


def RatCloseSemaphore(semaphore: int) -> RatIpcStatus:
    """Close the handle; what was taken is not given back."""
    return close(semaphore, Kind.SEMAPHORE)


# --- read-write locks ------------------------------------------------------------------------------------------


def RatCreateRwLock(name: str | None = None) -> tuple[RatIpcStatus, RatHandle]:
    """Make a lock for many readers or one writer; neither comes in again while it is inside."""
    return make(Kind.RWLOCK, lambda: RWLock.create(_named("a read-write lock", name)))


def RatOpenRwLock(name: str) -> tuple[RatIpcStatus, RatHandle]:
    """One more handle of the lock of that name: NOT_FOUND."""
    return _open(Kind.RWLOCK, name)


def _rwlock(lock: Any) -> RWLock:
    found: RWLock = table.find(lock, Kind.RWLOCK, right=RAT_RIGHT_WAIT).object
    return found


def RatLockRead(lock: int, timeout_ms: int = RAT_INFINITE) -> RatIpcStatus:
    """Come in as a reader."""
    try:
        _rwlock(lock).lock_read(seconds(timeout_ms))
    except Exception as error:
        return failed(error)
    return OK


def RatUnlockRead(lock: int) -> RatIpcStatus:
    """Leave. ACCESS_DENIED: the calling thread is no reader."""
    try:
        _rwlock(lock).unlock_read()
    except Exception as error:
        return failed(error)
    return OK


def RatLockWrite(lock: int, timeout_ms: int = RAT_INFINITE) -> RatIpcStatus:
    """Come in as the writer, alone."""
    try:
        _rwlock(lock).lock_write(seconds(timeout_ms))
    except Exception as error:
        return failed(error)
    return OK


def RatUnlockWrite(lock: int) -> RatIpcStatus:
    """Leave. ACCESS_DENIED: the calling thread is not the writer."""
    try:
        _rwlock(lock).unlock_write()
    except Exception as error:
        return failed(error)
    return OK


def RatCloseRwLock(lock: int) -> RatIpcStatus:
    """Close the handle."""
    return close(lock, Kind.RWLOCK)
