"""What the doctor asks of services: PPDB, Kafka, registry, Sasquatch, the cluster that is running."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer

from apflow.config import Config
from apflow.config_tables import Kafka
from apflow.errors import ApflowError, BadRequest
from apflow.io.alerts.schema import registry_id
from apflow.io.kafka.registry import Registry
from apflow.io.kafka.settings import client_settings, make, service_error
from apflow.io.kafka.topics import partitions
from apflow.io.ppdb import open_ppdb
from apflow.io.ppdb.operations_check import check
from apflow.io.sasquatch.rest import Proxy
from apflow.operate.night.finding import Finding, failure, fine, warning

#: The check reads whole tables: of a larger PPDB it takes longer than somebody waits for a doctor.
_CHECK_BYTES = 2e9
#: Nobody waits for a broker longer at the begin of a night.
_ANSWER_S = 5.0
#: Between the clocks of workers and of this machine.
_CLOCK_S = 0.5


def check_services(config: Config) -> Iterator[Finding]:
    """Look at every service that the configuration names."""
    yield from _ppdb(config)
    yield from _kafka(config)
    yield _sasquatch(config)


def _ppdb(config: Config) -> Iterator[Finding]:
    url = config.ppdb_url
    shown = url if "@" not in url else f"{url.partition('://')[0]}://...@{url.rpartition('@')[2]}"
    try:
        with open_ppdb(url) as ppdb:
            size = sum(ppdb.sizes().values())
            pending = len(ppdb.pendingAlerts(limit=1))
            wrong = check(ppdb) if size <= _CHECK_BYTES else None
    except BadRequest as error:
        remedy = "give the right --ppdb or configuration ppdb; one of an earlier version: apflow ppdb migrate"
        yield failure("PPDB", str(error), remedy)
        return
    except ApflowError as error:
        yield failure("PPDB", str(error), "start the server, or end the program that holds the file")
        return
    yield fine("PPDB", f"{shown} answers, {size / 1e6:.0f} MB, of this schema version")
    if pending:
        yield warning("outbox", "alerts wait to be published", "apflow alerts resend, or begin: a night sends them")
    if wrong is None:
        yield fine("PPDB check", "left out: it reads whole tables; run it by day: apflow ppdb check")
    elif wrong:
        text = "; ".join(f"{v.invariant}: {v.count} rows" for v in wrong[:3])
        yield failure("PPDB check", text, f"{wrong[0].remedy}; all of it: apflow ppdb check")
    else:
        yield fine("PPDB check", "every invariant holds")


def _kafka(config: Config) -> Iterator[Finding]:
    kafka = config.kafka
    if not kafka.bootstrap:
        yield warning("Kafka", "no broker: alerts are kept in the archive alone", "give --kafka or kafka.bootstrap")
        return
    try:
        yield _topic(kafka)
    except ApflowError as error:
        yield failure("Kafka", str(error), "start the broker or correct [kafka]; a night keeps alerts until it is back")
    if not kafka.registry:
        return
    wanted = registry_id(config.packets.schema_version)
    try:
        there = Registry(kafka).find(wanted) is not None
    except ApflowError as error:
        yield failure("schema registry", str(error), "start the registry or correct kafka.registry")
        return
    state = "is registered" if there else "is not registered yet: a night does that when it begins"
    yield fine("schema registry", f"{kafka.registry} answers; schema {wanted} {state}")


def _topic(kafka: Kafka) -> Finding:
    behind: list[KafkaError] = []
    producer = make(Producer, client_settings(kafka) | {"error_cb": behind.append, "log_level": 0}, kafka)
    try:
        found = partitions(producer, kafka.topic, lambda: behind[-1] if behind else None, _ANSWER_S)
    except KafkaException as error:
        raise service_error(error.args[0], kafka, behind[-1] if behind else None) from None
    return fine("Kafka", f"{kafka.bootstrap} answers; topic {kafka.topic} has {len(found)} partitions")


def _sasquatch(config: Config) -> Finding:
    url = config.sasquatch.url
    if not url:
        return fine("Sasquatch", "not configured: metrics are kept in the Butler alone")
    proxy = Proxy(config.sasquatch)
    try:
        cluster = proxy.cluster()
    except ApflowError as error:
        return warning("Sasquatch", str(error), "metrics wait in the spool; start the service or correct [sasquatch]")
    finally:
        proxy.close()
    return fine("Sasquatch", f"{url} answers for Kafka cluster {cluster}")


def check_cluster(address: str, needed: int) -> Iterator[Finding]:
    """Look at a scheduler and its workers: versions the same everywhere, cores, memory, clocks."""
    from distributed import Client

    try:
        client = Client(address, timeout=_ANSWER_S, set_as_default=False)
    except (OSError, ValueError) as error:
        yield failure("scheduler", f"{address}: {error}", "start the cluster, or correct --cluster")
        return
    with client:
        workers: dict[str, Any] = client.scheduler_info(n_workers=-1)["workers"]
        if not workers:
            yield failure("workers", f"{address} has none", "start workers, and look into their log files")
            return
        cores = sum(w["nthreads"] for w in workers.values())
        memory = sum(w["memory_limit"] for w in workers.values()) / 2**30
        text = f"{len(workers)} workers with {cores} threads and {memory:.0f} GiB; {needed} are needed"
        yield fine("workers", text) if cores >= needed else warning("workers", text, f"start {needed - cores} more")
        here = _versions()
        told: dict[str, tuple[dict[str, str], float]] = client.run(_look)
        now = time.time()
        differ = sorted({f"{k} {v[k]}" for v, _ in told.values() for k in here if v[k] != here[k]})
        if differ:
            remedy = f"install the same everywhere: here are {', '.join(f'{k} {v}' for k, v in here.items())}"
            yield failure("versions of workers", ", ".join(differ), remedy)
        else:
            yield fine("versions of workers", "the same as here")
        off = max(abs(now - unix) for _, unix in told.values())
        text = f"within {off:.2f} s of this one, time of the call included"
        slow = warning("clocks of workers", text, "let NTP or PTP set the clocks: latencies would be wrong")
        yield fine("clocks of workers", text) if off <= _CLOCK_S else slow


def _look() -> tuple[dict[str, str], float]:
    """Versions and time of a process; runs on the workers."""
    return _versions(), time.time()


def _versions() -> dict[str, str]:
    import platform
    from importlib import metadata

    packages = ("apflow", "dask", "distributed", "numpy", "numba", "astropy", "pandas", "pyarrow")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}}
