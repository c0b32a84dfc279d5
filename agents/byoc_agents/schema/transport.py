"""The parts of a request other than its body: headers, object keys and queue attributes.

They are a section of docs/contracts/fields.md; `tests/docs/test_transport_docs.py` compares the
headers and attributes with recorded requests.
"""

from collections.abc import Iterator

import msgspec


class Item(msgspec.Struct, frozen=True):
    """One header, key or attribute."""

    kind: str  # header, key, attribute
    name: str
    meaning: str


def _headers(**meanings: str) -> tuple[Item, ...]:
    return tuple(Item("header", name.replace("_", "-"), text) for name, text in meanings.items())


_COMMON = _headers(
    Host="the host of the destination",
    User_Agent="`byoc-agents/VERSION`; no kernel, interpreter, library or variable",
    Accept="always `*/*`",
    Accept_Encoding="`identity` to AWS, `gzip, deflate` to the control plane",
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
        Item("key", "org=, service=", "BYOC_ORGANIZATION_ID and BYOC_SERVICE_ID"),
        Item("key", "date=, hour=", "UTC, start of the first record's period"),
        Item("key", "POD-EPOCH-FIRST-LAST", "pod uid, or replica; epoch; first and last sequence"),
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
AWS shows the owner of a bucket or queue the account, the role and the source address or endpoint
of the request.
"""


def section() -> Iterator[str]:
    """Yield the lines of the section."""
    yield HEAD
    for channel, items in CHANNELS.items():
        yield f"### {channel}\n"
        yield "| kind | name | meaning |\n|---|---|---|"
        yield from (f"| {item.kind} | `{item.name}` | {item.meaning} |" for item in items)
        yield ""
