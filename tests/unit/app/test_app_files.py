"""Files of others: only regular ones, only so much of them, and never a wait without an end."""

import os
import threading
from pathlib import Path

import pytest

from byoc_agents.app import files
from byoc_agents.app.files import FileContent, NotReadableError, open_regular, read_within
from byoc_agents.app.reloadable_secret import ReloadableSecret
from byoc_agents.app.runtime import ClickHouseSettings
from byoc_agents.app.settings import CoreSettings, load, load_file, unreadable_files
from byoc_agents.errors import ConfigError

EXPECTED = "expected a regular file of at most 100 bytes"
MUST = {"BYOC_ORGANIZATION_ID": "o", "BYOC_SERVICE_ID": "s", "BYOC_REGION": "r"}


@pytest.fixture
def fifo(tmp_path: Path) -> str:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return str(path)


def test_a_regular_file_is_read_also_through_links(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 100)
    (tmp_path / "link").symlink_to("file")
    assert read_within(str(tmp_path / "link"), 100) == b"x" * 100


def test_what_is_no_regular_file_is_named_and_not_waited_for(tmp_path: Path, fifo: str) -> None:
    (tmp_path / "large").write_bytes(b"x" * 101)
    (tmp_path / "link").symlink_to(fifo)
    for path, kind in (
        (fifo, "is a FIFO"),
        (str(tmp_path / "link"), "is a FIFO"),
        ("/dev/zero", "is a device"),
        (str(tmp_path), "is a directory"),
        (str(tmp_path / "large"), "has 101 bytes"),
    ):
        with pytest.raises(NotReadableError, match=f"{path} {kind}; {EXPECTED}"):
            read_within(path, 100)


def test_a_file_that_states_no_size_is_read_up_to_the_bound() -> None:
    with pytest.raises(NotReadableError, match="too large"):
        read_within("/proc/self/environ", 1)  # its size is stated as 0


def test_a_reading_that_has_not_ended_says_so(tmp_path: Path) -> None:
    reading = FileContent(str(tmp_path / "x"), 100)
    assert reading.wait(10)
    with pytest.raises(FileNotFoundError):
        reading.result()


def test_a_ledger_file_that_is_a_fifo_is_not_opened(fifo: str) -> None:
    with pytest.raises(OSError, match="a FIFO; expected a regular file"):
        open_regular(Path(fifo))


def test_a_secret_that_is_a_fifo_is_a_mistake_of_the_settings(fifo: str) -> None:
    environ = {**MUST, "BYOC_CLICKHOUSE_PASSWORD_FILE": fifo}
    with pytest.raises(ConfigError) as raised:
        load([CoreSettings, ClickHouseSettings], environ, {})
    (mistake,) = raised.value.mistakes
    assert mistake.startswith(f"BYOC_CLICKHOUSE_PASSWORD: {fifo} is a FIFO; expected a regular")


@pytest.mark.parametrize("path", ["/dev/zero", "/dev", ""])
def test_a_configuration_that_is_no_regular_file_is_a_mistake(path: str, fifo: str) -> None:
    with pytest.raises(ConfigError, match=f"--config {path or fifo}: .*expected a regular file"):
        load_file(path or fifo)


def test_every_setting_and_aws_variable_that_names_a_file_is_checked(fifo: str) -> None:
    environ = {**MUST, "BYOC_CA_FILE": "/dev/zero", "AWS_WEB_IDENTITY_TOKEN_FILE": fifo}
    (core,) = load([CoreSettings], environ, {})
    found = unreadable_files([CoreSettings], [core], environ)
    assert [mistake.split(";")[0] for mistake in found] == [
        f"AWS_WEB_IDENTITY_TOKEN_FILE: {fifo} is a FIFO",
        "BYOC_CA_FILE: /dev/zero is a device",
    ]
    gone = {"AWS_WEB_IDENTITY_TOKEN_FILE": "/nowhere"}  # whoever needs it says so
    assert unreadable_files([], [], gone) == []


def test_a_rotated_secret_that_becomes_a_fifo_leaves_the_last_value(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("old\n")
    secret = ReloadableSecret("start", str(path))
    assert secret() == "old"
    path.unlink()
    os.mkfifo(path)
    assert secret() == "old"
    path.unlink()
    path.write_text("new")
    assert secret() == "new"


def test_a_secret_is_looked_at_no_more_often_than_stated(tmp_path: Path) -> None:
    path, now = tmp_path / "secret", [100.0]
    path.write_text("a")
    secret = ReloadableSecret("", str(path), check_seconds=1.0, monotonic=lambda: now[0])
    assert secret() == "a"
    path.write_text("bb")
    assert secret() == "a"
    now[0] += 1.0
    assert secret() == "bb"


def test_a_mount_that_hangs_costs_one_short_wait_and_no_second_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hang, reads = threading.Event(), []

    def read(path: str, *_: object) -> None:
        reads.append(path)
        hang.wait(30)

    secret = ReloadableSecret("last", str(tmp_path / "x"))
    monkeypatch.setattr(files, "read_regular", read)
    try:
        assert [secret() for _ in range(20)] == ["last"] * 20
        assert len(reads) == 1
    finally:
        hang.set()
