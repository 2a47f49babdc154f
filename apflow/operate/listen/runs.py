"""Runs of graphs on the cluster: at most one of a visit at a time, each written down before it begins.

Calibrations run on the same workers. Where they compete with a visit, its
detectors are admitted and its tasks run first, as of a visit with a smaller
number; a step that began is not interrupted.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from apflow.config import Config
from apflow.errors import ApflowError
from apflow.graphs import alert_production, raw_calibration
from apflow.io.arrivals.board import CANCELLED, GROUPS, Key, Place, open_board
from apflow.io.ppdb import Ppdb
from apflow.model.calibration import CalibrationExposure
from apflow.model.ledger import Outcome, State
from apflow.model.products import Preparation
from apflow.model.visit import Visit
from apflow.operate.calibration.report import keep_report
from apflow.operate.detector import outcomes_of
from apflow.operate.listen.actions import Prepare, Restart, Start, Target
from apflow.operate.listen.journal import Journal
from apflow.operate.listen.rules import RAW_CALIBRATION
from apflow.operate.night.recorder import Recorder
from apflow.run.on_dask import DaskRunner, VisitHandle

_log = logging.getLogger(__name__)
Graph = Callable[..., Any]

#: What rules may name.
GRAPHS: Mapping[str, Graph] = {"alert_production": alert_production.visit, RAW_CALIBRATION: raw_calibration.exposure}
#: What runs at nextVisit, for the graphs that have such a part.
PREPARATIONS: Mapping[str, Graph] = {"alert_production": alert_production.prepare}
#: Sequence numbers of preparations: beyond those of real exposures, whose ids they must not meet.
_FIRST_SEQUENCE, _SEQUENCES = 90_000, 10_000
#: Not a state of a detector-visit: its inputs are at hand.
PREPARED = "prepared"
#: States that a first run need not leave alone: a visit that was cancelled may be taken all the same.
_OPEN = ("expected", str(State.CANCELLED))


@dataclass(eq=False)
class _Run:
    """A run in flight; `detectors` are those that are to come to an end."""

    visit: Target
    graph: str
    detectors: tuple[int, ...]
    handle: VisitHandle
    group: str = ""  # of a preparation
    began: float = 0.0
    dropped: bool = False


@dataclass(frozen=True)
class Ended:
    """What became of a run: how many detectors in each state, alerts, and the first cause of one that is not done.

    Of a calibration the cause may be why a detector is not acceptable.
    """

    visit: Target
    states: Mapping[str, int]
    n_alerts: int = 0
    cause: str = ""


class Runs:
    """Starts, cancels and ends what the desk decides; of one thread.

    Parameters
    ----------
    runner : `DaskRunner`
    ppdb : `Ppdb`
    config : `Config`
    journal : `Journal`
    detectors : sequence of `int`
        Those that are processed, of whatever is expected.
    recorder : `Recorder`
        Is told of visits and their ends.
    post : callable
        Called by other threads with the number and the handle of a run that
        came to its end; `ended` is to be called with both.
    """

    def __init__(
        self,
        runner: DaskRunner,
        ppdb: Ppdb,
        config: Config,
        journal: Journal,
        detectors: Sequence[int],
        recorder: Recorder,
        post: Callable[[int, VisitHandle], None],
    ) -> None:
        self._runner, self._ppdb, self._config, self._journal = runner, ppdb, config, journal
        self.detectors, self._recorder, self._post = tuple(detectors), recorder, post
        self._live: dict[int, _Run] = {}
        self._next: dict[int, Start] = {}
        self._prepared = 0

    def busy(self) -> bool:
        """Whether anything runs, or is to run."""
        return bool(self._live or self._next)

    def n_live(self) -> int:
        """How many run."""
        return len(self._live)

    def prepare(self, action: Prepare) -> bool:
        """Begin to make ready for a visit; whether its graph has such a part."""
        graph = PREPARATIONS.get(action.graph)
        if graph is None:
            return False
        self.end_preparation(action.group)
        sequence = _FIRST_SEQUENCE + self._prepared % _SEQUENCES
        self._prepared += 1
        visit = dataclasses.replace(action.visit, visit=action.visit.visit // 100_000 * 100_000 + sequence)
        self._run(graph, action.graph, visit, self.detectors, self._config, action.group)
        return True

    def end_preparation(self, group: str) -> None:
        """Give up what is being made ready for a group."""
        for run in self._live.values():
            if run.group and run.group == group:
                run.dropped = True
                run.handle.drop()

    def start(self, action: Start) -> int:
        """Run a graph, after what runs for the same has ended; gives how many detectors are left, -1 for later."""
        number = action.visit.visit
        if number in self._live:
            self._live[number].handle.drop()
            self._next[number] = action
            return -1
        return self._begin(action)

    def put_off(self, visit: Target) -> bool:
        """Give up what runs for a visit without an end, for the time being; whether anything did."""
        run = self._live.get(visit.visit)
        if run is None:
            return False
        run.dropped = True
        run.handle.drop()
        return True

    def cancel(self, visit: Target, reason: str) -> None:
        """End every unfinished detector as cancelled."""
        self._next.pop(visit.visit, None)
        if visit.visit in self._live:
            self._live[visit.visit].handle.cancel()
        else:
            self.settle(visit, State.CANCELLED, reason)

    def ended(self, number: int, handle: VisitHandle) -> Ended | None:
        """A run came to its end; None where that is not the end of its visit."""
        run = self._live.get(number)
        if run is None or run.handle is not handle:
            return None
        del self._live[number]
        following = self._next.pop(number, None)
        if following is not None:
            self._begin(following)
        if following is not None or run.dropped:
            return None
        try:
            result, cause = handle.result(0.0), ""
        except ApflowError as error:
            result, cause = None, str(error)
        if run.group:
            return _prepared(run.visit, result, cause)
        if result is None:
            self.settle(run.visit, State.FAILED, cause, run.detectors)
            return Ended(run.visit, {str(State.FAILED): len(run.detectors)}, cause=cause)
        outcomes: Sequence[Outcome] = result
        states = Counter(str(o.state) for o in outcomes)
        if isinstance(run.visit, Visit):
            self._recorder.ended(number, outcomes)
        self._journal.ended(time.time(), number, states)
        return Ended(
            run.visit, states, sum(o.n_alerts for o in outcomes), next((o.cause for o in outcomes if o.cause), "")
        )

    def settle(self, visit: Target, state: State, cause: str, detectors: Sequence[int] = ()) -> None:
        """Write a terminal state for the detectors that have none; of calibrations the ledger knows nothing."""
        left = self._left(visit, detectors or self.detectors, again=False)
        if isinstance(visit, Visit):
            outcomes = [Outcome(visit.instrument, visit.visit, d, state, cause, "listen") for d in left]
            self._recorder.started(visit, left)
            self._ppdb.settle(outcomes)
            self._recorder.ended(visit.visit, outcomes)
        self._journal.ended(time.time(), visit.visit, {str(state): len(left)})

    def since(self, number: int) -> float:
        """Seconds since a run began."""
        return time.monotonic() - self._live[number].began if number in self._live else 0.0

    def _begin(self, action: Start) -> int:
        wanted = self.detectors if action.detectors is None else sorted(set(self.detectors) & set(action.detectors))
        again = isinstance(action, Restart)
        left = self._left(action.visit, wanted, again)
        if isinstance(action.visit, Visit):
            self._record(action.visit, left)
        if not left:
            return 0
        self._journal.started(time.time(), action.visit, action.graph, left, again)
        timing = self._config.timing
        timing = dataclasses.replace(timing, image_timeout_s=timing.image_timeout_s + action.exposing_s)
        config = dataclasses.replace(self._config, timing=timing)
        visit = self._reachable(action.visit) if isinstance(action.visit, Visit) else action.visit
        self._run(GRAPHS[action.graph], action.graph, visit, left, config)
        return len(left)

    def _record(self, visit: Visit, left: Sequence[int]) -> None:
        """A visit begins; ends that an earlier service had no time to tell are told again."""
        told = self._recorder.knows(visit.visit)
        ended = [o for o in outcomes_of(self._ppdb, [visit.visit]) if o.detector not in left]
        self._recorder.started(visit, [*left, *(o.detector for o in ended)])
        if ended and not told:
            self._recorder.ended(visit.visit, ended, all_of_it=not left)

    def _run(
        self, graph: Graph, name: str, visit: Target, detectors: Sequence[int], config: Config, group: str = ""
    ) -> None:
        handle = self._runner.start(graph, visit, list(detectors), config)
        number = visit.visit
        self._live[number] = _Run(visit, name, tuple(detectors), handle, group, time.monotonic())
        threading.Thread(target=self._watch, args=(visit, handle), name=f"end of {number}", daemon=True).start()

    def _watch(self, visit: Target, handle: VisitHandle) -> None:
        try:
            outcomes = handle.result()
        except Exception as error:  # told again, by whoever asks the handle
            _log.debug("visit %d: %s", visit.visit, error)
        else:
            if isinstance(visit, CalibrationExposure):
                keep_report(visit, outcomes, self._config)
        finally:
            self._post(visit.visit, handle)

    def _left(self, visit: Target, detectors: Sequence[int], again: bool) -> list[int]:
        """Detectors that did not come to an end; `again`: those that are not done.

        A calibration is checked whole: again it makes the same files.
        """
        if isinstance(visit, CalibrationExposure):
            return list(detectors)
        rows = self._ppdb.table("ledger", {"visit": [visit.visit]})
        rows = rows[rows["instrument"] == visit.instrument]
        states = dict(zip(rows["detector"].astype(int), rows["state"].astype(str), strict=True))
        if again:
            return [d for d in detectors if states.get(d) != State.DONE]
        return [d for d in detectors if states.get(d, "expected") in _OPEN]

    def _reachable(self, visit: Visit) -> Visit:
        """A visit whose images can be waited for: by their names alone where its group was cancelled before."""
        key = Key(Place(visit.instrument, GROUPS, visit.group), CANCELLED)
        with open_board(self._config.butler) as board:
            return dataclasses.replace(visit, group="") if board.get([key]) else visit


def _prepared(visit: Target, preparation: Preparation | None, cause: str) -> Ended:
    if preparation is None:
        return Ended(visit, {PREPARED: 0}, cause=cause)
    return Ended(visit, {PREPARED: len(preparation.detectors)}, cause=next(iter(preparation.causes.values()), ""))
