"""The archive: durable, readable by any Avro reader, and none the worse for a crash."""

import resource
import subprocess
import sys
import zlib
from dataclasses import replace

import fastavro
import pytest

from apflow.errors import AfterWrite, BadRequest, DataError, ServiceError
from apflow.io.alerts.archive import Archive, nights, open_archive, read_night
from apflow.io.alerts.packets import build_packets
from apflow.io.alerts.publish import publish
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
            assert raw == packet.datum == archive.read(row)
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


@pytest.mark.parametrize("tail", [1, 2, 5, 20, 100, 400])
def test_a_half_written_tail_is_cut_off_on_reopening(url, packets, tail):
    with Archive(url) as archive:
        rows = archive.append(packets, 1, 2, NIGHT)
    (path,) = files(url)
    whole = path.read_bytes()
    with Archive(url) as archive:
        archive.append(packets[:1], 1, 3, NIGHT)
    path.write_bytes(path.read_bytes()[: len(whole) + tail])
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
import resource, sys
from apflow.errors import ServiceError
from apflow.io.alerts.archive import Archive
from apflow.model.products import Packet
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
archive = Archive(sys.argv[1])
small, large = (Packet(1, 1, bytes(10_000)),), tuple(Packet(i, 1, bytes(60_000)) for i in range(5))
first = archive.append(small, 1, 1, 20250420)
try:
    archive.append(large, 1, 2, 20250420)
except ServiceError as error:
    print(error)
last = archive.append(small, 1, 3, 20250420)
print(archive.read(first[0]) == archive.read(last[0]) == small[0].datum, last[0].offset - first[0].offset)
"""


def test_no_room_leaves_nothing_of_the_batch(url):
    assert resource.getrlimit(resource.RLIMIT_FSIZE)
    out = subprocess.run([sys.executable, "-c", FULL, url], capture_output=True, text=True, check=True).stdout
    message, result = out.strip().splitlines()
    assert "File too large; 5 packets not written" in message
    assert result == f"True {10_000 + 16 + 4}"  # the next block follows the first one's sync marker


def test_a_folder_that_cannot_be_made_is_a_service_error(tmp_path, packets):
    (tmp_path / "file").write_text("")
    with Archive(f"file://{tmp_path}/file") as archive, pytest.raises(ServiceError, match="3 packets not written"):
        archive.append(packets, 1, 2, NIGHT)


@pytest.mark.parametrize("url", ["kafka://broker", "/plain/path", "file://host/dir", "file:relative", ""])
def test_other_urls_are_refused(url):
    with pytest.raises(BadRequest, match="file:///dir"):
        Archive(url)


class Outbox:
    def __init__(self):
        self.marked = []

    def markPublished(self, alert_ids, when_unix):
        assert when_unix > 1.6e9
        self.marked += alert_ids


class Sink:
    """Acknowledges all but one alert."""

    def __init__(self, refused):
        self.refused, self.datums = refused, []

    def send(self, rows, datums):
        self.datums += datums
        return [r.alert_id for r in rows if r.alert_id != self.refused]


def test_publishing_marks_what_is_in_the_archive(url, packets):
    outbox = Outbox()
    with Archive(url) as archive:
        assert publish(outbox, archive, archive.append(packets, 1, 2, NIGHT)) == 3
        assert publish(outbox, archive, []) == 0
    assert outbox.marked == list(NEW_IDS)


def test_a_sink_gets_the_archived_bytes_and_only_acknowledged_alerts_are_marked(url, packets):
    outbox, sink = Outbox(), Sink(NEW_IDS[1])
    with Archive(url) as archive:
        assert publish(outbox, archive, archive.append(packets, 1, 2, NIGHT), sink) == 2
    assert sink.datums == [p.datum for p in packets]
    assert outbox.marked == [NEW_IDS[0], NEW_IDS[2]]


def test_one_bad_alert_does_not_keep_the_others_back(url, packets):
    outbox = Outbox()
    with Archive(url) as archive:
        rows = archive.append(packets, 1, 2, NIGHT)
        rows[1] = replace(rows[1], checksum=rows[1].checksum ^ 1)
        with pytest.raises(AfterWrite, match=f"1 of 3 alerts.*{NEW_IDS[1]}"):
            publish(outbox, archive, rows)
    assert outbox.marked == [NEW_IDS[0], NEW_IDS[2]]
