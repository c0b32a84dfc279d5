"""Modules that are compiled for an image: the same program without its documentation."""

import importlib.util
import marshal
import subprocess
import sys
from pathlib import Path

from images.compile_compact import compile_folder, compile_module

ROOT = Path(__file__).parents[3]
HEAD = 16  # bytes of a .pyc before its code: PEP 552
SOURCE = '''"""Of the module."""
from __future__ import annotations


class Empty:
    """Of a class, and nothing else."""


async def fail(value):
    """Of a function."""
    assert value, "an assertion stays"
    return "a text stays"
'''
RUN = """
import asyncio, sys, traceback
sys.path[:0] = [sys.argv[1]]
import module
assert module.__doc__ is module.Empty.__doc__ is module.fail.__doc__ is None
assert asyncio.run(module.fail(1)) == "a text stays"
try:
    asyncio.run(module.fail(0))
except AssertionError as error:
    print(traceback.extract_tb(error.__traceback__)[-1].lineno, error)
"""


def test_documentation_goes_and_everything_else_stays(tmp_path: Path) -> None:
    folder = tmp_path / "lib"
    folder.mkdir()
    (folder / "module.py").write_text(SOURCE)
    (folder / "template.py").write_text("{% if %}")
    program = ROOT / "images" / "compile_compact.py"
    command = [sys.executable, "-X", "no_debug_ranges", str(program), str(tmp_path), str(folder)]
    subprocess.run(command, check=True)
    done = subprocess.run(
        [sys.executable, "-IS", "-c", RUN, folder], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["11 an assertion stays"]
    (compiled,) = folder.rglob("*.pyc")
    assert marshal.loads(compiled.read_bytes()[HEAD:]).co_filename == "/lib/module.py"


def test_a_module_that_uses_its_documentation_keeps_it() -> None:
    """Pdb adds the documentation of its functions to its own."""
    source = b'"""Used: %s."""\ndef f():\n    """Added."""\n__doc__ += f.__doc__\n'
    found: dict[str, str] = {}
    exec(marshal.loads(compile_module(source, "/x.py")[HEAD:]), found)
    assert found["__doc__"] == "Used: %s.Added."


def test_two_runs_give_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(SOURCE)
    cached = Path(importlib.util.cache_from_source(str(tmp_path / "module.py")))
    found = []
    for _ in range(2):
        compile_folder(tmp_path, tmp_path)
        found.append(cached.read_bytes())
    assert found[0] == found[1]
