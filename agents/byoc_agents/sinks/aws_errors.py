"""What S3 answers, in our words: one table from error code and status to reason."""

import re
from collections.abc import Mapping
from typing import Any

from botocore import exceptions

from byoc_agents.delivery.sink import Receipt
from byoc_agents.egress.gate import REDIRECTS
from byoc_agents.errors import Reason, SendError

SKEW = "the clock is off: S3 refuses a skew of more than 15 minutes"
RETRY_AFTER_LIMIT_SECONDS = 24 * 3600.0

# https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
CODES: Mapping[str, Reason] = {
    "ExpiredToken": Reason.CREDENTIALS,
    "ExpiredTokenException": Reason.CREDENTIALS,
    "InvalidToken": Reason.CREDENTIALS,
    "TokenRefreshRequired": Reason.CREDENTIALS,
    "InvalidAccessKeyId": Reason.CREDENTIALS,
    "SignatureDoesNotMatch": Reason.CREDENTIALS,
    "RequestTimeTooSkewed": Reason.CREDENTIALS,
    "RequestExpired": Reason.CREDENTIALS,
    "PermanentRedirect": Reason.WRONG_REGION,
    "TemporaryRedirect": Reason.WRONG_REGION,
    "IllegalLocationConstraintException": Reason.WRONG_REGION,
    "BadDigest": Reason.CHECKSUM,
    "InvalidDigest": Reason.CHECKSUM,
    "XAmzContentSHA256Mismatch": Reason.CHECKSUM,
    "XAmzContentChecksumMismatch": Reason.CHECKSUM,
    "IncompleteBody": Reason.CONNECTION,
    "RequestTimeout": Reason.TIMEOUT,  # a 400: S3 waited 20 s for the body
    "EntityTooLarge": Reason.TOO_LARGE,
    "SlowDown": Reason.THROTTLED,
    "Throttling": Reason.THROTTLED,
    "ThrottlingException": Reason.THROTTLED,
    "RequestLimitExceeded": Reason.THROTTLED,
    "InternalError": Reason.SERVER_ERROR,
    "ServiceUnavailable": Reason.SERVER_ERROR,
    "PreconditionFailed": Reason.ALREADY_STORED,
    "ConditionalRequestConflict": Reason.CONFLICT,
    "OperationAborted": Reason.CONFLICT,
    "NoSuchBucket": Reason.NOT_FOUND,
    "AccessDenied": Reason.FORBIDDEN,
    "AllAccessDisabled": Reason.FORBIDDEN,
    "AccountProblem": Reason.FORBIDDEN,
    "InvalidBucketName": Reason.NOT_FOUND,  # a 400 that is about the setting, not the message
    "NotImplemented": Reason.FORBIDDEN,  # a 501: this receiver cannot, whatever the message
    "MethodNotAllowed": Reason.FORBIDDEN,
    "InvalidRequest": Reason.REJECTED,
}
STATUSES: Mapping[int, Reason] = {
    400: Reason.REJECTED,
    401: Reason.CREDENTIALS,
    403: Reason.FORBIDDEN,
    404: Reason.NOT_FOUND,
    405: Reason.FORBIDDEN,
    407: Reason.FORBIDDEN,
    408: Reason.TIMEOUT,
    409: Reason.CONFLICT,
    412: Reason.ALREADY_STORED,
    413: Reason.TOO_LARGE,
    429: Reason.THROTTLED,
}

TRANSPORT: tuple[tuple[type[Exception], Reason], ...] = (  # the first that fits
    (exceptions.ConnectTimeoutError, Reason.TIMEOUT),
    (exceptions.ReadTimeoutError, Reason.TIMEOUT),
    (exceptions.NoCredentialsError, Reason.CREDENTIALS),
    (exceptions.PartialCredentialsError, Reason.CREDENTIALS),
    (exceptions.CredentialRetrievalError, Reason.CREDENTIALS),
    (exceptions.ConnectionClosedError, Reason.CONNECTION),
    (exceptions.ConnectionError, Reason.CONNECTION),
    (exceptions.ParamValidationError, Reason.REJECTED),
    (exceptions.HTTPClientError, Reason.BAD_RESPONSE),
)


def from_answer(response: Mapping[str, Any], region: str) -> Receipt:
    """Return a receipt when the object was there already (412). Raises SendError for the rest."""
    meta = response.get("ResponseMetadata", {})
    status, headers = meta.get("HTTPStatusCode", 0), meta.get("HTTPHeaders", {})
    code = str(response.get("Error", {}).get("Code", ""))
    theirs = headers.get("x-amz-bucket-region") or response.get("Error", {}).get("Region")
    reason = _reason(code, status, theirs, region)
    if reason is Reason.ALREADY_STORED:
        return Receipt(reason, status)
    detail = _detail(reason, f"{status} {_word(code)}", theirs, region)
    if code == "RequestTimeTooSkewed":
        detail = f"{status} {code}: {SKEW}"
    raise SendError(reason, detail, retry_after_seconds=retry_after_seconds(headers))


def from_transport(error: Exception) -> SendError:
    """Return what an exchange that never became an answer means."""
    reason = next(
        (reason for kind, reason in TRANSPORT if isinstance(error, kind)), Reason.INTERNAL
    )
    cause = getattr(error, "kwargs", {}).get("error")
    inner = f": {type(cause).__name__}" if cause is not None else ""
    return SendError(reason, f"{type(error).__name__}{inner}")


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of a Retry-After header; a date, or nonsense, is no answer."""
    text = headers.get("retry-after", "").strip()
    if not re.fullmatch(r"[0-9]{1,9}", text):
        return None
    return min(float(text), RETRY_AFTER_LIMIT_SECONDS)


def _reason(code: str, status: int, theirs: str | None, ours: str) -> Reason:
    elsewhere = bool(theirs) and theirs != ours
    if elsewhere and status in REDIRECTS | {400, 403}:
        return Reason.WRONG_REGION
    if code == "AuthorizationHeaderMalformed":
        return Reason.CREDENTIALS
    if status in REDIRECTS and code not in CODES:
        return Reason.REDIRECT
    unknown = Reason.SERVER_ERROR if status >= 500 else Reason.BAD_RESPONSE  # noqa: PLR2004
    by_code = Reason.FORBIDDEN if code.startswith("KMS.") else CODES.get(code)
    return by_code or STATUSES.get(status, unknown)


def _detail(reason: Reason, said: str, theirs: str | None, ours: str) -> str:
    if reason is Reason.WRONG_REGION:
        return f"{said}: the bucket is in {_word(theirs or 'another region')}, we are in {ours}"
    return said


def _word(text: str) -> str:
    """Return a receiver's word made safe for logs."""
    return re.sub(r"[^A-Za-z0-9 ._-]", "?", text)[:64]
