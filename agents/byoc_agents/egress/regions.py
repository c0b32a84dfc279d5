"""Which region a host name of S3 stands in, and which partition a region belongs to."""

import re

_SUFFIX = (
    r"\.(?:amazonaws\.(?:com|com\.cn|eu)|c2s\.ic\.gov|sc2s\.sgov\.gov|cloud\.adc-e\.uk"
    r"|csp\.hci\.ic\.gov)$"
)
_REGION = r"(?P<region>[a-z]{2,4}(?:-[a-z]+)+-\d+)"
# https://docs.aws.amazon.com/general/latest/gr/s3.html, dual-stack, FIPS and dash styles included
_S3 = re.compile(rf"(?:^|\.)s3(?:-fips)?(?:[.-](?:dualstack\.)?{_REGION})?(?:\.vpce)?{_SUFFIX}")
_ACCELERATE = re.compile(rf"(?:^|\.)s3-accelerate(?:\.dualstack)?{_SUFFIX}")
_SQS = re.compile(rf"(?:^|\.)sqs(?:-fips)?\.{_REGION}(?:\.vpce)?{_SUFFIX}")
_OLD_SQS = re.compile(rf"^{_REGION}\.queue{_SUFFIX}")

NOWHERE = "no region (Transfer Acceleration)"
PARTITIONS = (  # botocore partitions.json: the regions that are not in `aws`
    ("cn-", "aws-cn"),
    ("us-gov-", "aws-us-gov"),
    ("us-isob-", "aws-iso-b"),
    ("us-iso-", "aws-iso"),
    ("eu-isoe-", "aws-iso-e"),
    ("us-isof-", "aws-iso-f"),
    ("eusc-", "aws-eusc"),
)


def s3_region(host: str) -> str | None:
    """Return the region that a host of S3 stands in; None where the host does not say.

    The global name is us-east-1; the accelerated one is `NOWHERE`: never by a gateway endpoint.
    """
    if _ACCELERATE.search(host):
        return NOWHERE
    match = _S3.search(host)
    return (match["region"] or "us-east-1") if match else None


def sqs_region(host: str) -> str | None:
    """Return the region of a host of SQS, of old names and interface endpoints too."""
    match = _SQS.search(host) or _OLD_SQS.search(host)
    return match["region"] if match else None


def partition(region: str) -> str:
    """Return the second part of every ARN of the region."""
    return next((name for start, name in PARTITIONS if region.startswith(start)), "aws")
