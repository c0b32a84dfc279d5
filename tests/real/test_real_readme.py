"""The README's installation commands, with the real pip and Helm."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

import byoc_agents
from lab.real.parts import helm

pytestmark = pytest.mark.real
ROOT = Path(byoc_agents.__file__).parents[2]
README = (ROOT / "README.md").read_text()


def lines(start: str) -> list[str]:
    return [line for line in README.splitlines() if line.startswith(start)]


def run(argv: list[str], directory: Path) -> str:
    return subprocess.run(argv, cwd=directory, check=True, capture_output=True, text=True).stdout


def test_pip_installs_the_package_in_a_virtual_environment(tmp_path: Path) -> None:
    tree = tmp_path / "clone"
    run(["git", "clone", "--quiet", str(ROOT), str(tree)], tmp_path)
    commands = [*lines("python3 -m venv"), *lines("/opt/byoc-agents/bin/")]
    assert len(commands) == 3
    for command in commands:
        out = run(shlex.split(command.replace("/opt/", f"{tmp_path}/opt/")), tree)
    assert out.strip().endswith(byoc_agents.__version__)


@pytest.mark.parametrize("version", helm.VERSIONS)
def test_helm_accepts_the_chart_with_the_example_values(version: str) -> None:
    """Only `install` is replaced by `template`, since there is no cluster."""
    (command,) = lines("helm install")
    argv = shlex.split(re.sub(r"^helm install", "template", command))
    out = run([str(helm.helm(version)), *argv], ROOT)
    assert "kind: StatefulSet" in out
    assert "vendor-usage-eu-central-1" in out
