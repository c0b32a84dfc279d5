"""Programs of the tailnet, each made once and kept below `build/real`.

Tailscale's programs and the coordination server are built from their Go modules, which takes about
10 minutes on two busy CPUs. Only the stripped programs are kept, keyed by their sources.
"""

import shutil
from pathlib import Path

from lab.real.parts import install
from lab.real.parts.install import CACHE

CONTROL = Path(__file__).with_name("control")
VERSION = "1.102.5"  # as in control/go.mod
PROGRAMS = {
    **{
        name: f"tailscale.com/cmd/{name}"
        for name in ("tailscaled", "tailscale", "containerboot", "derper")
    },
    "control": ".",
}
NGINX = ("nginx", "libnginx-mod-stream")


def programs() -> Path:
    """Return a directory with Tailscale's programs and `control`, built if missing."""
    sources = [CONTROL / name for name in ("go.mod", "go.sum", "main.go")]
    place = CACHE / "tailnet"
    with install._once(place, *(source.read_text() for source in sources)) as missing:
        if missing:
            place.mkdir()
            cache = CACHE / "tailnet-go-cache"  # about 3 GB, kept until the last one is built
            for name, package in PROGRAMS.items():
                _build(package, place / name, cache)
            shutil.rmtree(cache, ignore_errors=True)
    return place


def _build(package: str, program: Path, cache: Path) -> None:
    *_, go = install._go()
    environment = [f"GOCACHE={cache}", f"GOMODCACHE={cache}/modules", "GOTOOLCHAIN=local"]
    environment += ["GOFLAGS=-modcacherw -mod=readonly -trimpath -buildvcs=false", "CGO_ENABLED=0"]
    build = ["nice", "-n", "10", go, "build", "-p=1", "-ldflags=-s -w", "-o", str(program)]
    install._run(["env", *environment, *build, package], CONTROL)


def nginx() -> Path:
    """Return a directory with Debian's nginx and its stream module unpacked."""
    return install._unpacked("nginx", NGINX, CACHE / "nginx-archives")


if __name__ == "__main__":
    print(programs(), nginx())
