"""A private Cassandra for tests that are asked for by name: `tests/io/by_hand_cassandra.py`."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import yaml

from apflow.errors import ServiceError
from apflow.operate.services.java import cache, java
from apflow.operate.services.server import Server

VERSION = "5.0.5"
_POM = """<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
<groupId>apflow</groupId><artifactId>cassandra</artifactId><version>1</version><packaging>pom</packaging>
<dependencies><dependency><groupId>org.apache.cassandra</groupId><artifactId>cassandra-all</artifactId>
<version>{version}</version></dependency></dependencies></project>
"""
#: What Cassandra's own conf/jvm17-server.options opens, as far as a single node needs it.
_EXPORTS = (
    *("java.base/jdk.internal.misc", "java.base/jdk.internal.ref", "java.base/sun.nio.ch", "java.sql/java.sql"),
    *("java.management.rmi/com.sun.jmx.remote.internal.rmi", "java.rmi/sun.rmi.registry", "java.rmi/sun.rmi.server"),
    *("java.rmi/sun.rmi.transport.tcp", "jdk.attach/sun.tools.attach"),
)
_OPENS = (
    *("java.base/java.io", "java.base/java.lang", "java.base/java.lang.module", "java.base/java.lang.reflect"),
    *("java.base/java.net", "java.base/java.nio", "java.base/java.util", "java.base/java.util.concurrent"),
    *("java.base/java.util.concurrent.atomic", "java.base/jdk.internal.loader", "java.base/jdk.internal.math"),
    *("java.base/jdk.internal.module", "java.base/jdk.internal.ref", "java.base/jdk.internal.reflect"),
    *("java.base/jdk.internal.util.jar", "java.base/sun.nio.ch", "jdk.management/com.sun.management.internal"),
)


class CassandraNode(Server):
    """One node on loopback with a heap of 512 MB."""

    name: ClassVar[str] = "cassandra"

    @property
    def port(self) -> int:
        """Where clients connect, on 127.0.0.1."""
        return self._port()

    def _prepare(self) -> None:
        storage = self._port("storage_port")
        settings = {
            "cluster_name": "apflow",
            "num_tokens": 1,
            "partitioner": "org.apache.cassandra.dht.Murmur3Partitioner",
            "endpoint_snitch": "SimpleSnitch",
            "seed_provider": [
                {
                    "class_name": "org.apache.cassandra.locator.SimpleSeedProvider",
                    "parameters": [{"seeds": f"127.0.0.1:{storage}"}],
                }
            ],
            "listen_address": "127.0.0.1",
            "rpc_address": "127.0.0.1",
            "storage_port": storage,
            "native_transport_port": self.port,
            "commitlog_sync": "periodic",
            "commitlog_sync_period": "1000ms",
            "disk_access_mode": "standard",
            "memtable_heap_space": "64MiB",
            "memtable_offheap_space": "64MiB",
            "file_cache_size": "32MiB",
        }
        (self.folder / "cassandra.yaml").write_text(yaml.dump(settings))

    def _command(self) -> Sequence[str]:
        properties = {
            "cassandra.config": f"file://{self.folder}/cassandra.yaml",
            "cassandra.storagedir": str(self.folder),
            "cassandra.jmx.local.port": str(self._port("jmx_port")),
            "cassandra.skip_wait_for_gossip_to_settle": "0",
            "cassandra.ring_delay_ms": "100",
        }
        return [
            *(java(), "-Xms512m", "-Xmx512m", "-XX:+UseSerialGC"),
            *(f"--add-exports={package}=ALL-UNNAMED" for package in _EXPORTS),
            *(f"--add-opens={package}=ALL-UNNAMED" for package in _OPENS),
            *(f"-D{key}={value}" for key, value in properties.items()),
            *("-cp", f"{_jars()}/*", "org.apache.cassandra.service.CassandraDaemon"),
        ]

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


def _jars() -> Path:
    """Folder of Cassandra's archives, from Maven Central at the first time: 70 MB."""
    folder = cache() / f"cassandra-{VERSION}"
    if folder.exists():
        return folder
    maven = shutil.which("mvn")
    if maven is None:
        raise ServiceError("mvn is not on the PATH: install Debian's maven")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        pom = Path(scratch) / "pom.xml"
        pom.write_text(_POM.format(version=VERSION))
        command = [maven, "-q", "-B", "--strict-checksums", "-f", str(pom), "dependency:copy-dependencies"]
        command += [f"-Dmaven.repo.local={scratch}/maven", f"-DoutputDirectory={scratch}/jars"]
        subprocess.run(command, check=True, capture_output=True, timeout=600)
        (Path(scratch) / "jars").rename(folder)
    return folder
