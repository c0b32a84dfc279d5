"""The README's contents, and those of its commands that need no server and no package index.

`tests/real/test_real_documented_commands.py` runs every command of the page.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import byoc_agents
from images.oci import DESCRIPTIONS

ROOT = Path(byoc_agents.__file__).parents[2]
README = (ROOT / "README.md").read_text()
MAX_LINES = 120
FENCED = re.findall(r"^```\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
COMMANDS = [
    re.sub(r" {2,}#.*| #.*", "", line).strip()
    for block in FENCED
    for line in block.replace("\\\n  ", "").splitlines()
]
HERE = [command for command in COMMANDS if command.startswith("byoc-agents ")]


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= MAX_LINES
    assert max(len(line) for line in README.splitlines() if not line.startswith("|")) <= 110


def test_the_readme_answers_the_first_questions_in_order() -> None:
    sections = re.findall(r"^## (.+)$", README, re.MULTILINE)
    assert sections == [
        "Quick start",
        "Install",
        "Configure",
        "How it works",
        "Guarantees",
        "Documentation",
        "Contributing, security, license",
    ]
    assert "**When not to use it.**" in README.split("## Quick start")[0]


@pytest.mark.parametrize("command", HERE)
def test_a_command_succeeds_as_written(command: str) -> None:
    argv = [sys.executable, "-m", "byoc_agents.app.cli", *command.split()[1:]]
    environ = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT / "agents")}
    done = subprocess.run(argv, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_the_container_command_names_an_image_of_this_version() -> None:
    (command,) = [command for command in COMMANDS if command.startswith("docker run")]
    (image, tag) = re.findall(r"byoc-agents/([a-z-]+):(\S+)", command)[0]
    assert tag == byoc_agents.__version__
    assert image in DESCRIPTIONS
    arguments = command.partition(f":{tag} ")[2].split()
    assert arguments[:2] == ["run", image]


def test_every_page_of_the_site_is_reachable_from_the_readme() -> None:
    linked = set(re.findall(r"\]\(docs/([\w./-]+\.md)\)", README))
    indexes = {"adr/index.md"}
    pages = {p.relative_to(ROOT / "docs").as_posix() for p in (ROOT / "docs").rglob("*.md")}
    assert pages - {page for page in pages if page.startswith("adr/")} - linked == set()
    assert indexes <= linked
