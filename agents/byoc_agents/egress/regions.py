"""The partitions of AWS, and the region of an S3 or SQS host name.

The partitions come from botocore's own data, which decides where its requests go, so that no table
here can differ from it. botocore itself is not imported: it takes 20 MiB.
"""

import importlib.util
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

_REGION = r"(?P<region>[a-z]{2,4}(?:-[a-z]+)+-\d+)"
# https://docs.aws.amazon.com/general/latest/gr/s3.html, dual-stack, FIPS and dash styles included
_S3 = re.compile(rf"(?:^|\.)s3(?:-fips)?(?:[.-](?:dualstack\.)?{_REGION})?(?:\.vpce)?$")
_ACCELERATE = re.compile(r"(?:^|\.)s3-accelerate(?:\.dualstack)?$")
# https://docs.aws.amazon.com/general/latest/gr/sqs-service.html: standard and FIPS, interface
# endpoints, and the legacy names. Dual-stack names have another suffix.
_SQS = (
    re.compile(rf"sqs(?:-fips)?\.{_REGION}"),
    re.compile(rf"vpce-[a-z0-9-]+\.sqs(?:-fips)?\.{_REGION}\.vpce"),
    re.compile(rf"{_REGION}\.queue"),
)
_SQS_DUAL_STACK = _SQS[:1]
_OLDEST_SQS = "queue"  # us-east-1
# https://docs.aws.amazon.com/general/latest/gr/sts.html: global, standard, FIPS, and interface
# endpoints. The region is needed: a customer's bucket may be called `sts` (`sts.s3.amazonaws.com`).
_STS = (
    re.compile(rf"sts(?:-fips)?\.{_REGION}"),
    re.compile(rf"vpce-[a-z0-9-]+\.sts(?:-fips)?\.{_REGION}\.vpce"),
)
_GLOBAL_STS = "sts"

NOWHERE = "no region (Transfer Acceleration)"
AWS = "aws"  # the commercial partition; the S3 names without a region are its us-east-1


class Partition(NamedTuple):
    """A partition of AWS, as botocore's partitions.json describes it."""

    name: str  # the second part of every ARN
    dns_suffix: str
    dual_stack_suffix: str
    regions: frozenset[str]
    pattern: re.Pattern[str]  # of regions that botocore does not list yet

    def has(self, region: str) -> bool:
        """Return whether the region belongs to it."""
        return region in self.regions or bool(self.pattern.fullmatch(region))


@cache
def partitions() -> tuple[Partition, ...]:
    """Return all partitions. Reads 7 KiB once."""
    spec = importlib.util.find_spec("botocore")
    assert spec is not None  # noqa: S101  a dependency of this package
    assert spec.submodule_search_locations is not None  # noqa: S101  it is a package
    path = Path(spec.submodule_search_locations[0], "data", "partitions.json")
    return tuple(
        Partition(
            one["id"],
            one["outputs"]["dnsSuffix"],
            one["outputs"]["dualStackDnsSuffix"],
            frozenset(name for name in one["regions"] if not name.endswith("-global")),
            re.compile(one["regionRegex"]),
        )
        for one in json.loads(path.read_bytes())["partitions"]
    )


def partition_of(region: str) -> Partition | None:
    """Return the partition of a region; None if it is not a region of AWS."""
    return next((one for one in partitions() if one.has(region)), None)


def partition(region: str) -> str:
    """Return the second part of every ARN of the region. S3-compatible stores use `aws`."""
    found = partition_of(region)
    return found.name if found else AWS


def _names(host: str, *, dual_stack: bool = False) -> Iterator[tuple[str, Partition]]:
    """Return the part of a host name before a partition's suffix, for each that has the suffix."""
    name = host.lower().rstrip(".")
    for one in partitions():
        suffix = "." + (one.dual_stack_suffix if dual_stack else one.dns_suffix)
        if name.endswith(suffix):
            yield name.removesuffix(suffix), one


def s3_region(host: str) -> str | None:
    """Return the region of an S3 host name; None if the name does not contain one.

    The global name is us-east-1. The accelerated name is `NOWHERE`: no gateway endpoint serves it.
    """
    for name, one in _names(host):
        if _ACCELERATE.search(name):
            return NOWHERE
        match = _S3.search(name)
        if match and match["region"] is None and one.name == AWS:
            return "us-east-1"
        if match and match["region"] and one.has(match["region"]):
            return match["region"]
    return None


def names_s3(host: str) -> bool:
    """Return whether a host name is one of S3 at AWS, known or not."""
    return any(re.search(r"(^|\.)s3[.-]|(^|\.)s3$", name) for name, _ in _names(host))


def sqs_region(host: str) -> str | None:
    """Return the region of a host of SQS; None if it is not a known name of SQS.

    The only parser of such names: the sink signs for this region, the policies name it in ARNs,
    and `check-config` rejects a queue whose host is not known, unless an endpoint is set.
    """
    for dual_stack, forms in ((False, _SQS), (True, _SQS_DUAL_STACK)):
        for name, one in _names(host, dual_stack=dual_stack):
            if name == _OLDEST_SQS and one.name == AWS and not dual_stack:
                return "us-east-1"
            for form in forms:
                if (match := form.fullmatch(name)) and one.has(match["region"]):
                    return match["region"]
    return None


def is_sts(host: str) -> bool:
    """Return whether a host name is one of STS at AWS.

    The suffix alone proves nothing: customers of AWS receive requests at names under it, such as
    those of load balancers, instances and buckets.
    """
    for dual_stack in (False, True):
        for name, one in _names(host, dual_stack=dual_stack):
            if name == _GLOBAL_STS and one.name == AWS and not dual_stack:
                return True
            matches = (form.fullmatch(name) for form in _STS)
            if any(match and one.has(match["region"]) for match in matches):
                return True
    return False
