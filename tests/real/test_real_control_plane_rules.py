"""The rules of the control plane by promtool, and against the metrics that there are."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

import byoc_control_plane
from byoc_control_plane.metrics import PlaneMetrics
from lab.control_plane.processes import ROOT
from lab.real.parts import install

pytestmark = pytest.mark.real

RULES = Path(byoc_control_plane.__file__).parent / "rules" / "control-plane.yaml"
CASES = ROOT / "lab" / "control_plane" / "control-plane.test.yaml"


def promtool(*arguments: str, directory: Path) -> str:
    place = install.debian()
    done = subprocess.run(
        [str(place / "usr" / "bin" / "promtool"), *arguments],
        cwd=directory,
        env={**os.environ, **install.library_path(place)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_rules_fire_when_they_should(tmp_path: Path) -> None:
    shutil.copy(RULES, tmp_path)
    shutil.copy(CASES, tmp_path)
    promtool("check", "rules", RULES.name, directory=tmp_path)
    assert "SUCCESS" in promtool("test", "rules", CASES.name, directory=tmp_path)


def test_every_rule_is_tested_firing_and_silent_and_knows_its_metrics() -> None:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    firing: set[str] = set()
    silent: set[str] = set()
    for case in yaml.safe_load(CASES.read_text())["tests"]:
        for expected in case["alert_rule_test"]:
            (firing if expected["exp_alerts"] else silent).add(expected["alertname"])
    assert firing == silent == {rule["alert"] for rule in rules}
    known = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in PlaneMetrics().registry.collect()
    }
    used = {name for rule in rules for name in re.findall(r"byoc_plane_\w+", rule["expr"])}
    assert used <= known
