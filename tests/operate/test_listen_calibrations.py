"""``apflow listen`` and calibrations (D5): events and raws in, verdicts in the Butler, and no visit anywhere."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

import pytest
from lsst.daf.butler import Butler

from apflow.io.butler.paths import CHECKS, checks_chain
from apflow.io.metrics import values_of
from apflow.io.ppdb import open_ppdb
from apflow.model.calibration import Intent
from apflow.model.calibration_bundle import EXPOSURE_ACTION
from apflow.model.exposure import Raw
from apflow.model.ids import image_name
from tests.calibration_night import Night, make_night
from tests.operate.listening import Listening, journal

DETECTORS = (3, 4)
#: By sequence number: none of the images of `NEVER` comes.
NEVER, BIAS, DARK, FLATS, AFTER_CRASH, WRONG = 1, 2, 3, (4, 5), 6, 7


def name_of(raw: Raw) -> str:
    """Name of its image."""
    return image_name(raw.info.exposure, "CC_O")


def land(night: Night, *raws: Raw) -> None:
    """Raws appear in the landing folder under their names."""
    for raw in raws:
        name = f"{name_of(raw)}_{night.scenario.load_camera().detector(raw.info.detector).name}.fits"
        os.replace(night.write(raw), night.root / "landing" / name)


def raws(night: Night, intent: Intent, sequence: int) -> list[Raw]:
    return [night.raw(intent, sequence, detector) for detector in DETECTORS]


def opened(raw: Raw, of: int = 1, index: int = 1, image_type: str = "") -> dict[str, Any]:
    """startIntegration of a raw's exposure."""
    info = raw.info
    values = [image_type or info.image_type, info.group.replace(":", "\\:")]
    return {
        "imageName": name_of(raw),
        "exposureTime": info.exposure_time_s,
        "imagesInSequence": of,
        "imageIndex": index,
        "additionalKeys": "imageType:groupId",
        "additionalValues": ":".join(values),
    }


@pytest.fixture(scope="module")
def afternoon(tmp_path_factory: pytest.TempPathFactory) -> tuple[Night, Sequence[str]]:
    """A service that is killed once; its file and its HTTP door tell of some exposures, and images of others."""
    folder = tmp_path_factory.mktemp("afternoon")
    night = make_night(folder, DETECTORS)
    events = folder / "events.jsonl"
    events.touch()
    doors = ("--file", str(events), "--follow", "--http", ":0", "--image-timeout", "10")
    with Listening(night.root, *doors) as service:
        never = night.raw(Intent.BIAS, NEVER, 4)
        assert service.post("startIntegration", opened(never)) == 202
        service.until(f"bias {name_of(never)} of group {never.info.group}: 2 detectors")
        bias = raws(night, Intent.BIAS, BIAS)
        with events.open("a") as file:
            file.write(json.dumps({"event": "startIntegration"} | opened(bias[0], 25, 3)) + "\n")
        service.until(f"bias {name_of(bias[0])} of group")
        land(night, *bias)
        service.until(f"bias {name_of(bias[0])}: 2 done")
        dark = raws(night, Intent.DARK, DARK)
        land(night, *dark)
        service.until(f"dark {name_of(dark[0])}: 2 done")
        for index, sequence in enumerate(FLATS, 1):
            flats = raws(night, Intent.FLAT, sequence)
            assert service.post("startIntegration", opened(flats[0], 2, index)) == 202
            land(night, *flats)
            service.until(f"flat {name_of(flats[0])}: 2 done")
        missing = f"bias {name_of(never)}: 2 image_timeout"
        if not any(missing in line for line in service.told):
            service.until(missing)
        late = raws(night, Intent.FLAT, AFTER_CRASH)
        assert service.post("startIntegration", opened(late[0])) == 202
        service.until(f"flat {name_of(late[0])} of group")
        service.kill()
    told = service.told
    with Listening(night.root, "--http", ":0") as service:
        service.until("1 visits or calibrations were under way")
        land(night, *late)
        service.until(f"flat {name_of(late[0])}: 2 done")
        wrong = raws(night, Intent.DARK, WRONG)
        assert service.post("startIntegration", opened(wrong[0], image_type="BIAS")) == 202
        service.until(f"bias {name_of(wrong[0])} of group")
        land(night, *wrong)
        assert "intent dark, not bias" in service.until(f"dark {name_of(wrong[0])} begins anew")
        service.until(f"dark {name_of(wrong[0])}: 2 done")
    return night, [*told, *service.told]


def test_every_image_that_came_is_checked_once_and_registered(afternoon: tuple[Night, Sequence[str]]) -> None:
    night, _ = afternoon
    came = {BIAS, DARK, *FLATS, AFTER_CRASH, WRONG}
    with Butler.from_config(str(night.root), collections=checks_chain("LSSTComCam")) as butler:
        for kind in CHECKS:
            refs = butler.query_datasets(kind, limit=None)
            per_exposure = 1 if kind == "calibration_exposure_metrics" else len(DETECTORS)
            assert len(refs) == len(came) * per_exposure
            assert {int(ref.dataId["exposure"]) % 100_000 for ref in refs} == came
        for ref in butler.query_datasets("calibration_exposure_metrics", limit=None):
            whole = values_of(butler.get(ref))[EXPOSURE_ACTION]
            assert whole["n_detectors_done"] == 2 and whole["verdict"] == 0


def test_each_that_ended_has_a_report_with_pictures(afternoon: tuple[Night, Sequence[str]]) -> None:
    night, _ = afternoon
    reports = night.root / "calibration-reports"
    numbers = {BIAS, DARK, *FLATS, AFTER_CRASH, WRONG, NEVER}
    assert {int(page.stem.rsplit("_", 1)[1]) for page in reports.glob("*.html")} == numbers
    for page in reports.glob("*.html"):
        summary = json.loads(page.with_suffix(".json").read_text())
        never = summary["exposure"] % 100_000 == NEVER
        assert summary["states"] == ({"image_timeout": 2} if never else {"done": 2})
        assert ('class="mosaic" src="data:image/png' in page.read_text()) is not never


def test_none_of_them_is_a_visit(afternoon: tuple[Night, Sequence[str]]) -> None:
    night, told = afternoon
    with Butler.from_config(str(night.root)) as butler:
        assert not butler.query_dimension_records("visit", instrument="LSSTComCam", explain=False)
    with open_ppdb(night.config.ppdb_url) as ppdb:
        assert ppdb.table("ledger").empty and ppdb.table("DiaSource").empty
    assert not [line for line in told if line.startswith(("visit", "group"))]


def test_what_was_told_and_started_is_written_down(afternoon: tuple[Night, Sequence[str]]) -> None:
    night, _ = afternoon
    entries = journal(night.root)
    started = [entry["calibration"]["exposure"] % 100_000 for entry in entries if entry["what"] == "started"]
    # The one under way when the service was killed, and the one that was announced wrongly, began twice.
    assert sorted(started) == sorted([NEVER, BIAS, DARK, *FLATS, AFTER_CRASH, AFTER_CRASH, WRONG, WRONG])
    states = [entry["states"] for entry in entries if entry["what"] == "ended"]
    assert states.count({"done": 2}) == 6 and states.count({"image_timeout": 2}) == 1 and len(states) == 7
