"""Measurements to send, processes that send them, and what InfluxDB has of them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apflow.config import Config, config_from
from apflow.model.metrics import Measurement

if TYPE_CHECKING:  # the processes below would import them for nothing
    from apflow.operate.services import InfluxServer
    from apflow.operate.services.sasquatch import SasquatchProxy

#: 2025-04-20T08:00:00 TAI, 37 s before that hour of UTC.
MJD = 60785.0 + 8 / 24
UNIX_S = 1745135963

#: A process that measures for each visit it is told of, and ends; the rest of its code follows.
CHILD = """
import sys
from pathlib import Path
from apflow.config import load_config
from apflow.io.sasquatch import flush, send_later
from tests.io.measured import measurement
config = load_config(sys.argv[1])
for visit in sys.argv[2:]:
    send_later([measurement(visit=int(visit))], config)
"""


def measurement(
    values: Mapping[str, float | None] | None = None, *, visit: int = 1, detector: int = 94, action: str = "calibrate"
) -> Measurement:
    """One whose value ``x`` is the visit, if it is not given values."""
    where = {"instrument": "LSSTCam", "visit": visit, "detector": detector, "band": "r"}
    return Measurement(action, values or {"x": float(visit)}, where, MJD + visit / 1440)


def config_for(proxy: SasquatchProxy, butler: Path, token: str | None = None, **settings: Any) -> Config:
    """A configuration whose spool is in `butler`; there is also a file of it."""
    (butler / "token").write_text(f"{token or proxy.token}\n")
    config = {"butler": str(butler), "sasquatch": {"url": proxy.url, "token_file": str(butler / "token"), **settings}}
    lines = [f'butler = "{butler}"', "[sasquatch]", f'url = "{proxy.url}"', f'token_file = "{butler}/token"']
    (butler / "apflow.toml").write_text("\n".join(lines))
    return config_from(config)


def child(butler: Path, visits: Iterable[int], then: str = "") -> subprocess.Popen[str]:
    """Start a process that measures `visits`."""
    arguments = [str(butler / "apflow.toml"), *map(str, visits)]
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", CHILD + then, *arguments], cwd=root, stderr=subprocess.PIPE, text=True
    )


def points(influxdb: InfluxServer, proxy: SasquatchProxy, action: str = "calibrate") -> list[dict[str, Any]]:
    """What InfluxDB has of an action, in order of time."""
    return influxdb.query(proxy.database, f'SELECT * FROM "lsst.prompt.{action}"')


def spooled(butler: Path) -> list[Path]:
    """Files that wait."""
    return sorted((butler / "sasquatch-spool").glob("*.json"))


def produced(proxy: SasquatchProxy) -> list[list[str]]:
    """Visits of the points of each request that made some, in order."""
    requests = [asked.points for asked in proxy.asked if asked.points]
    return [
        [tag[6:] for point in made for tag in point.split(" ")[0].split(",") if tag[:6] == "visit="]
        for made in requests
    ]


def wait_until(holds: Callable[[], bool], what: str) -> None:
    """Wait for it, half a minute at most."""
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline, f"not within 30 s: {what}"
        time.sleep(0.01)
