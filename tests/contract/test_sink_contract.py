"""The contract of `byoc_agents.delivery.sink.Sink`, run over every sink that stores."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from aiobotocore.session import AioSession
from moto.server import ThreadedMotoServer

from byoc_agents.delivery.sink import Sink
from byoc_agents.egress.aws import aws_config, aws_session
from byoc_agents.egress.destinations import s3_destination
from byoc_agents.egress.gate import Gate
from byoc_agents.errors import Reason, SendError
from byoc_agents.message import Message, Receipt
from byoc_agents.sinks.directory import DirectorySink
from byoc_agents.sinks.s3 import S3Sink
from lab.fakes.s3 import FakeS3

REGION = "eu-west-1"
pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass
class Backend:
    """A sink, and the receiver's own view of what it holds."""

    sink: Sink
    stored: Callable[[], Awaitable[dict[str, bytes]]]  # id -> bytes


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def session() -> AioSession:
    made = aws_session(Gate([]), REGION)
    made.set_credentials("AKIAEXAMPLE", "secret")
    return made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def on_moto(moto: str) -> AsyncIterator[Backend]:
    gate, aws = Gate([s3_destination("bucket", REGION, moto)]), session()
    sink = S3Sink(aws, gate, "bucket", region=REGION, endpoint_url=moto)
    view = aws.create_client("s3", endpoint_url=moto, config=aws_config(gate))
    async with sink, view as client:
        where = {"LocationConstraint": REGION}
        await client.create_bucket(Bucket="bucket", CreateBucketConfiguration=where)

        async def stored() -> dict[str, bytes]:
            listed = await client.list_objects_v2(Bucket="bucket")
            found = {}
            for item in listed.get("Contents", []):
                response = await client.get_object(Bucket="bucket", Key=item["Key"])
                found[item["Key"]] = await response["Body"].read()
            return found

        yield Backend(sink, stored)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def on_fake() -> AsyncIterator[Backend]:
    async with FakeS3() as s3:
        gate = Gate([s3_destination("bucket", REGION, s3.url)])

        async def stored() -> dict[str, bytes]:
            return dict(s3.objects)

        async with S3Sink(session(), gate, "bucket", region=REGION, endpoint_url=s3.url) as sink:
            yield Backend(sink, stored)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def on_disk(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Backend]:
    root = tmp_path_factory.mktemp("sink")

    async def stored() -> dict[str, bytes]:
        return {str(path.relative_to(root)): path.read_bytes() for path in _files(root)}

    async with DirectorySink(root) as sink:
        yield Backend(sink, stored)


def _files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


@pytest.fixture(params=["on_moto", "on_fake", "on_disk"])
def backend(request: pytest.FixtureRequest) -> Backend:
    made: Backend = request.getfixturevalue(request.param)
    return made


@pytest.fixture
def key(request: pytest.FixtureRequest) -> str:
    """Return an id that no other test uses."""
    return f"v1/org=o/{request.function.__name__}/a-1.jsonl.zst"


def message(key: str, body: bytes = b"body") -> Message:
    return Message(id=key, type="t", body=body, created_at_ms=0)


async def test_the_exact_bytes_are_stored_under_the_id(backend: Backend, key: str) -> None:
    body = bytes(range(256)) * 300
    (outcome,) = await backend.sink.send([message(key, body)])
    assert isinstance(outcome, Receipt)
    assert outcome.reason is Reason.OK
    assert outcome.reference
    assert (await backend.stored())[key] == body


async def test_an_empty_body_is_stored_too(backend: Backend, key: str) -> None:
    (outcome,) = await backend.sink.send([message(key, b"")])
    assert outcome.reason is Reason.OK
    assert (await backend.stored())[key] == b""


async def test_the_second_send_is_already_stored_and_changes_nothing(
    backend: Backend, key: str
) -> None:
    await backend.sink.send([message(key, b"first")])
    before = await backend.stored()
    (outcome,) = await backend.sink.send([message(key, b"other bytes")])
    assert isinstance(outcome, Receipt)
    assert outcome.reason is Reason.ALREADY_STORED
    assert await backend.stored() == before
    assert before[key] == b"first"


async def test_outcomes_come_in_the_order_of_the_batch(backend: Backend, key: str) -> None:
    await backend.sink.send([message(key + "2")])
    outcomes = await backend.sink.send([message(key + number) for number in "123"])
    wanted = [Reason.OK, Reason.ALREADY_STORED, Reason.OK]
    assert [outcome.reason for outcome in outcomes] == wanted


async def test_an_empty_batch_has_no_outcomes(backend: Backend) -> None:
    assert list(await backend.sink.send([])) == []


async def test_a_cancelled_send_and_its_retry_have_one_effect(backend: Backend, key: str) -> None:
    body = b"x" * 100_000
    task = asyncio.ensure_future(backend.sink.send([message(key, body)]))
    for _ in range(5):  # turns of the loop: it is under way
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (outcome,) = await backend.sink.send([message(key, body)])
    assert isinstance(outcome, Receipt)
    assert (await backend.stored())[key] == body


async def test_what_it_cannot_store_is_an_outcome_and_never_raised(backend: Backend) -> None:
    outcomes = await backend.sink.send([message("")])
    assert [type(outcome) for outcome in outcomes] == [SendError]
    assert outcomes[0].reason is Reason.REJECTED


async def test_many_sends_at_once_store_a_message_once(backend: Backend, key: str) -> None:
    sends = [backend.sink.send([message(key)]) for _ in range(4)]
    reasons = [outcome.reason for (outcome,) in await asyncio.gather(*sends)]
    assert set(reasons) <= {Reason.OK, Reason.ALREADY_STORED, Reason.CONFLICT}
    assert (await backend.stored())[key] == b"body"


async def test_it_says_where_it_leads_and_what_it_takes(backend: Backend) -> None:
    assert "://" in backend.sink.destination
    assert backend.sink.max_messages >= 1
    assert backend.sink.max_bytes >= 1
