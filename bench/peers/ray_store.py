"""Ray: ``ray.put`` into its object store and the call of a warm actor, which sees the array in the store.

Settings: a cluster of this machine alone, without dashboard, telemetry and logs; a store that holds four of the largest
array. `RayPut` puts the array at each call; `RayHandle` puts it once and hands the reference over.
"""

import logging
import os
import tempfile
from collections.abc import Callable
from typing import Any

from bench.handover import FIRST, SIZES, Array, Handover, Look, shm_bytes
from bench.harness import need
from bench.tasks import Looker

STORE_BYTES = 4 * max(SIZES.values())


class RayPut(Handover):
    def start(self, cores: set[int]) -> None:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        need("ray")
        import ray

        ray.init(
            num_cpus=1,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=min(STORE_BYTES, shm_bytes() // 2),
            _temp_dir=tempfile.gettempdir(),
        )
        self.put: Callable[[Any], Any] = ray.put
        self.get: Callable[[Any], Any] = ray.get
        self.actor: Any = ray.remote(num_cpus=1)(Looker).remote()
        self.get(self.actor.pin.remote(cores))

    def ask(self, look: Look, placed: Any) -> int:
        answer: int = self.get(self.actor.look.remote(self.put(placed), look))
        return answer

    def close(self) -> None:
        import ray

        ray.shutdown()


class RayHandle(RayPut):
    def place(self, array: Array) -> Any:
        return self.put(array)

    def stamp(self, placed: Any, number: int) -> int:
        return FIRST  # what lies in the store is never written to again

    def ask(self, look: Look, placed: Any) -> int:
        answer: int = self.get(self.actor.look.remote(placed, look))
        return answer
