"""How likely each DiaSource is to be real."""

from __future__ import annotations

import numpy as np
import pandas as pd

from apflow.config import Config
from apflow.errors import DataError
from apflow.graph import node
from apflow.io.reliability import find_judge, read_model
from apflow.model import schema
from apflow.model.exposure import Exposure
from apflow.model.products import Difference
from apflow.pixels import reliability


@node
def rate_reliability(sources: pd.DataFrame, difference: Difference, science: Exposure, config: Config) -> pd.DataFrame:
    """The sources with the probability that they are real, and by which model; none is left out.

    A function in the model's place is asked with `difference`, `science` and
    `sources`; its attribute ``version``, if it has one, is the model's.
    """
    name = config.reliability.model
    if ":" in name:
        judge = find_judge(name)
        score, version = np.asarray(judge(difference, science, sources)), getattr(judge, "version", "own")
    else:
        model = read_model(name)
        score, version = reliability.reliability(difference, science, sources, model), model.version
    if score.shape != (len(sources),) or not ((score >= 0) & (score <= 1)).all():
        raise DataError(
            f"reliability.model {name!r} gave {score.shape} values from {score.min(initial=1):g} to "
            f"{score.max(initial=0):g} for {len(sources)} sources; accepted: one of 0 to 1 for each"
        )
    return schema.conform(sources.assign(reliability=score, reliabilityVersion=version), "DiaSource")
