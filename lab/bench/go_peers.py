"""Build the peer programs that Debian does not have: Alertmanager 0.35 and the Collector.

Both are built from the Go module proxy's modules, once, below `build/real`, which takes about five
minutes of one core. Alertmanager's module is pinned by its hash in a go.sum and its own go.sum pins
the rest; the Collector's go.mod and go.sum are in `go/otelcol`. Only the stripped programs are
kept.
"""

import json
import shutil
import tempfile
from pathlib import Path

from lab.real.parts import install
from lab.real.parts.install import CACHE
from lab.real.parts.process import PartError

ALERTMANAGER = "github.com/prometheus/alertmanager@v0.35.0"
ALERTMANAGER_SUM = "h1:nbXMjr+P2JaoFd7aHNDxKifEwTPN+TWxM0gNPonuH5w="
OTELCOL = Path(__file__).with_name("go") / "otelcol"
OTELCOL_VERSION = "0.165.0"
FLAGS = "GOFLAGS=-modcacherw -mod=readonly -trimpath -buildvcs=false"
BUILD = ("build", "-p=1", "-ldflags=-s -w")  # one core: the machine may have other work


def available(group: str) -> bool:
    """Return whether these programs can be built here; print which rows are left out if not."""
    try:
        install.go_command()
    except PartError as error:
        print(f"bench: {group}: no rows of Alertmanager 0.35 and the Collector: {error}")
        return False
    return True


def alertmanager() -> Path:
    """Return the program. Raises PartError."""
    place = CACHE / "alertmanager-0.35"
    with install.build_once(place, ALERTMANAGER, ALERTMANAGER_SUM, FLAGS, *BUILD) as missing:
        if missing:
            place.mkdir()
            with tempfile.TemporaryDirectory(dir=CACHE) as name:
                source = _downloaded(Path(name))
                _add_pages(source)
                _build(Path(name), source, "./cmd/alertmanager", place / "alertmanager")
    return place / "alertmanager"


def otelcol() -> Path:
    """Return the program. Raises PartError."""
    place = CACHE / f"otelcol-{OTELCOL_VERSION}"
    sources = [OTELCOL / name for name in ("go.mod", "go.sum", "main.go")]
    texts = [source.read_text() for source in sources]
    with install.build_once(place, FLAGS, *BUILD, *texts) as missing:
        if missing:
            place.mkdir()
            with tempfile.TemporaryDirectory(dir=CACHE) as name:
                _build(Path(name), OTELCOL, ".", place / "otelcol")
    return place / "otelcol"


def _downloaded(cache: Path) -> Path:
    """Return a copy of Alertmanager's module that can be changed."""
    *variables, go = install.go_command()
    (cache / "empty").mkdir()
    environment = [*variables, f"GOMODCACHE={cache / 'modules'}"]
    asked = ["mod", "download", "-json", ALERTMANAGER]
    module = json.loads(install.run_command(["env", *environment, go, *asked], cache / "empty"))
    if module["Sum"] != ALERTMANAGER_SUM:
        raise PartError(f"{ALERTMANAGER}: has {module['Sum']}, expected {ALERTMANAGER_SUM}")
    shutil.copytree(module["Dir"], cache / "source")
    return cache / "source"


def _add_pages(source: Path) -> None:
    """Add an empty page for each user interface: the module has their sources only."""
    for name in ("elm", "mantine"):
        page = source / "ui/app/dist" / name / "index.html"
        page.parent.mkdir(parents=True)
        page.write_text("not built\n")


def _build(cache: Path, directory: Path, package: str, program: Path) -> None:
    *variables, go = install.go_command()
    caches = [f"GOCACHE={cache / 'build'}", f"GOMODCACHE={cache / 'modules'}", FLAGS]
    command = ["nice", "-n", "10", go, *BUILD, "-o", str(program), package]
    install.run_command(["env", *variables, *caches, *command], directory)
