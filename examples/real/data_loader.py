"""A loader of training batches, used as torch's DataLoader is: workers make the batches, which arrive by handle.

Beside it the same with `multiprocessing.Pool`, which pickles every batch, and with torch's own loader if it is there.
`--epochs N`, 2 by default. Needs scikit-learn, for its photographs, and pillow: pip install 'shmipc[examples]'.
"""

import argparse
import importlib.util
import multiprocessing
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.datasets import load_sample_image

import shmipc

Batch = tuple[np.ndarray, np.ndarray]


class Patches:
    """Patches of two photographs, each mirrored or not, as float32 of mean 0; the label says from which it comes."""

    def __init__(self, side: int = 96, count: int = 1024) -> None:
        self.photos = [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
        self.side, self.count = side, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        random = np.random.default_rng(index)
        photo = self.photos[index % 2]
        top, left = (int(random.integers(length - self.side)) for length in photo.shape[:2])
        patch = photo[top : top + self.side, left : left + self.side].astype(np.float32) / 255.0
        return (patch[:, ::-1] if random.random() < 0.5 else patch) - patch.mean(), index % 2


def collate(dataset: Any, indices: np.ndarray, empty: Any) -> Batch:
    """Images (batch, height, width, channels) float32, and labels (batch,) int64."""
    first, _ = dataset[int(indices[0])]
    images, labels = empty((len(indices), *first.shape), np.float32), empty(len(indices), np.int64)
    for row, index in enumerate(indices):
        images[row], labels[row] = dataset[int(index)]
    return images, labels


class Worker:
    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def batch(self, indices: np.ndarray) -> Batch:
        return collate(self.dataset, indices, shmipc.empty)


class Loader:
    """Iterate over batches; each iteration is an epoch, in an order of its own if `shuffle`.

    Args:
        system: Whose workers make the batches.
        dataset: Has `__len__` and `__getitem__`; goes to each worker once.
        prefetch: Batches that are made ahead.
    """

    def __init__(
        self,
        system: shmipc.System,
        dataset: Any,
        batch_size: int,
        *,
        workers: int = 2,
        shuffle: bool = False,
        seed: int = 0,
        prefetch: int = 8,
    ) -> None:
        self._pool = system.pool(workers, Worker, dataset)
        self._count, self._batch_size, self._prefetch = len(dataset), batch_size, prefetch
        self._random = np.random.default_rng(seed) if shuffle else None

    def __len__(self) -> int:
        return -(-self._count // self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        order = self._random.permutation(self._count) if self._random else np.arange(self._count)
        batches = [order[start : start + self._batch_size] for start in range(0, self._count, self._batch_size)]
        return self._pool.map(Worker.batch, batches, window=self._prefetch, retries=1)


def with_shmipc(dataset: Patches, batch_size: int, epochs: int) -> tuple[float, float]:
    """Patches per second, and their sum."""
    with shmipc.System() as system:
        loader = Loader(system, dataset, batch_size, shuffle=True)
        return rate(loader, epochs)


def rate(loader: Any, epochs: int) -> tuple[float, float]:
    total = sum(float(images.sum(dtype=np.float64)) for images, _ in loader)  # everybody has started
    began = time.perf_counter()
    count = sum(len(labels) for _ in range(epochs) for images, labels in loader)
    return count / (time.perf_counter() - began), total


DATASET: list[Patches] = []  # inherited by forked workers


def copied_batch(indices: np.ndarray) -> Batch:
    return collate(DATASET[0], indices, np.empty)


class PoolLoader:
    def __init__(self, pool: Any, batches: list[np.ndarray]) -> None:
        self._pool, self._batches = pool, batches

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._pool.imap(copied_batch, self._batches))


def with_multiprocessing(dataset: Patches, batch_size: int, epochs: int) -> tuple[float, float]:
    DATASET[:] = [dataset]
    batches = [np.arange(at, min(at + batch_size, len(dataset))) for at in range(0, len(dataset), batch_size)]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        return rate(PoolLoader(pool, batches), epochs)


class TorchLoader:
    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[Batch]:
        return ((images.numpy(), labels.numpy()) for images, labels in self._loader)


def with_torch(dataset: Patches, batch_size: int, epochs: int) -> tuple[float, float]:
    from torch.utils.data import DataLoader

    loader = DataLoader(dataset, batch_size, shuffle=True, num_workers=2, persistent_workers=True)  # type: ignore[arg-type]
    return rate(TorchLoader(loader), epochs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=2)
    epochs = parser.parse_args().epochs
    dataset, batch_size = Patches(), 64
    ours, total = with_shmipc(dataset, batch_size, epochs)
    peers = {"multiprocessing.Pool": with_multiprocessing}
    if importlib.util.find_spec("torch"):
        peers["torch DataLoader"] = with_torch
    print(f"{len(dataset)} patches of {dataset.side} x {dataset.side} in batches of {batch_size}, 2 workers")
    for name, measure in peers.items():
        theirs, their_total = measure(dataset, batch_size, epochs)
        assert abs(their_total - total) < 1e-3 * len(dataset), (total, their_total)
        print(f"shmipc {ours:.0f} patches/s, {name} {theirs:.0f}: {ours / theirs:.1f}x")


if __name__ == "__main__":
    main()
