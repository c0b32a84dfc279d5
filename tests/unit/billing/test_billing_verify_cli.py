"""`byoc-agents verify`: what it reads, prints and returns; and how little it remembers."""

import asyncio
import gc
import json
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore.exceptions import ClientError, FlexibleChecksumError
from moto.server import ThreadedMotoServer

from byoc_agents.audit import Audit, main
from byoc_agents.audit.bucket import GETS_IN_FLIGHT
from byoc_agents.message import Message
from lab.fakes.billing import ReplicaHistory, eventful, objects

REGION = "eu-west-1"


def stored(root: Path, messages: list[Message]) -> Path:
    for message in messages:
        path = root / message.id
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(message.body)
    return root


def sound() -> list[Message]:
    return objects(eventful(ReplicaHistory()))


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a call of the command that gives its exit code, stdout and stderr."""

    def call(*argv: object, **more: Any) -> tuple[int, str, str]:
        code = main([str(part) for part in argv], **more)
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_a_sound_directory_is_well_and_shows_its_totals(run: Run, tmp_path: Path) -> None:
    code, out, err = run(stored(tmp_path, sound()))
    assert (code, err) == (0, "")
    assert "9 objects, 41 records" in out
    assert "target_unreadable, 60.000 s" in out
    assert out.endswith("OK: no missing, duplicate or damaged records\n")


def test_json_says_the_same_to_machines_with_exact_decimals(run: Run, tmp_path: Path) -> None:
    code, out, _ = run(stored(tmp_path, sound()), "--json")
    report = json.loads(out, parse_float=str)
    assert code == 0
    assert report["replicas"][0]["cpu_core_seconds"] == "5284.087224"
    assert report["counts"] == {}


def test_damage_returns_1_and_names_the_object(run: Run, tmp_path: Path) -> None:
    messages = sound()
    root = stored(tmp_path, messages)
    (root / messages[3].id).write_bytes(b"x")
    code, out, _ = run(root)
    assert code == 1
    assert "problem torn_object: 1" in out
    assert messages[3].id in out
    assert out.endswith("FAILED: 1 problem found\n")


def test_many_findings_of_a_kind_are_counted_not_printed(run: Run, tmp_path: Path) -> None:
    history = ReplicaHistory()
    records = [history.measured() for _ in range(80)][1::2]
    _, out, _ = run(stored(tmp_path, objects(records)))
    assert "problem missing_sequence: 40" in out
    assert "and 20 more" in out


def test_what_a_killed_writer_left_is_no_object(run: Run, tmp_path: Path) -> None:
    root = stored(tmp_path, sound())
    (root / "v1" / ".partial-x").write_bytes(b"half")
    assert run(root)[0] == 0


def test_hours_outside_since_and_until_are_not_read(run: Run, tmp_path: Path) -> None:
    history = ReplicaHistory()
    root = stored(tmp_path, objects([history.measured() for _ in range(300)], size=60))
    span = ("--since", "2026-11-23T13:00Z", "--until", "2026-11-23T15:00Z")
    code, out, _ = run(root, *span)
    assert code == 0
    assert "2 objects, 120 records" in out
    assert "300 records" in run(root, "--since", "2026-11-23", "--until", "2026-11-24")[1]


def test_an_object_too_large_to_be_one_is_not_read(run: Run, tmp_path: Path) -> None:
    messages = sound()
    root = stored(tmp_path, messages)
    with (root / messages[3].id).open("wb") as file:
        file.truncate(1 << 30)
    assert "too large" in run(root)[1]


USAGE_ERRORS = {
    "nothing": [],
    "no directory": ["/nowhere/at/all"],
    "no bucket": ["s3:///v1"],
    "no time": [".", "--since", "yesterday"],
    "no zone": [".", "--since", "2026-11-23T12:00"],
}


@pytest.mark.parametrize("argv", USAGE_ERRORS.values(), ids=USAGE_ERRORS)
def test_bad_usage_returns_2_and_says_why(run: Run, argv: list[str]) -> None:
    code, out, err = run(*argv)
    assert (code, out) == (2, "")
    assert "byoc-agents verify: error:" in err


def test_help_returns_0(run: Run) -> None:
    assert run("--help")[0] == 0


# A bucket.


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def connect_to(url: str) -> Callable[[str | None], Any]:
    def connect(region: str | None) -> Any:
        keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
        config = AioConfig(retries={"total_max_attempts": 1})
        return get_session().create_client(
            "s3", region_name=region or REGION, endpoint_url=url, config=config, **keys
        )

    return connect


async def upload(url: str, bucket: str, messages: list[Message]) -> None:
    async with connect_to(url)(None) as client:
        place = {"LocationConstraint": REGION}
        await client.create_bucket(Bucket=bucket, CreateBucketConfiguration=place)
        await client.put_object(Bucket=bucket, Key="v1/", Body=b"")  # a folder, to the S3 console
        for message in messages:
            await client.put_object(Bucket=bucket, Key=message.id, Body=message.body)


def test_a_bucket_says_the_same_as_a_directory(run: Run, tmp_path: Path, s3: str) -> None:
    asyncio.run(upload(s3, "sound", sound()))
    _, here, _ = run(stored(tmp_path, sound()), "--json")
    code, there, _ = run("s3://sound/v1/", "--json", connect=connect_to(s3))
    assert code == 0
    assert json.loads(there) == json.loads(here) | {"target": "s3://sound/v1/"}


def test_a_missing_bucket_returns_2_and_is_named(run: Run, s3: str) -> None:
    code, out, err = run("s3://nowhere/v1", connect=connect_to(s3))
    assert (code, out) == (2, "")
    assert "s3://nowhere/v1" in err
    assert "NoSuchBucket" in err


def test_a_closed_port_returns_2(run: Run) -> None:
    code, _, err = run("s3://sound/v1", connect=connect_to("http://127.0.0.1:1"))
    assert code == 2
    assert "127.0.0.1:1" in err


class Bucket:
    """A scripted client: pages of keys, and a body or an error for each."""

    def __init__(self, messages: list[Message], page_keys: int, **errors: Exception) -> None:
        self._bodies = {message.id: message.body for message in messages}
        self._page_keys = page_keys
        self._errors = errors
        self.in_flight = 0
        self.most = 0

    @asynccontextmanager
    async def connect(self, _region: str | None) -> AsyncIterator["Bucket"]:
        yield self

    def get_paginator(self, _name: str) -> "Bucket":
        return self

    async def paginate(self, **_: str) -> AsyncIterator[dict[str, Any]]:
        if "list" in self._errors:
            raise self._errors["list"]
        keys = iter(sorted(self._bodies))
        while page := list(islice(keys, self._page_keys)):
            yield {"Contents": [{"Key": k, "Size": len(self._bodies[k])} for k in page]}
        yield {}

    async def get_object(self, **key: str) -> dict[str, Any]:
        if "get" in self._errors:
            raise self._errors["get"]
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        return {"Body": self._body(self._bodies[key["Key"]])}

    @asynccontextmanager
    async def _body(self, body: bytes) -> AsyncIterator[Any]:
        class Stream:
            async def read(self) -> bytes:
                await asyncio.sleep(0)  # let the others start
                return body

        yield Stream()
        self.in_flight -= 1


def test_pages_are_followed_and_gets_in_flight_bounded(run: Run) -> None:
    bucket = Bucket(objects(eventful(ReplicaHistory()), size=1), page_keys=17)
    code, out, _ = run("s3://b/", connect=bucket.connect)
    assert code == 0
    assert "41 objects" in out
    assert bucket.most == GETS_IN_FLIGHT


def denied(operation: str) -> ClientError:
    return ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, operation)


@pytest.mark.parametrize(("place", "name"), [("list", "ListObjectsV2"), ("get", "GetObject")])
def test_a_refused_call_returns_2_and_names_it(run: Run, place: str, name: str) -> None:
    bucket = Bucket(sound(), 9, **{place: denied(name)})
    code, _, err = run("s3://b/v1/", connect=bucket.connect)
    assert code == 2
    assert "s3://b/v1/" in err
    assert f"AccessDenied) when calling the {name}" in err


def test_a_body_that_fails_its_stored_checksum_is_torn(run: Run) -> None:
    bucket = Bucket(sound()[:1], 9, get=FlexibleChecksumError(error_msg="crc32 differs"))
    code, out, _ = run("s3://b/v1/", connect=bucket.connect)
    assert code == 1
    assert "crc32 differs" in out


# Memory.


def test_memory_does_not_grow_with_records() -> None:
    """Once the ids kept for comparison are full, another 4,000 records cost under 10 bytes each.

    Garbage in cycles is collected first: when the collector runs by itself depends on the tests
    before this one.
    """
    history, audit = ReplicaHistory(), Audit(recent_ids=50)
    held = []
    tracemalloc.start()
    for _ in range(6):
        for message in objects((history.measured() for _ in range(1_000)), size=250):
            audit.add(message.id, message.body)
        gc.collect()
        held.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert audit.report("").ok
    assert held[5] - held[1] < 40_000, held


def test_duplicates_too_far_apart_to_compare_are_found_all_the_same() -> None:
    history, audit = ReplicaHistory(), Audit(recent_ids=50)
    messages = objects([*(history.measured() for _ in range(200)), history.lose_state()])
    for message in [*messages, messages[0], messages[-1]]:
        audit.add(message.id, message.body)
    near = Audit(recent_ids=200)
    for message in [*messages, messages[0], messages[-1]]:
        near.add(message.id, message.body)
    assert audit.report("").counts == {"duplicate_uncompared": 5, "duplicate_identical": 1}
    assert near.report("").counts == {"duplicate_identical": 6}


def test_the_same_minute_in_a_later_epoch_is_found_even_far_apart() -> None:
    """Its id is the same as long ago; what shows is that the time was recorded already."""
    history, audit = ReplicaHistory(), Audit(recent_ids=50)
    first = [history.measured() for _ in range(200)]
    for message in [*objects(first), *objects([ReplicaHistory(epoch=5).measured()])]:
        audit.add(message.id, message.body)
    assert audit.report("").counts["overlap"] == 1
