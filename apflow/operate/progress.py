"""What a replay shows while it works: visits, detectors by step, alerts."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from apflow.graph import Carried
from apflow.model.camera import Camera
from apflow.model.ledger import Outcome, State
from apflow.run import ChainEnded, GatherEnded, StepCounts


class ReplayProgress:
    """A live display on a terminal; on anything else a line at each end of a visit.

    Its methods may be called from any thread.
    """

    def __init__(self, console: Console, camera: Camera) -> None:
        self._console, self._camera = console, camera
        self._lock = threading.Lock()
        self._bars = Progress(
            TextColumn("{task.description:<22}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}
        self._expected: dict[int, int] = {}
        self._ended: dict[int, int] = {}
        self._failed = 0
        self._alerts = 0
        self._counts: dict[int, dict[str, dict[str, int]]] = {}
        self._live = Live(get_renderable=self._render, console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live.is_started:
            self._live.stop()

    def simulated(self, what: str, done: int, total: int) -> None:
        """Something was simulated."""
        with self._lock:
            self._bar(f"simulating {what}", done, total)
        if not self._console.is_terminal and done == total:
            self._console.print(f"simulated {total} {what}", highlight=False)

    def dashboard(self, link: str) -> None:
        """Where the Dask dashboard is."""
        self._console.print(f"dashboard: {link}")

    def expect(self, detectors: dict[int, int]) -> None:
        """How many detectors each visit will process."""
        with self._lock:
            self._expected = {v: n for v, n in detectors.items() if n}
            for visit, n in self._expected.items():
                self._bar(f"visit {visit}", 0, n)

    def event(self, event: object) -> None:
        """An event of the runner."""
        match event:
            case ChainEnded(visit, ended):
                with self._lock:
                    n = self._ended[visit] = self._ended.get(visit, 0) + 1
                    self._failed += ended.failure is not None
                    self._bar(f"visit {visit}", n, self._expected.get(visit, n))
            case StepCounts(visit, counts):
                with self._lock:
                    self._counts[visit] = {step: dict(states) for step, states in counts.items()}
            case GatherEnded(visit, result):
                self._gathered(visit, result)
            case _:
                pass

    def _gathered(self, visit: int, result: Carried) -> None:
        """A batch was published, or the whole visit reported."""
        value = result.value
        outcomes = [o for o in value if isinstance(o, Outcome)] if isinstance(value, tuple) else []
        steps = {record.step for record in result.steps}
        if "publish_alerts" in steps:
            with self._lock:
                self._alerts += sum(o.n_alerts for o in outcomes if o.published_unix is not None)
        elif outcomes and not self._console.is_terminal:
            done = sum(o.state is State.DONE for o in outcomes)
            alerts = sum(o.n_alerts for o in outcomes)
            text = f"visit {visit}: {done} of {len(outcomes)} detectors done, {alerts} alerts"
            self._console.print(text, highlight=False)

    def _bar(self, name: str, done: int, total: int) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=total)
        self._bars.update(self._tasks[name], completed=done, total=total)

    def _render(self) -> Group:
        with self._lock:
            table = Table("step", "waiting", "running", "done", box=None, header_style="dim")
            steps: dict[str, dict[str, int]] = {}
            for counts in self._counts.values():
                for step, states in counts.items():
                    row = steps.setdefault(step, {})
                    for state, n in states.items():
                        row[state] = row.get(state, 0) + n
            for step, row in steps.items():
                table.add_row(step, *(str(row.get(state, 0)) for state in ("waiting", "running", "done")))
            line = f"alerts published {self._alerts}   detectors failed {self._failed}"
        return Group(self._bars, table, line) if steps else Group(self._bars)
