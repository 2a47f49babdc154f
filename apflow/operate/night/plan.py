"""How many workers a night needs, and what latency to expect, before anything starts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from apflow.config_tables import Fleet, Timing
from apflow.errors import BadRequest
from apflow.model.camera import Camera

#: LSST's pace: two snaps of 15 s, readouts and the slew.
VISIT_EVERY_S = 37.0
#: From raw to associated DiaSources of one 4k x 4k CCD: core-s, and the peak memory of its worker, GiB
#: (``benchmarks/bench_pixels.py``, one core of an AMD EPYC server, 23 November 2026).
FULL_CORE_S, FULL_GIB = 2.45, 1.83
_FULL_PX = 4072 * 4000
#: What of these does not depend on the pixels: a CCD of 512 x 512 takes 0.38 core-s and 645 MiB.
_FIXED_CORE_S, _FIXED_GIB = 0.35, 0.61
#: A worker's CPU for a CCD over the above: alerts and images to disk make it 3.5 core-s, and CCDs are not alike.
HEADROOM = 1.5
#: What orchestration may add in the median, s.
WAIT_S = 0.5
#: A gather from its first input to the acknowledged alerts, s: the sum of its steps' 95th percentiles in a replay.
GATHER_S = 0.8
#: Part of the detector-visits that have to be within the limit (LSE-61).
_MOST = Fraction(98, 100)


@dataclass(frozen=True)
class Choice:
    """A number of workers, and what it gives.

    Attributes
    ----------
    name : `str`
    workers, gather_workers : `int`
        A core each, of which the gather workers use little.
    memory_gib : `float`
        Of all workers.
    every_s : `float`
        Shortest time between visits that they keep up with.
    keeps_up : `bool`
        Whether that is short enough.
    p50_s, p98_s : `float`
        Latency from the end of readout to the acknowledged alerts, of a visit
        that finds the workers idle, as each does where they keep up.
    """

    name: str
    workers: int
    gather_workers: int
    memory_gib: float
    every_s: float
    keeps_up: bool
    p50_s: float
    p98_s: float


@dataclass(frozen=True)
class Plan:
    """What a night needs; see `plan_night` for how it is reckoned.

    Attributes
    ----------
    camera : `str`
    detectors : `int`
        Live CCDs, of which each visit is processed.
    visit_every_s, latency_s : `float`
        What was asked: the cadence, and the limit for 98 % of the detector-visits.
    core_s, memory_gib : `float`
        Of one CCD on one worker.
    keeping_up, for_latency : `int`
        Workers that the cadence asks for, and the limit.
    choices : tuple of `Choice`
        Keeping up, within the limit, the whole focal plane at once.
    chosen : `Choice`
        The larger of the first two, or what cores and memory allow.
    binding : `str`
        What that number comes from: ``cadence``, ``latency``, ``cores`` or ``memory``.
    """

    camera: str
    detectors: int
    visit_every_s: float
    latency_s: float
    core_s: float
    memory_gib: float
    keeping_up: int
    for_latency: int
    choices: tuple[Choice, ...]
    chosen: Choice
    binding: str

    @property
    def workers(self) -> int:
        """Compute workers to start."""
        return self.chosen.workers

    @property
    def gather_workers(self) -> int:
        """Gather workers to start."""
        return self.chosen.gather_workers

    @property
    def remarks(self) -> list[str]:
        """What does not fit, in words."""
        found, chosen, alone = [], self.chosen, self.choices[-1]
        if not chosen.keeps_up:
            found.append(
                f"{chosen.workers} workers do not keep up with a visit every {self.visit_every_s:g} s: visits queue. "
                f"They keep up with one every {chosen.every_s:.0f} s; this cadence needs {self.keeping_up} workers"
            )
        if alone.p98_s > self.latency_s:
            found.append(
                f"no number of workers has 98 % of the alerts out within {self.latency_s:g} s: "
                f"a CCD that waits for none takes {alone.p98_s:.0f} s"
            )
        elif chosen.p98_s > self.latency_s:
            found.append(
                f"98 % of a visit's alerts are out within {chosen.p98_s:.0f} s, not {self.latency_s:g} s: "
                f"that needs {self.for_latency} workers"
            )
        return found


def plan_night(
    camera: Camera,
    *,
    detectors: str = "science",
    core_s: float | None = None,
    visit_every_s: float = VISIT_EVERY_S,
    cores: int | None = None,
    memory_gib: float | None = None,
    latency_s: float = Fleet.latency_s,
) -> Plan:
    """Size a cluster to a focal plane.

    With n live CCDs, C core-s of one CCD, a visit every T s, w workers of one
    core and headroom h = 1.5::

        C              = 0.35 + 2.10 x pixels / (4072 x 4000)             core-s
        memory         = 0.61 + 1.22 x pixels / (4072 x 4000)             GiB a worker
        keeping up     : w = ceil(n C h / T)
        latency (half) = 0.5 + (ceil(n / 2 / w) - 1) C h + C + 0.8        s
        latency (98 %) = the same with 0.98 n in place of n / 2, + 5      s
        within 60 s    : the smallest w whose latency (98 %) is
        gather workers : ceil(batches x 0.8 h / T)

    0.5 s is what orchestration may add, 0.8 s a gather, and 5 s the longest that a batch
    waits for the rest of its raft (``timing.gather_after_s``); a worker goes on to its next CCD
    after C h, since it writes images meanwhile. More workers than CCDs change nothing: n of
    them give the lowest latency.

    Parameters
    ----------
    camera : `Camera`
        As it is processed (`load_camera` with the size of cut-outs).
    detectors : `str`
        Those that are live, see `Camera.select`.
    core_s : `float`, optional
        CPU seconds of one CCD, measured elsewhere, in place of the formula.
    visit_every_s : `float`
        Time between visits, s.
    cores : `int`, optional
        Cores for compute workers; default: any number.
    memory_gib : `float`, optional
        Memory for all workers; default: any.
    latency_s : `float`
        Limit for 98 % of the detector-visits, s.

    Raises
    ------
    BadRequest
        A value is not above 0, no detector is live, or the memory is too
        little for one worker of each role.
    """
    asked = {
        "core-s of a CCD": core_s,
        "time between visits, s,": visit_every_s,
        "cores": cores,
        "memory, GiB,": memory_gib,
        "latency limit, s,": latency_s,
    }
    for name, value in asked.items():
        if value is not None and not 0 < value < math.inf:
            raise BadRequest(f"{name} {value} is not accepted: a number above 0")
    live = [camera.detector(d) for d in camera.select(detectors)]
    pixels = sum(d.nx * d.ny for d in live) / len(live) / _FULL_PX
    cost = _FIXED_CORE_S + (FULL_CORE_S - _FIXED_CORE_S) * pixels if core_s is None else core_s
    size = _FIXED_GIB + (FULL_GIB - _FIXED_GIB) * pixels
    night = _Night(len(live), len({d.raft for d in live}), cost, size, visit_every_s)
    keeping_up, for_latency = night.keeping_up(), night.for_latency(latency_s)
    needed, binding = max((keeping_up, "cadence"), (for_latency, "latency"), key=lambda one: one[0])
    if cores is not None and cores < needed:
        needed, binding = cores, "cores"
    if memory_gib is not None and (fits := int(memory_gib / size) - night.gather_workers()) < needed:
        if fits < 1:
            least = (1 + night.gather_workers()) * size
            raise BadRequest(f"memory {memory_gib:g} GiB is not accepted: at least {least:.2f}, for one compute worker")
        needed, binding = fits, "memory"
    names = {"cadence": "keeping up", "latency": f"98 % in {latency_s:g} s", "all": "every CCD at once"}
    return Plan(
        camera=camera.name,
        detectors=night.n,
        visit_every_s=visit_every_s,
        latency_s=latency_s,
        core_s=cost,
        memory_gib=size,
        keeping_up=keeping_up,
        for_latency=for_latency,
        choices=(
            night.choice(names["cadence"], keeping_up),
            night.choice(names["latency"], for_latency),
            night.choice(names["all"], night.n),
        ),
        chosen=night.choice("chosen", needed),
        binding=binding,
    )


@dataclass(frozen=True)
class _Night:
    """The numbers that the formulas are of."""

    n: int
    batches: int
    core_s: float
    memory_gib: float
    every_s: float

    def keeping_up(self) -> int:
        return math.ceil(round(self.n * self.core_s * HEADROOM / self.every_s, 9))

    def gather_workers(self) -> int:
        return math.ceil(round(self.batches * GATHER_S * HEADROOM / self.every_s, 9))

    def latency(self, part: Fraction, workers: int) -> float:
        """Of the CCD that `part` of all are not later than, s; images have come at once."""
        before = math.ceil(math.ceil(part * self.n) / workers) - 1
        late = Timing.gather_after_s if part == _MOST else 0.0
        return WAIT_S + before * self.core_s * HEADROOM + self.core_s + GATHER_S + late

    def for_latency(self, limit_s: float) -> int:
        """The fewest workers within the limit; one for each CCD where none is."""
        return next((w for w in range(1, self.n) if self.latency(_MOST, w) <= limit_s), self.n)

    def choice(self, name: str, workers: int) -> Choice:
        gather = self.gather_workers()
        return Choice(
            name=name,
            workers=workers,
            gather_workers=gather,
            memory_gib=(workers + gather) * self.memory_gib,
            every_s=self.n * self.core_s * HEADROOM / workers,
            keeps_up=workers >= self.keeping_up(),
            p50_s=self.latency(Fraction(1, 2), workers),
            p98_s=self.latency(_MOST, workers),
        )
