"""Rules by survey: the first that matches wins, and a wrong file is refused."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from apflow.errors import BadRequest
from apflow.model.camera import load_camera
from apflow.operate.listen.rules import DEFAULT, IGNORE, Subject, first_match, load_rules, rules_from

GRAPHS = {"alert_production", "raw_calibration"}
CAMERA = load_camera("lsstcam")
RULES = """
[[rule]]
survey = ["BLOCK-T*", "eng-[0-9]"]
graph = "ignore"

[[rule]]
image_type = ["FLAT", "BIAS"]
graph = "raw_calibration"

[[rule]]
instrument = "LSSTCam"
filters = ["g", "r_57"]
graph = "alert_production"
"""


@pytest.mark.parametrize(
    ("subject", "graph"),
    [
        (Subject("BLOCK-T12", "LSSTCam", "OBJECT", ("r_57",)), IGNORE),
        (Subject("eng-3", "LSSTCam", "FLAT"), IGNORE),
        (Subject("eng-33", "LSSTCam", "FLAT"), "raw_calibration"),
        (Subject("BLOCK-1", "LSSTCam", "OBJECT", ("r_57",)), "alert_production"),
        (Subject("BLOCK-1", "LSSTCam", "OBJECT", ("g_6",)), "alert_production"),
        (Subject("BLOCK-1", "LSSTCam", "OBJECT", ("i_39",)), IGNORE),
        (Subject("BLOCK-1", "LSSTCam", "OBJECT", ("i_39", "r")), "alert_production"),
        (Subject("BLOCK-1", "LSSTCam", "OBJECT", ()), "alert_production"),
        (Subject("BLOCK-1", "LATISS", "OBJECT", ("r",)), IGNORE),
        (Subject("", "LSSTCam", "OBJECT", ("g",)), "alert_production"),
    ],
)
def test_the_first_rule_that_matches_wins(subject: Subject, graph: str):
    assert first_match(rules_from(tomllib.loads(RULES), GRAPHS), subject, CAMERA) == graph


def test_without_a_file_images_of_the_sky_are_processed():
    rules = load_rules("", GRAPHS)
    assert rules is DEFAULT
    assert first_match(rules, Subject("any", "LSSTCam", "OBJECT"), CAMERA) == "alert_production"
    assert first_match(rules, Subject("any", "LSSTCam", "ENGTEST"), CAMERA) == IGNORE
    for image_type in ("BIAS", "DARK", "FLAT", "CBP"):
        assert first_match(rules, Subject("", "LSSTCam", image_type), CAMERA) == "raw_calibration"


def test_a_calibration_is_for_its_own_graph_alone_and_that_for_no_other():
    rules = rules_from({"rule": [{"graph": "alert_production"}, {"graph": "raw_calibration"}]}, GRAPHS)
    assert first_match(rules, Subject("", "LSSTCam", "FLAT", ("r_57",)), CAMERA) == "raw_calibration"
    assert first_match(rules[::-1], Subject("", "LSSTCam", "OBJECT", ("r_57",)), CAMERA) == "alert_production"
    assert first_match(rules[:1], Subject("", "LSSTCam", "BIAS"), CAMERA) == IGNORE


@pytest.mark.parametrize(
    ("tree", "told"),
    [
        ({"rules": []}, "unknown key rules in the rules; accepted: rule"),
        ({}, "the rules hold none"),
        ({"rule": [{"graph": "ignore"}, {"surveys": "x", "graph": "ignore"}]}, r"unknown key rule\[1\]\.surveys"),
        ({"rule": [{"graph": "alerts"}]}, r"rule\[0\]\.graph is 'alerts'; accepted: alert_production, raw_calibration"),
        ({"rule": [{"survey": "x"}]}, r"rule\[0\]\.graph is None"),
        ({"rule": [{"survey": 3, "graph": "ignore"}]}, r"rule\[0\]\.survey is 3; accepted: a pattern"),
        ({"rule": [{"filters": [], "graph": "ignore"}]}, r"rule\[0\]\.filters is \[\]"),
        ({"rule": ["ignore"]}, r"rule\[0\] is 'ignore'; accepted: a table"),
    ],
)
def test_a_wrong_file_is_refused_with_the_path_of_the_key(tree: dict[str, Any], told: str):
    with pytest.raises(BadRequest, match=told):
        rules_from(tree, GRAPHS)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path):
    with pytest.raises(BadRequest, match=r"rules .*none\.toml: No such file"):
        load_rules(tmp_path / "none.toml", GRAPHS)
    (tmp_path / "bad.toml").write_text("[[rule")
    with pytest.raises(BadRequest, match=r"rules .*bad\.toml: "):
        load_rules(tmp_path / "bad.toml", GRAPHS)
    (tmp_path / "good.toml").write_text(RULES)
    assert len(load_rules(tmp_path / "good.toml", GRAPHS)) == 3
