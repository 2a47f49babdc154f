"""Scores of runs that are known to be perfect, partial, biased or polluted."""

import numpy as np
import pandas as pd
import pytest

from apflow.simulate.score import _median_error, score

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


def test_the_error_of_the_zero_point_is_that_of_a_median():
    rng = np.random.default_rng(5)
    errors = [_median_error(rng.normal(0.01, 0.03, 400)) for _ in range(50)]
    medians = [np.median(rng.normal(0.01, 0.03, 400)) for _ in range(2000)]
    assert np.mean(errors) == pytest.approx(np.std(medians), rel=0.05)
    assert np.isnan(_median_error(np.array([np.nan])))


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
    assert row["completeness_low"] == pytest.approx(100 / 101)
    assert row["completeness_high"] == 1.0
    assert (row["purity"], row["n_sources"]) == (1.0, 100)


def test_bins_of_magnitude_hold_all_changes():
    truth = _truth()
    result = score(truth, _sources(truth[truth["snr"] > 6]), EXPECTED)
    assert sum(b["n_true"] for b in result["by_mag"]) == len(truth)
    faint, bright = (-2.5 * np.log10(s * 100) + 31.4 for s in (5.0, 30.0))
    for row in result["by_mag"]:
        if row["n_true"]:
            assert row["mag_low"] < faint <= row["mag_high"] or row["mag_low"] < bright <= row["mag_high"]
            assert row["completeness"] == (1.0 if row["mag_low"] < bright <= row["mag_high"] else 0.0)


def test_half_of_the_changes_is_found_at_the_threshold():
    truth, rng = _truth(), np.random.default_rng(3)
    truth["snr"] = rng.uniform(2.0, 15.0, len(truth))
    truth["flux_njy"] = truth["snr"] * 100
    result = score(truth, _sources(truth[truth["snr"] + rng.normal(0, 0.5, len(truth)) > 5.1]), EXPECTED)
    assert result["snr50"] == pytest.approx(5.1, abs=0.3)
    assert result["mag50"] == pytest.approx(31.4 - 2.5 * np.log10(510), abs=0.1)


def test_a_cut_in_reliability_takes_the_unreliable_and_the_unknown():
    truth = _truth()
    extra = _sources(truth).iloc[-40:].assign(dec=lambda s: s["dec"] + 3 / 3600, reliability=0.1)
    unknown = _sources(truth).iloc[-10:].assign(dec=lambda s: s["dec"] - 3 / 3600, reliability=np.nan)
    every = pd.concat([_sources(truth).assign(reliability=0.9), extra, unknown])
    assert score(truth, every, EXPECTED)["purity"] == pytest.approx(100 / 150)
    cut = score(truth, every, EXPECTED, 0.5)
    assert (cut["purity"], cut["completeness_snr6"]) == (1.0, 1.0)
    assert score(truth, every, EXPECTED, 0.95)["completeness_snr6"] == 0.0


def test_a_source_with_the_light_of_a_fake_is_neither_real_nor_false():
    truth = _truth()
    fake = _sources(truth).iloc[-25:].assign(dec=lambda s: s["dec"] + 3 / 3600, pixelFlags_injected=True)
    every = pd.concat([_sources(truth).assign(pixelFlags_injected=False), fake])
    assert score(truth, every, EXPECTED)["purity"] == 1.0
    # What a fake lies upon was found all the same; its flux is not that of the change.
    upon = _sources(truth).assign(pixelFlags_injected=lambda s: s.index >= 190)
    upon.loc[190:, "psfFlux"] *= 5
    result = score(truth, upon, EXPECTED)
    assert (result["completeness_snr6"], result["n_sources"], result["n_bright"]) == (1.0, 90, 90)
    assert result["flux_bias"] == 0.0


def test_movers_are_attributed_rightly_wrongly_or_not():
    truth = _truth()
    truth["ssObjectId"] = pd.array([pd.NA] * 190 + list(range(1, 11)), "Int64")
    sources = _sources(truth).assign(ssObjectId=truth["ssObjectId"])
    perfect = score(truth, sources, EXPECTED)
    assert (perfect["ss_attributed"], perfect["n_ss_found"], perfect["n_ss_wrong"]) == (1.0, 10, 0)
    # One is not attributed, two bear each other's id, and one that is no mover bears an id.
    sources.loc[190, "ssObjectId"] = pd.NA
    sources.loc[[191, 193], "ssObjectId"] = sources.loc[[193, 191], "ssObjectId"].to_numpy()
    sources.loc[3, "ssObjectId"] = 99
    result = score(truth, sources, EXPECTED)
    assert (result["ss_attributed"], result["n_ss_wrong"]) == (0.7, 3)
    # Those that were not found are nobody's fault.
    assert score(truth, sources.drop(index=range(195, 200)), EXPECTED)["n_ss_found"] == 5
    assert "ss_attributed" not in score(truth, _sources(truth), EXPECTED)


def test_a_trail_is_attributed_anywhere_along_it():
    truth = _truth()
    truth["ssObjectId"] = pd.array([pd.NA] * 199 + [7], "Int64")
    truth.loc[199, ["trail_length_arcsec", "trail_angle_deg"]] = [6.0, 90.0]
    sources = _sources(truth).assign(ssObjectId=truth["ssObjectId"])
    sources.loc[199, "ra"] += 2.8 / 3600 / np.cos(np.radians(30))
    assert score(truth, sources, EXPECTED)["ss_attributed"] == 1.0
    sources.loc[199, "dec"] += 1.5 / 3600
    assert score(truth, sources, EXPECTED)["n_ss_wrong"] == 1
