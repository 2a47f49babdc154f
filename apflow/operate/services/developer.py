"""The servers of a developer: they stay until they are told to end."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psycopg

from apflow.operate.alone import alone
from apflow.operate.services.kafka import KafkaBroker
from apflow.operate.services.postgres import PostgresServer
from apflow.operate.services.registry import SchemaRegistry
from apflow.operate.services.sasquatch_server import SasquatchServer
from apflow.operate.services.server import Server

#: Each service's class, in the order in which they start.
KINDS: dict[str, type[Server]] = {
    kind.name: kind for kind in (PostgresServer, KafkaBroker, SchemaRegistry, SasquatchServer)
}
#: What `up` makes.
DATABASE = "ppdb"
TOPIC = "alerts"


def default_folder() -> Path:
    """Where the state of a user's services is kept (XDG Base Directory Specification)."""
    if os.geteuid() == 0:
        # The home of root is closed to the user as whom PostgreSQL then runs.
        return Path("/var/lib/apflow/services")
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "apflow" / "services"


def up(folder: Path, names: Sequence[str], tell: Callable[[str], None]) -> None:
    """Start those that do not run, with a database ``ppdb`` and a topic ``alerts``.

    Raises
    ------
    ServiceError
        One did not start; those before it run on.
    """
    with alone(folder):
        for name in names:
            server = KINDS[name](folder / name)
            if not server.running:
                tell(f"starting {name}")
                server.start(detached=True)
            if isinstance(server, PostgresServer):
                with contextlib.suppress(psycopg.errors.DuplicateDatabase):
                    server.database(DATABASE)
            elif isinstance(server, KafkaBroker) and TOPIC not in server.admin().list_topics(timeout=10).topics:
                server.create_topic(TOPIC)


def down(folder: Path, names: Sequence[str], tell: Callable[[str], None]) -> None:
    """Stop those that run; their data stay in `folder`."""
    with alone(folder):
        for name in reversed(names):
            server = KINDS[name](folder / name)
            if server.running:
                tell(f"stopping {name}")
                server.stop()


def status(folder: Path) -> Iterator[str]:
    """A line for each service."""
    for name, kind in KINDS.items():
        server = kind(folder / name)
        pid = server.pid
        yield f"{name:<12}" + (f"running as process {pid}, log in {server.log}" if pid else "stopped")


def configuration(folder: Path) -> str:
    """Lines of a configuration file that point to what runs; empty where nothing does."""
    database, broker, registry, sasquatch = (
        PostgresServer(folder / PostgresServer.name),
        KafkaBroker(folder / KafkaBroker.name),
        SchemaRegistry(folder / SchemaRegistry.name),
        SasquatchServer(folder / SasquatchServer.name),
    )
    lines = [f'ppdb = "{database.url_of(DATABASE)}"'] if database.running else []
    if broker.running:
        lines += ["[kafka]", f'bootstrap = "{broker.bootstrap}"', f'topic = "{TOPIC}"']
        if registry.running:
            lines.append(f'registry = "{registry.url}"')
    if sasquatch.running:
        lines += ["[sasquatch]", f'url = "{sasquatch.url}"', f'token_file = "{sasquatch.token_file}"']
    return "\n".join(lines)
