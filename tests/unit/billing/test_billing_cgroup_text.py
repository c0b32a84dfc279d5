"""The kernel's formats are parsed, and no text makes a parser crash."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from byoc_agents.billing.sources import cgroup_files as counters
from byoc_agents.billing.sources.cgroup_paths import parse_membership, parse_mounts, unescape_path
from tests.unit.billing.cgroup_host import HUGE


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (counters.parse_cpu_stat, b"nr_periods 1\nusage_usec 7\n", 7),
        (counters.parse_cpu_max, b"max 100000\n", None),
        (counters.parse_cpu_max, b"1000 100000\n", 10),
        (counters.parse_cpu_max, b"3200000 100000\n", 32_000),
        (counters.parse_quota, b"-1\n", None),
        (counters.parse_quota, b"250000\n", 250_000),
        (counters.parse_memory_max, b"max\n", None),
        (counters.parse_memory_max, HUGE.encode() + b"\n", None),
        (counters.parse_memory_max, b"18446744073709551615\n", None),
        (counters.parse_memory_max, b"4611686018427387903\n", 2**62 - 1),
        (counters.parse_memory_max, b"0\n", 0),
        (counters.parse_count, b"0\n", 0),
    ],
)
def test_what_the_kernel_writes(parse: object, text: bytes, value: int | None) -> None:
    assert callable(parse)
    assert parse(text) == value


PARSERS: list[Callable[[bytes], int | None]] = [
    counters.parse_cpu_stat,
    counters.parse_cpu_max,
    counters.parse_quota,
    counters.parse_memory_max,
    counters.parse_count,
]
NEAR = st.from_regex(rb"(usage_usec |max |-)?[0-9]{0,25}( [0-9]{0,25})?\n?", fullmatch=True)


@given(st.binary(max_size=100) | NEAR)
def test_no_content_makes_a_parser_crash(content: bytes) -> None:
    for parse in PARSERS:
        try:
            value = parse(content)
        except ValueError:
            continue
        assert value is None or value >= 0


LINES = st.lists(st.text("0:/.,ab \n-") | st.text(), max_size=4).map("\n".join)


@given(LINES)
def test_no_table_makes_a_parser_crash(text: str) -> None:
    assert all(path.startswith("/") for path in parse_membership(text).values())
    assert isinstance(parse_mounts(text), list)


def test_the_real_tables_of_this_machine_are_understood() -> None:
    mounts = parse_mounts(Path("/proc/self/mountinfo").read_text())
    named = {name for mount in mounts for name in mount.names}
    assert set(parse_membership(Path("/proc/self/cgroup").read_text())) <= named


def test_a_mount_point_may_hold_a_space() -> None:
    line = r"31 23 0:28 / /sys/a\040b rw - cgroup2 cgroup2 rw"
    assert parse_mounts(line)[0].point == Path("/sys/a b")
    assert unescape_path(r"a\134b\9") == r"a\b\9"
