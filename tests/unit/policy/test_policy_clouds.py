"""Roles for clusters of GKE and AKS: the printed trust policy, and a daemon's sink behind it.

A fake of STS judges each token by the policy that `policy iam` prints, as AWS does: the provider
is the token's issuer to the letter, and each condition is a claim of the token.
"""

import base64
import json
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from byoc_agents.app.cli import main
from byoc_agents.egress.aws import aws_session
from byoc_agents.egress.destinations import https_destination
from byoc_agents.egress.gate import Gate
from byoc_agents.errors import Reason, SendError
from byoc_agents.message import Message, Receipt
from byoc_agents.sinks.s3 import S3Sink
from lab.fakes.http import Behavior, FakeHttp, Request, always, reply

ROLE = "arn:aws:iam::444455556666:role/org-1"
GKE = "https://container.googleapis.com/v1/projects/p-1/locations/europe-west1/clusters/c-1"
AKS = "https://westeurope.oic.prod-aks.azure.com/11111111-2222-3333-4444-555555555555/6666/"
ISSUERS = pytest.mark.parametrize("issuer", [GKE, AKS], ids=["gke", "aks"])
SUBJECT = "system:serviceaccount:clickhouse:clickhouse"


def printed(issuer: str, capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    """Return the statement that `policy iam` prints."""
    options = ["--trust", "web-identity", "--issuer", issuer, "--role", ROLE]
    options += ["--service-account", "clickhouse/clickhouse", *more]
    assert main(["policy", "iam", "billing-scraper", *options]) == 0
    said = capsys.readouterr()
    assert "has no endpoint of a VPC" in said.err
    (statement,) = json.loads(said.out)["Statement"]
    found: dict[str, Any] = statement
    return found


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "BYOC_ORGANIZATION_ID": "org-1",
        "BYOC_SERVICE_ID": "svc-1",
        "BYOC_REPLICA": "r-0",
        "BYOC_REGION": "eu-central-1",
        "BYOC_BILLING_BUCKET": "usage",
    }.items():
        monkeypatch.setenv(name, value)


def token(**claims: str) -> str:
    """Return a token as the kubelet writes it; the fake does not look at the signature."""
    parts = [json.dumps(part).encode() for part in ({"alg": "RS256"}, claims)]
    encoded = [base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts]
    return ".".join([*encoded, "signature"])


def judge(trust: dict[str, Any], asked: dict[str, list[str]]) -> bool:
    """Return whether STS would give keys: IAM's rules for a web identity."""
    payload = asked["WebIdentityToken"][0].split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    provider = claims["iss"].removeprefix("https://")
    known = trust["Principal"] == {
        "Federated": f"arn:aws:iam::444455556666:oidc-provider/{provider}"
    }
    holds = all(
        claims.get(key.removeprefix(f"{provider}:"))
        in ([value] if isinstance(value, str) else value)
        for key, value in trust["Condition"]["StringEquals"].items()
    )
    return known and holds and asked["RoleArn"] == [ROLE]


def sts(trust: dict[str, Any]) -> FakeHttp:
    """Return a fake of STS that obeys a trust policy."""
    keys = (
        b"<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>"
        b"<AccessKeyId>ASIA</AccessKeyId><SecretAccessKey>s</SecretAccessKey>"
        b"<SessionToken>t</SessionToken><Expiration>2099-01-01T00:00:00Z</Expiration>"
        b"</Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"
    )
    refusal = (
        b"<ErrorResponse><Error><Type>Sender</Type><Code>AccessDenied</Code>"
        b"<Message>Not authorized to perform sts:AssumeRoleWithWebIdentity</Message></Error>"
        b"</ErrorResponse>"
    )

    def respond(request: Request) -> Behavior:
        asked = parse_qs(request.body.decode())
        assert asked["Action"] == ["AssumeRoleWithWebIdentity"]
        return reply(200, {}, keys) if judge(trust, asked) else reply(403, {}, refusal)

    return FakeHttp(respond)


async def send(
    trust: dict[str, Any], claims: dict[str, str], place: Path, monkeypatch: pytest.MonkeyPatch
) -> Any:
    """Send an object with the environment of the chart's pods; return the outcome."""
    file = place / "token"
    file.write_text(token(**claims))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    stored = always(reply(200, {"etag": '"9dd4e461268c8034f5c8564e155c67a6"'}))  # MD5 of `x`
    async with FakeHttp(stored) as s3, sts(trust) as receiver:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", receiver.url)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("AWS_ROLE_ARN", ROLE)
        monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(file))
        gate = Gate([https_destination(url) for url in (s3.url, receiver.url)])
        session = aws_session(gate, "eu-central-1")
        async with S3Sink(
            session, gate, "usage", region="eu-central-1", endpoint_url=s3.url
        ) as sink:
            (outcome,) = await sink.send([Message("k", "t", b"x", 0)])
            return outcome


@ISSUERS
def test_the_provider_is_the_issuer_to_the_letter(
    issuer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    provider = issuer.removeprefix("https://")
    trust = printed(issuer, capsys)
    assert trust["Sid"] == "WebIdentity"
    arn = f"arn:aws:iam::444455556666:oidc-provider/{provider}"
    assert trust["Principal"] == {"Federated": arn}
    assert trust["Condition"] == {
        "StringEquals": {f"{provider}:aud": "byoc-agents", f"{provider}:sub": SUBJECT}
    }


@ISSUERS
async def test_the_pods_own_token_gets_the_role(
    issuer: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    claims = {"iss": issuer, "aud": "byoc-agents", "sub": SUBJECT}
    outcome = await send(printed(issuer, capsys), claims, tmp_path, monkeypatch)
    assert isinstance(outcome, Receipt), outcome


@ISSUERS
@pytest.mark.parametrize(
    "other",
    [
        {"iss": f"{GKE}-2"},
        {"iss": AKS.rstrip("/")},
        {"aud": "sts.amazonaws.com"},
        {"sub": "system:serviceaccount:clickhouse:default"},
        {"sub": "system:serviceaccount:other:clickhouse"},
    ],
    ids=str,
)
async def test_no_other_token_gets_it(
    issuer: str,
    other: dict[str, str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    claims = {"iss": issuer, "aud": "byoc-agents", "sub": SUBJECT} | other
    outcome = await send(printed(issuer, capsys), claims, tmp_path, monkeypatch)
    assert isinstance(outcome, SendError)
    assert outcome.reason in {Reason.CREDENTIALS, Reason.FORBIDDEN}  # held, and nothing is lost


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--trust", "web-identity"], "--issuer: expected together with --trust web-identity"),
        (["--trust", "irsa", "--issuer", GKE], "--issuer: expected together with"),
        (["--trust", "web-identity", "--issuer", "container.googleapis.com"], "https://HOST/PATH"),
        (["--trust", "web-identity", "--issuer", f"{GKE}?a=b"], "https://HOST/PATH"),
    ],
)
def test_mistakes_are_named(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["policy", "iam", "billing-scraper", "--role", ROLE, *options]) == 2
    assert message in capsys.readouterr().err


def test_a_stack_is_for_a_cluster_in_aws(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--trust", "web-identity", "--issuer", GKE, "--service-account", "a/b"]
    assert main(["policy", "stack", "billing-scraper", "--role", ROLE, *options]) == 2
    assert "invalid value 'web-identity' for a stack" in capsys.readouterr().err
