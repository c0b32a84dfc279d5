"""How pytest-xdist spreads the tests against real parts over its workers.

A worker gets whole files, since the tests of a file share fixtures. All files that use the Docker
Engine go to one worker, since it builds the images once.
"""

from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]

ON_DOCKER = (
    "test_real_arm64_kernel",
    "test_real_chart_run",
    "test_real_control_plane_image",
    "test_real_docker",
    "test_real_documented_commands",
    "test_real_images",
)


class FileScheduling(LoadFileScheduling):  # type: ignore[misc]  # xdist's module is not typed
    """Gives each worker whole files, and one of them all files of ON_DOCKER."""

    def _split_scope(self, nodeid: str) -> str:
        file = str(super()._split_scope(nodeid))
        return "docker" if file.rpartition("/")[2].startswith(ON_DOCKER) else file
