"""Workers on other hosts by SSH."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from distributed.deploy.ssh import Worker


class SshWorker(Worker):
    """Dask's, whose output is read.

    What a process writes is shown here, line by line: left unread it would fill
    SSH's window, and the process would wait for ever to write more.
    """

    async def start(self) -> None:
        """Connect, start the process, and return when its worker is up."""
        await super().start()  # type: ignore[no-untyped-call]
        process: Any = self.proc
        self._readers = [asyncio.ensure_future(self._show(stream)) for stream in (process.stdout, process.stderr)]

    @property
    def is_closed(self) -> bool:
        """Whether the process ended or the connection broke."""
        return self.proc is None or bool(self.proc.is_closing())

    async def _show(self, stream: Any) -> None:
        async for line in stream:
            sys.stderr.write(f"{self.address}: {line}")
