"""The zygote: a small process, executed fresh for each creating process, that forks its workers.

It has imported numpy, cloudpickle and shmipc and keeps one task, so a fork is cheap and safe; when it finds a
second task, or a fresh interpreter is wanted, it executes one instead. It waits for its children and writes their
wait statuses into the member table. When a creator or a root ends it kills their workers, stopped ones too. It is
a member of no system: when it dies alone, workers go on and the next spawn starts another.

After a start it forks a spare child ahead, which has gone through what every worker does first and waits for its
request; most of a start is pages copied because they are touched for the first time after the fork. Who starts no
more for a while has no spare.
"""

import functools
import gc
import importlib
import logging
import os
import pickle
import resource
import select
import selectors
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import cloudpickle
import numpy as np
import numpy.random

from shmipc import _native
from shmipc.actor import refs
from shmipc.base import oom
from shmipc.base.errors import ShmipcError
from shmipc.memory import segments
from shmipc.runtime import worker
from shmipc.runtime.requests import Request, receive_request, send_answer, send_request

CREATOR_SECONDS = 5.0
SPARE_SECONDS = 10.0  # that a spare child is kept after a start
STATUS_SECONDS = 0.5  # for the kernel to tell how an ended child did
HANDOVER_SECONDS = 1.0  # for a spare child to take a request; a stopped one never does
PRELOADED = (cloudpickle, np, numpy.random)
ROUNDS = 10
UNUSED = "colorsys"  # a small module that nothing here needs
POOL_BYTES, POOL_HEAD_BYTES = 16384, 48  # of CPython's small objects
STATE_WORDS = 624  # of numpy's legacy generator, a Mersenne twister
MOST_HOLES, SURE = 2000, 4  # objects of one size; so many in a row are no accident

holes: list[object] = []

BOOT_WORKER = (
    "import sys; descriptor = int(sys.argv[1]); sys.path[:] = sys.argv[2:]; sys.argv[1:] = [];"
    "from shmipc.runtime.worker import main; main(descriptor)"
)


@dataclass
class Child:
    """A worker of this zygote; ``segment`` is where its status is to be written, ``root`` whose end ends it."""

    pid: int
    pidfd: int
    id: int
    segment: int
    root: int | None


@dataclass
class Spare:
    """A child that waits for a request at the other end of ``connection``."""

    pid: int
    pidfd: int
    connection: socket.socket

    def hand_over(self, request: Request) -> bool:
        """Give it the request; False when it has gone or does not move, and it is killed then."""
        try:
            with self.connection:
                self.connection.settimeout(HANDOVER_SECONDS)
                send_request(self.connection, request)
                if self.connection.recv(1):
                    return True
        except OSError:
            pass
        self.end()
        return False

    def end(self) -> None:
        self.connection.close()
        try:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass
        wait_for(self.pid, self.pidfd)
        os.close(self.pidfd)


def main(connection: int, creator: int) -> NoReturn:
    """Be the zygote. ``connection``: socket to the creator; ``creator``: its pidfd."""
    for descriptor in (connection, creator):  # a worker that it executes would keep the creator waiting after its death
        os.set_inheritable(descriptor, False)
    worker.find_libraries()
    oom.kills.find()
    warm_up()  # which does away with what these are set to next
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends when its creator has, and cleans up then
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # of a group in the background: what it prints must not stop it
    worker.set_title("zygote")
    gc.collect()
    holes.extend(fill_holes())
    _native.fill_heap()
    gc.freeze()  # so that the collector does not copy shared pages
    code = 1
    try:
        Zygote(socket.socket(fileno=connection), creator).run()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def warm_up() -> None:
    """Do what every worker does first, as often as it takes until the interpreter has specialised its code."""
    umask = os.umask(0o77)
    os.umask(umask)
    for _ in range(ROUNDS):
        request = Request(
            id=0,
            system="",
            life_path="",
            fresh=False,
            executable="",
            flags=[],
            cwd=".",
            path=sys.path,
            env=dict(os.environb),
            umask=umask,
            log_level=logging.getLogger().level,
            threads=1,
            group=0,
            creator_is_root=False,
        )
        worker.rehearse(Request.decoded(request.encoded()))
        pickle.loads(pickle.dumps((Zygote, (), {}, worker.Settings())))
        refs.describe(Zygote)
        path, sys.path[:] = sys.path[:], [os.path.dirname(os.__file__)]  # a user's module of that name is not run
        importlib.import_module(UNUSED)
        del sys.modules[UNUSED]
        sys.path[:] = path


def fill_holes() -> list[object]:
    """Objects for the places that are free between others, to be kept.

    What a child makes would come into them, each into another page, which is copied for it; without them it lies
    together. CPython keeps objects of one size, up to 512 bytes, in pools, and takes an unused one when all others are
    full: one that is filled from its beginning was not used before. Where no such pool is found nothing is kept. Larger
    objects are malloc's, see `_native.fill_heap`.
    """
    kept: list[object] = []
    for size in range(16, 513, 16):
        made: list[object] = []
        row = last = 0
        while row < SURE and len(made) < MOST_HOLES:
            # An empty object has 16 bytes, a float 24, an empty bytes 33.
            made.append(object() if size == 16 else len(made) + 0.5 if size == 32 else bytes(size - 33))
            place = id(made[-1])
            row = 1 if place % POOL_BYTES == POOL_HEAD_BYTES else row + 1 if row and place == last + size else 0
            last = place
        if row == SURE:
            kept += made
    return kept


def reseed() -> None:
    """In a child: another state of numpy's own generator, all of it; `random` does so by itself."""
    words: Any = memoryview(os.urandom(4 * STATE_WORDS)).cast("I")
    np.random.set_state(("MT19937", words, STATE_WORDS, 0, 0.0))


class Zygote:
    """The zygote's loop."""

    def __init__(self, connection: socket.socket, creator: int) -> None:
        self.connection = connection
        self.creator = creator
        self.children: dict[int, Child] = {}  # by pidfd
        self.deserted = False  # has the creator ended without a farewell?
        self.connected = True
        self.spare: Spare | None = None
        self.spare_until = 0.0
        self.last: Request | None = None  # the next one will be much like it
        self.files = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (self.files[1], self.files[1]))  # each child takes three
        self.selector = selectors.DefaultSelector()
        self.selector.register(connection, selectors.EVENT_READ)
        self.selector.register(creator, selectors.EVENT_READ)

    def run(self) -> None:
        """Serve until the creator has ended or hung up, and no child is left."""
        while self.connected or self.children:
            events = self.selector.select(self.spare_patience())
            for key, _ in events:
                if self.selector.get_map().get(key.fileobj) is key:  # else an event before this one ended it
                    self.handle(key)
            if not events:
                self.keep_spare()
        if self.deserted:
            end = select.poll()
            end.register(self.creator, select.POLLIN)
            end.poll(CREATOR_SECONDS * 1000)  # his connection ends before he does
        try:
            segments.sweep()  # what the dead have left, those too that died after their root had left
        except (ShmipcError, OSError):
            pass  # the next start does it

    def handle(self, key: selectors.SelectorKey) -> None:
        if key.fileobj is self.connection:
            self.serve()
        elif key.fd == self.creator:
            self.selector.unregister(self.creator)
            self.deserted = True
            self.hang_up()
            self.kill(list(self.children.values()))
        elif key.fd in self.children:
            self.reap(self.children[key.fd])
        else:
            self.selector.unregister(key.fd)
            self.kill([child for child in self.children.values() if child.root == key.data])

    def hang_up(self) -> None:
        if self.connected:
            self.connected = False
            self.selector.unregister(self.connection)
            self.connection.close()
        self.drop_spare()

    def kill(self, children: list[Child]) -> None:
        """SIGKILL: it also ends what is stopped."""
        for child in children:
            try:
                signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def reap(self, child: Child) -> None:
        """A child has ended: write its status, forget it."""
        status = wait_for(child.pid, child.pidfd)
        if status is None:
            self.forget(child)  # only the keeper can have learnt it
            return
        if _native.process_status(child.pidfd) == status:
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        reason = "signal" if os.WIFSIGNALED(status) else "exited"
        try:
            _native.say_status(child.segment, child.id, reason, status)
        except ShmipcError:
            pass  # the system has gone
        self.forget(child)

    def forget(self, child: Child) -> None:
        self.selector.unregister(child.pidfd)
        del self.children[child.pidfd]
        os.close(child.pidfd)
        os.close(child.segment)
        if child.root is not None:
            if child.root in self.selector.get_map():
                self.selector.unregister(child.root)
            os.close(child.root)

    def serve(self) -> None:
        """Start one worker."""
        try:
            request = receive_request(self.connection)
        except (EOFError, OSError):
            self.deserted = True
            self.hang_up()
            return
        if request is None:
            self.hang_up()
            return
        held = request.descriptors
        try:
            pid, pidfd = self.start(request)
        except Exception as error:
            for descriptor in held.values():
                os.close(descriptor)
            self.answer(-1, None, f"cannot start a worker: {error}")
            return
        child = Child(pid, pidfd, request.id, held.pop("segment"), held.pop("root", None))
        for descriptor in held.values():
            os.close(descriptor)
        self.children[child.pidfd] = child
        self.selector.register(child.pidfd, selectors.EVENT_READ)
        if child.root is not None:
            self.selector.register(child.root, selectors.EVENT_READ, child.root)
        self.answer(pid, child.pidfd)

    def start(self, request: Request) -> tuple[int, int]:
        """Pid and pidfd of a process for the request."""
        if request.fresh or not is_alone():
            return self.watched(lambda: self.execute(request))
        self.spare_until = time.monotonic() + SPARE_SECONDS
        self.last = request
        spare, self.spare = self.spare, None
        if spare is not None and spare.hand_over(request):
            return spare.pid, spare.pidfd
        return self.watched(lambda: self.fork(lambda: request))

    def watched(self, start: Callable[[], int]) -> tuple[int, int]:
        """Start a process; its pid with a pidfd, without which nobody could end it."""
        before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # until the pidfd is there its pid must not be another's
        try:
            return self.with_pidfd(start())
        finally:
            signal.signal(signal.SIGCHLD, before)

    def with_pidfd(self, pid: int) -> tuple[int, int]:
        try:
            return pid, os.pidfd_open(pid)
        except OSError:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise

    # --- the spare child ---

    def spare_patience(self) -> float | None:
        """Seconds until something is to be done about it."""
        left = self.spare_until - time.monotonic()
        if not self.connected or (self.spare is None and left <= 0):
            return None
        return 0 if self.spare is None else max(0.0, left)

    def keep_spare(self) -> None:
        """Nothing else is to be done: fork it, or let it go when nobody has started anything for a while."""
        if time.monotonic() >= self.spare_until:
            self.drop_spare()
        elif self.spare is None and self.connected:
            try:
                self.make_spare()
            except OSError:
                self.spare_until = 0.0  # it would only have been quicker

    def make_spare(self) -> None:
        if not is_alone():
            self.spare_until = 0.0
            return
        near, far = socket.socketpair()
        zygote = os.getpid()

        def begin() -> Request:
            os.close(near.detach())
            worker.set_title("spare")
            worker.end_with_parent(True)
            if os.getppid() != zygote:
                os._exit(0)
            if self.last is not None:
                worker.rehearse(self.last)
            try:
                request = receive_request(far)
                worker.end_with_parent(False)
                far.send(b"x")
            except (OSError, EOFError):
                request = None
            if request is None:
                os._exit(0)  # it is not wanted any more
            os.close(far.detach())
            return request

        with far:
            try:
                self.spare = Spare(*self.watched(lambda: self.fork(begin)), near)
            except OSError:
                near.close()
                raise

    def drop_spare(self) -> None:
        spare, self.spare = self.spare, None
        if spare is not None:
            spare.end()

    # --- starting ---

    def answer(self, pid: int, descriptor: int | None, text: str = "") -> None:
        try:
            send_answer(self.connection, pid, descriptor, text)
        except OSError:
            pass  # the creator has gone; its pidfd tells

    def fork(self, begin: Callable[[], Request]) -> int:
        """Fork a worker that runs the request that ``begin`` returns there."""
        oom.kills.begin_for_child()
        pid = os.fork()
        if pid == 0:
            try:
                reseed()
                self.let_go()
                request = begin()
                try:
                    if request.group:
                        os.setpgid(0, request.group)
                    else:
                        os.setsid()
                except OSError:
                    pass  # the group has gone, and the creator with it; or it is of another session by now
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            worker.run(request)
        return pid

    def let_go(self) -> None:
        """In the child: close what is the zygote's."""
        resource.setrlimit(resource.RLIMIT_NOFILE, self.files)
        for number in (self.selector.fileno(), self.connection.detach(), self.creator):
            if number >= 0:  # the objects are never looked at again: to close them takes more
                os.close(number)
        for child in self.children.values():
            for descriptor in (child.pidfd, child.segment, child.root):
                if descriptor is not None:
                    os.close(descriptor)
        self.children.clear()

    def execute(self, request: Request) -> int:
        """A fresh interpreter for the request, which it reads from a file without a name."""
        environment = dict(request.env)
        environment.setdefault(b"OPENBLAS_THREAD_TIMEOUT", b"20")  # see launcher.py
        request.env = environment
        request.fresh = True
        held = request.descriptors
        file = os.memfd_create("shmipc-request", os.MFD_CLOEXEC)
        try:
            with open(file, "wb", closefd=False) as stream:
                stream.write(request.encoded())
            os.lseek(file, 0, os.SEEK_SET)
            actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = [
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0)
            ]
            actions += [(os.POSIX_SPAWN_DUP2, number, number) for number in [*held.values(), file]]
            arguments = [request.executable, *request.flags, "-P", "-c", BOOT_WORKER, str(file), *request.path]
            spawn = functools.partial(os.posix_spawn, request.executable, arguments, environment, file_actions=actions)
            try:
                pid = spawn(setpgroup=request.group) if request.group else spawn(setsid=True)
            except PermissionError:  # the group has gone
                pid = spawn()
            try:
                resource.prlimit(pid, resource.RLIMIT_NOFILE, self.files)
            except OSError:
                pass  # it has ended
            return pid
        finally:
            os.close(file)


def wait_for(pid: int, pidfd: int) -> int | None:
    """Wait for a child; its wait status.

    From the first child on whose status the kernel tells through a pidfd, SIGCHLD is ignored: the kernel then waits for
    a child in the moment it ends, and the keeper learns at once how it did; when that moment is cut by the scheduler,
    a little later.
    """
    try:
        return os.waitpid(pid, 0)[1]
    except ChildProcessError:
        until = time.monotonic() + STATUS_SECONDS
        while (status := _native.process_status(pidfd)) is None and time.monotonic() < until:
            time.sleep(0.0002)
        return status


def is_alone() -> bool:
    """Has this process one task only? Forking others would leave locks held for ever in the child."""
    return len(os.listdir("/proc/self/task")) == 1


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
