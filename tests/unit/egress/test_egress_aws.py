from pathlib import Path

import pytest

from byoc_agents.egress.aws import NO_CREDENTIALS, aws_config, aws_session, fetch_credentials
from byoc_agents.egress.destinations import https_destination
from byoc_agents.egress.gate import Gate, Refusal
from byoc_agents.errors import Reason, SendError
from lab.fakes.http import FakeHttp, always, redirect, reply

REGION = "eu-west-1"
STS_RESPONSE = b"""<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>
<AccessKeyId>ASIA</AccessKeyId><SecretAccessKey>s</SecretAccessKey><SessionToken>t</SessionToken>
<Expiration>2099-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleWithWebIdentityResult>
</AssumeRoleWithWebIdentityResponse>"""


@pytest.fixture(autouse=True)
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Take every identity out of the environment."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    return monkeypatch


@pytest.fixture
def irsa(bare: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """Put in what EKS gives a pod."""
    (tmp_path / "token").write_text("jwt-of-the-pod")
    bare.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/agents")
    bare.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    return bare


async def reason_of(gate: Gate) -> SendError:
    with pytest.raises(SendError) as caught:
        await fetch_credentials(aws_session(gate, REGION))
    return caught.value


async def test_the_nodes_role_is_not_asked_for(bare: pytest.MonkeyPatch) -> None:
    async with FakeHttp() as imds:
        bare.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", imds.url)
        bare.setenv("AWS_EC2_METADATA_DISABLED", "false")
        error = await reason_of(Gate([]))
    assert (error.reason, error.detail) == (Reason.CREDENTIALS, NO_CREDENTIALS)
    assert imds.connections == 0


async def test_no_program_is_started_for_credentials(
    bare: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = tmp_path / "config"
    config.write_text(f"[default]\ncredential_process = touch {tmp_path}/started\n")
    bare.setenv("AWS_CONFIG_FILE", str(config))
    error = await reason_of(Gate([]))
    assert error.detail == NO_CREDENTIALS
    assert not (tmp_path / "started").exists()


async def test_irsa_asks_sts_through_the_gate(irsa: pytest.MonkeyPatch) -> None:
    async with FakeHttp(always(reply(200, {}, STS_RESPONSE))) as sts:
        irsa.setenv("AWS_ENDPOINT_URL_STS", sts.url)
        session = aws_session(Gate([https_destination(sts.url)]), REGION)
        await fetch_credentials(session)
        await fetch_credentials(session)  # still fresh: nothing is asked
    (request,) = sts.requests
    assert b"jwt-of-the-pod" in request.body
    assert b"AssumeRoleWithWebIdentity" in request.body


async def test_an_sts_that_is_no_destination_is_refused(irsa: pytest.MonkeyPatch) -> None:
    refused: list[Refusal] = []
    async with FakeHttp() as sts:
        irsa.setenv("AWS_ENDPOINT_URL_STS", sts.url)
        error = await reason_of(Gate([], on_refused=lambda why, _: refused.append(why)))
    assert (error.reason, refused, sts.connections) == (Reason.EGRESS_REFUSED, [Refusal.HOST], 0)


@pytest.mark.parametrize("status", [400, 403, 500])
async def test_a_refusing_sts_is_credentials_after_one_request(
    status: int, irsa: pytest.MonkeyPatch
) -> None:
    async with FakeHttp(always(reply(status))) as sts:
        irsa.setenv("AWS_ENDPOINT_URL_STS", sts.url)
        error = await reason_of(Gate([https_destination(sts.url)]))
    assert error.reason is (Reason.SERVER_ERROR if status == 500 else Reason.CREDENTIALS)
    assert "AWS credentials: " in error.detail
    assert len(sts.requests) == 1


@pytest.mark.parametrize(
    ("status", "code", "reason"),
    [
        (403, "AccessDenied", Reason.CREDENTIALS),
        (400, "Throttling", Reason.THROTTLED),
        (400, "IDPCommunicationError", Reason.SERVER_ERROR),
        (400, "InvalidIdentityToken", Reason.CREDENTIALS),
    ],
)
async def test_the_code_of_sts_decides_and_is_named(
    status: int, code: str, reason: Reason, irsa: pytest.MonkeyPatch
) -> None:
    body = f"<ErrorResponse><Error><Code>{code}</Code></Error></ErrorResponse>".encode()
    async with FakeHttp(always(reply(status, {"content-type": "text/xml"}, body))) as sts:
        irsa.setenv("AWS_ENDPOINT_URL_STS", sts.url)
        error = await reason_of(Gate([https_destination(sts.url)]))
    assert (error.reason, error.detail) == (
        reason,
        f"AWS credentials: STS answered {status} {code}",
    )


async def test_a_redirecting_sts_gets_the_pods_token_nowhere_else(
    irsa: pytest.MonkeyPatch,
) -> None:
    refused: list[Refusal] = []
    async with FakeHttp() as other, FakeHttp(always(redirect(other.url))) as sts:
        irsa.setenv("AWS_ENDPOINT_URL_STS", sts.url)
        table = [https_destination(sts.url), https_destination(other.url)]
        error = await reason_of(Gate(table, on_refused=lambda why, _: refused.append(why)))
    assert error.reason is Reason.CREDENTIALS
    assert (other.connections, refused) == (0, [Refusal.REDIRECT])


@pytest.mark.usefixtures("irsa")
async def test_a_missing_token_file_is_credentials(tmp_path: Path) -> None:
    (tmp_path / "token").unlink()
    error = await reason_of(Gate([]))
    assert (error.reason, error.detail) == (
        Reason.CREDENTIALS,
        "AWS credentials: FileNotFoundError",
    )


async def test_proxies_of_the_environment_carry_nothing(bare: pytest.MonkeyPatch) -> None:
    async with FakeHttp() as proxy, FakeHttp() as queue:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
            bare.setenv(name, proxy.url)
        gate = Gate([https_destination(queue.url)])
        session = aws_session(gate, REGION)
        session.set_credentials("AKIAEXAMPLE", "secret")
        options = {"endpoint_url": queue.url, "config": aws_config(gate)}
        async with session.create_client("s3", **options) as client:
            await client.list_objects_v2(Bucket="bucket")
    assert (proxy.connections, len(queue.requests)) == (0, 1)


async def test_the_metadata_service_is_not_asked_for_defaults(bare: pytest.MonkeyPatch) -> None:
    async with FakeHttp() as imds:
        bare.setenv("AWS_DEFAULTS_MODE", "auto")
        bare.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", imds.url)
        session = aws_session(Gate([]), REGION)
        session.set_credentials("AKIAEXAMPLE", "secret")
        async with session.create_client("sqs"):
            pass
    assert imds.connections == 0


async def test_nothing_is_retried_behind_the_shippers_back(bare: pytest.MonkeyPatch) -> None:
    bare.setenv("AWS_MAX_ATTEMPTS", "5")
    async with FakeHttp(always(reply(500))) as queue:
        gate = Gate([https_destination(queue.url)])
        session = aws_session(gate, REGION)
        session.set_credentials("AKIAEXAMPLE", "secret")
        options = {"endpoint_url": queue.url, "config": aws_config(gate)}
        async with session.create_client("s3", **options) as client:
            with pytest.raises(client.exceptions.ClientError):
                await client.list_objects_v2(Bucket="bucket")
    assert len(queue.requests) == 1
