"""The parts of a request other than its body: headers, object keys and queue attributes.

They are a section of docs/contracts/fields.md; `tests/docs/test_transport_docs.py` compares them
with recorded requests and with sealed objects.
"""

from collections.abc import Iterator

import msgspec


class Item(msgspec.Struct, frozen=True):
    """One header, key, attribute or parameter."""

    kind: str  # header, key, attribute, parameter of a form
    name: str
    meaning: str


def _headers(**meanings: str) -> tuple[Item, ...]:
    return tuple(Item("header", name.replace("_", "-"), text) for name, text in meanings.items())


_COMMON = _headers(
    Host="the host of the destination",
    User_Agent="`byoc-agents/VERSION`; no kernel, interpreter, library or variable",
    Accept="always `*/*`",
    Accept_Encoding="`identity` to AWS; to the control plane `gzip, deflate`, with Python 3.14 also"
    " `zstd`",
    Content_Type="the media type of the body",
    Content_Length="the size of the body in bytes",
)
_AWS = _headers(
    Authorization="AWS Signature Version 4: access key id, region, date; not the secret key",
    X_Amz_Date="when the request was signed",
    X_Amz_Security_Token="the session token of temporary credentials",  # noqa: S106  a description
    amz_sdk_invocation_id="random, per request",
    amz_sdk_request="always `attempt=1`",
)
CHANNELS: dict[str, tuple[Item, ...]] = {
    "S3": (
        *_COMMON,
        *_AWS,
        *_headers(
            If_None_Match="always `*`: no object is overwritten",
            X_Amz_Sdk_Checksum_Algorithm="always `SHA256`",
            X_Amz_Checksum_Sha256="SHA-256 of the body",
            X_Amz_Content_Sha256="SHA-256 of the body, or `UNSIGNED-PAYLOAD` over TLS",
            Content_Encoding="`zstd` or `gzip` for compressed objects",
            X_Amz_Expected_Bucket_Owner="BYOC_BILLING_BUCKET_OWNER, if it is set",
        ),
        Item("key", "PREFIX", "BYOC_BILLING_PREFIX: `v1/` if it is not set"),
        Item("key", "org=ORGANIZATION", "BYOC_ORGANIZATION_ID"),
        Item("key", "service=SERVICE", "BYOC_SERVICE_ID"),
        Item("key", "date=DATE", "UTC, start of the first record's period"),
        Item("key", "hour=HOUR", "likewise"),
        Item(
            "key",
            "POD-EPOCH-FIRST-LAST.jsonl.zst",
            "keyed form of the pod's uid, or the replica if there is none; epoch; first and last"
            " sequence; `.gz` for gzip",
        ),
        Item(
            "key",
            "SCRAPER-EPOCH-FIRST-LAST.shared.jsonl.zst",
            "instead, if one scraper meters several servers: its own replica; epoch and numbers of"
            " its stream",
        ),
    ),
    "S3, when the billing scraper starts": _headers(
        Host="the host of the destination; in this or in the path stands the bucket's name",
        User_Agent=_COMMON[1].meaning,
        Accept="always `*/*`",
        Accept_Encoding="`gzip, deflate`; with Python 3.14 also `zstd`",
    ),
    "STS, for IRSA": (
        *_COMMON,
        *_headers(
            amz_sdk_invocation_id="random, per request", amz_sdk_request="always `attempt=1`"
        ),
        Item("parameter", "Action", "always `AssumeRoleWithWebIdentity`"),
        Item("parameter", "Version", "always `2011-06-15`"),
        Item("parameter", "RoleArn", "the role that EKS names: AWS_ROLE_ARN"),
        Item(
            "parameter",
            "RoleSessionName",
            "AWS_ROLE_SESSION_NAME, or `botocore-session-` and seconds since 1970",
        ),
        Item("parameter", "WebIdentityToken", "the token that Kubernetes signed for the pod"),
    ),
    "The agent on the node, for EKS Pod Identity": _headers(
        Host="the host of the agent",
        User_Agent="`Python/VERSION aiohttp/VERSION`: this request stays on the node",
        Accept="always `application/json`",
        Accept_Encoding="always `identity`",
        Authorization="the token that Kubernetes signed for the pod",
    ),
    "SQS": (
        *_COMMON,
        *_AWS,
        *_headers(
            X_Amz_Target="always `AmazonSQS.SendMessageBatch`",
            X_Amzn_Query_Mode="always `true`",
        ),
        Item("attribute", "Id", "number of the entry in the request: `0` to `9`"),
        Item(
            "attribute", "MessageGroupId", "names the service, and the replica of a state message"
        ),
        Item("attribute", "MessageDeduplicationId", "the `id` of the event"),
    ),
    "HTTPS": (
        *_COMMON,
        *_headers(
            Authorization="the bearer token: BYOC_ALERTS_TOKEN",
            webhook_id="the `id` of the event, or a hash of the ids of a batch",
            webhook_timestamp="when the request was signed, seconds since 1970",
            webhook_signature="Standard Webhooks signature of id, timestamp and body",
        ),
    ),
}
HEAD = """## Headers, object keys and queue attributes

Each request holds these in addition to its body, and no other. When the billing scraper starts
with the name of a bucket, it also sends an unsigned HEAD request to S3, with the name and no data.
The requests to STS and to the agent on the node are made by botocore; their sections name all that
is in them. AWS shows the owner of a bucket or queue the account, the role and the source address or
endpoint of the request.
"""


def section() -> Iterator[str]:
    """Yield the lines of the section."""
    yield HEAD
    for channel, items in CHANNELS.items():
        yield f"### {channel}\n"
        yield "| kind | name | meaning |\n|---|---|---|"
        yield from (f"| {item.kind} | `{item.name}` | {item.meaning} |" for item in items)
        yield ""
