"""What is asked of a cluster is checked before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from apflow.cluster.request import ClusterRequest
from apflow.errors import BadRequest


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"kind": "pbs"}, r"cluster is 'pbs'; accepted: local, ssh, slurm, htcondor, kubernetes, tcp://host:port"),
        ({"options": {"queue": "prompt"}}, r"cluster option 'queue' of local; accepted: none"),
        ({"kind": "slurm", "options": {"que": "p"}}, r"cluster option 'que' of slurm; accepted: queue \(partition\), "),
        ({"kind": "tcp://h:1", "options": {"hosts": []}}, r"cluster option 'hosts' of tcp://h:1; accepted: ca_file"),
        (
            {"kind": "slurm", "options": {"directives": "--qos=a"}},
            r"directives of slurm is '--qos=a'; accepted: a list",
        ),
        ({"kind": "htcondor", "options": {"directives": ["a"]}}, r"is \['a'\]; accepted: names and values, in JSON"),
        (
            {"kind": "ssh", "options": {"hosts": "a,b"}},
            r"hosts of ssh is 'a,b'; accepted: a list, in JSON \[...\]: host",
        ),
        ({"kind": "ssh"}, r"cluster ssh has no 'hosts'; accepted: host names"),
        ({"kind": "ssh", "options": {"hosts": []}}, r"cluster ssh has no 'hosts'"),
        ({"kind": "kubernetes"}, r"cluster kubernetes has no 'image'; accepted: container image"),
        ({"n_workers": 0}, r"workers of the cluster: 0; accepted: 1 or more"),
        ({"gather_workers": -1}, r"gather workers of the cluster: -1; accepted: 0 or more"),
        ({"memory_limit": "plenty"}, r"memory of a worker 'plenty'; accepted: a size such as 6GiB"),
        ({"memory_limit": "0"}, r"memory of a worker '0'"),
        ({"dashboard_address": ":8787"}, r"dashboard address ':8787'; accepted: host:port, such as 127.0.0.1:0"),
        ({"dashboard_address": "localhost"}, r"dashboard address 'localhost'"),
        ({"kind": "tcp://h:1", "tls": True}, r"not accepted for cluster tcp://h:1: accepted is tls:// with ca_file"),
        ({"kind": "kubernetes", "tls": True, "options": {"image": "a"}}, r"TLS on request is not accepted"),
    ],
)
def test_what_is_not_accepted(asked: dict[str, Any], told: str):
    with pytest.raises(BadRequest, match=told):
        ClusterRequest(**asked)


def test_it_comes_back_from_its_file(tmp_path: Path):
    asked = ClusterRequest(
        "ssh", 3, "2GiB", 2, True, "0.0.0.0:1", "h", str(tmp_path), ("numpy",), {"hosts": ["a", "b"]}
    )
    asked.save(tmp_path / "request")
    assert ClusterRequest.load(tmp_path / "request") == asked
    assert list(tmp_path.iterdir()) == [tmp_path / "request"]


@pytest.mark.parametrize("text", [None, "", "[]", '{"n": 1}', '{"kind": "local"'])
def test_a_file_that_is_none(tmp_path: Path, text: str | None):
    if text is not None:
        (tmp_path / "request").write_text(text)
    with pytest.raises(
        BadRequest, match=r"request is no request for a cluster .*; accepted: JSON with kind, n_workers"
    ):
        ClusterRequest.load(tmp_path / "request")
