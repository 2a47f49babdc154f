"""A certificate for servers on this machine."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from apflow.errors import ServiceError


def self_signed(folder: Path) -> tuple[Path, Path]:
    """Certificate and private key (PKCS#8) of ``localhost`` and 127.0.0.1 as PEM files in `folder`.

    The certificate is its own authority: a client that is given it as its CA
    can verify the server's name.

    Raises
    ------
    ServiceError
        The command ``openssl`` is missing or fails.
    """
    certificate, key = folder / "server.crt", folder / "server.key"
    if not certificate.exists():
        if shutil.which("openssl") is None:
            raise ServiceError("the command openssl is missing: install the Debian package openssl")
        command = [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "3650",
            "-subj",
            "/CN=localhost",
        ]
        command += [
            "-addext",
            "subjectAltName=DNS:localhost,IP:127.0.0.1",
            "-keyout",
            str(key),
            "-out",
            str(certificate),
        ]
        made = subprocess.run(command, capture_output=True, text=True)
        if made.returncode:
            raise ServiceError(f"openssl could not make a certificate in {folder}: {made.stderr.strip()}")
    return certificate, key
