"""Records of a night: many writers, torn lines, readers that follow."""

from __future__ import annotations

import math
import multiprocessing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apflow.errors import DataError
from apflow.io.records import RECORDS_FILE, Records, night_folder, nights, read_records
from apflow.model.record import KINDS, Record

_FINITE = st.floats(allow_nan=False, allow_infinity=False)
_RECORDS = st.builds(
    Record,
    unix=_FINITE,
    kind=st.sampled_from(KINDS),
    visit=st.none() | st.integers(0, 10**13),
    detector=st.none() | st.integers(0, 255),
    step=st.text(),
    start_unix=st.none() | _FINITE,
    cause=st.text(),
    attempt=st.integers(1, 9),
    numbers=st.dictionaries(st.text(), _FINITE),
    band=st.sampled_from(["", "r"]),
)


@given(_RECORDS)
def test_a_record_is_one_line_and_comes_back(record: Record):
    line = record.to_line()
    assert line.endswith("\n") and len(line.splitlines()) == 1
    assert Record.from_line(line) == record


def test_numbers_that_are_none_are_left_out():
    record = Record(1.0, "ended", 1, 2, core_s=math.nan, numbers={"a": math.inf, "b": 2.0, "c": math.nan})
    back = Record.from_line(record.to_line())
    assert dict(back.numbers) == {"b": 2.0} and back.core_s is None


@pytest.mark.parametrize("line", ["", "{", "[]", "3", '{"unix": 1}', '{"unix": 1, "kind": "step", "else": 2}'])
def test_what_is_no_record_is_refused(line: str):
    with pytest.raises(DataError, match="no record of a night"):
        Record.from_line(line)


def test_nights_are_those_with_records(tmp_path: Path):
    assert nights(tmp_path) == []
    for day in (20260402, 20260401):
        with Records(night_folder(tmp_path, day)) as records:
            records.append(Record(1.0, "night"))
    night_folder(tmp_path, 20260403).mkdir()
    assert nights(tmp_path) == [20260401, 20260402]


def test_a_reader_follows_and_leaves_a_line_that_is_being_written(tmp_path: Path):
    assert read_records(tmp_path) == ([], 0)
    with Records(tmp_path) as records:
        records.append(Record(1.0, "night"), Record(2.0, "visit", 7))
        first, offset = read_records(tmp_path)
        assert [r.unix for r in first] == [1.0, 2.0]
        whole = Record(3.0, "visit", 8).to_line().encode()
        path = tmp_path / RECORDS_FILE
        with path.open("ab") as file:
            file.write(whole[:10])
        assert read_records(tmp_path, offset) == ([], offset)
        with path.open("ab") as file:
            file.write(whole[10:])
        again, offset = read_records(tmp_path, offset)
        assert [r.unix for r in again] == [3.0] and offset == path.stat().st_size


@pytest.mark.parametrize("cut", [1, 2, 12, 30])
def test_a_line_torn_by_a_killed_writer_costs_no_other(tmp_path: Path, cut: int):
    with Records(tmp_path) as records:
        records.append(Record(1.0, "ended", 1, 2, numbers={"n": 1.0}), Record(2.0, "ended", 1, 3, numbers={"n": 1.0}))
    path = tmp_path / RECORDS_FILE
    path.write_bytes(path.read_bytes()[:-cut])
    with Records(tmp_path) as records:
        records.append(Record(3.0, "night", outcome="resumed"))
    units = [r.unix for r in read_records(tmp_path)[0]]
    assert units == ([1.0, 2.0, 3.0] if cut == 1 else [1.0, 3.0])  # only the line's end was lost


def _write(folder: str, writer: int) -> None:
    with Records(folder) as records:
        for i in range(200):
            records.append(*[Record(float(i), "step", writer, j, cause="x" * 50) for j in range(5)])


def test_lines_of_several_processes_never_mix(tmp_path: Path):
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write, args=(str(tmp_path), w)) for w in range(3)]
    for w in writers:
        w.start()
    for w in writers:
        w.join(60)
        assert w.exitcode == 0
    found, _ = read_records(tmp_path)
    assert len(found) == 3 * 1000 == len((tmp_path / RECORDS_FILE).read_bytes().splitlines())
    for writer in range(3):
        mine = [r for r in found if r.visit == writer]
        assert [(r.unix, r.detector) for r in mine] == [(float(i), j) for i in range(200) for j in range(5)]
