"""The step that rates DiaSources: with the own model, another file, or anybody's function."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from apflow.config import Config
from apflow.config_tables import Reliability
from apflow.errors import DataError
from apflow.io.reliability import read_model, write_model
from apflow.model import schema
from apflow.model.exposure import Exposure
from apflow.model.products import Difference
from apflow.pixels.subtract import subtract
from apflow.steps.difference import detect_and_measure
from apflow.steps.reliability import rate_reliability
from tests.pixels.scenes import pair

Found = tuple[pd.DataFrame, Difference, Exposure]


@pytest.fixture(scope="module")
def found() -> Found:
    p = pair(snr=(12.0, 20.0, 40.0, -20.0), stars=100)
    difference = subtract(p.science, p.template)
    return detect_and_measure(difference, p.science, Config()), difference, p.science


def with_model(name: str) -> Config:
    return dataclasses.replace(Config(), reliability=Reliability(model=name))


def half(difference: Difference, science: Exposure, sources: pd.DataFrame) -> np.ndarray:
    """A judge that knows nothing."""
    return np.full(len(sources), 0.5)


def too_sure(difference: Difference, science: Exposure, sources: pd.DataFrame) -> np.ndarray:
    """A judge that gives no probability."""
    return np.full(len(sources), 1.5)


def test_every_source_is_rated_and_nothing_else_changes(found: Found) -> None:
    sources = found[0]
    rated = rate_reliability(*found, Config())
    assert len(sources) >= 4 and sources["reliability"].isna().all(), "the input stays as it was"
    assert rated["reliability"].between(0, 1).all()
    assert set(rated["reliabilityVersion"]) == {read_model().version}
    assert tuple(rated.columns) == schema.table("DiaSource").names
    rest = [c for c in rated if not str(c).startswith("reliability")]
    pd.testing.assert_frame_equal(rated[rest], sources[rest])
    assert rated["reliability"].median() > 0.9


def test_no_sources_are_no_trouble(found: Found) -> None:
    rated = rate_reliability(found[0].iloc[:0], *found[1:], Config())
    assert len(rated) == 0 and tuple(rated.columns) == schema.table("DiaSource").names


def test_another_file_of_weights(found: Found, tmp_path: Path) -> None:
    own = read_model()
    write_model(tmp_path / "other.npz", dataclasses.replace(own, version="other", offset=own.offset - 50.0))
    rated = rate_reliability(*found, with_model(str(tmp_path / "other.npz")))
    assert (rated["reliability"] < 0.01).all() and set(rated["reliabilityVersion"]) == {"other"}


def test_a_function_in_the_models_place(found: Found) -> None:
    rated = rate_reliability(*found, with_model(f"{__name__}:half"))
    assert (rated["reliability"] == 0.5).all() and set(rated["reliabilityVersion"]) == {"own"}
    with pytest.raises(DataError, match=r"1\.5.*0 to 1"):
        rate_reliability(*found, with_model(f"{__name__}:too_sure"))
