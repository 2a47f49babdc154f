"""Workers as jobs: a real SLURM, and what HTCondor and Kubernetes are asked for."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path

import pytest
from distributed import Client

from apflow.cluster import tls
from apflow.cluster.kubernetes import cluster_spec, gather_spec
from apflow.cluster.request import ClusterRequest
from apflow.cluster.workers import worker_spec
from apflow.operate.night.connect import connect
from apflow.operate.services.slurm import SlurmCluster
from tests.cluster.holding import holder, refused, until


def variable(client: Client, role: str, name: str) -> str:
    """Of the environment of a worker with this role."""
    return str(client.submit(os.getenv, name, "", resources={role: 1}, pure=False).result(timeout=60))


def test_slurm_with_tls(slurm: SlurmCluster, tmp_path: Path):
    """Each role gets a job of its own; a cancelled one is submitted anew, and none stays."""

    def jobs() -> set[str]:
        return set(slurm.run("squeue", "--noheader", "--name=apflow", "--format=%i").split())

    asked = ClusterRequest(
        "slurm",
        n_workers=1,
        memory_limit="512MiB",
        tls=True,
        host="127.0.0.1",
        folder=str(tmp_path),
        options={"queue": "prompt", "walltime": "00:10:00", "prologue": ["export FROM_PROLOGUE=yes"]},
    )
    with holder(tmp_path, asked, slurm.environment):
        with connect(tmp_path) as client:
            job = {role: variable(client, role, "SLURM_JOB_ID") for role in ("compute", "gather")}
            assert set(job.values()) == jobs() and len(jobs()) == 2
            assert variable(client, "compute", "FROM_PROLOGUE") == "yes"
            assert variable(client, "compute", "OMP_NUM_THREADS") == "1"  # dask.yaml is read in the job
            slurm.run("scancel", job["compute"])
            assert until(lambda: job["compute"] not in jobs())
            assert variable(client, "compute", "SLURM_JOB_ID") not in ("", *job.values())
        assert len(jobs()) == 2
    assert until(lambda: not jobs(), 10)
    assert {path.suffix for path in (tmp_path / "logs").iterdir()} == {".out", ".err"}


def test_what_slurm_refuses_is_told(slurm: SlurmCluster, tmp_path: Path):
    asked = ClusterRequest("slurm", 1, "512MiB", host="127.0.0.1", folder=str(tmp_path), options={"queue": "nowhere"})
    told = refused(tmp_path, asked, slurm.environment)
    assert told.startswith("error: the cluster slurm did not start: ") and "invalid partition" in told
    assert told.count("\n") == 1


def test_what_htcondor_is_asked_for(tmp_path: Path):
    """As HTCondor's own bindings read it; no pool runs here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no pool is configured
        htcondor = pytest.importorskip("htcondor", reason="HTCondor's bindings are Linux's")
    files = tls.night_certificate(tmp_path / "tls")
    asked = ClusterRequest(
        "htcondor", 2, "2GiB", 1, True, folder=str(tmp_path), options={"directives": {"+Night": '"yes"'}}
    )
    specs = worker_spec(asked, tls.security_of(files))
    assert list(specs) == ["ccd-0", "ccd-1", "gather-0"]
    for name, spec in specs.items():
        made = spec["cls"]("tls://h:1", name=name, **spec["options"])
        (job,) = htcondor.Submit(made.job_script()).jobs(clusterid=7)
        role = "gather" if name == "gather-0" else "compute"
        command = job["Arguments"].replace("'", "")  # each blank is quoted
        for words in (f"--resources {role}=1", f"--name {name}", "tls://h:1", f"--tls-key {files['key']}", "dask.yaml"):
            assert words in command, command
        assert job.eval("RequestCpus") == (2 if role == "gather" else 1)
        assert job.eval("RequestMemory") == 2048
        assert job["Night"] == "yes"


def test_what_kubernetes_is_asked_for(tmp_path: Path):
    """No Kubernetes runs here: what the operator's client would send."""
    mounts = [{"name": "night", "mountPath": str(tmp_path)}]
    options = {
        "image": "registry.example/apflow:1",
        "volumes": [{"name": "night", "nfs": {"server": "nfs", "path": "/night"}}],
        "mounts": mounts,
        "env": {"A": 1},
    }
    night = tmp_path / "20261123"
    asked = ClusterRequest("kubernetes", 189, "2GiB", 2, folder=str(night), warm_up=("numpy",), options=options)
    whole = cluster_spec(asked, night)
    assert whole["kind"] == "DaskCluster" and whole["metadata"]["name"] == "apflow-20261123"
    assert whole["spec"]["worker"]["replicas"] == 189
    groups = {"compute": whole["spec"]["worker"], "gather": gather_spec(asked)}
    for role, group in groups.items():
        (container,) = group["spec"]["containers"]
        assert f"--resources {role}=1" in " ".join(container["args"])
        assert container["resources"]["limits"] == {"memory": str(2 << 30)}
        assert container["volumeMounts"] == mounts and group["spec"]["volumes"] == options["volumes"]
        assert {"name": "A", "value": "1"} in container["env"]
    assert groups["gather"]["replicas"] == 2
    (scheduler,) = whole["spec"]["scheduler"]["spec"]["containers"]
    assert scheduler["args"][-2:] == ["--preload", "apflow.operate.dashboard.preload"]
    assert {"name": "DASK_APFLOW__NIGHT_FOLDER", "value": str(night)} in scheduler["env"]
    assert all(one["name"] != "DASK_APFLOW__NIGHT_FOLDER" for one in groups["compute"]["spec"]["containers"][0]["env"])
    assert json.loads(json.dumps(whole)) == whole
