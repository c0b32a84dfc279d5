"""Which package may import which: the table in docs/architecture.md."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import byoc_agents

PACKAGE = Path(byoc_agents.__file__).parent
DAEMONS = ("billing", "state", "alerts", "access")
TOGETHER = {"app", "policy", "schema"}  # they know several daemons
WIRING = {"certificate", "daemon", "http_server", "runtime"}
# Modules of `app` that every layer may import.
SHARED = {
    *(
        "clock",
        "cloudevents",
        "command_line",
        "files",
        "heartbeat",
        "keyed_ids",
        "listening",
        "metrics",
        "reloadable_secret",
        "settings",
    ),
    "signals",
}

# Layer -> the layers of ours that it may import. A layer is a folder or a file right under
# `byoc_agents`; `shared` are the modules of `app` named above, `wiring` is what a daemon is
# started with (`app.daemon`, `app.runtime`).
CORE = {"shared", "errors", "message", "durable", "delivery", "ledger"}
MAY_IMPORT = {
    "errors": {"errors"},
    "shared": {"shared", "errors"},
    "message": {"errors"},
    "durable": {"shared", "errors", "message", "durable"},
    "ledger": {"shared", "errors", "message", "durable", "ledger"},
    "delivery": CORE,
    "egress": {*CORE, "egress"},
    "sinks": {*CORE, "egress", "sinks"},
    "clickhouse": {*CORE, "egress", "clickhouse"},
    "servers": {"shared", "clickhouse"},
    "wiring": {*CORE, "egress", "clickhouse", "wiring"},
    "audit": {*CORE, "billing", "audit"},
    "report": {*CORE, "schema", "report"},
    "envelope": {"errors"},
    "manifest": {"errors"},
    "airgap": {*CORE, "envelope", "airgap"},
    "access_commands": {*CORE, "envelope", "access", "report", "access_commands"},
    "usage": {*CORE, "billing", "audit", "report", "usage"},
    **{d: {*CORE, "egress", "sinks", "clickhouse", "servers", "wiring", d} for d in DAEMONS},
}
MAY_IMPORT["access"].add("envelope")
MAY_IMPORT["alerts"].add("manifest")
NO_CLOUD = {"aiobotocore", "botocore", "boto3", "aiohttp", "moto", "requests", "urllib3"}
SERVER = PACKAGE / "app" / "admin_server.py"


def module(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer(name: str) -> str:
    """Return the layer of a module of ours; "" is the package `byoc_agents` itself."""
    parts = name.split(".")[1:]
    if parts[:1] == ["app"] and len(parts) > 1:
        return "shared" if parts[1] in SHARED else "wiring" if parts[1] in WIRING else "app"
    return parts[0] if parts else ""


def imports(path: Path) -> Iterator[str]:
    """Yield every imported module, wherever in the file the import stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            assert node.module
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from submodules if node.module in SPLIT else [node.module]


SPLIT = {"byoc_agents", "byoc_agents.app"}  # `from byoc_agents.app import run` names a module
FILES = sorted(PACKAGE.rglob("*.py"))
LAYERED = [path for path in FILES if layer(module(path)) in MAY_IMPORT]


def ours(path: Path) -> set[str]:
    return {layer(name) for name in imports(path) if name.split(".")[0] == "byoc_agents"} - {""}


def test_every_file_belongs_to_a_layer() -> None:
    known = MAY_IMPORT.keys() | TOGETHER | {"", "__main__"}
    assert {layer(module(path)) for path in FILES} <= known


@pytest.mark.parametrize("path", LAYERED, ids=module)
def test_a_file_imports_only_what_its_layer_may(path: Path) -> None:
    allowed = MAY_IMPORT[layer(module(path))] | {"__version__"}
    assert ours(path) - allowed == set()


@pytest.mark.parametrize("path", [p for p in FILES if layer(module(p)) in CORE], ids=module)
def test_the_core_knows_no_cloud_and_no_http_client(path: Path) -> None:
    found = {name for name in imports(path) if name.split(".")[0] in NO_CLOUD}
    assert found == set()


def test_the_admin_server_takes_only_the_server_half_of_aiohttp() -> None:
    tree = ast.walk(ast.parse(SERVER.read_text()))
    modules = {str(n.module) for n in tree if isinstance(n, ast.ImportFrom)}
    found = {name for name in modules if name.split(".")[0] == "aiohttp"}
    assert found == {"aiohttp.web_request", "aiohttp.web_response"}


def test_no_two_layers_import_each_other() -> None:
    TopologicalSorter({one: may - {one} for one, may in MAY_IMPORT.items()}).prepare()


def test_several_daemons_are_imported_only_where_they_are_put_together() -> None:
    several = {module(p) for p in FILES if len(ours(p) & set(DAEMONS)) > 1}
    assert {layer(name) for name in several} <= TOGETHER


def test_the_product_imports_neither_the_lab_nor_the_tests() -> None:
    outside = {name.split(".")[0] for path in FILES for name in imports(path)} & {"lab", "tests"}
    assert outside == set()


def test_an_import_against_the_direction_would_be_seen(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text(
        "def f():\n    from byoc_agents import billing\n    import byoc_agents.sinks.s3\n"
    )
    assert {layer(name) for name in imports(file)} == {"billing", "sinks"}
