"""The pod: ClickHouse and the three daemons in one process, with the pod's own resolver."""

import base64
import json
import sys
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

from prometheus_client.parser import text_string_to_metric_families

from lab.real.netlab.namespaces import DNS_ADDRESS, Namespace
from lab.real.parts import clickhouse
from lab.real.parts.process import DIRECT, RealProcess

DAEMONS = ("billing-scraper", "state-exporter", "alert-forwarder")
REGION = "eu-west-1"
BUCKET = "byoc-billing-lab"
BUCKET_HOST = f"{BUCKET}.s3.{REGION}.amazonaws.com"
SQS_HOST = f"sqs.{REGION}.amazonaws.com"
PLANE_HOST = "control-plane.example.com"
PAGES_PORT, WEBHOOK_PORT, CLICKHOUSE_PORT = 9464, 9095, 8123
TOKEN = "token-of-the-lab"
WEBHOOK_TOKEN = "token-of-alertmanager"
SIGNING_SECRET = "whsec_" + base64.b64encode(b"network-proof-of-the-agents-lab!").decode()
# A pod has its own resolv.conf; a mount namespace gives it one and leaves /sys as it is.
OWN_NAMES = (
    'for name in resolv.conf nsswitch.conf hosts; do mount --bind "$0/$name" "/etc/$name"; done;'
    ' exec "$@"'
)


def settings(directory: Path, ca_file: Path, clickhouse_pid: int) -> dict[str, str]:
    """Return the environment of the daemons, with short intervals for tests."""
    return {
        "BYOC_ORGANIZATION_ID": "org",
        "BYOC_SERVICE_ID": "svc",
        "BYOC_REPLICA": "replica-0",
        "BYOC_REGION": REGION,
        "BYOC_STATE_DIR": str(directory / "state"),
        "BYOC_LISTEN": f"0.0.0.0:{PAGES_PORT}",  # as a pod's: the kubelet asks from outside
        "BYOC_SHUTDOWN_GRACE_SECONDS": "1",
        "BYOC_CA_FILE": str(ca_file),
        "BYOC_BILLING_BUCKET": BUCKET,
        "BYOC_BILLING_TARGET": f"pid:{clickhouse_pid}",
        "BYOC_BILLING_SAMPLE_SECONDS": "0.25",
        "BYOC_BILLING_WINDOW_SECONDS": "1",
        "BYOC_BILLING_SEAL_SECONDS": "1",
        "BYOC_CLICKHOUSE_USER": clickhouse.USER,
        "BYOC_CLICKHOUSE_PASSWORD": clickhouse.PASSWORD,
        "BYOC_STATE_QUEUE_URL": f"https://{SQS_HOST}/000000000000/state.fifo",
        "BYOC_STATE_POLL_SECONDS": "0.5",
        "BYOC_STATE_HEARTBEAT_SECONDS": "1",
        "BYOC_ALERTS_URL": f"https://{PLANE_HOST}/v1/events",
        "BYOC_ALERTS_TOKEN": TOKEN,
        "BYOC_ALERTS_SIGNING_SECRET": SIGNING_SECRET,
        "BYOC_ALERTS_LISTEN": f"0.0.0.0:{WEBHOOK_PORT}",
        "BYOC_ALERTS_WEBHOOK_TOKEN": WEBHOOK_TOKEN,
        "BYOC_ALERTS_FINGERPRINT_SECRET": "f" * 32,
        "BYOC_ALERTS_MATCHERS": 'severity=~"critical|warning"',
        "BYOC_ALERTS_ANNOTATIONS": "summary",
        "BYOC_ALERTS_HEARTBEAT_SECONDS": "1",
        "AWS_ACCESS_KEY_ID": "lab",
        "AWS_SECRET_ACCESS_KEY": "lab",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true",
    }


@dataclass
class Pod:
    """The pod's network namespace and its processes."""

    namespace: Namespace
    directory: Path
    environment: Mapping[str, str]

    async def status(self, daemon: str, port: int = PAGES_PORT) -> dict[str, Any]:
        """Return one daemon's part of /status."""
        page = await self.namespace.do(_get, f"http://127.0.0.1:{port}/status")
        return dict(json.loads(page)["daemons"][daemon])

    async def counted(self, metric: str, **labels: str) -> dict[str, float]:
        """Return daemon -> a counter with these labels, from /metrics."""
        page = await self.namespace.do(_get, f"http://127.0.0.1:{PAGES_PORT}/metrics")
        families = text_string_to_metric_families(page.decode())
        samples = [one for family in families for one in family.samples if one.name == metric]
        found = [one for one in samples if labels.items() <= one.labels.items()]
        return {one.labels["daemon"]: one.value for one in found}

    async def notify(self, name: str) -> None:
        """Post a firing alert to the webhook, as Alertmanager does. Raises HTTPError."""
        await self.namespace.do(_post, name)

    def command(self, *command: str) -> list[str]:
        """Return a command that uses the pod's own resolver."""
        return ["unshare", "--mount", "sh", "-ec", OWN_NAMES, str(self.directory), *command]

    @contextmanager
    def daemons(
        self, names: Sequence[str], port: int = PAGES_PORT, **others: str
    ) -> Iterator[RealProcess]:
        """Run daemons with the pod's settings and `others`; ready at entry, stopped at exit."""
        process = RealProcess(
            name=" ".join(names),
            command=self.command(sys.executable, "-m", "byoc_agents.app.cli", "run", *names),
            port=port,
            ready_path="/readyz",
            log=self.directory / f"agents-{port}.log",
            environment={**self.environment, "BYOC_LISTEN": f"0.0.0.0:{port}", **others},
        )
        try:
            self.namespace.run(process.start)
            yield process
        finally:
            process.stop()


@contextmanager
def running(namespace: Namespace, directory: Path, ca_file: Path) -> Iterator[Pod]:
    """Start ClickHouse, then the three daemons; wait until they are ready; stop them at the end."""
    server = clickhouse.old_clickhouse(directory / "clickhouse", CLICKHOUSE_PORT)
    _write_names(directory)
    try:
        namespace.run(server.start)
        pod = Pod(namespace, directory, settings(directory, ca_file, server.pid))
        with pod.daemons(DAEMONS):
            yield pod
    finally:
        server.stop()


def _write_names(directory: Path) -> None:
    # ndots: a real pod's 5 would ask the cluster's DNS for name.namespace.svc.cluster.local first
    resolver = f"nameserver {DNS_ADDRESS}\noptions ndots:1 timeout:2 attempts:2\n"
    (directory / "resolv.conf").write_text(resolver)
    (directory / "nsswitch.conf").write_text("hosts: files dns\n")
    (directory / "hosts").write_text("127.0.0.1 localhost\n")


def _get(url: str) -> bytes:
    with DIRECT.open(url, timeout=10) as response:
        return bytes(response.read())


def _post(name: str) -> None:
    alert = {
        "status": "firing",
        "labels": {"alertname": name, "severity": "critical"},
        "annotations": {"summary": "network proof"},
        "startsAt": "2026-11-23T19:05:54.988Z",
        "endsAt": "0001-01-01T00:00:00Z",
        "fingerprint": f"{crc32(name.encode()):016x}",
    }
    request = urllib.request.Request(
        f"http://127.0.0.1:{WEBHOOK_PORT}/v1/alerts",
        json.dumps({"version": "4", "receiver": "byoc", "alerts": [alert]}).encode(),
        {"Content-Type": "application/json", "Authorization": f"Bearer {WEBHOOK_TOKEN}"},
    )
    DIRECT.open(request, timeout=10).close()
