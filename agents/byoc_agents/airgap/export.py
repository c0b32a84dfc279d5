"""Exports the messages in the spools, and removes those that a receipt confirms.

With the bodies that a ledger keeps, messages that left the spool long ago are exported as well.

Both work while the daemons run, as `dead-letters` does: SQLite isolates the processes. A message
stays in its spool, and the daemon goes on sending it, until a receipt or the receiver's own
response confirms it.

`STATE_DIR/export/` has what the commands remember: their own ledger, and one file per export with
the name of the daemon. In that ledger an export is a send to `export:DAEMON`, with an intent before
the first byte is written; a receipt is a fact, written before anything is removed.
"""

import re
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from byoc_agents.airgap.kept import KeptBodies
from byoc_agents.airgap.signed_file import Delivered, SignedFile, SignedFileError, sign_file
from byoc_agents.app.clock import Clock
from byoc_agents.app.cloudevents import rfc3339
from byoc_agents.durable.files import DirectoryLock, create_file, sync_directory
from byoc_agents.durable.store import SpoolStore
from byoc_agents.errors import Reason, SendError
from byoc_agents.ledger import FileLedger
from byoc_agents.ledger.format import FactLine, sha256_hex
from byoc_agents.message import Message, Outcome, Receipt

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

OWN = "export"  # directory of the state directory
LEDGER_BYTES = 64 * 1024**2
MAX_FILE_BYTES = 64 * 1024**2  # of the bodies in one file; base64 makes them a third longer
INTENT_MESSAGES = 500  # in one line of the ledger, which stays below its longest line
UNBOUNDED = 1 << 62  # nothing is added to a spool
SUFFIX = ".byoc"
PARTIAL = ".partial-"
FILE_ID = re.compile("[0-9a-f]{64}")


class Exported(NamedTuple):
    """A file that was written."""

    path: Path
    messages: int


class KeptExport(NamedTuple):
    """The result of an export of kept bodies."""

    files: list[Exported]
    unkept: int  # messages without a kept body
    damaged: list[str]  # files with other bytes than those that were sent


class Confirmed(NamedTuple):
    """The effect of a receipt."""

    daemon: str
    confirmed: int  # lines of the receipt
    removed: int  # messages that were still in the spool


class SpoolExporter:
    """The two commands on one state directory. Use `open_exporter`, which holds its lock."""

    def __init__(self, state_dir: Path, ledger: FileLedger, clock: Clock) -> None:
        self._state_dir = state_dir
        self._ledger = ledger
        self._clock = clock

    async def export(
        self,
        daemon: str,
        output: Path,
        key: "Ed25519PrivateKey",
        *,
        max_bytes: int = MAX_FILE_BYTES,
    ) -> list[Exported]:
        """Write the messages in a daemon's spool into files of at most `max_bytes`, or one message.

        Raises SpoolError, LedgerError (then nothing was written) and OSError.
        """
        with closing(self._open_spool(daemon)) as store:
            return [
                await self._write(daemon, batch, output, key)
                for ids in _group(store.waiting(), max_bytes)
                if (batch := store.read(ids))  # the daemon may have sent the others meanwhile
            ]

    async def export_kept(
        self,
        daemon: str,
        output: Path,
        key: "Ed25519PrivateKey",
        *,
        max_bytes: int = MAX_FILE_BYTES,
    ) -> KeptExport:
        """Write the messages whose bodies a daemon's ledger keeps, but not those in its spool.

        Raises as `export`.
        """
        waiting: set[str] = set()
        if self._spool_path(daemon).is_file():
            with closing(self._open_spool(daemon)) as store:
                waiting = {message_id for message_id, _ in store.waiting()}
        kept = KeptBodies(self._state_dir / daemon / "ledger")
        files = [
            await self._write(daemon, batch, output, key)
            for batch in _batches(kept.messages(without=waiting), max_bytes)
        ]
        return KeptExport(files, kept.unkept, kept.damaged)

    async def _write(
        self, daemon: str, batch: Sequence[Message], output: Path, key: "Ed25519PrivateKey"
    ) -> Exported:
        made_at = rfc3339(self._clock.wall_ns() // 1_000_000)
        file_id, content = sign_file("export", batch, key, daemon=daemon, made_at=made_at)
        path = output / f"export-{daemon}-{file_id[:16]}{SUFFIX}"
        parts = [batch[at : at + INTENT_MESSAGES] for at in range(0, len(batch), INTENT_MESSAGES)]
        intents = [await self._ledger.intent(f"export:{daemon}", part) for part in parts]
        outcome: Outcome = Receipt(Reason.OK, 0, file_id)
        try:
            self._remember(file_id, daemon)
            create_file(path, content, prefix=PARTIAL)
            sync_directory(output)
        except OSError as error:
            outcome = SendError(Reason.INTERNAL, str(error.strerror))
            raise
        finally:
            for intent, part in zip(intents, parts, strict=True):
                await self._ledger.receipt(intent, part, [outcome] * len(part))
        return Exported(path, len(batch))

    async def confirm(self, receipt: SignedFile) -> Confirmed:
        """Remove from the spool what a receipt names, with the same body.

        May be repeated. Raises SignedFileError for a receipt of an export that was not made here,
        SpoolError, and LedgerError: then nothing is removed.
        """
        manifest = receipt.manifest
        if not FILE_ID.fullmatch(manifest.of):
            raise SignedFileError(
                f"a receipt for {manifest.of[:16]!r}: expected the id of an export,"
                " 64 hexadecimal digits"
            )
        daemon = self._daemon_of(manifest.of)
        if daemon is None:
            raise SignedFileError(
                f"a receipt for the export {manifest.of[:16]}, which was not made in this state"
                " directory"
            )
        if daemon != manifest.daemon:
            raise SignedFileError(f"a receipt for {manifest.daemon!r}: the export was of {daemon}")
        delivered = receipt.delivered()
        await self._ledger.fact(
            FactLine(
                fact="export.receipt",
                subject=manifest.of,
                reason="stored",
                detail={"daemon": daemon, "messages": str(len(delivered))},
                sha256={"receipt": receipt.id},
            )
        )
        removed = self._remove(daemon, delivered)
        return Confirmed(daemon, len(delivered), removed)

    def _remove(self, daemon: str, delivered: Sequence[Delivered]) -> int:
        removed = 0
        if not self._spool_path(daemon).is_file():  # the export was of kept bodies
            return removed
        with closing(self._open_spool(daemon)) as store:
            for at in range(0, len(delivered), INTENT_MESSAGES):
                named = {one.id: one.sha256 for one in delivered[at : at + INTENT_MESSAGES]}
                with store.transaction():
                    ids = [m.id for m in store.read([*named]) if named[m.id] == sha256_hex(m.body)]
                    if ids:
                        store.remove(ids)
                removed += len(ids)
        return removed

    def _open_spool(self, daemon: str) -> SpoolStore:
        path = self._spool_path(daemon)
        if not path.is_file():
            raise SignedFileError(f"{path}: no spool of {daemon}")
        return SpoolStore(path, max_bytes=UNBOUNDED)

    def _spool_path(self, daemon: str) -> Path:
        return self._state_dir / daemon / "spool.db"

    def _remember(self, file_id: str, daemon: str) -> None:
        directory = self._state_dir / OWN / "made"
        directory.mkdir(mode=0o700, exist_ok=True)
        create_file(directory / file_id, daemon.encode(), prefix=PARTIAL)
        sync_directory(directory)
        sync_directory(directory.parent)

    def _daemon_of(self, file_id: str) -> str | None:
        """Return whose export it was. The id is the name of a file: it must be a FILE_ID."""
        try:
            return (self._state_dir / OWN / "made" / file_id).read_text()
        except FileNotFoundError:
            return None


@asynccontextmanager
async def open_exporter(state_dir: Path, clock: Clock) -> AsyncIterator[SpoolExporter]:
    """Hold the lock of the commands, and open their ledger.

    Raises SpoolUnavailableError if another command runs, and LedgerError.
    """
    lock = DirectoryLock(state_dir / OWN)
    lock.hold()
    try:
        directory = state_dir / OWN / "ledger"
        async with FileLedger(directory, clock=clock, max_bytes=LEDGER_BYTES, facts=True) as ledger:
            yield SpoolExporter(state_dir, ledger, clock)
    finally:
        lock.release()


def find_daemons(state_dir: Path, *, kept: bool = False) -> list[str]:
    """Return the daemons with a spool, or with `kept` a ledger, sorted."""
    found = {path.parent.name for path in state_dir.glob("*/spool.db")}
    if kept:
        found |= {path.parent.name for path in state_dir.glob("*/ledger")} - {OWN}
    return sorted(found)


def _batches(messages: Iterable[Message], max_bytes: int) -> Iterator[list[Message]]:
    """Yield the messages of each file, in order; those of one file are in memory at a time."""
    batch: list[Message] = []
    total = 0
    for message in messages:
        if batch and total + len(message.body) > max_bytes:
            yield batch
            batch, total = [], 0
        batch.append(message)
        total += len(message.body)
    if batch:
        yield batch


def _group(waiting: Sequence[tuple[str, int]], max_bytes: int) -> Iterator[list[str]]:
    """Yield the ids of each file, in order."""
    ids: list[str] = []
    total = 0
    for message_id, size in waiting:
        if ids and total + size > max_bytes:
            yield ids
            ids, total = [], 0
        ids.append(message_id)
        total += size
    if ids:
        yield ids
