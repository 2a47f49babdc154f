"""The thread that registers raw images as a store of objects tells of them by Kafka."""

from __future__ import annotations

import datetime as dt
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_plus, urlsplit

from apflow.config_tables import Kafka
from apflow.errors import DataError, ServiceError
from apflow.io.arrivals.background import Background
from apflow.io.arrivals.intake import Intake, Refused, is_wanted
from apflow.io.atomic import atomic
from apflow.io.kafka.consume import AlertConsumer, Received

if TYPE_CHECKING:
    from apflow.io.butler import Repository

_CREATED = "ObjectCreated:"
_LISTEN_S = 0.2


@dataclass(frozen=True)
class Created:
    """An object that was made: its key, and when, Unix seconds."""

    key: str
    created_unix: float


def created_objects(received: Received) -> Iterator[Created]:
    """Objects that a notification in S3's form tells of; events of other kinds are left out.

    Raises
    ------
    DataError
        It is not of that form: ``{"Records": [{"eventName": "ObjectCreated:Put", "eventTime": ...,
        "s3": {"bucket": {"name": ...}, "object": {"key": ...}}}]}``.
    """
    try:
        for record in json.loads(received.value)["Records"]:
            if str(record.get("eventName", _CREATED)).removeprefix("s3:").startswith(_CREATED):
                # Keys are quoted as in forms.
                yield Created(unquote_plus(str(record["s3"]["object"]["key"])), _time(record.get("eventTime")))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{received.place}: no notification of a bucket ({type(error).__name__}: {error}); "
            "accepted: JSON with Records[].s3.object.key"
        ) from None


def _time(text: Any) -> float:
    now = time.time()
    if not text:
        return now
    when = dt.datetime.fromisoformat(str(text))
    return min(now, when.replace(tzinfo=when.tzinfo or dt.UTC).timestamp())


class BucketIngestor(Background):
    """Registers raw images, and what comes with them, as a bucket tells of them, in a thread of its own.

    Objects stay where they are: the repository gets a hard link or a copy.
    Offsets are committed when everything before them is registered and
    announced, or rejected, so that a crash loses nothing. A notification that
    cannot be read is put into ``rejected/`` in the repository.

    Parameters
    ----------
    root : `str` or `pathlib.Path`
        Root of the repository.
    kafka : `~apflow.config_tables.Kafka`
    topic : `str`
    bucket : `str`
        A folder, or a URI of `lsst.resources` (``s3://bucket``), that keys are relative to.
    group : `str`
        Kafka consumer group.
    settle_s : `float`
        For an object to appear, or to become whole, after its notification.
    """

    def __init__(
        self,
        root: str | Path,
        kafka: Kafka,
        topic: str,
        bucket: str | Path,
        *,
        group: str = "apflow-ingest",
        settle_s: float = 2.0,
    ) -> None:
        super().__init__(root)
        self._kafka, self._topic, self._group = kafka, topic, group
        uri = urlsplit(str(bucket))
        self._folder = Path(uri.path) if uri.scheme in ("", "file") else None
        self._bucket, self._settle_s = str(bucket), settle_s
        self._intake = Intake("copy" if self._folder else "move")
        self._consumer: AlertConsumer | None = None
        self._pending: dict[str, Created] = {}
        self._since: dict[str, float] = {}
        self._uncommitted = False

    def _open(self) -> None:
        self._consumer = AlertConsumer(self._kafka, self._group, self._topic)

    def _close(self) -> None:
        if self._consumer is not None:
            self._consumer.close()

    def _fileno(self) -> int:
        return -1

    def _turn(self, repository: Repository) -> float:
        """Take what was notified; what is not there yet is tried again, before anything is committed."""
        assert self._consumer is not None
        received = self._consumer.receive(_LISTEN_S)
        for message in received:
            try:
                self._note(repository, created_objects(message))
            except DataError as error:
                _put_aside(repository, message, str(error))
        if self._pending:
            self._take(repository)
        self._uncommitted |= bool(received)
        if self._uncommitted and not self._pending:
            self._consumer.commit()
            self._uncommitted = False
        return 0.0

    def _note(self, repository: Repository, objects: Iterator[Created]) -> None:
        for one in objects:
            parts = Path(one.key).parts
            of_camera = len(parts) == 1 or parts[0] == repository.instrument
            if is_wanted(one.key) and of_camera and ".." not in parts:
                self._pending[one.key] = one
                self._since.setdefault(one.key, time.monotonic())

    def _take(self, repository: Repository) -> None:
        files = {key: self._file(repository, key) for key in self._pending}
        there = {file: key for key, file in files.items() if file is not None}
        arrived = {file: self._pending[key].created_unix for file, key in there.items()}
        refused = self._intake.take(repository, list(there), arrived)
        for key, file in files.items():
            late = time.monotonic() - self._since[key] > self._settle_s
            if file is None and late:
                one = Refused(Path(key), f"{key} is not in {self._bucket}, though it was notified")
                self._intake.reject(repository, one)
            elif file is not None and file in refused and late:
                self._intake.reject(repository, refused[file])
            elif file is None or file in refused:
                continue
            del self._pending[key], self._since[key]

    def _file(self, repository: Repository, key: str) -> Path | None:
        """An object as a file of this machine; None while it is not there."""
        if self._folder is not None:
            file = self._folder / key
            return file if file.is_file() else None
        from lsst.resources import ResourcePath

        file = repository.root / "incoming" / Path(key).name
        try:
            content = ResourcePath(self._bucket, forceDirectory=True).join(key).read()
        except FileNotFoundError:
            return None
        except Exception as error:
            raise ServiceError(f"{self._bucket}: {key} cannot be read: {error}") from error
        with atomic(file) as copy:
            copy.write(content)
        return file


def _put_aside(repository: Repository, message: Received, error: str) -> None:
    name = message.place.replace("[", "-").replace("]@", "-")
    with atomic(repository.root / "rejected" / f"{name}.txt") as file:
        file.write(f"{error}\n\n".encode() + message.value)
