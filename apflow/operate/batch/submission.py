"""What is sent to a batch system, and the folder that remembers it.

The folder of a submission holds

- ``submission.json``: the record, from which any process goes on;
- ``manifest.tsv``: the arguments of each detector's command, a line a task;
  it is written when the names of the images are known, and tasks wait for it;
- ``ended/ATTEMPT.INDEX``: exit code, start, end and host of a task that ended;
- ``states.json``: what the batch system last said of each task;
- ``logs/INDEX.ATTEMPT.log``: what a task printed.
"""

from __future__ import annotations

import dataclasses
import json
import math
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apflow.errors import BadRequest
from apflow.io.atomic import atomic

RECORD = "submission.json"
MANIFEST = "manifest.tsv"
STATES = "states.json"
#: A job of the array that died goes once more.
MAX_ATTEMPTS = 2


@dataclass(frozen=True)
class VisitArguments:
    """The arguments of DMTN-092 section 2.1 that all detectors of a visit share.

    Attributes
    ----------
    group : `str`
    ra_deg, dec_deg : `float`
        Boresight, ICRS, degrees.
    physical_filter : `str`
        Physical filter or band; empty for the header's.
    exposure_time_s : `float`, optional
        Expected exposure time of an image; None while only `images` are
        missing too.
    images : `tuple` [`str`, ...]
        Names of the images, one a snap; empty while they are not known.
    """

    group: str
    ra_deg: float
    dec_deg: float
    physical_filter: str = ""
    exposure_time_s: float | None = None
    images: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("RA", self.ra_deg, 0.0, 360.0),
            ("Dec", self.dec_deg, -90.0, 90.0),
            ("exposure time", self.exposure_time_s or 0.0, 0.0, 3600.0),
        ):
            if not (math.isfinite(value) and low <= value <= high):
                raise BadRequest(f"{name} {value} is out of range: {low:g} to {high:g}")
        if len(self.images) > 2 or len(set(self.images)) < len(self.images):
            raise BadRequest(f"images {' '.join(self.images)} are not accepted: one, or the two snaps of a visit")
        if self.images and self.exposure_time_s is None:
            raise BadRequest("no exposure time is known; give --exptime")


@dataclass(frozen=True)
class Limits:
    """What the jobs may take.

    Attributes
    ----------
    throttle : `int`
        Jobs that run at one time; 0 for no limit.
    memory_mb, minutes : `int`
        Of each job.
    partition : `str`
        SLURM's; empty for its default.
    """

    throttle: int = 0
    memory_mb: int = 4096
    minutes: int = 15
    partition: str = ""


@dataclass(frozen=True)
class Attempt:
    """One array that was sent, or is to be.

    Attributes
    ----------
    number : `int`
        From 1.
    name : `str`
        Of the job, unique: finds one that was sent by a process that did not live to note its id.
    indices : `tuple` [`int`, ...]
        Tasks: lines of the manifest, from 0.
    job : `str`
        Its id at the batch system; empty while it isn't known to be sent.
    """

    number: int
    name: str
    indices: tuple[int, ...]
    job: str = ""


@dataclass(frozen=True)
class Submission:
    """One visit's jobs, one per detector; the folder holds the newest state of it.

    Attributes
    ----------
    folder : `pathlib.Path`
    system : `str`
        ``slurm`` or ``htcondor``.
    butler : `str`
        Root of the repository.
    arguments : `VisitArguments`
    detectors : `tuple` [`tuple` [`int`, `str`], ...]
        Id and name of each detector, in the order of the tasks.
    command : `str`
        Path of the script that each task runs.
    options : `tuple` [`str`, ...]
        Words that follow the command's arguments.
    ppdb : `str`
        URL of the PPDB; empty for the repository's.
    limits : `Limits`
    images_wait_s : `float`
        How long a task waits for the names of the images.
    attempts : `tuple` [`Attempt`, ...]
    """

    folder: Path
    system: str
    butler: str
    arguments: VisitArguments
    detectors: tuple[tuple[int, str], ...]
    command: str
    options: tuple[str, ...] = ()
    ppdb: str = ""
    limits: Limits = dataclasses.field(default_factory=Limits)
    images_wait_s: int = 300
    attempts: tuple[Attempt, ...] = ()

    def __post_init__(self) -> None:
        if not self.detectors:
            raise BadRequest("no detector is given; accepted: science, all, or a list of rafts, names and ids")
        for word in (self.butler, self.ppdb, *self.options):
            if any(c in word for c in "\t\r\n"):
                raise BadRequest(f"argument {word!r} is not accepted: without tabs and line ends")

    def line(self, index: int) -> list[str]:
        """Words of the command of one task: CCD RA DEC FILTER|none EXPTIME BUTLER IMAGE [IMAGE2] [option...]."""
        of = self.arguments
        shared = [repr(of.ra_deg), repr(of.dec_deg), of.physical_filter or "none", repr(of.exposure_time_s)]
        ppdb = ("--ppdb", self.ppdb) if self.ppdb else ()
        return [self.detectors[index][1], *shared, self.butler, *of.images, *ppdb, *self.options]

    def next_attempt(self, indices: tuple[int, ...]) -> Submission:
        """The same with one attempt more, not sent yet."""
        number = len(self.attempts) + 1
        attempt = Attempt(number, f"apflow-{uuid.uuid4().hex[:12]}", indices)
        return dataclasses.replace(self, attempts=(*self.attempts, attempt))

    def with_job(self, number: int, job: str) -> Submission:
        """The same with the id of an attempt's job."""
        attempts = tuple(dataclasses.replace(a, job=job) if a.number == number else a for a in self.attempts)
        return dataclasses.replace(self, attempts=attempts)

    def completed(self, told: VisitArguments) -> Submission:
        """The same with the names of the images, and the exposure time that startIntegration told with them."""
        arguments = dataclasses.replace(self.arguments, images=told.images, exposure_time_s=told.exposure_time_s)
        return dataclasses.replace(self, arguments=arguments)

    def same_request(self, other: Submission) -> bool:
        """Whether both ask for the same, images that one does not know yet aside."""

        def asked(of: Submission) -> Submission:
            open_values = dataclasses.replace(of.arguments, images=(), exposure_time_s=None)
            return dataclasses.replace(of, attempts=(), arguments=open_values)

        images = {of.arguments.images for of in (self, other)} - {()}
        return asked(self) == asked(other) and len(images) <= 1

    def save(self) -> None:
        """Write the record, and the manifest once the images are known.

        Raises
        ------
        BadRequest
            The folder can't be written to.
        """
        try:
            for name in ("ended", "logs"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
            tree = dataclasses.asdict(self) | {"folder": None}
            _write(self.folder / RECORD, json.dumps(tree, indent=1) + "\n")
            if self.arguments.images and not (self.folder / MANIFEST).exists():
                lines = ("\t".join(self.line(index)) for index in range(len(self.detectors)))
                _write(self.folder / MANIFEST, "".join(f"{line}\n" for line in lines))
        except OSError as error:
            raise BadRequest(
                f"folder {self.folder}: {error.strerror}; accepted: one that can be written to, on every node"
            ) from error


def load(folder: Path) -> Submission:
    """The submission that a folder remembers.

    Raises
    ------
    BadRequest
        There is none.
    """
    path = folder / RECORD
    try:
        tree = json.loads(path.read_text())
    except OSError as error:
        raise BadRequest(f"no submission in {folder}: {RECORD}: {error.strerror}") from error
    except ValueError as error:
        raise BadRequest(f"{path} is no record of a submission: {error}") from error
    return _submission(folder, tree)


def _submission(folder: Path, tree: Mapping[str, Any]) -> Submission:
    arguments = dict(tree["arguments"])
    return Submission(
        folder=folder,
        system=tree["system"],
        butler=tree["butler"],
        arguments=VisitArguments(**arguments | {"images": tuple(arguments["images"])}),
        detectors=tuple((number, name) for number, name in tree["detectors"]),
        command=tree["command"],
        options=tuple(tree["options"]),
        ppdb=tree["ppdb"],
        limits=Limits(**tree["limits"]),
        images_wait_s=tree["images_wait_s"],
        attempts=tuple(Attempt(**a | {"indices": tuple(a["indices"])}) for a in tree["attempts"]),
    )


def _write(path: Path, text: str) -> None:
    with atomic(path) as part:
        part.write(text.encode())
