"""Scores of runs that are known to be perfect, partial, biased or polluted."""

import numpy as np
import pandas as pd
import pytest

from apflow.simulate.score import score

EXPECTED = [(1, 94), (1, 95)]


def _truth():
    rng = np.random.default_rng(1)
    n = 200
    snr = np.concatenate([np.full(100, 5.0), np.full(100, 30.0)])
    ra, dec = 150.0 + np.tile(np.arange(100) % 10, 2) * 0.003, -30.0 + np.tile(np.arange(100) // 10, 2) * 0.003
    sign = rng.choice([-1.0, 1.0], n)
    return pd.DataFrame(
        {
            "visit": 1,
            "detector": np.where(np.arange(n) % 2, 94, 95),
            "truth_id": np.arange(n),
            "kind": "transient",
            "ra": ra,
            "dec": dec + np.repeat([0.0, 0.0015], 100),
            "x": 0.0,
            "y": 0.0,
            "flux_njy": sign * snr * 100,
            "snr": snr,
            "good": True,
            "trail_length_arcsec": 0.0,
            "trail_angle_deg": 0.0,
        }
    )


def _sources(truth):
    return truth.rename(columns={"flux_njy": "psfFlux"})[["visit", "detector", "ra", "dec", "snr", "psfFlux"]]


def test_a_perfect_run():
    truth = _truth()
    result = score(truth, _sources(truth), EXPECTED)
    assert result["completeness_snr6"] == result["purity"] == 1.0
    assert result["zeropoint_bias_mag"] == result["flux_bias"] == 0.0
    assert result["astrometric_scatter_arcsec"] == pytest.approx(0, abs=1e-9)
    assert (result["n_true"], result["n_sources"]) == (100, 100)


def test_failed_detectors_count_as_having_found_nothing():
    truth = _truth()
    sources = _sources(truth)
    result = score(truth, sources[sources["detector"] == 94], EXPECTED)
    assert result["completeness_snr6"] == pytest.approx(0.5)
    assert result["purity"] == 1.0
    assert score(truth, sources, [(1, 94)])["n_true"] == 50


def test_changes_on_bad_pixels_need_not_be_found_but_are_real():
    truth = _truth()
    truth.loc[150:, "good"] = False
    found = score(truth, _sources(truth), EXPECTED)
    assert found["n_true"] == 50
    assert found["purity"] == 1.0
    assert score(truth, _sources(truth[truth["good"]]), EXPECTED)["completeness_snr6"] == 1.0


def test_spurious_sources_cost_purity():
    truth = _truth()
    extra = _sources(truth).iloc[-25:].assign(dec=lambda s: s["dec"] + 3 / 3600)
    result = score(truth, pd.concat([_sources(truth), extra]), EXPECTED)
    assert result["purity"] == pytest.approx(100 / 125)
    assert result["completeness_snr6"] == 1.0


def test_the_match_radius_is_one_arcsecond():
    truth = _truth()
    for offset, expected in ((0.95, 1.0), (1.05, 0.0)):
        moved = _sources(truth).assign(dec=lambda s, offset=offset: s["dec"] + offset / 3600)
        assert score(truth, moved, EXPECTED)["completeness_snr6"] == expected


def test_negative_snr_counts_by_its_size():
    truth = _truth()
    signed = _sources(truth).assign(snr=lambda s: np.sign(s["psfFlux"]) * s["snr"])
    assert score(truth, signed, EXPECTED)["n_sources"] == 100


def test_flux_and_position_errors():
    truth, rng = _truth(), np.random.default_rng(2)
    sources = _sources(truth)
    sources["psfFlux"] *= 0.98
    sources["dec"] += rng.normal(0.01, 0.03, len(sources)) / 3600
    sources["ra"] += rng.normal(0, 0.03, len(sources)) / 3600 / np.cos(np.radians(sources["dec"]))
    result = score(truth, sources, EXPECTED)
    assert result["flux_bias"] == pytest.approx(-0.02)
    assert result["zeropoint_bias_mag"] == pytest.approx(0.0219, abs=1e-3)
    assert result["astrometric_scatter_arcsec"] == pytest.approx(0.03, rel=0.2)
    assert result["astrometric_bias_arcsec"] == pytest.approx(0.01, abs=0.01)


def test_a_trail_is_found_anywhere_along_it_and_does_not_spoil_positions():
    truth = _truth()
    truth.loc[199, ["trail_length_arcsec", "trail_angle_deg"]] = [6.0, 90.0]
    sources = _sources(truth)
    sources.loc[199, "ra"] += 2.8 / 3600 / np.cos(np.radians(30))
    result = score(truth, sources, EXPECTED)
    assert result["completeness_snr6"] == result["purity"] == 1.0
    assert result["n_bright"] == 99
    sources.loc[199, "dec"] += 1.5 / 3600
    assert score(truth, sources, EXPECTED)["completeness_snr6"] == pytest.approx(0.99)


def test_nothing_found_and_nothing_there():
    truth = _truth()
    nothing = score(truth, _sources(truth).iloc[:0], EXPECTED)
    assert nothing["completeness_snr6"] == 0.0
    assert np.isnan(nothing["purity"])
    assert np.isnan(score(truth.iloc[:0], _sources(truth), EXPECTED)["completeness_snr6"])
    assert score(truth.iloc[:0], _sources(truth), EXPECTED)["purity"] == 0.0


def test_bins_of_snr():
    result = score(_truth(), _sources(_truth()), EXPECTED)
    row = next(b for b in result["by_snr"] if b["snr_low"] == 20)
    assert (row["completeness"], row["n_true"]) == (1.0, 100)
