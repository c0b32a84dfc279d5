"""`sidecars.egressRules` by a real kubelet: the daemons deliver, others are refused."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.cluster import components, environment
from lab.cluster.cluster import Cluster
from lab.cluster.environment import CLICKHOUSE_POD, NAMESPACE, RELEASE, Received
from lab.cluster.oracle import billing, check_ledgers
from lab.cluster.reach import connect
from lab.real.chart import render
from lab.real.parts import nft

pytestmark = pytest.mark.cluster
LOCALSTACK = "localstack.localstack.svc"  # S3 and SQS of the daemons
ENFORCE = "pod-security.kubernetes.io/enforce"


def write_values(cluster: Cluster, *also: str) -> Path:
    """Write the usual values, with the rules and the addresses that they need."""
    words = cluster.execute(NAMESPACE, "client", "client", "cat", "/etc/resolv.conf").split()
    resolver = words[words.index("nameserver") + 1]
    address = cluster.address("localstack", "localstack")
    rules = {"enabled": True, "image": nft.IMAGE, "dns": [f"{resolver}/32"], "also": list(also)}
    cidrs = {LOCALSTACK: [f"{address}/32"]}
    policy = {"selectClickHouse": False, "cidrs": cidrs}
    changes = {"sidecars": {"egressRules": rules}, "networkPolicy": policy}
    return environment.write_values(cluster, changes)


@pytest.fixture(scope="module", autouse=True)
def image(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Load the image with nft into the node."""
    if not cluster.components:
        pytest.skip("only the node of `make cluster` can be given the image")
    archive = tmp_path_factory.mktemp("image") / "nft.tar"
    nft.write_image(archive)
    components.import_images(cluster.directory, archive)


@pytest.fixture
def permitted(cluster: Cluster) -> Iterator[None]:
    """Let the namespace have pods that Pod Security `baseline` forbids."""
    label = ("label", "--overwrite", "namespace", NAMESPACE)
    cluster.kubectl(*label, f"{ENFORCE}=privileged")
    yield
    environment.remove_chart(cluster)
    cluster.kubectl(*label, f"{ENFORCE}=restricted")


@pytest.mark.usefixtures("permitted")
def test_the_daemons_deliver_and_every_other_container_is_refused(
    cluster: Cluster, received: Received
) -> None:
    """The address is open to the pod by its NetworkPolicy, as the sidecars and `also` show."""
    values = write_values(cluster)
    cluster.helm("install", RELEASE, str(environment.CHART), "-n", NAMESPACE, "-f", str(values))
    environment.wait_for_chart(cluster)
    outside = cluster.address("localstack", "localstack")
    policies = json.dumps(cluster.items("networkpolicies", NAMESPACE))
    assert f'"cidr": "{outside}/32"' in policies
    cluster.wait(received.bucket.writes, "usage records", NAMESPACE)
    cluster.wait(received.messages, "states in the queue", NAMESPACE)
    assert billing(received).findings == []
    assert check_ledgers(cluster) == {"billing-scraper", "state-exporter", "alert-forwarder"}
    assert connect(cluster, NAMESPACE, CLICKHOUSE_POD, outside, 4566) == set()
    assert connect(cluster, NAMESPACE, CLICKHOUSE_POD, "127.0.0.1", 8123, 9464) == {8123, 9464}

    before = cluster.get("pod", CLICKHOUSE_POD, NAMESPACE)["metadata"]["uid"]
    values = write_values(cluster, "s3")
    cluster.helm("upgrade", RELEASE, str(environment.CHART), "-n", NAMESPACE, "-f", str(values))

    def replaced() -> bool:
        found = cluster.items("pods", NAMESPACE)
        uids = {one["metadata"]["uid"] for one in found}
        return CLICKHOUSE_POD in {one["metadata"]["name"] for one in found} and before not in uids

    cluster.wait(replaced, "the pod with other rules", NAMESPACE)
    environment.wait_for_chart(cluster)
    cluster.wait(
        lambda: connect(cluster, NAMESPACE, CLICKHOUSE_POD, outside, 4566) == {4566},
        "a connection that is now named as ClickHouse's too",
        NAMESPACE,
    )


def test_a_restricted_namespace_refuses_the_pod(cluster: Cluster) -> None:
    rendered = render.manifests(write_values(cluster))
    (found,) = [one for one in rendered if one["kind"] == "StatefulSet"]
    said = cluster.apply([found], "--dry-run=server", "-n", NAMESPACE)
    assert "would violate PodSecurity" in said
    assert "byoc-egress-rules" in said
