"""The page of a night, as a browser shows it, on a real scheduler's own server."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import dask
import numpy as np
import pytest
from distributed import LocalCluster
from PIL import ImageColor
from prometheus_client.parser import text_string_to_metric_families

from apflow.io.records import Records, night_folder
from apflow.model.ap_metrics import STEPS
from apflow.model.ledger import State
from apflow.model.record import Record
from apflow.operate.dashboard.colours import OFF, STATE, STEP, VERDICT
from tests.operate.dashboard.browser import Browser, chromium
from tests.operate.dashboard.small_night import CAMERA, DAY, DETECTORS, ended, number, visits

#: Of 1640 x 1300 pixels, those of one detector of ComCam's nine are some 20,000.
_A_DETECTOR = 5000
_MIDDLE = 4
_SELECT = """
[...Bokeh.documents[0]._all_models.values()].find(m => m.type == "Select" && m.title == "%s").value = "%s"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = night_folder(tmp_path_factory.mktemp("repo"), DAY)
    with Records(folder) as file:
        file.append(*visits(14))
    (folder / "logs").mkdir()
    lines = [f"visit {number(14)} detector {d}: difference of {d}\n" for d in (_MIDDLE, 44)]
    (folder / "logs" / "driver.log").write_text("".join(lines))
    return folder


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    with (
        dask.config.set({"apflow.night-folder": str(folder)}),
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, protocol="tcp://", host="127.0.0.1",
            dashboard_address="127.0.0.1:0", memory_limit="1GiB",
            scheduler_kwargs={"preload": ["apflow.operate.dashboard.preload"]},
        ) as cluster,
    ):  # fmt: skip
        yield cluster.dashboard_link.removesuffix("/status")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


def area(browser: Browser, colour: str) -> int:
    """Pixels of a colour."""
    return int((browser.picture() == ImageColor.getrgb(colour)).all(-1).sum())


def grown(browser: Browser, colour: str, least: int) -> int:
    """Pixels of a colour, once there are enough of it."""
    for _ in range(100):
        if (found := area(browser, colour)) >= least:
            return found
    raise AssertionError(f"only {found} pixels are {colour}, not {least}")


def read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return str(answer.read().decode())


def test_a_night_is_shown_and_follows_its_records(browser: Browser, url: str, folder: Path) -> None:
    browser.open(f"{url}/apflow")
    text = browser.until("14 of 14 visits ended.*9 of 9 detectors ended")
    assert f"{14 * len(DETECTORS)} of {14 * len(DETECTORS)} detector-visits ended" in text
    assert re.search(r"100 % alerts within 60 s at least 98 % 0 % visits late at most 1 %", text)
    assert re.search(r"1 workers 0 lost", text)
    table = text[text.index("in 60 s") :]
    assert table.index(str(number(14))) < table.index(str(number(13)))
    assert area(browser, VERDICT["acceptable"]) > 1000
    assert area(browser, VERDICT["alert"]) == 0
    assert f"{number(14)} · band g · ended, 9 of 9 detectors ended" in text
    assert "done 9" in text
    assert re.search(r"worker for tasks memory.*of 1,024 MiB", text)
    full = grown(browser, STATE[State.DONE], 9 * _A_DETECTOR)

    # A visit begins: seven of its detectors are in a step, one has failed, of one nothing is known.
    now, visit = 2e9, number(15)
    start = Record(now, "visit", visit, numbers={"n_detectors": 9.0}, instrument=CAMERA.instrument, band="g")
    steps = [Record(now, "step", visit, d, "calibrate", now - 1, now, 1.0, "w", "done") for d in DETECTORS[:7]]
    with Records(folder) as file:
        file.append(start, *steps, ended(visit, DETECTORS[7], "failed", now))
    text = browser.until(f"{number(15)} · band g · under way, 1 of 9 detectors ended")
    assert "14 of 15 visits ended" in text
    assert "failed 1 calibrate 7 expected 1" in text
    assert grown(browser, STATE[State.FAILED], full // 18) < full / 6
    assert grown(browser, VERDICT["alert"], 1000) > 0
    assert grown(browser, STEP["calibrate"], full // 3) > 0
    assert area(browser, STATE[State.DONE]) < _A_DETECTOR
    with Records(folder) as file:
        file.append(
            *(ended(visit, d, "done", now, n_alerts=1.0) for d in DETECTORS[:7]), Record(now, "visit_ended", visit)
        )
    text = browser.until(f"{number(15)} · band g · ended, 8 of 9")
    assert "15 of 15 visits ended" in text
    assert "7 unsent alerts" in text
    assert grown(browser, STATE[State.DONE], full // 2) > 0
    assert grown(browser, OFF, full // 18) < full / 6
    assert not browser.failed, browser.failed


def test_any_metric_and_any_visit(browser: Browser, url: str) -> None:
    browser.open(f"{url}/apflow")
    browser.until("of 9 detectors ended")
    browser.run(_SELECT % ("Visit", number(1)))
    browser.until(rf"{number(1)} · band u · ended, 9 of 9")
    browser.run(_SELECT % ("Colour", "psf_fwhm_arcsec"))
    browser.until(r"PSF FWHM , arcsec: median 0\.\d+ arcsec of 9 detectors")
    assert np.isclose(area(browser, STATE[State.DONE]), 0, atol=_A_DETECTOR)
    assert not browser.failed, browser.failed


def test_a_click_on_a_detector_opens_its_page(browser: Browser, url: str) -> None:
    browser.open(f"{url}/apflow")
    browser.until("of 9 detectors ended")
    browser.run(_SELECT % ("Visit", number(14)))
    browser.until(f"{number(14)} · band g · ended")
    browser.run("window.open = url => { window.opened = url; }")
    done = (browser.picture() == ImageColor.getrgb(STATE[State.DONE])).all(-1)
    y, x = (int(np.median(places)) for places in np.nonzero(done))
    browser.click(x, y - 12)  # beside the raft's label
    opened = str(browser.until_value("window.opened"))
    detector = int(opened.rpartition("=")[2])
    browser.open(f"{url}/{opened}")
    name = CAMERA.detector(detector).name
    assert detector == _MIDDLE
    text = browser.until(name)
    assert f"visit {number(14)} · band g · done" in text
    assert all(step in text for step in STEPS)
    assert "PSF FWHM" in text
    assert f"driver: visit {number(14)} detector {_MIDDLE}: difference of {_MIDDLE}" in text
    assert "difference of 44" not in text


@pytest.mark.parametrize(
    ("query", "status"), [("visit=x&detector=1", 400), ("visit=7&detector=1", 404), ("visit=7", 400)]
)
def test_no_such_detector(url: str, query: str, status: int) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        read(f"{url}/apflow/detector?{query}")
    assert caught.value.code == status
    caught.value.close()


@pytest.mark.parametrize("page", ["status", "workers", "graph", "tasks"])
def test_pages_of_dask_are_still_there(url: str, page: str) -> None:
    assert "<title>Dask" in read(f"{url}/{page}")


def test_metrics_for_prometheus(url: str) -> None:
    samples = {
        (s.name, *sorted(s.labels.values())): s.value
        for family in text_string_to_metric_families(read(f"{url}/metrics"))
        for s in family.samples
    }
    assert any(name.startswith("dask_scheduler") for name, *_ in samples)
    assert samples["apflow_visits", "ended"] == 15
    assert samples["apflow_detector_visits", "done"] == 14 * 9 + 7
    assert samples["apflow_detector_visits", "failed"] == 1
    assert samples["apflow_detector_visits_expected",] == 15 * 9
    assert samples["apflow_unsent_alerts",] == 7
    assert samples["apflow_alert_latency_seconds_count",] == 14 * 9
    assert samples["apflow_step_duration_seconds_bucket", "+Inf", "calibrate"] == 14 * 9 + 7
    assert samples["apflow_workers", "compute"] == 1
