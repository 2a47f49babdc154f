"""What the steps hand to one another, in the order of the graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from apflow.model import schema
from apflow.model.exposure import Exposure
from apflow.model.kernel import Kernel
from apflow.model.ledger import Ended, Outcome
from apflow.model.skymap import Cell
from apflow.model.visit import Visit


@dataclass(frozen=True)
class InputRef:
    """A dataset of the Butler that a detector-visit was made from."""

    dataset_type: str
    run: str
    id: str  # UUID


@dataclass(frozen=True)
class Inputs:
    """Files that one detector of one visit reads, as the Butler resolved them.

    Paths are local; a calib is None when none is valid for the visit.
    """

    bias: str | None
    dark: str | None
    flat: str | None
    defects: str | None
    templates: tuple[tuple[int, int, str], ...]  # (tract, patch, path)
    reference: tuple[str, ...]
    skymap: str = ""  # name of the skymap of the templates
    ss_objects: str | None = None  # predicted positions of Solar System objects
    refs: tuple[InputRef, ...] = ()  # the datasets that these files are
    copies: Mapping[str, str] = field(default_factory=dict)  # by path: that of its copy in the fast store, made or not


@dataclass(frozen=True)
class Plan:
    """A visit with its resolved inputs by detector id."""

    visit: Visit
    run: str  # Butler RUN collection of the outputs
    inputs: Mapping[int, Inputs]


@dataclass(frozen=True)
class Prepared:
    """A detector whose inputs a worker has at hand; `counts` says where they came from."""

    detector: int
    seconds: float
    core_s: float
    counts: Mapping[str, float]


@dataclass(frozen=True)
class Preparation:
    """What became of a preparation: detectors that are ready, and the causes of those that are not.

    `seconds`, `core_s` and `counts` are sums over the detectors that are ready.
    """

    group: str
    detectors: tuple[int, ...]
    causes: Mapping[int, str]
    seconds: float
    core_s: float
    counts: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Calibs:
    """Master calibrations of one detector on the assembled CCD grid, and reference stars.

    `bias` in ADU (overscan removed), `dark` in e-/s, `flat` relative to 1,
    `defects` true where a pixel is bad. `reference` has columns ra, dec
    (degrees ICRS at the epoch of the visit), mag (AB, in the visit's band).
    """

    bias: NDArray[np.float32]
    dark: NDArray[np.float32]
    flat: NDArray[np.float32]
    defects: NDArray[np.bool_]
    reference: pd.DataFrame


@dataclass(frozen=True, eq=False)
class Template:
    """Template cells (nJy) that overlap a detector."""

    cells: tuple[tuple[Cell, Exposure], ...]


@dataclass(frozen=True)
class RawRef:
    """A raw image that was received and registered."""

    path: str
    exposure: int
    snap: int
    arrived_unix: float  # when the file was complete: the end of readout for latency


@dataclass(frozen=True)
class Snaps:
    """The raw images of one detector-visit; `missing` names snaps that never came."""

    raws: tuple[RawRef, ...]
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Difference:
    """A difference image (nJy) and what made it.

    `exposure.psf` is the PSF of the difference image; `matched` the template
    after convolution with `kernel`, both on the science grid. `filtered` is
    the PSF-matched map (ny, nx) where it was made: the sum of psf * image
    about each pixel, with the difference's PSF at its centre and without
    pixels that must not be used.
    """

    exposure: Exposure
    matched: Exposure
    kernel: Kernel
    filtered: NDArray[np.float32] | None = None


def _no_matches() -> pd.DataFrame:
    return schema.empty("DiaObject_To_Object_Match")


def _no_ss_sources() -> pd.DataFrame:
    return schema.empty("SSSource")


def no_drp_objects() -> pd.DataFrame:
    """The columns of `History.drp`, without a row."""
    return pd.DataFrame(
        {
            "objectId": np.empty(0, np.int64),
            "ra": np.empty(0),
            "dec": np.empty(0),
            "extendedness": np.empty(0, np.float32),
        }
    )


@dataclass(frozen=True, eq=False)
class History:
    """What the PPDB holds of a region, read immediately before association.

    `objects`, `sources` and `forced` have the columns of apdb.yaml: current
    DiaObject versions of the region, and the DiaSources and DiaForcedSources of
    the last 12 months of those that a new source may belong to.
    `drp` are the Objects of the last Data Release about the region: objectId,
    ra and dec (degrees), and extendedness (0 a star, 1 a galaxy, NaN unknown).
    `ss_objects` are the Solar System objects predicted about the region, where
    anybody did; see `apflow.catalogs.solar_system.predicted`. They are no part
    of the PPDB. `summary` has numbers worth a metric.
    """

    objects: pd.DataFrame
    sources: pd.DataFrame
    forced: pd.DataFrame
    drp: pd.DataFrame = field(default_factory=no_drp_objects)
    ss_objects: pd.DataFrame | None = None
    summary: Mapping[str, float] = field(default_factory=dict, kw_only=True)


@dataclass(frozen=True, eq=False)
class Associated:
    """DiaSources with their DiaObjects.

    `sources` are the new DiaSources with diaObjectId set; `objects` the new
    DiaObject versions, one for each object that got a source;
    `guard` the version (validityStartMjdTai) of each known object read, by
    diaObjectId: what the write checks. `matches` are the rows of
    DiaObject_To_Object_Match: DRP Objects near each new DiaObject; `ss_sources`
    those of SSSource, for the sources that have an ssObjectId and no DiaObject.
    """

    sources: pd.DataFrame
    objects: pd.DataFrame
    guard: Mapping[int, float]
    matches: pd.DataFrame = field(default_factory=_no_matches)
    ss_sources: pd.DataFrame = field(default_factory=_no_ss_sources)


@dataclass(frozen=True)
class Packet:
    """One alert: an Avro datum without framing."""

    alert_id: int  # diaSourceId
    object_id: int  # diaObjectId, or ssObjectId where there is none
    datum: bytes
    trimmed: int = 0  # rows of history left out, so that the broker takes it


@dataclass(frozen=True)
class OutputFile:
    """A dataset that a worker wrote and a gather registers."""

    dataset_type: str
    path: str


@dataclass(frozen=True, eq=False)
class DetectorResult:
    """All that one detector-visit hands to the gathers; no image planes."""

    visit: Visit
    detector: int
    sources: pd.DataFrame
    objects: pd.DataFrame
    forced: pd.DataFrame
    guard: Mapping[int, float]
    packets: tuple[Packet, ...]
    outputs: tuple[OutputFile, ...]
    arrived_unix: float
    mjd_mid_tai: float
    day_obs: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    #: Cutout FITS files (difference, science, template) by diaSourceId: for a detector that must associate again.
    cutouts: Mapping[int, tuple[bytes, bytes, bytes]] = field(default_factory=dict)
    matches: pd.DataFrame = field(default_factory=_no_matches)
    ss_sources: pd.DataFrame = field(default_factory=_no_ss_sources)
    #: Predictions, as in `History`: they too are for a detector that must associate again.
    ss_objects: pd.DataFrame | None = None


@dataclass(frozen=True)
class OutboxRow:
    """An alert that is durable in the archive and waits to be published."""

    alert_id: int
    object_id: int
    visit: int
    detector: int
    file: str
    offset: int
    length: int
    checksum: int  # crc32 of the datum
    arrived_unix: float | None = None  # the end of readout of its detector-visit, where that is known
    resent: bool = False  # sent before, and again by hand
    trimmed: int = 0  # rows of history left out, so that the broker takes it


@dataclass(frozen=True)
class Claim:
    """Alerts that a publisher took from the outbox and that are still pending."""

    name: str
    left_s: float  # of its lease; negative when that is over
    alert_ids: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Archived:
    """A batch whose packets are durable."""

    visit: Visit
    batch: tuple[Ended, ...]
    rows: tuple[OutboxRow, ...]


@dataclass(frozen=True, eq=False)
class Stored:
    """A batch after its transaction: how each detector ended; the alerts wait in the outbox."""

    visit: Visit
    outcomes: tuple[Outcome, ...]
