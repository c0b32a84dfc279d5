"""`byoc-control-plane import`: exports of customers without a way out, and receipts for them.

A file is trusted by the public key of one organization, and whatever it holds must be of that
organization. Billing objects are stored under the same keys, with the same bytes and headers as a
scraper stores them; events become the rows that the consumer and the receiver would insert, except
that a daemon counts as seen when its event states, because files are old. So a file may be imported
any number of times, in any order, and next to online deliveries.
"""

import argparse
import asyncio
import hashlib
import os
import re
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple

from byoc_agents.airgap.cli import load_key, read_file
from byoc_agents.airgap.export import SUFFIX
from byoc_agents.airgap.signed_file import (
    Delivered,
    SignedFile,
    SignedFileError,
    open_file,
    printable,
    sign_file,
)
from byoc_agents.app.clock import SystemClock
from byoc_agents.app.cloudevents import rfc3339
from byoc_agents.app.command_line import CommandParser
from byoc_agents.app.settings import load, name
from byoc_agents.billing.objects import parse_key
from byoc_agents.durable.files import Disk
from byoc_agents.errors import ConfigError
from byoc_agents.ledger import heads
from byoc_agents.message import Message
from byoc_control_plane.bucket import Bucket, ExistsError
from byoc_control_plane.cli import COMMANDS
from byoc_control_plane.compact import FAILURES, open_bucket
from byoc_control_plane.rows import InvalidEventError, build_row
from byoc_control_plane.settings import (
    CompactorSettings,
    PlaneSettings,
    checked_argument,
    refuse_unknown,
)
from byoc_control_plane.store import (
    RowsRefusedError,
    Store,
    StoreError,
    check_tables,
    create_tables,
    insert_rows,
    open_store,
)

BILLING = "billing-scraper"
DAEMONS = (BILLING, "state-exporter", "alert-forwarder")
GROUP = 500  # rows of one insert
DONE, PROBLEMS, UNUSABLE = 0, 1, 2  # exit codes


class Imported(NamedTuple):
    """The result for one file: the stored messages, and why the others were refused."""

    delivered: list[Delivered]
    refused: dict[str, str]  # id -> why


class Importer:
    """Stores the messages of one organization."""

    def __init__(
        self,
        organization: str,
        *,
        bucket: Callable[[], Awaitable[Bucket]],
        prefix: str,
        store: Callable[[], Awaitable[Store]],
        now_ms: Callable[[], int],
    ) -> None:
        """`bucket` and `store` are opened when a file needs them."""
        self._organization = organization
        self._bucket = bucket
        self._prefix = prefix
        self._store = store
        self._now_ms = now_ms

    async def store_file(self, file: SignedFile) -> Imported:
        """Store the messages of an export.

        Raises SignedFileError, StoreError, and the errors of the client of S3: then some are
        stored, and the file is imported again.
        """
        daemon = file.manifest.daemon
        if daemon not in DAEMONS:
            raise SignedFileError(f"an export of {daemon!r}: expected {', '.join(DAEMONS)}")
        messages = file.messages()
        if daemon == BILLING:
            refused = await self._store_objects(messages)
        else:
            refused = await self._store_events(messages)
        stored = [message for message in messages if message.id not in refused]
        return Imported([Delivered(m.id, _digest(m.body)) for m in stored], refused)

    async def _store_objects(self, messages: Sequence[Message]) -> dict[str, str]:
        bucket = await self._bucket()
        refused: dict[str, str] = {}
        for message in messages:
            owner = _owner_of(message.id, self._prefix)
            if owner is None:
                refused[message.id] = f"not the key of a billing object below {self._prefix}"
            elif owner != self._organization:
                refused[message.id] = "an object of another organization"
            else:
                try:
                    await bucket.put_once(
                        message.id, message.body, message.content_type, message.content_encoding
                    )
                except ExistsError:
                    refused[message.id] = "an object with this key and other bytes is stored"
        return refused

    async def _store_events(self, messages: Sequence[Message]) -> dict[str, str]:
        store = await self._store()
        refused: dict[str, str] = {}
        for at in range(0, len(messages), GROUP):
            tables: dict[str, list[tuple[str, bytes]]] = {}
            for message in messages[at : at + GROUP]:
                try:
                    row = build_row(message.body, self._now_ms(), imported=True)
                except InvalidEventError as error:
                    refused[message.id] = str(error)
                    continue
                if row.organization_id != self._organization:
                    refused[message.id] = "an event of another organization"
                else:
                    tables.setdefault(row.table, []).append((message.id, row.line))
            for table, rows in tables.items():
                refused |= await _insert(store, table, rows)
        return refused


async def _insert(store: Store, table: str, rows: Sequence[tuple[str, bytes]]) -> dict[str, str]:
    """Insert rows; return id -> why of those that ClickHouse can never store."""
    try:
        await insert_rows(store, table, [line for _, line in rows])
    except RowsRefusedError as error:
        if len(rows) == 1:
            return {rows[0][0]: str(error)[:300]}
        refused: dict[str, str] = {}
        for row in rows:  # find whose rows are refused
            refused |= await _insert(store, table, [row])
        return refused
    return {}


def _owner_of(key: str, prefix: str) -> str | None:
    """Return the organization below whose folder the object is, None if it is not one."""
    if not key.isprintable():  # a line end could hide the rest from the expressions
        return None
    found = re.fullmatch(
        rf"{re.escape(prefix)}(?:account=\d{{12}}/)?(org=([^/]+)/(?!.*\borg=).*)", key
    )
    return found[2] if found and parse_key(found[1]) else None


def _digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def make_parser() -> CommandParser:
    """Return the parser of the command."""
    parser = COMMANDS["import"].parser()
    parser.add_argument("organization", type=checked_argument(name), help="whose exports they are")
    parser.add_argument("file", nargs="+", type=Path, help="exports, in any order")
    parser.add_argument("--key", required=True, help="the organization's public Ed25519 key")
    parser.add_argument("--sign", required=True, help="your private Ed25519 key, PEM")
    parser.add_argument("--receipts", required=True, type=Path, help="an existing directory")
    return parser


def main(argv: Sequence[str]) -> int:
    """Import the files. Return 0, 1 if anything was refused, 2 if a store does not respond.

    Raises ConfigError.
    """
    asked = make_parser().parse_args(argv)
    refuse_unknown(os.environ)
    if not asked.receipts.is_dir():
        raise ConfigError([f"--receipts: {asked.receipts}: expected an existing directory"])
    try:
        return asyncio.run(_import(asked, os.environ))
    except OSError as error:
        sys.stderr.write(f"byoc-control-plane import: {error}\n")
        return UNUSABLE


async def _import(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    key = load_key(heads.load_public_key, options.key, "--key")
    own_key = load_key(heads.load_signing_key, options.sign, "--sign")
    code = DONE
    async with AsyncExitStack() as stack:
        importer = _open(options.organization, environ, stack)
        for path in options.file:
            try:
                file = open_file(read_file(path), "export", key)
                found = await importer.store_file(file)
            except SignedFileError as error:
                sys.stderr.write(f"{path}: refused: {printable(str(error))}\n")
                code = max(code, PROBLEMS)
                continue
            except (StoreError, *FAILURES) as error:
                why = printable(str(error)[:300])
                sys.stderr.write(f"{path}: not stored, import it again: {why}\n")
                code = UNUSABLE
                continue
            made_at = rfc3339(SystemClock().wall_ns() // 1_000_000)
            manifest = file.manifest
            _, content = sign_file(
                "receipt",
                found.delivered,
                own_key,
                daemon=manifest.daemon,
                made_at=made_at,
                of=file.id,
            )
            receipt = options.receipts / f"receipt-{manifest.daemon}-{file.id[:16]}{SUFFIX}"
            Disk().place(content, receipt)
            sys.stdout.write(f"{path}: {len(found.delivered)} messages stored: {receipt}\n")
            for message_id, why in found.refused.items():
                sys.stderr.write(f"{path}: {message_id!r} refused: {printable(why)}\n")
                code = max(code, PROBLEMS)
    return code


def _open(organization: str, environ: Mapping[str, str], stack: AsyncExitStack) -> Importer:
    """Return an importer that opens the bucket and the store when they are needed."""
    opened: dict[str, Any] = {}

    async def bucket() -> Bucket:
        if "bucket" not in opened:
            (own,) = load([CompactorSettings], environ, {})
            opened["bucket"] = await stack.enter_async_context(open_bucket(own, environ))
        return opened["bucket"]  # type: ignore[no-any-return]

    async def store() -> Store:
        if "store" not in opened:
            (own,) = load([PlaneSettings], environ, {})
            made = await stack.enter_async_context(open_store(own.store_url, own.store_password))
            if own.tables == "existing":
                await check_tables(made)
            else:
                await create_tables(made, own.tables)
            opened["store"] = made
        return opened["store"]  # type: ignore[no-any-return]

    return Importer(
        organization,
        bucket=bucket,
        prefix=_prefix(environ),
        store=store,
        now_ms=lambda: SystemClock().wall_ns() // 1_000_000,
    )


def _prefix(environ: Mapping[str, str]) -> str:
    """Return BYOC_PLANE_PREFIX; the bucket's other settings may be missing."""
    (own,) = load([CompactorSettings], {"BYOC_PLANE_BUCKET": "unused"} | dict(environ), {})
    return str(own.prefix)
