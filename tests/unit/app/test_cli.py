"""Tests of the command line: exit codes, every mistake at once, no secrets."""

import contextlib
import io
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from byoc_agents import __version__
from byoc_agents.app.cli import COMMANDS, main
from byoc_agents.app.command_line import color_verdict
from byoc_agents.app.run import configure
from byoc_agents.errors import ConfigError

IDENTITY = {
    "BYOC_ORGANIZATION_ID": "org",
    "BYOC_SERVICE_ID": "svc",
    "BYOC_REGION": "eu-west-1",
}
GOOD = IDENTITY | {"BYOC_BILLING_BUCKET": "usage"}


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, value in GOOD.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    assert capsys.readouterr().out == f"{__version__}\n"


@pytest.mark.parametrize(("argv", "code"), [(["--help"], 0), (["help"], 0), ([], 0)])
def test_help_lists_the_commands(
    argv: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == code
    shown = "".join(capsys.readouterr())
    assert "check-config" in shown


@pytest.mark.parametrize("flag", ["version", "--version", "-V"])
def test_the_version_has_its_usual_flags(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([flag]) == 0
    assert capsys.readouterr().out == f"{__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_describes_itself_with_an_example(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with contextlib.suppress(SystemExit):
        main([command, "--help"])
    page = capsys.readouterr().out
    assert page.startswith(f"usage: byoc-agents {command}")
    assert f"example: byoc-agents {command}" in page


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("chek-config", "did you mean 'check-config'?"),
        ("ledgr", "did you mean 'ledger'?"),
        ("--versoin", "did you mean '--version'?"),
        ("frobnicate", "see `byoc-agents --help`"),
    ],
)
def test_a_mistyped_command_suggests_the_right_one(
    typed: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([typed]) == 2
    assert capsys.readouterr().err == f"byoc-agents: unknown command {typed!r}; {hint}\n"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["ver"], {"verify", "version"}),
        (["run", "bill"], {"billing-scraper"}),
        (["ledger", ""], {"show", "verify", "checkpoint", "prove", "report"}),
        (["policy", "net"], {"networkpolicy"}),
        (["policy", "ing"], {"ingress"}),
        (["policy", "--vendor-a"], {"--vendor-account"}),
        (["alerts", ""], {"preview"}),
        (["dead-letters", ""], {"list", "resend"}),
        (["check-config", "st"], {"state-exporter"}),
        (["verify", "--s"], {"--since"}),
        (["completion", ""], {"bash", "zsh", "fish"}),
    ],
)
def test_bash_completes_commands_daemons_and_options(
    words: list[str], expected: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    typed = " ".join(f"'{word}'" for word in ["byoc-agents", *words])
    assert main(["completion", "bash"]) == 0
    script = (
        f"{capsys.readouterr().out}\nCOMP_WORDS=({typed}) COMP_CWORD={len(words)}; _byoc_agents\n"
    )
    script += 'printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    found = {word for word in done.stdout.split() if not word.startswith("--") or words[-1]}
    assert found == expected


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_a_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_example_of_a_command_is_accepted_by_its_parser(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BYOC_STATE_DIR", str(tmp_path))
    words = shlex.split(COMMANDS[command].example.partition(" > ")[0])
    COMMANDS[command].load().make_parser().parse_args(words[2:])


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_a_page_is_completed(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page is the other side: its options are what a person reads."""
    with contextlib.suppress(SystemExit):
        main([command, "--help"])
    usage = capsys.readouterr().out.split("\n\n")[0]
    words = set(COMMANDS[command].load().make_parser().words())
    assert set(re.findall(r"--[a-z][a-z-]+", usage)) <= words


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_color_is_for_terminals_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert color_verdict("OK", io.StringIO(), ok=True) == "OK"
    assert color_verdict("OK", Terminal(), ok=True) == "\x1b[32mOK\x1b[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert color_verdict("FAILED", Terminal(), ok=False) == "FAILED"


def test_every_mistake_is_reported_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-config", "billing-scraper"]) == 2
    lines = capsys.readouterr().err.splitlines()
    starts = [line.split(":")[0] for line in lines]
    assert starts == [*IDENTITY, "BYOC_BILLING_BUCKET"]
    assert all("is required: " in line for line in lines)


def test_the_effective_settings_are_printed_without_secrets(
    environ: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = tmp_path / "password"
    secret.write_text("hunter2\n")
    environ.setenv("BYOC_CLICKHOUSE_PASSWORD_FILE", str(secret))
    assert main(["check-config", "billing-scraper"]) == 0
    out = capsys.readouterr().out
    assert "hunter2" not in out
    shown = json.loads(out)
    assert shown["BYOC_CLICKHOUSE_PASSWORD"] == "***"
    assert shown["BYOC_BILLING_TARGET"] == "auto"


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ({"BYOC_BILLING_BUCKET": "arn:aws:s3:::usage"}, "BYOC_BILLING_BUCKET: invalid value"),
        ({"BYOC_BILLING_TARGET": "pid:one"}, "BYOC_BILLING_TARGET: invalid value 'pid:one'"),
        ({"BYOC_BILLING_WINDOW_SECONDS": "45"}, "must be 60 or divide it"),
        (
            {"BYOC_BILLING_WINDOW_SECONDS": "x"},
            "BYOC_BILLING_WINDOW_SECONDS: invalid value 'x': expected 60 or a divisor of 60",
        ),
        ({"BYOC_BILLING_SAMPLE_SECONDS": "0"}, "must be 0.1 to 60"),
        ({"BYOC_BILLING_COMPRESSION": "lz4"}, "expected zstd or gzip"),
        ({"BYOC_BILING_BUCKET": "x"}, "BYOC_BILING_BUCKET: unknown setting"),
        ({"AWS_ENDPOINT_URL_S3": "http://10.0.0.1:9000"}, "expected https"),
        ({"BYOC_ORGANIZATION_ID": "a/b"}, "BYOC_ORGANIZATION_ID: invalid value 'a/b'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_a_mistake_names_the_variable_and_what_is_wanted(
    setting: dict[str, str], expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        configure(["billing-scraper"], GOOD | setting)
    assert any(expected in mistake for mistake in caught.value.mistakes)


def test_a_setting_of_a_daemon_that_is_not_run_here_is_no_mistake() -> None:
    configured = configure(["billing-scraper"], GOOD | {"BYOC_STATE_POLL_SECONDS": "5"})
    assert list(configured.daemons) == ["billing-scraper"]


def test_the_destinations_are_the_settings_and_nothing_else() -> None:
    irsa = {"AWS_ROLE_ARN": "arn:aws:iam::1:role/r", "AWS_WEB_IDENTITY_TOKEN_FILE": "/token"}
    found = [str(d) for d in configure(["billing-scraper"], GOOD | irsa).destinations]
    assert found == [
        "http://127.0.0.1:8123",
        "https://usage.s3.eu-west-1.amazonaws.com:443",
        "https://sts.eu-west-1.amazonaws.com:443",
    ]


@pytest.mark.parametrize(
    ("more", "frequency"),
    [
        ({}, "60 s"),
        ({"BYOC_BILLING_WINDOW_SECONDS": "30"}, "30 s"),
        ({"BYOC_BILLING_METER": "clickhouse"}, "5 s"),
        ({"BYOC_BILLING_TARGET": "clickhouse:http://127.0.0.1:1"}, "5 s"),
        (
            {"BYOC_BILLING_METER": "clickhouse", "BYOC_BILLING_SAMPLE_SECONDS": "0.5"},
            "0.5 s",
        ),
    ],
)
def test_a_server_that_is_the_only_meter_is_asked_for_each_sample(
    more: dict[str, str], frequency: str
) -> None:
    server, *_ = configure(["billing-scraper"], GOOD | more).destinations
    assert server.frequency == frequency


@pytest.mark.parametrize(
    ("more", "settings"),
    [
        ({}, ["BYOC_CLICKHOUSE_URL", "BYOC_BILLING_BUCKET", "AWS_ROLE_ARN"]),
        (
            {
                "BYOC_BILLING_TARGET": "clickhouse:http://127.0.0.1:1",
                "AWS_ENDPOINT_URL_STS": "https://sts.us-east-1.amazonaws.com",
                "AWS_ENDPOINT_URL": "https://s3.eu-west-1.amazonaws.com",
            },
            ["BYOC_BILLING_TARGET", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_STS"],
        ),
    ],
)
def test_each_destination_names_the_variable_that_decided(
    more: dict[str, str], settings: list[str], tmp_path: Path
) -> None:
    (tmp_path / "token").touch()
    irsa = {
        "AWS_ROLE_ARN": "arn:aws:iam::1:role/r",
        "AWS_WEB_IDENTITY_TOKEN_FILE": str(tmp_path / "token"),
    }
    found = configure(["billing-scraper"], GOOD | irsa | more).destinations
    assert [destination.setting for destination in found] == settings


@pytest.mark.parametrize("named", ["", "api.example.com, Usage.S3.eu-west-1.amazonaws.com."])
def test_the_named_hosts_may_have_private_addresses(named: str) -> None:
    found = configure(["billing-scraper"], GOOD | {"BYOC_PRIVATE_HOSTS": named}).destinations
    bucket = next(one for one in found if one.setting == "BYOC_BILLING_BUCKET")
    assert bucket.private is bool(named)


def test_a_file_gives_settings_and_the_environment_wins(tmp_path: Path) -> None:
    file = tmp_path / "agents.yaml"
    file.write_text("region: us-west-2\nbilling_bucket: from-file\nbilling_sample_seconds: 2\n")
    environ = {k: v for k, v in GOOD.items() if k != "BYOC_BILLING_BUCKET"}
    configured = configure(["billing-scraper"], environ, str(file)).describe()
    assert configured["BYOC_REGION"] == "eu-west-1"
    assert configured["BYOC_BILLING_BUCKET"] == "from-file"
    assert configured["BYOC_BILLING_SAMPLE_SECONDS"] == 2


def test_no_such_daemon(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "billing"]) == 2
    assert "expected billing-scraper" in capsys.readouterr().err


def test_a_profile_that_does_not_exist_stops_the_start(
    environ: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environ.setenv("AWS_PROFILE", "nobody")
    environ.setenv("BYOC_STATE_DIR", str(tmp_path))
    environ.setenv("BYOC_LISTEN", "127.0.0.1:0")
    command = [sys.executable, "-m", "byoc_agents.app.cli", "run", "billing-scraper"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 2
    assert "AWS_PROFILE: " in ended.stderr.splitlines()[-1]


def test_a_state_directory_that_cannot_be_used_stops_the_start(
    environ: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    environ.setenv("BYOC_STATE_DIR", str(tmp_path / "file"))
    command = [sys.executable, "-m", "byoc_agents.app.cli", "run", "billing-scraper"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 2
    assert "BYOC_STATE_DIR" in ended.stderr.splitlines()[-1]
