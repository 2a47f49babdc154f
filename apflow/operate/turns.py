"""The turns of a replay: raft after raft, where pixels of the whole focal plane have no room."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from apflow.io.butler import Repository
from apflow.model.camera import Camera
from apflow.simulate.scenario import Scenario
from apflow.simulate.templates import cells


def turns_of(scenario: Scenario, camera: Camera, rafts_at_a_time: int) -> list[Scenario]:
    """The scenario with the detectors of some rafts at a time, in their order; all at once for 0."""
    if not rafts_at_a_time:
        return [scenario]
    rafts: dict[str, list[int]] = {}
    for detector in scenario.detectors:
        rafts.setdefault(camera.detector(detector).raft, []).append(detector)
    groups = list(rafts.values())
    parts = (groups[i : i + rafts_at_a_time] for i in range(0, len(groups), rafts_at_a_time))
    return [dataclasses.replace(scenario, detectors=tuple(d for raft in part for d in raft)) for part in parts]


def truth_path(root: Path, turn: int) -> Path:
    """Where the truth of a turn is kept."""
    return root / "simulated" / (f"truth_{turn:02d}.parquet" if turn else "truth.parquet")


def make_room(root: Path, turns: Sequence[Scenario], turn: int) -> None:
    """Remove the pixels of a turn that is over, but for template cells that a later one needs, too."""
    later = {(c.tract, c.patch) for part in turns[turn + 1 :] for c in cells(part, part.detectors)}
    mine = {(c.tract, c.patch) for c in cells(turns[turn], turns[turn].detectors)}
    Repository.open(root, writeable=True).forget_pixels(turns[turn].detectors, mine - later)
