"""Images that come early, in time, late, bad or never, and those who wait for them (D7)."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from apflow.errors import ApflowError, BadRequest, DataError, ImageTimeout, VisitCancelled
from apflow.io import fits
from apflow.io.arrivals import Ingestor, await_images, await_named_images, cancel
from apflow.io.arrivals.announce import arrived, rejected
from apflow.io.arrivals.board import open_board
from apflow.io.butler import Repository, paths
from apflow.model.products import Snaps
from tests.io import builders

IMAGE = "CC_O_20250420_000123"
SECOND = "CC_O_20250420_000124"
GROUP = builders.info().group


def wait(root: Path, detector: int = 4, timeout_s: float = 10.0, images: tuple[str, ...] = (IMAGE,)) -> Snaps:
    return await_images(root, "LSSTComCam", GROUP, detector, nsnaps=len(images), timeout_s=timeout_s, images=images)


def land(staging: Path, landing: Path, header: Any = None, **options: Any) -> Path:
    """A raw that appears in the landing folder by a rename."""
    source = builders.raw_file(staging, header or builders.info(), **options)
    target = landing / source.name
    os.replace(source, target)
    return target


def ended(task: Callable[[], Any]) -> Any:
    """What a call gives: its value, or its error."""
    try:
        return task()
    except ApflowError as error:
        return error


def until(true: Callable[[], bool], timeout_s: float = 5.0) -> bool:
    """Whether something comes true in time."""
    deadline = time.monotonic() + timeout_s
    while not true() and time.monotonic() < deadline:
        time.sleep(0.02)
    return true()


@pytest.fixture
def root(either_root: Path) -> Path:
    """A repository with either kind of registry."""
    return either_root


@pytest.fixture
def landing(root: Path, tmp_path: Path) -> Iterator[Path]:
    """A landing folder from which images are ingested."""
    with Ingestor(root, tmp_path / "landing", settle_s=0.2):
        yield tmp_path / "landing"


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as executor:
        yield executor


def test_an_image_that_comes_while_it_is_awaited(root: Path, landing: Path, tmp_path: Path, pool: Any) -> None:
    waiter: Future[Snaps] = pool.submit(wait, root)
    time.sleep(0.3)
    assert not waiter.done()
    before = time.time()
    landed = land(tmp_path, landing)
    snaps = waiter.result()
    (raw,) = snaps.raws
    assert snaps.missing == ()
    assert (raw.exposure, raw.snap) == (builders.EXPOSURE, 1)
    assert before - 0.1 < raw.arrived_unix < time.time()
    assert fits.read_info(raw.path) == builders.info()
    assert Path(raw.path).is_relative_to(root)
    assert until(lambda: not landed.exists())
    with Repository(root) as repository:  # received and registered
        assert repository.butler.query_datasets("raw", paths.raw_run("LSSTComCam"))


def test_an_image_that_was_there_before(root: Path, tmp_path: Path) -> None:
    """A job that starts late finds its image, by whichever way it was ingested (D4)."""
    with Repository(root, writeable=True) as repository:
        repository.ingest_raws([builders.raw_file(tmp_path, builders.info())])
    begin = time.monotonic()
    assert wait(root).raws[0].exposure == builders.EXPOSURE
    assert time.monotonic() - begin < 5.0
    path = await_named_images(root, "LSSTComCam", [IMAGE], 4, 1.0)
    assert fits.read_info(path).group == GROUP


def test_an_image_that_never_comes(root: Path) -> None:
    begin = time.monotonic()
    with pytest.raises(ImageTimeout, match=rf"image {IMAGE} of detector 7 did not arrive within 0\.4 s"):
        wait(root, 7, 0.4)
    assert 0.4 <= time.monotonic() - begin < 5.0
    with pytest.raises(ImageTimeout, match="detector 7"):
        await_named_images(root, "LSSTComCam", [IMAGE], 7, 0.1)


def test_an_image_of_another_detector_wakes_nobody(root: Path, landing: Path, tmp_path: Path, pool: Any) -> None:
    waiter = pool.submit(ended, lambda: wait(root, 7, 1.0))
    land(tmp_path, landing, builders.info(6))
    assert isinstance(waiter.result(), ImageTimeout)


def test_one_snap_of_two_is_better_than_none(root: Path, landing: Path, tmp_path: Path, pool: Any) -> None:
    waiter = pool.submit(wait, root, 4, 1.5, (IMAGE, SECOND))
    land(tmp_path, landing, builders.info(4, builders.EXPOSURE + 1, snap=2))
    snaps = waiter.result()
    assert [raw.snap for raw in snaps.raws] == [2]
    assert snaps.missing == (IMAGE,)


def test_two_snaps_come_in_any_order(root: Path, landing: Path, tmp_path: Path, pool: Any) -> None:
    waiter = pool.submit(wait, root, 4, 10.0, (IMAGE, SECOND))
    for snap in (2, 1):
        land(tmp_path, landing, builders.info(4, builders.EXPOSURE + snap - 1, snap=snap))
        time.sleep(0.1)
    snaps = waiter.result()
    assert [raw.snap for raw in snaps.raws] == [1, 2] and snaps.missing == ()


def test_a_cancelled_visit_ends_its_waits_now_and_later(root: Path, pool: Any) -> None:
    waiters = [pool.submit(ended, lambda d=d: wait(root, d)) for d in range(3)]
    other = pool.submit(
        ended, lambda: await_images(root, "LSSTComCam", "other", 1, nsnaps=1, timeout_s=1.0, images=[SECOND])
    )
    time.sleep(0.1)
    begin = time.monotonic()
    cancel(root, "LSSTComCam", GROUP)
    assert all(isinstance(w.result(), VisitCancelled) for w in waiters)
    assert time.monotonic() - begin < 5.0
    with pytest.raises(VisitCancelled, match=GROUP):
        wait(root)
    assert isinstance(other.result(), ImageTimeout)


def test_bad_files_end_the_wait_at_once_with_their_reason(root: Path, landing: Path, tmp_path: Path, pool: Any) -> None:
    """Exact outcomes for a truncated file, another detector's, one that is no image, and one of two snaps."""
    detectors = {"truncated": 1, "the header is that of": 2, "not a FITS file": 3}
    waiters = {message: pool.submit(ended, lambda d=d: wait(root, d)) for message, d in detectors.items()}
    half = builders.raw_file(tmp_path, builders.info(1))
    os.truncate(half, half.stat().st_size // 2)
    os.replace(half, landing / half.name)
    land(tmp_path, landing, builders.info(5), named_after=2)
    (landing / f"{IMAGE}_R22_S10.fits").write_text("hello")
    good = pool.submit(wait, root, 4)
    land(tmp_path, landing)
    assert good.result().raws
    for message, waiter in waiters.items():
        outcome = waiter.result(timeout=5)
        assert isinstance(outcome, DataError)
        assert message in str(outcome)
    bad = {f"{IMAGE}_R22_S{n}.fits" for n in ("01", "02", "10")}
    assert until(lambda: {p.name for p in (root / "rejected").iterdir()} == bad)
    assert until(lambda: not list(landing.iterdir()))
    # A second, good one makes up for it.
    land(tmp_path, landing, builders.info(1))
    assert until(lambda: not isinstance(ended(lambda: wait(root, 1)), DataError))
    assert wait(root, 1).raws


def test_a_rejected_snap_is_a_missing_one(root: Path) -> None:
    with open_board(root) as board:
        board.put(arrived(builders.sighting(), "a.fits"))
        board.put(rejected("LSSTComCam", GROUP, SECOND, 2, 4, "no good"))
    snaps = wait(root, 4, 5.0, (IMAGE, SECOND))
    assert [raw.snap for raw in snaps.raws] == [1] and snaps.missing == (SECOND,)


def test_a_file_written_slowly_is_taken_when_it_is_whole(root: Path, landing: Path, tmp_path: Path, pool: Any) -> None:
    waiter = pool.submit(ended, lambda: wait(root))
    content = builders.raw_file(tmp_path, builders.info()).read_bytes()
    (landing / "2025").mkdir()
    with open(landing / "2025" / f"{IMAGE}_R22_S11.fits", "wb", buffering=0) as file:
        for i in range(8):
            file.write(content[i * len(content) // 8 : (i + 1) * len(content) // 8])
            time.sleep(0.1)
    snaps = waiter.result()
    assert isinstance(snaps, Snaps) and snaps.raws[0].exposure == builders.EXPOSURE


def test_a_duplicate_does_no_harm_and_does_not_look_late(root: Path, landing: Path, tmp_path: Path) -> None:
    land(tmp_path, landing)
    first = wait(root)
    time.sleep(0.2)
    again = land(tmp_path, landing)
    assert until(lambda: not again.exists())
    assert wait(root) == first


def test_what_landed_while_nobody_looked_is_taken(root: Path, tmp_path: Path) -> None:
    landing = tmp_path / "landing"
    landing.mkdir()
    land(tmp_path, landing)
    with Ingestor(root, landing):
        pass  # stopping takes what is there
    assert wait(root, timeout_s=0.1).raws


def test_two_ingestors_of_one_visit_do_not_disturb_each_other(root: Path, tmp_path: Path, pool: Any) -> None:
    """As where images come by more than one way: both register the exposure and the visit at once."""
    folders = (tmp_path / "a", tmp_path / "b")
    waiters = [pool.submit(wait, root, detector) for detector in range(8)]
    with Ingestor(root, folders[0]), Ingestor(root, folders[1]):
        for detector in range(8):
            land(tmp_path, folders[detector % 2], builders.info(detector))
        assert all(waiter.result().raws for waiter in waiters)
    with Repository(root) as repository:
        assert len(repository.butler.query_datasets("raw", paths.raw_run("LSSTComCam"))) == 8
        assert len(repository.butler.query_dimension_records("visit", instrument="LSSTComCam")) == 1


def test_an_ingestor_without_a_repository_says_so(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="no Butler repository"):
        Ingestor(tmp_path / "nowhere", tmp_path / "landing").start()


def test_an_error_of_the_thread_surfaces(root: Path, tmp_path: Path) -> None:
    ingestor = Ingestor(root, tmp_path / "landing").start()
    (tmp_path / "landing").rmdir()
    time.sleep(0.2)
    with pytest.raises(FileNotFoundError, match="landing"):
        ingestor.check()
    with pytest.raises(FileNotFoundError, match="landing"):
        ingestor.stop()


def _in_another_process(root: Path, detector: int, results: Any) -> None:
    results.put(wait(root, detector).raws[0].exposure)


def test_a_waiter_in_another_process(root: Path, landing: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=_in_another_process, args=(root, 4, results))
    process.start()
    land(tmp_path, landing)
    assert results.get(timeout=20) == builders.EXPOSURE
    process.join()


def test_many_waiters_cost_one_thread_and_little_cpu(root: Path) -> None:
    """189 who wait in one process: one thread, gone when the last has ended."""
    results: list[Any] = []
    threads = [
        threading.Thread(target=lambda d=d: results.append(ended(lambda: wait(root, d, 2.0)))) for d in range(189)
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    pollers = [t for t in threading.enumerate() if t.name == "arrivals"]
    begin = time.process_time()
    time.sleep(1.0)
    core_s = time.process_time() - begin
    for thread in threads:
        thread.join()
    assert len(pollers) == 1
    assert core_s < 0.15
    assert len(results) == 189 and all(isinstance(r, ImageTimeout) for r in results)
    pollers[0].join(2.0)
    assert not pollers[0].is_alive()
