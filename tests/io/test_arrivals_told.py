"""What headers, sidecars and lists of expected sensors tell, and images that are not what was announced (D7, D12)."""

from __future__ import annotations

import json
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from apflow.errors import ApflowError, DataError, ImageTimeout, Misannounced
from apflow.io.arrivals import Ingestor, await_images, await_named_images, check_announced, follow
from apflow.io.arrivals.sidecars import read_sidecar
from apflow.io.butler import Repository
from apflow.io.fits import header_of
from apflow.model.products import Snaps
from apflow.model.sighting import Sighting
from apflow.model.visit import Visit
from tests.io import builders

IMAGE = "CC_O_20250420_000123"
GROUP = builders.info().group


def wait(root: Path, visit: Visit | None = None, detector: int = 4, timeout_s: float = 10.0) -> Snaps:
    """As the graph's step does."""
    visit = visit or builders.visit()
    return await_images(
        root,
        visit.instrument,
        visit.group,
        detector,
        nsnaps=visit.nsnaps,
        timeout_s=timeout_s,
        images=visit.images,
        announced=visit,
    )


def register(root: Path, folder: Path, **changes: Any) -> None:
    with Repository(root, writeable=True) as repository:
        (one,) = repository.ingest_raws([builders.raw_file(folder, builders.info(**changes))])
    assert one.new, one.error


def land_json(landing: Path, name: str, content: Any) -> None:
    part = landing / f".{name}"
    part.write_text(content if isinstance(content, str) else json.dumps(content))
    os.replace(part, landing / name)


def expected(*names: str, **others: str) -> dict[str, Any]:
    """As the camera's control system writes it."""
    sensors = dict.fromkeys(names, "SCIENCE") | others
    return {"fileName": f"{IMAGE}_expectedSensors.json", "obsId": IMAGE, "version": 1.0, "expectedSensors": sensors}


def test_an_image_as_announced_is_taken_within_the_tolerances(root: Path, tmp_path: Path) -> None:
    register(root, tmp_path, ra_deg=53.0, dec_deg=-28.3, rotation_deg=12.9)
    assert wait(root).raws
    assert wait(root, builders.visit(physical_filter="", band="")).raws  # the announcement left the filter open


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dec_deg": -27.0}, r"points at RA 52\.80000, Dec -27\.00000, 1\.100 degrees from RA 52\.8.*Dec -28\.1"),
        ({"ra_deg": 53.5}, r"0\.617 degrees from"),
        ({"physical_filter": "g_01", "band": "g"}, "is in filter g_01, its visit was announced in r_03"),
        ({"rotation_deg": 190.0}, r"sky angle 190\.000, 178\.000 degrees from 12\.000"),
        ({"rotation_deg": 13.5}, r"1\.500 degrees"),
        (
            {"group": "2025-04-21T04:00:00.000"},
            f"is of group '2025-04-21T04:00:00.000', .* announced as group '{GROUP}'",
        ),
        ({"exposure": builders.EXPOSURE + 7}, f"is image CC_O_20250420_000130, it was announced as {IMAGE}"),
    ],
)
def test_an_image_that_is_not_what_was_announced_ends_the_wait_at_once(
    root: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    register(root, tmp_path, **changes)
    begin = time.monotonic()
    with pytest.raises(Misannounced, match=message):
        wait(root)
    assert time.monotonic() - begin < 5.0


def test_angles_meet_at_north_and_right_ascension_at_zero() -> None:
    told = builders.sighting(ra_deg=359.95, dec_deg=0.0, rotation_deg=359.6)
    check_announced(told, builders.visit(ra_deg=0.05, dec_deg=0.0, rotation_deg=0.4))
    with pytest.raises(Misannounced, match=r"1\.200 degrees"):
        check_announced(told, builders.visit(ra_deg=0.05, dec_deg=0.0, rotation_deg=0.8))


def test_what_a_header_leaves_open_agrees() -> None:
    nan = math.nan
    check_announced(
        builders.sighting(ra_deg=nan, dec_deg=nan, rotation_deg=nan, physical_filter=""), builders.visit(dec_deg=80.0)
    )


@pytest.mark.parametrize("image_type", ["BIAS", "FLAT"])
def test_a_calibration_is_not_what_was_announced_as_a_visit(image_type: str) -> None:
    nan = math.nan
    dark = builders.sighting(image_type=image_type, ra_deg=nan, dec_deg=nan, rotation_deg=nan)
    with pytest.raises(Misannounced, match=f"image {IMAGE} is a {image_type.lower()}, it was announced as visit"):
        check_announced(dark, builders.visit())


def test_detectors_that_are_not_expected_end_at_once_and_others_wait_on(either_root: Path, tmp_path: Path) -> None:
    root, landing = either_root, tmp_path / "landing"

    def ended(detector: int) -> Any:
        begin = time.monotonic()
        try:
            return wait(root, detector=detector, timeout_s=3.0), time.monotonic() - begin
        except ApflowError as error:
            return error, time.monotonic() - begin

    with Ingestor(root, landing), ThreadPoolExecutor(9) as pool:
        waiters = {d: pool.submit(ended, d) for d in (1, 2, 4, 5)}
        land_json(landing, f"{IMAGE}_expectedSensors.json", expected("R22_S11", "R22_S12", R22_S01="GUIDER"))
        for d, name in ((1, "R22_S01"), (2, "R22_S02")):
            error, took_s = waiters[d].result()
            assert isinstance(error, ImageTimeout) and took_s < 2.0
            assert f"detector {d} is not expected: {IMAGE}_expectedSensors.json does not name {name}" in str(error)
        with pytest.raises(ImageTimeout, match="not expected"):
            await_named_images(root, "LSSTComCam", [IMAGE], 2, 5.0)
        source = builders.raw_file(tmp_path, builders.info())
        os.replace(source, landing / source.name)
        assert waiters[4].result()[0].raws
        error, took_s = waiters[5].result()
        assert "did not arrive" in str(error) and took_s >= 3.0
        # One that comes all the same is good.
        source = builders.raw_file(tmp_path, builders.info(2))
        os.replace(source, landing / source.name)
        deadline = time.monotonic() + 5.0
        while isinstance(ended(2)[0], ApflowError) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert wait(root, detector=2).raws


def test_a_follower_is_told_of_sidecars_sensors_and_raws_once_each(either_root: Path, tmp_path: Path) -> None:
    root, landing = either_root, tmp_path / "landing"
    found: list[Sighting] = []
    with Ingestor(root, landing), follow(root, "LSSTComCam") as listener:
        assert listener.get(0.0) == []
        land_json(landing, f"{IMAGE}_expectedSensors.json", expected("R22_S11", "R22_S12"))
        header = header_of(builders.info()) | {"MAXINDEX": 2, "RA": None}
        land_json(landing, f"{IMAGE}_R22_S11.json", header)
        for detector in (4, 5):
            source = builders.raw_file(tmp_path, builders.info(detector))
            os.replace(source, landing / source.name)
        deadline = time.monotonic() + 10.0
        while len(found) < 4 and time.monotonic() < deadline:
            found += listener.get(1.0)
        assert listener.get(0.3) == []
    assert len(found) == 4
    (sensors,) = (s for s in found if s.expected is not None)
    assert (sensors.expected, sensors.image, sensors.exposure, sensors.group) == ((4, 5), IMAGE, builders.EXPOSURE, "")
    (sidecar,) = (s for s in found if s.expected is None and not s.registered)
    assert (sidecar.group, sidecar.detector, sidecar.nsnaps, sidecar.band) == (GROUP, 4, 2, "r")
    assert math.isnan(sidecar.ra_deg) and sidecar.dec_deg == -28.1 and sidecar.rotation_deg == 12.0
    raws = {s.detector: s for s in found if s.registered}
    assert set(raws) == {4, 5}
    assert raws[4] == builders.sighting(arrived_unix=raws[4].arrived_unix)
    assert not list(landing.iterdir())


def test_a_listener_that_starts_again_is_told_what_it_missed(either_root: Path, tmp_path: Path) -> None:
    register(either_root, tmp_path)
    with follow(either_root, "LSSTComCam") as listener:
        (told,) = listener.get(5.0)
        assert told.detector == 4 and told.registered
        register(either_root, tmp_path, detector=5)
        (more,) = listener.get(5.0)
        assert more.detector == 5
    with follow(either_root, "LSSTComCam") as again:
        assert [s.detector for s in again.get(5.0)] == [4, 5]
        assert again.get(0.0) == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (f"{IMAGE}_R22_S11.json", "{", "is not a sidecar"),
        (f"{IMAGE}_R22_S11.json", "[]", "it holds a list; accepted: an object"),
        ("notes.json", "{}", "image name 'notes' is not of the form"),
        (f"{IMAGE}_R22_S11.json", {"INSTRUME": "LSSTCam"}, "INSTRUME is 'LSSTCam'; accepted: LSSTComCam"),
        (f"{IMAGE}_R22_S11.json", {"FILTER": "r_57"}, "r_57"),
        (f"{IMAGE}_R22_S11.json", {"RA": "12h"}, "12h"),
        (f"{IMAGE}_R43_S11.json", {}, "R43_S11"),
        (f"{IMAGE}_expectedSensors.json", {"sensors": {}}, "has no expectedSensors"),
        (
            f"{IMAGE}_expectedSensors.json",
            {"expectedSensors": {"R01_S00": "SCIENCE"}},
            "names no detector of LSSTComCam",
        ),
    ],
)
def test_a_file_that_tells_nothing_is_put_aside(
    root: Path, tmp_path: Path, name: str, content: Any, message: str
) -> None:
    land_json(tmp_path, name, content)
    with pytest.raises(DataError, match=message):
        read_sidecar(builders.camera(), tmp_path / name, 1.0)
    landing = tmp_path / "landing"
    with Ingestor(root, landing, settle_s=0.1):
        os.replace(tmp_path / name, landing / name)
        deadline = time.monotonic() + 5.0
        while not (root / "rejected" / name).exists() and time.monotonic() < deadline:
            time.sleep(0.02)
    assert (root / "rejected" / name).exists()
    with follow(root, "LSSTComCam") as listener:
        assert listener.get(0.0) == []


def test_sightings_survive_their_journey() -> None:
    for one in (builders.sighting(), builders.sighting(ra_deg=math.nan, detector=None, expected=(1, 2))):
        again = Sighting.from_json(json.loads(json.dumps(one.to_json())))
        assert repr(again) == repr(one)


@pytest.mark.parametrize("group", ["g" * 65, "tab\tbed"])
def test_a_group_that_no_registry_takes_is_the_files_fault(either_root: Path, tmp_path: Path, group: str) -> None:
    """PostgreSQL would refuse the whole batch."""
    files = [
        builders.raw_file(tmp_path / name, builders.info(d, group=g))
        for name, d, g in (("a", 4, group), ("b", 5, GROUP))
    ]
    with Repository(either_root, writeable=True) as repository:
        bad, good = repository.ingest_raws(files)
    assert "GROUPID is" in bad.error and good.new
