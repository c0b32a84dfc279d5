"""The interval between heartbeats, and the settings of both daemons that have one."""

from typing import Any

import msgspec
import pytest

from byoc_agents.alerts.settings import Settings as AlertSettings
from byoc_agents.app.heartbeat import HeartbeatIntervals
from byoc_agents.app.settings import load
from byoc_agents.errors import ConfigError
from byoc_agents.state.daemon import Settings as StateSettings
from tests.unit.alerts.forwarder_settings import OWN

SECOND = 1_000_000_000
DAEMONS: dict[str, tuple[type[msgspec.Struct], dict[str, str]]] = {
    "BYOC_STATE": (StateSettings, {"BYOC_STATE_QUEUE_URL": "file:///queue"}),
    "BYOC_ALERTS": (AlertSettings, OWN),
}


def intervals(prefix: str, **texts: str) -> HeartbeatIntervals:
    struct, required = DAEMONS[prefix]
    (settings,) = load([struct], required | {f"{prefix}_{k}": v for k, v in texts.items()}, {})
    found: HeartbeatIntervals = settings.intervals
    return found


@pytest.mark.parametrize(
    ("unchanged_seconds", "expected"), [(0, 60), (599, 60), (600, 300), (9999, 300)]
)
def test_ten_minutes_after_a_change_the_interval_is_longer(
    unchanged_seconds: int, expected: float
) -> None:
    assert HeartbeatIntervals(60, 300).after(unchanged_seconds * SECOND) == expected


@pytest.mark.parametrize("prefix", DAEMONS)
@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ({}, (60, 300)),
        ({"HEARTBEAT_SECONDS": "10"}, (10, 50)),
        ({"HEARTBEAT_SECONDS": "600"}, (600, 1800)),
        ({"HEARTBEAT_SECONDS": "3600"}, (3600, 3600)),
        ({"IDLE_HEARTBEAT_SECONDS": "60"}, (60, 60)),
        ({"HEARTBEAT_SECONDS": "5", "IDLE_HEARTBEAT_SECONDS": "1800"}, (5, 1800)),
    ],
)
def test_the_intervals_are_settings(
    prefix: str, texts: dict[str, Any], expected: tuple[float, float]
) -> None:
    assert intervals(prefix, **texts) == HeartbeatIntervals(*expected)


@pytest.mark.parametrize("prefix", DAEMONS)
@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"IDLE_HEARTBEAT_SECONDS": "1801"}, "invalid value '1801' (must be 1 to 1800): expected"),
        ({"IDLE_HEARTBEAT_SECONDS": "often"}, "invalid value 'often': expected 1 to 1800 seconds"),
        ({"IDLE_HEARTBEAT_SECONDS": "nan"}, "invalid value 'nan'"),
        (
            {"IDLE_HEARTBEAT_SECONDS": "59.5"},
            "invalid value '59.5': expected at least PREFIX_HEARTBEAT_SECONDS, which is 60",
        ),
        (
            {"HEARTBEAT_SECONDS": "3600", "IDLE_HEARTBEAT_SECONDS": "1800"},
            "invalid value '1800': expected at least PREFIX_HEARTBEAT_SECONDS, which is 3600",
        ),
    ],
)
def test_a_wrong_interval_is_an_error_that_names_its_setting(
    prefix: str, texts: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        intervals(prefix, **texts)
    expected = f"{prefix}_IDLE_HEARTBEAT_SECONDS: {message.replace('PREFIX', prefix)}"
    assert expected in str(caught.value)
