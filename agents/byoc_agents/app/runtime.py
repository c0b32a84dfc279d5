"""The parts that the daemons of one process share: settings, gate, AWS session, clock, metrics."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import msgspec

from byoc_agents import __version__
from byoc_agents.app.clock import Clock
from byoc_agents.app.cloudevents import Agent
from byoc_agents.app.daemon import Daemon, EventSource
from byoc_agents.app.metrics import Metrics
from byoc_agents.app.settings import CoreSettings, Setting
from byoc_agents.clickhouse import ClickHouse
from byoc_agents.delivery.shipper import Shipper
from byoc_agents.delivery.sink import Sink
from byoc_agents.durable.model import WriteBatch
from byoc_agents.durable.spool import Spool
from byoc_agents.egress.destinations import DestinationKind
from byoc_agents.egress.gate import Gate
from byoc_agents.errors import SpoolError
from byoc_agents.ledger import FileLedger
from byoc_agents.ledger.tree import encode_hash
from byoc_agents.ledger.writer import HEAD_KEY

AWS_KINDS = frozenset({DestinationKind.S3, DestinationKind.SQS})  # these need an AWS identity


class ClickHouseSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The ClickHouse server of this pod, for the daemons that query it."""

    url: Annotated[
        str,
        Setting(
            "BYOC_CLICKHOUSE_URL", "http[s]://host:port, or name=url,name=url for several servers"
        ),
    ] = "http://127.0.0.1:8123"
    user: Annotated[str, Setting("BYOC_CLICKHOUSE_USER", "the name of a ClickHouse user")] = (
        "default"
    )
    password: Annotated[
        str, Setting("BYOC_CLICKHOUSE_PASSWORD", "the password of that user", secret=True)
    ] = ""


class Runtime(msgspec.Struct, frozen=True, dict=True):  # `dict`: for cached properties
    """The shared parts from which every daemon is built."""

    core: CoreSettings
    environ: Mapping[str, str]
    gate: Gate
    clock: Clock
    metrics: Metrics
    configuration_sha256: str = "0" * 64  # of the process's settings, as `check-config` prints them
    ledgers: list[FileLedger] = msgspec.field(default_factory=list)  # the open ones

    @cached_property
    def aws(self) -> Any:
        """Return the shared AioSession: each takes 7 MiB, and botocore itself takes 20."""
        from byoc_agents.egress.aws import aws_session  # noqa: PLC0415  memory, needed only here

        return aws_session(self.gate, self.core.region)

    def directory(self, daemon: str) -> Path:
        """Return the directory of a daemon's spool and ledger."""
        return Path(self.core.state_dir) / daemon

    def spool(self, daemon: str) -> Spool:
        """Return the daemon's spool, to be opened with `async with`."""
        return Spool(self.directory(daemon), max_bytes=self.core.spool_max_bytes, clock=self.clock)

    @asynccontextmanager
    async def ledger(
        self, daemon: str, spool: Spool, *, facts: bool = False
    ) -> AsyncIterator[FileLedger]:
        """Open the daemon's ledger, and compare it with the head that the spool stores.

        `facts` as for `FileLedger`.

        The spool's head is written with each delivery, and here once more at the end.
        """
        stored: dict[str, bytes] = {}
        with suppress(SpoolError):  # the daemon meets and reports it as well
            stored = await spool.state(HEAD_KEY)
        ledger = FileLedger(
            self.directory(daemon) / "ledger",
            clock=self.clock,
            max_bytes=self.core.ledger_max_bytes,
            keep_bodies=self.core.ledger_keep_bodies,
            expected=stored.get(HEAD_KEY, b"").decode(errors="replace"),
            facts=facts,
        )
        async with ledger:
            self.ledgers.append(ledger)
            yield ledger
        with suppress(SpoolError):
            await spool.commit(WriteBatch(state=ledger.state()))

    def agent(self, ledger: FileLedger) -> Agent:
        """Return how a daemon's messages describe this process."""
        tree = ledger.tree
        return Agent(
            version=__version__,
            configuration_sha256=self.configuration_sha256,
            ledger_size=tree.size,
            ledger_root=encode_hash(tree.root),
        )

    def record_refusal(self, reason: str, detail: str) -> None:
        """Record a refusal of the gate in all open ledgers. May be called from any thread."""
        for ledger in self.ledgers:
            ledger.record_refusal(reason, detail)

    def clickhouse(self, url: str, settings: ClickHouseSettings) -> ClickHouse:
        """Return a client for one server, through the gate; to be opened with `async with`."""
        return ClickHouse(url, settings.user, settings.password, session=self.gate.session)

    def daemon(  # the parts of one daemon
        self,
        name: str,
        *,
        source: EventSource,
        spool: Spool,
        sink: Sink,
        ledger: FileLedger,
        **more: Any,
    ) -> Daemon:
        """Return the daemon: its source fills the spool, a shipper empties it into the sink.

        `more` are other fields of `Daemon`.
        """
        shipper = Shipper(
            name,
            spool=spool,
            sink=sink,
            ledger=ledger,
            clock=self.clock,
            metrics=self.metrics,
            unknown_batch=ledger.unknown_batch,
            ledger_state=ledger.state,
        )
        by_aws = any(d.daemon == name and d.kind in AWS_KINDS for d in self.gate.destinations)
        identity = self.identity if by_aws else dict
        return Daemon(
            name, source, spool, shipper, self.clock, self.metrics, ledger.status, identity, **more
        )

    def identity(self) -> dict[str, str]:
        """Return the name of the AWS identity's provider for /status, never a key."""
        from byoc_agents.egress.aws import provider_name  # noqa: PLC0415  as above

        return {"aws_identity": provider_name(self.aws) or "none yet"}
