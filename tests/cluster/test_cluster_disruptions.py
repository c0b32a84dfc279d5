"""Whether a record, an alert or a second is lost by what happens to a cluster.

Each test ends with the same check: every sequence present, every second in a record or a gap,
`verify` and `ledger verify` clean, and all that was accepted has arrived.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest

from lab.cluster import environment
from lab.cluster.cluster import Cluster
from lab.cluster.environment import CLICKHOUSE_POD, NAMESPACE, RELEASE, Received
from lab.cluster.oracle import Billing, backlog, billing, check_ledgers, wait_drained
from lab.cluster.reach import post_alerts
from lab.real.scraper import passed

pytestmark = pytest.mark.cluster
NODE = "node"
WITHOUT_KUBELET_SECONDS = 30.0  # records are of 5 s and sent after 10 s
POD_LABEL = f"byoc-agents/sidecars={RELEASE}"
DAEMONS = {"billing-scraper", "state-exporter", "alert-forwarder"}
# More than the limit of ClickHouse's container, in one query.
HOARD = (
    "SELECT length(groupArray(concat(toString(number), toString(rand64())))) FROM numbers(60000000)"
)


@pytest.fixture(scope="module", autouse=True)
def installed(cluster: Cluster) -> Iterator[None]:
    """Install the chart, and wait for the first records."""
    environment.install_chart(cluster)
    try:
        environment.wait_for_chart(cluster)
        with environment.receiving(cluster) as received:
            cluster.wait(received.bucket.writes, "usage records", NAMESPACE)
        yield
    finally:
        environment.remove_chart(cluster)


@contextmanager
def outage(cluster: Cluster) -> Iterator[None]:
    """Drop every packet to S3, SQS and the control plane, of open connections too."""
    addresses = [cluster.address(name, name) for name in ("localstack", "control-plane")]
    for address in addresses:
        cluster.iptables("-t", "mangle", "-I", "FORWARD", "-d", address, "-j", "DROP")
    try:
        yield
    finally:
        for address in addresses:
            cluster.iptables("-t", "mangle", "-D", "FORWARD", "-d", address, "-j", "DROP")


def check_nothing_lost(cluster: Cluster, received: Received) -> Billing:
    """Wait until all is sent, and compare."""
    wait_drained(cluster)
    before = len(billing(received).records)
    cluster.wait(
        lambda: len(billing(received).records) > before, "a record of the time after", NAMESPACE
    )
    found = billing(received)
    assert found.findings == []
    assert found.epochs == 1
    assert check_ledgers(cluster) == DAEMONS
    return found


def restarts(cluster: Cluster) -> dict[str, int]:
    """Return container -> how often it was started again."""
    return {
        one["name"]: one["restartCount"]
        for pod in environment.chart_pods(cluster)
        for kind in ("initContainerStatuses", "containerStatuses")
        for one in pod["status"].get(kind, [])
    }


def running(cluster: Cluster) -> dict[str, str]:
    """Return container -> id of each that runs.

    After a power loss a pod gets a new sandbox, in which a count of restarts may start at 0 again.
    """
    return {
        one["name"]: one["containerID"]
        for pod in environment.chart_pods(cluster)
        for kind in ("initContainerStatuses", "containerStatuses")
        for one in pod["status"].get(kind, [])
        if "running" in one["state"]
    }


def alerts(received: Received) -> int:
    """Return how many alerts have begun; the control plane prints one that comes again once.

    The ends are those that the forwarder infers from the next beginning of the same alert.
    """
    events = [one for one in received.events() if one.get("type") == "byoc.alert.v1"]
    return sum(one["data"]["status"] == "firing" for one in events)


def test_an_upgrade_and_a_rollback_keep_what_the_spools_hold(
    cluster: Cluster, received: Received
) -> None:
    arrived = alerts(received)
    with outage(cluster):
        post_alerts(cluster, "monitoring", "alertmanager")
        cluster.wait(lambda: set(backlog(cluster)) == DAEMONS, "messages in every spool", NAMESPACE)
        held = backlog(cluster)
        values = environment.write_values(cluster, {"sidecars": {"shutdownGraceSeconds": 25}})
        replaced(cluster, "upgrade", RELEASE, str(environment.CHART), "-f", str(values))
        replaced(cluster, "rollback", RELEASE)
        cluster.wait(lambda: set(backlog(cluster)) == DAEMONS, "messages in every spool", NAMESPACE)
        assert all(backlog(cluster)[name] >= held[name] for name in DAEMONS)
    check_nothing_lost(cluster, received)
    assert alerts(received) == arrived + 3  # of the notification


def replaced(cluster: Cluster, command: str, *arguments: str) -> None:
    """Run Helm, and wait until all pods are new."""
    before = {one["metadata"]["uid"] for one in environment.chart_pods(cluster)}
    cluster.helm(command, *arguments, "-n", NAMESPACE)
    cluster.wait(
        lambda: not before & {one["metadata"]["uid"] for one in environment.chart_pods(cluster)},
        "the end of the old pods",
        NAMESPACE,
    )
    environment.wait_for_chart(cluster)


def test_a_drain_evicts_the_pod_and_loses_nothing(cluster: Cluster, received: Received) -> None:
    """ClickHouse's own logs and scratch are an emptyDir, so a drain needs its flag."""
    drain = ("drain", NODE, "--timeout=120s", "--pod-selector", POD_LABEL)
    refused = cluster.attempt("kubectl", *drain)
    assert refused.returncode
    assert "--delete-emptydir-data" in refused.stderr
    gaps = len(billing(received).gaps)  # of the install and of earlier tests
    try:
        before = cluster.get("pod", CLICKHOUSE_POD, NAMESPACE)["metadata"]["uid"]
        assert "drained" in cluster.kubectl(*drain, "--delete-emptydir-data")
    finally:
        cluster.kubectl("uncordon", NODE)
    environment.wait_for_chart(cluster)
    assert cluster.get("pod", CLICKHOUSE_POD, NAMESPACE)["metadata"]["uid"] != before
    found = check_nothing_lost(cluster, received)
    assert {one.gap_reason for one in found.gaps[gaps:]} <= {"target_absent", "target_unreadable"}


def test_a_killed_kubelet_stops_nothing(cluster: Cluster) -> None:
    """With a pod at rest: records are made and sent, and the next kubelet restarts nothing."""
    before = restarts(cluster)
    with environment.receiving(cluster) as received:  # through the kubelet, so again after it
        gaps = len(billing(received).gaps)
    cluster.kill("kubelet")
    killed = datetime.now(UTC)
    try:
        passed(WITHOUT_KUBELET_SECONDS)
    finally:
        started = datetime.now(UTC)
        cluster.start("kubelet")
    environment.wait_for_chart(cluster)
    with environment.receiving(cluster) as received:
        found = check_nothing_lost(cluster, received)
        versions = received.bucket.client.list_object_versions(Bucket=environment.BUCKET)[
            "Versions"
        ]
    assert any(killed < one["LastModified"] < started for one in versions)
    during = [
        one
        for one in found.records
        if killed < datetime.fromisoformat(one.charge_period_start)
        and datetime.fromisoformat(one.charge_period_end) < started
    ]
    assert {one.quality for one in during} == {"measured"}
    assert restarts(cluster) == before
    assert len(found.gaps) == gaps


def test_a_container_that_is_out_of_memory_is_metered_until_then(
    cluster: Cluster, received: Received
) -> None:
    before = restarts(cluster)
    cluster.attempt(
        "kubectl", "-n", NAMESPACE, "exec", "client", "--", "python3", "-c",
        "import sys, urllib.request as u; u.urlopen(sys.argv[1], sys.argv[2].encode(), 120)",
        f"http://{RELEASE}-clickhouse.{NAMESPACE}.svc:8123/", HOARD,
    )  # fmt: skip
    cluster.wait(
        lambda: restarts(cluster)["clickhouse"] == before["clickhouse"] + 1,
        "ClickHouse's next start",
        NAMESPACE,
    )
    environment.wait_for_chart(cluster)
    pod = cluster.get("pod", CLICKHOUSE_POD, NAMESPACE)
    (status,) = pod["status"]["containerStatuses"]
    assert status["lastState"]["terminated"]["reason"] == "OOMKilled"
    found = check_nothing_lost(cluster, received)
    assert any(one.restart_observed for one in found.records)
    assert restarts(cluster) == before | {"clickhouse": before["clickhouse"] + 1}


def test_a_node_that_loses_its_power_loses_no_record(cluster: Cluster) -> None:
    """The kubelet, containerd and all of our containers die at once, with messages to send."""
    with environment.receiving(cluster) as received:  # through the kubelet, so again after it
        arrived = alerts(received)
    with outage(cluster):
        post_alerts(cluster, "monitoring", "alertmanager")
        cluster.wait(lambda: set(backlog(cluster)) == DAEMONS, "messages in every spool", NAMESPACE)
        before = running(cluster)
        pods = environment.chart_pods(cluster)
        cluster.kill("kubelet", "containerd")
        cluster.end_processes(pods)
        cluster.start("containerd", "kubelet")
        cluster.wait(
            lambda: (
                (now := running(cluster)).keys() == before.keys()
                and not set(now.values()) & set(before.values())
            ),
            "the containers' next start",
            NAMESPACE,
        )
    environment.wait_for_chart(cluster)
    with environment.receiving(cluster) as received:
        check_nothing_lost(cluster, received)
        cluster.wait(lambda: alerts(received) >= arrived + 3, "the alerts of the notification")
        assert alerts(received) == arrived + 3
