"""Find type names with two meanings: `python -m lab.names` prints them.

A reader who meets `State` wants to know which one. Every class and every type alias of the product
and of the control plane, which imports the product, has a name of its own. Private ones (with an
underscore) count as collisions only with public ones.
"""

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = (ROOT / "agents" / "byoc_agents", ROOT / "control-plane" / "byoc_control_plane")
PER_DAEMON = {"Settings"}  # each daemon's settings, always used with the daemon's name
# Constants are in capitals and functions in lower case, so a name in CamelCase is a type, whatever
# is assigned to it: `tuple[int, int]`, `Literal[...]`, a union, another name, a call.
TYPE_NAME = re.compile(r"_?[A-Z][A-Z0-9]*[a-z][A-Za-z0-9]*")


def types_of(path: Path) -> Iterator[str]:
    """Yield the names of the types that a module defines at its top level."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [target.id for target in targets if isinstance(target, ast.Name)]
            yield from (name for name in names if TYPE_NAME.fullmatch(name))


def collisions(*sources: Path) -> dict[str, list[str]]:
    """Return type name -> the modules that define it, if there is more than one."""
    places: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for source in sources or SOURCES:
        for path in sorted(source.rglob("*.py")):
            module = ".".join(path.relative_to(source.parent).with_suffix("").parts)
            for name in types_of(path):
                places[name.lstrip("_")].add((module, name))
    return {
        name: sorted(f"{module}.{written}" for module, written in found)
        for name, found in sorted(places.items())
        if len({module for module, _ in found}) > 1
        and any(not written.startswith("_") for _, written in found)
        and name not in PER_DAEMON
    }


if __name__ == "__main__":
    found = collisions()
    for name, modules in found.items():
        print(f"{name}: {', '.join(modules)}")
    print(f"{len(found)} type names are used for more than one thing")
    sys.exit(1 if found else 0)
