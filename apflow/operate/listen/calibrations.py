"""The desk's book of raw calibrations: what was told of each exposure, and what runs for it.

A calibration is one exposure, whichever of a sequence it is. startIntegration
or a header starts it, whichever comes first: there is neither nextVisit nor
anything to prepare. What an exposure is, most headers say; before any is seen,
startIntegration does, and where two of these differ it is a calibration: of
the sky it is taken at its header's word alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from apflow.model.calibration import CalibrationExposure, Intent, is_calibration
from apflow.model.camera import Camera
from apflow.model.ids import image_name
from apflow.model.next_visit import StartIntegration
from apflow.model.sighting import Sighting
from apflow.operate.listen.actions import READOUT_S, Action, Cancel, Ignore, Restart, Start
from apflow.operate.listen.rules import IGNORE, Rule, Subject, first_match


@dataclass(frozen=True, order=True)
class _Said:
    """One word about an exposure: by startIntegration, or by the header of a detector (-1: of the whole image)."""

    image_type: str
    physical_filter: str
    group: str
    exposure_time_s: float  # negative where it is not told
    detector: int = -1


@dataclass(eq=False)
class Frame:
    """What was told of one exposure.

    Attributes
    ----------
    exposure : `int`
    heard_unix : `float`
        When anything was first heard of it.
    events, headers : `set`
        What was said of it by startIntegration, as a calibration, and by files, as whatever it is.
    expected : `tuple` [`int`, ...] or `None`
        Detectors whose images are to come; None where nobody told.
    running, graph : `CalibrationExposure`, `str`
        What was started, and by which graph; `again`: in place of something
        else; `ended`: whether it came to its end, and `ended_unix` when.
    """

    exposure: int
    heard_unix: float
    events: set[_Said] = field(default_factory=set)
    headers: set[_Said] = field(default_factory=set)
    expected: tuple[int, ...] | None = None
    running: CalibrationExposure | None = None
    graph: str = ""
    again: bool = False
    ended: bool = False
    ended_unix: float = 0.0

    @property
    def image_type(self) -> str:
        """What most headers say it is, else startIntegration; empty where nobody does."""
        if self.headers:
            return _most(said.image_type for said in self.headers)
        return min((said.image_type for said in self.events), default="")

    def told(self) -> tuple[str, str, float]:
        """Group, filter and exposure time: by those headers that tell what it is; negative where no time is told."""
        of_type = [said for said in self.headers if said.image_type == self.image_type]
        event = min((said for said in self.events if said.image_type == self.image_type), default=None)
        group = event.group if event and event.group else _most(s.group for s in of_type if s.group)
        physical_filter = _most(s.physical_filter for s in of_type if s.physical_filter)
        times = Counter(s.exposure_time_s for s in of_type if s.exposure_time_s >= 0)
        exposure_time_s = min(times, key=lambda t: (-times[t], t), default=event.exposure_time_s if event else -1.0)
        return group, physical_filter if of_type or not event else event.physical_filter, exposure_time_s


class Calibrations:
    """Decides about the calibrations of one camera, as a function of what was told.

    Parameters
    ----------
    camera : `Camera`
    rules : sequence of `Rule`
    """

    def __init__(self, camera: Camera, rules: Sequence[Rule]) -> None:
        self._camera, self._rules = camera, tuple(rules)
        self._frames: dict[int, Frame] = {}

    def holds(self, exposure: int) -> bool:
        """Whether an exposure is a calibration, as far as anybody told."""
        frame = self._frames.get(exposure)
        return frame is not None and is_calibration(frame.image_type)

    def ignores(self, exposure: int) -> bool:
        """Whether no rule takes an exposure that is a calibration."""
        return self.holds(exposure) and self._wish(self._frames[exposure])[1] == IGNORE

    def integrate(self, event: StartIntegration, now_unix: float) -> bool:
        """Take the start of a calibration's integration; whether it is news."""
        name = event.more.get("filter", "")
        known = next((f for f in self._camera.filters if name in (f.physical_filter, f.band)), None)
        physical_filter = known.physical_filter if known else ""  # the header will tell
        said = _Said(event.image_type, physical_filter, event.group, event.exposure_time_s)
        frame = self._frame(event.exposure, now_unix)
        is_news = said not in frame.events
        frame.events.add(said)
        return is_news

    def see(self, sighting: Sighting, now_unix: float) -> bool:
        """Take what a file told; whether it is news."""
        frame = self._frame(sighting.exposure, now_unix)
        if sighting.expected is not None:
            before, frame.expected = frame.expected, tuple(sorted({*(frame.expected or ()), *sighting.expected}))
            return before != frame.expected
        time_s = -1.0 if math.isnan(sighting.exposure_time_s) else sighting.exposure_time_s
        detector = -1 if sighting.detector is None else sighting.detector
        said = _Said(sighting.image_type.upper(), sighting.physical_filter, sighting.group, time_s, detector)
        is_news = bool(said.image_type) and said not in frame.headers
        if is_news:
            frame.headers.add(said)
        return is_news

    def late(self, sighting: Sighting) -> list[Action]:
        """What to say of the first image of an exposure that nobody waits for any more."""
        frame = self._frames[sighting.exposure]
        if not frame.ended or len(frame.headers) > 1 or sighting.arrived_unix <= frame.ended_unix:
            return []
        return [Ignore(f"image {sighting.image}", "its exposure has ended")]

    def decide(self, exposure: int) -> list[Action]:
        """What is to be done about an exposure."""
        frame = self._frames[exposure]
        wish, graph = self._wish(frame)
        running = frame.running
        if wish is None:
            if running is None or frame.ended:
                return []
            frame.running = None
            reason = "no rule takes it" if self.holds(exposure) else f"it is {frame.image_type}"
            return [Cancel("", running, reason)]
        exposing_s = 0.0 if frame.headers else wish.exposure_time_s + READOUT_S
        if running is None:
            frame.running, frame.graph, frame.ended = wish, graph, False
            return [Start(wish, graph, frame.expected, exposing_s)]
        difference = _difference(running, wish)
        if not difference or (frame.ended and not frame.headers):
            return []
        frame.running, frame.graph, frame.again, frame.ended = wish, graph, True, False
        reason = f"{wish.image} is not as announced: {difference}"
        return [Restart(wish, graph, frame.expected, exposing_s, instead_of=running, reason=reason)]

    def ended(self, exposure: int, now_unix: float) -> list[Action]:
        """What was started for an exposure came to its end."""
        frame = self._frames.get(exposure)
        if frame is None or frame.running is None:
            return []
        frame.ended, frame.ended_unix = True, now_unix
        return self.decide(exposure)

    def resume(self, exposure: CalibrationExposure, graph: str, again: bool, now_unix: float) -> None:
        """An exposure that an earlier service started."""
        frame = self._frame(exposure.exposure, now_unix)
        frame.running, frame.graph, frame.again, frame.ended = exposure, graph, again, False

    def unfinished(self) -> Iterator[Start]:
        """What runs, or should."""
        for frame in self._frames.values():
            if frame.running is not None and not frame.ended:
                kind = Restart if frame.again else Start
                yield kind(frame.running, frame.graph, frame.expected)

    def forget(self, old_unix: float) -> None:
        """Let go of what was first heard of before a time, but for what runs."""
        self._frames = {
            number: frame
            for number, frame in self._frames.items()
            if frame.heard_unix > old_unix or (frame.running is not None and not frame.ended)
        }

    def _frame(self, exposure: int, now_unix: float) -> Frame:
        return self._frames.setdefault(exposure, Frame(exposure, now_unix))

    def _wish(self, frame: Frame) -> tuple[CalibrationExposure | None, str]:
        """What should run, and by which graph: a function of what was told."""
        if not is_calibration(frame.image_type):
            return None, IGNORE
        intent = Intent.of(frame.image_type)
        group, physical_filter, exposure_time_s = frame.told()
        filters = (physical_filter,) if physical_filter else ()
        subject = Subject("", self._camera.instrument, intent.image_type, filters)
        graph = first_match(self._rules, subject, self._camera)
        if graph == IGNORE or exposure_time_s < 0:
            return None, graph
        name = image_name(frame.exposure, self._camera.image_prefix)
        exposure = CalibrationExposure(
            instrument=self._camera.instrument,
            exposure=frame.exposure,
            group=group,
            intent=intent,
            physical_filter=physical_filter,
            exposure_time_s=exposure_time_s,
            image=name,
        )
        return exposure, graph


def _difference(running: CalibrationExposure, wish: CalibrationExposure) -> str:
    """How an exposure is not what was announced; a filter that either leaves open agrees."""
    if running.intent is not wish.intent:
        return f"intent {wish.intent}, not {running.intent}"
    if running.physical_filter and wish.physical_filter and running.physical_filter != wish.physical_filter:
        return f"filter {wish.physical_filter}, not {running.physical_filter}"
    return ""


def _most(names: Iterable[str]) -> str:
    """The name that most say; of as many, the first in order; empty where nobody says any."""
    counts = Counter(names)
    return min(counts, key=lambda name: (-counts[name], name), default="")
