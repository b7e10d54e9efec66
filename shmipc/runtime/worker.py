"""A worker from its first instruction of ours to its last: settle in, join, run the actor, leave.

A worker is forked by the zygote, or runs in a fresh interpreter; `run` is the same for both. Its first message is
START, with the target, the arguments and the settings; the answer to it is what `spawn` waits for.
"""

import asyncio
import atexit
import inspect
import io
import logging
import os
import signal
import sys
import traceback
from dataclasses import dataclass
from typing import NoReturn

import threadpoolctl

from shmipc import _native
from shmipc.actor import async_loop, inbox, loop, refs, remote
from shmipc.base.errors import Closed, PeerDead, ShmipcError
from shmipc.memory import membership
from shmipc.memory.membership import Membership
from shmipc.runtime import logs, tasks
from shmipc.runtime.requests import Request
from shmipc.transport.mailboxes import Mailbox

HERE = "."  # the directory of a rehearsal, which may be one that cannot be entered again


@dataclass(frozen=True)
class Settings:
    """What the creator says about how the actor is to be run.

    Attributes:
        max_concurrency: ``async def`` handlers under way at most.
        tasks: The mailbox of a pool's tasks; None for an actor that is no pool's.
        pass_instance: Do tasks get the actor's instance as their first argument?
    """

    max_concurrency: int = 1000
    tasks: Mailbox | None = None
    pass_instance: bool = False


def rehearse(request: Request) -> None:
    """Settle in as for a request that was, which is changed; the one that comes then sets everything anew.

    In a spare child the pages that this takes are its own beforehand. In the zygote the interpreter specialises the
    code and fills its caches, which would otherwise be done in each child, in pages that are its own then.
    """
    request.cwd = HERE
    request.descriptors = {"stdout": os.dup(1), "stderr": os.dup(2), "log": os.dup(1)}
    settle(request).let_go()


def run(request: Request) -> NoReturn:
    """Be the worker of ``request``; ends the process."""
    code = 1
    try:
        forward = settle(request)
        code = live(request, forward)
    except BaseException:
        traceback.print_exc()
    finally:
        flush()
        os._exit(code & 0xFF)


def main(descriptor: int) -> NoReturn:
    """Entry of a fresh interpreter: the request is in the file ``descriptor``."""
    with open(descriptor, "rb") as file:
        request = Request.decoded(file.read())
    run(request)


def flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            pass  # whoever read it has gone


# --- settling in -----------------------------------------------------------------------------------------------


def settle(request: Request) -> logs.Forward:
    """Take over what a worker inherits from its creator: stdio, environment, paths, umask, logging."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the root's affair
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGTTOU):
        signal.signal(number, signal.SIG_DFL)  # the zygote ignores them
    for name, target in (("stdout", 1), ("stderr", 2)):
        descriptor = request.descriptors.pop(name)
        os.dup2(descriptor, target)
        os.close(descriptor)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not stream.line_buffering:
            stream.reconfigure(line_buffering=True)
    os.umask(request.umask)
    set_environment(request.env)
    try:
        os.chdir(request.cwd)
    except OSError as error:
        if request.cwd != HERE:
            print(f"shmipc: cannot enter {request.cwd}: {error.strerror}", file=sys.stderr)
    sys.path[:] = request.path
    root = logging.getLogger()
    if root.level != request.log_level:
        root.setLevel(request.log_level)
    if not request.fresh:
        limit_threads(request.threads)
    return logs.forward_to(request.descriptors.pop("log"))


def set_environment(wanted: dict[bytes, bytes]) -> None:
    for name in [name for name in os.environb if name not in wanted]:
        del os.environb[name]
    for name, value in wanted.items():
        if os.environb.get(name) != value:
            os.environb[name] = value


def find_libraries() -> None:
    """In the zygote: look once for the numeric libraries it has loaded. The search takes milliseconds."""
    global _libraries
    _libraries = threadpoolctl.ThreadpoolController()


def limit_threads(threads: int) -> None:
    """Threads of the BLAS libraries that the zygote loaded with one thread each."""
    global _threads
    if threads != _threads and _libraries is not None:
        _libraries.limit(limits=threads)
        _threads = threads


_libraries: threadpoolctl.ThreadpoolController | None = None
_threads = 1


# --- living ----------------------------------------------------------------------------------------------------


def live(request: Request, forward: logs.Forward) -> int:
    """Join the system, start the actor, run it, leave; the exit code."""
    held = request.descriptors
    lifelines = [held["creator"]] + ([held["root"]] if "root" in held else [])
    root_fd = held.get("root", held["creator"] if request.creator_is_root else None)
    try:
        found = membership.enter(
            request.system,
            held["segment"],
            request.id,
            request.life_path,
            lifelines,
            None if root_fd is None else os.dup(root_fd),
        )
    except PeerDead:
        return 1  # its creator has given this start up, by Ctrl-C for one
    message = found.box.take()
    if message.flags != _native.START:
        raise ShmipcError("the first message of a worker was not its start")
    actor = Actor(found, message)
    reason, code = actor.run()
    if actor.failure is not None:
        forward.say_last_words(found.name, request.id, remote.traceback_text(actor.failure))
    found.member.say_reason(reason, code)
    atexit._run_exitfuncs()  # leaves the system, after the actor's own functions
    return code


class Actor:
    """One actor in its worker: start, serve, stop.

    Args:
        found: The worker's membership.
        message: START.
    """

    def __init__(self, found: Membership, message: _native.Message) -> None:
        self.found = found
        self.start: _native.Message | None = message
        self.target, self.args, self.kwargs, self.settings = message.body
        self.about = refs.describe(self.target)
        self.servant: loop.Servant | None = None
        self.failure: BaseException | None = None
        refs.know(found.name, found.member.id, self.about)
        set_title(self.about.kind)

    def run(self) -> tuple[str, int]:
        """Run to the end; its reason and the exit code."""
        try:
            reason = self.run_class() if inspect.isclass(self.target) else self.run_function()
            code = 0
        except SystemExit as error:
            reason, code = "exited", exit_code(error)
            if isinstance(error.__cause__, Exception):
                self.failure = error.__cause__  # why it exits: its watchers are told
        except Exception as error:
            self.report(error)
            reason, code = "exception", 1
        return self.stop(reason, code)

    def run_class(self) -> str:
        member = self.found.member
        inbox.has_loop = True  # from now on: the constructor may start a thread that receives
        member.note("__init__")
        instance = self.target(*self.args, **self.kwargs)
        member.note(None)
        servant = self.servant = loop.Servant(instance, self.about, self.found.member)
        box = self.found.box
        member.has_loop()
        self.started()
        settings = self.settings
        if settings.tasks is not None:
            return tasks.serve_tasks(box, servant, settings.tasks, instance if settings.pass_instance else None)
        if servant.is_async():
            return async_loop.serve_async(box, servant, settings.max_concurrency)
        return loop.serve(box, servant)

    def run_function(self) -> str:
        target, args, kwargs = self.target, self.args, self.kwargs
        self.found.member.note(self.about.kind)
        self.started()
        try:
            value = target(*args, **kwargs)
            if inspect.iscoroutine(value):
                asyncio.run(value)
        except Closed:
            if not (inbox.stopping() or self.found.member.closed or self.found.box.closed):
                raise
        return "returned"

    def started(self) -> None:
        """Tell `spawn` that the actor is there."""
        message, self.start = self.start, None
        self.args, self.kwargs = (), {}
        if message is not None:
            loop.answer(message, None)

    def report(self, error: BaseException) -> None:
        """An exception ends the actor: to `spawn` while it starts, else to the log."""
        if self.start is not None:
            loop.fail(self.start, error)
            return
        self.failure = error
        loop.logger.error("%s was ended by an exception", self.about.kind, exc_info=error)

    def stop(self, reason: str, code: int) -> tuple[str, int]:
        on_stop = self.servant.on_stop if self.servant is not None else None
        if on_stop is None or inspect.iscoroutinefunction(on_stop):
            return reason, code
        try:
            self.found.member.note("on_stop")
            on_stop(reason)
        except SystemExit as error:
            return "exited", exit_code(error)
        except Exception as error:
            self.report(error)
            return "exception", 1
        return reason, code


def exit_code(error: SystemExit) -> int:
    """The code that the interpreter would end with."""
    if error.code is None:
        return 0
    if isinstance(error.code, int):
        return error.code & 0xFF
    print(error.code, file=sys.stderr)
    return 1


def set_title(kind: str) -> None:
    """Show the actor's name, or what else this process is, in ps and top."""
    _native.set_title(f"shm:{kind}".encode()[:15])


def end_with_parent(wanted: bool) -> None:
    """Have the kernel kill this process when its parent ends, or have it not."""
    _native.end_with_parent(signal.SIGKILL if wanted else 0)
