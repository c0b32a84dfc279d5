"""The destinations that this process may connect to: one table, derived from the settings.

The gate, the network policies, the IAM policies and the documentation are all made from it, so
they always allow the same destinations.
"""

import configparser
import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec
from yarl import URL

from byoc_agents.egress.regions import s3_region, sqs_region
from byoc_agents.errors import ConfigError

SCHEMES = frozenset({"https", "http"})
ECS_HOST = "169.254.170.2"  # botocore ContainerMetadataFetcher.IP_ADDRESS
POD_IDENTITY_HOSTS = frozenset({"169.254.170.23", "fd00:ec2::23"})  # EKS Pod Identity agent
DNS_SUFFIXES = (  # botocore partitions.json: which regions are not under amazonaws.com
    ("cn-", "amazonaws.com.cn"),
    ("eusc-", "amazonaws.eu"),
    ("us-iso-", "c2s.ic.gov"),
    ("us-isob-", "sc2s.sgov.gov"),
    ("eu-isoe-", "cloud.adc-e.uk"),
    ("us-isof-", "csp.hci.ic.gov"),
)
LEGACY_STS_REGIONS = frozenset(  # AWS_STS_REGIONAL_ENDPOINTS=legacy sends these to the global name
    {
        *("ap-northeast-1", "ap-south-1", "ap-southeast-1", "ap-southeast-2", "ca-central-1"),
        *("eu-central-1", "eu-north-1", "eu-west-1", "eu-west-2", "eu-west-3", "sa-east-1"),
        *("us-east-1", "us-east-2", "us-west-1", "us-west-2"),
    }
)


class Destination(msgspec.Struct, frozen=True):
    """One (host, port) that the process may connect to, described for policies."""

    host: str  # lower case, IDNA, no trailing dot, no brackets
    port: int
    scheme: str  # https or http
    purpose: str = ""
    daemon: str = ""
    setting: str = ""  # the variable that named it
    frequency: str = ""

    @property
    def local(self) -> bool:
        """Return whether its packets stay on this machine: loopback, or a link-local literal."""
        literal = ip_literal(self.host)
        if literal is None:
            return self.host == "localhost" or self.host.endswith(".localhost")
        return literal.is_loopback or literal.is_link_local or self.host in POD_IDENTITY_HOSTS

    def __str__(self) -> str:
        """Return `https://host:port`."""
        return f"{self.scheme}://{bracketed(self.host)}:{self.port}"


def ip_literal(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the address when the host is written as one, else None."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def bracketed(host: str) -> str:
    """Return the host as it is written in a URL: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def https_destination(url: str, **about: str) -> Destination:
    """Return the destination of an http(s) URL. Raises ConfigError; no message repeats a query."""
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
    return Destination(host, parts.port, parts.scheme, **about)


def clickhouse_destination(url: str, **about: str) -> Destination:
    """Return the destination of ClickHouse's HTTP interface. Raises ConfigError."""
    return https_destination(url, **({"purpose": "ClickHouse over HTTP"} | about))


def sqs_destination(queue_url: str, endpoint_url: str | None = None, **about: str) -> Destination:
    """Return the destination of a queue: the endpoint if one is given, else the URL's host.

    Raises ConfigError for a host that is not a name of SQS, since its region would be a guess. A
    local host or an explicit endpoint does not belong to AWS and needs no region.
    """
    about = {"purpose": "service state to SQS"} | about
    destination = https_destination(endpoint_url or queue_url, **about)
    if endpoint_url or destination.local or sqs_region(destination.host):
        return destination
    setting = about.get("setting") or "queue"
    mistake = f"{setting}: the host {destination.host} is not a known name of SQS: expected"
    mistake += " sqs.REGION.amazonaws.com or another name of AWS, or AWS_ENDPOINT_URL_SQS set to it"
    raise ConfigError([mistake])


def s3_destination(
    bucket: str, region: str, endpoint_url: str | None = None, **about: str
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
    about = {"purpose": "billing objects to S3"} | about
    if endpoint_url:
        return _same_region(https_destination(endpoint_url, **about), region)
    regional = f"s3.{region}.{dns_suffix(region)}"
    virtual = "." not in bucket
    return Destination(f"{bucket}.{regional}" if virtual else regional, 443, "https", **about)


def _same_region(destination: Destination, region: str) -> Destination:
    named = s3_region(destination.host)
    if named in {None, region}:
        return destination
    raise ConfigError(
        [
            (
                f"AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL: {destination.host} is in {named}:"
                f" expected BYOC_REGION={region}, the only region that the gateway endpoint serves"
            )
        ]
    )


def dns_suffix(region: str) -> str:
    """Return the DNS suffix of the region's partition."""
    return next(
        (suffix for start, suffix in DNS_SUFFIXES if region.startswith(start)), "amazonaws.com"
    )


def endpoint_url(service: str, environ: Mapping[str, str]) -> str | None:
    """Return AWS_ENDPOINT_URL_<SERVICE> or AWS_ENDPOINT_URL, as botocore reads them; else None."""
    if environ.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() == "true":
        return None
    own = environ.get(f"AWS_ENDPOINT_URL_{service.upper()}")
    return own or environ.get("AWS_ENDPOINT_URL") or None


def credential_destinations(
    environ: Mapping[str, str], region: str, daemon: str = "", services: Sequence[str] = ()
) -> list[Destination]:
    """Return the destinations of the AWS identity: STS (IRSA), the Pod Identity or ECS agent.

    Static keys need none, and botocore prefers them. The node's role is never used. `services`
    are the AWS services that the daemon calls. Raises ConfigError for unusable AWS variables.
    """
    irsa = bool(environ.get("AWS_ROLE_ARN") and environ.get("AWS_WEB_IDENTITY_TOKEN_FILE"))
    called = [*services, *(["sts"] if irsa else [])]
    if wrong := environment_mistakes(environ) + endpoint_mistakes(environ, called):
        raise ConfigError(wrong)
    if environ.get("AWS_ACCESS_KEY_ID") and environ.get("AWS_SECRET_ACCESS_KEY"):
        return []
    found = []
    if environ.get("AWS_ROLE_ARN") and environ.get("AWS_WEB_IDENTITY_TOKEN_FILE"):
        found.append(_sts_destination(environ, region, daemon))
    if environ.get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"):
        found.append(_container("http://" + ECS_HOST, "_RELATIVE_URI", daemon))
    elif full := environ.get("AWS_CONTAINER_CREDENTIALS_FULL_URI"):
        found.append(_container(full, "_FULL_URI", daemon))
    return found


# Variables whose values become part of a header or of a request: white space is always a mistake.
EXACT_VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_PROFILE",
)


def environment_mistakes(environ: Mapping[str, str]) -> list[str]:
    """Return a mistake for each AWS variable with white space or control characters.

    The messages repeat no value.
    """
    return [
        f"{name}: holds {_character(found[0])} at character {found.start() + 1}:"
        " expected no white space; `printf %s` writes no newline"
        for name in EXACT_VARIABLES
        if (found := re.search(r"[\s\x00-\x1f\x7f]", environ.get(name, "")))
    ]


def _character(found: str) -> str:
    return {"\n": "a newline", "\r": "a carriage return", " ": "a space", "\t": "a tab"}.get(
        found, f"U+{ord(found):04X}"
    )


def endpoint_mistakes(environ: Mapping[str, str], services: Sequence[str]) -> list[str]:
    """Return a mistake for each setting that makes botocore choose FIPS or dual-stack endpoints.

    The destinations table is made before botocore runs, so such an endpoint must be given. Reads
    AWS's variables and its configuration file (AWS_CONFIG_FILE, AWS_PROFILE).
    """
    file = _config_file(environ)
    wrong = []
    for variable, key, example in (
        ("AWS_USE_FIPS_ENDPOINT", "use_fips_endpoint", "{service}-fips.REGION.amazonaws.com"),
        ("AWS_USE_DUALSTACK_ENDPOINT", "use_dualstack_endpoint", DUAL_STACK),
    ):
        source = variable if variable in environ else f"AWS_CONFIG_FILE, {key}"
        if environ.get(variable, file.get(key, "")).strip().lower() != "true":
            continue
        wrong += [
            f"{source}: is not supported for {service}: expected it unset and"
            f" AWS_ENDPOINT_URL_{service.upper()}=https://{_example(example, service)}"
            for service in services
            if not endpoint_url(service, environ)
        ]
    return wrong


DUAL_STACK = "dual"


def _example(example: str, service: str) -> str:
    if example is DUAL_STACK:
        return (
            "s3.dualstack.REGION.amazonaws.com" if service == "s3" else f"{service}.REGION.api.aws"
        )
    return example.format(service=service)


def _config_file(environ: Mapping[str, str]) -> Mapping[str, str]:
    """Return the keys of the chosen profile in AWS's configuration file; none if it is unusable."""
    home = environ.get("HOME", "")
    path = environ.get("AWS_CONFIG_FILE") or (f"{home}/.aws/config" if home else "")
    parser = configparser.RawConfigParser()
    try:
        parser.read(Path(path).expanduser(), encoding="utf-8")
    except (configparser.Error, OSError, RuntimeError, UnicodeDecodeError):
        return {}
    profile = environ.get("AWS_PROFILE", "default")
    for section in ("default" if profile == "default" else f"profile {profile}", profile):
        if parser.has_section(section):
            return dict(parser.items(section))
    return {}


def _sts_destination(environ: Mapping[str, str], region: str, daemon: str) -> Destination:
    legacy = environ.get("AWS_STS_REGIONAL_ENDPOINTS", "regional").lower() == "legacy"
    regional = f"sts.{region}.{dns_suffix(region)}"
    host = "sts.amazonaws.com" if legacy and region in LEGACY_STS_REGIONS else regional
    return https_destination(
        endpoint_url("sts", environ) or f"https://{host}",
        purpose="AWS credentials from STS (IRSA)",
        daemon=daemon,
        setting="AWS_ROLE_ARN",
        frequency="about once an hour",
    )


def _container(url: str, suffix: str, daemon: str) -> Destination:
    setting = f"AWS_CONTAINER_CREDENTIALS{suffix}"
    destination = https_destination(
        url,
        purpose="AWS credentials from the node's agent",
        daemon=daemon,
        setting=setting,
        frequency="every few hours",
    )
    if not destination.local:
        raise ConfigError(
            [f"{setting}: leads to {destination}: expected a loopback or link-local host"]
        )
    return destination


def mistakes(destinations: Iterable[Destination], *, allow_insecure: bool) -> list[str]:
    """Return the mistakes in the table: plain http to another machine, the metadata service."""
    wrong = [
        f"{d.setting or d.host}: plain {d}: expected https"
        " (BYOC_ALLOW_INSECURE_ENDPOINTS=true for local runs only)"
        for d in destinations
        if d.scheme == "http" and not d.local and not allow_insecure
    ]
    return wrong + [
        f"{d.setting or d.host}: leads to the instance metadata service: expected another host"
        for d in destinations
        if d.host in IMDS_HOSTS
    ]


IMDS_HOSTS = frozenset({"169.254.169.254", "fd00:ec2::254"})  # the node's role: never
