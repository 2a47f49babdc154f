"""``apflow listen`` (D12) as the summit sees it: events and images in, alerts out, on real services."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from apflow.config import Config, load_config, to_toml
from apflow.config_tables import Invocation, Kafka
from apflow.errors import BadRequest
from apflow.io.butler import create_repository
from apflow.io.kafka.consume import AlertConsumer
from apflow.io.records import night_folder, nights, read_records
from apflow.model.record import Record
from apflow.operate.listen.journal import Journal
from apflow.operate.listen.start import Request, listen
from apflow.operate.prepare import simulation_pool
from apflow.operate.services import KafkaBroker
from apflow.simulate.scenario import Scenario
from tests.field import Field, land, make_field, products
from tests.operate.listening import Listening, journal, next_visit, start_integration

SCENARIO = Scenario(camera="comcam", nvisits=2, detectors=(3, 4), cadence_s=0.0)


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Field:
    with simulation_pool(2) as pool:
        return make_field(tmp_path_factory.mktemp("field") / "butler", SCENARIO, pool)


def copied(field: Field, root: Path, **tables: Any) -> Field:
    """The same repository elsewhere, with other settings."""
    shutil.copytree(field.root, root)
    config: Config = dataclasses.replace(load_config(root / "apflow.toml"), **tables)
    (root / "apflow.toml").write_text(to_toml(config))
    player = dataclasses.replace(field.player, staging=root / "staged", landing=root / "landing")
    return dataclasses.replace(field, root=root, player=player, config=dataclasses.replace(config, butler=str(root)))


@pytest.fixture(scope="module")
def announced(
    field: Field, kafka_broker: KafkaBroker, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Field, list[str]]:
    """Both visits announced by Kafka before their images landed; another, and the second, announced and cancelled."""
    topics = [kafka_broker.create_topic(f"listen-{name}", partitions=1) for name in ("next", "cancel", "start", "out")]
    invocation = Invocation(
        group_id="listen-test", next_visit_topic=topics[0], cancel_topic=topics[1], integration_topic=topics[2]
    )
    kafka = Kafka(bootstrap=kafka_broker.bootstrap, topic=topics[3])
    mine = copied(field, tmp_path_factory.mktemp("a") / "butler", invocation=invocation, kafka=kafka)
    producer = Producer({"bootstrap.servers": kafka_broker.bootstrap})

    def send(topic: str, record: dict[str, Any] | bytes) -> None:
        producer.produce(topic, record if isinstance(record, bytes) else json.dumps(record))
        producer.flush(10)

    first, second = mine.visits
    send(topics[0], next_visit(first))  # before the service is there
    with Listening(mine.root, "--kafka") as service:
        service.until(f"group {first.group} is announced")
        service.until(f"group {first.group}: 2 prepared")
        send(topics[0], b"no JSON")
        send(topics[0], next_visit(first, nimages=7))
        send(topics[2], start_integration(first))
        service.until(f"visit {first.visit} of group")
        land(mine, first)
        service.until(f"visit {first.visit}: 2 done")
        send(topics[0], next_visit(second, groupId="called-off"))
        service.until("group called-off is announced")
        begin = time.monotonic()
        send(topics[1], {"groupId": "called-off"})
        service.until("group called-off: 2 cancelled")
        assert time.monotonic() - begin < 20.0  # and not at the timeout of its images
        send(topics[0], next_visit(second))
        service.until(f"group {second.group} is announced")
        send(topics[2], start_integration(second))
        service.until(f"visit {second.visit} of group")
        send(topics[1], {"groupId": second.group})
        service.until(f"visit {second.visit}: 2 cancelled")
        land(mine, second)  # and yet it was taken
        service.until(f"visit {second.visit}: 2 done")
    return mine, service.told


def test_an_event_then_images_then_alerts(announced: tuple[Field, list[str]]):
    mine, told = announced
    sources = mine.table("DiaSource")
    with AlertConsumer(mine.config.kafka) as consumer:
        alerts = list(consumer.until_end(5.0))
    assert len(alerts) == len(sources) > 20
    assert set(sources["visit"]) == {visit.visit for visit in mine.visits}
    assert sum("is skipped" in line or line.startswith("skipped") for line in told) == 2
    assert any("nextVisit.nimages 7 is not accepted: 0 to 2" in line for line in told)


def test_records_tell_what_the_ledger_knows(announced: tuple[Field, list[str]]):
    """The second visit was cancelled first and taken then: what came last stands."""
    mine, _ = announced
    check_records(mine)
    records = recorded(mine)
    second = [r.outcome for r in records if r.kind == "ended" and r.visit == mine.visits[1].visit]
    assert second == ["cancelled", "cancelled", "done", "done"]
    steps = {r.step for r in records if r.kind == "step" and r.visit == mine.visits[0].visit and r.detector == 3}
    assert {"calibrate", "subtract", "associate"} <= steps
    assert all(0 <= r.stop_unix - r.start_unix < 60 for r in records if r.kind in ("step", "batch"))


def recorded(mine: Field) -> list[Record]:
    found = []
    for day in nights(mine.root):
        found += read_records(night_folder(mine.root, day))[0]
    return found


def check_records(mine: Field) -> None:
    """The last of the records of each detector-visit is its row of the ledger."""
    last = {(r.visit, r.detector): r for r in recorded(mine) if r.kind == "ended"}
    ledger = mine.table("ledger")
    assert {key: r.outcome for key, r in last.items()} == {
        (row.visit, row.detector): row.state for row in ledger.itertuples()
    }
    for row in ledger.itertuples():
        assert last[row.visit, row.detector].numbers["n_alerts"] == row.n_alerts


def test_offsets_are_committed_when_it_is_written_down(announced: tuple[Field, list[str]]):
    mine, _ = announced
    entries = journal(mine.root)
    assert [e["what"] for e in entries].count("started") == 3
    cancelled = [e["record"]["groupId"] for e in entries if e.get("kind") == "nextVisitCanceled"]
    assert cancelled == ["called-off", mine.visits[1].group]
    (closed,) = [e for e in entries if e["what"] == "closed"]
    assert (closed["group"], closed["reason"], closed["detectors"]) == ("called-off", "cancelled", [3, 4])
    own, kafka = mine.config.invocation, mine.config.kafka
    group = Consumer({"bootstrap.servers": kafka.bootstrap, "group.id": own.group_id})
    places = [TopicPartition(topic, 0) for topic in (own.next_visit_topic, own.cancel_topic, own.integration_topic)]
    try:
        assert [place.offset for place in group.committed(places, timeout=30)] == [5, 2, 2]
    finally:
        group.close()


def test_images_alone_and_a_wrong_event_and_a_crash_give_the_same(
    field: Field, announced: tuple[Field, list[str]], tmp_path: Path
):
    """The first visit without any event; the second announced 2 degrees off, by a service that is killed."""
    mine = copied(field, tmp_path / "butler")
    first, second = mine.visits
    with Listening(mine.root, "--http", ":0") as service:
        land(mine, first)
        service.until(f"visit {first.visit}: 2 done")
        assert service.post("nextVisit", next_visit(second, nimages=9)) == 400
        wrong = next_visit(second, position=[second.ra_deg + 2.0, second.dec_deg])
        assert service.post("nextVisit", wrong) == 202
        assert service.post("startIntegration", start_integration(second)) == 202
        service.until(f"visit {second.visit} of group")
        service.kill()
    with Listening(mine.root, "--http", ":0") as service:
        service.until("1 visits or calibrations were under way")
        land(mine, second)
        told = service.until(f"visit {second.visit} begins anew")
        assert "pointing off by 1.70 deg" in told
        service.until(f"visit {second.visit}: 2 done")
    check_records(mine)
    ledger = mine.table("ledger")
    assert ledger["state"].tolist() == 4 * ["done"] and not ledger.duplicated(["visit", "detector"]).any()
    ours, theirs = products(mine), products(announced[0])
    for name in theirs:
        pd.testing.assert_frame_equal(ours[name], theirs[name])


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("empty") / "butler"
    create_repository(root, "comcam", 512)
    return root


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"file": "/none/of/it"}, "No such file"),
        ({"http": "nowhere"}, "HTTP address 'nowhere' is not accepted: :port or host:port"),
        ({"kafka": True}, "kafka.bootstrap is empty"),
        ({"rules": "/none.toml"}, r"none\.toml: No such file"),
        ({"detectors": "R99"}, "LSSTComCam has no detector 'R99'"),
        ({"workers": 10_000}, "--workers 10000 is not accepted: 0"),
        ({"butler": "/none"}, "no Butler repository of apflow in '/none'"),
        ({"image_timeout_s": 60.0}, "another service listens for"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_started(empty: Path, change: dict[str, Any], told: str):
    request = Request(**({"butler": str(empty)} | change))
    another = Journal(empty) if "image_timeout_s" in change else contextlib.nullcontext()
    with another, pytest.raises(BadRequest, match=told):
        listen(request, print)
