"""Inputs (D6) from memory, the fast store and the main store: who serves, who stands in, and what is kept."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from lsst.daf.butler import Butler

from apflow import config_tables
from apflow.config import load_config
from apflow.errors import ServiceError
from apflow.io import fits, input_cache
from apflow.io.butler import Repository, create_repository
from apflow.io.fast_store import FastStore, Stamp, State
from apflow.io.input_cache import COUNTS, InputReader, Memory, take_counts
from apflow.model.products import Inputs
from tests.io import builders
from tests.io.test_butler import RUN, fill, write_outputs

PIXELS = 64 * 64 * 4
ONLY_FILES = config_tables.Inputs(memory_mib=0.0, fast_mib=10.0)


class Store:
    """A file of the main store, and where its copy would be."""

    def __init__(self, folder: Path) -> None:
        self.main, self.copy = folder / "main" / "bias.fits", folder / "fast" / "bias" / "bias_1.fits"
        self.main.parent.mkdir()
        self.write(1.0)
        self.visit = 0

    def write(self, level: float) -> None:
        fits.write_image(self.main, np.full((64, 64), level, np.float32))

    def read(self, settings: config_tables.Inputs = ONLY_FILES, copy: bool = True) -> tuple[float, str, bool]:
        """The level, the place that served it, and whether it failed over."""
        paths = (None,) * 4
        copies = {str(self.main): str(self.copy)} if copy else {}
        self.visit += 1
        reader = InputReader(Inputs(*paths, (), (), copies=copies), settings, self.visit, 0)
        level = float(reader.read(str(self.main), fits.read_image).mean())
        counts = take_counts(self.visit, 0)
        assert set(counts) == set(COUNTS)
        (place,) = [p for p in ("memory", "fast", "main") if counts[f"n_inputs_{p}"]]
        assert counts[f"inputs_{place}_bytes"] == PIXELS
        return level, place, bool(counts["n_inputs_failed_over"])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


@pytest.fixture(autouse=True)
def new_process() -> None:
    """Nothing is held yet."""
    input_cache.forget()


def test_the_main_store_first_then_its_copy_then_memory(store: Store) -> None:
    both = config_tables.Inputs(memory_mib=1.0, fast_mib=10.0)
    assert store.read() == (1.0, "main", False)
    assert store.read(both) == (1.0, "fast", False)
    assert store.read(both) == (1.0, "memory", False)
    assert store.read() == (1.0, "fast", False)  # memory is off again, and has let go
    assert input_cache.held_bytes() == 0


def test_a_file_written_anew_is_read_anew_from_every_store(store: Store) -> None:
    both = config_tables.Inputs(memory_mib=1.0, fast_mib=10.0)
    store.read(both)
    store.write(2.0)
    assert store.read(both) == (2.0, "main", False)
    assert store.read(both) == (2.0, "memory", False)
    assert store.read() == (2.0, "fast", False)


@pytest.mark.parametrize("damage", ["truncated", "a pixel", "its record", "empty"])
def test_a_damaged_copy_is_replaced(store: Store, damage: str) -> None:
    store.read()
    content = bytearray(store.copy.read_bytes())
    if damage == "a pixel":
        content[5000] ^= 1
    record = store.copy.with_name(store.copy.name + ".check")
    if damage == "its record":
        record.write_text("{")
    else:
        store.copy.write_bytes({"truncated": content[:4000], "empty": b""}.get(damage, content))
    assert store.read() == (1.0, "main", True)
    assert store.read() == (1.0, "fast", False)


def test_damage_is_found_by_a_process_that_knew_the_copy_as_good(store: Store) -> None:
    store.read()
    assert store.read() == (1.0, "fast", False)
    content = bytearray(store.copy.read_bytes())
    content[6000] ^= 4
    store.copy.write_bytes(content)
    assert store.read() == (1.0, "main", True)


def test_a_store_that_cannot_be_written_to_leaves_the_main_one(store: Store) -> None:
    (store.copy.parents[1]).write_text("a file where the folder should be")
    assert store.read() == (1.0, "main", True)
    assert store.read() == (1.0, "main", True)


def test_a_full_store_leaves_the_main_one(store: Store) -> None:
    """A write that fails with ENOSPC, as a full tmpfs does."""
    store.copy.parent.mkdir(parents=True)
    # Whatever temporary name comes next, it leads to a device that is full.
    for n in range(20_000):
        name = f".{store.copy.name}.{os.uname().nodename}.{os.getpid()}.{n}.tmp"
        (store.copy.parent / name).symlink_to("/dev/full")
    assert store.read() == (1.0, "main", True)
    assert not store.copy.exists()


def test_the_copy_serves_while_the_main_store_is_gone(store: Store) -> None:
    store.read()
    shutil.rmtree(store.main.parent)
    assert store.read() == (1.0, "fast", True)
    # Not held in memory without its stamp: nobody could tell whether it is out of date.
    assert store.read(config_tables.Inputs(memory_mib=1.0, fast_mib=10.0)) == (1.0, "fast", True)
    assert input_cache.held_bytes() == 0


def test_memory_serves_while_both_stores_are_gone(store: Store) -> None:
    memory = config_tables.Inputs(memory_mib=1.0, fast_mib=10.0)
    store.read(memory)
    shutil.rmtree(store.main.parent)
    shutil.rmtree(store.copy.parents[1])
    assert store.read(memory) == (1.0, "memory", True)


def test_both_gone_is_a_service_error_that_names_both(store: Store) -> None:
    store.main.unlink()
    with pytest.raises(ServiceError) as error:
        store.read()
    assert str(store.main) in str(error.value) and str(store.copy) in str(error.value)
    with pytest.raises(ServiceError, match="there is no fast store"):
        store.read(copy=False)


def test_the_oldest_copies_make_room(tmp_path: Path) -> None:
    main = tmp_path / "main.bin"
    main.write_bytes(bytes(100_000))
    store = FastStore(350_000)
    copies = [str(tmp_path / "fast" / "bias" / f"{n}.fits") for n in range(5)]
    for copy in copies[:3]:
        assert store.keep(str(main), copy)
    stamp = Stamp.of(main)
    assert store.state(copies[0], stamp) is State.GOOD  # asked for: now the newest
    assert store.keep(str(main), copies[3]) and store.keep(str(main), copies[4])
    states = [store.state(copy, stamp) for copy in copies]
    assert states == [State.GOOD, State.ABSENT, State.ABSENT, State.GOOD, State.GOOD]
    assert sum(path.stat().st_size for path in tmp_path.glob("fast/*/*.fits")) <= 350_000
    assert len(list(tmp_path.glob("fast/*/*"))) == 6  # a record each, and nothing else


def test_what_is_larger_than_the_store_is_not_kept(store: Store) -> None:
    none = config_tables.Inputs(memory_mib=0.0, fast_mib=0.0)
    assert store.read(none) == store.read(none) == (1.0, "main", False)
    assert not store.copy.exists()


def test_memory_holds_no_more_than_its_limit_and_lets_the_oldest_go() -> None:
    stamp = Stamp(1, 1)
    memory = Memory(300, stay_s=0.0)
    for n in range(3):
        memory.put((str(n), ""), stamp, n, 100)
    assert memory.get(("0", ""), stamp) == (0, 100)
    memory.put(("3", ""), stamp, 3, 100)
    assert [n for n in range(4) if memory.get((str(n), ""), stamp)] == [0, 2, 3]
    memory.put(("huge", ""), stamp, 0, 301)
    assert memory.get(("huge", ""), stamp) is None and memory.held_bytes == 300
    memory.resize(100)
    assert memory.held_bytes == 100


def test_more_detectors_than_there_is_room_for_still_find_something() -> None:
    """Round after round over five, with room for three: the oldest-out rule alone would never find any."""
    memory, stamp, found = Memory(300), Stamp(1, 1), []
    for _ in range(3):
        for n in range(5):
            held = memory.get((str(n), ""), stamp)
            found.append(held is not None)
            if held is None:
                memory.put((str(n), ""), stamp, n, 100)
    assert sum(found[5:10]) == sum(found[10:]) == 3


@pytest.fixture
def chained(tmp_path: Path) -> Path:
    create_repository(tmp_path / "r", "comcam", 512, fast=tmp_path / "fast")
    fill(tmp_path / "r", tmp_path / "made")
    return tmp_path / "r"


def read_all(root: Path, detector: int = 4) -> tuple[Inputs, dict[str, float]]:
    with Repository(root) as repository:
        inputs = repository.find_inputs(builders.visit(), [detector])[detector]
    reader = InputReader(inputs, ONLY_FILES, 1, detector)
    for path in (inputs.bias, inputs.dark, inputs.flat, inputs.defects):
        reader.read(path or "", fits.read_image)
    for _, _, path in inputs.templates:
        reader.read(path, fits.read_exposure)
    return inputs, take_counts(1, detector)


def test_the_butler_itself_reads_what_the_workers_left_in_the_fast_datastore(chained: Path) -> None:
    inputs, counts = read_all(chained)
    assert counts["n_inputs_main"] == 4 + len(inputs.templates)
    assert read_all(chained)[1]["n_inputs_fast"] == counts["n_inputs_main"]
    copy = Path(inputs.copies[inputs.bias or ""])
    fits.write_image(copy, np.full((8, 8), 7.0, np.float32))  # told apart from the original by its level
    with Butler.from_config(str(chained), collections="LSSTComCam/calib", instrument="LSSTComCam") as butler:
        (ref,) = [r for r in butler.query_datasets("bias", find_first=False) if r.dataId["detector"] == 4]
        assert butler.get(ref).mean() == 7.0
        assert butler.getURI(ref).ospath == str(copy)
        copy.write_bytes(copy.read_bytes()[:3000])
        assert butler.get(ref).mean() == 1.0  # truncated: the chain goes on to the main one
        Path(inputs.bias or "").unlink()
        shutil.copy(inputs.dark or "", copy)
        assert butler.get(ref).shape == (8, 8)  # the main one is gone
        copy.unlink()
        with pytest.raises(FileNotFoundError):
            butler.get(ref)


def test_a_fast_datastore_that_cannot_be_made_does_not_take_the_butler_with_it(chained: Path) -> None:
    shutil.rmtree(chained.parent / "fast", ignore_errors=True)
    (chained.parent / "fast").write_text("a file where the folder should be")
    inputs, counts = read_all(chained)
    assert counts["n_inputs_main"] == counts["n_inputs_failed_over"] == 4 + len(inputs.templates)
    with Butler.from_config(str(chained)) as butler:
        (ref, *_) = butler.query_datasets("bias", "LSSTComCam/calib", find_first=False)
        assert butler.get(ref).mean() == 1.0


def test_raws_and_outputs_never_enter_the_fast_datastore(chained: Path, tmp_path: Path) -> None:
    read_all(chained)
    with Repository(chained, writeable=True) as repository:
        (done,) = repository.ingest_raws([builders.raw_file(tmp_path, builders.info())], "move")
        assert done.new and not done.error
        outputs = write_outputs(chained)
        assert repository.register_outputs(RUN, outputs) == len(outputs)
        fast, main = repository.butler._datastore.datastores
        (raw,) = repository.butler.query_datasets("raw", "LSSTComCam/raw/all")
        assert main.exists(raw) and not fast.exists(raw)
    kept = {path.name for path in Path(fast.root.ospath).iterdir()}
    assert kept == {"bias", "dark", "flat", "defects", "template_coadd"}


def test_two_repositories_in_one_fast_folder_do_not_meet(chained: Path, tmp_path: Path) -> None:
    create_repository(tmp_path / "other", "comcam", 512, fast=tmp_path / "fast")
    fill(tmp_path / "other", tmp_path / "made again")
    one, two = read_all(chained)[0], read_all(tmp_path / "other")[0]
    assert one.refs == two.refs  # ids follow from data ids
    assert not set(one.copies.values()) & set(two.copies.values())


def test_a_full_ccd_has_room_in_memory_by_default(tmp_path: Path) -> None:
    create_repository(tmp_path / "r", "comcam")
    assert load_config(tmp_path / "r" / "apflow.toml").inputs.memory_mib == 1024.0
