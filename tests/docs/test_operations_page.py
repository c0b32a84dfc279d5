"""docs/operations.md names every metric, reason and log event that there is, and no other."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

import byoc_agents
from byoc_agents.alerts.counts import OUTCOMES
from byoc_agents.app.cli import COMMANDS, main
from byoc_agents.app.metrics import Metrics
from byoc_agents.billing.record import GapReason, Quality
from byoc_agents.billing.sources.reading import SourceName
from byoc_agents.delivery.shipper import ACTIONS, WAIT_EVENTS, Action
from byoc_agents.durable import schema
from byoc_agents.egress.gate import Refusal
from byoc_agents.errors import SpoolErrorReason
from byoc_agents.ledger.format import FORMAT

PACKAGE = Path(byoc_agents.__file__).parent
ROOT = PACKAGE.parents[1]
PAGE = (ROOT / "docs" / "operations.md").read_text()
KUBERNETES = (ROOT / "docs" / "install-kubernetes.md").read_text()
EVENT = re.compile(r"[a-z]+\.[a-z_]+")
LEVELS = {"info": "info", "warning": "warning", "error": "error", "exception": "error"}
SEVERAL = {  # events whose level or name is chosen where they are written
    "message.retrying": "warning",
    "message.held": "error",
    "webhook.accepted": "info",
    "library.logged": "any",
}
WORDS = {
    Action.DONE: "done",
    Action.RETRY: "retried",
    Action.HOLD: "held",
    Action.DEAD_LETTER: "dead letter",
}
ELSEWHERE = {"demo", "fakes"}  # programs with logs of their own


def rows(heading: str) -> list[list[str]]:
    """Return the cells of the first table under a heading, without its head."""
    after = PAGE.split(f"{heading}\n", 1)[1]
    lines = re.search(r"(^\|.*\n)+", after, re.MULTILINE)
    assert lines
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines[0].splitlines()[2:]]
    return [[cell.strip() for cell in row] for row in cells]


def quoted(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def metrics() -> dict[str, list[str]]:
    """Return name as it is scraped -> labels other than `daemon`."""
    labels = Metrics().labels
    return {name: [one for one in labels[name] if one != "daemon"] for name in labels}


def events() -> Iterator[tuple[str, str]]:
    """Yield every event that is logged in `agents`, with its level."""
    for path in PACKAGE.rglob("*.py"):
        if path.relative_to(PACKAGE).parts[0] in ELSEWHERE:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                first = node.args[0] if node.args else None
                if node.func.attr in LEVELS and isinstance(first, ast.Constant):
                    yield str(first.value), LEVELS[node.func.attr]
    yield from SEVERAL.items()


def test_every_metric_is_listed_with_its_labels_and_no_other() -> None:
    documented = {quoted(row[0])[0]: quoted(row[1]) for row in rows("## Metrics")}
    assert documented == metrics()
    assert len(documented) >= 20


@pytest.mark.parametrize(
    ("metric", "values"),
    [
        ("byoc_egress_refused_total", {str(one) for one in Refusal}),
        ("byoc_billing_gap_seconds_total", {*get_args(GapReason)} - {""}),
        ("byoc_billing_records_total", {*get_args(Quality)}),
        ("byoc_billing_samples_total", {*get_args(SourceName), "none"}),
        ("byoc_alerts_received_total", {*OUTCOMES}),
        ("byoc_spool_errors_total", {*get_args(SpoolErrorReason)}),
    ],
)
def test_the_values_of_a_label_are_all_there(metric: str, values: set[str]) -> None:
    (meaning,) = (row[2] for row in rows("## Metrics") if quoted(row[0]) == [metric])
    assert set(quoted(meaning)) - {"daemon"} == values


def test_every_reason_is_listed_with_its_action() -> None:
    documented = {quoted(row[0])[0]: row[1] for row in rows("### How an attempt ends")}
    assert documented == {str(reason): WORDS[action] for reason, action in ACTIONS.items()}


def test_every_log_event_is_listed_with_its_level_and_no_other() -> None:
    documented = {quoted(row[0])[0]: row[1] for row in rows("## Log events")}
    assert documented == dict(events())


def test_every_event_is_a_dotted_constant() -> None:
    assert [event for event, _ in events() if not EVENT.fullmatch(event)] == []


def test_the_exceptional_events_are_really_written() -> None:
    source = "".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    written = {f'"{event}"' in source for event in SEVERAL}
    assert written == {True}
    assert set(WAIT_EVENTS.values()) <= SEVERAL.keys()


def test_every_alert_of_the_chart_has_its_steps() -> None:
    """The chart's rules are where the alerts are; the page has the steps."""
    named = set(re.findall(r"\bByoc[A-Z]\w+", PAGE))
    files = [ROOT / f"helm/byoc-agents/rules/{name}.yaml" for name in ("agents", "access")]
    rules = [yaml.safe_load(path.read_text()) for path in files]
    alerts = {rule["alert"] for file in rules for g in file["groups"] for rule in g["rules"]}
    assert alerts <= named
    assert len(named) >= 11


def test_the_format_numbers_are_those_of_the_code() -> None:
    text = " ".join(PAGE.split())
    assert f"dead letters; format {schema.VERSION})" in text
    assert f"`ledger/` (format {FORMAT})" in text


@pytest.mark.parametrize("page", [PAGE, KUBERNETES], ids=["operations", "install-kubernetes"])
def test_what_a_page_links_to_and_calls_is_there(page: str) -> None:
    for link in re.findall(r"\]\(([^)#:]+)", page):
        assert (ROOT / "docs" / link).exists(), link
    assert set(re.findall(r"`byoc-agents ([a-z-]+)", page)) <= set(COMMANDS)
    for path in re.findall(r"`(tests/[\w/.]+)`", page):
        assert (ROOT / path).exists(), path


def test_the_policy_commands_of_the_installation_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    example = values_of_the_page()
    for name, value in {
        "BYOC_ORGANIZATION_ID": example["organizationId"],
        "BYOC_SERVICE_ID": example["serviceId"],
        "BYOC_REGION": example["region"],
        "BYOC_BILLING_BUCKET": example["billingScraper"]["bucket"],
        "BYOC_STATE_QUEUE_URL": example["stateExporter"]["queueUrl"],
    }.items():
        monkeypatch.setenv(name, value)
    exported = dict(re.findall(r"\b([A-Z_]+)=(\S+)", KUBERNETES))
    assert exported["ROLE"] == example["aws"]["roleArn"]
    commands = re.findall(
        r"^byoc-agents (policy .+?) >", KUBERNETES.replace("\\\n", ""), re.MULTILINE
    )
    assert len(commands) == 5
    for command in commands:
        words = [exported.get(word.removeprefix("$"), word) for word in shlex.split(command)]
        assert main(words) == 0, capsys.readouterr().err
        assert '"Version": "2012-10-17"' in capsys.readouterr().out


def test_every_value_that_the_installation_sets_is_one_of_the_chart() -> None:
    for path in ROOT.glob("helm/*/values.yaml"):
        known = yaml.safe_load(path.read_text())
        assert [strangers(values, known) for values in all_values_of_the_page()] == [[], []]


def values_of_the_page() -> dict[str, Any]:
    """Return the values of step 1."""
    return all_values_of_the_page()[0]


def all_values_of_the_page() -> list[dict[str, Any]]:
    """Return the values of step 1, and those of the rules by uid."""
    blocks = re.findall(r"^```yaml\n(.+?)^```", KUBERNETES, re.MULTILINE | re.DOTALL)
    return [yaml.safe_load(block) for block in blocks]


def strangers(values: dict[str, Any], known: dict[str, Any], at: str = "") -> list[str]:
    """Return the paths in `values` that are not in `known`."""
    found = [f"{at}{key}" for key in values if key not in known]
    for key, value in values.items():
        # An empty map of the chart takes keys of the user's own, such as the hosts of `cidrs`.
        if isinstance(value, dict) and isinstance(known.get(key), dict) and known[key]:
            found += strangers(value, known[key], f"{at}{key}.")
    return found


def test_a_value_that_is_no_value_would_be_seen() -> None:
    assert strangers({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 0}}) == ["d", "a.c"]
