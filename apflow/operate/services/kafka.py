"""A private Kafka broker."""

from __future__ import annotations

import base64
import secrets
import socket
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from apflow.errors import ServiceError
from apflow.operate.services.certificate import self_signed
from apflow.operate.services.java import archives, java
from apflow.operate.services.server import Server

#: Of Rubin's topics of alerts.
PARTITIONS = 45
#: Who may connect with SASL.
USER = "apflow"

SETTINGS = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "PLAINTEXT",
    "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL",
    "auto.create.topics.enable": "false",
    # One node.
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    # One user, who doesn't like to wait.
    "offsets.topic.num.partitions": "1",
    "transaction.state.log.num.partitions": "1",
    "group.initial.rebalance.delay.ms": "0",
    "broker.heartbeat.interval.ms": "500",
    "broker.session.timeout.ms": "3000",  # a broker that was killed is taken back only after this
    "log.retention.check.interval.ms": "1000",
    "log.segment.delete.delay.ms": "1000",
    # A small machine.
    "num.network.threads": "2",
    "num.io.threads": "4",
    "log.cleaner.dedupe.buffer.size": "8388608",
}


class KafkaBroker(Server):
    """Apache Kafka as one KRaft node, on loopback, with the same ports and data at every start.

    Parameters
    ----------
    folder : `pathlib.Path`, optional
        See `apflow.operate.services.server.Server`.
    sasl : `bool`, optional
        Listen also with SASL/SCRAM-SHA-512 over TLS; see `sasl_bootstrap`.
    settings : `~collections.abc.Mapping`, optional
        Broker settings in Kafka's spelling, over ours.
    """

    name: ClassVar[str] = "kafka"
    start_timeout_s: ClassVar[float] = 180.0

    def __init__(
        self, folder: Path | None = None, *, sasl: bool = False, settings: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(folder)
        self.sasl = sasl
        self.settings = dict(settings or {})

    @property
    def bootstrap(self) -> str:
        """``host:port`` for clients without TLS and password."""
        return f"127.0.0.1:{self._port()}"

    @property
    def sasl_bootstrap(self) -> str:
        """``host:port`` for clients with SASL_SSL and SCRAM-SHA-512, as `username`."""
        return f"localhost:{self._port('sasl_port')}"

    @property
    def username(self) -> str:
        """User of `sasl_bootstrap`."""
        return USER

    @property
    def password_file(self) -> Path:
        """The user's password, on one line."""
        return self.folder / "password"

    @property
    def certificate(self) -> Path:
        """The server's certificate, which is its own authority."""
        return self.folder / "server.crt"

    def admin(self) -> AdminClient:
        """A client for topics and settings; keep it until its futures are done."""
        return AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0})

    def create_topic(self, name: str, partitions: int = PARTITIONS, **config: object) -> str:
        """Make a topic; `config` in Kafka's spelling with ``_`` for ``.``. Returns its name."""
        settings = {key.replace("_", "."): str(value) for key, value in config.items()}
        new = NewTopic(name, num_partitions=partitions, replication_factor=1, config=settings)
        admin = self.admin()
        try:
            admin.create_topics([new])[name].result(timeout=30)
        except KafkaException as error:
            raise ServiceError(f"topic {name} could not be made at {self.bootstrap}: {error.args[0].str()}") from error
        return name

    def _prepare(self) -> None:
        new = not (self.folder / "data" / "meta.properties").exists()
        if new and self.sasl:
            certificate, key = self_signed(self.folder)
            (self.folder / "keystore.pem").touch(mode=0o600)
            (self.folder / "keystore.pem").write_text(key.read_text() + certificate.read_text())
            self.password_file.touch(mode=0o600)
            self.password_file.write_text(secrets.token_urlsafe(24) + "\n")
        properties = "".join(f"{key}={value}\n" for key, value in self._properties().items())
        (self.folder / "server.properties").write_text(properties)
        if new:
            self._format()

    def _format(self) -> None:
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        properties = str(self.folder / "server.properties")
        options = ["format", "--standalone", f"--cluster-id={cluster}", "--config", properties]
        if self.sasl:
            password = self.password_file.read_text().strip()
            options += ["--add-scram", f"SCRAM-SHA-512=[name={USER},password={password}]"]
        made = subprocess.run(self._java("kafka.tools.StorageTool", *options), capture_output=True, text=True)
        if made.returncode:
            raise ServiceError(f"Kafka's storage could not be made in {self.folder}: {made.stderr.strip()[-500:]}")

    def _properties(self) -> dict[str, str]:
        controller = f"127.0.0.1:{self._port('controller_port')}"
        listeners = [f"PLAINTEXT://{self.bootstrap}", f"CONTROLLER://{controller}"]
        properties = SETTINGS | {
            "log.dirs": str(self.folder / "data"),
            "controller.quorum.bootstrap.servers": controller,
        }
        if self.sasl:
            listeners.append(f"SASL_SSL://{self.sasl_bootstrap}")
            mechanism = "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config"
            properties |= {
                "sasl.enabled.mechanisms": "SCRAM-SHA-512",
                mechanism: "org.apache.kafka.common.security.scram.ScramLoginModule required;",
                "ssl.keystore.type": "PEM",
                "ssl.keystore.location": str(self.folder / "keystore.pem"),
            }
        return properties | {"listeners": ",".join(listeners)} | self.settings

    def _command(self) -> Sequence[str]:
        return self._java("kafka.Kafka", str(self.folder / "server.properties"))

    def _java(self, program: str, *arguments: str) -> list[str]:
        options = ["-Xmx512m", "-XX:+UseSerialGC", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"]
        return [java(), *options, "-cp", str(archives("kafka") / "*"), program, *arguments]

    def _answers(self) -> bool:
        try:
            # Before the first packet is answered, a client would complain to the terminal.
            socket.create_connection(("127.0.0.1", self._port()), timeout=1).close()
            return len(self.admin().list_topics(timeout=2).brokers) > 0
        except (OSError, KafkaException):
            return False
