"""Who may hold memory on a worker, and when batches close: decisions without a cluster."""

import random

import pytest

from apflow.model.calibration import CalibrationExposure, Intent
from apflow.run import visit_id
from apflow.run.admission import Admission, Admit, ChainId, Evict
from apflow.run.batches import Batches


def admitted(decisions: list[Admit | Evict]) -> dict[ChainId, str]:
    return {d.chain: d.worker for d in decisions if isinstance(d, Admit)}


def test_with_a_worker_for_each_detector_all_prefetch_at_once() -> None:
    admission = Admission(2)
    admission.set_workers([f"w{i}" for i in range(9)])
    for i in range(9):
        admission.add(ChainId(0, i))
    assert admitted(admission.decide()) == {ChainId(0, i): f"w{i}" for i in range(9)}


def test_the_same_detector_comes_to_the_same_worker() -> None:
    admission = Admission(1)
    admission.set_workers([f"w{i}" for i in range(9)])
    for sequence in range(2):
        for i in random.Random(sequence).sample(range(9), 9):
            admission.add(ChainId(sequence, i))
            (worker,) = admitted(admission.decide()).values()
            assert worker == f"w{i}"
        for i in range(9):
            admission.leave(ChainId(sequence, i))


def test_an_image_that_is_there_takes_the_place_of_one_that_is_not() -> None:
    admission = Admission(2)
    admission.set_workers(["w0"])
    for i in range(4):
        admission.add(ChainId(0, i))
    assert list(admitted(admission.decide())) == [ChainId(0, 0), ChainId(0, 1)]
    admission.ready(ChainId(0, 3))
    assert admission.decide() == [Evict(ChainId(0, 1)), Admit(ChainId(0, 3), "w0")]
    admission.ready(ChainId(0, 2))
    assert admission.decide() == [Evict(ChainId(0, 0)), Admit(ChainId(0, 2), "w0")]
    admission.ready(ChainId(0, 0))
    assert admission.decide() == []  # both holders compute
    admission.leave(ChainId(0, 3))
    assert admission.decide() == [Admit(ChainId(0, 0), "w0")]


def test_a_visit_goes_before_calibrations_that_were_taken_earlier() -> None:
    """D5: a backlog of calibrations of the afternoon keeps no visit of the night from its workers."""
    bias = CalibrationExposure("LSSTCam", 2025042000001, "", Intent.BIAS, "", 0.0, "MC_O_20250420_000001")
    taken, visit = ChainId(visit_id(bias), 0), 2025042000900
    admission = Admission(1)
    admission.set_workers(["w0"])
    waiting = [ChainId(visit_id(bias), n) for n in (1, 2)]
    for chain in (taken, *waiting):
        admission.add(chain)
        admission.ready(chain)
    assert admitted(admission.decide()) == {taken: "w0"}
    admission.add(ChainId(visit, 0))
    admission.ready(ChainId(visit, 0))
    assert admitted(admission.decide()) == {ChainId(visit, 0): "w0"}, "at once, beside the one that runs"
    admission.add(ChainId(visit, 1))
    admission.ready(ChainId(visit, 1))
    admission.leave(taken)
    assert admission.decide() == []
    admission.leave(ChainId(visit, 0))
    assert admitted(admission.decide()) == {ChainId(visit, 1): "w0"}
    admission.leave(ChainId(visit, 1))
    assert admitted(admission.decide()) == {waiting[0]: "w0"}


def test_older_visits_first_and_never_blocked_by_newer_ones() -> None:
    admission = Admission(1)
    admission.set_workers(["w0"])
    for sequence in (1, 2):
        admission.add(ChainId(sequence, 0))
        admission.ready(ChainId(sequence, 0))
    assert list(admitted(admission.decide())) == [ChainId(1, 0)]
    # The holder may wait for an older visit to be stored: that one goes over the limit, by one.
    for i in range(2):
        admission.add(ChainId(0, i))
        admission.ready(ChainId(0, i))
    assert list(admitted(admission.decide())) == [ChainId(0, 0)]
    admission.leave(ChainId(0, 0))
    assert list(admitted(admission.decide())) == [ChainId(0, 1)]


@pytest.mark.parametrize("n", [9, 63])
def test_the_limit_holds_in_any_order_of_events(n: int) -> None:
    rng = random.Random(n)
    admission = Admission(2)
    workers = ["w0", "w1"]
    admission.set_workers(workers)
    held: dict[ChainId, str] = {}
    chains = [ChainId(0, i) for i in range(n)]
    for chain in chains:
        admission.add(chain)
    waiting = list(chains)
    running: list[ChainId] = []
    while waiting or running:
        for decision in admission.decide():
            if isinstance(decision, Admit):
                held[decision.chain] = decision.worker
            else:
                del held[decision.chain]
        assert all(list(held.values()).count(worker) <= 2 for worker in workers)
        computing = [chain for chain in running if chain in held]
        if waiting and (rng.random() < 0.5 or not computing):
            running.append(waiting.pop(rng.randrange(len(waiting))))
            admission.ready(running[-1])
        elif computing:
            done = rng.choice(computing)
            running.remove(done)
            del held[done]
            admission.leave(done)


def test_a_worker_that_left_gets_nothing_more() -> None:
    admission = Admission(1)
    admission.set_workers(["w0", "w1"])
    admission.add(ChainId(0, 0))
    assert admitted(admission.decide()) == {ChainId(0, 0): "w0"}
    assert admission.set_workers(["w1"]) == [Admit(ChainId(0, 0), "w0")]
    admission.add(ChainId(0, 1))
    admission.add(ChainId(0, 2))
    assert admitted(admission.decide()) == {ChainId(0, 1): "w1"}
    admission.set_workers([])
    assert admission.decide() == []


def test_a_suspect_is_alone() -> None:
    admission = Admission(2)
    admission.set_workers(["w0", "w1"])
    for i in range(5):
        admission.add(ChainId(0, i))
        admission.ready(ChainId(0, i))
    assert sorted(admitted(admission.decide())) == [ChainId(0, i) for i in range(4)]
    assert admission.set_workers(["w1"]) == [Admit(ChainId(0, 0), "w0"), Admit(ChainId(0, 2), "w0")]
    admission.set_workers(["w1", "w0"])
    for i in (0, 2):
        admission.leave(ChainId(0, i))
        admission.add(ChainId(0, i), suspect=True)
        admission.ready(ChainId(0, i))
    assert admission.decide() == [Admit(ChainId(0, 0), "w0")]  # 2 has reserved w1: 4 must wait
    admission.leave(ChainId(0, 1))
    assert admission.decide() == []
    admission.leave(ChainId(0, 3))
    assert admission.decide() == [Admit(ChainId(0, 2), "w1")]
    admission.leave(ChainId(0, 0))
    assert admission.decide() == [Admit(ChainId(0, 4), "w0")]


def test_who_may_be_waiting_for_an_older_chain_does_not_keep_it_out() -> None:
    """Chains of newer visits on all workers wait for their turn, which comes when the older one is stored."""
    admission = Admission(2)
    admission.set_workers(["w0", "w1"])
    for i in range(1, 5):
        admission.add(ChainId(1, i))
        admission.ready(ChainId(1, i))
    assert len(admitted(admission.decide())) == 4
    first, second, third = (ChainId(0, i) for i in range(3))
    for chain in (first, second, third):  # their worker died
        admission.add(chain, suspect=True)
        admission.ready(chain)
    beside = admitted(admission.decide())
    assert set(beside) == {first, second} and set(beside.values()) == {"w0", "w1"}
    admission.leave(first)
    assert admitted(admission.decide()) == {third: beside[first]}


def test_newer_suspects_do_not_keep_an_older_chain_out() -> None:
    admission = Admission(2)
    admission.set_workers(["w0"])
    admission.add(ChainId(1, 0), suspect=True)
    admission.ready(ChainId(1, 0))
    assert admitted(admission.decide()) == {ChainId(1, 0): "w0"}
    for chain in (ChainId(0, 1), ChainId(1, 2)):
        admission.add(chain)
        admission.ready(chain)
    assert admitted(admission.decide()) == {ChainId(0, 1): "w0"}
    assert admission.decide() == []


@pytest.mark.parametrize("seed", range(100))
def test_whoever_dies_visits_that_wait_for_each_other_come_to_their_ends(seed: int) -> None:
    """Chains end when no older chain near them is left; workers die, with them results of chains that had ended."""
    rng = random.Random(seed)
    admission = Admission(rng.randint(1, 3))
    workers = [f"w{i}" for i in range(rng.randint(1, 4))]
    admission.set_workers(workers)
    unstarted = [ChainId(visit, i) for visit in rng.sample(range(6), rng.randint(2, 6)) for i in range(4)]
    alive: set[ChainId] = set()
    ready: set[ChainId] = set()
    held: dict[ChainId, str] = {}
    ended: list[ChainId] = []

    def begin(chain: ChainId, suspect: bool = False) -> None:
        alive.add(chain)
        admission.leave(chain)
        admission.add(chain, suspect)
        if chain in ready:
            admission.ready(chain)

    def kill(worker: str, new: str) -> None:
        workers[workers.index(worker)] = new
        for chain in [lost.chain for lost in admission.set_workers(workers)]:
            del held[chain]
            begin(chain, suspect=True)
        for chain in [chain for chain in ended if rng.random() < 0.1]:
            ended.remove(chain)
            begin(chain, suspect=True)

    def waits(chain: ChainId) -> bool:
        return any(other.visit < chain.visit and abs(other.index - chain.index) <= 1 for other in alive)

    for step in range(1000):
        for decision in admission.decide():
            if isinstance(decision, Admit):
                held[decision.chain] = decision.worker
            else:
                del held[decision.chain]
        able = [chain for chain in held if chain in ready and not waits(chain)]
        without = sorted(alive - ready)
        assert able or without or not alive, f"nobody can go on: {held}"
        chance = rng.random()
        if unstarted and (chance < 0.2 or not alive):
            begin(unstarted.pop(0))
        elif without and (chance < 0.5 or not able):
            chain = rng.choice(without)
            ready.add(chain)
            admission.ready(chain)
        elif chance < 0.6 and step < 500:
            kill(rng.choice(workers), f"w{step + 10}")
        elif able:
            chain = rng.choice(able)
            admission.leave(chain)
            del held[chain]
            alive.remove(chain)
            ended.append(chain)
    assert not alive and not unstarted


def test_at_least_one_chain_a_worker() -> None:
    with pytest.raises(ValueError, match="chains_per_worker is 0"):
        Admission(0)


def test_a_batch_closes_when_its_raft_is_complete_or_in_time() -> None:
    batches: Batches[str] = Batches(range(6), lambda detector: detector // 3, 5.0)
    for detector in (3, 4, 0):
        batches.add(detector, f"d{detector}", now=100.0 + detector)
    assert batches.closed(now=104.0) is None
    assert batches.next_due() == 105.0
    batches.add(5, "d5", now=104.5)
    assert batches.closed(now=104.5) == ["d3", "d4", "d5"]  # complete
    assert batches.closed(now=104.9) is None
    assert batches.closed(now=105.0) == ["d0"]  # five seconds after its first
    assert not batches.finished()
    batches.add(2, "d2", now=130.0)  # late: a later batch
    batches.add(1, "d1", now=131.0)
    assert batches.closed(now=131.0) == ["d2", "d1"]
    assert batches.finished() and batches.next_due() == float("inf")
