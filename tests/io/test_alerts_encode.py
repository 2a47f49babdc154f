"""The columnar encoder writes what fastavro writes, whatever the schema."""

import io
import json
import math
import shutil
from pathlib import Path

import fastavro
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lsst.alert.packet import get_schema_root

from apflow.errors import BadRequest, DataError
from apflow.io.alerts.avro import record_of
from apflow.io.alerts.columnar import Batch
from apflow.io.alerts.columns import check_table
from apflow.io.alerts.encode import Runs, encode, join
from apflow.io.alerts.packets import build_packets
from apflow.io.alerts.schema import load_schema, read_schema
from apflow.model import schema as apdb
from apflow.model.products import History

NOW = 60800.25
ENUM = {"type": "enum", "name": "Grade", "symbols": ["A", "B", "C"]}
FIXED = {"type": "fixed", "name": "Hash", "size": 3}
VALUES = {
    "null": st.none(),
    "boolean": st.booleans(),
    "int": st.integers(-(2**31), 2**31 - 1),
    "long": st.integers(-(2**63), 2**63 - 1),
    "float": st.floats(width=32, allow_nan=False) | st.just(math.nan),
    "double": st.floats(allow_nan=False) | st.just(math.nan),
    "bytes": st.binary(max_size=200),
    "string": st.text(max_size=80),
    "enum": st.sampled_from(ENUM["symbols"]),
    "fixed": st.binary(min_size=3, max_size=3),
}
TEXT = ("bytes", "string", "fixed")


def written(definition, record) -> bytes:
    buffer = io.BytesIO()
    fastavro.schemaless_writer(buffer, definition, record)
    return buffer.getvalue()


@st.composite
def flat_tables(draw):
    """A flat schema, the kinds of its fields, and rows, some of whose fields are left out for their defaults."""
    kinds = draw(st.lists(st.sampled_from(list(VALUES)), min_size=1, max_size=8))
    fields, columns, n = [], [], draw(st.integers(0, 4))
    for i, kind in enumerate(kinds):
        # A named type is defined once: further uses would be references.
        spec = {**ENUM, "name": f"Grade{i}"} if kind == "enum" else kind
        spec = {**FIXED, "name": f"Hash{i}"} if kind == "fixed" else spec
        union = "plain" if kind == "null" else draw(st.sampled_from(["plain", "null first", "null last", "alone"]))
        field = {"name": f"f{i}", "type": {"null first": ["null", spec], "null last": [spec, "null"]}.get(union, spec)}
        if union == "alone":
            field["type"] = [spec]
        nullable = kind == "null" or "null " in union
        left_out = False
        if kind not in ("null", "bytes", "fixed") and draw(st.booleans()):
            field["default"] = None if union == "null first" else draw(VALUES[kind])
            left_out = draw(st.booleans())
        values = [draw(VALUES[kind] | st.none() if nullable else VALUES[kind]) for _ in range(n)]
        fields.append(field)
        columns.append(None if left_out else values)
    return {"type": "record", "name": "test.Row", "fields": fields}, kinds, columns, n


def batch_of(record, kinds, columns, n) -> Batch:
    batch = Batch(record, n)
    for field, kind, values in zip(record.fields, kinds, columns, strict=True):
        if values is None or kind == "null":
            continue
        known = np.array([v is not None for v in values], bool)
        if kind in TEXT:
            raw = [b"" if v is None else v.encode() if kind == "string" else v for v in values]
            offsets = np.concatenate([[0], np.cumsum([len(r) for r in raw])]).astype(np.int64)
            batch.put_text(field.name, np.frombuffer(b"".join(raw), np.uint8), offsets, known)
        elif kind == "enum":
            batch.put(field.name, [ENUM["symbols"].index(v or "A") for v in values], known)
        else:
            batch.put(field.name, np.array([0 if v is None else v for v in values]), known)
    return batch


@settings(max_examples=150, deadline=None)
@given(flat_tables())
def test_any_flat_record_is_written_as_fastavro_writes_it(table):
    spec, kinds, columns, n = table
    definition = fastavro.parse_schema(spec)
    rows = encode(batch_of(record_of(definition), kinds, columns, n))
    for i in range(n):
        record = {f"f{k}": values[i] for k, values in enumerate(columns) if values is not None}
        assert bytes(rows.data[rows.offsets[i] : rows.offsets[i + 1]]) == written(definition, record)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-(2**40), 2**40), st.floats(width=32, allow_nan=False)), max_size=40),
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40), st.none() | st.binary(max_size=300)), max_size=6),
    st.booleans(),
)
def test_records_with_parts_are_written_as_fastavro_writes_them(items, alerts, null_first):
    item = {
        "type": "record",
        "name": "t.Item",
        "fields": [{"name": "a", "type": "long"}, {"name": "b", "type": "float"}],
    }

    def union(kind):
        return ["null", kind] if null_first else [kind, "null"]

    fields = [
        {"name": "id", "type": "long"},
        {"name": "one", "type": union(item)},
        {"name": "some", "type": union({"type": "array", "items": "t.Item"})},
        {"name": "all", "type": {"type": "array", "items": "t.Item"}},
        {"name": "stamp", "type": union("bytes")},
        {"name": "note", "type": ["string", "null"], "default": "none"},
        {"name": "unused", "type": ["null", {"type": "array", "items": "double"}], "default": None},
    ]
    definition = fastavro.parse_schema({"type": "record", "name": "t.Alert", "fields": fields})
    record, n = record_of(definition), len(alerts)
    rows = Batch(record.field("one").type, len(items))
    rows.put("a", np.array([a for a, _ in items], np.int64))
    rows.put("b", np.array([b for _, b in items]))
    encoded = encode(rows)
    low, high = np.sort(np.minimum([a[:2] for a in alerts] or np.zeros((0, 2), int), len(items)), 1).T
    one = Runs(encoded, low, np.minimum(low + 1, high))
    every = Runs(encoded, np.zeros(n, int), np.full(n, len(items)))
    values = {"id": np.arange(n) - 2, "one": one, "some": (Runs(encoded, low, high),), "all": (every, every)}
    values["stamp"] = [stamp for *_, stamp in alerts]
    dicts = [{"a": a, "b": b} for a, b in items]
    for i, datum in enumerate(join(record, values, n)):
        part = dicts[low[i] : high[i]]
        expected = {"id": i - 2, "one": part[0] if part else None, "some": part or None, "all": dicts + dicts}
        assert datum == written(definition, {**expected, "stamp": alerts[i][2]})


def random_table(name, n, rng, **given) -> pd.DataFrame:
    """Rows of a table of apdb.yaml, a third of whatever may be null unknown."""
    columns = {}
    for column in apdb.table(name).columns:
        unknown = (rng.random(n) < 1 / 3) & column.nullable
        if "float" in column.dtype:
            values = rng.normal(0, 10.0 ** rng.integers(-3, 6), n)
        elif column.dtype.lower().startswith("bool"):
            values = rng.random(n) < 0.5
        elif column.dtype == "str":
            values = rng.choice(["r", "2025 AB", "größer", "", "x" * 7], n) if column.name != "band" else "r"
        else:
            values = rng.integers(-100, 30_000, n)
        columns[column.name] = pd.Series(values, range(n)).astype(object).where(~unknown, None)
    columns |= {"ra": rng.uniform(0, 360, n), "dec": rng.uniform(-90, 90, n)} if name.startswith("Dia") else {}
    frame = pd.DataFrame({**columns, **given})
    if name in ("SSSource", "mpc_orbits"):
        return frame.assign(**{c: pd.Timestamp(2025, 4, 20, 3) for c in frame if c.endswith(("_at", "datetime"))})
    return apdb.conform(frame, name)


def plain(row, record) -> dict:
    """A row as fastavro takes it, value by value."""
    out = {}
    for field in record.fields:
        if field.name not in row:
            continue
        value, kind = row[field.name], field.kind.name
        if (
            value is None
            or value is pd.NA
            or value is pd.NaT
            or (isinstance(value, float) and not math.isfinite(value))
        ):
            value = None
        elif isinstance(value, pd.Timestamp):
            value = value.value // 1000
        elif kind in ("INT", "LONG"):
            value = None if field.nullable and field.name.endswith("Id") and value == 0 else int(value)
        elif kind == "BOOLEAN":
            value = bool(value)
        elif kind in ("FLOAT", "DOUBLE"):
            value = float(value)
        out[field.name] = value
    return out


def plain_rows(table, record) -> list[dict]:
    return [plain(row, record) for row in apdb.bare(table).astype(object).to_dict("records")]


def changed_schema(folder: Path):
    """11.1 with fields that come, go, change places and accept null in the other order."""
    source = Path(str(get_schema_root())) / "11" / "1"
    for path in source.glob("*.avsc"):
        shutil.copy(path, folder)
    path = folder / "lsst.v11_1.diaSource.avsc"
    spec = json.loads(path.read_text())
    fields = [f for f in spec["fields"] if f["name"] != "glint_trail"]
    for field in fields:
        if field["name"] in ("psfFlux", "band", "isNegative"):
            field["type"] = field["type"][::-1]
            del field["default"]
    fields.insert(3, {"name": "grade", "type": ENUM, "default": "B"})
    fields.insert(5, {"name": "vividness", "type": ["double", "null"], "default": 0.5})
    path.write_text(json.dumps({**spec, "fields": fields}))
    path = folder / "lsst.v11_1.alert.avsc"
    spec = json.loads(path.read_text())
    path.write_text(json.dumps({**spec, "fields": [f for f in spec["fields"] if f["name"] != "mpc_orbits"][::-1]}))
    return read_schema(path, "11.9")


@pytest.mark.parametrize("version", ["11.0", "11.1", "changed"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_alerts_from_tables_are_those_that_fastavro_writes(version, seed, tmp_path):
    """Against dicts that are put together row by row."""
    rng = np.random.default_rng(seed)
    alert_schema = changed_schema(tmp_path) if version == "changed" else load_schema(version)
    n, past = 7, 40
    ids, owners = 1000 + np.arange(n), np.array([5, 6, 7, 7, 8, 9, 10])
    times = NOW - rng.permutation(past)
    of = {"diaObjectId": rng.choice([5, 6, 7, 8, 99], past), "midpointMjdTai": times, "timeProcessedMjdTai": NOW}
    given = {"timeProcessedMjdTai": NOW, "midpointMjdTai": NOW}
    sources = random_table("DiaSource", n, rng, diaSourceId=ids, diaObjectId=owners, ssObjectId=ids % 3, **given)
    objects = random_table("DiaObject", 6, rng, diaObjectId=np.unique(owners))
    old = random_table("DiaSource", past, rng, diaSourceId=1 + np.arange(past), **of)
    light = random_table("DiaForcedSource", past, rng, diaForcedSourceId=1 + np.arange(past), **of)
    new = random_table("DiaForcedSource", 2, rng, diaForcedSourceId=[91, 92], diaObjectId=[5, 7], **given)
    attributed = ids[ids % 3 != 0][1:]
    names = [f"2025 X{i}" for i in range(len(attributed))]
    solar = random_table(
        "SSSource", len(attributed), rng, diaSourceId=attributed, ssObjectId=attributed % 3, designation=names
    )
    orbits = random_table("mpc_orbits", len(names) - 1, rng, designation=names[1:])
    stamps = {int(i): (rng.bytes(99), b"", rng.bytes(9)) for i in ids[1:]}
    history = History(objects.iloc[:0], old, light)
    packets = build_packets(
        sources, objects, history, new, stamps, alert_schema, 30.0, NOW, ss_sources=solar, orbits=orbits
    )

    parts = {f.name: alert_schema.part(f.name) for f in alert_schema.record.fields}
    by_object = {row["diaObjectId"]: row for row in plain_rows(objects, parts["diaObject"])}
    by_source = {row["diaSourceId"]: row for row in plain_rows(solar, parts["ssSource"])}
    orbit_of = {row["designation"]: row for row in plain_rows(orbits, load_schema("11.1").part("mpc_orbits"))}

    def series(rows, owner):
        mine = [r for r in rows if r["diaObjectId"] == owner and NOW - 30 <= r["midpointMjdTai"] <= NOW]
        return sorted(mine, key=lambda r: r["midpointMjdTai"]) or None

    lists = {"prvDiaSources": [old], "prvDiaForcedSources": [light, new]}
    lists = {k: [r for t in tables for r in plain_rows(t, parts[k])] for k, tables in lists.items()}
    for packet, source in zip(packets, plain_rows(sources, parts["diaSource"]), strict=True):
        solar_row = by_source.get(packet.alert_id)
        stamp = stamps.get(packet.alert_id, (None,) * 3)
        expected = {
            "diaSourceId": packet.alert_id,
            "diaSource": source,
            **{name: series(rows, source["diaObjectId"]) for name, rows in lists.items()},
            "diaObject": by_object[source["diaObjectId"]],
            "ssSource": solar_row,
            "mpc_orbits": orbit_of.get(solar_row["designation"]) if solar_row else None,
            **dict(zip(("cutoutDifference", "cutoutScience", "cutoutTemplate"), stamp, strict=True)),
        }
        assert packet.datum == written(alert_schema.definition, expected)


def record(*fields):
    spec = {"type": "record", "name": "t.Row", "fields": [{"name": n, "type": t} for n, t in fields]}
    return record_of(fastavro.parse_schema(spec))


def test_values_that_do_not_fit_are_named_with_their_row():
    rows = record(("i", "int"), ("x", ["null", "float"]), ("h", FIXED), ("s", "string"))
    batch = Batch(rows, 3, "Table")
    with pytest.raises(DataError, match=r"Table\.i is 2147483648 in row 1; accepted: an int"):
        batch.put("i", [0, 2**31, 0])
    with pytest.raises(DataError, match=r"Table\.x is 1e\+39 in row 2"):
        batch.put("x", np.array([0, math.inf, 1e39]))
    batch.put("x", np.array([0, 1e39, 0]), np.array([True, False, True]))
    with pytest.raises(DataError, match=r"Table\.h is 2 in row 0; accepted: 3 bytes"):
        batch.put_text("h", np.zeros(8, np.uint8), np.array([0, 2, 5, 8]))
    with pytest.raises(DataError, match=r"Table\.\w is null in row \d"):
        encode(batch)


def test_an_enum_takes_its_symbols_alone():
    rows = record(("g", ENUM), ("b", ["null", "bytes"]))
    known = check_table(pd.DataFrame({"g": ["C", "A"], "b": [b"xy", None]}), rows, "Table")
    assert bytes(encode(known).data[:5]) == b"\x04\x02\x04xy"
    with pytest.raises(DataError, match=r"Table\.g is 'D'; accepted: A, B, C"):
        check_table(pd.DataFrame({"g": ["A", "D"]}), rows, "Table")
    with pytest.raises(DataError, match=r"Table\.b holds values other than"):
        check_table(pd.DataFrame({"g": ["A"], "b": ["text"]}), rows, "Table")


def test_a_field_that_is_missing_or_strange_is_named():
    alert = record(("id", "long"), ("stamp", "bytes"), ("rows", {"type": "array", "items": "int"}))
    stamps = [b"x", None]
    with pytest.raises(DataError, match=r"t\.Row\.id is null"):
        join(alert, {"stamp": stamps}, 2)
    with pytest.raises(DataError, match=r"t\.Row\.stamp is missing"):
        join(alert, {"id": np.arange(2), "stamp": stamps}, 2)
    with pytest.raises(DataError, match="extra is not a field"):
        join(alert, {"extra": stamps}, 2)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (["null", "int", "string"], "t.Row.f is a union of 2 types"),
        ({"type": "map", "values": "int"}, "maps cannot"),
        (["null", "t.Row"], "t.Row holds itself"),
    ],
)
def test_schemas_that_columns_cannot_fill_are_refused(kind, message):
    with pytest.raises(BadRequest, match=message):
        record(("f", kind))


def test_an_alert_schema_without_todays_records_is_refused(tmp_path):
    path = tmp_path / "alert.avsc"
    path.write_text(json.dumps({"type": "record", "name": "alert", "fields": [{"name": "diaSource", "type": "int"}]}))
    with pytest.raises(BadRequest, match=r"alert schema 12\.0 has no records of flat fields in diaSource"):
        read_schema(path, "12.0")
