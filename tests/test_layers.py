"""Who may import whom: the house's one rule that no reviewer has to remember."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import agents

HOUSE = Path(agents.__file__).parent
DAEMONS = ("billing", "state", "alerts")
TOGETHER = {"cli", "policy_cli", "run", "schemas", "demo"}  # they know several daemons

# Layer -> what of ours it may import. A layer is a folder or a file right under `agents`.
MAY_IMPORT = {
    "core": {"core"},
    "egress": {"core", "egress"},
    "sinks": {"core", "egress", "sinks"},
    "clickhouse": {"core", "egress", "clickhouse"},
    "runtime": {"core", "egress", "clickhouse", "runtime"},
    "ledger_cli": {"core", "schemas", "ledger_cli"},
    "testing": {"core", "testing"},
    "doubles": {"core", "doubles"},
    **{d: {"core", "egress", "sinks", "clickhouse", "runtime", d} for d in DAEMONS},
}
FOR_TESTS = {"testing", "doubles"}  # what a daemon's own `testing.py` may import as well
NO_CLOUD = {"aiobotocore", "botocore", "boto3", "aiohttp", "moto", "requests", "urllib3"}
SERVER = HOUSE / "core" / "server.py"


def module(path: Path) -> str:
    parts = path.relative_to(HOUSE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer(name: str) -> str:
    """Return the layer of a module of ours; "" is the package `agents` itself."""
    return name.split(".")[1] if "." in name else ""


def imports(path: Path) -> Iterator[str]:
    """Yield every imported module, wherever in the file the import stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            assert node.module
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from submodules if node.module == "agents" else [node.module]


FILES = sorted(HOUSE.rglob("*.py"))
LAYERED = [path for path in FILES if layer(module(path)) in MAY_IMPORT]


def ours(path: Path) -> set[str]:
    return {layer(name) for name in imports(path) if name.split(".")[0] == "agents"} - {""}


def test_every_file_belongs_to_a_layer() -> None:
    known = MAY_IMPORT.keys() | TOGETHER | {"", "__main__"}
    assert {layer(module(path)) for path in FILES} <= known


@pytest.mark.parametrize("path", LAYERED, ids=module)
def test_a_file_imports_only_what_its_layer_may(path: Path) -> None:
    allowed = MAY_IMPORT[layer(module(path))] | {"__version__"}
    allowed |= FOR_TESTS if path.name == "testing.py" else set()
    assert ours(path) - allowed == set()


@pytest.mark.parametrize("path", [p for p in FILES if layer(module(p)) == "core"], ids=module)
def test_the_core_knows_no_cloud_and_no_http_client(path: Path) -> None:
    found = {name for name in imports(path) if name.split(".")[0] in NO_CLOUD}
    assert found <= ({"aiohttp"} if path == SERVER else set())


def test_the_core_takes_only_the_server_half_of_aiohttp() -> None:
    tree = ast.walk(ast.parse(SERVER.read_text()))
    names = [n for n in tree if isinstance(n, ast.ImportFrom) and n.module == "aiohttp"]
    assert [alias.name for node in names for alias in node.names] == ["web"]


def test_several_daemons_are_imported_only_where_they_are_put_together() -> None:
    several = {module(p) for p in FILES if len(ours(p) & set(DAEMONS)) > 1}
    assert {layer(name) for name in several} <= TOGETHER


def test_nothing_but_the_command_line_imports_the_demo() -> None:
    importers = {module(p) for p in FILES if "demo" in ours(p) and layer(module(p)) != "demo"}
    assert importers <= {"agents.cli"}


def test_an_import_against_the_direction_would_be_seen(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text("def f():\n    from agents import billing\n    import agents.sinks.s3\n")
    assert {layer(name) for name in imports(file)} == {"billing", "sinks"}
