"""Photographs go through four stages, each in a process of its own, and no frame is copied on its way.

Beside it the same with `multiprocessing`, whose queues pickle every frame. `--frames N`, 100 by default.
Needs scikit-learn, for its photographs, and pillow: pip install 'shmipc[examples]'.
"""

import argparse
import multiprocessing
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.datasets import load_sample_image

import shmipc

Empty = Callable[..., np.ndarray]


def flip(frame: np.ndarray, empty: Empty) -> np.ndarray:
    """Upside down, (height, width, 3) uint8, as it came."""
    out = empty(frame.shape, np.uint8)
    out[:] = frame[::-1]
    return out


def luminance(frame: np.ndarray, empty: Empty) -> np.ndarray:
    """(R + 2 G + B) / 4, (height, width) uint8."""
    out = np.right_shift(frame[..., 1], 1, out=empty(frame.shape[:2], np.uint8))
    out += frame[..., 0] >> 2
    out += frame[..., 2] >> 2
    return out


def edges(frame: np.ndarray, empty: Empty) -> np.ndarray:
    out = np.maximum(frame[1:], frame[:-1], out=empty((frame.shape[0] - 1, frame.shape[1]), np.uint8))
    out -= np.minimum(frame[1:], frame[:-1])
    return out


def profile(frame: np.ndarray, empty: Empty) -> np.ndarray:
    """How much of an edge there is in each line, (height,) uint32."""
    return frame.sum(axis=1, dtype=np.uint32)


STAGES = (flip, luminance, edges, profile)


def stage(work: Callable[[np.ndarray, Empty], np.ndarray], receive: Any, send: Any, empty: Empty) -> None:
    while (frame := receive()) is not None:
        send(work(frame, empty))
    send(None)


def shared_stage(work: Any, inbox: shmipc.Mailbox, outbox: shmipc.Mailbox) -> None:
    stage(work, inbox.receive, outbox.send, shmipc.empty)


def copied_stage(work: Any, inbox: Any, outbox: Any) -> None:
    stage(work, inbox.get, outbox.put, np.empty)


def flow(photos: list[np.ndarray], count: int, send: Any, receive: Any) -> tuple[list[np.ndarray], float]:
    """What the last stage makes of `count` frames, at most eight under way at a time; frames per second."""
    results, sent = [], 0
    began = time.perf_counter()
    while len(results) < count:
        while sent < count and sent - len(results) < 8:
            send(photos[sent % len(photos)])
            sent += 1
        results.append(receive())
    return results, count / (time.perf_counter() - began)


def with_shmipc(photos: list[np.ndarray], count: int) -> tuple[list[np.ndarray], float]:
    with shmipc.System() as system:
        boxes = [shmipc.Mailbox.create(slots=8) for _ in range(len(STAGES) + 1)]
        for work, inbox, outbox in zip(STAGES, boxes, boxes[1:], strict=False):
            system.spawn(shared_stage, work, inbox, outbox)
        shared = [shmipc.share(photo) for photo in photos]  # once; then only handles travel
        flow(shared, 8, boxes[0].send, boxes[-1].receive)  # everybody has started
        found = flow(shared, count, boxes[0].send, boxes[-1].receive)
        boxes[0].send(None)
        assert boxes[-1].receive() is None
    return found


def with_multiprocessing(photos: list[np.ndarray], count: int) -> tuple[list[np.ndarray], float]:
    context = multiprocessing.get_context("fork")
    queues: list[Any] = [context.Queue(8) for _ in range(len(STAGES) + 1)]
    workers = [
        context.Process(target=copied_stage, args=(work, inbox, outbox))
        for work, inbox, outbox in zip(STAGES, queues, queues[1:], strict=False)
    ]
    for worker in workers:
        worker.start()
    flow(photos, 8, queues[0].put, queues[-1].get)
    found = flow(photos, count, queues[0].put, queues[-1].get)
    queues[0].put(None)
    assert queues[-1].get() is None
    for worker in workers:
        worker.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--frames", type=int, default=100)
    count = parser.parse_args().frames
    photos = [np.tile(load_sample_image(name), (3, 2, 1)) for name in ("china.jpg", "flower.jpg")]  # 4.9 MB each
    copied, copied_rate = with_multiprocessing(photos, count)
    shared, shared_rate = with_shmipc(photos, count)

    def alone(frame: np.ndarray) -> np.ndarray:
        for work in STAGES:
            frame = work(frame, np.empty)
        return frame

    expected = [alone(photo) for photo in photos]
    for number, (one, other) in enumerate(zip(shared, copied, strict=True)):
        assert np.array_equal(one, expected[number % 2])
        assert np.array_equal(other, expected[number % 2])
    print(f"{count} photographs of {photos[0].nbytes / 1e6:.1f} MB through {len(STAGES)} processes")
    print(f"shmipc {shared_rate:.0f} frames/s, multiprocessing {copied_rate:.0f}: {shared_rate / copied_rate:.1f}x")


if __name__ == "__main__":
    main()
