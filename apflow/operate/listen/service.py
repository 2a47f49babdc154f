"""The service behind ``apflow listen``: doors and sightings in, the desk decides, the runs are driven."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

from apflow.config import Config
from apflow.errors import BadRequest, ServiceError
from apflow.io.arrivals import cancel, follow
from apflow.io.next_visit import Door, Notice
from apflow.model.camera import Camera
from apflow.model.ledger import State
from apflow.model.next_visit import parse
from apflow.model.sighting import Sighting
from apflow.model.visit import Visit
from apflow.operate.listen.actions import Action, Cancel, Ignore, Prepare, Restart, Start, Target, TimedOut
from apflow.operate.listen.desk import Desk
from apflow.operate.listen.journal import KEPT_S, Journal, target_from
from apflow.operate.listen.runs import PREPARED, Ended, Runs

_log = logging.getLogger(__name__)
#: How long the loop sleeps at most, and how often it looks whether all is well.
_LOOK_S = 0.5
_PAUSE_S = 1.0


class Service:
    """Takes what comes in, one thing after the other, in the thread that calls `run`.

    Each event is journaled before its door is told that it is done with, and
    before anything else is done about it.

    Parameters
    ----------
    desk : `Desk`
    doors : sequence of `Door`
    journal : `Journal`
    config : `Config`
    camera : `Camera`
    check : callable
        Called often, with this; raises what is wrong elsewhere.
    tell : callable
        Called with a line for whoever watches.
    """

    def __init__(
        self,
        desk: Desk,
        doors: Sequence[Door],
        journal: Journal,
        config: Config,
        camera: Camera,
        check: Callable[[Service], None],
        tell: Callable[[str], None],
    ) -> None:
        self._desk, self._doors, self._journal = desk, doors, journal
        self._config, self._instrument = config, camera.instrument
        self._check, self._tell = check, tell
        self._inbox: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._draining = False
        self._later: deque[Restart] = deque()
        self._filling: Restart | None = None
        self._came_s = time.monotonic()
        self._threads: list[threading.Thread] = []
        self._open_doors = len(doors)
        self._runs: Runs
        self.counts: Counter[str] = Counter()

    def post_ended(self, number: int, handle: Any) -> None:
        """A run came to its end; may be called by any thread."""
        self._inbox.put(("ended", number, handle))

    def run(self, runs: Runs) -> None:
        """Serve until every door is closed for good and nothing is left to wait for.

        Parameters
        ----------
        runs : `Runs`
            Its `post` is this service's `post_ended`.

        Raises
        ------
        ServiceError
            Something that is needed cannot be reached; what was told is kept, and the next service goes on.
        """
        self._runs = runs
        self._spawn(self._follow, "sightings")
        try:
            self._resume()
            for door in self._doors:
                self._spawn(self._pump, "door", door)
            while not self._is_over():
                self._turn()
        finally:
            self.close()

    def drain(self) -> None:
        """Begin nothing more, and be over when what runs has ended; what comes in waits for the next service."""
        if not self._draining:
            self._draining = True
            for door in self._doors:
                door.close()
            self._tell(f"draining: {self._runs.n_live()} visits or calibrations are under way")

    def again(self, visit: Target, graph: str, detectors: tuple[int, ...], reason: str, *, idle: bool) -> None:
        """Process those detectors of a visit that are not done.

        At once, or `idle`: when nothing was begun for the configured time; a
        visit that is announced goes before it.
        """
        restart = Restart(visit, graph, detectors, instead_of=visit, reason=reason)
        if idle:
            self._later.append(restart)
        else:
            self._start(restart, time.monotonic())

    def n_later(self) -> int:
        """How many visits wait until nothing else is to be done."""
        return len(self._later)

    def close(self) -> None:
        """End the threads."""
        self._stop.set()
        for door in self._doors:
            door.close()
        for thread in self._threads:
            thread.join(timeout=5.0)

    # Threads that post.

    def _spawn(self, target: Callable[..., None], name: str, *about: Any) -> None:
        thread = threading.Thread(target=self._guarded, args=(target, *about), name=f"listen {name}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _guarded(self, target: Callable[..., None], *about: Any) -> None:
        try:
            target(*about)
        except BaseException as error:  # raised by the loop, in the thread of the service
            self._inbox.put(("failed", error))

    def _pump(self, door: Door) -> None:
        for notice in door.notices():
            self._inbox.put(("notice", door, notice, time.monotonic()))
        self._inbox.put(("closed",))

    def _follow(self) -> None:
        with follow(self._config.butler, self._instrument, self._config.invocation.max_age_s / 3600.0) as follower:
            self._inbox.put(("sightings", follower.get(0.0), time.monotonic()))
            while not self._stop.is_set():
                try:
                    sightings = follower.get(_LOOK_S)
                except ServiceError as error:
                    _log.warning("what is told of images cannot be read: %s", error)
                    self._stop.wait(_PAUSE_S)
                    continue
                if sightings:
                    self._inbox.put(("sightings", sightings, time.monotonic()))

    # The loop.

    def _is_over(self) -> bool:
        if self._draining:
            return not self._runs.busy()
        return (
            bool(self._doors)
            and not self._open_doors
            and not self._runs.busy()
            and not self._desk.waiting()
            and self._desk.due_unix() is None
            and self._inbox.empty()
        )

    def _turn(self) -> None:
        due_unix = self._desk.due_unix()
        wait_s = _LOOK_S if due_unix is None else min(_LOOK_S, max(0.0, due_unix - time.time()))
        try:
            what, *about = self._inbox.get(timeout=wait_s)
        except queue.Empty:
            what, about = "", []
        self._check(self)
        if self._draining and what in ("", "notice", "sightings"):
            return
        if not what or (due_unix is not None and time.time() >= due_unix):
            self._do(self._desk.tick(time.time()), time.monotonic())
            self._fill_gap()
        match what:
            case "notice":
                self._take(*about)
            case "sightings":
                self._see(*about)
            case "ended":
                self._ended(*about)
            case "closed":
                self._open_doors -= 1
            case "failed":
                raise about[0]

    def _take(self, door: Door, notice: Notice, since: float) -> None:
        self.counts[notice.kind or "events"] += 1
        if notice.message is None:
            self.counts["refused"] += 1
            self._tell(f"skipped {notice.place}: {notice.refusal}")
            door.done(notice)
            return
        now = time.time()
        actions = self._desk.take(notice.message, now)
        if not actions or any(not isinstance(action, Ignore) or action.kept for action in actions):
            self._journal.told(now, notice.kind, notice.record)
        door.done(notice)
        self._do(actions, since)

    def _see(self, sightings: Sequence[Sighting], since: float) -> None:
        for sighting in sightings:
            self.counts["sightings"] += 1
            self._do(self._desk.see(sighting, time.time()), since)

    def _ended(self, number: int, handle: Any) -> None:
        since_s = self._runs.since(number)
        ended = self._runs.ended(number, handle)
        if ended is None:
            return
        self._tell(_summary(ended, since_s))
        self._do(self._desk.ended(ended.visit, time.time()), time.monotonic())

    def _do(self, actions: Sequence[Action], since: float) -> None:
        for action in actions:
            match action:
                case Prepare():
                    ready = self._runs.prepare(action)
                    self._tell(f"group {action.group} is announced{'' if ready else '; nothing is to be prepared'}")
                case Start():
                    self._start(action, since)
                case Cancel():
                    self._cancel(action)
                case TimedOut():
                    self._close_group(action.group, str(State.IMAGE_TIMEOUT))
                case Ignore():
                    self.counts["ignored"] += 1
                    self._tell(f"{action.what} is ignored: {action.reason}")

    def _fill_gap(self) -> None:
        """Begin what can wait, one visit at a time."""
        idle_s = time.monotonic() - self._came_s
        if self._later and not self._runs.busy() and idle_s >= self._config.night.catch_up_after_s:
            self._filling = self._later.popleft()
            self._begin(self._filling, time.monotonic())

    def _start(self, action: Start, since: float) -> None:
        self._came_s = time.monotonic()
        filling, self._filling = self._filling, None
        if filling is not None and self._runs.put_off(filling.visit):
            self._later.appendleft(filling)
            self._tell(f"{_name(filling.visit)} steps aside")
        self._begin(action, since)

    def _begin(self, action: Start, since: float) -> None:
        target = action.visit
        if isinstance(target, Visit):
            self._runs.end_preparation(target.group)
        left = self._runs.start(action)
        if isinstance(action, Restart):
            self._tell(f"{_name(target)} begins anew: {action.reason or 'it did before'}")
        elif left:
            after_ms = 1e3 * (time.monotonic() - since)
            self._tell(
                f"{_name(target)} of group {target.group}: {left} detectors, {after_ms:.0f} ms after it was known"
            )
        if not left:
            self._desk.ended(target, time.time())

    def _cancel(self, action: Cancel) -> None:
        if action.group:
            cancel(self._config.butler, self._instrument, action.group)
            self._runs.end_preparation(action.group)
        if action.visit is None:
            self._close_group(action.group, str(State.CANCELLED))
        else:
            self._runs.cancel(action.visit, action.reason)
            self._tell(f"{_name(action.visit)} of group {action.visit.group} is cancelled: {action.reason}")

    def _close_group(self, group: str, state: str) -> None:
        """The waiting for a visit ended that never had a number: its detectors' states are in the journal."""
        self._runs.end_preparation(group)
        self._journal.closed(time.time(), group, state, self._runs.detectors)
        self.counts[state] += len(self._runs.detectors)
        self._tell(f"group {group}: {len(self._runs.detectors)} {state}")

    # What an earlier service left.

    def _resume(self) -> None:
        now = time.time()
        cancelled: dict[str, Cancel] = {}
        begun: dict[int, Target] = {}
        for entry in self._journal.entries(now - KEPT_S):
            match entry["what"]:
                case "told":
                    for action in self._replayed(entry):
                        cancelled[action.group] = action
                case "started":
                    target = target_from(entry)
                    begun[target.visit] = target
                    self._desk.resume(target, entry["graph"], entry["again"], entry["unix"])
                case "ended":
                    if entry["visit"] in begun:
                        self._desk.ended(begun[entry["visit"]], entry["unix"])
                    cancelled = {g: a for g, a in cancelled.items() if not a.visit or a.visit.visit != entry["visit"]}
                case "closed":
                    self._desk.close_group(entry["group"], entry["unix"])
                    cancelled.pop(entry["group"], None)
        what, *about = self._inbox.get()  # the first word of the follower
        if what == "failed":
            raise about[0]
        actions = list(self._desk.unfinished())
        if actions:
            self._tell(f"{len(actions)} visits or calibrations were under way")
        self._do([*cancelled.values(), *actions], time.monotonic())
        self._see(*about)

    def _replayed(self, entry: dict[str, Any]) -> list[Cancel]:
        try:
            message = parse(entry["kind"], entry["record"])
        except BadRequest as error:  # an earlier version took it
            _log.warning("an event in the journal is skipped: %s", error)
            return []
        return [action for action in self._desk.take(message, entry["unix"]) if isinstance(action, Cancel)]


def _name(target: Target) -> str:
    return f"visit {target.visit}" if isinstance(target, Visit) else f"{target.intent} {target.image}"


def _summary(ended: Ended, since_s: float) -> str:
    told = ", ".join(f"{n} {state}" for state, n in sorted(ended.states.items()))
    alerts = f", {ended.n_alerts} alerts" if ended.n_alerts else ""
    cause = f"; {ended.cause}" if ended.cause else ""
    what = f"group {ended.visit.group}" if PREPARED in ended.states else _name(ended.visit)
    return f"{what}: {told}{alerts} in {since_s:.2f} s{cause}"
