"""The PPDB: DiaSources, DiaObjects, DiaForcedSources, the ledger of detector-visits and the alerts' outbox."""

from __future__ import annotations

from pathlib import Path

from apflow.errors import BadRequest
from apflow.io.ppdb.interface import Ppdb, StoreReport

__all__ = ["Ppdb", "StoreReport", "open_ppdb"]


def open_ppdb(url: str, create: bool = False) -> Ppdb:
    """Open a PPDB.

    The first process that opens a DuckDB file owns it and answers the others
    on its machine until it closes its last handle or ends. A PostgreSQL server
    answers all alike. Opening again in one process is cheap.

    Parameters
    ----------
    url : `str`
        ``duckdb:///absolute/path``, or ``postgresql://user@host:port/database?sslmode=...``
        with libpq's parameters and without a password; ``dax:///absolute/path/config.yaml?companion=<URL>``
        for an lsst.dax.apdb, with a percent-encoded URL of one of the others for what an Apdb does not know.
    create : `bool`
        Make the tables where there are none.

    Raises
    ------
    BadRequest
        The scheme is not known, the path is not absolute, the database does
        not exist, or it is not a PPDB of this schema version; the server
        refuses the login.
    ServiceError
        The file is locked by another program, its owner or the server cannot
        be reached.
    """
    scheme, separator, path = url.partition("://")
    if separator and scheme == "postgresql":
        from apflow.io.ppdb.postgres.server import PostgresPpdb

        return PostgresPpdb(url, create)
    if separator and scheme == "dax":
        from apflow.io.ppdb.dax.server import DaxPpdb

        return DaxPpdb(url, create)
    if not separator or scheme != "duckdb" or not path.startswith("/"):
        # Of what is no path, only the scheme: the rest may hold a password.
        shown = url if scheme in ("duckdb", url) else f"{scheme}://..."
        raise BadRequest(
            f"PPDB {shown!r} is not accepted; accepted: duckdb:///absolute/path, postgresql://user@host:port/database, "
            "dax:///absolute/path/of/config.yaml"
        )
    from apflow.io.ppdb.embedded import EmbeddedPpdb

    return EmbeddedPpdb(Path(path).resolve(), create)
