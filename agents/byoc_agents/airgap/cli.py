"""`byoc-agents export` and `byoc-agents import-receipts`: delivery by files that people carry."""

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import structlog

from byoc_agents.airgap import export
from byoc_agents.airgap.signed_file import (
    MAX_FILE_BYTES,
    SignedFileError,
    open_file,
    printable,
)
from byoc_agents.app.clock import SystemClock
from byoc_agents.app.command_line import CommandParser
from byoc_agents.errors import ConfigError, LedgerError, SpoolError
from byoc_agents.ledger import heads

T = TypeVar("T")
STATE_DIR = "/var/lib/byoc-agents"  # BYOC_STATE_DIR's default
SUCCESS, PROBLEMS, UNUSABLE = 0, 1, 2  # exit codes
NO_CRYPTOGRAPHY = "needs cryptography: expected `pip install 'byoc-agents[checkpoint]'`"


class AirgapCommand:
    """One of the two commands."""

    def __init__(self, name: str, description: str, example: str) -> None:
        self._name = name
        self._description = description
        self._example = example

    def make_parser(self) -> CommandParser:
        """Return the parser of the command."""
        state_dir = os.environ.get("BYOC_STATE_DIR", STATE_DIR)
        parser = CommandParser(
            prog=f"byoc-agents {self._name}",
            description=self._description,
            epilog=f"example: {self._example}",
        )
        parser.add_argument("--state-dir", type=Path, default=Path(state_dir))
        if self._name == "export":
            parser.add_argument("--key", required=True, help="your private Ed25519 key, PEM")
            parser.add_argument("--output", required=True, type=Path, help="an existing directory")
            parser.add_argument("--daemon", action="append", help="only this one; may be repeated")
            parser.add_argument(
                "--kept", action="store_true", help="also messages whose bodies the ledgers keep"
            )
        else:
            parser.add_argument("--key", required=True, help="the receiver's public Ed25519 key")
            parser.add_argument("file", nargs="+", type=Path, help="receipts, in any order")
        return parser

    def main(self, argv: Sequence[str]) -> int:
        """Run it. Return 0, 1 if a file is refused, 2 if nothing can be done.

        Raises ConfigError.
        """
        options = self.make_parser().parse_args(argv)
        before = structlog.get_config()
        structlog.configure(  # standard output is for the result
            wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
            logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        )
        try:
            return asyncio.run((_export if self._name == "export" else _import)(options))
        except OSError as error:
            text = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        except (SpoolError, LedgerError, SignedFileError) as error:
            text = printable(str(error))
        finally:
            structlog.configure(**before)
        sys.stderr.write(f"byoc-agents {self._name}: {text}\n")
        return UNUSABLE


EXPORT = AirgapCommand(
    "export",
    "Write the messages in the spools into signed files, one or more per daemon. With --kept, also"
    " those that left the spool and whose bodies the ledger keeps."
    " Nothing is removed: `import-receipts` does that.",
    "byoc-agents export --key export-key.pem --output /media/usb",
)
IMPORT = AirgapCommand(
    "import-receipts",
    "Remove from the spools what the receiver's receipts confirm. A file may be imported again.",
    "byoc-agents import-receipts --key vendor.pub receipt-*.byoc",
)


def load_key(load: Callable[[bytes], T], file: str, option: str) -> T:
    """Return the key of a file. Raises OSError, and ConfigError, which names the option."""
    try:
        return load(Path(file).read_bytes())
    except ModuleNotFoundError as error:
        raise ConfigError([f"{option}: {NO_CRYPTOGRAPHY}"]) from error
    except ValueError as error:
        raise ConfigError([f"{option}: {error}"]) from error


def read_file(path: Path) -> bytes:
    """Return the bytes of a signed file. Raises OSError and SignedFileError."""
    if path.stat().st_size > MAX_FILE_BYTES:
        raise SignedFileError(f"expected at most {MAX_FILE_BYTES} bytes")
    return path.read_bytes()


async def _export(options: argparse.Namespace) -> int:
    key = load_key(heads.load_signing_key, options.key, "--key")
    if not options.output.is_dir():
        raise ConfigError([f"--output: {options.output}: expected an existing directory"])
    daemons = options.daemon or export.find_daemons(options.state_dir, kept=options.kept)
    if not daemons:
        raise ConfigError([f"--state-dir: {options.state_dir}: expected a directory with spools"])
    async with export.open_exporter(options.state_dir, SystemClock()) as exporter:
        code = SUCCESS
        for daemon in daemons:
            has_spool = (options.state_dir / daemon / "spool.db").is_file()
            if has_spool or not options.kept:
                written = await exporter.export(daemon, options.output, key)
                _print_files(daemon, written, "messages", "nothing waits")
            if options.kept:
                found = await exporter.export_kept(daemon, options.output, key)
                _print_files(daemon, found.files, "messages with kept bodies", "no kept body")
                if found.unkept:
                    sys.stdout.write(f"{daemon}: {found.unkept} messages have no kept body\n")
                for path in found.damaged:
                    code = PROBLEMS
                    sys.stderr.write(f"{path}: damaged: expected the SHA-256 of its name\n")
    return code


def _print_files(daemon: str, files: Sequence[export.Exported], what: str, none: str) -> None:
    if not files:
        sys.stdout.write(f"{daemon}: {none}\n")
    for one in files:
        sys.stdout.write(f"{daemon}: {one.messages} {what} in {one.path}\n")


async def _import(options: argparse.Namespace) -> int:
    key = load_key(heads.load_public_key, options.key, "--key")
    refused = 0
    async with export.open_exporter(options.state_dir, SystemClock()) as exporter:
        for path in options.file:
            try:
                found = await exporter.confirm(open_file(read_file(path), "receipt", key))
            except SignedFileError as error:
                refused += 1
                sys.stderr.write(f"{path}: refused: {printable(str(error))}\n")
                continue
            sys.stdout.write(
                f"{path}: {found.confirmed} messages of {found.daemon} confirmed, "
                f"{found.removed} removed from its spool\n"
            )
    return PROBLEMS if refused else SUCCESS
