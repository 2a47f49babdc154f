"""Cameras against the facts: geometry, ids, positions on the sky."""

from __future__ import annotations

import csv
import dataclasses
import math
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import yaml
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.wcs import WCS

from apflow.errors import BadRequest
from apflow.model.camera import camera_names, load_camera
from apflow.model.response import LINEARITY_STEP
from apflow.model.sky import separation_arcsec
from apflow.model.wcs import Wcs

BORESIGHTS = [(150.0, -30.0, 33.0), (0.01, 0.0, 270.0), (210.0, -89.0, 123.4)]


def test_lsstcam_has_189_science_ccds_8_guiders_8_wavefront_halves():
    camera = load_camera("lsstcam")
    purposes = [d.purpose for d in camera.detectors]
    assert (purposes.count("SCIENCE"), purposes.count("GUIDER"), purposes.count("WAVEFRONT")) == (189, 8, 8)
    assert [d.id for d in camera.detectors] == list(range(205))
    assert camera.detector("R22_S11").id == 94
    assert len(load_camera("comcam").detectors) == 9
    assert len(load_camera("decam").detectors) == 62


def test_lsstcam_ids_and_centres_follow_the_raft_formula():
    rafts = [f"R{i}{j}" for i in range(5) for j in range(5) if (i, j) not in ((0, 0), (0, 4), (4, 0), (4, 4))]
    camera = load_camera("lsstcam")
    for k, raft in enumerate(rafts):
        for a in range(3):
            for b in range(3):
                detector = camera.detector(f"{raft}_S{a}{b}")
                assert detector.id == 9 * k + 3 * a + b
                x = (int(raft[2]) - 2) * 127 + (b - 1) * 42.25
                y = (int(raft[1]) - 2) * 127 + (a - 1) * 42.25
                assert (detector.x_mm, detector.y_mm) == (x, y)


def test_both_vendors_fill_the_ccd_with_16_amplifiers_of_2048_by_576():
    for name, shape, amplifier in (("R22_S11", (4004, 4096), (2002, 512)), ("R01_S00", (4000, 4072), (2000, 509))):
        detector = load_camera("lsstcam").detector(name)
        covered = np.zeros(detector.shape, int)
        assert detector.shape == shape
        assert len(detector.amplifiers) == 16
        for a in detector.amplifiers:
            assert a.raw_shape == (2048, 576)
            assert (a.ny, a.nx) == amplifier
            covered[a.y0 : a.y0 + a.ny, a.x0 : a.x0 + a.nx] += 1
        assert (covered == 1).all()


@pytest.mark.parametrize(("ra", "dec", "rotation"), BORESIGHTS)
def test_every_detector_lies_where_the_field_angle_formula_puts_it(ra, dec, rotation):
    """The formula of CONTRACT.md evaluated with astropy's sky offsets, to 0.1 arcsec."""
    camera = load_camera("lsstcam")
    centre = SkyCoord(ra, dec, unit="deg")
    for d in camera.detectors:
        r = math.hypot(d.x_mm, d.y_mm)
        theta = r * (1 - 8.33713991e-9 * r**2 - 1.41389858e-15 * r**4) * 20.005867576692737 / 3600
        x, y = (theta * d.x_mm / r, theta * d.y_mm / r) if r else (0.0, 0.0)
        phi = math.radians(rotation)
        xi, eta = -x * math.cos(phi) + y * math.sin(phi), x * math.sin(phi) + y * math.cos(phi)
        header = fits.Header(
            {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": ra, "CRVAL2": dec, "CRPIX1": 1, "CRPIX2": 1}
        )
        header.update({"CDELT1": 1.0, "CDELT2": 1.0, "CUNIT1": "deg", "CUNIT2": "deg"})
        expected = WCS(header).pixel_to_world(xi, eta)
        wcs = camera.wcs(d, ra, dec, rotation)
        got = wcs.pixel_to_sky((d.nx - 1) / 2, (d.ny - 1) / 2)
        assert separation_arcsec(*got, expected.ra.deg, expected.dec.deg) < 1e-3
        assert centre.separation(expected).deg < 2.5


def test_fitted_wcs_follows_the_distortion_to_a_microarcsecond_and_inverts():
    camera = load_camera("lsstcam")
    for name in ("R01_S00", "R22_S11", "R00_SG0", "R44_SW1"):
        detector = camera.detector(name)
        wcs = camera.wcs(detector, 150.0, -30.0, 33.0)
        x, y = np.meshgrid(np.linspace(0, detector.nx - 1, 30), np.linspace(0, detector.ny - 1, 30))
        exact = camera.sky(*camera.focal_plane(detector, x, y), 150.0, -30.0, 33.0)
        assert separation_arcsec(*wcs.pixel_to_sky(x, y), *exact).max() < 1e-6
        back = wcs.sky_to_pixel(*exact)
        assert max(abs(back[0] - x).max(), abs(back[1] - y).max()) < 1e-5


def test_astropy_reads_the_same_positions_from_the_header():
    camera = load_camera("lsstcam")
    wcs = camera.wcs(camera.detector("R01_S00"), 150.0, -30.0, 33.0)
    header = fits.Header(wcs.to_header())
    points = np.array([[0.0, 0.0], [4000.0, 100.0], [2000.0, 3900.0]])
    assert np.allclose(WCS(header).all_pix2world(points, 0), np.stack(wcs.pixel_to_sky(*points.T), -1), atol=1e-10)
    again = Wcs.from_header(header)
    assert np.allclose(again.pixel_to_sky(*points.T), wcs.pixel_to_sky(*points.T), atol=1e-12)


def test_rotation_is_the_position_angle_of_plus_y():
    camera = load_camera("lsstcam")
    detector = camera.detector("R22_S11")
    wcs = camera.wcs(detector, 100.0, 20.0, 33.0)
    x, y = (detector.nx - 1) / 2, (detector.ny - 1) / 2
    low, high = (SkyCoord(*wcs.pixel_to_sky(x, y + s), unit="deg") for s in (-100, 100))
    assert low.position_angle(high).deg == pytest.approx(33.0, abs=5e-3)
    assert wcs.rotation_deg() == pytest.approx(33.0, abs=1e-6)


def test_cut_outs_keep_centre_scale_and_amplifiers():
    full, small = load_camera("lsstcam"), load_camera("lsstcam", 512)
    for which in ("R01_S00", "R22_S11", "R00_SW0"):
        big, cut = full.detector(which), small.detector(which)
        assert cut.shape == (512, 512)
        assert len(cut.amplifiers) == len(big.amplifiers)
        assert sum(a.nx * a.ny for a in cut.amplifiers) == 512 * 512
        a, b = (c.wcs(c.detector(which), 10.0, 10.0, 5.0) for c in (full, small))
        assert separation_arcsec(*a.crval_deg, *b.crval_deg) < 1e-6
        assert a.pixel_scale_arcsec == pytest.approx(b.pixel_scale_arcsec, rel=1e-6)


def test_decam_ccds_do_not_overlap_and_span_two_degrees():
    camera = load_camera("decam")
    regions = [camera.region(d, 50.0, -20.0, 0.0) for d in camera.detectors]
    assert not any(a.overlaps(b) for i, a in enumerate(regions) for b in regions[:i])
    xs = np.array([d.x_mm for d in camera.detectors])
    assert 1.8 < np.ptp(xs) * camera.plate_scale_arcsec_per_mm / 3600 < 2.2


def test_select_takes_words_rafts_names_and_ids_once_each():
    camera = load_camera("lsstcam")
    assert len(camera.select("science")) == 189
    assert len(camera.select("all")) == 205
    assert camera.select("R22") == tuple(range(90, 99))
    assert camera.select("R22_S11,94, 3") == (94, 3)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: load_camera("lsscam"), ("lsscam", "lsstcam")),
        (lambda: load_camera("lsstcam").detector("R99_S11"), ("R99_S11", "R01_S00")),
        (lambda: load_camera("lsstcam").filter("ha"), ("ha", "r_57")),
        (lambda: load_camera("lsstcam", 100), ("100", "multiple of 16")),
    ],
)
def test_bad_names_are_refused_with_what_is_accepted(call, words):
    with pytest.raises(BadRequest) as error:
        call()
    assert all(word in str(error.value) for word in words)


def test_a_camera_of_ones_own_is_a_file(tmp_path: Path):
    text = """
name: tiny
instrument: TinyCam
pixel_mm: 0.015
plate_scale_arcsec_per_mm: 20.0
filters: [{physical_filter: V, band: g, zero_point: 25.0, sky: 21.0, fwhm: 1.5, depth: 21.0}]
ccds:
  A: {nx: 1024, ny: 1024, amplifiers: {columns: 2, rows: 1, prescan: 0, overscan_x: 16, overscan_y: 0, names: [0],
      flip_x: [false], flip_y: [false], gain: 2.0, read_noise: 8.0, saturation: 60000}}
detectors:
  - [1, C1, M, SCIENCE, A, 0.0, 0.0, 0.0]
"""
    path = tmp_path / "tiny.yaml"
    path.write_text(text)
    camera = load_camera(str(path))
    assert camera.detector("C1").shape == (1024, 1024)
    assert camera.pixel_scale_arcsec == pytest.approx(0.3)
    path.with_name("bad.yaml").write_text(text.replace("pixel_mm", "pixel_micron"))
    with pytest.raises(BadRequest, match="pixel_mm"):
        load_camera(str(tmp_path / "bad.yaml"))


def test_positions_are_those_of_the_detector_table():
    """The packaged positions are those of the published detector table, row by row."""
    table = Path(__file__).parent / "lsstcam_detectors.csv"
    camera = load_camera("lsstcam")
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert len(rows) == 205
    for row in rows:
        d = camera.detector(int(row["detector"]))
        assert (d.name, d.purpose, d.vendor) == (row["name"], row["type"], row["physicalType"])
        assert (d.nx, d.ny, d.yaw_deg) == (int(row["nx"]), int(row["ny"]), float(row["yaw_deg"]))
        assert (d.x_mm, d.y_mm) == (float(row["x_mm"]), float(row["y_mm"]))


def test_cameras_are_listed_and_frozen():
    assert camera_names() == ["comcam", "decam", "lsstcam"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_camera("comcam").name = "other"  # type: ignore[misc]


def test_segments_lie_as_a_raw_of_the_test_stand_says():
    """DETSEC of Segment10 and Segment00 in a raw E2V CCD of LSST's test stand: [512:1,1:2002] and [1:512,4004:2003]."""
    amplifiers = {a.segment: a for a in load_camera("lsstcam").detector("R22_S11").amplifiers}
    bottom, top = amplifiers["Segment10"], amplifiers["Segment00"]
    assert (bottom.x0, bottom.y0, bottom.flip_x, bottom.flip_y) == (0, 0, True, False)
    assert (top.x0, top.y0, top.flip_x, top.flip_y) == (0, 2002, False, True)


def test_a_camera_says_how_its_amplifiers_respond(tmp_path: Path):
    for name in camera_names():
        camera = load_camera(name)
        for detector in (camera.detectors[0], camera.detectors[-1]):
            n = len(detector.amplifiers)
            assert detector.crosstalk is not None and detector.crosstalk.shape == (n, n)
            assert not np.diag(detector.crosstalk).any() and 0 < np.abs(detector.crosstalk).max() < 1e-2
            assert detector.linearity is None
    tree = yaml.safe_load((resources.files("apflow.cameras") / "decam.yaml").read_text())
    del tree["ccds"]["DECAM"]["crosstalk"]
    tree["ccds"]["DECAM"]["linearity"] = {"C01": {"polynomial": [1e-7]}}
    (tmp_path / "plain.yaml").write_text(yaml.safe_dump(tree))
    detector = load_camera(str(tmp_path / "plain.yaml")).detectors[3]
    assert detector.crosstalk is None and detector.linearity is not None
    assert not detector.linearity[0].any()
    assert detector.linearity[1][1000] == pytest.approx(1e-7 * (1000 * LINEARITY_STEP) ** 2, rel=1e-5)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("crosstalk", [[0, 1e-4]], "DECAM: crosstalk has shape .1, 2.; accepted: .2, 2."),
        ("crosstalk", [[0, "much"], [0, 0]], "DECAM: crosstalk is not a table of numbers"),
        ("crosstalk", [[0, 1e-4], [0.5, 0]], "DECAM: crosstalk from C00 to C01 is 0.5"),
        ("crosstalk", [[0, float("nan")], [0, 0]], "DECAM: crosstalk from C01 to C00 is nan"),
        ("crosstalk", [[0, 1e-4], [1e-4, 1.0e-4]], "DECAM: crosstalk from C01 to itself"),
        ("linearity", {"C07": {"polynomial": [1e-7]}}, "DECAM: linearity of 'C07' is given; accepted: all, C00, C01"),
        ("linearity", {"C00": {"polynomial": [-1e-5]}}, "DECAM: linearity of C00: the corrected signal falls"),
        ("linearity", {"C00": {"adu": [0, 5, 3], "correction": [0, 0, 0]}}, "DECAM: linearity of C00 is"),
        ("linearity", {"C00": 3}, "DECAM: linearity of C00 is 3; accepted: .polynomial"),
    ],
)
def test_a_response_that_cannot_be_is_refused_by_name(tmp_path: Path, key: str, value: object, words: str):
    tree = yaml.safe_load((resources.files("apflow.cameras") / "decam.yaml").read_text())
    tree["ccds"]["DECAM"][key] = value
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(BadRequest, match=words):
        load_camera(str(tmp_path / "bad.yaml"))
