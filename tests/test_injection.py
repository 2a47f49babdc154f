"""Fakes from end to end: in the database, flagged, with their truth in the Butler, and never in an alert."""

from __future__ import annotations

import dataclasses
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from astropy.io import fits
from lsst.daf.butler import Butler

from apflow.catalogs.injected import found, is_injected
from apflow.config import Config
from apflow.config_tables import Injection
from apflow.graphs import alert_production
from apflow.io.alerts.archive import read_night
from apflow.io.arrivals import Ingestor
from apflow.io.butler import Repository, output_run
from apflow.io.metrics import read_bundle
from apflow.io.ppdb import open_ppdb
from apflow.io.ppdb.operations_check import check
from apflow.model.ledger import Outcome, State
from apflow.model.sky import separation_arcsec
from apflow.operate.prepare import simulation_pool
from apflow.operate.services import PostgresServer
from apflow.run import EagerRunner
from apflow.simulate.scenario import Scenario
from apflow.steps.inject import inject_fakes
from tests.field import Field, land, make_field
from tests.pixels.scenes import pair

DETECTOR = 4
DAY = 20250420
PER_CCD = 8
#: Row of the catalogue that lies on a star which changes itself.
ON_A_STAR = 4


@dataclasses.dataclass(frozen=True)
class Night:
    """Three visits of one sky: two with fakes, each again after it was done, and one without."""

    field: Field
    config: Config
    outcomes: dict[int, Outcome]
    again: dict[int, Outcome]
    sources: pd.DataFrame
    alerts: list[dict[str, Any]]
    fakes: dict[int, pd.DataFrame]


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Night:
    with simulation_pool(2) as pool:
        scenario = Scenario(camera="comcam", seed=11, nvisits=3, detectors=(DETECTOR,), size=384)
        field = make_field(tmp_path_factory.mktemp("injection") / "butler", scenario, pool)
    catalog = bright_in_the_middle(field, field.root / "fakes.parquet")
    one, two, three = field.visits
    at_random = dataclasses.replace(field.config, injection=Injection(per_ccd=PER_CCD, mag_min=20.0, mag_max=23.0))
    by_catalog = dataclasses.replace(field.config, injection=Injection(catalog=str(catalog)))
    configs = {one: at_random, two: by_catalog, three: by_catalog}
    outcomes, again = {}, {}
    with open_ppdb(field.config.ppdb_url, create=True), Ingestor(field.config.butler, field.player.landing):
        for visit in field.visits:
            land(field, visit)
            (outcomes[visit.visit],) = EagerRunner().run(alert_production.visit, visit, [DETECTOR], configs[visit])
            (again[visit.visit],) = EagerRunner().run(alert_production.visit, visit, [DETECTOR], configs[visit])
    fakes = {}
    with Butler.from_config(str(field.root)) as butler:
        for visit in field.visits:
            run = output_run(visit, configs[visit])
            where = {"instrument": visit.instrument, "visit": visit.visit, "detector": DETECTOR}
            fakes[visit.visit] = butler.get("injected_sources", where, collections=run)
    sources, alerts = field.table("DiaSource"), list(read_night(field.config.alerts_url, DAY))
    return Night(field, at_random, outcomes, again, sources, alerts, fakes)


def bright_in_the_middle(field: Field, path: Path) -> Path:
    """A catalogue of five fakes, one of them on a star that changes: the same sky in two visits."""
    camera = field.scenario.load_camera()
    visit = field.visits[1]
    wcs = camera.wcs(camera.detector(DETECTOR), visit.ra_deg, visit.dec_deg, visit.rotation_deg)
    ra, dec = wcs.pixel_to_sky(np.array([60.0, 300.0, 60.0, 300.0]), np.array([60.0, 60.0, 300.0, 300.0]))
    changes = field.truth[(field.truth["visit"] == visit.visit) & field.truth["good"]]
    change = changes[changes["kind"] == "variable"].nlargest(1, "snr").iloc[0]
    table = pd.DataFrame({"ra": [*ra, change["ra"]], "dec": [*dec, change["dec"]], "mag": 20.0})
    table.to_parquet(path)
    return path


def test_every_visit_is_done_and_a_rerun_changes_nothing(night: Night) -> None:
    for visit, outcome in night.outcomes.items():
        assert outcome.state is State.DONE, outcome.cause
        again = night.again[visit]
        assert (again.state, again.n_sources, again.n_alerts) == (State.DONE, outcome.n_sources, outcome.n_alerts)
    assert night.sources["diaSourceId"].is_unique
    assert len(night.sources) == sum(o.n_sources for o in night.outcomes.values())
    with open_ppdb(night.config.ppdb_url) as ppdb:
        assert check(ppdb) == []


def test_the_truth_is_a_dataset_of_the_butler(night: Night) -> None:
    one, two, three = (night.fakes[v.visit] for v in night.field.visits)
    assert len(one) == PER_CCD and len(two) == len(three) == 5
    assert one["good"].all() and one["mag"].between(20.0, 23.0).all()
    assert (one["visit"] == night.field.visits[0].visit).all() and (one["detector"] == DETECTOR).all()
    assert np.allclose(one["flux_njy"], 10 ** (0.4 * (31.4 - one["mag"])))
    # The same catalogue is on the same sky, through two pointings.
    assert separation_arcsec(two["ra"], two["dec"], three["ra"], three["dec"]).max() < 1e-6
    assert not np.allclose(two["x"], three["x"], atol=1e-3)


def test_the_fakes_are_in_the_database_flagged_with_their_flux(night: Night) -> None:
    ratios = []
    for visit, fakes in night.fakes.items():
        sources = night.sources[night.sources["visit"] == visit]
        assert found(fakes, sources).mean() >= 0.8
        flagged = sources[is_injected(sources)]
        for fake in fakes[fakes["snr"] > 20].to_dict("records"):
            away = separation_arcsec(flagged["ra"], flagged["dec"], fake["ra"], fake["dec"])
            near = flagged.iloc[int(away.argmin())]
            assert near["pixelFlags_injectedCenter"]
            if fake["injectionId"] != ON_A_STAR:
                ratios.append(near["psfFlux"] / fake["flux_njy"])
    # One or the other lies on something that changes.
    assert len(ratios) > 10 and np.median(ratios) == pytest.approx(1.0, abs=0.02)


def test_the_predicted_error_is_that_of_the_difference(night: Night) -> None:
    visit = night.field.visits[0].visit
    fakes, sources = night.fakes[visit], night.sources[night.sources["visit"] == visit]
    flagged = sources[sources["pixelFlags_injectedCenter"].to_numpy(bool)]
    ratios = []
    for fake in fakes.to_dict("records"):
        away = separation_arcsec(flagged["ra"], flagged["dec"], fake["ra"], fake["dec"])
        if away.min() < 0.5:
            ratios.append(float(flagged["psfFluxErr"].iloc[int(away.argmin())]) * fake["snr"] / fake["flux_njy"])
    assert len(ratios) >= 5 and np.median(ratios) == pytest.approx(1.0, abs=0.05)


def test_no_alert_no_object_no_history_has_a_fake(night: Night) -> None:
    fake_ids = set(night.sources["diaSourceId"][is_injected(night.sources)])
    assert len(fake_ids) >= 12
    told = {a["diaSourceId"] for a in night.alerts}
    assert told and not told & fake_ids
    assert not any(p["diaSourceId"] in fake_ids for a in night.alerts for p in a["prvDiaSources"] or [])
    assert not any(a["diaSource"]["pixelFlags_injected"] for a in night.alerts)
    outbox, objects = night.field.table("outbox"), night.field.table("DiaObject")
    assert not set(outbox["alert_id"]) & fake_ids and len(outbox) == len(told)
    assert not set(objects["diaObjectId"]) & fake_ids
    flagged = night.sources[is_injected(night.sources)]
    assert flagged["diaObjectId"].isna().all() and flagged["ssObjectId"].isna().all()
    real = night.sources[~is_injected(night.sources)]
    assert real["diaObjectId"].notna().all() and set(real["diaSourceId"]) == told
    assert sum(o.n_alerts for o in night.outcomes.values()) == len(told)


def test_nothing_is_forced_on_the_light_of_a_fake(night: Night) -> None:
    forced = night.field.table("DiaForcedSource")
    for visit, fakes in night.fakes.items():
        mine = forced[forced["visit"] == visit]
        assert len(mine)
        for fake in fakes.to_dict("records"):
            assert separation_arcsec(mine["ra"], mine["dec"], fake["ra"], fake["dec"]).min() > 1.5


def test_stamps_that_go_out_show_no_fake(night: Night) -> None:
    shown = 0
    for alert in night.alerts:
        source = alert["diaSource"]
        for name in ("cutoutDifference", "cutoutScience"):
            with fits.open(BytesIO(alert[name])) as hdus:
                image = hdus[0].data
            middle = image.shape[0] // 2
            for fake in night.fakes[source["visit"]].to_dict("records"):
                x, y = (round(fake[c]) - round(source[c]) + middle for c in "xy")
                # The core of the fake and what surrounds it: more than half of its stamp.
                part = image[max(y - 8, 0) : max(y + 9, 0), max(x - 8, 0) : max(x + 9, 0)]
                assert np.isnan(part).all()
                shown += part.size
    assert shown, "no alert is near a fake: the scene tests nothing"


def test_metrics_count_the_fakes_and_a_night_shows_completeness(night: Night) -> None:
    visit = night.field.visits[0]
    with Butler.from_config(str(night.field.root)) as butler:
        run = output_run(visit, night.config)
        where = {"instrument": visit.instrument, "visit": visit.visit}
        kept = butler.getURI("ap_metrics", {**where, "detector": DETECTOR}, collections=run)
        whole = butler.getURI("ap_visit_metrics", where, collections=run)
        values, seen = (read_bundle(Path(uri.ospath)) for uri in (kept, whole))
    injection, over = values["injection"], seen["visit"]
    assert injection["n_injected"] == PER_CCD
    assert sum(v for k, v in injection.items() if k.startswith("n_injected_snr")) == PER_CCD
    assert over["total_n_injected"] == PER_CCD
    assert over["injected_completeness"] == pytest.approx(injection["n_injected_found"] / PER_CCD)
    assert over["injected_completeness_snr20"] == pytest.approx(
        injection["n_injected_found_snr20"] / injection["n_injected_snr20"]
    )


def test_without_fakes_it_is_the_same_image_and_nothing_is_written(night: Night) -> None:
    science = pair(64).science
    assert inject_fakes(science, night.field.config) is science
    assert inject_fakes(science, night.field.config).injected is None
    with Repository(night.field.root) as repository:
        ids = repository.butler.query_datasets("injected_sources", "*", find_first=False)
    assert len(ids) == 3


def test_the_same_goes_for_a_ppdb_on_postgresql(night: Night, postgres: PostgresServer, tmp_path: Path) -> None:
    config = dataclasses.replace(night.config, ppdb=postgres.database(), alerts=f"file://{tmp_path / 'alerts'}")
    with open_ppdb(config.ppdb_url, create=True) as ppdb:
        for visit in night.field.visits[:2]:
            (outcome,) = EagerRunner().run(alert_production.visit, visit, [DETECTOR], config)
            assert outcome.state is State.DONE, outcome.cause
        sources, outbox, objects = (ppdb.table(name) for name in ("DiaSource", "outbox", "DiaObject"))
        assert check(ppdb) == []
    fakes = sources[is_injected(sources)]
    assert len(fakes) > PER_CCD and fakes["diaObjectId"].isna().all()
    alerts = {a["diaSourceId"] for a in read_night(config.alerts_url, DAY)}
    assert alerts == set(outbox["alert_id"]) == set(sources["diaSourceId"]) - set(fakes["diaSourceId"])
    assert not set(objects["diaObjectId"]) & set(fakes["diaSourceId"])
    assert objects["nDiaSources"].max() > 1  # the second visit was associated with the first
