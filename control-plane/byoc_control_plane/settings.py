"""The settings of the control plane, read from the environment."""

import argparse
from collections.abc import Callable, Mapping
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec

from byoc_agents.app.settings import Setting, host_and_port, level, number, unknown
from byoc_agents.billing.objects import DEFAULT_PREFIX
from byoc_agents.errors import ConfigError
from byoc_control_plane.credentials import parse_signing_secrets, parse_tokens, split_lines

Tables = Literal["single", "replicated", "shared", "existing"]
Senders = frozenset[tuple[str, str]]  # (organization, unique id of its role or user)
# Of a file with a line per customer: some 200,000 customers, which are parsed in about a second.
MAX_REGISTRY_BYTES = 16 * 1024**2


def _store_url(text: str) -> str:
    if not text.startswith(("http://", "https://", "chdb:/")):
        raise ValueError("another scheme")
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:  # its text repeats a part of the URL
        raise ValueError("malformed") from None
    if parts.scheme != "chdb" and not parts.hostname:
        raise ValueError("no host")
    return text


def _tokens(text: str) -> str:
    parse_tokens(text)
    return text


def _signing_secrets(text: str) -> str:
    parse_signing_secrets(text)
    return text


def parse_senders(text: str) -> Senders:
    """Return (organization, sender) of each `ORGANIZATION:SENDER`. Raises ValueError."""
    pairs = frozenset(split_lines(text))
    if not all(organization and sender for organization, sender in pairs):
        raise ValueError("not ORGANIZATION:SENDER")
    return pairs


def _read_tokens(text: str) -> str:
    if not (text.isascii() and text.replace("\n", " ").isprintable() and text.split()):
        raise ValueError("other characters")
    return text


def _senders(text: str) -> str:
    parse_senders(text)
    return text


def _loops(text: str) -> int:
    return int(number(1, 8)(text))


def _visibility(text: str) -> int:
    return int(number(1, 3600)(text))


def _close(text: str) -> int:
    return int(number(0, 86_400)(text))


def _prefix(text: str) -> str:
    return f"{text.rstrip('/')}/" if text.rstrip("/") else ""


def checked_argument(parse: Callable[[str], str]) -> Callable[[str], str]:
    """Return a type of argparse that keeps a text which `parse` accepts."""

    def check(text: str) -> str:
        try:
            parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"invalid value {text!r}: {error}") from error
        return text

    return check


class ProcessSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of every process."""

    listen: Annotated[
        tuple[str, int],
        Setting("BYOC_PLANE_LISTEN", "host:port of /metrics and /healthz", parse=host_and_port),
    ] = ("127.0.0.1", 9465)
    log_level: Annotated[
        str, Setting("BYOC_PLANE_LOG_LEVEL", "debug, info, warning or error", parse=level)
    ] = "info"


class PlaneSettings(ProcessSettings, frozen=True, kw_only=True):
    """Settings of every process that receives."""

    store_url: Annotated[
        str,
        Setting(
            "BYOC_PLANE_STORE_URL",
            "http[s]://[user@]host:port/?database=name of ClickHouse, or chdb:/directory",
            parse=_store_url,
        ),
    ]
    store_password: Annotated[
        str, Setting("BYOC_PLANE_STORE_PASSWORD", "the password of ClickHouse's user", secret=True)
    ] = ""
    tables: Annotated[
        Tables,
        Setting(
            "BYOC_PLANE_TABLES",
            "single, replicated or shared: create what is missing at the start; or existing",
        ),
    ] = "single"
    name: Annotated[
        str, Setting("BYOC_PLANE_NAME", "the name of this process, the same after a restart")
    ] = ""
    read_token: Annotated[
        str,
        Setting(
            "BYOC_PLANE_READ_TOKEN",
            "who may read /fleet: tokens of printable ASCII, one per line; not set: only clients"
            " on this machine",
            secret=True,
            parse=_read_tokens,
        ),
    ] = ""
    read_token_file: Annotated[
        str,
        Setting("BYOC_PLANE_READ_TOKEN_FILE", "a file with the tokens, reloaded when it changes"),
    ] = ""


class ReceiverSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of the receiver."""

    token: Annotated[
        str,
        Setting(
            "BYOC_PLANE_TOKEN",
            "the bearer tokens of the forwarders, one per line: TOKEN, or ORGANIZATION:TOKEN",
            secret=True,
            parse=_tokens,
            max_bytes=MAX_REGISTRY_BYTES,
        ),
    ]
    signing_secret: Annotated[
        str,
        Setting(
            "BYOC_PLANE_SIGNING_SECRET",
            "one per line: whsec_ and 24 to 64 bytes in base64, or ORGANIZATION: and that",
            secret=True,
            parse=_signing_secrets,
            max_bytes=MAX_REGISTRY_BYTES,
        ),
    ]
    token_file: Annotated[
        str, Setting("BYOC_PLANE_TOKEN_FILE", "a file with the token, reloaded when it changes")
    ] = ""
    signing_secret_file: Annotated[
        str,
        Setting(
            "BYOC_PLANE_SIGNING_SECRET_FILE", "a file with the secret, reloaded when it changes"
        ),
    ] = ""
    listen: Annotated[
        tuple[str, int],
        Setting("BYOC_PLANE_EVENTS_LISTEN", "host:port of the receiver", parse=host_and_port),
    ] = ("127.0.0.1", 8443)
    tls_cert_file: Annotated[
        str, Setting("BYOC_PLANE_TLS_CERT_FILE", "the certificate chain of the receiver, PEM")
    ] = ""
    tls_key_file: Annotated[
        str, Setting("BYOC_PLANE_TLS_KEY_FILE", "the private key of the certificate, PEM")
    ] = ""

    requests_dir: Annotated[
        str,
        Setting(
            "BYOC_PLANE_REQUESTS_DIR",
            "a directory with signed requests for access, *.dsse.json, for the brokers; not set:"
            " none are listed",
        ),
    ] = ""

    def __post_init__(self) -> None:
        """Raise ValueError if one of the two files of TLS is missing."""
        if bool(self.tls_cert_file) != bool(self.tls_key_file):
            raise ValueError(
                "BYOC_PLANE_TLS_CERT_FILE: expected together with BYOC_PLANE_TLS_KEY_FILE"
            )


class ConsumerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of the consumer."""

    queue_url: Annotated[str, Setting("BYOC_PLANE_QUEUE_URL", "https://... of the SQS FIFO queue")]
    region: Annotated[
        str, Setting("BYOC_PLANE_REGION", "the region of a queue whose URL has none")
    ] = "us-east-1"
    senders: Annotated[
        str,
        Setting(
            "BYOC_PLANE_SENDERS",
            "who may send for whom, one per line: ORGANIZATION:ID, the unique id of a role"
            " (AROA...) or of a user; not set: every sender for every organization",
            secret=True,  # so that a file may have it, as the receiver's credentials
            parse=_senders,
            max_bytes=MAX_REGISTRY_BYTES,
        ),
    ] = ""
    senders_file: Annotated[
        str, Setting("BYOC_PLANE_SENDERS_FILE", "a file with the senders, reloaded on a change")
    ] = ""
    loops: Annotated[
        int, Setting("BYOC_PLANE_LOOPS", "requests to the queue at a time, 1 to 8", parse=_loops)
    ] = 4
    visibility_seconds: Annotated[
        int,
        Setting(
            "BYOC_PLANE_VISIBILITY_SECONDS",
            "1 to 3600: after so long a message of a consumer that was killed is delivered again",
            parse=_visibility,
        ),
    ] = 30


class CompactorSettings(ProcessSettings, frozen=True, kw_only=True):
    """Settings of the compactor."""

    bucket: Annotated[
        str, Setting("BYOC_PLANE_BUCKET", "the name of the S3 bucket, or file:///DIRECTORY")
    ]
    prefix: Annotated[
        str,
        Setting("BYOC_PLANE_PREFIX", "the BYOC_BILLING_PREFIX of the scrapers", parse=_prefix),
    ] = DEFAULT_PREFIX
    region: Annotated[str, Setting("BYOC_PLANE_REGION", "the region of the bucket")] = "us-east-1"
    close_seconds: Annotated[
        int,
        Setting(
            "BYOC_PLANE_CLOSE_SECONDS",
            "0 to 86400: an hour is archived so long after its end",
            parse=_close,
        ),
    ] = 7200


PARTS: dict[str, type[msgspec.Struct]] = {
    "receiver": ReceiverSettings,
    "consumer": ConsumerSettings,
}
"""Part of `run` -> its settings."""


def refuse_unknown(environ: Mapping[str, str]) -> None:
    """Raise ConfigError for a variable of the control plane that no command has."""
    own = {name: text for name, text in environ.items() if name.startswith("BYOC_PLANE_")}
    if mistakes := unknown([PlaneSettings, CompactorSettings, *PARTS.values()], own, {}):
        raise ConfigError(mistakes)
