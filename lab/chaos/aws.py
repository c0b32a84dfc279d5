"""LocalStack with a bucket and a queue. A kill makes it forget everything.

The paths to it record each successful response, so objects and messages from before a kill count as
delivered.
"""

import json
import secrets
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.session import get_session

from lab.fakes.http import Reply, Request
from lab.real.parts.localstack import CREDENTIALS, REGION
from lab.real.parts.process import RealProcess
from lab.real.stored import Bucket, bucket_at

# A message that a reader received and did not delete, for example because it froze, is visible
# again after this time.
FIFO = {"FifoQueue": "true", "VisibilityTimeout": "4"}
OK, ALREADY_THERE = 200, 412


@dataclass
class Queue:
    """A FIFO queue of LocalStack, and a thread that empties it as the control plane does."""

    client: Any
    name: str = field(default_factory=lambda: f"byoc-{secrets.token_hex(6)}.fifo")
    url: str = ""
    got: list[dict[str, Any]] = field(default_factory=list)  # bodies as they came
    sent: list[dict[str, Any]] = field(
        default_factory=list
    )  # of this incarnation: answered as taken
    lock: threading.Lock = field(default_factory=threading.Lock)
    _over: threading.Event = field(default_factory=threading.Event)

    def create(self) -> None:
        self.url = self.client.create_queue(QueueName=self.name, Attributes=FIFO)["QueueUrl"]

    def consume(self) -> None:
        while not self._over.is_set():
            try:
                with self.lock:
                    self.receive(1)
            except (BotoCoreError, ClientError):
                self._over.wait(0.5)  # frozen or killed: it is asked again

    def receive(self, wait_seconds: int) -> int:
        """Receive up to ten messages; return their number."""
        response = self.client.receive_message(
            QueueUrl=self.url, MaxNumberOfMessages=10, WaitTimeSeconds=wait_seconds
        )
        items = response.get("Messages", [])
        for item in items:
            self.got.append(json.loads(item["Body"]))
            self.client.delete_message(QueueUrl=self.url, ReceiptHandle=item["ReceiptHandle"])
        return len(items)

    def taken(self, request: Request, reply: Reply) -> None:
        """Record the messages that the queue confirms."""
        if reply.status != OK or not request.headers["x-amz-target"].endswith("SendMessageBatch"):
            return
        good = {one["Id"] for one in json.loads(reply.body).get("Successful", [])}
        entries = json.loads(request.body)["Entries"]
        self.sent += [json.loads(one["MessageBody"]) for one in entries if one["Id"] in good]

    def record_delivered(self) -> None:
        """Record the accepted messages that the reader never received: they were delivered."""
        seen = {body["id"] for body in self.got}
        for body in self.sent:
            if body["id"] not in seen:
                seen.add(body["id"])
                self.got.append(body)
        self.sent.clear()

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
class Stored:
    """The objects that S3 confirmed to this process."""

    bucket: str
    objects: dict[str, bytes] = field(default_factory=dict)
    writes: Counter[str] = field(default_factory=Counter)
    offered: dict[str, bytes] = field(default_factory=dict)  # the first that went there, by key

    def given(self, request: Request) -> None:
        """Record each request to S3, answered or not."""
        if key := self._key(request):
            self.offered.setdefault(key, request.body)

    def taken(self, request: Request, reply: Reply) -> None:
        """Record each stored object: by a 200, or by a 412 if the 200 had been lost."""
        key = self._key(request)
        if key and reply.status == OK:
            self.objects[key] = request.body
            self.writes[key] += 1
        elif key and reply.status == ALREADY_THERE and key not in self.objects:
            self.objects[key] = self.offered.get(key, request.body)
            self.writes[key] += 1

    def _key(self, request: Request) -> str:
        start = f"/{self.bucket}/"
        put = request.method == "PUT" and request.path.startswith(start)
        return request.path.removeprefix(start) if put else ""


@dataclass
class Aws:
    """One LocalStack; `ended` has the objects of those that a kill ended."""

    server: RealProcess
    bucket: Bucket
    queue: Queue
    stored: Stored
    ended: list[Stored] = field(default_factory=list)

    def make(self) -> None:
        """Make bucket and queue."""
        self.bucket.create()
        self.queue.create()

    def record_delivered(self) -> None:
        """After a kill, record as delivered every message that got a response."""
        with self.queue.lock:
            self.queue.record_delivered()
        over = Stored(self.bucket.name, dict(self.stored.objects), Counter(self.stored.writes))
        self.ended.append(over)
        self.stored.objects.clear()
        self.stored.writes.clear()
        self.stored.offered.clear()

    def start(self) -> None:
        """Start an empty one, with the same bucket and the same queue."""
        self.server.start()
        self.make()


@contextmanager
def aws_at(server: RealProcess) -> Iterator[Aws]:
    """Make a bucket and a queue in a LocalStack that runs, and read the queue."""
    config = Config(retries={"total_max_attempts": 1}, proxies={}, read_timeout=20)
    client = get_session().create_client(
        "sqs", REGION, endpoint_url=server.url, config=config, **CREDENTIALS
    )
    with bucket_at(server.url) as bucket:
        aws = Aws(server, bucket, Queue(client), Stored(bucket.name))
        aws.make()
        try:
            with aws.queue.consumed():
                yield aws
        finally:
            with suppress(OSError):
                client.close()
