"""Every command of an image needs no other packages than the pins that the image installs.

Each command is loaded in a process in which all other packages are hidden, with all modules of ours
that it reaches. Then each import inside of a function is executed as well.
"""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import byoc_agents
from byoc_agents.airgap.signed_file import sign_file
from tests.unit.airgap.airgap_harness import BILLING, CUSTOMER, STRANGER, VENDOR
from tests.unit.control_plane.test_plane_import import key_file

ROOT = Path(byoc_agents.__file__).parents[2]
RUNTIME, PLANE, ACCESS = "runtime.txt", "control-plane.txt", "access.txt"
HIDE = """
import importlib.metadata, re, sys

ALLOWED = {"byoc-agents", "byoc-control-plane", *sys.argv.pop(1).split(",")}

def normalize(name):
    return re.sub("[-_.]+", "-", name).lower()

HIDDEN = {
    top
    for top, names in importlib.metadata.packages_distributions().items()
    if not {normalize(name) for name in names} & ALLOWED
}

class Hider:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        hidden = name.partition(".")[0] in HIDDEN
        return None if hidden else self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(Hider, sys.meta_path)
"""
LOAD = f"""{HIDE}
import ast, importlib

found, done, missing = importlib.import_module(sys.argv[1]), set(), set()

def load(name):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing.add((error.name or name).partition(".")[0])

def nested(module):
    for node in ast.walk(ast.parse(open(module.__file__).read())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module

for command in found.COMMANDS.values():
    try:
        command.load()
    except ModuleNotFoundError as error:
        missing.add(error.name.partition(".")[0])
while True:
    ours = [name for name in sys.modules if name.startswith("byoc_") and name not in done]
    if not ours:
        break
    for name in ours:
        done.add(name)
        for imported in nested(sys.modules[name]):
            load(imported)
print(len(done), *sorted(missing))
"""
RUN = f"""{HIDE}
from byoc_control_plane.cli import main
sys.exit(main(sys.argv[1:]))
"""


def pins(*files: str) -> str:
    """Return the names of the pinned packages, normalized, separated by commas."""
    texts = [(ROOT / "constraints" / file).read_text() for file in files]
    return ",".join(re.findall(r"^([\w-]+)==", "".join(texts), re.MULTILINE))


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("module", "files", "extras"),
    [
        ("byoc_agents.app.cli", [RUNTIME], ["cryptography", "jinja2"]),
        ("byoc_agents.app.cli", [RUNTIME, ACCESS], ["jinja2"]),
        ("byoc_control_plane.cli", [RUNTIME, PLANE], ["chdb", "jinja2"]),
    ],
)
def test_the_commands_of_an_image_miss_only_the_packages_of_documented_extras(
    module: str, files: list[str], extras: list[str]
) -> None:
    """The fleet page takes functions of the module that renders reports, which needs jinja2."""
    done = run(LOAD, pins(*files), module)
    assert done.returncode == 0, done.stderr
    count, *missing = done.stdout.split()
    assert missing == extras
    assert int(count) > 50, "modules of ours"


def test_a_package_that_is_not_pinned_would_be_seen() -> None:
    fewer = pins(RUNTIME, PLANE).replace(",pyyaml", "").replace(",cryptography", "")
    done = run(LOAD, fewer, "byoc_control_plane.cli")
    assert {"yaml"} <= set(done.stdout.split()), done


def test_the_image_of_the_control_plane_installs_its_pins_and_those_of_its_extra() -> None:
    text = (ROOT / "control-plane" / "Dockerfile").read_text()
    assert re.findall(r"-r /constraints/(\S+)", text) == [RUNTIME, PLANE]
    with (ROOT / "control-plane" / "pyproject.toml").open("rb") as file:
        (wanted,) = tomllib.load(file)["project"]["optional-dependencies"]["exports"]
    listed = (ROOT / "constraints" / "control-plane.in").read_text().split("  #")[0]
    assert listed == wanted


def test_the_pins_of_the_access_broker_are_those_of_its_extra() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        (wanted,) = tomllib.load(file)["project"]["optional-dependencies"]["access"]
    listed = (ROOT / "constraints" / "access.in").read_text().split("  #")[0]
    assert listed == wanted
    ours = set(
        re.findall(r"^[\w-]+==\S+", (ROOT / "constraints" / ACCESS).read_text(), re.MULTILINE)
    )
    tested = (ROOT / "constraints" / "dev.txt").read_text()
    assert ours
    assert ours <= set(re.findall(r"^[\w-]+==\S+", tested, re.MULTILINE))


@pytest.mark.parametrize(
    ("files", "code", "message"),
    [
        ([RUNTIME, PLANE], 1, "refused: not signed with the given key"),
        ([RUNTIME], 2, "needs cryptography: expected `pip install"),
    ],
    ids=["pinned", "without"],
)
def test_an_import_runs_with_the_pins_of_the_image(
    tmp_path: Path, files: list[str], code: int, message: str
) -> None:
    """It verifies a signature; without the pins of the extra it names the missing package."""
    (tmp_path / "receipts").mkdir()
    export = tmp_path / "export.byoc"
    export.write_bytes(sign_file("export", [], STRANGER, daemon=BILLING, made_at="")[1])
    done = run(
        RUN,
        pins(*files),
        *("import", "org-1", "--key", key_file(tmp_path / "c.pub", CUSTOMER, public=True)),
        *("--sign", key_file(tmp_path / "own.pem", VENDOR, public=False)),
        *("--receipts", str(tmp_path / "receipts"), str(export)),
    )
    assert (done.returncode, message in done.stderr) == (code, True), done.stderr
