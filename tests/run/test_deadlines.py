"""What takes too long: begun on an idle worker as well, or left to a later batch."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed import Client

from apflow.cluster.local import local_cluster
from apflow.run import ChainEnded, Late, Rerun
from apflow.run.admission import Admission, Admit, ChainId
from apflow.run.on_dask import DaskRunner
from tests.graphs_for_tests import World, expose, visit_graph
from tests.run.test_on_dask import until


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with local_cluster(2) as cluster, Client(cluster) as client:
        client.wait_for_workers(3)
        yield client


def test_a_straggler_is_begun_on_an_idle_worker_and_stored_once(client: Client, tmp_path: Path) -> None:
    world = World(str(tmp_path), troubles={2: "straggle"})
    expose(world, 7, 1, 2)
    events: list[object] = []
    with DaskRunner(client, rerun_after_s=0.5, on_event=events.append) as runner:
        start = time.time()
        assert runner.start(visit_graph, 7, [1, 2], world).result(20) == {1: "done", 2: "done"}
        assert time.time() - start < 7.5, "it slept for 8 s on its first worker"
        until(lambda: sum(isinstance(event, ChainEnded) for event in events) == 2)
        time.sleep(max(0.0, start + 9.0 - time.time()))  # the first worker is through with it
    (rerun,) = (event for event in events if isinstance(event, Rerun))
    assert (rerun.visit, rerun.detector) == (7, 2)
    assert [line for line in world.read("batches") if "2" in line.split()] == ["1 2"]
    attempts = {e.ended.detector: e.attempts for e in events if isinstance(e, ChainEnded)}
    assert attempts == {1: 1, 2: 2}
    ran = [line.split()[2] for line in world.read("subtract") if line.startswith("7 2 ")]
    assert ran[0] != world.read("straggled")[0], "the other worker made it"


@pytest.mark.parametrize("of", ["first", "second"])
def test_a_straggler_outlives_either_of_its_workers(client: Client, tmp_path: Path, of: str) -> None:
    world = World(str(tmp_path), subtract_s=1.5)
    expose(world, 8, 0)
    events: list[object] = []
    with DaskRunner(client, rerun_after_s=0.3, on_event=events.append) as runner:
        handle = runner.start(visit_graph, 8, [0], world)
        until(lambda: len(world.read("subtract")) == 2)
        os.kill(int(world.read("subtract")[of == "second"].split()[2]), 9)
        assert handle.result(20) == {0: "done"}
    assert world.read("batches") == ["0"]
    assert len([event for event in events if isinstance(event, ChainEnded)]) == 1
    client.wait_for_workers(3, timeout=20)


def test_a_late_detector_follows_in_a_later_batch(client: Client, tmp_path: Path) -> None:
    world = World(str(tmp_path), troubles={1: "straggle"})
    expose(world, 9, 0, 1)
    events: list[object] = []
    with DaskRunner(client, gather_after_s=0.5, on_event=events.append) as runner:
        assert runner.start(visit_graph, 9, range(2), world).result(20) == dict.fromkeys(range(2), "done")
    assert world.read("batches") == ["0", "1"]
    assert [event for event in events if isinstance(event, Late)] == [Late(9, 1)]


def test_only_a_worker_without_images_is_lent() -> None:
    admission = Admission(2)
    admission.set_workers(["w0", "w1"])
    slow, other = ChainId(1, 0), ChainId(1, 1)
    for chain in (slow, other):
        admission.add(chain)
        admission.ready(chain)
    assert {d.chain: d.worker for d in admission.decide() if isinstance(d, Admit)} == {slow: "w0", other: "w1"}
    assert admission.lend(slow) is None
    admission.leave(other)
    assert admission.lend(slow) == Admit(slow, "w1")
    assert admission.set_workers(["w1"]) == [Admit(slow, "w0")]
    admission.leave(slow)
    admission.add(other)
    assert admission.decide() == [Admit(other, "w1")]
