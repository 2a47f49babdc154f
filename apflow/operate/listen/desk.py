"""The desk: what is announced and seen goes in, decisions come out.

It keeps what was told as sets, and decides from those alone, so that the order
in which things are told, and how often, makes no difference to the outcome. It
starts nothing itself, and the time is given to it.

The exposure id of a visit is not known at nextVisit; a visit is *identified*
by startIntegration, by a list of expected sensors, or by a header, whichever
comes first, and started then if its pointing and filter are known. Headers
outrank startIntegration, which outranks nextVisit.

Calibrations are in a book of their own, `Calibrations`, which every word about
an exposure is told to as well: one that it holds is no visit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from apflow.config import Config
from apflow.errors import BadRequest
from apflow.model.calibration import CalibrationExposure, is_calibration
from apflow.model.camera import Camera
from apflow.model.ids import day_obs, image_name
from apflow.model.next_visit import SCIENCE, Message, NextVisit, NextVisitCanceled, StartIntegration
from apflow.model.sighting import Sighting
from apflow.model.visit import Visit
from apflow.operate.listen.actions import Action, Cancel, Ignore, Prepare, Restart, Start, Target, TimedOut
from apflow.operate.listen.calibrations import Calibrations
from apflow.operate.listen.knowledge import Group, Shot, Tolerance, first_exposure, fits, is_newer, visit_of
from apflow.operate.listen.rules import DEFAULT, IGNORE, Rule, Subject, first_match

#: TAI is ahead of UTC by this since 2017; whoever knows better says so.
TAI_MINUS_UTC_S = 37.0
_MJD_UNIX = 40587.0
_DAY_S = 86_400.0


@dataclass(frozen=True)
class _Wish:
    """What should run for a shot, or why nothing should; `again_unix`: when that may change by itself."""

    visit: Visit | None = None
    graph: str = ""
    reason: str = ""
    again_unix: float | None = None


class Desk:
    """Decides about the visits and the calibrations of one camera.

    Parameters
    ----------
    camera : `Camera`
    config : `Config`
        Its tables `invocation` and `timing`.
    rules : sequence of `Rule`
    tai_minus_utc_s : `float`
    """

    def __init__(
        self,
        camera: Camera,
        config: Config,
        rules: Sequence[Rule] = DEFAULT,
        *,
        tai_minus_utc_s: float = TAI_MINUS_UTC_S,
    ) -> None:
        self._camera, self._rules, self._tai = camera, tuple(rules), tai_minus_utc_s
        self._own, self._image_timeout_s = config.invocation, config.timing.image_timeout_s
        self._tolerance = Tolerance(self._own.pointing_tolerance_deg, self._own.angle_tolerance_deg)
        self._groups: dict[str, Group] = {}
        self._shots: dict[int, Shot] = {}
        self._calibrations = Calibrations(camera, self._rules)

    # What comes in.

    def take(self, message: Message, now_unix: float) -> list[Action]:
        """An event; gives what to do."""
        match message:
            case NextVisit():
                return self._announced(message, now_unix)
            case NextVisitCanceled():
                group = self._group(message.group, now_unix)
                if group.cancelled:
                    return [Ignore(f"nextVisitCanceled of group {group.name!r}", "it is cancelled already")]
                return self._cancelled(group, now_unix)
            case StartIntegration():
                return self._integrating(message, now_unix)

    def see(self, sighting: Sighting, now_unix: float) -> list[Action]:
        """What a file told of an image; gives what to do."""
        why = fits(sighting, self._camera)
        if why:
            return [Ignore(f"image {sighting.image}", why)]
        is_news = self._calibrations.see(sighting, now_unix)
        if is_calibration(sighting.image_type):
            late = self._calibrations.late(sighting)
            return self._decide_exposure(sighting.exposure, now_unix) or late if is_news else []
        shot = self._shot(first_exposure(sighting), now_unix)
        is_first = not shot.seen_unix
        if not (shot.see(sighting, now_unix, self._tolerance) or is_news):
            return []
        actions = self._decide_exposure(sighting.exposure, now_unix, shot)
        if is_first and not actions and shot.ended and sighting.arrived_unix > shot.ended_unix:
            return [Ignore(f"image {sighting.image}", "its visit has ended")]
        return actions

    def ended(self, target: Target, now_unix: float) -> list[Action]:
        """What was started came to its end."""
        if isinstance(target, CalibrationExposure):
            return self._calibrations.ended(target.exposure, now_unix)
        shot = self._shots.get(target.visit)
        if shot is None or shot.running is None:
            return []
        shot.ended, shot.ended_unix = True, now_unix
        return self._decide_shot(shot, now_unix)

    def resume(self, visit: Target, graph: str, again: bool, now_unix: float) -> None:
        """What an earlier service started."""
        if isinstance(visit, CalibrationExposure):
            return self._calibrations.resume(visit, graph, again, now_unix)
        shot = self._shot(visit.visit, now_unix)
        shot.running, shot.graph, shot.again, shot.ended = visit, graph, again, False
        if visit.group:
            shot.groups[visit.group] += 0  # known, and outranked by what headers say

    def tick(self, now_unix: float) -> list[Action]:
        """What is to be done because time has passed."""
        actions: list[Action] = []
        for shot in self._in_grace():
            actions += self._decide_shot(shot, now_unix)
        for group in list(self._groups.values()):
            if group.event is not None and self._is_waiting(group) and now_unix >= self._deadline(group):
                actions.append(TimedOut(group.name, group.event))
                group.closed = True
            group.closed = group.closed or self._is_served(group)
        self._forget(now_unix)
        return actions

    def due_unix(self) -> float | None:
        """When to call `tick` next; None: not before something comes in."""
        times = [self._deadline(group) for group in self._groups.values() if self._is_waiting(group)]
        times += [t for shot in self._in_grace() if (t := self._wish(shot, 0.0).again_unix) is not None]
        return min(times, default=None)

    def close_group(self, group: str, now_unix: float) -> None:
        """An earlier service ended the waiting for a group."""
        self._group(group, now_unix).closed = True

    def unfinished(self) -> Iterator[Prepare | Start]:
        """What runs, or should: a service that begins anew starts it again."""
        for group in self._groups.values():
            if group.prepared is not None and group.event is not None and self._is_waiting(group):
                graph = self._route(group.event.survey, SCIENCE, group.event.filters)
                yield Prepare(group.name, group.prepared, graph)
        for shot in self._shots.values():
            if shot.running is not None and not shot.ended:
                kind = Restart if shot.again else Start
                yield kind(shot.running, shot.graph, shot.expected)
        yield from self._calibrations.unfinished()

    def waiting(self) -> list[str]:
        """Groups that are announced and not identified."""
        return [group.name for group in self._groups.values() if self._is_waiting(group)]

    # Events.

    def _announced(self, event: NextVisit, now_unix: float) -> list[Action]:
        what = f"nextVisit of group {event.group!r}"
        age_s = event.age_s(now_unix + self._tai)
        if age_s > self._own.max_age_s:
            return [Ignore(what, f"it is {age_s:.0f} s old; accepted: up to {self._own.max_age_s:g}")]
        try:
            event.check(self._camera)
        except BadRequest as error:
            return [Ignore(what, str(error))]
        if event.unfit:
            return [Ignore(what, event.unfit)]
        group = self._group(event.group, now_unix)
        if event == group.event:
            return [Ignore(what, "it came before")]
        if not is_newer(event, group.event):
            return [Ignore(what, "a newer one came before")]
        group.event, group.event_unix = event, now_unix
        return self._decide(group, now_unix)

    def _integrating(self, event: StartIntegration, now_unix: float) -> list[Action]:
        what = f"startIntegration of {event.image}"
        if not event.image.startswith(f"{self._camera.image_prefix}_"):
            return [Ignore(what, f"it is no image of {self._camera.instrument}: {self._camera.image_prefix}_...")]
        if is_calibration(event.image_type):
            if not self._calibrations.integrate(event, now_unix):
                return [Ignore(what, "it came before")]
            ignored = Ignore(what, "no rule takes it", kept=True)
            actions = self._decide_exposure(event.exposure, now_unix)
            return [*actions, ignored] if self._calibrations.ignores(event.exposure) else actions
        shot = self._shot(event.first_exposure, now_unix)
        if not shot.integrate(event):
            return [Ignore(what, "it came before")]
        return self._decide_shot(shot, now_unix)

    def _group(self, name: str, now_unix: float) -> Group:
        return self._groups.setdefault(name, Group(name, now_unix))

    def _shot(self, first: int, now_unix: float) -> Shot:
        return self._shots.setdefault(first, Shot(first, now_unix))

    # Decisions.

    def _decide(self, group: Group, now_unix: float) -> list[Action]:
        actions: list[Action] = []
        for shot in self._of(group):
            actions += self._decide_shot(shot, now_unix)
        return actions + self._preparation(group, now_unix)

    def _of(self, group: Group) -> list[Shot]:
        return [shot for shot in self._shots.values() if shot.group == group.name]

    def _in_grace(self) -> list[Shot]:
        """Shots that time alone may start."""
        return [shot for shot in self._shots.values() if shot.running is None and shot.views]

    def _is_waiting(self, group: Group) -> bool:
        """Whether a group is announced for a graph, and nothing could be started for it yet."""
        event = group.event
        if (
            event is None
            or group.cancelled
            or group.closed
            or self._route(event.survey, SCIENCE, event.filters) == IGNORE
        ):
            return False
        return not self._is_served(group)

    def _is_served(self, group: Group) -> bool:
        """Whether something was started for a group, or its images are there."""
        return any(shot.running or shot.header for shot in self._of(group))

    def _deadline(self, group: Group) -> float:
        """When no image of a group that is not identified is expected any more."""
        assert group.event is not None
        start_unix = group.event.start_tai - self._tai if group.event.start_tai else group.event_unix
        start_unix = min(max(start_unix, group.event_unix), group.event_unix + self._own.max_age_s)
        return start_unix + group.event.duration_s + self._image_timeout_s

    def _preparation(self, group: Group, now_unix: float) -> list[Action]:
        event = group.event
        if event is None:
            return []
        graph = self._route(event.survey, SCIENCE, event.filters)
        if graph == IGNORE:
            reason = f"no rule takes survey {event.survey!r}"
            return [Ignore(f"nextVisit of group {group.name!r}", reason, kept=True)]
        if not self._is_waiting(group):
            return []
        if len(event.filters) != 1:
            what, reason = f"preparation for group {group.name!r}", "its filter is open: the header will tell"
            return [Ignore(what, reason, kept=True)]
        night = day_obs((event.start_tai or now_unix + self._tai) / _DAY_S + _MJD_UNIX)
        visit = event.visit(self._camera, night * 100_000, max(event.nimages, 1), event.exposure_time_s or 0.0)
        if visit == group.prepared:
            return []
        group.prepared = visit
        return [Prepare(group.name, visit, graph)]

    def _cancelled(self, group: Group, now_unix: float) -> list[Action]:
        """End the waiting of a group, unless an image is there: then the visit has been, whatever was planned."""
        group.cancelled = True
        actions = [action for shot in self._of(group) for action in self._decide_shot(shot, now_unix)]
        if actions or group.closed or self._is_served(group):
            return actions
        return [Cancel(group.name, None, "nextVisitCanceled")]

    def _decide_exposure(self, exposure: int, now_unix: float, *visits: Shot) -> list[Action]:
        """Decide about an exposure, and about the visits that it is, or could be, a snap of."""
        shots = [self._shots[first] for first in (exposure - 1, exposure) if first in self._shots]
        shots += [shot for shot in visits if shot not in shots]
        actions = [action for shot in shots for action in self._decide_shot(shot, now_unix)]
        return actions + self._calibrations.decide(exposure)

    def _decide_shot(self, shot: Shot, now_unix: float) -> list[Action]:
        wish = self._wish(shot, now_unix)
        running, visit = shot.running, wish.visit
        if running is None:
            if visit is None:
                return []
            shot.running, shot.graph, shot.ended = visit, wish.graph, False
            return [Start(visit, wish.graph, shot.expected, shot.exposing_s())]
        if visit is None:
            if shot.ended or not wish.reason:
                return []
            shot.running = None
            return [Cancel(running.group, running, wish.reason)]
        difference = self._tolerance.difference(running, visit)
        if not difference and running.nsnaps != visit.nsnaps and not shot.ended:
            difference = f"{visit.nsnaps} snaps, not {running.nsnaps}"
        if not difference or (shot.ended and shot.header is None):
            return []
        shot.running, shot.graph, shot.again, shot.ended = visit, wish.graph, True, False
        reason = f"visit {visit.visit} is not as announced: {difference}"
        return [Restart(visit, wish.graph, shot.expected, shot.exposing_s(), instead_of=running, reason=reason)]

    def _wish(self, shot: Shot, now_unix: float) -> _Wish:
        """What should run: a function of what was told, and of time for a header that nothing announced."""
        group = self._groups.get(shot.group)
        event, header = (group.event if group else None), shot.header
        nsnaps, exposure_time_s = shot.nsnaps(event), shot.exposure_time_s(event)
        if any(map(self._calibrations.holds, range(shot.first, shot.first + nsnaps))):
            return _Wish(reason="it is a calibration")
        if header is None:
            if group is not None and group.cancelled:
                return _Wish(reason="nextVisitCanceled")
            if event is None or len(event.filters) != 1:
                return _Wish()  # a header has to tell
        filters = (header.physical_filter,) if header else event.filters if event else ()
        graph = self._route(event.survey if event else "", shot.image_type(SCIENCE if event else ""), filters)
        if graph == IGNORE:
            return _Wish(reason="no rule takes it")
        if header is None:
            assert event is not None
            return _Wish(event.visit(self._camera, shot.first, nsnaps, exposure_time_s), graph)
        if event is None and shot.running is None and now_unix < shot.seen_unix + self._own.header_grace_s:
            return _Wish(again_unix=shot.seen_unix + self._own.header_grace_s)
        images = tuple(image_name(shot.first + n, self._camera.image_prefix) for n in range(nsnaps))
        return _Wish(visit_of(header, shot.first, shot.group, images, exposure_time_s), graph)

    def _route(self, survey: str, image_type: str, filters: Sequence[str]) -> str:
        subject = Subject(survey, self._camera.instrument, image_type, tuple(filters))
        return first_match(self._rules, subject, self._camera)

    def _forget(self, now_unix: float) -> None:
        """Let go of what ended, or what nobody can wait for any more."""
        old_unix = now_unix - max(self._own.max_age_s, 4 * self._image_timeout_s)
        self._shots = {
            first: shot
            for first, shot in self._shots.items()
            if shot.heard_unix > old_unix or (shot.running is not None and not shot.ended)
        }
        self._calibrations.forget(old_unix)
        busy = {shot.group for shot in self._shots.values()}
        self._groups = {
            name: group
            for name, group in self._groups.items()
            if max(group.heard_unix, group.event_unix) > old_unix or name in busy or self._is_waiting(group)
        }
