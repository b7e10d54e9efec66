"""The creator's side of the zygote: starts it, asks it for workers, replaces it when it has died."""

import atexit
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from socket import AF_UNIX, SOCK_STREAM, socketpair
from typing import NoReturn

from shmipc import _native
from shmipc.base.cores import THREAD_VARIABLES, core_count
from shmipc.base.descriptors import Descriptor, Socket
from shmipc.base.errors import ForkedHandle, NotSupported, ShmipcError
from shmipc.memory.membership import Membership
from shmipc.runtime import logs
from shmipc.runtime.requests import Request, receive_answer, send_farewell, send_request

BOOT_ZYGOTE = (
    "import sys; numbers = [int(n) for n in sys.argv[1:3]]; sys.path[:] = sys.argv[3:]; sys.argv[1:] = [];"
    "from shmipc.runtime.zygote import main; main(*numbers)"
)
CLOSE_SECONDS = 5.0
CLOSE_LEAST_SECONDS = 1.0


class Launcher:
    """Starts the workers of this process; one for each creating process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.pid = os.getpid()
        self.own = Descriptor(os.pidfd_open(self.pid))
        self.zygote: subprocess.Popen[bytes] | None = None
        self.former: list[subprocess.Popen[bytes]] = []  # to which the connection was closed behind our back
        self.connection: Socket | None = None

    @property
    def creator(self) -> int:
        """A pidfd of this process, opened again if it was closed behind our back."""
        if not self.own.is_open():
            self.own = Descriptor(os.pidfd_open(self.pid))
        return self.own.number

    def is_connected(self) -> bool:
        """Does a zygote run, and can it be asked?"""
        return (
            self.zygote is not None
            and self.zygote.poll() is None
            and self.connection is not None
            and self.connection.is_open()
        )

    def start(self, request: Request, check: Callable[[], None]) -> tuple[int, int]:
        """Start a worker; its pid and a pidfd, owned by the caller. Blocks until it is forked.

        Not for a thread that Ctrl-C may interrupt: the next request would get this one's answer.

        Args:
            check: Raises when the worker is not wanted any more, and the request's descriptors are not open.

        Raises:
            NotSupported: No process can be started.
        """
        with self.lock:
            if self.pid != os.getpid():
                raise ForkedHandle(f"this launcher belongs to process {self.pid}, which forked this one")
            for attempt in (1, 2):
                check()  # it may have waited for long
                try:
                    connection = self.connection
                    if connection is None or not self.is_connected():
                        connection = self.start_zygote()
                    send_request(connection.socket, request)
                    return receive_answer(connection.socket)
                except (OSError, EOFError) as error:
                    self.drop_zygote()
                    if attempt == 2:
                        raise NotSupported(f"no worker can be started: the zygote ended ({error})") from error
                except RuntimeError as error:
                    raise NotSupported(str(error)) from None
            raise AssertionError

    def start_zygote(self) -> Socket:
        if not sys.executable:
            raise NotSupported("sys.executable is empty: no interpreter to start workers with")
        if self.connection is not None:
            self.connection.close()
        if self.zygote is not None and self.zygote.poll() is None:
            self.former.append(self.zygote)  # it ends when its last child has
        near, other = socketpair(AF_UNIX, SOCK_STREAM)
        self.connection = Socket(near)
        # A BLAS thread that waits spins for 2**20 cycles, not for a tenth of a second: idle actors use no CPU.
        environment = {"OPENBLAS_THREAD_TIMEOUT": "20"} | os.environ | dict.fromkeys(THREAD_VARIABLES, "1")
        numbers = [other.fileno(), self.creator]
        command = [sys.executable, *interpreter_flags(), "-P", "-c", BOOT_ZYGOTE, *map(str, numbers), *search_path()]
        with other:
            self.zygote = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=environment,
                pass_fds=numbers,
                process_group=0,  # who kills our whole group, as Jupyter does, leaves one to sweep
            )
        return self.connection

    def drop_zygote(self, seconds: float = CLOSE_SECONDS) -> None:
        """Close the connection; the zygote ends when its last child has, and is killed after ``seconds``."""
        connection, self.connection = self.connection, None
        if connection is not None:
            try:
                if connection.is_open():
                    send_farewell(connection.socket)
            except OSError:
                pass  # it has gone first
            connection.close()
        zygote, self.zygote = self.zygote, None
        if zygote is not None:
            self.wait_for(zygote, seconds)

    def wait_for(self, zygote: "subprocess.Popen[bytes]", seconds: float) -> None:
        if zygote.poll() is None:
            try:
                zygote.wait(seconds)
            except subprocess.TimeoutExpired:
                zygote.kill()
                zygote.wait()

    def close(self, seconds: float) -> None:
        """End the zygote, which is killed after ``seconds``; no more is started. A thread may wait for its answer."""
        if self.pid != os.getpid():
            return
        while not self.lock.acquire(timeout=seconds):
            zygote = self.zygote
            if zygote is not None:
                zygote.kill()  # it is stopped, or cannot go on
        try:
            self.drop_zygote(seconds)
            while self.former:
                self.wait_for(self.former.pop(), seconds)
            self.own.close()
        finally:
            self.lock.release()

    def zygote_pid(self) -> int | None:
        """The zygote's pid, None when none runs. For tools and tests."""
        return None if self.zygote is None or self.zygote.poll() is not None else self.zygote.pid


_launcher: Launcher | None = None
_lock = threading.Lock()


def launcher() -> Launcher:
    """The launcher of this process."""
    global _launcher
    with _lock:
        if _launcher is None or _launcher.pid != os.getpid():
            _launcher = Launcher()
        return _launcher


def close_launcher(timeout: float | None = None) -> None:
    """End the zygote and the log sink of this process, if there are any; its workers must have ended.

    Args:
        timeout: Seconds until the zygote is killed, within bounds: it needs a moment, and no more than a few seconds.
    """
    global _launcher
    with _lock:
        found, _launcher = _launcher, None
    if found is not None:
        found.close(CLOSE_SECONDS if timeout is None else min(CLOSE_SECONDS, max(CLOSE_LEAST_SECONDS, timeout)))
    logs.close_sink()


def _after_fork() -> None:
    global _launcher, _lock
    _lock = threading.Lock()
    if _launcher is not None:
        if _launcher.connection is not None:
            _launcher.connection.close()
        for zygote in [_launcher.zygote, *_launcher.former]:
            if zygote is not None:
                zygote.returncode = 0  # not this process's child
    _launcher = None


os.register_at_fork(after_in_child=_after_fork)
atexit.register(close_launcher)


# --- requests --------------------------------------------------------------------------------------------------


def make_request(found: Membership, id: int, *, fresh: bool, env: dict[str, str] | None, workers: int) -> Request:
    """A request for the prepared member ``id``, with what this process is at the moment.

    Args:
        fresh: Execute a new interpreter.
        env: Variables put over the environment; one that a numeric library reads asks for a new interpreter.
        workers: Among how many the cores are shared.
    """
    overrides = check_env(env)
    environment = dict(os.environb) | {os.fsencode(name): os.fsencode(value) for name, value in overrides.items()}
    threads = blas_threads(environment, workers)
    for name in THREAD_VARIABLES:
        environment.setdefault(name.encode(), str(threads).encode())
    descriptors = {
        "segment": found.segment.descriptor(),
        "stdout": writable(1),
        "stderr": writable(2),
        "log": logs.sink().far.socket.fileno(),
        "creator": launcher().creator,
    }
    root = root_pidfd(found)
    if root is not None:
        descriptors["root"] = root
    return Request(
        id=id,
        system=found.name,
        life_path=str(found.segment.paths.life),
        fresh=fresh or any(name in THREAD_VARIABLES for name in overrides),
        executable=sys.executable,
        flags=interpreter_flags(),
        cwd=working_directory(),
        path=search_path(),
        env=environment,
        umask=current_umask(),
        log_level=logging.getLogger().level,
        threads=threads,
        group=job(),
        creator_is_root=found.is_root,
        descriptors=descriptors,
    )


def job() -> int:
    """Our process group, if it is the job of a shell above us; 0: there is none, as in a container or a service.

    Workers must not be of such a group: with them it would have members whose parent, the zygote, is of another group
    of the session, and when the last of them is gone it is an orphaned group, which the kernel hangs up if any process
    of it is stopped (POSIX, _exit(): SIGHUP to all of it, and to us).
    """
    group, session, above = os.getpgid(0), os.getsid(0), os.getppid()
    try:
        while above and os.getsid(above) == session:
            if os.getpgid(above) != group:
                return group
            above = int(Path(f"/proc/{above}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        pass  # who was above us has ended
    return 0


def check_env(env: dict[str, str] | None) -> dict[str, str]:
    if env is None:
        return {}
    for name, value in env.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"env must map str to str, not {type(name).__name__} to {type(value).__name__}")
    return dict(env)


def blas_threads(environment: dict[bytes, bytes], workers: int) -> int:
    """Threads for each worker's numeric libraries: what the environment says, else cores / workers."""
    for name in THREAD_VARIABLES:
        said = environment.get(name.encode(), b"")
        if said.isdigit() and int(said) > 0:
            return int(said)
    return max(1, core_count() // max(1, workers))


def root_pidfd(found: Membership) -> int | None:
    """A pidfd of the system's root; None when it is this process, or the system has none, or none that can be seen.

    A root in another pid namespace ends its workers here when its life lock is found free, as `Closed`.
    """
    if found.is_root or found.root_fd is not None:
        return found.root_fd
    for record in found.member.members():
        if record["kind"] == _native.ROOT and not found.member.is_elsewhere(record["id"]):
            try:
                descriptor = os.pidfd_open(record["pid"])
            except ProcessLookupError:
                no_root(found)
            if not found.member.lives(record["id"]):
                os.close(descriptor)
                no_root(found)
            found.keep_root(descriptor)
            return descriptor
    return None


def no_root(found: Membership) -> NoReturn:
    raise ShmipcError(f"the root of system {found.name!r} has ended")


def writable(descriptor: int) -> int:
    """The descriptor, or one of /dev/null when it is closed."""
    try:
        os.fstat(descriptor)
    except OSError:
        return null_device()
    return descriptor


def null_device() -> int:
    global _null
    if _null is None or not _null.is_open():
        _null = Descriptor(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
    return _null.number


_null: Descriptor | None = None


def working_directory() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return "/"


def search_path() -> list[str]:
    """`sys.path` with absolute entries, so that it means the same in another directory."""
    here = working_directory()
    return [os.path.join(here, entry) if entry else here for entry in sys.path if isinstance(entry, str)]


def interpreter_flags() -> list[str]:
    """The options this interpreter was started with."""
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    return [flag for flag in flags if flag not in ("-i", "-P")]


def current_umask() -> int:
    """The umask, without changing it: other threads may be making files."""
    match = re.search(r"^Umask:\s*([0-7]+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(match[1], 8) if match else 0o022
