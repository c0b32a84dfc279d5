"""The daemons' environment: real parts, the paths to them, a workload, received messages."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from byoc_agents.app.clock import SystemClock
from lab.chaos.aws import Aws, Queue, aws_at
from lab.chaos.facts import FINGERPRINT_SECRET, Notified
from lab.chaos.link import Link, linked
from lab.chaos.loops import entered
from lab.real.alerts_lab import AM_CONFIG, HOOK, SECRET, TOKEN
from lab.real.parts import clickhouse, kernel, prometheus
from lab.real.parts import localstack as localstack_part
from lab.real.parts.process import RealProcess, free_port
from lab.real.scraper import SETTINGS
from lab.real.stored import KEYS, Bucket
from lab.receiver import Receiver, listening

LINKS = ("s3", "sqs", "plane", "webhook", "clickhouse")


@dataclass
class Environment:
    """The processes, paths and services of a run."""

    directory: Path
    aws: Aws
    clickhouse: RealProcess
    alertmanager: RealProcess
    receiver: Receiver
    links: Mapping[str, Link]
    group: kernel.ControlGroup
    webhook_port: int
    notified: Notified

    @property
    def bucket(self) -> Bucket:
        return self.aws.bucket

    @property
    def queue(self) -> Queue:
        return self.aws.queue

    @contextmanager
    def without_aws(self) -> Iterator[None]:
        """Kill LocalStack; no request reaches the next one before it has its bucket and queue."""
        paths = self.links["s3"], self.links["sqs"]
        self.aws.server.kill()
        for path in paths:
            path.block()
        self.aws.record_delivered()
        yield
        self.aws.start()
        for path in paths:
            path.blocked = False


@contextmanager
def start_environment(
    directory: Path, localstack: RealProcess | None = None
) -> Iterator[Environment]:
    """Start all parts, but for a LocalStack that runs already; stop them at the end."""
    directory.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        use = stack.enter_context
        server = localstack or use(_localstack(directory / "localstack"))
        of_clickhouse = use(clickhouse.old_clickhouse(directory / "clickhouse"))
        receiver = Receiver(TOKEN, SECRET, clock=SystemClock())
        plane_url = use(entered(listening(receiver)))
        webhook_port = free_port()
        ports = (server.port, server.port, int(plane_url.split("/")[2].split(":")[1]))
        upstream = dict(zip(LINKS, (*ports, webhook_port, of_clickhouse.port), strict=True))
        links = {name: use(linked(name, port)) for name, port in upstream.items()}
        config = AM_CONFIG.format(port=links["webhook"].http.port, hook=HOOK)
        found = Environment(
            directory=directory,
            aws=use(aws_at(server)),
            clickhouse=of_clickhouse,
            alertmanager=use(prometheus.alertmanager(directory / "alertmanager", config)),
            receiver=receiver,
            links=links,
            group=use(kernel.cgroup_v1("cpuacct", "memory")),
            webhook_port=webhook_port,
            notified=Notified(),
        )
        _record_requests(found)
        yield found


def _localstack(place: Path) -> RealProcess:
    place.mkdir()
    return localstack_part.localstack(place)


def _record_requests(of: Environment) -> None:
    """Let the paths record requests and answers, which their ends may forget."""
    of.links["webhook"].given = of.notified.given
    of.links["webhook"].taken = of.notified.taken
    of.links["s3"].given = of.aws.stored.given
    of.links["s3"].taken = of.aws.stored.taken
    of.links["sqs"].taken = of.aws.queue.taken


def settings(of: Environment, state: Path) -> dict[str, str]:
    """Return the common settings of all daemons; the intervals are set elsewhere."""
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
        "BYOC_ALERTS_FINGERPRINT_SECRET": FINGERPRINT_SECRET,
        "BYOC_ALERTS_MATCHERS": 'severity=~"critical|warning"',
        "BYOC_ALERTS_ANNOTATIONS": "summary",
    }
