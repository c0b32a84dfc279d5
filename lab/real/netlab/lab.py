"""The whole network with running daemons, and the router's view of their start."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from byoc_agents.audit import Audit
from lab.real.netlab import certificates, far, names, namespaces, pod, policy, rules, wire
from lab.real.netlab.far import within
from lab.real.netlab.namespaces import (
    PLANE_ADDRESS,
    POD,
    ROUTER,
    S3_ADDRESS,
    SQS_ADDRESS,
    STRANGER_ADDRESS,
)
from lab.real.netlab.wire import Packet

T = TypeVar("T")

STRANGER_HOST = "stranger.example.net"
CONFIGURED = {
    pod.BUCKET_HOST: S3_ADDRESS,
    pod.SQS_HOST: SQS_ADDRESS,
    pod.PLANE_HOST: PLANE_ADDRESS,
}
PATIENCE_SECONDS = 30.0  # a busy machine; each wait ends as soon as it may


@dataclass
class Birth:
    """The router's observations until each daemon had delivered for the first time."""

    packets: list[Packet]
    counts: dict[str, int]
    asked: set[str]  # of the DNS
    greeted: set[str | None]  # by TLS (SNI)


@dataclass
class Lab:
    """The whole network, with running daemons."""

    spaces: dict[str, namespaces.Namespace]
    wire: wire.Wire
    names: names.Names
    far: far.FarSides
    pod: pod.Pod
    allowed: list[rules.Allow]

    def counts(self) -> dict[str, int]:
        return rules.counts(self.spaces[ROUTER])

    def load(self, *, endpoint_only: bool = True) -> None:
        """Load the rules; all counters are 0 then."""
        rules.load(self.spaces[ROUTER], self.allowed, endpoint_only=endpoint_only)

    async def delivered(self, *, s3: bool = True) -> None:
        """Wait until each daemon has delivered something new; without `s3` all but the scraper."""
        before = self.far.progress()

        def all_did() -> bool:
            news = [now > then for now, then in zip(self.far.progress(), before, strict=True)]
            return all(news if s3 else news[1:])

        await within(PATIENCE_SECONDS, all_did, f"new deliveries after {before}")

    async def last_error(self, daemon: str = "billing-scraper") -> str:
        """Return the error that keeps a daemon's spool from draining, from /status."""
        status = await self.pod.status(daemon)
        return str((status["last_error"] or {}).get("reason", ""))

    async def back_to_normal(self) -> None:
        """Restore route and rules; wait until all daemons deliver, and verify the bucket."""
        namespaces.gateway_route(present=True)
        self.load()
        for daemon in pod.DAEMONS:
            await eventually(partial(self.last_error, daemon), {""})
        await self.delivered()
        audit = Audit()
        for key, body in sorted(self.far.s3.objects.items()):
            audit.add(key, body)
        assert audit.report("lab").counts == {}
        assert {self.far.s3.applied(key) for key in self.far.s3.objects} == {1}

    def sent_to_the_stranger(self, mark: int) -> list[Packet]:
        self.wire.catch_up()
        return [p for p in self.wire.packets[mark:] if p.target == STRANGER_ADDRESS]

    async def script(self, program: str) -> list[str]:
        """Run Python inside the pod, in the environment of the daemons; return its lines."""
        command = self.pod.command(sys.executable, "-c", program, STRANGER_HOST, STRANGER_ADDRESS)
        environment = {**os.environ, **self.pod.environment}
        run = partial(subprocess.run, command, env=environment, capture_output=True, text=True)
        done = await self.spaces[POD].do(run)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()


@asynccontextmanager
async def built(directory: Path) -> AsyncIterator[tuple[Lab, Birth]]:
    """Build the network, the far sides and the rules, and only then start the daemons."""
    greeted: list[str | None] = []
    ca_file, tls = certificates.authority(directory, [*CONFIGURED, STRANGER_HOST], greeted)
    async with AsyncExitStack() as stack:
        spaces = stack.enter_context(namespaces.network())
        captured = stack.enter_context(wire.capture(spaces[ROUTER]))
        known = CONFIGURED | {STRANGER_HOST: STRANGER_ADDRESS}
        dns = stack.enter_context(names.answering(spaces[ROUTER], known, directory / "asked"))
        settings = pod.settings(directory, ca_file, 1)
        sides = far.FarSides(policy.bucket_policy(settings), pod.TOKEN, pod.SIGNING_SECRET)
        await stack.enter_async_context(far.served(spaces, tls, sides, policy.VPCE))
        allowed = rules.allowed(policy.network_policies(settings, **policy.CIDRS))
        rules.load(spaces[ROUTER], allowed)
        inside = await entered(stack, pod.running(spaces[POD], directory, ca_file))
        found = Lab(spaces, captured, dns, sides, inside, allowed)
        await inside.notify("BeforeAll")
        await found.delivered()
        await within(PATIENCE_SECONDS, sides.alerted, "the alert at the control plane")
        captured.catch_up()
        birth = Birth([*captured.packets], found.counts(), {*dns.asked}, {*greeted})
        yield found, birth
        assert captured.lost() == 0


async def entered(stack: AsyncExitStack, context: AbstractContextManager[T]) -> T:
    """Enter a blocking context manager in a thread: the loop serves the far sides."""
    entered = await asyncio.to_thread(context.__enter__)
    stack.push_async_callback(asyncio.to_thread, context.__exit__, None, None, None)
    return entered


async def eventually(found: Callable[[], Awaitable[str]], wanted: set[str]) -> None:
    """Poll until the response is one of the expected. Raises AssertionError after a timeout."""
    response = "nothing"
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while (response := await found()) not in wanted:  # noqa: ASYNC110  a page to be asked
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise AssertionError(f"got {response!r}; expected one of {wanted}") from None
