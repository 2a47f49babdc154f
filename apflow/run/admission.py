"""Which detector chains may hold images, templates and calibs, and on which worker: decisions only, no Dask.

A chain that is admitted to a worker holds memory there until it ends. At most
`chains_per_worker` chains are admitted to a worker. While chains are fewer
than that they are admitted before their image has come (prefetch). Once an
image has come its chain is *ready* and takes the place of one that is not:
waiting for an image never blocks an image that is there.

A chain that takes too long may hold a second worker that has nothing to compute.

A chain whose worker died is *suspect*: it may have killed it. It is admitted
alone to a worker, so that the next time it takes no other with it.

Visits are ordered by their numbers, as they wait for each other, in whatever
order they were started. A ready chain of an older visit may exceed the limit
on a worker that holds only chains of newer visits: these may be waiting for it
to be stored. A worker so holds, at most, one chain more for each visit in flight.
For the same reason such chains do not keep a suspect, nor do suspects among
them keep a chain, from their worker.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class ChainId:
    """A detector chain: the visit's number, smaller for older ones, and the detector's place in the visit."""

    visit: int
    index: int


@dataclass(frozen=True)
class Admit:
    """The chain may start on the worker."""

    chain: ChainId
    worker: str


@dataclass(frozen=True)
class Evict:
    """The chain must let go of what it prefetched; it will be admitted again."""

    chain: ChainId


class Admission:
    """The state of admission on all workers; not thread-safe.

    Parameters
    ----------
    chains_per_worker : `int`
        Chains that may hold memory on one worker at once.
    """

    def __init__(self, chains_per_worker: int) -> None:
        if chains_per_worker < 1:
            raise ValueError(f"chains_per_worker is {chains_per_worker}; accepted: 1 or more")
        self._limit = chains_per_worker
        self._holders: dict[str, set[ChainId]] = {}
        self._reserved: str | None = None  # until it is empty, for a suspect
        self._outside: dict[ChainId, None] = {}  # not admitted; in the order in which images came once ready
        self._ready: set[ChainId] = set()
        self._suspect: set[ChainId] = set()

    def set_workers(self, workers: Sequence[str]) -> list[Admit]:
        """The workers that are there now; gives the chains that lost theirs, which must be added again."""
        gone = [worker for worker in self._holders if worker not in workers]
        lost = [Admit(chain, worker) for worker in gone for chain in sorted(self._holders[worker])]
        self._holders = {worker: self._holders.get(worker, set()) for worker in workers}
        return lost

    def add(self, chain: ChainId, suspect: bool = False) -> None:
        """A chain exists; its image has not come."""
        self._outside[chain] = None
        if suspect:
            self._suspect.add(chain)

    def ready(self, chain: ChainId) -> None:
        """The chain's image has come."""
        self._ready.add(chain)
        if chain in self._outside:
            del self._outside[chain]
            self._outside[chain] = None

    def lend(self, chain: ChainId) -> Admit | None:
        """A second worker for a chain that holds one: it has a place and no chain whose image has come."""
        idle = [w for w in self._open() if not self._holders[w] & self._ready and len(self._holders[w]) < self._limit]
        if not idle:
            return None
        worker = min(idle, key=lambda w: len(self._holders[w]))
        self._holders[worker].add(chain)
        return Admit(chain, worker)

    def leave(self, chain: ChainId) -> None:
        """The chain ended, or was given up."""
        self._outside.pop(chain, None)
        self._ready.discard(chain)
        self._suspect.discard(chain)
        for holders in self._holders.values():
            holders.discard(chain)

    def decide(self) -> list[Admit | Evict]:
        """What is to be done now; the state already counts it as done."""
        decided: list[Admit | Evict] = []
        self._reserved = None
        ready = (chain for chain in self._outside if chain in self._ready)
        for chain in sorted(ready, key=lambda c: (c.visit, c not in self._suspect)):
            if chain in self._suspect:
                worker = self._alone(chain, decided)
            else:
                worker = self._free(chain) or self._by_eviction(decided) or self._over_limit(chain)
            if worker is not None:
                decided.append(self._admit(chain, worker))
            elif chain not in self._suspect:
                break  # nor is there a place for those behind it
        for chain in sorted(c for c in self._outside if c not in self._ready and c not in self._suspect):
            worker = self._free(chain)
            if worker is None:
                break
            decided.append(self._admit(chain, worker))
        return decided

    def _open(self) -> list[str]:
        """Workers where a chain may be beside others."""
        return [w for w, held in self._holders.items() if w != self._reserved and not held & self._suspect]

    def _alone(self, chain: ChainId, decided: list[Admit | Evict]) -> str | None:
        """A worker without other chains but newer ones; if there is none, one is kept from others until it is."""

        def in_the_way(worker: str) -> set[ChainId]:
            return {other for other in self._holders[worker] & self._ready if other.visit <= chain.visit}

        free = [w for w in self._holders if not in_the_way(w) & self._suspect]
        if self._reserved is not None or not free:
            return None
        worker = min(free, key=lambda w: (len(in_the_way(w)), len(self._holders[w] & self._ready)))
        for other in sorted(self._holders[worker] - self._ready):
            self._evict(other, worker, decided)
        if in_the_way(worker):
            self._reserved = worker
            return None
        return worker

    def _evict(self, chain: ChainId, worker: str, decided: list[Admit | Evict]) -> None:
        self._holders[worker].discard(chain)
        self._outside[chain] = None
        decided.append(Evict(chain))

    def _admit(self, chain: ChainId, worker: str) -> Admit:
        del self._outside[chain]
        self._holders[worker].add(chain)
        return Admit(chain, worker)

    def _free(self, chain: ChainId) -> str | None:
        """The emptiest worker; among equals always the same one for the same detector."""
        place = {worker: (i - chain.index) % len(self._holders) for i, worker in enumerate(self._holders)}
        free = [worker for worker in self._open() if len(self._holders[worker]) < self._limit]
        return min(free, key=lambda w: (len(self._holders[w]), place[w])) if free else None

    def _by_eviction(self, decided: list[Admit | Evict]) -> str | None:
        waiting = [(chain, worker) for worker in self._open() for chain in self._holders[worker] - self._ready]
        if not waiting:
            return None
        chain, worker = max(waiting)
        self._evict(chain, worker, decided)
        return worker

    def _over_limit(self, chain: ChainId) -> str | None:
        others = {w: held for w, held in self._holders.items() if w != self._reserved}
        newer = [w for w, held in others.items() if all(other.visit > chain.visit for other in held)]
        return min(newer, key=lambda w: len(self._holders[w])) if newer else None
