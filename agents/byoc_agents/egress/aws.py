"""botocore behind the gate: no redirects, no proxies of the environment, no node role, no retries.

aiobotocore's own HTTP session follows redirects and resends the body with its session token. It is
replaced here by a session that returns every 3xx as an ordinary response.
"""

import io
import re
from collections.abc import Callable, Mapping
from typing import Any, Self

import aiohttp
from aiobotocore.awsrequest import AioAWSResponse
from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession
from botocore import exceptions
from botocore.credentials import RefreshableCredentials
from multidict import CIMultiDict
from yarl import URL

from byoc_agents.app.files import NotReadableError
from byoc_agents.egress.aws_files import AwsFiles, file_paths, use_files
from byoc_agents.egress.gate import USER_AGENT, Gate, refusal_in
from byoc_agents.errors import ConfigError, Reason, SendError

CONNECT_SECONDS = 5.0
READ_SECONDS = 20.0  # between two reads; S3 itself gives up on an idle request after 20 s

# The allowed sources of an identity, in botocore's order. Not the node's role (iam-role), and no
# source that starts another program or needs a person (custom-process, sso, login).
PROVIDERS = frozenset(
    {
        "env",
        "assume-role-with-web-identity",
        "container-role",
        "shared-credentials-file",
        "config-file",
    }
)
FILES = "byoc_files"  # the session's component with the files of its providers
KEY_FILES = frozenset({"shared-credentials-file", "config-file"})
NO_CREDENTIALS = (
    "no AWS credentials: expected IRSA, Pod Identity or keys; the node's role is not used"
)

NOT_ASCII = "AWS credentials: a key or a token holds a character that is not ASCII"


def aws_session(gate: Gate, region: str) -> AioSession:
    """Return the botocore session that all clients of the process share.

    Clients that botocore makes by itself (STS for IRSA) go through the gate as well. Only the
    container-credential fetcher cannot be configured; `enforce_process` covers it. Raises
    ConfigError if AWS_PROFILE names an unknown profile.
    """
    session = AioSession()
    session.user_agent_extra = ""  # aiobotocore puts botocore's version there
    session.set_config_variable("region", region)
    session.set_default_client_config(aws_config(gate))
    session.register("before-call.s3", _stay_in_region)
    try:
        providers = session.get_component("credential_provider")
    except exceptions.ProfileNotFound as error:
        raise ConfigError(
            [f"AWS_PROFILE: {error}: expected a profile of the shared files"]
        ) from error
    for method in [provider.METHOD for provider in providers.providers]:
        if method not in PROVIDERS:
            providers.remove(method)
    files = AwsFiles(file_paths(session))
    use_files(providers, files)
    session.register_component(FILES, files)
    return session


def aws_config(gate: Gate, **options: Any) -> AioConfig:
    """Return a client configuration bound to the gate, with one attempt and the time-outs above.

    The shipper owns the retries. `options` override these values (`s3=`, `read_timeout=`).
    """
    defaults: dict[str, Any] = {
        "connector_args": gate.connector_args(),
        "http_session_cls": http_session_class(gate),
        "user_agent": USER_AGENT["User-Agent"],  # instead of the kernel's release and a variable
        "defaults_mode": "legacy",  # `auto` asks the metadata service for the region
        "retries": {"total_max_attempts": 1, "mode": "standard"},
        # Never from a variable or a file: `aws_settings.aws_mistakes` rejects those.
        "use_fips_endpoint": False,
        "use_dualstack_endpoint": False,
        "connect_timeout": CONNECT_SECONDS,
        "read_timeout": READ_SECONDS,
        "max_pool_connections": 2,
    }
    return AioConfig(**(defaults | options))


async def fetch_credentials(session: AioSession) -> None:
    """Fetch credentials if there are no fresh ones. Raises SendError.

    Called before a request, so that a failing STS or agent is never mistaken for a failing
    receiver. Throttling and failures of STS are temporary and are retried; any other failure is
    held as CREDENTIALS, with the error code of STS.
    """
    try:
        if _needs_files(session):
            await session.get_component(FILES).read()
        credentials = await session.get_credentials()
        if credentials is not None:
            await _reload_keys(session, credentials)
            frozen = await credentials.get_frozen_credentials()
            if all(text.isascii() for text in frozen[:3] if text):
                return
            raise SendError(Reason.CREDENTIALS, NOT_ASCII)
    except exceptions.ClientError as error:
        raise _sts_error(error.response) from error
    except SendError:
        raise
    except Exception as error:  # any provider, any library below it; retried later
        if refused := refusal_in(error):
            raise refused from error
        raise SendError(Reason.CREDENTIALS, f"AWS credentials: {_cause(error)}") from error
    raise SendError(Reason.CREDENTIALS, NO_CREDENTIALS)


def _needs_files(session: AioSession) -> bool:
    """Return whether the next request may read a file of keys or a token."""
    credentials = session._credentials  # noqa: SLF001  cache of get_credentials
    if credentials is None or credentials.method in KEY_FILES:
        return True
    return isinstance(credentials, RefreshableCredentials) and credentials.refresh_needed()


STS_RETRIED = {
    "Throttling": Reason.THROTTLED,
    "ThrottlingException": Reason.THROTTLED,
    "RequestLimitExceeded": Reason.THROTTLED,
    "IDPCommunicationError": Reason.SERVER_ERROR,  # STS could not reach the cluster's issuer
    "InternalFailure": Reason.SERVER_ERROR,
    "ServiceUnavailable": Reason.SERVER_ERROR,
}


def _sts_error(response: Mapping[str, Any]) -> SendError:
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    code = re.sub(r"[^A-Za-z0-9._-]", "?", str(response.get("Error", {}).get("Code", "")))[:64]
    failing = Reason.SERVER_ERROR if status >= 500 else Reason.CREDENTIALS  # noqa: PLR2004
    return SendError(
        STS_RETRIED.get(code, failing), f"AWS credentials: STS answered {status} {code}"
    )


def _cause(error: Exception) -> str:
    """Return the error's class, and the message of OpenSSL, the proxy or a file; no secret."""
    cause = getattr(error, "kwargs", {}).get("error")
    below: BaseException | None = cause if isinstance(cause, BaseException) else error
    while below is not None:
        if isinstance(below, NotReadableError):
            return str(below)
        if isinstance(below, aiohttp.ClientHttpProxyError):
            return f"{type(error).__name__}: the proxy answered {below.status}"
        certificate = getattr(below, "certificate_error", below)
        if message := getattr(certificate, "verify_message", ""):
            return f"{type(error).__name__}: TLS: {message}"
        below = below.__cause__ or below.__context__
    return type(error).__name__


REFRESH_SECONDS = 60.0  # minimum between two refreshes after refused keys


class KeyRefresh:
    """Forgets the session's keys after a receiver refused them, so that new ones are fetched.

    Keys can become invalid before they expire: after a role was created again, sessions were
    revoked, or a clock was set back. `monotonic` returns seconds.
    """

    def __init__(self, session: AioSession, monotonic: Callable[[], float]) -> None:
        self._session = session
        self._monotonic = monotonic
        self._last: float | None = None

    def forget(self) -> bool:
        """Forget the keys, at most once in REFRESH_SECONDS. Return whether they were forgotten."""
        now = self._monotonic()
        if self._last is not None and now - self._last < REFRESH_SECONDS:
            return False
        credentials = self._session._credentials  # noqa: SLF001  cache of get_credentials
        if credentials is None or credentials.method in {"env", "explicit"}:
            return False  # these cannot change while the process runs
        self._last = now
        self._session._credentials = None  # noqa: SLF001
        return True


async def _reload_keys(session: AioSession, credentials: Any) -> None:
    """Load the current keys from their file, which botocore reads only once.

    Changes the object in place, since clients hold it. A partial or missing file, and one that
    does not answer, leaves the current credentials unchanged.
    """
    if credentials.method not in KEY_FILES:
        return
    provider = session.get_component("credential_provider").get_provider(credentials.method)
    try:
        fresh = await provider.load()
    except (exceptions.BotoCoreError, OSError, ValueError):
        return
    if fresh is not None:
        for name in ("access_key", "secret_key", "token"):
            setattr(credentials, name, getattr(fresh, name))


def provider_name(session: AioSession) -> str:
    """Return the provider of the process's AWS identity, for /status; "" before the first request.

    botocore's names: env, assume-role-with-web-identity (IRSA), container-role (Pod Identity),
    shared-credentials-file, config-file. Makes no request and never returns a key.
    """
    credentials = session._credentials  # noqa: SLF001  cache of get_credentials
    return str(credentials.method) if credentials is not None else ""


def http_session_class(gate: Gate) -> type["AwsHttpSession"]:
    """Return the session class for AioConfig, bound to the gate."""

    class Bound(AwsHttpSession):
        def __init__(self, timeout: Any = None, **_ignored: Any) -> None:
            super().__init__(gate, timeout)

    return Bound


class AwsHttpSession:
    """An HTTP session for aiobotocore: `async with`, `send`, `close`.

    The gate provides TLS trust, proxies and the connection pool. Other options that botocore
    passes (verify, proxies, client certificates) are ignored.
    """

    def __init__(self, gate: Gate, timeout: Any) -> None:
        connect, read = timeout if isinstance(timeout, tuple | list) else (timeout, timeout)
        self._gate = gate
        self._timeout = aiohttp.ClientTimeout(sock_connect=connect, sock_read=read)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Return the session; the first request opens the connection pool."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the pool."""
        await self.close()

    async def close(self) -> None:
        """Close the pool; may be called twice."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def send(self, request: Any) -> AioAWSResponse:
        """Send a prepared request once. Raises botocore's errors, or EgressRefusedError."""
        try:
            return await self._send(request)
        except (aiohttp.ClientError, OSError) as error:  # OSError: TimeoutError too
            raise _translate(error, request) from error
        except ValueError as error:  # from aiohttp: a control character in a header
            raise SendError(
                Reason.CREDENTIALS, "AWS credentials: a control character in a key or a token"
            ) from error

    async def _send(self, request: Any) -> AioAWSResponse:
        response = await self._open().request(
            request.method,
            URL(request.url, encoded=True),
            headers=_headers(request),
            data=_sent_once(request.body),
            allow_redirects=False,
        )
        headers = {
            key.decode("latin-1").lower(): value.decode("latin-1")
            for key, value in response.raw_headers
        }
        result = AioAWSResponse(str(response.url), response.status, headers, response)
        if not request.stream_output:
            await result.content
        return result

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = self._gate.session(
                timeout=self._timeout, skip_auto_headers=["Content-Type"], auto_decompress=False
            )
        return self._session


class _OnceBody(aiohttp.BytesPayload):
    """A body that aiohttp does not send a second time.

    After a closed connection aiohttp repeats a PUT by itself, unless the body reports that it was
    read to its end. The repetition would be a transmission that the ledger does not have.
    """

    @property
    def consumed(self) -> bool:
        """True: it cannot be sent again."""
        return True


def _sent_once(body: Any) -> Any:
    """Return the body of a prepared request (bytes, or a BytesIO for S3) as one sent once."""
    content = body.getvalue() if isinstance(body, io.BytesIO) else body
    return _OnceBody(content) if isinstance(content, bytes) and content else body


def _headers(request: Any) -> CIMultiDict[str]:
    headers: CIMultiDict[str] = CIMultiDict()
    for key, value in request.headers.items():
        headers[key] = value.decode("latin-1") if isinstance(value, bytes) else str(value)
    headers["Accept-Encoding"] = "identity"  # botocore issue 1255
    # aiohttp waits for the 100 without a limit, and some stores and proxies never send one. The
    # bodies are small, so waiting saves nothing. The header is not part of the signature.
    headers.popall("Expect", None)
    return headers


# aiohttp's error -> botocore's error, first match wins; as in aiobotocore's own session.
TRANSLATIONS: tuple[tuple[type[Exception], Any], ...] = (
    (aiohttp.ConnectionTimeoutError, exceptions.ConnectTimeoutError),
    (aiohttp.ServerTimeoutError, exceptions.ReadTimeoutError),
    (aiohttp.ClientSSLError, exceptions.SSLError),
    (aiohttp.ClientHttpProxyError, exceptions.ProxyConnectionError),
    (aiohttp.ClientProxyConnectionError, exceptions.ProxyConnectionError),
    (aiohttp.ServerDisconnectedError, exceptions.ConnectionClosedError),
    (aiohttp.ClientPayloadError, exceptions.ConnectionClosedError),
    (aiohttp.ClientConnectionError, exceptions.EndpointConnectionError),
    (aiohttp.ClientError, exceptions.HTTPClientError),  # a response that is not HTTP
    (TimeoutError, exceptions.ReadTimeoutError),
    (OSError, exceptions.EndpointConnectionError),
)


def _translate(error: Exception, request: Any) -> Exception:
    kind: type[Any] = next(theirs for ours, theirs in TRANSLATIONS if isinstance(error, ours))
    host = URL(request.url).origin()  # without the path: the text is logged
    translated: Exception = kind(endpoint_url=host, proxy_url="the proxy", error=error)
    return translated


def _stay_in_region(context: dict[str, Any], **_: Any) -> None:
    """Mark the request as redirected, so that botocore's region redirector does nothing."""
    context.setdefault("s3_redirect", {})["redirected"] = True
