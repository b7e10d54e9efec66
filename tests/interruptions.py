"""What a signal handler raises, at each place where one may run."""

import sys
from collections.abc import Callable, Iterator
from types import FrameType, ModuleType
from typing import Any


class Interruption(BaseException):
    """What it raises."""


def each_place(act: Callable[[], object], *modules: ModuleType) -> Iterator[int]:
    """Do it again and again, each time broken off at the next place, until it is done: the places' numbers.

    A handler may run where a function of these modules begins, and where one of the interpreter's own has returned.
    """
    number = 1
    while broken_off(number, act, *modules):
        yield number
        number += 1


def broken_off(number: int, act: Callable[[], object], *modules: ModuleType) -> bool:
    """Do it once: was it broken off, at the place of this number?"""
    files = {module.__file__ for module in modules}
    left = number

    def interrupt(frame: FrameType, event: str, _: Any) -> None:
        nonlocal left
        if event in ("call", "c_return") and frame.f_code.co_filename in files:
            left -= 1
            if left == 0:
                raise Interruption

    sys.setprofile(interrupt)
    try:
        act()
    except Interruption:
        return True
    finally:
        sys.setprofile(None)
    return False
