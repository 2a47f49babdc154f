"""A private schema registry."""

from __future__ import annotations

import urllib.request
from collections.abc import Sequence
from typing import ClassVar

from apflow.operate.services.java import archives, java
from apflow.operate.services.server import Server


class SchemaRegistry(Server):
    """Apicurio Registry, which speaks the API of Confluent's.

    Its schemas are in memory: they go when it stops. It gives ids of its own:
    mode ``IMPORT``, in which a client chooses the id, is refused with 404.
    """

    name: ClassVar[str] = "registry"
    start_timeout_s: ClassVar[float] = 180.0

    @property
    def url(self) -> str:
        """Root of the Confluent-compatible API."""
        return f"http://127.0.0.1:{self._port()}/apis/ccompat/v7"

    def _prepare(self) -> None:
        archives("registry")

    def _command(self) -> Sequence[str]:
        (program,) = archives("registry").glob("*-runner.jar")
        options = ["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        settings = {"quarkus.http.host": "127.0.0.1", "quarkus.http.port": self._port()}
        return [java(), *options, *(f"-D{key}={value}" for key, value in settings.items()), "-jar", str(program)]

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/subjects", timeout=2):
                return True
        except OSError:
            return False
