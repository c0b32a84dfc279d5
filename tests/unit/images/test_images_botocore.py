"""Requests made with the cut data are those made with botocore's own, to the byte.

Parts that differ between any two requests are masked: the time, the signature, a random id.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import botocore
import pytest
from botocore.exceptions import EndpointConnectionError
from botocore.loaders import Loader

from byoc_agents.egress.aws import aws_session
from byoc_agents.egress.destinations import dns_suffix
from byoc_agents.egress.gate import Gate
from byoc_agents.errors import SendError
from byoc_agents.message import Message
from byoc_agents.sinks.s3 import S3Sink
from byoc_agents.sinks.sqs import SqsSink
from images.cut_botocore import SERVICES, cut

OWN = Path(botocore.__file__).parent / "data"
MASKED = {"x-amz-date", "amz-sdk-invocation-id", "amz-sdk-request"}
SIGNATURE = re.compile(rb"(?<=Signature=)\w+|(?<=/)\d{8}(?=/)")  # and the day in its scope
MESSAGE = Message("v1/a b+c.jsonl.zst", "t", b'{"a":1}', 0, content_encoding="zstd", group="g")
VARIANTS = {
    "plain": {},
    "fips": {"AWS_USE_FIPS_ENDPOINT": "true"},
    "dualstack": {"AWS_USE_DUALSTACK_ENDPOINT": "true"},
    "both": {"AWS_USE_FIPS_ENDPOINT": "true", "AWS_USE_DUALSTACK_ENDPOINT": "true"},
}
Request = tuple[str, str, dict[str, bytes], Any]  # method, URL, headers, body
KEYS = {"AWS_ACCESS_KEY_ID": "AKIA", "AWS_SECRET_ACCESS_KEY": "s", "AWS_SESSION_TOKEN": "t"}


def regions(data: Path) -> list[str]:
    """Return all regions of all partitions, by `endpoints.json`, and one that is yet to come."""
    partitions = json.loads((data / "endpoints.json").read_text())["partitions"]
    return [*sorted(name for one in partitions for name in one["regions"]), "eu-west-9"]


ONE_A_PARTITION = ("us-east-1", "cn-north-1", "us-gov-west-1", "us-iso-east-1", "eusc-de-east-1")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("cut") / "aws"
    cut(OWN, target)
    return target


class Recorder:
    """Takes every request at the last moment before the network, and answers none."""

    def __init__(self) -> None:
        self.seen: list[Request] = []

    def __call__(self, request: Any, **_: Any) -> None:
        headers = {
            name.lower(): SIGNATURE.sub(b"*", value if isinstance(value, bytes) else value.encode())
            for name, value in request.headers.items()
        }
        headers |= dict.fromkeys(MASKED & headers.keys(), b"*")
        self.seen.append((request.method, request.url, headers, _bytes(request.body)))
        raise EndpointConnectionError(endpoint_url=request.url)


def _bytes(body: Any) -> Any:
    return body.read() if hasattr(body, "read") else body


def amazons(session: Any, region: str, gate: Gate) -> list[S3Sink | SqsSink]:
    """Return sinks to AWS's own hosts."""
    queue = f"https://sqs.{region}.{dns_suffix(region)}/123456789012/state.fifo"
    return [
        S3Sink(session, gate, "usage", region=region, expected_bucket_owner="123456789012"),
        S3Sink(session, gate, "usage.with.dots", region=region),
        SqsSink(session, gate, queue, region=region),
    ]


def with_others(session: Any, region: str, gate: Gate) -> list[S3Sink | SqsSink]:
    """Return these, and sinks to a host that is named."""
    return [
        *amazons(session, region, gate),
        S3Sink(session, gate, "usage", region=region, endpoint_url="http://127.0.0.1:4566"),
        SqsSink(session, gate, "http://127.0.0.1:4566/0/q", region=region),
    ]


Sinks = Callable[[Any, str, Gate], list[S3Sink | SqsSink]]


class Sender:
    """One botocore session over one folder of data, and what it would send."""

    def __init__(self, data: Path, region: str) -> None:
        self.gate = Gate([], allow_insecure=True)
        self.session = aws_session(self.gate, region)
        loader = Loader(extra_search_paths=[str(data)], include_default_search_paths=False)
        loader.BUILTIN_DATA_PATH = str(data)
        self.session.register_component("data_loader", loader)
        self.recorder = Recorder()
        self.session.register("before-send", self.recorder)

    async def requests(self, region: str, sinks: Sinks = amazons) -> list[Request]:
        """Return what all sinks would send from one region."""
        self.recorder.seen.clear()
        for sink in sinks(self.session, region, self.gate):
            async with sink:
                (outcome,) = await sink.send([MESSAGE])
                assert isinstance(outcome, SendError)
        return list(self.recorder.seen)


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """Set static keys, and nothing else of AWS's."""
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


@pytest.mark.usefixtures("keys")
async def test_requests_are_the_same_in_every_region(data: Path) -> None:
    full, small = Sender(OWN, "us-east-1"), Sender(data, "us-east-1")
    for region in regions(OWN):
        expected = await full.requests(region)
        assert await small.requests(region) == expected
        regional = f"s3.{region}.{dns_suffix(region)}"
        assert [url for _, url, _, _ in expected[:2]] == [
            f"https://usage.{regional}/v1/a%20b%2Bc.jsonl.zst",
            f"https://{regional}/usage.with.dots/v1/a%20b%2Bc.jsonl.zst",
        ]
        assert len(expected) == 3


@pytest.mark.parametrize("variant", VARIANTS)
async def test_requests_are_the_same_with_every_kind_of_endpoint(
    keys: pytest.MonkeyPatch, data: Path, variant: str
) -> None:
    for name, value in VARIANTS[variant].items():
        keys.setenv(name, value)
    full, small = Sender(OWN, "us-east-1"), Sender(data, "us-east-1")
    for region in ONE_A_PARTITION:
        expected = await full.requests(region, with_others)
        assert await small.requests(region, with_others) == expected


@pytest.mark.parametrize("region", ONE_A_PARTITION)
async def test_the_request_for_credentials_is_the_same(
    keys: pytest.MonkeyPatch, data: Path, tmp_path: Path, region: str
) -> None:
    for name in KEYS:
        keys.delenv(name)
    (tmp_path / "token").write_text("jwt-of-the-pod")
    keys.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/agents")
    keys.setenv("AWS_ROLE_SESSION_NAME", "byoc")
    keys.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    expected = await Sender(OWN, region).requests(region)
    assert {url for _, url, _, _ in expected} == {f"https://sts.{region}.{dns_suffix(region)}/"}
    assert await Sender(data, region).requests(region) == expected


def test_the_cut_is_small_and_holds_our_services_alone(data: Path) -> None:
    size = sum(file.stat().st_size for file in data.rglob("*") if file.is_file())
    assert size < 200_000
    assert b"parseArn" not in (next(data.glob("s3/*/endpoint-rule-set-1.json"))).read_bytes()
    assert {one.name for one in data.iterdir() if one.is_dir()} == set(SERVICES)


def test_the_cut_knows_every_region(data: Path) -> None:
    assert regions(data) == regions(OWN)
