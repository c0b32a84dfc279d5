"""All three daemons in one process under a steady load; one line of figures every few seconds."""

import json
import sys
import time
from pathlib import Path
from typing import Any

from tests.chaos.daemon import Daemon
from tests.chaos.load import Alerts
from tests.chaos.world import World, settings, world
from tests.real.burner import burning
from tests.real.scraper import eventually

NAMES = ("billing-scraper", "state-exporter", "alert-forwarder")
SAMPLE_SECONDS = 5.0
ALERT_SECONDS = 5.0
PACE = {
    "BYOC_BILLING_SAMPLE_SECONDS": "1",
    "BYOC_BILLING_WINDOW_SECONDS": "60",
    "BYOC_BILLING_SEAL_SECONDS": "60",
    "BYOC_STATE_POLL_SECONDS": "5",
    "BYOC_STATE_HEARTBEAT_SECONDS": "15",
    "BYOC_STATE_STARTING_SECONDS": "3",
    "BYOC_ALERTS_HEARTBEAT_SECONDS": "15",
    "BYOC_SHUTDOWN_GRACE_SECONDS": "30",
}


def sample(daemon: Daemon, of: World, alerts: Alerts, began: float) -> dict[str, Any]:
    """Return the figures of this moment."""
    figures, status = daemon.figures(), daemon.status()
    assert figures is not None, "it has ended"
    backlogs = [one["backlog"] for one in status.values()]
    spools = daemon.settings["BYOC_STATE_DIR"]
    files = [path.stat().st_size for path in Path(spools).rglob("*") if path.is_file()]
    return {
        "seconds": round(time.monotonic() - began, 2),
        "pid": figures.pid,
        "rss_bytes": figures.rss_bytes,
        "fds": figures.fds,
        "threads": figures.threads,
        "tasks": figures.tasks,
        "cpu_seconds": round(figures.cpu_seconds, 2),
        "backlog_records": sum(one["records"] for one in backlogs),
        "backlog_bytes": sum(one["bytes"] for one in backlogs),
        "disk_bytes": sum(files),
        "dead_letters": sum(one["dead_letters"] for one in backlogs),
        "alerts_raised": alerts.raised,
        "events_delivered": len(of.receiver.events),
        "states_delivered": len(of.queue.got),
    }


def main(place: Path, out: Path, seconds: float) -> int:
    """Run; append samples as JSON lines to `out`."""
    with world(place) as of, burning("soak", of.group.command([])) as burner:
        daemon = Daemon(NAMES, place / "agents", settings(of, place / "state") | PACE)
        alerts = Alerts(of.alertmanager, ALERT_SECONDS)
        daemon.start()
        eventually(daemon.healthy)
        began = time.monotonic()
        burner.pulse()
        with alerts.raising(), out.open("a") as file:
            number = 0
            while time.monotonic() < began + seconds:
                file.write(json.dumps(sample(daemon, of, alerts, began)) + "\n")
                file.flush()
                number += 1
                time.sleep(max(0.0, began + number * SAMPLE_SECONDS - time.monotonic()))
        used = burner.rest()
        exit_code = daemon.stop()
        of.bucket.copy_to(place / "stored")
        verdict = {"exit_code": exit_code, "ends": daemon.ends, "burner_seconds": used}
        verdict["bucket"] = json.loads(__import__("msgspec").json.encode(of.bucket.verified()))
        (place / "verdict.json").write_text(json.dumps(verdict, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])))
