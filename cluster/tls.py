"""TLS of a night's cluster: one certificate for scheduler, workers and driver, which is its own authority."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distributed.security import Security

from apflow.errors import ServiceError

FILES = ("ca_file", "cert", "key")


def night_certificate(folder: Path) -> dict[str, str]:
    """Make a certificate and its key in `folder`, which only its owner may read; or take those that are there.

    A scheduler that is restarted in the same night keeps the certificate, so
    that the driver still knows it. Valid for a year (Dask's
    `Security.temporary`); the key never leaves the folder, so that workers
    elsewhere need to see it on a shared disk.

    Returns
    -------
    files : `dict`
        Paths of ``ca_file``, ``cert`` and ``key``.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    if not (certificate.exists() and key.exists()):
        made = Security.temporary()
        _write(key, made.tls_scheduler_key)
        _write(certificate, made.tls_scheduler_cert)
    return {"ca_file": str(certificate), "cert": str(certificate), "key": str(key)}


def security_of(files: Mapping[str, str]) -> Security:
    """Of every role, by the paths of ``ca_file``, ``cert`` and ``key``; plain connections are refused.

    Raises
    ------
    ServiceError
        A path is missing or cannot be read.
    """
    for name in FILES:
        if not os.access(files.get(name, ""), os.R_OK):
            raise ServiceError(f"TLS {name} {files.get(name, '')!r} cannot be read; accepted: the path of a PEM file")
    roles = ("scheduler", "worker", "client")
    pairs = {f"tls_{role}_{part}": files[part] for role in roles for part in ("cert", "key")}
    return Security(tls_ca_file=files["ca_file"], require_encryption=True, **pairs)


def as_settings(files: Mapping[str, str]) -> dict[str, Any]:
    """The same as Dask settings, for workers that take their settings from those of this process; none for no files."""
    if not files:
        return {}
    tls = "distributed.comm.tls"
    found: dict[str, Any] = {"distributed.comm.require-encryption": True, f"{tls}.ca-file": files["ca_file"]}
    for role in ("scheduler", "worker", "client"):
        found |= {f"{tls}.{role}.{part}": files[part] for part in ("cert", "key")}
    return found


def _write(path: Path, text: str) -> None:
    new = path.with_name(path.name + ".new")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    new.replace(path)
