"""`byoc-control-plane schema`: the SQL of the control plane, for any of three table engines."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import byoc_agents.billing
from byoc_agents.app.command_line import CommandParser
from byoc_control_plane.cli import COMMANDS

SQL = Path(__file__).parent / "sql"
USAGE_SQL = Path(byoc_agents.billing.__file__).parent / "sql"
VIEWS = (  # in their order
    *("agents_now", "silent_now", "fleet_now", "ledger_heads", "grants_now"),
    *("billing_completeness_since", "billing_completeness_daily", "slo_since", "slo_daily"),
)
FED = re.compile(
    r"^CREATE MATERIALIZED VIEW IF NOT EXISTS (\w+) TO \w+ AS\n(.*)", re.DOTALL | re.MULTILINE
)

TableEngine = Literal["single", "replicated", "shared"]
PREFIXES: dict[TableEngine, str] = {
    "single": "",
    "replicated": "Replicated",  # keeper path and replica name come from the server's defaults
    "shared": "Shared",
}


def main(argv: Sequence[str]) -> int:
    """Print the statements; return 0."""
    asked = make_parser().parse_args(argv)
    statements = tenant_statements() if asked.tenants else table_statements(asked.engine)
    sys.stdout.write(";\n\n".join(statements) + ";\n")
    return 0


def make_parser() -> CommandParser:
    """Return the parser of the command."""
    parser = COMMANDS["schema"].parser()
    parser.add_argument(
        "--engine", choices=sorted(PREFIXES), default="single", help="of the tables"
    )
    parser.add_argument("--tenants", action="store_true", help="print the row policies instead")
    return parser


def split_statements(text: str) -> list[str]:
    """Return the statements of a file; each ends with `;` at the end of a line."""
    return [part.strip().removesuffix(";") for part in text.split(";\n") if part.strip()]


def table_statements(engine: TableEngine = "single") -> list[str]:
    """Return the statements that create the tables that are missing, and this version's views.

    They may be executed again, also by several processes at one time. Tables that exist and their
    rows stay as they are; the views of another version are replaced.
    """
    prefix = PREFIXES[engine]
    usage = (USAGE_SQL / "table.sql").read_text()
    usage = usage.replace("ENGINE = ReplacingMergeTree", f"ENGINE = {prefix}ReplacingMergeTree")
    tables = (SQL / "tables.sql").read_text().replace("{engine}", prefix)
    totals = (USAGE_SQL / "totals.sql").read_text()
    statements = split_statements(usage)
    for statement in split_statements(tables):
        statements.append(statement)
        if fed := FED.search(statement):  # unlike DROP and CREATE, it misses no insert
            statements.append(f"ALTER TABLE {fed[1]} MODIFY QUERY\n{fed[2]}")
    statements += split_statements(f"CREATE OR REPLACE VIEW billing_totals AS\n{totals}")
    for view in VIEWS:
        text = (SQL / f"{view}.sql").read_text()
        text = text.replace("CREATE VIEW IF NOT EXISTS", "CREATE OR REPLACE VIEW")
        statements += split_statements(text)
    return statements


def tenant_statements() -> list[str]:
    """Return the statements that let each customer read its own rows and no others."""
    return split_statements((SQL / "tenants.sql").read_text())
