"""Files and directories that others could read or change, and URLs that hold secrets."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import structlog

from byoc_agents.app.hardening import report_parent, report_writable, restrict_directories
from byoc_agents.app.run import configure
from byoc_agents.egress.gate import Gate
from byoc_agents.errors import ConfigError, hide_url_secrets

IDENTITY = {"BYOC_ORGANIZATION_ID": "o", "BYOC_SERVICE_ID": "s", "BYOC_REGION": "eu-west-1"}


def test_new_files_are_private_and_there_is_no_core_file(tmp_path: Path) -> None:
    code = """
import os, resource, sys
from byoc_agents.app.hardening import restrict_process
os.umask(0)
restrict_process()
open(sys.argv[1], "w").close()
print(resource.getrlimit(resource.RLIMIT_CORE))
"""
    file = tmp_path / "file"
    command = [sys.executable, "-c", code, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert done.stdout.strip() == "(0, 0)"


@pytest.mark.parametrize(("modules", "dumpable"), [("ctypes", "0"), ("", "1")])
def test_the_memory_is_readable_for_root_only_or_it_is_reported(
    modules: str, dumpable: str
) -> None:
    """Whatever BYOC_SECCOMP is: nothing of the filter is loaded here."""
    code = """
import ctypes, sys
if not sys.argv[1]:
    sys.modules["ctypes"] = None
from byoc_agents.app.hardening import restrict_process
restrict_process()
assert "byoc_agents.egress.seccomp" not in sys.modules
print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))  # PR_GET_DUMPABLE
"""
    command = [sys.executable, "-c", code, modules]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split()[-1] == dumpable
    assert ("process.readable" in done.stdout) == (not modules)


def test_a_directory_that_is_open_to_others_is_closed_and_the_group_keeps_its_access(
    tmp_path: Path,
) -> None:
    paths = [tmp_path / name for name in ("open", "group", "private", "missing")]
    for path, mode in zip(paths, (0o777, 0o2770, 0o700), strict=False):
        path.mkdir()
        path.chmod(mode)
    with structlog.testing.capture_logs() as logs:
        restrict_directories(paths)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in paths[:3]]
    assert modes == [0o770, 0o2770, 0o700]
    assert [(line["event"], line["path"], line["mode"]) for line in logs] == [
        ("state.closed_to_others", str(paths[0]), "0777")
    ]


def test_what_is_in_such_a_directory_is_closed_too(tmp_path: Path) -> None:
    """A spool and a ledger of 0.1.0 were made with the umask of the container's runtime."""
    state, elsewhere = tmp_path / "state", tmp_path / "elsewhere"
    ledger = state / "ledger"
    ledger.mkdir(parents=True)
    modes = {ledger: 0o777, state / "spool.db": 0o644, ledger / "1.jsonl": 0o664, elsewhere: 0o644}
    for path, mode in modes.items():
        path.touch()
        path.chmod(mode)
    state.chmod(0o770)
    (state / "link").symlink_to(elsewhere)
    with structlog.testing.capture_logs() as logs:
        restrict_directories([state])
    assert {path: stat.S_IMODE(path.stat().st_mode) for path in modes} == {
        ledger: 0o770,
        state / "spool.db": 0o640,
        ledger / "1.jsonl": 0o660,
        elsewhere: 0o644,
    }
    assert {line["path"] for line in logs} == {str(path) for path in modes if path != elsewhere}
    assert {line["event"] for line in logs} == {"state.closed_to_others"}


def test_a_directory_in_which_everybody_may_rename_is_reported(tmp_path: Path) -> None:
    modes = {"open": 0o777, "sticky": 0o1777, "readable": 0o755}
    for name, mode in modes.items():
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(mode)
    with structlog.testing.capture_logs() as logs:
        for name in (*modes, "missing"):
            report_parent(tmp_path / name)
    assert [(line["event"], line["log_level"], line["path"], line["mode"]) for line in logs] == [
        ("state.parent_writable", "warning", str(tmp_path / "open"), "0777")
    ]
    assert stat.S_IMODE((tmp_path / "open").stat().st_mode) == 0o777


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_an_open_directory_of_another_user_is_an_error() -> None:
    """The machine's directory for temporary files belongs to root and is open to all."""
    code = """
import os, pathlib, tempfile
from byoc_agents.app.hardening import restrict_directories
os.setuid(65534)
restrict_directories([pathlib.Path(tempfile.gettempdir())])
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert "state.open_to_others" in done.stdout
    assert "no access for others" in done.stdout


def test_a_file_of_settings_that_everybody_may_change_is_an_error(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("open", "readable")]
    for file, mode in zip(files, (0o666, 0o444), strict=True):
        file.touch()
        file.chmod(mode)
    with structlog.testing.capture_logs() as logs:
        report_writable([*map(str, files), str(tmp_path / "missing")])
    assert [(line["event"], line["path"]) for line in logs] == [
        ("settings.writable", str(files[0]))
    ]


def test_the_files_that_hold_secrets_are_known(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("hunter2")
    config = tmp_path / "agents.yaml"
    config.write_text(f"clickhouse_password_file: {secret}\n")
    environ = IDENTITY | {"BYOC_BILLING_BUCKET": "usage"}
    assert configure(["billing-scraper"], environ, str(config)).files == (str(secret), str(config))


AWS_FILES = {
    "AWS_CONFIG_FILE": "~/config",
    "AWS_SHARED_CREDENTIALS_FILE": "/keys",
    "AWS_WEB_IDENTITY_TOKEN_FILE": "/token",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": "/agent-token",
}


@pytest.mark.parametrize(
    ("daemon", "environ", "files"),
    [
        (
            "billing-scraper",
            AWS_FILES | {"AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/r"},
            ("{home}/config", "/keys", "/token", "/agent-token"),
        ),
        ("billing-scraper", {}, ("{home}/.aws/config", "{home}/.aws/credentials")),
        ("alert-forwarder", {}, ()),
    ],
    ids=["variables", "defaults", "no aws"],
)
def test_the_files_of_awss_keys_and_tokens_are_known(
    daemon: str,
    environ: dict[str, str],
    files: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    found = configure([daemon], IDENTITY | ALL | environ | {"HOME": str(tmp_path)}).files
    assert found == tuple(file.format(home=tmp_path) for file in files)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://u:hunter2@h/p", "https://***@h/p"),
        ("clickhouse:https://u:hunter2@h:8443", "clickhouse:https://***@h:8443"),
        ("https://u:hun/ter@2@h", "https://***@h"),
        ("https://h/v1?token=hunter2", "https://h/v1?***"),
        ("https://h/v1#hunter2", "https://h/v1?***"),
        ("a=http://u:hunter2@h:1,b=http://u:hunter2@i:2", "a=http://***@h:1,b=http://***@i:2"),
        ("'https://h/?hunter2': expected", "'https://h/?***': expected"),
        ("http://127.0.0.1:8123", "http://127.0.0.1:8123"),
        ("clickhouse:u:hunter2@h:8123", "***@h:8123"),
        ("clickhouse:https://u:hunter2@h", "clickhouse:https://***@h"),
        ("a=u:hunter2@h,b=//u:hunter2@i", "a=***@h,b=//***@i"),
        ("BYOC_X: invalid value 'https:u:p@hunter2@h'", "BYOC_X: invalid value '***@h'"),
        ("BYOC_X: expected a name", "BYOC_X: expected a name"),
        ("why? u@h", "why? u@h"),
    ],
)
def test_a_url_is_printed_without_its_secrets(text: str, shown: str) -> None:
    assert hide_url_secrets(text) == shown


ALERTS = {
    "BYOC_ALERTS_URL": "https://control.example/v1?token=hunter2",
    "BYOC_ALERTS_TOKEN": "t" * 32,
    "BYOC_ALERTS_SIGNING_SECRET": "whsec_a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s=",
    "BYOC_ALERTS_FINGERPRINT_SECRET": "f" * 32,
    "BYOC_ALERTS_NAMESPACE": "clickhouse",
    "BYOC_ALERTS_WEBHOOK_TOKEN": "w" * 32,
}
ALL = ALERTS | {
    "BYOC_BILLING_BUCKET": "usage",
    "BYOC_STATE_QUEUE_URL": "https://sqs.eu-west-1.amazonaws.com/1/q.fifo",
}
SECRET_URLS = {
    "BYOC_BILLING_TARGET": "clickhouse:https://u:hunter2@h/path",
    "BYOC_CLICKHOUSE_URL": "https://u:hunter2@h",
    "BYOC_STATE_QUEUE_URL": "https://u:hunter2@h/q",
    "BYOC_ALERTS_URL": "ftp://u:hunter2@h/?token=hunter2",
    "AWS_ENDPOINT_URL": "https://u:hunter2@h",
    "BYOC_HTTPS_PROXY": "socks://u:hunter2@h",
}

MALFORMED = (
    "u:hunter2@h:8123",
    "//u:hunter2@h/",
    "https:u:hunter2@h",
    "https://u:hunter2 @h",
    "u:%hunter2@h",
    "https://u:a@hunter2@h",
    "u:hunter2@h?token=hunter2#hunter2",
    "h/q?token=hunter2",
    "ftp://h/q;token=hunter2",
    "u:it's hunter2@h",
)


def configure_and_start(daemons: list[str], environ: dict[str, str]) -> None:
    """Read the settings and make the gate, as the daemons do first."""
    configuration = configure(daemons, environ)
    Gate(configuration.destinations, proxy=configuration.core.https_proxy or None)


@pytest.mark.parametrize("url", ["clickhouse:u:hunter2@h:8123", "u:hunter2@h", "//u:hunter2@h/"])
@pytest.mark.parametrize("variable", SECRET_URLS)
def test_neither_a_mistake_nor_a_setting_prints_a_user_without_a_scheme(
    variable: str, url: str
) -> None:
    daemons = ["billing-scraper", "state-exporter", "alert-forwarder"]
    try:
        shown = configure(daemons, IDENTITY | ALL | {variable: url}).text()
    except ConfigError as error:
        shown = str(error)
    assert "hunter2" not in shown


@pytest.mark.parametrize("variable", SECRET_URLS)
def test_no_mistake_prints_the_secrets_of_a_url(variable: str) -> None:
    daemons = ["billing-scraper", "state-exporter", "alert-forwarder"]
    environ = IDENTITY | ALL | {variable: SECRET_URLS[variable]}
    with pytest.raises(ConfigError) as caught:
        configure_and_start(daemons, environ)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("value", MALFORMED)
@pytest.mark.parametrize("variable", SECRET_URLS)
def test_nothing_prints_the_secrets_of_a_malformed_url(variable: str, value: str) -> None:
    daemons = ["billing-scraper", "state-exporter", "alert-forwarder"]
    prefix = "clickhouse:" if variable == "BYOC_BILLING_TARGET" else ""
    environ = IDENTITY | ALL | {variable: prefix + value}
    try:
        shown = str(configure(daemons, environ).describe())
        configure_and_start(daemons, environ)
    except ConfigError as error:
        shown = str(error)
    assert "hunter2" not in shown


@pytest.mark.parametrize("password", ["hunter2/1", "1/hunter2", "hunter2?", "#hunter2"])
def test_a_proxys_password_that_is_not_encoded_is_a_mistake(password: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Gate([], proxy=f"http://user:{password}@proxy.example:3128")
    assert str(caught.value).startswith("BYOC_HTTPS_PROXY: invalid user or password: expected")
    assert "hunter2" not in str(caught.value)


def test_the_query_of_a_url_is_not_among_the_effective_settings() -> None:
    shown = configure(["alert-forwarder"], IDENTITY | ALERTS).describe()
    assert shown["BYOC_ALERTS_URL"] == "https://control.example/v1?***"
