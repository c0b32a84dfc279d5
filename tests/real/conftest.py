"""Real parts as fixtures. A part that cannot be had is an error of the test, never a skip."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from lab.real.parts import clickhouse, install, kernel
from lab.real.parts import docker as docker_part
from lab.real.parts import images as images_part
from lab.real.parts import localstack as localstack_part
from lab.real.parts import prometheus as prometheus_part
from lab.real.parts.process import RealProcess
from tests.real.workers import ON_DOCKER

HERE = Path(__file__).parent
Started = Callable[[str], RealProcess]
sys.path.append(str(install.CHDB))  # `import chdb`, installed next to .venv; .venv comes first


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark everything in this folder as `real`. Raises UsageError for a file without its worker."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.real)
            needs_docker = "docker" in getattr(item, "fixturenames", ())
            if needs_docker and not item.path.name.startswith(ON_DOCKER):
                raise pytest.UsageError(f"{item.path.name} uses Docker: expected in ON_DOCKER")


@pytest.fixture(scope="session")
def localstack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealProcess]:
    """One LocalStack for all tests, S3 and SQS at `.url`; name buckets and queues your own way."""
    with localstack_part.localstack(tmp_path_factory.mktemp("localstack")) as running:
        yield running


@pytest.fixture(scope="session")
def docker() -> Iterator[docker_part.Engine]:
    """One Docker Engine for all tests; remove nothing that is not yours."""
    with docker_part.engine() as running:
        yield running


@pytest.fixture(scope="session")
def layout(docker: docker_part.Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run `make images` once; give the OCI layout that it writes for amd64."""
    return images_part.make(docker, tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def foreign_layout(docker: docker_part.Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run `make images ARCH=arm64` once; give the OCI layout."""
    return images_part.make_foreign(docker, tmp_path_factory.mktemp("images-arm64"))


@pytest.fixture(scope="session")
def images(layout: Path) -> Callable[[str], str]:
    """Load the images; give the name of a daemon's, or of `byoc-agents`."""
    assert layout.is_dir(), "`make images` has loaded them"
    return images_part.tag


@pytest.fixture
def old_clickhouse(tmp_path: Path) -> Iterator[RealProcess]:
    """ClickHouse 18.16, its own for each test (0.3 s): stop, kill and restart it freely."""
    with clickhouse.old_clickhouse(tmp_path / "clickhouse") as running:
        yield running


@pytest.fixture
def alertmanager(tmp_path: Path) -> Iterator[Started]:
    """Start Alertmanagers from configuration texts; all are stopped with the test."""
    yield from _started(tmp_path, "alertmanager", prometheus_part.alertmanager)


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[Started]:
    """Start Prometheus servers from configuration texts; all are stopped with the test."""
    yield from _started(tmp_path, "prometheus", prometheus_part.prometheus)


@pytest.fixture
def cgroup_v1() -> Iterator[kernel.ControlGroup]:
    """Make a group in the v1 hierarchies of cpuacct and memory."""
    with kernel.cgroup_v1("cpuacct", "memory") as group:
        yield group


@pytest.fixture
def cgroup_v2() -> Iterator[kernel.ControlGroup]:
    """Make a v2 group, whose `cpu.stat` is there whatever controllers are."""
    with kernel.cgroup_v2() as group:
        yield group


@pytest.fixture(params=[kernel.tmpfs, kernel.ext4], ids=["tmpfs", "ext4"])
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Mount an empty file system of 16 MiB; a test runs once on tmpfs and once on ext4."""
    with request.param(tmp_path / "disk", 16 * 1024 * 1024) as directory:
        yield directory


def _started(
    tmp_path: Path, name: str, part: Callable[[Path, str], RealProcess]
) -> Iterator[Started]:
    with ExitStack() as running:
        count = iter(range(1000))

        def start(config: str) -> RealProcess:
            return running.enter_context(part(tmp_path / f"{name}-{next(count)}", config))

        yield start
