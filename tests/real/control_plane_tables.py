"""The control plane's tables in chdb, and rows to fill them."""

import json
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any

import chdb.session

from byoc_agents.app.cloudevents import rfc3339
from byoc_control_plane.rows import build_row
from byoc_control_plane.schema import USAGE_SQL, split_statements, table_statements

TABLES = (
    "byoc_usage",
    "byoc_usage_rejected",
    "byoc_state",
    "byoc_alerts",
    "byoc_agents",
    "byoc_replicas",
    "byoc_grants",
    "byoc_progress",
)
URL = "https://BUCKET.s3.REGION.amazonaws.com"


class SessionStore:
    """A store over a session in this process."""

    def __init__(self, session: chdb.session.Session) -> None:
        self._session = session

    async def run(self, statement: str, data: bytes = b"") -> bytes:
        """Execute a statement and return the bytes of its response."""
        text = f"{statement}\n{data.decode()}" if data else statement
        response = self._session.query(text)
        return bytes(response.bytes()) if response is not None else b""


def empty(session: chdb.session.Session) -> chdb.session.Session:
    """Create the tables and views where they do not exist, and remove every row."""
    for statement in table_statements():
        session.query(statement)
    session.query("SYSTEM STOP TTL MERGES")  # the events of the tests are of a fixed day
    for table in (*TABLES, "byoc_rejected"):
        session.query(f"TRUNCATE TABLE {table}")
    return session


def rows(session: chdb.session.Session, query: str) -> list[dict[str, Any]]:
    """Return rows with every number as its own digits."""
    settings = "output_format_json_quote_decimals=1, output_format_json_quote_64bit_integers=1"
    text = str(session.query(f"{query} SETTINGS {settings}", "JSONEachRow"))
    return [json.loads(line, parse_float=Decimal) for line in text.splitlines()]


def load_usage(session: chdb.session.Session, place: Path) -> None:
    """Load the objects of a directory that is laid out as the bucket."""
    (statement,) = split_statements((USAGE_SQL / "load.sql").read_text())
    opening = f"s3(\n    '{URL}/v1/**/*.jsonl.{{zst,gz}}'"
    assert opening in statement
    session.query(statement.replace(opening, f"file('{place}/v1/**/*.jsonl.{{zst,gz}}'"))


def store_events(session: chdb.session.Session, bodies: Iterable[bytes], arrived_ms: int) -> None:
    """Insert events as the receiving processes do."""
    for body in bodies:
        row = build_row(body, arrived_ms)
        store_rows(session, row.table, [row.line])


def store_rows(session: chdb.session.Session, table: str, lines: Iterable[bytes]) -> None:
    """Insert rows, each a JSON object, with one statement."""
    text = b"\n".join(lines).decode()
    settings = "date_time_input_format='best_effort'"
    session.query(f"INSERT INTO {table} SETTINGS {settings} FORMAT JSONEachRow\n{text}")


def record_progress(
    session: chdb.session.Session,
    at_ms: int,
    *,
    stream: str = "state",
    consumer: str = "a",
    steady_ms: int = 0,
    redelivery: float = 30,
    organization: str = "",
) -> None:
    """Insert one progress row."""
    session.query(
        f"INSERT INTO byoc_progress SETTINGS date_time_input_format='best_effort' VALUES "
        f"('{stream}', '{consumer}', '{rfc3339(at_ms)}', '{rfc3339(steady_ms)}', {redelivery},"
        f" '{organization}')"
    )
