"""The memory of a worker does not grow with the number of detectors: real chains, separate processes."""

from __future__ import annotations

import resource
import threading
from pathlib import Path

from distributed import Client

from apflow.cluster.local import local_cluster
from apflow.graphs import alert_production
from apflow.io.arrivals import Ingestor
from apflow.io.ppdb import open_ppdb
from apflow.model.camera import load_camera
from apflow.model.ledger import State
from apflow.model.visit import Visit
from apflow.operate.prepare import simulation_pool
from apflow.run.on_dask import DaskRunner
from apflow.simulate.scenario import Scenario
from tests.field import Field, make_field

#: Seven rafts: 63 detectors.
RAFTS = "R01,R02,R03,R10,R11,R12,R13"


def peak_rss_mib(field: Field, visit: Visit, detectors: tuple[int, ...]) -> float:
    """Largest resident size of a compute worker of a new cluster after one visit."""
    camera = field.scenario.load_camera()
    with (
        local_cluster(2, warm_up=["apflow.graphs.alert_production"]) as cluster,
        Client(cluster, set_as_default=False) as client,
        open_ppdb(field.config.ppdb_url, create=True),
        Ingestor(field.config.butler, field.player.landing),
        DaskRunner(client, group_of=lambda d: camera.detector(d).raft) as runner,
    ):
        client.wait_for_workers(3, timeout=60)
        handle = runner.start(alert_production.visit, visit, list(detectors), field.config)
        landing = threading.Thread(target=lambda: [field.player.land(visit, d) for d in detectors])
        landing.start()
        outcomes = handle.result(timeout_s=240)
        landing.join()
        assert {o.state for o in outcomes} == {State.DONE}
        info = client.scheduler_info(n_workers=-1)["workers"]
        compute = [address for address, worker in info.items() if "gather" not in worker["resources"]]
        sizes = client.run(lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, workers=compute)
    return max(sizes.values()) / 1024


def test_a_worker_needs_the_same_for_9_and_63_detectors(tmp_path: Path):
    detectors = load_camera("lsstcam").select(RAFTS)
    scenario = Scenario(seed=13, nvisits=2, cadence_s=0.0, detectors=detectors)
    with simulation_pool(2) as pool:
        field = make_field(tmp_path / "butler", scenario, pool)
    one, two = field.visits
    few, many = peak_rss_mib(field, one, detectors[:9]), peak_rss_mib(field, two, detectors)
    print(few, many)
    assert many < 1.15 * few
