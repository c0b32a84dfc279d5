"""An installation without a way out, its receiver, and the files that are carried between them."""

import hashlib
from contextlib import closing
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from byoc_agents.airgap.export import KeptExport, SpoolExporter, open_exporter
from byoc_agents.airgap.signed_file import open_file, sign_file
from byoc_agents.durable.model import WriteBatch
from byoc_agents.durable.store import SpoolStore
from byoc_agents.errors import Reason
from byoc_agents.ledger import FileLedger
from byoc_agents.ledger.query import Filter, events
from byoc_agents.message import Message, Receipt
from byoc_control_plane.bucket import ExistsError
from byoc_control_plane.importer import Importer
from lab.control_plane.memory_store import MemoryStore
from lab.fakes.billing import ReplicaHistory, objects
from lab.fakes.core import START_MS, FakeClock

CUSTOMER = Ed25519PrivateKey.from_private_bytes(b"c" * 32)
VENDOR = Ed25519PrivateKey.from_private_bytes(b"v" * 32)
STRANGER = Ed25519PrivateKey.from_private_bytes(b"s" * 32)
BILLING = "billing-scraper"


class MemoryBucket:
    """Keeps objects, each once. As `Bucket`, without HTTP."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.headers: dict[str, tuple[str, str]] = {}

    async def put_once(
        self, key: str, body: bytes, content_type: str = "application/zstd", encoding: str = ""
    ) -> None:
        if self.objects.setdefault(key, body) != body:
            raise ExistsError(key)
        self.headers[key] = (content_type, encoding)


class Harness:
    """One state directory, one receiver, and every file so far."""

    def __init__(self, directory: Path, organization: str = "org-1") -> None:
        self.state_dir = directory / "state"
        self.output = directory / "output"
        self.output.mkdir(parents=True)
        self.clock = FakeClock()
        self.bucket: Any = MemoryBucket()
        self.store = MemoryStore()
        self.exports: list[bytes] = []
        self.receipts: list[bytes] = []
        self.history = ReplicaHistory(organization_id=organization)
        self.importer = self.importer_of(organization)

    def importer_of(self, organization: str) -> Importer:
        async def bucket() -> Any:
            return self.bucket

        async def store() -> Any:
            return self.store

        return Importer(
            organization, bucket=bucket, prefix="v1/", store=store, now_ms=lambda: START_MS
        )

    def spool(self, daemon: str = BILLING) -> SpoolStore:
        """Open the spool as the daemon has it."""
        path = self.state_dir / daemon / "spool.db"
        path.parent.mkdir(parents=True, exist_ok=True)
        return SpoolStore(path, max_bytes=1 << 30)

    def add(self, *messages: Message, daemon: str = BILLING) -> None:
        with closing(self.spool(daemon)) as store, store.transaction():
            store.apply(WriteBatch(messages=messages))

    def add_objects(self, count: int) -> list[Message]:
        made = objects([self.history.measured() for _ in range(count)], size=1)
        self.add(*made)
        return made

    def waiting(self, daemon: str = BILLING) -> list[str]:
        with closing(self.spool(daemon)) as store:
            return [message_id for message_id, _ in store.waiting()]

    def exporter(self) -> Any:
        return open_exporter(self.state_dir, self.clock)

    async def export(self, daemon: str = BILLING, **options: Any) -> list[bytes]:
        async with self.exporter() as exporter:
            made: SpoolExporter = exporter
            found = await made.export(daemon, self.output, CUSTOMER, **options)
        await self.clock.advance(1)  # so that the next export is another file
        new = [one.path.read_bytes() for one in found]
        self.exports += new
        return new

    async def export_kept(self, daemon: str = BILLING, **options: Any) -> KeptExport:
        """Export what the daemon's ledger keeps."""
        async with self.exporter() as exporter:
            made: SpoolExporter = exporter
            found = await made.export_kept(daemon, self.output, CUSTOMER, **options)
        await self.clock.advance(1)
        self.exports += [one.path.read_bytes() for one in found.files]
        return found

    async def announce(
        self, *messages: Message, daemon: str = BILLING, keep_bodies: bool = True
    ) -> None:
        """Write messages into the daemon's ledger as it does before a request."""
        directory = self.state_dir / daemon / "ledger"
        async with FileLedger(
            directory, clock=self.clock, max_bytes=1 << 26, keep_bodies=keep_bodies
        ) as ledger:
            for message in messages:
                intent = await ledger.intent("s3://usage/v1/", [message])
                await ledger.receipt(intent, [message], [Receipt(Reason.OK, 200)])

    async def deliver(self, raw: bytes) -> bytes:
        """Import an export; return the receipt."""
        file = open_file(raw, "export", CUSTOMER.public_key())
        found = await self.importer.store_file(file)
        _, receipt = sign_file(
            "receipt",
            found.delivered,
            VENDOR,
            daemon=file.manifest.daemon,
            made_at="2026-11-23T12:00:00.000Z",
            of=file.id,
        )
        self.receipts.append(receipt)
        return receipt

    async def confirm(self, raw: bytes) -> int:
        """Import a receipt; return how many messages were removed."""
        async with self.exporter() as exporter:
            made: SpoolExporter = exporter
            found = await made.confirm(open_file(raw, "receipt", VENDOR.public_key()))
        return found.removed

    async def send_first_online(self) -> None:
        """Deliver the first message as the daemon does."""
        with closing(self.spool()) as store:
            for message in store.peek(1, 1 << 30):
                await self.announce(message)
                kind, coding = message.content_type, message.content_encoding
                await self.bucket.put_once(message.id, message.body, kind, coding)
                with store.transaction():
                    store.remove([message.id])

    def ledger(self) -> list[Any]:
        """Return the sends of the ledger of the exports."""
        return list(events({"export": self.state_dir / "export" / "ledger"}, Filter()))


def digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()
