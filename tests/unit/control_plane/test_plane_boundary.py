"""The product never imports the vendor's side."""

import ast
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def imported(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found


def test_no_module_of_the_product_imports_the_control_plane() -> None:
    modules = list((ROOT / "agents").rglob("*.py")) + list((ROOT / "images").rglob("*.py"))
    assert modules
    assert [path for path in modules if "byoc_control_plane" in imported(path)] == []


def test_the_control_plane_imports_the_product_only_and_its_own_dependencies() -> None:
    project = tomllib.loads((ROOT / "control-plane/pyproject.toml").read_text())["project"]
    assert "byoc-agents" in " ".join(project["dependencies"])
    agents = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    theirs = {line for line in project["dependencies"] if not line.startswith("byoc-agents")}
    assert theirs <= {line.partition("  #")[0] for line in agents}
    for path in (ROOT / "control-plane").rglob("*.py"):
        assert not {"lab", "tests"} & imported(path), path


def test_both_distributions_have_one_version() -> None:
    from byoc_agents import __version__ as agents  # noqa: PLC0415  only compared
    from byoc_control_plane import __version__ as plane  # noqa: PLC0415

    assert agents == plane


def test_the_wheel_holds_the_package_with_its_sql_rules_and_dashboard(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(
        ROOT / "control-plane", tree, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
    )
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", str(tmp_path)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(tree)], check=True)
    (built,) = tmp_path.glob("byoc_control_plane-*.whl")
    found = {name for name in zipfile.ZipFile(built).namelist() if ".dist-info/" not in name}
    source = ROOT / "control-plane"
    assert found == {
        path.relative_to(source).as_posix()
        for path in (source / "byoc_control_plane").rglob("*")
        if path.suffix in {".py", ".sql", ".yaml", ".json", ".typed"}
        and "__pycache__" not in path.parts
    }
