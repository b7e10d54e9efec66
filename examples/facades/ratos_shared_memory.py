"""A megabyte of shared memory, posted from one process to another by its handle.

The sender closes its handle right after it has posted it: on its way the message keeps the memory, and the receiver
finds a handle of its own in it.
"""

import os
import zlib

import shmipc
from shmipc.facades.ratos import (
    RAT_IPC_ERR_NOT_FOUND,
    RAT_IPC_OK,
    RatCloseMessageQueue,
    RatCloseSharedMemory,
    RatCreateNamedMessageQueue,
    RatCreateSharedMemory,
    RatGetMessage,
    RatMapSharedMemory,
    RatMessage,
    RatMessageHeader,
    RatOpenNamedMessageQueue,
    RatOpenSharedMemory,
    RatPostMessage,
    RatUnmapSharedMemory,
    detail,
)


def sender() -> int:
    """Fills the memory with noise, posts it, and returns the checksum."""
    _, targetQueue = RatOpenNamedMessageQueue("target")
    # RatSharedMemory shm; void* addr; size_t size = 1 << 20;
    size = 1 << 20
    # RatCreateSharedMemory("/rat_large", size, &shm);
    _, shm = RatCreateSharedMemory("/rat_large", size)
    # RatMapSharedMemory(shm, &addr, &size);
    status, addr, size = RatMapSharedMemory(shm)
    assert status == RAT_IPC_OK, detail()
    assert addr is not None
    # // fill data in addr
    addr[:] = os.urandom(size)
    checksum = zlib.crc32(addr)
    # RatMessage msg = { .header = { .message = 100, .wparam = (uintptr_t)shm, .lparam = 0, .size = 0 },
    #                    .payload = NULL };
    msg = RatMessage(RatMessageHeader(message=100, wparam=shm, lparam=0, size=0), payload=None)
    # RatPostMessage(targetQueue, &msg);
    assert RatPostMessage(targetQueue, msg) == RAT_IPC_OK, detail()
    # RatUnmapSharedMemory(addr, size);
    RatUnmapSharedMemory(addr, size)
    # RatCloseSharedMemory(shm);
    RatCloseSharedMemory(shm)
    RatCloseMessageQueue(targetQueue)
    return checksum


class Sender:
    """The other process."""

    def post(self) -> int:
        return sender()


def main() -> None:
    with shmipc.System() as system:
        _, targetQueue = RatCreateNamedMessageQueue("target", 16)
        other = system.spawn(Sender)
        checksum = other.post()
        assert shmipc.process(other).stop()  # the sender is gone, and its message has the memory

        status, msg = RatGetMessage(targetQueue, -1)
        assert status == RAT_IPC_OK, detail()
        assert msg is not None
        shm = msg.header.wparam  # the receiver's own handle
        _, addr, size = RatMapSharedMemory(shm)
        assert addr is not None
        assert zlib.crc32(addr) == checksum
        print(f"message {msg.header.message}: {size} bytes, as they were sent")
        RatUnmapSharedMemory(addr, size)
        RatCloseSharedMemory(shm)
        assert RatOpenSharedMemory("/rat_large")[0] == RAT_IPC_ERR_NOT_FOUND  # the last reference was ours
        RatCloseMessageQueue(targetQueue)


if __name__ == "__main__":
    main()
