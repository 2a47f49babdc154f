"""Packets: what goes in comes out of fastavro, and what does not fit is named."""

import numpy as np
import pandas as pd
import pytest

from apflow.errors import BadRequest, DataError
from apflow.io.alerts.packets import build_packets
from apflow.io.alerts.schema import available_versions, frame, load_schema
from apflow.model import schema as apdb
from apflow.model.products import History

NOW = 60800.25
NEW_IDS = (168691488537968641, 168691488537968642, 168691488537968643)


def sources(ids, object_ids, mjd, **more) -> pd.DataFrame:
    n = len(ids)
    columns = {
        "diaSourceId": np.array(ids, np.int64),
        "diaObjectId": pd.array(object_ids, dtype="Int64"),
        "visit": 2025042000123,
        "detector": 94,
        "midpointMjdTai": np.broadcast_to(np.asarray(mjd, float), n),
        "ra": np.linspace(150, 151, n),
        "dec": np.linspace(-30, -29, n),
        "x": np.linspace(10, 20, n),
        "y": np.linspace(30, 40, n),
        "psfFlux": np.linspace(-500, 500, n),
        "psfFluxErr": np.where(np.arange(n) == 1, np.nan, 12.5),
        "isNegative": np.arange(n) == 0,
        "band": "r",
        "bboxSize": 30,
        "timeProcessedMjdTai": np.nan,
    }
    return apdb.conform(pd.DataFrame(columns | more), "DiaSource")


def objects(ids) -> pd.DataFrame:
    columns = {
        "diaObjectId": np.array(ids, np.int64),
        "validityStartMjdTai": NOW,
        "ra": 150.5,
        "dec": -29.5,
        "r_psfFluxMean": 10.0,
        "r_psfFluxNdata": 2,
        "nDiaSources": 2,
    }
    return apdb.conform(pd.DataFrame(columns), "DiaObject")


def forced(ids, object_ids, mjd) -> pd.DataFrame:
    columns = {
        "diaForcedSourceId": np.array(ids, np.int64),
        "diaObjectId": np.array(object_ids, np.int64),
        "visit": 2025042000123,
        "detector": 94,
        "midpointMjdTai": np.asarray(mjd, float),
        "ra": 150.5,
        "dec": -29.5,
        "psfFlux": 5.0,
        "band": "r",
    }
    return apdb.conform(pd.DataFrame(columns), "DiaForcedSource")


def history() -> History:
    times = [NOW - 1, NOW - 300, NOW - 400, NOW - 2, NOW - 20]
    old = sources([11, 12, 13, 14, 15], [7, 7, 7, 8, 99], times, timeProcessedMjdTai=NOW - 1)
    light = forced([21, 22, 23], [7, 7, 8], [NOW - 10, NOW - 11, NOW - 500])
    return History(objects([7, 8, 99]), old, light)


CUTOUTS = {NEW_IDS[0]: (b"d", b"s", b"t"), NEW_IDS[1]: (b"d1", b"s1", b"t1")}


def build(table=None, **more):
    table = sources(NEW_IDS, [7, 8, 9], NOW) if table is None else table
    new = forced([31, 32], [7, 8], [NOW, NOW])
    return build_packets(table, objects([7, 8, 9]), history(), new, CUTOUTS, processed_mjd_tai=NOW + 0.001, **more)


def decode(packets, version="11.1"):
    return [load_schema(version).decode(p.datum) for p in packets]


def test_one_packet_a_source_with_its_object_history_and_cutouts():
    packets = build()
    assert [(p.alert_id, p.object_id) for p in packets] == list(zip(NEW_IDS, [7, 8, 9], strict=True))
    first, second, third = decode(packets)
    assert first["diaSource"]["psfFlux"] == -500
    assert first["diaSource"]["isNegative"] is True
    assert first["diaObject"]["diaObjectId"] == 7
    assert [s["diaSourceId"] for s in first["prvDiaSources"]] == [12, 11]  # by time, 12 months, this object
    assert [s["diaForcedSourceId"] for s in first["prvDiaForcedSources"]] == [22, 21, 31]
    assert [s["diaSourceId"] for s in second["prvDiaSources"]] == [14]
    assert [s["diaForcedSourceId"] for s in second["prvDiaForcedSources"]] == [32]
    assert third["prvDiaSources"] is None and third["prvDiaForcedSources"] is None
    assert (first["cutoutDifference"], first["cutoutScience"], first["cutoutTemplate"]) == (b"d", b"s", b"t")
    assert third["cutoutScience"] is None
    assert first["ssSource"] is None and first["mpc_orbits"] is None


def test_every_column_survives():
    table = sources(NEW_IDS, [7, 8, 9], NOW)
    for record, (_, row) in zip(decode(build(table)), table.iterrows(), strict=True):
        for name, value in record["diaSource"].items():
            expected = NOW + 0.001 if name == "timeProcessedMjdTai" else row[name]
            assert (value is None and pd.isna(expected)) or value == expected, name


def test_unknown_is_null_counts_are_filled_and_zero_ids_are_none():
    record = decode(build(sources(NEW_IDS, [7, 8, 9], NOW, ssObjectId=[0, 5, None])))
    assert record[1]["diaSource"]["psfFluxErr"] is None
    assert record[0]["diaSource"]["trailNdata"] == 0
    assert [r["diaSource"]["ssObjectId"] for r in record] == [None, 5, None]


def test_a_source_of_a_solar_system_object_has_no_diaobject():
    record = decode(build(sources(NEW_IDS[:1], [None], NOW, ssObjectId=[5])))[0]
    assert record["diaObject"] is None and record["diaSource"]["diaObjectId"] is None
    assert record["prvDiaSources"] is None


def test_history_days_limits_the_history():
    assert [s["diaSourceId"] for s in decode(build(history_days=500.0))[0]["prvDiaSources"]] == [13, 12, 11]


def test_the_source_itself_is_never_its_own_history():
    again = sources(NEW_IDS[:1], [7], NOW, timeProcessedMjdTai=NOW)
    old = History(objects([7]), again, forced([], [], []))
    packets = build_packets(sources(NEW_IDS[:1], [7], NOW), objects([7]), old, forced([], [], []), {})
    assert decode(packets)[0]["prvDiaSources"] is None


def test_same_input_same_bytes_whatever_the_order_of_history():
    shuffled = history()
    back = History(shuffled.objects, shuffled.sources.iloc[::-1], shuffled.forced.iloc[::-1])
    new = forced([31, 32], [7, 8], [NOW, NOW])
    table = sources(NEW_IDS, [7, 8, 9], NOW)
    again = build_packets(table, objects([9, 8, 7]), back, new, CUTOUTS, processed_mjd_tai=NOW + 0.001)
    assert [p.datum for p in again] == [p.datum for p in build()]


def test_inputs_are_not_changed():
    table, old = sources(NEW_IDS, [7, 8, 9], NOW), history()
    before, attrs = table.copy(), dict(table.attrs)
    build_packets(table, objects([7, 8, 9]), old, forced([], [], []), CUTOUTS)
    pd.testing.assert_frame_equal(table, before)
    assert table.attrs == attrs


def test_no_sources_no_packets():
    empty = sources([], [], 0.0)
    assert build_packets(empty, objects([]), History(objects([]), empty, forced([], [], [])), empty, {}) == ()


@pytest.mark.parametrize("version", [v for v in available_versions() if v.startswith("11.")])
def test_versions_decode_with_their_own_schema(version):
    assert decode(build(schema_version=version), version)[0]["diaSource"]["band"] == "r"


def test_unknown_version_lists_those_there_are():
    with pytest.raises(BadRequest, match=r"99\.0.*11\.1"):
        build(schema_version="99.0")


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("detector", 2**31, r"DiaSource\.detector is 2147483648"),
        ("bboxSize", -(2**31) - 1, r"DiaSource\.bboxSize"),
        ("ra", np.nan, r"DiaSource\.ra is missing or not finite in row 0"),
        ("x", np.inf, r"DiaSource\.x is missing"),
        ("psfFlux", 1e39, r"DiaSource\.psfFlux is 1e\+39"),
        ("psfFlux", "bright", r"DiaSource\.psfFlux holds no numbers"),
        ("visit", 1.5, r"DiaSource\.visit holds floats"),
        ("visit", 2**63, r"DiaSource\.visit"),
        ("visit", np.uint64(2**63), r"DiaSource\.visit is 9223372036854775808"),
        ("visit", np.datetime64("2025-04-20"), r"DiaSource\.visit holds datetime64"),
        ("isNegative", 3, r"DiaSource\.isNegative"),
        ("band", 7, r"DiaSource\.band"),
        ("nonsense", 1.0, r"DiaSource\.nonsense is not a field"),
    ],
)
def test_what_does_not_fit_is_named(column, value, message):
    table = sources(NEW_IDS, [7, 8, 9], NOW)
    table[column] = pd.Series([value] * 3, dtype=object) if isinstance(value, str | int) else value
    with pytest.raises(DataError, match=message):
        build(table)


def test_missing_required_column_missing_object_and_twins_are_named():
    with pytest.raises(DataError, match=r"DiaSource\.dec is missing"):
        build(sources(NEW_IDS, [7, 8, 9], NOW).drop(columns="dec"))
    with pytest.raises(DataError, match="DiaObject 77 of DiaSource"):
        build(sources(NEW_IDS, [7, 8, 77], NOW))
    with pytest.raises(DataError, match="diaSourceId 168691488537968641 comes more than once"):
        build(sources([NEW_IDS[0], NEW_IDS[1], NEW_IDS[0]], [7, 8, 9], NOW))


def test_plain_pandas_types_do_as_well():
    plain = sources(NEW_IDS, [7, 8, 9], NOW).astype(object)
    assert [p.datum for p in build(plain)] == [p.datum for p in build()]


def test_framing_is_confluent():
    assert frame(b"datum") == b"\x00\x00\x00\x04\x4ddatum"
    assert frame(b"", load_schema("11.0").registry_id) == b"\x00\x00\x00\x04\x4c"


def test_unknown_floats_are_nan_where_asked_for_and_integers_stay_null():
    record = decode(build(nan_for_null=True))[1]
    assert np.isnan(record["diaSource"]["psfFluxErr"]) and np.isnan(record["diaObject"]["u_psfFluxMean"])
    assert np.isnan(record["prvDiaForcedSources"][0]["scienceFlux"])
    assert record["diaSource"]["ssObjectId"] is None and record["diaSource"]["trailAlgorithm"] is None
    with pytest.raises(DataError, match=r"DiaSource\.ra is missing or not finite in row 2"):
        build(sources(NEW_IDS, [7, 8, 9], NOW).assign(ra=[1.0, 2.0, np.nan]), nan_for_null=True)


def test_what_history_lacks_is_named_with_its_row():
    old = history()
    spoilt = old.sources.copy()
    spoilt.loc[3, "dec"] = np.nan
    table, new = sources(NEW_IDS, [7, 8, 9], NOW), forced([], [], [])
    with pytest.raises(DataError, match=r"DiaSource\.dec is missing or not finite in row 3"):
        build_packets(table, objects([7, 8, 9]), History(old.objects, spoilt, old.forced), new, CUTOUTS)


def test_two_sources_of_one_object_share_its_history():
    first, second = decode(build(sources(NEW_IDS[:2], [7, 7], NOW)))
    assert first["prvDiaSources"] == second["prvDiaSources"] and len(first["prvDiaSources"]) == 2
    assert first["diaObject"] == second["diaObject"]


def solar(ids, ss_ids, names) -> pd.DataFrame:
    angles = {c: 10.0 for c in ("eclLambda", "eclBeta", "galLon", "galLat")}
    return pd.DataFrame(
        {"diaSourceId": ids, "ssObjectId": ss_ids, "designation": names, "diaDistanceRank": 1, **angles}
    )


def orbits(names) -> pd.DataFrame:
    columns = {f"{kind}_primary_provisional_designation": names for kind in ("packed", "unpacked")}
    fitted = pd.Timestamp("2025-04-20T00:00:01.5")
    return pd.DataFrame(
        {"id": range(len(names)), "designation": names, **columns, "fitting_datetime": fitted, "a": 2.5}
    )


def test_solar_system_objects_come_with_source_and_orbit_where_attributed():
    table = sources(NEW_IDS, [7, None, None], NOW, ssObjectId=[None, 5, 6])
    rows = solar([NEW_IDS[2], NEW_IDS[1], 404], [6, 5, 4], ["2025 CD", "2025 AB", "2025 EF"])
    none, with_orbit, without = decode(build(table, ss_sources=rows, orbits=orbits(["2025 AB", "2025 XY"])))
    assert none["ssSource"] is None and none["mpc_orbits"] is None
    assert with_orbit["ssSource"]["ssObjectId"] == 5 and with_orbit["ssSource"]["elongation"] is None
    assert with_orbit["mpc_orbits"]["designation"] == "2025 AB" and with_orbit["mpc_orbits"]["a"] == 2.5
    assert with_orbit["mpc_orbits"]["fitting_datetime"].isoformat() == "2025-04-20T00:00:01.500000+00:00"
    assert without["ssSource"]["designation"] == "2025 CD" and without["mpc_orbits"] is None


def test_solar_system_rows_that_contradict_are_named():
    table = sources(NEW_IDS, [7, None, 9], NOW, ssObjectId=[None, 5, None])
    with pytest.raises(DataError, match=f"SSSource of DiaSource {NEW_IDS[1]} names ssObjectId 6"):
        build(table, ss_sources=solar([NEW_IDS[1]], [6], ["a"]))
    with pytest.raises(DataError, match=f"SSSource of DiaSource {NEW_IDS[2]} names ssObjectId 6"):
        build(table, ss_sources=solar([NEW_IDS[2]], [6], ["a"]))
    with pytest.raises(DataError, match="mpc_orbits a comes more than once"):
        build(table, ss_sources=solar([NEW_IDS[1]], [5], ["a"]), orbits=orbits(["a", "a"]))


def long_history(n=200):
    times = NOW - np.arange(n, 0, -1.0)
    old = sources(1 + np.arange(n), np.full(n, 7), times, timeProcessedMjdTai=NOW)
    light = forced(1 + np.arange(n), np.full(n, 7), times).assign(timeProcessedMjdTai=NOW)
    return History(objects([7]), old, light)


def trimmed_to(limit):
    new = forced([901, 902], [7, 8], [NOW, NOW])
    given = sources(NEW_IDS[:2], [7, 8], NOW), objects([7, 8]), long_history(), new, CUTOUTS
    packets = build_packets(*given, processed_mjd_tai=NOW, max_message_bytes=limit)
    return packets, decode(packets)[0]


def test_alerts_too_long_for_the_broker_lose_their_oldest_forced_sources_first():
    (whole, other), full = trimmed_to(None)
    assert whole.trimmed == 0
    (short, same), record = trimmed_to(len(whole.datum) - 1000)
    assert len(short.datum) + 1024 <= len(whole.datum) - 1000
    assert record["prvDiaSources"] == full["prvDiaSources"]
    assert record["prvDiaForcedSources"] == full["prvDiaForcedSources"][short.trimmed :]
    assert 0 < short.trimmed == 201 - len(record["prvDiaForcedSources"]) < 60
    assert same == other


def test_trimming_goes_on_with_sources_and_spares_the_newest_of_each_and_the_stamps():
    (whole, _), full = trimmed_to(None)
    (short, _), record = trimmed_to(len(whole.datum) // 2)
    assert [f["diaForcedSourceId"] for f in record["prvDiaForcedSources"]] == [901]
    kept = len(record["prvDiaSources"])
    assert record["prvDiaSources"] == full["prvDiaSources"][-kept:] and 1 < kept < 200
    assert short.trimmed == 400 - kept
    assert len(short.datum) + 1024 <= len(whole.datum) // 2
    (shortest, _), record = trimmed_to(100)
    assert [len(record[k]) for k in ("prvDiaSources", "prvDiaForcedSources")] == [1, 1]
    assert record["prvDiaSources"][0]["diaSourceId"] == 200 and shortest.trimmed == 399
    assert {**full, "prvDiaSources": None, "prvDiaForcedSources": None} == {
        **record,
        "prvDiaSources": None,
        "prvDiaForcedSources": None,
    }
