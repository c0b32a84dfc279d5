"""Fleets for the dashboard: as on most days, empty, and with everything that can be wrong."""

from collections.abc import Awaitable, Callable, Mapping

import msgspec

from byoc_agents.app.cloudevents import Agent, rfc3339
from byoc_control_plane.rows import build_row
from byoc_control_plane.store import Store, insert_rows
from lab.control_plane.fleet_rows import END_MS, store_fleet, usage_line
from lab.control_plane.messages import Replica
from lab.control_plane.simulation import START_MS
from lab.fakes.billing import ReplicaHistory

REPLICAS = 300
DAY_MS = 86_400_000
DAYS = 6  # before the day of the fleet
NOW_MS = END_MS + 5_000
EARLIER = {  # the columns of a day's copy that are moved
    "byoc_usage": ("charge_period_start", "charge_period_end"),
    "byoc_state": ("time", "arrived_at", "seen_at", "state_since"),
    "byoc_alerts": ("time", "arrived_at", "seen_at", "received_at", "starts_at", "started_at"),
}
EPOCHS = {"byoc_usage", "byoc_state"}
LONG = (
    "international-industrial-analytics-holding",
    "customer-facing-analytics-production-eu-central-1",
    "chi-customer-facing-analytics-production-replicated-0-1-0",
)
GRANTS = (  # state, reason, how long ago in seconds, queries
    ("sent", "", 40, 0),
    ("pending", "needs_approval", 700, 0),
    ("open", "", 1500, 0),
    ("closed", "expired", 90_000, 1214),
    ("closed_incomplete", "kill_switch", 200_000, 3),
    ("denied", "denied", 260_000, 0),
)


async def store_normal(store: Store) -> None:
    """Insert the fleet of the simulation, and its half hour of the six days before."""
    await store_fleet(store, REPLICAS)
    for number in range(1, DAYS + 1):
        for table, columns in EARLIER.items():
            moved = [f"{one} - INTERVAL {number} DAY AS {one}" for one in columns]
            if table in EPOCHS:
                moved.append(f"epoch - {number * DAY_MS} AS epoch")
            if table == "byoc_usage":  # another pod: the rest of the day has no container
                moved.append(f"concat(pod_uid, '-{number}') AS pod_uid")
            copied = f"* REPLACE(concat(id, '-{number}') AS id, {', '.join(moved)})"
            begin = f"'{rfc3339(START_MS - DAY_MS // 2).removesuffix('Z')}'"
            rows = f"(SELECT * FROM {table} WHERE {columns[0]} >= {begin})"
            await store.run(f"INSERT INTO {table} SELECT {copied} FROM {rows}")


async def store_nothing(store: Store) -> None:
    """Insert nothing: no process has received anything yet."""


async def store_problems(store: Store) -> None:
    """Insert the normal fleet, and in addition what a person on call has to see."""
    await store_normal(store)
    await _store_long_names(store)
    await _store_delays(store)
    await _store_grants(store)


async def _store_long_names(store: Store) -> None:
    """Insert a customer with the longest usual names, silent for hours, with old usage."""
    organization, service, replica = LONG
    agent = Agent(
        version="0.1.0", configuration_sha256="f" * 64, ledger_size=1, ledger_root=f"{1:043}="
    )
    exporter = Replica(organization, service, replica, agent=agent)
    codes = ("READONLY_REPLICA", "KEEPER_SESSION_EXPIRED", "REPLICATION_LAG", "TOO_MANY_PARTS")
    at_ms = END_MS - 3 * 3_600_000
    row = build_row(exporter.message(at_ms, "degraded", *codes), at_ms + 400)
    await insert_rows(store, row.table, [row.line])
    for days, number in ((0.02, 0), (0.1, 1), (0.5, 2), (3.2, 3)):
        begin_ms = END_MS - int(days * DAY_MS)
        history = ReplicaHistory(
            organization_id=organization,
            service_id=service,
            replica=f"{replica[:-1]}{number + 1}",
            pod_uid=f"uid-{number}",
            now_ms=begin_ms,
            born_ms=begin_ms,
            seed=number,
        )
        await insert_rows(store, "byoc_usage", [usage_line(history.measured())])
        seen = Replica(organization, service, f"{replica[:-1]}{number + 1}", agent=agent)
        row = build_row(seen.message(END_MS - 9_000), END_MS - 8_000)
        await insert_rows(store, row.table, [row.line])


async def _store_delays(store: Store) -> None:
    """Insert an organization whose messages waited, and messages that can never become a row."""
    delayed = {
        "stream": "state",
        "consumer": "a",
        "at": rfc3339(END_MS),
        "steady_since": rfc3339(END_MS - 95_000),
        "redelivery_seconds": 30,
        "organization_id": "org-1",
    }
    await insert_rows(store, "byoc_progress", [msgspec.json.encode(delayed)])
    rejected = [
        {
            "stream": "alerts",
            "id": f"m-{number}",
            "arrived_at": rfc3339(END_MS - number * 4000),
            "reason": "not an event",
            "body": "{}",
        }
        for number in range(1234)
    ]
    await insert_rows(store, "byoc_rejected", map(msgspec.json.encode, rejected))


async def _store_grants(store: Store) -> None:
    rows = []
    for number, (state, reason, seconds, queries) in enumerate(GRANTS):
        since_ms = END_MS - seconds * 1000
        common = {
            "source": f"urn:byoc:{number}",
            "type": "byoc.access.grant.v1",
            "time": rfc3339(since_ms),
            "arrived_at": rfc3339(since_ms),
            "organization_id": LONG[0] if state == "open" else "org-1",
            "service_id": LONG[1] if state == "open" else "s-34",
            "grant_id": f"01K9Z3V7Q8N4X2M6T5R1W0Y{number}BC",
            "role": "read-only",
            "duration_seconds": 3600,
            "ends_at": rfc3339(since_ms + 3_600_000),
        }
        asked = {"id": f"{number}-sent", "state": "sent", "since": rfc3339(since_ms - 60_000)}
        rows.append(common | asked | {"engineer": "eng-8841", "ticket": f"CS-{1200 + number}"})
        if state == "sent":
            continue
        if queries or state == "open":
            opened = {"id": f"{number}-open", "state": "open", "since": rfc3339(since_ms - 30_000)}
            rows.append(common | opened)
        counts = {"queries": queries, "result_rows": queries * 1017}
        now = {"id": f"{number}-now", "state": state, "since": rfc3339(since_ms), "reason": reason}
        rows.append(common | now | {"counts": counts, "record": "complete"})
    await insert_rows(store, "byoc_grants", map(msgspec.json.encode, rows))


FLEETS: Mapping[str, Callable[[Store], Awaitable[None]]] = {
    "normal": store_normal,
    "empty": store_nothing,
    "problems": store_problems,
}
