"""Whose signature is on a request, while keys and tokens are rotated under a running process.

botocore's real providers against loopback fakes of STS, of the Pod Identity agent and of S3.
"""

import json
import os
import re
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from aiobotocore.session import AioSession

from byoc_agents.app import files
from byoc_agents.app.clock import SystemClock
from byoc_agents.app.metrics import Metrics
from byoc_agents.app.runtime import ClickHouseSettings, Runtime
from byoc_agents.app.settings import CoreSettings
from byoc_agents.billing import daemon as billing
from byoc_agents.egress.aws import NO_CREDENTIALS, NOT_ASCII, aws_session, provider_name
from byoc_agents.egress.aws_files import AwsFiles
from byoc_agents.egress.destinations import credential_destinations, https_destination
from byoc_agents.egress.gate import Gate
from byoc_agents.errors import Reason, SendError
from byoc_agents.message import Message, Outcome
from byoc_agents.sinks.s3 import S3Sink
from lab.fakes.http import FakeHttp, Request, always, reply

REGION = "eu-west-1"
NEVER = "2099-01-01T00:00:00Z"
STORED = always(reply(200, {"etag": '"e"'}))
OWN = re.compile(r"AWS_(ACCESS|SECRET|SESSION|PROFILE|ROLE|WEB|CONTAINER|ENDPOINT)")


def soon() -> str:
    """Return a time in one minute: botocore refreshes ten minutes before the end."""
    return (datetime.now(UTC) + timedelta(minutes=1)).strftime("%Y-%m-%dT%H:%M:%SZ")


@pytest.fixture(autouse=True)
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Take every identity out of the environment."""
    for name in [name for name in os.environ if OWN.match(name)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    return monkeypatch


class Harness:
    """A sink in front of a fake of S3: `send` returns who signed, or the failure."""

    def __init__(self, s3: FakeHttp, *more: str) -> None:
        self.s3 = s3
        gate = Gate([https_destination(url) for url in (s3.url, *more)])
        self.session: AioSession = aws_session(gate, REGION)
        self.sink = S3Sink(self.session, gate, "usage", region=REGION, endpoint_url=s3.url)

    async def send(self) -> str | Outcome:
        before = len(self.s3.requests)
        (outcome,) = await self.sink.send([Message("k", "t", b"x", 0)])
        if len(self.s3.requests) == before:
            return outcome
        found = re.search(r"Credential=(\w+)/", self.s3.requests[-1].headers["authorization"])
        assert found
        return found[1]


def sts(expires: Callable[[], str]) -> FakeHttp:
    """Return a fake of STS whose keys are named after the token that it was shown."""

    def respond(request: Request) -> bytes:
        token = re.search(rb"WebIdentityToken=(\w+)", request.body)
        key = f"ASIA{token[1].decode() if token else 'NOBODY'}"
        return (
            "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>"
            f"<AccessKeyId>{key}</AccessKeyId><SecretAccessKey>s</SecretAccessKey>"
            f"<SessionToken>t</SessionToken><Expiration>{expires()}</Expiration></Credentials>"
            "</AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"
        ).encode()

    return FakeHttp(lambda request: reply(200, {}, respond(request)))


def pod_agent(expires: Callable[[], str]) -> FakeHttp:
    """Return a fake of the Pod Identity agent, likewise."""

    def respond(headers: Mapping[str, str]) -> bytes:
        key = f"ASIA{headers.get('authorization', 'NOBODY')}"
        keys = {"AccessKeyId": key, "SecretAccessKey": "s", "Token": "t"}
        return json.dumps(keys | {"Expiration": expires()}).encode()

    return FakeHttp(lambda request: reply(200, {}, respond(request.headers)))


@pytest.fixture
def token(tmp_path: Path) -> Path:
    """Return the file that the kubelet rotates."""
    path = tmp_path / "token"
    path.write_text("TOKEN1")
    return path


async def test_irsa_reads_the_rotated_token_when_its_keys_run_out(
    bare: pytest.MonkeyPatch, token: Path
) -> None:
    async with FakeHttp(STORED) as s3, sts(soon) as receiver:
        bare.setenv("AWS_ENDPOINT_URL_STS", receiver.url)
        bare.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/agents")
        bare.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(token))
        harness = Harness(s3, receiver.url)
        async with harness.sink:
            assert await harness.send() == "ASIATOKEN1"
            token.write_text("TOKEN2")  # noqa: ASYNC240  a few bytes
            assert await harness.send() == "ASIATOKEN2"
    assert provider_name(harness.session) == "assume-role-with-web-identity"


async def test_irsa_asks_once_while_its_keys_are_good(
    bare: pytest.MonkeyPatch, token: Path
) -> None:
    async with FakeHttp(STORED) as s3, sts(lambda: NEVER) as receiver:
        bare.setenv("AWS_ENDPOINT_URL_STS", receiver.url)
        bare.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/agents")
        bare.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(token))
        harness = Harness(s3, receiver.url)
        async with harness.sink:
            assert [await harness.send(), await harness.send()] == ["ASIATOKEN1", "ASIATOKEN1"]
    assert len(receiver.requests) == 1


async def test_pod_identity_reads_the_rotated_token_when_its_keys_run_out(
    bare: pytest.MonkeyPatch, token: Path
) -> None:
    async with FakeHttp(STORED) as s3, pod_agent(soon) as agent:
        bare.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{agent.url}/v1/credentials")
        bare.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", str(token))
        harness = Harness(s3, agent.url)
        async with harness.sink:
            assert await harness.send() == "ASIATOKEN1"
            token.write_text("TOKEN2")  # noqa: ASYNC240  a few bytes
            assert await harness.send() == "ASIATOKEN2"
    assert provider_name(harness.session) == "container-role"


async def test_pod_identity_asks_once_while_its_keys_are_good(
    bare: pytest.MonkeyPatch, token: Path
) -> None:
    async with FakeHttp(STORED) as s3, pod_agent(lambda: NEVER) as agent:
        bare.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{agent.url}/v1/credentials")
        bare.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", str(token))
        harness = Harness(s3, agent.url)
        async with harness.sink:
            assert [await harness.send(), await harness.send()] == ["ASIATOKEN1", "ASIATOKEN1"]
    assert len(agent.requests) == 1


async def test_keys_of_the_environment_are_used_as_they_are(bare: pytest.MonkeyPatch) -> None:
    bare.setenv("AWS_ACCESS_KEY_ID", "AKIAENV")
    bare.setenv("AWS_SECRET_ACCESS_KEY", "s")
    async with FakeHttp(STORED) as s3:
        harness = Harness(s3)
        assert provider_name(harness.session) == ""
        async with harness.sink:
            assert await harness.send() == "AKIAENV"
    assert provider_name(harness.session) == "env"
    assert credential_destinations(os.environ, REGION) == []


HALF = ["", "[default]\n", "[default]\naws_access_key_id = AKIATHREE\n", "[default"]


async def test_a_file_of_keys_is_read_again_and_half_of_it_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "credentials"
    keys = "[default]\naws_access_key_id = {}\naws_secret_access_key = s\n"
    file.write_text(keys.format("AKIAONE"))
    async with FakeHttp(STORED) as s3:
        harness = Harness(s3)
        async with harness.sink:
            assert await harness.send() == "AKIAONE"
            for text in (keys.format("AKIATWO"), *HALF):
                file.write_text(text)
                assert await harness.send() == "AKIATWO", text
            file.unlink()
            assert await harness.send() == "AKIATWO"
    assert provider_name(harness.session) == "shared-credentials-file"


def become_fifo(path: Path) -> None:
    """Put a FIFO in the place of a file: opening it waits until somebody writes."""
    path.unlink()
    os.mkfifo(path)


def become_file(path: Path, text: str) -> None:
    path.unlink()
    path.write_text(text)


async def test_an_irsa_token_that_cannot_be_read_never_stops_the_loop(
    bare: pytest.MonkeyPatch, token: Path
) -> None:
    become_fifo(token)
    async with FakeHttp(STORED) as s3, sts(soon) as receiver:
        bare.setenv("AWS_ENDPOINT_URL_STS", receiver.url)
        bare.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/agents")
        bare.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(token))
        harness = Harness(s3, receiver.url)
        async with harness.sink:
            outcome = await harness.send()
            assert isinstance(outcome, SendError)
            assert outcome.reason is Reason.CREDENTIALS
            assert f"{token} is a FIFO; expected a regular file" in outcome.detail
            become_file(token, "TOKEN1")
            assert await harness.send() == "ASIATOKEN1"
            become_fifo(token)
            again = await harness.send()
            assert isinstance(again, SendError), "the keys end within a minute"
    assert not s3.requests[1:]


async def test_keys_that_last_stay_in_use_while_the_token_cannot_be_read(
    bare: pytest.MonkeyPatch, token: Path
) -> None:
    """Botocore asks for new keys 15 minutes before the end, and needs them 10 minutes before."""
    end = (datetime.now(UTC) + timedelta(minutes=12)).strftime("%Y-%m-%dT%H:%M:%SZ")
    async with FakeHttp(STORED) as s3, sts(lambda: end) as receiver:
        bare.setenv("AWS_ENDPOINT_URL_STS", receiver.url)
        bare.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/agents")
        bare.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(token))
        harness = Harness(s3, receiver.url)
        async with harness.sink:
            assert await harness.send() == "ASIATOKEN1"
            become_fifo(token)
            assert await harness.send() == "ASIATOKEN1"


async def test_a_pod_identity_token_that_cannot_be_read_never_stops_the_loop(
    bare: pytest.MonkeyPatch, token: Path
) -> None:
    become_fifo(token)
    async with FakeHttp(STORED) as s3, pod_agent(lambda: NEVER) as agent:
        bare.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{agent.url}/v1/credentials")
        bare.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", str(token))
        harness = Harness(s3, agent.url)
        async with harness.sink:
            outcome = await harness.send()
            assert isinstance(outcome, SendError)
            assert f"{token} is a FIFO; expected a regular file" in outcome.detail
            become_file(token, "TOKEN1")
            assert await harness.send() == "ASIATOKEN1"


async def test_a_file_of_keys_that_cannot_be_read_never_stops_the_loop(tmp_path: Path) -> None:
    file = tmp_path / "credentials"
    keys = "[default]\naws_access_key_id = {}\naws_secret_access_key = s\n"
    file.write_text(keys.format("AKIAONE"))
    async with FakeHttp(STORED) as s3:
        harness = Harness(s3)
        async with harness.sink:
            assert await harness.send() == "AKIAONE"
            become_fifo(file)
            assert await harness.send() == "AKIAONE"
            become_file(file, keys.format("AKIATWO"))
            assert await harness.send() == "AKIATWO"


async def test_keys_of_the_configuration_file_and_of_a_profile_are_used(
    bare: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "config"
    file.write_text("[profile x]\naws_access_key_id = AKIAX\naws_secret_access_key = s\n")
    bare.setenv("AWS_CONFIG_FILE", str(file))
    bare.setenv("AWS_PROFILE", "x")
    async with FakeHttp(STORED) as s3:
        harness = Harness(s3)
        async with harness.sink:
            assert await harness.send() == "AKIAX"
    assert provider_name(harness.session) == "config-file"


async def test_a_mount_that_hangs_costs_one_wait_and_no_second_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hang, reads = threading.Event(), []

    def read(path: str, *_: object) -> None:
        reads.append(path)
        hang.wait(30)

    monkeypatch.setattr(files, "read_regular", read)
    found = AwsFiles([str(tmp_path / "token")], seconds=0.01)
    try:
        for _ in range(3):
            await found.read()
            with pytest.raises(files.NotReadableError, match="does not respond"):
                found.text(str(tmp_path / "token"))
        assert len(reads) == 1
    finally:
        hang.set()


async def test_keys_that_a_header_cannot_hold_are_never_signed_with(tmp_path: Path) -> None:
    keys = "[default]\naws_access_key_id = AKIA\naws_secret_access_key = sécret\n"
    (tmp_path / "credentials").write_text(keys)
    async with FakeHttp(STORED) as s3:
        harness = Harness(s3)
        async with harness.sink:
            outcome = await harness.send()
    assert isinstance(outcome, SendError)
    assert (outcome.reason, outcome.detail) == (Reason.CREDENTIALS, NOT_ASCII)
    assert not s3.requests


async def test_the_nodes_role_is_refused_with_what_is_wanted(bare: pytest.MonkeyPatch) -> None:
    async with FakeHttp(STORED) as s3, FakeHttp() as imds:
        bare.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", imds.url)
        harness = Harness(s3)
        async with harness.sink:
            outcome = await harness.send()
    assert isinstance(outcome, SendError)
    assert (outcome.reason, outcome.detail) == (Reason.CREDENTIALS, NO_CREDENTIALS)
    assert imds.connections == 0


async def test_status_names_the_provider_and_no_key(
    bare: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bare.setenv("AWS_ACCESS_KEY_ID", "AKIAENV")
    bare.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    bare.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")  # nobody listens there
    core = CoreSettings(
        organization_id="o", service_id="s", region=REGION, state_dir=str(tmp_path / "state")
    )
    for bucket, before, after in (("usage", "none yet", "env"), (f"file://{tmp_path}", None, None)):
        own = billing.Settings(bucket=bucket, target="process:nobody")
        gate = Gate(billing.destinations(core, ClickHouseSettings(), own, os.environ))
        runtime = Runtime(core, os.environ, gate, SystemClock(), Metrics())
        async with billing.open_daemon(runtime, ClickHouseSettings(), own) as agent:
            assert agent.status().get("aws_identity") == before
            await runtime.aws.get_credentials()
            assert agent.status().get("aws_identity") == after
            assert not {"AKIAENV", "hunter2"} & set(re.findall(r"\w+", str(agent.status())))
