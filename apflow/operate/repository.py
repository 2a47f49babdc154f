"""The configuration of a repository, with what a command line replaces of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from apflow.config import Config, load_config
from apflow.config_tables import Kafka
from apflow.errors import BadRequest
from apflow.io.alerts.archive import archive_root

_KAFKA = "kafka://"


def check_urls(ppdb: str, alerts: str) -> None:
    """Whether the URLs of a PPDB and of alerts, where given, can be used.

    Raises
    ------
    BadRequest
        They cannot.
    """
    scheme, _, path = ppdb.partition("://")
    if scheme == "duckdb":
        if not path.startswith("/"):
            raise BadRequest(f"PPDB {ppdb!r} is not accepted: duckdb:///absolute/path")
        if not Path(path).parent.is_dir():
            raise BadRequest(f"PPDB {ppdb!r}: there is no folder {Path(path).parent}")
    elif ppdb and scheme not in ("postgresql", "dax"):
        shown = f"{scheme}://..." if "@" in ppdb else ppdb  # what comes before an @ may hold a password
        raise BadRequest(
            f"PPDB {shown!r} is not accepted: duckdb:///absolute/path, postgresql://user@host:port/database "
            "or dax:///absolute/path/of/config.yaml"
        )
    if alerts.startswith(_KAFKA):
        _kafka(Kafka(), alerts)
    elif alerts:
        root = archive_root(alerts)
        if root.exists() and not root.is_dir():
            raise BadRequest(f"alert archive {alerts!r}: {root} is not a folder")


def repository_config(butler: str, ppdb: str = "", alerts: str = "", timeout_s: float | None = None) -> Config:
    """The configuration that `apflow init` left in a repository, with a few values replaced.

    Parameters
    ----------
    alerts : `str`
        ``file:///folder`` of the archive, or ``kafka://host:port[,host:port][/topic]`` or ``kafka://embedded`` where
        alerts are sent.
    """
    check_urls(ppdb, alerts)
    path = Path(butler) / "apflow.toml"
    if not path.is_file():
        raise BadRequest(f"no Butler repository of apflow in {butler!r}; make one with: apflow init {butler}")
    config = load_config(path)
    camera = config.camera if "/" not in config.camera else str(Path(butler).resolve() / config.camera)
    timing = config.timing if timeout_s is None else dataclasses.replace(config.timing, image_timeout_s=timeout_s)
    sent = alerts.startswith(_KAFKA)
    return dataclasses.replace(
        config,
        camera=camera,
        butler=str(Path(butler).resolve()),
        ppdb=ppdb or config.ppdb,
        alerts=alerts if alerts and not sent else config.alerts,
        kafka=_kafka(config.kafka, alerts) if sent else config.kafka,
        timing=timing,
    )


def _kafka(settings: Kafka, url: str) -> Kafka:
    brokers, _, topic = url.removeprefix(_KAFKA).partition("/")
    if not brokers or "@" in brokers or "/" in topic:
        raise BadRequest(
            f"alerts {_KAFKA}... are not accepted: kafka://host:port[,host:port][/topic] or kafka://embedded; "
            "user and password_file belong under [kafka] in the configuration"
        )
    return dataclasses.replace(settings, bootstrap=brokers, topic=topic or settings.topic)
