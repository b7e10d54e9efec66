"""One camera, several models: each frame is written once, and every model reads it where it lies."""

import time

import numpy as np

import shmipc

SHAPE = (480, 640, 3)
FRAMES = 40


class Model:
    """Follows a bus and looks at each frame; a slow one misses frames, and knows how many."""

    def __init__(self, bus: shmipc.Bus, seconds: float) -> None:
        self.reader = bus.subscribe()
        self.seconds = seconds

    def infer(self) -> tuple[int, int, int]:
        seen = 0
        while True:
            frame = self.reader.receive(timeout=10)  # a read-only array; nothing is copied
            seen += 1
            number = int(frame[0, 0, 0])
            assert (frame == number).all()  # never torn, however slow we are
            time.sleep(self.seconds)
            if number == FRAMES - 1:
                return seen, self.reader.missed, number


def main() -> None:
    with shmipc.System() as system, shmipc.Bus.create("camera", frames=4) as bus:
        models = {name: system.spawn(Model, bus, seconds) for name, seconds in (("quick", 0.0), ("slow", 0.02))}
        results = {name: model.infer.submit() for name, model in models.items()}
        for number in range(FRAMES):
            with bus.begin(SHAPE, np.uint8) as frame:  # fill it in place
                frame[...] = number
            time.sleep(0.005)
        for name, result in results.items():
            seen, missed, last = result.result()
            print(f"{name}: {seen} frames, {missed} missed, the last was {last}")
            assert seen + missed == FRAMES


if __name__ == "__main__":
    main()
