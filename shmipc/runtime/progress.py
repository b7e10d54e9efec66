"""A progress bar on a terminal, and nothing in a pipe."""

import shutil
import sys
import time
from typing import TextIO

REDRAW_SECONDS = 0.1


class Progress:
    """One bar on stderr, or nothing when that is no terminal.

    Args:
        total: Steps; None when unknown.
        shown: False draws nothing.
    """

    def __init__(self, total: int | None, *, shown: bool = True, label: str = "", stream: TextIO | None = None) -> None:
        self.total = total
        self.label = label
        self.done = 0
        self.stream = sys.stderr if stream is None else stream
        self.shown = shown and self.stream is not None and self.stream.isatty()
        self.started = time.monotonic()
        self.drawn = 0.0
        if self.shown:
            self.draw(self.started)

    def step(self, count: int = 1) -> None:
        """So many more are done."""
        self.done += count
        if self.shown:
            now = time.monotonic()
            if now - self.drawn >= REDRAW_SECONDS or self.done == self.total:
                self.draw(now)

    def draw(self, now: float) -> None:
        self.drawn = now
        seconds = now - self.started
        label = f"{self.label} " if self.label else ""
        if self.total:
            share = min(1.0, self.done / self.total)
            tail = f" {self.done}/{self.total} {seconds:.1f}s"
            width = max(10, min(40, shutil.get_terminal_size().columns - len(label) - len(tail) - 3))
            full = round(share * width)
            line = f"{label}[{'#' * full}{'.' * (width - full)}]{tail}"
        else:
            line = f"{label}{self.done} {seconds:.1f}s"
        self.stream.write(f"\r{line}\x1b[K")
        self.stream.flush()

    def close(self) -> None:
        """End the line."""
        if self.shown:
            self.draw(time.monotonic())
            self.stream.write("\n")
            self.stream.flush()
            self.shown = False
