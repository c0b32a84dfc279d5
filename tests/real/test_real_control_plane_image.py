"""The image of the control plane, built and run by a real engine."""

from pathlib import Path

import pytest

from byoc_agents.airgap.signed_file import sign_file
from lab.control_plane.processes import ROOT
from lab.real.parts import docker as docker_part
from lab.real.parts import images
from tests.unit.airgap.airgap_harness import BILLING, CUSTOMER, STRANGER, VENDOR
from tests.unit.control_plane.test_plane_import import key_file

pytestmark = pytest.mark.real

TAG = "byoc-control-plane:test"

IMPORT = (
    *("import", "org-1", "--key", "/in/customer.pub", "--sign", "/in/own.pem"),
    *("--receipts", "/tmp", "/in/export.byoc"),
)


def files(directory: Path) -> list[str]:
    """Write the keys and an export that a stranger has signed; return the options to mount them."""
    directory.chmod(0o755)
    key_file(directory / "customer.pub", CUSTOMER, public=True)
    key_file(directory / "own.pem", VENDOR, public=False)
    _, export = sign_file("export", [], STRANGER, daemon=BILLING, made_at="")
    (directory / "export.byoc").write_bytes(export)
    return ["--volume", f"{directory}:/in:ro", "--tmpfs", "/tmp"]


def test_the_image_runs_without_root_prints_the_sql_and_imports(
    docker: docker_part.Engine, tmp_path: Path
) -> None:
    options = [one for one in images.build_arguments(tmp_path) if "BUILDER" not in one]
    docker.build(ROOT / "control-plane" / "Dockerfile", TAG, *options)
    with docker.run(TAG, "schema", options=images.hardened()) as container:
        assert container.wait() == 0
        assert "CREATE TABLE IF NOT EXISTS byoc_state" in container.logs()
    with docker.run(TAG, *IMPORT, options=[*images.hardened(), *files(tmp_path)]) as container:
        assert container.wait() == 1
        assert "refused: not signed with the given key" in container.logs()
    with docker.run(TAG, options=images.hardened()) as container:
        assert container.wait() == 2
        assert "BYOC_PLANE_QUEUE_URL: is required" in container.logs()
