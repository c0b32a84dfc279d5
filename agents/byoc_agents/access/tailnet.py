"""Scales the endpoints of the tailnet: to one pod while a live grant needs them, else to none.

An endpoint is a Deployment of the chart, through which an engineer reaches one part of the cluster.
The broker states which endpoints are needed. Another task scales the Deployments, again and again,
so the end of a grant never waits for the Kubernetes API. Only an opening waits: it fails if its
endpoints cannot be scaled. An endpoint that does not have its number of pods, or of which this is
unknown, is late: a metric shows for how long, and the task tries again.

Permissions: `patch` on `deployments/scale` of the named Deployments. The response to a patch that
changes nothing has the number of pods, so nothing else is read.
"""

import asyncio
import ssl
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import aiohttp
import msgspec
import structlog

from byoc_agents.access.errors import TailnetError
from byoc_agents.app.clock import Clock
from byoc_agents.errors import SendError
from byoc_agents.sinks.http_responses import read_body

PASS_SECONDS = 1.0  # between two checks of which endpoints are needed
CHECK_SECONDS = 30.0  # between two patches that change nothing, and at most between attempts
SILENT_SECONDS = 120.0  # since the broker's last statement; then no endpoint counts as needed
TIMEOUT_SECONDS = 5.0  # for the complete response; an opening waits for it
MAX_RESPONSE_BYTES = 64 * 1024
OK = 200


class DeploymentScaler(Protocol):
    """Sets the number of pods of a Deployment."""

    async def scale(self, deployment: str, replicas: int) -> int:
        """Set the replicas of NAMESPACE/NAME; return how many pods there still are, or already.

        May be called again with the same number. Raises TailnetError; it may have been set then.
        """
        ...


def path_of_scale(deployment: str) -> str:
    """Return the path of the scale of NAMESPACE/NAME in the Kubernetes API."""
    namespace, _, name = deployment.partition("/")
    return f"/apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale"


class _Replicas(msgspec.Struct):
    replicas: int = 0  # Kubernetes omits it if it is 0


class _Scale(msgspec.Struct):
    spec: _Replicas
    status: _Replicas


class KubernetesScaler:
    """Scales by the Kubernetes API, with the token of a service account.

    The files `token` and `ca.crt` are read for each request, because the kubelet replaces them.
    Only this CA is trusted.
    """

    def __init__(
        self,
        url: str,
        directory: Path,
        session: aiohttp.ClientSession,
        *,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        self._url = url.rstrip("/")
        self._directory = directory
        self._session = session
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)

    async def scale(self, deployment: str, replicas: int) -> int:
        """Patch the scale; return the number of pods.

        Raises TailnetError without any text of the response.
        """
        try:
            token, context = await asyncio.to_thread(self._read_credentials)
            async with self._session.patch(
                self._url + path_of_scale(deployment),
                data=b'{"spec":{"replicas":%d}}' % replicas,
                headers={
                    "Authorization": f"Bearer {token}",
                    "Content-Type": "application/merge-patch+json",
                    "Accept": "application/json",
                },
                ssl=context,
                allow_redirects=False,
                timeout=self._timeout,
            ) as response:
                if response.status != OK:
                    raise TailnetError(f"status {response.status}")
                body = await read_body(response, MAX_RESPONSE_BYTES)
            if body is None:
                raise TailnetError(f"more than {MAX_RESPONSE_BYTES} bytes")
            found = msgspec.json.decode(body, type=_Scale)
        except TimeoutError:
            raise TailnetError(f"no response in {self._timeout.total:g} s") from None
        except (aiohttp.ClientError, SendError, OSError) as error:
            raise TailnetError(type(error).__name__) from None
        except (ValueError, RecursionError):
            raise TailnetError("another form: expected a Scale of autoscaling/v1") from None
        if found.spec.replicas != replicas:
            raise TailnetError(f"{found.spec.replicas} replicas: expected {replicas}")
        return found.status.replicas

    def _read_credentials(self) -> tuple[str, ssl.SSLContext | bool]:
        """Return the token, and the context for https. Raises OSError, ValueError."""
        token = (self._directory / "token").read_text().strip()
        if not (token and token.isascii() and token.isprintable()):
            raise TailnetError("the token of the service account is empty or not printable")
        if not self._url.startswith("https:"):
            return token, True
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_verify_locations(cafile=self._directory / "ca.crt")
        return token, context


class _Endpoint:
    """The last response about one Deployment, and the next attempt."""

    def __init__(self, name: str, deployment: str) -> None:
        self.name = name
        self.deployment = deployment
        self.lock = asyncio.Lock()
        self.pods: int | None = None  # of the last response
        self.error = ""
        self.attempted: int | None = None  # the replicas of the last attempt
        self.accepted: int | None = None  # the replicas of the last response
        self.reached = False  # whether there are as many pods; pods that start are not awaited
        self.next_boot_ns = 0  # of the next attempt
        self.wait_seconds = 0.0  # before it
        self.late_boot_ns: int | None = None  # since when it is not as it must be

    @property
    def is_down(self) -> bool:
        """Whether it had no pod at the last response, and nothing has been sent since."""
        return self.attempted == 0 and self.accepted == 0 and self.reached


class Tailnet:
    """The Deployments by the name of their endpoint. The methods belong to one event loop."""

    def __init__(
        self, deployments: Mapping[str, str], scaler: DeploymentScaler, clock: Clock
    ) -> None:
        """`deployments` are endpoint -> NAMESPACE/NAME."""
        self._endpoints = {name: _Endpoint(name, one) for name, one in deployments.items()}
        self._scaler = scaler
        self._clock = clock
        self._needed: frozenset[str] | None = None  # None = the broker has not yet read its grants
        self._stated_boot_ns = clock.boot_ns()
        self._unexpected: list[str] = []
        self.unexpected_count = 0  # how often an endpoint that nobody needs had a pod

    @property
    def pods(self) -> Mapping[str, int]:
        """Endpoint -> its pods at the last response; endpoints without a response are left out."""
        return {e.name: e.pods for e in self._endpoints.values() if e.pods is not None}

    @property
    def errors(self) -> Mapping[str, str]:
        """Endpoint -> why the last attempt failed; "" if it did not."""
        return {e.name: e.error for e in self._endpoints.values()}

    @property
    def late_seconds(self) -> float:
        """For how long an endpoint has not been as it must be; 0 = all are."""
        now_ns = self._clock.boot_ns()
        since = [e.late_boot_ns for e in self._endpoints.values() if e.late_boot_ns is not None]
        return max([0.0, *((now_ns - one) / 1e9 for one in since)])

    def find_up(self, endpoints: Iterable[str]) -> Sequence[str]:
        """Return those that may have a pod; endpoints without a Deployment here are left out."""
        known = [self._endpoints[name] for name in endpoints if name in self._endpoints]
        return [endpoint.name for endpoint in known if not endpoint.is_down]

    def find_unknown(self, endpoints: Iterable[str]) -> Sequence[str]:
        """Return those without a Deployment here, which nothing here can scale."""
        return [name for name in endpoints if name not in self._endpoints]

    def take_unexpected(self) -> Sequence[str]:
        """Return the endpoints that had a pod although nobody needed one, once each time."""
        found, self._unexpected = self._unexpected, []
        return found

    def set_needed(self, endpoints: Collection[str]) -> None:
        """State which endpoints the live grants need. Called in every pass of the broker."""
        self._needed = frozenset(endpoints)
        self._stated_boot_ns = self._clock.boot_ns()

    async def run(self) -> None:
        """Keep the Deployments as they must be, until cancelled. May be called again."""
        while True:
            try:
                await self.reconcile()
            except Exception as error:  # noqa: BLE001  a defect here must not end access control
                structlog.get_logger().error(
                    "access.tailnet_unexpected_error", error=str(error), exc_info=True
                )
            await self._clock.sleep(PASS_SECONDS)

    async def reconcile(self) -> None:
        """Scale each endpoint that is due. A failure is stored, logged and tried again."""
        now_ns = self._clock.boot_ns()
        needed = self._find_needed()
        if needed is None:
            return
        due = []
        for endpoint in self._endpoints.values():
            replicas = int(endpoint.name in needed)
            changed = replicas != endpoint.attempted
            if (changed or not endpoint.reached) and endpoint.late_boot_ns is None:
                endpoint.late_boot_ns = now_ns
            if changed or now_ns >= endpoint.next_boot_ns:
                due.append(endpoint)
        await asyncio.gather(*map(self._scale, due))

    async def open(self, endpoints: Iterable[str]) -> None:
        """Scale needed endpoints to one pod now. Raises TailnetError if one was not scaled.

        Endpoints without a Deployment here are left out: they may always be on.
        """
        wanted = [self._endpoints[name] for name in endpoints if name in self._endpoints]
        await asyncio.gather(*map(self._scale, wanted))
        for endpoint in wanted:
            if endpoint.error:
                raise TailnetError(f"{endpoint.name}: {endpoint.error}")

    def _find_needed(self) -> frozenset[str] | None:
        """Return the needed endpoints; none if the broker has not stated them for a long time."""
        silent_ns = self._clock.boot_ns() - self._stated_boot_ns
        return frozenset() if silent_ns >= SILENT_SECONDS * 1e9 else self._needed

    async def _scale(self, endpoint: _Endpoint) -> None:
        async with endpoint.lock:
            replicas = int(endpoint.name in (self._find_needed() or ()))
            endpoint.attempted = replicas
            try:
                pods = await self._scaler.scale(endpoint.deployment, replicas)
            except TailnetError as error:
                self._fail(endpoint, str(error))
                return
            self._accept(endpoint, replicas, pods)

    def _fail(self, endpoint: _Endpoint, error: str) -> None:
        if error != endpoint.error:  # one line for each change
            structlog.get_logger().error(
                "access.tailnet_not_scaled", deployment=endpoint.deployment, error=error
            )
        endpoint.error, endpoint.reached = error, False
        if endpoint.late_boot_ns is None:
            endpoint.late_boot_ns = self._clock.boot_ns()
        self._try_later(endpoint)

    def _accept(self, endpoint: _Endpoint, replicas: int, pods: int) -> None:
        first = endpoint.accepted is None
        if replicas == 0 and pods and (first or (endpoint.accepted == 0 and endpoint.reached)):
            self.unexpected_count += 1
            self._unexpected.append(endpoint.name)
            structlog.get_logger().error(
                "access.tailnet_unexpected", deployment=endpoint.deployment, pods=pods
            )
        if replicas != endpoint.accepted:
            structlog.get_logger().info(
                "access.tailnet_scaled", deployment=endpoint.deployment, replicas=replicas
            )
        endpoint.error, endpoint.pods, endpoint.accepted = "", pods, replicas
        endpoint.reached = replicas == 1 or pods == 0
        if not endpoint.reached:
            self._try_later(endpoint)
            return
        endpoint.late_boot_ns = None
        endpoint.wait_seconds = 0.0
        endpoint.next_boot_ns = self._clock.boot_ns() + int(CHECK_SECONDS * 1e9)

    def _try_later(self, endpoint: _Endpoint) -> None:
        """Wait 1 s before the next attempt, then twice as long each time, at most 30 s."""
        seconds = min(CHECK_SECONDS, 2 * endpoint.wait_seconds or PASS_SECONDS)
        endpoint.wait_seconds = seconds
        endpoint.next_boot_ns = self._clock.boot_ns() + int(seconds * 1e9)
