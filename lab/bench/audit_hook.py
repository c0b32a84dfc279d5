"""The cost of the audit hook: `python -m lab.bench.audit_hook` prints nanoseconds per event.

`sys.audit` raises the event from Python, so the figures are upper bounds.
"""

import sys
import timeit

from byoc_agents.egress.audit_hook import enforce_process
from byoc_agents.egress.destinations import https_destination
from byoc_agents.egress.gate import Gate

REPEATS, ROUNDS = 200_000, 5
NANOSECONDS = 1e9
EVENTS = {
    "allowed: open": ("open", "/file", "r", 0),
    "not guarded: another library's": ("library.event",),
    "checked: import": ("import", "json", None, None, None, None),
    "checked: getaddrinfo": ("socket.getaddrinfo", "127.0.0.1", 443, 0, 0, 0),
}


def measure(event: tuple[object, ...]) -> float:
    """Return the nanoseconds of one event: the best of some rounds."""
    times = timeit.repeat(lambda: sys.audit(*event), number=REPEATS, repeat=ROUNDS)  # type: ignore[arg-type]
    return min(times) / REPEATS * NANOSECONDS


def main() -> None:
    """Measure each kind of event without the hook, then with it."""
    before = {name: measure(event) for name, event in EVENTS.items()}
    enforce_process(Gate([https_destination("http://127.0.0.1:8123")]))
    for name, event in EVENTS.items():
        after = measure(event)
        print(f"{name:32} {before[name]:7.0f} ns without, {after:7.0f} ns with the hook")


if __name__ == "__main__":
    main()
