"""A private PostgreSQL."""

from __future__ import annotations

import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

import psycopg
from psycopg import sql

from apflow.errors import BadRequest, ServiceError
from apflow.operate.services.certificate import self_signed
from apflow.operate.services.server import Server, as_user

#: Superuser of the databases.
ROLE = "apflow"
#: Where Debian's packages put the binaries of each major version.
DEBIAN = Path("/usr/lib/postgresql")
#: The system's limit for the path of a Unix socket is 107 bytes.
LONGEST_FOLDER = 85

SETTINGS = {
    "max_connections": "300",
    "shared_buffers": "256MB",
    "jit": "off",
    "log_min_messages": "warning",
}


class PostgresServer(Server):
    """PostgreSQL on a Unix socket in its folder, as an ordinary user even where this process is root's.

    Durable as in production: fsync stays on.

    Parameters
    ----------
    folder : `pathlib.Path`, optional
        See `apflow.operate.services.server.Server`.
    tls : `bool`, optional
        Listen also on TCP of this machine, with TLS and a password; see
        `tls_url`.

    Examples
    --------
    >>> with PostgresServer() as server:
    ...     url = server.database()
    """

    name: ClassVar[str] = "postgresql"
    stop_signal: ClassVar[signal.Signals] = signal.SIGINT  # ends sessions; SIGTERM would wait for them
    quit_signal: ClassVar[signal.Signals] = signal.SIGQUIT  # ends its children too

    def __init__(self, folder: Path | None = None, *, tls: bool = False) -> None:
        super().__init__(folder)
        if len(str(self.folder)) > LONGEST_FOLDER:
            raise BadRequest(f"folder {self.folder} is too long for a socket: at most {LONGEST_FOLDER} characters")
        self.tls = tls

    @property
    def url(self) -> str:
        """URL of the database ``postgres``, which every server has."""
        return self.url_of("postgres")

    @property
    def certificate(self) -> Path:
        """The server's certificate, which is its own authority."""
        return self.folder / "server.crt"

    @property
    def password_file(self) -> Path:
        """The password in libpq's format, for connections by TCP."""
        return self.folder / "passfile"

    def kill(self) -> None:
        """See `Server.kill`; the shared memory that the kernel would keep goes too."""
        running, lock = self.running, self.folder / "data" / "postmaster.pid"
        super().kill()
        if running and lock.exists():
            fields = dict(enumerate(lock.read_text().splitlines()))
            if segment := fields.get(6, "").split():
                subprocess.run(["ipcrm", "-m", segment[1]], capture_output=True)
            lock.unlink()

    def database(self, name: str | None = None) -> str:
        """Make an empty database, of a name of its own unless one is given, and return its URL."""
        name = name or f"test_{uuid.uuid4().hex[:12]}"
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.url_of(name)

    def url_of(self, database: str) -> str:
        """URL of a database by the Unix socket."""
        return f"postgresql://{ROLE}@/{database}?host={quote(str(self.folder), safe='')}&port={self._port()}"

    def tls_url(self, database: str = "postgres", *, passfile: bool = True) -> str:
        """URL by TCP, the server's certificate verified; without `passfile` the client has to find the password."""
        options = f"sslmode=verify-full&sslrootcert={quote(str(self.certificate), safe='')}"
        if passfile:
            options += f"&passfile={quote(str(self.password_file), safe='')}"
        return f"postgresql://{ROLE}@localhost:{self._port()}/{database}?{options}"

    def _user(self) -> str | None:
        if os.geteuid() != 0:
            return None
        names = {entry.pw_name for entry in pwd.getpwall()}
        return "postgres" if "postgres" in names else "nobody"

    def _environment(self) -> Mapping[str, str]:
        return {k: v for k, v in os.environ.items() if not k.startswith(("PG", "LC_", "LANG"))} | {"LC_ALL": "C.UTF-8"}

    def _prepare(self) -> None:
        if (self.folder / "data").exists():
            return
        user = self._user()
        if user:
            shutil.chown(self.folder, user, pwd.getpwnam(user).pw_gid)
            if subprocess.run(["test", "-w", str(self.folder)], **as_user(user)).returncode:
                raise ServiceError(f"PostgreSQL runs as the user {user}, who cannot enter {self.folder}")
        if self.tls:
            for path in self_signed(self.folder):
                shutil.chown(path, user or os.geteuid())
                path.chmod(0o600)
        self._initialise(user)

    def _initialise(self, user: str | None) -> None:
        password, pwfile = secrets.token_urlsafe(24), self.folder / "pwfile"
        for path, text in ((pwfile, password), (self.password_file, f"localhost:{self._port()}:*:{ROLE}:{password}")):
            path.touch(mode=0o600)
            path.write_text(text + "\n")
        shutil.chown(pwfile, user or os.geteuid())
        command = [binary("initdb"), "--pgdata", str(self.folder / "new"), "--username", ROLE, "--pwfile", str(pwfile)]
        command += ["--auth-local", "trust", "--auth-host", "scram-sha-256", "--encoding", "UTF8", "--locale", "C"]
        made = subprocess.run(
            [*command, "--no-sync"],
            cwd=self.folder,
            env=self._environment(),
            capture_output=True,
            text=True,
            **as_user(user),
        )
        pwfile.unlink()
        if made.returncode:
            shutil.rmtree(self.folder / "new", ignore_errors=True)
            raise ServiceError(f"initdb failed in {self.folder}: {made.stderr.strip()}")
        access = self.folder / "new" / "pg_hba.conf"
        access.write_text(re.sub(r"(?m)^host\b", "hostssl", access.read_text()))
        (self.folder / "new").rename(self.folder / "data")

    def _command(self) -> Sequence[str]:
        settings = SETTINGS | {
            "unix_socket_directories": str(self.folder),
            "port": str(self._port()),
            "listen_addresses": "localhost" if self.tls else "",
        }
        if self.tls:
            settings |= {"ssl": "on", "ssl_cert_file": str(self.certificate)}
            settings |= {"ssl_key_file": str(self.folder / "server.key")}
        options = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
        return [binary("postgres"), "-D", str(self.folder / "data"), *options]

    def _answers(self) -> bool:
        try:
            with psycopg.connect(self.url, connect_timeout=5):
                return True
        except psycopg.OperationalError:
            return False


def binary(name: str) -> str:
    """Path of a program of PostgreSQL's server, of the newest version that is installed.

    Raises
    ------
    ServiceError
        It isn't there; the message names the Debian package.
    """
    found = max(DEBIAN.glob(f"*/bin/{name}"), key=lambda path: float(path.parts[-3]), default=None)
    path = str(found) if found else shutil.which(name)
    if path is None:
        raise ServiceError(f"PostgreSQL's {name} is neither in {DEBIAN} nor on the PATH: install Debian's postgresql")
    return path
