"""The operations that a completion queue knows: how each is attempted, and what is waited for before it is."""

import os
import socket
import stat
import threading
import weakref
from collections.abc import Callable
from typing import Any

from shmipc import _native
from shmipc.actor import inbox, refs
from shmipc.actor.calls import box_of, tag_for
from shmipc.actor.channels import MAX_READ, Channel, Channels, number_of
from shmipc.actor.completions import Attempt, Done, Sent, Submission, size_of
from shmipc.actor.ports import Port, capacity_of
from shmipc.base.descriptors import file_of
from shmipc.base.errors import BrokenPipe, Closed, InvalidArgument, NotSupported, PeerDead, WouldBlock
from shmipc.base.limits import check_count
from shmipc.memory import membership
from shmipc.transport.buses import Bus, BusReader
from shmipc.transport.locks import Mutex, RLock
from shmipc.transport.mailboxes import Mailbox, check_sender
from shmipc.transport.messages import ANY, Message, Sign, check_filter
from shmipc.transport.pipes import BytePipe
from shmipc.transport.waits import Alarm, wait_any, waited_for

ATOMIC_BYTES = 4096  # of one write to a pipe: SHM_PIPE_ATOMIC


class Operations:
    """Makes the submissions of one queue.

    Args:
        member: The queue's; everything in shared memory that is submitted is of its system.
        channels: Descriptors of what is outstanding.
        bell: Rung to have the queue look again.
    """

    def __init__(self, member: _native.Member, channels: Channels, bell: _native.Bell) -> None:
        self.member = member
        self.channels = channels
        self.bell = bell
        self.ends: weakref.WeakKeyDictionary[threading.Thread, Alarm] = weakref.WeakKeyDictionary()

    def key(self, source: Any) -> Any:
        """What tells a source from others; raises TypeError, InvalidArgument, Closed, ForkedHandle."""
        return _native.source_key(source, self.member)

    def channel(self, file: Any, what: str) -> tuple[Channel, Any]:
        """Our own duplicate of a descriptor, and the order of what is submitted for it."""
        number = number_of(file)
        channel = self.channels.open((what, number, *file_of(number)), number, what == "write")
        return channel, channel.order

    # -- bytes --------------------------------------------------------------------------------------------------

    def read(self, file: Any, size: int, tag: Any) -> Submission:
        check_count("size", size, 1, MAX_READ)
        if isinstance(file, BytePipe):
            if file.mode != "r":
                raise NotSupported("this end of the pipe is not for reading")
            pipe, key = file, self.key(file)

            def attempt(_: Submission) -> Done:
                content = pipe.read(size, 0)
                return Done(content, len(content))

            return Submission("read", tag, attempt, pipe, key, ("read", key))
        channel, order = self.channel(file, "read")

        def attempt_file(_: Submission) -> Done:
            content = channel.read(size)
            return Done(content, len(content))

        return Submission("read", tag, attempt_file, None, None, order, channel)

    def write(self, file: Any, data: Any, tag: Any) -> Submission:
        """The bytes are copied, unless they are `bytes`."""
        content = memoryview(data if isinstance(data, bytes) else bytes(memoryview(data)))
        if isinstance(file, BytePipe):
            return self.write_pipe(file, content, tag)
        is_message = not len(content) and is_of_messages(number_of(file))
        channel, order = self.channel(file, "write")

        def attempt(submission: Submission) -> Done:
            if is_message:
                channel.write(content)
            while submission.bytes < len(content):
                submission.bytes += channel.write(content[submission.bytes :])
            return Done()

        return Submission("write", tag, attempt, None, None, order, channel)

    def write_pipe(self, pipe: BytePipe, content: memoryview, tag: Any) -> Submission:
        if pipe.mode != "w":
            raise NotSupported("this end of the pipe is not for writing")

        def room(left: int) -> tuple[_native.RoomSource, Any]:
            source = _native.RoomSource(pipe, left if left <= min(ATOMIC_BYTES, pipe.capacity) else 1)
            return source, self.key(source)

        def attempt(submission: Submission) -> Done:
            while True:
                left = content[submission.bytes :]
                try:
                    submission.bytes += pipe.write(left, 0)
                except (BrokenPipe, Closed) as error:
                    submission.bytes += getattr(error, "written", 0)
                    error.__dict__["written"] = submission.bytes
                    raise
                if submission.bytes == len(content):
                    return Done()
                submission.source, submission.key = room(len(content) - submission.bytes)

        source, key = room(len(content))
        return Submission("write", tag, attempt, source, key, ("write", pipe.index, pipe.life))

    # -- messages -----------------------------------------------------------------------------------------------

    def receive(
        self, source: Any, sender: Any, kind: int, message_tag: int | None, capacity: int | None, tag: Any
    ) -> Submission:
        if isinstance(source, BusReader):
            return self.receive_frame(source, tag)
        match = check_sender(sender, self.member), *check_filter(kind, message_tag)
        limit = capacity_of(capacity)
        if isinstance(source, Port):
            if match != (ANY, ANY, ANY):
                raise NotSupported("a port's messages are received in order; it takes no conditions")
            return self.receive_from_port(source, limit, tag)
        if isinstance(source, refs.ActorRef):
            return self.receive_own(source, match, limit, tag)
        if not isinstance(source, Mailbox):
            raise TypeError(f"a Mailbox, a Port, a BusReader or one's own Ref is needed, not {type(source).__name__}")
        box = source

        def attempt(_: Submission) -> Done:
            return received(box.take(0, *match, serving=True, capacity=limit))

        awaited = box if match == (ANY, ANY, ANY) else _native.MatchSource(box, *match)
        return Submission("receive", tag, attempt, awaited, self.key(awaited), ("receive", box.index, box.life, match))

    def receive_own(self, ref: refs.ActorRef, match: tuple[int, int, int], limit: int, tag: Any) -> Submission:
        """From this process's own mailbox, as its own code receives."""
        if refs.id_in(ref, self.member) != self.member.id or limit >= 0:
            raise InvalidArgument("only its own process receives from an actor's mailbox, and bodies of any size")
        found = membership.of_member(self.member)
        if found is None:
            raise InvalidArgument("this process has no mailbox in the system of the queue")

        def attempt(_: Submission) -> Done:
            message = inbox.take(found, 0, *match)
            message.end()
            return received(message)

        awaited = _native.MatchSource(found.box, *match, orders=True, raw=inbox.has_loop)
        return Submission("receive", tag, attempt, awaited, self.key(awaited), ("receive own", match))

    def receive_from_port(self, port: Port, limit: int, tag: Any) -> Submission:
        def attempt(_: Submission) -> Done:
            while True:
                message = port.take_from(0, False, False, limit)
                message.end()
                try:
                    message.get_data()
                except Exception as error:
                    if not message.is_call:
                        raise _native.UnreadableBody("a message's body") from error
                    message.reply_error(error)
                else:
                    return received(message)

        return Submission("receive", tag, attempt, port, self.key(port), ("receive", port.index, port.life))

    def receive_frame(self, reader: BusReader, tag: Any) -> Submission:
        def attempt(_: Submission) -> Done:
            frame = reader.receive(0)
            return Done(frame, frame.nbytes)

        return Submission("receive", tag, attempt, reader, self.key(reader), ("receive", id(reader)))

    def send(self, to: Any, body: Any, message_tag: int | Sign | None, tag: Any) -> Submission:
        if isinstance(to, Bus):
            return self.publish(to, body, tag)
        box = self.open(to)
        if not isinstance(box, _native.Box):
            return Submission("send", tag, box, None, None, object())
        number, size = tag_for(box, message_tag), size_of(body)

        def attempt(_: Submission) -> Done:
            if isinstance(box, Port):
                box.post_with(body, None, None, number, 0)
            else:
                box.post(body, 0, number, _native.RAW, 0)
            return Done(None, size)

        room = _native.RoomSource(box)
        return Submission("send", tag, attempt, room, self.key(room), ("send", box.index, box.life))

    def publish(self, bus: Bus, body: Any, tag: Any) -> Submission:
        def attempt(_: Submission) -> Done:
            bus.publish(body, 0)
            return Done(None, size_of(body))

        bus.readers  # noqa: B018  raises Closed, ForkedHandle
        return Submission("send", tag, attempt, None, None, ("publish", bus.index, bus.life))

    def call(
        self, to: Any, body: Any, message_tag: int | Sign | None, timeout: Callable[[], float | None], tag: Any
    ) -> Submission:
        """A call; ``timeout`` says how much time is left when it is sent."""
        if isinstance(to, refs.ActorRef) and refs.id_in(to, self.member) == self.member.id:
            raise InvalidArgument("a process that calls itself would wait for ever")
        box = self.open(to)
        if not isinstance(box, _native.Box):
            return Submission("call", tag, box, None, None, object())
        number = tag_for(box, message_tag)

        def attempt(_: Submission) -> Sent:
            return Sent(box.submit_nowait(body, timeout(), number))

        room = _native.RoomSource(box)
        return Submission("call", tag, attempt, room, self.key(room), ("send", box.index, box.life))

    def open(self, to: Any) -> _native.Box | Attempt:
        """The mailbox of whoever it is for; of one who has ended an attempt that says so."""
        try:
            box = box_of(to)
        except PeerDead as error:
            dead = error

            def attempt(_: Submission) -> Done:
                raise dead

            return attempt
        if box.member is not self.member:
            raise InvalidArgument("the objects are of different systems")
        return box

    # -- waits --------------------------------------------------------------------------------------------------

    def wait(self, source: Any, tag: Any) -> Submission:
        if isinstance(source, Mutex | RLock):
            return self.wait_for_mutex(source, tag)
        if isinstance(source, threading.Thread):
            return self.wait_for_thread(source, tag)
        awaited, key, channel = self.awaited(source)

        def attempt(_: Submission) -> Done:
            wait_any([source], 0)
            return Done(source)

        def look(_: Submission) -> Done:
            assert channel is not None
            channel.check()
            return Done(source)

        order = "wait", key
        if channel is not None:
            return Submission("wait", tag, look, None, None, order, channel)
        return Submission("wait", tag, attempt, awaited, key, order)

    def wait_for_mutex(self, mutex: Mutex | RLock, tag: Any) -> Submission:
        """It belongs to a thread: to the queue's until somebody collects it, and not twice."""
        key = self.key(mutex)

        def attempt(submission: Submission) -> Done:
            submission.source, submission.key = mutex, key
            if mutex.is_mine():
                submission.source = submission.key = None  # nothing tells when it is collected
                raise WouldBlock("it waits in the queue to be collected")
            wait_any([mutex], 0)
            return Done(mutex, holds=mutex)

        return Submission("wait", tag, attempt, mutex, key, ("wait", key))

    def wait_for_thread(self, thread: threading.Thread, tag: Any) -> Submission:
        if thread.ident is None:
            raise InvalidArgument("the thread has not been started")
        alarm = self.ends.get(thread)
        if alarm is None:
            alarm = self.ends[thread] = Alarm()
            threading.Thread(target=tell_end, args=(thread, alarm, self.bell), daemon=True).start()

        def attempt(_: Submission) -> Done:
            if thread.is_alive():
                raise WouldBlock("the thread runs")
            return Done(thread)

        return Submission("wait", tag, attempt, alarm, self.key(alarm), ("wait", alarm))

    def submit(self, act: Callable[[], Any], source: Any, order: Any, tag: Any) -> Submission:
        if not callable(act):
            raise TypeError(f"an attempt is called, {type(act).__name__} cannot be")
        hash(order)  # raises TypeError here, and not in the thread that does the work
        awaited, key, channel = self.awaited(source)

        def attempt(_: Submission) -> Done:
            value = act()
            return Done(value, size_of(value))

        order = object() if order is None else ("submit", order)
        return Submission("submit", tag, attempt, awaited, None if channel else key, order, channel)

    def awaited(self, source: Any) -> tuple[Any, Any, Channel | None]:
        """What is waited for, its key, and its channel in the place of the first if it is a descriptor."""
        awaited = waited_for(source)
        process = getattr(awaited, "_wait_source", None)
        if process is not None:
            number = process()[1]
            if number >= 0:
                channel, key = self.channel(number, "wait")
                return None, key, channel
        elif isinstance(awaited, int) or not is_ours(awaited):
            channel, key = self.channel(awaited, "wait")
            return None, key, channel
        return awaited, self.key(awaited), None


def is_of_messages(number: int) -> bool:
    """Is the descriptor a socket to which nothing can be written, and that is a message?"""
    if not stat.S_ISSOCK(os.fstat(number).st_mode):
        return False
    with socket.socket(fileno=os.dup(number)) as ours:
        return ours.type != socket.SOCK_STREAM


def is_ours(source: Any) -> bool:
    """Is it waited for in shared memory, or by time?"""
    kinds = _native.SyncView, _native.Box, _native.MatchSource, _native.BusReader, _native.DueSource
    return isinstance(source, kinds)


def received(message: Message) -> Done:
    return Done(message.body, size_of(message.body), message)


def tell_end(thread: threading.Thread, alarm: Alarm, bell: _native.Bell) -> None:
    """In a thread of its own: when another has ended the queue looks again."""
    thread.join()
    alarm.set(0.0)
    bell(None)
