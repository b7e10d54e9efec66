"""The zygote: a small process, executed fresh for each creating process, that forks its workers.

It has imported numpy, cloudpickle and shmipc and keeps one task, so a fork is cheap and safe; when it finds a
second task, or a fresh interpreter is wanted, it executes one instead. It waits for its children and writes their
wait statuses into the member table. When a creator or a root ends it kills their workers, stopped ones too. It is
a member of no system: when it dies alone, workers go on and the next spawn starts another.
"""

import gc
import os
import pickle
import select
import selectors
import signal
import socket
import sys
import traceback
from dataclasses import dataclass
from typing import NoReturn

import cloudpickle
import numpy as np
import numpy.random
import threadpoolctl

from shmipc import _native
from shmipc.base.cores import THREAD_VARIABLES
from shmipc.base.errors import ShmipcError
from shmipc.memory import segments
from shmipc.runtime import worker
from shmipc.runtime.requests import Request, receive_request, send_answer

CREATOR_SECONDS = 5.0
PRELOADED = (cloudpickle, np, numpy.random, threadpoolctl)

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


def main(connection: int, creator: int) -> NoReturn:
    """Be the zygote. ``connection``: socket to the creator; ``creator``: its pidfd."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends when its creator has, and cleans up then
    gc.collect()
    gc.freeze()  # so that the collector does not copy shared pages
    code = 1
    try:
        Zygote(socket.socket(fileno=connection), creator).run()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


class Zygote:
    """The zygote's loop."""

    def __init__(self, connection: socket.socket, creator: int) -> None:
        self.connection = connection
        self.creator = creator
        self.children: dict[int, Child] = {}  # by pidfd
        self.deserted = False  # has the creator ended without a farewell?
        self.group = os.getpgid(os.getppid())  # the creator's; this process has one of its own
        self.connected = True
        self.selector = selectors.DefaultSelector()
        self.selector.register(connection, selectors.EVENT_READ)
        self.selector.register(creator, selectors.EVENT_READ)

    def run(self) -> None:
        """Serve until the creator has ended or hung up, and no child is left."""
        while self.connected or self.children:
            for key, _ in self.selector.select():
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
                    self.kill([child for child in self.children.values() if child.root == key.data])
                    self.selector.unregister(key.fd)
        if self.deserted:
            end = select.poll()
            end.register(self.creator, select.POLLIN)
            end.poll(CREATOR_SECONDS * 1000)  # his connection ends before he does
        try:
            segments.sweep()  # what the dead have left, those too that died after their root had left
        except (ShmipcError, OSError):
            pass  # the next start does it

    def hang_up(self) -> None:
        if self.connected:
            self.connected = False
            self.selector.unregister(self.connection)
            self.connection.close()

    def kill(self, children: list[Child]) -> None:
        """SIGKILL: it also ends what is stopped."""
        for child in children:
            try:
                signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def reap(self, child: Child) -> None:
        """A child has ended: write its status, forget it."""
        _, status = os.waitpid(child.pid, 0)
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
            pid = self.execute(request) if request.fresh or not is_alone() else self.fork(request)
        except Exception as error:
            for descriptor in held.values():
                os.close(descriptor)
            self.answer(-1, None, f"cannot start a worker: {error}")
            return
        child = Child(pid, os.pidfd_open(pid), request.id, held.pop("segment"), held.pop("root", None))
        for descriptor in held.values():
            os.close(descriptor)
        self.children[child.pidfd] = child
        self.selector.register(child.pidfd, selectors.EVENT_READ)
        if child.root is not None:
            self.selector.register(child.root, selectors.EVENT_READ, child.root)
        self.answer(pid, child.pidfd)

    def answer(self, pid: int, descriptor: int | None, text: str = "") -> None:
        try:
            send_answer(self.connection, pid, descriptor, text)
        except OSError:
            pass  # the creator has gone; its pidfd tells

    def fork(self, request: Request) -> int:
        pid = os.fork()
        if pid == 0:
            try:
                self.let_go()
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            worker.run(request)
        return pid

    def let_go(self) -> None:
        """In the child: close what is the zygote's, and be of the creator's process group."""
        try:
            os.setpgid(0, self.group)
        except OSError:
            pass  # the group has gone, and the creator with it
        self.selector.close()
        self.connection.close()
        os.close(self.creator)
        for child in self.children.values():
            for descriptor in (child.pidfd, child.segment, child.root):
                if descriptor is not None:
                    os.close(descriptor)
        self.children.clear()

    def execute(self, request: Request) -> int:
        """A fresh interpreter for the request, which it reads from a file without a name."""
        environment = dict(request.env)
        for name in THREAD_VARIABLES:
            environment.setdefault(name.encode(), str(request.threads).encode())
        environment.setdefault(b"OPENBLAS_THREAD_TIMEOUT", b"20")  # see launcher.py
        request.env = environment
        request.fresh = True
        held = request.descriptors
        file = os.memfd_create("shmipc-request", os.MFD_CLOEXEC)
        try:
            with open(file, "wb", closefd=False) as stream:
                pickle.dump(request, stream)
            os.lseek(file, 0, os.SEEK_SET)
            actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = [
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0)
            ]
            actions += [(os.POSIX_SPAWN_DUP2, number, number) for number in [*held.values(), file]]
            arguments = [request.executable, *request.flags, "-P", "-c", BOOT_WORKER, str(file), *request.path]
            try:
                return os.posix_spawn(
                    request.executable, arguments, environment, file_actions=actions, setpgroup=self.group
                )
            except PermissionError:  # the group has gone
                return os.posix_spawn(request.executable, arguments, environment, file_actions=actions)
        finally:
            os.close(file)


def is_alone() -> bool:
    """Has this process one task only? Forking others would leave locks held for ever in the child."""
    return len(os.listdir("/proc/self/task")) == 1


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
