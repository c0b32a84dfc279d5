"""The broker as the source of a daemon: passes, polled requests, and metrics."""

import asyncio
from collections.abc import Iterable
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from byoc_agents.access.broker import PASS_SECONDS, Broker, RecordError
from byoc_agents.access.machine import ENDS, State
from byoc_agents.access.requests import RequestPoller
from byoc_agents.app.clock import Clock

CHECK_SECONDS = 300.0  # between two checks of all servers: about ten small queries of each


class BrokerSource:
    """Runs the passes of the broker, and gives it what the poller has received."""

    def __init__(self, broker: Broker, poller: RequestPoller | None, clock: Clock) -> None:
        """Without a poller, requests are files only."""
        self._broker = broker
        self._poller = poller
        self._clock = clock
        self._checked_boot_ns: int | None = None
        self._policy_sha256 = ""  # with which the last response was dealt with

    async def run(self) -> None:
        """Pass and poll until cancelled. May be called again."""
        async with asyncio.TaskGroup() as tasks:
            if self._broker.tailnet is not None:
                tasks.create_task(self._broker.tailnet.run())
            if self._poller is not None:
                tasks.create_task(self._poller.run())
            tasks.create_task(self._pass())

    async def finish(self) -> None:
        """End all access if the settings say so. Called after `run` was cancelled."""
        await self._broker.finish()
        if self._broker.tailnet is not None:
            await self._broker.tailnet.reconcile()

    async def _pass(self) -> None:
        while True:
            await self.run_once()
            await self._clock.sleep(PASS_SECONDS)

    async def run_once(self) -> None:
        """Make one pass, submit the polled envelopes, and check the servers if it is time."""
        await self._broker.run_pass()
        await self._submit_polled()
        now_ns = self._clock.boot_ns()
        checked_ns = self._checked_boot_ns
        if checked_ns is None or now_ns - checked_ns >= CHECK_SECONDS * 1e9:
            self._checked_boot_ns = now_ns
            await self._broker.check_servers()

    async def _submit_polled(self) -> None:
        """Submit the polled envelopes; they stay if the policy or the disk does not allow it."""
        poller, policy = self._poller, self._broker.policy_sha256
        if poller is None or not policy:
            return
        if policy != self._policy_sha256:
            poller.ask_for_all()
            self._policy_sha256 = policy
        polled = poller.take()
        if polled is None:
            return
        for envelope in polled.envelopes:
            try:
                await self._broker.submit(envelope)
            except RecordError:
                return
        poller.settle(polled)

    def status(self) -> dict[str, Any]:
        """Return the broker's fields of /status."""
        poller = self._poller
        polled = {
            "requests": repr(poller) if poller else "files only",
            "poll_error": (poller.last_error or None) if poller else None,
        }
        return self._broker.status() | polled


class BrokerCollector(Collector):
    """The broker's metrics, read from it at each scrape. docs/access.md describes them."""

    def __init__(self, daemon: str, broker: Broker, poller: RequestPoller | None) -> None:
        self._daemon = daemon
        self._broker = broker
        self._poller = poller

    def collect(self) -> Iterable[GaugeMetricFamily | CounterMetricFamily]:
        """Return the metrics."""
        broker = self._broker
        states = [grant.state for grant in broker.grants]
        found = {
            (state.value,): float(states.count(state))
            for state in State
            if state not in ENDS and state is not State.RECEIVED
        }
        yield self._gauge(
            "byoc_access_grants", "Grants that have not ended, by state", found, ["state"]
        )
        yield self._gauge(
            "byoc_access_kill_switch",
            "1 if the kill switch is on, else 0",
            {(): float(bool(broker.kill_switch))},
        )
        yield self._gauge(
            "byoc_access_controls_unreadable",
            "1 if the kill switch is on because it or the policy cannot be read, else 0",
            {(): float(broker.controls_unreadable)},
        )
        yield self._gauge(
            "byoc_access_record_failed",
            "1 if the ledger or the store has refused something that is not written yet, else 0",
            {(): float(broker.record_failed)},
        )
        yield self._gauge(
            "byoc_access_overdue_seconds",
            "For how long a grant may give access after its end; 0 = none does",
            {(): broker.overdue_seconds},
        )
        yield self._gauge(
            "byoc_access_server_ready",
            "1 if the server passed its last checks, else 0",
            {(name,): float(not problem) for name, problem in broker.problems.items()},
            ["replica"],
        )
        if self._poller is not None:
            yield self._gauge(
                "byoc_access_last_poll_timestamp_seconds",
                "When the control plane last answered a poll for requests",
                {(): self._poller.last_success_ms / 1000},
            )
        yield self._counter(
            "byoc_access_sweep_failures",
            "How often the users of a server could not be compared with the grants",
            broker.sweep_failures,
        )
        yield self._counter(
            "byoc_access_unexpected_users",
            "How often a user of no live grant was found on a server",
            broker.unexpected_users,
        )
        yield self._counter(
            "byoc_access_break_glass",
            "How often a grant of the kind break_glass began to open",
            broker.break_glass_openings,
        )
        refused = CounterMetricFamily(
            "byoc_access_refused_documents",
            "How often a request or a withdrawal was not taken",
            labels=["daemon", "reason"],
        )
        for reason, count in broker.refused_documents.items():
            refused.add_metric([self._daemon, reason], count)
        yield refused
        if (tailnet := broker.tailnet) is None:
            return
        yield self._gauge(
            "byoc_access_tailnet_pods",
            "Pods of an endpoint of the tailnet, when the Kubernetes API last answered",
            {(name,): float(pods) for name, pods in tailnet.pods.items()},
            ["endpoint"],
        )
        yield self._gauge(
            "byoc_access_tailnet_late_seconds",
            "For how long an endpoint of the tailnet has not been as it must be; 0 = all are",
            {(): tailnet.late_seconds},
        )
        yield self._counter(
            "byoc_access_tailnet_unexpected",
            "How often an endpoint of the tailnet had a pod although nobody had access",
            tailnet.unexpected_count,
        )

    def _counter(self, name: str, text: str, value: float) -> CounterMetricFamily:
        family = CounterMetricFamily(name, text, labels=["daemon"])
        family.add_metric([self._daemon], value)
        return family

    def _gauge(
        self,
        name: str,
        text: str,
        values: dict[tuple[str, ...], float] | dict[tuple[()], float] | dict[tuple[str], float],
        labels: Iterable[str] = (),
    ) -> GaugeMetricFamily:
        family = GaugeMetricFamily(name, text, labels=["daemon", *labels])
        for own, value in values.items():
            family.add_metric([self._daemon, *own], value)
        return family
