"""Raws of calibrations (D5): without pointing, with or without a filter; registered, announced, awaited by name."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from astropy.io import fits as astropy_fits
from lsst.daf.butler import Butler

from apflow.errors import DataError, ImageTimeout
from apflow.io import fits
from apflow.io.arrivals import Ingestor, await_named_images, follow
from apflow.io.butler import Repository
from apflow.model.exposure import ImageInfo
from tests.io import builders

IMAGE = "CC_O_20250420_000123"
INSTRUMENT = "LSSTComCam"
NOWHERE = dict.fromkeys(("ra_deg", "dec_deg", "rotation_deg"), math.nan)


def info(image_type: str, detector: int = 4, physical_filter: str = "", **changes: Any) -> ImageInfo:
    """Header of a calibration of ComCam, without pointing."""
    band = builders.camera().filter(physical_filter).band if physical_filter else ""
    return builders.info(
        detector, image_type=image_type, physical_filter=physical_filter, band=band, **(NOWHERE | changes)
    )


def plain(header: ImageInfo) -> dict[str, Any]:
    """Values that compare: NaN is a word."""
    return {k: str(v) if isinstance(v, float) and math.isnan(v) else v for k, v in dataclasses.asdict(header).items()}


@pytest.fixture
def either_landing(either_root: Path, tmp_path: Path) -> Iterator[Path]:
    with Ingestor(either_root, tmp_path / "landing", settle_s=0.2):
        yield tmp_path / "landing"


def land(staging: Path, landing: Path, header: ImageInfo) -> None:
    source = builders.raw_file(staging, header)
    os.replace(source, landing / source.name)


@pytest.mark.parametrize(
    ("image_type", "physical_filter", "exposure_time_s"),
    [("BIAS", "", 0.0), ("DARK", "", 300.0), ("FLAT", "r_03", 5.0), ("FLAT", "", 5.0), ("CBP", "g_01", 10.0)],
)
def test_a_calibration_comes_back_as_it_was(
    tmp_path: Path, image_type: str, physical_filter: str, exposure_time_s: float
) -> None:
    header = info(image_type, physical_filter=physical_filter, exposure_time_s=exposure_time_s)
    path = builders.raw_file(tmp_path, header)
    assert plain(fits.read_raw(path).info) == plain(header)
    with astropy_fits.open(path) as hdus:
        hdus.verify("exception")
        assert not {"RA", "DEC", "ROTPA"} & set(hdus[0].header)
        assert ("FILTER" in hdus[0].header) == bool(physical_filter)


@pytest.mark.parametrize("said", ["NONE", "none", "", "unknown"])
def test_a_calibration_may_say_that_there_is_no_filter(said: str) -> None:
    header = fits.header_of(info("BIAS")) | {"FILTER": said}
    assert fits.info_of(header, "here").physical_filter == ""
    header["IMGTYPE"], header["RA"], header["DEC"], header["ROTPA"] = "OBJECT", 1.0, 2.0, 3.0
    assert fits.info_of(header, "here").physical_filter == said, "of the sky, a camera has to know it"


def test_a_calibration_that_has_a_pointing_keeps_it() -> None:
    header = info("FLAT", ra_deg=10.0, dec_deg=-30.0, rotation_deg=0.0)
    assert fits.info_of(fits.header_of(header), "here") == header


@pytest.mark.parametrize("image_type", ["OBJECT", "ACQ", "ENGTEST"])
@pytest.mark.parametrize("key", ["RA", "DEC", "ROTPA", "FILTER"])
def test_any_other_image_needs_pointing_and_filter(image_type: str, key: str) -> None:
    header = fits.header_of(builders.info(image_type=image_type))
    del header[key]
    with pytest.raises(DataError, match=f"here: keyword {key} is missing"):
        fits.info_of(header, "here")


def test_it_is_an_exposure_and_no_visit(either_root: Path, tmp_path: Path) -> None:
    told = {0: info("BIAS"), 1: info("DARK"), 2: info("FLAT", physical_filter="r"), 3: info("CBP")}
    headers = [dataclasses.replace(h, exposure=builders.EXPOSURE + n, snap=n + 1) for n, h in told.items()]
    files = [builders.raw_file(tmp_path, header) for header in headers]
    with Repository(either_root, writeable=True) as repository:
        ingested = repository.ingest_raws(files)
        assert [one.error for one in ingested] == 4 * [""] and all(one.new for one in ingested)
        assert not any(one.new for one in repository.ingest_raws(files))
        repository.ingest_raws([builders.raw_file(tmp_path, dataclasses.replace(h, detector=5)) for h in headers])
    with Butler.from_config(str(either_root)) as butler:
        records = butler.query_dimension_records("exposure", instrument=INSTRUMENT, order_by="exposure")
        kinds = [(r.observation_type, r.physical_filter, r.can_see_sky, r.tracking_ra, r.sky_angle) for r in records]
        assert kinds == [
            ("bias", "unknown", False, None, None),
            ("dark", "unknown", False, None, None),
            ("flat", "r_03", False, None, None),
            ("cbp", "unknown", False, None, None),
        ]
        assert [r.seq_start for r in records] == 4 * [123]
        assert not butler.query_dimension_records("visit", instrument=INSTRUMENT, explain=False)
        raw = butler.get("raw", instrument=INSTRUMENT, exposure=builders.EXPOSURE, detector=4, collections="*/raw/all")
        assert plain(raw.info) == plain(headers[0])


def test_a_repository_of_an_earlier_version_takes_them_too(root: Path, tmp_path: Path) -> None:
    """Its registry does not have the filter that exposures without one are said to have."""
    with contextlib.closing(sqlite3.connect(root / "gen3.sqlite3")) as database, database:
        assert database.execute("DELETE FROM physical_filter WHERE name = 'unknown'").rowcount == 1
    with Repository(root, writeable=True) as repository:
        (one,) = repository.ingest_raws([builders.raw_file(tmp_path, info("BIAS"))])
        assert one.new and one.error == ""


@pytest.mark.parametrize(
    ("header", "told"),
    [
        (dataclasses.replace(info("FLAT"), physical_filter="r_57"), "no filter 'r_57'"),
        (dataclasses.replace(info("BIAS"), group=""), "GROUPID is ''"),
        (dataclasses.replace(info("BIAS"), instrument="LSSTCam"), "INSTRUME is 'LSSTCam'"),
    ],
)
def test_what_is_wrong_is_refused_of_calibrations_too(root: Path, tmp_path: Path, header: ImageInfo, told: str) -> None:
    with Repository(root, writeable=True) as repository:
        (one,) = repository.ingest_raws([builders.raw_file(tmp_path, header)])
    assert told in one.error and one.path is None


def test_in_time_late_and_never(either_root: Path, either_landing: Path, tmp_path: Path) -> None:
    def wait(detector: int, timeout_s: float) -> str:
        return await_named_images(either_root, INSTRUMENT, [IMAGE], detector, timeout_s)

    with ThreadPoolExecutor(3) as pool:
        in_time, never = pool.submit(wait, 4, 10.0), pool.submit(wait, 5, 0.5)
        time.sleep(0.2)
        assert not in_time.done()
        land(tmp_path, either_landing, info("BIAS", exposure_time_s=0.0))
        assert fits.read_info(in_time.result()).image_type == "BIAS"
        with pytest.raises(ImageTimeout, match=rf"image {IMAGE} of detector 5 did not arrive within 0\.5 s"):
            never.result()
    land(tmp_path, either_landing, info("BIAS", 5))
    assert wait(5, 10.0), "one that begins to wait anew has it, though it is late"
    assert wait(4, 0.0), "one that begins late has it at once"


def test_a_bad_one_ends_the_wait(root: Path, tmp_path: Path) -> None:
    with Ingestor(root, tmp_path / "landing", settle_s=0.1):
        land(tmp_path, tmp_path / "landing", dataclasses.replace(info("FLAT"), physical_filter="r_57"))
        with pytest.raises(DataError, match="no filter 'r_57'"):
            await_named_images(root, INSTRUMENT, [IMAGE], 4, 10.0)


def test_sidecars_and_raws_tell_what_they_are(root: Path, tmp_path: Path) -> None:
    landing, found = tmp_path / "landing", []
    header = fits.header_of(info("BIAS", exposure_time_s=0.0)) | {"FILTER": "NONE"}
    with Ingestor(root, landing), follow(root, INSTRUMENT) as follower:
        (tmp_path / "one").write_text(json.dumps(header))
        os.replace(tmp_path / "one", landing / f"{IMAGE}_R22_S11.json")
        land(tmp_path, landing, info("FLAT", 5, "r_03", exposure=builders.EXPOSURE + 1))
        deadline = time.monotonic() + 10.0
        while len(found) < 2 and time.monotonic() < deadline:
            found += follower.get(1.0)
    told = {(s.image_type, s.physical_filter, s.registered, s.exposure, math.isnan(s.ra_deg)) for s in found}
    assert told == {
        ("BIAS", "", False, builders.EXPOSURE, True),
        ("FLAT", "r_03", True, builders.EXPOSURE + 1, True),
    }
