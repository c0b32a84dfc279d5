"""The vendor's bucket, as a reader of it sees it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from byoc_agents.audit import Audit, Report
from byoc_agents.audit.bucket import read_bucket
from byoc_agents.audit.readers import Hours
from byoc_agents.audit.validate import decode
from byoc_agents.billing.objects import unseal
from byoc_agents.billing.record import Usage
from lab.demo.aws import Aws, Door

BUCKET = "demo-usage"


class Storage:
    """The bucket's objects, read as they arrive."""

    def __init__(self, client: Any, door: Door) -> None:
        self.door = door
        self.bodies: dict[str, bytes] = {}  # key -> object, of those read so far
        self.records: list[Usage] = []  # in the order in which their objects were seen
        self._client = client
        self._puts_read = door.puts

    async def refresh(self) -> None:
        """Read the new objects."""
        if self._puts_read == self.door.puts:
            return
        self._puts_read = self.door.puts
        listed = await self._client.list_objects_v2(Bucket=BUCKET)
        for item in listed.get("Contents", []):
            if item["Key"] not in self.bodies:
                await self._read(item["Key"])

    async def _read(self, key: str) -> None:
        response = await self._client.get_object(Bucket=BUCKET, Key=key)
        async with response["Body"] as stream:
            self.bodies[key] = await stream.read()
        self.records += [decode(line).data for line in unseal(key, self.bodies[key])]

    async def audit(self) -> Report:
        """Audit the whole bucket, as `byoc-agents verify` does."""
        audit = Audit()
        await read_bucket(audit, self._client, (BUCKET, ""), Hours(), lambda _objects: None)
        return audit.report(f"s3://{BUCKET}")

    def copy(self, directory: Path) -> None:
        """Write the objects into a directory, as `aws s3 sync` would."""
        for key, body in self.bodies.items():
            path = directory / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(body)


@asynccontextmanager
async def bucket(aws: Aws) -> AsyncIterator[Storage]:
    """Create the bucket."""
    async with aws.client("s3") as client:
        await client.create_bucket(Bucket=BUCKET)
        yield Storage(client, aws.door)
