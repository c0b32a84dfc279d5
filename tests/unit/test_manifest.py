"""Files in YAML or JSON that cannot be read: every command that takes one says so and ends with 2.

PyYAML and `json` report such files by exceptions of many types, some of them no error of theirs.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from byoc_agents.app.cli import main
from byoc_agents.errors import ConfigError
from byoc_agents.manifest import DuplicateKeyError, documents
from byoc_control_plane import cli

UNREADABLE = {
    "an open list": "[",
    "lists, too deep": "[" * 100_000,
    "objects, too deep": '{"a":' * 100_000,
    "flow mappings, too deep": "{a: " * 3_000,
    "mappings, too deep": "\n".join(" " * depth + "a:" for depth in range(1_500)),
    "an integer of 5,000 digits": f'{{"a": {"9" * 5_000}}}',
    "an integer of 5,000 digits in YAML": f"a: {'9' * 5_000}",
    "no such day": "a: 2026-02-30",
    "no integer": 'a: !!int ""',
    "no boolean": "a: !!bool maybe",
    "no time": "a: !!timestamp soon",
    "no key": "? [a]\n: 1",
    "an unknown type": "a: !!python/name:os.system",
    "a control character": "a: \x01",
}
TWICE = {"YAML": "a: 1\na: 2\n", "JSON": '{"a": 1, "a": 2}'}

ADD = ["tenant", "add", "org-1", "--registry", "registry", "--secrets", "new", "--service", "svc-1"]
Command = Callable[[str], int]
COMMANDS: dict[str, Command] = {
    "policy iam": lambda file: main(["policy", "iam", "--check", file]),
    "policy networkpolicy": lambda file: main(["policy", "networkpolicy", "--check", file]),
    "policy ingress": lambda file: main(["policy", "ingress", "--check", file]),
    "alerts preview": lambda file: main(["alerts", "preview", file]),
    "tenant add": lambda file: cli.main([*ADD, "--values", file]),
}


@pytest.mark.parametrize("text", UNREADABLE.values(), ids=UNREADABLE)
def test_the_reader_has_one_error_for_all_of_them(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^--check x: cannot be read .*: expected one JSON"):
        documents(text, "--check x")
    with pytest.raises(ConfigError, match=r"^x: cannot be read .*: expected values$"):
        documents(text, "x", "values")


@pytest.mark.parametrize("text", TWICE.values(), ids=TWICE)
def test_a_key_that_appears_twice_is_an_error_of_its_own(text: str) -> None:
    with pytest.raises(DuplicateKeyError, match="'a' appears twice"):
        documents(text, "--check x")


@pytest.fixture
def _settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "registry").mkdir()
    for name, value in {
        "BYOC_REGION": "eu-central-1",
        "BYOC_ORGANIZATION_ID": "org-1",
        "BYOC_SERVICE_ID": "svc-1",
        "BYOC_BILLING_BUCKET": "vendor-usage",
        "BYOC_STATE_QUEUE_URL": "https://sqs.eu-central-1.amazonaws.com/111122223333/q.fifo",
        "BYOC_ALERTS_URL": "https://control.example.com/alerts",
    }.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("_settings")
@pytest.mark.parametrize("text", UNREADABLE.values(), ids=UNREADABLE)
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_names_the_file_and_ends_with_2(
    command: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "given.yaml").write_text(text)
    assert COMMANDS[command]("given.yaml") == 2
    said = capsys.readouterr().err
    assert "given.yaml: " in said
    assert "expected" in said
    assert not (tmp_path / "new").exists()


@pytest.mark.usefixtures("_settings")
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("text", ["", "null", "[]", "text", "[1, 2]", "# no document\n---\n"])
def test_a_file_without_an_object_is_not_taken_for_a_good_one(
    command: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An empty file is what a pipe from a command that failed gives."""
    (tmp_path / "given.yaml").write_text(text)
    assert COMMANDS[command]("given.yaml") in {1, 2}
    said = capsys.readouterr()
    assert "expected " in said.err + said.out
    assert not (tmp_path / "new").exists()


@pytest.mark.usefixtures("_settings")
@pytest.mark.parametrize("command", ["alerts preview", "tenant add"])
def test_bytes_that_are_not_utf_8_and_a_folder_are_refused(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "given.yaml").write_bytes(b"\xff\xfe")
    (tmp_path / "folder").mkdir()
    for file, why in {
        "given.yaml": "is not UTF-8",
        "folder": "Is a directory",
        "none.yaml": "No such file or directory",
    }.items():
        assert COMMANDS[command](file) == 2
        assert f"{file}: {why}: expected" in capsys.readouterr().err
