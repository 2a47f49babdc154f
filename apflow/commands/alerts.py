"""``apflow alerts``: look at alerts, check them, send them again."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from apflow.errors import BadRequest

if TYPE_CHECKING:
    import pandas as pd

    from apflow.config import Config
    from apflow.config_tables import Kafka
    from apflow.io.ppdb import Ppdb
    from apflow.operate.alert_list import Which

app = typer.Typer(help="Alerts: list, show, follow, verify, send again, withdraw, export.", no_args_is_help=True)

_Butler = Annotated[str, typer.Option("--butler", help="Butler repository; it names the PPDB and the alert archive.")]
_Ppdb = Annotated[str, typer.Option("--ppdb", help="URL of the PPDB; default: the repository's.")]
_Alerts = Annotated[str, typer.Option("--alerts", help="file:///folder of the archive; default: the repository's.")]
_Night = Annotated[int | None, typer.Option("--night", metavar="YYYYMMDD", help="Only this night.")]
_Visit = Annotated[int | None, typer.Option("--visit", metavar="ID", help="Only this visit.")]
_Detector = Annotated[int | None, typer.Option("--detector", metavar="N", help="Only this detector, by its id.")]
_Id = Annotated[list[int] | None, typer.Option("--id", metavar="ID", help="Only this alert; may be given again.")]
_Object = Annotated[int | None, typer.Option("--object", metavar="ID", help="Only alerts of this DiaObject.")]
_Broker = Annotated[str, typer.Option("--kafka", metavar="HOST:PORT", help="Broker; default: the repository's.")]
_Topic = Annotated[str, typer.Option("--topic", help="Topic; default: the repository's.")]
_Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
_Json = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]
_Ids = Annotated[list[int], typer.Argument(metavar="ID...", help="Ids of alerts.")]


@contextmanager
def _repository(butler: str, ppdb: str = "", alerts: str = "") -> Iterator[tuple[Config, Ppdb]]:
    from apflow.io.ppdb import open_ppdb
    from apflow.operate.repository import repository_config

    config = repository_config(butler, ppdb, alerts)
    with open_ppdb(config.ppdb_url) as database:
        yield config, database


def _kafka(kafka: Kafka, broker: str, topic: str) -> Kafka:
    """Settings of Kafka with those of the command line.

    Raises
    ------
    BadRequest
        Neither names a broker.
    """
    found = dataclasses.replace(kafka, bootstrap=broker or kafka.bootstrap, topic=topic or kafka.topic)
    if not found.bootstrap:
        raise BadRequest("no Kafka: kafka.bootstrap of the repository is empty; give --kafka host:port")
    return found


def _some(database: Ppdb, config: Config, which: Which) -> pd.DataFrame:
    """Alerts, at least one."""
    from apflow.operate.alert_list import list_alerts

    found = list_alerts(database, config, which)
    if found.empty:
        raise BadRequest(f"there are no alerts of {which}; see: apflow alerts ls --butler {config.butler}")
    return found


def _chosen(which: Which) -> Which:
    if which.everything:
        raise BadRequest("say which alerts: --night, --visit, --detector, --id or --object")
    return which


def _agreed(what: str, yes: bool) -> None:
    if not yes and not typer.confirm(what):
        raise typer.Exit(1)


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, datetime):
        return value.isoformat()
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _line(record: dict[str, Any]) -> str:
    return json.dumps(_plain(record))


@app.command("ls")
def ls(
    butler: _Butler,
    night: _Night = None,
    visit: _Visit = None,
    detector: _Detector = None,
    ids: _Id = None,
    object_id: _Object = None,
    limit: Annotated[int, typer.Option(min=1, help="The most to show.")] = 50,
    as_json: _Json = False,
    ppdb: _Ppdb = "",
    alerts: _Alerts = "",
) -> None:
    """List alerts, and what became of them: sent, late, pending, refused or withdrawn.

    Example: apflow alerts ls --butler replay/butler --detector 94
    """
    from apflow.operate.alert_console import open_console, print_listing
    from apflow.operate.alert_list import Which, list_alerts

    with _repository(butler, ppdb, alerts) as (config, database):
        found = list_alerts(database, config, Which(night, visit, detector, tuple(ids or ()), object_id))
    if not as_json:
        print_listing(found, open_console(), limit)
        return
    for record in found.to_dict("records"):
        typer.echo(_line({str(key): value for key, value in record.items()}))


@app.command("show")
def show(
    alert_id: Annotated[int, typer.Argument(metavar="ID", help="Id of the alert; see: apflow alerts ls.")],
    butler: _Butler,
    png: Annotated[Path | None, typer.Option(help="Draw stamps and light curve into this PNG file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The whole packet as JSON, stamps as their sizes.")] = False,
    ppdb: _Ppdb = "",
    alerts: _Alerts = "",
) -> None:
    """Show one alert: its stamps, its light curve and what it says of the source.

    Example: apflow alerts show 168691472163405825 --butler replay/butler --png alert.png
    """
    from apflow.operate.alert_checks import decode
    from apflow.operate.alert_console import open_console, print_alert
    from apflow.operate.alert_list import Which, read_alerts
    from apflow.operate.alert_picture import write_picture

    with _repository(butler, ppdb, alerts) as (config, database):
        found = _some(database, config, Which(alert_ids=(alert_id,)))
    ((datum, definition),) = read_alerts(config, found)
    alert = decode(datum, definition)
    if png is not None:
        write_picture(png, alert)
    if as_json:
        typer.echo(_line(alert))
        return
    print_alert(alert, open_console())
    typer.echo(f"{found['state'].iloc[0]}, {len(datum):,} bytes, {found['file'].iloc[0]} at {found['offset'].iloc[0]}")
    if png is not None:
        typer.echo(f"picture: {png}")


@app.command("tail")
def tail(
    butler: _Butler,
    broker: _Broker = "",
    topic: _Topic = "",
    visit: _Visit = None,
    detector: _Detector = None,
    object_id: _Object = None,
    band: Annotated[str, typer.Option(help="Only this band.")] = "",
    min_snr: Annotated[float, typer.Option(help="Only sources of this S/N and more.")] = 0.0,
    from_start: Annotated[bool, typer.Option("--from-start", help="Begin with the oldest message.")] = False,
    number: Annotated[int, typer.Option("-n", min=1, help="End after so many alerts.")] = 2**31,
    idle: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="End when none came for so long.")] = math.inf,
    as_json: _Json = False,
) -> None:
    """Follow the alerts of a Kafka topic.

    Example: apflow alerts tail --butler replay/butler --from-start --min-snr 20 --idle 5
    """
    from apflow.operate.alert_tail import Filter, line, tail_alerts
    from apflow.operate.repository import repository_config

    kafka = _kafka(repository_config(butler).kafka, broker, topic)
    wanted = Filter(visit, detector, object_id, band, min_snr)
    for received, alert in tail_alerts(kafka, wanted, from_start, idle, number):
        typer.echo(_line({"place": received.place, **received.headers, **alert}) if as_json else line(received, alert))


@app.command("verify")
def verify(
    butler: _Butler,
    night: _Night = None,
    visit: _Visit = None,
    detector: _Detector = None,
    ids: _Id = None,
    object_id: _Object = None,
    topic: Annotated[str, typer.Option(help="Read this topic, not the archive.")] = "",
    broker: _Broker = "",
    ppdb: _Ppdb = "",
    alerts: _Alerts = "",
) -> None:
    """Read an archive or a topic again, and check every alert of it.

    Framing, schema, ids, stamps, order of the history, and agreement with the PPDB. Exit code 0 where all is well, 1
    where it is not.

    Example: apflow alerts verify --butler replay/butler
    """
    from apflow.operate.alert_console import open_console, print_report
    from apflow.operate.alert_list import Which
    from apflow.operate.alert_tail import read_topic
    from apflow.operate.alert_verify import verify_archive, verify_topic

    which = Which(night, visit, detector, tuple(ids or ()), object_id)
    with _repository(butler, ppdb, alerts) as (config, database):
        if topic:
            config = dataclasses.replace(config, kafka=_kafka(config.kafka, broker, topic))
            report = verify_topic(database, config, which, read_topic(config.kafka))
        else:
            report = verify_archive(database, config, which)
    print_report(report, open_console())
    raise typer.Exit(0 if report.fine else 1)


@app.command("resend")
def resend(
    butler: _Butler,
    night: _Night = None,
    visit: _Visit = None,
    detector: _Detector = None,
    ids: _Id = None,
    object_id: _Object = None,
    broker: _Broker = "",
    topic: _Topic = "",
    yes: _Yes = False,
    ppdb: _Ppdb = "",
    alerts: _Alerts = "",
) -> None:
    """Send alerts to Kafka again, byte for byte, with the header resent=1.

    Example: apflow alerts resend --butler replay/butler --visit 2025042000001 --detector 94 --kafka localhost:9092
    """
    from apflow.io.kafka.sinks import open_sink
    from apflow.operate.alert_list import Which
    from apflow.operate.alert_resend import resend as send
    from apflow.operate.alert_resend import resendable

    which = _chosen(Which(night, visit, detector, tuple(ids or ()), object_id))
    with _repository(butler, ppdb, alerts) as (config, database):
        found = resendable(_some(database, config, which))
    kafka = _kafka(config.kafka, broker, topic)
    if not found.empty:
        _agreed(f"send {len(found):,} alerts ({which}) again to topic {kafka.topic} at {kafka.bootstrap}?", yes)
    count = send(found, open_sink(kafka, config.packets.schema_version), config)
    typer.echo(f"{count:,} alerts sent again")


@app.command("withdraw")
def withdraw(ids: _Ids, butler: _Butler, yes: _Yes = False, ppdb: _Ppdb = "", alerts: _Alerts = "") -> None:
    """Withdraw DiaSources: timeWithdrawnMjdTai is set, and what is not sent yet is not sent any more.

    Example: apflow alerts withdraw 168691472163405825 --butler replay/butler
    """
    from apflow.operate.alert_list import Which
    from apflow.operate.alert_resend import withdraw as take_back

    with _repository(butler, ppdb, alerts) as (config, database):
        found = _some(database, config, Which(alert_ids=tuple(ids)))
        sent = int(found["state"].isin(["sent", "late"]).sum())
        _agreed(f"withdraw {len(found):,} DiaSources, {sent:,} of them with alerts that are out already?", yes)
        count = take_back(found, database)
    typer.echo(f"{count:,} DiaSources withdrawn" + ("" if count == len(found) else "; the others were before"))


@app.command("export")
def export(
    butler: _Butler,
    out: Annotated[Path, typer.Option(help="Folder of the files.")],
    night: _Night = None,
    visit: _Visit = None,
    detector: _Detector = None,
    ids: _Id = None,
    object_id: _Object = None,
    kinds: Annotated[str, typer.Option("--as", help="Comma list of avro, parquet and fits.")] = "avro,parquet,fits",
    ppdb: _Ppdb = "",
    alerts: _Alerts = "",
) -> None:
    """Write alerts as files: Avro, one alert each; their DiaSources as one Parquet table; their stamps as FITS.

    Example: apflow alerts export --butler replay/butler --detector 94 --out exported
    """
    from apflow.operate.alert_export import export_alerts
    from apflow.operate.alert_list import Which

    which = _chosen(Which(night, visit, detector, tuple(ids or ()), object_id))
    with _repository(butler, ppdb, alerts) as (config, database):
        found = _some(database, config, which)
        wanted = tuple(part.strip() for part in kinds.split(","))
        for told in export_alerts(out, found, wanted, database, config):
            typer.echo(f"{out}: {told}")
