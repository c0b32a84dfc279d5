"""The destinations that this process may connect to: one table, derived from the settings.

The gate, the network policies, the IAM policies and the documentation are all made from it, so
they always allow the same destinations.
"""

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any
from urllib.parse import unquote

import msgspec
from yarl import URL

from byoc_agents.egress.aws_settings import aws_mistakes, irsa, static_keys
from byoc_agents.egress.regions import is_sts, names_s3, partition_of, s3_region, sqs_region
from byoc_agents.errors import ConfigError, remove_url_user

SCHEMES = frozenset({"https", "http"})
ECS_HOST = "169.254.170.2"  # botocore ContainerMetadataFetcher.IP_ADDRESS
POD_IDENTITY_HOSTS = frozenset({"169.254.170.23", "fd00:ec2::23"})  # EKS Pod Identity agent
AGENT_HOSTS = POD_IDENTITY_HOSTS | {ECS_HOST}
# Names that no public resolver answers: a single label, Kubernetes, RFC 6762, RFC 9476, ICANN's.
PRIVATE_SUFFIXES = (".svc", ".local", ".internal", ".localhost", ".test", ".alt")
LEGACY_STS_REGIONS = frozenset(  # AWS_STS_REGIONAL_ENDPOINTS=legacy sends these to the global name
    {
        *("ap-northeast-1", "ap-south-1", "ap-southeast-1", "ap-southeast-2", "ca-central-1"),
        *("eu-central-1", "eu-north-1", "eu-west-1", "eu-west-2", "eu-west-3", "sa-east-1"),
        *("us-east-1", "us-east-2", "us-west-1", "us-west-2"),
    }
)


class DestinationKind(StrEnum):
    """The kind of a destination. Policies and their options use these names."""

    S3 = "s3"
    SQS = "sqs"
    CONTROL_PLANE = "control-plane"
    STS = "sts"
    POD_IDENTITY = "pod-identity"  # the agent of EKS or ECS on the node
    CLICKHOUSE = "clickhouse"
    KUBERNETES = "kubernetes"  # the API server
    PROXY = "proxy"


class Destination(msgspec.Struct, frozen=True):
    """One (host, port) that the process may connect to, described for policies."""

    host: str  # lower case, IDNA, no trailing dot, no brackets
    port: int
    scheme: str  # https or http
    kind: DestinationKind | None = None
    purpose: str = ""
    daemon: str = ""
    setting: str = ""  # the variable that named it
    frequency: str = ""
    path: str = "/"  # requests must be for this path, or below it
    private: bool = False  # whether its name may resolve to a private address

    @property
    def local(self) -> bool:
        """Return whether its packets stay on this machine: loopback, or an agent of AWS there."""
        literal = ip_literal(self.host)
        if literal is None:
            return self.host == "localhost" or self.host.endswith(".localhost")
        return literal.is_loopback or self.host in AGENT_HOSTS

    def serves(self, raw_path: str) -> bool:
        """Return whether a request for this path belongs to the destination.

        The path counts by whole segments: `/bucket` and `/bucket/key` belong to `/bucket`, and
        `/bucket-2` does not. A path with `.` or `..` belongs only to `/`, also if it is encoded
        twice, or has a backslash or parameters (`..;x`), which some servers read in the same way.
        """
        below = self.path.rstrip("/")
        if not below:
            return True
        text = raw_path
        while (decoded := unquote(text)) != text:
            text = decoded
        segments = text.replace("\\", "/").split("/")
        if any(segment.partition(";")[0] in {".", ".."} for segment in segments):
            return False
        return raw_path == self.path or f"{raw_path}/".startswith(f"{below}/")

    def __str__(self) -> str:
        """Return `https://host:port`."""
        return f"{self.scheme}://{bracket_ipv6(self.host)}:{self.port}"


def ip_literal(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the address when the host is written as one, else None."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def bracket_ipv6(host: str) -> str:
    """Return the host as it is written in a URL: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def https_destination(url: str, *, private: bool = False, **about: Any) -> Destination:
    """Return the destination of an http(s) URL: its host, its port, and its path and below.

    Raises ConfigError; no message repeats a query.
    """
    setting = about.get("setting") or "URL"
    try:
        parts = URL(url)
    except ValueError as error:
        raise ConfigError(
            [f"{setting}: invalid URL: expected https://host[:port][/path]"]
        ) from error
    if parts.scheme not in SCHEMES or not parts.raw_host or not parts.port:
        raise ConfigError(
            [f"{setting}: not an http or https URL: expected https://host[:port][/path]"]
        )
    if parts.user is not None:
        raise ConfigError(
            [f"{setting}: holds a user name or password: expected them in their own settings"]
        )
    host = parts.raw_host.lower().rstrip(".")
    private = private or "." not in host or host.endswith(PRIVATE_SUFFIXES)
    about = {"path": parts.raw_path} | about
    return Destination(host, parts.port, parts.scheme, private=private, **about)


def clickhouse_destination(url: str, **about: Any) -> Destination:
    """Return the destination of ClickHouse's HTTP interface. Raises ConfigError."""
    about = {"kind": DestinationKind.CLICKHOUSE, "purpose": "ClickHouse over HTTP"} | about
    return https_destination(url, private=True, **about)


def proxy_destination(url: str) -> Destination:
    """Return the destination of the proxy, without its password. Raises ConfigError."""
    return https_destination(
        remove_url_user(url),
        private=True,
        kind=DestinationKind.PROXY,
        purpose="the only proxy",
        setting="BYOC_HTTPS_PROXY",
    )


def sqs_destination(queue_url: str, endpoint_url: str | None = None, **about: Any) -> Destination:
    """Return the destination of a queue: the endpoint if one is given, else the URL's host.

    Raises ConfigError for a host that is not a name of SQS, since its region would be a guess. A
    local host (an emulator in the pod) or an explicit endpoint does not belong to AWS: requests to
    it are signed for BYOC_REGION.
    """
    # Every request of SQS goes to `/`: the queue is named in the body.
    kind = DestinationKind.SQS
    about = {"kind": kind, "purpose": "service state to SQS", "path": "/"} | about
    destination = https_destination(endpoint_url or queue_url, private=bool(endpoint_url), **about)
    if endpoint_url or destination.local or sqs_region(destination.host):
        return destination
    setting = about.get("setting") or "queue"
    mistake = f"{setting}: the host {destination.host} is not a known name of SQS: expected"
    mistake += " sqs.REGION.amazonaws.com or another name of AWS, or AWS_ENDPOINT_URL_SQS set to it"
    raise ConfigError([mistake])


def s3_destination(
    bucket: str, region: str, endpoint_url: str | None = None, **about: Any
) -> Destination:
    """Return the destination of a bucket, as `byoc_agents.egress.aws` configures botocore.

    With an endpoint it is that endpoint, addressed in path style. Without one it is
    `bucket.s3.region.amazonaws.com`, or the regional host for a name with dots, which no wildcard
    certificate covers. Raises ConfigError, also for a host of another region: that traffic would
    pass the NAT instead of the gateway endpoint.
    """
    setting = about.get("setting") or "bucket"
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", bucket) or ip_literal(bucket):
        expected = "expected the name of a bucket, not an ARN or URL"
        raise ConfigError([f"{setting}: invalid value {bucket!r}: {expected}"])
    if bucket.endswith(("--x-s3", "--xa-s3", "--op-s3")):
        expected = "expected neither a directory bucket nor an Outposts bucket"
        raise ConfigError([f"{setting}: invalid value {bucket!r}: {expected}"])
    about = {"kind": DestinationKind.S3, "purpose": "billing objects to S3"} | about
    virtual = "." not in bucket and not endpoint_url
    about |= {"path": "/" if virtual else f"/{bucket}"}
    if endpoint_url:
        return _same_region(https_destination(endpoint_url, private=True, **about), region)
    regional = f"s3.{region}.{dns_suffix(region)}"
    host = f"{bucket}.{regional}" if virtual else regional
    return https_destination(f"https://{host}", private=False, **about)


def _same_region(destination: Destination, region: str) -> Destination:
    named = s3_region(destination.host)
    if named == region or (named is None and not names_s3(destination.host)):
        return destination
    named = named or "no known region"
    raise ConfigError(
        [
            (
                f"AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL: {destination.host} is in {named}:"
                f" expected BYOC_REGION={region}, the only region that the gateway endpoint serves"
            )
        ]
    )


def dns_suffix(region: str) -> str:
    """Return the DNS suffix of the region's partition. Raises ConfigError if it has none."""
    found = partition_of(region)
    if found is None:
        expected = "expected a region of AWS, or AWS_ENDPOINT_URL_S3 and AWS_ENDPOINT_URL_SQS set"
        raise ConfigError([f"BYOC_REGION: invalid value {region!r}: {expected}"])
    return found.dns_suffix


def endpoint_url(service: str, environ: Mapping[str, str]) -> str | None:
    """Return AWS_ENDPOINT_URL_<SERVICE> or AWS_ENDPOINT_URL, as botocore reads them; else None."""
    return environ.get(endpoint_variable(service, environ) or "")


def endpoint_variable(service: str, environ: Mapping[str, str]) -> str | None:
    """Return the name of the variable that decides the endpoint of a service; None if none does."""
    if environ.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() == "true":
        return None
    names = (f"AWS_ENDPOINT_URL_{service.upper()}", "AWS_ENDPOINT_URL")
    return next((name for name in names if environ.get(name)), None)


def name_endpoint(
    destination: Destination, service: str, environ: Mapping[str, str]
) -> Destination:
    """Return the destination with the variable of its endpoint as its setting, if one decided."""
    variable = endpoint_variable(service, environ)
    return msgspec.structs.replace(destination, setting=variable) if variable else destination


def credential_destinations(
    environ: Mapping[str, str], region: str, daemon: str = "", services: Sequence[str] = ()
) -> list[Destination]:
    """Return the destinations of the AWS identity: STS (IRSA), the Pod Identity or ECS agent.

    Static keys need none, and botocore prefers them. The node's role is never used. `services`
    are the AWS services that the daemon calls. Raises ConfigError for unusable AWS variables.
    """
    called = [*services, *(["sts"] if irsa(environ) and not static_keys(environ) else [])]
    given = [service for service in called if endpoint_url(service, environ)]
    if wrong := aws_mistakes(environ, called, given):
        raise ConfigError(wrong)
    if static_keys(environ):
        return []
    found = []
    if irsa(environ):
        found.append(_sts_destination(environ, region, daemon))
    if environ.get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"):
        found.append(_container("http://" + ECS_HOST, "_RELATIVE_URI", daemon))
    elif full := environ.get("AWS_CONTAINER_CREDENTIALS_FULL_URI"):
        found.append(_container(full, "_FULL_URI", daemon))
    return found


def _sts_destination(environ: Mapping[str, str], region: str, daemon: str) -> Destination:
    legacy = environ.get("AWS_STS_REGIONAL_ENDPOINTS", "regional").lower() == "legacy"
    regional = f"sts.{region}.{dns_suffix(region)}"
    host = "sts.amazonaws.com" if legacy and region in LEGACY_STS_REGIONS else regional
    given = endpoint_url("sts", environ)
    return https_destination(
        given or f"https://{host}",
        private=bool(given),
        kind=DestinationKind.STS,
        purpose="AWS credentials from STS (IRSA)",
        daemon=daemon,
        setting=endpoint_variable("sts", environ) or "AWS_ROLE_ARN",
        frequency="about once an hour",
    )


def _container(url: str, suffix: str, daemon: str) -> Destination:
    setting = f"AWS_CONTAINER_CREDENTIALS{suffix}"
    destination = https_destination(
        url,
        kind=DestinationKind.POD_IDENTITY,
        purpose="AWS credentials from the node's agent",
        daemon=daemon,
        setting=setting,
        frequency="every few hours",
    )
    if not destination.local:
        raise ConfigError(
            [f"{setting}: leads to {destination}: expected a loopback host or an agent of AWS"]
        )
    return destination


def mistakes(destinations: Iterable[Destination], *, allow_insecure: bool) -> list[str]:
    """Return the mistakes in the table.

    These are plain http to another machine, an STS that does not belong to AWS (the token of the
    pod would go there), and the metadata service. `allow_insecure` permits the first two.
    """
    destinations = tuple(destinations)
    wrong = [
        f"{d.setting or d.host}: plain {d}: expected https"
        " (BYOC_ALLOW_INSECURE_ENDPOINTS=true for local runs only)"
        for d in destinations
        if d.scheme == "http" and not d.local and not allow_insecure
    ]
    wrong += [
        f"{d.setting}: {d.host} is not a name of STS at AWS, and would receive the pod's token:"
        " expected sts.REGION.amazonaws.com or an interface endpoint"
        for d in destinations
        if d.kind is DestinationKind.STS and not (allow_insecure or d.local or is_sts(d.host))
    ]
    return wrong + [
        f"{d.setting or d.host}: leads to the instance metadata service: expected another host"
        for d in destinations
        if d.host in IMDS_HOSTS
    ]


IMDS_HOSTS = frozenset({"169.254.169.254", "fd00:ec2::254"})  # the node's role: never
