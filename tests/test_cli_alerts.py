"""``apflow alerts`` on a repository, on its damages, and against a real broker."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import shutil
import struct
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import duckdb
import fastavro
import pandas as pd
import pytest
from astropy.io import fits
from confluent_kafka import Producer
from PIL import Image

from apflow.cli import main
from apflow.config import to_toml
from apflow.config_tables import Kafka
from apflow.io.alerts.archive import open_archive
from apflow.io.alerts.publish import publish
from apflow.io.kafka.sinks import open_sink
from apflow.io.ppdb import open_ppdb
from apflow.operate.repository import repository_config
from apflow.operate.services import KafkaBroker, PostgresServer
from tests.alerts_night import EACH, NIGHT, VISITS, make_repository
from tests.operate.command import APFLOW

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session")
def night(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository that tests look at and leave as it is."""
    folder = tmp_path_factory.mktemp("alerts") / "repository"
    make_repository(folder)
    return folder


@pytest.fixture
def own(night: Path, tmp_path: Path) -> Path:
    """A repository for one test alone."""
    return Path(shutil.copytree(night, tmp_path / "own"))


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """``apflow alerts`` in this process: exit code, output and errors."""

    def run_it(command: str, butler: Path, *more: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main(["alerts", command, "--butler", str(butler), *map(str, more)])
        assert isinstance(end.value.code, int)
        return end.value.code, *capfd.readouterr()

    return run_it


def listed(run: Run, butler: Path, *more: object) -> list[dict[str, object]]:
    code, out, error = run("ls", butler, "--json", *more)
    assert (code, error) == (0, "")
    return [json.loads(line) for line in out.splitlines()]


def an_id(run: Run, butler: Path, *states: str) -> int:
    """An alert in one of these states; by default one that is out, on a slow machine late."""
    wanted = states or ("sent", "late")
    return next(int(str(a["alert_id"])) for a in listed(run, butler) if a["state"] in wanted)


def test_ls_tells_what_became_of_each_alert(night: Path, run: Run):
    states = pd.DataFrame(listed(run, night)).groupby(["visit", "detector"])["state"].agg(lambda s: sorted(set(s)))
    assert states.to_dict() == {
        (VISITS[0], 0): ["late"],
        (VISITS[0], 1): ["late"],
        (VISITS[1], 0): ["sent"],
        (VISITS[1], 1): ["pending"],
    }
    code, out, _ = run("ls", night, "--limit", 3)
    assert code == 0
    assert out.splitlines()[-1] == "40 alerts: 20 late, 10 sent, 10 pending; the first 3 are shown, see --limit"
    assert len(out.splitlines()) == 5


@pytest.mark.parametrize(
    ("words", "n"),
    [
        ("--night 20250420", 4 * EACH),
        (f"--visit {VISITS[1]}", 2 * EACH),
        ("--detector 1", 2 * EACH),
        (f"--visit {VISITS[1]} --detector 1 --night 20250420", EACH),
        (f"--visit {VISITS[1] + 5}", 0),
    ],
)
def test_ls_filters(night: Path, run: Run, words: str, n: int):
    found = listed(run, night, *words.split())
    assert len(found) == n
    asked = dict(zip(words.split()[::2], words.split()[1::2], strict=True))
    assert all(a[key[2:]] == int(value) for a in found for key, value in asked.items() if key != "--night")


def test_ls_by_object_and_by_id(night: Path, run: Run):
    alert = listed(run, night, "--visit", VISITS[1])[0]
    of_object = listed(run, night, "--object", alert["object_id"])
    assert [a["visit"] for a in of_object] == list(VISITS)
    assert listed(run, night, "--id", alert["alert_id"]) == [alert]


def test_show_tells_the_facts_and_draws(night: Path, run: Run, tmp_path: Path):
    alert = listed(run, night, "--visit", VISITS[1])[0]
    code, out, _ = run("show", night, alert["alert_id"], "--png", tmp_path / "alert.png")
    assert code == 0
    assert f"alert {alert['alert_id']}   DiaObject {alert['object_id']}" in out
    assert "history     1 detected, 2 forced" in out
    assert "first seen  14.4 min before" in out
    assert f"{round(float(str(alert['psfFlux']))):,} ± 50 nJy" in out
    with Image.open(tmp_path / "alert.png") as picture:
        assert picture.format == "PNG" and picture.width > 800


def test_show_json_is_the_whole_packet(night: Path, run: Run):
    alert = an_id(run, night)
    record = json.loads(run("show", night, alert, "--json")[1])
    assert record["diaSourceId"] == record["diaSource"]["diaSourceId"] == alert
    assert record["cutoutScience"] > 10_000 and record["ssSource"] is None


def test_verify_finds_a_sound_archive_sound(night: Path, run: Run):
    code, out, _ = run("verify", night)
    assert code == 0
    counts = {words[0]: words[1:3] for line in out.splitlines()[1:8] if (words := line.split())}
    checks = ("framing", "schema", "ids", "stamps", "history", "values", "once")
    assert counts == {name: ["40", "0"] for name in checks}


def test_a_repository_on_postgresql(tmp_path: Path, run: Run, postgres: PostgresServer):
    make_repository(tmp_path / "repository", postgres.database())
    found = listed(run, tmp_path / "repository", "--visit", VISITS[1], "--detector", 0)
    assert len(found) == EACH and {a["state"] for a in found} == {"sent"}
    assert run("withdraw", tmp_path / "repository", found[0]["alert_id"], "--yes")[:2] == (
        0,
        "1 DiaSources withdrawn\n",
    )
    assert listed(run, tmp_path / "repository", "--id", found[0]["alert_id"])[0]["state"] == "withdrawn"
    code, out, _ = run("verify", tmp_path / "repository")
    assert code == 0, out


def test_alerts_of_an_earlier_schema_are_read_by_their_own(own: Path, run: Run):
    config = repository_config(str(own))
    settings = dataclasses.replace(config.packets, schema_version="11.0")
    (own / "apflow.toml").write_text(to_toml(dataclasses.replace(config, packets=settings)))
    assert run("verify", own)[0] == 0
    assert run("show", own, an_id(run, own))[0] == 0


def test_verify_finds_a_changed_byte(own: Path, run: Run):
    alert = listed(run, own)[12]
    path = own / "alerts" / str(alert["file"])
    data = bytearray(path.read_bytes())
    data[int(str(alert["offset"])) + 2000] ^= 1
    path.write_bytes(data)
    code, out, _ = run("verify", own)
    assert code == 1
    assert re.search(r"^framing +40 +1 ", out, re.M)
    assert f"framing: alert {alert['alert_id']}: the {alert['length']} bytes at {alert['offset']}" in out
    code, _, error = run("show", own, alert["alert_id"])
    assert code == 65 and str(alert["alert_id"]) in error


def test_verify_finds_a_file_that_is_gone(own: Path, run: Run):
    (path,) = (own / "alerts").glob("*/*.avro")
    path.unlink()
    code, out, _ = run("verify", own)
    assert code == 1 and f"{path.name}: No such file" in out


@pytest.mark.parametrize(
    ("sql", "told"),
    [
        ('UPDATE "DiaSource" SET "psfFlux" = 1.5 WHERE rowid = 7', "values: alert {}: psfFlux is "),
        ("DELETE FROM outbox WHERE rowid = 7", "once: DiaSource {} has no alert in the outbox"),
        ('DELETE FROM "DiaSource" WHERE rowid = 7', "values: alert {}: no such DiaSource"),
    ],
)
def test_verify_finds_what_the_ppdb_has_otherwise(own: Path, run: Run, sql: str, told: str):
    table = re.search(r'(outbox|"DiaSource")', sql)
    assert table
    key = "alert_id" if table[0] == "outbox" else '"diaSourceId"'
    with duckdb.connect(str(own / "ppdb.duckdb")) as con:
        (row,) = con.sql(f"SELECT {key} FROM {table[0]} WHERE rowid = 7").fetchall()
        con.execute(sql)
    code, out, _ = run("verify", own)
    assert code == 1
    assert told.format(row[0]) in out


def test_packets_that_were_never_announced_are_told_of_and_no_problem(own: Path, run: Run):
    config = repository_config(str(own))
    archive = open_archive(config.alerts_url)
    with open_ppdb(config.ppdb_url) as ppdb:
        row = ppdb.pendingAlerts(1)[0]
    from apflow.model.products import Packet

    archive.append([Packet(row.alert_id, row.object_id, archive.read(row))], row.visit, row.detector, NIGHT)
    archive.close()
    code, out, _ = run("verify", own)
    assert code == 0 and "1 further packets of the archive were never announced" in out


def test_export_writes_what_others_open(night: Path, run: Run, tmp_path: Path):
    alert = listed(run, night, "--detector", 1)[0]
    code, out, _ = run("export", night, "--visit", VISITS[0], "--detector", 1, "--out", tmp_path)
    assert code == 0 and f"{EACH} avro files" in out and f"{3 * EACH} fits files" in out
    with (tmp_path / f"{alert['alert_id']}.avro").open("rb") as file:
        (record,) = fastavro.reader(file)
    assert record["diaSourceId"] == alert["alert_id"]
    for name, key in (("science", "cutoutScience"), ("template", "cutoutTemplate")):
        data = (tmp_path / f"{alert['alert_id']}_{name}.fits").read_bytes()
        assert data == record[key] and fits.getdata(io.BytesIO(data)).shape == (30, 30)
    assert len(pd.read_parquet(tmp_path / "diasources.parquet")) == EACH


def test_withdrawn_alerts_are_marked_and_not_sent_any_more(own: Path, run: Run):
    pending, sent = an_id(run, own, "pending"), an_id(run, own)
    code, out, _ = run("withdraw", own, pending, sent, "--yes")
    assert (code, out) == (0, "2 DiaSources withdrawn\n")
    assert [a["state"] for a in listed(run, own, "--id", pending, "--id", sent)] == ["withdrawn"] * 2
    config = repository_config(str(own))
    with open_ppdb(config.ppdb_url) as ppdb:
        assert pending not in [r.alert_id for r in ppdb.pendingAlerts()]
    assert run("withdraw", own, pending, "--yes")[1] == "0 DiaSources withdrawn; the others were before\n"
    assert run("verify", own)[0] == 0


def test_nothing_is_withdrawn_without_a_yes(own: Path, run: Run):
    alert = an_id(run, own)
    command = [APFLOW, "alerts", "withdraw", str(alert), "--butler", str(own)]
    ended = subprocess.run(command, input="n\n", capture_output=True, text=True, timeout=60)
    assert (
        ended.returncode == 1 and "withdraw 1 DiaSources, 1 of them with alerts that are out already?" in ended.stdout
    )
    assert an_id(run, own) == alert


@pytest.mark.parametrize(
    ("command", "words", "told"),
    [
        ("ls", ["--night", "20300101"], "no night 20300101; accepted: 20250420"),
        ("ls", ["--night", "20250420", "--visit", "2030010100001"], "visit 2030010100001 is not of night 20250420"),
        ("ls", ["--id", "77"], "alert 77 is not known to the PPDB"),
        ("show", ["77"], "alert 77 is not known to the PPDB"),
        ("show", ["seven"], "Invalid value for 'ID': Input should be a valid integer"),
        ("verify", ["--night", "20300101"], "no night 20300101"),
        ("verify", ["--topic", "alerts"], "kafka.bootstrap of the repository is empty"),
        ("tail", [], "kafka.bootstrap of the repository is empty"),
        ("resend", ["--detector", "1", "--yes"], "kafka.bootstrap of the repository is empty"),
        ("resend", ["--yes"], "say which alerts"),
        ("resend", ["--visit", "2025042000999"], "there are no alerts of visit 2025042000999"),
        ("withdraw", ["77", "--yes"], "alert 77 is not known to the PPDB"),
        ("export", ["--out", "x"], "say which alerts"),
        ("export", ["--out", "x", "--detector", "5"], "there are no alerts of detector 5"),
        ("export", ["--out", "x", "--detector", "1", "--as", "avro,csv"], "'csv' is not accepted: avro, parquet, fits"),
        ("export", ["--out", "/dev/null", "--detector", "1"], "it is a file; give a folder"),
        ("ls", ["--ppdb", "duckdb:///nowhere/x.duckdb"], "there is no folder /nowhere"),
        ("ls", ["--alerts", "s3://bucket"], "'s3://bucket' is not accepted"),
    ],
)
def test_bad_input_is_named_in_one_line(night: Path, run: Run, command: str, words: Sequence[str], told: str):
    code, _, error = run(command, night, *words)
    assert code == 2
    assert error.startswith("error: ") and error.count("\n") == 1
    assert told in error


def test_a_folder_that_is_no_repository_is_refused(tmp_path: Path, run: Run):
    code, _, error = run("ls", tmp_path)
    assert code == 2 and "no Butler repository of apflow" in error


@pytest.mark.parametrize("command", ["ls", "show", "tail", "verify", "resend", "withdraw", "export"])
def test_help_has_an_example(capfd: pytest.CaptureFixture[str], command: str):
    with pytest.raises(SystemExit) as end:
        main(["alerts", command, "--help"])
    assert end.value.code == 0
    assert f"Example: apflow alerts {command}" in " ".join(capfd.readouterr().out.split())


@pytest.fixture
def topic(kafka_broker: KafkaBroker, request: pytest.FixtureRequest) -> str:
    return kafka_broker.create_topic(re.sub(r"\W+", "-", request.node.name), partitions=3)


def send_pending(butler: Path, broker: KafkaBroker, topic: str) -> int:
    """Everything goes to the broker, that which went to the archive too."""
    config = repository_config(str(butler))
    kafka = Kafka(bootstrap=broker.bootstrap, topic=topic)
    with duckdb.connect(str(butler / "ppdb.duckdb")) as con:
        con.execute("UPDATE outbox SET published_unix = NULL")
    with open_ppdb(config.ppdb_url) as ppdb:
        return publish(ppdb, open_archive(config.alerts_url), open_sink(kafka, "11.1"))


def test_topic_is_verified_followed_and_sent_to_again(own: Path, run: Run, kafka_broker: KafkaBroker, topic: str):
    assert send_pending(own, kafka_broker, topic) == 4 * EACH
    there = ["--kafka", kafka_broker.bootstrap, "--topic", topic]
    code, out, _ = run("verify", own, *there)
    assert code == 0 and re.search(r"^once +40 +0 ", out, re.M)

    some = ["tail", own, *there, "--from-start", "--visit", VISITS[1], "--min-snr", 30, "-n", 6]
    lines = [json.loads(line) for line in run(*some, "--json")[1].splitlines()]
    assert len(lines) == 6
    assert all(a["diaSource"]["visit"] == VISITS[1] and a["diaSource"]["snr"] >= 30 for a in lines)
    assert {a["resent"] for a in lines} == {"0"}
    assert all(a["place"].startswith(f"{topic}[") for a in lines)
    assert re.search(rf"visit {VISITS[1]} detector \d  r  S/N [3-6]\d", run(*some)[1])

    alert = an_id(run, own)
    code, out, _ = run("resend", own, *there, "--id", alert, "--yes")
    assert (code, out) == (0, "1 alerts sent again\n")
    everything = run("tail", own, *there, "--from-start", "-n", 4 * EACH + 1, "--json")[1].splitlines()
    copies = [a for line in everything if (a := json.loads(line))["diaSourceId"] == alert]
    assert sorted(a["resent"] for a in copies) == ["0", "1"]
    assert copies[0]["diaSource"] == copies[1]["diaSource"]
    code, out, _ = run("verify", own, *there)
    assert code == 0 and "1 messages are copies of others" in out


def test_strange_messages_of_a_topic_are_named(own: Path, run: Run, kafka_broker: KafkaBroker, topic: str):
    config = repository_config(str(own))
    with open_ppdb(config.ppdb_url) as ppdb:
        row = ppdb.pendingAlerts(1)[0]
    datum = open_archive(config.alerts_url).read(row)
    producer = Producer({"bootstrap.servers": kafka_broker.bootstrap})
    frame = struct.pack(">bi", 0, 1101)
    for value in (b"hello", frame + datum[:-1], frame + datum + b"x", b"\0\0\0\0\1" + datum, frame + datum):
        producer.produce(topic, value, key=b"5", partition=0)
    assert producer.flush(20) == 0
    code, out, _ = run("verify", own, "--kafka", kafka_broker.bootstrap, "--topic", topic, "--visit", row.visit)
    assert code == 1
    problems = {w[0]: int(w[2]) for line in out.splitlines()[1:8] if (w := line.split())}
    assert problems == {"framing": 1, "schema": 3, "ids": 1, "stamps": 0, "history": 0, "values": 0, "once": EACH}
    assert f"{topic}[0]@0: begins with 68656c6c6f" in out
    assert f"ids: alert {row.alert_id}: of object 5 by its key" in out
    assert "schema 1 is not in lsst-alert-packet" in out
