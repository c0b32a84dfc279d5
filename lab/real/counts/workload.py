"""The counted work: `python -m lab.real.counts.workload HOW DIRECTORY`.

Each piece runs once to warm up, then once between two marks. HOW is `calls` (the marks are stat
calls on missing paths, seen by strace), `instructions` (client requests switch callgrind on and
off) or `memory` (tracemalloc; prints JSON).
`worse_webhook` is `webhook` with wasteful code, which the gate must notice.
"""

import asyncio
import ctypes
import gc
import json
import logging
import mmap
import os
import re
import sys
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from pathlib import Path

import structlog

from byoc_agents.alerts.counts import Counts
from byoc_agents.alerts.daemon import forwarder
from byoc_agents.alerts.settings import Settings
from byoc_agents.alerts.webhook import LIMITS
from byoc_agents.app.cloudevents import encode
from byoc_agents.app.http_server import ClientConnection, HttpServer, Listen
from byoc_agents.app.metrics import Metrics
from byoc_agents.app.settings import CoreSettings
from byoc_agents.billing.objects import seal
from byoc_agents.billing.sources.cgroup import CgroupSource, at_path
from byoc_agents.billing.sources.cgroup_paths import Locator
from byoc_agents.billing.sources.procfs import ProcFs
from byoc_agents.delivery.shipper import Shipper
from byoc_agents.durable.spool import Spool
from byoc_agents.ledger import FileLedger
from byoc_agents.message import Message
from lab.fakes.billing import ReplicaHistory
from lab.fakes.core import FakeClock, ListSink
from lab.real.parts import kernel

PUTS, SAMPLES, DELIVERIES, RECORDS = 100, 100, 20, 100
BODY = b"x" * 1024
WEBHOOK = (
    Path(__file__).parents[3] / "tests/unit/alerts/data/alertmanager-webhook-firing-group3.json"
)
MARK = "/byoc-count"  # + /PIECE and /end: no such path
Work = Callable[[], Awaitable[int]]  # returns the bytes it made: to be kept, or to be sent


class Marks:
    """The marks before and after a piece, for the counter that runs this process."""

    def __init__(self, how: str) -> None:
        self.found: dict[str, dict[str, int]] = {}
        self._how = how
        self._request = _client_request() if how == "instructions" else None

    @contextmanager
    def around(self, piece: str) -> Iterator[None]:
        """Put marks around the block."""
        if self._how == "memory":
            with self._memory(piece):
                yield
        elif self._request:
            self._request(START, 0)
            yield
            name = ctypes.create_string_buffer(piece.encode())
            self._request(DUMP_AT, ctypes.addressof(name))
            self._request(STOP, 0)
        else:
            _stat(piece)
            yield
            _stat("end")

    def note(self, piece: str, produced: int) -> None:
        """Record the size of the result in bytes, in addition to the memory."""
        if self._how == "memory":
            self.found[piece]["bytes"] = produced

    @contextmanager
    def _memory(self, piece: str) -> Iterator[None]:
        tracemalloc.start()
        before = sys.getallocatedblocks()
        yield
        kept = sys.getallocatedblocks() - before
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        self.found[piece] = {"peak_bytes": peak, "kept_blocks": max(0, kept)}


def _stat(name: str) -> None:
    with suppress(OSError):
        os.stat(f"{MARK}/{name}")  # noqa: PTH116  exactly one system call


# valgrind/callgrind.h: the client requests of the tool C, T. They are five instructions that do
# nothing outside of valgrind, here for x86-64 as valgrind/valgrind.h gives them.
BASE = ord("C") << 24 | ord("T") << 16
DUMP_AT, START, STOP = BASE + 3, BASE + 4, BASE + 5
ASK = bytes.fromhex(
    "4889f8"  # mov %rdi, %rax: the address of the request and its arguments
    "31d2"  # xor %edx, %edx: the response where no valgrind listens
    "48c1c703 48c1c70d 48c1c73d 48c1c733"  # rol $3, $13, $61, $51, %rdi: as it was
    "4887db"  # xchg %rbx, %rbx
    "4889d0 c3"  # mov %rdx, %rax; ret
)


def _client_request() -> Callable[[int, int], int]:
    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(ASK)
    place = ctypes.addressof(ctypes.c_char.from_buffer(code))
    ask = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p)(place)

    def request(number: int, argument: int) -> int:
        block = (ctypes.c_uint64 * 6)(number, argument)
        return int(ask(ctypes.addressof(block)))

    request.code = code  # type: ignore[attr-defined]  # it must outlive the function
    return request


async def sampling(stack: ExitStack) -> Work:
    """Read a real cgroup: one sample with parsing."""
    group = stack.enter_context(kernel.cgroup_v1("cpuacct", "memory"))
    proc = ProcFs()
    source = CgroupSource(at_path(Locator(proc), group["cpuacct"]), proc, "00000000-boot")
    stack.callback(source.close)

    async def work() -> int:
        for _ in range(SAMPLES):
            await source.read()
        return 0

    return work


def putting(spool: Spool) -> Work:
    """Put messages one after another, each durable before the next."""
    numbers = iter(range(10**6))

    async def work() -> int:
        before = spool.totals.bytes
        for _ in range(PUTS):
            await spool.put(_message(next(numbers)))
        return spool.totals.bytes - before

    return work


def _message(number: int) -> Message:
    return Message(id=f"m-{number}", type="count", body=BODY, created_at_ms=1)


class Wire(asyncio.Transport):
    """A connection without a socket, which keeps the server's output."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.answered = asyncio.Event()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Keep the data."""
        self.written += data
        self.answered.set()

    def is_closing(self) -> bool:
        """Return False: it is open."""
        return False

    def close(self) -> None:
        """Do nothing."""


async def receiving(spool: Spool) -> Work:
    """Receive a real notification of three alerts, from its bytes to the 200."""
    core = CoreSettings(organization_id="org", service_id="service", region="eu-central-1")
    own = Settings(
        url="http://127.0.0.1:1/",
        token="t",
        signing_secret="s",
        webhook_token="w",
        fingerprint_secret="f",
        namespace="*",
    )
    source = forwarder(core, own, spool, FakeClock(), Counts(Metrics(), "alert-forwarder"))
    server = HttpServer(source.webhook.handle, Listen("", 0), LIMITS)
    body, numbers = WEBHOOK.read_bytes(), iter(range(10**6))

    async def work() -> int:
        before = spool.totals.bytes
        fresh = re.sub(rb'"[0-9a-f]{16}"', lambda _: b'"%016x"' % next(numbers), body)
        wire, protocol = Wire(), ClientConnection(server, "127.0.0.1")
        protocol.connection_made(wire)
        head = b"POST /v1/alerts HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer w\r\n"
        head += b"Content-Length: %d\r\n\r\n" % len(fresh)
        protocol.data_received(head + fresh)
        await wire.answered.wait()
        assert wire.written.startswith(b"HTTP/1.1 200"), wire.written
        protocol.connection_lost(None)
        return spool.totals.bytes - before

    return work


def sealing() -> Work:
    """Encode and seal one object of some hours."""
    history = ReplicaHistory()
    records = [history.measured() for _ in range(RECORDS)]

    async def work() -> int:
        return len(seal([encode(record) for record in records], created_at_ms=0).body)

    return work


async def delivering(spool: Spool, ledger: FileLedger) -> Work:
    """Deliver messages from the spool to a sink one at a time, with both ledger lines."""
    shipper = Shipper(
        "count",
        spool=spool,
        sink=ListSink(),
        ledger=ledger,
        clock=FakeClock(),
        metrics=Metrics(),
    )
    await spool.put(*(_message(number) for number in range(2 * DELIVERIES)))

    async def work() -> int:
        before = ledger.status()["bytes"]
        for _ in range(DELIVERIES):
            assert await shipper.attempt() is None
        return int(ledger.status()["bytes"]) - int(before)

    return work


def wasting(work: Work) -> Work:
    """Return the same work, worse in every counted way, to test the gate."""
    kept: list[object] = []

    async def twice() -> int:
        hoard = [json.loads(WEBHOOK.read_bytes()) for _ in range(20)]
        produced = await work() + await work()
        kept.append(hoard)
        return produced

    return twice


async def main(how: str, directory: Path) -> None:
    """Run each piece twice, the second time between marks."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    marks, clock = Marks(how), FakeClock()
    async with AsyncExitStack() as stack:

        async def spool(name: str) -> Spool:
            made = Spool(directory / name, max_bytes=1 << 30, clock=clock)
            return await stack.enter_async_context(made)

        ledger = await stack.enter_async_context(
            FileLedger(directory / "ledger", clock=clock, max_bytes=1 << 26)
        )
        groups = stack.enter_context(ExitStack())
        webhook = await receiving(await spool("webhook"))
        pieces = {
            "sample": await sampling(groups),
            "puts": putting(await spool("puts")),
            "webhook": webhook,
            "object": sealing(),
            "delivery": await delivering(await spool("delivery"), ledger),
            "worse_webhook": wasting(webhook),
        }
        for name, work in pieces.items():
            await work()
            gc.collect()
            gc.disable()
            with marks.around(name):
                produced = await work()
            gc.enable()
            marks.note(name, produced)
    sys.stdout.write(json.dumps(marks.found) + "\n")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
