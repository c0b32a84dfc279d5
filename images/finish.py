"""Runs once inside the base image: its programs need to know this Python, and pip has to go.

It also loads every daemon, so that a base with another Python than the builder's fails here, and
so that the standard library's modules they use are compiled.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

CODE = Path("/opt/byoc-agents/code")
PROGRAMS = {"byoc-agents": "launcher.py", "byoc-agents-healthcheck": "healthcheck.py"}
STATE = Path("/var/lib/byoc-agents")
UID, GID = 65532, 0  # any uid with group 0 may write there too
INSTALLERS = ("pip", "setuptools", "wheel", "pkg_resources", "_distutils_hack", "ensurepip")
LOAD_ALL = """
import sys
sys.path[:0] = ["/opt/byoc-agents/code", "/opt/byoc-agents/lib"]
from byoc_agents.app import run
from byoc_agents import schema as schemas
from byoc_agents import audit as verify
from byoc_agents import report as ledger_cli
from byoc_agents.policy import cli as policy_cli
for name in run.DAEMONS:
    run.daemon_spec(name)
"""


def write_programs() -> None:
    """Put our programs on PATH, with this Python in their first line: no shell, no env."""
    for name, source in PROGRAMS.items():
        program = Path("/usr/local/bin") / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(f"#!{sys.executable} -IS\n{(CODE / source).read_text()}")
        program.chmod(0o755)


def remove_installers() -> None:
    """Remove pip and its like from wherever the base keeps them."""
    libraries = {sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")}
    libraries |= {"/usr/lib/python3/dist-packages", "/usr/local/lib/python3/dist-packages"}
    for place in map(Path, libraries):
        for name in INSTALLERS:
            for found in [place / name, *place.glob(f"{name}-*-info")]:
                shutil.rmtree(found, ignore_errors=True)
        (place / "distutils-precedence.pth").unlink(missing_ok=True)
    for place in (Path("/usr/bin"), Path("/usr/local/bin")):
        for program in [*place.glob("pip*"), *place.glob("wheel*")]:
            program.unlink()
    shutil.rmtree("/usr/share/python-wheels", ignore_errors=True)


def make_state() -> None:
    """Make the folder of the spool and the ledger."""
    STATE.mkdir(parents=True)
    os.chown(STATE, UID, GID)
    STATE.chmod(0o770)


if __name__ == "__main__":
    write_programs()
    remove_installers()
    make_state()
    subprocess.run([sys.executable, "-IS", "-c", LOAD_ALL], check=True)
