"""Run all three daemons in one process under a steady load, and sample their resources.

`python -m lab.chaos --soak --hours 1` writes build/soak.json and build/soak.svg;
`python -m lab.chaos.soak SAMPLES.jsonl DIRECTORY` writes the two from existing samples.
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lab.chaos.daemon import Daemon
from lab.chaos.environment import Environment, settings, start_environment
from lab.chaos.load import Alerts
from lab.chaos.oracle import ALERTS, BILLING, STATE
from lab.chaos.plot import plot
from lab.chaos.slopes import Slope, slopes
from lab.real.burner import burning
from lab.real.scraper import eventually, passed

NAMES = (BILLING, STATE, ALERTS)
SAMPLE_SECONDS = 5.0
ALERT_SECONDS = 5.0
PACE = {
    "BYOC_BILLING_SAMPLE_SECONDS": "1",
    "BYOC_BILLING_WINDOW_SECONDS": "60",
    "BYOC_BILLING_SEAL_SECONDS": "60",
    "BYOC_STATE_POLL_SECONDS": "5",
    "BYOC_STATE_HEARTBEAT_SECONDS": "15",
    "BYOC_ALERTS_HEARTBEAT_SECONDS": "15",
    "BYOC_SHUTDOWN_GRACE_SECONDS": "30",
}


def soak(place: Path, out: Path, seconds: float) -> int:
    """Run that long; write samples, results and plot into `out`. Return the exit code."""
    out.mkdir(parents=True, exist_ok=True)
    samples_file = out / "soak.jsonl"
    with start_environment(place) as of, burning("soak", of.group.command([])) as burner:
        daemon = Daemon(NAMES, place / "logs", settings(of, place / "state") | PACE)
        daemon.start()
        try:
            eventually(daemon.healthy)
            burner.pulse()
            _sampled(of, daemon, samples_file, seconds)
            burner.rest()
            exit_code = daemon.stop()
        finally:
            daemon.kill()
        wrong = [str(finding) for finding in of.bucket.verified().findings]
    wrong += [f"exit code {exit_code}"] if exit_code else []
    wrong += [f"ended {len(daemon.ends)} times"] if daemon.ends != [exit_code] else []
    return report(read(samples_file), out, wrong)


def _sampled(of: Environment, daemon: Daemon, file: Path, seconds: float) -> None:
    alerts = Alerts(of.alertmanager, ALERT_SECONDS)
    began = time.monotonic()
    with alerts.raising(), file.open("w") as out:
        number = 0
        while time.monotonic() < began + seconds:
            out.write(json.dumps(sample(daemon, of, alerts, began)) + "\n")
            out.flush()
            number += 1
            passed(max(0.0, began + number * SAMPLE_SECONDS - time.monotonic()))


def sample(daemon: Daemon, of: Environment, alerts: Alerts, began: float) -> dict[str, Any]:
    """Return the current figures."""
    figures, status = daemon.figures(), daemon.status()
    assert figures is not None, "it has ended"
    backlogs = [one["backlog"] for one in status.values()]
    spools = Path(daemon.settings["BYOC_STATE_DIR"])
    return {
        "seconds": round(time.monotonic() - began, 2),
        "pid": figures.pid,
        "rss_bytes": figures.rss_bytes,
        "fds": figures.fds,
        "threads": figures.threads,
        "tasks": figures.tasks,
        "cpu_seconds": round(figures.cpu_seconds, 2),
        "backlog_events": sum(one["events"] for one in backlogs),
        "backlog_bytes": sum(one["bytes"] for one in backlogs),
        "disk_bytes": sum(path.stat().st_size for path in spools.rglob("*") if path.is_file()),
        "dead_letters": sum(one["dead_letters"] for one in backlogs),
        "alerts_raised": alerts.raised,
        "events_delivered": len(of.receiver.events),
        "states_delivered": len(of.queue.got),
    }


def read(file: Path) -> list[dict[str, Any]]:
    """Return the samples of a file."""
    return [json.loads(line) for line in file.read_text().splitlines()]


def report(samples: Sequence[dict[str, Any]], out: Path, wrong: Sequence[str] = ()) -> int:
    """Write soak.json and soak.svg, and print a table. Return 1 if a bound does not hold."""
    found, last = slopes(samples), samples[-1]
    processes = len({one["pid"] for one in samples})
    bad = [*wrong, *(f"{one.bound.figure} grows" for one in found if not one.holds)]
    bad += [f"{processes} processes, not one"] if processes != 1 else []
    bad += [f"{last['dead_letters']} dead letters"] if last["dead_letters"] else []
    rows = [_row(one) for one in found]
    verdict = {"seconds": last["seconds"], "last": last, "slopes": rows, "wrong": bad}
    (out / "soak.json").write_text(json.dumps(verdict, indent=1) + "\n")
    title = f"Three daemons in one process, {last['seconds'] / 60:.0f} minutes of steady load"
    (out / "soak.svg").write_text(plot(found, title))
    for row in rows:
        print("{name:<18} {value:+9.3f} an hour   {target:>10}   {holds}".format(**row))
    print(f"soak: {'; '.join(bad) or 'ok'} ({last['seconds']:.0f} s, {len(samples)} samples)")
    return 1 if bad else 0


def _row(slope: Slope) -> dict[str, Any]:
    bound = slope.bound
    target = f"<= {bound.an_hour:g}"
    return {
        "name": bound.figure,
        "value": round(slope.an_hour, 3),
        "unit": f"{bound.unit} an hour".strip(),
        "target": target,
        "holds": slope.holds,
    }


if __name__ == "__main__":
    sys.exit(report(read(Path(sys.argv[1])), Path(sys.argv[2])))
