"""Read objects from a directory of the directory sink, or from a bucket with `audit.bucket`.

Archives of the compactor are read as the objects that they hold.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from byoc_agents.audit.archives import Archives
from byoc_agents.audit.audit import Audit
from byoc_agents.billing.archive import MAX_ARCHIVE_BYTES, parse_archive_key
from byoc_agents.billing.objects import MAX_BODY_BYTES, parse_key
from byoc_agents.errors import ByocError

SCHEME = "s3://"

ProgressCallback = Callable[[int], None]  # takes the number of objects read so far


class UnreadableError(ByocError):
    """The bucket, directory or object cannot be read. The message has its name and the reason."""


class Hours(NamedTuple):
    """A half-open range of hours `YYYY-MM-DDTHH` in the keys of the objects; "" = no bound."""

    since: str = ""
    until: str = ""

    def selects(self, key: str) -> bool:
        """Return whether to read an object. An object with an unknown name is always read."""
        archive = parse_archive_key(key)
        name = archive[0] if archive else parse_key(key)
        if name is None:
            return True
        hour = f"{name.date}T{name.hour}"
        return self.since <= hour and (not self.until or hour < self.until)


def read_directory(audit: Audit, root: Path, hours: Hours, progress: ProgressCallback) -> None:
    """Audit all files below a directory, in the order of their keys. Raises UnreadableError."""
    archives = Archives(audit)
    try:
        for path in _files(str(root.resolve(strict=True))):
            if hours.selects(path):
                _read_file(audit, archives, path)
                progress(audit.objects)
    except OSError as error:
        raise UnreadableError(f"{error.filename or root}: {error.strerror}") from error
    archives.report_rest()


def _files(folder: str) -> Iterator[str]:
    """Yield paths without dot files, which are temporary files of a killed writer."""
    with os.scandir(folder) as entries:
        found = sorted((f"{e.name}/" if e.is_dir() else e.name, e.path) for e in entries)
    for name, path in found:
        if name.endswith("/"):
            yield from _files(path)
        elif not name.startswith("."):
            yield path


def _read_file(audit: Audit, archives: Archives, path: str) -> None:
    file = Path(path)
    if archive := parse_archive_key(path):
        name, part = archive
        if part == "jsonl":
            archives.note_body(name)
        else:
            body = _small_file(name.body) if archives.claim_body(name) else None
            archives.read(name, _small_file(path), body)
    elif file.stat().st_size > MAX_BODY_BYTES:
        audit.refuse(path, "too large for a billing object")
    else:
        if unread := archives.unread_manifests(path):
            archives.load(path, [_small_file(name.manifest) for name in unread])
        body = file.read_bytes()
        if not archives.holds(path, body):
            audit.add(path, body)


def _small_file(path: str) -> bytes:
    """Return the bytes of a part of an archive, but no more than it may have."""
    with Path(path).open("rb") as file:
        return file.read(MAX_ARCHIVE_BYTES)
