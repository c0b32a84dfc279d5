"""Collect the vendor's arrivals: objects in the bucket, messages in the queue, events."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from botocore.config import Config
from botocore.session import get_session

from byoc_agents.billing.objects import unseal
from lab.real.parts.localstack import CREDENTIALS, REGION
from lab.real.parts.process import DIRECT

BUCKET, QUEUE = "byoc-usage", "byoc-state.fifo"
ALERT = "byoc.alert.v1"


@dataclass
class Arrivals:
    """The arrivals so far; `seen` counts by kind: usage objects, state messages, alerts."""

    localstack_url: str
    plane_url: str
    seen: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("usage", "state", "alert"), 0)
    )
    _keys: set[str] = field(default_factory=set)
    _events: int = 0

    def __post_init__(self) -> None:
        config = Config(retries={"total_max_attempts": 1}, proxies={})
        session = get_session()
        about: dict[str, Any] = {"endpoint_url": self.localstack_url, "config": config}
        self._s3 = session.create_client("s3", REGION, **about, **CREDENTIALS)
        self._sqs = session.create_client("sqs", REGION, **about, **CREDENTIALS)
        self._queue_url = self._sqs.get_queue_url(QueueName=QUEUE)["QueueUrl"]

    @property
    def complete(self) -> bool:
        """Return whether at least one of each kind has arrived."""
        return all(self.seen.values())

    def look(self) -> list[str]:
        """Return a line for each arrival since the last call."""
        return [*self._usage(), *self._state(), *self._reported()]

    def close(self) -> None:
        """Close the connections."""
        self._s3.close()
        self._sqs.close()

    def _usage(self) -> Iterator[str]:
        for item in self._s3.list_objects_v2(Bucket=BUCKET).get("Contents", []):
            key = item["Key"]
            if key not in self._keys:
                self._keys.add(key)
                self.seen["usage"] += 1
                with self._s3.get_object(Bucket=BUCKET, Key=key)["Body"] as body:
                    lines = unseal(key, body.read())
                yield f"bucket         {len(lines)} records, {item['Size']} bytes: {key}"

    def _state(self) -> Iterator[str]:
        asked = {"QueueUrl": self._queue_url, "MaxNumberOfMessages": 10, "WaitTimeSeconds": 0}
        for message in self._sqs.receive_message(**asked).get("Messages", []):
            self._sqs.delete_message(
                QueueUrl=self._queue_url, ReceiptHandle=message["ReceiptHandle"]
            )
            self.seen["state"] += 1
            yield f"queue          {_state_line(json.loads(message['Body'])['data'])}"

    def _reported(self) -> Iterator[str]:
        with DIRECT.open(self.plane_url, timeout=10) as response:
            events = json.load(response)
        new, self._events = events[self._events :], len(events)
        for event in new:
            self.seen["alert"] += event["type"] == ALERT
            name = event["data"].get("labels", {}).get("alertname", "")
            status = event["data"].get("status", "")
            yield f"control plane  {event['type']} {name} {status}".rstrip()


def _state_line(data: dict[str, Any]) -> str:
    reasons = " ".join(reason["code"] for reason in data["reasons"])
    return f"{data['kind']} {data['sequence']}: {data['state']} {reasons}".rstrip()
