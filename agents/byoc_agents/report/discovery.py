"""Finds ledgers by state directory, by a daemon's directory, or by the ledger's own."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from byoc_agents.ledger.segments import Segments


class NoLedgerError(Exception):
    """No ledger was found. `str()` names the directories."""


def ledgers(directories: Sequence[str], daemon: str) -> Mapping[str, Path]:
    """Return daemon's name -> directory of its ledger. Raises NoLedgerError."""
    found: dict[str, Path] = {}
    for directory in map(Path, directories):
        for path in _below(directory):
            name = path.resolve().parent.name if path.name == "ledger" else path.name
            found[name if name not in found else str(path)] = path
    chosen = {name: path for name, path in found.items() if daemon in {"", name}}
    if not chosen:
        of_daemon = f" of {daemon}" if daemon else ""
        raise NoLedgerError(f"no ledger{of_daemon} below {', '.join(directories)}")
    return chosen


def _below(directory: Path) -> list[Path]:
    if _is_ledger(directory):
        return [directory]
    near = [directory / "ledger", *sorted(directory.glob("*/ledger"))]
    return [path for path in near if _is_ledger(path)]


def _is_ledger(directory: Path) -> bool:
    return directory.is_dir() and ((directory / "lock").exists() or _has_files(directory))


def _has_files(directory: Path) -> bool:
    return bool(Segments(directory).numbers())
