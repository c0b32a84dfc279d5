"""Whether nothing is lost: every sequence present, every second accounted for, every ledger sound.

`verify` reads the bucket as the vendor does. The records are also compared here with each other,
without its code.
"""

from collections import defaultdict
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise

from byoc_agents.billing.record import Usage
from lab.cluster import environment
from lab.cluster.cluster import Cluster
from lab.cluster.environment import NAMESPACE, Received
from lab.real.stored import billed, usages

STATE = "/var/lib/byoc-agents"


@dataclass(frozen=True)
class Billing:
    """The records in the bucket."""

    records: list[Usage]
    findings: list[object]  # of `verify`
    core_seconds: Decimal

    @property
    def epochs(self) -> int:
        """How many state directories the records are from."""
        return len({one.epoch for one in self.records})

    @property
    def sources(self) -> set[str]:
        """The counters that were read."""
        return {one.source for one in self.records if one.quality != "gap"}

    @property
    def gaps(self) -> list[Usage]:
        """The records whose usage is unknown."""
        return [one for one in self.records if one.quality == "gap"]


def billing(received: Received) -> Billing:
    """Return records and report. Raises AssertionError if a sequence or a second is missing."""
    records = usages(received.bucket.objects())
    epochs: dict[tuple[str, int], list[Usage]] = defaultdict(list)
    for record in records:
        epochs[record.replica, record.epoch].append(record)
    for name, found in epochs.items():
        assert [one.sequence for one in found] == list(range(len(found))), name
        for earlier, later in pairwise(found):
            assert earlier.charge_period_end == later.charge_period_start, (name, later.sequence)
    report = received.bucket.verified()
    return Billing(records, list(report.findings), billed(report))


def check_ledgers(cluster: Cluster) -> set[str]:
    """Run `ledger verify` in every container of ours; return the daemons that it was clean for."""
    clean = set()
    for pod in environment.chart_pods(cluster):
        spec, name = pod["spec"], pod["metadata"]["name"]
        for container in (*spec.get("initContainers", []), *spec["containers"]):
            if container["name"] in environment.DAEMONS:
                command = ("byoc-agents", "ledger", "verify", "--daemon", container["name"])
                cluster.execute(NAMESPACE, name, container["name"], *command)  # fails on a finding
                clean.add(container["name"])
    return clean


def wait_drained(cluster: Cluster) -> None:
    """Wait until no message waits in any spool."""
    cluster.wait(lambda: not backlog(cluster), "empty spools", NAMESPACE)


def backlog(cluster: Cluster) -> dict[str, int]:
    """Return daemon -> messages in its spool, of those that have any."""
    found = {}
    for pod in environment.chart_pods(cluster):
        for daemon, port in environment.ports(pod).items():
            page = environment.admin_page(cluster, pod, port, "metrics")
            lines = [line for line in page.splitlines() if line.startswith("byoc_spool_events")]
            if total := sum(int(float(line.rpartition(" ")[2])) for line in lines):
                found[daemon] = total
    return found
