"""The grantor: the thread of an owner that gives its objects out to those who may have them.

There is one in a process that has granted or named something, as long as such an object is open. It answers at an
abstract socket whose name the kernel chose, and at one for each named object. One packet is asked, one is answered; who
is asking the kernel says. So many visitors at a time, each for a few seconds, none waits for another: a stranger may
cost it time, never stop it.

Source: docs/explanation/trust.md.
"""

import atexit
import collections
import hmac
import itertools
import logging
import os
import secrets
import select
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from shmipc.base.descriptors import Descriptor, Socket
from shmipc.base.errors import AccessDenied, Closed, InvalidArgument, LimitExceeded, NameTaken, NotFound, ShmipcError
from shmipc.transport.rights import (
    NOBODY,
    REQUEST,
    SECRET_BYTES,
    Access,
    Answer,
    Capability,
    Kind,
    Peer,
    Request,
    Rights,
    Verb,
    allowed,
    check_id,
    check_rights,
    close_all,
    named_address,
    peer_of,
)

log = logging.getLogger("shmipc.rights")

VISITORS = 64  # at a time, who have not asked yet
OF_ONE_USER = 16
VISIT_SECONDS = 2.0  # in which a visitor asks
BACKLOG = 128
AT_ONCE = 16  # accepted before the others are served
REFUSALS = 20  # logged in REFUSAL_SECONDS, for each uid
REFUSAL_SECONDS = 60.0
GRANTS = 65_536  # of one process
DERIVED = 256  # from one grant, at whatever remove
TURN_SECONDS = 1.0  # that a close waits for the thread
USERS_KEPT = 1024  # whose refusals are counted apart

lock = threading.RLock()  # of everything here, and of the queues' ends; nothing slow is done under it
generations = itertools.count(1)
numbers = itertools.count(1)


@dataclass
class Gift:
    """What is passed to who was granted something: descriptors, and the rest of the answer.

    Attributes:
        store: Of what.
        descriptors: Fresh ones; the grantor closes them when they are passed.
        fields: Of `Answer`.
        returned: What is to be done when the receiver's line ends; None: it needs none.
    """

    store: "Store"
    descriptors: list[int]
    fields: dict[str, Any] = field(default_factory=dict)
    returned: Callable[[], None] | None = None


class Store:
    """An object in the process that owns it, as its grantor sees it.

    Attributes:
        kind: What it is.
        size: Bytes.
        generation: Which of this process's objects; never used twice.
        access: Whom it is opened to by name.
    """

    kind: Kind
    size: int
    name: str | None = None

    def __init__(self) -> None:
        self.generation = next(generations)
        self.owner = os.geteuid()
        self.pid = os.getpid()
        self.access: tuple[Access, ...] = ()
        self.closed = False

    def give(self, rights: Rights, peer: Peer) -> Gift:
        """What a peer needs who has these rights, or raise WouldBlock, AccessDenied."""
        raise NotImplementedError

    def shut(self) -> None:
        """Close what it keeps open. Idempotent."""
        raise NotImplementedError


@dataclass
class Grant:
    """What a token stands for."""

    number: int
    secret: bytes
    store: Store
    rights: Rights
    uid: int
    parent: "Grant | None"
    uses: int = 0
    derived: int = 0  # from it and from those below it, that live

    def is_below(self, other: "Grant") -> bool:
        """Was it derived from the other, at whatever remove?"""
        above = self.parent
        while above is not None:
            if above is other:
                return True
            above = above.parent
        return False


class Visitor:
    """A connection: of who has not asked yet, or the line of who has an end."""

    __slots__ = ("kept", "peer", "returned", "store", "until")

    def __init__(self, kept: Socket, peer: Peer, store: Store | None) -> None:
        self.kept = kept
        self.peer = peer
        self.store = store  # at whose name it came in; of which it has an end
        self.until: float | None = time.monotonic() + VISIT_SECONDS
        self.returned: Callable[[], None] | None = None


class Refusals:
    """How many refusals of each uid are still to be logged one by one."""

    def __init__(self) -> None:
        self.counts: collections.OrderedDict[int, list[float]] = collections.OrderedDict()

    def log(self, peer: Peer, text: str) -> None:
        now = time.monotonic()
        since, count = self.counts.setdefault(peer.uid, [now, 0])
        if now - since > REFUSAL_SECONDS:
            if count > REFUSALS:
                log.warning("refused uid %d another %d times", peer.uid, count - REFUSALS)
            since, count = now, 0
        self.counts[peer.uid] = [since, count + 1]
        while len(self.counts) > USERS_KEPT:
            self.counts.popitem(last=False)
        if count < REFUSALS:
            log.warning("refused %s: %s", peer, text)


DUMMY = bytes(SECRET_BYTES)


class Grantor:
    """See the module. Its methods are called under `lock`, except those of its thread."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.instance = secrets.randbits(64)
        self.stores: dict[int, Store] = {}
        self.grants: dict[int, Grant] = {}
        self.named: dict[int, tuple[Store, Socket]] = {}  # by the number of its socket
        self.visitors: dict[int, Visitor] = {}
        self.dropped: collections.deque[Store] = collections.deque()
        self.awaited: collections.deque[threading.Event] = collections.deque()
        self.refusals = Refusals()
        self.ending = False
        self.wake_fd = Descriptor(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        try:
            self.door = Socket(listen(b""))
        except BaseException:
            self.wake_fd.close()
            raise
        self.address = self.door.socket.getsockname()[1:].decode("ascii")
        self.thread = threading.Thread(target=self.run, name="shmipc grantor", daemon=True)

    # -- what its owner asks of it ------------------------------------------------------------------------------

    def add(self, store: Store) -> None:
        self.stores[store.generation] = store

    def publish(self, store: Store, name: str) -> None:
        """Have it opened by name; raises NameTaken."""
        try:
            kept = Socket(listen(named_address(store.owner, name)))
        except OSError as error:
            raise NameTaken(f"the name {name!r} is taken: {error.strerror}") from error
        self.named[kept.socket.fileno()] = store, kept
        self.add(store)
        self.wake()

    def remove(self, store: Store) -> None:
        """Nobody opens it any more; without another object the grantor ends."""
        if self.stores.pop(store.generation, None) is None:
            return
        for number, (other, kept) in list(self.named.items()):
            if other is store:
                del self.named[number]
                kept.close()
        for grant in [entry for entry in self.grants.values() if entry.store is store]:
            del self.grants[grant.number]
        if not self.stores:
            end(self)
        self.wake()

    def is_open(self) -> bool:
        """Are its descriptors its own? A program may close all it has."""
        return self.door.is_open() and self.wake_fd.is_open()

    def wake(self) -> None:
        self.wake_fd.write((1).to_bytes(8, "little"))

    def grant(self, store: Store, rights: Rights, uid: int, parent: Grant | None = None) -> Grant:
        """Raises LimitExceeded: there are too many."""
        if len(self.grants) >= GRANTS:
            raise LimitExceeded(f"this process has {GRANTS} grants, the limit; revoke some")
        above = parent
        while above is not None:
            if above.derived >= DERIVED:
                raise LimitExceeded(f"{DERIVED} are derived from grant {above.number}, the limit; revoke some")
            above = above.parent
        made = Grant(next(numbers), secrets.token_bytes(SECRET_BYTES), store, rights, uid, parent)
        self.grants[made.number] = made
        count_derived(made, 1)
        return made

    def capability(self, grant: Grant) -> Capability:
        owner = grant.store.owner
        return Capability.of(owner, self.address, self.instance, grant.number, grant.rights, grant.secret)

    # -- what it decides ----------------------------------------------------------------------------------------

    def check(self, number: int, secret: bytes, uid: int) -> Grant:
        """The grant of a token that this uid may use.

        Raises:
            AccessDenied: There is none.
        """
        grant = self.grants.get(number)
        same = hmac.compare_digest(grant.secret if grant is not None else DUMMY, secret)
        if grant is None or not same:
            raise AccessDenied("the token is none of ours, or was revoked, or its object is closed")
        if grant.uid not in (NOBODY, uid) and uid != grant.store.owner:
            raise AccessDenied(f"the token is for uid {grant.uid}, not for uid {uid}")
        return grant

    def answer(self, request: Request, peer: Peer, named: Store | None) -> tuple[Answer, Gift | None, str]:
        """What is answered to this peer, at the door or at a name, what is passed, and what is logged.

        Raises:
            ShmipcError: It is refused.
        """
        if request.verb == Verb.OPEN:
            return self.open(request, peer, named)
        if named is not None:
            raise InvalidArgument("at a name one opens")
        if request.instance != self.instance:
            raise AccessDenied("the token is of a grantor that has ended")
        grant = self.check(request.number, request.secret, peer.uid)
        if request.verb == Verb.USE:
            wanted = within(grant, request.rights)
            answer, gift = self.give(grant.store, wanted, peer)
            grant.uses += 1
            return answer, gift, f"grant {grant.number} used with {wanted!r}"
        if request.verb == Verb.DESCRIBE:
            answer = self.about(grant.store, grant.rights)._replace(uid=grant.uid, uses=grant.uses, number=grant.number)
            return answer, None, f"grant {grant.number} described"
        if request.verb == Verb.DERIVE:
            return self.derive(grant, request, peer)
        if request.verb == Verb.REVOKE:
            return self.revoke(grant, request.target, peer)
        raise InvalidArgument(f"verb {request.verb} is none")

    def open(self, request: Request, peer: Peer, named: Store | None) -> tuple[Answer, Gift | None, str]:
        if named is None or named.name is None or request.name != named.name.encode():
            raise NotFound("no object has that name here")
        if request.target != named.kind:
            raise InvalidArgument(f"{named.name!r} names a {named.kind.name.lower()}")
        wanted = check_rights(request.rights, named.kind)
        if peer.uid != named.owner and wanted & ~allowed(named.access, peer):
            raise AccessDenied(f"{named.name!r} does not let uid {peer.uid} {wanted!r}")
        answer, gift = self.give(named, wanted, peer)
        return answer, gift, f"{named.name!r} opened with {wanted!r}"

    def about(self, store: Store, rights: Rights) -> Answer:
        return Answer(
            kind=store.kind,
            rights=rights,
            instance=self.instance,
            generation=store.generation,
            owner_pid=self.pid,
            size=store.size,
            name=(store.name or "").encode(),
        )

    def give(self, store: Store, rights: Rights, peer: Peer) -> tuple[Answer, Gift]:
        gift = store.give(rights, peer)
        return self.about(store, rights)._replace(**gift.fields), gift

    def derive(self, grant: Grant, request: Request, peer: Peer) -> tuple[Answer, None, str]:
        wanted = within(grant, request.rights)
        uid = grant.uid if request.uid == NOBODY else check_id("uid", request.uid)
        if grant.uid not in (NOBODY, uid):
            raise AccessDenied(f"the token is for uid {grant.uid}; none for uid {uid} is derived from it")
        made = self.grant(grant.store, wanted, uid, grant)
        answer = self.about(grant.store, wanted)._replace(uid=uid, number=made.number, secret=made.secret)
        return answer, None, f"grant {made.number}, {wanted!r}{for_whom(uid)}, derived from grant {grant.number}"

    def revoke(self, grant: Grant, target: int, peer: Peer) -> tuple[Answer, None, str]:
        found = self.grants.get(target)
        if found is not None:
            if not found.is_below(grant) and not (found is grant and peer.uid == grant.store.owner):
                raise AccessDenied(f"grant {target} is not uid {peer.uid}'s to revoke")
            self.end_grant(found)
        return self.about(grant.store, grant.rights), None, f"grant {target} revoked"

    def end_grant(self, grant: Grant) -> None:
        """It and all below it."""
        for entry in [entry for entry in self.grants.values() if entry is grant or entry.is_below(grant)]:
            del self.grants[entry.number]
            count_derived(entry, -1)

    # -- its thread ---------------------------------------------------------------------------------------------

    def run(self) -> None:
        try:
            while not self.ending and self.is_open():
                self.turn()
        except Exception:
            log.exception("the grantor of process %d has failed; its objects can be opened no more", self.pid)
        finally:
            with lock:
                end(self)
                self.close()
                while self.dropped:
                    self.dropped.popleft().shut()
            self.tell_turn()

    def turn(self) -> None:
        self.tell_turn()
        poll = select.poll()
        doors: dict[int, Socket] = {}
        with lock:
            while self.dropped:
                store = self.dropped.popleft()
                store.closed = True
                self.remove(store)
                store.shut()
            if self.ending:
                return
            doors[self.door.descriptor.number] = self.door
            doors.update({number: kept for number, (_, kept) in self.named.items()})
        for number in [self.wake_fd.number, *doors, *self.visitors]:
            poll.register(number, select.POLLIN)
        for number, event in poll.poll(self.patience()):
            if number == self.wake_fd.number:
                self.drain()
            elif number in doors:
                self.admit(number, doors[number])
            elif number in self.visitors:
                self.serve(self.visitors[number], event)
        now = time.monotonic()
        for visitor in list(self.visitors.values()):
            over = visitor.until is not None and visitor.until < now
            if over or (visitor.store is not None and visitor.store.closed):
                self.part(visitor)

    def tell_turn(self) -> None:
        """Tell who waits for it that this thread sleeps on no socket that was closed before."""
        while self.awaited:
            self.awaited.popleft().set()

    def patience(self) -> float | None:
        """Milliseconds until the first visitor's time is up."""
        ends = [visitor.until for visitor in self.visitors.values() if visitor.until is not None]
        return max(0.0, (min(ends) - time.monotonic()) * 1000 + 1) if ends else None

    def drain(self) -> None:
        try:
            os.read(self.wake_fd.number, 8)
        except BlockingIOError:
            pass

    def admit(self, number: int, door: Socket) -> None:
        with lock:
            store = self.named[number][0] if number in self.named else None
            if store is not None and not door.is_open():  # the program has closed it
                del self.named[number]
                door.close()
        for _ in range(AT_ONCE):
            if not door.is_open():
                return
            try:
                connection, _ = door.socket.accept()
            except BlockingIOError:
                return
            except OSError:  # no descriptor is left in this process
                time.sleep(0.01)
                return
            connection.setblocking(False)
            try:
                visitor = Visitor(Socket(connection), peer_of(connection), store)
            except OSError:
                connection.close()
                continue
            self.visitors[connection.fileno()] = visitor
            self.crowd(visitor)

    def crowd(self, newest: Visitor) -> None:
        """Send away the oldest of a user who has too many here, or of the one who has most when all are too many."""
        waiting = [visitor for visitor in self.visitors.values() if visitor.until is not None]
        users = collections.Counter(visitor.peer.uid for visitor in waiting)
        if users[newest.peer.uid] > OF_ONE_USER:
            uid = newest.peer.uid
        elif len(waiting) > VISITORS:
            uid = users.most_common(1)[0][0]
        else:
            return
        self.part(next(visitor for visitor in waiting if visitor.peer.uid == uid))

    def serve(self, visitor: Visitor, event: int) -> None:
        if visitor.until is None or not visitor.kept.is_open():  # a line says nothing; its end is all it tells
            self.part(visitor)
            return
        try:
            packet = visitor.kept.socket.recv(REQUEST.size + 1)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        if packet:
            self.reply(visitor, packet)
        if visitor.returned is None:
            self.part(visitor)

    def reply(self, visitor: Visitor, packet: bytes) -> None:
        """Answer, pass what is granted, and keep the record."""
        gift: Gift | None = None
        told = refused = ""
        try:
            with lock:
                if self.ending:
                    return
                answer, gift, told = self.answer(Request.unpack(packet), visitor.peer, visitor.store)
        except ShmipcError as error:
            answer, refused = Answer.refusal(error, self.instance), str(error)
        except Exception as error:  # of ours: whoever met it is told, and the others are served on
            log.exception("a request by %s could not be answered", visitor.peer)
            answer = Answer.refusal(ShmipcError(f"the owner failed: {type(error).__name__}"), self.instance)
        if gift is not None and gift.returned is not None:
            visitor.returned, visitor.store, visitor.until = gift.returned, gift.store, None
        try:
            socket.send_fds(visitor.kept.socket, [answer.pack()], gift.descriptors if gift is not None else [])
        except OSError as error:  # it has gone; or too many descriptors are under way, not received
            refused = f"could not answer: {error.strerror}"
            self.part(visitor)
        finally:
            if gift is not None:
                close_all(gift.descriptors)
        if told:
            log.info("%s, by %s", told, visitor.peer)
        if refused:
            self.refusals.log(visitor.peer, refused)

    def part(self, visitor: Visitor) -> None:
        number = visitor.kept.descriptor.number
        if self.visitors.get(number) is visitor:
            del self.visitors[number]
        visitor.kept.close()
        returned, visitor.returned = visitor.returned, None
        if returned is not None:
            with lock:
                returned()
            log.info("%s has closed what it had, or ended", visitor.peer)

    def close(self) -> None:
        """Close all it has open. For its thread, and for a forked child."""
        self.door.close()
        self.wake_fd.close()
        for _, kept in self.named.values():
            kept.close()
        self.named.clear()
        for visitor in list(self.visitors.values()):
            visitor.kept.close()
        self.visitors.clear()


def count_derived(grant: Grant, by: int) -> None:
    above = grant.parent
    while above is not None:
        above.derived += by
        above = above.parent


def within(grant: Grant, rights: int) -> Rights:
    """The rights, if the grant has them all."""
    wanted = check_rights(rights, grant.store.kind)
    if wanted & ~grant.rights:
        raise AccessDenied(f"grant {grant.number} is of {grant.rights!r}, not of {wanted!r}")
    return wanted


def for_whom(uid: int) -> str:
    return "" if uid == NOBODY else f" for uid {uid}"


def listen(address: bytes) -> socket.socket:
    """A socket at which others of this machine may ask; an empty address: the kernel gives one that is free."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        made.bind(address)
        made.listen(BACKLOG)
    except BaseException:
        made.close()
        raise
    return made


# --- of this process -------------------------------------------------------------------------------------------

_grantor: Grantor | None = None


def grantor() -> Grantor:
    """That of this process, made at first use, and anew when the program has closed its descriptors. Under `lock`."""
    global _grantor
    if _grantor is None or _grantor.ending or not _grantor.is_open():
        if _grantor is not None:
            end(_grantor)
        made = Grantor()
        try:
            made.thread.start()
        except BaseException:
            made.close()
            raise
        _grantor = made
    return _grantor


def end(which: Grantor) -> None:
    """It ends; the next object that is granted has another."""
    global _grantor
    which.ending = True
    if _grantor is which:
        _grantor = None


def publish(store: Store, name: str) -> None:
    """Have others open an object by name; raises NameTaken."""
    with lock:
        store.name = name
        keeper = grantor()
        try:
            keeper.publish(store, name)
        except BaseException:
            if not keeper.stores:
                end(keeper)
                keeper.wake()
            raise
    log.info("%s %r published by uid %d", store.kind.name.lower(), name, store.owner)


def grant(store: Store, rights: Rights, uid: int | None) -> Capability:
    """A token for an object of ours; raises Closed."""
    with lock:
        if store.closed:
            raise Closed(f"the {store.kind.name.lower()} is closed in this process")
        keeper = grantor()
        keeper.add(store)
        made = keeper.grant(store, rights, NOBODY if uid is None else uid)
        capability = keeper.capability(made)
    log.info("grant %d of a %s, %r%s", made.number, store.kind.name.lower(), rights, for_whom(made.uid))
    return capability


def withdraw(store: Store) -> None:
    """Close an object of ours: nobody can open it any more. Idempotent."""
    turn = threading.Event()
    with lock:
        if store.closed:
            return
        store.closed = True
        keeper = _grantor
        if keeper is not None:
            keeper.awaited.append(turn)
            keeper.remove(store)
        store.shut()
    if store.name is None or keeper is None or keeper.thread is threading.current_thread():
        return
    if keeper.wake_fd.is_open():
        turn.wait(TURN_SECONDS)  # a thread that sleeps on a socket keeps it: the name is free once it has been awake


def drop(store: Store) -> None:
    """The same for a finaliser, which may run while any lock is held."""
    keeper = _grantor
    if store.pid != os.getpid() or keeper is None or store.generation not in keeper.stores:
        store.shut()
    else:
        keeper.dropped.append(store)
        keeper.wake()


def _after_fork() -> None:
    """The child gives nothing out, and holds nobody's line."""
    global lock, _grantor
    lock = threading.RLock()
    kept, _grantor = _grantor, None
    if kept is not None:
        kept.close()


def _at_exit() -> None:
    keeper = _grantor
    if keeper is not None:
        end(keeper)
        keeper.wake()
        keeper.thread.join(1.0)


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
