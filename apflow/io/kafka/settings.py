"""How to reach Kafka, and what its errors mean to whoever has to act."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaError, KafkaException

from apflow.config_tables import Kafka
from apflow.errors import BadRequest, ServiceError
from apflow.io.kafka.embedded import EMBEDDED, embedded_bootstrap

_log = logging.getLogger("apflow.io.kafka")
#: Two of them must fit into the longest transaction that brokers accept by default, 900 s.
_LONGEST_S = 400.0
_PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")

_CREDENTIALS = {KafkaError._AUTHENTICATION, KafkaError.SASL_AUTHENTICATION_FAILED}
_TLS = {KafkaError._SSL}
_NO_TOPIC = {KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION}
_FORBIDDEN = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
}
_NO_TRANSACTIONS = {KafkaError._UNSUPPORTED_FEATURE, KafkaError.UNSUPPORTED_VERSION, KafkaError._NOT_IMPLEMENTED}
_REPLACED = {KafkaError._FENCED, KafkaError.INVALID_PRODUCER_EPOCH, KafkaError.PRODUCER_FENCED}
#: Errors that waiting does not mend.
_LASTING = _CREDENTIALS | _TLS | _FORBIDDEN


def client_settings(kafka: Kafka, **more: Any) -> dict[str, Any]:
    """Settings of a librdkafka client; read now, with the password in them: not to be kept, shown or sent.

    Raises
    ------
    BadRequest
        A setting is missing or not accepted, or a file cannot be read.
    """
    if not kafka.bootstrap:
        raise BadRequest("kafka.bootstrap is empty; accepted: host:port, comma separated, or 'embedded'")
    if kafka.security_protocol not in _PROTOCOLS:
        raise BadRequest(
            f"kafka.security_protocol {kafka.security_protocol!r} is not accepted: {', '.join(_PROTOCOLS)}"
        )
    if not 0 < kafka.delivery_timeout_s <= _LONGEST_S:
        raise BadRequest(f"kafka.delivery_timeout_s {kafka.delivery_timeout_s:g} is not accepted: up to {_LONGEST_S:g}")
    settings: dict[str, Any] = {
        "bootstrap.servers": embedded_bootstrap() if kafka.bootstrap == EMBEDDED else kafka.bootstrap,
        "client.id": "apflow",
        "security.protocol": kafka.security_protocol,
        "reconnect.backoff.max.ms": 2000,
        "logger": _log,
    }
    if "SSL" in kafka.security_protocol:
        settings |= _files(kafka)
    if kafka.security_protocol.startswith("SASL"):
        settings |= {
            "sasl.mechanism": kafka.sasl_mechanism,
            "sasl.username": kafka.username,
            "sasl.password": password(kafka.password_file, "kafka.password_file"),
        }
    return settings | {name.replace("_", "."): value for name, value in more.items()}


def _files(kafka: Kafka) -> dict[str, str]:
    files = {
        "ca_file": "ssl.ca.location",
        "certificate_file": "ssl.certificate.location",
        "key_file": "ssl.key.location",
    }
    found = {}
    for key, setting in files.items():
        name = getattr(kafka, key)
        if name and not Path(name).is_file():
            raise BadRequest(f"kafka.{key} {name!r} is not accepted: a file that exists")
        if name:
            found[setting] = name
    return found


def password(name: str, key: str) -> str:
    """First line of a password file.

    Raises
    ------
    BadRequest
        The file cannot be read or is empty; the message holds nothing of it.
    """
    try:
        text = Path(name).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequest(f"{key} {name!r} cannot be read: {type(error).__name__}") from None
    if not text or not text[0]:
        raise BadRequest(f"{key} {name!r} is empty; accepted: the password in its first line")
    return text[0]


def make[C](client: type[C], settings: dict[str, Any], kafka: Kafka) -> C:
    """A librdkafka client.

    Raises
    ------
    BadRequest
        librdkafka refuses the settings.
    """
    try:
        return client(settings)  # type: ignore[call-arg]
    except KafkaException as error:
        raise BadRequest(f"settings of Kafka at {kafka.bootstrap} are not accepted: {error.args[0].str()}") from None


def is_lasting(error: KafkaError | None) -> bool:
    """Whether somebody has to change something before it can work."""
    return error is not None and error.code() in _LASTING


def service_error(
    error: KafkaError, kafka: Kafka, behind: KafkaError | None = None, doing: str = "", topic: str = ""
) -> ServiceError:
    """What went wrong with the broker, named, and what to do about it.

    Parameters
    ----------
    error
        What a call or a delivery report gave.
    kafka
        The settings in use.
    behind
        What the client reported about its connections before, where that is
        known: the reason behind a timeout.
    doing
        What was tried.
    topic
        Where it is not that of the settings.
    """
    topic = topic or kafka.topic
    if behind is not None and error.code() not in _LASTING | _NO_TOPIC | _REPLACED:
        error = behind
    code, user = error.code(), f"user {kafka.username!r}" if kafka.username else "this client"
    if code in _CREDENTIALS:
        what = f"refuses the credentials of {user}; check kafka.username, password_file and sasl_mechanism"
    elif code in _TLS:
        what = "does not complete the TLS handshake; check kafka.ca_file, certificate_file and security_protocol"
    elif code in _NO_TOPIC:
        what = f"has no topic {topic!r} and does not create it; create it, or correct the name"
    elif code in _FORBIDDEN:
        what = f"does not allow it to {user}; grant Describe, Read and Write as needed on topic {topic!r}"
        if kafka.transactional_id:
            what += f", and transactional ids and groups that begin with {kafka.transactional_id!r}"
    elif code in _REPLACED:
        what = "has given this publisher's claim to another one; nothing is to be done"
    elif code in _NO_TRANSACTIONS:
        what = "has no transactions; leave kafka.transactional_id empty for delivery at least once"
    else:
        what = "cannot be reached or does not answer; check that it runs, and kafka.bootstrap"
    return ServiceError(f"Kafka at {kafka.bootstrap}{doing and f', {doing}'}: {what} ({error.name()}: {error.str()})")
