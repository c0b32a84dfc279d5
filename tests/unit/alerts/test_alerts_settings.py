"""The forwarder's settings: error messages, hidden secrets, one destination."""

import pytest

from byoc_agents.alerts.daemon import destinations
from byoc_agents.app.runtime import ClickHouseSettings
from byoc_agents.app.settings import describe
from byoc_agents.errors import ConfigError
from tests.unit.alerts.forwarder_settings import INWARD, OUTWARD, SECRET, settings


def test_the_only_destination_is_the_control_plane() -> None:
    core, own = settings()
    found = destinations(core, ClickHouseSettings(), own, {})
    assert [str(destination) for destination in found] == ["https://control.example:443"]


def test_no_secret_is_shown() -> None:
    shown = repr(describe(settings()[1]))
    assert not any(secret in shown for secret in (INWARD, OUTWARD, SECRET))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"BYOC_ALERTS_MATCHERS": 'severity="'},
            "BYOC_ALERTS_MATCHERS: invalid value 'severity=\"' (column 10",
        ),
        (
            {"BYOC_ALERTS_MATCHERS": ""},
            "BYOC_ALERTS_NAMESPACE: is required without BYOC_ALERTS_MATCHERS",
        ),
        ({"BYOC_ALERTS_NAMESPACE": "a.b"}, "BYOC_ALERTS_NAMESPACE: invalid value 'a.b'"),
        ({"BYOC_ALERTS_WATCHDOG": "x"}, "BYOC_ALERTS_WATCHDOG: invalid value 'x' (column 2"),
        ({"BYOC_ALERTS_LABELS": "a,b=c"}, "'b=c' is not a label name"),
        ({"BYOC_ALERTS_LABELS": 'a,"b'}, "is not a label name: put it in double quotes"),
        ({"BYOC_ALERTS_LABELS": 'a,""'}, "'' is not a label name: expected 1 to 128"),
        ({"BYOC_ALERTS_ANNOTATIONS": "x" * 129}, "is not a label name: expected 1 to 128"),
        ({"BYOC_ALERTS_LABELS": ",".join(map(str, range(33)))}, "33 names: expected at most 32"),
        (
            {"BYOC_ALERTS_SIGNING_SECRET": "whsec_c2hvcnQ="},
            "BYOC_ALERTS_SIGNING_SECRET: invalid value ***:",
        ),
        ({"BYOC_ALERTS_TOKEN": "a b"}, "BYOC_ALERTS_TOKEN: invalid value ***:"),
        ({"BYOC_ALERTS_TOKEN": ""}, "BYOC_ALERTS_TOKEN: is required"),
        ({"BYOC_ALERTS_TLS_KEY_FILE": "/k"}, "only one is set: expected both or neither"),
        ({"BYOC_ALERTS_WEBHOOK_TOKEN": ""}, "BYOC_ALERTS_WEBHOOK_TOKEN: is required"),
        ({"BYOC_ALERTS_WEBHOOK_TOKEN": "x" * 901}, "BYOC_ALERTS_WEBHOOK_TOKEN: invalid value ***:"),
        ({"BYOC_ALERTS_REMINDER_SECONDS": "5"}, "must be 60 to 604800"),
        ({"BYOC_ALERTS_REOPEN_SECONDS": "0"}, "must be 1 to 86400"),
        ({"BYOC_ALERTS_MAX_BATCH": "0"}, "must be 1 to 500"),
        ({"BYOC_ALERTS_DAILY_BYTES": "8191Ki"}, "BYOC_ALERTS_DAILY_BYTES: invalid value '8191Ki'"),
        ({"BYOC_ALERTS_DAILY_BYTES": "x"}, "not a positive number of bytes"),
        ({"BYOC_ALERTS_TIMEOUT_SECONDS": "0"}, "must be 0.1 to 300"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_a_configuration_error_names_its_setting(changes: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settings(**changes)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("k8s.pod.name, severity", ("k8s.pod.name", "severity")),
        ("größe,команда", ("größe", "команда")),
        (r'"a, b","say \"hi\"", "back\\slash"', ("a, b", 'say "hi"', "back\\slash")),
        ("a,,a,", ("a",)),
    ],
)
def test_a_label_or_annotation_name_may_be_any_utf8(text: str, names: tuple[str, ...]) -> None:
    own = settings(BYOC_ALERTS_LABELS=text, BYOC_ALERTS_ANNOTATIONS=text)[1]
    assert (own.labels, own.annotations) == (names, names)
