"""The image of the control plane, built and run by a real engine."""

from pathlib import Path

import pytest

from lab.control_plane.processes import ROOT
from lab.real.parts import docker as docker_part
from lab.real.parts import images

pytestmark = pytest.mark.real

TAG = "byoc-control-plane:test"


def test_the_image_runs_without_root_and_prints_the_sql(
    docker: docker_part.Engine, tmp_path: Path
) -> None:
    options = [one for one in images.build_arguments(tmp_path) if "BUILDER" not in one]
    docker.build(ROOT / "control-plane" / "Dockerfile", TAG, *options)
    with docker.run(TAG, "schema", options=images.hardened()) as container:
        assert container.wait() == 0
        assert "CREATE TABLE IF NOT EXISTS byoc_state" in container.logs()
    with docker.run(TAG, options=images.hardened()) as container:
        assert container.wait() == 2
        assert "BYOC_PLANE_QUEUE_URL: is required" in container.logs()
