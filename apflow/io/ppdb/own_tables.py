"""Tables of the PPDB that apdb.yaml does not know, described as it describes its own."""

from __future__ import annotations

from apflow.model.schema import Column, Table

_DTYPES = {
    "double": "float64",
    "float": "float32",
    "long": "int64",
    "int": "int32",
    "short": "int16",
    "boolean": "bool",
    "string": "str",
}


def _table(name: str, description: str, key: tuple[str, ...], *columns: tuple[str, str, str, str]) -> Table:
    """A table; each column is (name, datatype, unit, description), a datatype that ends with ``?`` may be null."""
    made = []
    for column, kind, unit, text in columns:
        datatype = kind.rstrip("?")
        made.append(Column(column, datatype, _DTYPES[datatype], unit, text, kind.endswith("?")))
    return Table(name, description, tuple(made), key)


_KEY = (
    ("instrument", "string", "", "Name of the instrument."),
    ("visit", "long", "", "Id of the visit."),
    ("detector", "short", "", "Id of the detector."),
)

#: Columns of the outbox that a batch brings.
OUTBOX = ("alert_id", "object_id", "visit", "detector", "file", "offset", "length", "checksum", "trimmed")
#: By name.
OWN = {
    table.name: table
    for table in (
        _table(
            "DrpObject",
            "Objects of the last Data Release, by position.",
            ("objectId",),
            ("objectId", "long", "", "Id of the Object in the Data Release."),
            ("ra", "double", "deg", "Right ascension, ICRS."),
            ("dec", "double", "deg", "Declination, ICRS."),
            ("extendedness", "float?", "", "0 for a star, 1 for a galaxy, null where unknown."),
        ),
        _table(
            "ledger",
            "What became of each detector-visit.",
            ("instrument", "visit", "detector"),
            *_KEY,
            ("state", "string", "", "expected, stored, or the terminal state."),
            ("cause", "string?", "", "Why it ended so."),
            ("step", "string?", "", "Step at which it ended."),
            ("n_sources", "int", "", "Number of DiaSources."),
            ("n_alerts", "int", "", "Number of alerts."),
            ("arrived_unix", "double?", "s", "When its last image had arrived, Unix time."),
            ("stored_unix", "double?", "s", "When its rows were committed, Unix time."),
            ("published_unix", "double?", "s", "When its alerts had left, Unix time."),
            ("deadline_unix", "double?", "s", "Until when later visits wait for it, Unix time."),
            ("region", "string?", "", "Its region of the sky, STC-S."),
        ),
        _table(
            "outbox",
            "Alerts that are durable in the archive, and whether they have left.",
            ("alert_id",),
            ("alert_id", "long", "", "Id of the DiaSource that the alert is about."),
            ("object_id", "long", "", "Id of its DiaObject or SSObject."),
            *_KEY[1:],
            ("file", "string", "", "File of the archive."),
            ("offset", "long", "byte", "Where in the file the compressed packet begins."),
            ("length", "long", "byte", "Length of the compressed packet."),
            ("checksum", "long", "", "CRC-32 of the packet."),
            ("trimmed", "int?", "", "Rows of history that were left out, so that the broker takes it."),
            ("published_unix", "double?", "s", "When it left, Unix time."),
            ("withdrawn_mjd_tai", "double?", "d", "When it was withdrawn, MJD TAI: it is not sent after that."),
            ("claim", "string?", "", "Who is sending it; see Ppdb.claimAlerts."),
            ("claimed_until_unix", "double?", "s", "Until when it is theirs, Unix time."),
            ("refused", "string?", "", "Why it cannot be sent, whoever tries: it is not tried again."),
        ),
        _table(
            "step_record",
            "Each run of each step.",
            ("instrument", "visit", "detector", "step", "start_unix"),
            *_KEY,
            ("step", "string", "", "Name of the step."),
            ("start_unix", "double", "s", "When it began, Unix time."),
            ("stop_unix", "double", "s", "When it ended, Unix time."),
            ("core_s", "double", "s", "CPU time it took."),
            ("worker", "string", "", "Where it ran."),
        ),
        _table(
            "column_info",
            "Units and descriptions of all columns.",
            ("table_name", "column_name"),
            ("table_name", "string", "", "Name of the table."),
            ("column_name", "string", "", "Name of the column."),
            ("position", "int", "", "Place of the column in its table, from 0."),
            ("datatype", "string", "", "Type, in the words of felis."),
            ("unit", "string", "", "Unit, empty where there is none."),
            ("description", "string", "", "What the column holds."),
            ("nullable", "boolean", "", "Whether it may be null."),
        ),
    )
}
