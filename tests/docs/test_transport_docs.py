"""The fields page names the headers and attributes of recorded requests, and no others."""

import base64
import json
from collections.abc import Mapping

import aiohttp
import pytest
from aiobotocore.session import AioSession

from byoc_agents import __version__
from byoc_agents.app.clock import SystemClock
from byoc_agents.delivery.sink import Message
from byoc_agents.egress.aws import aws_session
from byoc_agents.egress.destinations import https_destination
from byoc_agents.egress.gate import Gate
from byoc_agents.schema.transport import CHANNELS
from byoc_agents.sinks.https import HttpsSink
from lab.fakes.http import HttpDouble, always, reply
from lab.fakes.s3 import FakeS3
from lab.fakes.sqs import FakeSqs
from tests.unit.sinks import s3_sinks, sqs_sinks

SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> AioSession:
    """Return a session in an environment that botocore would like to report."""
    monkeypatch.setenv("AWS_EXECUTION_ENV", "customer-secret-environment")
    monkeypatch.setenv("AWS_SDK_UA_APP_ID", "customer-secret-application")
    made = aws_session(Gate([]), s3_sinks.HERE)
    made.set_credentials("AKIAEXAMPLE", "secret", "session-token")
    return made


def checked(channel: str, headers: Mapping[str, str]) -> None:
    """Compare the names of a request's headers with the documented ones."""
    documented = {item.name.lower() for item in CHANNELS[channel] if item.kind == "header"}
    assert {name.lower() for name in headers} == documented
    assert headers["user-agent"] == f"byoc-agents/{__version__}"
    assert "customer-secret" not in json.dumps(dict(headers))


async def test_an_object_has_the_documented_headers(session: AioSession) -> None:
    owner = {"expected_bucket_owner": "123456789012"}
    async with (
        FakeS3(owner="123456789012") as s3,
        s3_sinks.sink_to(s3.url, session, **owner) as sink,
    ):
        await sink.send([s3_sinks.MESSAGE])
    checked("S3", s3.http.requests[0].headers)


async def test_a_queue_message_has_the_documented_headers_and_attributes(
    session: AioSession,
) -> None:
    async with FakeSqs() as sqs, sqs_sinks.sink_to(sqs.queue_url, session) as sink:
        await sink.send([sqs_sinks.message("a")])
    (request,) = sqs.http.requests
    checked("SQS", request.headers)
    (entry,) = json.loads(request.body)["Entries"]
    documented = {item.name for item in CHANNELS["SQS"] if item.kind == "attribute"}
    assert set(entry) - {"MessageBody"} == documented


async def test_an_alert_has_the_documented_headers() -> None:
    async with HttpDouble(always(reply(200))) as plane:
        gate = Gate([https_destination(plane.url, purpose="p", daemon="d", setting="s")])
        async with gate.session() as client:
            sink = https_sink(plane.url, client)
            await sink.send([Message("id", "byoc.alert.v1", b"{}", 0)])
    checked("HTTPS", plane.requests[0].headers)


def https_sink(url: str, client: aiohttp.ClientSession) -> HttpsSink:
    return HttpsSink(
        url, client, token=lambda: "t", signing_secret=lambda: SECRET, clock=SystemClock()
    )
