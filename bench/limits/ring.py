"""The bare C ring: driven from Python one-way and in round trips, and in C alone."""

import json
import subprocess

from bench import machine
from bench.channel import GAP_US, Channel, End, Gap, Payload, Port
from bench.harness import Sample, Settings
from bench.limits import build


class BareRing(Channel):
    def __init__(self, payload: Payload, *, two_way: bool, producers: int = 1) -> None:
        super().__init__(payload, two_way=two_way, producers=producers)
        assert payload == "bytes"
        assert producers == 1
        ring = build.extension("ring_module", "bench_ring").Ring
        self.to_near, self.to_far = ring(), ring()

    def open(self, end: End) -> Port:
        outgoing, incoming = (self.to_far, self.to_near) if end == "near" else (self.to_near, self.to_far)
        return Port(outgoing.put, incoming.get)


def measure_ring_trips(settings: Settings) -> Sample:
    """Round trip of 64 bytes in C, ns, both sides spinning."""
    return run_trips("ring_trips", settings.count(10_000, 100), settings.count(1_000_000, 1_000), "none")


def run_trips(name: str, warm_up: int, trips: int, gap: Gap) -> Sample:
    """Run one of the two C programs and read the line that it prints."""
    near_core, far_core = machine.two_cores()
    numbers = map(str, (near_core, far_core, warm_up, trips, GAP_US))
    done = subprocess.run((build.program(name), *numbers, gap), capture_output=True, text=True, check=True)
    sample: Sample = json.loads(done.stdout)
    return sample
