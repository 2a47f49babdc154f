"""The invariants of a PPDB, and what to do where one does not hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from apflow.io.ppdb.interface import Ppdb
from apflow.io.ppdb.sky_index import pixel_id
from apflow.io.ppdb.tables import SKY_TABLES, described

#: Rows whose pixels are computed at once.
_CHUNK = 5_000_000
_N_EXAMPLES = 3


@dataclass(frozen=True)
class Violation:
    """An invariant that does not hold.

    Attributes
    ----------
    invariant
        What should hold.
    count
        How many rows, objects or detector-visits break it.
    examples
        The first of them.
    remedy
        What to do.
    """

    invariant: str
    count: int
    examples: tuple[str, ...]
    remedy: str


@dataclass(frozen=True)
class _Rule:
    """An invariant as a SELECT of what breaks it; ``{versions}`` stands for `Ppdb.versions`."""

    invariant: str
    sql: str
    remedy: str


_RESTORE = "restore the night from an export: apflow ppdb import"
_LAST = "import any exported night: that writes DiaObjectLast anew for its objects"
_BY_HAND = "look at the rows; no command of ours writes such: find what did, and restore from an export"
#: Visit and detector that an id made by `apflow.model.ids.source_id` holds.
_ID_DETECTOR = '(("{id}" >> 19) & 255)'
_ID_VISIT = (
    "((extract(year FROM d) * 10000 + extract(month FROM d) * 100 + extract(day FROM d)) * 100000"
    ' + (("{id}" >> 27) & 32767))'
)
_ID_DAY = "(DATE '2010-01-01' + CAST((\"{id}\" >> 42) & 32767 AS INTEGER))"


def _last_differs() -> str:
    names = [n for n in described("DiaObjectLast").names if n != "diaObjectId"]
    unlike = " OR ".join(f'v."{n}" IS DISTINCT FROM l."{n}"' for n in names)
    return (
        'SELECT coalesce(v."diaObjectId", l."diaObjectId") AS "diaObjectId" '
        'FROM (SELECT * FROM "{versions}" WHERE "validityEndMjdTai" IS NULL) v '
        'FULL OUTER JOIN "DiaObjectLast" l ON v."diaObjectId" = l."diaObjectId" '
        f'WHERE v."diaObjectId" IS NULL OR l."diaObjectId" IS NULL OR {unlike}'
    )


def _without(table: str, columns: str, condition: str, other: str, match: str) -> str:
    return (
        f'SELECT {columns} FROM "{table}" t WHERE {condition} AND NOT EXISTS (SELECT 1 FROM "{other}" o WHERE {match})'
    )


def _ids_differ(table: str, id_column: str) -> str:
    return (
        f'SELECT "{id_column}", visit, detector FROM (SELECT "{id_column}", visit, detector, '
        f'{_ID_DAY.format(id=id_column)} AS d FROM "{table}") t '
        f"WHERE {_ID_DETECTOR.format(id=id_column)} <> detector OR {_ID_VISIT.format(id=id_column)} <> visit"
    )


def _twice(table: str, *key: str) -> str:
    columns = ", ".join(f'"{c}"' for c in key)
    return f'SELECT {columns} FROM "{table}" GROUP BY {columns} HAVING count(*) > 1'


def _counts_differ(column: str, table: str) -> str:
    return (
        f"SELECT l.visit, l.detector, l.{column}, coalesce(t.found, 0) AS found "
        f"FROM (SELECT visit, detector, CAST(sum({column}) AS BIGINT) AS {column} FROM ledger "
        "WHERE stored_unix IS NOT NULL GROUP BY visit, detector) l "
        f'LEFT JOIN (SELECT visit, detector, count(*) AS found FROM "{table}" GROUP BY visit, detector) t '
        f"ON l.visit = t.visit AND l.detector = t.detector WHERE l.{column} <> coalesce(t.found, 0)"
    )


def _not_in_ledger(table: str) -> str:
    stored = "o.stored_unix IS NOT NULL AND o.visit = t.visit AND o.detector = t.detector"
    return _without(table, "DISTINCT visit, detector", "true", "ledger", stored)


_SAME_OBJECT = 'o."diaObjectId" = t."diaObjectId"'
_INJECTED = 'coalesce(t."pixelFlags_injected", false)'
_SAME_SOURCE = 'o."diaSourceId" = t."diaSourceId"'
_RULES = (
    _Rule(
        "a DiaObject has one current version",
        'SELECT "diaObjectId" FROM "{versions}" GROUP BY "diaObjectId" '
        'HAVING sum(CASE WHEN "validityEndMjdTai" IS NULL THEN 1 ELSE 0 END) > 1',
        _BY_HAND,
    ),
    _Rule(
        "a DiaObject that has DiaSources has a current version",
        'SELECT v."diaObjectId" FROM "{versions}" v GROUP BY v."diaObjectId" '
        'HAVING sum(CASE WHEN v."validityEndMjdTai" IS NULL THEN 1 ELSE 0 END) = 0 '
        'AND v."diaObjectId" IN (SELECT "diaObjectId" FROM "DiaSource")',
        _BY_HAND,
    ),
    _Rule("DiaObjectLast holds the current versions of DiaObject", _last_differs(), _LAST),
    _Rule(
        "versions of a DiaObject follow one another without gap or overlap",
        'SELECT "diaObjectId", start_mjd FROM (SELECT "diaObjectId", "validityStartMjdTai" AS start_mjd, '
        '"validityEndMjdTai" AS end_mjd, lead("validityStartMjdTai") OVER '
        '(PARTITION BY "diaObjectId" ORDER BY "validityStartMjdTai") AS next_mjd FROM "{versions}") v '
        "WHERE end_mjd <= start_mjd OR (next_mjd IS NOT NULL AND end_mjd IS DISTINCT FROM next_mjd)",
        _BY_HAND,
    ),
    _Rule(
        "a DiaSource has a DiaObject or an SSObject",
        _without(
            "DiaSource",
            '"diaSourceId"',
            'coalesce(t."ssObjectId", 0) = 0 AND NOT ' + _INJECTED,
            "DiaObject",
            _SAME_OBJECT,
        ),
        _RESTORE,
    ),
    _Rule(
        "a DiaSource that is injected has no DiaObject, no SSObject and no alert",
        f'SELECT "diaSourceId" FROM "DiaSource" t WHERE {_INJECTED} AND (coalesce(t."diaObjectId", 0) <> 0 '
        'OR coalesce(t."ssObjectId", 0) <> 0 OR EXISTS (SELECT 1 FROM outbox o WHERE o.alert_id = t."diaSourceId"))',
        _BY_HAND,
    ),
    _Rule(
        "a DiaForcedSource has a DiaObject",
        _without("DiaForcedSource", '"diaForcedSourceId"', "true", "DiaObject", _SAME_OBJECT),
        _RESTORE,
    ),
    _Rule(
        "a match has a DiaObject",
        _without("DiaObject_To_Object_Match", '"diaObjectId", "objectId"', "true", "DiaObject", _SAME_OBJECT),
        _RESTORE,
    ),
    _Rule(
        "an SSSource has a DiaSource of its SSObject",
        _without(
            "SSSource", '"diaSourceId"', "true", "DiaSource", f'{_SAME_SOURCE} AND o."ssObjectId" = t."ssObjectId"'
        ),
        _RESTORE,
    ),
    _Rule(
        "an alert has a DiaSource",
        _without("outbox", "alert_id", "true", "DiaSource", 'o."diaSourceId" = t.alert_id'),
        _RESTORE,
    ),
    _Rule("the ledger counts the DiaSources of a detector-visit", _counts_differ("n_sources", "DiaSource"), _RESTORE),
    _Rule("the ledger counts the alerts of a detector-visit", _counts_differ("n_alerts", "outbox"), _RESTORE),
    _Rule("DiaSources are of detector-visits that the ledger has as stored", _not_in_ledger("DiaSource"), _RESTORE),
    _Rule(
        "DiaForcedSources are of detector-visits that the ledger has as stored",
        _not_in_ledger("DiaForcedSource"),
        _RESTORE,
    ),
    _Rule("diaSourceId is there once", _twice("DiaSource", "diaSourceId"), _BY_HAND),
    _Rule("diaForcedSourceId is there once", _twice("DiaForcedSource", "diaForcedSourceId"), _BY_HAND),
    _Rule(
        "a DiaObject is forced once a detector-visit",
        _twice("DiaForcedSource", "diaObjectId", "visit", "detector"),
        _BY_HAND,
    ),
    _Rule("diaSourceId holds visit and detector of its row", _ids_differ("DiaSource", "diaSourceId"), _BY_HAND),
    _Rule(
        "diaForcedSourceId holds visit and detector of its row",
        _ids_differ("DiaForcedSource", "diaForcedSourceId"),
        _BY_HAND,
    ),
)


def check(ppdb: Ppdb) -> list[Violation]:
    """Every invariant that does not hold; none for a sound PPDB.

    Reads whole tables: minutes for a year, while others go on. What is stored
    meanwhile may show up as a violation of counts; check again then.
    """
    found = []
    for rule in _RULES:
        rows = ppdb.select(rule.sql.replace("{versions}", ppdb.versions))
        if rows.num_rows:
            found.append(Violation(rule.invariant, rows.num_rows, _examples(rows), rule.remedy))
    return [*found, *_pixels(ppdb)]


def invariants() -> tuple[str, ...]:
    """What `check` verifies."""
    return (*(r.invariant for r in _RULES), "pixelId is that of ra and dec")


def _examples(rows: pa.Table) -> tuple[str, ...]:
    first = rows.slice(0, _N_EXAMPLES).to_pylist()
    return tuple(", ".join(f"{name} {value}" for name, value in row.items()) for row in first)


def _pixels(ppdb: Ppdb) -> Iterator[Violation]:
    for name in (*SKY_TABLES, "DiaObjectLast", "DrpObject"):
        [n] = ppdb.select(f'SELECT count(*) AS n FROM "{name}"').column("n").to_pylist()
        key = described(name).primary_key[0]
        parts = max(1, -(-n // _CHUNK))
        wrong = []
        for i in range(parts):
            rows = ppdb.select(f'SELECT "{key}", "pixelId", ra, dec FROM "{name}" WHERE abs("pixelId" % {parts}) = {i}')
            ra, dec = rows.column("ra").to_numpy(), rows.column("dec").to_numpy()
            differs = pixel_id(ra, dec) != rows.column("pixelId").to_numpy()
            wrong.append(rows.filter(pa.array(differs)).select([key]))
        bad = pa.concat_tables(wrong)
        if bad.num_rows:
            remedy = "positions were changed by hand: restore the night from an export: apflow ppdb import"
            yield Violation(f"pixelId of {name} is that of ra and dec", bad.num_rows, _examples(bad), remedy)
