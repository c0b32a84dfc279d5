import pytest
from botocore.session import Session

from byoc_agents.egress.destinations import s3_destination
from byoc_agents.egress.regions import NOWHERE, partition, s3_region, sqs_region
from byoc_agents.errors import ConfigError


@pytest.mark.parametrize(
    ("host", "region"),
    [
        ("s3.eu-west-1.amazonaws.com", "eu-west-1"),
        ("usage.s3.eu-west-1.amazonaws.com", "eu-west-1"),
        ("s3.dualstack.eu-west-1.amazonaws.com", "eu-west-1"),
        ("s3-fips.us-gov-west-1.amazonaws.com", "us-gov-west-1"),
        ("s3-fips.dualstack.us-east-1.amazonaws.com", "us-east-1"),
        ("s3-us-west-2.amazonaws.com", "us-west-2"),
        ("s3.cn-north-1.amazonaws.com.cn", "cn-north-1"),
        ("s3.eusc-de-east-1.amazonaws.eu", "eusc-de-east-1"),
        ("bucket.vpce-0a-b.s3.us-east-1.vpce.amazonaws.com", "us-east-1"),
        ("s3.amazonaws.com", "us-east-1"),
        ("usage.s3.amazonaws.com", "us-east-1"),
        ("s3-accelerate.amazonaws.com", NOWHERE),
        ("usage.s3-accelerate.dualstack.amazonaws.com", NOWHERE),
        ("localhost", None),
        ("localstack", None),
        ("s3.eu-west-1.amazonaws.com.evil.example", None),
        ("minio.customer.example", None),
        ("s3.eu-west-1.customer.example", None),
    ],
)
def test_a_host_of_s3_says_its_region(host: str, region: str | None) -> None:
    assert s3_region(host) == region


@pytest.mark.parametrize(
    ("host", "region"),
    [
        ("sqs.eu-west-1.amazonaws.com", "eu-west-1"),
        ("vpce-0a-b.sqs.eu-west-1.vpce.amazonaws.com", "eu-west-1"),
        ("sqs-fips.us-east-1.amazonaws.com", "us-east-1"),
        ("eu-west-1.queue.amazonaws.com", "eu-west-1"),
        ("sqs.cn-north-1.amazonaws.com.cn", "cn-north-1"),
        ("127.0.0.1", None),
        ("localhost.localstack.cloud", None),
    ],
)
def test_a_host_of_sqs_says_its_region(host: str, region: str | None) -> None:
    assert sqs_region(host) == region


def test_partitions_are_botocores() -> None:
    session = Session()
    for name in session.get_available_partitions():
        for region in session.get_available_regions("s3", name, allow_non_regional=False):
            assert partition(region) == name


@pytest.mark.parametrize(
    "url",
    [
        "https://s3.us-east-1.amazonaws.com",
        "https://s3.amazonaws.com",
        "https://s3-accelerate.amazonaws.com",
        "https://bucket.vpce-0a-b.s3.us-east-1.vpce.amazonaws.com",
    ],
)
def test_an_s3_of_another_region_is_a_mistake_that_names_both(url: str) -> None:
    with pytest.raises(
        ConfigError, match=r"AWS_ENDPOINT_URL_S3.* is in .* expected BYOC_REGION=eu-"
    ):
        s3_destination("usage", "eu-west-1", url)


@pytest.mark.parametrize(
    "url",
    [
        "https://s3.eu-west-1.amazonaws.com",
        "https://bucket.vpce-0a-b.s3.eu-west-1.vpce.amazonaws.com",
        "http://127.0.0.1:4566",
    ],
)
def test_an_s3_of_our_region_or_of_no_region_is_fine(url: str) -> None:
    assert str(s3_destination("usage", "eu-west-1", url)).startswith(url)
