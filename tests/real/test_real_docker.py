"""The container engine of the image tests: started by them and removed without a trace."""

import subprocess
from pathlib import Path

import pytest

from lab.real.parts.docker import BASE, Engine, engine
from lab.real.parts.process import PartError

SHUT_IN = (
    "--network=none",
    "--read-only",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    "--user=65532",
)
WHO = "import os; print(os.getuid())"


def test_a_container_is_shut_in_seen_and_removed(docker: Engine) -> None:
    with docker.run(BASE, "sleep", "600", options=SHUT_IN) as container:
        assert Path(f"/proc/{container.pid}").exists()
        assert container.execute("python3", "-c", WHO) == "65532"
        with pytest.raises(PartError, match="Read-only file system"):
            container.execute("touch", "/tmp/a")
        assert container.stop(grace_seconds=1) == 137, "sleep as process 1 ignores SIGTERM"
    assert container.id not in docker.output("ps", "--all", "--quiet", "--no-trunc")


def test_a_command_that_ends_is_waited_for_and_read(docker: Engine) -> None:
    with docker.run(BASE, "python3", "-c", "print('here'); exit(3)", options=SHUT_IN) as container:
        assert container.wait() == 3
        assert container.logs() == "here"


def test_an_engine_leaves_no_process_no_mount_and_no_file() -> None:
    with engine() as docker, docker.run(BASE, "sleep", "600", options=SHUT_IN):
        pass
    assert not docker.directory.exists()
    assert str(docker.directory) not in Path("/proc/mounts").read_text()
    processes = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert str(docker.directory) not in processes.stdout
