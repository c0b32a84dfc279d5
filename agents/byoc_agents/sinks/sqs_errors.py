"""SQS's answers as reasons, for whole requests and for entries of a batch."""

import re
from collections.abc import Mapping
from typing import Any

import msgspec

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
}


def from_answer(response: Mapping[str, Any], wall_ns: int) -> SendError:
    """Return the error for a whole request.

    An unknown code is held and alarmed: it is not about one message, so none may become a dead
    letter for it.
    """
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    code = _word(response.get("Error", {}).get("Code", ""))
    reason = _known(code) or _by_status(status)
    if reason in {Reason.REJECTED, Reason.TOO_LARGE} and status != aws_errors.CLIENT_ERROR:
        reason = Reason.BAD_RESPONSE  # SQS refuses a message with 400
    return aws_errors.sent_error(reason, f"{status} {code}", response, wall_ns)


class _SqsAnswer(msgspec.Struct, frozen=True):
    """The members of an answer of SQS that botocore and the sink read, with their types."""

    Successful: list[dict[str, Any]] | None = None
    Failed: list[dict[str, Any]] | None = None
    type: str | None = msgspec.field(default=None, name="__type")
    message: str | None = None


def keep_sqs_form(response_dict: dict[str, Any], **_: Any) -> None:
    """Empty a body that is not SQS's JSON, so that it decides nothing.

    Without a body an answer has neither results nor a typed error. A handler of `before-parse`.
    """
    kind = response_dict["headers"].get("content-type", "")
    try:
        msgspec.json.decode(response_dict["body"].decode(), type=_SqsAnswer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        kind = ""
    if not kind.lower().startswith("application/x-amz-json"):
        response_dict["body"] = b"{}"


def from_entry(failure: Mapping[str, Any]) -> SendError:
    """Return the error for one entry.

    Only InvalidMessageContents and a size above the queue's own bound are about the message. Any
    other code, `SenderFault` or not, is the same for every message, and is held or retried.
    """
    code, text = _word(failure.get("Code", "")), str(failure.get("Message", ""))
    known = _known(code)
    if known is None and "shorter than" in text:
        known = Reason.TOO_LARGE  # InvalidParameterValue: "Message must be shorter than N bytes"
    if known is None and "queue type" in text:
        known = Reason.NOT_FOUND  # InvalidParameterValue: the queue is not FIFO
    fault = Reason.FORBIDDEN if failure.get("SenderFault") else Reason.SERVER_ERROR
    return SendError(known or fault, f"entry refused, {code}")


def _known(code: str) -> Reason | None:
    if kms := aws_errors.kms_reason(code):
        return kms
    last = code.rpartition(".")[2]
    shared = aws_errors.CODES.get(last)  # tokens and throttling are the same in all of AWS
    return CODES.get(last) or (shared if shared in _SHARED else None)


_SHARED = frozenset({Reason.CREDENTIALS, Reason.THROTTLED, Reason.SERVER_ERROR, Reason.FORBIDDEN})


def _by_status(status: int) -> Reason:
    if status in REDIRECTS:
        return Reason.REDIRECT
    if status >= 500:  # noqa: PLR2004  HTTP's own class
        return Reason.SERVER_ERROR
    return aws_errors.STATUSES.get(status, Reason.BAD_RESPONSE)


def _word(text: object) -> str:
    """Return a receiver's code made safe for logs."""
    return re.sub(r"[^A-Za-z0-9._-]", "?", str(text))[:64]
