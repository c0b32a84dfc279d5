"""A disk that keeps only synced data, and a random part of the rest.

After a failed sync its data are lost: the kernel has marked those pages clean, so the next sync
does not write them, although a program that reads them still sees them (PostgreSQL's "fsyncgate").
Names (create, rename, unlink) change in order and at once, as in a journal.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lab.real.syscalls.record import Call

SECTOR_BYTES = 512
SYNCS = frozenset({"fsync", "fdatasync"})


@dataclass
class File:
    """One file: the bytes a program reads, the bytes on disk, the writes in flight."""

    seen: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    waiting: list[tuple[int, bytes | None]] = field(default_factory=list)  # None: cut off there

    def write(self, offset: int, data: bytes) -> None:
        put(self.seen, offset, data)
        self.waiting.append((offset, data))

    def truncate(self, size: int) -> None:
        put(self.seen, size, None)
        self.waiting.append((size, None))

    def sync(self, *, failed: bool) -> None:
        for offset, data in () if failed else self.waiting:
            put(self.durable, offset, data)
        self.waiting.clear()

    def after_power_cut(self, rng: random.Random) -> bytes:
        """Return the contents after the crash: any sector in flight may have arrived, or not."""
        found, chance = bytearray(self.durable), rng.choice([0.0, 0.5, 0.9, 1.0])
        for offset, data in self.waiting:
            if data is None:
                put(found, offset, None)  # the journal keeps sizes in order
                continue
            for start in range(0, len(data), SECTOR_BYTES):
                if rng.random() < chance:
                    put(found, offset + start, data[start : start + SECTOR_BYTES])
        return bytes(found)


def put(content: bytearray, offset: int, data: bytes | None) -> None:
    """Write at an offset, with zeros in a hole before it; or truncate there."""
    if data is None:
        del content[offset:]
        content.extend(bytes(max(0, offset - len(content))))
        return
    content.extend(bytes(max(0, offset - len(content))))
    content[offset : offset + len(data)] = data


class Disk:
    """All files below one directory."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.files: dict[str, File] = {}

    def do(self, call: Call) -> None:
        """Apply one recorded call."""
        file = self.files.get(call.path)
        if call.name in SYNCS and file:
            file.sync(failed=call.result < 0)
        elif call.result < 0 or not Path(call.path).is_relative_to(self._root):
            return
        elif call.name == "openat":
            self._open(call)
        elif call.name == "unlink":
            self.files.pop(call.path, None)
        elif call.name == "rename":
            self.files[call.data.decode()] = self.files.pop(call.path)
        elif file:
            self._change(file, call)

    def _open(self, call: Call) -> None:
        if "O_CREAT" in call.flags:
            self.files.setdefault(call.path, File())
        if "O_TRUNC" in call.flags:
            self.files[call.path].truncate(0)

    def _change(self, file: File, call: Call) -> None:
        match call.name:
            case "write":  # the ledger's, which appends
                file.write(len(file.seen), call.data[: call.result])
            case "pwrite64":
                file.write(call.numbers[-1], call.data[: call.result])
            case "ftruncate":
                file.truncate(call.numbers[-1])

    def after_power_cut(self, rng: random.Random) -> Mapping[str, bytes]:
        """Return the files below the root after the power cut, by relative name."""
        return {
            str(Path(name).relative_to(self._root)): file.after_power_cut(rng)
            for name, file in self.files.items()
            if not name.endswith("-shm")  # only ever in memory
        }
