"""S3's responses as reasons: one table from error code and status to reason.

Only S3's own form of response, an XML document with a known code, proves that an object is already
stored or can never be stored. A status alone may come from a proxy, so the message is held.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import aiohttp
from botocore import exceptions

from byoc_agents.egress.gate import REDIRECTS
from byoc_agents.errors import Reason, SendError
from byoc_agents.message import Receipt
from byoc_agents.sinks.http_responses import (
    proxy_error,
    retry_after_seconds,
    skew_hint,
    tls_error,
    unreadable_response,
)

SKEW = "the clock is off: AWS refuses a skew of more than 15 minutes"
CLOCK_CODES = frozenset({"RequestTimeTooSkewed", "RequestExpired", "RequestInTheFuture"})
_CLOCK_TEXT = re.compile(r"Signature (expired|not yet current)")
CLIENT_ERROR = 400

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
    "KeyTooLongError": Reason.REJECTED,
    "InvalidURI": Reason.REJECTED,
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
    "InvalidBucketName": Reason.NOT_FOUND,  # a 400 about the setting, not the message
    "NotImplemented": Reason.FORBIDDEN,  # a 501: this receiver never accepts such requests
    "MethodNotAllowed": Reason.FORBIDDEN,
    # About the form of every request, the bucket or the endpoint, never about one object.
    "InvalidRequest": Reason.FORBIDDEN,
    "InvalidArgument": Reason.FORBIDDEN,
    "InvalidEncryptionAlgorithmError": Reason.FORBIDDEN,
    "InvalidStorageClass": Reason.FORBIDDEN,
    "MissingSecurityHeader": Reason.FORBIDDEN,
    "ServerSideEncryptionConfigurationNotFoundError": Reason.FORBIDDEN,
    "IncorrectEndpoint": Reason.NOT_FOUND,
    "EndpointNotFound": Reason.NOT_FOUND,
}
# Without a known code. None of these removes a message from the spool.
STATUSES: Mapping[int, Reason] = {
    401: Reason.CREDENTIALS,
    403: Reason.FORBIDDEN,
    404: Reason.NOT_FOUND,
    405: Reason.FORBIDDEN,
    407: Reason.CREDENTIALS,  # the proxy's
    408: Reason.TIMEOUT,
    409: Reason.CONFLICT,
    429: Reason.THROTTLED,
}
# The keys themselves are refused, whatever their stated end: fetch new ones at once.
KEYS_REFUSED = frozenset(
    {
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidToken",
        "TokenRefreshRequired",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "UnrecognizedClient",
        "UnrecognizedClientException",
    }
)

TRANSPORT: tuple[tuple[type[Exception], Reason], ...] = (  # the first match wins
    (exceptions.ConnectTimeoutError, Reason.TIMEOUT),
    (exceptions.ReadTimeoutError, Reason.TIMEOUT),
    (exceptions.NoCredentialsError, Reason.CREDENTIALS),
    (exceptions.PartialCredentialsError, Reason.CREDENTIALS),
    (exceptions.CredentialRetrievalError, Reason.CREDENTIALS),
    (exceptions.SSLError, Reason.TLS),
    (exceptions.ConnectionClosedError, Reason.CONNECTION),
    (exceptions.ConnectionError, Reason.CONNECTION),
    (
        exceptions.ParamValidationError,
        Reason.FORBIDDEN,
    ),  # caused by a setting: affects every request
    (exceptions.HTTPClientError, Reason.BAD_RESPONSE),
)


def from_response(response: Mapping[str, Any], region: str, body: bytes, wall_ns: int) -> Receipt:
    """Return a receipt if S3 states that the object exists already. Raises SendError otherwise.

    Proof is S3's XML code PreconditionFailed for our own condition, or the 304 that MinIO answered
    to a conditional PUT before RELEASE.2024-04, if its ETag is the MD5 of `body`. The ETag of an
    encrypted object is not an MD5: then MinIO's name and request id prove the 304. A cache answers
    304 with an ETag too, so any other ETag proves nothing.
    """
    meta = response.get("ResponseMetadata", {})
    status, headers = meta.get("HTTPStatusCode", 0), meta.get("HTTPHeaders", {})
    error = response.get("Error", {})
    code = str(error.get("Code", ""))
    if _exists_already(status, code, str(error.get("Condition") or ""), headers, body):
        return Receipt(Reason.ALREADY_STORED, status)
    theirs = headers.get("x-amz-bucket-region") or error.get("Region")
    reason = _reason(code, status, theirs, region)
    detail = _detail(reason, f"{status} {sanitize_code(code)}", theirs, region)
    raise sent_error(reason, detail, response, wall_ns)


def sent_error(reason: Reason, detail: str, response: Mapping[str, Any], wall_ns: int) -> SendError:
    """Return the error of a response, with its Retry-After and a hint if the clock is wrong."""
    headers = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    error, date = response.get("Error", {}), headers.get("date", "")
    if reason in {Reason.CREDENTIALS, Reason.FORBIDDEN}:
        stated = error.get("Code") in CLOCK_CODES or _CLOCK_TEXT.search(str(error.get("Message")))
        hints = [SKEW] if stated else []
        if hint := skew_hint(date, wall_ns):
            hints.append(hint)
        detail = ": ".join([detail, "; ".join(hints)]) if hints else detail
    wait = retry_after_seconds(headers.get("retry-after", ""), wall_ns, date)
    return SendError(reason, detail, retry_after_seconds=wait)


_ERROR_DOCUMENT = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*\?>)?\s*<Error[\s/>]")


def require_s3_form(response_dict: dict[str, Any], **_: Any) -> None:
    """Drop a body that is not S3's error document, so that it decides nothing.

    S3's success has no body, and its proof is in the headers. A handler of `before-parse`.
    """
    if not _ERROR_DOCUMENT.match(response_dict["body"]):
        response_dict["body"] = b""


def _exists_already(
    status: int, code: str, condition: str, headers: Mapping[str, str], body: bytes
) -> bool:
    if status == 304:  # noqa: PLR2004  Not Modified
        etag = headers.get("etag", "").strip('"')
        minio = headers.get("server", "").startswith("MinIO") and "x-amz-request-id" in headers
        return bool(etag) and (minio or etag == md5_of(body))
    stated = code == "PreconditionFailed" and condition in {"", "If-None-Match"}
    return stated and status == 412  # noqa: PLR2004  Precondition Failed


def md5_of(body: bytes) -> str:
    """Return the ETag, without quotes, of an object that was stored in one part."""
    return hashlib.md5(body, usedforsecurity=False).hexdigest()


def from_transport(error: Exception) -> SendError:
    """Return the error of an exchange that ended without a response."""
    cause = getattr(error, "kwargs", {}).get("error")
    if isinstance(cause, aiohttp.ClientHttpProxyError):
        return proxy_error(cause)
    if isinstance(cause, aiohttp.ClientResponseError):
        return unreadable_response(cause)
    reason = next(
        (reason for kind, reason in TRANSPORT if isinstance(error, kind)), Reason.INTERNAL
    )
    if reason is Reason.TLS:
        return tls_error(cause or error)
    inner = f": {type(cause).__name__}" if cause is not None else ""
    return SendError(reason, f"{type(error).__name__}{inner}")


def _reason(code: str, status: int, theirs: str | None, ours: str) -> Reason:
    elsewhere = bool(theirs) and theirs != ours
    if elsewhere and status in REDIRECTS | {400, 403}:
        return Reason.WRONG_REGION
    if code == "AuthorizationHeaderMalformed":
        return Reason.CREDENTIALS
    if status in REDIRECTS and code not in CODES:
        return Reason.REDIRECT
    unknown = Reason.SERVER_ERROR if status >= 500 else Reason.BAD_RESPONSE  # noqa: PLR2004
    by_code = kms_reason(code) or CODES.get(code)
    if by_code is Reason.ALREADY_STORED:  # not our condition, or an unexpected status
        by_code = Reason.BAD_RESPONSE
    if by_code in {Reason.REJECTED, Reason.TOO_LARGE} and status != CLIENT_ERROR:
        by_code = Reason.BAD_RESPONSE  # S3 refuses an object with 400
    return by_code or STATUSES.get(status, unknown)


def kms_reason(code: str) -> Reason | None:
    """Return the reason of an error of KMS, `KMS.X` or `KmsX`; None for any other code.

    No KMS error concerns one message: the key belongs to the queue or the bucket.
    """
    if not code.lower().startswith("kms"):
        return None
    return Reason.THROTTLED if "throttl" in code.lower() else Reason.FORBIDDEN


def _detail(reason: Reason, stated: str, theirs: str | None, ours: str) -> str:
    if reason is Reason.WRONG_REGION:
        actual = sanitize_code(theirs or "another region")
        return f"{stated}: the bucket is in {actual}, we are in {ours}"
    return stated


def sanitize_code(text: str) -> str:
    """Return a receiver's code made safe for logs."""
    return re.sub(r"[^A-Za-z0-9 ./;=_-]", "?", text)[:64]
