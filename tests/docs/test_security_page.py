"""SECURITY.md and the page of the review name tests and commands: both have to be there."""

import ast
import re
from pathlib import Path

import pytest

import byoc_agents
from byoc_agents.app.cli import COMMANDS
from byoc_agents.policy.cli import COMMANDS as POLICIES

ROOT = Path(byoc_agents.__file__).parents[2]
PAGE = (ROOT / "SECURITY.md").read_text()
REVIEW = (ROOT / "docs/internals/security-review.md").read_text()
NAMED = sorted(set(re.findall(r"tests/[\w/]+\.py::\w+", PAGE + REVIEW)))
THREATS = re.findall(
    r"^\| (.+?) \| (.+?) \| (.+?) \|$", PAGE.split("## Threats")[1].split("\n## ")[0], re.MULTILINE
)


def collected(path: Path) -> set[str]:
    """Return the functions that a file defines and pytest would collect."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = [node for node in ast.parse(path.read_text()).body if isinstance(node, kinds)]
    return {node.name for node in found if node.name.startswith("test_")}


@pytest.mark.parametrize("named", NAMED)
def test_a_test_that_is_named_is_there(named: str) -> None:
    path, _, name = named.partition("::")
    assert name in collected(ROOT / path)


def test_every_threat_names_a_test() -> None:
    threats = [row for row in THREATS if row[0] != "threat" and set(row[0]) != {"-"}]
    assert len(threats) > 20
    assert [threat for threat, _, proof in threats if "::test_" not in proof] == []


def test_every_command_that_is_named_is_there() -> None:
    commands = set(re.findall(r"byoc-agents (\S+?)[` ]", PAGE))
    assert commands <= set(COMMANDS)
    assert set(re.findall(r"byoc-agents policy ([\w-]+)", PAGE)) <= set(POLICIES)


def test_every_file_that_is_linked_is_there() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert (ROOT / link).exists(), link
