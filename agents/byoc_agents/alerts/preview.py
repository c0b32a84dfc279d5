"""`byoc-agents alerts preview RULES...`: show which alerts of Prometheus rule files would leave.

The configured matchers and allowed names are applied to the text of the rules. Labels from the
metrics only have a value when the alert fires, so a matcher on such a label can still select or
exclude the alert; the preview marks these cases. Secrets are not required.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from byoc_agents.alerts import matchers
from byoc_agents.alerts.events import MAX_ANNOTATION, MAX_LABEL
from byoc_agents.alerts.matchers import Selector
from byoc_agents.alerts.settings import ANY_NAMESPACE, Settings
from byoc_agents.alerts.values import pick
from byoc_agents.app.command_line import CommandParser
from byoc_agents.app.settings import load, load_file
from byoc_agents.errors import ConfigError

TEMPLATE = "{{"  # Prometheus expands it when the alert fires
STAND_INS = {
    "BYOC_ALERTS_URL": "https://control-plane.invalid/",
    "BYOC_ALERTS_TOKEN": "none",
    "BYOC_ALERTS_SIGNING_SECRET": "whsec_" + "A" * 32,
    "BYOC_ALERTS_WEBHOOK_TOKEN": "none",
    "BYOC_ALERTS_FINGERPRINT_SECRET": "0" * 32,
}


class Preview(msgspec.Struct, frozen=True):
    """One alert of a rule file."""

    file: str
    alert: str
    leaves: str  # yes, no, or depends (on labels that the rule does not set)
    labels: dict[str, str]  # name -> text in the rule, or "(from the metric)"
    annotations: dict[str, str]
    withheld: list[str]  # left out because of their form
    dropped: list[str]  # labels and annotations of the rule that are not allowed


def preview(settings: Settings, file: str, rule: Mapping[str, Any]) -> Preview:
    """Return whether the alert of one rule would leave, and with which fields."""
    name = str(rule["alert"])
    labels = _texts(rule.get("labels")) | {"alertname": name}
    annotations = _texts(rule.get("annotations"))
    watched = _selects(matchers.parse(settings.watchdog), labels)
    selected = _selects(matchers.parse(settings.selected), labels)
    leaves = max(watched, selected, key=("no", "depends", "yes").index)
    picked = pick(labels, settings.labels, MAX_LABEL, labels=True)
    texts = pick(annotations, settings.annotations, MAX_ANNOTATION)
    templated = {n: v for n, v in labels.items() if TEMPLATE in v and n in settings.labels}
    shown = picked.values | templated  # a template is checked when it is expanded
    shown |= {n: "(from the metric)" for n in settings.labels if n not in labels}
    withheld = [f"labels.{n}" for n in picked.withheld if n not in templated]
    dropped = [f"labels.{n}" for n in labels if n not in settings.labels]
    dropped += [f"annotations.{n}" for n in annotations if n not in settings.annotations]
    return Preview(
        file=file,
        alert=name,
        leaves=leaves,
        labels=shown if leaves != "no" else {},
        annotations=texts.values if leaves != "no" and watched == "no" else {},
        withheld=[*withheld, *(f"annotations.{n}" for n in texts.withheld)],
        dropped=dropped,
    )


def _selects(selector: Selector, labels: Mapping[str, str]) -> str:
    """Return yes, no, or depends (on a label that the rule does not set)."""
    best = "no"
    for matches in selector.sets:
        fixed = [m for m in matches if m.name in labels and TEMPLATE not in labels[m.name]]
        if all(matcher.matches(labels) for matcher in fixed):
            best = "yes" if len(fixed) == len(matches) or best == "yes" else "depends"
    return best


def _texts(value: Any) -> dict[str, str]:
    return {str(k): str(v) for k, v in value.items()} if isinstance(value, dict) else {}


def read_rules(path: str) -> list[Mapping[str, Any]]:
    """Return the alerting rules of a rule file or of PrometheusRules. Raises ConfigError."""
    from byoc_agents.manifest import DuplicateKeyError, documents  # noqa: PLC0415  PyYAML: 1 MiB

    wanted = "a file of Prometheus rules"
    found: list[Mapping[str, Any]] = []
    try:
        for document in documents(Path(path).read_text(), path, wanted):
            whole: Any = document
            groups = whole.get("spec", whole).get("groups", [])
            rules = [rule for group in groups for rule in group.get("rules", [])]
            found += [rule for rule in rules if rule.get("alert") is not None]
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}: expected {wanted}"]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: is not UTF-8: expected {wanted}"]) from error
    except DuplicateKeyError as error:
        raise ConfigError([f"{path}: {error}: expected {wanted}"]) from error
    except (AttributeError, TypeError) as error:
        raise ConfigError([f"{path}: has no groups of rules: expected {wanted}"]) from error
    if not found:
        raise ConfigError([f"{path}: no alerting rule: expected {wanted}"])
    return found


def main(argv: Sequence[str]) -> int:
    """Print the preview; return 0. Raises ConfigError."""
    options = make_parser().parse_args(argv)
    given = {name: value for name, value in os.environ.items() if name not in STAND_INS}
    file = {"alerts_namespace": ANY_NAMESPACE} | load_file(options.config)  # all that could leave
    (settings,) = load([Settings], given | STAND_INS, file)
    found = [preview(settings, path, rule) for path in options.rules for rule in read_rules(path)]
    if options.json:
        sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(found)) + b"\n")
    else:
        sys.stdout.write("\n".join([*_lines(settings, found), ""]))
    return 0


def make_parser() -> CommandParser:
    """Return the parser of the command."""
    parser = CommandParser(
        prog="byoc-agents alerts",
        description="Show which alerts of Prometheus rule files would leave, and which fields.",
        epilog="example: byoc-agents alerts preview rules/*.yaml",
    )
    parser.add_argument("action", choices=["preview"])
    parser.add_argument("rules", nargs="+", metavar="RULES", help="rule files or PrometheusRules")
    parser.add_argument("--config", metavar="FILE", help="YAML settings, as for `run`")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _lines(settings: Settings, found: Sequence[Preview]) -> list[str]:
    lines = [f"matchers: {settings.selected}", f"watchdog: {settings.watchdog}", ""]
    for one in found:
        lines.append(f"{one.leaves:8} {one.alert}  ({one.file})")
        lines += [f"           labels.{name} = {value}" for name, value in one.labels.items()]
        lines += [f"           annotations.{n} = {v}" for n, v in one.annotations.items()]
        if one.withheld:
            lines.append(f"           withheld: {', '.join(one.withheld)}")
        if one.dropped:
            lines.append(f"           not sent: {', '.join(one.dropped)}")
    count = {
        leaves: sum(one.leaves == leaves for one in found) for leaves in ("yes", "depends", "no")
    }
    depends = f"{count['depends']} depend on a label of the metric"
    return [*lines, "", f"{count['yes']} leave, {depends}, {count['no']} stay"]
