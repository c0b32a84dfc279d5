"""All errors of the package, and the closed set of reasons for the end of an attempt to send.

Foreign errors (botocore, aiohttp, sqlite3, OSError) are translated once, in the module that calls
the library. One table decides the action for a reason: `byoc_agents.delivery.shipper.ACTIONS`.
"""

import re
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import ClassVar, Literal

SpoolErrorReason = Literal["full", "unavailable", "corrupt", "stale"]
EnvelopeReason = Literal["too_large", "not_an_envelope", "wrong_type", "too_few_signatures"]

# In a text with URLs: the user and password of a URL, and its query and fragment.
USER_OF_URL = re.compile(r"(://)[^\s,]*@")
# The same of a text that was meant to be a URL, and was not hidden already.
USER_WITHOUT_SCHEME = re.compile(r"[^\s,'\"=@:/]*:(?!//)(?![^\s,]*\*\*\*@)[^\s,]*@")
QUERY_OF_URL = re.compile(r"(://[^\s,?#;'\"]*)[?#;][^\s,'\"]*")
HIDDEN_USER = "://***@"
# A mistake of a URL setting up to its value, and what follows the path of a URL in quotes.
URL_MISTAKE = re.compile(r"[A-Z0-9_]*(?:URL|TARGET|SERVERS|PROXY)[A-Z0-9_]*:")
FIRST_QUOTE = re.compile(r"[^'\"@]*['\"]")
QUERY_IN_QUOTES = re.compile(r"(['\"][^?#;'\"]*)[?#;][^'\"]*")


def hide_url_secrets(text: str) -> str:
    """Return a text in which no URL has a user, a password, a query or a fragment.

    Of `user:password@host`, which is not a URL, the user and the password are hidden as well. In a
    mistake of a URL setting, all that is before the last @ of a malformed value is hidden.

    The only way in which a URL of the settings is printed.
    """
    hidden = USER_WITHOUT_SCHEME.sub("***@", USER_OF_URL.sub(r"\1***@", text))
    hidden = QUERY_OF_URL.sub(r"\1?***", hidden)
    if not URL_MISTAKE.match(hidden):
        return hidden
    quote = FIRST_QUOTE.match(hidden)
    if quote and "@" in hidden.replace(HIDDEN_USER, ""):  # a user in a form that is not a URL
        hidden = f"{quote[0]}***@{hidden.rpartition('@')[2]}"
    return QUERY_IN_QUOTES.sub(r"\1?***", hidden)


def hide_setting_secrets(variable: str, value: str) -> str:
    """Return the value of a setting without the secrets of a URL, well formed or not."""
    prefix = f"{variable}: '"
    return hide_url_secrets(f"{prefix}{value}").removeprefix(prefix)


def remove_url_user(url: str) -> str:
    """Return a URL without its user and password, even if they were not percent-encoded."""
    return USER_OF_URL.sub(r"\1", url)


class ByocError(Exception):
    """Base of all errors raised on purpose."""


class ConfigError(ByocError):
    """The settings are invalid. Each mistake has the variable, its value and the expectation."""

    def __init__(self, mistakes: Sequence[str]) -> None:
        self.mistakes = tuple(map(hide_url_secrets, mistakes))
        super().__init__("; ".join(self.mistakes))


class EnvelopeError(ByocError):
    """The envelope cannot be trusted: `reason`, and a detail without any of its text."""

    def __init__(self, reason: EnvelopeReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class SpoolError(ByocError):
    """A durable write failed, and the caller keeps the data.

    After SpoolFullError nothing was stored. After any other error the caller does not know the
    stored state and must read it again.

    `reason` is the label of `byoc_spool_errors_total`. `stale`: the file no longer holds the
    staged lines that the caller expects, so it must be read again.
    """

    reason: ClassVar[SpoolErrorReason] = "stale"


class SpoolFullError(SpoolError):
    """The size limit of the spool in bytes is reached."""

    reason = "full"


class SpoolUnavailableError(SpoolError):
    """The disk is full, read-only or failing. Try again later."""

    reason = "unavailable"


class SpoolUnusableError(SpoolUnavailableError):
    """The directory or its file system cannot hold a spool. `str()` has the expectation."""


class SpoolNewerError(SpoolUnavailableError):
    """A later version wrote the file. It stays unchanged, and the daemon does not start."""


class SpoolCorruptError(SpoolError):
    """The spool file was damaged. It was renamed, and a new file has replaced it."""

    reason = "corrupt"


class LedgerError(ByocError):
    """A ledger line could not be written.

    Without its intent a request is not made. Without its receipt the messages count as not sent.
    """


class LedgerNewerError(LedgerError):
    """A later version wrote the files. They stay unchanged, and no daemon starts."""


class Reason(StrEnum):
    """The result of an attempt to send: the `result` of `byoc_send_attempts_total`."""

    OK = "ok"  # stored now
    ALREADY_STORED = "already_stored"  # stored by an earlier attempt with a lost response
    TIMEOUT = "timeout"
    CONNECTION = "connection"  # refused, reset, closed early, no DNS answer
    TLS = "tls"  # certificate not accepted: unknown CA, other name, wrong clock
    THROTTLED = "throttled"  # 429, SlowDown, RequestLimitExceeded
    SERVER_ERROR = "server_error"  # 5xx
    CONFLICT = "conflict"  # 409: another conditional write of the same key is in flight
    CHECKSUM = "checksum"  # the receiver got other bytes than were sent
    BAD_RESPONSE = "bad_response"  # not from the receiver: a proxy's page, an unknown code
    LEDGER = "ledger"  # the ledger line could not be written
    CREDENTIALS = "credentials"  # none found, expired, provider failing, 401
    FORBIDDEN = "forbidden"  # 403, or a setting that the receiver refuses for every message
    NOT_FOUND = "not_found"  # 404: no such bucket, queue or path
    WRONG_REGION = "wrong_region"  # 301 or 400 that names another region
    REDIRECT = "redirect"  # any redirect; redirects are not followed
    EGRESS_REFUSED = "egress_refused"  # by the egress gate: not in the destinations table
    TOO_LARGE = "too_large"  # EntityTooLarge, or the control plane's own 413
    REJECTED = "rejected"  # the receiver reports that this message is invalid
    REJECTS_ALL = "rejects_all"  # rejected, and no other message is accepted
    INTERNAL = "internal"  # a defect in byoc-agents; held, never dropped


UNKNOWN_OUTCOME = frozenset(
    {
        Reason.TIMEOUT,
        Reason.CONNECTION,
        Reason.SERVER_ERROR,  # a gateway may answer 502 or 504 for a server that has stored it
        Reason.CONFLICT,
        Reason.BAD_RESPONSE,
        Reason.INTERNAL,
    }
)


def leaves_unknown(reasons: Iterable[str]) -> bool:
    """Return whether the receiver may have stored a message although the attempt failed."""
    return any(reason in UNKNOWN_OUTCOME for reason in reasons)


class SendError(ByocError):
    """An attempt failed.

    `detail` is short, for logs and /status; it holds no body, no secret and no URL with a query.
    `retry_after_seconds` is the delay that the receiver requested, if any.
    """

    def __init__(
        self, reason: Reason, detail: str, *, retry_after_seconds: float | None = None
    ) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.retry_after_seconds = retry_after_seconds
