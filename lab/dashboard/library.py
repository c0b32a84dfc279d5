"""Call Grafana's component library in Node: what a reader sees of a panel, and Grafana's types."""

import subprocess
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from lab.real.parts import grafana
from lab.real.parts.process import PartError

# The library asks for the language of the reader, and whether it is part of the server's page.
BROWSER = (
    "--banner:js=globalThis.window ??= globalThis; "
    "globalThis.navigator ??= { language: 'en-US', languages: ['en-US'] };"
)
NODE = ("env", "LC_ALL=C", "TZ=UTC", "node")
COMPILE = (
    *("--noEmit", "--strict", "--skipLibCheck", "--moduleResolution", "node"),
    *("--module", "esnext", "--target", "es2022"),
)


class Text(msgspec.Struct):
    """One value of a stat or a bar gauge, with its unit."""

    title: str
    text: str
    color: str


class Column(msgspec.Struct):
    """A column of a table, or a line of a graph. Colors are those of cells."""

    title: str
    texts: list[str]
    colors: list[str] = []


class Shown(msgspec.Struct):
    """What a reader sees of a panel. `problems`: what Grafana would ignore without a message."""

    title: str
    problems: list[str]
    values: list[Text] = []
    columns: list[Column] = []
    series: list[Column] = []

    def column(self, title: str) -> Column:
        """Return the column or line with this title."""
        return next(one for one in (*self.columns, *self.series) if one.title == title)


def describe_panels(content: bytes) -> dict[str, Shown]:
    """Return each panel by its title. `content` is that of `make_input`. Raises PartError."""
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory) / "describe.cjs"
        grafana.bundle("describe.ts", program, "--platform=node", BROWSER)
        done = subprocess.run(
            ["node", str(program)], input=content, capture_output=True, check=False
        )
    if done.returncode:
        raise PartError(f"describe.ts: {done.stderr.decode()[-2000:]}")
    return {one.title: one for one in msgspec.json.decode(done.stdout, type=list[Shown])}


def find_type_errors(board: dict[str, Any]) -> list[str]:
    """Return what TypeScript reports of a dashboard against the types of @grafana/schema."""
    modules = grafana.components() / "node_modules"
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "board.ts"
        literal = msgspec.json.encode(board).decode()
        types = (grafana.SOURCES / "types.ts").read_text()
        file.write_text(f"{types}export const board: Board = {literal};\n")
        (Path(directory) / "node_modules").symlink_to(modules)
        command = [*NODE, str(modules / "typescript/bin/tsc"), *COMPILE, str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = [line for line in done.stdout.splitlines() if "error TS" in line]
    if bool(done.returncode) != bool(found):
        raise PartError(f"tsc ended with {done.returncode}: {done.stdout}{done.stderr}")
    return found
