"""The replicas' states to one of the service, where one exporter watches all of them."""

from collections import Counter
from collections.abc import Iterable
from enum import StrEnum

import msgspec

from byoc_agents.state.assess import State


class SummaryState(StrEnum):
    """ClickHouse Cloud's words for a service."""

    STARTING = "starting"  # every replica is
    RUNNING = "running"  # every replica is
    PARTIALLY_RUNNING = "partially_running"  # some serve, some do not (yet, or any more)
    DEGRADED = "degraded"  # all serve, some of them badly
    FAILED = "failed"  # none serves
    STOPPING = "stopping"  # every replica is


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a service and what it is made of."""

    state: SummaryState
    replicas: dict[State, int]


def summarize(states: Iterable[State | None]) -> Summary | None:
    """Return the summary, or None while a replica's state is not known."""
    known = list(states)
    if not known or None in known:
        return None
    counts = Counter(state for state in known if state is not None)
    ordered = {state: counts[state] for state in State if counts[state]}
    return Summary(state=_state(ordered), replicas=ordered)


def _state(counts: dict[State, int]) -> SummaryState:
    if len(counts) == 1:
        return SummaryState(next(iter(counts)).value)
    if not {State.RUNNING, State.DEGRADED} & counts.keys():
        return SummaryState.FAILED
    if counts.keys() <= {State.RUNNING, State.DEGRADED}:
        return SummaryState.DEGRADED
    return SummaryState.PARTIALLY_RUNNING
