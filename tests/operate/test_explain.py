"""``apflow explain`` says what made a DiaSource, an alert or a dataset of a replay."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import pytest
from astropy.io import fits

from apflow.io.butler import Repository
from tests.operate.command import apflow


def explained(replayed: Path, name: str) -> dict:
    run = apflow("explain", name, "--butler", str(replayed / "butler"), "--json")
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.fixture(scope="module")
def source(replayed: Path) -> pd.Series:
    return pd.read_parquet(replayed / "diasources.parquet").iloc[-1]


@pytest.fixture(scope="module")
def told(replayed: Path, source: pd.Series) -> dict:
    return explained(replayed, str(source["diaSourceId"]))


def test_a_source_is_traced_to_its_images_calibs_templates_and_software(replayed: Path, source: pd.Series, told: dict):
    made = told["provenance"]
    assert (told["visit"], told["detector"]) == (source["visit"], source["detector"])
    assert told["alert"]["alert_id"] == source["diaSourceId"]
    assert told["ledger"]["state"] == "done"
    assert [raw["exposure"] for raw in made["raws"]] == [source["visit"]]
    kinds = {ref["dataset_type"] for ref in made["inputs"]}
    assert kinds == {"bias", "dark", "flat", "defects", "template_coadd", "reference_catalog", "preloaded_SsObjects"}
    with Repository(replayed / "butler") as repository:
        for ref in [*made["inputs"], *made["raws"]]:
            stored = repository.butler.find_dataset(
                ref["dataset_type"],
                ref.get("data_id")
                or {"instrument": "LSSTComCam", "exposure": ref["exposure"], "detector": told["detector"]},
                collections=ref["run"],
            )
            assert str(stored.id) == ref["id"]
    cells = {(c["tract"], c["patch"]) for c in made["template_cells"]}
    data_ids = [ref["data_id"] for ref in made["inputs"] if ref["dataset_type"] == "template_coadd"]
    assert cells == {(d["tract"], d["patch"]) for d in data_ids}
    assert made["versions"]["numpy"] == version("numpy")
    assert made["run"].endswith(made["processing_id"])
    assert made["configuration"]["detect"]["threshold"] == 5.0


def test_an_image_says_the_same_in_its_header(replayed: Path, told: dict):
    with Repository(replayed / "butler") as repository:
        where = {"instrument": "LSSTComCam", "visit": told["visit"], "detector": told["detector"]}
        ref = repository.butler.find_dataset("difference_image", where, collections=told["provenance"]["run"])
        path = repository.butler.getURI(ref).ospath
    header = fits.getheader(path)
    ids = [header[f"LSST BUTLER INPUT {n} ID"] for n in range(header["LSST BUTLER N_INPUTS"])]
    assert ids == [made["id"] for made in told["provenance"]["inputs"]]
    assert header["APFLOW PROCESSING"] == told["provenance"]["processing_id"]
    assert explained(replayed, str(ref.id))["provenance"] == told["provenance"]


def test_an_input_is_described_and_nothing_here_made_it(replayed: Path, told: dict):
    flat = next(ref for ref in told["provenance"]["inputs"] if ref["dataset_type"] == "flat")
    found = explained(replayed, flat["id"])
    assert found["data_id"]["physical_filter"] == flat["data_id"]["physical_filter"]
    assert found["provenance"] is None
    assert Path(found["file"]).is_file()


def test_people_read_it_as_a_tree(replayed: Path, source: pd.Series):
    run = apflow("explain", str(source["diaSourceId"]), "--butler", str(replayed / "butler"))
    assert run.returncode == 0, run.stderr
    assert f"DiaSource {source['diaSourceId']}" in run.stdout
    assert "dataset_type=flat" in run.stdout


@pytest.mark.parametrize("name", ["12", "R22", "00000000-0000-4000-8000-000000000000"])
def test_what_is_not_there_is_refused(replayed: Path, name: str):
    run = apflow("explain", name, "--butler", str(replayed / "butler"))
    assert run.returncode == 2
    assert name in run.stderr
    assert "accepted" in run.stderr
