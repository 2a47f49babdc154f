"""Sasquatch's stand-in as a process, with an InfluxDB of its own."""

from __future__ import annotations

import argparse
import secrets
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import requests

from apflow.operate.services.influxdb import InfluxServer
from apflow.operate.services.sasquatch import SasquatchProxy
from apflow.operate.services.server import Server

NAMESPACE = "lsst.prompt"


class SasquatchServer(Server):
    """A `SasquatchProxy` on loopback, with the same ports, token and data at every start."""

    name: ClassVar[str] = "sasquatch"
    quit_signal: ClassVar[signal.Signals] = signal.SIGTERM  # InfluxDB is to end before its folder goes

    @property
    def url(self) -> str:
        """Root of the REST API."""
        return f"http://127.0.0.1:{self._port()}"

    @property
    def token_file(self) -> Path:
        """The token, on one line."""
        return self.folder / "token"

    @property
    def influxdb(self) -> InfluxServer:
        """Where the metrics are, in database ``lsst.prompt``; it runs while this server does."""
        return InfluxServer(self.folder / "influxdb")

    def _prepare(self) -> None:
        if not self.token_file.exists():
            self.token_file.touch(mode=0o600)
            self.token_file.write_text(secrets.token_urlsafe(24) + "\n")

    def _command(self) -> Sequence[str]:
        return [sys.executable, "-m", __name__, str(self.folder), "--port", str(self._port())]

    def _answers(self) -> bool:
        try:
            # Without a token it is refused, which is an answer.
            requests.get(f"{self.url}/v3/clusters", timeout=2)
        except requests.RequestException:
            return False
        return True


def serve(folder: Path, port: int) -> None:
    """Be the server until this process is told to end."""
    end = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: end.set())
    token = (folder / "token").read_text().strip()
    with (
        InfluxServer(folder / "influxdb") as influxdb,
        SasquatchProxy(influxdb, token, influxdb.database(NAMESPACE), NAMESPACE, port),
    ):
        end.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, required=True)
    given = parser.parse_args()
    serve(given.folder, given.port)
