"""A private InfluxDB."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import requests

from apflow.errors import ServiceError
from apflow.operate.services.server import Server

_TIMEOUT_S = 30.0
#: Sections of the configuration, in TOML. Nothing is reported to anybody, or kept about the server itself.
_SETTINGS = """
reporting-disabled = true
bind-address = "127.0.0.1:{rpc_port}"
[meta]
dir = "{folder}/meta"
[data]
dir = "{folder}/data"
wal-dir = "{folder}/wal"
query-log-enabled = false
# Every visit is a tag, and a night has a thousand.
max-values-per-tag = 0
max-series-per-database = 0
[monitor]
store-enabled = false
[http]
bind-address = "127.0.0.1:{port}"
log-enabled = false
"""


class InfluxServer(Server):
    """InfluxDB 1.6 of Debian on loopback, without passwords, with the same ports and data at every start."""

    name: ClassVar[str] = "influxdb"

    @property
    def url(self) -> str:
        """Root of its HTTP API."""
        return f"http://127.0.0.1:{self._port()}"

    def database(self, name: str | None = None) -> str:
        """Make a database if it is not there, by default one of a new name; returns its name."""
        name = name or f"test_{uuid.uuid4().hex}"
        self._ask("POST", "/query", params={"q": f'CREATE DATABASE "{name}"'})
        return name

    def write(self, database: str, lines: Iterable[str]) -> None:
        """Store points, in line protocol with times in nanoseconds.

        Raises
        ------
        ServiceError
            The database did not take them.
        """
        self._ask("POST", "/write", params={"db": database, "precision": "ns"}, data="\n".join(lines).encode())

    def query(self, database: str, text: str) -> list[dict[str, Any]]:
        """Rows that a query of InfluxQL gives, times in nanoseconds of Unix; see `write` for errors."""
        reply = self._ask("GET", "/query", params={"db": database, "q": text, "epoch": "ns"}).json()
        series = [one for result in reply["results"] for one in result.get("series", ())]
        if errors := [result["error"] for result in reply["results"] if "error" in result]:
            raise ServiceError(f"InfluxDB refuses {text}: {errors[0]}")
        return [dict(zip(one["columns"], row, strict=True)) for one in series for row in one["values"]]

    def _ask(self, method: str, path: str, **request: Any) -> requests.Response:
        try:
            response = requests.request(method, self.url + path, timeout=_TIMEOUT_S, **request)
        except requests.RequestException as error:
            raise ServiceError(f"InfluxDB at {self.url} does not answer: {type(error).__name__}") from error
        if not response.ok:
            raise ServiceError(f"InfluxDB at {self.url} answers {response.status_code}: {response.text.strip()}")
        return response

    def _prepare(self) -> None:
        if shutil.which("influxd") is None:
            raise ServiceError("influxd is not on the PATH: install Debian's influxdb")
        settings = _SETTINGS.format(folder=self.folder, port=self._port(), rpc_port=self._port("rpc_port"))
        (self.folder / "influxdb.conf").write_text(settings)

    def _command(self) -> Sequence[str]:
        return ["influxd", "-config", str(self.folder / "influxdb.conf")]

    def _answers(self) -> bool:
        try:
            self._ask("GET", "/ping")
        except ServiceError:
            return False
        return True
