"""The JSON Schema of the events, generated from the structs.

`python -m byoc_agents.alerts.schema` prints it. A test compares it with
docs/contracts/control-plane.openapi.yaml.
"""

import sys
from typing import Any

import msgspec

from byoc_agents.alerts.events import AlertEvent, HeartbeatEvent, WatchdogEvent

EVENTS = (AlertEvent, WatchdogEvent, HeartbeatEvent)
TEMPLATE = "#/components/schemas/{name}"
# Fields that events of 0.1.0 do not have.
ADDED = frozenset({"end_inferred", "withheld", "open_episodes", "open_digest", "agent"})


def components() -> dict[str, Any]:
    """Return name -> JSON Schema of the events and their parts.

    Every field of 0.1.0 is required, because `encode` also writes fields with a default.
    """
    _, found = msgspec.json.schema_components(EVENTS, ref_template=TEMPLATE)
    return {
        name: schema | {"required": [f for f in schema["properties"] if f not in ADDED]}
        for name, schema in found.items()
    }


def main() -> int:
    """Print the schemas as JSON; return the exit code."""
    sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(components())) + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
