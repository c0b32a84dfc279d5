"""`byoc-agents ledger checkpoint` and `prove`, and the heads that `verify` compares.

A proof of a line is in the format of c2sp.org/tlog-proof. A proof of an earlier size has the line
`old SIZE`, and then the same parts: the hashes, an empty line, and the checkpoint.
"""

import argparse
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from byoc_agents.ledger import heads
from byoc_agents.ledger.heads import KeptHeads
from byoc_agents.ledger.reader import History, grow, read_history
from byoc_agents.ledger.tree import encode_hash, prove_consistency, prove_inclusion
from byoc_agents.ledger.verify import LedgerVerdict, verify

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

ORIGIN = "byoc-agents"  # first part of a log's name; the last one is the daemon's
KEY_VARIABLE = "BYOC_LEDGER_SIGNING_KEY"  # never a setting of a daemon: the key is the customer's
K = TypeVar("K")
PROOF = "c2sp.org/tlog-proof@v1"


class UsageError(Exception):
    """A key, a file of heads or an option cannot be used. `str()` states what is expected."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of a checkpoint."""
    parser.add_argument(
        "--key",
        metavar="FILE",
        help=f"Ed25519 private key in PEM (openssl genpkey -algorithm ed25519); or {KEY_VARIABLE}",
    )
    parser.add_argument(
        "--origin",
        default=ORIGIN,
        metavar="NAME",
        help=f"name of the logs before /DAEMON; default {ORIGIN}",
    )
    parser.add_argument(
        "--public-key",
        action="store_true",
        help="print the key as NAME+HASH+KEY, for programs that verify notes",
    )


def add_proof_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of a proof."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--line", type=int, metavar="SEQUENCE", help="prove that this line is in it")
    which.add_argument("--from", type=int, dest="earlier", metavar="SIZE", help="or this size")
    parser.add_argument("--size", type=int, help="size of the tree; default: all lines")


def print_checkpoints(where: Mapping[str, Path], options: argparse.Namespace) -> int:
    """Print one checkpoint per ledger, or one plain head without a key. Return the exit code.

    Raises UsageError.
    """
    key = _signing_key(options)
    for name, path in where.items():
        log = f"{options.origin}/{name}"
        if options.public_key:
            if key is None:
                raise UsageError(f"--public-key: expected --key or {KEY_VARIABLE}")
            print(heads.verifier_line(log, key.public_key()))  # noqa: T201  a command prints
            continue
        leaves = _history(path).leaves
        if key is None:
            sys.stdout.write(f"{leaves.size} {encode_hash(leaves.root_at(leaves.size))} {log}\n")
        else:
            sys.stdout.write(f"{_note(log, leaves.size, leaves.root_at(leaves.size), key)}\n")
    return 0


def print_proof(where: Mapping[str, Path], options: argparse.Namespace) -> int:
    """Print one proof and the checkpoint that it belongs to. Return the exit code.

    Raises UsageError.
    """
    if len(where) > 1:
        raise UsageError("a proof is about one ledger: add --daemon")
    ((name, path),) = where.items()
    history = _history(path)
    size = history.leaves.size if options.size is None else options.size
    try:
        lines = _proof_lines(history, options, size)
        root = history.leaves.root_at(size)
    except IndexError as error:
        raise UsageError(str(error)) from error
    note = _note(f"{options.origin}/{name}", size, root, _signing_key(options))
    sys.stdout.write("".join(f"{line}\n" for line in lines) + f"\n{note}")
    return 0


def _proof_lines(history: History, options: argparse.Namespace, size: int) -> list[str]:
    if options.line is None:
        proof = prove_consistency(history.leaves, options.earlier, size)
        return [f"old {options.earlier}", *map(encode_hash, proof)]
    index = options.line - history.first_sequence + history.leaves.start.size
    proof = prove_inclusion(history.leaves, index, size)
    return [PROOF, f"index {index}", *map(encode_hash, proof)]


def _history(path: Path) -> History:
    try:
        return read_history(path)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _note(log: str, size: int, root: bytes, key: "Ed25519PrivateKey | None") -> str:
    try:
        text = heads.checkpoint_text(log, size, root)
    except ValueError as error:
        raise UsageError(f"--origin: {error}") from error
    return text if key is None else heads.sign_note(text, log, key)


def _signing_key(options: argparse.Namespace) -> "Ed25519PrivateKey | None":
    pem = os.environ.get(KEY_VARIABLE, "").encode()
    if not options.key and not pem:
        return None
    content = Path(options.key).read_bytes() if options.key else pem
    return _load(heads.load_signing_key, content, "--key" if options.key else KEY_VARIABLE)


def _load(load: Callable[[bytes], K], content: bytes, setting: str) -> K:
    try:
        return load(content)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{setting}: {error.name} is not installed: expected "
            "`pip install 'byoc-agents[checkpoint]'`"
        ) from error
    except ValueError as error:
        raise UsageError(f"{setting}: {error}") from error


def read_heads(file: str, key_file: str | None) -> KeptHeads:
    """Return the heads of a file, `-` = standard input. With a key, all must be signed with it.

    Raises UsageError and OSError.
    """
    content = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    try:
        found = heads.parse_heads(content.decode())
    except UnicodeDecodeError as error:
        raise UsageError(f"{file}: {error}: expected a text of heads in UTF-8") from error
    except ValueError as error:
        raise UsageError(f"{file}: {error}") from error
    if not found.heads and not found.anchors:
        raise UsageError(f"{file}: no head: expected a checkpoint, or SIZE ROOT")
    if key_file:
        key = _load(heads.load_public_key, Path(key_file).read_bytes(), "--key")
        unsigned = [str(head.size) for head in found.heads if not heads.is_signed(head, key)]
        unsigned += [str(anchor) for anchor in found.anchors]
        if unsigned:
            raise UsageError(f"{file}: not signed with the key: {_shorten(unsigned)}")
    return found


def _shorten(texts: Sequence[str], most: int = 5) -> str:
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more


def verify_with(
    kept: KeptHeads, name: str, paths: Sequence[Path], bounds: Sequence[int]
) -> list[LedgerVerdict]:
    """Verify the ledgers of one daemon, of one replica each, with the heads that are its own.

    A head does not say of which replica it is: it must be of one of them.
    """
    own = kept.of_ledger(name)
    parts = divide(own, paths) if len(paths) > 1 else [own]
    verdicts = [verify(path, part, bounds=bounds) for path, part in zip(paths, parts, strict=True)]
    for path, part, verdict in zip(paths, parts, verdicts, strict=True):
        if kept != KeptHeads() and part == KeptHeads():
            verdict.problems.append(f"{path}: no kept head is named {name}: nothing confirms it")
    return verdicts


def divide(kept: KeptHeads, paths: Sequence[Path]) -> list[KeptHeads]:
    """Return the heads for each of several ledgers: those that it has, or could have had.

    A head that no ledger has is for those that have removed its lines, and otherwise for all.
    """
    grown = [grow(path, {head.size for head in kept.heads}) for path in paths]
    parts: list[list[heads.KeptHead]] = [[] for _ in paths]
    for head in kept.heads:
        same = [at for at, one in enumerate(grown) if one.roots.get(head.size) == head.root]
        gone = [at for at, one in enumerate(grown) if head.size < one.first_size]
        for at in same or gone or range(len(paths)):
            parts[at].append(head)
    return [KeptHeads(tuple(part)) for part in parts]


def find_foreign(kept: KeptHeads, names: Collection[str]) -> list[str]:
    """Return the names of the heads that are of no ledger with one of these names."""
    return sorted({head.name for head in kept.heads if head.ledger and head.ledger not in names})
