"""Two bare process-shared semaphores in C: the least that waking a sleeper costs."""

from bench.channel import GAP_US, Gap
from bench.harness import Sample, Settings
from bench.limits.ring import run_trips

LEAST_PARKS = 0.9


def measure_semaphore_trips(settings: Settings, gap: Gap) -> Sample:
    """Round trip in ns; the far side must have been asleep at nearly every post, or the run fails."""
    trips = settings.count(round(settings.run_seconds * 1e6 / (GAP_US + 50)), 50)
    sample = run_trips("semaphore_trips", settings.count(100, 20), trips, gap)
    if sample["far_parks"] < LEAST_PARKS:
        raise AssertionError(f"the far side slept in {sample['far_parks']:.0%} of the trips only")
    return sample
