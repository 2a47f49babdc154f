"""What ``cluster/visit.sh`` does before and after `pipetask`.

``ready FILE`` checks the arguments, waits for the images, makes the RUN ready
and writes what `pipetask` is to be told; ``settle CODE`` finds out how a
detector-visit ended whose task left no word.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from apflow import cli
from apflow.cli import EXIT_CODES
from apflow.errors import BadRequest, ServiceError
from apflow.io.arrivals import await_images
from apflow.io.atomic import atomic
from apflow.io.butler import Repository, output_run
from apflow.io.butler.paths import defaults_chain, prompt_chain
from apflow.io.ppdb import open_ppdb
from apflow.model.ledger import Outcome, State
from apflow.model.visit import Visit
from apflow.operate.detector import Request, await_visit, check_request, done_before
from apflow.pipetask.ending import line_of

if TYPE_CHECKING:
    from lsst.daf.butler import Butler

PIPELINE = "alert_production.yaml"
_LABEL = "alertProduction"
_LOCK = "run.lock"
_USAGE = "CCD RA DEC FILTER|none EXPTIME BUTLER IMAGE [IMAGE2]"
_OPTIONS = ("--timeout", "--ppdb", "--alerts")
#: A registry or PPDB that is away when only the rest is to be done.
_PATIENCE_S = 60.0


def main(words: Sequence[str] | None = None, **_: object) -> int:
    """Do one of the two; gives the exit code."""
    what, first, *arguments = sys.argv[1:] if words is None else words
    request, options = request_of(arguments)
    if what == "settle":
        return settle(request, int(first))
    return ready(request, Path(first), options)


def ready(request: Request, file: Path, options: Mapping[str, str]) -> int:
    """Wait for the images and write what `pipetask` is to be told; write nothing where the detector is done."""
    with open_ppdb(request.config.ppdb_url, create=True) as database:
        if (before := done_before(database, request)) is not None:
            print(line_of(before))
            return EXIT_CODES[before.state]
        visit, config = await_visit(database, request)
    snaps = await_images(
        config.butler,
        visit.instrument,
        visit.group,
        request.detector.id,
        nsnaps=visit.nsnaps,
        timeout_s=config.timing.image_timeout_s,
        images=visit.images,
    )
    run = output_run(visit, config)
    prepare_run(config.butler, visit, run)
    exposures = ", ".join(str(raw.exposure) for raw in snaps.raws)
    lines = [
        config.butler,
        str(resources.files("apflow.graphs") / PIPELINE),
        defaults_chain(visit.instrument),
        run,
        f"instrument='{visit.instrument}' AND exposure IN ({exposures}) AND detector={request.detector.id}",
    ]
    fields = {"butler": config.butler, "images": json.dumps(visit.images)}
    fields |= {name: options[f"--{name}"] for name in ("ppdb", "alerts") if f"--{name}" in options}
    for name, value in fields.items():
        lines += ["-c", f"{_LABEL}:{name}={value}"]
    with atomic(file) as part:
        part.write("".join(f"{line}\n" for line in lines).encode())
    return 0


def prepare_run(root: str, visit: Visit, run: str) -> None:
    """Make the RUN with its dataset types, configuration and versions, once for all jobs that share it.

    One job does it while the others wait; afterwards it costs a query. All
    jobs must see the repository's folder, where the lock is.
    """
    repository = Repository.open(root, writeable=True)
    if _is_prepared(repository.butler, run):
        return
    with _alone(repository.root / _LOCK):
        if _is_prepared(repository.butler, run):
            return
        from lsst.pipe.base import Pipeline

        butler, chain = repository.butler, prompt_chain(visit.instrument)
        graph = Pipeline.from_uri(str(resources.files("apflow.graphs") / PIPELINE)).to_graph(butler.registry)
        graph.register_dataset_types(butler)
        if butler.collections.register(run) or run not in butler.collections.get_info(chain).children:
            butler.collections.prepend_chain(chain, run)
        # It misses a package manager that pip does without.
        logging.getLogger("lsst.utils.packages").setLevel(logging.ERROR)
        # The packages come last, so a RUN that has them has everything.
        with butler.clone(run=run) as writer:
            graph.init_output_run(writer)


def _is_prepared(butler: Butler, run: str) -> bool:
    from lsst.daf.butler import MissingCollectionError, MissingDatasetTypeError

    butler.registry.refresh()
    try:
        return bool(butler.query_datasets("packages", run, find_first=False, explain=False))
    except (MissingCollectionError, MissingDatasetTypeError):
        return False


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def settle(request: Request, code: int) -> int:
    """Say how a detector-visit ended whose task left no word, and see to what it left over.

    The ledger is the truth: what it says is done is done, whatever became of
    `pipetask` after that. Else it failed, and the ledger says so from now on.
    """
    with open_ppdb(request.config.ppdb_url, create=True) as database:
        outcome = _patiently(lambda: done_before(database, request))
        if outcome is None:
            cause = f"pipetask ended with exit code {code} before the steps did"
            visit = request.visit
            outcome = Outcome(visit.instrument, visit.visit, request.detector.id, State.FAILED, cause, "pipetask")
            database.settle([outcome])
    print(line_of(outcome), file=sys.stdout if outcome.state is State.DONE else sys.stderr)
    return EXIT_CODES[outcome.state]


def _patiently[T](do: Callable[[], T]) -> T:
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return do()
        except ServiceError:
            if time.monotonic() > deadline:
                raise
            time.sleep(1.0)


def request_of(words: Sequence[str]) -> tuple[Request, dict[str, str]]:
    """The arguments of ``visit.sh``, checked, and those of its options that are given.

    Raises
    ------
    BadRequest
        One is missing, not known or not acceptable.
    """
    # A declination may begin with a dash; options begin with two.
    given = list(itertools.takewhile(lambda word: not word.startswith("--"), words))
    rest = words[len(given) :]
    options = dict(zip(rest[::2], rest[1::2], strict=False))
    for name in options:
        if name not in _OPTIONS:
            raise BadRequest(f"option {name!r} is unknown; accepted: {', '.join(_OPTIONS)}")
    if len(rest) % 2:
        raise BadRequest(f"option {rest[-1]!r} has no value; accepted: {', '.join(_OPTIONS)}, each with one")
    if len(given) not in (7, 8):
        raise BadRequest(f"{len(given)} arguments are not accepted: {_USAGE}")
    ccd, ra, dec, physical_filter, exptime, butler, *images = given
    request = check_request(
        ccd,
        _number("RA", ra, 0, 360),
        _number("DEC", dec, -90, 90),
        _number("EXPTIME", exptime, 0, 3600),
        physical_filter,
        butler,
        images,
        ppdb=options.get("--ppdb", ""),
        alerts=options.get("--alerts", ""),
        timeout_s=_number("--timeout", options.get("--timeout", "120"), 0, 86_400),
    )
    return request, options


def _number(name: str, text: str, low: float, high: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = None
    if value is None or not low <= value <= high:
        raise BadRequest(f"{name} {text!r} is not accepted: a number from {low:g} to {high:g}")
    return value


if __name__ == "__main__":
    cli.main(command=main)
