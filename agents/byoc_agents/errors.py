"""Every error that crosses a boundary of ours, and the closed set of reasons a send can end with.

Foreign errors (botocore, aiohttp, sqlite3, OSError) are translated once, at the edge that met
them. What a reason leads to is decided in one place only: `byoc_agents.delivery.shipper.FATES`.
"""

from collections.abc import Iterable, Sequence
from enum import StrEnum


class ByocError(Exception):
    """Base of all errors raised on purpose."""


class ConfigError(ByocError):
    """The settings are wrong. Each mistake names the variable, what it got and what it wants."""

    def __init__(self, mistakes: Sequence[str]) -> None:
        super().__init__("; ".join(mistakes))
        self.mistakes = tuple(mistakes)


class SpoolError(ByocError):
    """A durable write did not happen. Nothing was stored; the caller still owns the data."""


class SpoolFullError(SpoolError):
    """The byte bound of the spool is reached."""


class SpoolUnavailableError(SpoolError):
    """The disk refused: full, read-only, failing. Worth another try later."""


class SpoolUnusableError(SpoolUnavailableError):
    """The directory or its file system cannot hold a spool. `str()` says what is expected."""


class SpoolNewerError(SpoolUnavailableError):
    """A later version wrote the file. It is left as it is, and nothing starts on it."""


class SpoolCorruptError(SpoolError):
    """The spool file was damaged. It has been set aside and an empty one stands in its place."""


class LedgerError(ByocError):
    """A ledger line could not be written, so the send it announces must not happen."""


class LedgerNewerError(LedgerError):
    """A later version wrote the files. They are left as they are, and nothing starts on them."""


class Reason(StrEnum):
    """Why an attempt to send ended as it did: the label of `byoc_attempts_total`. A closed set."""

    OK = "ok"  # stored now
    ALREADY_STORED = "already_stored"  # stored by an earlier attempt whose answer was lost
    TIMEOUT = "timeout"
    CONNECTION = "connection"  # refused, reset, closed half-way, no DNS answer
    TLS = "tls"  # the certificate was not accepted: unknown CA, another name, a clock that is off
    THROTTLED = "throttled"  # 429, SlowDown, RequestLimitExceeded
    SERVER_ERROR = "server_error"  # 5xx
    CONFLICT = "conflict"  # 409: another conditional write of the same key is in flight
    CHECKSUM = "checksum"  # the receiver got other bytes than we sent
    BAD_RESPONSE = "bad_response"  # not in the receiver's own form: a proxy's page, an unknown code
    LEDGER = "ledger"  # the ledger line could not be written
    CREDENTIALS = "credentials"  # none found, expired, provider failing, 401
    FORBIDDEN = "forbidden"  # 403, or a setting that the receiver refuses for every message
    NOT_FOUND = "not_found"  # 404: no such bucket, queue or path
    WRONG_REGION = "wrong_region"  # 301 or 400 that names another region
    REDIRECT = "redirect"  # any redirect; never followed
    EGRESS_REFUSED = "egress_refused"  # our own gate: not in the destinations table
    TOO_LARGE = "too_large"  # EntityTooLarge, or the control plane's own 413
    REJECTED = "rejected"  # the receiver says that this very message is invalid
    REJECTS_ALL = "rejects_all"  # rejected, and no other message is accepted
    INTERNAL = "internal"  # a defect of ours; held, never dropped


UNCERTAIN = frozenset(
    {
        Reason.TIMEOUT,
        Reason.CONNECTION,
        Reason.SERVER_ERROR,  # a gateway may answer 502 or 504 for a server that has stored it
        Reason.CONFLICT,
        Reason.BAD_RESPONSE,
        Reason.INTERNAL,
    }
)


def uncertain(reasons: Iterable[str]) -> bool:
    """Return whether the receiver may have stored a message although the attempt failed."""
    return any(reason in UNCERTAIN for reason in reasons)


class SendError(ByocError):
    """An attempt failed.

    `detail` is short, for logs and /status; it holds no body, no secret and no URL with a query.
    `retry_after_seconds` is what the receiver asked for, if it did.
    """

    def __init__(
        self, reason: Reason, detail: str, *, retry_after_seconds: float | None = None
    ) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.retry_after_seconds = retry_after_seconds
