"""Compiles Python modules without documentation strings: 2.5 MiB less memory for a daemon.

`python -X no_debug_ranges compile_compact.py ROOT FOLDER...` compiles every module below the
folders. The recorded names are those of a system whose root is ROOT. `python -OO` would also remove
the assertions, and with them checks that libraries rely on. With `-X no_debug_ranges` the tables of
columns are left out: a traceback still shows each file, line and function.

A module that reads its own `__doc__`, for a help text, keeps all of its strings.
"""

import ast
import importlib.util
import marshal
import sys
from pathlib import Path

UNCHECKED_HASH = (1).to_bytes(4, "little")  # PEP 552: never compared with the source
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def compile_module(source: bytes, name: str) -> bytes:
    """Return the content of the .pyc file. Raises SyntaxError."""
    tree = ast.parse(source, name)
    remove_documentation(tree)
    code = compile(tree, name, "exec", dont_inherit=True, optimize=0)
    head = importlib.util.MAGIC_NUMBER + UNCHECKED_HASH + importlib.util.source_hash(source)
    return head + marshal.dumps(code)


def remove_documentation(tree: ast.Module) -> None:
    """Remove the documentation strings of a module, unless it reads its own."""
    nodes = list(ast.walk(tree))
    if any(isinstance(node, ast.Name) and node.id == "__doc__" for node in nodes):
        return
    for node in nodes:
        if isinstance(node, Documented) and ast.get_docstring(node, clean=False) is not None:
            (first, *rest) = node.body
            node.body = rest or [ast.copy_location(ast.Pass(), first)]


def compile_folder(root: Path, folder: Path) -> None:
    """Compile every module below the folder. A file of another syntax is left as it is."""
    for file in sorted(folder.rglob("*.py")):
        try:
            compiled = compile_module(file.read_bytes(), f"/{file.relative_to(root)}")
        except SyntaxError:  # a template, or a test of another version
            continue
        target = Path(importlib.util.cache_from_source(str(file)))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(compiled)


if __name__ == "__main__":
    for argument in sys.argv[2:]:
        compile_folder(Path(sys.argv[1]), Path(argument))
