"""The index of an archive file: a short way to what the file says, however it was left."""

from dataclasses import replace

import numpy as np
import pytest

from apflow.errors import DataError
from apflow.io.alerts import container, index
from apflow.io.alerts.archive import Archive, find
from apflow.io.alerts.index import ENTRY, read_index
from apflow.io.alerts.packets import build_packets
from apflow.io.alerts.schema import load_schema

from .test_alerts_packets import CUTOUTS, NEW_IDS, NOW, forced, history, objects, sources

NIGHT = 20250420
VISITS = (2025042000123, 2025042000124)


@pytest.fixture(scope="module")
def packets():
    new = forced([31], [7], [NOW])
    return build_packets(sources(NEW_IDS, [7, 8, 9], NOW), objects([7, 8, 9]), history(), new, CUTOUTS)


@pytest.fixture
def url(tmp_path):
    return f"file://{tmp_path}/alerts"


@pytest.fixture
def archived(url, packets):
    """Rows of six alerts, as the packets themselves have visit and detector; the file and its index."""
    with Archive(url) as archive:
        rows = archive.append(packets, VISITS[0], 94, NIGHT) + archive.append(packets, VISITS[0], 94, NIGHT)
    (path,) = Archive(url).root.glob("*/*.avro")
    return rows, path, path.with_suffix(".index")


def entries_of(rows):
    return [(r.alert_id, r.object_id, r.visit, r.detector, r.checksum, r.length, r.offset) for r in rows]


def test_the_index_is_written_along_with_the_file(archived):
    rows, path, index = archived
    assert index.stat().st_size == (1 + len(rows)) * ENTRY.itemsize
    assert read_index(path).tolist() == entries_of(rows)


def damaged(kind, whole):
    size = ENTRY.itemsize
    if kind == "gone":
        return None
    if kind == "torn":
        return whole[: 4 * size + 20]
    if kind == "pages never written":
        return whole[: 3 * size] + bytes(3 * size) + whole[6 * size :]
    if kind == "of another file":
        return whole[: size - 1] + bytes([whole[size - 1] ^ 1]) + whole[size:]
    if kind == "beyond the file":
        return whole + whole[-size:]
    return {"empty": b"", "garbage": bytes(range(256)) * 3}[kind]


@pytest.mark.parametrize(
    "kind", ["gone", "empty", "torn", "pages never written", "of another file", "garbage", "beyond the file"]
)
def test_what_a_crash_made_of_it_is_read_from_the_file_and_mended(archived, kind, packets, url):
    rows, path, index = archived
    whole = index.read_bytes()
    index.unlink()
    if (left := damaged(kind, whole)) is not None:
        index.write_bytes(left)
    assert read_index(path).tolist() == entries_of(rows)
    if kind != "beyond the file":
        assert index.read_bytes() == whole
    with Archive(url) as archive:
        more = archive.append(packets[:1], VISITS[0], 95, NIGHT)
    assert read_index(path).tolist() == entries_of([*rows, *more])


def test_a_file_cut_off_has_the_alerts_before_the_cut(archived):
    rows, path, _ = archived
    path.write_bytes(path.read_bytes()[:-1])
    assert read_index(path).tolist() == entries_of(rows[:-1])


def test_the_index_of_a_file_that_somebody_writes_to_is_left_alone(url, packets):
    with Archive(url) as archive:
        rows = archive.append(packets, VISITS[0], 94, NIGHT)
        path = archive.root / rows[0].file
        index = path.with_suffix(".index")
        index.write_bytes(b"")
        assert read_index(path).tolist() == entries_of(rows)
        assert index.read_bytes() == b""


def test_block_heads_of_every_length_are_as_the_container_writes_them(tmp_path):
    head, sync = container.header(load_schema("11.1"))
    lengths = [0, 1, 63, 64, 8191, 8192, 2**20 - 1, 2**20]
    path, entries, end = tmp_path / "x.avro", np.zeros(len(lengths), ENTRY), len(head)
    blocks = [container.block(bytes(n), sync) for n in lengths]
    for entry, (front, payload, back) in zip(entries, blocks, strict=True):
        entry["length"], entry["offset"] = len(payload), end + len(front)
        end += len(front) + len(payload) + len(back)
    path.write_bytes(head + b"".join(b"".join(b) for b in blocks))
    known = container.Head(None, sync, "null", len(head))
    index.save(path, known, entries)
    assert index.load(path, known, end).tolist() == entries.tolist()
    with path.open("rb") as file:
        file.seek(len(head))
        assert [*container.walk(file, sync)] == [(e["offset"], e["length"]) for e in entries]


def test_an_alert_that_cannot_be_decoded_is_named(archived):
    rows, path, index = archived
    data = bytearray(path.read_bytes())
    data[rows[2].offset : rows[2].offset + 4] = b"\0\0\0\0"
    path.write_bytes(data)
    index.unlink()
    with pytest.raises(DataError, match=f"{path.name}: the alert at {rows[2].offset} cannot be decoded"):
        read_index(path)


def test_alerts_are_found_by_what_they_are_about(url, packets):
    with Archive(url) as archive:
        rows = archive.append_batch([(packets[:2], VISITS[0], 94), (packets[2:], VISITS[1], 95)], NIGHT)
        late = archive.append([replace(packets[0], alert_id=77)], 2025042100001, 94, NIGHT + 1)
        assert find(url) == rows + late
        assert find(url, night=NIGHT + 1) == late
        assert find(url, visit=VISITS[1]) == rows[2:]
        assert find(url, detector=94) == rows[:2] + late
        assert find(url, alert_ids=[NEW_IDS[1], 77]) == [rows[1], *late]
        assert find(url, object_id=9) == rows[2:]
        assert find(url, visit=VISITS[0], detector=95) == find(url, alert_ids=[]) == []
        assert archive.read_many(find(url, object_id=9)) == [packets[2].datum]
