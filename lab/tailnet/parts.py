"""Programs of the tailnet, each made once and kept below `build/real`.

Tailscale's programs and the coordination server are built from their Go modules, which takes some
minutes. Only the stripped programs are kept, keyed by their sources.
"""

import shutil
from pathlib import Path

from lab.real.parts import install
from lab.real.parts.install import CACHE

CONTROL = Path(__file__).with_name("control")
VERSION = "1.102.5"  # as in control/go.mod
PROGRAMS = ("tailscaled", "tailscale", "containerboot", "derper")
NGINX = ("nginx", "libnginx-mod-stream")


def programs() -> Path:
    """Return a directory with Tailscale's programs and `control`, built if missing."""
    sources = [CONTROL / name for name in ("go.mod", "go.sum", "main.go")]
    place = CACHE / "tailnet"
    with install.build_once(place, *(source.read_text() for source in sources)) as missing:
        if missing:
            place.mkdir()
            cache = CACHE / "tailnet-go-cache"  # about 3 GB
            _build(place, cache)
            (place / "tailnet").rename(place / "control")  # Go names it after its module
            shutil.rmtree(cache)
    return place


def _build(place: Path, cache: Path) -> None:
    *_, go = install.go_command()
    environment = [f"GOCACHE={cache}", f"GOMODCACHE={cache}/modules", "GOTOOLCHAIN=local"]
    environment += ["GOFLAGS=-modcacherw -mod=readonly -trimpath -buildvcs=false", "CGO_ENABLED=0"]
    packages = [*(f"tailscale.com/cmd/{name}" for name in PROGRAMS), "."]
    build = [go, "build", "-ldflags=-s -w", "-o", f"{place}/", *packages]
    install.run_command(["env", *environment, *build], CONTROL)


def nginx() -> Path:
    """Return a directory with Debian's nginx and its stream module unpacked."""
    return install.unpack("nginx", NGINX, CACHE / "nginx-archives")


if __name__ == "__main__":
    print(programs(), nginx())
