"""A client of a cluster that may not be there."""

from __future__ import annotations

from typing import Any

from distributed import Client
from distributed.security import Security


class TidyClient(Client):
    """Dask's, which closes itself when it cannot connect.

    Dask leaves that to garbage collection, which may come while the next
    client starts its thread: closing then waits for ever for a lock that this
    start holds (seen with distributed 2026.8).
    """

    def __init__(self, address: str, security: Security | None, timeout_s: float) -> None:
        super().__init__(address, security=security, timeout=timeout_s, set_as_default=False)  # type: ignore[no-untyped-call]

    def start(self, **options: Any) -> None:
        """Connect, or leave nothing behind."""
        try:
            super().start(**options)  # type: ignore[no-untyped-call]
        except BaseException:
            self.close()  # type: ignore[no-untyped-call]
            raise
