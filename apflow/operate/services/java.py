"""Java and the archives that run on it, from Maven Central by ``cluster/services/pom.xml``."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from importlib import resources
from pathlib import Path

from apflow.errors import ServiceError

#: Oldest Java that Kafka's brokers run on.
OLDEST = 17
DOWNLOAD_TIMEOUT_S = 600.0
#: Maven's goal for each profile of the POM: a folder of jars, and an archive's content.
GOALS = {"kafka": "copy-dependencies", "registry": "unpack-dependencies"}


def java() -> str:
    """Path of Java, JAVA_HOME's before the PATH's.

    Raises
    ------
    ServiceError
        There is none, or it is too old; the message names the Debian package.
    """
    home = os.environ.get("JAVA_HOME")
    path = shutil.which("java", path=f"{home}/bin") if home else None
    path = path or shutil.which("java")
    advice = f"install Debian's openjdk-{OLDEST}-jre-headless or a newer one"
    if path is None:
        raise ServiceError(f"java is neither in JAVA_HOME nor on the PATH: {advice}")
    told = subprocess.run([path, "-version"], capture_output=True, text=True).stderr
    version = re.search(r'version "(\d+)', told)
    if version is None or int(version[1]) < OLDEST:
        raise ServiceError(f"{path} is {told.splitlines()[0] if told else 'silent'}, not {OLDEST} or newer: {advice}")
    return path


def archives(profile: str) -> Path:
    """Folder with the archives of a profile of the POM, fetched if they are not there.

    They are kept in the user's cache, by the content of the POM; Maven's own
    folders are not used.

    Raises
    ------
    ServiceError
        Maven is missing or could not fetch them.
    """
    with resources.as_file(resources.files("apflow.cluster") / "services" / "pom.xml") as pom:
        version = hashlib.sha256(pom.read_bytes()).hexdigest()[:12]
        folder = cache() / version / profile
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as scratch:
                _fetch(pom, profile, Path(scratch))
                try:
                    (Path(scratch) / "out").rename(folder)
                except OSError:
                    # Another process was faster.
                    if not folder.exists():
                        raise
    return folder


def cache() -> Path:
    """The user's folder of what can be fetched again (XDG Base Directory Specification)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "apflow" / "services"


def _fetch(pom: Path, profile: str, scratch: Path) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise ServiceError("mvn is not on the PATH: install Debian's maven")
    command = [maven, "-q", "-B", "--strict-checksums", "-f", str(pom), "-P", profile, f"dependency:{GOALS[profile]}"]
    folders = {"maven.repo.local": "maven", "outputDirectory": "out", "markersDirectory": "markers"}
    command += [f"-D{key}={scratch / name}" for key, name in folders.items()]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise ServiceError(f"Maven did not fetch {profile} within {DOWNLOAD_TIMEOUT_S:.0f} s") from error
    if done.returncode:
        what = next((line for line in done.stdout.splitlines() if "[ERROR]" in line), done.stderr.strip())
        raise ServiceError(f"Maven could not fetch {profile}: {what}")
