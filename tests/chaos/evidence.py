"""What a run leaves behind: plain values, so that the oracle can be tried on altered ones."""

import json
import subprocess
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agents.core.events import parse_rfc3339
from agents.doubles.http import Request
from tests.chaos.acts import Stage
from tests.chaos.daemon import Daemon, Figures
from tests.chaos.target import Life
from tests.real.scraper import PROGRAM, clean_environ

ALERT = "byoc.alert.v1"


@dataclass(frozen=True)
class Fact:
    """One thing that Alertmanager told and the forwarder answered with 2xx."""

    fingerprint: str
    starts_at_ms: int
    status: str


def fact(fingerprint: str, starts_at: str, status: str) -> Fact:
    """Return it with its time as a number: the texts of one time differ."""
    return Fact(fingerprint, parse_rfc3339(starts_at), status)


@dataclass
class Evidence:
    """All that the oracle looks at."""

    objects: dict[str, bytes]  # S3 key -> bytes
    writes: Counter[str]  # S3 key -> how often it was written
    lives: list[Life]  # of the metered group, oldest first, by the kernel
    states: list[dict[str, Any]]  # bodies of the queue, as they came
    told: list[dict[str, Any]]  # `state.told` of the exporter's log: written after the commit
    offered: set[Fact]  # that reached the forwarder
    accepted: set[Fact]  # and were answered with 2xx
    events: list[dict[str, Any]]  # of the control plane, each source and id once, as they came
    ledger: list[dict[str, Any]]  # every send that the ledgers announce
    ledger_verdict: str  # "" = whole
    ends: dict[str, list[int]]  # process -> exit codes
    last_ends: dict[str, int]  # process -> exit code of the SIGTERM at the end
    backlogs: dict[str, int]  # daemon -> records left at the end
    dead_letters: int
    defects: list[str]  # `agent.defect` and `ship.defect` of all logs
    figures: dict[str, tuple[Figures, Figures]]  # process -> before the first fault, at the end
    at_risk: dict[str, bytes] = field(default_factory=dict)  # id -> body, in a damaged spool
    damaged: list[str] = field(default_factory=list)
    disk_troubles: bool = False


def accepted(stage: Stage) -> set[Fact]:
    """Return what the forwarder took, whether or not Alertmanager heard of it."""
    taken = stage.world.links["webhook"].taken
    return _facts(request for request, reply in taken if 200 <= reply.status < 300)


def _facts(requests: Iterable[Request]) -> set[Fact]:
    alerts = [one for request in requests for one in json.loads(request.body)["alerts"]]
    return {fact(one["fingerprint"], one["startsAt"], one["status"]) for one in alerts}


def collected(
    stage: Stage,
    figures: dict[str, tuple[Figures, Figures]],
    last_ends: dict[str, int],
    troubles: bool,
) -> Evidence:
    """Gather it, after everything has ended."""
    world, daemons = stage.world, stage.daemons
    state_dir = daemons[0].settings["BYOC_STATE_DIR"]
    stops = [one for daemon in daemons for one in daemon.logged("agent.stop")]
    shown = _ledger("show", state_dir, "--json")
    assert shown.returncode == 0, shown.stderr
    verdict = _ledger("verify", state_dir)
    return Evidence(
        objects=world.bucket.objects(),
        writes=world.bucket.writes(),
        lives=[*stage.target.lives, stage.target.life()],
        states=list(world.queue.got),
        told=_logged(daemons, "state.told"),
        offered=_facts(stage.world.links["webhook"].given),
        accepted=accepted(stage),
        events=list(world.receiver.events.values()),
        ledger=[json.loads(line) for line in shown.stdout.splitlines()],
        ledger_verdict="" if verdict.returncode == 0 else verdict.stdout + verdict.stderr,
        ends={"+".join(one.names): one.ends for one in daemons},
        last_ends=last_ends,
        backlogs={one["agent"]: one["backlog_records"] for one in stops},
        dead_letters=len(_logged(daemons, "ship.dead_letter")),
        defects=[json.dumps(one) for one in _logged(daemons, "agent.defect", "ship.defect")],
        figures=figures,
        at_risk=stage.at_risk,
        damaged=stage.damaged,
        disk_troubles=troubles,
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
