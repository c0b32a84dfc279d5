"""The chart on a real cluster, from install to uninstall: one walk, each test a step of it.

A step needs those before it, so the file is run as a whole.
"""

import json
from collections.abc import Iterator
from decimal import Decimal
from functools import partial

import pytest

from lab.cluster import environment
from lab.cluster.cluster import Cluster, Manifest
from lab.cluster.environment import CLICKHOUSE_POD, NAMESPACE, RELEASE, Received
from lab.cluster.oracle import billing, check_ledgers
from lab.cluster.reach import connect, listen_in, post_alerts

pytestmark = pytest.mark.cluster
FORWARDER = f"{RELEASE}-alert-forwarder"
CLAIMS = {FORWARDER, f"data-{CLICKHOUSE_POD}", f"byoc-spool-{CLICKHOUSE_POD}"}


@pytest.fixture(scope="module", autouse=True)
def installed(cluster: Cluster) -> Iterator[None]:
    """Install the chart; whatever a step does, nothing of it stays for other files."""
    environment.install_chart(cluster)
    try:
        yield
    finally:
        environment.remove_chart(cluster)


def test_every_pod_becomes_ready(cluster: Cluster) -> None:
    """ClickHouse's namespace enforces Pod Security `restricted`."""
    environment.wait_for_chart(cluster)
    pod = cluster.get("pod", CLICKHOUSE_POD, NAMESPACE)
    started = {
        one["name"]: one["state"]["running"]["startedAt"]
        for kind in ("initContainerStatuses", "containerStatuses")
        for one in pod["status"][kind]
    }
    assert set(started) == {"billing-scraper", "state-exporter", "clickhouse"}
    assert max(started.values()) == started["clickhouse"]  # native sidecars start first


def test_the_daemons_read_secrets_that_only_their_pods_group_may_read(cluster: Cluster) -> None:
    """The kubelet gives the files the pod's fsGroup; the mode 0440 keeps every other uid out."""
    modes = set()
    for pod in environment.chart_pods(cluster):
        spec, name = pod["spec"], pod["metadata"]["name"]
        secrets = [one["secret"] for one in spec["volumes"] if "secret" in one]
        modes |= {one["defaultMode"] for one in secrets}
        for container in (*spec.get("initContainers", []), *spec["containers"]):
            if container["name"] in environment.DAEMONS:
                command = ("byoc-agents", "check-config", container["name"])
                cluster.execute(NAMESPACE, name, container["name"], *command)
    assert modes == {0o440}


def test_all_three_streams_arrive(cluster: Cluster, received: Received) -> None:
    kinds: set[str] = set()

    def state() -> bool:
        kinds.update(one["type"] for one in received.messages())
        return bool(kinds)

    cluster.wait(received.bucket.writes, "usage records", NAMESPACE)
    cluster.wait(state, "state of ClickHouse", NAMESPACE)
    post_alerts(cluster, "monitoring", "alertmanager")
    cluster.wait(
        lambda: any(one.get("type") == "byoc.alert.v1" for one in received.events()),
        "alerts at the control plane",
        NAMESPACE,
    )
    report = billing(received)
    assert report.core_seconds > Decimal(0)
    assert report.sources == {"process"}
    assert check_ledgers(cluster) == {"billing-scraper", "state-exporter", "alert-forwarder"}


# Where a connection comes from -> ports of ClickHouse's pod that it may reach.
REACHABLE = {
    ("monitoring", "prometheus"): {9363, 9464, 9465},
    ("monitoring", "alertmanager"): set[int](),
    ("monitoring", "stranger"): set[int](),
    (NAMESPACE, "client"): {8123, 9000},
}
PORTS = (2222, 8123, 9000, 9363, 9464, 9465)


def test_the_policies_let_through_what_they_name_and_nothing_else(cluster: Cluster) -> None:
    """Something listens on every port that is tried; from the pod itself all are reached."""
    listen_in(cluster, CLICKHOUSE_POD, 2222, 9363)
    address = cluster.address(CLICKHOUSE_POD, NAMESPACE)
    inside = connect(cluster, NAMESPACE, CLICKHOUSE_POD, "127.0.0.1", *PORTS)
    assert inside == set(PORTS)
    for (namespace, pod), ports in REACHABLE.items():
        reach = partial(connect, cluster, namespace, pod, address, *PORTS)
        assert reach() == ports, f"{pod} reaches {reach()}"
    outside = cluster.address("localstack", "localstack")
    plane = cluster.address("control-plane", "control-plane")
    assert connect(cluster, NAMESPACE, "client", plane, 8080) == {8080}  # no policy selects it
    assert connect(cluster, NAMESPACE, CLICKHOUSE_POD, outside, 4566) == {4566}
    assert connect(cluster, NAMESPACE, CLICKHOUSE_POD, plane, 8080) == set()


def test_without_policies_everything_is_open(cluster: Cluster) -> None:
    """The control of the test before: refused ports are reached when the policies are off."""
    values = environment.write_values(cluster, {"networkPolicy": {"enabled": False}})
    cluster.helm("upgrade", RELEASE, str(environment.CHART), "-n", NAMESPACE, "-f", str(values))
    environment.wait_for_chart(cluster)
    address = cluster.address(CLICKHOUSE_POD, NAMESPACE)
    open_ports = {8123, 9000, 9464, 9465}
    cluster.wait(
        lambda: connect(cluster, "monitoring", "stranger", address, *open_ports) == open_ports,
        "a stranger's connections without policies",
    )
    values = environment.write_values(cluster)
    cluster.helm("upgrade", RELEASE, str(environment.CHART), "-n", NAMESPACE, "-f", str(values))
    cluster.wait(
        lambda: not connect(cluster, "monitoring", "stranger", address, *open_ports),
        "a stranger's refusal with policies",
    )


def test_an_upgrade_replaces_the_pods_and_loses_nothing(
    cluster: Cluster, received: Received
) -> None:
    before = pods(cluster)
    values = environment.write_values(cluster, {"sidecars": {"shutdownGraceSeconds": 25}})
    cluster.helm("upgrade", RELEASE, str(environment.CHART), "-n", NAMESPACE, "-f", str(values))
    wait_replaced(cluster, before)
    assert billing(received).findings == []
    check_ledgers(cluster)


def test_a_rollback_replaces_them_again(cluster: Cluster, received: Received) -> None:
    before = pods(cluster)
    cluster.helm("rollback", RELEASE, "-n", NAMESPACE)
    wait_replaced(cluster, before)
    pod = cluster.get("pod", CLICKHOUSE_POD, NAMESPACE)
    (scraper, *_) = pod["spec"]["initContainers"]
    environment = {one["name"]: one.get("value") for one in scraper["env"]}
    assert environment["BYOC_SHUTDOWN_GRACE_SECONDS"] == "20"
    assert billing(received).findings == []
    check_ledgers(cluster)


def test_an_uninstall_keeps_every_claim_and_secret(cluster: Cluster, received: Received) -> None:
    before = {one["metadata"]["name"]: volume(one) for one in claims(cluster)}
    assert set(before) == CLAIMS
    cluster.helm("uninstall", RELEASE, "-n", NAMESPACE, "--wait")
    cluster.wait(lambda: not pods(cluster), "the end of all pods", NAMESPACE)
    assert {one["metadata"]["name"]: volume(one) for one in claims(cluster)} == before
    assert cluster.get("secret", "byoc-alerts", NAMESPACE)["data"]
    assert billing(received).findings == []


def test_a_new_install_takes_the_claims_over(cluster: Cluster, received: Received) -> None:
    before = {one["metadata"]["name"]: volume(one) for one in claims(cluster)}
    environment.install_chart(cluster)
    environment.wait_for_chart(cluster)
    assert {one["metadata"]["name"]: volume(one) for one in claims(cluster)} == before
    objects = len(received.bucket.writes())
    cluster.wait(lambda: len(received.bucket.writes()) > objects, "usage records", NAMESPACE)
    report = billing(received)
    assert report.findings == []
    assert report.epochs == 1  # the checkpoint was on the claim
    check_ledgers(cluster)


def test_helms_own_tests_pass(cluster: Cluster) -> None:
    assert "Succeeded" in cluster.helm("test", RELEASE, "-n", NAMESPACE, "--logs")


def pods(cluster: Cluster) -> set[str]:
    """Return the uids of the chart's pods."""
    return {one["metadata"]["uid"] for one in environment.chart_pods(cluster)}


def wait_replaced(cluster: Cluster, before: set[str]) -> None:
    """Wait until none of these pods is left, and others are ready."""
    cluster.wait(lambda: not before & pods(cluster), "the end of the old pods", NAMESPACE)
    environment.wait_for_chart(cluster)


def claims(cluster: Cluster) -> list[Manifest]:
    return cluster.items("persistentvolumeclaims", NAMESPACE)


def volume(claim: Manifest) -> str:
    """Return the volume that a claim is bound to."""
    assert claim["status"]["phase"] == "Bound", json.dumps(claim["status"])
    return str(claim["spec"]["volumeName"])
