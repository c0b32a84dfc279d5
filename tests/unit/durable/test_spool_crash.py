"""Real processes: killed while they put, and put on a disk that is full."""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from byoc_agents.app.clock import SystemClock
from byoc_agents.durable.spool import Spool
from byoc_agents.durable.spool_file import OperationKind
from byoc_agents.durable.store import SpoolStore, count

KILLED = """
import asyncio, hashlib, sys
from pathlib import Path
from byoc_agents.durable.model import WriteBatch
from byoc_agents.app.clock import SystemClock
from byoc_agents.message import Message
from byoc_agents.durable.spool import Spool

def message(n):
    return Message(f"m{n}", "t", hashlib.sha256(b"%d" % n).digest() * (1 + n % 300), 1)

async def put(spool, n):
    await spool.commit(WriteBatch(messages=[message(n)], state={f"k{n}": b"%d" % n}))
    print(n, flush=True)

async def main():
    async with Spool(Path(sys.argv[1]), max_bytes=1 << 30, clock=SystemClock()) as spool:
        for n in range(int(sys.argv[2]), 1 << 30, 8):
            await asyncio.gather(*(put(spool, n + i) for i in range(8)))

asyncio.run(main())
"""


@contextmanager
def started(program: str, *args: object) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", program, *map(str, args)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def acknowledged(directory: Path, first: int, lines: int) -> set[int]:
    """Kill a putting process after so many acknowledgments, wherever it is then."""
    with started(KILLED, directory, first) as process:
        assert process.stdout
        lines_read = [process.stdout.readline() for _ in range(lines)]
        os.kill(process.pid, signal.SIGKILL)
        lines_read += process.stdout.readlines()
    return {int(line) for line in lines_read if line.endswith(b"\n")}


async def test_every_acknowledged_put_survives_sigkill(tmp_path: Path) -> None:
    """Killed again and again on one directory, at points that the seed and the machine choose."""
    rng, confirmed, first = random.Random(7), set[int](), 0
    for _ in range(10):
        confirmed |= acknowledged(tmp_path, first, rng.randrange(1, 100))
        first = max(confirmed) + 100
    names: dict[str, Any] = {}
    exec(KILLED.partition("async def put")[0], names)  # the same messages
    async with Spool(tmp_path, max_bytes=1 << 30, clock=SystemClock()) as spool:
        assert spool.corruptions == 0
        found = {m.id: m for m in await spool.peek(1 << 20, 1 << 30)}
        state = await spool.state("k")
        kept, counted = await spool.run(
            lambda store: (store.totals(), count(store.connection)), OperationKind.READ
        )
        assert kept == counted
    assert len(confirmed) > 100
    assert {f"m{n}" for n in confirmed} <= found.keys()
    assert found == {name: names["message"](int(name[1:])) for name in found}
    assert state == {f"k{name[1:]}": name[1:].encode() for name in found}  # one commit each


FULL = """
import asyncio, os, resource, sys
from pathlib import Path
from byoc_agents.app.clock import SystemClock
from byoc_agents.errors import SpoolUnavailableError
from byoc_agents.message import Message
from byoc_agents.durable.spool import Spool

directory, mode = Path(sys.argv[1]), sys.argv[2]
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

def fill():
    if mode == "limit":  # no file may grow over 9 MiB
        return resource.setrlimit(resource.RLIMIT_FSIZE, (9 << 20, hard))
    disk = os.statvfs(directory)
    (directory / "other").write_bytes(b"x" * (disk.f_bavail * disk.f_frsize - (300 << 10)))

def give_room():
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    (directory / "other").unlink(missing_ok=True)

async def main():
    async with Spool(directory, max_bytes=1 << 30, clock=SystemClock()) as spool:
        await spool.put(*(Message(f"warm{n}", "t", b"w", 0) for n in range(3)))
        fill()
        put = []
        try:
            for n in range(1000):
                message = Message(f"m{n}", "t", os.urandom(250_000), n)
                await spool.put(message)
                put.append(message)
        except SpoolUnavailableError:
            pass
        assert len(put) < 1000
        try:
            await spool.put(Message("no", "t", os.urandom(250_000), 0))
            raise SystemExit("a full disk took a message")
        except SpoolUnavailableError as error:
            print(error)
        queue = await spool.peek(2000, 1 << 30)
        assert queue[3:] == put, (len(queue), len(put))
        if mode == "disk":  # acknowledgments work without any room
            while batch := await spool.peek(3, 1 << 30):
                await spool.remove([m.id for m in batch])
            put = []
            try:
                await spool.probe()
                raise SystemExit("ready, although nothing can be put")
            except SpoolUnavailableError:
                pass
        assert spool.corruptions == 0
        give_room()
        await spool.probe()
        await spool.put(Message("late", "t", b"late", 0))
        assert [m.id for m in (await spool.peek(2000, 1 << 30))[-len(put) - 1:]] == [
            *(m.id for m in put), "late"]

asyncio.run(main())
"""


def test_a_file_that_cannot_grow_refuses_loses_nothing_and_works_again(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FULL, tmp_path, "limit"], check=True, stdout=-1)
    assert done.stdout.strip()
    SpoolStore(tmp_path / "spool.db", max_bytes=1).close()


@pytest.mark.real
def test_a_full_disk_still_takes_acknowledgments(tmp_path: Path) -> None:
    """On a file system of 24 MiB of our own, which a user name space lets anybody mount."""
    mount = 'mount -t tmpfs -o size=24m tmpfs "$1" && exec "$0" -c "$2" "$1" disk'
    shell = ["sh", "-c", mount, sys.executable, str(tmp_path), FULL]
    done = subprocess.run(["unshare", "-rm", *shell], check=True, stdout=-1)
    assert b"No space left" in done.stdout or b"full" in done.stdout
