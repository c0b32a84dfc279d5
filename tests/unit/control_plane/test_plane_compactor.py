"""The compactor: nothing lost, nothing counted twice, the same bytes after every crash."""

from collections.abc import Callable, Collection
from contextlib import suppress
from random import Random
from urllib.parse import unquote

import msgspec
import pytest
import zstandard
from botocore.exceptions import BotoCoreError, ClientError

from byoc_agents.app.cloudevents import encode
from byoc_agents.billing.archive import (
    Shard,
    decode_manifest,
    parse_archive_key,
    parse_shard,
)
from byoc_agents.billing.objects import HOUR_MS, SharedNumbers, parse_key, seal
from byoc_agents.errors import SendError
from byoc_agents.message import Message
from byoc_control_plane.key_list import ITEM_BYTES
from lab.fakes.billing import NOON_MS, altered, core_seconds, objects
from lab.fakes.http import Behavior, Request, close, lose, reply, serve, serving
from tests.unit.billing.buckets import rewritten, torn
from tests.unit.control_plane.compactor_harness import (
    ARCHIVE,
    Harness,
    by_key,
    history,
    landing,
    opened,
    with_body,
)


async def test_the_archive_is_verified_like_the_originals_digit_by_digit() -> None:
    async with opened(landing()) as harness:
        originals = await harness.verify()
        tally = await harness.compact()
        assert await harness.verify() == originals
    assert originals.objects == 27
    assert (tally.archives, tally.archived, tally.deleted, tally.held) == (1, 27, 27, 0)
    assert sorted(harness.s3.objects) == [f"{ARCHIVE}.jsonl.zst", f"{ARCHIVE}.manifest.json.zst"]
    assert harness.value("byoc_plane_objects_total", outcome="archived") == 27
    assert harness.value("byoc_plane_objects_total", outcome="deleted") == 27


async def test_problems_between_records_are_the_same_in_the_archive() -> None:
    """Missing records, uncovered time and a counter that jumps do not make an object damaged."""
    lost = landing()
    del lost[4], lost[12]
    jumps = history(9)
    first = [jumps.measured() for _ in range(5)]
    jumps.counter_usec += 1_000_000
    lost += objects([*first, *(jumps.measured() for _ in range(5))])
    async with opened(lost) as harness:
        originals = await harness.verify()
        tally = await harness.compact()
        assert await harness.verify() == originals
    assert {"missing_sequence", "lost_cpu"} <= originals.counts.keys()
    assert tally.held == 0


async def test_an_open_hour_is_left_alone() -> None:
    async with opened(landing()) as harness:
        assert (await harness.compact(before="2026-11-23T12")).archived == 0
    assert harness.stored(archived=True) == {}


async def test_a_manifest_names_its_sources_with_sizes_digests_and_counts() -> None:
    messages = landing(1)
    async with opened(messages) as harness:
        await harness.compact()
    manifest = decode_manifest(harness.s3.objects[f"{ARCHIVE}.manifest.json.zst"])
    assert [f"v1/{source.name}" for source in manifest.sources] == [m.id for m in messages]
    assert [source.size for source in manifest.sources] == [len(m.body) for m in messages]
    assert [source.records for source in manifest.sources] == [m.events for m in messages]
    assert manifest.records == 41
    assert manifest.size == len(harness.s3.objects[f"{ARCHIVE}.jsonl.zst"])


async def test_the_order_of_arrival_does_not_change_the_bytes() -> None:
    async with opened(landing()) as one, opened(reversed(landing())) as other:
        await one.compact()
        await other.compact()
    assert one.s3.objects == other.s3.objects


# Crashes.


def failing(number: int, behavior: Behavior) -> Callable[[Request], Behavior]:
    """Return a script in which one request has no response."""
    return lambda request: behavior if request.number == number else serve


PARTS = ("jsonl", "manifest.json")


@pytest.mark.parametrize("behavior", [close, lose()], ids=["not done", "done, response lost"])
async def test_a_crash_at_any_request_leaves_the_same_bytes_and_counts_nothing_twice(
    behavior: Behavior,
) -> None:
    messages = landing(3, size=8)
    async with opened(messages) as harness:
        originals = await harness.verify()
        before = len(harness.s3.http.requests)
        await harness.compact_in_steps()
        requests = len(harness.s3.http.requests) - before
    expected = harness.s3.objects
    assert len(expected) == 6  # three archives and their manifests
    crashes = 0
    for number in range(requests):
        async with opened(messages, failing(number, behavior)) as harness:
            try:
                await harness.compact_in_steps()
            except (BotoCoreError, ClientError):
                crashes += 1
            assert await harness.verify() == originals, number
            await harness.compact_in_steps()
            assert await harness.verify() == originals, number
        assert harness.s3.objects == expected, number
    assert crashes > requests // 2


@pytest.mark.parametrize("seed", range(10))
async def test_many_crashes_in_a_row_leave_the_same_bytes(seed: int) -> None:
    messages, random = landing(3, size=8), Random(seed)
    async with opened(messages) as harness:
        originals = await harness.verify()
        await harness.compact_in_steps()
    expected = harness.s3.objects
    behaviors = [close, lose(), *([serve] * 30)]
    async with opened(messages) as harness:
        for _ in range(100):
            harness.s3.http.script = lambda _: random.choice(behaviors)
            with suppress(BotoCoreError, ClientError):
                await harness.compact_in_steps()
            harness.s3.http.script = serving
            assert await harness.verify() == originals
            if not harness.stored(archived=False):
                break
    assert harness.s3.objects == expected


async def test_objects_that_arrive_after_a_crash_do_not_change_a_planned_archive() -> None:
    other = history(7)
    early, late = landing(2), objects((other.measured() for _ in range(6)), size=1)
    async with opened(early) as harness:
        await harness.compact()
    expected = harness.s3.objects[f"{ARCHIVE}.jsonl.zst"]
    for number in range(len(early) + 6):  # two listings more, two writes, a deletion
        async with opened(early, failing(number, close)) as harness:
            with suppress(BotoCoreError, ClientError):
                await harness.compact()
            harness.s3.http.script = serving
            planned = f"{ARCHIVE}.manifest.json.zst" in harness.s3.objects
            harness.add(late)
            await harness.compact()
            report = await harness.verify()
        assert report.ok
        assert report.objects == len(early) + len(late)
        assert harness.stored(archived=False) == {}
        if planned:
            assert harness.s3.objects[f"{ARCHIVE}.jsonl.zst"] == expected


async def test_originals_that_were_not_deleted_are_not_counted_twice() -> None:
    messages = landing()
    async with opened(messages) as harness:
        originals = await harness.verify()
        await harness.compact()
        harness.add(messages[::2])
        assert await harness.verify() == originals
        tally = await harness.compact()
    assert (tally.archived, tally.deleted, tally.held) == (0, len(messages[::2]), 0)
    assert harness.stored(archived=False) == {}


# Late objects.


async def test_late_objects_go_to_further_archives() -> None:
    messages = landing(3)
    parts = (messages[:9], messages[9:14], messages[14:])
    async with opened(messages) as harness:
        originals = await harness.verify()
    async with opened() as harness:
        for part in parts:
            harness.add(part)
            await harness.compact()
        assert await harness.verify() == originals
    names = [f"{ARCHIVE}{more}.{part}.zst" for more in ("", "-1", "-2") for part in PARTS]
    assert sorted(harness.s3.objects) == sorted(names)
    async with opened() as again:
        for part in parts:
            again.add(part)
            await again.compact()
    assert again.s3.objects == harness.s3.objects


async def test_a_late_object_with_archived_sequences_is_held() -> None:
    one = history(0)
    records = [one.measured() for _ in range(6)]
    early, doubled = objects(records, size=6), objects(records[2:4])
    async with opened(early) as harness:
        await harness.compact()
        harness.add(doubled)
        tally = await harness.compact()
        report = await harness.verify()
    assert (tally.archived, tally.held) == (0, 1)
    assert list(harness.stored(archived=False)) == [doubled[0].id]
    assert report.counts == {"duplicate_identical": 2}


# Damage.


def _impossible(message: Message) -> Message:
    record = history(0).measured()
    used = msgspec.structs.replace(record.data.used, cpu_core_seconds=core_seconds(10**12))
    return with_body(message, seal([encode(altered(record, used=used))], created_at_ms=0).body)


NESTED = b'{"data":' * 50_000 + b"1" + b"}" * 50_000  # deeper than a decoder follows
DAMAGE: dict[str, Callable[[Message], Message]] = {
    "torn": torn,
    "no zstd": lambda message: with_body(message, b"x"),
    "a line is missing": lambda message: rewritten(message, lambda lines: lines[1:][::-1]),
    "no JSON": lambda message: rewritten(message, lambda lines: [*lines[:-1], b"{"]),
    "nested JSON": lambda message: rewritten(message, lambda lines: [*lines[:-1], NESTED]),
    "another pod's records": lambda message: with_body(
        message, objects([history(8).measured()])[0].body
    ),
    "an altered figure": _impossible,
}


@pytest.mark.parametrize("change", DAMAGE.values(), ids=DAMAGE)
async def test_a_damaged_object_stays_and_is_reported(change: Callable[[Message], Message]) -> None:
    messages = landing()
    messages[3] = change(messages[3])
    async with opened(messages) as harness:
        originals = await harness.verify()
        tally = await harness.compact()
        again = await harness.compact()
        after = await harness.verify()
    assert originals.counts
    assert harness.stored(archived=False) == {messages[3].id: messages[3].body}
    assert (tally.held, again.held) == (1, 1)
    assert tally.archived == len(messages) - 1
    assert harness.value("byoc_plane_held_objects") == 1
    assert by_key(after) == by_key(originals)


def denying(keys: Collection[str], code: str) -> Callable[[Request], Behavior]:
    """Return a script in which S3 refuses each GET of these objects."""
    body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
    refused = reply(403, {"content-type": "application/xml"}, body)

    def script(request: Request) -> Behavior:
        path = unquote(request.path)
        denied = request.method == "GET" and any(path.endswith(key) for key in keys)
        return refused if denied else serve

    return script


@pytest.mark.parametrize("code", ["InvalidObjectState", "AccessDenied", "KMS.DisabledException"])
async def test_an_object_that_s3_refuses_is_held_and_the_others_are_archived(code: str) -> None:
    messages = landing()
    async with opened(messages, denying([messages[3].id], code)) as harness:
        tally = await harness.compact()
    assert (tally.archived, tally.deleted, tally.held) == (26, 26, 1)
    assert list(harness.stored(archived=False)) == [messages[3].id]
    assert harness.value("byoc_plane_held_objects") == 1


async def test_a_run_that_may_read_no_object_fails() -> None:
    messages = landing(5)
    keys = [message.id for message in messages]
    async with opened(messages, denying(keys, "AccessDenied")) as harness:
        with pytest.raises(SendError, match=r"no object can be read: .*AccessDenied"):
            await harness.compact()
    assert sorted(harness.s3.objects) == sorted(keys)


@pytest.mark.parametrize("code", ["InvalidAccessKeyId", "KMS.ThrottlingException"])
async def test_an_error_that_is_of_no_object_holds_none(code: str) -> None:
    messages = landing(1)
    async with opened(messages, denying([messages[3].id], code)) as harness:
        with pytest.raises(ClientError, match=code):
            await harness.compact()


async def test_objects_in_conflict_all_stay() -> None:
    one = history(0)
    records = [one.measured() for _ in range(10)]
    other = history(0, counter_usec=7)
    conflict = objects([other.measured() for _ in range(3)], size=3)
    sound = objects([history(1).measured()])
    async with opened([*objects(records), *conflict, *sound]) as harness:
        tally = await harness.compact()
    assert tally.held == 3
    assert len(harness.stored(archived=False)) == 3
    assert tally.archived == 1


@pytest.mark.parametrize(
    "key",
    ["v1/org=o/readme.txt", "v1/org=o/service=s/date=2026-11-23/hour=12/x.jsonl.zst"],
)
async def test_a_foreign_object_stays_and_is_reported(key: str) -> None:
    async with opened(landing()) as harness:
        harness.s3.objects[key] = b"x"
        tally = await harness.compact()
    assert tally.held == 1
    assert list(harness.stored(archived=False)) == [key]


@pytest.mark.parametrize(
    "folder",
    ["org=org-2/", "org=org-1/", "org=org-2/service=s/", "org=org-1/v1/", "org=org-2/archive/"],
)
async def test_an_object_below_the_folder_of_an_organization_is_foreign(folder: str) -> None:
    """Who may write there could otherwise write records for another organization."""
    messages = landing(1)
    key = messages[0].id.replace("v1/", f"v1/{folder}", 1)
    async with opened(messages[1:]) as harness:
        harness.s3.objects[key] = messages[0].body
        before = await harness.verify()
        tally = await harness.compact()
        after = await harness.verify()
    assert (tally.held, tally.archived, tally.deleted) == (1, *2 * (len(messages) - 1,))
    assert list(harness.stored(archived=False)) == [key]
    assert by_key(after) == by_key(before)
    if "org-2" in folder:
        assert before.counts["foreign_object"] == 1
        assert before.records == after.records == 41 - 5


async def test_other_bytes_under_an_archived_name_stay_and_are_audited() -> None:
    messages = landing(1)
    async with opened(messages) as harness:
        await harness.compact()
        harness.add([with_body(messages[0], messages[1].body)])
        tally = await harness.compact()
        report = await harness.verify()
    assert tally.held == 1
    assert messages[0].id in harness.s3.objects
    assert not report.ok


async def test_no_object_is_deleted_for_a_damaged_archive() -> None:
    messages = landing()
    async with opened(messages) as harness:
        await harness.compact()
        harness.add(messages[:5])
        harness.s3.objects[f"{ARCHIVE}.jsonl.zst"] = (
            b"x" + harness.s3.objects[f"{ARCHIVE}.jsonl.zst"]
        )
        tally = await harness.compact()
        report = await harness.verify()
    assert (tally.deleted, tally.held) == (0, 1)
    assert len(harness.stored(archived=False)) == 5
    assert report.counts["torn_object"] == len(messages)


async def test_a_plan_whose_object_is_gone_is_held_and_reported_missing() -> None:
    messages = landing(1)
    async with opened(messages) as harness:
        await harness.compact()
        del harness.s3.objects[f"{ARCHIVE}.jsonl.zst"]
        harness.add([*messages[:3], *messages[4:]])
        tally = await harness.compact()
        report = await harness.verify()
    assert (tally.archives, tally.deleted, tally.held) == (0, 0, 1)
    assert report.counts["missing_sequence"] == 1


async def test_an_archive_without_a_manifest_is_reported() -> None:
    async with opened(landing(1)) as harness:
        await harness.compact()
        del harness.s3.objects[f"{ARCHIVE}.manifest.json.zst"]
        harness.add(landing(1)[:1])
        assert (await harness.compact()).held == 1
        assert "torn_object" in (await harness.verify()).counts


@pytest.mark.parametrize("text", [b"", b"{}", b"\xff", NESTED], ids=range(4))
async def test_a_damaged_manifest_is_reported(text: bytes) -> None:
    packed = zstandard.ZstdCompressor(write_checksum=True).compress(text) if text else b"x"
    async with opened(landing(1)) as harness:
        await harness.compact()
        harness.s3.objects[f"{ARCHIVE}.manifest.json.zst"] = packed
        harness.add(landing(1)[:1])
        assert (await harness.compact()).held == 1
        assert "torn_object" in (await harness.verify()).counts


async def test_an_object_that_cannot_be_deleted_is_reported_and_not_counted_twice() -> None:
    messages = landing()
    async with opened(messages) as harness:
        originals = await harness.verify()
        harness.s3.undeletable = {messages[3].id}
        tally = await harness.compact()
        assert await harness.verify() == originals
    assert (tally.archived, tally.deleted, tally.held) == (27, 26, 1)


async def test_another_process_with_other_objects_is_noticed() -> None:
    """Two compactors of one shard: the second one's manifest exists with other bytes."""
    messages = landing()
    async with opened(messages) as harness:
        await harness.compact()
    manifest = harness.s3.objects[f"{ARCHIVE}.manifest.json.zst"]

    async with opened(messages[:-1]) as late:
        real = late.client.put_object

        async def put_object(**request: object) -> object:
            late.s3.objects.setdefault(f"{ARCHIVE}.manifest.json.zst", manifest)
            return await real(**request)

        late.client.put_object = put_object
        tally = await late.compact()
    assert (tally.archives, tally.deleted, tally.held) == (0, 0, 1)


# Shards.


async def test_shards_hold_every_object_exactly_once() -> None:
    messages = [one for n in range(40) for one in objects([history(n).measured()])]
    async with opened(messages) as harness:
        originals = await harness.verify()
        for index in range(7):
            await harness.compact(Shard(index, 7))
        assert await harness.verify() == originals
        archives = harness.stored(archived=True)
    names = [
        source.name
        for key, body in archives.items()
        if key.endswith(".manifest.json.zst")
        for source in decode_manifest(body).sources
    ]
    assert sorted(f"v1/{name}" for name in names) == sorted(message.id for message in messages)
    assert len(archives) == 14
    assert harness.stored(archived=False) == {}


async def test_all_objects_of_a_pod_are_in_one_shard() -> None:
    shards = [Shard(index, 5) for index in range(5)]
    for name in {parse_key(message.id) for message in landing()}:
        assert name is not None
        other = name._replace(epoch=1, first=7, last=9, hour="03")
        assert [shard.has(name) for shard in shards].count(True) == 1
        assert [shard.has(name) for shard in shards] == [shard.has(other) for shard in shards]


async def test_another_number_of_shards_archives_nothing_twice() -> None:
    messages = landing()
    async with opened(messages) as harness:
        originals = await harness.verify()
        await harness.compact(Shard(0, 1))
        harness.add(messages)
        for index in range(3):
            await harness.compact(Shard(index, 3))
        assert await harness.verify() == originals
    assert len(harness.s3.objects) == 2


async def test_an_unfinished_archive_of_another_number_of_shards_is_to_be_finished_first() -> None:
    messages = landing()
    async with opened(messages) as harness:
        await harness.compact()
        del harness.s3.objects[f"{ARCHIVE}.jsonl.zst"]
        harness.add(messages)
        assert (await harness.compact(Shard(1, 2))).held == 1
        assert len(harness.stored(archived=False)) == 27
        await harness.compact()
        assert (await harness.compact(Shard(1, 2))).held == 0
    assert harness.stored(archived=False) == {}


@pytest.mark.parametrize("text", ["", "1", "1/1", "-1/2", "1/0", "a/b", "0/10000", "0/٣"])
def test_a_shard_that_is_none_says_what_is_expected(text: str) -> None:
    with pytest.raises(ValueError, match="expected i/n with i from 0 to n-1"):
        parse_shard(text)


@pytest.mark.parametrize(
    "key",
    [
        f"{ARCHIVE}.jsonl",
        f"{ARCHIVE}-0.jsonl.zst",
        "v1/archive/date=2026-11-23/hour=12/shard-1-of-1.jsonl.zst",
        "v1/archive/date=2026-11-23/hour=12/shard-01-of-02.jsonl.zst",
        "v1/org=a/service=b/date=2026-11-23/hour=12/p-1-0000000000-0000000001.jsonl.zst",
    ],
)
def test_other_keys_name_no_archive(key: str) -> None:
    assert parse_archive_key(key) is None


# Scale.


async def test_some_thousand_objects_in_pages_and_several_archives() -> None:
    messages = []
    for number in range(100):
        replica = history(number)
        messages += objects((replica.measured() for _ in range(20)), size=1)
    async with opened(messages) as harness:
        harness.s3.page_keys = 170
        originals = await harness.verify()
        tally = await harness.compact(max_sources=700)
        assert await harness.verify() == originals
    assert originals.ok
    assert (tally.archived, tally.archives, tally.held) == (2000, 3, 0)


@pytest.mark.parametrize("most", [0, ITEM_BYTES, 10 * ITEM_BYTES, 40 * ITEM_BYTES, 10**9])
async def test_the_memory_for_keys_changes_the_lists_but_no_byte(most: int) -> None:
    """Hours that do not fit are listed again, and the oldest are archived first."""
    messages = []
    for hour in range(6):
        for number in range(5):
            one = history(number, epoch=hour, now_ms=NOON_MS + (hour - 6) * HOUR_MS)
            messages += objects((one.measured() for _ in range(4)), size=2)
    async with opened(messages) as harness:
        await harness.compact()
        expected, lists = harness.s3.objects, count_lists(harness)
        assert len(expected) == 12  # six hours
    async with opened(messages) as harness:
        tally = await harness.compact(max_listed_bytes=most)
        assert harness.s3.objects == expected
        assert (tally.archived, tally.archives, tally.held) == (len(messages), 6, 0)
        assert (count_lists(harness) > lists) == (most < 60 * ITEM_BYTES)


def count_lists(harness: Harness) -> int:
    """Return how often the objects were listed."""
    return sum("prefix=v1%2Forg%3D" in one.target for one in harness.s3.http.requests)


async def test_an_object_that_is_sent_again_after_its_deletion_is_deleted_again() -> None:
    """Its scraper did not get the response, or its spool was restored from a copy."""
    messages = landing()
    async with opened(messages) as harness:
        originals = await harness.verify()
        await harness.compact()
        expected = dict(harness.s3.objects)
        await harness.client.put_object(
            Bucket="usage", Key=messages[0].id, Body=messages[0].body, IfNoneMatch="*"
        )
        assert await harness.verify() == originals
        assert (await harness.compact()).deleted == 1
    assert harness.s3.objects == expected


def shared(first: int, *, replicas: int = 3) -> Message:
    """Return an object with one record of each of several replicas."""
    lines = [encode(history(number).measured()) for number in range(first, first + replicas)]
    return seal(lines, created_at_ms=0, numbers=SharedNumbers(name="s", epoch=7, first=first))


async def test_objects_of_several_replicas_are_archived_like_the_others() -> None:
    messages = [shared(0), shared(3), shared(9)]  # the numbers 6 to 8 are missing
    async with opened(messages) as harness:
        originals = await harness.verify()
        assert (await harness.compact()).archived == 3
        assert await harness.verify() == originals
        del harness.s3.objects[f"{ARCHIVE}.jsonl.zst"]  # a plan
        harness.add(messages)
        assert await harness.verify() == originals
    assert originals.counts == {"missing_object": 1}


async def test_numbers_of_shared_objects_are_no_sequences_of_a_pod() -> None:
    """A late object of the pod `s` has the same name, epoch and numbers as a shared one."""
    pod = history(5, epoch=7)
    pod.pod_uid = "s"
    late = objects([pod.measured() for _ in range(3)])
    async with opened([shared(0)]) as harness:
        await harness.compact()
        harness.add(late)
        assert (await harness.compact()).held == 0
        assert (await harness.verify()).ok


async def test_a_cut_shared_object_stays() -> None:
    cut = rewritten(shared(0), lambda lines: lines[:-1])
    async with opened([cut, shared(3)]) as harness:
        tally = await harness.compact()
    assert (tally.archived, tally.held) == (1, 1)
    assert list(harness.stored(archived=False)) == [cut.id]
