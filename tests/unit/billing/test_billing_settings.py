"""The settings of the scraper that name a container and its size."""

import pytest

from byoc_agents.app.settings import load
from byoc_agents.billing.daemon import Settings, metered_container
from byoc_agents.errors import ConfigError

BUCKET = {"BYOC_BILLING_BUCKET": "bucket"}


def settings(**more: str) -> Settings:
    (found,) = load([Settings], BUCKET | more, {})
    assert isinstance(found, Settings)
    return found


@pytest.mark.parametrize(
    ("text", "limit"), [("8000", 8000), ("0", None), ("274877906944", 1 << 38), ("", None)]
)
def test_each_limit_is_read_for_itself_and_0_is_none(text: str, limit: int | None) -> None:
    found = settings(BYOC_LIMITS_CPU_MILLICORES=text)
    assert (found.cpu_limit_millicores, found.memory_limit_bytes) == (limit, None)
    found = settings(BYOC_LIMITS_MEMORY_BYTES=text)
    assert (found.cpu_limit_millicores, found.memory_limit_bytes) == (None, limit)


@pytest.mark.parametrize("text", ["-1", "1.5", "4Gi", "max", "9" * 19])
@pytest.mark.parametrize("name", ["BYOC_LIMITS_CPU_MILLICORES", "BYOC_LIMITS_MEMORY_BYTES"])
def test_a_limit_that_is_no_whole_number_is_refused(name: str, text: str) -> None:
    with pytest.raises(
        ConfigError, match=f"{name}: invalid value '{text}' .must be a whole number"
    ):
        settings(**{name: text})


@pytest.mark.parametrize(
    ("environ", "file", "container"),
    [
        ({}, {}, ""),
        ({"BYOC_CONTAINER_NAME": "clickhouse"}, {}, "clickhouse"),
        ({"BYOC_CONTAINER_NAME": "server"}, {}, "server"),
        ({}, {"container_name": "server"}, "server"),
    ],
)
def test_a_process_is_looked_for_in_a_container_only_if_one_was_named(
    environ: dict[str, str], file: dict[str, str], container: str
) -> None:
    (found,) = load([Settings], BUCKET | environ, file)
    assert metered_container(found, environ) == container


@pytest.mark.parametrize(
    ("target", "meter", "expected"),
    [
        ("cgroup:/x", "process", "cgroup"),
        ("cgroup:/x", "clickhouse", "cgroup"),
        ("clickhouse:http://x:1", "cgroup", "clickhouse"),
        ("pid:7", "clickhouse", "process or cgroup"),
        ("process:x", "clickhouse", "process or cgroup"),
    ],
)
def test_a_meter_that_cannot_read_the_target_is_refused(
    target: str, meter: str, expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        settings(BYOC_BILLING_TARGET=target, BYOC_BILLING_METER=meter)
    assert str(caught.value) == (
        f"BYOC_BILLING_METER: invalid value '{meter}': expected {expected} for "
        f"BYOC_BILLING_TARGET={target}"
    )


def test_an_unknown_meter_is_refused() -> None:
    expected = "BYOC_BILLING_METER: invalid value 'kernel'.*expected process, clickhouse or cgroup"
    with pytest.raises(ConfigError, match=expected):
        settings(BYOC_BILLING_METER="kernel")
