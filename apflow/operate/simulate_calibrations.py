"""Calibration exposures for a repository: simulated, written as raws and registered."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import functools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from apflow.errors import ApflowError, BadRequest
from apflow.io.butler import Repository
from apflow.io.fits import write_raw
from apflow.model.calibration import Intent
from apflow.model.camera import Camera, load_camera
from apflow.model.ids import day_obs, exposure_id, image_name
from apflow.operate.local_run import CORES
from apflow.operate.prepare import Record, simulation_pool
from apflow.operate.repository import repository_config
from apflow.simulate.calibration import Faults, render_calibration
from apflow.simulate.scenario import READOUT_S, SECONDS, Scenario

#: Exposure times that are taken where none is given, seconds.
EXPOSURE_TIMES_S = {Intent.BIAS: 0.0, Intent.DARK: 300.0, Intent.FLAT: 5.0, Intent.CBP: 5.0}
#: A day of observation without exposures begins with calibrations in the afternoon, days after midnight TAI.
_AFTERNOON = 0.7
_OF_AMPLIFIERS = ("gain", "read_noise", "level_adu", "bias_adu")
_FAULT_FORMS = (
    "DETECTOR:AMPLIFIER:gain=FACTOR (or read_noise=FACTOR, level_adu=ADU, bias_adu=ADU, dead), "
    "DETECTOR:hot_pixels=N, lamp_tilt=FRACTION"
)


@dataclass(frozen=True)
class Request:
    """What ``apflow simulate`` was asked for, checked.

    Attributes
    ----------
    scenario : `Scenario`
        Begins with the first of the new exposures.
    intent : `Intent`
    sequences : `range`
        Their sequence numbers.
    exposure_time_s : `float`
    physical_filter : `str`
    faults : mapping of `int` to `Faults`
        By detector.
    """

    scenario: Scenario
    intent: Intent
    sequences: range
    exposure_time_s: float
    physical_filter: str
    faults: Mapping[int, Faults] = field(default_factory=dict)

    @property
    def images(self) -> list[str]:
        """Names of the new images."""
        day, prefix = day_obs(self.scenario.start_mjd_tai), self.scenario.load_camera().image_prefix
        return [image_name(exposure_id(day, n), prefix) for n in self.sequences]


def check_request(
    butler: str,
    intent: str,
    count: int,
    *,
    exposure_time_s: float | None = None,
    physical_filter: str = "",
    detectors: str = "",
    seed: int | None = None,
    day: int | None = None,
    faults: Sequence[str] = (),
) -> Request:
    """Check the arguments; what is not given is that of the replay which made the repository.

    Parameters
    ----------
    exposure_time_s : `float`, optional
        Default: `EXPOSURE_TIMES_S`.
    detectors : `str`
        Default: those of the replay, or the science detectors.
    seed : `int`, optional
        Default: that of the replay, or 1.
    day : `int`, optional
        Day of observation, YYYYMMDD. Default: that of the latest exposure.
    faults : sequence of `str`
        See `read_faults`.

    Raises
    ------
    BadRequest
        One is not acceptable; the message names it and what is.
    """
    wanted = Intent.of(intent)
    config = repository_config(butler)
    camera = load_camera(config.camera, config.size)
    record = Record.read(Path(butler))
    made_for = record.scenario if record else {}
    lit = wanted in (Intent.FLAT, Intent.CBP)
    begin, first = _begin(butler, day)
    scenario = Scenario(
        camera=config.camera,
        size=config.size,
        seed=made_for.get("seed", 1) if seed is None else seed,
        detectors=camera.select(detectors) if detectors else tuple(made_for.get("detectors", ())),
        start_mjd_tai=begin,
        first_seq=first,
    )
    time_s = EXPOSURE_TIMES_S[wanted] if exposure_time_s is None else exposure_time_s
    if (time_s > 0) is (wanted is Intent.BIAS):
        accepted = "0" if wanted is Intent.BIAS else "more than 0"
        raise BadRequest(f"exposure time {time_s:g} s of a {wanted} is not accepted: {accepted}")
    if physical_filter and not lit:
        raise BadRequest(f"filter {physical_filter!r} of a {wanted} is not accepted: it has none")
    ends = begin + (count * time_s + (count - 1) * READOUT_S) / SECONDS
    if day_obs(ends) != day_obs(begin):
        raise BadRequest(f"{count} exposures of {time_s:g} s do not fit into what is left of day {day_obs(begin)}")
    name = physical_filter or made_for.get("physical_filter", "r")
    return Request(
        scenario,
        wanted,
        range(first, first + count),
        time_s,
        camera.filter(name).physical_filter if lit else "",
        read_faults(faults, camera, scenario.detectors),
    )


def _begin(butler: str, day: int | None) -> tuple[float, int]:
    """When the first new exposure begins (MJD TAI), and its sequence number: after what is there on that day."""
    with Repository(butler) as repository:
        where: dict[str, str | int] = {"instrument": repository.instrument} | ({"day_obs": day} if day else {})
        records = repository.butler.query_dimension_records(
            "exposure", data_id=where, order_by=["-exposure.id"], limit=1, explain=False
        )
    if records:
        (last,) = records
        return float(last.timespan.end.tai.mjd) + READOUT_S / SECONDS, last.seq_num + 1
    if day is None:
        return Scenario().start_mjd_tai, 1
    try:
        date = dt.datetime.strptime(str(day), "%Y%m%d").date()
    except ValueError:
        raise BadRequest(f"day of observation {day} is not accepted: YYYYMMDD") from None
    return (date - dt.date(1858, 11, 17)).days + _AFTERNOON, 1


def read_faults(texts: Sequence[str], camera: Camera, detectors: Sequence[int]) -> dict[int, Faults]:
    """Faults by detector, from words such as ``R22_S11:C03:gain=1.1``.

    Raises
    ------
    BadRequest
        One is not of the forms that are accepted, or names what is not there.
    """
    found = {d: Faults() for d in detectors}
    for text in texts:
        words, _, number = text.partition("=")
        *place, kind = words.split(":")
        try:
            value = float(number) if number else 1.0
        except ValueError:
            raise _unknown(text) from None
        among = [camera.detector(place[0]).id] if place else list(detectors)
        if missing := set(among) - set(detectors):
            raise BadRequest(f"fault {text!r} is of detector {missing.pop()}, which is not among those to simulate")
        for d in among:
            found[d] = _with(found[d], text, place[1:], kind, value, bool(number))
            names = {amp.name for amp in camera.detector(d).amplifiers}
            if not set(place[1:]) <= names:
                raise BadRequest(f"fault {text!r}: {place[0]} has amplifiers {', '.join(sorted(names))}")
    return {d: faults for d, faults in found.items() if faults != Faults()}


def _with(faults: Faults, text: str, amplifier: list[str], kind: str, value: float, given: bool) -> Faults:
    """Faults and one more."""
    match (kind, amplifier, given):
        case ("dead", [name], False):
            return dataclasses.replace(faults, dead=(*faults.dead, name))
        case (_, [name], True) if kind in _OF_AMPLIFIERS:
            return dataclasses.replace(faults, **{kind: {**getattr(faults, kind), name: value}})  # type: ignore[arg-type]
        case ("hot_pixels", [], True) if value == int(value) and 0 <= value <= 100_000:
            return dataclasses.replace(faults, hot_pixels=int(value))
        case ("lamp_tilt", [], True) if -1 < value < 1:
            return dataclasses.replace(faults, lamp_tilt=value)
    raise _unknown(text)


def _unknown(text: str) -> BadRequest:
    return BadRequest(f"fault {text!r} is not accepted: {_FAULT_FORMS}")


def simulate(
    butler: str, request: Request, workers: int = 0, progress: Callable[[int, int], None] | None = None
) -> None:
    """Make the images detector by detector, in processes where there are several, and register them as they are done.

    Parameters
    ----------
    workers : `int`
        Processes; 0 for one a core.
    progress : callable, optional
        Called with the number of detectors done and that of all.
    """
    detectors = request.scenario.detectors
    processes = min(workers or CORES, len(detectors))
    with (
        Repository(butler, writeable=True) as repository,
        tempfile.TemporaryDirectory(dir=repository.root, prefix=".simulated-") as folder,
        simulation_pool(processes) if processes > 1 else contextlib.nullcontext() as pool,
    ):
        render = functools.partial(_render, request, Path(folder))
        for done, files in enumerate(pool.map(render, detectors) if pool else map(render, detectors), 1):
            for one in repository.ingest_raws(files, transfer="move"):
                if one.error:
                    raise ApflowError(f"a simulated raw was rejected: {one.error}")
            if progress:
                progress(done, len(detectors))


def _render(request: Request, folder: Path, detector: int) -> list[Path]:
    """Make and write all images of one detector."""
    name, files = request.scenario.load_camera().detector(detector).name, []
    for sequence, image in zip(request.sequences, request.images, strict=True):
        raw = render_calibration(
            request.scenario,
            request.intent,
            sequence,
            detector,
            exposure_time_s=request.exposure_time_s,
            physical_filter=request.physical_filter,
            faults=request.faults.get(detector, Faults()),
        )
        files.append(folder / f"{image}_{name}.fits")
        write_raw(files[-1], raw)
    return files
