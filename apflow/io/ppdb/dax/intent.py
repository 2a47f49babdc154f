"""What is about to be stored, noted in the companion before the Apdb is touched.

A store changes two databases. Whoever finds a note whose writer is dead does
the rest of it, so that rows are never in the one without being in the other.
The note stands in the companion's table of metadata, as text.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyarrow as pa

from apflow.io.ppdb.batch import Batch
from apflow.io.ppdb.dax.door import about
from apflow.io.ppdb.interface import Ppdb, Statement
from apflow.io.ppdb.tables import BATCH_TABLES, MATCHES, to_frame
from apflow.io.ppdb.turns import to_text
from apflow.model import schema
from apflow.model.products import DetectorResult, OutboxRow
from apflow.model.visit import Visit

_PREFIX = "dax:"
_CELLS, _ROWS = ":cells", ":rows"
#: Tables of a batch that are the companion's, with their names in `DetectorResult`.
_COMPANIONS = {k: v for k, v in {MATCHES: "matches", "SSSource": "ss_sources"}.items() if k in BATCH_TABLES}


@dataclass(frozen=True, eq=False)
class Stub:
    """What the ledger has to know of a detector-visit; `region` is about its sources, None without any."""

    visit: Visit
    detector: int
    arrived_unix: float
    n_sources: int
    region: str | None

    def result(self, frames: Mapping[str, pd.DataFrame]) -> DetectorResult:
        """A result without the rows that are the Apdb's, with others by attribute."""
        sources, objects, forced = (schema.empty(name) for name in ("DiaSource", "DiaObject", "DiaForcedSource"))
        return DetectorResult(
            visit=self.visit,
            detector=self.detector,
            sources=sources,
            objects=objects,
            forced=forced,
            guard={},
            packets=(),
            outputs=(),
            arrived_unix=self.arrived_unix,
            mjd_mid_tai=0.0,
            day_obs=0,
            **frames,  # type: ignore[arg-type]
        )


@dataclass(frozen=True, eq=False)
class Intent:
    """Detectors that will be stored together.

    Attributes
    ----------
    name
        Of the note.
    numbers
        The locks that its writer holds.
    stubs, rows, outbox
        All that will be stored; `rows` by table.
    """

    name: str
    numbers: frozenset[int]
    stubs: tuple[Stub, ...]
    rows: Mapping[str, pa.Table]
    outbox: tuple[OutboxRow, ...]

    @classmethod
    def of(
        cls, batch: Batch, which: Sequence[int], results: Sequence[DetectorResult], numbers: frozenset[int]
    ) -> Intent:
        """Some detectors of a batch."""
        stubs = tuple(_stub(batch, i, results[i]) for i in which)
        mine = {(s.visit.visit, s.detector) for s in stubs}
        outbox = tuple(a for a in batch.outbox if (a.visit, a.detector) in mine)
        rows = {name: batch.rows[name].of(which) for name in BATCH_TABLES}
        return cls(_PREFIX + uuid.uuid4().hex, numbers, stubs, rows, outbox)

    def results(self) -> list[DetectorResult]:
        """The detectors for the companion, with the rows that an Apdb does not take: all in the first."""
        frames = {attribute: to_frame(self.rows[name], name) for name, attribute in _COMPANIONS.items()}
        return [s.result({} if i else frames) for i, s in enumerate(self.stubs)]

    def save(self, companion: Ppdb) -> None:
        """Note it."""
        values = {_CELLS: json.dumps(sorted(self.numbers)), _ROWS: self._to_text()}
        note = pa.table({"name": [self.name + k for k in values], "value": list(values.values())})
        companion.change(
            [
                Statement(
                    "INSERT INTO metadata (name, value) SELECT name, value FROM new_note", {"new_note": note}, rows=2
                )
            ]
        )

    def forget(self, companion: Ppdb) -> None:
        """Take the note away: nothing of it was stored."""
        companion.change([self._deletion()])

    def finish(self, companion: Ppdb) -> None:
        """Take the note away and complete the ledger: all of it is stored."""
        rows = pa.table(
            {
                "instrument": pa.array([s.visit.instrument for s in self.stubs], pa.string()),
                "visit": pa.array([s.visit.visit for s in self.stubs], pa.int64()),
                "detector": pa.array([s.detector for s in self.stubs], pa.int16()),
                "n": pa.array([s.n_sources for s in self.stubs], pa.int32()),
                "place": pa.array([s.region for s in self.stubs], pa.string()),
            }
        )
        complete = Statement(
            "UPDATE ledger SET n_sources = t.n, region = coalesce(ledger.region, t.place) FROM stored t "
            "WHERE ledger.instrument = t.instrument AND ledger.visit = t.visit AND ledger.detector = t.detector",
            {"stored": rows},
        )
        companion.change([complete, self._deletion()])

    def _deletion(self) -> Statement:
        return Statement(f"DELETE FROM metadata WHERE name IN ('{self.name}{_CELLS}', '{self.name}{_ROWS}')")

    def _to_text(self) -> str:
        return json.dumps(
            {
                "stubs": [dataclasses.asdict(s) for s in self.stubs],
                "rows": {name: _packed(table) for name, table in self.rows.items()},
                "outbox": [dataclasses.asdict(a) for a in self.outbox],
            }
        )


def noted(companion: Ppdb) -> dict[str, frozenset[int]]:
    """The notes that stand, with the locks of their writers."""
    rows = companion.select(
        f"SELECT name, value FROM metadata WHERE starts_with(name, '{_PREFIX}') AND right(name, 6) = '{_CELLS}'"
    ).to_pylist()
    return {r["name"].removesuffix(_CELLS): frozenset(json.loads(r["value"])) for r in rows}


def load(companion: Ppdb, name: str, numbers: frozenset[int]) -> Intent | None:
    """A note, or None where it has been taken away."""
    found = companion.select(f"SELECT value FROM metadata WHERE name = '{name}{_ROWS}'").column("value").to_pylist()
    if not found:
        return None
    told = json.loads(found[0])
    return Intent(
        name,
        numbers,
        tuple(Stub(**{**s, "visit": _visit(s["visit"])}) for s in told["stubs"]),
        {table: _unpacked(text) for table, text in told["rows"].items()},
        tuple(OutboxRow(**a) for a in told["outbox"]),
    )


def _stub(batch: Batch, i: int, result: DetectorResult) -> Stub:
    ra, dec = (batch.rows["DiaSource"].numpy(c, i) for c in ("ra", "dec"))
    region = to_text(about(ra, dec)) if len(ra) else None
    return Stub(result.visit, result.detector, result.arrived_unix, len(ra), region)


def _visit(told: Mapping[str, Any]) -> Visit:
    return Visit(**{**told, "images": tuple(told["images"])})


def _packed(table: pa.Table) -> str:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    return base64.b64encode(sink.getvalue()).decode()


def _unpacked(text: str) -> pa.Table:
    with pa.ipc.open_stream(base64.b64decode(text)) as reader:
        return reader.read_all()
