"""A broker with a real store and ledger on disk, and ClickHouse servers that follow a script."""

import asyncio
import os
import shutil
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from byoc_agents.access.authority import Authority, create_authority, uri_of_grant
from byoc_agents.access.broker import Broker, BrokerLimits, BrokerParts
from byoc_agents.access.clickhouse_admin import CollectedLogs, GrantAccount
from byoc_agents.access.control_facts import CONFLICT, KILL_SWITCH, POLICY_CHANGED
from byoc_agents.access.control_files import (
    KillSwitch,
    LocalReading,
    PolicySource,
    look_up_switch,
)
from byoc_agents.access.documents import ENDPOINTS
from byoc_agents.access.errors import ServerError, TailnetError
from byoc_agents.access.grants import GrantStore
from byoc_agents.access.machine import Grant, State
from byoc_agents.access.orders import Approve, Order, OrderFile, OrderFolder, Submit
from byoc_agents.access.tailnet import Tailnet
from byoc_agents.app.files import Version
from byoc_agents.durable.model import WriteBatch
from byoc_agents.durable.spool import Spool
from byoc_agents.errors import LedgerError, SpoolUnavailableError
from byoc_agents.ledger.format import FactLine, LedgerLine, decode
from byoc_agents.ledger.segments import Segments
from byoc_agents.ledger.verify import verify
from byoc_agents.ledger.writer import FileLedger
from lab.fakes.core import START_MS, FakeClock
from tests.unit.access.access_documents import GRANT_ID, policy_text, request_envelope
from tests.unit.ledger.ledger_fakes import QuickDisk

T = TypeVar("T")
DEPLOYMENTS = {name: f"db/tailnet-{name}" for name in ENDPOINTS}
CONTROL_FACTS = (KILL_SWITCH, POLICY_CHANGED, CONFLICT)


class Harness:
    """The clock, the folders and the servers: they survive a broker."""

    def __init__(self, directory: Path, replicas: Sequence[str] = ("r0", "r1")) -> None:
        self.directory = directory
        self.clock = FakeClock()
        self.steps: list[str] = []  # of servers and ledger, in order
        self.servers = {name: ScriptedServer(name, self) for name in replicas}
        self.limits = BrokerLimits(record_seconds=0.5)
        self.organization_id, self.service_id = "org-1", "svc-1"
        self.on_step: Callable[[str], None] = lambda _: None
        self.ledger_error = ""
        self.store_error = ""
        self.spool_bytes = 1 << 24
        self.contact_boot_ns: int | None = 0  # the last response of the control plane; None: files
        self.tailnet: Tailnet | None = None
        self.scaler: ScriptedScaler
        self.mounted = ""  # the path of the mounted switch
        self.responds = threading.Event()  # cleared: the volume of the broker's directory hangs
        self.responds.set()
        self.accepts_files = threading.Event()  # cleared: writing a file there hangs
        self.accepts_files.set()
        self.state.mkdir(parents=True)
        (directory / "ca").mkdir()
        create_authority(directory / "ca", "svc-1", START_MS - 86_400_000)
        self.write_policy()
        self.broker: Broker

    def use_tailnet(self) -> "ScriptedScaler":
        """Give the next broker a tailnet with all three endpoints, and return its Deployments."""
        self.scaler = ScriptedScaler(DEPLOYMENTS)
        self.scaler.on_step = self.record_step
        self.connect_tailnet()
        return self.scaler

    def connect_tailnet(self) -> None:
        """Forget what a broker knew of the Deployments, as the next one does."""
        self.tailnet = Tailnet(DEPLOYMENTS, self.scaler, self.clock)

    async def passes_with_tailnet(self, seconds: float, count: int = 1) -> None:
        """Make passes, and scale between them, as the broker's other task does."""
        assert self.tailnet is not None
        for _ in range(count):
            await self.passes(seconds)
            await self.tailnet.reconcile()

    @property
    def state(self) -> Path:
        return self.directory / "state"

    @property
    def policy_file(self) -> Path:
        return self.directory / "policy.yaml"

    @property
    def kill_file(self) -> Path:
        return self.state / "kill-switch"

    def write_policy(self, **changes: Any) -> None:
        self.policy_file.write_text(policy_text(**changes))

    def record_step(self, step: str) -> None:
        self.steps.append(step)
        self.on_step(step)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Broker]:
        """Start a broker over the state on disk."""
        spool = Spool(self.state, max_bytes=self.spool_bytes, clock=self.clock)
        disk = QuickDisk()
        ledger = FileLedger(
            self.state / "ledger", clock=self.clock, max_bytes=1 << 22, disk=disk, facts=True
        )
        async with spool, ledger:
            self.spool = spool
            parts = BrokerParts(
                organization_id="org-1",
                service_id="svc-1",
                directory=self.state,
                store=GrantStore(_CheckedSpool(spool, self)),  # type: ignore[arg-type]
                ledger=_CheckedLedger(ledger, self),
                policy=PolicySource(str(self.policy_file)),
                kill_switch=KillSwitch(self.kill_file, self.mounted, self.start_local),
                authority=Authority(self.directory / "ca", "svc-1"),
                admins=list(self.servers.values()),
                orders=_HangingOrders(self),
                clock=self.clock,
                disk=_HangingDisk(self),
                limits=self.limits,
                contact=None if self.contact_boot_ns is None else self._read_contact,
                tailnet=self.tailnet,
            )
            self.broker = Broker(parts)
            yield self.broker

    def start_local(self, path: str, max_bytes: int, known: Version | None) -> LocalReading:
        """Begin to look for the local switch, on a volume that may hang."""

        def look_up(path: Path) -> bytes:
            self.responds.wait()
            return look_up_switch(path)

        return LocalReading(path, max_bytes, known, look_up)

    def hang(self) -> None:
        """Let the volume of the broker's directory hang until `responds` is set."""
        self.responds.clear()
        self.accepts_files.clear()
        self.ledger_error = self.store_error = "hangs"

    def recover(self) -> None:
        self.ledger_error = self.store_error = ""
        self.responds.set()
        self.accepts_files.set()

    def _read_contact(self) -> int:
        assert self.contact_boot_ns is not None
        return self.contact_boot_ns

    @property
    def orders(self) -> OrderFolder:
        return OrderFolder(self.state, QuickDisk())

    async def order(self, order: Order, name: str = "1") -> str:
        """Place an order, run a pass, and return the answer; "" if there is none yet."""
        self.orders.create()
        self.orders.place(name, order)
        await self.broker.run_pass()
        return self.orders.take_answer(name) or ""

    async def open_grant(self, **changes: Any) -> Grant:
        """Submit and approve a request; it is open at the end."""
        answer = await self.order(Submit(envelope=request_envelope(**changes)))
        assert "pending" in answer, answer
        grant_id = answer.partition(":")[0]
        await self.order(Approve(id=grant_id, by="anna"))
        grant = self.grant(grant_id)
        assert grant.state is State.OPEN, grant.reason
        return grant

    def grant(self, grant_id: str = GRANT_ID) -> Grant:
        return next(grant for grant in self.broker.grants if grant.id == grant_id)

    async def stored(self, grant_id: str = GRANT_ID) -> Grant:
        return next(g for g in await GrantStore(self.spool).all() if g.id == grant_id)

    async def passes(self, seconds: float, count: int = 1) -> None:
        for _ in range(count):
            await self.clock.advance(seconds)
            await self.broker.run_pass()

    def facts(self) -> list[FactLine]:
        return [line for line in self.lines() if isinstance(line, FactLine)]

    def lines(self) -> list[LedgerLine]:
        segments = Segments(self.state / "ledger")
        paths = [segments.path(number) for number in segments.numbers()]
        found = [decode(raw) for path in paths for raw in path.read_bytes().splitlines()]
        return [line for line in found if line is not None]

    def named(self) -> list[str]:
        """Return the facts about grants, in order."""
        return [fact.fact for fact in self.facts() if fact.fact not in CONTROL_FACTS]

    def controls(self) -> list[FactLine]:
        """Return the facts about the kill switch, the policy and conflicts, in order."""
        return [fact for fact in self.facts() if fact.fact in CONTROL_FACTS]

    def ledger_problems(self) -> list[str]:
        return list(map(str, verify(self.state / "ledger").problems))

    async def events(self) -> list[dict[str, Any]]:
        found = await self.spool.peek(1000, 1 << 24)
        return [msgspec.json.decode(message.body)["data"] for message in found]

    @property
    def users(self) -> dict[str, list[str]]:
        return {name: sorted(server.users) for name, server in self.servers.items()}

    def lose_state(self) -> None:
        shutil.rmtree(self.state)
        self.state.mkdir()


class ScriptedServer:
    """A ClickHouse server, as the design's sources describe it.

    CREATE USER leaves an existing user unchanged; DROP USER ends new queries and not running ones;
    KILL QUERY ends them a moment later. `broken` maps a method to `before` (no effect) or `after`
    (the effect happens, and the response is lost).
    """

    def __init__(self, name: str, harness: Harness) -> None:
        self.name = name
        self._harness = harness
        self.users: dict[str, GrantAccount] = {}
        self.running: dict[str, list[str]] = {}
        self.problems: list[str] = []
        self.skew_ms = 0
        self.reachable = True
        self.broken: dict[str, str] = {}
        self.stubborn = False  # queries survive a KILL
        self.attempts: list[tuple[str, int]] = []  # method and boot time, seconds
        self.allowed = (True, True)  # of the last check
        self.keeps_users = False  # a DROP USER is answered and has no effect
        self.gap = ""
        self.queries = 3
        self.failed_logins: int | None = 0  # None: the server has no session_log

    def fail_or_do(self, method: str, effect: Callable[[], T]) -> T:
        self.attempts.append((method, self._harness.clock.boot_ns() // 10**9))
        how = "" if self.reachable else "before"
        how = how or self.broken.get(method, "")
        if how == "before":
            raise ServerError(f"{self.name} does not respond")
        result = effect()
        self._harness.record_step(f"{self.name}.{method}")
        if how == "after":
            raise ServerError(f"{self.name}: the response is lost")
        return result

    async def find_problems(self, *, plain_names: bool, allow_open_system: bool) -> Sequence[str]:
        self.allowed = (plain_names, allow_open_system)
        return self.fail_or_do("find_problems", lambda: list(self.problems))

    async def read_clock_ms(self) -> int:
        now_ms = self._harness.clock.wall_ns() // 1_000_000
        return self.fail_or_do("read_clock_ms", lambda: now_ms + self.skew_ms)

    async def create_user(self, account: GrantAccount) -> None:
        self.fail_or_do("create_user", lambda: self.users.setdefault(account.user, account))

    async def find_differences(self, account: GrantAccount) -> Sequence[str]:
        def compare() -> list[str]:
            found = self.users.get(account.user)
            if found is None:
                return ["missing"]
            return [
                field
                for field in GrantAccount.__struct_fields__
                if getattr(found, field) != getattr(account, field)
            ]

        return self.fail_or_do("find_differences", compare)

    async def list_users(self) -> Sequence[str]:
        return self.fail_or_do("list_users", lambda: sorted(self.users))

    async def drop_user(self, user: str) -> None:
        self.fail_or_do(
            "drop_user", lambda: None if self.keeps_users else self.users.pop(user, None)
        )

    async def kill_queries(self, user: str) -> None:
        def kill() -> None:
            if not self.stubborn:
                self.running.pop(user, None)

        self.fail_or_do("kill_queries", kill)

    async def running_queries(self, user: str) -> Sequence[str]:
        return self.fail_or_do("running_queries", lambda: self.running.get(user, []))

    async def collect(self, user: str, since_ms: int) -> CollectedLogs:
        row = {"user": user, "type": "QueryStart", "since_ms": since_ms}
        rows = (msgspec.json.encode({**row, "query": f"SELECT {n}"}) for n in range(self.queries))
        lines = b"".join(line + b"\n" for line in rows)
        counts = {"queries": self.queries}
        counts |= {} if self.failed_logins is None else {"failed_logins": self.failed_logins}
        logs = CollectedLogs(queries=lines, sessions=b"", counts=counts, gap=self.gap)
        return self.fail_or_do("collect", lambda: logs)


class ScriptedScaler:
    """Deployments in memory, with pods that a test may hold back."""

    def __init__(self, deployments: Mapping[str, str]) -> None:
        self.deployments = deployments
        self.replicas = dict.fromkeys(deployments.values(), 0)
        self.pods = dict.fromkeys(deployments.values(), 0)
        self.on_step: Callable[[str], None] = lambda _: None
        self.calls: list[tuple[str, int]] = []
        self.error = ""
        self.held = False  # pods stay as they are
        self.called = asyncio.Event()
        self.gate: asyncio.Event | None = None  # calls wait for it

    async def scale(self, deployment: str, replicas: int) -> int:
        self.calls.append((deployment, replicas))
        self.called.set()
        if self.gate is not None:
            await self.gate.wait()
        if self.error:
            raise TailnetError(self.error)
        before = self.pods[deployment]
        self.replicas[deployment] = replicas
        if not self.held:
            self.pods[deployment] = replicas
        self.on_step(f"scale.{deployment}.{replicas}")
        return before

    @property
    def up(self) -> set[str]:
        return {name for name, one in self.deployments.items() if self.replicas[one]}


class _HangingDisk(QuickDisk):
    """The files of the broker, on a volume that may hang."""

    def __init__(self, harness: Harness) -> None:
        self._harness = harness

    def place(self, content: bytes, path: Path) -> None:
        self._harness.accepts_files.wait()
        super().place(content, path)


class _HangingOrders(OrderFolder):
    """The orders, on a volume that may hang."""

    def __init__(self, harness: Harness) -> None:
        super().__init__(harness.state, QuickDisk())
        self._harness = harness

    def read(self) -> Sequence[OrderFile]:
        self._harness.responds.wait()
        return super().read()


class _CheckedLedger:
    """The ledger; its writes are steps, and fail while the harness says so."""

    def __init__(self, ledger: FileLedger, harness: Harness) -> None:
        self._ledger = ledger
        self._harness = harness

    @property
    def last_error(self) -> str:
        return self._harness.ledger_error if self._harness.ledger_error != "hangs" else ""

    async def fact(self, line: FactLine) -> int:
        if self._harness.ledger_error == "hangs":
            await asyncio.Event().wait()
        if self._harness.ledger_error:
            raise LedgerError(self._harness.ledger_error)
        number = await self._ledger.fact(line)
        self._harness.record_step(f"fact.{line.fact}")
        return number


class _CheckedSpool:
    """The spool; its writes are steps, and fail while the harness says so."""

    def __init__(self, spool: Spool, harness: Harness) -> None:
        self._spool = spool
        self._harness = harness

    def __getattr__(self, name: str) -> Any:
        return getattr(self._spool, name)

    async def commit(self, change: WriteBatch) -> None:
        if self._harness.store_error == "hangs":
            await asyncio.Event().wait()
        if self._harness.store_error:
            raise SpoolUnavailableError(self._harness.store_error)
        await self._spool.commit(change)
        self._harness.record_step("store")


def account_of(grant: Grant, **changes: Any) -> GrantAccount:
    """Return the user that a grant must have on every server."""
    account = GrantAccount(
        grant_id=grant.id,
        certificate_uri=uri_of_grant("svc-1", grant.id),
        role="byoc_access_reader",
        ticket="CS-1234",
        end_ms=grant.end_ms,
    )
    return msgspec.structs.replace(account, **changes)


def touch(path: Path) -> None:
    path.write_bytes(b"")
    os.utime(path)
