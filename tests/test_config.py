"""Configuration: TOML in, unknown keys refused by their full path."""

from __future__ import annotations

from pathlib import Path

import pytest

from apflow.config import Config, config_from, load_config, to_toml
from apflow.config_tables import Detect, Kafka, Timing
from apflow.errors import BadRequest


def test_toml_gives_back_what_was_written(tmp_path: Path):
    config = Config(camera="decam", size=512, butler='a "b" \\c', timing=Timing(image_timeout_s=3.0))
    path = tmp_path / "apflow.toml"
    path.write_text(to_toml(config))
    assert load_config(path) == config


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"subtract": {"kernel_ordr": 2}}, ("subtract.kernel_ordr", "kernel_order")),
        ({"camra": "x"}, ("camra", "camera")),
        ({"size": "small"}, ("size", "small", "int")),
        ({"timing": {"image_timeout_s": True}}, ("timing.image_timeout_s", "True", "float")),
        ({"timing": 3}, ("timing", "table")),
    ],
)
def test_errors_name_the_key_the_value_and_what_is_accepted(tree, words):
    with pytest.raises(BadRequest) as error:
        config_from(tree)
    assert all(word in str(error.value) for word in words)


def test_missing_and_broken_files(tmp_path: Path):
    with pytest.raises(BadRequest, match="nowhere"):
        load_config(tmp_path / "nowhere.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("a = = 1")
    with pytest.raises(BadRequest, match="broken"):
        load_config(broken)


def test_the_processing_id_is_of_what_decides_the_results():
    here = Config(butler="here", ppdb="duckdb:///a")
    assert here.processing_id == Config(butler="there", timing=Timing(5.0), kafka=Kafka("b:1")).processing_id
    others = [Config(size=512), Config(camera="decam"), Config(detect=Detect(threshold=6.0))]
    assert len({c.processing_id for c in (here, *others)}) == 4
