"""What SQS answers, in our words: one table for whole requests, one for entries of a batch."""

import re
from collections.abc import Mapping
from typing import Any

from byoc_agents.egress.gate import REDIRECTS
from byoc_agents.errors import Reason, SendError
from byoc_agents.sinks import aws_errors

from_transport = aws_errors.from_transport

# https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/CommonErrors.html and
# API_SendMessageBatch.html; the old query names (AWS.SimpleQueueService.X) end in the new ones.
CODES: Mapping[str, Reason] = {
    "QueueDoesNotExist": Reason.NOT_FOUND,
    "NonExistentQueue": Reason.NOT_FOUND,
    "QueueDeletedRecently": Reason.NOT_FOUND,
    "InvalidAddress": Reason.NOT_FOUND,  # the queue URL is not one
    "UnsupportedOperation": Reason.NOT_FOUND,  # another kind of queue
    "InvalidSecurity": Reason.FORBIDDEN,
    "AccessDeniedException": Reason.FORBIDDEN,
    "OptInRequired": Reason.FORBIDDEN,
    "NotAuthorized": Reason.FORBIDDEN,
    "InvalidClientTokenId": Reason.CREDENTIALS,
    "UnrecognizedClientException": Reason.CREDENTIALS,
    "InvalidSignatureException": Reason.CREDENTIALS,
    "MissingAuthenticationToken": Reason.CREDENTIALS,
    "IncompleteSignature": Reason.CREDENTIALS,
    "RequestThrottled": Reason.THROTTLED,
    "OverLimit": Reason.THROTTLED,
    "InternalFailure": Reason.SERVER_ERROR,
    "ServiceUnavailable": Reason.SERVER_ERROR,
    "InvalidMessageContents": Reason.REJECTED,
    "BatchRequestTooLong": Reason.TOO_LARGE,
    "KmsAccessDenied": Reason.FORBIDDEN,
    "KmsDisabled": Reason.FORBIDDEN,
    "KmsInvalidKeyUsage": Reason.FORBIDDEN,
    "KmsInvalidState": Reason.FORBIDDEN,
    "KmsNotFound": Reason.FORBIDDEN,
    "KmsOptInRequired": Reason.FORBIDDEN,
    "KmsThrottled": Reason.THROTTLED,
}


def from_answer(response: Mapping[str, Any]) -> SendError:
    """Return what an error for the whole request means.

    One that nobody knows is held and alarmed: it cannot be laid on one message, so no message may
    be buried for it.
    """
    meta = response.get("ResponseMetadata", {})
    status, headers = meta.get("HTTPStatusCode", 0), meta.get("HTTPHeaders", {})
    code = _word(response.get("Error", {}).get("Code", ""))
    reason = _known(code) or _by_status(status)
    after = aws_errors.retry_after_seconds(headers)
    return SendError(reason, f"{status} {code}", retry_after_seconds=after)


def from_entry(failure: Mapping[str, Any]) -> SendError:
    """Return what the failure of one entry means. SQS says whose fault it is."""
    code, text = _word(failure.get("Code", "")), str(failure.get("Message", ""))
    known = _known(code)
    if known is None and "shorter than" in text:
        known = Reason.TOO_LARGE  # InvalidParameterValue: "Message must be shorter than N bytes"
    if known is None and "queue type" in text:
        known = Reason.NOT_FOUND  # InvalidParameterValue: the queue is not FIFO
    fault = Reason.REJECTED if failure.get("SenderFault") else Reason.SERVER_ERROR
    return SendError(known or fault, f"entry refused, {code}")


def _known(code: str) -> Reason | None:
    last = code.rpartition(".")[2]
    shared = aws_errors.CODES.get(last)  # tokens and throttling are the same in all of AWS
    return CODES.get(last) or (shared if shared in _SHARED else None)


_SHARED = frozenset({Reason.CREDENTIALS, Reason.THROTTLED, Reason.SERVER_ERROR, Reason.FORBIDDEN})


def _by_status(status: int) -> Reason:
    if status in REDIRECTS:
        return Reason.REDIRECT
    if status >= 500:  # noqa: PLR2004  HTTP's own class
        return Reason.SERVER_ERROR
    reason = aws_errors.STATUSES.get(status, Reason.BAD_RESPONSE)
    return Reason.INTERNAL if reason is Reason.REJECTED else reason


def _word(text: object) -> str:
    """Return a receiver's word made safe for logs."""
    return re.sub(r"[^A-Za-z0-9._-]", "?", str(text))[:64]
