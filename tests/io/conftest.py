"""Repositories: made once, copied for each test."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from apflow.io.butler import create_repository


@pytest.fixture(scope="session")
def pristine_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("butler") / "pristine"
    create_repository(root, "comcam", 128)
    return root


@pytest.fixture
def root(pristine_repository: Path, tmp_path: Path) -> Path:
    """An empty repository for ComCam with cut-outs of 128 px."""
    return Path(shutil.copytree(pristine_repository, tmp_path / "repository"))
