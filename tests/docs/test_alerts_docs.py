"""The documents say what the code does."""

import re
from pathlib import Path
from typing import Any

import yaml
from openapi_spec_validator import validate

from byoc_agents.alerts import settings, webhook
from byoc_agents.alerts.schema import components
from byoc_agents.app.settings import settings_of
from byoc_agents.delivery.shipper import ACTIONS, Action
from byoc_agents.sinks.https import reason_of
from lab.receiver import BELIEVED_MS, PATH

CONTRACTS = Path(__file__).parents[2] / "docs" / "contracts"
WORDS = {
    Action.DONE: "done",
    Action.RETRY: "retried",
    Action.HOLD: "held",
    Action.DEAD_LETTER: "dead letter",
}


def openapi() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((CONTRACTS / "control-plane.openapi.yaml").read_text())
    return loaded


def test_the_openapi_file_is_valid_and_names_our_paths() -> None:
    validate(openapi())
    assert set(openapi()["paths"]) == {webhook.PATH, PATH}
    statuses = set(openapi()["paths"][webhook.PATH]["post"]["responses"])
    assert statuses == {"200", "401", "415"} | {str(status) for _, status, _ in webhook.REFUSALS}


def test_its_event_schemas_are_those_of_the_code() -> None:
    documented = openapi()["components"]["schemas"]
    assert {name: documented.get(name) for name in components()} == components()


def test_each_line_of_the_table_of_answers_is_true_and_none_is_missing() -> None:
    text = (CONTRACTS / "alerts.md").read_text().split("### What follows a response")[1]
    row = r"^\| ([\w, ]+) \| `(\w+)` \| (done|retried|held|dead letter)"
    rows = re.findall(row, text.split("## Liveness")[0], re.MULTILINE)
    documented: dict[int, tuple[str, str]] = {}
    for statuses, reason, action in sorted(
        rows, key=lambda row: row[0].isdigit() or ", " in row[0]
    ):
        documented |= dict.fromkeys(_statuses(statuses), (reason, action))
    actual = {s: (reason_of(s).value, WORDS[ACTIONS[reason_of(s)]]) for s in range(200, 700)}
    assert documented == actual


def _statuses(text: str) -> list[int]:
    if text == "others":
        return list(range(600, 700))
    if family := re.search(r"(\d)xx", text):
        return list(range(int(family[1]) * 100, int(family[1]) * 100 + 100))
    return [int(status) for status in text.split(", ")]


def test_every_setting_is_documented() -> None:
    text = (CONTRACTS / "alerts.md").read_text()
    variables = [setting.variable for setting, _ in settings_of(settings.Settings).values()]
    missing = [v for v in variables if v.removesuffix("_FILE") not in text]
    assert not missing


def test_the_printed_receiver_leaves_no_alert_out() -> None:
    text = (CONTRACTS / "alerts.md").read_text().split("```yaml\n", 1)[1].split("```", 1)[0]
    config = yaml.safe_load(text)
    (receiver,) = [one for one in config["receivers"] if one["name"] == "byoc"]
    (hook,) = receiver["webhook_configs"]
    assert hook["max_alerts"] == 0
    assert hook["send_resolved"] is True
    names = {one["name"] for one in config["receivers"]}
    assert {
        config["route"]["receiver"],
        *(r["receiver"] for r in config["route"]["routes"]),
    } == names


def test_how_long_firing_counts_is_the_same_in_the_documents_and_in_the_receiver() -> None:
    assert BELIEVED_MS == 2 * 3600 * 1000
    contract = openapi()["paths"][PATH]["post"]["description"]
    assert "Believe `firing` for two hours" in contract
    text = (CONTRACTS / "alerts.md").read_text()
    assert "Believe `firing` for two hours" in text
    assert "repeat_interval: 1h" in text


def test_events_of_0_1_0_are_within_the_schema() -> None:
    """The fields that 0.2.0 added are optional."""
    schemas = components()
    assert "end_inferred" not in schemas["Alert"]["required"]
    assert not {"open_episodes", "open_digest"} & set(schemas["Heartbeat"]["required"])
