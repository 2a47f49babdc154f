"""The records of a night: one file that many processes append to, and any number read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from apflow.errors import DataError, ServiceError
from apflow.model.record import Record

RECORDS_FILE = "records.jsonl"
_NIGHTS = "nights"


def night_folder(root: str | Path, day_obs: int) -> Path:
    """The folder of a night in a repository."""
    return Path(root) / _NIGHTS / str(day_obs)


def nights(root: str | Path) -> list[int]:
    """Days of observation that have records, oldest first."""
    found = Path(root).glob(f"{_NIGHTS}/*/{RECORDS_FILE}")
    return sorted(int(path.parent.name) for path in found if path.parent.name.isdigit())


class Records:
    """A writer of records. Several may write to one night, from several processes.

    Parameters
    ----------
    folder : `str` or `pathlib.Path`
        Of the night; made when it does not exist.
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self._folder / RECORDS_FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._end_torn_line()

    def append(self, *records: Record) -> None:
        """Write records, in one call of the operating system: lines of different processes never mix.

        Raises
        ------
        ServiceError
            There is no room.
        """
        data = "".join(record.to_line() for record in records).encode()
        written = os.write(self._file, data) if data else 0
        if written < len(data):
            raise ServiceError(f"{self._folder / RECORDS_FILE}: only {written} of {len(data)} bytes were written")

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def __enter__(self) -> Records:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _end_torn_line(self) -> None:
        """What a writer that was killed left of a line must not spoil the next one."""
        with (self._folder / RECORDS_FILE).open("rb") as file:
            if file.seek(0, os.SEEK_END) and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                os.write(self._file, b"\n")


def iterate_records(folder: str | Path, since_offset: int = 0) -> Iterator[tuple[Record, int]]:
    """Records one by one, each with the offset of what follows it.

    A night of a focal plane has millions: they need not be in memory together.
    A last line without an end is being written: it is left for the next time.
    One with an end that is no record was torn when its writer was killed, and is skipped.
    """
    path = Path(folder) / RECORDS_FILE
    if not path.is_file():
        return
    with path.open("rb") as file:
        offset = file.seek(since_offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            try:
                record = Record.from_line(line)
            except DataError:
                continue
            yield record, offset


def read_records(folder: str | Path, since_offset: int = 0) -> tuple[list[Record], int]:
    """Records since an offset, and the offset to go on from."""
    records, offset = [], since_offset
    for record, end in iterate_records(folder, since_offset):
        records.append(record)
        offset = end
    return records, offset
