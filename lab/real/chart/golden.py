"""Golden renders of each file of values, so that a change shows its effect."""

import json
from pathlib import Path

import yaml

from lab.real.chart.render import CI, Manifest, manifests, name

PLACE = Path(__file__).parent / "renders"


def file(values: Path) -> Path:
    """Return the path of the golden render of these values."""
    return PLACE / f"{name(values)}.yaml"


def update() -> None:
    """Write all golden renders again."""
    for values in CI:
        file(values).write_text(settled(manifests(values)))


def settled(documents: list[Manifest]) -> str:
    """Return documents as YAML in a fixed order, with the size of each file instead of its text."""
    shortened = [_short(document) for document in documents]
    ordered = sorted(shortened, key=lambda one: (one["kind"], one["metadata"]["name"]))
    plain = json.loads(json.dumps(ordered))  # no YAML anchors
    text: str = yaml.safe_dump_all(plain, sort_keys=True, width=160, default_flow_style=None)
    return text


def _short(given: Manifest) -> Manifest:
    """Leave out parts with their own tests: the chart's labels, rules, files in ConfigMaps."""
    metadata = {key: value for key, value in given["metadata"].items() if key != "labels"}
    document = given | {"metadata": metadata}
    if document["kind"] == "PrometheusRule":
        alerts = [rule["alert"] for group in document["spec"]["groups"] for rule in group["rules"]]
        return document | {"spec": {"alerts": alerts}}
    if document["kind"] == "ConfigMap":
        return document | {"data": sorted(document["data"])}
    return document
