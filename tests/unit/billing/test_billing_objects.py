"""Sealing: exactly the bytes that were staged, under a key that describes the records."""

import contextlib
import gzip

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from byoc_agents.app.cloudevents import encode
from byoc_agents.billing.objects import (
    MAX_BODY_BYTES,
    Compression,
    ObjectKey,
    SharedNumbers,
    TornObjectError,
    parse_key,
    runs,
    seal,
    unseal,
)
from byoc_agents.billing.record import TYPE
from lab.fakes.billing import NOON_MS, ReplicaHistory, altered

quick = settings(max_examples=60, deadline=None, derandomize=True, database=None)
COMPRESSIONS: list[Compression] = ["zstd", "gzip"]


def lines(count: int, history: ReplicaHistory | None = None) -> list[bytes]:
    history = history or ReplicaHistory()
    return [encode(history.measured()) for _ in range(count)]


def test_the_key_names_org_service_hour_pod_epoch_and_sequences() -> None:
    history = ReplicaHistory(pod_uid="uid-1", epoch=1_795_400_000_000, now_ms=NOON_MS + 59 * 60_000)
    message = seal(lines(3, history), created_at_ms=7)
    assert message.id == (
        "v1/org=org-1/service=service-1/date=2026-11-23/hour=12/"
        "uid-1-1795400000000-0000000000-0000000002.jsonl.zst"
    )
    assert (message.type, message.events, message.created_at_ms) == (TYPE, 3, 7)


def test_a_replica_without_a_pod_uid_goes_by_its_name() -> None:
    key = parse_key(seal(lines(1, ReplicaHistory(pod_uid="")), created_at_ms=0).id)
    assert key is not None
    assert key.pod == "clickhouse-0"


NUMBERS = SharedNumbers(name="scraper", epoch=7, first=40)


def test_the_key_of_a_shared_object_has_the_numbers_of_its_records_in_the_stream() -> None:
    shared = [
        *lines(2, ReplicaHistory(replica="r0")),
        *lines(1, ReplicaHistory(replica="r1", epoch=9)),
    ]
    message = seal(shared, created_at_ms=0, numbers=NUMBERS)
    assert message.id.rpartition("/")[2] == "scraper-7-0000000040-0000000042.shared.jsonl.zst"
    assert (message.stream, message.epoch, message.sequence) == ("billing/shared", 7, 42)
    key = parse_key(message.id)
    assert key is not None
    assert key.shared
    assert f"v1/{key}.jsonl.zst" == message.id
    assert unseal(message.id, message.body) == shared


@pytest.mark.parametrize(
    "other", [ReplicaHistory(now_ms=NOON_MS + 3_600_000), ReplicaHistory(service_id="other")]
)
def test_a_shared_object_has_one_service_and_one_hour(other: ReplicaHistory) -> None:
    mixed = [*lines(1), *lines(1, other)]
    with pytest.raises(ValueError, match="one service that start in one hour"):
        seal(mixed, created_at_ms=0, numbers=NUMBERS)
    assert len(runs(mixed, shared=True)) == 2


@pytest.mark.parametrize("prefix", ["", "v1", "v1/", "a/b/"])
def test_a_prefix_is_a_folder(prefix: str) -> None:
    key = seal(lines(1), created_at_ms=0, prefix=prefix).id
    assert key.partition("org=")[0] == (f"{prefix.rstrip('/')}/" if prefix else "")
    assert parse_key(key) is not None


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_the_body_is_the_staged_bytes_and_equal_for_equal_records(compression: Compression) -> None:
    staged = lines(5)
    message = seal(staged, created_at_ms=1, compression=compression)
    assert unseal(message.id, message.body) == staged
    assert message.body == seal(staged, created_at_ms=2, compression=compression).body


def test_zstd_carries_its_checksum_and_size_and_no_content_encoding() -> None:
    message = seal(lines(2), created_at_ms=0)
    frame = zstandard.get_frame_parameters(message.body)
    assert frame.has_checksum
    assert frame.content_size == sum(len(line) + 1 for line in lines(2))
    assert (message.content_encoding, message.content_type) == ("", "application/zstd")


def test_gzip_says_nothing_of_the_time_it_was_made() -> None:
    message = seal(lines(2), created_at_ms=0, compression="gzip")
    assert message.body[4:8] == bytes(4)  # RFC 1952: MTIME
    assert message.id.endswith(".jsonl.gz")
    assert (message.content_encoding, message.content_type) == ("", "application/gzip")


def test_keys_sort_as_sequences_do() -> None:
    staged = lines(12)
    keys = [seal([line], created_at_ms=0).id for line in staged]
    assert keys == sorted(keys)


def mixed_epoch() -> list[bytes]:
    return [*lines(1), *lines(2, ReplicaHistory(epoch=5))[1:]]


def mixed_pod() -> list[bytes]:
    history = ReplicaHistory()
    return [*lines(1, history), *lines(1, replace_pod(history))]


def replace_pod(history: ReplicaHistory) -> ReplicaHistory:
    history.pod_uid = "another"
    return history


UNSEALABLE = {
    "none at all": [],
    "a missing sequence": [lines(3)[0], lines(3)[2]],
    "twice the same": lines(1) * 2,
    "backwards": lines(2)[::-1],
    "another epoch": mixed_epoch(),
    "another pod": mixed_pod(),
    "no JSON": [b"{"],
    "no usage": [b'{"data": {}}'],
    "a line end inside": [lines(1)[0] + b"\n"],
    "no date": [
        encode(altered(ReplicaHistory().measured(), charge_period_start="2026-11-23T12:00:00")),
    ],
}


@pytest.mark.parametrize("staged", UNSEALABLE.values(), ids=UNSEALABLE)
def test_records_that_are_not_contiguous_are_refused(staged: list[bytes]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  msgspec's own words in some cases
        seal(staged, created_at_ms=0)


def test_runs_end_where_an_object_must_end() -> None:
    a, b = lines(5), lines(2, ReplicaHistory(epoch=1, pod_uid="p"))
    assert runs([*a[:2], *a[3:], *b]) == [a[:2], a[3:], b]
    assert runs([]) == []


@quick
@given(
    st.builds(
        ObjectKey,
        organization_id=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
        service_id=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
        date=st.dates().map(str),
        hour=st.integers(0, 23).map("{:02}".format),
        pod=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,40}", fullmatch=True),
        epoch=st.integers(0, 10**13),
        first=st.integers(0, 10**10),
        last=st.integers(0, 10**10),
    )
)
def test_every_key_reads_back(key: ObjectKey) -> None:
    assert parse_key(f"v1/{key}.jsonl.zst") == key


GOOD = "org=b/service=s/date=2026-11-23/hour=12/p-1-2-3.jsonl.zst"


@pytest.mark.parametrize(
    "key",
    [
        *("", "v1/x", "v1/org=a/service=b/x-1-2-3.jsonl.zst", f"v1/{GOOD}\n"),
        *(f"v1/org=a/{GOOD}", f"v1/org=a/service=s/{GOOD}", f"v1/org=b/org=a/x/{GOOD}"),
        *(f"v1/{GOOD}".replace("12", "\u0661\u0662"), f"v1/{GOOD}".replace("-3.", "-\u0663.")),
    ],
)
def test_another_key_is_none_of_ours(key: str) -> None:
    assert parse_key(key) is None


def torn_bodies(compression: Compression) -> dict[str, bytes]:
    body = seal(lines(5), created_at_ms=0, compression=compression).body
    press = zstandard.ZstdCompressor(write_checksum=True).compress
    if compression == "gzip":
        press = gzip.compress
    return {
        "cut": body[:-1],
        "cut in half": body[: len(body) // 2],
        "empty": b"",
        "followed by another byte": body + b"\0",
        "followed by another frame": body + body,
        "no frame": b"plain",
        "without a record": press(b""),
        "without the last line end": press(b'{"a": 1}'),
    }


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_torn_body_is_refused(compression: Compression) -> None:
    key = seal(lines(5), created_at_ms=0, compression=compression).id
    for name, body in torn_bodies(compression).items():
        with pytest.raises(TornObjectError):
            print(name, unseal(key, body))


def test_a_frame_that_claims_to_be_huge_or_checks_nothing_is_refused() -> None:
    bare = zstandard.ZstdCompressor(write_checksum=False).compress(b"{}\n")
    unsized = zstandard.ZstdCompressor(write_checksum=True, write_content_size=False)
    huge = zstandard.ZstdCompressor(write_checksum=True).compress(bytes(MAX_BODY_BYTES + 1))
    for body in (bare, unsized.compress(b"{}\n"), huge):
        with pytest.raises(TornObjectError):
            unseal("x.jsonl.zst", body)
    with pytest.raises(TornObjectError):
        unseal("x.jsonl.gz", gzip.compress(bytes(MAX_BODY_BYTES + 1)))


@pytest.mark.parametrize("compression", COMPRESSIONS)
@quick
@given(place=st.integers(0), bit=st.integers(0, 7))
def test_a_flipped_bit_shows_or_changes_no_record(
    compression: Compression, place: int, bit: int
) -> None:
    """A few bits of both formats mean nothing: those change no record."""
    staged = lines(5)
    message = seal(staged, created_at_ms=0, compression=compression)
    body = bytearray(message.body)
    body[place % len(body)] ^= 1 << bit
    with contextlib.suppress(TornObjectError):
        assert unseal(message.id, bytes(body)) == staged


def test_two_records_with_other_figures_make_other_bytes() -> None:
    record = ReplicaHistory().measured()
    used = replace(record.data.used, memory_max_bytes=record.data.used.memory_max_bytes + 1)
    bodies = {seal([encode(r)], created_at_ms=0).body for r in (record, altered(record, used=used))}
    assert len(bodies) == 2
