"""DRP Objects near new DiaObjects."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from apflow.catalogs.associate import associate
from apflow.catalogs.drp import nearest_drp
from apflow.model import schema
from apflow.model.products import no_drp_objects
from apflow.model.sky import separation_arcsec
from tests.catalogs.sky import CENTRE, errors, history, place, table


def release(
    x: np.ndarray, y: np.ndarray, extendedness: np.ndarray, centre: tuple[float, float] = CENTRE
) -> pd.DataFrame:
    columns = {"objectId": 500 + np.arange(len(x)), **place(x, y, centre)}
    return pd.DataFrame(columns | {"extendedness": np.asarray(extendedness, np.float32)})


@pytest.mark.parametrize("centre", [(0.0, 10.0), (50.0, 90.0)])
def test_the_nearest_three_stars_and_galaxies_within_a_minute_of_arc(centre: tuple[float, float]) -> None:
    rng = np.random.default_rng(1)
    kind = rng.choice([0.0, 0.3, 0.5, 1.0, np.nan], 120)
    drp = release(*rng.uniform(-150, 150, (2, 120)), kind, centre)
    objects = table("DiaObject", *rng.uniform(-150, 150, (2, 25)), centre)
    out = nearest_drp(objects, drp.sample(frac=1, random_state=1), position_floor_arcsec=0.05)
    assert out.dtypes.equals(schema.empty("DiaObject_To_Object_Match").dtypes)
    expected = []
    for o in objects.itertuples():
        distance = separation_arcsec(drp["ra"], drp["dec"], o.ra, o.dec)
        for of_class in (drp["extendedness"] < 0.5, drp["extendedness"] >= 0.5):
            near = np.flatnonzero(of_class & (distance <= 60.0))
            expected += [(o.diaObjectId, 500 + k, distance[k]) for k in near[np.argsort(distance[near])][:3]]
    expected.sort(key=lambda row: (row[0], row[2]))
    assert [*zip(out["diaObjectId"], out["objectId"], strict=True)] == [row[:2] for row in expected]
    np.testing.assert_allclose(out["dist"], [row[2] for row in expected], rtol=1e-5)
    assert 25 < len(out) < 150
    assert (out["lnP"] <= 0).all() and (np.exp(out["lnP"]).groupby(out["diaObjectId"]).sum() <= 1.0 + 1e-6).all()


def test_the_probability_tells_the_same_thing_from_a_neighbour() -> None:
    drp = release(np.array([0.05, 3.0, 20.0]), np.zeros(3), np.array([0.0, 1.0, 0.0]))
    objects = table("DiaObject", [0.0, 1.5], [0.0, 30.0], **errors(0.1, 0.1))
    out = nearest_drp(objects, drp, position_floor_arcsec=0.05).set_index(["diaObjectId", "objectId"])["lnP"]
    # Three Objects within a minute of arc, 0.0125 arcsec^2 of variance.
    density, variance = 3 / (np.pi * 60.0**2), 0.1**2 + 0.05**2
    likelihood = np.exp(-0.5 * np.array([0.05, 3.0, 20.0]) ** 2 / variance) / (2 * np.pi * density * variance)
    assert out[1, 500] == pytest.approx(np.log(likelihood[0] / (1 + likelihood.sum())), rel=1e-3)
    assert np.exp(out[1, 500]) > 0.99 and out[1, 501] < -300 and (out[2] < -1000).all()


def test_only_new_objects_are_matched() -> None:
    known = table("DiaObject", [0.0], [0.0])
    drp = release(np.array([1.0, 31.0]), np.zeros(2), np.zeros(2))
    limits = {"radius_arcsec": 1.0, "position_floor_arcsec": 0.05, "max_new_objects": 10}
    out = associate(table("DiaSource", [0.0, 30.0], [0.0] * 2), history(known, drp=drp), **limits)
    assert out.matches["diaObjectId"].tolist() == [1001] * 2 and out.matches["objectId"].tolist() == [501, 500]
    again = associate(table("DiaSource", [0.0], [0.0]), history(known, drp=drp), **limits)
    assert again.matches.empty


def test_without_a_release_there_are_no_matches() -> None:
    objects = table("DiaObject", [0.0], [0.0])
    far = release(np.array([70.0]), np.zeros(1), np.zeros(1))
    unknown = release(np.array([1.0]), np.zeros(1), np.array([np.nan]))
    for drp in (no_drp_objects(), far, unknown):
        out = nearest_drp(objects, drp, position_floor_arcsec=0.05)
        assert out.empty and out.dtypes.equals(schema.empty("DiaObject_To_Object_Match").dtypes)
