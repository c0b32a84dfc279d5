"""The command line of the control plane: help, suggestions, completion, version, JSON."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from byoc_control_plane import __version__
from byoc_control_plane.cli import COMMANDS, PROGRAM, main
from byoc_control_plane.tenant import STEPS
from tests.unit.app.test_cli import Terminal

NAME = "byoc-control-plane"
STACK = shlex.split(COMMANDS["stack"].example)[1:]


@pytest.mark.parametrize("argv", [["--help"], ["-h"], ["help"], []])
def test_help_lists_the_commands(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 0
    page = capsys.readouterr().out
    assert page.startswith(f"usage: {NAME} COMMAND [OPTIONS]\n")
    assert [line.split()[0] for line in page.splitlines()[3:11]] == list(COMMANDS)


@pytest.mark.parametrize("flag", ["version", "--version", "-V"])
def test_the_version_has_its_usual_flags(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([flag]) == 0
    assert capsys.readouterr().out == f"{__version__}\n"


@pytest.mark.parametrize("command", [*COMMANDS, *(f"tenant {step}" for step in STEPS)])
def test_every_command_describes_itself_with_an_example_that_it_accepts(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name, *step = command.split()
    assert main([name, *step, "--help"]) == 0
    page = capsys.readouterr().out
    assert page.startswith(f"usage: {NAME} {command}")
    example = page[page.index(f"example: {NAME} {command}") :].partition(" > ")[0]
    words = shlex.split(example.removeprefix(f"example: {NAME} {name}"))
    COMMANDS[name].load().make_parser().parse_args(words)
    usage, description, *_ = page.split("\n\n")
    assert re.fullmatch(r"[A-Z].+\.", description, re.DOTALL)
    assert set(re.findall(r"--[a-z][a-z-]+", usage)) <= set(
        COMMANDS[name].load().make_parser().words()
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["stakc"], "byoc-control-plane: unknown command 'stakc'; did you mean 'stack'?\n"),
        (["frobnicate"], "unknown command 'frobnicate'; see `byoc-control-plane --help`\n"),
        (["stack", "--regoin", "x"], "unknown argument '--regoin'; did you mean '--region'?"),
        (["stack", "--format", "teraform"], "or terraform; did you mean 'terraform'?"),
        (["run", "recever"], "expected consumer or receiver; did you mean 'receiver'?"),
        (["tenant", "ad"], "expected add, rotate or remove; did you mean 'add'?"),
        (["tenant", "rotate", "o", "--finsh"], "did you mean '--finish'?"),
        (["compact", "--shrad", "0/1"], "did you mean '--shard'?"),
        (["schema", "--engine", "shard"], "; did you mean 'shared'?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistyped_word_suggests_the_right_one(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["sc"], {"schema"}),
        (["run", ""], {"consumer", "receiver"}),
        (["tenant", ""], {"add", "rotate", "remove"}),
        (["tenant", "--fin"], {"--finish"}),
        (["stack", "--che"], {"--check"}),
        (["compact", "--w"], {"--watch"}),
        (["completion", ""], {"bash", "zsh", "fish"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bash_completes_commands_steps_and_options(
    words: list[str], expected: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", "bash"]) == 0
    typed = " ".join(f"'{word}'" for word in [NAME, *words])
    script = capsys.readouterr().out
    script += f"COMP_WORDS=({typed}) COMP_CWORD={len(words)}; _byoc_control_plane\n"
    script += 'printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    found = {word for word in done.stdout.split() if not word.startswith("--") or words[-1]}
    assert found == expected


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_a_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in COMMANDS)
    assert NAME in out
    assert "byoc-agents" not in out


def test_the_findings_of_a_stack_are_printed_as_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("get-bucket-policy", "get-bucket-encryption", "get-public-access-block"):
        (tmp_path / f"{name}.json").write_text("{}")
    for name in ("get-bucket-ownership-controls", "get-bucket-lifecycle-configuration"):
        (tmp_path / f"{name}.json").write_text("{}")
    for name in ("get-queue-attributes", "get-queue-attributes-dead-letters"):
        (tmp_path / f"{name}.json").write_text("{}")
    for name in ("get-policy-version-consumer", "get-policy-version-compactor"):
        (tmp_path / f"{name}.json").write_text("{}")
    (tmp_path / "get-bucket-versioning.json").write_text('{"Status": "Suspended"}')
    assert main([*STACK, "--check", str(tmp_path), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    found = report.pop("findings")
    assert report == {"policy": "stack", "manifest": str(tmp_path), "ok": False}
    assert {
        "where": "get-bucket-versioning.json: Status",
        "problem": "is Suspended",
        "expected": "Enabled",
    } in found
    assert main([*STACK, "--check", str(tmp_path)]) == 1
    assert len(capsys.readouterr().out.splitlines()) == len(found)
    assert main([*STACK, "--json"]) == 0
    assert "Resources" in json.loads(capsys.readouterr().out)


def test_the_list_of_commands_imports_no_command() -> None:
    """So help, version and a mistyped command answer at once."""
    code = (
        "import sys; from byoc_control_plane.cli import main; main([]);"
        "print(*sorted({m.partition('.')[0] for m in sys.modules}"
        " & {'aiobotocore', 'aiohttp', 'yaml', 'msgspec'}))"
    )
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""


def test_the_programs_have_the_same_commands_of_their_own_kind() -> None:
    from byoc_agents.app.cli import PROGRAM as AGENTS  # noqa: PLC0415  only compared

    assert type(AGENTS) is type(PROGRAM)
    assert {"completion", "version"} <= COMMANDS.keys() & AGENTS.commands.keys()


def test_the_verdict_of_a_run_has_a_color_on_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    from byoc_control_plane.compact import describe  # noqa: PLC0415  loads aiobotocore
    from byoc_control_plane.compactor import Tally  # noqa: PLC0415  likewise

    assert "\x1b" not in describe(Tally(), sys.stdout, as_json=False)
    assert describe(Tally(), Terminal(), as_json=False).endswith("\x1b[32mOK\x1b[0m\n")
    assert "\x1b[31m1 held" in describe(Tally(held=1), Terminal(), as_json=False)
    assert "\x1b" not in describe(Tally(held=1), Terminal(), as_json=True)
