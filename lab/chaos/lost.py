"""Count the changes of state that found no room: by the exporter's log, and by its own count.

The log has an entry for every observation that was due. The entries alone give how many changes
were never reported; `lost_transitions` must be the same number.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from lab.chaos.outages import REPORTED, UNREPORTED

START = "daemon.started"  # observations not reported by then are dropped


def miscounted(lines: Iterable[Mapping[str, Any]], arrived: Mapping[int, int]) -> Iterator[str]:
    """Yield every message whose count differs from that of the log.

    `lines` are the exporter's, oldest first; `arrived` is sequence -> `lost_transitions`. Where a
    number is missing in the log (a kill, or a disk that failed, right after the commit), counting
    starts again with the next message.
    """
    expected: int | None = 0
    for sequence, more in _counted(lines):
        expected = None if expected is None or more is None else expected + more
        count = arrived.get(sequence, expected)
        if expected is not None and count != expected:
            yield f"message {sequence} says that {count} changes were lost, the log {expected}"
        expected = count


def _counted(lines: Iterable[Mapping[str, Any]]) -> Iterator[tuple[int, int | None]]:
    """Yield (sequence, changes lost right before it; None = the log does not say)."""
    known, states, following = "", list[str](), 0
    for line in lines:
        if line["event"] == START:
            states = []
        elif line["event"] == UNREPORTED:
            states.append(line["state_key"])
        elif line["event"] == REPORTED:
            sequence = line["sequence"]
            yield (
                sequence,
                lost(known, states, line["state_key"]) if sequence == following else None,
            )
            known, states, following = line["state_key"], [], sequence + 1


def lost(known: str, states: Sequence[str], reported: str) -> int:
    """Return how many of the entries, each until the next one, were never reported.

    >>> lost("running", ["failed", "failed", "degraded"], "degraded")
    1
    """
    runs = [state for state, _ in groupby(states)]
    if runs and runs[-1] == reported:
        runs.pop()
    return sum(state != known for state in runs)
