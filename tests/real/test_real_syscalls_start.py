"""System calls that fail while the daemons start: each has its effect, and a full spool survives.

The daemons are killed with something in every spool. Then they are started under strace, which lets
calls on spool or ledger fail from the first one on; again and again, on what the start before left.
Either the process ends at once with exit code 2 and a message that says why, as a kubelet shows it,
or it comes up and is well as soon as the calls are. In the end all of it has arrived, once.
"""

import asyncio
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

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
from lab.real.syscalls.strace import breaking, injected, starting

Effect = Literal[
    "exit 2",  # at once, with the directory and the trouble in one line
    "held: ledger",  # ready and taking; nothing leaves before it can be announced; then it does
]


class Fault(NamedTuple):
    """The failing call, the files of each daemon's directory, the message, and the effect."""

    calls: Sequence[str]
    files: Sequence[str]
    effect: Effect
    said: str


SPOOL = ("spool.db", "spool.db-wal", "spool.db-shm", "reserve")
LEDGER = ("ledger/ledger-000001.jsonl", "ledger", "ledger/lock")
FIRST = "when=1..2"  # so many calls fail, and then none
OPENS = "when=1..6"  # the files are also opened to be read: those errors alone stop nothing
FAULTS: dict[str, Fault] = {
    "ENOSPC on writes, spool": Fault(
        ["pwrite64:error=ENOSPC", "fallocate:error=ENOSPC"], SPOOL, "exit 2", "No space left"
    ),
    "EIO on writes, spool": Fault(["pwrite64:error=EIO"], SPOOL, "exit 2", "Input/output"),
    "EIO on syncs, spool": Fault(["fdatasync:error=EIO"], SPOOL, "exit 2", "Input/output"),
    "EIO on reads, spool": Fault(
        ["pread64:error=EIO", "read:error=EIO"], SPOOL, "exit 2", "Input/output"
    ),
    "EROFS, spool": Fault(
        ["openat:error=EROFS", "pwrite64:error=EROFS"], (*SPOOL, "lock"), "exit 2", "Read-only"
    ),
    "EACCES, spool": Fault(["openat:error=EACCES"], ("spool.db",), "exit 2", "Permission denied"),
    "EMFILE, spool": Fault(["openat:error=EMFILE"], SPOOL, "exit 2", "Too many open files"),
    "EACCES, lock": Fault(["openat:error=EACCES"], ("lock",), "exit 2", "Permission denied"),
    "ENOSPC on the first writes, ledger": Fault(
        [f"write:error=ENOSPC:{FIRST}"], LEDGER, "held: ledger", "No space left"
    ),
    "EIO on the first syncs, ledger": Fault(
        [f"fdatasync:error=EIO:{FIRST}"], LEDGER, "held: ledger", "Input/output"
    ),
    "EROFS when it is first opened, ledger": Fault(
        [f"openat:error=EROFS:{OPENS}"], LEDGER, "held: ledger", "Read-only"
    ),
    "EMFILE when it is first opened, ledger": Fault(
        [f"openat:error=EMFILE:{OPENS}"], LEDGER, "held: ledger", "Too many open files"
    ),
    "EACCES when it is first opened, ledger": Fault(
        [f"openat:error=EACCES:{OPENS}"], LEDGER, "held: ledger", "Permission denied"
    ),
}  # fmt: skip


async def test_every_fault_of_a_start_has_its_effect_and_a_full_spool_survives(
    tmp_path: Path, cgroup_v1: ControlGroup
) -> None:
    async with running_daemons(tmp_path, f"cgroup:{cgroup_v1['cpuacct']}") as daemons:
        with burning("pulse", cgroup_v1.command([])) as burner:
            burner.pulse()
            await killed_with_backlog(daemons, tmp_path / "held")
            for number, (name, fault) in enumerate(FAULTS.items()):
                log = tmp_path / f"start-{number}"
                await started(daemons, fault, log, DAEMONS[number % 3])
                print(f"{injected(log):6} {name}: {fault.effect}")
        truth = settled(cgroup_v1)
        await daemons.start()
        await daemons.until(daemons.drained)
        assert await daemons.stop() == 0
        assert_alerts(daemons)
        turns = [one.transition for one in daemons.state_messages() if one.kind == "transition"]
        assert turns == list(range(1, len(turns) + 1))
        assert_billed(daemons, truth)
        ledger_verifies(daemons.state)
        assert list(daemons.state.rglob("*.corrupt-*")) == []


async def killed_with_backlog(daemons: Daemons, log: Path) -> None:
    """Let nothing leave until every spool holds something, then kill."""
    files = [daemons.state / daemon / LEDGER[0] for daemon in DAEMONS]
    attached = breaking(daemons.process.pid, log, ["write:error=ENOSPC"], *files)
    await asyncio.to_thread(attached.__enter__)
    try:
        daemons.toggle_replica()
        assert await daemons.post(log.name) == 200

        async def all_hold() -> bool:
            return {await daemons.reason(daemon) for daemon in DAEMONS} == {"ledger"}

        await daemons.until(all_hold)
        daemons.process.kill()
        await daemons.process.wait()
    finally:
        await asyncio.to_thread(attached.__exit__, None, None, None)


async def started(daemons: Daemons, fault: Fault, log: Path, daemon: str) -> None:
    """Start one daemon under the fault and see its effect."""
    paths = [daemons.state / daemon / name for name in fault.files]
    await daemons.launch(*starting(log, fault.calls, *paths), daemons=[daemon])
    if fault.effect == "exit 2":
        assert await asyncio.wait_for(daemons.process.wait(), 60) == 2, daemons.log.read_text()
    else:
        await daemons.until(daemons.ready)
        await daemons.until(daemons.drained)
        daemons.process.kill()
        await daemons.process.wait()
        assert "ledger.write_failed" in daemons.log.read_text()
    assert fault.said in daemons.log.read_text()
    assert "spool.corrupted" not in daemons.log.read_text()
    assert injected(log)


def test_any_call_of_an_opening_may_fail_in_any_way_and_nothing_is_lost(tmp_path: Path) -> None:
    """Here each twenty-ninth of them; `python -m lab.real.syscalls.sweep` does them all."""
    command = [sys.executable, "-m", "lab.real.syscalls.sweep", str(tmp_path), "--every", "29"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=240)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
