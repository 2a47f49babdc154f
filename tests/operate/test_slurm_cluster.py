"""The private SLURM: it ends with its owner, in whatever way that ends, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from importlib import resources
from pathlib import Path

import psutil
import pytest

from apflow.errors import ServiceError
from apflow.operate.services.server import as_user
from apflow.operate.services.slurm import SlurmCluster

#: Starts a cluster with a job in it, tells its folder and the job's process, and waits to be killed.
OWNER = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
from apflow.operate.services.server import as_user
from apflow.operate.services.slurm import SlurmCluster
with SlurmCluster() as cluster:
    cluster.run("sbatch", "--mem=10M", "--output=/dev/null", "--wrap", f"echo $$ > {cluster.folder}/job; sleep 600")
    while not (cluster.folder / "job").exists():
        time.sleep(0.05)
    print(cluster.folder, flush=True)
    time.sleep(600)
"""


def processes(folder: str) -> list[psutil.Process]:
    """Those that run for a cluster: its daemons and its jobs."""
    found = []
    for process in psutil.process_iter():
        try:
            mine = process.environ().get("SLURM_CONF") == f"{folder}/slurm.conf"
            mine |= process.name() == "slurmstepd" and process.cwd() == folder  # it writes over its environment
            if mine and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def gone(folder: str) -> bool:
    deadline = time.monotonic() + 20
    while processes(folder) or Path(folder).exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_it_ends_with_its_owner(how: signal.Signals):
    process = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    folder = process.stdout.readline().strip()
    names = {one.name() for one in processes(folder)}
    assert {"munged", "slurmctld", "slurmd", "sleep"} <= names
    process.send_signal(how)
    process.communicate()
    assert gone(folder), processes(folder)


def test_nothing_is_written_outside_its_folder(slurm: SlurmCluster):
    opened = [file for one in processes(str(slurm.folder)) for file in one.open_files()]
    written = {Path(file.path) for file in opened if set(file.mode) & {"w", "a", "+"}}
    assert written
    assert {path for path in written if slurm.folder not in path.parents} == set()


def test_only_this_machine_is_listened_to(slurm: SlurmCluster):
    sockets = [one for process in processes(str(slurm.folder)) for one in process.net_connections()]
    listening = {one.laddr.ip for one in sockets if one.status == psutil.CONN_LISTEN}
    assert listening == {"127.0.0.1"}


@pytest.mark.skipif(os.geteuid() != 0, reason="the other tests here ran as an ordinary user")
def test_an_ordinary_user_has_one_too(tmp_path_factory: pytest.TempPathFactory):
    """What a cluster of root's left, handed over to nobody, who starts it by hand."""
    place = tmp_path_factory.mktemp("nobody")  # short: jobs have sockets in it, whose paths have 107 characters
    for folder in (place, *place.parents):
        if folder == Path(tempfile.gettempdir()):
            break
        folder.chmod(0o711)
    folder = place / "cluster"
    with SlurmCluster(folder) as cluster:
        environment = cluster.environment
    text = cluster.configuration.read_text()
    cluster.configuration.write_text(text.replace("User=root", "User=nobody"))
    subprocess.run(["chown", "-R", "nobody:", str(folder)], check=True)
    script = place / "private.sh"
    script.write_text((resources.files("apflow.cluster") / "slurm" / "private.sh").read_text())

    nobody = as_user("nobody") | {"env": environment, "cwd": "/"}

    def run(*words: str) -> str:
        return subprocess.run(words, **nobody, capture_output=True, text=True, timeout=60).stdout.strip()

    with (place / "log").open("w") as log:
        daemons = subprocess.Popen(["bash", str(script), str(folder), "node00"], **nobody, stdout=log, stderr=log)
    try:
        until = time.monotonic() + 20
        while run("sinfo", "--noheader", "--format=%T") != "idle":
            assert time.monotonic() < until, (place / "log").read_text()
            time.sleep(0.1)
        run("sbatch", "--mem=10M", f"--output={folder}/out", "--wait", "--wrap", "id --user --name")
        assert (folder / "out").read_text() == "nobody\n"
        assert {one.username() for one in processes(str(folder))} == {"nobody"}
    finally:
        daemons.terminate()
        daemons.wait()
    assert not processes(str(folder))


def test_a_daemon_that_does_not_start_is_told():
    with pytest.raises(ServiceError, match=r"slurm in .* ended with 1"), SlurmCluster(remember_s=-1):
        pass
