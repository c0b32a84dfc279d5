"""The source of the state exporter (`Exporter`): polls each replica, publishes its changes."""

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

import msgspec

from byoc_agents.app.clock import Clock
from byoc_agents.app.cloudevents import Agent, rfc3339
from byoc_agents.errors import SpoolError
from byoc_agents.message import Message
from byoc_agents.state.assess import Assessment, Memory, ShutdownScope, assess, restore_memory
from byoc_agents.state.message import (
    MessageKind,
    Position,
    StateIdentity,
    state_message,
    summary_message,
)
from byoc_agents.state.message_stream import MessageStream
from byoc_agents.state.observation import StateObservation
from byoc_agents.state.summary import summarize
from byoc_agents.state.thresholds import PollTime, Thresholds

POLL_SOON_SECONDS = 1.0  # until the next poll, if it may change the state


class Observer(Protocol):
    """The part of `byoc_agents.state.probes.Prober` that `Exporter` needs."""

    async def observe(self) -> StateObservation:
        """Poll the server once. A server that does not respond is an observation, not an error."""
        ...


class PolledReplica(msgspec.Struct):
    """One polled server: its prober, its stream of messages, and the state kept between polls."""

    name: str
    prober: Observer
    stream: MessageStream
    memory: Memory = msgspec.field(default_factory=Memory)
    observation: StateObservation | None = None
    assessment: Assessment | None = None
    restored: bool = False


class Exporter:
    """Polls the replicas and fills the spool. `summary` is given if it polls a whole service."""

    def __init__(  # noqa: PLR0913  its collaborators
        self,
        *,
        who: StateIdentity,
        replicas: list[PolledReplica],
        thresholds: Thresholds,
        poll_seconds: float,
        clock: Clock,
        summary: MessageStream | None = None,
        agent: Callable[[], Agent | None] = lambda: None,
    ) -> None:
        """`agent` describes this process in each message."""
        self._identity = who
        self._agent = agent
        self._replicas = replicas
        self._thresholds = thresholds
        self._poll_seconds = poll_seconds
        self._clock = clock
        self._summary = summary
        self._shutdown = ShutdownScope.DAEMON if summary else ShutdownScope.POD

    async def run(self) -> None:
        """Poll at every interval, and sooner if the state may change, until cancelled."""
        while True:
            began = self._clock.boot_ns()
            poll_soon = await self.tick()
            interval = self._poll_seconds
            if poll_soon:
                interval = min(POLL_SOON_SECONDS, interval)
            await self._clock.sleep(interval - (self._clock.boot_ns() - began) / 1e9)

    async def tick(self) -> bool:
        """Poll all replicas once and publish changes. Return whether to poll again soon."""
        soon = await asyncio.gather(*(self._poll_replica(replica) for replica in self._replicas))
        if self._summary:
            await self._publish_summary(self._summary)
        return any(soon)

    async def finish(self) -> None:
        """Publish that the exporter stops. No last poll: the server may be stopping too.

        Raises SpoolError if that could not be stored. Then the call can be repeated.
        """
        refused = []
        for replica in self._replicas:
            if replica.observation:
                self._assess_replica(replica, replica.observation, self._shutdown)
                if not await self._publish_replica(replica):
                    refused.append(replica)
        if refused:
            raise SpoolError(f"{len(refused)} last messages were not stored")

    async def _poll_replica(self, replica: PolledReplica) -> bool:
        observation = await replica.prober.observe()
        if not replica.restored:
            replica.restored = await _restore_replica(replica)
        self._assess_replica(replica, observation, ShutdownScope.NONE)
        stored = await self._publish_replica(replica)
        return bool(replica.assessment and replica.assessment.poll_soon) or not stored

    def _assess_replica(
        self, replica: PolledReplica, observation: StateObservation, shutdown: ShutdownScope
    ) -> None:
        now = PollTime(self._clock.wall_ns() // 1_000_000, self._clock.boot_ns())
        replica.observation = observation
        replica.assessment, replica.memory = assess(
            observation, replica.memory, self._thresholds, now, shutdown=shutdown
        )

    def _sender(self) -> StateIdentity:
        """Return the identity of the messages, with the present description of this process."""
        return msgspec.structs.replace(self._identity, agent=self._agent())

    async def _publish_replica(self, replica: PolledReplica) -> bool:
        """Publish the state if it changed or a heartbeat is due. Return False if it was refused.

        True also if there is nothing to publish: the replica was not assessed, or the assessment
        is not confirmed yet.
        """
        observation, assessment = replica.observation, replica.assessment
        if observation is None or assessment is None or not assessment.confirmed:
            return True

        sender = self._sender()

        def build(
            kind: MessageKind, *, position: Position, heartbeat_seconds: float, now_ms: int
        ) -> Message:
            return state_message(
                sender,
                replica.name,
                kind,
                observation=observation,
                assessment=assessment,
                memory=replica.memory,
                position=position,
                heartbeat_seconds=heartbeat_seconds,
                now_ms=now_ms,
            )

        extra = msgspec.json.encode(replica.memory)
        return await replica.stream.publish(state_key(assessment), build, extra)

    async def _publish_summary(self, stream: MessageStream) -> None:
        states = [r.assessment.state if r.assessment else None for r in self._replicas]
        summary = summarize(states)
        if summary is None:
            return

        build = partial(summary_message, self._sender(), summary=summary)
        await stream.publish(f"{summary.state} {msgspec.to_builtins(summary.replicas)}", build)

    def status(self) -> dict[str, Any]:
        """Return the exporter's part of /status."""
        return {"replicas": {replica.name: _replica_status(replica) for replica in self._replicas}}


def state_key(assessment: Assessment) -> str:
    """Return the state and the set of reason codes. A change of it is a transition."""
    codes = sorted(reason.code for reason in assessment.reasons)
    return " ".join([str(assessment.state), *codes])


async def _restore_replica(replica: PolledReplica) -> bool:
    """Load the memory of the last run. Return whether the spool could be read."""
    try:
        stored = await replica.stream.load()
    except SpoolError:  # `publish` meets it as well, and counts it
        return False
    if stored:
        try:
            replica.memory = restore_memory(msgspec.json.decode(stored, type=Memory))
        except msgspec.DecodeError:  # written by another version
            replica.memory = Memory()
    return True


def _replica_status(replica: PolledReplica) -> Mapping[str, Any]:
    if replica.assessment is None or replica.observation is None:
        return {"state": None}
    sources = replica.observation.sources
    return {
        "state": replica.assessment.state,
        "since": rfc3339(replica.memory.state_since_ms),
        "healthy": replica.assessment.healthy,
        "reasons": msgspec.to_builtins(replica.assessment.reasons),
        "sources": {str(source): str(outcome) for source, outcome in sources.items()},
        "figures": msgspec.to_builtins(replica.observation.figures),
        "version": replica.observation.version,
    }
