"""The settings of the access broker."""

import re
from typing import Annotated, Literal
from urllib.parse import SplitResult, urlsplit

import msgspec

from byoc_agents.access.authority import host_of_service
from byoc_agents.access.clickhouse_sql import BROKER_USER
from byoc_agents.access.errors import AuthorityError
from byoc_agents.app.settings import CoreSettings, Setting, number
from byoc_agents.errors import ConfigError
from byoc_agents.servers import parse_servers
from byoc_agents.sinks.https import check_signing_secret, check_token

_DEPLOYMENT = re.compile(r"([a-z0-9-]+)=([a-z0-9-]+/[a-z0-9.-]+)")


def _servers(text: str) -> dict[str, str]:
    """Return replica name -> URL. Raises ValueError."""
    if "=" not in text.partition(":")[0]:
        raise ValueError("each server needs a name")
    return parse_servers(text, "")


def _split_url(text: str) -> SplitResult:
    """Return the parts of a URL. Raises ValueError without any text of it."""
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        raise ValueError("malformed") from None
    return parts


def _events_url(text: str) -> str:
    if text.startswith("file:///"):
        return text
    return _http_url(text, "not an https or file URL")


def _requests_url(text: str) -> str:
    return _http_url(text, "not an https URL")


def _http_url(text: str, problem: str) -> str:
    parts = _split_url(text)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(problem)
    return text


def _tailnet(text: str) -> dict[str, str]:
    """Return endpoint -> NAMESPACE/NAME of its Deployment. Raises ValueError."""
    found: dict[str, str] = {}
    for pair in text.split(",") if text.strip() else ():
        match = _DEPLOYMENT.fullmatch(pair.strip())
        if not match:
            raise ValueError("expected endpoint=namespace/name,endpoint=namespace/name")
        if match[1] in found:
            raise ValueError(f"{match[1]} is given twice")
        found[match[1]] = match[2]
    return found


def _kubernetes_url(text: str) -> str:
    parts = _split_url(text)
    if (
        parts.scheme not in {"http", "https"}
        or not parts.hostname
        or parts.path not in {"", "/"}
        or parts.query
    ):
        raise ValueError("expected https://host[:port]")
    return text


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The control plane, the customer's files, and the servers."""

    policy_file: Annotated[
        str, Setting("BYOC_ACCESS_POLICY_FILE", "the access policy, YAML; read again if it changes")
    ]
    ca_dir: Annotated[
        str,
        Setting("BYOC_ACCESS_CA_DIR", "a directory with access-ca.crt and access-ca.key"),
    ]
    servers: Annotated[
        dict[str, str],
        Setting("BYOC_ACCESS_SERVERS", "name=url,name=url: ClickHouse's replicas", parse=_servers),
    ]
    password: Annotated[
        str,
        Setting(
            "BYOC_ACCESS_PASSWORD",
            f"the password of {BROKER_USER} in ClickHouse",
            secret=True,
        ),
    ]
    events_url: Annotated[
        str,
        Setting(
            "BYOC_ACCESS_EVENTS_URL",
            "https://host[:port]/path of the control plane, or file:///directory",
            parse=_events_url,
        ),
    ]
    requests_url: Annotated[
        str,
        Setting(
            "BYOC_ACCESS_REQUESTS_URL",
            "https://host[:port]/path to poll for requests; empty = requests are files only",
            parse=_requests_url,
        ),
    ] = ""
    token: Annotated[
        str,
        Setting(
            "BYOC_ACCESS_TOKEN",
            "the control plane's bearer token, with an https URL",
            secret=True,
            parse=check_token,
        ),
    ] = ""
    token_file: Annotated[
        str, Setting("BYOC_ACCESS_TOKEN_FILE", "a file with the token, reloaded when it changes")
    ] = ""
    signing_secret: Annotated[
        str,
        Setting(
            "BYOC_ACCESS_SIGNING_SECRET",
            "whsec_ and 24 to 64 bytes in base64, with an https URL for events; two, separated by"
            " a space, during a rotation",
            secret=True,
            parse=check_signing_secret,
        ),
    ] = ""
    signing_secret_file: Annotated[
        str,
        Setting(
            "BYOC_ACCESS_SIGNING_SECRET_FILE", "a file with the secret, reloaded when it changes"
        ),
    ] = ""
    kill_switch_file: Annotated[
        str,
        Setting(
            "BYOC_ACCESS_KILL_SWITCH_FILE",
            "a mounted file: access is possible only while its content is `off`",
        ),
    ] = ""
    poll_seconds: Annotated[
        float,
        Setting(
            "BYOC_ACCESS_POLL_SECONDS", "5 to 3600 seconds between polls", parse=number(5, 3600)
        ),
    ] = 30.0
    timeout_seconds: Annotated[
        float,
        Setting(
            "BYOC_ACCESS_TIMEOUT_SECONDS",
            "0.1 to 300 seconds for the complete response of the control plane",
            parse=number(0.1, 300),
        ),
    ] = 30.0
    storage: Annotated[
        Literal["default", "memory"],
        Setting(
            "BYOC_ACCESS_STORAGE",
            "default, or memory if the servers have a <memory/> user directory: its users end with"
            " the server",
        ),
    ] = "default"
    max_skew_seconds: Annotated[
        float,
        Setting(
            "BYOC_ACCESS_MAX_SKEW_SECONDS",
            "1 to 300 seconds by which the clock of a server may differ",
            parse=number(1, 300),
        ),
    ] = 30.0
    collect_seconds: Annotated[
        float,
        Setting(
            "BYOC_ACCESS_COLLECT_SECONDS",
            "60 to 86400 seconds after the end in which the servers' logs are read",
            parse=number(60, 86400),
        ),
    ] = 3600.0
    close_on_stop: Annotated[
        bool,
        Setting(
            "BYOC_ACCESS_CLOSE_ON_STOP",
            "true to end all access when the broker stops; a rolling update then ends it too",
        ),
    ] = False

    tailnet: Annotated[
        dict[str, str],
        Setting(
            "BYOC_ACCESS_TAILNET",
            "endpoint=namespace/name,...: Deployments of the tailnet, scaled to 1 while a grant for"
            " the endpoint is live, else to 0; empty = none",
            parse=_tailnet,
        ),
    ] = msgspec.field(default_factory=dict)
    kubernetes_url: Annotated[
        str,
        Setting(
            "BYOC_ACCESS_KUBERNETES_URL",
            "https://host[:port] of the Kubernetes API, with BYOC_ACCESS_TAILNET",
            parse=_kubernetes_url,
        ),
    ] = "https://kubernetes.default.svc"
    kubernetes_dir: Annotated[
        str,
        Setting(
            "BYOC_ACCESS_KUBERNETES_DIR",
            "a directory with the service account's token and the cluster's ca.crt",
        ),
    ] = "/var/run/secrets/kubernetes.io/serviceaccount"

    @property
    def sends_to_directory(self) -> bool:
        """Whether the events go into a directory."""
        return self.events_url.startswith("file:")

    def __post_init__(self) -> None:
        """Check settings that depend on each other. Raises ValueError."""
        if not self.sends_to_directory and not self.signing_secret:
            expected = "expected whsec_ and 24 to 64 bytes in base64"
            raise ValueError(
                f"BYOC_ACCESS_SIGNING_SECRET: is required with an https URL: {expected}"
            )
        if not self.token and (self.requests_url or not self.sends_to_directory):
            expected = "expected the control plane's bearer token"
            raise ValueError(f"BYOC_ACCESS_TOKEN: is required with an https URL: {expected}")


def check_service(core: CoreSettings) -> None:
    """Raise ConfigError if the service cannot be part of a certificate's name."""
    try:
        host_of_service(core.service_id)
    except AuthorityError as error:
        raise ConfigError([f"BYOC_SERVICE_ID: {error}"]) from error
