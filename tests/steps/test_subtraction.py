"""The step that subtracts follows its configuration, and refuses what is too bad to look for changes in."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from apflow.config import Config
from apflow.config_tables import Subtract
from apflow.errors import BadRequest, BadSubtraction
from apflow.model.exposure import Exposure
from apflow.steps.difference import subtract
from tests.pixels.scenes import Pair, pair


@pytest.fixture(scope="module")
def good() -> Pair:
    return pair(stars=150, snr=())


def config(**settings: object) -> Config:
    return Config(subtract=dataclasses.replace(Subtract(), **settings))  # type: ignore[arg-type]


def of_another_field(template: Exposure) -> Exposure:
    return dataclasses.replace(template, image=np.ascontiguousarray(template.image[::-1, ::-1]))


def test_a_good_pair_passes_with_wide_margin(good: Pair) -> None:
    summary = subtract(good.science, good.template, config()).exposure.summary
    assert summary["residual_power"] < 0.1 * Subtract().max_residual_power
    assert summary["bad_stamps"] < 0.5 * Subtract().max_bad_stamps


def test_a_template_of_another_field_is_vetoed(good: Pair) -> None:
    with pytest.raises(BadSubtraction, match=r"residual_power of the subtraction is .*at most 0\.05") as caught:
        subtract(good.science, of_another_field(good.template), config())
    assert caught.value.state == "bad_data"


def test_zero_is_no_limit(good: Pair) -> None:
    everything = config(max_residual_power=0.0, max_bad_stamps=0.0)
    difference = subtract(good.science, of_another_field(good.template), everything)
    assert difference.exposure.summary["residual_power"] > 0.5


def test_stamps_that_do_not_fit_are_a_verdict_of_their_own(good: Pair) -> None:
    image = good.science.image.copy()
    image[:128, :128] *= np.random.default_rng(0).uniform(1.3, 2.0)
    flared = dataclasses.replace(good.science, image=image)
    assert subtract(flared, good.template, config()).exposure.summary["bad_stamps"] > 0.05
    with pytest.raises(BadSubtraction, match=r"bad_stamps of the subtraction is .*at most 0\.05"):
        subtract(flared, good.template, config(max_bad_stamps=0.05))


def test_settings_reach_the_subtraction(good: Pair) -> None:
    difference = subtract(good.science, good.template, config(convolve="science", kernel_order=0, decorrelate=False))
    assert difference.exposure.summary["science_convolved"] == 1.0
    assert difference.kernel.order == 0
    zogy = subtract(good.science, good.template, config(method="zogy"))
    assert zogy.exposure.image.shape == good.science.shape
    for wrong, accepted in (({"method": "sfft"}, "zogy"), ({"convolve": "both"}, "auto, template, science")):
        with pytest.raises(BadRequest, match=accepted):
            subtract(good.science, good.template, config(**wrong))
