"""Graphs as plain functions: run here, guarded, drawn."""

import dataclasses
import pickle
from pathlib import Path

import pytest

from apflow.errors import NoTemplate, ServiceError
from apflow.graph import gathers, node
from apflow.graph_draw import mermaid, trace
from apflow.model.ledger import Ended, Failure, State
from apflow.run import ChainEnded, EagerRunner, GatherEnded, VisitFailed
from tests import graphs_for_tests as graphs
from tests.graphs_for_tests import World, expose, visit_graph


def test_without_a_runner_a_graph_is_a_function(tmp_path: Path) -> None:
    world = World(str(tmp_path))
    expose(world, 7, 0, 1)
    assert visit_graph(7, [0, 1], world) == {0: "done", 1: "done"}
    assert world.read("batches") == ["0 1"]


def test_without_a_runner_exceptions_propagate(tmp_path: Path) -> None:
    with pytest.raises(NoTemplate, match="detector 2"):
        graphs.fetch_template({}, 2, World(str(tmp_path), troubles={2: "no template"}))


def test_gathers_takes_the_detector_of_a_value() -> None:
    class Result:
        detector = 94

    (batch,) = gathers([Result(), "plain"])
    assert [ended.detector for ended in batch] == [94, 1]
    assert isinstance(batch[0], Ended)


def test_a_failure_is_an_outcome_and_others_go_on(tmp_path: Path) -> None:
    world = World(str(tmp_path), 0.05, troubles={2: "no template", 3: "truncated", 4: "crash"})
    expose(world, 7, *range(8))
    events: list[object] = []
    runner = EagerRunner(group_of=lambda detector: detector // 3, on_event=events.append)
    assert runner.run(visit_graph, 7, range(9), world) == {
        **dict.fromkeys((0, 1, 5, 6, 7), "done"),
        **{2: "no_template", 3: "bad_data", 4: "failed", 8: "image_timeout"},
    }
    assert world.read("batches") == ["0 1 2", "3 4 5", "6 7 8"]
    failures = {e.ended.detector: e.ended.failure for e in events if isinstance(e, ChainEnded) and e.ended.failure}
    assert failures == {
        2: Failure(State.NO_TEMPLATE, "fetch_template", "NoTemplate: detector 2: no template"),
        3: Failure(State.BAD_DATA, "subtract", "DataError: detector 3: truncated"),
        4: Failure(State.FAILED, "subtract", "ZeroDivisionError: division by zero"),
        8: Failure(State.IMAGE_TIMEOUT, "await_image", "ImageTimeout: image of detector 8"),
    }
    # Behind a failure nothing runs: the subtractions are those of the five good detectors.
    assert [line.split()[1] for line in world.read("subtract")] == ["0", "1", "5", "6", "7"]


@dataclasses.dataclass(frozen=True)
class _Image:
    summary: dict[str, float]


@node
def _seen(detector: int) -> _Image:
    return _Image({"sky": 5.0, "n": 1.0})


@node
def _refined(image: _Image) -> _Image:
    return _Image({"n": 2.0})


@node
def _broken(image: _Image) -> _Image:
    raise NoTemplate("nothing there")


@node
def _used(image: _Image, other: _Image) -> _Image:
    return _Image({"never": 0.0})


def test_what_was_measured_before_a_failure_is_not_lost() -> None:
    ended: list[Ended] = []

    def graph(visit: int, detectors: list[int], config: None) -> None:
        refined = _refined(_seen(1))
        for batch in gathers([_used(_broken(refined), refined)]):
            ended.extend(batch)

    EagerRunner().run(graph, 7, [1], None)
    (one,) = ended
    assert one.failure is not None and one.failure.step == "_broken"
    assert one.measured == {"sky": 5.0, "n": 2.0}


def test_each_step_leaves_one_record(tmp_path: Path) -> None:
    world = World(str(tmp_path))
    expose(world, 7, 0)
    events: list[object] = []
    EagerRunner(on_event=events.append).run(visit_graph, 7, [0], world)
    (ended,) = [e.ended for e in events if isinstance(e, ChainEnded)]
    names = ["fetch_template", "await_image", "subtract", "measure", "read_history", "associate"]
    assert [record.step for record in ended.steps] == names
    assert all(r.core_s >= 0 and r.start_unix <= r.stop_unix and r.worker == "here" for r in ended.steps)
    (history,) = [record for record in ended.steps if record.step == "read_history"]
    assert history.stop_unix - history.start_unix > 0.009 > history.core_s  # it sleeps: no CPU
    gathered = [record.step for e in events if isinstance(e, GatherEnded) for record in e.result.steps]
    assert set(gathered) == {"open_visit", "store", "publish", "report"}


def test_a_failed_gather_does_not_stop_other_batches(tmp_path: Path) -> None:
    world = World(str(tmp_path), troubles={1: "store"})
    expose(world, 7, *range(4))
    runner = EagerRunner(group_of=lambda detector: detector // 2)
    assert runner.run(visit_graph, 7, range(4), world) == {"store": "OSError: disk full", 2: "done", 3: "done"}


@node
def broken(visit: int) -> int:
    raise OSError("disk full")


def test_a_visit_without_report_says_why() -> None:
    with pytest.raises(VisitFailed, match="visit 7: broken failed: OSError: disk full"):
        EagerRunner().run(lambda visit, detectors, config: broken(visit), 7, [], None)


def test_service_errors_are_tried_again_as_often_as_the_node_says() -> None:
    tried = []

    @node(retries=2)
    def fetch(visit: int) -> int:
        tried.append(visit)
        if len(tried) < 3:
            raise ServiceError("busy")
        return visit

    assert EagerRunner().run(lambda visit, detectors, config: fetch(visit), 7, [], None) == 7
    assert tried == [7, 7, 7]


def test_nodes_called_by_a_step_are_functions() -> None:
    @node
    def inner(visit: int) -> int:
        return visit + 1

    @node
    def outer(visit: int) -> int:
        return inner(visit) + 1

    assert EagerRunner().run(lambda visit, detectors, config: outer(visit), 7, [], None) == 9


def test_nodes_pickle_by_name() -> None:
    assert pickle.loads(pickle.dumps(graphs.subtract)) is graphs.subtract


def test_a_node_has_named_parameters_only() -> None:
    with pytest.raises(TypeError, match=r"\*anything"):

        @node
        def loose(*anything: int) -> None: ...


def test_a_graph_cannot_look_into_values(tmp_path: Path) -> None:
    def peeks(visit: int, detectors: list[int], config: World) -> None:
        if graphs.open_visit(visit, detectors, config):
            pass

    with pytest.raises(TypeError, match="cannot look into"):
        EagerRunner().run(peeks, 7, [0], World(str(tmp_path)))


def test_a_node_cannot_join_detectors_outside_gathers(tmp_path: Path) -> None:
    def joins(visit: int, detectors: list[int], config: World) -> None:
        a = graphs.fetch_template({}, 0, config)
        b = graphs.fetch_template({}, 1, config)
        graphs.associate(a, 0, b, config)  # type: ignore[arg-type]

    with pytest.raises(ValueError, match="join detectors after gathers"):
        EagerRunner().run(joins, 7, [0, 1], World(str(tmp_path)))


def test_trace_knows_levels_inputs_and_policies() -> None:
    steps = {step.name: step for step in trace(visit_graph)}
    assert [s.name for s in steps.values() if s.level == "visit"] == ["open_visit", "report"]
    assert [s.name for s in steps.values() if s.level == "batch"] == ["store", "publish"]
    assert [s.name for s in steps.values() if s.waits] == ["await_image", "read_history"]
    assert steps["associate"].inputs == ("measure", "read_history", "subtract")
    assert steps["store"].inputs == ("associate",)


def test_trace_refuses_a_node_used_twice() -> None:
    def twice(visit: int, detectors: list[int], config: World) -> None:
        graphs.open_visit(visit, detectors, config)
        graphs.open_visit(visit, detectors, config)

    with pytest.raises(ValueError, match="open_visit is in the graph twice"):
        trace(twice)


def test_mermaid_draws_two_levels_with_shapes() -> None:
    lines = [line.strip() for line in mermaid(trace(visit_graph)).splitlines()]
    assert lines[:4] == [
        "flowchart TD",
        "open_visit[[open visit]]",
        'subgraph detector["for each detector"]',
        "fetch_template[fetch template]",
    ]
    assert 'subgraph batch["for each batch of ended detectors"]' in lines
    assert lines.count("end") == 2
    assert "await_image([await image])" in lines
    assert "associate --> store" in lines and "publish --> report" in lines
