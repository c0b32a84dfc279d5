"""Messages to one SQS queue, which is FIFO if they have a group.

Requires the permission `sqs:SendMessage` on `arn:aws:sqs:REGION:ACCOUNT:QUEUE` (it includes
SendMessageBatch), and `kms:GenerateDataKey`, `kms:Decrypt` if the queue uses a customer key.
"""

import asyncio
import hashlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import msgspec
from aiobotocore.session import AioSession
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from byoc_agents.delivery.sink import Transmit, transmit_unrecorded
from byoc_agents.egress.aws import KeyRefresh, aws_config, fetch_credentials
from byoc_agents.egress.gate import REDIRECTS, Gate
from byoc_agents.egress.regions import sqs_region
from byoc_agents.errors import Reason, SendError
from byoc_agents.message import Message, Outcome, Receipt
from byoc_agents.sinks import aws_errors

ATTEMPT_SECONDS = 30.0  # one request with credentials and response
MAX_ENTRIES = 10  # of one SendMessageBatch; AWS SQS quotas
MAX_BYTES = 256 * 1024  # of one request: some queues accept 1 MiB, all accept 256 KiB
OWN_ERRORS = frozenset({Reason.REJECTED, Reason.TOO_LARGE})
"""Reasons that concern one message. Any other failure delays the rest of the message's group."""

# XML 1.0 characters, all that SQS takes (SendMessage, "Valid values")
_NOT_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

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


class SqsSink:
    """Sends up to ten messages at a time. `async with` closes the connections.

    SQS accepts or refuses each entry of a batch separately, so an entry could overtake a failed
    one. Therefore a request never has two messages of one group: the messages of a group are sent
    in successive requests, and after a failure the rest of the group is not sent. Up to ten groups
    share a request.
    """

    max_messages = MAX_ENTRIES
    max_bytes = MAX_BYTES

    def __init__(  # noqa: PLR0913  the queue, the gate, and the limits of one attempt
        self,
        session: AioSession,
        gate: Gate,
        queue_url: str,
        *,
        region: str,
        endpoint_url: str | None = None,
        attempt_seconds: float = ATTEMPT_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
        wall_ns: Callable[[], int] = time.time_ns,
        **client_options: Any,
    ) -> None:
        self._keys = KeyRefresh(session, monotonic)
        self._wall_ns = wall_ns
        parts = urlsplit(queue_url)
        self.destination = f"sqs://{parts.netloc}{parts.path}"
        self._session = session
        self._queue_url = queue_url
        self.attempt_seconds = attempt_seconds
        self._client_options = {
            "region_name": sqs_region(parts.hostname or "") or region,
            "endpoint_url": endpoint_url or f"{parts.scheme}://{parts.netloc}",
            "config": aws_config(gate, **client_options),
        }
        self._client: Any = None
        self._resources = AsyncExitStack()

    def __repr__(self) -> str:
        """Return the queue and its region."""
        return f"SqsSink({self.destination} in {self._client_options['region_name']})"

    async def __aenter__(self) -> Self:
        """Open nothing yet: an unavailable credential source must not prevent the start."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connections."""
        await self._drop_client()

    async def send(
        self, batch: Sequence[Message], transmit: Transmit = transmit_unrecorded
    ) -> Sequence[Outcome]:
        """Send each message once, a group's in order; see `Sink.send`."""
        outcomes: dict[int, Outcome] = {
            index: error for index, message in enumerate(batch) if (error := find_refusal(message))
        }
        while waiting := _next_request(batch, outcomes):
            some = await self._outcomes([batch[index] for index in waiting], transmit)
            outcomes |= dict(zip(waiting, some, strict=True))
            _hold_back(batch, outcomes)
        return [outcomes[index] for index in range(len(batch))]

    async def _outcomes(self, entries: Sequence[Message], transmit: Transmit) -> Sequence[Outcome]:
        try:
            return await transmit(entries, lambda: self._attempt(entries))
        except SendError as error:
            if error.reason in OWN_ERRORS and len(entries) > 1:  # which of them?
                return [(await self._outcomes([entry], transmit))[0] for entry in entries]
            if error.reason is Reason.CREDENTIALS:
                await self._drop_client()  # it holds the old credentials
            return [error] * len(entries)

    async def _attempt(self, entries: Sequence[Message]) -> Sequence[Outcome]:
        try:
            async with asyncio.timeout(self.attempt_seconds):
                await fetch_credentials(self._session)
                return await self._send(entries)
        except TimeoutError:
            why = f"no response within {self.attempt_seconds:g} s"
            raise SendError(Reason.TIMEOUT, why) from None

    async def _send(self, entries: Sequence[Message]) -> Sequence[Outcome]:
        request = [_entry(number, message) for number, message in enumerate(entries)]
        try:
            client = await self._open_client()
            response = await client.send_message_batch(QueueUrl=self._queue_url, Entries=request)
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") in aws_errors.KEYS_REFUSED:
                self._keys.forget()
            raise error_of_response(error.response, self._wall_ns()) from error
        except ResponseParserError as error:
            raise SendError(Reason.BAD_RESPONSE, "the response is not in SQS's form") from error
        except BotoCoreError as error:
            raise aws_errors.from_transport(error) from error
        return [_outcome(response, str(number), m) for number, m in enumerate(entries)]

    async def _open_client(self) -> Any:
        if self._client is None:
            made = self._session.create_client("sqs", **self._client_options)
            self._client = await self._resources.enter_async_context(made)
            self._client.meta.events.register_first(
                "before-parse.sqs.SendMessageBatch", require_sqs_form
            )
        return self._client

    async def _drop_client(self) -> None:
        self._client = None
        await self._resources.aclose()


def find_refusal(message: Message) -> SendError | None:
    """Return why SQS can never accept a message, or None. SQS would reject the whole batch."""
    try:
        text = message.body.decode()
    except UnicodeDecodeError:
        return SendError(Reason.REJECTED, "the body is not UTF-8")
    if found := _NOT_XML.search(text):
        return SendError(Reason.REJECTED, f"the body holds U+{ord(found[0]):04X}")
    if not text:
        return SendError(Reason.REJECTED, "the body is empty")
    return None


def _next_request(batch: Sequence[Message], outcomes: Mapping[int, Outcome]) -> list[int]:
    """Return the indexes of the next messages: the first one without an outcome of each group."""
    groups: set[str] = set()
    chosen: list[int] = []
    for index, message in enumerate(batch):
        if index in outcomes or (message.group and message.group in groups):
            continue
        groups.add(message.group)
        chosen.append(index)
    return _fitting(batch, chosen)


def _fitting(batch: Sequence[Message], chosen: Sequence[int]) -> list[int]:
    """Return as many of the indexes as one request may contain, at least one."""
    fitting: list[int] = []
    size_bytes = 0
    for index in chosen[:MAX_ENTRIES]:
        size_bytes += len(batch[index].body)
        if fitting and size_bytes > MAX_BYTES:
            break
        fitting.append(index)
    return fitting


def _hold_back(batch: Sequence[Message], outcomes: dict[int, Outcome]) -> None:
    """Give the messages behind a failure of their group an outcome with the same reason."""
    held: dict[str, SendError] = {}
    for index, message in enumerate(batch):
        outcome = outcomes.get(index)
        if outcome is None and message.group in held:
            why = held[message.group]
            outcomes[index] = SendError(
                why.reason,
                "behind an earlier message of its group",
                retry_after_seconds=why.retry_after_seconds,
            )
        elif isinstance(outcome, SendError) and message.group and outcome.reason not in OWN_ERRORS:
            held[message.group] = outcome


def _entry(number: int, message: Message) -> dict[str, Any]:
    order = {"MessageGroupId": message.group, "MessageDeduplicationId": message.id}
    return {
        "Id": str(number),
        "MessageBody": message.body.decode(),
        **(order if message.group else {}),
    }


def _outcome(response: Mapping[str, Any], entry_id: str, message: Message) -> Outcome:
    """Return the outcome of one entry; an entry missing from the response is a failure."""
    status = response["ResponseMetadata"]["HTTPStatusCode"]
    for success in response.get("Successful", ()):
        if success.get("Id") == entry_id:
            return _receipt(success, status, message)
    for failure in response.get("Failed", ()):
        if failure.get("Id") == entry_id:
            return error_of_entry(failure)
    return SendError(Reason.BAD_RESPONSE, f"{status} without a result for an entry")


def _receipt(success: Mapping[str, Any], status: int, message: Message) -> Outcome:
    digest = hashlib.md5(message.body, usedforsecurity=False).hexdigest()
    if "MD5OfMessageBody" not in success:
        return SendError(Reason.BAD_RESPONSE, f"{status} without an MD5 of the body")
    if success["MD5OfMessageBody"] != digest:
        return SendError(Reason.CHECKSUM, "SQS reports a different MD5")
    if not success.get("MessageId"):
        return SendError(Reason.BAD_RESPONSE, f"{status} without a MessageId")
    return Receipt(Reason.OK, status, str(success["MessageId"]))


# Reasons of refusals, for whole requests and for entries of a batch.


def error_of_response(response: Mapping[str, Any], wall_ns: int) -> SendError:
    """Return the error for a whole request.

    An unknown code is held and alarmed: it is not about one message, so none may become a dead
    letter for it.
    """
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    code = _sanitize_code(response.get("Error", {}).get("Code", ""))
    reason = _known(code) or _by_status(status)
    if reason in {Reason.REJECTED, Reason.TOO_LARGE} and status != aws_errors.CLIENT_ERROR:
        reason = Reason.BAD_RESPONSE  # SQS refuses a message with 400
    return aws_errors.sent_error(reason, f"{status} {code}", response, wall_ns)


class _SqsResponse(msgspec.Struct, frozen=True):
    """The members of a response of SQS that botocore and the sink read, with their types."""

    Successful: list[dict[str, Any]] | None = None
    Failed: list[dict[str, Any]] | None = None
    type: str | None = msgspec.field(default=None, name="__type")
    message: str | None = None


def require_sqs_form(response_dict: dict[str, Any], **_: Any) -> None:
    """Empty a body that is not SQS's JSON, so that it decides nothing.

    Without a body a response has neither results nor a typed error. A handler of `before-parse`.
    """
    kind = response_dict["headers"].get("content-type", "")
    try:
        msgspec.json.decode(response_dict["body"].decode(), type=_SqsResponse)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        kind = ""
    if not kind.lower().startswith("application/x-amz-json"):
        response_dict["body"] = b"{}"


def error_of_entry(failure: Mapping[str, Any]) -> SendError:
    """Return the error for one entry.

    Only InvalidMessageContents and a size above the queue's own bound are about the message. Any
    other code, `SenderFault` or not, is the same for every message, and is held or retried.
    """
    code, text = _sanitize_code(failure.get("Code", "")), str(failure.get("Message", ""))
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


def _sanitize_code(text: object) -> str:
    """Return a receiver's code made safe for logs."""
    return re.sub(r"[^A-Za-z0-9._-]", "?", str(text))[:64]
