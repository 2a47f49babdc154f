"""The report: complete, self-contained, and true to what it was given."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console

from apflow.model.camera import load_camera
from apflow.model.visit import Visit
from apflow.operate.report import Stamp, write_report
from apflow.operate.report_console import print_tables
from apflow.operate.report_map import focal_plane_svg, metric_columns, metric_label

STATES = ("done", "no_template", "no_calib", "image_timeout", "bad_data", "failed", "cancelled")
EVIL = "<script>alert('x')</script> {{tiles}} & more"


def visits(camera, n=3) -> list[Visit]:
    return [
        Visit(camera.instrument, 2025042000123 + i, f"g{i}", 150.0, -20.0, 0.0, "r", "r", 30.0, (f"image{i}",))
        for i in range(n)
    ]


def ledger(camera) -> pd.DataFrame:
    rows = []
    for visit in visits(camera):
        for i, detector in enumerate(camera.select("science")):
            done = i != 3
            rows.append(
                {
                    "instrument": camera.instrument,
                    "visit": visit.visit,
                    "detector": detector,
                    "state": "done" if done else "failed",
                    "cause": "" if done else EVIL,
                    "step": "" if done else "subtract",
                    "n_sources": 20 + i % 7,
                    "n_alerts": 20,
                    "arrived_unix": 1e9 if done else np.nan,
                    "stored_unix": 1e9 + 5 if done else np.nan,
                    "published_unix": 1e9 + 6 + i / 100 if done else np.nan,
                    "psf_fwhm_arcsec": 0.8 + i / 1000 if done else np.nan,
                    "zero_point_mag": 31.25,
                    "never_known": np.nan,
                }
            )
    return pd.DataFrame(rows)


def summary(table: pd.DataFrame) -> dict:
    latency = table["published_unix"] - table["arrived_unix"]
    return {
        "detector_visits": {"expected": len(table), **{s: int((table["state"] == s).sum()) for s in STATES}},
        "score": {"completeness_snr6": 0.951, "purity": 0.94, "zeropoint_bias_mag": float("nan")},
        "alerts": int(table["n_alerts"].sum()),
        "latency_s": {"p50": float(latency.median()), "p95": 7.5, "p98": np.float64(7.9), "max": 8.0},
        "stages": {"calibrate": {"core_s": 12.5, "p50_s": 0.02, "p95_s": 0.03, "p98_s": 0.04, "max_s": 0.1}},
        "core_s_per_detector": 0.31,
        "peak_rss_mib": 700.5,
        "wall_s": 210.0,
        "machine": {"cpu": EVIL, "cores": np.int64(2)},
        "versions": {"apflow": "0.1"},
        "seed": 7,
    }


def stamp(camera) -> Stamp:
    image = np.random.default_rng(1).normal(size=(30, 30))
    image[29, 29] = 500.0
    hole = np.where(np.arange(30) < 5, np.nan, image)
    return Stamp(168691488537968641, visits(camera)[0].visit, 94, 12.34, EVIL, image, image * 0.5, hole)


@pytest.fixture(scope="module")
def camera():
    return load_camera("lsstcam", 512)


@pytest.fixture(scope="module")
def page(camera, tmp_path_factory):
    table = ledger(camera)
    folder = tmp_path_factory.mktemp("report") / "new"
    return write_report(
        folder, summary(table), camera=camera, visits=visits(camera), ledger=table, stamps=[stamp(camera)]
    )


def embedded(page) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.S)[1])


class Balance(HTMLParser):
    """Checks that every element that is opened is closed."""

    void = frozenset({"meta", "img", "br", "input", "link", "hr"})

    def __init__(self):
        super().__init__()
        self.stack, self.links, self.tags = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "data", "srcset")]
        if tag not in self.void:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag


def test_page_is_whole_and_asks_for_nothing_outside(page):
    text = page.read_text()
    parser = Balance()
    parser.feed(text)
    assert parser.stack == []
    assert parser.tags.count("script") == 2
    assert all(link.startswith("data:image/png") for link in parser.links)
    assert not re.search(r"https?://|@import|url\(", text)
    assert "{{tiles}} &amp; more" in text and "<script>alert" not in text


def test_json_is_the_summary_without_nan(page, camera):
    written = json.loads((page.parent / "report.json").read_text(), parse_constant=pytest.fail)
    assert written["detector_visits"]["expected"] == 567
    assert written["score"]["zeropoint_bias_mag"] is None
    assert written["latency_s"]["p98"] == 7.9
    assert written["machine"]["cores"] == 2


def test_map_holds_every_detector_and_its_values(page, camera):
    data = embedded(page)
    assert [v["id"] for v in data["visits"]] == ["2025042000123", "2025042000124", "2025042000125"]
    assert [d["name"] for d in data["detectors"]] == [d.name for d in camera.detectors]
    science = [d.id for d in camera.detectors].index(94)
    guider = next(i for i, d in enumerate(camera.detectors) if d.purpose == "GUIDER")
    assert data["state"][1][science] == "done" and data["state"][1][guider] is None
    metrics = {m["label"]: m for m in data["metrics"]}
    assert list(metrics)[:5] == ["PSF FWHM", "Zero point", "Number of sources", "Number of alerts", "Latency"]
    table = ledger(camera).set_index(["visit", "detector"])
    assert metrics["PSF FWHM"]["values"][0][science] == pytest.approx(table.loc[(2025042000123, 94), "psf_fwhm_arcsec"])
    assert metrics["PSF FWHM"]["values"][0][guider] is None
    assert any(EVIL in (cause or "") for cause in data["cause"][0])


@pytest.mark.parametrize(("name", "size"), [("lsstcam", 512), ("lsstcam", None), ("comcam", 512), ("decam", None)])
def test_detectors_on_the_map_do_not_overlap_and_up_is_up(name, size):
    camera = load_camera(name, size)
    svg = focal_plane_svg(camera)
    boxes = np.array(re.findall(r'class="ccd"[^>]*? x="(\S+)" y="(\S+)" width="(\S+)" height="(\S+)"', svg), float)
    assert len(boxes) == len(camera.detectors)
    middle = boxes[:, :2] + boxes[:, 2:] / 2
    apart = np.abs(middle[:, None] - middle[None])
    meet = (apart < (boxes[:, None, 2:] + boxes[None, :, 2:]) / 2 - 0.2).all(-1)
    assert meet.sum() == len(boxes)  # each with itself
    y_mm = np.array([d.y_mm for d in camera.detectors])
    assert middle[y_mm.argmax(), 1] < middle[y_mm.argmin(), 1]
    if name == "lsstcam":
        assert svg.count("raft-label") == 25


def test_stamps_are_png_with_the_first_row_at_the_bottom(page):
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page.read_text())
    science, _, difference = (np.asarray(Image.open(io.BytesIO(base64.b64decode(p)))) for p in pictures)
    assert science.shape == (30, 30, 2)
    assert science[0, 29, 0] == 255 and science[29, 0, 0] < 128
    assert (difference[:, :5, 1] == 0).all() and (difference[:, 5:, 1] == 255).all()


def test_report_of_nothing_done(camera, tmp_path):
    table = ledger(camera).assign(state="image_timeout", published_unix=np.nan, psf_fwhm_arcsec=np.nan)
    empty = summary(table) | {
        "latency_s": {"p50": None, "p95": None, "p98": None, "max": None},
        "stages": {},
        "score": {},
    }
    page = write_report(tmp_path, empty, camera=camera, visits=visits(camera), ledger=table, stamps=[])
    assert "No alert was published" in page.read_text()
    print_tables(empty, Console(file=io.StringIO(), width=120))


def test_metrics_are_named_in_words():
    assert metric_label("psf_fwhm_arcsec") == ("PSF FWHM", "arcsec")
    assert metric_label("latency_s") == ("Latency", "s")
    assert metric_label("n_sources") == ("Number of sources", "")
    assert "never_known" not in metric_columns(ledger(load_camera("comcam")))


def test_console_shows_states_latency_steps_and_score(camera):
    console = Console(file=io.StringIO(), width=160, color_system=None)
    print_tables(summary(ledger(camera)), console)
    text = console.file.getvalue()
    for word in (
        "done",
        "564",
        "99.5 %",
        "failed",
        "567",
        "p98",
        "7.9",
        "calibrate",
        "12.5",
        "completeness_snr6",
        "700",
    ):
        assert word in text, word
    assert "cancelled" not in text  # states that did not occur are left out
