"""Find type names with two meanings: `python -m lab.names` prints them.

A reader who meets `State` wants to know which one. Every class and every type alias of the product
has a name of its own; private ones (with an underscore) count as collisions only with public ones.
"""

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "agents" / "byoc_agents"
PER_DAEMON = {"Settings"}  # each daemon's settings, always used with the daemon's name


def types_of(path: Path) -> Iterator[str]:
    """Yield the names of the types that a module defines at its top level."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if _is_alias(node.value):
                yield from (one.id for one in targets if isinstance(one, ast.Name))


def _is_alias(value: ast.expr) -> bool:
    """Return whether a value is a type: `Literal[...]`, `Callable[...]`, a union of names."""
    if isinstance(value, ast.Subscript):
        return isinstance(value.value, ast.Name) and value.value.id[:1].isupper()
    return isinstance(value, ast.BinOp) and isinstance(value.op, ast.BitOr)


def collisions(source: Path = SOURCE) -> dict[str, list[str]]:
    """Return type name -> the modules that define it, if there is more than one."""
    places: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for path in sorted(source.rglob("*.py")):
        module = ".".join(path.relative_to(source).with_suffix("").parts)
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
