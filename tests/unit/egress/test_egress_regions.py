from urllib.parse import urlsplit

import pytest
from botocore.session import Session

from byoc_agents.egress.destinations import mistakes, s3_destination, sqs_destination
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
        ("s3.cn-north-1.amazonaws.com", None),
        ("s3.eu-west-1.amazonaws.com.cn", None),
        ("s3.eu-west-1.c2s.ic.gov", None),
        ("s3.us-isof-south-1.csp.hci.ic.gov", "us-isof-south-1"),
        ("s3.amazonaws.com.cn", None),
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
        ("sqs.eu-central-1.api.aws", "eu-central-1"),
        ("sqs-fips.us-gov-west-1.api.aws", "us-gov-west-1"),
        ("sqs.cn-north-1.api.amazonwebservices.com.cn", "cn-north-1"),
        ("sqs.us-iso-east-1.c2s.ic.gov", "us-iso-east-1"),
        ("sqs.us-isob-east-1.sc2s.sgov.gov", "us-isob-east-1"),
        ("queue.amazonaws.com", "us-east-1"),
        ("SQS.eu-west-1.amazonaws.com.", "eu-west-1"),
        ("127.0.0.1", None),
        ("localhost.localstack.cloud", None),
        ("sqs.cn-north-1.amazonaws.com", None),
        ("sqs.us-east-1.amazonaws.com.cn", None),
        ("sqs.us-east-1.c2s.ic.gov", None),
        ("sqs.us-iso-east-1.sc2s.sgov.gov", None),
        ("sqs.us-isob-east-1.c2s.ic.gov", None),
        ("sqs.us-iso-east-1.amazonaws.com", None),
        ("sqs.us-gov-west-1.amazonaws.eu", None),
        ("sqs.eu-west-1.api.amazonwebservices.com.cn", None),
        ("vpce-1.sqs.cn-north-1.vpce.amazonaws.com", None),
        ("cn-north-1.queue.amazonaws.com", None),
        ("sqs.eu-west-1.example.com", None),
        ("sqs.xx-north-1.amazonaws.com", None),
        ("queue.amazonaws.com.cn", None),
    ],
)
def test_a_host_of_sqs_says_its_region(host: str, region: str | None) -> None:
    assert sqs_region(host) == region


def test_partitions_are_botocores() -> None:
    session = Session()
    for name in session.get_available_partitions():
        for region in session.get_available_regions("s3", name, allow_non_regional=False):
            assert partition(region) == name


def test_every_queue_host_that_botocore_makes_names_its_region() -> None:
    session = Session()
    session.set_credentials("AKIAEXAMPLE", "secret")
    for name in session.get_available_partitions():
        for region in session.get_available_regions("sqs", name, allow_non_regional=False):
            url = session.create_client("sqs", region_name=region).meta.endpoint_url
            assert sqs_region(urlsplit(url).hostname or "") == region


def test_without_an_endpoint_the_region_has_to_be_one_of_aws() -> None:
    with pytest.raises(ConfigError, match="BYOC_REGION: invalid value 'moon-1': expected a region"):
        s3_destination("usage", "moon-1")
    assert s3_destination("usage", "moon-1", "https://minio.example").host == "minio.example"


@pytest.mark.parametrize("url", ["http://127.0.0.1:4566/1/q.fifo", "http://localhost:4566/q"])
def test_a_local_queue_needs_no_endpoint_and_stays_on_the_machine(url: str) -> None:
    assert sqs_destination(url).local
    assert not mistakes([sqs_destination(url)], allow_insecure=False)


@pytest.mark.parametrize(
    "host", ["sqs.cn-north-1.amazonaws.com", "sqs.us-east-1.amazonaws.com.cn", "10.0.0.1"]
)
def test_a_queue_of_no_known_region_is_a_mistake(host: str) -> None:
    with pytest.raises(ConfigError, match=f"BYOC_STATE_QUEUE_URL: the host {host} is not a known"):
        sqs_destination(f"https://{host}/1/q.fifo", setting="BYOC_STATE_QUEUE_URL")


@pytest.mark.parametrize(
    "url",
    [
        "https://s3.us-east-1.amazonaws.com",
        "https://s3.amazonaws.com",
        "https://s3-accelerate.amazonaws.com",
        "https://bucket.vpce-0a-b.s3.us-east-1.vpce.amazonaws.com",
        "https://s3.eu-west-1.amazonaws.com.cn",
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
