"""Registering what has come, and rejecting what cannot be registered."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from apflow.errors import BadRequest, DataError
from apflow.io.arrivals.announce import rejected, told
from apflow.io.arrivals.board import Key, Message
from apflow.io.arrivals.sidecars import read_sidecar
from apflow.model.ids import image_name
from apflow.model.sighting import Sighting

if TYPE_CHECKING:
    from apflow.io.butler import Repository
    from apflow.io.butler.raws import Ingested

_RAWS = (".fits", ".fits.fz", ".fits.gz")
_SIDECARS = ".json"


@dataclass(frozen=True)
class Refused:
    """A file that could not be taken, why, and, of a raw, what it seemed to be."""

    file: Path
    error: str
    raw: Ingested | None = None


def is_wanted(name: str) -> bool:
    """Whether a file is one of those that are taken, by its name; movies of guiders are not."""
    return name.endswith((*_RAWS, _SIDECARS)) and not name.endswith("_guider.fits")


class Intake:
    """Takes files into a repository.

    Parameters
    ----------
    transfer : `str`
        ``move`` removes files that were taken or rejected, ``copy`` leaves them.
    """

    def __init__(self, transfer: str) -> None:
        self._transfer = transfer

    def take(
        self, repository: Repository, files: Sequence[Path], arrived_unix: Mapping[Path, float]
    ) -> dict[Path, Refused]:
        """Register and announce files; returns those that were refused and are still where they were.

        Raises
        ------
        ServiceError
            The registry or the board failed; again is harmless.
        """
        sidecars = [file for file in files if file.name.endswith(_SIDECARS)]
        refused = self._tell(repository, sidecars, arrived_unix) if sidecars else {}
        raws = [file for file in files if not file.name.endswith(_SIDECARS)]
        if raws:
            for one in repository.ingest_raws(raws, self._transfer, arrived_unix):
                if one.path is None:
                    refused[one.source] = Refused(one.source, one.error, one)
        return refused

    def _tell(
        self, repository: Repository, files: Sequence[Path], arrived_unix: Mapping[Path, float]
    ) -> dict[Path, Refused]:
        """Tell what sidecars say; they are not kept, since the headers of the raws say it too."""
        refused: dict[Path, Refused] = {}
        messages: dict[Key, Message] = {}
        sightings: list[Sighting] = []
        for file in files:
            try:
                one = read_sidecar(repository.camera, file, arrived_unix[file])
            except DataError as error:
                refused[file] = Refused(file, str(error))
                continue
            messages |= one.messages
            sightings.append(one.sighting)
        repository.board.put(told(repository.instrument, sightings) | messages)
        if self._transfer == "move":
            for file in files:
                if file not in refused:
                    file.unlink(missing_ok=True)
        return refused

    def reject(self, repository: Repository, refused: Refused) -> None:
        """Tell those who wait for a raw why it cannot be used; put the file aside where files are moved."""
        if refused.raw is not None:
            repository.board.put(_messages(repository, refused.raw))
        if self._transfer == "move":
            folder = repository.root / "rejected"
            folder.mkdir(exist_ok=True)
            with suppress(FileNotFoundError):
                shutil.move(refused.file, folder / refused.file.name)


def _messages(repository: Repository, one: Ingested) -> dict[Key, Message]:
    """Of a rejected raw: the name says for whom the file was meant, the header only what it holds."""
    camera, name, info = repository.camera, one.name, one.info
    exposure = name.exposure if name else info.exposure if info else 0
    which = name.detector if name and name.detector else info.detector if info else None
    try:
        detector = camera.detector(which) if which is not None else None
    except BadRequest:
        detector = None
    if detector is None or not exposure:
        return {}
    group, snap = (info.group, info.snap) if info is not None and info.exposure == exposure else ("", 1)
    image = image_name(exposure, camera.image_prefix)
    return rejected(camera.instrument, group, image, snap, detector.id, one.error)
