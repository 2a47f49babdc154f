"""The repository: the real Butler, made, filled and asked in bulk; people and the butler command read it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from astropy.table import Table
from lsst.daf.butler import Butler
from lsst.pipe.base import Instrument

from apflow.config import load_config
from apflow.errors import BadRequest
from apflow.io import fits
from apflow.io.butler import Repository, create_repository, output_path
from apflow.io.metrics import write_bundle
from apflow.io.tables import write_table
from apflow.model.camera import load_camera
from apflow.model.exposure import Exposure, Raw
from apflow.model.metrics import Metric
from apflow.model.products import OutputFile
from apflow.model.skymap import SkyMap
from apflow.model.wcs import Wcs
from tests.io import builders

DETECTORS = tuple(range(9))
RUN = "LSSTComCam/prompt/20250420"
VALID = (60780.0, 60790.0)


@pytest.fixture
def root(either_root: Path) -> Path:
    """A repository with either kind of registry: all of `Repository` works on both."""
    return either_root


def calib_files(folder: Path, kind: str, level: float = 1.0) -> dict[int, Path]:
    files = {d: folder / f"{kind}_{d}_{level}.fits" for d in DETECTORS}
    for path in files.values():
        fits.write_image(path, np.full((8, 8), level, np.float32))
    return files


def template_files(folder: Path) -> dict[tuple[int, int], Path]:
    camera, skymap = builders.camera(), SkyMap()
    cells = {
        (c.tract, c.patch)
        for d in DETECTORS
        for c in skymap.cells(camera.region(camera.detector(d), 52.8, -28.1, 12.0, 20.0))
    }
    files = {cell: folder / f"cell_{cell[0]}_{cell[1]}.fits" for cell in cells}
    for path in files.values():
        fits.write_exposure(path, builders.exposure(8, info=None, psf=None))
    return files


def stars(band: str = "r", mag: float = 20.0) -> pd.DataFrame:
    rng = np.random.default_rng(4)
    return pd.DataFrame(
        {"ra": rng.uniform(52, 53.6, 500), "dec": rng.uniform(-28.8, -27.4, 500), "mag": mag, "band": band}
    )


def fill(root: Path, folder: Path) -> None:
    """Calibs, templates and reference stars for the visit of the builders."""
    with Repository(root, writeable=True) as repository:
        for kind in ("bias", "dark", "flat", "defects"):
            flat = "r_03" if kind == "flat" else None
            assert repository.ingest_calibs(kind, calib_files(folder, kind), physical_filter=flat, valid=VALID) == 9
        repository.ingest_templates(template_files(folder), SkyMap(), "r")
        repository.ingest_reference(stars())


METRICS = {"detect": (Metric("n_sources", "ct", "DiaSources."),)}


def write_outputs(root: Path) -> list[tuple[OutputFile, int, int]]:
    """What nine detectors write."""
    visit, outputs = builders.visit(), []
    for d in DETECTORS:
        image, table, bundle = (
            output_path(root, name, visit, d, RUN) for name in ("difference_image", "dia_source_detector", "ap_metrics")
        )
        fits.write_exposure(image, builders.exposure(16))
        write_table(table, pd.DataFrame({"diaSourceId": [d], "psfFlux": [1.5]}))
        write_bundle(bundle, METRICS, {"detect": {"n_sources": 1.0}}, {"visit": visit.visit, "detector": d}, 60785.3)
        for name, path in zip(
            ("difference_image", "dia_source_detector", "ap_metrics"), (image, table, bundle), strict=True
        ):
            outputs.append((OutputFile(name, path), visit.visit, d))
    return outputs


def test_a_new_repository_knows_its_camera(root: Path) -> None:
    config = load_config(root / "apflow.toml")
    assert (config.camera, config.size) == ("comcam", 128)
    with Butler.from_config(str(root)) as butler:
        detectors = butler.query_dimension_records("detector", instrument="LSSTComCam")
        assert [(d.id, d.full_name, d.name_in_raft, d.purpose) for d in detectors if d.id == 4] == [
            (4, "R22_S11", "S11", "SCIENCE")
        ]
        bands = {f.name: f.band for f in butler.query_dimension_records("physical_filter", instrument="LSSTComCam")}
        assert bands.pop("unknown") == "unknown", "of exposures without a filter"
        assert bands == {"u_05": "u", "g_01": "g", "r_03": "r", "i_06": "i", "z_03": "z", "y_04": "y"}
        instrument = Instrument.fromName("LSSTComCam", butler.registry)
        assert instrument.getName() == "LSSTComCam"
    with Butler.from_config(str(root), writeable=True) as butler:
        instrument.register(butler.registry)  # harmless when it is there


def test_every_detector_of_lsstcam_is_registered(tmp_path: Path) -> None:
    create_repository(tmp_path / "r", "lsstcam", 512)
    with Butler.from_config(str(tmp_path / "r")) as butler:
        records = butler.query_dimension_records("detector", instrument="LSSTCam")
    assert {(r.id, r.full_name, r.purpose) for r in records} == {
        (d.id, d.name, d.purpose) for d in load_camera("lsstcam").detectors
    }
    assert len(records) == 205


def test_a_camera_of_ones_own_is_kept_in_the_repository(tmp_path: Path) -> None:
    from importlib import resources

    text = (resources.files("apflow.cameras") / "comcam.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(text.replace("LSSTComCam", "MyCam"))
    create_repository(tmp_path / "r", str(tmp_path / "mine.yaml"), 128)
    (tmp_path / "mine.yaml").unlink()
    with Repository(tmp_path / "r") as repository:
        assert repository.camera.instrument == "MyCam"
        assert Instrument.fromName("MyCam", repository.butler.registry).getName() == "MyCam"


def test_what_cannot_be_made_or_opened_is_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="is a Butler repository already"):
        create_repository(root, "comcam")
    with pytest.raises(BadRequest, match="no camera 'keck'"):
        create_repository(tmp_path / "r", "keck")
    with pytest.raises(BadRequest, match="size 100"):
        create_repository(tmp_path / "r", "comcam", 100)
    (tmp_path / "file").write_text("")
    with pytest.raises(BadRequest, match="cannot be made a repository"):
        create_repository(tmp_path / "file", "comcam")
    with pytest.raises(BadRequest, match=r"no Butler repository.*apflow init"):
        Repository(tmp_path / "nowhere")
    assert not (tmp_path / "r" / "butler.yaml").exists()


def test_inputs_of_all_detectors(root: Path, tmp_path: Path) -> None:
    reader = Repository(root)  # opened before anything is there: it must see what others add
    before = reader.find_inputs(builders.visit(), DETECTORS)
    assert (before[4].bias, before[4].templates, before[4].reference) == (None, (), ())
    fill(root, tmp_path / "made")
    found = reader.find_inputs(builders.visit(), DETECTORS)
    reader.close()
    assert set(found) == set(DETECTORS)
    camera, skymap = builders.camera(), SkyMap()
    for d, inputs in found.items():
        for path in (inputs.bias, inputs.dark, inputs.flat, inputs.defects):
            assert path is not None and f"_R22_S{d // 3}{d % 3}_" in path and Path(path).is_file()
        region = camera.region(camera.detector(d), 52.8, -28.1, 12.0)
        assert {(c.tract, c.patch) for c in skymap.cells(region)} <= {(t, p) for t, p, _ in inputs.templates}
        assert all(Path(path).is_file() for _, _, path in inputs.templates)
        assert inputs.skymap == skymap.name
        catalogue = pd.concat([pd.read_parquet(path) for path in inputs.reference])
        all_stars = stars()
        inside = all_stars[region.contains(all_stars["ra"], all_stars["dec"])]
        assert set(inside["ra"]) <= set(catalogue["ra"])


def test_an_open_filter_is_that_of_the_image_once_it_is_there(root: Path, tmp_path: Path) -> None:
    fill(root, tmp_path / "made")
    visit = builders.visit(physical_filter="", band="")
    with Repository(root, writeable=True) as repository:
        before = repository.find_inputs(visit, [4])[4]
        assert before.flat is None and before.bias is not None and before.templates == ()
        repository.ingest_raws([builders.raw_file(tmp_path, builders.info())])
        after = repository.find_inputs(visit, [4])[4]
        assert after.flat is not None and after.templates


def test_calibs_are_those_valid_at_the_visit(root: Path, tmp_path: Path) -> None:
    with Repository(root, writeable=True) as repository:
        old, new = calib_files(tmp_path, "bias", 1.0), calib_files(tmp_path, "bias", 2.0)
        repository.ingest_calibs("bias", old, valid=(60700.0, 60786.0))
        repository.ingest_calibs("bias", new, valid=(60786.0, 60900.0))
        assert repository.ingest_calibs("bias", new, valid=(60786.0, 60900.0)) == 0  # again
        level = {
            night: fits.read_image(
                repository.find_inputs(builders.visit(visit=night * 100_000 + 1), [4])[4].bias or ""
            )[0, 0]
            for night in (20250410, 20250501)
        }
        assert level == {20250410: 1.0, 20250501: 2.0}
        late = repository.find_inputs(builders.visit(visit=2026010100001), [4])[4]
        assert late.bias is None


def test_calibs_that_cannot_be_are_refused(root: Path, tmp_path: Path) -> None:
    files = calib_files(tmp_path, "bias")
    with Repository(root, writeable=True) as repository:
        for kind, physical_filter, valid, message in (
            ("fringe", None, VALID, "calib 'fringe' is unknown"),
            ("flat", None, VALID, "physical_filter of a flat is None"),
            ("flat", "r_57", VALID, "no filter 'r_57'"),
            ("bias", None, (3.0, 2.0), "is empty"),
        ):
            with pytest.raises(BadRequest, match=message):
                repository.ingest_calibs(kind, files, physical_filter=physical_filter, valid=valid)
        repository.ingest_calibs("bias", files, valid=VALID)
        with pytest.raises(BadRequest, match="overlaps"):
            repository.ingest_calibs("bias", files, valid=(VALID[0] + 1, VALID[1] + 1))
        # The refused ones left nothing behind.
        assert repository.find_inputs(builders.visit(visit=2025043000001), [4])[4].bias is None
        with pytest.raises(BadRequest, match="no band 'q'"):
            repository.ingest_templates({}, SkyMap(), "q")
        with pytest.raises(BadRequest, match="no column 'band'"):
            repository.ingest_reference(stars().drop(columns="band"))


def test_reference_stars_of_a_band_are_replaced_and_others_stay(root: Path) -> None:
    with Repository(root, writeable=True) as repository:
        shards = repository.ingest_reference(stars("r", 20.0))
        assert repository.ingest_reference(stars("g", 21.0)) == shards
        repository.ingest_reference(stars("r", 22.0))
    frames = pd.concat([pd.read_parquet(p) for p in (root / "refcats").glob("*.parquet")])
    assert frames.groupby("band")["mag"].agg(["count", "max"]).to_dict("index") == {
        "g": {"count": 500, "max": 21.0},
        "r": {"count": 500, "max": 22.0},
    }


def test_raws_become_exposures_and_a_visit(root: Path, tmp_path: Path) -> None:
    files = [builders.raw_file(tmp_path / "land", builders.info(d)) for d in DETECTORS]
    with Repository(root, writeable=True) as repository:
        done = repository.ingest_raws(files, "move")
        assert [one.new for one in done] == [True] * 9
        assert not any(f.exists() for f in files)
        butler = repository.butler
        (visit,) = butler.query_dimension_records("visit", instrument="LSSTComCam", visit=builders.EXPOSURE)
        assert (visit.physical_filter, visit.day_obs, visit.name) == ("r_03", 20250420, "CC_O_20250420_000123")
        regions = butler.query_dimension_records("visit_detector_region", instrument="LSSTComCam", visit=visit.id)
        assert len(regions) == 9
        camera = builders.camera()
        for record in regions:
            expected = camera.region(camera.detector(record.detector), 52.8, -28.1, 12.0).to_sphgeom()
            assert record.region.contains(expected.getCentroid())
            assert visit.region.contains(expected.getCentroid())
        raw = butler.get(
            "raw", exposure=builders.EXPOSURE, detector=4, instrument="LSSTComCam", collections="LSSTComCam/raw/all"
        )
        assert isinstance(raw, Raw) and raw.info == builders.info()


def test_a_raw_that_arrives_twice_is_one(root: Path, tmp_path: Path) -> None:
    with Repository(root, writeable=True) as repository:
        first, second = (builders.raw_file(tmp_path / name, builders.info()) for name in ("a", "b"))
        assert [one.new for one in repository.ingest_raws([first, second])] == [True, False]
        (again,) = repository.ingest_raws([first], "move")
        assert not again.new and not again.error and not first.exists()
        assert len(repository.butler.query_datasets("raw", "LSSTComCam/raw/all")) == 1


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_two_snaps_are_one_visit_in_any_order(root: Path, tmp_path: Path, order: tuple[int, int]) -> None:
    headers = {snap: builders.info(4, builders.EXPOSURE + snap - 1, snap=snap) for snap in (1, 2)}
    with Repository(root, writeable=True) as repository:
        for snap in order:
            repository.ingest_raws([builders.raw_file(tmp_path, headers[snap])])
        (visit,) = repository.butler.query_dimension_records("visit", instrument="LSSTComCam")
        assert (visit.id, visit.exposure_time) == (builders.EXPOSURE, 60.0)
        assert visit.timespan.begin.mjd == pytest.approx(headers[1].mjd_begin_tai, abs=1e-9)
        assert visit.timespan.end.mjd == pytest.approx(headers[2].mjd_end_tai, abs=1e-9)
        members = repository.butler.query_dimension_records("visit_definition", instrument="LSSTComCam")
        assert sorted(m.exposure for m in members) == [builders.EXPOSURE, builders.EXPOSURE + 1]


def test_a_bias_is_an_exposure_and_no_visit(root: Path, tmp_path: Path) -> None:
    with Repository(root, writeable=True) as repository:
        (one,) = repository.ingest_raws([builders.raw_file(tmp_path, builders.info(image_type="BIAS"))])
        assert one.new
        (record,) = repository.butler.query_dimension_records("exposure", instrument="LSSTComCam")
        assert (record.observation_type, record.can_see_sky) == ("bias", False)
        assert not repository.butler.query_dimension_records("visit", instrument="LSSTComCam", explain=False)


def test_bad_raws_are_named_and_do_not_keep_others_out(root: Path, tmp_path: Path) -> None:
    files = {
        "": builders.raw_file(tmp_path / "good", builders.info(0)),
        "truncated": builders.raw_file(tmp_path, builders.info(1)),
        "not a FITS file": tmp_path / "CC_O_20250420_000123_R22_S02.fits",
        "the header is that of CC_O_20250420_000123_R22_S11": builders.raw_file(
            tmp_path, builders.info(4), named_after=5
        ),
        "INSTRUME is 'LSSTCam'": builders.raw_file(tmp_path / "other", builders.info(6, instrument="LSSTCam")),
        "no filter 'r_57'": builders.raw_file(tmp_path / "filter", builders.info(7, physical_filter="r_57")),
        "cannot be read": tmp_path / "missing.fits",
        "no detector 40": tmp_path / "detector.fits",
        "has a segment Segment00 too": tmp_path / "segment.fits",
    }
    os.truncate(files["truncated"], 50_000)
    files["not a FITS file"].write_text("hello")
    fits.write_raw(files["no detector 40"], dataclasses.replace(builders.raw(builders.info()), header={"DETNUM": 40}))
    whole = builders.raw(builders.info(8))
    rest = {name: data for name, data in whole.segments.items() if name != "Segment00"}
    fits.write_raw(files["has a segment Segment00 too"], dataclasses.replace(whole, segments=rest))
    with Repository(root, writeable=True) as repository:
        done = repository.ingest_raws(files.values(), "move")
    assert [one.new for one in done] == [True] + [False] * 8
    for (message, file), one in zip(files.items(), done, strict=True):
        assert message in one.error
        if message:
            assert str(file) in one.error or "no filter" in message or "no detector" in message
            assert one.path is None
            assert file.exists() == (message != "cannot be read")


def test_outputs_are_registered_once_and_people_read_them(root: Path, tmp_path: Path) -> None:
    fill(root, tmp_path / "made")
    outputs = write_outputs(root)
    visit = builders.EXPOSURE
    with Repository(root, writeable=True) as repository:
        repository.ingest_raws([builders.raw_file(tmp_path, builders.info())])
        assert repository.register_outputs(RUN, outputs[:5]) == 5
        assert repository.register_outputs(RUN, outputs) == 27
        assert repository.register_outputs(RUN, outputs) == 27  # a retry
        assert repository.register_outputs(RUN, []) == 0
    moved = root.rename(root.with_name("elsewhere"))
    collections = ["LSSTComCam/prompt", "LSSTComCam/defaults"]
    with Butler.from_config(str(moved), collections=collections, instrument="LSSTComCam") as butler:
        assert len(butler.query_datasets("difference_image")) == 9
        image = butler.get("difference_image", visit=visit, detector=4)
        assert isinstance(image, Exposure)
        np.testing.assert_array_equal(image.image, builders.exposure(16).image)
        assert isinstance(butler.get("difference_image.wcs", visit=visit, detector=4), Wcs)
        assert butler.get("difference_image.mask", visit=visit, detector=4).dtype == np.int32
        table = butler.get("dia_source_detector", visit=visit, detector=4)
        assert isinstance(table, pd.DataFrame) and list(table["diaSourceId"]) == [4]
        metrics = butler.get("ap_metrics", visit=visit, detector=4)
        assert [(m["metric"], m["value"]) for m in metrics["detect"]] == [("n_sources", 1.0)]
        assert isinstance(butler.get("flat", exposure=visit, detector=4), np.ndarray)
        assert butler.get("raw.info", exposure=visit, detector=4) == builders.info()
        uri = butler.getURI("difference_image", visit=visit, detector=4)
        assert Path(uri.ospath).is_relative_to(moved)


def test_an_output_for_a_visit_without_an_image_is_refused_whole(root: Path) -> None:
    outputs = write_outputs(root)
    with Repository(root, writeable=True) as repository:
        with pytest.raises(BadRequest, match=f"visit {builders.EXPOSURE}"):
            repository.register_outputs(RUN, outputs)
        assert RUN not in repository.butler.collections.query("*")


def test_output_paths_are_known_without_a_butler(root: Path) -> None:
    path = output_path(root, "difference_image", builders.visit(), 4, RUN)
    assert path == str(
        root / RUN / "difference_image/20250420/2025042000123/difference_image_LSSTComCam_2025042000123_004.fits"
    )
    with pytest.raises(BadRequest, match="'raw' is no output"):
        output_path(root, "raw", builders.visit(), 4, RUN)
    code = "import sys, apflow.io.butler, apflow.io.arrivals; assert 'lsst.daf.butler' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_each_thread_opens_its_own_repository_once(root: Path) -> None:
    found: list[Repository] = []

    def work() -> None:
        found.extend((Repository.open(root), Repository.open(str(root))))

    for _ in range(2):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert found[0] is found[1] and found[2] is found[3] and found[0] is not found[2]
    for repository in found:
        repository.close()


def test_a_repository_made_anew_is_opened_anew(root: Path, pristine_repository: Path) -> None:
    first = Repository.open(root)
    first.close()
    shutil.rmtree(root)
    shutil.copytree(pristine_repository, root)
    second = Repository.open(root)
    assert second is not first
    assert second.find_inputs(builders.visit(), [4])[4].bias is None
    second.close()


def test_a_writer_killed_in_the_middle_is_undone_by_who_reads_next(tmp_path: Path) -> None:
    create_repository(tmp_path / "repo", "comcam", 128)
    registry = tmp_path / "repo/gen3.sqlite3"
    killed = f"""
import os, signal, sqlite3
database = sqlite3.connect({str(registry)!r}, isolation_level=None)
database.execute("PRAGMA cache_size = 1")  # pages go to the file before the commit
database.execute("BEGIN IMMEDIATE")
database.execute("CREATE TABLE half (written TEXT)")
database.executemany("INSERT INTO half VALUES (?)", [("x" * 500,)] * 5000)
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", killed], check=False).returncode == -signal.SIGKILL
    journal = registry.with_name("gen3.sqlite3-journal")
    assert journal.stat().st_size > 0
    with Repository(tmp_path / "repo") as repository:
        assert len(list(repository.butler.registry.queryDimensionRecords("detector"))) == len(DETECTORS)
    assert not journal.exists()
    with contextlib.closing(sqlite3.connect(registry)) as database:
        assert not database.execute("SELECT * FROM sqlite_master WHERE name = 'half'").fetchall()


def test_predictions_of_solar_system_objects_are_found_before_there_is_an_image(root: Path) -> None:
    visit = builders.visit()
    given = pd.DataFrame({"ssObjectId": [5], "ra": 52.8, "dec": -28.1, "raErr": 1e-5, "decErr": 1e-5})
    with Repository(root, writeable=True) as repository:
        assert {i.ss_objects for i in repository.find_inputs(visit, DETECTORS).values()} == {None}
        assert repository.ingest_ss_objects(visit.group, {4: given, 5: given}) == 2
        assert repository.ingest_ss_objects(visit.group, {4: given.assign(ra=52.9)}) == 1  # a better one
        found = repository.find_inputs(visit, DETECTORS)
        assert [d for d, i in found.items() if i.ss_objects] == [4, 5]
        assert pd.read_parquet(str(found[4].ss_objects))["ra"].tolist() == [52.9]
        other = dataclasses.replace(visit, group="another")
        assert {i.ss_objects for i in repository.find_inputs(other, DETECTORS).values()} == {None}
        which = {"instrument": "LSSTComCam", "group": visit.group, "detector": 4}
        got = repository.butler.get("preloaded_SsObjects", which, collections="LSSTComCam/defaults")
        assert got["ssObjectId"].tolist() == [5] and got["ra"].tolist() == [52.9]
        # As Prompt Processing stores it: an astropy table with series in its cells.
        rubin = Table({"ssObjectId": [5, 6], "ra": [1.0, 2.0], "obj_x_poly": np.ones((2, 9))})
        repository.butler.put(rubin, "preloaded_SsObjects", which | {"detector": 6}, run="LSSTComCam/ephemerides")
        read = pd.read_parquet(str(repository.find_inputs(visit, [6])[6].ss_objects))
        assert len(read) == 2 and len(read["obj_x_poly"][0]) == 9
        for detector, bad, message in ((4, given.drop(columns="decErr"), "'decErr'"), (99, given, "99")):
            with pytest.raises(BadRequest, match=message):
                repository.ingest_ss_objects(visit.group, {detector: bad})
        with pytest.raises(BadRequest, match="group ''"):
            repository.ingest_ss_objects("", {4: given})


def test_the_butler_command_works(root: Path, tmp_path: Path) -> None:
    outputs = write_outputs(root)
    with Repository(root, writeable=True) as repository:
        repository.ingest_raws([builders.raw_file(tmp_path, builders.info())])
        repository.register_outputs(RUN, outputs)

    def butler(*arguments: str) -> str:
        command = [str(Path(sys.executable).with_name("butler")), *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    listed = butler("query-datasets", str(root), "difference_image", "--collections", "LSSTComCam/prompt")
    assert listed.count(str(builders.EXPOSURE)) == 9
    out = tmp_path / "out"
    out.mkdir()
    butler("retrieve-artifacts", str(root), str(out), "--collections", RUN, "-d", "ap_metrics")
    assert len(list(out.rglob("ap_metrics_*.json"))) == 9
