"""Every column of every system table of the engine: in a view, or left out for a stated reason.

`python -m lab.real.access_columns --update` writes docs/access-columns.md.
"""

import re
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from lab.real.parts import install

sys.path.append(str(install.CHDB))

from byoc_agents.access import clickhouse_sql as sql
from lab.real.access_engine import KEPT_LOGS, session

LEFT_OUT = Path(__file__).with_name("access_left_out.yaml")
PAGE = install.ROOT / "docs" / "access-columns.md"
Columns = dict[str, list[str]]
HEAD = """\
# What an engineer can read

The views of `byoc_access` are the only tables that the access roles may read
([SQL of the access path](access-sql.md)). This page is generated from the views and from the system
tables of ClickHouse {version}, all optional logs included. A table or column of another version
that is not on this page is in no view, because each view lists its columns.
"""


@dataclass(frozen=True, slots=True)
class Reasons:
    """The contents of access_left_out.yaml."""

    meanings: Mapping[str, str]
    tables: Mapping[str, str]  # table -> reason
    columns: Mapping[str, Mapping[str, str]]  # table -> column -> reason


def load_reasons() -> Reasons:
    """Return the reasons. Raises ValueError if one place has two reasons or an unknown one."""
    content = yaml.safe_load(LEFT_OUT.read_text())
    reasons = Reasons(
        content["reasons"],
        _inverted(content["tables"]),
        {table: _inverted(one) for table, one in content["columns"].items()},
    )
    used = {
        *reasons.tables.values(),
        *(r for one in reasons.columns.values() for r in one.values()),
    }
    if used != set(reasons.meanings):
        raise ValueError(f"reasons: {sorted(used ^ set(reasons.meanings))}")
    return reasons


def _inverted(given: Mapping[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for reason, names in given.items():
        for name in names.split():
            if found.setdefault(name, reason) != reason:
                raise ValueError(f"{name}: {reason} and {found[name]}")
    return found


def read_columns() -> dict[str, set[str]]:
    """Return the columns that the views read, by system table."""
    found: dict[str, set[str]] = {}
    for text in sql.views().values():
        table, alias = re.findall(r"FROM system\.(\w+) AS (\w)", text)[-1]
        found.setdefault(table, set()).update(re.findall(rf"\b{alias}\.(\w+)", text))
    return found


def engine_columns() -> tuple[str, Columns]:
    """Return the engine's version, and the columns of each of its system tables."""
    with tempfile.TemporaryDirectory() as place:
        config = "".join(
            f"<{log}><database>system</database><table>{log}</table>"
            f"<flush_interval_milliseconds>50</flush_interval_milliseconds></{log}>"
            for log in KEPT_LOGS
        )
        with session(Path(place), "columns", admin=True, config=config) as engine:
            engine.query("SELECT 1")
            engine.query("SYSTEM FLUSH LOGS")
            lines = str(
                engine.query(
                    "SELECT table, name FROM system.columns WHERE database = 'system'"
                    " ORDER BY table, position",
                    "TSVRaw",
                )
            ).splitlines()
            version = str(engine.query("SELECT version()", "TSVRaw")).strip()
    found: Columns = {}
    for line in lines:
        table, _, name = line.partition("\t")
        found.setdefault(table, []).append(name)
    return version, found


def mistakes(columns: Columns, reasons: Reasons) -> list[str]:
    """Return each column that is in no view and has no reason, and each reason without a column."""
    read, found = read_columns(), []
    for table, names in columns.items():
        if table in reasons.tables:
            continue
        own = reasons.columns.get(table, {})
        seen = read.get(table, set())
        found += [f"{table}.{n}: no view and no reason" for n in names if n not in {*own, *seen}]
        found += [f"{table}.{n}: in a view and left out" for n in names if n in own and n in seen]
        found += [f"{table}.{n}: no such column" for n in own if n not in names]
    viewed = set(read) | set(reasons.columns)
    found += [f"{table}: in a view and left out" for table in reasons.tables if table in viewed]
    found += [f"{table}: no such table" for table in reasons.tables if table not in columns]
    return found


def page(version: str, columns: Columns, reasons: Reasons) -> str:
    """Return the page."""
    read = read_columns()
    text = [HEAD.format(version=version), "## Reasons\n", "| reason | meaning |", "|---|---|"]
    text += [f"| {reason} | {meaning} |" for reason, meaning in reasons.meanings.items()]
    text += ["\n## Tables with a view\n", "| table | read by a view | left out |", "|---|---|---|"]
    for table in sorted(read):
        seen = ", ".join(f"`{name}`" for name in sorted(read[table]))
        by_reason: dict[str, list[str]] = {}
        for name in columns.get(table, []):
            if name in reasons.columns.get(table, {}):
                by_reason.setdefault(reasons.columns[table][name], []).append(f"`{name}`")
        left = "; ".join(f"{reason}: {', '.join(names)}" for reason, names in by_reason.items())
        text.append(f"| `{table}` | {seen} | {left} |")
    text += ["\n## Tables without a view\n", "| table | columns | reason |", "|---|---|---|"]
    text += [
        f"| `{table}` | {len(names)} | {reasons.tables[table]} |"
        for table, names in sorted(columns.items())
        if table in reasons.tables
    ]
    return "\n".join(text) + "\n"


def main() -> int:
    """Compare the page with the engine, or write it with --update; return 1 for a difference."""
    reasons = load_reasons()
    version, columns = engine_columns()
    found = mistakes(columns, reasons)
    for line in found:
        print(line)
    made = page(version, columns, reasons) if not found else ""
    if "--update" in sys.argv and made:
        PAGE.write_text(made)
    return int(bool(found) or PAGE.read_text() != made)


if __name__ == "__main__":
    sys.exit(main())
