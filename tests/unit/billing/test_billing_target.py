"""Which source is read when; and what BYOC_BILLING_TARGET may say."""

import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from byoc_agents.billing.sources.procfs import ProcFs
from byoc_agents.billing.sources.reading import (
    Reading,
    SourceName,
    TargetAbsentError,
    TargetUnreadableError,
)
from byoc_agents.billing.sources.target import (
    PROBE_NS,
    MeterKind,
    Target,
    TargetObservation,
    open_target,
    parse_target,
)
from byoc_agents.clickhouse import ClickHouse

GONE, DENIED = TargetAbsentError("gone"), TargetUnreadableError("denied")
CGROUP: SourceName = "cgroup.v2"


class Now:
    """A clock that is set by hand."""

    boot_id = "8cf25f06-7a2e-4b5b-aef5-5834d36300d2"

    def __init__(self) -> None:
        self.ns = 0

    def wall_ns(self) -> int:
        return self.ns

    def boot_ns(self) -> int:
        return self.ns

    async def sleep(self, seconds: float) -> None:
        self.ns += int(seconds * 1e9)


class Scripted:
    """A source that gives a reading, or the error it is set to, and counts."""

    def __init__(self, name: SourceName) -> None:
        self.name = name
        self.error: Exception | None = None
        self.reads = 0
        self.closed = 0

    async def read(self) -> Reading:
        self.reads += 1
        if self.error is not None:
            raise self.error
        return reading(self.name)

    def close(self) -> None:
        self.closed += 1


def reading(name: SourceName) -> Reading:
    return Reading(
        source=name,
        incarnation="",
        container_id="",
        cpu_usec=1,
        memory_bytes=1,
        born_boot_ns=None,
    )


class Harness:
    """A target of three scripted sources."""

    def __init__(self) -> None:
        self.sources = [Scripted(CGROUP), Scripted("clickhouse"), Scripted("process")]
        self.clock = Now()
        self.target = Target("auto", self.sources, self.clock)

    def fail(self, *errors: Exception | None) -> None:
        for source, error in zip(self.sources, errors, strict=True):
            source.error = error

    def reads(self) -> list[int]:
        counted = [source.reads for source in self.sources]
        for source in self.sources:
            source.reads = 0
        return counted


@pytest.fixture
def harness() -> Harness:
    return Harness()


async def test_the_best_source_alone_is_read(harness: Harness) -> None:
    assert await harness.target.read() == TargetObservation(reading(CGROUP))
    assert harness.reads() == [1, 0, 0]


async def test_for_secondaries_all_sources_are_read(harness: Harness) -> None:
    harness.fail(None, DENIED, None)
    seen = await harness.target.read(secondary=True)
    assert seen == TargetObservation(reading(CGROUP), (reading("process"),))
    assert harness.reads() == [1, 1, 1]


@pytest.mark.parametrize("error", [GONE, DENIED])
async def test_the_next_best_is_used_and_the_trouble_is_reported(
    harness: Harness, error: Exception
) -> None:
    harness.fail(error, DENIED, None)
    expected = f"cgroup.v2: {error}; clickhouse: denied"
    assert await harness.target.read() == TargetObservation(reading("process"), error=expected)
    assert harness.reads() == [1, 1, 1]
    assert (await harness.target.read()).error == expected  # and is reported again
    assert harness.reads() == [0, 0, 1]


async def test_a_better_source_that_is_back_is_used_at_the_next_secondary_reading(
    harness: Harness,
) -> None:
    harness.fail(DENIED, None, None)
    assert (await harness.target.read()).reading == reading("clickhouse")
    harness.fail(None, None, None)
    assert (await harness.target.read()).reading == reading("clickhouse")
    seen = await harness.target.read(secondary=True)
    assert seen == TargetObservation(reading(CGROUP), (reading("clickhouse"), reading("process")))
    assert await harness.target.read() == TargetObservation(reading(CGROUP))


async def test_without_secondaries_it_is_used_after_a_while_with_the_other_one(
    harness: Harness,
) -> None:
    harness.fail(DENIED, None, None)
    await harness.target.read()
    harness.fail(None, None, None)
    harness.clock.ns = PROBE_NS - 1
    assert (await harness.target.read()).reading == reading("clickhouse")
    harness.clock.ns = PROBE_NS
    seen = await harness.target.read()
    assert (seen.reading, seen.secondary[0]) == (reading(CGROUP), reading("clickhouse"))


async def test_if_the_source_of_last_time_fails_the_best_other_is_used(harness: Harness) -> None:
    harness.fail(DENIED, DENIED, None)
    await harness.target.read()
    harness.fail(None, None, GONE)
    secondary = (reading("clickhouse"),)
    assert await harness.target.read() == TargetObservation(reading(CGROUP), secondary)


@pytest.mark.parametrize(
    ("errors", "absent"),
    [
        ((GONE, DENIED, GONE), True),
        ((GONE, GONE, GONE), True),
        ((DENIED, DENIED, DENIED), False),
    ],
)
async def test_absent_is_only_what_a_source_is_sure_of(
    harness: Harness, errors: Sequence[Exception], absent: bool
) -> None:
    harness.fail(*errors)
    for secondary in (True, False):
        seen = await harness.target.read(secondary=secondary)
        assert (seen.reading, seen.secondary, seen.absent) == (None, (), absent)
        assert seen.error.startswith(f"cgroup.v2: {errors[0]}; clickhouse: ")


async def test_it_comes_back(harness: Harness) -> None:
    harness.fail(GONE, DENIED, GONE)
    await harness.target.read()
    harness.fail(None, DENIED, None)
    assert await harness.target.read() == TargetObservation(reading(CGROUP))


def test_close_closes_all(harness: Harness) -> None:
    harness.target.close()
    assert [source.closed for source in harness.sources] == [1, 1, 1]


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("auto", "auto", ""),
        (" auto ", "auto", ""),
        ("cgroup:/sys/fs/cgroup/x", "cgroup", "/sys/fs/cgroup/x"),
        ("cgroup:/sys/fs/cgroup/a:b", "cgroup", "/sys/fs/cgroup/a:b"),
        ("pid:1", "pid", "1"),
        ("pid:4194304", "pid", "4194304"),
        ("process:clickhouse-server", "process", "clickhouse-server"),
        ("clickhouse:http://127.0.0.1:8123/", "clickhouse", "http://127.0.0.1:8123"),
    ],
)
def test_a_target_has_one_of_five_forms(text: str, kind: str, value: str) -> None:
    name = parse_target(text)
    assert (name.kind, name.value) == (kind, value)
    assert parse_target(str(name)) == name


@pytest.mark.parametrize(
    "text",
    [
        *("", "auto:x", "docker:x", "cgroup:", "cgroup:x", "cgroup:/a\nb"),
        *("pid:", "pid:0", "pid:-1", "pid:4194305", "pid:1x", "pid:٣"),
        *("process:", "process:a/b", "process:a\nb"),
        *("clickhouse", "clickhouse:x", "clickhouse:http://u:p@x"),
    ],
)
def test_every_other_form_is_rejected_with_the_valid_forms(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected .*http://host:port"):
        parse_target(text)


@given(st.text() | st.from_regex(r"(auto|cgroup|pid|process|clickhouse):.{0,20}"))
def test_no_text_makes_the_parser_crash(text: str) -> None:
    try:
        name = parse_target(text)
    except ValueError:
        return
    assert parse_target(str(name)) == name


@pytest.mark.parametrize(
    ("text", "meter", "url", "shown"),
    [
        ("auto", None, "http://ours:1", "auto by process, else clickhouse"),
        ("auto", "process", "http://ours:1", "auto by process, else clickhouse"),
        ("auto", "clickhouse", "http://ours:1", "auto by clickhouse"),
        ("auto", "cgroup", "http://ours:1", "auto by cgroup.v2, else clickhouse, else process"),
        ("clickhouse:http://x:2", None, "http://x:2", "clickhouse:http://x:2 by clickhouse"),
        ("pid:7", None, None, "pid:7 by process"),
        ("pid:7", "cgroup", None, "pid:7 by cgroup.v2, else process"),
        ("process:x", None, None, "process:x by process"),
        ("process:x", "cgroup", None, "process:x by cgroup.v2, else process"),
        ("cgroup:/x", None, None, "cgroup:/x by cgroup.v2"),
    ],
)
def test_each_target_and_meter_have_their_sources(
    text: str, meter: MeterKind | None, url: str | None, shown: str
) -> None:
    name = parse_target(text)
    assert name.clickhouse_url("http://ours:1") == url
    assert str(open_target(name, ClickHouse("http://ours:1"), Now(), meter=meter)) == shown


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


async def test_a_real_process_is_read_while_it_runs_and_absent_after(
    child: subprocess.Popen[bytes],
) -> None:
    """Our own child shares our cgroup, so only its process tree can be read."""
    name = parse_target(f"pid:{child.pid}")
    target = open_target(name, ClickHouse("http://x"), Now(), meter="cgroup")
    seen = await target.read(secondary=True)
    assert seen.reading is not None
    assert seen.reading.source == "process"
    assert "cgroup of process" in seen.error
    child.kill()
    child.wait()
    assert (await target.read()).absent
    target.close()


async def test_auto_is_not_sure_of_a_server_it_never_saw(tmp_path: Path) -> None:
    async with ClickHouse("http://127.0.0.1:1") as client:
        target = open_target(parse_target("auto"), client, Now(), ProcFs(tmp_path))
        seen = await target.read()
    assert (seen.reading, seen.absent) == (None, False)
    assert "shareProcessNamespace: true" in seen.error


async def test_a_name_that_is_not_running_is_absent(tmp_path: Path) -> None:
    (tmp_path / str(os.getpid())).mkdir()
    name = parse_target("process:clickhouse-server")
    target = open_target(name, ClickHouse("http://x"), Now(), ProcFs(tmp_path))
    assert (await target.read()).absent
