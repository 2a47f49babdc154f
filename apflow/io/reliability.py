"""Files of weights of the reliability model, and functions that judge in its place."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import zipfile
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from apflow.errors import BadRequest
from apflow.io.atomic import atomic
from apflow.model.exposure import Exposure
from apflow.model.products import Difference
from apflow.model.reliability import Model

#: The model that comes with apflow.
OWN_MODEL = "reliability_v1.npz"

#: Difference, science image, sources -> probability of each to be real.
Judge = Callable[[Difference, Exposure, pd.DataFrame], NDArray[Any]]


def read_model(name: str = "") -> Model:
    """A model of a file written by `write_model`; the one that comes with apflow for an empty name.

    Raises
    ------
    BadRequest
        There is no such file, or it holds no model.
    """
    if name:
        return _read(Path(name), name)
    with resources.as_file(resources.files("apflow.pixels") / OWN_MODEL) as path:
        return _read(path, OWN_MODEL)


@functools.lru_cache(maxsize=4)
def _read(path: Path, name: str) -> Model:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {field.name: file[field.name] for field in dataclasses.fields(Model)}
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise BadRequest(
            f"reliability.model is {name!r}, which cannot be read ({error}); accepted: a file of weights, "
            "module:function, or nothing for the model that comes with apflow"
        ) from error
    return Model(
        str(arrays["version"]),
        tuple(str(n) for n in arrays["names"]),
        arrays["feature"].astype(np.int16),
        arrays["threshold"].astype(np.float32),
        arrays["leaf"].astype(np.float32),
        float(arrays["slope"]),
        float(arrays["offset"]),
    )


def write_model(path: Path, model: Model) -> None:
    """Write a model; the same model makes the same bytes."""
    arrays: dict[str, Any] = {field.name: np.asarray(getattr(model, field.name)) for field in dataclasses.fields(Model)}
    with atomic(path) as file:
        np.savez_compressed(file, **arrays)


def find_judge(name: str) -> Judge:
    """The function that ``module:function`` names.

    Raises
    ------
    BadRequest
        There is none.
    """
    module, _, function = name.partition(":")
    try:
        judge = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise BadRequest(f"reliability.model is {name!r}, which cannot be imported ({error})") from error
    if not callable(judge):
        raise BadRequest(f"reliability.model is {name!r}, which is no function")
    found: Judge = judge
    return found
