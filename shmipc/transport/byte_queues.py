"""Queues of bytes that other users may be granted to post to, or to read.

Each poster has a lane of its own: memory that he writes and the reader cannot, beside memory that the reader writes and
he cannot. So a poster sees no message but his own, a reader can post none, and a hostile one spoils his own lane.
"""

import os
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from shmipc import _native
from shmipc.base.deadlines import Deadline
from shmipc.base.descriptors import Descriptor, Socket
from shmipc.base.errors import (
    AccessDenied,
    Closed,
    Corrupted,
    MailboxEmpty,
    MailboxFull,
    PeerDead,
    Timeout,
    WouldBlock,
)
from shmipc.base.limits import check_count
from shmipc.base.undisturbed import undisturbed
from shmipc.memory import sealed
from shmipc.transport import grantor
from shmipc.transport.granted import Granted
from shmipc.transport.grantor import Gift, Store
from shmipc.transport.rights import (
    HANDLES,
    POSSIBLE,
    Access,
    Capability,
    Kind,
    Peer,
    Reply,
    Rights,
    close_all,
)

SLICE = 0.1  # seconds that a wait sleeps without looking whether the owner lives
MAX_SIZE = 1 << 40


@dataclass(frozen=True)
class Delivery:
    """A message with its poster's uid, as the kernel told it to the queue's owner."""

    body: bytes
    uid: int


class LaneStore:
    """A lane in the queue's owner: its memory, mapped from the start, and who has its posting end."""

    def __init__(self, slots: int, slot_bytes: int) -> None:
        nbytes = _native.lane_bytes(slots, slot_bytes)
        self.posted = Descriptor(sealed.make("lane, posted", nbytes))
        try:
            self.taken = Descriptor(sealed.make("lane, taken", _native.TAKEN_BYTES))
        except BaseException:
            self.posted.close()
            raise
        try:
            self.posted_map = sealed.mapped(self.posted.number, nbytes, True)
            self.taken_map = sealed.mapped(self.taken.number, _native.TAKEN_BYTES, True)
        except BaseException:
            self.close()
            raise
        self.uid: int | None = None  # whose it is for good
        self.is_held = False

    def close(self) -> None:
        self.posted.close()
        self.taken.close()


class QueueStore(Store):
    """A queue in its owner. All of it is under the grantor's lock."""

    kind = Kind.QUEUE

    def __init__(self, slots: int, slot_bytes: int, posters: int) -> None:
        super().__init__()
        self.slots, self.slot_bytes = slots, slot_bytes
        self.size = posters * _native.lane_bytes(slots, slot_bytes)
        self.lanes: list[LaneStore] = []
        self.is_read = False
        self.reader: int | None = None  # the only uid, beside the owner's, that may read it
        self.memory = Descriptor(sealed.make("board", _native.BOARD_BYTES))
        try:
            self.board = _native.Board(sealed.mapped(self.memory.number, _native.BOARD_BYTES, True))
            for _ in range(posters):
                self.lanes.append(LaneStore(slots, slot_bytes))
        except BaseException:
            self.shut()
            raise

    def shut(self) -> None:
        self.memory.close()
        for lane in self.lanes:
            lane.close()

    # -- ends ---------------------------------------------------------------------------------------------------

    def take_reader(self, uid: int) -> None:
        """Have the reading end; raises WouldBlock, AccessDenied."""
        if self.is_read:
            raise WouldBlock("the queue has a reader")
        if uid != self.owner and self.reader not in (None, uid):
            raise AccessDenied(f"the queue was read by uid {self.reader}, and is given to no other")
        self.is_read = True
        if uid != self.owner:
            self.reader = uid
        self.board.set_reader(_native.END_OPEN)

    def leave_reader(self) -> None:
        self.is_read = False
        self.board.set_reader(_native.END_LEFT)

    def take_lane(self, uid: int) -> int:
        """Have the posting end of a lane; raises WouldBlock."""
        free = [i for i, lane in enumerate(self.lanes) if not lane.is_held and lane.uid in (None, uid)]
        if not free:
            raise WouldBlock(f"no lane is free for uid {uid}; the queue has {len(self.lanes)}, each for one user")
        found = next((i for i in free if self.lanes[i].uid == uid), free[0])
        self.lanes[found].uid, self.lanes[found].is_held = uid, True
        self.board.set_poster(found, uid, _native.END_OPEN)
        return found

    def leave_lane(self, index: int) -> None:
        lane = self.lanes[index]
        lane.is_held = False
        self.board.set_poster(index, lane.uid or 0, _native.END_LEFT)

    # -- passing them -------------------------------------------------------------------------------------------

    def give(self, rights: Rights, peer: Peer) -> Gift:
        index = -1
        reads = False

        def returned() -> None:
            if reads:
                self.leave_reader()
            if index >= 0:
                self.leave_lane(index)

        given: list[int] = []
        try:
            if Rights.READ in rights:
                self.take_reader(peer.uid)
                reads = True
            if Rights.POST in rights:
                index = self.take_lane(peer.uid)
            given.append(self.again(self.memory, False))
            if reads:
                for lane in self.lanes:
                    given += [self.again(lane.posted, False)]
                    given += [self.again(lane.taken, True)]
            if index >= 0:
                given += [self.again(self.lanes[index].posted, True)]
                given += [self.again(self.lanes[index].taken, False)]
        except BaseException:
            close_all(given)
            returned()
            raise
        sizes = {"slots": self.slots, "slot_bytes": self.slot_bytes, "posters": len(self.lanes), "lane": index}
        return Gift(self, given, sizes, returned)

    def again(self, memory: Descriptor, writable: bool) -> int:
        if not memory.is_open():
            raise Closed("the owner has closed a descriptor of the queue")
        return sealed.opened_again(memory.number, writable)


class ByteQueue(Granted):
    """A queue of bytes whose ends can be granted to other users: one reads, several post.

    A message that was posted is received once; a poster's messages come in the order he posted them. What he posted
    stays when he ends. A process that opens an end has it for itself until it closes it or ends; the owner from its
    first `receive` or `post`. Its threads share it: each message goes to one; of several that sleep, one may see a
    tenth of a second late what there is to do. `shmipc.abort` does not end these waits.

    Args:
        slots: Messages of one poster that wait, 1 to 65 536.
        slot_bytes: Of one message at most, to 1 MiB.
        posters: That may post at a time, and users that ever may, 1 to 64.
        name, access: As of `SharedBuffer`.

    Attributes:
        slots, slot_bytes, posters: As it was made.

    Raises:
        InvalidArgument, LimitExceeded: A number outside its limits, the name, or rights a queue has not.
        NameTaken: Another process has the name.
        OutOfMemory: So much is not free.

    Source: native/transport/lane.c; bytes in native/memory/layout.h.
    """

    KIND = Kind.QUEUE
    _board: _native.Board
    _reads: list[_native.Lane | None] | None = None
    _posts: _native.Lane | None = None
    _line: Socket | None = None
    _pid = 0

    def __init__(
        self,
        slots: int = 64,
        slot_bytes: int = 256,
        *,
        posters: int = 4,
        name: str | None = None,
        access: Iterable[Access] = (),
    ) -> None:
        self._sizes(slots, slot_bytes, posters)
        undisturbed(lambda: self._make(name, access), lambda _: self.close())

    def _sizes(self, slots: int, slot_bytes: int, posters: int) -> None:
        self.slots = check_count("slots", slots, 1, _native.LANE_MAX_SLOTS)
        self.slot_bytes = check_count("slot_bytes", slot_bytes, 1, _native.LANE_MAX_BYTES)
        self.posters = check_count("posters", posters, 1, _native.LANES_MAX)
        self._spoilt: list[int] = []
        self._next = 0

    def _make(self, name: str | None, access: Iterable[Access]) -> None:
        store = QueueStore(self.slots, self.slot_bytes, self.posters)
        self._board = store.board
        self._own(store, name, access)

    # -- posting ------------------------------------------------------------------------------------------------

    def post(self, body: Any, timeout: float | None = None) -> None:
        """Post a message. Blocks while the lane is full.

        Args:
            body: Bytes-like and contiguous, an array too; copied.
            timeout: Seconds; None waits, 0 tries once.

        Raises:
            MailboxFull: ``timeout=0``, and as many messages wait as the queue has slots. It carries the message.
            Timeout: No room came; it carries the message.
            TooLarge: It has more than ``slot_bytes`` bytes.
            PeerDead: There is no room, and the reader, or the owner, has ended.
            AccessDenied: The right is READ alone.
            WouldBlock: Of the owner: no lane is free.
            Corrupted: The reader wrote what cannot be.
            Closed, ForkedHandle.
        """
        posts = self._posts if self._pid == os.getpid() else None  # the common case, at once
        if posts is not None and posts.post(body):
            return
        deadline = Deadline(timeout)
        lane = self._poster()
        while True:
            self._check()
            bell = self._board.bell
            if lane.post(body):
                return
            if timeout == 0:
                raise MailboxFull(f"{self.slots} messages wait, which is all there is room for", message=body)
            if self._board.reader == _native.END_LEFT:
                raise PeerDead(f"the queue's reader has ended; {lane.depth} messages of ours were not taken")
            if self._owner_has_ended():
                self._check()
                raise PeerDead(f"the queue's owner has ended; {lane.depth} messages of ours were not taken")
            if deadline.passed():
                raise Timeout(f"no room came within {timeout} s; {lane.depth} messages wait", message=body)
            _native.wait_for_lanes([lane], self._board, bell, slice_of(deadline))

    def _poster(self) -> _native.Lane:
        self._check()
        if Rights.POST not in self.rights:
            raise AccessDenied("the right to the queue is READ alone; POST is needed")
        return self._posts or undisturbed(self._open_poster)

    def _open_poster(self) -> _native.Lane:
        store = self._queue_store()
        with grantor.lock:
            self._check()
            if self._posts is not None:  # another thread was faster, or the step of a wait that was interrupted
                return self._posts
            index = store.take_lane(store.owner)
            try:
                lane = store.lanes[index]
                self._posts = posts = self._end(lane.posted_map, lane.taken_map, True)
                self._check()
                return posts
            except BaseException:
                self._posts = None
                store.leave_lane(index)
                raise

    # -- receiving ----------------------------------------------------------------------------------------------

    def receive(self, timeout: float | None = None) -> bytes:
        """The next message; see `receive_from`."""
        return self.receive_from(timeout).body

    def receive_from(self, timeout: float | None = None) -> Delivery:
        """The next message and the uid of its poster: each poster's in order, and the posters in turn. Blocks while
        there is none.

        Args:
            timeout: Seconds; None waits, 0 looks once.

        Raises:
            MailboxEmpty: ``timeout=0``, and there is none.
            Timeout: None came.
            PeerDead: There is none, and the owner has ended or closed the queue.
            AccessDenied: The right is POST alone.
            WouldBlock: Of the owner: another reads.
            Corrupted: A poster wrote what cannot be: his lane is shut, which is said once; the others go on.
            Closed, ForkedHandle.
        """
        reads = self._reads if self._pid == os.getpid() else None
        found = self._take(reads) if reads is not None else None
        if found is not None:
            return found
        deadline = Deadline(timeout)
        lanes = self._reader()
        while True:
            self._check()
            bell = self._board.bell
            ended = self._owner_has_ended()  # before the lanes are looked at
            found = self._take(lanes)
            if found is not None:
                return found
            if ended:
                self._check()
                raise PeerDead("no message is there, and the queue's owner has ended, or closed it")
            if timeout == 0:
                raise MailboxEmpty("no message is there")
            if deadline.passed():
                raise Timeout(f"no message came within {timeout} s")
            open_lanes = [lane for lane in lanes if lane is not None]
            _native.wait_for_lanes(open_lanes, self._board, bell, slice_of(deadline))

    def _take(self, lanes: list[_native.Lane | None]) -> Delivery | None:
        if self._spoilt:
            self._tell_spoilt()
        for step in range(len(lanes)):
            index = (self._next + step) % len(lanes)
            lane = lanes[index]
            if lane is None:
                continue
            taken: list[bytes] = []
            try:
                if lane.take(taken):
                    self._next = index + 1
                    return Delivery(taken[0], self._board.poster(index)[0])
            except Corrupted as error:
                if lanes[index] is None:
                    continue  # another thread says so
                lanes[index] = None
                uid = self._board.poster(index)[0]
                raise Corrupted(f"uid {uid} spoilt lane {index} of the queue; it is shut: {error}") from None
            except BaseException:  # a signal handler's: the next receive has it
                lane.give_back(taken)
                raise
        return None

    def _tell_spoilt(self) -> None:
        try:
            index = self._spoilt.pop()
        except IndexError:
            return  # another thread tells it
        raise Corrupted(f"uid {self._board.poster(index)[0]} spoilt lane {index} of the queue; it is shut")

    def _reader(self) -> list[_native.Lane | None]:
        self._check()
        if Rights.READ not in self.rights:
            raise AccessDenied("the right to the queue is POST alone; READ is needed")
        return self._reads or undisturbed(self._open_reader)

    def _open_reader(self) -> list[_native.Lane | None]:
        store = self._queue_store()
        with grantor.lock:
            self._check()
            if self._reads is not None:  # another thread was faster, or the step of a wait that was interrupted
                return self._reads
            store.take_reader(store.owner)
            try:
                reads = [self._open_lane(i, lane.posted_map, lane.taken_map) for i, lane in enumerate(store.lanes)]
                self._reads = reads
                self._check()
                return reads
            except BaseException:
                self._reads = None
                store.leave_reader()
                raise

    def _open_lane(self, index: int, posted: _native.Mapping, taken: _native.Mapping) -> _native.Lane | None:
        """The reading end of a lane; one that is spoilt already is told at the next receive."""
        try:
            return self._end(posted, taken, False)
        except Corrupted:
            self._spoilt.append(index)
            return None

    # -- both ---------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Messages posted and not taken: all, for the owner and for who reads; a poster's own. Raises Corrupted."""
        self._check()
        if self._store is not None:
            pairs = [(lane.posted_map, lane.taken_map) for lane in self._queue_store().lanes]
            count = sum(_native.lane_count(*pair, self.slots, self.slot_bytes) for pair in pairs)
            return count + sum(lane.kept for lane in self._reads or () if lane is not None)
        if self._reads is not None:
            return sum(lane.depth for lane in self._reads if lane is not None)
        return self._posts.depth if self._posts is not None else 0

    def __bool__(self) -> bool:
        return True

    def _end(self, posted: _native.Mapping, taken: _native.Mapping, posts: bool) -> _native.Lane:
        return _native.Lane(posted, taken, self._board, self.slots, self.slot_bytes, posts)

    def _queue_store(self) -> QueueStore:
        store = self._own_store()
        assert isinstance(store, QueueStore)
        return store

    def _owner_has_ended(self) -> bool:
        if self._line is None:
            return False
        if not self._line.is_open():
            return True  # the program has closed it; then nobody knows
        try:
            return not self._line.socket.recv(1)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _give_up(self) -> None:
        self._drop()
        super()._give_up()

    def _drop(self) -> None:
        self._reads = self._posts = None
        if self._line is not None:
            self._line.close()


def slice_of(deadline: Deadline) -> float:
    left = deadline.left()
    return SLICE if left is None else min(SLICE, left)


def open_queue(reply: Reply, capability: Capability | None) -> ByteQueue:
    """The handle of a queue whose ends were passed; raises Corrupted."""
    answer = reply.answer
    rights = Rights(answer.rights)
    handle = ByteQueue.__new__(ByteQueue)
    try:
        handle._sizes(answer.slots, answer.slot_bytes, answer.posters)
    except ValueError as error:
        raise Corrupted(f"{reply.owner} tells sizes that cannot be: {error}") from None
    if int(rights) & ~int(POSSIBLE[Kind.QUEUE]) or not rights:
        raise Corrupted(f"{reply.owner} gave {rights!r} for a queue")
    posted, taken = _native.lane_bytes(handle.slots, handle.slot_bytes), _native.TAKEN_BYTES
    plan = [(_native.BOARD_BYTES, False)]
    plan += [(posted, False), (taken, True)] * (handle.posters if Rights.READ in rights else 0)
    plan += [(posted, True), (taken, False)] * (Rights.POST in rights)
    if len(reply.descriptors) != len(plan):
        raise Corrupted(f"{reply.owner} passed {len(reply.descriptors)} descriptors for a queue, not {len(plan)}")
    maps = []
    for descriptor, (nbytes, writable) in zip(reply.descriptors, plan, strict=True):
        sealed.check(descriptor, nbytes, writable)
        maps.append(sealed.mapped(descriptor, nbytes, writable))
    handle._board = _native.Board(maps[0])
    if Rights.POST in rights:
        handle._posts = handle._end(maps[-2], maps[-1], True)
    if Rights.READ in rights:
        pairs = [(maps[2 * index + 1], maps[2 * index + 2]) for index in range(handle.posters)]
        handle._reads = [handle._open_lane(index, *pair) for index, pair in enumerate(pairs)]
    assert reply.line is not None
    reply.line.setblocking(False)
    handle._line, reply.line = Socket(reply.line), None
    handle._adopt(reply, capability)
    _lines.add(handle)
    return handle


HANDLES[Kind.QUEUE] = open_queue
_lines: weakref.WeakSet[ByteQueue] = weakref.WeakSet()


def _after_fork() -> None:
    """A child that keeps the line would hold the end of its parent."""
    for queue in list(_lines):
        if queue._line is not None:
            queue._line.close()
    _lines.clear()


os.register_at_fork(after_in_child=_after_fork)
