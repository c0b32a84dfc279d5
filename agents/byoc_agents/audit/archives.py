"""Archives in an audit: each of their objects is audited once, whatever else is still stored.

Archives sort before the objects that they replace. A manifest without an archive is a plan: its
objects are still stored by themselves. After the archive is written they are deleted; one that is
still stored is left out of the audit if it has the bytes that the manifest names.
"""

import hashlib
from collections.abc import Iterable, Sequence
from contextlib import suppress

from byoc_agents.audit.audit import Audit
from byoc_agents.billing.archive import (
    ArchiveKey,
    Source,
    check_archive,
    decode_manifest,
    read_archive,
    source_name,
)
from byoc_agents.billing.objects import TornObjectError, parse_key

HOURS_KEPT = 2  # whose archived objects are in memory: about 100 bytes per object

_Hour = tuple[str, str, str]  # prefix, date, hour


class Archives:
    """The archives of one audit. Keys are given in their order."""

    def __init__(self, audit: Audit) -> None:
        self._audit = audit
        self._by_hour: dict[_Hour, list[ArchiveKey]] = {}
        self._fingerprints: dict[_Hour, set[bytes]] = {}
        self._bodies: set[ArchiveKey] = set()  # whose manifest has not been listed yet

    def note_body(self, name: ArchiveKey) -> None:
        """Remember that the records of an archive are stored."""
        self._bodies.add(name)

    def claim_body(self, name: ArchiveKey) -> bool:
        """Return whether the records of a manifest are stored. To be called once."""
        if name not in self._bodies:
            return False
        self._bodies.remove(name)
        self._by_hour.setdefault((name.prefix, name.date, name.hour), []).append(name)
        return True

    def read(self, name: ArchiveKey, manifest_bytes: bytes, body: bytes | None) -> None:
        """Audit each object of an archive, as if it were stored by itself.

        Without a body the manifest is a plan: expect its objects.
        """
        try:
            manifest = decode_manifest(manifest_bytes)
        except TornObjectError as error:
            self._audit.find_torn(name.manifest, str(error))
            return
        if body is None:
            for source in manifest.sources:
                self._audit.claim(f"{name.prefix}{source.name}")
            return
        try:
            check_archive(manifest, body)
        except TornObjectError as error:
            self._refuse(name, manifest.sources, error)
            return
        self._read_sources(name, manifest.sources, body)

    def _read_sources(self, name: ArchiveKey, sources: Sequence[Source], body: bytes) -> None:
        taken = 0
        try:
            for lines in read_archive(sources, body):
                self._audit.add_lines(f"{name.prefix}{sources[taken].name}", lines)
                taken += 1
        except TornObjectError as error:
            if taken == len(sources):
                self._audit.find_torn(name.body, str(error))
            self._refuse(name, sources[taken:], error)

    def _refuse(self, name: ArchiveKey, sources: Sequence[Source], error: TornObjectError) -> None:
        for source in sources:
            self._audit.refuse(f"{name.prefix}{source.name}", f"{name.body}: {error}")

    def unread_manifests(self, key: str) -> list[ArchiveKey]:
        """Return the archives whose manifests `holds` needs for an object; read, then `load`."""
        hour = _hour_of(key)
        return [] if hour in self._fingerprints else self._by_hour.get(hour, [])

    def load(self, key: str, manifests: Iterable[bytes]) -> None:
        """Remember the objects that an hour's archives hold."""
        while len(self._fingerprints) >= HOURS_KEPT:
            del self._fingerprints[next(iter(self._fingerprints))]
        found = self._fingerprints[_hour_of(key)] = set()
        for encoded in manifests:
            with suppress(TornObjectError):  # reported when the archive was read
                sources = decode_manifest(encoded).sources
                found.update(_fingerprint(source.name, source.sha256) for source in sources)

    def holds(self, key: str, body: bytes) -> bool:
        """Return whether an archive holds exactly this object."""
        known = self._fingerprints.get(_hour_of(key))
        if not known:
            return False
        return _fingerprint(source_name(key), hashlib.sha256(body).hexdigest()) in known

    def report_rest(self) -> None:
        """Report archives without a manifest, after all keys have been listed."""
        for name in sorted(self._bodies):
            self._audit.find_torn(name.body, "the archive has no manifest")


def _hour_of(key: str) -> _Hour:
    name = parse_key(key)
    prefix = key.removesuffix(source_name(key))
    return (prefix, name.date, name.hour) if name else ("", "", "")


def _fingerprint(name: str, sha256: str) -> bytes:
    return hashlib.sha256(f"{sha256} {name}".encode(errors="surrogateescape")).digest()[:16]
