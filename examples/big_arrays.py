"""A large array goes to other processes without being copied: its memory is shared."""

import numpy as np

import shmipc


class Statistician:
    def mean(self, part: np.ndarray) -> float:
        return float(part.mean())

    def may_write(self, part: np.ndarray) -> bool:
        return bool(part.flags.writeable)


def main() -> None:
    with shmipc.System() as system:
        frame = shmipc.empty((1000, 4000), np.float64)  # 32 MB, an ordinary ndarray
        frame[:] = np.arange(1000)[:, None]
        other = system.spawn(Statistician)

        print("mean of all:", other.mean(frame))
        assert other.mean(frame) == 499.5
        assert other.mean(frame[::2]) == 499.0  # a view travels as a handle too
        assert not other.may_write(frame)  # who receives it may only read

        frame[:] = 7  # and sees what is written later
        assert other.mean(frame[:10, :10]) == 7.0

        own = np.ones(1000)
        shared = shmipc.share(own)  # a copy, once; from then on shared
        assert shmipc.share(shared) is shared

        pool = system.pool(2)
        parts = np.array_split(frame, 8)
        print("sum by parts:", sum(pool.map(np.sum, parts)))
        assert sum(pool.map(np.sum, parts)) == 7 * frame.size


if __name__ == "__main__":
    main()
