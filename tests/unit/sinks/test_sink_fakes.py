"""The fakes are the oracle of the fault tests, so their own behavior is tested here."""

import asyncio
import json
import re
import signal
import sys
from pathlib import Path
from random import Random
from urllib.parse import quote

import aiohttp
import pytest

from lab.fakes.http import Behavior, FakeHttp, Request, close, in_order, reply, reset
from lab.fakes.s3 import FakeS3

SHA256_OF_X = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
ONCE = {"If-None-Match": "*"}


async def test_of_many_conditional_puts_at_once_one_is_applied() -> None:
    async with FakeS3() as s3, aiohttp.ClientSession() as session:
        url = f"{s3.url}/bucket/key"
        puts = [session.put(url, data=b"%d" % n, headers=ONCE) for n in range(8)]
        answers = await asyncio.gather(*puts)
    assert sorted(response.status for response in answers) == [200] + [412] * 7
    assert (s3.applied("key"), len(s3.puts)) == (1, 8)


@pytest.mark.parametrize("header", ["x-amz-checksum-sha256", "x-amz-content-sha256"])
async def test_a_wrong_checksum_stores_nothing(header: str) -> None:
    async with FakeS3() as s3, aiohttp.ClientSession() as session:
        response = await session.put(f"{s3.url}/b/key", data=b"x", headers={header: "0" * 64})
    assert (response.status, dict(s3.objects)) == (400, {})


async def test_what_was_put_is_read_back() -> None:
    async with FakeS3() as s3, aiohttp.ClientSession() as session:
        await session.put(f"{s3.url}/b/a/key%3D1", data=b"x")
        response = await session.get(f"{s3.url}/b/a/key%3D1")
        assert await response.read() == b"x"
        assert (await session.get(f"{s3.url}/b/other")).status == 404
    assert list(s3.objects) == ["a/key=1"]


@pytest.mark.parametrize(
    ("behavior", "error"),
    [(close, aiohttp.ServerDisconnectedError), (reset, aiohttp.ClientOSError)],
    ids=["closed", "reset"],
)
async def test_a_broken_connection_is_really_broken(
    behavior: Behavior, error: type[Exception]
) -> None:
    async with FakeHttp(in_order(behavior)) as fake, aiohttp.ClientSession() as session:
        with pytest.raises(error):
            await session.post(fake.url, data=b"x")
        assert (await session.post(fake.url, data=b"x")).status == 200
    assert [request.body for request in fake.requests] == [b"x", b"x"]


async def test_chunks_are_understood() -> None:
    async def parts() -> object:
        for part in (b"ab", b"c" * 70_000):
            yield part

    async with FakeHttp(in_order(then=reply(204))) as fake, aiohttp.ClientSession() as session:
        response = await session.post(fake.url, data=parts())
    assert response.status == 204
    assert fake.requests[0].body == b"ab" + b"c" * 70_000
    assert fake.bytes_received > 70_000


async def test_in_a_process_of_its_own_it_journals_every_put(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "lab.fakes", "--journal", str(journal), "--lose-every", "2"),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout
        url = f"http://127.0.0.1:{int(await process.stdout.readline())}/bucket/key"
        async with aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.ServerDisconnectedError):
                await session.post(url)  # request 0: its response is lost
            first = await session.put(url, data=b"x", headers=ONCE)
    finally:
        process.send_signal(signal.SIGTERM)
        code = await process.wait()
    line = {"key": "key", "sha256": SHA256_OF_X, "status": 200}
    assert (first.status, code) == (200, 0)
    assert [json.loads(text) for text in journal.read_text().splitlines()] == [line]


@pytest.mark.parametrize("seed", range(20))
def test_a_list_has_each_object_that_exists_once_and_in_order(seed: int) -> None:
    """Objects are stored and deleted between the lists, also a key that was deleted before."""
    random, store = Random(seed), FakeS3()
    store.page_keys = 3
    keys = [f"{folder}/{number}" for folder in "abc" for number in range(6)]
    for _ in range(60):
        key = random.choice(keys)
        if random.random() < 0.4:
            store.objects.pop(key, None)
        elif random.random() < 0.5:
            store.objects.update({key: b"x"})
        else:
            store.objects[key] = b"y"
        prefix, found, token = random.choice(["", "a/", "b", "c/5", "d"]), list[str](), ""
        while True:
            query = f"list-type=2&prefix={quote(prefix)}&continuation-token={quote(token)}"
            page = store.apply(Request(0, "GET", f"/bucket?{query}", {}, b"")).body.decode()
            found += re.findall("<Key>(.*?)</Key>", page)
            tokens = re.findall("<NextContinuationToken>(.*?)</", page)
            if not tokens:
                break
            (token,) = tokens
        assert found == sorted(name for name in store.objects if name.startswith(prefix))
