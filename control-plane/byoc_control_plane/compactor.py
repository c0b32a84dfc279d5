"""Many small billing objects of one hour into one archive per shard; then the objects are deleted.

The order is manifest, archive, deletion. The manifest fixes which objects are in the archive, in
which order, with their digests. So the next run completes a run that was killed at any point, with
the same bytes, whatever has arrived meanwhile. An object is deleted only after an archive with
exactly its records is stored.
"""

import hashlib
import itertools
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import aclosing
from dataclasses import dataclass
from typing import NamedTuple

import structlog
import zstandard

from byoc_agents.audit.check import check_fitness
from byoc_agents.audit.intervals import Spans
from byoc_agents.billing.archive import (
    ArchiveBuilder,
    ArchiveKey,
    Manifest,
    Part,
    Shard,
    check_archive,
    decode_manifest,
    parse_archive_key,
    source_name,
)
from byoc_agents.billing.objects import MAX_BODY_BYTES, ObjectKey, TornObjectError, parse_key
from byoc_control_plane.bucket import Bucket, ExistsError, Listed
from byoc_control_plane.key_list import KeyList
from byoc_control_plane.metrics import PlaneMetrics

# Of one archive, which bounds the memory: more go to a further archive.
MAX_SOURCES = 50_000
MAX_SOURCE_BYTES = 64 * 1024**2  # of the objects of one archive, as stored
MAX_LISTED_BYTES = 32 * 1024**2  # of the keys of a listing, compressed: about a million

PodObjects = list[tuple[str, bytes]]  # keys and bodies of one pod and hour, sorted by key


class HeldHourError(Exception):
    """An hour cannot be archived now. `str()` states why."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(reason)
        self.key = key


@dataclass
class Tally:
    """The results of one run."""

    archives: int = 0
    archived: int = 0  # objects
    deleted: int = 0
    held: int = 0  # objects, and archives, that need a person


class Archived(NamedTuple):
    """The archive of an object, and its SHA-256."""

    archive: ArchiveKey
    sha256: bytes


class Compactor:
    """Archives the closed hours of one shard."""

    def __init__(  # noqa: PLR0913  what it works on, and two bounds of its memory
        self,
        bucket: Bucket,
        prefix: str,
        shard: Shard,
        metrics: PlaneMetrics,
        *,
        max_sources: int = MAX_SOURCES,
        max_listed_bytes: int = MAX_LISTED_BYTES,
    ) -> None:
        """`prefix` is that of the scrapers: it ends with / or is empty."""
        self._bucket = bucket
        self._prefix = prefix
        self._shard = shard
        self._metrics = metrics
        self._max_sources = max_sources
        self._max_listed_bytes = max_listed_bytes
        self._zstd = zstandard.ZstdCompressor(level=1)
        self._tally = Tally()
        self._confirmed: set[ArchiveKey] = set()  # in this run
        self._log = structlog.get_logger().bind(shard=str(shard))

    async def run(self, before: str) -> Tally:
        """Archive all hours before `YYYY-MM-DDTHH`, the oldest first; return the tally.

        Raises the client's errors, and SendError if no object can be read. May be called again
        after any of them.
        """
        self._tally = Tally()
        self._confirmed.clear()
        done: set[str] = set()
        more = True
        while more:
            hours, more = await self._scan(before, done)
            for moment, listed in sorted(hours.items()):
                done.add(moment)
                try:
                    await self._compact(moment, listed)
                except HeldHourError as error:
                    self._hold(error.key, str(error))
                except ExistsError as error:
                    why = "it exists with other bytes: is another process at work?"
                    self._hold(str(error), why)
        self._bucket.check_readable()
        self._metrics.held_objects.set(self._tally.held)
        return self._tally

    async def _scan(
        self, before: str, done: AbstractSet[str]
    ) -> tuple[dict[str, KeyList | None], bool]:
        """Return the oldest closed hours with their objects, and whether there are more hours.

        An hour with so many objects that they must be listed again has None. The first scan
        reports objects with a foreign key.
        """
        hours: dict[str, KeyList | None] = {}
        used_bytes, end = 0, before
        async for item in self._bucket.list_objects(f"{self._prefix}org="):
            name = self._parse(item.key)
            if name is None:
                if not done and not item.key.endswith("/") and self._shard.has(item.key):
                    self._hold(item.key, "foreign_object: not a billing object's key")
                continue
            moment = f"{name.date}T{name.hour}"
            if moment >= end or moment in done or not self._shard.has(name):
                continue
            if moment not in hours:
                hours[moment] = KeyList(self._zstd)
            if (keys := hours[moment]) is not None:
                used_bytes += keys.add(item)
            while used_bytes > self._max_listed_bytes:
                newest = max(hours)
                dropped = hours.pop(newest)
                used_bytes -= dropped.bytes if dropped else 0
                if hours:
                    end = newest
                else:
                    hours[newest] = None
        return hours, end != before

    def _parse(self, key: str) -> ObjectKey | None:
        """Return the fields of a key of exactly the prefix, which is how a manifest names it."""
        return parse_key(key) if f"{self._prefix}{source_name(key)}" == key else None

    async def _compact(self, moment: str, listed: KeyList | None) -> None:
        """Archive one hour: complete the archive of an earlier run, then archive the rest.

        `listed` are its objects; None lists them.
        """
        date, _, hour = moment.partition("T")
        archives = await self._list_archives(date, hour)
        archived: dict[str, Archived] = {}
        for name in sorted(archives):
            for source in (await self._complete(name, archives[name])).sources:
                if self._shard.has(parse_key(source.name) or source.name):
                    archived[source.name] = Archived(name, bytes.fromhex(source.sha256))
        own = [name.generation for name in archives if name.shard == self._shard]
        number = itertools.count(max(own, default=-1) + 1)
        hour_key = ArchiveKey(self._prefix, date, hour, self._shard)
        earlier, builder, leftovers = _Earlier(archived), ArchiveBuilder(), list[str]()
        async with aclosing(self._pods(date, hour, listed)) as pods:
            async for pod in pods:
                leftovers += await self._find_leftovers(pod, archived)
                fresh = [one for one in pod if source_name(one[0]) not in archived]
                checked = check_fitness(fresh)
                unfit = checked.unfit | earlier.find_conflicts(fresh)
                for key, body in fresh:
                    if key in unfit:
                        self._hold(key, unfit[key])
                    else:
                        builder.add(key, body, checked.lines[key])
                if self._is_full(builder):
                    await self._finish(hour_key._replace(generation=next(number)), builder)
                    builder = ArchiveBuilder()
        if builder.sources:
            await self._finish(hour_key._replace(generation=next(number)), builder)
        await self._delete(leftovers)

    async def _find_leftovers(self, pod: PodObjects, archived: Mapping[str, Archived]) -> list[str]:
        """Return the keys of objects that an archive holds: an earlier run did not delete them."""
        found = []
        for key, body in pod:
            known = archived.get(source_name(key))
            if known is None:
                continue
            if known.sha256 == hashlib.sha256(body).digest():
                await self._confirm(known.archive)
                found.append(key)
            else:
                self._hold(key, "conflict: other bytes than in its archive")
        return found

    def _is_full(self, builder: ArchiveBuilder) -> bool:
        full = len(builder.sources) >= self._max_sources
        return full or builder.source_bytes >= MAX_SOURCE_BYTES

    async def _list_archives(self, date: str, hour: str) -> dict[ArchiveKey, set[Part]]:
        """Return the archives of an hour that may hold objects of this shard, with their parts."""
        found: defaultdict[ArchiveKey, set[Part]] = defaultdict(set)
        folder = ArchiveKey(self._prefix, date, hour, self._shard).folder
        async for item in self._bucket.list_objects(folder):
            parsed = parse_archive_key(item.key)
            if parsed is None:
                raise HeldHourError(item.key, "foreign_object: not an archive's key")
            name, part = parsed
            if name.shard == self._shard or name.shard.shards != self._shard.shards:
                found[name].add(part)
        return found

    async def _complete(self, name: ArchiveKey, parts: set[Part]) -> Manifest:
        """Return an archive's manifest; write its records if an earlier run did not.

        Raises HeldHourError.
        """
        try:
            manifest = decode_manifest(await self._get_part(name.manifest))
        except TornObjectError as error:
            raise HeldHourError(name.manifest, f"torn_object: {error}") from error
        if "jsonl" in parts:
            return manifest
        if name.shard != self._shard:
            raise HeldHourError(
                name.manifest, f"unfinished: run `compact --shard {name.shard}` first"
            )
        builder = ArchiveBuilder()
        async with aclosing(self._bucket.get_in_order(self._planned(manifest))) as bodies:
            async for item, body in bodies:
                source = manifest.sources[len(builder.sources)]
                if not isinstance(body, bytes) or hashlib.sha256(body).hexdigest() != source.sha256:
                    raise HeldHourError(
                        item.key, f"conflict: missing, or other bytes than {name.manifest} expects"
                    )
                builder.add(item.key, body)
        rebuilt, body = builder.finish()
        if rebuilt != manifest:
            raise HeldHourError(
                name.manifest, "conflict: its archive cannot be made again; another zstd version?"
            )
        await self._write(name, manifest, body)
        return manifest

    async def _planned(self, manifest: Manifest) -> AsyncIterator[Listed]:
        for source in manifest.sources:
            yield Listed(f"{self._prefix}{source.name}", source.size)

    async def _confirm(self, name: ArchiveKey) -> None:
        """Raise HeldHourError if an archive is damaged, so that none of its objects is deleted."""
        if name in self._confirmed:
            return
        try:
            manifest = decode_manifest(await self._get_part(name.manifest))
            check_archive(manifest, await self._get_part(name.body))
        except TornObjectError as error:
            raise HeldHourError(name.body, f"torn_object: {error}") from error
        self._confirmed.add(name)

    async def _get_part(self, key: str) -> bytes:
        body = await self._bucket.get(key)
        if not isinstance(body, bytes):
            raise HeldHourError(key, f"torn_object: {body or 'it does not exist'}")
        return body

    async def _pods(
        self, date: str, hour: str, listed: KeyList | None
    ) -> AsyncGenerator[PodObjects, None]:
        """Yield the objects of an hour by pod. One that cannot be read is held."""
        pod: PodObjects = []
        before: tuple[str, str, str] | None = None
        async with aclosing(self._bucket.get_in_order(self._of_hour(date, hour, listed))) as bodies:
            async for item, body in bodies:
                if body is None:  # deleted by another process
                    continue
                if isinstance(body, str):
                    self._hold(item.key, f"torn_object: {body}")
                    continue
                name = parse_key(item.key)
                owner = name and (name.organization_id, name.service_id, name.pod)
                if pod and owner != before:
                    yield pod
                    pod = []
                before = owner
                pod.append((item.key, body))
        if pod:
            yield pod

    async def _of_hour(self, date: str, hour: str, listed: KeyList | None) -> AsyncIterator[Listed]:
        found = self._list_hour(date, hour) if listed is None else _each(listed)
        async for item in found:
            if item.size > MAX_BODY_BYTES:
                self._hold(item.key, "torn_object: too large for a billing object")
            else:
                yield item

    async def _list_hour(self, date: str, hour: str) -> AsyncIterator[Listed]:
        async for item in self._bucket.list_objects(f"{self._prefix}org="):
            name = self._parse(item.key)
            if name and (name.date, name.hour) == (date, hour) and self._shard.has(name):
                yield item

    async def _finish(self, name: ArchiveKey, builder: ArchiveBuilder) -> None:
        manifest, body = builder.finish()
        await self._bucket.put_once(name.manifest, manifest.encode())
        await self._write(name, manifest, body)
        await self._delete([f"{self._prefix}{source.name}" for source in manifest.sources])

    async def _write(self, name: ArchiveKey, manifest: Manifest, body: bytes) -> None:
        await self._bucket.put_once(name.body, body)
        self._tally.archives += 1
        self._tally.archived += len(manifest.sources)
        self._metrics.objects.labels("archived").inc(len(manifest.sources))
        self._log.info(
            "archive.written",
            key=name.body,
            objects=len(manifest.sources),
            records=manifest.records,
            bytes=manifest.size,
        )

    async def _delete(self, keys: Sequence[str]) -> None:
        failed = await self._bucket.delete(keys)
        for key, code in failed.items():
            self._hold(key, f"archived, but S3 did not delete it: {code}")
        self._tally.deleted += len(keys) - len(failed)
        self._metrics.objects.labels("deleted").inc(len(keys) - len(failed))

    def _hold(self, key: str, reason: str) -> None:
        self._tally.held += 1
        self._log.error("object.held", key=key, reason=reason[:300])


async def _each(items: Iterable[Listed]) -> AsyncIterator[Listed]:
    for item in items:
        yield item


class _Earlier:
    """Finds late objects whose sequences are archived already, under another key."""

    def __init__(self, archived: Mapping[str, Archived]) -> None:
        self._archived = archived
        self._spans: defaultdict[tuple[str, str, str, int, bool], Spans] | None = None

    def find_conflicts(self, fresh: PodObjects) -> dict[str, str]:
        """Return key -> reason."""
        if not fresh or not self._archived:
            return {}
        if self._spans is None:  # only for late objects
            self._spans = defaultdict(Spans)
            for name in map(parse_key, self._archived):
                if name:
                    self._spans[_lane(name)].add(name.first, name.last + 1)
        found = {}
        for key, _ in fresh:
            name = parse_key(key)
            if name and self._spans[_lane(name)].overlap(name.first, name.last + 1):
                found[key] = "conflict: some of its sequences are in an archive already"
        return found


def _lane(name: ObjectKey) -> tuple[str, str, str, int, bool]:
    return (name.organization_id, name.service_id, name.pod, name.epoch, name.shared)
