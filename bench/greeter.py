"""The actor whose start is measured, in a module that imports nothing new: what a user's module imports is not ours."""

import sys
import time


class Greeter:
    """A class actor whose first reply tells when it was made and whether numpy was there before it asked."""

    def __init__(self) -> None:
        self.numpy_loaded = "numpy" in sys.modules
        self.born_ns = time.monotonic_ns()

    def greet(self, k: int) -> tuple[int, bool]:
        return k, self.numpy_loaded
