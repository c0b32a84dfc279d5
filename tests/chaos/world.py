"""Everything around the daemons: real parts, the paths to them, a workload, what was received."""

import json
import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.session import get_session

from agents.alerts.receiver import Receiver, listening
from agents.core.clock import SystemClock
from tests.chaos.link import Link, linked
from tests.chaos.loops import entered
from tests.real.alerts_lab import AM_CONFIG, HOOK, SECRET, TOKEN
from tests.real.parts import clickhouse, kernel, localstack, prometheus
from tests.real.parts.localstack import CREDENTIALS, REGION
from tests.real.parts.process import RealProcess, free_port
from tests.real.scraper import SETTINGS
from tests.real.stored import KEYS, Bucket, bucket_at

# What a reader was given and never heard of, as when it froze, comes again this soon.
FIFO = {"FifoQueue": "true", "VisibilityTimeout": "4"}
LINKS = ("s3", "sqs", "plane", "webhook", "clickhouse")


@dataclass
class Queue:
    """A FIFO queue of LocalStack, emptied by a thread as the control plane does."""

    client: Any
    url: str
    got: list[dict[str, Any]] = field(default_factory=list)  # bodies as they came
    _over: threading.Event = field(default_factory=threading.Event)

    def consume(self) -> None:
        while not self._over.is_set():
            try:
                self.receive(1)
            except (BotoCoreError, ClientError):
                self._over.wait(0.5)  # frozen: it is asked again

    def receive(self, wait_seconds: int) -> int:
        """Take up to ten messages; return how many came."""
        answer = self.client.receive_message(
            QueueUrl=self.url, MaxNumberOfMessages=10, WaitTimeSeconds=wait_seconds
        )
        items = answer.get("Messages", [])
        for item in items:
            self.got.append(json.loads(item["Body"]))
            self.client.delete_message(QueueUrl=self.url, ReceiptHandle=item["ReceiptHandle"])
        return len(items)

    @contextmanager
    def consumed(self) -> Iterator[None]:
        thread = threading.Thread(target=self.consume, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join(60)


@dataclass
class World:
    """What a run works on."""

    directory: Path
    localstack: RealProcess
    clickhouse: RealProcess
    alertmanager: RealProcess
    bucket: Bucket
    queue: Queue
    receiver: Receiver
    links: Mapping[str, Link]
    group: kernel.ControlGroup
    webhook_port: int


@contextmanager
def world(directory: Path, aws: RealProcess | None = None) -> Iterator[World]:
    """Start all parts, but for a LocalStack that runs already; stop them at the end."""
    directory.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        use = stack.enter_context
        aws = aws or use(_localstack(directory / "localstack"))
        server = use(clickhouse.old_clickhouse(directory / "clickhouse"))
        receiver = Receiver(TOKEN, SECRET, clock=SystemClock())
        plane_url = use(entered(listening(receiver)))
        webhook_port = free_port()
        ports = (aws.port, aws.port, int(plane_url.split("/")[2].split(":")[1]))
        upstream = dict(zip(LINKS, (*ports, webhook_port, server.port), strict=True))
        links = {name: use(linked(name, port)) for name, port in upstream.items()}
        config = AM_CONFIG.format(port=links["webhook"].http.port, hook=HOOK)
        yield World(
            directory=directory,
            localstack=aws,
            clickhouse=server,
            alertmanager=use(prometheus.alertmanager(directory / "alertmanager", config)),
            bucket=_bucket(use(bucket_at(aws.url))),
            queue=use(_queue(aws.url)),
            receiver=receiver,
            links=links,
            group=use(kernel.cgroup_v1("cpuacct", "memory")),
            webhook_port=webhook_port,
        )


def _localstack(place: Path) -> RealProcess:
    place.mkdir()
    return localstack.localstack(place)


def _bucket(bucket: Bucket) -> Bucket:
    bucket.create()
    return bucket


@contextmanager
def _queue(url: str) -> Iterator[Queue]:
    config = Config(retries={"total_max_attempts": 1}, proxies={}, read_timeout=20)
    client = get_session().create_client(
        "sqs", REGION, endpoint_url=url, config=config, **CREDENTIALS
    )
    name = f"byoc-{secrets.token_hex(6)}.fifo"
    made = client.create_queue(QueueName=name, Attributes=FIFO)
    queue = Queue(client, made["QueueUrl"])
    try:
        with queue.consumed():
            yield queue
    finally:
        client.close()


def settings(of: World, state: Path) -> dict[str, str]:
    """Return what all daemons are given; their pace is another's choice."""
    queue_path = of.queue.url.split("/", 3)[3]
    return {
        **SETTINGS,
        **KEYS,
        "BYOC_STATE_DIR": str(state),
        "AWS_ENDPOINT_URL_S3": of.links["s3"].url,
        "AWS_ENDPOINT_URL_SQS": of.links["sqs"].url,
        "BYOC_BILLING_BUCKET": of.bucket.name,
        "BYOC_BILLING_TARGET": f"cgroup:{of.group['cpuacct']}",
        "BYOC_CLICKHOUSE_URL": of.links["clickhouse"].url,
        "BYOC_CLICKHOUSE_USER": clickhouse.USER,
        "BYOC_CLICKHOUSE_PASSWORD": clickhouse.PASSWORD,
        "BYOC_STATE_QUEUE_URL": f"{of.links['sqs'].url}/{queue_path}",
        # in its first minute an old server cannot prove that it has no tables to hide
        "BYOC_STATE_LIMITS": "OBSERVABILITY_PARTIAL=1000/0",
        "BYOC_ALERTS_LISTEN": f"127.0.0.1:{of.webhook_port}",
        "BYOC_ALERTS_URL": f"{of.links['plane'].url}/v1/events",
        "BYOC_ALERTS_TOKEN": TOKEN,
        "BYOC_ALERTS_SIGNING_SECRET": SECRET,
        "BYOC_ALERTS_WEBHOOK_TOKEN": HOOK,
    }
