"""The settings of the alert forwarder."""

import re
from typing import Annotated, Literal

import msgspec

from byoc_agents.alerts import budget, matchers
from byoc_agents.app.heartbeat import MAX_IDLE_SECONDS, HeartbeatIntervals
from byoc_agents.app.settings import Setting, bearer_tokens, host_and_port, number, size
from byoc_agents.sinks.https import check_signing_secret, check_token

MAX_NAMES = 32  # of labels, and of annotations: bounds an event's size
LABELS = ("alertname", "severity", "cluster", "namespace", "pod", "replica", "reason")


SHIPPED_RULES = (  # of the chart, except the Watchdog and those about access
    "ClickHouseDown",
    "ClickHouseReadonlyReplica",
    "ClickHouseKeeperSessionExpired",
    "ClickHouseReplicationLag",
    "ClickHouseTooManyParts",
    "ClickHouseInsertsDelayed",
    "ClickHouseInsertsRejected",
    "ClickHouseDataLoss",
    "ClickHouseDetachedParts",
    "ClickHouseDiskLow",
    "ClickHouseMemoryPressure",
    "ByocAlertsBudgetLow",
    "ByocAlertsBudgetSpent",
    "ByocDaemonDown",
    "ByocBacklogOld",
    "ByocBacklogVeryOld",
    "ByocDeadLetters",
    "ByocEgressRefused",
    "ByocNoSuccess",
    "ByocNeverSucceeded",
    "ByocSpoolFailing",
    "ByocSpoolCorrupted",
    "ByocLedgerMismatch",
    "ByocBillingGap",
    "ByocTaskFailed",
)
ANY_NAMESPACE = "*"
MAX_NAME_CHARACTERS = 128
MAX_FINGERPRINT_SECRETS = 2
MIN_FINGERPRINT_SECRET = 32  # characters: at least 128 bits in base64 or hexadecimal
QUOTED_NAME = r'"(?:[^"\\]|\\["\\])*"'
PLAIN_NAME = r"""[^\s,"'`{}=!~\\]+"""  # as in a matcher without quotes
NAME = re.compile(rf"\s*({QUOTED_NAME}|{PLAIN_NAME}|)\s*(?:,|$)")


def _names(text: str) -> tuple[str, ...]:
    """Return the names of a comma-separated list. In double quotes, any UTF-8 name is accepted.

    Raises ValueError with the text that is not a label name.
    """
    names: list[str] = []
    at = 0
    while at < len(text):
        found = NAME.match(text, at)
        if found is None:
            wrong = text[at:].split(",", maxsplit=1)[0].strip()
            reason = f"{wrong!r} is not a label name: put it in double quotes"
            raise ValueError(reason)
        at = found.end()
        name = found[1]
        if name.startswith('"'):
            name = re.sub(r"\\(.)", r"\1", name[1:-1])
        elif not name:
            continue  # nothing between two commas
        if not 1 <= len(name) <= MAX_NAME_CHARACTERS or not name.isprintable():
            bounds = f"1 to {MAX_NAME_CHARACTERS} printable characters"
            reason = f"{name!r} is not a label name: expected {bounds}"
            raise ValueError(reason)
        names.append(name)
    if len(names) > MAX_NAMES:
        reason = f"{len(names)} names: expected at most {MAX_NAMES}"
        raise ValueError(reason)
    return tuple(dict.fromkeys(names))


def _namespace(text: str) -> str:
    if text != ANY_NAMESPACE and not re.fullmatch(
        r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", text
    ):  # RFC 1123 label
        raise ValueError("not the name of a namespace")
    return text


def _daily_bytes(text: str) -> int:
    found = size(text)
    if found < budget.MIN_BYTES:
        raise ValueError("too small for one notification")
    return found


def _matchers(text: str) -> str:
    matchers.parse(text)
    return text


def _fingerprint_secret(text: str) -> str:
    """Return the secrets, newest first. A short secret could be guessed from one event."""
    secrets = text.split()
    if len(secrets) > MAX_FINGERPRINT_SECRETS or min(map(len, secrets)) < MIN_FINGERPRINT_SECRET:
        raise ValueError("too short, or too many")
    return text


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The webhook, the control plane, and the alerts and fields that are forwarded."""

    url: Annotated[str, Setting("BYOC_ALERTS_URL", "https://host[:port]/path of the control plane")]
    token: Annotated[
        str,
        Setting(
            "BYOC_ALERTS_TOKEN", "the control plane's bearer token", secret=True, parse=check_token
        ),
    ]
    signing_secret: Annotated[
        str,
        Setting(
            "BYOC_ALERTS_SIGNING_SECRET",
            "whsec_ and 24 to 64 bytes in base64; two, separated by a space, during a rotation",
            secret=True,
            parse=check_signing_secret,
        ),
    ]
    webhook_token: Annotated[
        str,
        Setting(
            "BYOC_ALERTS_WEBHOOK_TOKEN",
            "the bearer token that Alertmanager sends, at most 900 characters",
            secret=True,
            parse=bearer_tokens,
        ),
    ]
    fingerprint_secret: Annotated[
        str,
        Setting(
            "BYOC_ALERTS_FINGERPRINT_SECRET",
            "32 or more characters, the same for all forwarders of a service; the new and the old"
            " one, separated by a space, during a change",
            secret=True,
            parse=_fingerprint_secret,
        ),
    ]
    token_file: Annotated[
        str, Setting("BYOC_ALERTS_TOKEN_FILE", "a file with the token, reloaded when it changes")
    ] = ""
    signing_secret_file: Annotated[
        str,
        Setting(
            "BYOC_ALERTS_SIGNING_SECRET_FILE", "a file with the secret, reloaded when it changes"
        ),
    ] = ""
    listen: Annotated[
        tuple[str, int],
        Setting("BYOC_ALERTS_LISTEN", "host:port of the webhook", parse=host_and_port),
    ] = ("127.0.0.1", 9095)
    webhook_token_file: Annotated[
        str,
        Setting(
            "BYOC_ALERTS_WEBHOOK_TOKEN_FILE", "a file with that token, reloaded when it changes"
        ),
    ] = ""
    tls_cert_file: Annotated[
        str, Setting("BYOC_ALERTS_TLS_CERT_FILE", "the certificate chain of the webhook, PEM")
    ] = ""
    tls_key_file: Annotated[
        str, Setting("BYOC_ALERTS_TLS_KEY_FILE", "the private key of the certificate, PEM")
    ] = ""
    selector: Annotated[
        str,
        Setting(
            "BYOC_ALERTS_MATCHERS",
            "matchers; separate sets by ; or newlines; empty = the rules of this project",
            parse=_matchers,
        ),
    ] = ""
    namespace: Annotated[
        str,
        Setting(
            "BYOC_ALERTS_NAMESPACE",
            "the Kubernetes namespace whose alerts the default matchers select, * for any; required"
            " without BYOC_ALERTS_MATCHERS",
            parse=_namespace,
        ),
    ] = ""
    watchdog: Annotated[
        str,
        Setting("BYOC_ALERTS_WATCHDOG", "matchers of the alert that always fires", parse=_matchers),
    ] = 'alertname="Watchdog"'
    labels: Annotated[
        tuple[str, ...],
        Setting("BYOC_ALERTS_LABELS", "label names, separated by commas", parse=_names),
    ] = LABELS
    annotations: Annotated[
        tuple[str, ...],
        Setting("BYOC_ALERTS_ANNOTATIONS", "annotation names, separated by commas", parse=_names),
    ] = ()
    reminder_seconds: Annotated[
        float,
        Setting(
            "BYOC_ALERTS_REMINDER_SECONDS",
            "60 seconds to a week: more than group_interval, at most repeat_interval",
            parse=number(60, 7 * 86400),
        ),
    ] = 900.0
    reopen_seconds: Annotated[
        float,
        Setting(
            "BYOC_ALERTS_REOPEN_SECONDS",
            "1 second to a day: group_interval, plus peer-timeout (15) for each Alertmanager",
            parse=number(1, 86400),
        ),
    ] = 360.0  # Alertmanager's default group_interval of 5 minutes, and four peers
    daily_bytes: Annotated[
        int,
        Setting(
            "BYOC_ALERTS_DAILY_BYTES",
            "the bytes of alerts that may leave per UTC day, at least 8Mi",
            parse=_daily_bytes,
        ),
    ] = budget.DEFAULT_BYTES
    heartbeat_seconds: Annotated[
        float,
        Setting(
            "BYOC_ALERTS_HEARTBEAT_SECONDS",
            "1 to 3600 seconds between two heartbeats, for ten minutes after a change",
            parse=number(1, 3600),
        ),
    ] = 60.0
    idle_heartbeat_seconds: Annotated[
        float | None,
        Setting(
            "BYOC_ALERTS_IDLE_HEARTBEAT_SECONDS",
            "1 to 1800 seconds between two heartbeats after that; default: five times as long,"
            " at most 1800",
            parse=number(1, MAX_IDLE_SECONDS),
        ),
    ] = None
    timeout_seconds: Annotated[
        float,
        Setting(
            "BYOC_ALERTS_TIMEOUT_SECONDS",
            "0.1 to 300 seconds for the complete response of the control plane",
            parse=number(0.1, 300),
        ),
    ] = 30.0
    contract: Annotated[
        Literal["0.2", "0.1"],
        Setting(
            "BYOC_ALERTS_CONTRACT",
            "0.2, or 0.1 if the control plane's responses do not list the stored events",
        ),
    ] = "0.2"
    max_batch: Annotated[
        int,
        Setting(
            "BYOC_ALERTS_MAX_BATCH",
            "1 to 500 events; 1 if the control plane accepts no batches",
            parse=lambda text: int(number(1, 500)(text)),
        ),
    ] = 100

    @property
    def intervals(self) -> HeartbeatIntervals:
        """Return the intervals of the heartbeats. Raises ValueError if they do not fit."""
        return HeartbeatIntervals.choose(
            "BYOC_ALERTS", self.heartbeat_seconds, self.idle_heartbeat_seconds
        )

    @property
    def selected(self) -> str:
        """Return the matchers that are used: the configured or the default ones."""
        if self.selector:
            return self.selector
        names = "|".join(SHIPPED_RULES)
        any_namespace = self.namespace == ANY_NAMESPACE
        namespace = "" if any_namespace else f', namespace="{self.namespace}"'
        return f'alertname=~"{names}", severity=~"critical|warning"{namespace}'

    def __post_init__(self) -> None:
        """Check settings that depend on each other. Raises ValueError."""
        if bool(self.tls_cert_file) != bool(self.tls_key_file):
            names = "BYOC_ALERTS_TLS_CERT_FILE, BYOC_ALERTS_TLS_KEY_FILE"
            reason = f"{names}: only one is set: expected both or neither"
            raise ValueError(reason)
        if not self.selector and not self.namespace:
            expected = "expected the namespace whose alerts are sent, or * for any"
            reason = f"BYOC_ALERTS_NAMESPACE: is required without BYOC_ALERTS_MATCHERS: {expected}"
            raise ValueError(reason)
        _ = self.intervals
