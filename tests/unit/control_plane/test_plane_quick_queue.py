"""The consumer's own requests to SQS: botocore's signature, and botocore for all that fails."""

import datetime as dt
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiobotocore.session import get_session
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.exceptions import ClientError

from byoc_agents.egress.destinations import sqs_destination
from byoc_agents.egress.gate import Gate
from byoc_control_plane.quick_http import QuickHttp
from byoc_control_plane.quick_queue import QuickQueue
from byoc_control_plane.signature import Keys
from lab.fakes.fifo import RECEIVE, FakeFifo
from lab.fakes.http import Behavior, Request, cut, reply

REGION = "us-east-1"
QUICK = "quick"  # the user agent of requests that botocore does not send
NOW_NS = 1_795_435_200 * 10**9


async def keys() -> Keys:
    return Keys("AKID", "secret", "token")


@asynccontextmanager
async def opened(queue: FakeFifo) -> AsyncIterator[QuickQueue]:
    names = {"aws_access_key_id": "AKID", "aws_secret_access_key": "secret"}
    gate = Gate([sqs_destination(queue.queue_url, queue.http.url, setting="QUEUE")])
    async with (
        get_session().create_client(
            "sqs", endpoint_url=queue.http.url, region_name=REGION, **names
        ) as client,
        QuickHttp(gate, queue.http.url, user_agent=QUICK, max_body_bytes=10_000) as http,
    ):
        yield QuickQueue(client, http, queue.http.url, REGION, keys, lambda: NOW_NS)


def asked(queue: FakeFifo) -> dict[str, object]:
    return {
        "QueueUrl": queue.queue_url,
        "MaxNumberOfMessages": 10,
        "WaitTimeSeconds": 0,
        "VisibilityTimeout": 30,
    }


async def test_messages_are_received_and_deleted_without_botocore() -> None:
    async with FakeFifo() as queue, opened(queue) as quick:
        queue.add("g", "1", '{"name":"\u00fc"}')
        (message,) = (await quick.receive_message(**asked(queue)))["Messages"]
        assert message["Body"] == '{"name":"\u00fc"}'
        entries = [{"Id": "0", "ReceiptHandle": message["ReceiptHandle"]}]
        response = await quick.delete_message_batch(QueueUrl=queue.queue_url, Entries=entries)
        assert not response.get("Failed")
        assert queue.waiting == 0
        assert (await quick.receive_message(**asked(queue))).get("Messages") is None
        assert {one.headers["user-agent"] for one in queue.http.requests} == {QUICK}
        assert queue.http.connections == 1


async def test_the_signature_is_that_of_botocore() -> None:
    async with FakeFifo() as queue, opened(queue) as quick:
        await quick.receive_message(**asked(queue))
        (sent,) = queue.http.requests
        given = {"content-type", "x-amz-target"}
        request = AWSRequest(
            "POST",
            f"{queue.http.url}/",
            {name: sent.headers[name] for name in given},
            sent.body,
        )
        stamp = dt.datetime.fromtimestamp(NOW_NS // 10**9, tz=dt.UTC)
        request.context["timestamp"] = stamp.strftime("%Y%m%dT%H%M%SZ")
        auth = SigV4Auth(Credentials("AKID", "secret", "token"), "sqs", REGION)
        request.headers["X-Amz-Date"] = request.context["timestamp"]
        request.headers["X-Amz-Security-Token"] = "token"
        text = auth.string_to_sign(request, auth.canonical_request(request))
        assert sent.headers["authorization"].endswith(auth.signature(text, request))
        assert json.loads(sent.body) == asked(queue)


@pytest.mark.parametrize("how", ["error", "cut", "checksum", "not JSON"])
async def test_botocore_sends_what_failed(how: str) -> None:
    now = 0
    async with FakeFifo(monotonic=lambda: now) as queue, opened(queue) as quick:
        queue.add("g", "1", "{}")
        original = queue.http.script
        wrong = {"Messages": [{"Body": "{}", "MD5OfBody": "0" * 32}]}
        failures: dict[str, Behavior] = {
            "error": reply(503, {}, b"{}"),
            "cut": cut(),
            "checksum": reply(200, {}, json.dumps(wrong).encode()),
            "not JSON": reply(200, {}, b"<html>"),
        }

        def script(request: Request) -> Behavior:
            nonlocal now
            is_quick = request.headers["user-agent"] == QUICK
            if not is_quick and request.headers["x-amz-target"] == RECEIVE:
                now += 40  # a message whose response was cut is visible again
            return failures[how] if is_quick else original(request)

        queue.http.script = script
        response = await quick.receive_message(**asked(queue))
        (message,) = response["Messages"]
        entries = [{"Id": "0", "ReceiptHandle": message["ReceiptHandle"]}]
        if how != "checksum":  # a response without "Failed" is a deletion
            await quick.delete_message_batch(QueueUrl=queue.queue_url, Entries=entries)
            assert queue.waiting == 0


async def test_an_error_is_that_of_botocore() -> None:
    async with FakeFifo() as queue, opened(queue) as quick:
        queue.out_of_service = True
        with pytest.raises(ClientError):
            await quick.receive_message(**asked(queue))
