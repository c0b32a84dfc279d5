"""The source of the state exporter: looks at each replica, tells what changed."""

import asyncio
from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from byoc_agents.app.clock import Clock
from byoc_agents.app.cloudevents import rfc3339
from byoc_agents.delivery.sink import Message
from byoc_agents.errors import SpoolError
from byoc_agents.state.assess import Assessment, End, Memory, assess, restored
from byoc_agents.state.hysteresis import Now
from byoc_agents.state.message import Identity, Kind, Position, state_message, summary_message
from byoc_agents.state.observation import Observation
from byoc_agents.state.stream import Stream
from byoc_agents.state.summary import Summary, summarize
from byoc_agents.state.thresholds import Limits

HURRY_SECONDS = 1.0  # to the next look where a decision is near


class Looks(Protocol):
    """What we need of `byoc_agents.state.probes.Prober`."""

    async def observe(self) -> Observation: ...  # noqa: D102


class Replica(msgspec.Struct):
    """One watched server: how to look at it, what is remembered, where it is told."""

    name: str
    prober: Looks
    stream: Stream
    memory: Memory = msgspec.field(default_factory=Memory)
    seen: Observation | None = None
    assessment: Assessment | None = None
    restored: bool = False


class Exporter:
    """Watches the replicas and fills the spool. `summary` is there in the many-mode only."""

    def __init__(  # noqa: PLR0913  the parts it is made of
        self,
        *,
        who: Identity,
        replicas: list[Replica],
        limits: Limits,
        poll_seconds: float,
        clock: Clock,
        summary: Stream | None = None,
    ) -> None:
        self._who = who
        self._replicas = replicas
        self._limits = limits
        self._poll_seconds = poll_seconds
        self._clock = clock
        self._summary = summary
        self._end = End.AGENT if summary else End.BOTH

    async def run(self) -> None:
        """Look at every poll interval, sooner where a decision is near, for ever."""
        while True:
            began = self._clock.boot_ns()
            hurry = await self.tick()
            pace = min(HURRY_SECONDS, self._poll_seconds) if hurry else self._poll_seconds
            await self._clock.sleep(pace - (self._clock.boot_ns() - began) / 1e9)

    async def tick(self) -> bool:
        """Look at all replicas once and tell what there is. Return whether to hurry."""
        hurries = await asyncio.gather(*(self._look(replica) for replica in self._replicas))
        if self._summary:
            await self._summarize(self._summary)
        return any(hurries)

    async def finish(self) -> None:
        """Say that we stop; no last look, since the server may be stopping too."""
        for replica in self._replicas:
            if replica.seen:
                self._judge(replica, replica.seen, self._end)
                await self._tell(replica)

    async def _look(self, replica: Replica) -> bool:
        seen = await replica.prober.observe()
        if not replica.restored:
            replica.restored = await _restore(replica)
        self._judge(replica, seen, End.NONE)
        kept = await self._tell(replica)
        return bool(replica.assessment and replica.assessment.hurry) or not kept

    def _judge(self, replica: Replica, seen: Observation, end: End) -> None:
        now = Now(self._clock.wall_ns() // 1_000_000, self._clock.boot_ns())
        replica.seen = seen
        replica.assessment, replica.memory = assess(
            seen, replica.memory, self._limits, now, end=end
        )

    async def _tell(self, replica: Replica) -> bool:
        seen, assessment = replica.seen, replica.assessment
        if seen is None or assessment is None or not assessment.sure:
            return True

        def make(kind: Kind, position: Position, now_ms: int) -> Message:
            return state_message(
                self._who,
                replica.name,
                kind,
                seen=seen,
                assessment=assessment,
                memory=replica.memory,
                position=position,
                now_ms=now_ms,
            )

        more = msgspec.json.encode(replica.memory)
        return await replica.stream.tell(word(assessment), make, more)

    async def _summarize(self, stream: Stream) -> None:
        states = [r.assessment.state if r.assessment else None for r in self._replicas]
        summary = summarize(states)
        if summary is None:
            return

        def make(kind: Kind, position: Position, now_ms: int, said: Summary = summary) -> Message:
            return summary_message(self._who, kind, said, position, now_ms)

        await stream.tell(f"{summary.state} {msgspec.to_builtins(summary.replicas)}", make)

    def status(self) -> dict[str, Any]:
        """Return what /status shows."""
        return {"replicas": {replica.name: _status(replica) for replica in self._replicas}}


def word(assessment: Assessment) -> str:
    """Return what makes a transition when it changes: the state and the set of codes."""
    codes = sorted(reason.code for reason in assessment.reasons)
    return " ".join([str(assessment.state), *codes])


async def _restore(replica: Replica) -> bool:
    """Take up what the last run remembered. Return whether the spool could be asked."""
    try:
        stored = await replica.stream.load()
    except SpoolError:  # `tell` will meet it as well, and count it
        return False
    if stored:
        try:
            replica.memory = restored(msgspec.json.decode(stored, type=Memory))
        except msgspec.DecodeError:  # written by another version
            replica.memory = Memory()
    return True


def _status(replica: Replica) -> Mapping[str, Any]:
    if replica.assessment is None or replica.seen is None:
        return {"state": None}
    return {
        "state": replica.assessment.state,
        "since": rfc3339(replica.memory.state_since_ms),
        "healthy": replica.assessment.healthy,
        "reasons": msgspec.to_builtins(replica.assessment.reasons),
        "sources": {str(source): str(how) for source, how in replica.seen.seen.items()},
        "figures": msgspec.to_builtins(replica.seen.figures),
        "version": replica.seen.version,
    }
