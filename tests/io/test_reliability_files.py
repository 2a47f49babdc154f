"""Weights on disk, and functions in their place."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from apflow.errors import BadRequest
from apflow.io.reliability import OWN_MODEL, find_judge, read_model, write_model
from apflow.model.reliability import Model
from apflow.pixels.stamp_features import NAMES


def small() -> Model:
    leaf = np.array([[-1.0, 2.0]], np.float32)
    return Model("t1", ("log_snr",), np.zeros((1, 1), np.int16), np.ones((1, 1), np.float32), leaf, 0.5, -1.0)


def test_a_model_comes_back_as_it_was(tmp_path: Path) -> None:
    write_model(tmp_path / "a.npz", small())
    write_model(tmp_path / "b.npz", small())
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    again = read_model(str(tmp_path / "a.npz"))
    assert (again.version, again.names, again.slope, again.offset) == ("t1", ("log_snr",), 0.5, -1.0)
    np.testing.assert_array_equal(again.leaf, small().leaf)
    np.testing.assert_array_equal(again.threshold, small().threshold)


def test_the_model_that_comes_with_apflow_is_small_and_knows_its_features() -> None:
    with resources.as_file(resources.files("apflow.pixels") / OWN_MODEL) as path:
        assert path.stat().st_size < 200_000
    model = read_model()
    assert set(model.names) <= set(NAMES) and model.version
    assert len(np.flatnonzero(np.bincount(model.feature.ravel()))) > 20, "a model of a few features judges nothing"


def test_files_that_are_no_models_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"nowhere\.npz"):
        read_model(str(tmp_path / "nowhere.npz"))
    (tmp_path / "junk.npz").write_text("junk")
    with pytest.raises(BadRequest, match=r"junk\.npz"):
        read_model(str(tmp_path / "junk.npz"))
    np.savez(tmp_path / "half.npz", leaf=small().leaf)
    with pytest.raises(BadRequest, match=r"half\.npz.*module:function"):
        read_model(str(tmp_path / "half.npz"))


def test_functions_are_found_or_named() -> None:
    assert find_judge("numpy:zeros") is np.zeros
    for name in ("numpy:no_such", "no_such_module:judge", "numpy:pi"):
        with pytest.raises(BadRequest, match=name):
            find_judge(name)
