"""One cluster for all tests of this folder: `make cluster` runs them in its namespaces."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.cluster import cluster as cluster_part
from lab.cluster import world
from lab.cluster.__main__ import report
from lab.cluster.cluster import Cluster
from lab.cluster.kept import KEPT
from lab.cluster.machine import RUN
from lab.cluster.world import Received

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder is `cluster`, whether its author marked it or not."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Start a cluster with all that the chart needs, or use one that was kept."""
    directory = Path(os.environ.get(RUN, ""))
    if (directory / KEPT).exists():
        yield Cluster(directory)
        return
    with cluster_part.running(report) as made:
        world.prepare(made)
        report("LocalStack, the control plane and the clients are ready")
        with world.receiving(made) as received:
            received.make()
        yield made


@pytest.fixture
def received(cluster: Cluster) -> Iterator[Received]:
    """Give access to what has arrived."""
    with world.receiving(cluster) as made:
        yield made
