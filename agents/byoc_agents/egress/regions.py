"""The region of an S3 or SQS host name, and the partition of a region."""

import re

_SUFFIX = (
    r"\.(?:amazonaws\.(?:com|com\.cn|eu)|c2s\.ic\.gov|sc2s\.sgov\.gov|cloud\.adc-e\.uk"
    r"|csp\.hci\.ic\.gov)$"
)
_REGION = r"(?P<region>[a-z]{2,4}(?:-[a-z]+)+-\d+)"
# https://docs.aws.amazon.com/general/latest/gr/s3.html, dual-stack, FIPS and dash styles included
_S3 = re.compile(rf"(?:^|\.)s3(?:-fips)?(?:[.-](?:dualstack\.)?{_REGION})?(?:\.vpce)?{_SUFFIX}")
_ACCELERATE = re.compile(rf"(?:^|\.)s3-accelerate(?:\.dualstack)?{_SUFFIX}")
# https://docs.aws.amazon.com/general/latest/gr/sqs-service.html: standard and FIPS, dual-stack
# (api.aws), interface endpoints, and the legacy names.
_SQS = (
    re.compile(rf"^sqs(?:-fips)?\.{_REGION}{_SUFFIX}"),
    re.compile(rf"^sqs(?:-fips)?\.{_REGION}\.api\.(?:aws|amazonwebservices\.com\.cn)$"),
    re.compile(rf"^vpce-[a-z0-9-]+\.sqs(?:-fips)?\.{_REGION}\.vpce{_SUFFIX}"),
    re.compile(rf"^{_REGION}\.queue{_SUFFIX}"),
)
_OLDEST_SQS = "queue.amazonaws.com"  # us-east-1

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
    """Return the region of an S3 host name; None if the name does not contain one.

    The global name is us-east-1. The accelerated name is `NOWHERE`: no gateway endpoint serves it.
    """
    if _ACCELERATE.search(host):
        return NOWHERE
    match = _S3.search(host)
    return (match["region"] or "us-east-1") if match else None


def sqs_region(host: str) -> str | None:
    """Return the region of a host of SQS; None if it is not a known name of SQS.

    The only parser of such names: the sink signs for this region, the policies name it in ARNs,
    and `check-config` rejects a queue whose host is not known, unless an endpoint is set.
    """
    name = host.lower().rstrip(".")
    if name == _OLDEST_SQS:
        return "us-east-1"
    return next((match["region"] for form in _SQS if (match := form.search(name))), None)


def partition(region: str) -> str:
    """Return the second part of every ARN of the region."""
    return next((name for start, name in PARTITIONS if region.startswith(start)), "aws")
