"""Processes that take overlapping visits through the steps that touch the PPDB and the archive, to be killed."""

from __future__ import annotations

import dataclasses
import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from overlap_sky import FIRST, Sky

from apflow.config import Config
from apflow.errors import ApflowError
from apflow.io.ppdb import open_ppdb
from apflow.model.ledger import Ended
from apflow.steps.associate import load_history
from apflow.steps.batches import archive_packets, publish_alerts, write_ppdb

Say = Callable[[str], None]
#: The next visit and how long it waits for others, seconds; None for the end.
Ask = Callable[[], tuple[int, float] | None]
_PRELOAD = ["apflow.steps.batches", "apflow.io.ppdb.embedded", "apflow.io.ppdb.postgres.server"]
#: How long others wait for a detector-visit.
DEADLINE_S = 60.0
_SILENCE_S = 90.0


def run_visit(say: Say, sky: Sky, config: Config, k: int) -> None:
    """All detectors of a visit, by the calls that the graph's steps make; says what comes next, and what is done."""
    ppdb, visit, regions = open_ppdb(config.ppdb_url), sky.visit(k), sky.regions(k)
    say("before openVisit")
    ppdb.openVisit(visit, regions, time.time() + DEADLINE_S)
    say("after openVisit")
    ended = []
    for detector, region in regions.items():
        say("before awaitTurn")
        ppdb.awaitTurn(FIRST + k, detector, config.timing.order_timeout_s)
        say("after awaitTurn")
        history = load_history(region, sky.sources(k, detector), sky.mjd(k), config)
        say("after getHistory")
        ended.append(Ended(detector, sky.process(k, detector, history, config)))
    say("before append")
    archived = archive_packets(visit, tuple(ended), config)
    say("after append")
    stored = write_ppdb(archived, config)
    say("after settle")
    publish_alerts(stored, config)
    say("after publish")


def serve_visits(say: Say, ask: Ask, sky: Sky, config: Config) -> None:
    """Run the visits that are asked for, each until it is through or fails."""
    open_ppdb(config.ppdb_url).ledger()
    say("ready")
    while (asked := ask()) is not None:
        k, order_timeout_s = asked
        timing = dataclasses.replace(config.timing, order_timeout_s=order_timeout_s)
        try:
            run_visit(say, sky, dataclasses.replace(config, timing=timing), k)
        except ApflowError as error:
            say(f"failed {type(error).__name__}: {error}")
        say("ended")


def own(say: Say, ask: Ask, url: str) -> None:
    """Own an embedded database until asked to end."""
    with open_ppdb(url):
        say("ready")
        ask()


def _main(connection: Connection, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    function(connection.send, connection.recv, *arguments)


class Process:
    """A process that runs a function, is asked and says."""

    def __init__(self, function: Callable[..., None], *arguments: Any) -> None:
        context = multiprocessing.get_context("forkserver")
        # What is installed: the server of forks does not know where benchmarks lie.
        context.set_forkserver_preload(_PRELOAD)
        self._connection, its = context.Pipe()
        self._process = context.Process(target=_main, args=(its, function, arguments), daemon=True)
        self._process.start()
        its.close()

    def ask(self, what: object) -> None:
        """Give it something to do; None ends it."""
        self._connection.send(what)

    def hear(self) -> str:
        """What it says next; ``dead`` when it is."""
        if not self._connection.poll(_SILENCE_S):
            raise TimeoutError(f"process {self._process.pid} said nothing for {_SILENCE_S:g} s")
        try:
            return str(self._connection.recv())
        except (EOFError, ConnectionResetError):
            return "dead"

    def until(self, *what: str) -> list[str]:
        """All that it says up to one of some lines."""
        heard = [self.hear()]
        while heard[-1] not in (*what, "dead"):
            heard.append(self.hear())
        return heard

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.join()

    def end(self) -> None:
        """Let it come to its end."""
        self.ask(None)
        self._process.join()
