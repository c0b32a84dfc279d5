"""The S3 sink's requests, and those it never makes; real aiobotocore, real sockets."""

import asyncio
import base64
import hashlib
from typing import Any

import pytest
from aiobotocore.session import AioSession

from byoc_agents.egress.aws import NO_CREDENTIALS, aws_session
from byoc_agents.egress.gate import Gate
from byoc_agents.errors import Reason, SendError
from byoc_agents.message import Receipt
from byoc_agents.sinks.s3 import S3Sink
from lab.fakes.http import (
    Behavior,
    FakeHttp,
    always,
    close,
    cut,
    garbage,
    hang,
    in_order,
    lose,
    redirect,
    reply,
    reset,
)
from lab.fakes.s3 import FakeS3
from tests.unit.sinks.s3_sinks import HERE, MESSAGE, THERE, said, sink_to


async def test_a_put_is_conditional_checked_and_typed(session: AioSession) -> None:
    async with (
        FakeS3(owner="123456789012") as s3,
        sink_to(s3.url, session, expected_bucket_owner="123456789012") as sink,
    ):
        (receipt,) = await sink.send([MESSAGE])
    (request,) = s3.http.requests
    wanted = {
        "if-none-match": "*",
        "x-amz-checksum-sha256": base64.b64encode(hashlib.sha256(MESSAGE.body).digest()).decode(),
        "x-amz-expected-bucket-owner": "123456789012",
        "x-amz-security-token": "session-token-of-test",
        "content-type": "application/x-ndjson",
        "content-encoding": "zstd",
        "content-length": str(len(MESSAGE.body)),
    }
    assert {name: request.headers.get(name) for name in wanted} == wanted
    assert "expect" not in request.headers, "a store that never says 100 would never get the body"
    assert (request.method, request.path) == ("PUT", f"/bucket/{MESSAGE.id}")
    assert s3.objects == {MESSAGE.id: MESSAGE.body}
    assert receipt == Receipt(Reason.OK, 200, hashlib.md5(MESSAGE.body).hexdigest())


async def test_another_owner_of_the_bucket_is_forbidden(session: AioSession) -> None:
    async with (
        FakeS3(owner="999999999999") as s3,
        sink_to(s3.url, session, expected_bucket_owner="123456789012") as sink,
    ):
        (outcome,) = await sink.send([MESSAGE])
    assert outcome.reason is Reason.FORBIDDEN
    assert s3.objects == {}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_no_redirect_sends_a_byte_to_the_other_port(status: int, session: AioSession) -> None:
    async with (
        FakeHttp() as stranger,
        FakeS3(always(redirect(stranger.url, status))) as s3,
        sink_to(s3.url, session) as sink,
    ):
        (outcome,) = await sink.send([MESSAGE])
    assert outcome.reason is Reason.REDIRECT
    assert (stranger.connections, stranger.bytes_received) == (0, 0)


@pytest.mark.parametrize("headers", [{}, THERE], ids=["without a region", "with a region"])
async def test_the_region_redirector_asks_and_moves_nothing(
    headers: dict[str, str], session: AioSession
) -> None:
    async with (
        FakeS3(always(said(301, "PermanentRedirect", headers))) as s3,
        sink_to(s3.url, session) as sink,
    ):
        for _ in range(2):
            await sink.send([MESSAGE])
    assert [request.method for request in s3.http.requests] == ["PUT", "PUT"]


async def test_one_connection_serves_many_sends(session: AioSession) -> None:
    async with FakeS3() as s3, sink_to(s3.url, session) as sink:
        for _ in range(3):
            await sink.send([MESSAGE])
    assert s3.http.connections == 1


async def test_no_credentials_say_what_is_wanted_and_are_asked_for_again(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    bare = aws_session(Gate([]), HERE)
    async with FakeS3() as s3, sink_to(s3.url, bare) as sink:
        (first,) = await sink.send([MESSAGE])
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
        (second,) = await sink.send([MESSAGE])
    assert isinstance(first, SendError)
    assert (first.reason, first.detail) == (Reason.CREDENTIALS, NO_CREDENTIALS)
    assert second.reason is Reason.OK


async def test_a_failing_credential_agent_is_credentials_and_recovers(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = (
        b'{"AccessKeyId":"A","SecretAccessKey":"S","Token":"T","Expiration":"2099-01-01T00:00:00Z"}'
    )
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    script = in_order(garbage(), then=reply(200, body=keys))
    async with FakeHttp(script) as agent, FakeS3() as s3:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", agent.url)
        async with sink_to(s3.url, aws_session(Gate([]), HERE)) as sink:
            outcomes = [(await sink.send([MESSAGE]))[0] for _ in range(2)]
    assert [outcome.reason for outcome in outcomes] == [Reason.CREDENTIALS, Reason.OK]


@pytest.mark.parametrize(
    "code", ["ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "TokenRefreshRequired"]
)
async def test_keys_that_are_refused_before_their_end_are_fetched_again_once_a_minute(
    code: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    dates = '"SecretAccessKey":"S","Token":"T","Expiration":"2099-01-01T00:00:00Z"'
    keys = [reply(200, body=f'{{"AccessKeyId":"KEY{n}",{dates}}}'.encode()) for n in range(5)]
    clock = [0.0]
    used, outcomes = [], []
    async with FakeHttp(in_order(*keys)) as agent, FakeS3() as s3:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", agent.url)
        session = aws_session(Gate([]), HERE)
        async with sink_to(s3.url, session, monotonic=lambda: clock[0]) as sink:
            s3.http.script = always(said(403, code))
            for clock[0] in (0.0, 1.0, 2.0, 61.0, 62.0):
                outcomes.append((await sink.send([MESSAGE]))[0].reason)
                used.append(s3.http.requests[-1].headers["authorization"].partition("KEY")[2][0])
    assert outcomes == [Reason.CREDENTIALS] * 5
    assert used == ["0", "1", "1", "1", "2"]


async def test_a_host_that_is_no_destination_is_refused(session: AioSession) -> None:
    async with (
        FakeS3() as s3,
        S3Sink(session, Gate([]), "bucket", region=HERE, endpoint_url=s3.url) as sink,
    ):
        (outcome,) = await sink.send([MESSAGE])
    assert outcome.reason is Reason.EGRESS_REFUSED
    assert s3.http.connections == 0


@pytest.mark.parametrize("lost", [lose(close), lose(reset), cut(9)], ids=["closed", "reset", "cut"])
async def test_a_lost_response_and_its_retry_have_one_effect(
    lost: Behavior, session: AioSession
) -> None:
    async with FakeS3(in_order(lost)) as s3, sink_to(s3.url, session) as sink:
        outcomes = [(await sink.send([MESSAGE]))[0].reason for _ in range(2)]
    assert outcomes == [Reason.CONNECTION, Reason.ALREADY_STORED]
    assert s3.applied(MESSAGE.id) == 1


async def test_cancelling_closes_nothing_for_the_next_send(session: AioSession) -> None:
    there = asyncio.Event()
    s3 = FakeS3(in_order(lose(hang)), on_put=lambda _: there.set())
    async with s3, sink_to(s3.url, session) as sink:
        first = asyncio.ensure_future(sink.send([MESSAGE]))
        await there.wait()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        (outcome,) = await sink.send([MESSAGE])
    assert outcome.reason is Reason.ALREADY_STORED
    assert s3.applied(MESSAGE.id) == 1
