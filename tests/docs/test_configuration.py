"""docs/configuration.md lists every setting, and the example file is accepted."""

import re
from pathlib import Path

import pytest
import yaml

from byoc_agents.app.cli import main
from lab import configuration

ROOT = configuration.PAGE.parents[1]
EXAMPLE = ROOT / "docs" / "examples" / "byoc-agents.yaml"
DAEMONS = ("billing-scraper", "state-exporter", "alert-forwarder")
PAGE = configuration.PAGE.read_text()


def test_the_table_is_generated_from_the_code() -> None:
    by_hand, mark, table = PAGE.partition(configuration.MARK)
    assert by_hand
    assert mark
    assert table == f"\n## All settings\n\n{configuration.table()}", "run lab.configuration"


def test_every_setting_in_the_source_has_a_row() -> None:
    source = (ROOT / "agents" / "byoc_agents").rglob("*.py")
    named = {
        v for path in source for v in re.findall(r'Setting\(\s*"(BYOC_\w+)"', path.read_text())
    }
    assert named - {"BYOC_X"} == set(re.findall(r"^\| `(BYOC_\w+)` \|", PAGE, re.MULTILINE))


def test_the_notes_name_existing_settings_only() -> None:
    by_hand = PAGE.partition(configuration.MARK)[0]
    named = set(re.findall(r"BYOC_\w+", by_hand))
    assert named <= set(re.findall(r"^\| `(BYOC_\w+)` \|", PAGE, re.MULTILINE))


@pytest.fixture
def example(tmp_path: Path) -> Path:
    """Return the example with secret files that exist."""
    settings = yaml.safe_load(EXAMPLE.read_text())
    secrets = {
        "token": "a-token",
        "signing-secret": "whsec_" + "A" * 32,
        "webhook-token": "another-token",
        "fingerprint-secret": "f" * 32,
    }
    for name, content in secrets.items():
        (tmp_path / name).write_text(content)
    text = EXAMPLE.read_text().replace("/etc/byoc-agents/", f"{tmp_path}/")
    assert settings["alerts_token_file"] == "/etc/byoc-agents/token"
    path = tmp_path / "byoc-agents.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("daemon", DAEMONS)
def test_the_example_is_a_valid_configuration(
    example: Path, daemon: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("BYOC_CONFIG", raising=False)
    assert main(["check-config", daemon, "--config", str(example)]) == 0
    assert '"BYOC_ORGANIZATION_ID": "org-1"' in capsys.readouterr().out
