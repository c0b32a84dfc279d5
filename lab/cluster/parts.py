"""Programs and images of the cluster, each made once and kept below `build/real`.

Kubernetes and kube-router are built from their Go modules, which takes about 15 minutes on two
CPUs. Only the stripped programs are kept, keyed by go.mod and go.sum.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lab.real.parts import docker, helm, images, install
from lab.real.parts.docker import BASE, Engine
from lab.real.parts.install import CACHE, ROOT
from lab.real.parts.process import PartError

GO = Path(__file__).with_name("go")
VERSION = "v1.34.4"
_OF_VERSION = "k8s.io/component-base/version"
LINKED = " ".join(
    f"-X {_OF_VERSION}.{name}={value}"
    for name, value in (("gitVersion", VERSION), ("gitMajor", "1"), ("gitMinor", "34"))
)  # without them the server reports v0.0.0, and the chart would not use native sidecars
COMMANDS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet")
ROUTER = "github.com/cloudnativelabs/kube-router/v2/cmd/kube-router"
DEBIAN = ("etcd-server", "containernetworking-plugins", "iptables", "ipset")
OPERATOR = "github.com/prometheus-operator/prometheus-operator"
OPERATOR_VERSION = "v0.85.0"
OPERATOR_SUM = "h1:M5xLCLEoaW2IJfnuCwFzzpL+jSVQu3KGT84Pye+fW8s="  # of the module, as in a go.sum
CRDS = ("podmonitors", "prometheusrules", "alertmanagerconfigs")
HELM = helm.VERSIONS[-1]
PAUSE = "byoc-test/pause:1"
CLICKHOUSE = "clickhouse/clickhouse-server:25.8"  # the chart's default, here Debian's 18.16
SOURCES = ("agents", "constraints", "images", "LICENSE", "pyproject.toml")  # of the images
CLICKHOUSE_FILES = Path(__file__).with_name("clickhouse")


def kubernetes() -> Path:
    """Return a directory with the API server, two controllers and the kubelet, built if missing."""
    targets = {name: f"k8s.io/kubernetes/cmd/{name}" for name in COMMANDS}
    return _built("kubernetes", targets, LINKED)


def kube_router() -> Path:
    """Return a directory with kube-router, which enforces NetworkPolicies."""
    return _built("kube_router", {"kube-router": ROUTER})


def are_built() -> bool:
    """Return whether the programs that take minutes to build are there."""
    modules = {"kubernetes": LINKED, "kube_router": ""}
    return all(install.is_made(_place(name), *_inputs(name, modules[name])) for name in modules)


def _place(module: str) -> Path:
    return CACHE / module.replace("_", "-")


def _inputs(module: str, linked: str) -> list[str]:
    """Return what the programs of a module are made from."""
    sources = sorted(GO.joinpath(module).glob("go.*"))
    return [linked, *(source.read_text() for source in sources)]


def _built(module: str, targets: dict[str, str], linked: str = "") -> Path:
    place = _place(module)
    with install.build_once(place, *_inputs(module, linked)) as missing:
        if missing:
            place.mkdir()
            for name, package in targets.items():
                _build(GO / module, package, place / name, linked)
    return place


def _build(directory: Path, package: str, program: Path, linked: str = "") -> None:
    """Build one program. The build cache, some gigabytes, is kept until the last one is built."""
    *_, go = install.go_command()
    cache = CACHE / "kubernetes-go-cache"
    environment = [f"GOCACHE={cache}", f"GOMODCACHE={cache}/modules", "GOTOOLCHAIN=local"]
    environment += ["GOFLAGS=-modcacherw -mod=readonly -trimpath -buildvcs=false", "CGO_ENABLED=0"]
    flags = ["-p=2", f"-ldflags=-s -w {linked}", "-o", str(program)]
    install.run_command(["env", *environment, go, "build", *flags, package], directory)
    if program.name in {"kubelet", "kube-router"}:  # the last of its module
        shutil.rmtree(cache, ignore_errors=True)


def crds() -> Path:
    """Return a directory with the definitions of the Prometheus operator's kinds that we use."""
    place = CACHE / "monitoring-crds"
    with install.build_once(place, OPERATOR_VERSION, OPERATOR_SUM, *CRDS) as missing:
        if missing:
            place.mkdir()
            with tempfile.TemporaryDirectory() as name:
                _copy_crds(Path(name), place)
    return place


def _copy_crds(directory: Path, place: Path) -> None:
    *variables, go = install.go_command()
    modules = f"GOMODCACHE={directory}"  # the module has 10 MB of which we want three files
    asked = ["mod", "download", "-json", f"{OPERATOR}@{OPERATOR_VERSION}"]
    module = json.loads(install.run_command(["env", *variables, modules, go, *asked], directory))
    if module["Sum"] != OPERATOR_SUM:
        raise PartError(f"{OPERATOR}: the sum is {module['Sum']}, pinned is {OPERATOR_SUM}")
    for name in CRDS:
        file = f"example/prometheus-operator-crd/monitoring.coreos.com_{name}.yaml"
        shutil.copy(Path(module["Dir"]) / file, place)


def debian() -> Path:
    """Return a directory with Debian's etcd, network plugins, iptables and ipset unpacked."""
    place = install.unpack("cluster-debian", DEBIAN, CACHE / "cluster-archives")
    for name in ("iptables", "iptables-save", "iptables-restore"):
        for link in (name, name.replace("ip", "ip6")):
            path = place / "usr/sbin" / link
            if not path.is_symlink():  # Debian's alternatives would make it
                path.symlink_to("xtables-nft-multi")
    return place


def environment() -> dict[str, str]:
    """Return PATH and library paths with which the unpacked programs find each other."""
    places = (debian(), install.engine())
    found = [str(place / part) for place in places for part in ("usr/sbin", "usr/bin")]
    libraries = ":".join(install.library_path(place)["LD_LIBRARY_PATH"] for place in places)
    extensions = places[0] / "usr/lib/x86_64-linux-gnu/xtables"
    return {
        "PATH": ":".join([*found, os.environ["PATH"]]),
        "LD_LIBRARY_PATH": libraries,
        "XTABLES_LIBDIR": str(extensions),
    }


def image_archive() -> Path:
    """Return an archive of all images of the cluster: ours, ClickHouse, a Debian, the pause.

    Made again when a source of the images has changed.
    """
    archive = CACHE / "cluster-images" / f"{_digest()}.tar"
    if archive.exists():
        return archive
    shutil.rmtree(archive.parent, ignore_errors=True)  # older ones
    archive.parent.mkdir(parents=True)
    with docker.engine() as engine, tempfile.TemporaryDirectory() as name:
        images.make(engine, Path(name))
        _import_pause(engine, Path(name))
        _build_clickhouse(engine, Path(name) / "clickhouse")
        ours = [images.tag(target) for target in (*images.DAEMONS, images.ACCESS_BROKER)]
        unfinished = archive.with_suffix(".part")
        engine.output("save", "--output", str(unfinished), *ours, BASE, PAUSE, CLICKHOUSE)
        unfinished.rename(archive)
    return archive


def _digest() -> str:
    """Return a digest of everything that the images are made of."""
    total = hashlib.sha256()
    for source in (*(ROOT / name for name in SOURCES), CLICKHOUSE_FILES, GO / "pause"):
        for path in sorted([source, *source.rglob("*")]):
            if path.is_file() and "__pycache__" not in path.parts:
                total.update(f"{path.relative_to(ROOT)}\n".encode())
                total.update(path.read_bytes())
    return total.hexdigest()


def _import_pause(engine: Engine, directory: Path) -> None:
    *variables, go = install.go_command()
    build = ["build", "-trimpath", "-ldflags=-s -w", "-o", str(directory / "pause"), "."]
    install.run_command(["env", *variables, go, *build], GO / "pause")
    install.run_command(["tar", "-cf", "pause.tar", "pause"], directory)
    change = '--change=ENTRYPOINT ["/pause"]'
    engine.output("import", change, str(directory / "pause.tar"), PAUSE)


def _build_clickhouse(engine: Engine, directory: Path) -> None:
    """Build an image of Debian's ClickHouse with the name of the real one."""
    place, context = install.debian(), directory / "context"
    (context / "libraries").mkdir(parents=True)
    server = place / "usr/sbin/clickhouse-server"
    shutil.copy2(server, context)
    for library in _libraries(server, install.library_path(place)):
        shutil.copy2(library, context / "libraries")
    for source in CLICKHOUSE_FILES.iterdir():
        shutil.copy2(source, context)
    engine.build(context / "Dockerfile", CLICKHOUSE)


def _libraries(program: Path, environment: dict[str, str]) -> Iterator[Path]:
    """Yield the shared libraries that a program loads."""
    said = install.run_command(
        ["env", *(f"{k}={v}" for k, v in environment.items()), "ldd", str(program)]
    )
    for line in said.splitlines():
        _, arrow, path = line.partition(" => ")
        if arrow:
            yield Path(path.split(" (")[0])
