"""The consumer against the FIFO queue of LocalStack."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from aiobotocore.session import get_session

from lab.control_plane.messages import Replica, message_id
from lab.control_plane.processes import KEYS, running_plane
from lab.control_plane.simulation import fleet_messages, simulate
from lab.real.parts.process import RealProcess
from tests.real.test_real_control_plane_kill import read_elsewhere

pytestmark = pytest.mark.real

REPLICAS, MESSAGES = 5, 8


async def send_all(client: Any, queue_url: str) -> list[str]:
    """Send the messages of all replicas, and one that is not an event."""
    ids = []
    for number in range(REPLICAS):
        replica = Replica(replica=f"r-{number}")
        for _ in range(MESSAGES):
            body = replica.message(1_795_435_200_000)
            ids.append(message_id(body))
            await client.send_message(
                QueueUrl=queue_url,
                MessageBody=body.decode(),
                MessageGroupId=replica.group,
                MessageDeduplicationId=ids[-1],
            )
    await client.send_message(
        QueueUrl=queue_url, MessageBody="poison", MessageGroupId="p", MessageDeduplicationId="p"
    )
    return ids


async def depth(client: Any, queue_url: str) -> int:
    """Return how many messages are in the queue, visible or in flight."""
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    response = await client.get_queue_attributes(QueueUrl=queue_url, AttributeNames=names)
    return sum(int(response["Attributes"][name]) for name in names)


async def test_every_message_of_a_real_queue_is_a_row_and_poison_is_set_aside(
    localstack: RealProcess, tmp_path: Path
) -> None:
    place: dict[str, Any] = {"endpoint_url": localstack.url, "region_name": "us-east-1"}
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    async with get_session().create_client("sqs", **place, **keys) as client:
        made = await client.create_queue(
            QueueName="control-plane.fifo", Attributes={"FifoQueue": "true"}
        )
        ids = await send_all(client, made["QueueUrl"])
        settings = KEYS | {
            "AWS_ENDPOINT_URL": localstack.url,
            "BYOC_PLANE_QUEUE_URL": made["QueueUrl"],
            "BYOC_PLANE_STORE_URL": f"chdb:{tmp_path}/store",
        }
        async with running_plane(["consumer"], tmp_path / "log", settings) as process:
            async with asyncio.timeout(60):
                while await depth(client, made["QueueUrl"]):  # noqa: ASYNC110  another process
                    await asyncio.sleep(0.2)
            assert await process.stop() == 0
    assert sorted(await read_elsewhere(tmp_path / "store", "byoc_state", "id")) == sorted(ids)
    assert await read_elsewhere(tmp_path / "store", "byoc_rejected", "body") == ["poison"]


async def test_the_simulated_fleet_passes_a_real_queue_and_killed_consumers(tmp_path: Path) -> None:
    """The sample of the simulation: every message of an hour is one row."""
    messages = list(fleet_messages(30, 7, 1.0))
    assert len(messages) >= 30 * 12
    found = await simulate(tmp_path, messages, kills=2, seed=7, real=True)
    assert (found["messages"], found["rows"]) == (len(messages), len(messages))
    assert (found["missing"], found["unexpected"], found["rejected"]) == (0, 0, 0)
    assert found["kills"] == 2
