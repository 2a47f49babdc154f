"""How many workers a night needs: hand-reckoned numbers, and what more of anything does."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apflow.errors import BadRequest
from apflow.model.camera import load_camera
from apflow.operate.night.plan import Plan, plan_night
from tests.operate.command import apflow

LSST, COMCAM = load_camera("lsstcam"), load_camera("comcam")


def test_a_raft_by_hand():
    """Nine CCDs of 4072 x 4000, each 2.45 core-s, by hand."""
    plan = plan_night(COMCAM, visit_every_s=10.0)
    assert (plan.detectors, plan.core_s, plan.memory_gib) == (9, pytest.approx(2.45), pytest.approx(1.83))
    assert plan.keeping_up == 4  # 9 x 2.45 x 1.5 / 10 = 3.3
    assert plan.for_latency == 1  # 8 x 3.675 + 2.45 + 0.5 + 0.8 + 5 = 38.2 s
    assert (plan.workers, plan.gather_workers, plan.binding) == (4, 1, "cadence")
    assert plan.chosen.every_s == pytest.approx(8.26875)
    assert plan.chosen.memory_gib == pytest.approx(5 * 1.83)
    assert plan.chosen.p50_s == pytest.approx(0.5 + 3.675 + 2.45 + 0.8)  # the fifth CCD is in the second turn of four
    assert plan.chosen.p98_s == pytest.approx(0.5 + 2 * 3.675 + 2.45 + 0.8 + 5)  # the ninth in the third
    alone = plan.choices[-1]
    assert (alone.workers, alone.p50_s) == (9, pytest.approx(3.75))
    assert plan.remarks == []


def test_a_focal_plane():
    plan = plan_night(LSST)
    assert plan.detectors == 189
    assert plan.core_s == pytest.approx(2.45, rel=0.01)
    assert plan.keeping_up == 19  # 189 x 2.46 x 1.5 / 37 = 18.8
    assert plan.for_latency == 14  # 14 turns of 14 hold 186 CCDs, 98 % of 189
    assert plan.choices[-1].workers == 189
    faster = plan_night(LSST, visit_every_s=9.0)
    assert (faster.keeping_up, faster.gather_workers) == (78, 3)  # 21 rafts x 0.8 x 1.5 / 9 = 2.8


def test_small_ccds_cost_what_was_measured():
    """README: 0.38 core-s and 645 MiB of a 512 x 512 CCD."""
    plan = plan_night(load_camera("comcam", 512))
    assert plan.core_s == pytest.approx(0.38, abs=0.01)
    assert plan.memory_gib * 1024 == pytest.approx(645, abs=10)


@pytest.mark.parametrize(
    ("limits", "workers", "binding"),
    [
        ({}, 19, "cadence"),
        ({"visit_every_s": 3600.0}, 14, "latency"),
        ({"cores": 2}, 2, "cores"),
        ({"cores": 19}, 19, "cadence"),
        ({"cores": 200}, 19, "cadence"),
        ({"memory_gib": 30.0}, 15, "memory"),
        ({"cores": 17, "memory_gib": 30.0}, 15, "memory"),
        ({"cores": 3, "memory_gib": 30.0}, 3, "cores"),
    ],
)
def test_what_binds(limits: dict[str, Any], workers: int, binding: str):
    plan = plan_night(LSST, **limits)
    assert (plan.workers, plan.binding) == (workers, binding)
    assert plan.chosen.keeps_up == (binding in ("cadence", "latency"))


def test_what_does_not_fit_is_told():
    (slow, late) = plan_night(LSST, cores=2).remarks
    assert slow.startswith("2 workers do not keep up with a visit every 37 s: visits queue")
    assert "one every 349 s; this cadence needs 19 workers" in slow
    assert late.endswith("not 60 s: that needs 14 workers")
    (never,) = plan_night(LSST, core_s=60.0).remarks
    assert never == (
        "no number of workers has 98 % of the alerts out within 60 s: a CCD that waits for none takes 66 s"
    )


@pytest.mark.parametrize(
    "limits",
    [{"core_s": 0.0}, {"visit_every_s": -1.0}, {"cores": 0}, {"memory_gib": math.nan}, {"latency_s": math.inf}],
)
def test_what_is_not_accepted(limits: dict[str, Any]):
    (value,) = limits.values()
    with pytest.raises(BadRequest, match=rf"{value} is not accepted: a number above 0"):
        plan_night(COMCAM, **limits)


def test_memory_for_no_worker():
    with pytest.raises(BadRequest, match=r"memory 3.6 GiB is not accepted: at least 3.66, for one compute worker"):
        plan_night(COMCAM, memory_gib=3.6)


POSITIVE = st.floats(0.1, 100.0)


def needed(plan: Plan) -> tuple[int, int, int]:
    return plan.keeping_up, plan.for_latency, plan.gather_workers


@given(POSITIVE, POSITIVE, POSITIVE)
def test_what_is_needed_grows_with_the_work_and_with_the_pace(core_s: float, every_s: float, more: float):
    plan = plan_night(LSST, core_s=core_s, visit_every_s=every_s)
    harder = plan_night(LSST, core_s=core_s + more, visit_every_s=every_s)
    faster = plan_night(LSST, core_s=core_s, visit_every_s=every_s / (1 + more))
    raft = plan_night(LSST, detectors="R22", core_s=core_s, visit_every_s=every_s)
    for a, b in ((plan, harder), (plan, faster), (raft, plan)):
        assert all(x <= y for x, y in zip(needed(a), needed(b), strict=True))


@given(POSITIVE, POSITIVE, st.integers(1, 300), st.integers(1, 300))
def test_more_cores_are_never_slower(core_s: float, every_s: float, cores: int, more: int):
    few = plan_night(LSST, core_s=core_s, visit_every_s=every_s, cores=cores)
    many = plan_night(LSST, core_s=core_s, visit_every_s=every_s, cores=cores + more)
    assert few.workers <= many.workers and few.chosen.keeps_up <= many.chosen.keeps_up
    assert many.chosen.p50_s <= few.chosen.p50_s and many.chosen.p98_s <= few.chosen.p98_s
    assert all(p.chosen.p50_s <= p.chosen.p98_s for p in (few, many))
    # One worker fewer than what is needed is too few.
    assert few.keeping_up == 1 or (few.keeping_up - 1) * every_s < 189 * core_s * 1.5


def test_the_command():
    told = json.loads(apflow("plan", "--cluster", "slurm", "--json").stdout)
    assert (told["chosen"]["workers"], told["cluster"], told["remarks"]) == (19, "slurm", [])
    table = apflow("plan", "--camera", "comcam", "--cores", "1", "--memory", "64GB")
    assert table.returncode == 0
    assert "comcam: 9 CCDs every 37 s; 2.45 core-s and 1.83 GiB a CCD" in table.stdout
    assert "local, by cadence" in table.stdout
    for words, accepted in (
        (("--memory", "much"), "'much' is not accepted: a size such as 64GiB"),
        (("--cluster", "pbs"), "cluster is 'pbs'; accepted: local, ssh"),
        (("--visit-every", "0"), "is not accepted: a number from 0.1"),
    ):
        refused = apflow("plan", *words)
        assert refused.returncode == 2 and accepted in refused.stderr, refused.stderr
