"""``apflow detector`` (D2, D3): one CCD by hand, and an exit code for each way in which it can end."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from astropy.time import Time
from lsst.daf.butler import Butler, Timespan

from apflow.io.alerts.archive import nights, read_night
from apflow.io.arrivals import Ingestor
from apflow.io.butler import Repository
from apflow.io.metrics import read_bundle, values_of
from apflow.io.ppdb import open_ppdb
from apflow.model.visit import Visit
from apflow.operate.prepare import simulation_pool
from apflow.operate.services import InfluxServer
from apflow.operate.services.sasquatch import SasquatchProxy
from apflow.simulate.player import Trouble
from apflow.simulate.reference import reference_catalog
from apflow.simulate.scenario import Scenario, visits
from apflow.steps.visits import detector_region
from tests.field import Field, land, make_field
from tests.io.measured import points
from tests.operate.command import apflow

#: What goes wrong with the raw of a detector; 1 is not in trouble.
TROUBLED = {0: "truncated", 2: "missing", 5: "nan"}


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    with simulation_pool(2) as pool:
        yield pool


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory, pool: ProcessPoolExecutor) -> Field:
    """A repository whose raws landed and were registered, and of which nothing was processed."""
    scenario = Scenario(camera="comcam", seed=5, nvisits=3, detectors=(0, 1, 2, 5), size=256)
    troubles = tuple(Trouble(detector=d, kind=kind) for d, kind in TROUBLED.items())
    made = make_field(tmp_path_factory.mktemp("by hand") / "butler", scenario, pool, troubles)
    with Ingestor(made.config.butler, made.player.landing, settle_s=0.05):
        for visit in made.visits:
            land(made, visit)
        deadline = time.monotonic() + 30
        while any(made.player.landing.rglob("*.fits")):  # the truncated one is looked at twice
            assert time.monotonic() < deadline, "raws were not taken from the landing folder"
            time.sleep(0.05)
    return made


def command(field: Field, detector: int, visit: Visit, *more: str) -> subprocess.CompletedProcess[str]:
    pointing = ("--ra", str(visit.ra_deg), "--dec", str(visit.dec_deg), "--exptime", str(visit.exposure_time_s))
    images = [word for name in visit.images for word in ("--image", name)]
    return apflow("detector", str(detector), *pointing, *images, "--butler", str(field.root), *more)


def counts(root: Path) -> tuple[int, int, int]:
    """DiaSources, rows of the outbox, alerts in the archive."""
    with open_ppdb(f"duckdb://{root / 'ppdb.duckdb'}") as ppdb:
        stored = len(ppdb.table("DiaSource")), len(ppdb.table("outbox"))
    url = f"file://{root / 'alerts'}"
    return *stored, sum(len(list(read_night(url, night))) for night in nights(url))


def test_a_new_raw_is_processed_and_a_second_time_changes_nothing(field: Field):
    visit = field.visits[0]
    first = command(field, 1, visit, "--filter", "none")
    assert first.returncode == 0, first.stderr
    assert not first.stderr
    assert f"visit {visit.visit} detector 1: done, " in first.stdout
    after = counts(field.root)
    assert after[0] == after[1] == after[2] > 0
    second = command(field, 1, visit)
    assert second.returncode == 0 and second.stdout == first.stdout
    assert counts(field.root) == after
    with open_ppdb(field.config.ppdb_url) as ppdb:
        ledger = ppdb.ledger()
    assert len(ledger[(ledger["visit"] == visit.visit) & (ledger["detector"] == 1)]) == 1


def test_a_detector_visit_of_a_replay_is_left_as_it_is(replayed: Path, tmp_path: Path):
    root = tmp_path / "butler"
    shutil.copytree(replayed / "butler", root)
    before, visit = counts(root), visits(Scenario(camera="comcam", nvisits=1))[0]
    # As if the replay had been killed when the alerts were out, and before their metrics were kept.
    (lost,) = root.rglob(f"ap_delivery_metrics_*_{visit.visit}_004.json")
    told = read_bundle(lost)["delivery"]
    lost.unlink()
    words = ("--ra", "150.1", "--dec", "-32", "--exptime", "30", "--image", visit.images[0])
    again = apflow("detector", "R22_S11", *words, "--butler", str(root))
    assert again.returncode == 0 and "done" in again.stdout
    assert counts(root) == before
    found = read_bundle(lost)["delivery"]
    for name in ("is_done", "alert_latency_s", "n_alerts", "n_dia_sources"):
        assert found[name] == pytest.approx(told[name], abs=1e-5), name  # Unix times are floats of 64 bit


def test_an_image_that_does_not_come(field: Field):
    ended = command(field, 2, field.visits[0], "--timeout", "1")
    assert ended.returncode == 75
    assert field.visits[0].images[0] in ended.stderr and "detector 2" in ended.stderr and "1 s" in ended.stderr
    with open_ppdb(field.config.ppdb_url) as ppdb:
        ledger = ppdb.ledger()
    assert list(ledger.loc[ledger["detector"] == 2, "state"]) == ["image_timeout"]
    with Butler.from_config(str(field.root), collections=["LSSTComCam/prompt"], instrument="LSSTComCam") as butler:
        delivered = values_of(butler.get("ap_delivery_metrics", visit=field.visits[0].visit, detector=2))
    assert delivered["delivery"]["is_image_timeout"] == 1.0


@pytest.mark.parametrize(("detector", "told"), [(0, "truncated"), (5, "")])
def test_an_image_that_cannot_be_used(field: Field, detector: int, told: str):
    ended = command(field, detector, field.visits[0], "--timeout", "5")
    assert ended.returncode == 65, ended.stderr
    assert told in ended.stderr and "Traceback" not in ended.stderr


def test_what_the_header_tells_otherwise_is_said_and_used(field: Field):
    """Boresight, filter and exposure time of the image count (DMTN-092 section 2.1), not those announced."""
    visit = field.visits[1]
    wrong = dataclasses.replace(visit, ra_deg=151.0, exposure_time_s=15.0)
    ended = command(field, 1, wrong, "--filter", "g")
    assert ended.returncode == 0, ended.stderr
    assert "warning: the header's boresight is 2748 arcsec from the announced one" in ended.stderr
    assert "warning: the header's filter is 'r_03', announced was 'g_01'" in ended.stderr
    assert "warning: the header's exposure time is 29.9978 s, announced were 15 s" in ended.stderr
    stored = field.table("DiaSource")
    assert set(stored.loc[stored["visit"] == visit.visit, "band"]) == {"r"}


def test_metrics_wait_for_a_service_that_is_away_and_alerts_do_not(
    field: Field, tmp_path: Path, sasquatch: SasquatchProxy, influxdb: InfluxServer
):
    """D11, with the whole of it: what the Butler has is in InfluxDB in the end, once."""
    root, visit = tmp_path / "butler", field.visits[2]
    shutil.copytree(field.root, root)
    (tmp_path / "token").write_text(f"{sasquatch.token}\n")
    settings = root / "apflow.toml"
    text = settings.read_text().replace('url = ""', f'url = "{sasquatch.url}"')
    settings.write_text(text.replace('token_file = ""', f'token_file = "{tmp_path / "token"}"'))
    sasquatch.stop()
    ended = command(dataclasses.replace(field, root=root), 1, visit)
    assert ended.returncode == 0, ended.stderr
    with open_ppdb(f"duckdb://{root / 'ppdb.duckdb'}") as ppdb:
        sources, alerts = (ppdb.table(name, {"visit": [visit.visit]}) for name in ("DiaSource", "outbox"))
    assert len(alerts) == len(sources) > 0 and alerts["published_unix"].notna().all()
    away = apflow("metrics", "send", "--butler", str(root))
    assert away.returncode == 69 and sasquatch.url in away.stderr

    sasquatch.start()
    sent = apflow("metrics", "send", "--butler", str(root))
    assert sent.returncode == 0 and sent.stdout.startswith("11 records with "), sent
    with Butler.from_config(str(root), collections=["LSSTComCam/prompt"], instrument="LSSTComCam") as butler:
        kept = {"ap_visit_metrics": values_of(butler.get("ap_visit_metrics", visit=visit.visit))}
        for kind in ("ap_metrics", "ap_delivery_metrics"):
            kept[kind] = values_of(butler.get(kind, visit=visit.visit, detector=1))
    for kind, actions in kept.items():
        for action, values in actions.items():
            if action == "injection":  # nothing was injected: there is nothing to tell
                assert set(values.values()) == {None} and not points(influxdb, sasquatch, action)
                continue
            (point,) = points(influxdb, sasquatch, action)
            assert {name: point.get(name) for name in values} == values
            identifiers = {
                **{"instrument": "LSSTComCam", "visit": str(visit.visit), "exposure": str(visit.visit)},
                **{"physical_filter": "r_03", "band": "r", "group": visit.group, "day_obs": "20250420"},
                **({} if kind == "ap_visit_metrics" else {"detector": "1"}),
            }
            assert {name: point[name] for name in identifiers} == identifiers
            assert point.get("detector") == identifiers.get("detector")
    (point,) = points(influxdb, sasquatch, "calibrate")
    middle = Time(kept["ap_metrics"]["isr"]["mjd_mid_tai"], format="mjd", scale="tai")
    assert point["time"] / 1e9 == pytest.approx(middle.unix, abs=1e-3)
    nothing = apflow("metrics", "send", "--butler", str(root))
    assert nothing.stdout.startswith("0 records")
    text = apflow("metrics", "show", visit.images[0], "--detector", "R22_S01", "--butler", str(root)).stdout
    assert re.search(rf"calibrate +psf_fwhm_arcsec +{kept['ap_metrics']['calibrate']['psf_fwhm_arcsec']:.5g} ", text)
    assert re.search(r"template_coverage .* Acceptable", text)
    whole = apflow("metrics", "show", str(visit.visit), "--butler", str(root), "--json").stdout.splitlines()
    shown = {row["metric"]: row["value"] for row in map(json.loads, whole)}
    assert shown == kept["ap_visit_metrics"]["visit"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("2025042000009",), "no metrics of 2025042000009 in"),
        (("CC_20250420",), "image name 'CC_20250420' is not of the form"),
        (("2025042000001", "--detector", "R99"), "has no detector 'R99'; accepted:"),
        (("2025042000001", "--action", "ap"), "action 'ap' is unknown; accepted: inputs, isr, calibrate"),
    ],
)
def test_metrics_that_are_not_there_are_refused_by_name(field: Field, words: tuple[str, ...], told: str):
    ended = apflow("metrics", "show", *words, "--butler", str(field.root))
    assert ended.returncode == 2 and told in ended.stderr and "Traceback" not in ended.stderr


def test_no_template_there(field: Field, tmp_path: Path):
    """Raws of another part of the sky in the same repository."""
    root = tmp_path / "butler"
    shutil.copytree(field.root, root)
    scenario = dataclasses.replace(
        field.scenario, ra_deg=30.0, nvisits=1, detectors=(1,), first_seq=50, start_mjd_tai=60786.2
    )
    player = dataclasses.replace(
        field.player, scenario=scenario, staging=tmp_path / "s", landing=tmp_path / "l", troubles=()
    )
    player.render()
    visit = visits(scenario)[0]
    with Repository(root, writeable=True) as repository:
        assert all(one.path is not None for one in repository.ingest_raws(player.land(visit, 1)))
        region = detector_region(visit, 1, field.config).grown(60.0)
        repository.ingest_reference(reference_catalog(scenario, region).assign(band="r"))
    ended = command(dataclasses.replace(field, root=root), 1, visit, "--timeout", "5")
    assert ended.returncode == 20, ended.stderr
    assert "no template in band 'r' overlaps detector 1" in ended.stderr
    with Butler.from_config(str(root), collections=["LSSTComCam/prompt"], instrument="LSSTComCam") as butler:
        stages = values_of(butler.get("ap_metrics", visit=visit.visit, detector=1))
        delivered = values_of(butler.get("ap_delivery_metrics", visit=visit.visit, detector=1))["delivery"]
        seen = values_of(butler.get("ap_visit_metrics", visit=visit.visit))["visit"]
    # Its image was calibrated all the same, and nothing was subtracted from it.
    assert None not in {**stages["isr"], **stages["calibrate"]}.values()
    assert set({**stages["subtract"], **stages["alerts"]}.values()) == {None}
    assert delivered["is_no_template"] == 1.0 and delivered["n_alerts"] is delivered["alert_latency_s"] is None
    assert delivered["calibrate_core_s"] and delivered["subtract_core_s"] is None
    assert seen["median_psf_fwhm_arcsec"] == stages["calibrate"]["psf_fwhm_arcsec"] and seen["n_no_template"] == 1.0


def test_no_calib_is_valid(field: Field, tmp_path: Path):
    """No bias is certified for the time of the visit any more."""
    root = tmp_path / "butler"
    shutil.copytree(field.root, root)
    with Butler.from_config(str(root), writeable=True) as butler:
        butler.registry.decertify("LSSTComCam/calib", "bias", Timespan(None, None))
    (root / "ppdb.duckdb").unlink(missing_ok=True)
    ended = command(dataclasses.replace(field, root=root), 1, field.visits[0])
    assert ended.returncode == 21, ended.stderr
    assert "no bias of detector 1 is valid for visit" in ended.stderr
