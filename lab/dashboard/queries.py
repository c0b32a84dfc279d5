"""Ask a store the queries of the dashboard, as Grafana's data source for ClickHouse does."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec

from byoc_agents.app.cloudevents import rfc3339
from byoc_control_plane.store import Store

DAY_MS = 86_400_000
# ClickHouse's type -> the type of a field. The data source gives arrays, maps and tuples as JSON.
FIELD_TYPES = (
    (re.compile("Date"), "time"),
    (re.compile("U?Int|Float|Decimal"), "number"),
    (re.compile("Bool"), "boolean"),
    (re.compile("String|Enum"), "string"),
)
WRAPPED = re.compile(r"^(?:Nullable|LowCardinality)\((.*)\)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What a person has chosen: the range, and one organization or all of them."""

    from_ms: int
    to_ms: int
    organization: str = ""
    interval_seconds: int = 60  # of a point, from the range and the width of the panel
    zone_days: int = 0  # how far the date in the browser's time zone is from that in UTC


def fill_query(sql: str, view: View) -> str:
    """Return a query with the variables and macros that this dashboard uses replaced."""
    keep = r"\1" if view.organization else "1=1"
    sql = re.sub(r"\$__conditionalAll\((.*?\)), \$organization\)", keep, sql)
    sql = sql.replace("${organization:singlequote}", f"'{view.organization}'")
    start, end = view.from_ms // 1000, view.to_ms // 1000
    moments = rf"\1 >= toDateTime({start}) AND \1 <= toDateTime({end})"
    sql = re.sub(r"\$__timeFilter\((\w+)\)", moments, sql)
    days = rf"\1 >= toDate('{_day(view.from_ms)}') AND \1 <= toDate('{_day(view.to_ms)}')"
    sql = re.sub(r"\$__dateFilter\((\w+)\)", days, sql)
    interval = rf"toStartOfInterval(toDateTime(\1), INTERVAL {view.interval_seconds} second)"
    sql = re.sub(r"\$__timeInterval\((\w+)\)", interval, sql)
    local = _day(view.from_ms + view.zone_days * DAY_MS)
    sql = sql.replace("${__from:date:YYYY-MM-DD}", local)
    if "$" in sql:
        raise ValueError(f"a variable or macro without a value: {sql[sql.index('$') :][:40]!r}")
    return sql


async def read_frames(
    store: Store, board: Mapping[str, Any], view: View
) -> dict[str, Sequence[Mapping[str, Any]]]:
    """Return the frames of each panel by its id. Time fields are milliseconds since 1970.

    The present is the end of the range: the fleet of a simulation is of a fixed day.
    """
    now = f"fromUnixTimestamp64Milli(toInt64({view.to_ms}))"
    frames: dict[str, Sequence[Mapping[str, Any]]] = {}
    for panel in board["panels"]:
        queries = [
            (target["refId"], fill_query(target["rawSql"], view).replace("now64(3)", now))
            for target in panel["targets"]
        ]
        frames[str(panel["id"])] = [await _read_frame(store, *query) for query in queries]
    return frames


async def _read_frame(store: Store, ref: str, query: str) -> dict[str, Any]:
    form = "date_time_output_format = 'iso', output_format_json_quote_64bit_integers = 0"
    body = await store.run(f"{query}\nFORMAT JSONCompact SETTINGS {form}")
    found = msgspec.json.decode(body)
    fields = []
    for position, column in enumerate(found["meta"]):
        kind = _field_type(column["type"])
        values = [row[position] for row in found["data"]]
        if kind == "time":
            values = [_milliseconds(value) for value in values]
        fields.append({"name": column["name"], "type": kind, "values": values})
    return {"refId": ref, "fields": fields}


def _field_type(name: str) -> str:
    while wrapped := WRAPPED.match(name):
        name = wrapped[1]
    return next((kind for pattern, kind in FIELD_TYPES if pattern.match(name)), "other")


def _milliseconds(value: str | None) -> int | None:
    if value is None:
        return None
    text = value if "T" in value else f"{value}T00:00:00Z"
    return round(datetime.fromisoformat(text).timestamp() * 1000)


def _day(moment_ms: int) -> str:
    return rfc3339(moment_ms)[:10]
