"""Copy the files of `localstack/`, with ports of this machine instead of services' names."""

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lab.real.parts.install import ROOT
from lab.real.parts.process import free_port

SOURCE = ROOT / "localstack"
DAEMONS = ("billing-scraper", "state-exporter", "alert-forwarder")
SERVICES = (*DAEMONS, "control-plane", "localstack", "clickhouse", "prometheus", "alertmanager")
PLACE = re.compile(rf"\b({'|'.join(SERVICES)}):(\d+)\b")
ANYWHERE = re.compile(r"\b0\.0\.0\.0:(\d+)\b")


@dataclass
class Files:
    """A copy of the files in `directory`, and the port used for each `service:port`."""

    directory: Path
    ports: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("secrets", "init"):
            shutil.copytree(SOURCE / name, self.directory / name)

    def port(self, service: str, port: int) -> int:
        """Return the local port used for a service's port, always the same one."""
        return self.ports.setdefault(f"{service}:{port}", free_port())

    def text(self, name: str) -> str:
        """Return a file with `127.0.0.1:<free>` for each `service:port`."""
        return PLACE.sub(self._here, (SOURCE / name).read_text())

    def environment(self, daemon: str) -> dict[str, str]:
        """Return a daemon's settings, as `docker run --env-file` reads them."""
        text = self.text(f"env/{daemon}.env").replace(
            "/etc/secrets", str(self.directory / "secrets")
        )
        text = ANYWHERE.sub(lambda found: f"127.0.0.1:{self.port(daemon, int(found[1]))}", text)
        return parse(text)

    def _here(self, found: re.Match[str]) -> str:
        return f"127.0.0.1:{self.port(found[1], int(found[2]))}"


def parse(text: str) -> dict[str, str]:
    """Return the variables of an env file: NAME=value lines, comments, empty lines."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def written(directory: Path, files: Mapping[str, str]) -> None:
    """Write name -> text into a directory, which is made if it is missing."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (directory / name).write_text(text)
