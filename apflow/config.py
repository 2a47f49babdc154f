"""Configuration: frozen dataclasses, read from TOML, unknown keys refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from apflow.config_tables import (
    Alerts,
    Associate,
    Calibrate,
    Calibration,
    Detect,
    Fleet,
    Injection,
    Inputs,
    Invocation,
    Kafka,
    Night,
    Reliability,
    Sasquatch,
    Signature,
    SolarSystem,
    Subtract,
    Timing,
)
from apflow.errors import BadRequest


@dataclass(frozen=True)
class Config:
    """Everything that a run needs to know.

    Attributes
    ----------
    camera : `str`
        Name of a camera or path of its YAML file.
    size : `int` or `None`
        Pixels of cut-out detectors; None for full CCDs.
    butler : `str`
        Root of the Butler repository.
    ppdb : `str`
        ``duckdb:///path``; empty for ppdb.duckdb in the Butler's root.
    alerts : `str`
        ``file:///path`` of the alert archive; empty for alerts/ in the Butler's root.
    """

    #: Tables that decide what comes out.
    PROCESSING: ClassVar = (
        "signature",
        "calibrate",
        "subtract",
        "detect",
        "reliability",
        "injection",
        "solar_system",
        "associate",
        "packets",
    )

    camera: str = "lsstcam"
    size: int | None = None
    butler: str = ""
    ppdb: str = ""
    alerts: str = ""
    timing: Timing = field(default_factory=Timing)
    signature: Signature = field(default_factory=Signature)
    calibrate: Calibrate = field(default_factory=Calibrate)
    subtract: Subtract = field(default_factory=Subtract)
    detect: Detect = field(default_factory=Detect)
    reliability: Reliability = field(default_factory=Reliability)
    injection: Injection = field(default_factory=Injection)
    solar_system: SolarSystem = field(default_factory=SolarSystem)
    associate: Associate = field(default_factory=Associate)
    packets: Alerts = field(default_factory=Alerts)
    kafka: Kafka = field(default_factory=Kafka)
    invocation: Invocation = field(default_factory=Invocation)
    inputs: Inputs = field(default_factory=Inputs)
    calibration: Calibration = field(default_factory=Calibration)
    sasquatch: Sasquatch = field(default_factory=Sasquatch)
    fleet: Fleet = field(default_factory=Fleet)
    night: Night = field(default_factory=Night)

    @property
    def processing_id(self) -> str:
        """Eight hex digits, others where the results may be others.

        Where things are, and how long anybody waits for them, does not count.
        """
        what = {name: dataclasses.asdict(getattr(self, name)) for name in self.PROCESSING}
        text = json.dumps({"camera": Path(self.camera).name, "size": self.size, **what}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    @property
    def ppdb_url(self) -> str:
        """URL of the PPDB, defaults resolved."""
        return self.ppdb or f"duckdb://{Path(self.butler).resolve() / 'ppdb.duckdb'}"

    @property
    def alerts_url(self) -> str:
        """URL of the alert archive, defaults resolved."""
        return self.alerts or f"file://{Path(self.butler).resolve() / 'alerts'}"


def load_config(path: str | Path) -> Config:
    """Read a configuration file.

    Raises
    ------
    BadRequest
        The file is missing or not TOML, or a key is unknown or of a wrong
        type; the message names the key by its full path.
    """
    try:
        tree = tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise BadRequest(f"configuration {path}: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise BadRequest(f"configuration {path}: {error}") from error
    return config_from(tree)


def config_from(tree: Mapping[str, Any]) -> Config:
    """Build a `Config` from nested mappings; see `load_config` for errors."""
    built: Config = _build(Config, tree, "")
    return built


def _build(cls: Any, tree: Mapping[str, Any], path: str) -> Any:
    hints = typing.get_type_hints(cls)
    unknown = set(tree) - set(hints)
    if unknown:
        raise BadRequest(f"unknown configuration key {path}{sorted(unknown)[0]}; accepted: {', '.join(hints)}")
    return cls(**{key: _value(hints[key], value, path + key) for key, value in tree.items()})


def _value(hint: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise BadRequest(f"configuration key {path} is {value!r}; accepted: a table")
        return _build(hint, value, path + ".")
    accepted = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if float in accepted and type(value) is int:
        return float(value)
    if type(value) not in accepted:
        names = " or ".join(getattr(t, "__name__", str(t)) for t in accepted)
        raise BadRequest(f"configuration key {path} is {value!r}; accepted: {names}")
    return value


def to_toml(config: Config) -> str:
    """The configuration as TOML that `load_config` reads back; None is left out."""
    tables: list[str] = []
    lines: list[str] = []
    for key in dataclasses.fields(config):
        value = getattr(config, key.name)
        if dataclasses.is_dataclass(value):
            known = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
            rows = [f"{name} = {_literal(item)}" for name, item in known.items() if item is not None]
            tables.append("\n".join([f"[{key.name}]", *rows]))
        elif value is not None:
            lines.append(f"{key.name} = {_literal(value)}")
    return "\n\n".join(["\n".join(lines), *tables]) + "\n"


def _literal(value: Any) -> str:
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    return str(value).lower() if isinstance(value, bool) else str(value)
