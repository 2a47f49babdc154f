"""A repository opened by one thread of one process."""

from __future__ import annotations

import contextlib
import functools
import sqlite3
import threading
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

from apflow.config import load_config
from apflow.errors import BadRequest, ServiceError
from apflow.io.arrivals.board import Board, open_board
from apflow.io.butler import paths
from apflow.io.butler.create import SETTINGS, register_types
from apflow.model.camera import Camera, load_camera
from apflow.model.products import Inputs, OutputFile
from apflow.model.skymap import SkyMap
from apflow.model.visit import Visit

if TYPE_CHECKING:
    import pandas as pd
    from lsst.daf.butler import Butler, DataCoordinate, DimensionRecord

    from apflow.io.butler.raws import Ingested

_opened = threading.local()


def service[**P, R](method: Callable[P, R]) -> Callable[P, R]:
    """A database that is locked or gone is a `ServiceError`: nothing was committed."""

    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        from sqlalchemy.exc import OperationalError

        try:
            return method(*args, **kwargs)
        except OperationalError as error:
            raise ServiceError(f"the Butler's registry failed in {method.__name__}: {error.orig}") from error

    return call


class Repository:
    """A Butler repository of apflow.

    A Butler must not be shared between threads: use `open` where threads come
    and go, which gives each its own.

    Parameters
    ----------
    root : `str` or `pathlib.Path`
    writeable : `bool`

    Raises
    ------
    BadRequest
        There is no repository of apflow.
    """

    def __init__(self, root: str | Path, writeable: bool = False) -> None:
        self.root = Path(root).resolve()
        if not (self.root / "butler.yaml").is_file() or not (self.root / SETTINGS).is_file():
            raise BadRequest(f"no Butler repository of apflow in {str(root)!r}; make one with: apflow init {root}")
        from lsst.daf.butler import Butler

        config = load_config(self.root / SETTINGS)
        camera = str(self.root / config.camera) if "/" in config.camera else config.camera
        self.camera: Camera = load_camera(camera, config.size)
        self.instrument = self.camera.instrument
        self._identity = _identity(self.root)
        _roll_back(self.root)
        self.butler = Butler.from_config(str(self.root), writeable=writeable)
        #: Data ids of exposures that are registered, with their records: asked for once, not for each raw.
        self.exposures: dict[int, DataCoordinate] = {}
        #: Where this thread puts up what has arrived.
        self.board: Board = open_board(self.root)
        # Those of `open` are dropped with their thread: the connections must not outlive them.
        self._finalizer = weakref.finalize(self, _close, self.butler, self.board)

    @classmethod
    def open(cls, root: str | Path, writeable: bool = False) -> Repository:
        """This thread's repository, opened once; not to be closed by its users."""
        cache: dict[tuple[str, bool], Repository] = _opened.__dict__.setdefault("repositories", {})
        key = (str(Path(root).resolve()), writeable)
        found = cache.get(key)
        # A folder removed and made anew holds another database under the same name.
        if found is None or found._identity != _identity(found.root):
            found = cache[key] = cls(root, writeable)
        return found

    def close(self) -> None:
        """Close the connection to the registry."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @service
    def ingest_calibs(
        self,
        kind: str,
        files: Mapping[int, str | Path],
        physical_filter: str | None = None,
        valid: tuple[float, float] = (0.0, 1e6),
        transfer: str = "auto",
    ) -> int:
        """Register master calibs and certify them; see `apflow.io.butler.ingest.ingest_calibs`."""
        from apflow.io.butler.ingest import ingest_calibs

        return ingest_calibs(self, kind, files, physical_filter, valid, transfer)

    @service
    def ingest_templates(
        self, files: Mapping[tuple[int, int], str | Path], skymap: SkyMap, band: str, transfer: str = "auto"
    ) -> int:
        """Register template cells; see `apflow.io.butler.ingest.ingest_templates`."""
        from apflow.io.butler.ingest import ingest_templates

        return ingest_templates(self, files, skymap, band, transfer)

    @service
    def ingest_reference(self, stars: pd.DataFrame) -> int:
        """Store a reference catalogue; see `apflow.io.butler.ingest.ingest_reference`."""
        from apflow.io.butler.ingest import ingest_reference

        return ingest_reference(self, stars)

    @service
    def ingest_ss_objects(self, group: str, objects: Mapping[int, pd.DataFrame]) -> int:
        """Store predicted positions of Solar System objects; see `apflow.io.butler.ingest.ingest_ss_objects`."""
        from apflow.io.butler.ingest import ingest_ss_objects

        return ingest_ss_objects(self, group, objects)

    @service
    def ingest_raws(
        self, files: Iterable[str | Path], transfer: str = "copy", arrived_unix: Mapping[Path, float] | None = None
    ) -> list[Ingested]:
        """Register raw images; see `apflow.io.butler.raws.ingest_raws`."""
        from apflow.io.butler.raws import ingest_raws

        return ingest_raws(self, files, transfer, arrived_unix)

    @service
    def find_inputs(self, visit: Visit, detectors: Sequence[int], camera: Camera | None = None) -> dict[int, Inputs]:
        """Files that each detector of a visit reads; see `apflow.io.butler.inputs.find_inputs`."""
        from apflow.io.butler.inputs import find_inputs

        return find_inputs(self, visit, detectors, camera or self.camera)

    @service
    def register_outputs(self, run: str, outputs: Iterable[tuple[OutputFile, int, int | None]]) -> int:
        """Register files of detectors, each with its visit and detector, or of visits (None), in one transaction.

        A repository that an earlier version made gets the dataset types that it lacks.

        Returns
        -------
        registered : `int`
            How many datasets are registered of those given; calling again with
            the same ones is harmless.

        Raises
        ------
        BadRequest
            A visit is not registered: none of its raw images is.
        """
        from lsst.daf.butler import MissingDatasetTypeError
        from lsst.daf.butler.registry import ConflictingDefinitionError

        from apflow.io.butler.ingest import ingest

        instrument = self.instrument
        outputs = list(outputs)
        self._check_visits({visit for _, visit, _ in outputs})
        files = [
            (
                Path(o.path),
                o.dataset_type,
                {"instrument": instrument, "visit": v} | ({} if d is None else {"detector": d}),
            )
            for o, v, d in outputs
        ]
        chain = paths.prompt_chain(instrument)
        if self.butler.collections.register(run) or run not in self.butler.collections.get_info(chain).children:
            self.butler.collections.prepend_chain(chain, run)
        try:
            ingest(self.butler, run, files)
        except MissingDatasetTypeError:
            register_types(self.butler)
            ingest(self.butler, run, files)
        except ConflictingDefinitionError:
            # A gather that was run again elsewhere was faster: what it registered is now skipped.
            ingest(self.butler, run, files)
        return len(files)

    @service
    def forget_pixels(self, detectors: Collection[int], cells: Collection[tuple[int, int]]) -> int:
        """Remove images that nobody will read again; see `apflow.io.butler.forget.forget_pixels`."""
        from apflow.io.butler.forget import forget_pixels

        return forget_pixels(self, detectors, cells)

    def _check_visits(self, visits: set[int]) -> None:
        for visit in visits - set(self.visits(visits)):
            raise BadRequest(f"visit {visit} is not registered; it is when its first raw image is")

    @service
    def visits(self, ids: Iterable[int]) -> dict[int, DimensionRecord]:
        """Records of those of some visits that are registered, by id."""
        known = self.butler.query_dimension_records(
            "visit", instrument=self.instrument, where="visit IN (ids)", bind={"ids": [*ids, 0]}, explain=False
        )
        return {record.id: record for record in known}

    @functools.cached_property
    def detectors(self) -> dict[int, DimensionRecord]:
        """Records of the camera's detectors by id."""
        records = self.butler.query_dimension_records("detector", instrument=self.instrument, limit=None)
        return {record.id: record for record in records}

    def skymap(self) -> SkyMap | None:
        """The skymap of the templates; None while there are none."""
        names = sorted(r.name for r in self.butler.query_dimension_records("skymap", explain=False))
        return SkyMap.from_name(names[-1]) if names else None


def _close(butler: Butler, board: Board) -> None:
    butler.close()
    board.close()


def _roll_back(root: Path) -> None:
    """Undo what a writer that was killed left half-written in an SQLite registry.

    SQLite does so when the registry is next opened for writing; one that is
    opened for reading alone fails with "attempt to write a readonly database"
    (https://www.sqlite.org/lockingv3.html#hot_journals). A writer that lives
    is left alone: SQLite tells the two apart by their locks.
    """
    registry = root / "gen3.sqlite3"
    if not registry.with_name(f"{registry.name}-journal").exists():
        return
    # Who may not write there is told so by the Butler.
    with (
        contextlib.suppress(sqlite3.OperationalError),
        contextlib.closing(sqlite3.connect(f"{registry.as_uri()}?mode=rw", uri=True)) as database,
    ):
        database.execute("SELECT count(*) FROM sqlite_master").fetchone()


def _identity(root: Path) -> tuple[int, int] | None:
    try:
        status = (root / "butler.yaml").stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_ctime_ns
