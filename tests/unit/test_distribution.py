"""The wheel and the image that users install contain the product and nothing else."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import byoc_agents

SOURCE = Path(byoc_agents.__file__).parent
ROOT = SOURCE.parents[1]
DATA = {".json", ".sql", ".typed", ".yaml", ".html", ".css", ".js"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Build the wheel from a copy of the tracked files; return the names of its files."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (tree / name).write_bytes((ROOT / name).read_bytes())
    for path in SOURCE.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            copy = tree / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    (tree / "lab").mkdir()
    (tree / "lab" / "__init__.py").touch()
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", str(tree / "out")]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(tree)], check=True)
    (built,) = (tree / "out").glob("*.whl")
    return {name for name in zipfile.ZipFile(built).namelist() if ".dist-info/" not in name}


def test_the_wheel_holds_exactly_the_package(wheel: set[str]) -> None:
    expected = {
        path.relative_to(SOURCE.parent).as_posix()
        for path in SOURCE.rglob("*")
        if path.suffix in {".py", *DATA} and "__pycache__" not in path.parts
    }
    assert wheel == expected


def test_no_fake_demo_or_test_is_part_of_the_package(wheel: set[str]) -> None:
    assert {name.split("/")[0] for name in wheel} == {"byoc_agents"}
    words = {"fake", "fakes", "demo", "double", "doubles", "testing", "test", "tests", "lab"}
    assert {name for name in wheel if words & set(re.split(r"[/._]", name))} == set()


def test_every_image_is_built_on_one_base_of_a_digest() -> None:
    files = [ROOT / "images" / "Dockerfile", ROOT / "control-plane" / "Dockerfile"]
    text = "".join(file.read_text() for file in files)
    bases = set(re.findall(r"^ARG BASE=(.+)$", text, re.MULTILINE))
    (base,) = bases
    assert re.fullmatch(r"python:\S+@sha256:[0-9a-f]{64}", base)


SOURCE_OF_IMAGE = "agents/byoc_agents"
BROKER_LAYER = "/own/access-broker/4-access/opt/byoc-agents/code/byoc_agents"


def test_the_image_copies_the_package_and_two_programs() -> None:
    """The broker's code a second time, into its own layer: the others' layer loses it."""
    copied = re.findall(
        r"^COPY (?!--from)(.+)$", (ROOT / "images" / "Dockerfile").read_text(), re.MULTILINE
    )
    assert copied == [
        "constraints/images.txt /pins.txt",
        "constraints/runtime.txt /pins.txt",
        "constraints/access.txt /pins.txt",
        "agents/byoc_agents /layers/3-code/opt/byoc-agents/code/byoc_agents",
        "images/launcher.py images/healthcheck.py LICENSE /layers/3-code/opt/byoc-agents/code/",
        *(
            f"{SOURCE_OF_IMAGE}/{name} {BROKER_LAYER}/{name}"
            for name in ("access", "access_commands")
        ),
    ]


def test_the_base_image_is_pinned_by_digest_and_documented() -> None:
    text = (ROOT / "images" / "Dockerfile").read_text()
    (base,) = re.findall(r"^ARG BASE=(\S+)$", text, re.MULTILINE)
    pinned = re.fullmatch(r"([\w.-]+:[\w.-]+)@sha256:[0-9a-f]{64}", base)
    assert pinned is not None
    assert f"`{pinned[1]}` by digest" in (ROOT / "SECURITY.md").read_text()
