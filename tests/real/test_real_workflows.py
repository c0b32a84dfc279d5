"""The workflows are checked by actionlint, built from its pinned Go module."""

import subprocess
from pathlib import Path

from lab.real.parts import install

WORKFLOWS = sorted((install.ROOT / ".github" / "workflows").glob("*.yml"))


def lint(*files: Path) -> tuple[int, str]:
    """Return the exit code and the findings. No shellcheck: another machine may not have it."""
    command = [str(install.actionlint()), "-no-color", "-shellcheck=", "-pyflakes=", "-oneline"]
    done = subprocess.run([*command, *map(str, files)], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_actionlint_finds_nothing() -> None:
    assert WORKFLOWS
    assert lint(*WORKFLOWS) == (0, "")


def test_actionlint_finds_a_mistake(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yml"
    text = (install.ROOT / ".github/workflows/release.yml").read_text()
    wrong.write_text(text.replace("github.workflow_ref", "github.workflow_reff"))
    code, found = lint(wrong)
    assert code == 1
    assert 'property "workflow_reff" is not defined' in found
