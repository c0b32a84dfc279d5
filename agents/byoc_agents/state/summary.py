"""The state of a service, derived from its replicas' states by an exporter that polls all."""

from collections import Counter
from collections.abc import Iterable
from enum import StrEnum

import msgspec

from byoc_agents.state.assess import ServiceState


class SummaryState(StrEnum):
    """The states of a service in ClickHouse Cloud."""

    STARTING = "starting"  # every replica is starting
    RUNNING = "running"  # every replica is running
    PARTIALLY_RUNNING = "partially_running"  # some serve, others do not
    DEGRADED = "degraded"  # all serve, some of them are degraded
    FAILED = "failed"  # none serves
    STOPPING = "stopping"  # every replica is stopping


class ServiceSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a service and the states of its replicas."""

    state: SummaryState
    replicas: dict[ServiceState, int]


def summarize(states: Iterable[ServiceState | None]) -> ServiceSummary | None:
    """Return the summary, or None while a replica's state is not known."""
    known = list(states)
    if not known or None in known:
        return None
    counts = Counter(state for state in known if state is not None)
    ordered = {state: counts[state] for state in ServiceState if counts[state]}
    return ServiceSummary(state=_derive_state(ordered), replicas=ordered)


def _derive_state(counts: dict[ServiceState, int]) -> SummaryState:
    if len(counts) == 1:
        return SummaryState(next(iter(counts)).value)
    if not {ServiceState.RUNNING, ServiceState.DEGRADED} & counts.keys():
        return SummaryState.FAILED
    if counts.keys() <= {ServiceState.RUNNING, ServiceState.DEGRADED}:
        return SummaryState.DEGRADED
    return SummaryState.PARTIALLY_RUNNING
