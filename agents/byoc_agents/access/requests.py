"""Polls the control plane for envelopes by HTTPS GET, so that the broker needs no listener.

The response is a JSON object `{"envelopes": [...]}` of at most MAX_RESPONSE_BYTES with the DSSE
envelopes of the vendor that are not settled yet. It is untrusted until a pinned key has verified
it. With an `ETag`, a response that has not changed is not sent again (304).

Permissions: the bearer token. Redirects are never followed.
"""

import random
from collections.abc import Callable
from typing import Annotated, NamedTuple

import aiohttp
import msgspec
import structlog

from byoc_agents.app.clock import Clock
from byoc_agents.errors import Reason, SendError
from byoc_agents.sinks.http_responses import (
    proxy_error,
    read_body,
    retry_after_seconds,
    tls_error,
    unreadable_response,
)
from byoc_agents.sinks.https import is_page, reason_of

MAX_RESPONSE_BYTES = 256 * 1024
MAX_ENVELOPES = 64  # as the broker's MAX_PENDING
MAX_ETAG_CHARACTERS = 256
MAX_WAIT_SECONDS = 300.0  # between two polls after failures, whatever the server asks
NOT_MODIFIED, OK = 304, 200


class PolledEnvelopes(NamedTuple):
    """One response of the control plane."""

    envelopes: tuple[bytes, ...]
    etag: str  # "" = the server sent none


class _Body(msgspec.Struct, frozen=True):
    envelopes: Annotated[tuple[msgspec.Raw, ...], msgspec.Meta(max_length=MAX_ENVELOPES)]


class RequestPoller:
    """Holds the last response until the broker has taken it. `run` and `take` are of one loop."""

    def __init__(  # noqa: PLR0913  the URL, the session, the token, the clock and two times
        self,
        url: str,
        session: aiohttp.ClientSession,
        *,
        token: Callable[[], str],
        clock: Clock,
        poll_seconds: float,
        timeout_seconds: float,
        rng: random.Random | None = None,
    ) -> None:
        """Poll through `session`; the token is read again for each attempt."""
        self._url = url
        self._session = session
        self._token = token
        self._clock = clock
        self._poll_seconds = poll_seconds
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        self._rng = rng or random.Random()  # noqa: S311  jitter, no secret
        self._waiting: PolledEnvelopes | None = None
        self._settled = ""  # the ETag of the response that the broker has dealt with completely
        self._failures = 0  # since the last response
        self.last_success_ms = 0  # wall time; 0 = never
        self._contact_boot_ns = 0  # the same moment, by the clock since boot
        self.last_error = ""

    def __repr__(self) -> str:
        """Return the URL, without its query."""
        return f"RequestPoller({self._url.partition('?')[0]})"

    async def run(self) -> None:
        """Poll until cancelled. No failure ends it: the broker's passes must go on."""
        while True:
            wait = self._poll_seconds
            try:
                await self.poll()
            except SendError as error:
                wait = self._wait_after(error)
            except Exception as error:  # noqa: BLE001  a defect here must not end access control
                self._failures += 1
                self.last_error = type(error).__name__
                structlog.get_logger().error(
                    "access.poll_unexpected", error=str(error), exc_info=True
                )
            await self._clock.sleep(wait)

    async def poll(self) -> None:
        """Ask once. Raises SendError."""
        try:
            polled = await self._get()
        except SendError as error:
            self._failures += 1
            if self.last_error != str(error):  # one line for each change
                structlog.get_logger().warning("access.poll_failed", error=str(error))
            self.last_error = str(error)
            raise
        self._failures, self.last_error = 0, ""
        self.last_success_ms = self._clock.wall_ns() // 1_000_000
        self._contact_boot_ns = self._clock.boot_ns()
        if polled is not None:
            self._waiting = polled

    def read_contact(self) -> int:
        """Return when the control plane last answered, by the clock since boot; 0 = never."""
        return self._contact_boot_ns

    def take(self) -> PolledEnvelopes | None:
        """Return the last response, or None. The same one again until `settle` is called."""
        return self._waiting

    def settle(self, polled: PolledEnvelopes) -> None:
        """Drop a response whose envelopes the broker has dealt with."""
        self._settled = polled.etag
        if self._waiting is polled:
            self._waiting = None

    def ask_for_all(self) -> None:
        """Let the next poll ask for an unchanged response too: a new policy may accept it."""
        self._settled = ""

    def _wait_after(self, error: SendError) -> float:
        """Return the seconds until the next attempt: exponential with full jitter."""
        longest = min(MAX_WAIT_SECONDS, self._poll_seconds * 2 ** min(self._failures, 10))
        jitter = self._rng.uniform(self._poll_seconds, max(self._poll_seconds, longest))
        return max(jitter, min(error.retry_after_seconds or 0.0, MAX_WAIT_SECONDS))

    async def _get(self) -> PolledEnvelopes | None:
        """Return the response, or None if it is that of last time. Raises SendError."""
        try:
            async with self._session.get(
                self._url, headers=self._headers(), allow_redirects=False, timeout=self._timeout
            ) as response:
                if response.status == NOT_MODIFIED and self._settled:
                    return None
                if response.status != OK:
                    wait = retry_after_seconds(
                        response.headers.get("Retry-After", ""),
                        self._clock.wall_ns(),
                        response.headers.get("Date", ""),
                    )
                    raise SendError(
                        reason_of(response.status),
                        f"status {response.status}",
                        retry_after_seconds=wait,
                    )
                body = await read_body(response, MAX_RESPONSE_BYTES)
                if body is None:
                    detail = f"more than {MAX_RESPONSE_BYTES} bytes"
                    raise SendError(Reason.BAD_RESPONSE, detail)
                return _decode(response.content_type, body, response.headers.get("ETag", ""))
        except TimeoutError:
            detail = f"no response in {self._timeout.total:g} s"
            raise SendError(Reason.TIMEOUT, detail) from None
        except aiohttp.ClientHttpProxyError as error:
            raise proxy_error(error) from None
        except aiohttp.ClientResponseError as error:
            raise unreadable_response(error) from None
        except aiohttp.ClientSSLError as error:
            raise tls_error(error) from None
        except (aiohttp.ClientError, OSError) as error:
            raise SendError(Reason.CONNECTION, type(error).__name__) from None

    def _headers(self) -> dict[str, str]:
        token = self._token()
        if not (token.isascii() and token.isprintable()):
            raise SendError(
                Reason.CREDENTIALS, "the token has characters that a header cannot contain"
            )
        headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
        return headers | ({"If-None-Match": self._settled} if self._settled else {})


def _decode(content_type: str, body: bytes, etag: str) -> PolledEnvelopes:
    expected = "expected a JSON object with `envelopes`"
    if content_type != "application/json" or is_page(content_type, body):
        raise SendError(Reason.BAD_RESPONSE, f"not application/json: {expected}")
    try:
        found = msgspec.json.decode(body, type=_Body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise SendError(Reason.BAD_RESPONSE, f"another form: {expected}") from None
    usable = len(etag) <= MAX_ETAG_CHARACTERS and etag.isascii() and etag.isprintable()
    return PolledEnvelopes(tuple(map(bytes, found.envelopes)), etag if usable else "")
