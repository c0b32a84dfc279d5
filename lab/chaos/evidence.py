"""The evidence of a run: plain values, so that tests can run the oracle on altered ones."""

import json
import subprocess
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.chaos.aws import Stored
from lab.chaos.daemon import Daemon, Figures
from lab.chaos.facts import Fact
from lab.chaos.fault_injection import SystemUnderTest
from lab.chaos.lost import START
from lab.chaos.outages import REPORTED, UNREPORTED, Outage, last_word
from lab.chaos.target import Incarnation
from lab.real.scraper import PROGRAM, clean_environ

ALERT = "byoc.alert.v1"


@dataclass
class Evidence:
    """The input of the oracle."""

    objects: dict[str, bytes]  # S3 key -> bytes, of all incarnations of LocalStack
    writes: Counter[tuple[int, str]]  # (incarnation, S3 key) -> how often it was written
    before: list[dict[str, bytes]]  # of each incarnation that a kill ended: S3 key -> bytes
    incarnations: list[Incarnation]  # of the metered group, oldest first, by the kernel
    states: list[dict[str, Any]]  # bodies of the queue, as they came
    reported: list[dict[str, Any]]  # `state.published` in the log, written after the commit
    offered: set[Fact]  # that reached the forwarder
    accepted: set[Fact]  # and were answered with 2xx
    events: list[dict[str, Any]]  # of the control plane, each source and id once, as they came
    ledger: list[dict[str, Any]]  # every send that the ledgers announce
    ledger_verdict: str  # "" = whole
    ends: dict[str, list[int]]  # process -> exit codes
    last_ends: dict[str, int]  # process -> exit code of the SIGTERM at the end
    backlogs: dict[str, int]  # daemon -> events left at the end
    dead: set[tuple[str, str]]  # (daemon, id) of dead letters that were sent again
    logged_dead: set[str]  # ids that the logs call dead letters
    dead_left: int  # after the last of them was sent again
    defects: list[str]  # `daemon.task_failed` and `sink.unexpected_error` of all logs
    figures: dict[str, tuple[Figures, Figures]]  # process -> before the first fault, at the end
    at_risk: dict[str, bytes] = field(default_factory=dict)  # id -> body, in a damaged spool
    damaged: list[str] = field(default_factory=list)
    disk_troubles: bool = False
    tight: bool = False  # small spools
    turned_away: int = 0  # notifications that the forwarder answered with 503
    outages: list[Outage] = field(default_factory=list)  # of ClickHouse
    last_word: str = ""  # of the exporter, when all was well again
    changes: list[dict[str, Any]] = field(default_factory=list)  # its log: `lab.chaos.lost`


@dataclass(frozen=True)
class Settled:
    """Observations after recovery, before the end."""

    dead_left: int
    last_word: str


def settled(system: SystemUnderTest) -> Settled:
    left = (one["backlog"]["dead_letters"] for daemon in system.daemons for one in _status(daemon))
    return Settled(sum(left), last_word(system.exporter))


def _status(daemon: Daemon) -> Iterable[dict[str, Any]]:
    return daemon.status().values()


def collected(
    system: SystemUnderTest,
    figures: dict[str, tuple[Figures, Figures]],
    last_ends: dict[str, int],
    seen: Settled,
) -> Evidence:
    """Collect the evidence after everything has ended."""
    environment, daemons = system.environment, system.daemons
    state_dir = str(system.state_dir)
    stored = [
        *environment.aws.ended,
        Stored("", environment.bucket.objects(), environment.bucket.writes()),
    ]
    stops = [one for daemon in daemons for one in daemon.logged("daemon.stopped")]
    shown = _ledger("show", state_dir, "--json")
    assert shown.returncode == 0, shown.stderr
    verdict = _ledger("verify", state_dir)
    return Evidence(
        objects={key: body for one in stored for key, body in one.objects.items()},
        writes=Counter(
            {(n, key): many for n, one in enumerate(stored) for key, many in one.writes.items()}
        ),
        before=[one.objects for one in environment.aws.ended],
        incarnations=[*system.target.incarnations, system.target.incarnation()],
        states=list(environment.queue.got),
        reported=_logged(daemons, "state.published"),
        offered=environment.notified.offered,
        accepted=environment.notified.accepted,
        events=list(environment.receiver.events.values()),
        ledger=[json.loads(line) for line in shown.stdout.splitlines()],
        ledger_verdict="" if verdict.returncode == 0 else verdict.stdout + verdict.stderr,
        ends={"+".join(one.names): one.ends for one in daemons},
        last_ends=last_ends,
        backlogs={one["daemon"]: one["backlog_events"] for one in stops},
        dead=system.dead,
        logged_dead={one["id"] for one in _logged(daemons, "message.dead_lettered")},
        dead_left=seen.dead_left,
        defects=[
            json.dumps(one)
            for one in _logged(daemons, "daemon.task_failed", "sink.unexpected_error")
        ],
        figures=figures,
        at_risk=system.at_risk,
        damaged=system.damaged,
        disk_troubles=system.disk.touched > 0,
        turned_away=environment.notified.turned_away,
        outages=system.outages,
        last_word=seen.last_word,
        changes=system.exporter.logged(START, REPORTED, UNREPORTED),
    )


def _logged(daemons: Sequence[Daemon], *names: str) -> list[dict[str, Any]]:
    return [line for daemon in daemons for name in names for line in daemon.logged(name)]


def _ledger(command: str, state_dir: str, *options: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [str(PROGRAM), "ledger", command, *options, state_dir],
        capture_output=True,
        text=True,
        env=clean_environ({}),
        timeout=120,
        check=False,
    )


def written(objects: dict[str, bytes], place: Path) -> Path:
    """Write objects as the directory sink lays them out, for `verify`."""
    for key, body in objects.items():
        (place / key).parent.mkdir(parents=True, exist_ok=True)
        (place / key).write_bytes(body)
    return place
