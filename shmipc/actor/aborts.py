"""Aborts: a thread gives up what it waits for, and whoever works for it is told, down the chain.

An abort of a thread ends its wait, or else its next one, with `Aborted`. If that was the wait for the answer to a call,
the call is closed, and the thread that serves it is aborted in turn; a request that nobody has taken is never
executed. A call whose time is over, and one whose caller has ended, tells its server in the same way.
"""

from types import TracebackType

from shmipc import _native
from shmipc.actor import refs


def abort(ref: object) -> None:
    """Abort the main thread of a process: its blocking call raises `Aborted`, or else its next one does, once.

    Two aborts that come before the first was noticed are one. Nothing is taken from its mailbox. A class actor that is
    idle, or is done with its handler before it has noticed, is not disturbed. Of an actor with ``async def`` handlers,
    all that are under way are cancelled.

    Raises:
        TypeError: It is no Ref.
        PeerDead: The process has ended.
        NotFound: It has no thread that can be aborted.
    """
    found = refs.check_ref(ref)._shm
    found.use().abort(found.id)


def aborted() -> bool:
    """Was this thread aborted, or is the call closed that it serves: aborted, timed out, its caller dead? Never blocks.

    An abort is told once, by this function or by a blocking call that raises `Aborted`. In an ``async def`` handler,
    whose abort is a cancellation, this says in the ``except`` or ``finally`` block whether its call is closed.
    """
    return _native.take_abort()


class no_abort:  # used as a function
    """A block in which no wait of this thread is ended by an abort: ``with shmipc.no_abort():``.

    A call in it waits for its real answer, also beyond the deadline of the call that is served; its server is told of
    the abort all the same, and may cut its work short.
    The abort is pending afterwards, for the next blocking call outside, or for `aborted`. Blocks nest. It is for one
    thread: in an ``async def`` handler use `asyncio.shield`.
    """

    def __enter__(self) -> None:
        _native.shield(1)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _native.shield(-1)
