"""Steps of detectors from the transitions of a real scheduler."""

from __future__ import annotations

from distributed import Client, LocalCluster, get_worker

from apflow.operate.dashboard.tracker import Tracker
from apflow.run.worker import STEP_TOPIC


def test_the_newest_step_of_each_detector() -> None:
    tracker = Tracker()
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        cluster.scheduler.add_plugin(tracker)
        for step, label in (
            ("fetch_calibs-2026040100001", "R22_S11"),
            ("calibrate+inject_fakes-2026040100001", "R22_S11"),
            ("subtract-2026040100001", "R22_S12.2"),
            ("calibrate-2026040100002", "R22_S11"),
            ("store-2026040100001", "R22_S11"),
        ):
            client.submit(int, key=(step, label)).result()
        client.submit(int, key="calibrate-2026040100001").result()
    assert tracker.steps == {
        2026040100001: {"R22_S11": "calibrate", "R22_S12": "subtract"},
        2026040100002: {"R22_S11": "calibrate"},
    }
    assert tracker.version == 4


def test_only_the_newest_visits_are_kept() -> None:
    tracker = Tracker()
    for visit in (5, *range(100, 130), 7):
        tracker.transition((f"subtract-{visit}", "R22_S11"), "waiting", "processing")
        tracker.transition((f"calibrate-{visit}", "R22_S11"), "processing", "memory")
    assert set(range(119, 130)) <= set(tracker.steps)
    assert len(tracker.steps) <= 13
    assert {step for steps in tracker.steps.values() for step in steps.values()} == {"subtract"}


def test_steps_within_a_task_are_told_by_its_worker() -> None:
    tracker = Tracker()
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        cluster.scheduler.add_plugin(tracker)

        def work() -> None:
            get_worker().log_event(STEP_TOPIC, (5, "R22_S11.2", "subtract", False))

        client.submit(work, key=("calibrate+subtract-5", "R22_S11.2")).result()
        client.submit(int, key=("associate-4", "R22_S11")).result()
        assert tracker.steps == {5: {"R22_S11": "subtract"}, 4: {"R22_S11": "associate"}}
