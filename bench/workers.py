"""The protocol that ours and the peers share where work is done elsewhere: call, submit, map."""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator

from bench import machine
from bench.channel import GAP_US, Gap, wait_gap
from bench.harness import Sample, Settings, percentiles

CALL_RESULT_OFFSET = 1


class Workers:
    """Worker processes, started before any clock runs. Each peer implements the operations it has.

    Args:
        count: How many.
        cores: Cores to pin each worker to; None leaves them free.
    """

    def __init__(self, count: int, cores: set[int] | None = None) -> None:
        self.count = count
        self.cores = cores

    def call(self, k: int) -> int:
        """``k + 1``, computed by a worker; waits for it."""
        raise NotImplementedError

    def submit(self, k: int) -> Callable[[], int]:
        """Start a call; the result is a callable that waits for ``k + 1``."""
        raise NotImplementedError

    def map(self, items: Iterable[int]) -> Iterator[int]:
        """The empty task over ``items``, one task per item, results in order."""
        raise NotImplementedError

    def pids(self) -> list[int]:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


def measure_call(make: Callable[[int, set[int] | None], Workers], settings: Settings, gap: Gap = "none") -> Sample:
    """Time of one call with one argument, ns, one outstanding; near idles before each if asked to."""
    near_core, far_core = machine.two_cores()
    workers = make(1, {far_core})
    try:
        pid = _only(workers.pids())
        machine.pin({near_core})
        warm = percentiles(_make_calls(workers.call, settings.count(1_000 if gap == "none" else 100, 20), gap))
        wanted = settings.run_seconds * 1e9 / (warm["mean"] + (GAP_US * 1e3 if gap != "none" else 0.0))
        calls = settings.count(min(200_000, max(300, round(wanted))), 50)
        before, far_before, parks_before = machine.usage(), machine.cpu_ns_of(pid), _parks_of(pid)
        samples = _make_calls(workers.call, calls, gap)
        near = machine.usage().since(before)
        return {
            **percentiles(samples),
            "calls": float(calls),
            "near_cpu": near.cpu_ns / calls,
            "far_cpu": (machine.cpu_ns_of(pid) - far_before) / calls,
            "near_parks": near.parks / calls,
            "far_parks": (_parks_of(pid) - parks_before) / calls,
        }
    finally:
        workers.close()


def measure_submit(
    make: Callable[[int, set[int] | None], Workers], settings: Settings, outstanding: int = 1_000
) -> Sample:
    """Calls per second to one worker with ``outstanding`` in flight; each result is waited for and compared."""
    near_core, far_core = machine.two_cores()
    workers = make(1, {far_core})
    try:
        pid = _only(workers.pids())
        machine.pin({near_core})
        warm = _submit_calls(workers.submit, outstanding, settings.count(2 * outstanding, outstanding))
        calls = settings.count(min(1_000_000, max(2 * outstanding, round(settings.run_seconds * warm))), 1_500)
        before, far_before = machine.usage(), machine.cpu_ns_of(pid)
        rate = _submit_calls(workers.submit, outstanding, calls)
        near = machine.usage().since(before)
        return {
            "rate": rate,
            "calls": float(calls),
            "near_cpu": near.cpu_ns / calls,
            "far_cpu": (machine.cpu_ns_of(pid) - far_before) / calls,
        }
    finally:
        workers.close()


def measure_map(make: Callable[[int, set[int] | None], Workers], settings: Settings) -> Sample:
    """Tasks per second through an ordered map with chunks of one, one worker per core, nothing pinned."""
    workers = make(len(os.sched_getaffinity(0)), None)
    try:
        warm = _map_tasks(workers, settings.count(2_000, 200))
        tasks = settings.count(min(2_000_000, max(2_000, round(settings.run_seconds * warm))), 500)
        pids = workers.pids()
        before, far_before = machine.usage(), sum(map(machine.cpu_ns_of, pids))
        rate = _map_tasks(workers, tasks)
        near = machine.usage().since(before)
        return {
            "rate": rate,
            "tasks": float(tasks),
            "near_cpu": near.cpu_ns / tasks,
            "far_cpu": (sum(map(machine.cpu_ns_of, pids)) - far_before) / tasks,
        }
    finally:
        workers.close()


def _make_calls(call: Callable[[int], int], calls: int, gap: Gap) -> list[int]:
    clock = time.perf_counter_ns
    samples = []
    for k in range(calls):
        if gap != "none":
            wait_gap(gap)
        started = clock()
        answer = call(k)
        samples.append(clock() - started)
        if answer != k + CALL_RESULT_OFFSET:
            raise AssertionError(f"call of {k} answered {answer}")
    return samples


def _submit_calls(submit: Callable[[int], Callable[[], int]], outstanding: int, calls: int) -> float:
    pending: deque[Callable[[], int]] = deque()
    started_ns = time.perf_counter_ns()
    expected = CALL_RESULT_OFFSET
    for k in range(min(outstanding, calls)):
        pending.append(submit(k))
    for k in range(outstanding, calls):
        if pending.popleft()() != expected:
            raise AssertionError("a result belongs to another call")
        expected += 1
        pending.append(submit(k))
    for result in pending:
        if result() != expected:
            raise AssertionError("a result belongs to another call")
        expected += 1
    return calls * 1e9 / (time.perf_counter_ns() - started_ns)


def _map_tasks(workers: Workers, tasks: int) -> float:
    started_ns = time.perf_counter_ns()
    for expected, answer in enumerate(workers.map(range(tasks))):
        if answer != expected:
            raise AssertionError(f"task {expected} answered {answer}")
    ended_ns = time.perf_counter_ns()
    if expected != tasks - 1:
        raise AssertionError("a task has no result")
    return tasks * 1e9 / (ended_ns - started_ns)


def _only(pids: list[int]) -> int:
    (pid,) = pids
    return pid


def _parks_of(pid: int) -> int:
    """Voluntary context switches of all threads of another process."""
    parks = 0
    for thread in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{thread}/status") as status:
            parks += sum(int(line.split()[1]) for line in status if line.startswith("voluntary"))
    return parks
