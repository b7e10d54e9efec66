"""What another user may reach: access by name, capabilities, truncation, hostile peers. Processes of plain users."""

import fcntl
import os
import pickle
import random
import re
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import psutil
import pytest

import shmipc
from shmipc import Access, Capability, Rights, _native
from shmipc.transport import byte_queues, grantor, rights
from tests.conftest import NAMESPACE, wait_until
from tests.interruptions import each_place
from tests.transport.users import FIRST_UID, Refused, User

A, B, C = FIRST_UID + 1, FIRST_UID + 2, FIRST_UID + 3
GROUP = FIRST_UID + 9
UID = os.geteuid()
Eventually = Callable[..., None]


@pytest.fixture(scope="module")
def owner() -> Iterator[User]:
    with User(1) as user:
        yield user


@pytest.fixture(scope="module")
def other() -> Iterator[User]:
    with User(2) as user:
        yield user


@pytest.fixture(scope="module")
def third() -> Iterator[User]:
    with User(3, GROUP) as user:
        yield user


@pytest.mark.row("F13", "H3")
def test_object_is_private_until_its_list_lets_somebody_in_and_reading_is_not_writing(
    owner: User, other: User, third: User
) -> None:
    owner.do("b = shmipc.SharedBuffer(8192, name='frames'); b.array(4, 'd')[:] = 2; q = shmipc.ByteQueue(name='jobs')")
    opens = f"v = shmipc.SharedBuffer.open('frames', owner={A}"
    takes = f"r = shmipc.ByteQueue.open('jobs', owner={A}"
    for user in (other, third):
        for right in ("READ", "READ | Rights.WRITE"):
            assert user.refused(f"{opens}, rights=Rights.{right})") == "AccessDenied"
        for right in ("READ", "POST", "READ | Rights.POST"):
            assert user.refused(f"{takes}, rights=Rights.{right})") == "AccessDenied"
        assert user.refused("shmipc.SharedBuffer.open('frames')") == "NotFound"  # his own of that name
    # A read grant: what the owner writes is seen, nothing is written.
    owner.do(f"b.allow(Rights.READ, uid={B}); q.allow(Rights.READ, uid={B}); q.post(b'one'); q.post(b'two')")
    assert other.refused(f"{opens}, rights=Rights.READ | Rights.WRITE)") == "AccessDenied"
    assert other.refused(f"{takes}, rights=Rights.POST)") == "AccessDenied"
    other.do(f"{opens}); {takes}, rights=Rights.READ)")
    assert other.value("v.array(4, 'd').sum(), v.buf.readonly, v.array(1).flags.writeable") == [8.0, True, False]
    assert other.refused("v.buf[0] = 1") == "TypeError"
    assert other.refused("v.array(1)[0] = 1") == "ValueError"
    owner.do("b.array(4, 'd')[3] = 9")
    assert other.value("v.array(4, 'd')[3]") == 9.0
    protect = "ctypes.CDLL(None, use_errno=True).mprotect(ctypes.c_void_p(v.array(1).ctypes.data), 4096, 3)"
    assert other.value(f"{protect}") == -1  # the mapping can never become writable
    assert other.value("r.receive(5).decode()") == "one"
    assert other.refused("r.post(b'x')") == "AccessDenied"
    assert other.value("r.receive(0).decode()") == "two"
    assert other.refused("r.receive(0)") == "MailboxEmpty"
    assert owner.value("len(q)") == 0
    # A grant to post, to a group of his: posts, and reads nothing.
    owner.do(f"q.allow(Rights.POST, gid={GROUP}); b.allow(Rights.READ, gid={GROUP})")
    third.do(f"{takes}); r.post(b'three'); {opens})")
    assert third.refused("r.receive(0)") == "AccessDenied"
    assert third.refused(f"shmipc.ByteQueue.open('jobs', owner={A}, rights=Rights.READ)") == "AccessDenied"
    assert other.value("(lambda d: [d.body.decode(), d.uid])(r.receive_from(5))") == ["three", C]
    # One of his groups is denied: that outweighs the other, in any order; his own line outweighs both.
    for lines in (f"b.deny(gid={C})", f"b.deny(gid={GROUP}); b.allow(Rights.READ, gid={C})"):
        owner.do(lines)
        assert third.refused(f"{opens})") == "AccessDenied"
    owner.do(f"b.allow(Rights.READ, uid={C})")
    third.do(f"{opens})")
    owner.do(f"b.allow(Rights.READ, gid={GROUP})")
    # Denied again: what is open stays open.
    owner.do(f"b.deny(uid={B}); b.deny(uid={C})")
    assert [user.refused(f"{opens})") for user in (other, third)] == ["AccessDenied"] * 2
    assert other.value("v.array(1, 'd')[0]") == 2.0
    assert owner.value("[[int(e.rights), e.uid, e.gid] for e in b.access]") == [
        [1, None, C],
        [1, None, GROUP],
        [0, B, None],
        [0, C, None],
    ]
    for user in (other, third, owner):
        user.do("for name in 'vrbq':\n    if name in globals(): globals()[name].close()")


@pytest.mark.row("F14", "M15")
def test_capability_gives_its_rights_to_its_user_until_it_is_revoked(owner: User, other: User, third: User) -> None:
    owner.do(f"b = shmipc.SharedBuffer(4096, name='old'); c = b.grant(Rights.READ, uid={B})")
    text = owner.value("str(c)")
    use = f"v = shmipc.Capability({text!r}).use"
    assert third.refused(f"{use}()") == "AccessDenied"  # also with the token, it is not his
    assert other.refused(f"{use}(Rights.READ | Rights.WRITE)") == "AccessDenied"
    other.do(f"{use}()")
    assert other.refused("v.buf[0] = 1") == "TypeError"
    told = other.value(f"list(vars(shmipc.Capability({text!r}).describe()).values())")
    generation = owner.value("b.generation")
    assert told == ["buffer", 1, B, "old", generation, 4096, A, owner.pid, 1]
    # Derived: never wider, never for another, and gone with what it comes from.
    assert other.refused("v.grant(Rights.READ | Rights.WRITE)") == "AccessDenied"
    assert other.refused(f"v.grant(Rights.READ, uid={C})") == "AccessDenied"
    narrower = other.value("str(v.grant(Rights.READ))")
    other.do(f"shmipc.Capability({narrower!r}).use().close()")
    assert other.refused(f"shmipc.Capability({text!r}).revoke()") == "AccessDenied"
    owner.do("c.revoke()")
    assert other.refused(f"{use}()") == "AccessDenied"
    assert other.refused(f"shmipc.Capability({narrower!r}).use()") == "AccessDenied"
    assert other.value("v.buf[0]") == 0  # what is open stays open
    # For whoever has it; who derives may revoke, what it is derived from stays.
    wide = owner.value("str(b.grant(Rights.READ | Rights.WRITE))")
    third.do(f"w = shmipc.Capability({wide!r}).use(); w.buf[7] = 77; d = w.grant(Rights.READ, uid={B})")
    derived = third.value("str(d)")
    other.do(f"x = shmipc.Capability({derived!r}).use()")
    assert other.value("x.buf[7], v.buf[7], x.buf.readonly") == [77, 77, True]
    third.do("d.revoke()")
    assert other.refused(f"shmipc.Capability({derived!r}).use()") == "AccessDenied"
    # The object's generation: another of the same name is another object.
    owner.do("keep = shmipc.SharedBuffer(1, name='keep'); b.close(); b = shmipc.SharedBuffer(4096, name='old')")
    assert owner.value("b.generation") > generation
    assert other.refused(f"shmipc.Capability({wide!r}).use()") == "AccessDenied"
    for user in (owner, other, third):
        user.do("for name in ('keep', *'vwxb'):\n    if name in globals(): globals()[name].close()")


@pytest.mark.row("M15")
def test_random_tokens_are_refused_one_million_times_and_at_the_socket() -> None:
    buffer = shmipc.SharedBuffer(1)
    real = buffer.grant(Rights.READ)
    keeper = grantor.grantor()
    refused = 0
    for _ in range(1000):
        noise = secrets.token_bytes(32 * 1000)
        for start in range(0, len(noise), 32):
            try:
                keeper.check(real.number, noise[start : start + 32], UID)
            except shmipc.AccessDenied:
                refused += 1
    assert refused == 1_000_000
    assert keeper.check(real.number, real.secret, UID).store.size == 1
    for number in range(500):
        forged = Capability.of(real.owner, real.address, real.instance, number % 3, 1, secrets.token_bytes(32))
        with pytest.raises(shmipc.AccessDenied):
            forged.use()
    for i in range(32):  # one bit wrong
        secret = bytearray(real.secret)
        secret[i] ^= 1 << i % 8
        with pytest.raises(shmipc.AccessDenied):
            Capability.of(real.owner, real.address, real.instance, real.number, 1, bytes(secret)).use()
    real.use().close()
    buffer.close()


@pytest.mark.row("L19")
def test_stranger_who_may_write_can_neither_truncate_nor_seal_nor_widen(owner: User, other: User) -> None:
    owner.do("b = shmipc.SharedBuffer(1 << 20); b.array(1 << 17, 'd')[:] = 1; q = shmipc.ByteQueue()")
    both, read = owner.value("[str(b.grant(Rights.READ | Rights.WRITE)), str(b.grant(Rights.READ))]")
    post = owner.value("str(q.grant(Rights.POST))")
    other.do(f"fds = raw({both!r}, 3); seen = raw({read!r}, 1); lanes = raw({post!r}, 4)")
    assert other.value("len(fds), len(seen), len(lanes)") == [1, 1, 3]
    for size in (0, 4096, 2 << 20):
        assert other.value(f"error_of(lambda: os.ftruncate(fds[0], {size}))") == "PermissionError 1"
        assert other.value(f"error_of(lambda: os.ftruncate(lanes[1], {size}))") == "PermissionError 1"
        assert other.value(f"error_of(lambda: os.ftruncate(seen[0], {size}))") == "OSError 22"
    assert other.value("error_of(lambda: fcntl.fcntl(fds[0], fcntl.F_ADD_SEALS, 8))") == "PermissionError 1"
    assert other.value("error_of(lambda: os.fchmod(seen[0], 0o666))") == "PermissionError 1"
    again = "error_of(lambda: os.open(f'/proc/self/fd/{%s}', os.O_RDWR))"
    for entry in ("seen[0]", "fds[0]", "lanes[0]", "lanes[2]"):
        assert other.value(again % entry) == "PermissionError 13"
    for entry, size in (("seen[0]", 1 << 20), ("lanes[0]", 520), ("lanes[2]", 64)):
        assert other.value(f"error_of(lambda: os.pwrite({entry}, b'x', 0))") == "OSError 9"
        assert other.value(f"error_of(lambda: map_of({entry}, {size}, 3))") == "PermissionError 13"
    # A hole is a way to write zeros; it takes no page from under the reader.
    punch = "ctypes.CDLL(None, use_errno=True).fallocate(fds[0], 3, ctypes.c_long(0), ctypes.c_long(1 << 19))"
    assert other.value(punch) == 0
    assert owner.value("b.array(1 << 17, 'd').sum()") == 1 << 16
    other.do("for n in [*fds, *seen, *lanes]: os.close(n)\nwhile kept: kept.pop().close()")
    owner.do("b.close(); q.close()")


@pytest.mark.row("M14")
def test_other_user_opens_nothing_and_with_a_grant_just_that_object(owner: User, other: User, third: User) -> None:
    owner.do("s = shmipc.System('a'); box = shmipc.Mailbox.create('box', system=s)")
    owner.do(f"m = shmipc.SharedMemory('{NAMESPACE}-m', True, 10)")
    owner.do("b = shmipc.SharedBuffer(100); q = shmipc.ByteQueue(); held = shmipc.SharedBuffer(5); q.post(b'mine')")
    files = owner.value(f"[n for n in os.listdir('/dev/shm') if os.stat('/dev/shm/' + n).st_uid == {A}]")
    assert any(name.endswith(".life") for name in files)
    assert len(files) >= 4
    text, post = owner.value(f"[str(b.grant(Rights.READ, uid={B})), str(q.grant(Rights.POST, uid={B}))]")
    other.do(f"v = shmipc.Capability({text!r}).use(); p = shmipc.Capability({post!r}).use(); fds = raw({text!r}, 1)")
    for name in files:
        for flags in (os.O_RDONLY, os.O_RDWR):
            assert other.value(f"error_of(lambda: os.open('/dev/shm/{name}', {flags}))") == "PermissionError 13"
        assert other.value(f"error_of(lambda: os.unlink('/dev/shm/{name}'))") == "PermissionError 1"
    assert other.refused("shmipc.System.attach('a')") == "NotFound"
    assert other.value(f"error_of(lambda: shmipc.SharedMemory('{NAMESPACE}-m'))").startswith("AccessDenied")
    assert other.value(f"error_of(lambda: os.listdir('/proc/{owner.pid}/fd'))") == "PermissionError 13"
    assert other.value(f"error_of(lambda: open('/proc/{owner.pid}/mem', 'rb'))") == "PermissionError 13"
    # Whatever socket of his processes one connects to: there is nothing to be had.
    inodes = set()
    for pid in [owner.pid, *(child.pid for child in psutil.Process(owner.pid).children(recursive=True))]:
        for entry in os.listdir(f"/proc/{pid}/fd"):
            inodes.update(re.findall(r"socket:\[(\d+)\]", os.readlink(f"/proc/{pid}/fd/{entry}")))
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    abstract = [(line[7][1:], int(line[4], 16)) for line in lines if len(line) > 7 and line[6] in inodes]
    assert len(abstract) >= 2  # the door at which its user asks for stacks, the grantor
    for name, kind in abstract:
        knock = f"(lambda s: [s.settimeout(5), s.connect(b'\\0' + {name!r}.encode()), s.send(b'x'), s.recv(9000)][-1])"
        told = other.value(f"(lambda d: [len(d or b''), b'File' in d])({knock}(socket.socket(1, {kind})))")
        assert told[1] is False
    # Just that object: the descriptors it holds of the owner's are the one it was granted.
    assert other.value("[os.readlink(f'/proc/self/fd/{n}') for n in fds]") == ["/memfd:shmipc buffer (deleted)"]
    assert third.refused(f"shmipc.Capability({text!r}).use()") == "AccessDenied"
    # A pickle stays bytes, on both sides.
    bomb = pickle.dumps(Bomb())
    other.do(f"p.post({bomb!r})")
    assert owner.value("q.receive(5) == b'mine'") is True
    assert owner.value(f"(lambda d: [d.body == {bomb!r}, d.uid])(q.receive_from(5))") == [True, B]
    answers = owner.value(f"error_of(lambda: rights.Request.unpack({bomb!r}))")
    assert answers == "InvalidArgument"
    assert other.value(f"error_of(lambda: rights.Answer.unpack({bomb!r}))") == "Corrupted"
    assert owner.refused("pickle.dumps(b)") == "NotSupported"
    # Liveness: his end ends with him alone, and by the kernel's word.
    assert owner.value("q._store.board.poster(1)") == [B, 1]
    other.do("p.close()")
    owner.do(f"while q._store.board.poster(1) != ({B}, 2): time.sleep(0.001)")
    other.do("v.close(); os.close(fds[0]); kept.clear()")
    owner.do("[entry.close() for entry in (b, q, held, m)]; box.close(); s.shutdown()")


class Bomb:
    """Its unpickling would not go unseen."""

    def __reduce__(self) -> Any:
        return os.abort, ()


def test_hostile_poster_spoils_his_lane_and_no_other(owner: User, other: User, third: User) -> None:
    owner.do("q = shmipc.ByteQueue(8, 64)")
    post = owner.value("str(q.grant(Rights.POST))")
    third.do(f"p = shmipc.Capability({post!r}).use(); p.post(b'before')")
    other.do(f"fds = raw({post!r}, 4); mine = map_of(fds[1], os.fstat(fds[1]).st_size, 3)")
    # Positions that cannot be, and a length that leads out of the lane.
    assert owner.value("q.receive(5).decode()") == "before"
    other.do("mine[0:8] = (1 << 40).to_bytes(8, 'little')")
    assert owner.refused("q.receive(0)") == "Corrupted"
    third.do("p.post(b'after')")
    assert owner.value("q.receive(5).decode()") == "after"
    assert owner.refused("q.receive(0)") == "MailboxEmpty"  # it is said once, the lane is shut
    other.do("[os.close(n) for n in fds]; kept.pop().close()")
    # Another of his: the lane is his for good, so he spoils it again; a third user's is not touched.
    other.do(f"fds = raw({post!r}, 4); mine = map_of(fds[1], os.fstat(fds[1]).st_size, 3)")
    owner.do("q.close(); q = shmipc.ByteQueue(8, 64)")
    post = owner.value("str(q.grant(Rights.POST))")
    other.do(f"[os.close(n) for n in fds]; kept.pop().close(); fds = raw({post!r}, 4)")
    other.do("mine = map_of(fds[1], os.fstat(fds[1]).st_size, 3); mine[64:68] = b'\\xff' * 4; mine[0] = 1")
    assert owner.refused("q.receive(0)") == "Corrupted"
    other.do("mine.close(); [os.close(n) for n in fds]; kept.pop().close()")
    # A hostile reader does no harm to the poster but refuse his messages.
    owner.do("q.close(); q = shmipc.ByteQueue(8, 64); r = q.grant(Rights.READ)")
    other.do(f"fds = raw({owner.value('str(r)')!r}, 1); head = map_of(fds[2], 64, 3)")
    owner.do("q.post(b'x')")
    other.do("head[0:8] = (1 << 63).to_bytes(8, 'little')")
    assert owner.refused("q.post(b'y', 0)") == "Corrupted"
    assert other.value("error_of(lambda: map_of(fds[1], 64, 3))") == "PermissionError 13"
    assert owner.refused("q.receive(0)") == "WouldBlock"  # another reads
    other.do("head.close(); [os.close(n) for n in fds]; kept.pop().close()")
    third.do("p.close()")
    owner.do("q.close()")


def test_silent_crowd_and_squatters_do_not_keep_others_out(owner: User, other: User, third: User) -> None:
    owner.do("b = shmipc.SharedBuffer(10, name='open')")
    text = owner.value("str(b.grant(Rights.READ))")
    other.do(
        "crowd = []\n"
        f"address = b'\\0' + shmipc.Capability({text!r}).address.encode()\n"
        "for n in range(300):\n"
        "    s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.settimeout(1)\n"
        "    try: s.connect(address)\n"
        "    except OSError: pass\n"
        "    if n % 3 == 1: error_of(lambda: s.send(b'no request at all'))\n"
        "    if n % 3 == 2: error_of(lambda: s.send(os.urandom(rights.REQUEST.size)))\n"
        "    crowd.append(s)\n"
    )
    for _ in range(5):
        third.do(f"shmipc.Capability({text!r}).use(timeout=5).close()")
    assert owner.value("len([1 for v in grantor.grantor().visitors.values()])") <= grantor.VISITORS
    other.do("[s.close() for s in crowd]; crowd.clear()")
    # Somebody sits at the name first.
    name = rights.named_address(A, "taken")
    other.do(f"s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.bind({name!r}); s.listen()")
    assert owner.refused("shmipc.SharedBuffer(10, name='taken')") == "NameTaken"
    assert third.refused(f"shmipc.SharedBuffer.open('taken', owner={A})") == "AccessDenied"
    other.do("s.close()")
    owner.do("shmipc.SharedBuffer(10, name='taken').close(); b.close()")


def serve_once(answer: bytes, descriptors: list[int]) -> tuple[socket.socket, int]:
    """A grantor of our own making: where it listens, and its process."""
    door = grantor.listen(b"")
    door.setblocking(True)
    child = os.fork()
    if child == 0:
        try:
            connection, _ = door.accept()
            connection.recv(1000)
            socket.send_fds(connection, [answer], descriptors)
        finally:
            os._exit(0)
    return door, child


@pytest.mark.row("L19")
def test_hostile_owner_is_refused_before_anything_of_his_is_mapped() -> None:
    def read_only(number: int) -> int:
        return os.open(f"/proc/self/fd/{number}", os.O_RDONLY)

    files = [os.memfd_create("plain", os.MFD_ALLOW_SEALING) for _ in range(2)]
    for file in files:
        os.ftruncate(file, 100)
    fcntl.fcntl(files[1], fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
    buffer = shmipc.SharedBuffer(100)
    good = rights.Answer(kind=1, rights=1, size=100)
    store: Any = buffer._store
    writable = store.memory.number
    plain, half, sealed = made = [read_only(number) for number in (*files, writable)]
    cases: list[tuple[str, bytes, list[int]]] = [
        ("seals 0x0", good.pack(), [plain]),  # he would truncate it under us
        ("seals 0x4", good.pack(), [half]),
        ("something else", good.pack(), [0]),
        ("access mode 2", good.pack(), [writable]),  # and not asked for
        ("passed 0 descriptors", good.pack(), []),
        ("passed 2 descriptors", good.pack(), [sealed, sealed]),
        ("100 bytes of sealed memory and said 4096", good._replace(size=4096).pack(), [sealed]),
        ("100 bytes of sealed memory and said 64", good._replace(size=64).pack(), [sealed]),
        ("was asked for .*READ: 1", good._replace(rights=3).pack(), [sealed]),
        ("slots is 0", good._replace(kind=2).pack(), [sealed]),
        ("1 descriptors for a queue", good._replace(kind=2, slots=2, slot_bytes=8, posters=1).pack(), [sealed]),
        ("kind 9", good._replace(kind=9).pack(), []),
        ("slots is 1073741824", good._replace(kind=2, slots=1 << 30, slot_bytes=1 << 20, posters=4).pack(), [sealed]),
        ("13 bytes is no answer", b"\x80\x05." + bytes(10), []),
    ]
    for text, answer, descriptors in cases:
        door, child = serve_once(answer, descriptors)
        address = door.getsockname()[1:].decode()
        with pytest.raises(shmipc.Corrupted, match=text):
            Capability.of(UID, address, 1, 1, 1, bytes(32)).use()
        door.close()
        os.waitpid(child, 0)
    for number in (*files, *made):
        os.close(number)
    buffer.close()


def test_owner_ends_and_what_is_open_stays_while_the_rest_is_told(other: User, eventually: Eventually) -> None:
    with User(1) as gone:
        gone.do("b = shmipc.SharedBuffer(100, name='b'); b.buf[5] = 5; q = shmipc.ByteQueue(2, 8, name='q')")
        text = gone.value("str(b.grant(Rights.READ | Rights.WRITE))")
        post, read = gone.value("[str(q.grant(Rights.POST)), str(q.grant(Rights.READ))]")
        other.do(f"v = shmipc.Capability({text!r}).use(); p = shmipc.Capability({post!r}).use()")
        other.do(f"r = shmipc.Capability({read!r}).use(); p.post(b'1')")
        assert other.refused(f"shmipc.Capability({read!r}).use()") == "WouldBlock"
        gone.stop()
        assert other.refused(f"shmipc.Capability({text!r}).use(timeout=0.1)") == "Timeout"
        assert other.refused("r.receive(0.01); r.receive(0.01)") == "Timeout"
        other.do("p.post(b'2')")
        other.begin("error_of(lambda: [r.receive(60), r.receive(60)])")
        gone.kill()
        assert other.answer() == "PeerDead"
        assert other.refused(f"shmipc.Capability({text!r}).use()") == "PeerDead"
        assert other.refused(f"shmipc.Capability({text!r}).describe()") == "PeerDead"
        assert other.refused(f"shmipc.SharedBuffer.open('b', owner={A})") == "NotFound"
        other.do("v.buf[6] = 6; p.post(b'3'); p.post(b'4')")
        assert other.value("v.buf[5], v.buf[6], len(p), r.receive(0).decode()") == [5, 6, 2, "3"]
        other.do("p.post(b'5')")
        assert other.refused("p.post(b'6')") == "PeerDead"
        other.do("v.close(); p.close(); r.close()")


def test_poster_and_reader_that_end_free_their_ends_and_nothing_is_lost(
    owner: User, third: User, eventually: Eventually
) -> None:
    owner.do("q = shmipc.ByteQueue(4, 8, posters=1)")
    post, read = owner.value("[str(q.grant(Rights.POST)), str(q.grant(Rights.READ))]")
    with User(2) as first:
        first.do(f"p = shmipc.Capability({post!r}).use(); r = shmipc.Capability({read!r}).use()")
        first.do("[p.post(bytes([65 + n])) for n in range(4)]")
        assert first.value("r.receive(5).decode()") == "A"
        first.do("p.post(b'E')")
        first.begin("error_of(lambda: p.post(b'F'))")
        first.kill()
    with User(2) as again:

        def has_come(what: str) -> bool:
            try:
                again.do(what)
            except Refused as error:
                if error.kind != "WouldBlock":
                    raise
                return False
            return True

        eventually(lambda: has_come(f"p = shmipc.Capability({post!r}).use()"), 20)
        eventually(lambda: has_come(f"r = shmipc.Capability({read!r}).use()"), 20)
        assert again.value("[r.receive(5).decode() for _ in range(4)]") == ["B", "C", "D", "E"]
        assert third.refused(f"shmipc.Capability({post!r}).use()") == "WouldBlock"
        again.do("[p.post(bytes([97 + n])) for n in range(4)]")
        assert again.refused("p.post(b'e', 0)") == "MailboxFull"
    # His lane and his reading end are given to nobody else.
    assert third.refused(f"shmipc.Capability({post!r}).use()") == "WouldBlock"
    assert third.refused(f"shmipc.Capability({read!r}).use()") == "AccessDenied"
    owner.do("q.close()")


@pytest.mark.parametrize("point", [point for point in _native.KILL_POINTS if point.startswith("lane_")])
def test_other_end_goes_on_when_a_user_dies_in_a_lane_at(other: User, point: str) -> None:
    with shmipc.ByteQueue(4, 8, posters=2) as queue:
        posts, reads = str(queue.grant(Rights.POST, uid=B)), str(queue.grant(Rights.READ, uid=B))
        takes = point in ("lane_take", "lane_taken")
        with User(2) as victim:
            victim.do(f"p = shmipc.Capability({(reads if takes else posts)!r}).use()")
            if takes:
                for number in range(4):
                    queue.post(bytes([number]))
            victim.do(f"_native.kill_point_arm({point!r}, 2, signal.SIGKILL)")
            victim.begin("[p.receive(9) for n in range(3)]" if takes else "[p.post(bytes([n])) for n in range(3)]")
            assert victim.child.wait(20) == -signal.SIGKILL
        if takes:
            seen: list[int] = []
            while len(seen) < 4 and (not seen or seen[-1] < 3):
                try:
                    seen += queue.receive(20)
                except shmipc.WouldBlock:
                    continue  # the grantor has yet to see his end
            assert seen == ([1, 2, 3] if point == "lane_take" else [2, 3])
        else:
            there = 2 if point == "lane_posted" else 1
            assert [queue.receive(20)[0] for _ in range(there)] == list(range(there))
            with pytest.raises(shmipc.MailboxEmpty):
                queue.receive(0)
            other.do(f"p = shmipc.Capability({posts!r}).use(); p.post(b'next'); p.close()")
            assert queue.receive(20) == b"next"


def test_forked_child_holds_no_end_and_gives_nothing_out(owner: User, other: User) -> None:
    owner.do("q = shmipc.ByteQueue(2, 8)")
    post = owner.value("str(q.grant(Rights.POST))")
    fork = (
        "import threading\n"
        "ready, go = os.pipe(), os.pipe()\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    told = [error_of(%s)]\n"
        "    os.write(ready[1], json.dumps(told).encode())\n"
        "    os.read(go[0], 1); os._exit(0)\n"
        "told = json.loads(os.read(ready[0], 1000))"
    )
    with User(2) as parent:
        parent.do(f"p = shmipc.Capability({post!r}).use(); p.post(b'1')")
        parent.do(fork % "lambda: p.post(b'2')")
        assert parent.value("told") == ["ForkedHandle"]
        child = parent.value("child")
        parent.kill()
        assert os.path.exists(f"/proc/{child}")  # and the end of its parent is free all the same
        owner.do(f"while q._store.board.poster(0) != ({B}, 2): time.sleep(0.001)")
        os.kill(child, signal.SIGKILL)
    with User(1) as forks:
        forks.do("b = shmipc.SharedBuffer(9, name='forks'); c = b.grant(Rights.READ); b.buf[0] = 4")
        text = forks.value("str(c)")
        forks.do(fork % "lambda: b.grant(Rights.READ)")
        assert forks.value("told") == ["ForkedHandle"]
        child = forks.value("child")
        other.do(f"v = shmipc.Capability({text!r}).use()")
        forks.kill()
        assert other.refused(f"shmipc.Capability({text!r}).use()") == "PeerDead"  # no child sits at the address
        assert other.refused(f"shmipc.SharedBuffer.open('forks', owner={A})") == "NotFound"
        assert other.value("v.buf[0]") == 4
        os.kill(child, signal.SIGKILL)
    other.do("v.close()")
    owner.do("q.close()")


def grantors() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "shmipc grantor"]


def test_threads_use_and_close_at_once_and_no_descriptor_stays() -> None:
    assert wait_until(lambda: not grantors(), 10)  # that of the last test
    before = len(os.listdir("/proc/self/fd"))
    faults: list[Exception] = []

    def work(number: int) -> None:
        try:
            for turn in range(10):
                with shmipc.SharedBuffer(100) as buffer, shmipc.ByteQueue(4, 8, posters=2) as queue:
                    token = buffer.grant(Rights.READ | Rights.WRITE)
                    with token.use() as mine, queue.grant(Rights.POST).use() as posts:
                        mine.buf[1] = number
                        assert buffer.buf[1] == number
                        posts.post(bytes([turn]))
                        assert queue.receive(9) == bytes([turn])
                    token.revoke()
                    with pytest.raises(shmipc.AccessDenied):
                        token.use()
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    dropped = shmipc.SharedBuffer(100, name="dropped")
    dropped.array(3)[:] = 1
    kept: Any = dropped.array(3)
    assert shmipc.SharedBuffer.open("dropped").array(3).sum() == 3
    del dropped
    assert wait_until(lambda: not grantors(), 10)
    assert len(os.listdir("/proc/self/fd")) == before
    assert kept.sum() == 3
    with pytest.raises(shmipc.NotFound):
        shmipc.SharedBuffer.open("dropped")


def test_what_is_granted_used_and_refused_is_logged_without_its_token(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "shmipc.rights"), shmipc.SharedBuffer(10, name="logged") as buffer:
        buffer.allow(Rights.READ, uid=B)
        token = buffer.grant(Rights.READ, uid=UID)
        token.use().close()
        derived = token.derive(Rights.READ)
        derived.revoke()
        token.revoke()
        for _ in range(40):
            with pytest.raises(shmipc.AccessDenied):
                token.use()
    told = caplog.text
    me = f"pid {os.getpid()} of uid {UID}"
    for line in ("'logged' published", f"uid={B}", f"READ: 1> for uid {UID}", f"used with <Rights.READ: 1>, by {me}"):
        assert line in told, line
    assert "derived from grant" in told
    assert "revoked, by" in told
    assert told.count(f"refused {me}") == grantor.REFUSALS
    assert token.secret.hex() not in told
    assert token.secret.hex() not in repr(token)
    again = pickle.loads(pickle.dumps(token))
    assert (again, hash(again)) == (token, hash(token))
    assert derived.authority is not None
    assert pickle.loads(pickle.dumps(derived)).authority is None, "that has the wider one's secret"
    assert Capability(f" {token}\n") == token
    secret = token.secret.hex()
    wider = str(token).replace(f":1:{secret}", f":9:{secret}")
    for text in ("", "shmipc-capability-1", str(token)[:-1], str(token) + "0", wider):
        with pytest.raises(shmipc.InvalidArgument):
            Capability(text)


def test_wrong_arguments_are_told_before_anything_is_made() -> None:
    with pytest.raises(shmipc.InvalidArgument, match="least is 1"):
        shmipc.SharedBuffer(0)
    with pytest.raises(shmipc.InvalidArgument, match="buffer has"):
        shmipc.SharedBuffer(1, access=[Access(Rights.POST, uid=1)])
    with pytest.raises(shmipc.InvalidArgument, match="name"):
        shmipc.SharedBuffer(1, name="a/b")
    with pytest.raises(shmipc.LimitExceeded):
        shmipc.ByteQueue(posters=65)
    for arguments in ({}, {"uid": 1, "gid": 1}, {"uid": -1}, {"gid": 1 << 32}):
        with pytest.raises(shmipc.InvalidArgument, match=r"uid|gid"):
            Access(Rights.READ, **arguments)  # type: ignore[arg-type]
    with shmipc.SharedBuffer(10, name="one") as buffer, shmipc.ByteQueue(2, 4) as queue:
        for rights_ in (Rights(0), Rights.WRITE, Rights.READ | Rights.POST, 8):
            with pytest.raises(shmipc.InvalidArgument, match="rights"):
                buffer.grant(rights_)  # type: ignore[arg-type]
        with pytest.raises(shmipc.NameTaken):
            shmipc.SharedBuffer(1, name="one")
        with pytest.raises(shmipc.InvalidArgument, match="names a buffer"):
            shmipc.ByteQueue.open("one")
        with pytest.raises(shmipc.InvalidArgument):
            buffer.array(11)
        with pytest.raises(shmipc.InvalidArgument, match="objects"):
            buffer.array(1, object)
        with pytest.raises(shmipc.TooLarge):
            queue.post(b"12345")
        with pytest.raises(TypeError):
            queue.post("text")
        with pytest.raises(shmipc.Timeout):
            queue.receive(0.01)
        queue.post(np.arange(2, dtype=np.uint16))
        assert queue.receive() == bytes([0, 0, 1, 0])
    for entry in (lambda: buffer.buf, lambda: buffer.grant(Rights.READ), lambda: queue.post(b""), lambda: len(queue)):
        with pytest.raises(shmipc.Closed):
            entry()


def test_requests_of_any_content_are_answered_or_refused_and_the_grantor_goes_on() -> None:
    chance, kinds = random.Random(7), set()
    with shmipc.SharedBuffer(100) as buffer, shmipc.ByteQueue(2, 8, posters=2, name="any") as queue:
        tokens = [buffer.grant(Rights.READ), queue.grant(Rights.READ | Rights.POST)]
        for _ in range(300):
            token = chance.choice(tokens)
            request = rights.Request(
                verb=chance.choice([1, 2, 3, 4, 5, 0, 1 << 31]),
                instance=token.instance,
                number=token.number,
                secret=token.secret,
                rights=chance.choice([0, 1, 2, 3, 4, 5, 7, 8, 1 << 31, (1 << 32) - 1]),
                uid=chance.choice([-1, 0, 5, -(1 << 63), (1 << 63) - 1]),
                target=chance.choice([0, 1, 2, tokens[0].number + 900, (1 << 64) - 1]),
                name=chance.choice([b"", b"any", b"\xff" * 64]),
            )
            address = chance.choice([b"\0" + token.address.encode(), rights.named_address(UID, "any")])
            try:
                rights.ask(address, UID, request, 5.0, named=True).close()
            except shmipc.ShmipcError as error:
                kinds.add(type(error))
        assert kinds - {shmipc.WouldBlock} == {shmipc.AccessDenied, shmipc.InvalidArgument, shmipc.NotFound}
        assert tokens[0].use().buf.readonly
        assert tokens[1].describe().uses > 0


def test_program_that_closes_all_its_descriptors_has_a_new_grantor_for_the_next_object() -> None:
    with User(1) as closes:
        closes.do("b = shmipc.SharedBuffer(5, name='b'); q = shmipc.ByteQueue(2, 8); c = q.grant(Rights.POST)")
        closes.do("b.buf[0] = 1; q.post(b'1')")
        closes.do("os.closerange(3, 1000); mine = [os.memfd_create(str(n)) for n in range(30)]")
        assert closes.value("b.buf[0], q.receive(5).decode()") == [1, "1"]
        assert closes.refused("c.use()") in ("PeerDead", "Closed")
        closes.do("with shmipc.SharedBuffer(5, name='next') as n: n.grant(Rights.READ).use().close()")
        closes.do("b.close(); q.close()")
        assert closes.value("[os.fstat(n).st_size for n in mine] == [0] * 30")


def test_more_than_there_is_is_refused_before_it_is_touched() -> None:
    with pytest.raises(shmipc.OutOfMemory, match="free") as error:
        shmipc.SharedBuffer(1 << 40)
    assert error.value.needed == 1 << 40
    assert 0 < error.value.free < 1 << 40


class Interruption(Exception):
    """What a signal handler raises."""


def at_opcode(number: int, act: Callable[[], object]) -> Callable[[FrameType, str, Any], Any]:
    """For `sys.settrace`: does something once, before so many instructions of the queues' module have run."""
    left = [number]

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename != byte_queues.__file__:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            left[0] -= 1
            if left[0] == 0:
                act()
        return trace

    return trace


def interrupted_at(number: int, act: Callable[[], object]) -> bool:
    """Was it ended by what a signal handler raised behind so many instructions?"""

    def interrupt() -> None:
        raise Interruption

    before = sys.gettrace()
    sys.settrace(at_opcode(number, interrupt))
    try:
        act()
    except Interruption:
        return True
    finally:
        sys.settrace(before)
    return False


def test_queue_is_of_use_wherever_a_signal_handler_has_raised() -> None:
    number, interrupted = 0, True
    while interrupted:
        number += 1
        with shmipc.ByteQueue(16, 8, posters=1) as queue:
            interrupted = False
            for turn in range(2):  # the first opens the end, the second finds it open
                interrupted |= interrupted_at(number, lambda: queue.post(b"x", 5))
                queue.post(b"y", 0)
                queue.post(b"z", 0)
                interrupted |= interrupted_at(number, lambda: queue.receive(5))
                found = []
                while len(queue):
                    found.append(queue.receive(0))
                assert found[-1] == b"z", (number, turn)
    assert number > 50


def test_no_message_is_lost_when_a_signal_handler_raises_behind_its_taking() -> None:
    with shmipc.ByteQueue(16, 8, posters=1) as queue, queue.grant(Rights.POST).use() as posts:
        posts.post(b"0")
        queue.receive(5)
        found: list[bytes] = []
        places = 0
        posts.post(b"1")
        for places in each_place(lambda: found.append(queue.receive(5)), byte_queues):
            posts.post(b"2")
            assert len(queue) == 2 - len(found), places
            while len(queue):
                found.append(queue.receive(5))
            assert found == [b"1", b"2"], places
            found.clear()
            posts.post(b"1")
    assert places > 5


def test_message_of_an_owner_who_dies_before_he_wakes_its_reader_wakes_him(monkeypatch: pytest.MonkeyPatch) -> None:
    """No slice of a wait ends meanwhile, and nobody lives who could tell."""
    monkeypatch.setattr(byte_queues, "SLICE", 30.0)
    with User(1) as dies:
        dies.do("q = shmipc.ByteQueue(2, 8)")
        with Capability(dies.value("str(q.grant(Rights.READ))")).use() as queue:
            found: list[bytes] = []
            reader = threading.Thread(target=lambda: found.append(queue.receive(60.0)))
            reader.start()
            state = Path(f"/proc/self/task/{reader.native_id}/stat")
            assert wait_until(lambda: ") S " in state.read_text(), 10)
            dies.do("_native.kill_point_arm('lane_posted', 1, signal.SIGKILL)")
            dies.begin("q.post(b'last')")
            reader.join(20.0)
            assert found == [b"last"]
            with pytest.raises(shmipc.PeerDead):
                queue.receive(5.0)


def test_length_is_told_while_others_post_and_take() -> None:
    with shmipc.ByteQueue(1, 8, posters=1) as queue:
        with queue.grant(Rights.READ).use() as reads, queue.grant(Rights.POST).use() as posts:

            def move() -> None:
                posts.post(b"x", 0)
                assert reads.receive(0) == b"x"
                posts.post(b"y", 0)

            for number in range(1, 200):
                before = sys.gettrace()
                sys.settrace(at_opcode(number, move))
                try:
                    assert len(queue) in (0, 1), number
                finally:
                    sys.settrace(before)
                if not len(queue):
                    assert number > 20
                    break
                assert reads.receive(0) == b"y"
            assert len(queue) == 0, "it was disturbed at each place"


def test_longest_name_in_the_longest_namespace_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHMIPC_NAMESPACE", f"n{os.getpid()}".ljust(32, "n"))  # of this worker alone
    name = "m" * 64
    with pytest.raises(shmipc.NotFound):
        shmipc.SharedBuffer.open(name)
    with shmipc.SharedBuffer(10, name=name) as buffer, shmipc.SharedBuffer(20, name=name[1:] + "k"):
        with shmipc.SharedBuffer.open(name) as found:
            assert (found.size, found.generation, found.name) == (10, buffer.generation, name)
        with pytest.raises(shmipc.NameTaken):
            shmipc.SharedBuffer(1, name=name)


def test_second_revoke_is_idempotent_of_what_was_derived_alone() -> None:
    with shmipc.SharedBuffer(10) as buffer:
        token = buffer.grant(Rights.READ)
        derived = token.derive(Rights.READ)
        for _ in range(2):
            derived.revoke()
        token.revoke()
        with pytest.raises(shmipc.AccessDenied):
            token.revoke()
