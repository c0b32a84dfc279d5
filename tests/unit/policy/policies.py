"""One configuration that the tests of all policies look at."""

from dataclasses import replace

from byoc_agents.egress.destinations import (
    DestinationKind,
    clickhouse_destination,
    https_destination,
    proxy_destination,
    s3_destination,
    sqs_destination,
)
from byoc_agents.policy.inputs import Facts, Listener, Objects

REGION = "eu-west-1"
S3 = "vendor-usage.s3.eu-west-1.amazonaws.com"
SQS = "sqs.eu-west-1.amazonaws.com"
PLANE = "api.vendor.example"
POD_IDENTITY = "169.254.170.23"
QUEUE_ARN = "arn:aws:sqs:eu-west-1:123456789012:state.fifo"

ALL = (
    clickhouse_destination(
        "http://127.0.0.1:8123", daemon="state-exporter", setting="BYOC_CLICKHOUSE_URL"
    ),
    s3_destination(
        "vendor-usage",
        REGION,
        daemon="billing-scraper",
        setting="BYOC_BILLING_BUCKET",
        frequency="300 s",
    ),
    https_destination(
        f"http://{POD_IDENTITY}/v1/credentials",
        kind=DestinationKind.POD_IDENTITY,
        purpose="credentials",
        daemon="billing-scraper",
        setting="AWS_CONTAINER_CREDENTIALS_FULL_URI",
    ),
    sqs_destination(
        f"https://{SQS}/123456789012/state.fifo",
        daemon="state-exporter",
        setting="BYOC_STATE_QUEUE_URL",
    ),
    https_destination(
        f"http://{POD_IDENTITY}/v1/credentials",
        kind=DestinationKind.POD_IDENTITY,
        purpose="credentials",
        daemon="state-exporter",
        setting="AWS_CONTAINER_CREDENTIALS_FULL_URI",
    ),
    https_destination(
        f"https://{PLANE}/v1/alerts",
        kind=DestinationKind.CONTROL_PLANE,
        purpose="alerts",
        daemon="alert-forwarder",
        setting="BYOC_ALERTS_URL",
    ),
)
FACTS = Facts(
    daemons=("billing-scraper", "state-exporter", "alert-forwarder"),
    region=REGION,
    destinations=ALL,
    listeners=(
        Listener("all", "metrics", "127.0.0.1", 9464, "BYOC_LISTEN"),
        Listener("alert-forwarder", "webhook", "127.0.0.1", 9095, "BYOC_ALERTS_LISTEN"),
    ),
    objects=Objects("vendor-usage", "v1/org=o/service=s/"),
    queue_arn=QUEUE_ARN,
)
PROXY = proxy_destination("http://proxy.customer.example:3128")


def listening(metrics: str, webhook: str) -> Facts:
    """Return the same with other addresses that are listened on."""
    first, second = FACTS.listeners
    return replace(FACTS, listeners=(replace(first, host=metrics), replace(second, host=webhook)))
