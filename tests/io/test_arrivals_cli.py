"""``apflow init --registry`` and ``apflow ingest``, as somebody types them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from apflow.cli import main
from apflow.io.arrivals import await_named_images
from apflow.operate.services import PostgresServer
from tests.io import builders

APFLOW = Path(sys.executable).parent / "apflow"
IMAGE = "CC_O_20250420_000123"


def test_a_repository_on_postgresql_takes_what_lands_until_it_is_told_to_end(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    root, landing = tmp_path / "repository", tmp_path / "landing"
    words = ("--camera", "comcam", "--size", "128", "--registry", postgres.database(), "--namespace", "tonight")
    subprocess.run([APFLOW, "init", str(root), *words], check=True)
    with subprocess.Popen(
        [APFLOW, "ingest", "--butler", str(root), "--landing", str(landing)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"taking raw images from {landing}\n"
        for detector in (4, 5):
            source = builders.raw_file(tmp_path, builders.info(detector))
            os.replace(source, landing / source.name)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    assert not list(landing.iterdir())
    for detector in (4, 5):
        assert await_named_images(root, "LSSTComCam", [IMAGE], detector, 0.0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("ingest --butler {}", "either --landing DIR, or --bucket URI with --topic TOPIC"),
        ("ingest --butler {} --bucket s3://a", "either --landing DIR"),
        ("ingest --butler {} --bucket s3://a --topic t", "kafka.bootstrap is empty"),
        ("ingest --butler {}/nowhere --landing x", "no Butler repository"),
        ("init {}/x --namespace n", "namespace 'n' is one of a database; give its registry too"),
        ("init {}/x --registry postgresql://a:sesame@h/d", "holds a password"),
    ],
)
def test_what_cannot_be_is_refused(root: Path, capfd: pytest.CaptureFixture[str], words: str, message: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words.format(root).split())
    error = capfd.readouterr().err
    assert ended.value.code == 2 and message in " ".join(error.split()) and "sesame" not in error
