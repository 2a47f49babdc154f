"""The archive: durable, readable by any Avro reader, and none the worse for a crash."""

import resource
import subprocess
import sys
import zlib
from dataclasses import replace

import fastavro
import pytest
import zstandard

from apflow.errors import BadRequest, DataError, ServiceError
from apflow.io.alerts.archive import Archive, nights, open_archive, read_night
from apflow.io.alerts.packets import build_packets
from apflow.model.products import Packet

from .test_alerts_packets import CUTOUTS, NEW_IDS, NOW, forced, history, objects, sources

NIGHT = 20250420


@pytest.fixture(scope="module")
def packets() -> tuple[Packet, ...]:
    new = forced([31], [7], [NOW])
    return build_packets(sources(NEW_IDS, [7, 8, 9], NOW), objects([7, 8, 9]), history(), new, CUTOUTS)


@pytest.fixture
def url(tmp_path) -> str:
    return f"file://{tmp_path}/alerts"


def files(url):
    return sorted(Archive(url).root.glob("*/*.avro"))


def read_all(path):
    with path.open("rb") as file:
        return [record["diaSourceId"] for record in fastavro.reader(file)]


def test_rows_point_at_exactly_the_datum(url, packets):
    with Archive(url) as archive:
        rows = archive.append(packets, 2025042000123, 94, NIGHT) + archive.append(packets[:1], 2025042000123, 95, NIGHT)
        for row, packet in zip(rows, (*packets, packets[0]), strict=True):
            raw = (archive.root / row.file).read_bytes()[row.offset : row.offset + row.length]
            assert zstandard.decompress(raw) == packet.datum == archive.read(row)
            assert row.checksum == zlib.crc32(packet.datum)
            assert (row.alert_id, row.object_id, row.visit) == (packet.alert_id, packet.object_id, 2025042000123)
    assert [row.detector for row in rows] == [94, 94, 94, 95]


def test_fastavro_reads_the_whole_file_one_alert_a_block(url, packets):
    with Archive(url) as archive:
        archive.append_batch([(packets, 1, 2), (packets, 1, 3)], NIGHT)
    (path,) = files(url)
    assert read_all(path) == [*NEW_IDS, *NEW_IDS]
    with path.open("rb") as file:
        assert [block.num_records for block in fastavro.block_reader(file)] == [1] * 6


@pytest.mark.parametrize("tail", [1, 2, 5, 20, 100, -17, -1])
def test_a_half_written_tail_is_cut_off_on_reopening(url, packets, tail):
    with Archive(url) as archive:
        rows = archive.append(packets, 1, 2, NIGHT)
    (path,) = files(url)
    whole = path.stat().st_size
    with Archive(url) as archive:
        archive.append(packets[:1], 1, 3, NIGHT)
    path.write_bytes(path.read_bytes()[: whole + tail if tail > 0 else tail])
    assert [r["diaSourceId"] for r in read_night(url, NIGHT)] == list(NEW_IDS)
    with Archive(url) as archive:
        rows += archive.append(packets[1:], 1, 3, NIGHT)
        assert [archive.read(r) for r in rows] == [p.datum for p in (*packets, *packets[1:])]
    assert files(url) == [path]
    assert read_all(path) == [*NEW_IDS, *NEW_IDS[1:]]


def test_a_file_cut_off_within_its_header_is_begun_again(url, packets):
    with Archive(url) as archive:
        archive.append(packets, 1, 2, NIGHT)
    (path,) = files(url)
    path.write_bytes(path.read_bytes()[:500])
    assert list(read_night(url, NIGHT)) == []
    with Archive(url) as archive:
        archive.append(packets, 1, 2, NIGHT)
    assert read_all(path) == list(NEW_IDS)


def test_a_file_that_is_no_container_is_left_alone_and_named(url, packets):
    with Archive(url) as archive:
        archive.append(packets, 1, 2, NIGHT)
    (path,) = files(url)
    path.write_bytes(bytes(100_000))
    with pytest.raises(DataError, match=path.name):
        list(read_night(url, NIGHT))
    with Archive(url) as archive:
        archive.append(packets, 1, 2, NIGHT)
    assert path.read_bytes() == bytes(100_000)
    assert len(files(url)) == 2


def test_two_writers_never_share_a_file(url, packets):
    with Archive(url) as one, Archive(url) as two:
        rows = one.append(packets, 1, 2, NIGHT) + two.append(packets, 1, 3, NIGHT) + one.append(packets, 1, 4, NIGHT)
        assert len({r.file for r in rows}) == 2
        assert all(one.read(r) == p.datum for r, p in zip(rows, [*packets] * 3, strict=True))
    assert sorted(r["diaSourceId"] for r in read_night(url, NIGHT)) == sorted([*NEW_IDS] * 3)
    assert open_archive(url) is open_archive(url)


def test_nights_have_folders_of_their_own(url, packets):
    with Archive(url) as archive:
        for night in (NIGHT, NIGHT + 1, NIGHT + 2, NIGHT):
            archive.append(packets[:1], 1, 2, night)
    assert nights(url) == [NIGHT, NIGHT + 1, NIGHT + 2]
    assert len(list(read_night(url, NIGHT))) == 2
    with pytest.raises(BadRequest, match="20250420, 20250421"):
        next(read_night(url, 20300101))


def test_changed_bytes_and_missing_files_are_noticed(url, packets):
    with Archive(url) as archive:
        row = archive.append(packets, 1, 2, NIGHT)[0]
        path = archive.root / row.file
        data = bytearray(path.read_bytes())
        data[row.offset + 3] ^= 1
        path.write_bytes(data)
        with pytest.raises(DataError, match=str(row.alert_id)):
            archive.read(row)
        with pytest.raises(DataError, match="gone"):
            archive.read(replace(row, file="gone.avro"))


FULL = """
import os, resource, sys
from apflow.errors import ServiceError
from apflow.io.alerts.archive import Archive, find
from apflow.model.products import Packet
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
archive = Archive(sys.argv[1])
small, large = (Packet(1, 1, os.urandom(10_000)),), tuple(Packet(i, 1, os.urandom(60_000)) for i in range(5))
rows = archive.append(small, 1, 1, 20250420)
size = (archive.root / rows[0].file).stat().st_size
try:
    archive.append(large, 1, 2, 20250420)
except ServiceError as error:
    print(error)
assert (archive.root / rows[0].file).stat().st_size == size
rows += archive.append(small, 1, 3, 20250420)
print(all(archive.read(row) == small[0].datum for row in rows), find(sys.argv[1]) == rows)
"""

NO_ROOM = """
import resource, sys
from apflow.errors import ServiceError
from apflow.io.alerts.archive import Archive
from apflow.model.products import Packet
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
try:
    Archive(sys.argv[1]).append((Packet(1, 1, bytes(10)),), 1, 1, 20250420)
except ServiceError as error:
    print(error)
"""


def run(script, url):
    """What a script prints; it says nothing else, such as warnings of files left open."""
    ended = subprocess.run([sys.executable, "-W", "error", "-c", script, url], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout.strip().splitlines()


def test_no_room_leaves_nothing_of_the_batch(url):
    assert resource.getrlimit(resource.RLIMIT_FSIZE)
    message, result = run(FULL, url)
    assert "File too large; 5 packets not written" in message
    assert result == "True True"


def test_no_room_for_a_first_packet_leaves_no_file(url, tmp_path):
    (message,) = run(NO_ROOM, url)
    assert "File too large; 1 packets not written" in message
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_folder_that_cannot_be_made_is_a_service_error(tmp_path, packets):
    (tmp_path / "file").write_text("")
    with Archive(f"file://{tmp_path}/file") as archive, pytest.raises(ServiceError, match="3 packets not written"):
        archive.append(packets, 1, 2, NIGHT)


@pytest.mark.parametrize("url", ["kafka://broker", "/plain/path", "file://host/dir", "file:relative", ""])
def test_other_urls_are_refused(url):
    with pytest.raises(BadRequest, match="file:///dir"):
        Archive(url)
