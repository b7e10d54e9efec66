"""Many environments step in several processes and write what they see into one shared array.

Beside it gymnasium's own AsyncVectorEnv. `--steps N`, 300 by default. Needs gymnasium: pip install 'shmipc[examples]'.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

import shmipc


class Part:
    """Some of the environments: those of the rows `rows` of the shared arrays.

    As gymnasium's vector environments do by default, an episode that ended starts anew with the next step, whose
    reward is 0.
    """

    def __init__(self, make: Callable[[], gymnasium.Env[Any, Any]], rows: range, arrays: dict[str, np.ndarray]) -> None:
        self.environments = {row: make() for row in rows}
        self.arrays = arrays

    def reset(self, seed: int) -> None:
        for row, environment in self.environments.items():
            self.arrays["observations"][row] = environment.reset(seed=seed + row)[0]
            self.arrays["terminated"][row] = self.arrays["truncated"][row] = False

    def step(self) -> None:
        seen, rewards, terminated, truncated, actions = (
            self.arrays[name] for name in ("observations", "rewards", "terminated", "truncated", "actions")
        )
        for row, environment in self.environments.items():
            if terminated[row] or truncated[row]:
                seen[row], rewards[row] = environment.reset()[0], 0.0
                terminated[row] = truncated[row] = False
            else:
                seen[row], rewards[row], terminated[row], truncated[row], _ = environment.step(actions[row])


class SharedVectorEnv:
    """`count` environments over `workers` processes, stepped together.

    Returns of `step`: observations (count, *shape), rewards (count,), terminated and truncated (count,) bool. They are
    the shared arrays themselves, written again by the next step: copy what must last.
    """

    def __init__(
        self, system: shmipc.System, make: Callable[[], gymnasium.Env[Any, Any]], count: int, *, workers: int = 2
    ) -> None:
        one = make()
        seen, acts = one.observation_space, one.action_space
        assert seen.shape is not None
        assert acts.shape is not None
        self._arrays = {
            "observations": shmipc.shared((count, *seen.shape), seen.dtype),
            "actions": shmipc.shared((count, *acts.shape), acts.dtype),
            "rewards": shmipc.shared((count,), np.float64),
            "terminated": shmipc.shared((count,), np.bool_),
            "truncated": shmipc.shared((count,), np.bool_),
        }
        rows = [range(count * at // workers, count * (at + 1) // workers) for at in range(workers)]
        self._parts = [system.spawn(Part, make, part, self._arrays) for part in rows]

    def reset(self, *, seed: int) -> np.ndarray:
        for done in [part.reset.submit(seed) for part in self._parts]:
            done.result()
        return self._arrays["observations"]

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        self._arrays["actions"][:] = actions
        for done in [part.step.submit() for part in self._parts]:
            done.result()
        arrays = self._arrays
        return arrays["observations"], arrays["rewards"], arrays["terminated"], arrays["truncated"]


def make() -> gymnasium.Env[Any, Any]:
    return gymnasium.make("CartPole-v1")


def play(environment: Any, actions: np.ndarray) -> tuple[float, np.ndarray]:
    """Steps of one environment per second, and the last observations, after one episode for warm-up."""
    environment.reset(seed=7)
    environment.step(actions[0])
    environment.reset(seed=1)
    began = time.perf_counter()
    for row in actions:
        last = environment.step(row)[0]
    return actions.size / (time.perf_counter() - began), np.array(last)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=300)
    count = 8
    actions = np.random.default_rng(3).integers(0, 2, (parser.parse_args().steps, count))
    with shmipc.System() as system:
        ours, seen = play(SharedVectorEnv(system, make, count), actions)
    peer = gymnasium.vector.AsyncVectorEnv([make] * count)
    theirs, expected = play(peer, actions)
    peer.close()
    assert np.array_equal(seen, expected)
    print(f"{count} environments, {len(actions)} steps, the same observations from both")
    print(f"shmipc, 2 processes: {ours:.0f} steps/s, gymnasium, {count}: {theirs:.0f}: {ours / theirs:.1f}x")


if __name__ == "__main__":
    main()
