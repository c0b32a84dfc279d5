"""One cluster for all tests of this folder: `make cluster` runs them in its namespaces."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from lab.cluster import cluster as cluster_part
from lab.cluster import environment
from lab.cluster.__main__ import report
from lab.cluster.cluster import Cluster
from lab.cluster.environment import Received
from lab.cluster.machine import RUN
from lab.real.parts.process import PartError

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder is `cluster`, whether its author marked it or not."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Start a cluster with all that the chart needs, or use that of KUBECONFIG, such as kind's."""
    with ExitStack() as stack:
        if RUN in os.environ:
            made = stack.enter_context(cluster_part.running(report))
        elif kubeconfig := os.environ.get("KUBECONFIG"):
            made = Cluster(tmp_path_factory.mktemp("cluster"), Path(kubeconfig))
        else:
            raise PartError("no cluster: expected `make cluster`, or KUBECONFIG to name one")
        environment.prepare(made)
        report("LocalStack, the control plane and the clients are ready")
        with environment.receiving(made) as received:
            received.make()
        yield made


@pytest.fixture
def received(cluster: Cluster) -> Iterator[Received]:
    """Give access to what has arrived."""
    with environment.receiving(cluster) as made:
        yield made
