"""Identifiers against known values."""

from __future__ import annotations

import pytest

from apflow.errors import BadRequest
from apflow.model import ids


def test_source_id_is_the_known_value():
    assert ids.source_id(2025042000123, 94, 1) == 168691488537968641


def test_image_names_and_exposure_ids():
    assert ids.parse_image_name("MC_O_20250420_000123").exposure == 2025042000123
    assert ids.parse_image_name("MC_O_20250420_000123_R22_S11").detector == "R22_S11"
    assert ids.parse_image_name("DE_O_20250420_000123_S29").detector == "S29"
    assert ids.image_name(2025042000123) == "MC_O_20250420_000123"
    assert ids.day_obs_of(2025042000123) == 20250420


def test_day_obs_turns_at_noon_tai():
    assert ids.day_obs(60785.49) == 20250419
    assert ids.day_obs(60785.51) == 20250420


def test_ids_are_distinct_over_detectors_counters_and_visits():
    made = {
        ids.source_id(v, d, c) for v in (2025042000001, 2025042000002, 2025042100001) for d in (0, 204) for c in (1, 9)
    }
    assert len(made) == 12


@pytest.mark.parametrize(
    "call",
    [
        lambda: ids.source_id(2025042000123, 256, 1),
        lambda: ids.source_id(2025042040000, 1, 1),
        lambda: ids.source_id(2025043200001, 1, 1),
        lambda: ids.source_id(2025042000123, 1, 1 << 19),
        lambda: ids.parse_image_name("20250420_123"),
        lambda: ids.exposure_id(20250420, 100_000),
    ],
)
def test_what_cannot_be_packed_is_refused(call):
    with pytest.raises(BadRequest):
        call()


def test_the_middle_of_a_night_lies_within_it():
    assert ids.mid_night(2025042000123) == 60786.0
    assert {ids.day_obs(60786.0 + hours / 24) for hours in (-11.9, 0.0, 11.9)} == {20250420}
