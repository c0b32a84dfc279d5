"""The policy file and the kill switch: whatever cannot be read counts as on."""

import errno
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from byoc_agents.access.control_files import (
    SLOW_SECONDS,
    WAIT_SECONDS,
    KillSwitch,
    LocalReading,
    PolicySource,
    WatchedFile,
    look_up_switch,
)
from byoc_agents.access.errors import PolicyError
from byoc_agents.app.files import Content, FileContent, Version
from tests.unit.access.access_documents import policy_text


@pytest.fixture
def local(tmp_path: Path) -> Path:
    return tmp_path / "kill-switch"


def test_the_switch_is_off_without_a_local_file(local: Path) -> None:
    assert KillSwitch(local).find_reason() == ""


def test_the_local_file_is_on_while_it_exists_in_any_form(local: Path) -> None:
    switch = KillSwitch(local)
    local.touch()
    assert switch.find_reason() == "kill-switch"
    local.unlink()
    assert switch.find_reason() == ""
    local.symlink_to("nowhere")
    assert switch.find_reason() == "kill-switch"
    local.unlink()
    local.mkdir()
    assert switch.find_reason() == "kill-switch"


class HungVolume:
    """Where the local switch is; it responds only while `responds` is set. A clock of its own."""

    def __init__(self, local: Path) -> None:
        self.responds = threading.Event()
        self.responds.set()
        self.now = 1000.0
        self.switch = KillSwitch(local, "", self.start, lambda: self.now)

    def start(self, path: str, max_bytes: int, known: Version | None) -> LocalReading:
        def look_up(path: Path) -> bytes:
            self.responds.wait()
            return look_up_switch(path)

        return LocalReading(path, max_bytes, known, look_up)


@pytest.fixture
def hung(local: Path) -> Iterator[HungVolume]:
    volume = HungVolume(local)
    yield volume
    volume.responds.set()


def test_a_volume_that_hangs_counts_as_on_after_two_seconds_and_blocks_once(
    local: Path, hung: HungVolume
) -> None:
    assert hung.switch.find_reason() == ""
    hung.responds.clear()
    assert hung.switch.find_reason() == ""  # for so long, a busy machine is as likely
    hung.now += SLOW_SECONDS - 0.1
    assert hung.switch.find_reason() == ""
    hung.now += 0.1
    began = time.monotonic()
    for _ in range(1000):
        assert hung.switch.find_reason() == "kill-switch cannot be read"
    assert time.monotonic() - began < 1000 * WAIT_SECONDS / 2
    local.touch()
    hung.responds.set()
    deadline = time.monotonic() + 30
    while hung.switch.find_reason() == "kill-switch cannot be read":  # its thread must run first
        assert time.monotonic() < deadline
    assert hung.switch.find_reason() == "kill-switch"


def test_a_volume_that_hangs_from_the_start_counts_as_on(hung: HungVolume) -> None:
    hung.responds.clear()
    assert hung.switch.find_reason() == "kill-switch cannot be read"


def test_a_folder_that_is_gone_or_is_not_a_folder_counts_as_on(tmp_path: Path) -> None:
    expected = "kill-switch cannot be read"
    assert KillSwitch(tmp_path / "gone" / "kill-switch").find_reason() == expected
    too_long = "x" * 300  # any error but "does not exist"
    assert KillSwitch(tmp_path / too_long).find_reason() == f"{too_long} cannot be read"
    (tmp_path / "file").touch()
    assert KillSwitch(tmp_path / "file" / "kill-switch").find_reason() == expected


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"off", ""),
        (b"off\n", ""),
        (b"on", "the mounted switch"),
        (b"", "the mounted switch"),
        (b"OFF", "the mounted switch"),
        (b"off on", "the mounted switch"),
        (b"\xff", "the mounted switch"),
        (b"off" + b" " * 100, "the mounted switch cannot be read"),
    ],
)
def test_only_the_word_off_is_off(local: Path, content: bytes, reason: str) -> None:
    mounted = local.with_name("state")
    mounted.write_bytes(content)
    assert KillSwitch(local, str(mounted)).find_reason() == reason


@pytest.mark.parametrize("kind", ["missing", "fifo", "directory"])
def test_a_mounted_switch_that_cannot_be_read_is_on(local: Path, kind: str) -> None:
    mounted = local.with_name("state")
    if kind == "fifo":
        os.mkfifo(mounted)
    elif kind == "directory":
        mounted.mkdir()
    switch = KillSwitch(local, str(mounted))
    assert switch.find_reason() == "the mounted switch cannot be read"
    if kind == "missing":
        mounted.write_text("off")  # readable again
        assert switch.find_reason() == ""


def test_a_switch_that_kubernetes_replaces_is_read_again(local: Path) -> None:
    mounted = local.with_name("state")
    mounted.write_text("off")
    switch = KillSwitch(local, str(mounted))
    assert switch.find_reason() == ""
    new = local.with_name("new")
    new.write_text("on ")
    new.replace(mounted)
    assert switch.find_reason() == "the mounted switch"


def test_a_policy_is_read_again_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(policy_text())
    source = PolicySource(str(path))
    first = source.load()
    assert source.load() is first
    path.write_text(policy_text(max_duration="30m"))
    assert source.load().file.max_duration == "30m"


@pytest.mark.parametrize("content", [None, "roles: ["])
def test_a_policy_that_cannot_be_read_is_an_error_until_it_can(
    tmp_path: Path, content: str | None
) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(policy_text())
    source = PolicySource(str(path))
    before = source.load()
    path.unlink() if content is None else path.write_text(content)
    for _ in range(2):
        with pytest.raises(PolicyError, match=r"expected a policy file|not YAML"):
            source.load()
    path.write_text(policy_text())
    assert source.load().sha256 == before.sha256


# A file that responds late.


class SlowReading(FileContent):
    """A read that ends when the test says so. `waited` are the seconds that a caller would wait."""

    def __init__(self, slow: "SlowFile", path: str, max_bytes: int, known: Version | None) -> None:
        super().__init__(path, max_bytes, known)
        assert super().wait(30)
        self._slow = slow

    def wait(self, seconds: float) -> bool:
        if self._slow.responds:
            return True
        self._slow.waited.append(seconds)
        self._slow.now += seconds
        return False

    def result(self) -> Content | None:
        if not self._slow.responds:
            raise OSError(errno.ETIMEDOUT, "does not respond")
        return super().result()


class SlowFile:
    """A switch whose file responds only while `responds` is true, with a clock of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.responds = True
        self.now = 1000.0
        self.waited: list[float] = []
        self.file = WatchedFile(
            str(path), 64, lambda *given: SlowReading(self, *given), lambda: self.now
        )


@pytest.fixture
def slow(tmp_path: Path) -> SlowFile:
    path = tmp_path / "state"
    path.write_text("off")
    return SlowFile(path)


def test_a_late_response_keeps_the_known_content_for_a_bounded_time(slow: SlowFile) -> None:
    """A machine under load must not close every grant; a hung mount must."""
    assert slow.file.read() == b"off"
    slow.responds = False
    assert slow.file.read() == b"off"
    slow.now += SLOW_SECONDS - WAIT_SECONDS - 0.1
    assert slow.file.read() == b"off"
    slow.now += 0.1
    for _ in range(2):
        with pytest.raises(OSError, match="does not respond"):
            slow.file.read()
    assert slow.waited == [WAIT_SECONDS, 0, 0, 0], "it blocks once"
    slow.responds = True
    assert slow.file.read() == b"off"


def test_a_late_response_is_followed_by_a_new_read(slow: SlowFile) -> None:
    assert slow.file.read() == b"off"
    slow.responds = False
    assert slow.file.read() == b"off"
    slow.path.write_text("on")
    slow.responds = True
    assert slow.file.read() == b"on"


def test_without_a_known_content_the_first_read_waits_longer_and_then_counts_as_on(
    slow: SlowFile,
) -> None:
    slow.responds = False
    with pytest.raises(OSError, match="does not respond"):
        slow.file.read()
    assert slow.waited == [SLOW_SECONDS]
    with pytest.raises(OSError, match="does not respond"):
        slow.file.read()
    assert slow.waited == [SLOW_SECONDS, 0]


def test_after_an_error_the_old_content_does_not_count(slow: SlowFile) -> None:
    assert slow.file.read() == b"off"
    slow.path.unlink()
    with pytest.raises(FileNotFoundError):
        slow.file.read()
    slow.path.write_text("off")
    slow.responds = False
    with pytest.raises(OSError, match="does not respond"):
        slow.file.read()
