"""What it costs to send the metrics of visits of 189 detectors to Sasquatch, and when they can be read.

The service is the stand-in of `apflow services up --sasquatch`, in a process of its own: it checks every record and
has it in InfluxDB before it answers. The peer is a request for each dataset and action, as lsst.analysis.tools makes
them: each in a session of its own, after a request for its topic, while the caller waits. Here it sends the same
records; its own would have no nulls.

Prints one JSON object a line. `python benchmarks/bench_metrics.py [--json] [--visits N]`; ``--json`` leaves out the
lines for people.
"""

from __future__ import annotations

import argparse
import json
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import requests

from apflow.config import Config
from apflow.config_tables import Sasquatch
from apflow.io.sasquatch import flush, send_later
from apflow.io.sasquatch.records import record_of, schema
from apflow.model.ap_metrics import STAGES
from apflow.model.metrics import Measurement
from apflow.operate.services.influxdb import InfluxServer
from apflow.operate.services.sasquatch import CLUSTER
from apflow.operate.services.sasquatch_server import NAMESPACE, SasquatchServer

DETECTORS = range(189)
RAFT = range(9)
METRICS = sum(map(len, STAGES.values()))
#: The action that is sent last.
LAST = tuple(STAGES)[-1]
WAIT_S = 120.0
JSON = {"Content-Type": "application/json"}
AVRO = {"Content-Type": "application/vnd.kafka.avro.v2+json", "Accept": "application/vnd.kafka.v2+json"}


def say(name: str, value: float, unit: str, **more: Any) -> None:
    print(json.dumps({"name": name, "value": round(value, 4), "unit": unit, **more}), flush=True)


def against(value: float, peer_value: float, ratio: float) -> dict[str, Any]:
    """The part of a line that names the peer."""
    return {"peer": "a request for each dataset", "peer_value": round(peer_value, 4), "ratio": round(ratio, 2)}


def measured(visit: int, detectors: Sequence[int] = DETECTORS) -> list[Measurement]:
    """The metrics of a visit, an action a measurement."""
    values = iter(np.random.default_rng(visit).normal(size=len(detectors) * METRICS).tolist())
    return [
        Measurement(
            action,
            {metric.name: next(values) for metric in metrics},
            {"instrument": "LSSTCam", "visit": visit, "detector": detector, "band": "r", "physical_filter": "r_57"},
            60785.0 + visit * 37 / 86400,
        )
        for action, metrics in STAGES.items()
        for detector in detectors
    ]


def config_for(url: str, token_file: str = "") -> Config:
    """With an empty spool."""
    return Config(butler=tempfile.mkdtemp(dir=_scratch.name), sasquatch=Sasquatch(url=url, token_file=token_file))


_scratch = tempfile.TemporaryDirectory(prefix="apflow-metrics-", ignore_cleanup_errors=True)


def latencies_ms(config: Config, detectors: Sequence[int], first: int, count: int) -> list[float]:
    """How long `send_later` takes for the metrics of some detectors."""
    spent = []
    for visit in range(first, first + count):
        what = measured(visit, detectors)
        start = time.perf_counter()
        send_later(what, config)
        spent.append(1e3 * (time.perf_counter() - start))
    return spent


def say_latencies(name: str, spent: Sequence[float], **more: Any) -> None:
    for percent in (50, 99):
        say(f"{name}_p{percent}", float(np.percentile(spent, percent)), "ms", **more)


def must(left: int) -> None:
    if left:
        raise SystemExit(f"{left} files were not sent within {WAIT_S:g} s")


@contextmanager
def hanging() -> Iterator[str]:
    """URL of a service to which one can connect, and that never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        yield f"http://127.0.0.1:{door.getsockname()[1]}"


def throughput(config: Config, visits: int) -> tuple[float, float]:
    """Metrics a second from the first `send_later` to the last point in InfluxDB, and CPU milliseconds a visit."""
    what = [measured(visit) for visit in range(visits)]
    start, before = time.perf_counter(), time.process_time()
    for one in what:
        send_later(one, config)
    must(flush(config, WAIT_S))
    wall, used = time.perf_counter() - start, time.process_time() - before
    return visits * len(DETECTORS) * METRICS / wall, 1e3 * used / visits


def readable_s(config: Config, influxdb: InfluxServer, detectors: Sequence[int], first: int, count: int) -> list[float]:
    """From `send_later` until all points of the action that is sent last can be read."""
    spent = []
    for visit in range(first, first + count):
        what = measured(visit, detectors)
        query = f'SELECT count("id") FROM "{NAMESPACE}.{LAST}" WHERE "visit" = \'{visit}\''
        start = time.perf_counter()
        send_later(what, config)
        while not (rows := influxdb.query(NAMESPACE, query)) or rows[0]["count"] < len(detectors):
            time.sleep(0.002)
        spent.append(time.perf_counter() - start)
    return spent


def unbatched(url: str, token: str, visit: int) -> tuple[float, float]:
    """Metrics a second, and CPU milliseconds a visit, of a request for each dataset and action."""
    bearer = {"Authorization": f"Bearer {token}"}

    def post(path: str, headers: dict[str, str], body: object) -> None:
        with requests.Session() as session:
            session.post(url + path, data=json.dumps(body), headers=headers | bearer, timeout=30)

    what = measured(visit)
    start, before = time.perf_counter(), time.process_time()
    for one in what:
        topic = {"topic_name": f"{NAMESPACE}.{one.action}", "partitions_count": 1, "replication_factor": 3}
        post(f"/v3/clusters/{CLUSTER}/topics", JSON, topic)
        record = {"value": json.loads(record_of(one).json())}
        body = {"value_schema": schema(NAMESPACE, one.action, tuple(one.values)), "records": [record]}
        post(f"/topics/{NAMESPACE}.{one.action}", AVRO, body)
    wall, used = time.perf_counter() - start, time.process_time() - before
    return len(DETECTORS) * METRICS / wall, 1e3 * used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--visits", type=int, default=10)
    given = parser.parse_args()
    tell: Callable[[str], None] = (lambda line: None) if given.json else print
    visits = given.visits

    tell(f"# {visits} visits of {len(DETECTORS)} detectors, {METRICS} metrics each in {len(STAGES)} actions")
    with SasquatchServer() as server:
        token = server.token_file.read_text().strip()
        config = config_for(server.url, str(server.token_file))
        throughput(config, 1)  # topics
        rate, used_ms = throughput(config, visits)
        peer_rate, peer_used_ms = unbatched(server.url, token, 10_000)
        say("metrics_dispatched", rate, "metrics/s", **against(rate, peer_rate, rate / peer_rate))
        say("metrics_cpu_visit", used_ms, "ms", **against(used_ms, peer_used_ms, peer_used_ms / used_ms))
        say_latencies("metrics_send_later_raft_up", latencies_ms(config, RAFT, 20_000, 300))
        must(flush(config, WAIT_S))
        say_latencies("metrics_send_later_visit_up", latencies_ms(config, DETECTORS, 30_000, 30))
        must(flush(config, WAIT_S))
        peer_s = len(DETECTORS) * METRICS / peer_rate
        for name, detectors, more in (
            ("raft", RAFT, {}),
            ("visit", DETECTORS, {"peer": "a request for each dataset", "peer_value": round(peer_s, 4)}),
        ):
            spent = readable_s(config, server.influxdb, detectors, 40_000 + len(detectors) * 1000, 2 * visits)
            for percent in (50, 95):
                value = float(np.percentile(spent, percent))
                ratio = {"ratio": round(peer_s / value, 2)} if more else {}
                say(f"metrics_readable_{name}_p{percent}", value, "s", **more, **ratio)
    # Last, since the sender goes on trying.
    with hanging() as url:
        config = config_for(url)
        say_latencies("metrics_send_later_raft_hanging", latencies_ms(config, RAFT, 1, 300))
        say_latencies("metrics_send_later_visit_hanging", latencies_ms(config, DETECTORS, 400, 100))


if __name__ == "__main__":
    main()
