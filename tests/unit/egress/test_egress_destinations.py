import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from aiobotocore.session import AioSession

from byoc_agents.egress.aws import aws_config, aws_session
from byoc_agents.egress.destinations import (
    LEGACY_STS_REGIONS,
    Destination,
    clickhouse_destination,
    credential_destinations,
    endpoint_url,
    https_destination,
    mistakes,
    name_endpoint,
    s3_destination,
    sqs_destination,
)
from byoc_agents.egress.gate import Gate
from byoc_agents.errors import ConfigError
from byoc_agents.sinks.s3 import addressing

REGIONS = [
    "us-east-1",
    "eu-west-1",
    "eu-central-2",
    "cn-north-1",
    "us-gov-west-1",
    "eusc-de-east-1",
    "us-iso-east-1",
    "us-isob-east-1",
    "eu-isoe-west-1",
    "us-isof-south-1",
]


@pytest.fixture(scope="module")
def session() -> AioSession:
    made = aws_session(Gate([]), "eu-west-1")
    made.set_credentials("AKIAEXAMPLE", "secret")
    return made


async def host_botocore_uses(session: AioSession, bucket: str, region: str, **client: Any) -> str:
    config = aws_config(Gate([]), s3=addressing(bucket, client.get("endpoint_url")))
    async with session.create_client("s3", region_name=region, config=config, **client) as s3:
        url = await s3.generate_presigned_url("put_object", Params={"Bucket": bucket, "Key": "k"})
    return str(urlsplit(url).netloc)


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("bucket", ["vendor-usage", "vendor.usage"])
async def test_s3_is_where_botocore_connects(bucket: str, region: str, session: AioSession) -> None:
    expected = await host_botocore_uses(session, bucket, region)
    assert s3_destination(bucket, region).host == expected


async def test_s3_with_an_endpoint_is_where_botocore_connects(session: AioSession) -> None:
    url = "http://localstack:4566"
    expected = await host_botocore_uses(session, "vendor-usage", "eu-west-1", endpoint_url=url)
    found = s3_destination("vendor-usage", "eu-west-1", url)
    assert f"{found.host}:{found.port}" == expected


IRSA = {"AWS_ROLE_ARN": "arn:aws:iam::1:role/r", "AWS_WEB_IDENTITY_TOKEN_FILE": "/token"}


@pytest.mark.parametrize("region", REGIONS)
async def test_sts_is_where_botocore_connects(region: str, session: AioSession) -> None:
    async with session.create_client("sts", region_name=region) as sts:
        expected = urlsplit(sts.meta.endpoint_url).hostname
    assert [d.host for d in credential_destinations(IRSA, region)] == [expected]


@pytest.mark.parametrize("region", ["eu-west-1", "eu-central-2", "us-gov-west-1"])
async def test_legacy_sts_is_where_botocore_connects(
    region: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_STS_REGIONAL_ENDPOINTS", "legacy")
    session = aws_session(Gate([]), region)
    session.set_credentials("AKIAEXAMPLE", "secret")
    async with session.create_client("sts", region_name=region) as sts:
        expected = urlsplit(await sts.generate_presigned_url("get_caller_identity")).hostname
    environ = {**IRSA, "AWS_STS_REGIONAL_ENDPOINTS": "legacy"}
    assert [d.host for d in credential_destinations(environ, region)] == [expected]


def test_legacy_regions_are_botocores() -> None:
    from botocore.args import LEGACY_GLOBAL_STS_REGIONS  # noqa: PLC0415  not public

    assert set(LEGACY_GLOBAL_STS_REGIONS) - {"aws-global"} == LEGACY_STS_REGIONS


KEYS = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
POD_IDENTITY = {
    "AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://169.254.170.23/v1/credentials",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": "/token",
}


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({}, []),
        (KEYS, []),
        ({**IRSA, **KEYS}, []),
        (IRSA, ["https://sts.eu-west-1.amazonaws.com:443"]),
        ({**IRSA, "AWS_ENDPOINT_URL_STS": "http://127.0.0.1:1"}, ["http://127.0.0.1:1"]),
        ({**IRSA, "AWS_ENDPOINT_URL": "http://127.0.0.1:2"}, ["http://127.0.0.1:2"]),
        (POD_IDENTITY, ["http://169.254.170.23:80"]),
        (
            {"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://[fd00:ec2::23]/v1/credentials"},
            ["http://[fd00:ec2::23]:80"],
        ),
        ({"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "/v2/x"}, ["http://169.254.170.2:80"]),
    ],
    ids=["none", "keys", "keys win", "irsa", "own sts", "endpoint", "pod", "pod v6", "ecs"],
)
def test_credentials_need_exactly_their_own_endpoint(
    environ: Mapping[str, str], wanted: list[str]
) -> None:
    assert [str(d) for d in credential_destinations(environ, "eu-west-1")] == wanted


@pytest.mark.parametrize(
    "environ",
    [
        {"AWS_ENDPOINT_URL": "https://x.test"},
        *(
            {"AWS_ENDPOINT_URL_STS": f"https://{host}"}
            for host in (  # all but the first belong to customers of AWS
                "sts.evil.example",
                "abcde12345.execute-api.eu-west-1.amazonaws.com",
                "sts.s3.amazonaws.com",
                "sts.s3.eu-west-1.amazonaws.com",
                "sts.s3-eu-west-1.amazonaws.com",
                "sts-1.eu-west-1.elb.amazonaws.com",
                "ec2-192-0-2-1.compute-1.amazonaws.com",
                "vpce-0a-b.vpce-svc-0a.eu-west-1.vpce.amazonaws.com",
                "vpce-0a.sts.eu-west-1.amazonaws.com",
                "a.sts.eu-west-1.amazonaws.com",
                "sts.cn-north-1.amazonaws.com",
            )
        ),
    ],
    ids=lambda environ: next(iter(environ.values())),
)
def test_an_sts_that_is_not_of_aws_is_a_mistake_of_its_own_variable(
    environ: Mapping[str, str],
) -> None:
    found = credential_destinations({**IRSA, **environ}, "eu-west-1")
    (mistake,) = mistakes(found, allow_insecure=False)
    (variable,) = environ
    assert mistake.startswith(f"{variable}: ")
    assert "expected sts.REGION.amazonaws.com or an interface endpoint" in mistake
    assert mistakes(found, allow_insecure=True) == []


@pytest.mark.parametrize(
    "host",
    [
        "sts.amazonaws.com",
        "sts-fips.us-east-1.amazonaws.com",
        "vpce-0a-b.sts-fips.us-east-1.vpce.amazonaws.com",
        "vpce-0a-b.sts.eu-west-1.vpce.amazonaws.com",
        "sts.cn-north-1.amazonaws.com.cn",
        "sts.eu-west-1.api.aws",
        "127.0.0.1",
    ],
)
def test_an_sts_of_aws_or_of_this_machine_is_fine(host: str) -> None:
    environ = {**IRSA, "AWS_ENDPOINT_URL_STS": f"https://{host}"}
    assert mistakes(credential_destinations(environ, "eu-west-1"), allow_insecure=False) == []


def test_a_link_local_host_that_is_no_agent_of_aws_gets_no_plain_http() -> None:
    assert mistakes([https_destination("http://169.254.7.7/")], allow_insecure=False)
    assert mistakes([https_destination("http://169.254.170.23/")], allow_insecure=False) == []


@pytest.mark.parametrize(
    ("environ", "setting"),
    [
        ({}, "BYOC_BILLING_BUCKET"),
        ({"AWS_ENDPOINT_URL": "https://s3.example"}, "AWS_ENDPOINT_URL"),
        ({"AWS_ENDPOINT_URL_S3": "https://a", "AWS_ENDPOINT_URL": "b"}, "AWS_ENDPOINT_URL_S3"),
        (
            {"AWS_ENDPOINT_URL": "b", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true"},
            "BYOC_BILLING_BUCKET",
        ),
    ],
)
def test_the_table_names_the_variable_that_decided(
    environ: Mapping[str, str], setting: str
) -> None:
    bucket = s3_destination("usage", "eu-west-1", setting="BYOC_BILLING_BUCKET")
    assert name_endpoint(bucket, "s3", environ).setting == setting


@pytest.mark.parametrize(
    ("destination", "path"),
    [
        (s3_destination("usage", "eu-west-1"), "/"),
        (s3_destination("usage.dots", "eu-west-1"), "/usage.dots"),
        (s3_destination("usage", "eu-west-1", "https://minio.example"), "/usage"),
        (sqs_destination("https://sqs.eu-west-1.amazonaws.com/1/q.fifo"), "/"),
        (https_destination("https://api.example/v1/events?x=y"), "/v1/events"),
    ],
)
def test_a_destination_has_the_path_of_its_requests(destination: Destination, path: str) -> None:
    assert destination.path == path


@pytest.mark.parametrize(
    ("path", "served"),
    [
        ("/usage", True),
        ("/usage/", True),
        ("/usage/v1/a.zst", True),
        ("/usage-2/a", False),
        ("/other/a", False),
        ("/", False),
        ("/usage/../other/a", False),
        ("/usage/%2e%2e/other/a", False),
        ("/usage/..%2Fother", False),
        ("/usage/%252e%252e/other", False),
        ("/usage/%25252e%25252e%25252fother", False),
        ("/usage/..;/other", False),
        ("/usage/..%3Ba=b/other", False),
        ("/usage/..%5Cother", False),
        ("/usage/..\\other", False),
        ("/usage/a..b/%25", True),
    ],
)
def test_a_path_is_served_by_whole_segments(path: str, served: bool) -> None:
    destination = s3_destination("usage", "eu-west-1", "https://minio.example")
    assert destination.serves(path) is served


@pytest.mark.parametrize(
    ("destination", "private"),
    [
        (https_destination("https://api.example.com"), False),
        (https_destination("https://clickhouse.db.svc"), True),
        (https_destination("https://localstack"), True),
        (clickhouse_destination("https://db.example.com"), True),
        (s3_destination("usage", "eu-west-1"), False),
        (sqs_destination("https://sqs.eu-west-1.amazonaws.com/1/q.fifo"), False),
        (sqs_destination("https://q.example/", "https://x.vpce.amazonaws.com"), True),
    ],
)
def test_which_names_may_resolve_to_private_addresses(
    destination: Destination, private: bool
) -> None:
    assert destination.private is private


def test_credentials_from_far_away_are_a_mistake() -> None:
    environ = {"AWS_CONTAINER_CREDENTIALS_FULL_URI": "https://keys.example.com/"}
    with pytest.raises(ConfigError, match="expected a loopback host or an agent of AWS"):
        credential_destinations(environ, "eu-west-1")


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("https://API.example.com./v1?token=x", "https://api.example.com:443"),
        ("https://api.example.com:8443/v1", "https://api.example.com:8443"),
        ("http://[::1]:8123", "http://[::1]:8123"),
    ],
)
def test_a_url_is_its_host_and_port(url: str, wanted: str) -> None:
    assert str(https_destination(url)) == wanted
    assert str(clickhouse_destination(url)) == wanted
    assert str(sqs_destination("https://queue.example/", url)) == wanted


@pytest.mark.parametrize(
    "host",
    [
        "api.example.com",
        "sqs.eu-west-1.amazonaws.com.example.com",
        "my-sqs.eu-west-1.amazonaws.com",
        "sqs.amazonaws.com",
        "sqs-fips.eu-west-1.amazonaws.example",
        "localstack",
    ],
)
def test_a_queue_on_an_unknown_host_needs_an_endpoint(host: str) -> None:
    url = f"https://{host}/1/q.fifo"
    with pytest.raises(ConfigError, match=f"BYOC_STATE_QUEUE_URL: the host {host} is not a known"):
        sqs_destination(url, setting="BYOC_STATE_QUEUE_URL")
    assert sqs_destination(url, f"https://{host}").host == host


AWS_MISTAKES = [
    ({"AWS_ACCESS_KEY_ID": "AKIA\n"}, "AWS_ACCESS_KEY_ID: holds a newline at character 5"),
    ({"AWS_SESSION_TOKEN": "a b"}, "AWS_SESSION_TOKEN: holds a space at character 2"),
    ({"AWS_ROLE_ARN": "arn:aws:iam::1:role/r\r\n"}, "AWS_ROLE_ARN: holds a carriage return"),
    ({"AWS_WEB_IDENTITY_TOKEN_FILE": "/token\n"}, "AWS_WEB_IDENTITY_TOKEN_FILE: holds a newline"),
    ({"AWS_USE_FIPS_ENDPOINT": "true"}, "AWS_ENDPOINT_URL_S3=https://s3-fips.REGION"),
    ({"AWS_USE_DUALSTACK_ENDPOINT": "TRUE"}, "AWS_ENDPOINT_URL_S3=https://s3.dualstack.REGION"),
]


@pytest.mark.parametrize(("environ", "expected"), AWS_MISTAKES, ids=[w for _, w in AWS_MISTAKES])
def test_an_unusable_variable_of_aws_is_a_mistake_that_repeats_no_value(
    environ: dict[str, str], expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        credential_destinations(environ, "eu-west-1", services=("s3",))
    assert expected in str(caught.value)
    assert "AKIA" not in str(caught.value)


def test_fips_in_awss_own_file_is_a_mistake_unless_the_endpoint_is_named(tmp_path: Path) -> None:
    file = tmp_path / "config"
    file.write_text("[profile x]\nuse_fips_endpoint = true\n[default]\nregion = eu-west-1\n")
    environ = {"AWS_CONFIG_FILE": str(file)}
    assert credential_destinations(environ, "eu-west-1", services=("s3",)) == []
    environ["AWS_PROFILE"] = "x"
    with pytest.raises(ConfigError, match="AWS_CONFIG_FILE, use_fips_endpoint: is not supported"):
        credential_destinations(environ, "eu-west-1", services=("s3",))
    environ["AWS_ENDPOINT_URL_S3"] = "https://s3-fips.us-east-1.amazonaws.com"
    assert credential_destinations(environ, "us-east-1", services=("s3",)) == []


def test_a_queue_behind_an_endpoint_is_at_the_endpoint() -> None:
    queue = "http://localstack:4566/000000000000/state.fifo"
    assert str(sqs_destination(queue, "http://127.0.0.1:9")) == "http://127.0.0.1:9"


@pytest.mark.parametrize(
    "url", ["", "api.example.com", "ftp://x", "https://", "https://h:99999", "https://u:pw@h/"]
)
def test_what_is_no_url_is_a_mistake_that_names_the_setting_and_no_secret(url: str) -> None:
    with pytest.raises(ConfigError, match="BYOC_ALERTS_URL: ") as caught:
        https_destination(url, setting="BYOC_ALERTS_URL")
    assert "pw" not in str(caught.value)


@pytest.mark.parametrize(
    "bucket",
    [
        "",
        "a",
        "Upper",
        "arn:aws:s3:eu-west-1:1:accesspoint/x",
        "x--x-s3",
        "x--op-s3",
        "1.2.3.4",
        "a/b",
    ],
)
def test_what_is_no_bucket_is_a_mistake(bucket: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(repr(bucket))):
        s3_destination(bucket, "eu-west-1")


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({}, None),
        ({"AWS_ENDPOINT_URL": "a"}, "a"),
        ({"AWS_ENDPOINT_URL": "a", "AWS_ENDPOINT_URL_S3": "b"}, "b"),
        ({"AWS_ENDPOINT_URL": "a", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true"}, None),
    ],
)
def test_endpoint_variables_are_read_as_botocore_reads_them(
    environ: Mapping[str, str], wanted: str | None
) -> None:
    assert endpoint_url("s3", environ) == wanted


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("::1", True),
        ("169.254.170.23", True),
        ("fd00:ec2::23", True),
        ("10.0.0.1", False),
        ("localhost.example.com", False),
        ("example.com", False),
    ],
)
def test_local_is_what_never_leaves_the_machine(host: str, local: bool) -> None:
    assert Destination(host, 80, "http").local is local


def test_plain_http_that_leaves_the_machine_is_a_mistake_unless_allowed() -> None:
    table = [
        Destination("127.0.0.1", 8123, "http"),
        Destination("api.example.com", 80, "http", setting="BYOC_ALERTS_URL"),
    ]
    (mistake,) = mistakes(table, allow_insecure=False)
    assert mistake.startswith("BYOC_ALERTS_URL: plain http://api.example.com:80: expected https")
    assert mistakes(table, allow_insecure=True) == []


@pytest.mark.parametrize("host", ["169.254.169.254", "fd00:ec2::254"])
def test_the_metadata_service_is_never_a_destination(host: str) -> None:
    with pytest.raises(ConfigError, match="metadata"):
        Gate([Destination(host, 80, "http")], allow_insecure=True)
