"""What becomes of DiaSources that hold the light of fakes, and which fakes were found."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from apflow.catalogs.associate import associate
from apflow.catalogs.injected import found, injection_metrics, is_injected
from apflow.model import schema
from apflow.model.ap_metrics import INJECTION_SNR, STAGES, known_values, over_visit
from apflow.model.products import History

ARCSEC = 1 / 3600


def sources(offsets: list[float], injected: list[bool], negative: bool = False, dec: float = 10.0) -> pd.DataFrame:
    """DiaSources at some arcsec North of (150, `dec`)."""
    n = len(offsets)
    table = {"diaSourceId": np.arange(1, n + 1), "ra": 150.0, "dec": dec + np.array(offsets) * ARCSEC}
    table |= {"raErr": 0.05 * ARCSEC, "decErr": 0.05 * ARCSEC, "ra_dec_Cov": 0.0, "psfFlux": 1000.0}
    table |= {"psfFluxErr": 50.0, "band": "r", "midpointMjdTai": 60785.1, "visit": 1, "detector": 4, "x": 1.0, "y": 1.0}
    table |= {"pixelFlags_injected": injected, "isNegative": negative}
    return schema.conform(pd.DataFrame(table), "DiaSource")


def history(offset: float) -> History:
    """One known DiaObject."""
    empty = [schema.empty(n) for n in ("DiaObject", "DiaSource", "DiaForcedSource")]
    first = associate(sources([offset], [False]), History(*empty), **LIMITS)
    objects = first.objects.assign(diaObjectId=77)
    return History(objects, empty[1], empty[2])


LIMITS = {"radius_arcsec": 1.0, "position_floor_arcsec": 0.05, "max_new_objects": 10}


def test_a_fake_takes_no_object_and_makes_none_be_it_nearer_than_the_true_source() -> None:
    new = associate(sources([0.4, 0.0, 20.0, 30.0], [False, True, True, False]), history(0.0), **LIMITS)
    owners = new.sources["diaObjectId"]
    assert owners[0] == 77 and owners[1] is pd.NA and owners[2] is pd.NA and owners[3] == 4
    assert new.sources["ssObjectId"].isna().all()
    assert list(new.objects["diaObjectId"]) == [4, 77]
    assert new.objects["nDiaSources"].max() == 2
    # The object that is near the fake is guarded all the same: the store looks at all sources.
    assert list(new.guard) == [77]


def test_a_fake_is_no_asteroid() -> None:
    predicted = pd.DataFrame(
        {"ssObjectId": [5], "ra": [150.0], "dec": [10.0], "raErr": [0.1 * ARCSEC], "decErr": [0.1 * ARCSEC]}
    )
    alone = associate(sources([0.0], [True]), history(50.0), **LIMITS, ss_objects=predicted)
    assert alone.sources["ssObjectId"].isna().all() and not len(alone.ss_sources)
    with_true = associate(sources([0.0, 0.3], [True, False]), history(50.0), **LIMITS, ss_objects=predicted)
    assert with_true.sources["ssObjectId"].fillna(0).tolist() == [0, 5]


def test_fakes_do_not_trip_the_circuit_breaker() -> None:
    many = sources([3.0 * i for i in range(40)], [True] * 40)
    assert not len(associate(many, history(-50.0), **LIMITS).objects)


def test_a_flag_that_is_unknown_is_none() -> None:
    table = sources([0.0, 1.0], [True, False])
    table["pixelFlags_injected"] = pd.array([pd.NA, True], "boolean")
    assert is_injected(table).tolist() == [False, True]


@pytest.mark.parametrize("dec", [10.0, -89.9])
def test_a_fake_is_found_by_a_flagged_source_within_an_arcsecond(dec: float) -> None:
    fakes = pd.DataFrame({"ra": 150.0, "dec": dec + np.array([0.0, 10.0, 20.0]) * ARCSEC})
    seen = sources([0.9, 11.1, 20.0], [True, True, False], dec=dec)
    assert found(fakes, seen).tolist() == [True, False, False]
    assert not found(fakes, sources([0.0], [True], negative=True, dec=dec)).any()
    assert not found(fakes, seen[:0]).any() and len(found(fakes[:0], seen)) == 0


def test_metrics_count_by_predicted_snr_and_make_the_completeness_of_a_visit() -> None:
    fakes = pd.DataFrame(
        {
            "ra": 150.0,
            "dec": 10.0 + np.arange(5) * 10 * ARCSEC,
            "snr": [4.0, 6.0, 6.5, 300.0, np.nan],
            "good": [True, True, True, True, False],
        }
    )
    values = injection_metrics(fakes, sources([10.0, 30.0], [True, True]))
    assert set(values) == {m.name for m in STAGES["injection"]}
    assert (values["n_injected"], values["n_injected_found"]) == (4.0, 2.0)
    assert [values[f"n_injected_snr{s}"] for s in INJECTION_SNR] == [1.0, 2.0, 0.0, 0.0, 1.0]
    assert [values[f"n_injected_found_snr{s}"] for s in INJECTION_SNR] == [0.0, 1.0, 0.0, 0.0, 1.0]
    seen = known_values(over_visit([values, values, {"n_sources": 3.0}]))
    assert (seen["total_n_injected"], seen["injected_completeness"]) == (8.0, 0.5)
    assert (seen["injected_completeness_snr5"], seen["injected_completeness_snr20"]) == (0.5, 1.0)
    assert "injected_completeness_snr7" not in seen  # of nothing there is no part
