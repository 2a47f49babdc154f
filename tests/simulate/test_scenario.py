"""Scenarios: visits as announced, conditions within their limits, everything from the seed."""

from dataclasses import replace

import numpy as np
import pytest

from apflow.errors import BadRequest
from apflow.model.sky import separation_arcsec
from apflow.simulate.scenario import Scenario, conditions, generator, opened_s, visits


def test_visits_carry_ids_names_and_group():
    first, second = visits(Scenario(detectors=(94,), nvisits=2, first_seq=123))
    assert first.visit == 2025042000123
    assert first.images == ("MC_O_20250420_000123",)
    assert second.visit == 2025042000124
    assert first.group != second.group
    assert (first.instrument, first.physical_filter, first.band) == ("LSSTCam", "r_57", "r")


def test_two_snaps_share_the_exposure_time():
    first, second = visits(Scenario(detectors=(94,), nvisits=2, nsnaps=2))
    assert first.exposure_time_s == 15.0
    assert first.images == ("MC_O_20250420_000001", "MC_O_20250420_000002")
    assert second.visit == first.visit + 2


def test_a_burst_does_not_make_exposures_overlap():
    scenario = Scenario(detectors=(94,), cadence_s=0.0, nsnaps=2)
    starts = [opened_s(scenario, index, snap) for index in range(3) for snap in range(2)]
    assert np.diff(starts).min() > scenario.snap_time_s


def test_science_detectors_are_the_default():
    assert len(Scenario().detectors) == 189


def test_conditions_stay_within_pointing_and_rotation_limits():
    scenario = Scenario(detectors=(94,), nvisits=200)
    for visit in visits(scenario):
        state = conditions(scenario, visit)
        assert separation_arcsec(state.ra_deg, state.dec_deg, visit.ra_deg, visit.dec_deg) <= 2.0 + 1e-6
        assert abs(state.rotation_deg - visit.rotation_deg) * 3600.0 <= 32.0
        assert 0.9 < state.transparency <= 1.0


def test_conditions_follow_from_the_seed_and_the_visit():
    scenario = Scenario(detectors=(94,))
    first, second, _ = visits(scenario)
    assert conditions(scenario, first) == conditions(scenario, first)
    assert conditions(scenario, first) != conditions(scenario, second)
    assert conditions(scenario, first) != conditions(replace(scenario, seed=2), first)


def test_generators_are_independent_by_purpose_and_number():
    scenario = Scenario(detectors=(94,))
    draws = [
        generator(scenario, "a", 1).normal(),
        generator(scenario, "a", -1).normal(),
        generator(scenario, "b", 1).normal(),
        generator(scenario, "a", 1, 0).normal(),
    ]
    assert len(set(draws)) == 4


@pytest.mark.parametrize("wrong", [{"nsnaps": 3}, {"nvisits": 0}, {"exposure_time_s": 0.0}, {"camera": "none"}])
def test_impossible_scenarios_are_refused(wrong):
    with pytest.raises(BadRequest):
        Scenario(**wrong)
