"""Three daemons, and system calls of theirs that fail for a while: each fault has its effect.

strace attaches to the process and lets the calls fail that a table names, then lets go; or a tracer
of our own does, and makes writes short, which strace cannot. All the while a container burns CPU, a
replica of ClickHouse changes its state and alerts come in. In the end the oracles: the kernel's own
counter, the queue's order, the control plane, `ledger verify`.
"""

import asyncio
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import aiohttp

from lab.real.burner import burning
from lab.real.counters import settled
from lab.real.parts.kernel import ControlGroup
from lab.real.syscalls.daemons import (
    DAEMONS,
    Daemons,
    assert_alerts,
    assert_billed,
    ledger_verifies,
    running_daemons,
)
from lab.real.syscalls.strace import breaking, injected, shortening

Effect = Literal[
    "not ready",  # /readyz 503 and webhook 503: the sender keeps it; billing's windows grow
    "held: ledger",  # taken and kept; nothing leaves that the ledger cannot announce
    "retry",  # taken; what fails is tried again
    "any",  # whether anything fails depends on the reads of that moment
]


class Fault(NamedTuple):
    """A failing system call, the files it fails on (none: everywhere), and the expected result."""

    calls: Sequence[str]
    files: Sequence[str]
    effect: Effect


SPOOL = ("spool.db", "spool.db-wal")
LEDGER = ("ledger/ledger-000001.jsonl",)
FAULTS: dict[str, Fault] = {
    "ENOSPC, spool": Fault(
        ["pwrite64:error=ENOSPC", "fallocate:error=ENOSPC"], (*SPOOL, "reserve"), "not ready"
    ),
    "EIO on write, spool": Fault(["pwrite64:error=EIO"], SPOOL, "not ready"),
    "EIO on sync, spool": Fault(["fdatasync:error=EIO"], SPOOL, "not ready"),
    "EROFS, spool": Fault(
        ["pwrite64:error=EROFS", "openat:error=EROFS"], (*SPOOL, "reserve", "spool.db-shm"),
        "not ready",
    ),
    "EMFILE, spool after EIO": Fault(
        ["fdatasync:error=EIO", "openat:error=EMFILE"], SPOOL, "not ready"
    ),
    "EINTR on every second write and sync, spool": Fault(
        ["pwrite64:error=EINTR:when=1+2", "fdatasync:error=EINTR:when=2+2"], SPOOL, "retry"
    ),
    "EIO on read, spool": Fault(
        ["pread64:error=EIO", "read:error=EIO", "fdatasync:error=EIO:when=1"], SPOOL, "any"
    ),
    "ENOSPC, ledger": Fault(["write:error=ENOSPC"], LEDGER, "held: ledger"),
    "EIO on sync, ledger": Fault(["fdatasync:error=EIO"], LEDGER, "held: ledger"),
    "EROFS, ledger": Fault(["write:error=EROFS", "openat:error=EROFS"], LEDGER, "held: ledger"),
    "EMFILE, sockets": Fault(["socket:error=EMFILE", "sendto:error=EPIPE:when=1..9"], (), "retry"),
    "reset and broken pipe": Fault(
        ["sendto:error=EPIPE:when=2+3", "recvfrom:error=ECONNRESET:when=3+4"], (), "retry"
    ),
    "half of each write, spool": Fault(["pwrite64:short=half"], SPOOL, "retry"),
    "no byte of each write, spool": Fault(["pwrite64:short=none"], SPOOL, "not ready"),
    "half of each write, ledger": Fault(["write:short=half"], LEDGER, "retry"),
    "no byte of each write, ledger": Fault(["write:short=none"], LEDGER, "held: ledger"),
    "half of each send, sockets": Fault(["sendto:short=half"], (), "retry"),
    "no byte of every second send, sockets": Fault(["sendto:short=none:when=1+2"], (), "retry"),
}  # fmt: skip


async def test_every_fault_has_its_effect_and_nothing_is_lost_or_doubled(
    tmp_path: Path, cgroup_v1: ControlGroup
) -> None:
    async with running_daemons(tmp_path, f"cgroup:{cgroup_v1['cpuacct']}") as daemons:
        with burning("pulse", cgroup_v1.command([])) as burner:
            burner.pulse()
            for number, (name, fault) in enumerate(FAULTS.items()):
                await met(daemons, fault, f"alert-{number}", tmp_path / f"strace-{number}")
                print(f"{injected(tmp_path / f'strace-{number}'):6} {name}: {fault.effect}")
                await recovered(daemons, f"later-{number}")
        truth = settled(cgroup_v1)
        await daemons.until(daemons.drained)
        assert await daemons.stop() == 0
        assert "daemon.task_failed" not in daemons.log.read_text()
        assert_alerts(daemons)
        assert_states(daemons)
        assert_billed(daemons, truth)
        ledger_verifies(daemons.state)


async def met(daemons: Daemons, fault: Fault, alert: str, log: Path) -> None:
    """Let it happen until its effect is seen."""
    directories = [daemons.state / daemon for daemon in DAEMONS]
    files = [place / name for place in directories for name in fault.files]
    attach = shortening if ":short=" in fault.calls[0] else breaking
    attached = attach(daemons.process.pid, log, fault.calls, *files)
    await asyncio.to_thread(attached.__enter__)
    try:
        daemons.toggle_replica()
        await EXPECT[fault.effect](daemons, alert)
        await daemons.until(lambda: broke(log, *fault.calls))
    finally:
        await asyncio.to_thread(attached.__exit__, None, None, None)
    assert (await daemons.page("healthz"))[0] == 200


async def not_ready(daemons: Daemons, alert: str) -> None:
    names = (f"{alert}-{n}" for n in itertools.count())

    async def refused() -> bool:
        return await daemons.post(next(names)) == 503

    await daemons.until(refused)
    await daemons.until(daemons.unready)


async def held(daemons: Daemons, alert: str) -> None:
    assert await daemons.post(alert) == 200

    async def by_ledger() -> bool:
        return await daemons.reason("alert-forwarder") == "ledger"

    await daemons.until(by_ledger)
    assert alert not in {one.labels["alertname"] for one in daemons.plane.alerts}


async def retried(daemons: Daemons, alert: str) -> None:
    async def taken() -> bool:
        try:
            return await daemons.post(alert) == 200
        except (OSError, aiohttp.ClientError):  # our own connection was cut
            return False

    await daemons.until(taken)


async def whatever(daemons: Daemons, alert: str) -> None:
    assert await daemons.post(alert) in {200, 503}


EXPECT = {"not ready": not_ready, "held: ledger": held, "retry": retried, "any": whatever}


async def broke(log: Path, *calls: str) -> bool:
    """Return whether the first of them has failed, or for a read either of the two."""
    names = {call.partition(":")[0] for call in calls}
    wanted = names & {"read", "pread64"} or {calls[0].partition(":")[0]}
    return any(injected(log, f"{name}(") for name in wanted)


async def recovered(daemons: Daemons, alert: str) -> None:
    """Wait until it works as before, and the server's last transition has been reported."""
    await daemons.until(daemons.ready)
    await retried(daemons, alert)
    turn = daemons.clickhouse.server.rows["system.metrics.ReadonlyReplica"] == "1"

    async def is_reported() -> bool:
        last = [one for one in daemons.state_messages() if one.kind == "transition"][-1:]
        return bool(last) and bool(last[0].reasons) == turn

    await daemons.until(is_reported)


def assert_states(daemons: Daemons) -> None:
    turns = [
        one
        for one in daemons.state_messages()
        if one.kind == "transition" and one.state != "stopping"
    ]
    print(f"{len(turns)} transitions reported")
    assert [one.transition for one in turns] == list(range(1, len(turns) + 1))
    readonly = [bool(one.reasons) for one in turns[-len(FAULTS) :]]
    assert readonly == [number % 2 == 0 for number in range(len(FAULTS))]
    assert turns[-1].lost_transitions == 0
