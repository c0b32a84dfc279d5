"""A container registry on loopback: Debian's docker-registry."""

from pathlib import Path

from lab.real.parts import install
from lab.real.parts.process import RealProcess, free_port


def registry(directory: Path) -> RealProcess:
    """Return a registry that keeps its images below `directory`."""
    directory.mkdir(parents=True)
    place, port = install.registry(), free_port()
    settings = directory / "settings.yml"
    settings.write_text(
        "version: 0.1\n"
        f"storage: {{filesystem: {{rootdirectory: {directory}/data}}}}\n"
        f'http: {{addr: "127.0.0.1:{port}"}}\n'
        "log: {level: warn}\n"
    )
    return RealProcess(
        name="registry",
        command=[str(place / "usr/bin/docker-registry"), "serve", str(settings)],
        port=port,
        ready_path="/v2/",
        log=directory / "registry.log",
        environment=install.library_path(place),
    )
