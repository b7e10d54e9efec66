"""How log records and last words of workers reach the process that created them.

Each creating process has one datagram socket; its workers hold the other end. Records of loggers below ``shmipc``
are handled there by the logger of the same name, so a worker that was created by a worker is heard at the root.
"""

import functools
import logging
import os
import pickle
import select
import socket
import sys
import threading
from collections import OrderedDict
from typing import Any

from shmipc.actor import calls
from shmipc.base.descriptors import Descriptor, Socket

TEXT_LIMIT = 60_000  # characters of a text, so that one datagram holds it
KEPT = 256  # last words remembered
LOOK_SECONDS = 1.0  # how often it is asked whether the descriptors are still ours


class LogSink:
    """The creator's end. One for each process, made when it creates its first worker."""

    def __init__(self) -> None:
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        near.setblocking(False)
        self.near, self.far = Socket(near), Socket(far)
        self.pid = os.getpid()
        self.lock = threading.RLock()
        self.last_words: OrderedDict[tuple[str, int], str] = OrderedDict()
        self.closed = False
        self.wake_read, self.wake_write = map(Descriptor, os.pipe2(os.O_CLOEXEC))
        self.thread = threading.Thread(target=self.run, name="shmipc-logs", daemon=True)
        self.thread.start()

    def is_open(self) -> bool:
        """Are its descriptors ours? A program may have closed all it has."""
        return self.near.is_open() and self.far.is_open() and self.wake_read.is_open()

    def run(self) -> None:
        poll = select.poll()
        poll.register(self.near.descriptor.number, select.POLLIN)
        poll.register(self.wake_read.number, select.POLLIN)
        while not self.closed and self.is_open():
            poll.poll(LOOK_SECONDS * 1000)
            self.drain()

    def drain(self) -> None:
        """Handle what has arrived. Does not block."""
        while True:
            with self.lock:
                if self.closed or self.pid != os.getpid() or not self.near.is_open():
                    return
                try:
                    blob = self.near.socket.recv(1 << 20)
                except OSError:
                    return
            try:
                self.handle(pickle.loads(blob))
            except Exception:
                logging.getLogger("shmipc.actor").exception("a log record of a worker could not be handled")

    def handle(self, item: dict[str, Any]) -> None:
        if "last_words" in item:
            with self.lock:
                self.last_words[item["system"], item["id"]] = item["last_words"]
                while len(self.last_words) > KEPT:
                    self.last_words.popitem(last=False)
            return
        record = logging.makeLogRecord(item)
        logger = logging.getLogger(record.name)
        if logger.isEnabledFor(record.levelno):
            logger.handle(record)

    def traceback(self, system: str, id: int) -> str | None:
        """The traceback of the exception that ended a worker of this process."""
        self.drain()
        with self.lock:
            return self.last_words.get((system, id))

    def close(self) -> None:
        self.drain()
        with self.lock:
            if self.closed:
                return
            self.closed = True
            self.wake_write.write(b"x")
        if threading.current_thread() is not self.thread:
            self.thread.join(2 * LOOK_SECONDS)
        self.let_go()

    def let_go(self) -> None:
        """Close what is ours."""
        for kept in (self.near, self.far, self.wake_read, self.wake_write):
            kept.close()


class Forward(logging.Handler):
    """The worker's end: sends records to its creator; to stderr when that does not take them.

    Made before the worker is forked; it has a descriptor from `take` on, and a socket from the first record on.
    """

    def __init__(self) -> None:
        super().__init__()
        self.descriptor: Descriptor | None = None
        self.socket: socket.socket | None = None

    def take(self, number: int) -> None:
        """Send by this descriptor from now on; it is ours."""
        self.let_go()
        self.descriptor = Descriptor(number)

    def let_go(self) -> None:
        """Close the descriptor, if there is one."""
        descriptor, self.descriptor = self.descriptor, None
        sender, self.socket = self.socket, None
        if sender is not None:
            sender.detach()
        if descriptor is not None:
            descriptor.close()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
            if record.exc_info and not record.exc_text:
                record.exc_text = logging.Formatter().formatException(record.exc_info)
            item = {
                "name": record.name,
                "msg": text[:TEXT_LIMIT],
                "args": None,
                "levelno": record.levelno,
                "levelname": record.levelname,
                "exc_text": record.exc_text[-TEXT_LIMIT:] if record.exc_text else None,
                "created": record.created,
                "msecs": record.msecs,
                "process": record.process,
                "processName": record.processName,
                "thread": record.thread,
                "threadName": record.threadName,
                "pathname": record.pathname,
                "filename": record.filename,
                "module": record.module,
                "lineno": record.lineno,
                "funcName": record.funcName,
            }
            if not self.put(item):
                print(text, record.exc_text or "", file=sys.stderr, flush=True)
        except Exception:
            self.handleError(record)

    def put(self, item: dict[str, Any]) -> bool:
        if self.descriptor is None or not self.descriptor.is_open():
            return False
        try:
            if self.socket is None:
                self.socket = socket.socket(fileno=self.descriptor.number)
            self.socket.send(pickle.dumps(item), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError:
            return False
        return True

    def say_last_words(self, system: str, id: int, text: str) -> None:
        """Tell the creator which exception ends this worker, before it ends."""
        self.put({"last_words": text[-TEXT_LIMIT:], "system": system, "id": id})


_sink: LogSink | None = None
_lock = threading.Lock()


def sink() -> LogSink:
    """The sink of this process; another when a descriptor of the last was closed behind our back."""
    global _sink
    lost = None
    with _lock:
        if _sink is None or _sink.closed or not _sink.is_open():
            lost, _sink = _sink, LogSink()
            if lost is not None:
                _sink.last_words.update(lost.last_words)
        found = _sink
    if lost is not None:
        lost.close()
    return found


def close_sink() -> None:
    """Close the sink of this process, if there is one; what has arrived is handled."""
    global _sink
    with _lock:
        found, _sink = _sink, None
    if found is not None and found.pid == os.getpid():
        found.close()


@functools.cache
def forward() -> Forward:
    """The worker's end of this process, or of what will be forked from it."""
    return Forward()


def forward_to(descriptor: int) -> Forward:
    """In a worker: from now on records of shmipc's loggers go to the creator."""
    handler = forward()
    handler.take(descriptor)
    logger = logging.getLogger("shmipc")
    logger.handlers[:] = [handler]
    logger.propagate = False
    return handler


def _after_fork() -> None:
    global _sink, _lock
    _lock = threading.Lock()
    if _sink is not None:
        _sink.let_go()
    _sink = None


def _traceback(system: str, id: int) -> str | None:
    return _sink.traceback(system, id) if _sink is not None else None


calls.traceback_sources.append(_traceback)
os.register_at_fork(after_in_child=_after_fork)
