"""When a batch of ended detectors closes: decisions only, no Dask."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from apflow.graph import by_group


class Batches[T]:
    """Collects what ended, group (raft) by group.

    A group's batch closes when all its detectors have ended, or `after_s`
    seconds after the first of the batch ended; later ones join a later batch.

    Parameters
    ----------
    detectors
        All detectors that will end.
    group_of
        Group of a detector; None: all are one group.
    after_s : `float`
        Longest wait of an ended detector, seconds.
    """

    def __init__(self, detectors: Sequence[int], group_of: Callable[[int], Hashable] | None, after_s: float) -> None:
        self._pending = {group: set(members) for group, members in by_group(detectors, group_of).items()}
        self._group = {detector: group for group, members in self._pending.items() for detector in members}
        self._open: dict[Hashable, tuple[float, list[T]]] = {}
        self._given: set[Hashable] = set()
        self._after_s = after_s

    def add(self, detector: int, item: T, now: float) -> bool:
        """A detector ended; gives whether it missed the first batch of its group."""
        group = self._group[detector]
        self._pending[group].discard(detector)
        self._open.setdefault(group, (now + self._after_s, []))[1].append(item)
        return group in self._given

    def closed(self, now: float) -> list[T] | None:
        """The next batch that is closed, if any; it is given once."""
        for group, (due, items) in self._open.items():
            if now >= due or not self._pending[group]:
                del self._open[group]
                self._given.add(group)
                return items
        return None

    def next_due(self) -> float:
        """When the next batch closes if nothing else ends."""
        return min((due for due, _ in self._open.values()), default=float("inf"))

    def finished(self) -> bool:
        """Whether every detector ended and is in a batch that was given."""
        return not self._open and not any(self._pending.values())
