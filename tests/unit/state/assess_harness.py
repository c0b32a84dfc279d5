"""A healthy server's figures, and polls one after another on a clock that a test moves."""

from typing import Any

from byoc_agents.state.assess import Assessment, Memory, ShutdownScope, assess
from byoc_agents.state.observation import (
    Figures,
    Login,
    Ping,
    ProbeSource,
    SourceResult,
    StateObservation,
)
from byoc_agents.state.thresholds import NS, PollTime, Thresholds

ALL_SEEN = dict.fromkeys(ProbeSource, SourceResult.OK)
FINE: dict[str, Any] = {
    "readonly_replicas": 0,
    "replicated_tables": 3,
    "keeper_sessions": 1,
    "expired_sessions": 0,
    "replication_lag_seconds": 0,
    "replicas_status_ok": True,
    "lost_parts": 0,
    "rejected_inserts": 0,
    "delayed_inserts": 0,
    "server_errors": 0,
    "max_parts_in_partition": 5,
    "pending_mutations": 0,
    "stuck_mutations": 0,
    "detached_parts": 0,
    "disk_free_ratio": 0.5,
    "memory_used_ratio": 0.2,
}
UNREACHABLE = StateObservation(ping=Ping.REFUSED)
LONG = 10_000.0  # seconds: past every hold


def up(
    uptime: int = 4000, sources: dict[ProbeSource, SourceResult] | None = None, **figures: Any
) -> StateObservation:
    """Return a server that answers; `figures` go over those of a healthy one."""
    return StateObservation(
        ping=Ping.OK,
        login=Login.OK,
        sources=ALL_SEEN | (sources or {}),
        figures=Figures(**(FINE | figures)),
        version="24.8.4.13",
        uptime_seconds=uptime,
    )


class Polls:
    """Polls one after another on a clock that the test moves."""

    def __init__(self, thresholds: Thresholds | None = None) -> None:
        self.thresholds = thresholds or Thresholds()
        self.memory = Memory()
        self.seconds = 1000.0

    @property
    def now(self) -> PollTime:
        return PollTime(round(self.seconds * 1000), round(self.seconds * NS))

    def see(
        self,
        observation: StateObservation,
        after: float = 0,
        shutdown: ShutdownScope = ShutdownScope.NONE,
    ) -> Assessment:
        self.seconds += after
        found, self.memory = assess(
            observation, self.memory, self.thresholds, self.now, shutdown=shutdown
        )
        return found

    def stays(self, observation: StateObservation, seconds: float = LONG) -> Assessment:
        """See the same now and after some seconds."""
        self.see(observation)
        return self.see(observation, after=seconds)


def codes(found: Assessment) -> list[str]:
    return [str(reason.code) for reason in found.reasons]
