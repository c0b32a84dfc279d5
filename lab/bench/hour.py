"""Measure memory over time: all three in one process under a steady load, first and last."""

import time

from lab.bench import sender
from lab.bench.figures import Row, row
from lab.bench.lab import DAEMONS, Lab, rss_mib

PACE = {  # more than a service does, so that an hour shows what a day would
    "BYOC_BILLING_SAMPLE_SECONDS": "1",
    "BYOC_BILLING_WINDOW_SECONDS": "10",
    "BYOC_BILLING_SEAL_SECONDS": "60",
    "BYOC_STATE_POLL_SECONDS": "1",
    "BYOC_STATE_HEARTBEAT_SECONDS": "10",
}
BEGUN_PART = 0.1  # of the time, after which everything has been done once


def measure(lab: Lab) -> list[Row]:
    """Send an alert a second for `--minutes`."""
    seconds = 60 * lab.minutes
    with lab.daemons(*DAEMONS, **PACE) as running:
        began, first = time.monotonic(), 0.0
        for number in range(int(seconds)):
            sender.send(running.webhook, sender.webhooks(1, number), senders=1)
            if number == int(seconds * BEGUN_PART):
                first = rss_mib(running.probe)
            time.sleep(max(0.0, began + number - time.monotonic()))
        last = rss_mib(running.probe)
    title = f"all three after {lab.minutes:g} minutes of load"
    return [
        row("hour", title, [last], "MiB"),
        row("hour", f"{title}, above {lab.minutes * BEGUN_PART:g} minutes", [last - first], "MiB"),
    ]
