"""The fields page names the headers, keys and attributes of recorded requests, and no others."""

import base64
import json
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import parse_qsl

import aiohttp
import pytest
from aiobotocore.session import AioSession

from byoc_agents import __version__
from byoc_agents.app.clock import SystemClock
from byoc_agents.app.cloudevents import encode
from byoc_agents.billing.objects import SharedNumbers, seal
from byoc_agents.egress.aws import aws_session, fetch_credentials
from byoc_agents.egress.destinations import https_destination
from byoc_agents.egress.gate import Gate
from byoc_agents.message import Message
from byoc_agents.schema.transport import CHANNELS
from byoc_agents.sinks.https import HttpsSink
from lab.fakes.billing import ReplicaHistory
from lab.fakes.http import FakeHttp, always, reply
from lab.fakes.s3 import FakeS3
from lab.fakes.sqs import FakeSqs
from tests.unit.egress.test_egress_aws import STS_RESPONSE
from tests.unit.sinks import s3_sinks, sqs_sinks

AGENT_ANSWER = b"""{"AccessKeyId": "ASIA", "SecretAccessKey": "s", "Token": "t",
"Expiration": "2099-01-01T00:00:00Z"}"""
SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> AioSession:
    """Return a session in an environment that botocore would like to report."""
    monkeypatch.setenv("AWS_EXECUTION_ENV", "customer-secret-environment")
    monkeypatch.setenv("AWS_SDK_UA_APP_ID", "customer-secret-application")
    made = aws_session(Gate([]), s3_sinks.HERE)
    made.set_credentials("AKIAEXAMPLE", "secret", "session-token")
    return made


def documented(channel: str, kind: str) -> list[str]:
    """Return the documented names."""
    return [item.name for item in CHANNELS[channel] if item.kind == kind]


def checked(
    channel: str, headers: Mapping[str, str], agent: str = f"byoc-agents/{__version__}"
) -> None:
    """Compare the names of a request's headers with the documented ones."""
    names = {name.lower() for name in documented(channel, "header")}
    assert {name.lower() for name in headers} == names
    assert headers["user-agent"] == agent
    assert "customer-secret" not in json.dumps(dict(headers))


async def test_an_object_has_the_documented_headers(session: AioSession) -> None:
    owner = {"expected_bucket_owner": "123456789012"}
    async with (
        FakeS3(owner="123456789012") as s3,
        s3_sinks.sink_to(s3.url, session, **owner) as sink,
    ):
        await sink.send([s3_sinks.MESSAGE])
    checked("S3", s3.http.requests[0].headers)


def test_an_objects_key_has_the_documented_parts() -> None:
    values = {"PREFIX": "v1", "ORGANIZATION": "org-1", "SERVICE": "service-1"}
    values |= {"DATE": "2026-11-23", "HOUR": "12", "POD": "pod-1", "SCRAPER": "scraper-0"}
    values |= {"EPOCH": "7", "FIRST": "0000000003", "LAST": "0000000003"}
    *folder, own, shared = documented("S3", "key")
    line = encode(ReplicaHistory(pod_uid="pod-1", epoch=7, sequence=3).measured())
    numbers = SharedNumbers(name="scraper-0", epoch=7, first=3)
    for last, given in ((own, None), (shared, numbers)):
        form = re.sub("[A-Z]+", lambda name: values[name[0]], "/".join([*folder, last]))
        assert seal([line], created_at_ms=0, numbers=given).id == form


async def test_the_question_for_the_buckets_region_has_the_documented_headers(
    session: AioSession,
) -> None:
    async with FakeS3() as s3, s3_sinks.sink_to(s3.url, session) as sink:
        await sink.stated_region()
    (request,) = s3.http.requests
    assert (request.method, request.body) == ("HEAD", b"")
    checked("S3, when the billing scraper starts", request.headers)


@pytest.fixture
def token(session: AioSession, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return the file of a pod's token, in an environment without another identity."""
    del session
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "token"
    path.write_text("jwt-of-the-pod")
    return path


async def test_sts_gets_the_documented_headers_and_parameters(
    token: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/agents")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(token))
    async with FakeHttp(always(reply(200, {}, STS_RESPONSE))) as sts:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", sts.url)
        gate = Gate([https_destination(sts.url, purpose="p", daemon="d", setting="s")])
        await fetch_credentials(aws_session(gate, s3_sinks.HERE))
    (request,) = sts.requests
    checked("STS, for IRSA", request.headers)
    parameters = dict(parse_qsl(request.body.decode()))
    assert list(parameters) == documented("STS, for IRSA", "parameter")
    assert re.fullmatch(r"botocore-session-\d+", parameters["RoleSessionName"])


async def test_the_agent_on_the_node_gets_the_documented_headers(
    token: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", str(token))
    async with FakeHttp(always(reply(200, {}, AGENT_ANSWER))) as agent:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{agent.url}/v1/credentials")
        gate = Gate([https_destination(agent.url, purpose="p", daemon="d", setting="s")])
        await fetch_credentials(aws_session(gate, s3_sinks.HERE))
    (request,) = agent.requests
    assert request.body == b""
    checked(
        "The agent on the node, for EKS Pod Identity",
        request.headers,
        aiohttp.http.SERVER_SOFTWARE,
    )


async def test_a_queue_message_has_the_documented_headers_and_attributes(
    session: AioSession,
) -> None:
    async with FakeSqs() as sqs, sqs_sinks.sink_to(sqs.queue_url, session) as sink:
        await sink.send([sqs_sinks.message("a")])
    (request,) = sqs.http.requests
    checked("SQS", request.headers)
    (entry,) = json.loads(request.body)["Entries"]
    assert set(entry) - {"MessageBody"} == set(documented("SQS", "attribute"))


async def test_an_alert_has_the_documented_headers() -> None:
    async with FakeHttp(always(reply(200))) as plane:
        gate = Gate([https_destination(plane.url, purpose="p", daemon="d", setting="s")])
        async with gate.session() as client:
            sink = https_sink(plane.url, client)
            await sink.send([Message("id", "byoc.alert.v1", b"{}", 0)])
    checked("HTTPS", plane.requests[0].headers)


def https_sink(url: str, client: aiohttp.ClientSession) -> HttpsSink:
    return HttpsSink(
        url, client, token=lambda: "t", signing_secret=lambda: SECRET, clock=SystemClock()
    )
