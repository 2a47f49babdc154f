"""What a listener is told, and what a service would do with what its desk decides."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from apflow.config import Config
from apflow.config_tables import Invocation
from apflow.model.calibration import CalibrationExposure
from apflow.model.camera import load_camera
from apflow.model.next_visit import NextVisit, NextVisitCanceled, StartIntegration
from apflow.model.sighting import Sighting
from apflow.model.visit import Visit
from apflow.operate.listen.actions import Action, Cancel, Restart, Start, Target
from apflow.operate.listen.desk import TAI_MINUS_UTC_S, Desk
from apflow.operate.listen.knowledge import Tolerance
from apflow.operate.listen.rules import Rule

CAMERA = load_camera("comcam")
TOLERANCE = Tolerance(0.5, 1.0)
NOW = 1_745_202_200.0
GROUP = "2025-04-21T02:24:00.000"
FIRST = 2025042000123


def next_visit(**change: Any) -> NextVisit:
    record: dict[str, Any] = {
        "groupId": GROUP,
        "coordinateSystem": 2,
        "position": [150.1, -32.0],
        "startTime": NOW + 20.0 + TAI_MINUS_UTC_S,
        "rotationSystem": 2,
        "cameraAngle": 25.0,
        "filters": "r_03",
        "dome": 2,
        "duration": 34.0,
        "nimages": 0,
        "instrument": "LSSTComCam",
        "survey": "BLOCK-365",
        "private_sndStamp": NOW + TAI_MINUS_UTC_S,
    }
    return NextVisit.from_record(record | change)


def integration(snap: int = 1, of: int = 1, **change: Any) -> StartIntegration:
    record = {
        "imageName": f"CC_O_20250420_{123 + snap - 1:06d}",
        "exposureTime": 30.0,
        "imagesInSequence": of,
        "imageIndex": snap,
        "additionalKeys": "imageType:groupId",
        "additionalValues": f"OBJECT:{GROUP}",
    }
    return StartIntegration.from_record(record | change)


def header(detector: int | None = 4, snap: int = 1, nsnaps: int = 1, **change: Any) -> Sighting:
    sighting = Sighting(
        instrument="LSSTComCam",
        group=GROUP,
        exposure=FIRST + snap - 1,
        image=f"CC_O_20250420_{123 + snap - 1:06d}",
        snap=snap,
        nsnaps=nsnaps,
        detector=detector,
        ra_deg=150.1,
        dec_deg=-32.0,
        rotation_deg=25.0,
        physical_filter="r_03",
        band="r",
        exposure_time_s=30.0,
        image_type="OBJECT",
        arrived_unix=NOW + 60.0,
        registered=True,
    )
    return dataclasses.replace(sighting, **change)


def expected_sensors(*detectors: int) -> Sighting:
    unknown = dict.fromkeys(("ra_deg", "dec_deg", "rotation_deg", "exposure_time_s"), math.nan)
    blank = dict.fromkeys(("group", "physical_filter", "band", "image_type"), "")
    return header(None, nsnaps=0, expected=detectors, **unknown, **blank)


CANCEL = NextVisitCanceled(1, 100, GROUP)


@dataclasses.dataclass
class Listener:
    """What a service would do with the actions: one run a visit, never two."""

    desk: Desk
    now: float = NOW
    running: dict[int, Visit] = dataclasses.field(default_factory=dict)
    calibrations: dict[int, CalibrationExposure] = dataclasses.field(default_factory=dict)  # by exposure
    actions: list[Action] = dataclasses.field(default_factory=list)

    def tell(self, *told: object) -> Listener:
        for one in told:
            self.now += 0.01
            self.apply(
                self.desk.see(one, self.now) if isinstance(one, Sighting) else self.desk.take(one, self.now)  # type: ignore[arg-type]
            )
        return self

    def wait(self, seconds: float) -> Listener:
        self.now += seconds
        self.apply(self.desk.tick(self.now))
        return self

    def end(self, number: int = FIRST) -> Listener:
        target = self.calibrations.get(number) or self.running[number]
        self.apply(self.desk.ended(target, self.now))
        return self

    def put(self, target: Target, graph: str) -> None:
        if isinstance(target, CalibrationExposure):
            assert graph == "raw_calibration", "never given to another graph"
            self.calibrations[target.exposure] = target
        else:
            assert graph == "alert_production"
            self.running[target.visit] = target

    def drop(self, target: Target | None) -> None:
        if isinstance(target, CalibrationExposure):
            assert self.calibrations.pop(target.exposure) == target
        elif target is not None:
            assert self.running.pop(target.visit) == target

    def apply(self, actions: Sequence[Action]) -> None:
        self.actions += actions
        for action in actions:
            match action:
                case Restart():
                    self.drop(action.instead_of)
                    self.put(action.visit, action.graph)
                case Start(visit=target):
                    numbers = {of.visit for of in (*self.running.values(), *self.calibrations.values())}
                    assert target.visit not in numbers, "started twice"
                    self.put(target, action.graph)
                case Cancel(visit=target):
                    self.drop(target)

    def kinds(self) -> list[str]:
        return [type(action).__name__ for action in self.actions]


def listener(*rules: Rule, **own: float) -> Listener:
    config = Config(invocation=Invocation(**own))  # type: ignore[arg-type]
    return Listener(Desk(CAMERA, config, rules) if rules else Desk(CAMERA, config))


def same(a: dict[int, Visit], b: dict[int, Visit]) -> bool:
    return a.keys() == b.keys() and all(
        not TOLERANCE.difference(a[v], b[v]) and a[v].images == b[v].images and a[v].group == b[v].group for v in a
    )
