"""Make the Python that is measured: the image's packages, data and CAs, without an image.

Made once from `constraints/runtime.txt` and compiled. The interpreter is Debian's, an optimized
build as in the images; builds of version managers are often slower. The files that `images/` cuts
(botocore's models, the CAs) are used if that folder exists, as `Image.description` states.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from lab.real.parts.install import ROOT
from lab.real.parts.process import PartError

PLACE = ROOT / "build" / "bench" / "runtime"
DEBIANS = Path(f"/usr/bin/python3.{sys.version_info.minor}")
PINS = ROOT / "constraints" / "runtime.txt"
IMAGES = Path(os.environ.get("BENCH_IMAGES", ROOT / "images"))
CUT, TRUST = IMAGES / "cut_botocore.py", IMAGES / "trust.py"
COMPILE = IMAGES / "compile_compact.py"
CACHE = PLACE / "compiled"  # of all modules: the interpreter's own folder belongs to the system
STANDARD = "import sysconfig; print(sysconfig.get_path('stdlib'))"

ENVIRON = {"MALLOC_ARENA_MAX": "1", "FROZENLIST_NO_EXTENSIONS": "1"}  # as images/oci.py has it
LAUNCHER = """
import sys
sys.path[:0] = {paths!r}
from byoc_agents.app.cli import main
sys.exit(main())
"""


@dataclass(frozen=True)
class Image:
    """An interpreter and the environment that the image sets."""

    python: Path
    environ: dict[str, str]
    description: str

    @property
    def command(self) -> list[str]:
        """Return `byoc-agents` as the image starts it."""
        return self.run(LAUNCHER.format(paths=[str(ROOT / "agents"), str(packages())]))

    def run(self, program: str) -> list[str]:
        """Return the command that runs a program isolated, without the module `site`."""
        return [str(self.python), "-X", f"pycache_prefix={CACHE}", "-IS", "-c", program]


def image() -> Image:
    """Return the image, built if it is missing or its inputs changed. Raises PartError."""
    inputs = [path for path in (PINS, CUT, TRUST, COMPILE, Path(__file__)) if path.exists()]
    stamp = hashlib.sha256(b"".join(path.read_bytes() for path in inputs)).hexdigest()
    if not (PLACE / stamp).exists():
        shutil.rmtree(PLACE, ignore_errors=True)
        _make()
        (PLACE / stamp).touch()
    _compile_agents()
    return Image(PLACE / "venv" / "bin" / "python", _environ(), _describe())


def packages() -> Path:
    """Return the folder of the packages that the agents import."""
    (found,) = PLACE.glob("venv/lib/python3.*/site-packages")
    return found


def interpreter() -> Path:
    """Return the Python that is measured."""
    return DEBIANS if DEBIANS.exists() else Path(sys.executable)


def _make() -> None:
    python = PLACE / "venv" / "bin" / "python"
    _run(interpreter(), "-m", "venv", "--without-pip", PLACE / "venv")
    pip = (sys.executable, "-m", "pip", "--python", python)
    _run(*pip, "install", "-q", "--no-deps", "--require-hashes", "-r", PINS)
    cached = (python, "-X", f"pycache_prefix={CACHE}")
    _run(*cached, "-m", "compileall", "-q", packages())
    if COMPILE.exists():
        standard = _run(python, "-c", STANDARD).strip()
        _run(*cached, "-X", "no_debug_ranges", COMPILE, "/", standard, packages())
    if CUT.exists():
        _run(python, CUT, "--in-place")
    if TRUST.exists():
        _run(python, TRUST, "amazon", PLACE / "ca.pem")


def _compile_agents() -> None:
    """Compile the agents each time: the compiled files are not compared with their sources."""
    command = (COMPILE, "/") if COMPILE.exists() else ("-m", "compileall", "-qf")
    python = PLACE / "venv" / "bin" / "python"
    options = ("-X", f"pycache_prefix={CACHE}", "-X", "no_debug_ranges")
    _run(python, *options, *command, ROOT / "agents" / "byoc_agents")


def _environ() -> dict[str, str]:
    if not TRUST.exists():
        return ENVIRON
    trust = {"SSL_CERT_FILE": str(PLACE / "ca.pem"), "SSL_CERT_DIR": str(PLACE / "none")}
    return {**ENVIRON, **trust}


def _describe() -> str:
    cut = "botocore's models cut" if CUT.exists() else "botocore's models whole"
    trust = "Amazon's CAs only" if TRUST.exists() else "the system's CAs"
    text = "without documentation strings" if COMPILE.exists() else "with documentation strings"
    version = _run(interpreter(), "-V").strip()
    return f"{version} ({interpreter()}), the image's packages {text}, {cut}, {trust}"


def _run(*command: object) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise PartError(f"{' '.join(map(str, command[:5]))}: {done.stderr.strip()[-2000:]}")
    return done.stdout
