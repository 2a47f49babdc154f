"""Graphs on a real Dask cluster: two compute workers and a gather worker, each a process of its own."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, LocalCluster

from apflow.cluster.in_process import in_process_cluster
from apflow.cluster.local import local_cluster
from apflow.graph import Carried
from apflow.model.ledger import Ended
from apflow.run import ChainEnded, EagerRunner, GatherEnded, RunnerClosed, StepCounts
from apflow.run.on_dask import DaskRunner, VisitHandle
from apflow.run.worker import Slot, _filled
from tests.graphs_for_tests import World, expose, visit_graph

STEPS = ["fetch_template", "await_image", "subtract", "measure", "read_history", "associate"]
FUSED = ["fetch_template", "await_image", "subtract+measure+read_history+associate"]


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with local_cluster(2) as cluster, Client(cluster) as client:
        client.wait_for_workers(3)
        yield client


def raft(detector: int) -> int:
    return detector // 3


def until(condition: Callable[[], bool], timeout_s: float = 15.0) -> None:
    deadline = time.time() + timeout_s
    while not condition():
        assert time.time() < deadline, "what the test waits for did not happen"
        time.sleep(0.02)


def tasks(client: Client) -> dict[Any, dict[str, Any]]:
    """Keys that the scheduler knows, with their annotations and state."""

    def ask(dask_scheduler: Any) -> dict[Any, dict[str, Any]]:
        return {
            key: {"state": task.state, "prefix": task.prefix.name, "group": task.group.name, **(task.annotations or {})}
            for key, task in dask_scheduler.tasks.items()
        }

    found: dict[Any, dict[str, Any]] = client.run_on_scheduler(ask)
    return found


def ends(events: list[object]) -> dict[int, Ended]:
    return {event.ended.detector: event.ended for event in events if isinstance(event, ChainEnded)}


@pytest.mark.parametrize("fuse", [False, True])
def test_the_scheduler_knows_the_nodes_by_name(client: Client, tmp_path: Path, fuse: bool) -> None:
    world = World(str(tmp_path))
    visit = 4200 + fuse
    names = FUSED if fuse else STEPS
    with DaskRunner(client, label_of=lambda detector: f"R22_S{detector:02d}", fuse=fuse) as runner:
        handle = runner.start(visit_graph, visit, [11, 12], world)
        until(lambda: (f"{names[-1]}-{visit}", "R22_S12") in tasks(client))
        known = tasks(client)
        expose(world, visit, 11, 12)
        assert handle.result(20) == {11: "done", 12: "done"}
    keys = {(f"{step}-{visit}", label) for step in names for label in ("R22_S11", "R22_S12")}
    delivered = {(f"deliver-{visit}", label) for label in ("R22_S11", "R22_S12")}
    assert set(known) == keys | delivered | {(f"open_visit-{visit}", "visit")}
    assert {known[key]["prefix"] for key in keys} == set(names)
    last = known[f"{names[-1]}-{visit}", "R22_S11"]
    assert last["group"] == f"{names[-1]}-{visit}"
    assert len(last["workers"]) == 1
    assert known[f"open_visit-{visit}", "visit"]["resources"] == {"gather": 1}
    assert known[f"await_image-{visit}", "R22_S11"]["resources"] == {"compute": 0}
    until(lambda: not tasks(client))  # and nothing is left when it is over


def test_more_waiters_than_slots_while_compute_goes_on(client: Client, tmp_path: Path) -> None:
    world = World(str(tmp_path))
    events: list[object] = []
    with DaskRunner(client, group_of=raft, gather_after_s=0.2, on_event=events.append) as runner:
        handle = runner.start(visit_graph, 7, range(30), world)
        until(lambda: sum(t["state"] == "processing" for t in tasks(client).values()) >= 30)  # on two slots
        expose(world, 7, 20, 29)
        until(lambda: set(ends(events)) == {20, 29})
        until(lambda: sorted(world.read("batches")) == ["20", "29"])  # stored while 28 wait
        expose(world, 7, *range(30))
        assert handle.result(20) == dict.fromkeys(range(30), "done")
        counts = [event.counts["await_image"] for event in events if isinstance(event, StepCounts) and event.counts]
    assert all(sum(count.values()) == 30 for count in counts)
    assert sorted(" ".join(world.read("batches")).split(), key=int) == [str(d) for d in range(30)]


def test_failures_are_exact_and_the_others_on_time(client: Client, tmp_path: Path) -> None:
    troubles = {1: "truncated", 4: "crash"}
    world = World(str(tmp_path), 3.0, troubles=troubles)
    expose(world, 7, *range(8))  # the image of 8 never comes
    stored: dict[int, float] = {}
    events: list[object] = []
    start = time.time()
    with DaskRunner(client, group_of=raft, gather_after_s=0.5, on_event=events.append) as runner:
        handle = runner.start(visit_graph, 7, range(9), world)
        while not handle.done():
            for d in range(9):
                if d not in stored and (tmp_path / f"stored-7-{d}").exists():
                    stored[d] = time.time() - start
            time.sleep(0.01)
        report = handle.result()
    assert all(stored[d] < 2.5 for d in range(8)), stored
    assert stored[8] > 3.0
    assert world.read("batches")[-1] == "8"  # the late one came in a batch of its own
    here = World(str(tmp_path / "here"), 0.1, troubles=troubles)
    (tmp_path / "here").mkdir()
    expose(here, 7, *range(8))
    eager: list[object] = []
    assert EagerRunner(group_of=raft, on_event=eager.append).run(visit_graph, 7, range(9), here) == report
    for detector, ended in ends(eager).items():
        assert ends(events)[detector].failure == ended.failure
        assert {r.step for r in ends(events)[detector].steps} == {r.step for r in ended.steps}
        name = f"stored-7-{detector}"
        assert (tmp_path / name).read_text() == (tmp_path / "here" / name).read_text()


def test_a_chain_stays_on_one_worker_and_gathers_on_theirs(client: Client, tmp_path: Path) -> None:
    world = World(str(tmp_path))
    expose(world, 7, *range(12))
    events: list[object] = []
    with DaskRunner(client, group_of=raft, on_event=events.append) as runner:
        handle = runner.start(visit_graph, 7, range(12), world)
        handle.result(20)
        until(lambda: len(ends(events)) == 12)
    pixels = [{r.worker for r in ended.steps if r.step != "await_image"} for ended in ends(events).values()]
    assert all(len(workers) == 1 for workers in pixels), pixels
    assert not world.read("travelled")
    assert set().union(*pixels) == {"ccd-0", "ccd-1"}
    gathered = [e.result for e in events if isinstance(e, GatherEnded)]
    assert {r.worker for result in gathered for r in result.steps} == {"gather-0"}
    assert {r.step for r in handle.steps} == {"open_visit", "store", "publish", "report"} - {"open_visit"}


@pytest.mark.parametrize("n", [9, 63])
def test_memory_of_a_worker_does_not_depend_on_detectors(client: Client, tmp_path: Path, n: int) -> None:
    world = World(str(tmp_path))
    with DaskRunner(client, group_of=raft) as runner:
        handle = runner.start(visit_graph, 7, range(n), world)
        until(lambda: len(world.read("alive")) >= 4)  # prefetched
        for first in range(0, n, 7):
            expose(world, 7, *range(min(first + 7, n) - 1, first - 1, -1))
        assert handle.result(30) == dict.fromkeys(range(n), "done")
    # Two chains, each with a template and a difference; one more while an evicted template is on its way out.
    assert 2 <= max(int(line.split()[1]) for line in world.read("alive")) <= 5


def test_older_visits_go_first(client: Client, tmp_path: Path) -> None:
    world = World(str(tmp_path), subtract_s=0.03)
    with DaskRunner(client, group_of=raft) as runner:
        handles = [runner.start(visit_graph, visit, range(12), world) for visit in (6, 5)]
        until(lambda: sum(t["state"] == "processing" for t in tasks(client).values()) >= 24)
        for detector in range(12):
            expose(world, 6, detector)
            expose(world, 5, detector)
        for handle in handles:
            handle.result(20)
    order = [line.split()[0] for line in world.read("subtract")]
    assert order[: len(order) // 2].count("5") >= 7 and order[-4:] == ["6"] * 4, order


def test_a_killed_worker_loses_nothing(client: Client, tmp_path: Path) -> None:
    world = World(str(tmp_path), subtract_s=0.2)
    expose(world, 7, *range(12))
    with DaskRunner(client, group_of=raft, gather_after_s=0.5) as runner:
        handle = runner.start(visit_graph, 7, range(12), world)
        until(lambda: len(world.read("subtract")) >= 4)
        os.kill(int(world.read("subtract")[-1].split()[2]), 9)
        assert handle.result(30) == dict.fromkeys(range(12), "done")
    assert sorted(" ".join(world.read("batches")).split(), key=int) == [str(d) for d in range(12)]
    client.wait_for_workers(3, timeout=20)


def test_a_result_that_died_with_all_who_had_it_is_made_again(client: Client, tmp_path: Path) -> None:
    """A chain ended and was delivered; then its worker is killed, and the gather worker before the batch is whole."""
    world = World(str(tmp_path))
    events: list[object] = []
    with DaskRunner(client, gather_after_s=60.0, on_event=events.append) as runner:
        handle = runner.start(visit_graph, 7, range(2), world)
        expose(world, 7, 0)
        until(lambda: 0 in ends(events))
        until(lambda: any(t["prefix"] == "deliver" and t["state"] == "memory" for t in tasks(client).values()))
        gather = next(
            w for w, of in client.scheduler_info(n_workers=-1)["workers"].items() if "gather" in of["resources"]
        )
        os.kill(int(world.read("subtract")[0].split()[2]), 9)
        os.kill(client.run(os.getpid, workers=[gather])[gather], 9)
        expose(world, 7, 1)
        assert handle.result(45) == {0: "done", 1: "done"}  # Dask alone would wait for the dead worker for 60 s
    client.wait_for_workers(3, timeout=60)


def test_a_detector_that_kills_its_worker_is_given_up_alone(client: Client, tmp_path: Path) -> None:
    world = World(str(tmp_path), subtract_s=0.05, troubles={2: "kill"})
    expose(world, 7, *range(12))
    events: list[object] = []
    with DaskRunner(client, group_of=raft, max_attempts=2, on_event=events.append) as runner:
        report = runner.start(visit_graph, 7, range(12), world).result(40)
    assert report == {**dict.fromkeys(range(12), "done"), 2: "failed"}
    failure = ends(events)[2].failure
    assert failure is not None and failure.cause.startswith("KilledWorker: 2 workers died")
    client.wait_for_workers(3, timeout=20)


@pytest.mark.parametrize(
    ("trouble", "step"), [("hang", "subtract"), ("hang late", "measure"), ("hang last", "associate")]
)
def test_past_the_deadline_what_is_unfinished_has_failed_and_the_worker_is_back(
    client: Client, tmp_path: Path, trouble: str, step: str
) -> None:
    world = World(str(tmp_path), troubles={2: trouble})
    expose(world, 7, 0, 2)  # the image of 5 never comes
    events: list[object] = []
    with DaskRunner(client, group_of=raft, deadline_s=2.0, on_event=events.append) as runner:
        start = time.time()
        report = runner.start(visit_graph, 7, [0, 2, 5], world).result(20)
        assert 2.0 <= time.time() - start < 8.0
        assert report == {0: "done", 2: "failed", 5: "failed"}
        failures = {d: (e.failure.step, e.failure.cause) for d, e in ends(events).items() if e.failure}
        assert failures == {2: (step, "deadline"), 5: ("await_image", "deadline")}  # of two in a task the one it is at
        expose(world, 8, *range(6))
        assert runner.start(visit_graph, 8, [0, 1, 3, 4], world).result(30) == dict.fromkeys([0, 1, 3, 4], "done")
    client.wait_for_workers(3, timeout=30)


@pytest.mark.parametrize("trouble", ["hang", "hang last"])  # before and after a wait
def test_a_step_that_hangs_does_not_hold_up_others(client: Client, tmp_path: Path, trouble: str) -> None:
    world = World(str(tmp_path), troubles={2: trouble})
    expose(world, 7, *range(9))
    with DaskRunner(client, group_of=raft, max_attempts=2, step_timeout_s=1.0) as runner:
        report = runner.start(visit_graph, 7, range(9), world).result(40)
    assert report == {**dict.fromkeys(range(9), "done"), 2: "failed"}


@pytest.mark.parametrize("fuse", [False, True])
def test_a_template_is_freed_as_soon_as_it_is_subtracted(client: Client, tmp_path: Path, fuse: bool) -> None:
    world = World(str(tmp_path))
    expose(world, 7, *range(5))
    with DaskRunner(client, group_of=raft, chains_per_worker=1, fuse=fuse) as runner:
        assert set(runner.start(visit_graph, 7, range(5), world).result(20).values()) == {"done"}
    assert {line.split()[1] for line in world.read("measured")} == {"1"}, "the difference alone is in memory"


def test_an_input_that_was_let_go_is_not_taken_again() -> None:
    made = Carried(detector=4)
    made.let_go()
    with pytest.raises(RuntimeError, match="what subtract made was let go"):
        _filled(Slot(0, "subtract"), (made,), {})


def test_cancel_ends_what_is_unfinished(client: Client, tmp_path: Path) -> None:
    world = World(str(tmp_path))
    expose(world, 7, 0)
    events: list[object] = []
    with DaskRunner(client, group_of=raft, gather_after_s=0.1, on_event=events.append) as runner:
        handle = runner.start(visit_graph, 7, range(4), world)
        until(lambda: 0 in ends(events))
        handle.cancel()
        assert handle.result(10) == {0: "done", 1: "cancelled", 2: "cancelled", 3: "cancelled"}
        until(lambda: sorted(world.read("cancelled")) == ["1", "2", "3"])  # the waiters were told


def test_an_interrupt_leaves_the_cluster_clean(client: Client, tmp_path: Path) -> None:
    world = World(str(tmp_path))
    expose(world, 7, 0)
    handles: list[VisitHandle] = []

    def interrupted() -> None:
        with DaskRunner(client, group_of=raft) as runner:
            handles.append(runner.start(visit_graph, 7, range(4), world))
            until(lambda: bool(world.read("subtract")))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with pytest.raises(RunnerClosed, match="visit 7"):
        handles[0].result(5)
    until(lambda: not tasks(client))
    assert not [thread for thread in threading.enumerate() if thread.name == "visit-7"]
    with DaskRunner(client) as runner:  # and the next run does the visit
        expose(world, 7, *range(4))
        assert runner.start(visit_graph, 7, range(4), world).result(20) == dict.fromkeys(range(4), "done")


def test_a_failed_gather_does_not_stop_other_batches(client: Client, tmp_path: Path) -> None:
    world = World(str(tmp_path), troubles={1: "store"})
    expose(world, 7, *range(6))
    with DaskRunner(client, group_of=raft) as runner:
        report = runner.start(visit_graph, 7, range(6), world).result(20)
    assert report == {"store": "OSError: disk full", 3: "done", 4: "done", 5: "done"}


def test_any_cluster_will_do(tmp_path: Path) -> None:
    world = World(str(tmp_path))
    expose(world, 7, *range(4))
    local = LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None)
    with local as cluster, Client(cluster) as client, DaskRunner(client, group_of=raft) as runner:
        assert runner.start(visit_graph, 7, range(4), world).result(20) == dict.fromkeys(range(4), "done")


def test_with_a_worker_for_each_detector_all_prefetch_before_the_images(tmp_path: Path) -> None:
    world = World(str(tmp_path))
    with in_process_cluster(18, processes=2) as cluster, Client(cluster) as client:
        events: list[object] = []
        with DaskRunner(client, group_of=raft, on_event=events.append) as runner:
            handle = runner.start(visit_graph, 7, range(18), world)
            until(lambda: len(world.read("alive")) == 18)
            expose(world, 7, *range(18))
            assert handle.result(20) == dict.fromkeys(range(18), "done")
            until(lambda: len(ends(events)) == 18)
    workers = {r.worker for ended in ends(events).values() for r in ended.steps if r.step == "subtract"}
    assert len(workers) == 18
