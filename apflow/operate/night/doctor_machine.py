"""What the doctor looks at on the machine: versions, cores, memory, disk, files, clock, compiled kernels."""

from __future__ import annotations

import importlib.metadata as metadata
import os
import platform
import re
import resource
import shutil
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import psutil

from apflow import __version__
from apflow.model.camera import Camera
from apflow.operate.night.finding import Finding, failure, fine, warning
from apflow.operate.night.plan import plan_night

#: Measured on a full CCD of 4k x 4k: GiB that a worker needs for one, MB that it leaves on disk.
WORKER_GIB, DISK_MB_PER_CCD, _FULL_PX = 2.0, 53.0, 16.3e6
#: Of a night of LSST; below room for as many there is a warning.
_NIGHT_VISITS = 1000
#: A connection to each worker and its nanny, and files of the Butler, the PPDB and the archive.
_FILES = 1024
#: The table of leap seconds says until when it is good.
_TABLE_DAYS = 30.0
_CLUSTER_COMMANDS = {"slurm": "sbatch", "htcondor": "condor_submit", "kubernetes": "kubectl", "ssh": "ssh"}


def check_machine(root: Path, camera: Camera, cadence_s: float, cluster: str) -> Iterator[Finding]:
    """Look at this machine.

    Parameters
    ----------
    root : `pathlib.Path`
        The repository.
    camera : `Camera`
    cadence_s : `float`
        Between visits.
    cluster : `str`
        Kind of cluster that a night runs on; cores and memory count on ``local`` only.
    """
    yield _versions()
    yield _cluster(cluster)
    if cluster == "local":
        yield from _size(camera, cadence_s)
    yield _disk(root, camera)
    yield _writable(root)
    yield _files()
    yield _leap_seconds()
    yield _kernels()


def _versions() -> Finding:
    """Whether what is installed is what apflow asks for."""
    from packaging.requirements import Requirement

    wrong = []
    for text in metadata.requires("apflow") or []:
        wanted = Requirement(text)
        if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
            try:
                found = metadata.version(wanted.name)
            except metadata.PackageNotFoundError:
                wrong.append(f"{wanted.name} is not installed")
                continue
            if not wanted.specifier.contains(found, prereleases=True):
                wrong.append(f"{wanted.name} {found} is not {wanted.specifier}")
    dask, distributed = metadata.version("dask"), metadata.version("distributed")
    if dask != distributed:
        wrong.append(f"dask {dask} is not of the same release as distributed {distributed}")
    here = f"apflow {__version__}, Python {platform.python_version()}, dask {dask}"
    if wrong:
        return failure("versions", f"{here}: {'; '.join(wrong)}", "install the versions of requirements.txt")
    return fine("versions", here)


def _cluster(kind: str) -> Finding:
    if kind.startswith(("tcp://", "tls://")) or kind == "local":
        return fine("cluster", kind)
    command = _CLUSTER_COMMANDS.get(kind)
    if command is None:
        accepted = ", ".join(("local", *_CLUSTER_COMMANDS, "tcp://host:port", "tls://host:port"))
        return failure("cluster", f"{kind!r} is no kind of cluster", f"give one of {accepted}")
    where = shutil.which(command)
    if where is None:
        return failure("cluster", f"{kind}: there is no command {command}", f"install {kind} or go to a machine of it")
    return fine("cluster", f"{kind}: {where}")


def needed_cores(camera: Camera, cadence_s: float) -> int:
    """Cores that keep up with a visit every `cadence_s` seconds, see `apflow.operate.night.plan`."""
    return plan_night(camera, visit_every_s=cadence_s).keeping_up


def _size(camera: Camera, cadence_s: float) -> Iterator[Finding]:
    cores, needed = psutil.cpu_count() or 1, needed_cores(camera, cadence_s)
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    text = f"{cores} cores; a visit every {cadence_s:g} s of {camera.name} needs {needed}"
    slower_s = cadence_s * needed / cores
    remedy = f"visits will queue: use a cluster of {needed} cores, or expect a visit every {slower_s:.0f} s"
    yield fine("cores", text) if cores >= needed else warning("cores", text, remedy)
    gib, wanted = psutil.virtual_memory().total / 2**30, WORKER_GIB * min(cores, needed)
    text = f"{gib:.1f} GiB; {min(cores, needed)} workers need {wanted:.0f}"
    fewer = max(1, int(gib / WORKER_GIB))
    yield fine("memory", text) if gib >= wanted else warning("memory", text, f"start no more than {fewer} workers")


def _disk(root: Path, camera: Camera) -> Finding:
    free = shutil.disk_usage(root).free
    science = [d for d in camera.detectors if d.purpose == "SCIENCE"]
    visit = sum(DISK_MB_PER_CCD * 1e6 * d.nx * d.ny / _FULL_PX for d in science)
    text = f"{free / 1e9:.0f} GB free, a visit leaves {visit / 1e9:.2g} GB: room for {int(free / visit)} visits"
    remedy = f"make room on the disk of {root}, or move the repository"
    if free < visit:
        return failure("disk", text, remedy)
    return fine("disk", text) if free >= _NIGHT_VISITS * visit else warning("disk", text, remedy)


def _writable(root: Path) -> Finding:
    """Whether a night's folder and outputs can be written: tried, since rights alone do not tell of a full disk."""
    for folder in (root, root / "nights"):
        try:
            folder.mkdir(exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(b"apflow")
        except OSError as error:
            what = f"{folder}: {error.strerror}"
            return failure("folders", what, f"make {folder} a folder that this user can write to")
    return fine("folders", f"{root} can be written to")


def _files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    text = f"{soft} open files at a time"
    if soft != resource.RLIM_INFINITY and soft < _FILES:
        return warning("file descriptors", text, f"ulimit -n {_FILES} or more (at most {hard} here) before the night")
    return fine("file descriptors", text)


def _leap_seconds() -> Finding:
    from astropy.utils import iers

    # What is installed, and nothing fetched from the network.
    table = iers.LeapSeconds.auto_open(["erfa", iers.IERS_LEAP_SECOND_FILE])
    expires = table.expires.to_datetime()
    days = (expires - datetime.now(UTC).replace(tzinfo=None)).total_seconds() / 86400
    text = f"the table of leap seconds is good until {expires:%Y-%m-%d}"
    if days < _TABLE_DAYS:
        return warning("clock", text, "install a newer astropy-iers-data: TAI may be off by a second after that")
    return fine("clock", text)


def _kernels() -> Finding:
    """Whether numba's machine code is there: the first visit would compile for minutes."""
    import apflow.pixels

    (folder,) = apflow.pixels.__path__
    wanted = [p for p in sorted(Path(folder).glob("*.py")) if re.search(r"cache=True", p.read_text())]
    places = [Path(folder) / "__pycache__"]
    if own := os.environ.get("NUMBA_CACHE_DIR"):
        places = [p for p in Path(own).glob("pixels_*") if p.is_dir()]
    tag = f"py{platform.python_version_tuple()[0]}{platform.python_version_tuple()[1]}"
    kept = {name.name.split(".")[0].split("-")[0] for place in places for name in place.glob(f"*.{tag}.nbi")}
    cold = [p.stem for p in wanted if p.stem not in kept]
    text = f"{len(wanted) - len(cold)} of {len(wanted)} modules are compiled"
    if cold:
        return warning("kernels", f"{text}; not {', '.join(cold[:3])}", "run: apflow replay --camera comcam --visits 1")
    return fine("kernels", text)
