"""Puts our programs on PATH of an image's root, and makes the folder of its state."""

import sys
from pathlib import Path

PROGRAMS = {"byoc-agents": "launcher.py", "byoc-agents-healthcheck": "healthcheck.py"}
CODE = Path("opt/byoc-agents/code")


def main(root: Path) -> None:
    """Write the programs with Python in their first line: there is no shell and no env."""
    python = Path(sys.executable).resolve().with_name("python3")  # the target's is there, too
    for name, source in PROGRAMS.items():
        program = root / "usr/local/bin" / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(f"#!{python} -IS\n{(root / CODE / source).read_text()}")
        program.chmod(0o755)
    (root / "var/lib/byoc-agents").mkdir(parents=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
