"""Fill a store with a fleet of the simulation: states, heartbeats, usage and its faults."""

import random
from collections.abc import Iterator

import msgspec

from byoc_agents.alerts.events import Origin
from byoc_agents.app.cloudevents import Agent, encode, rfc3339
from byoc_agents.billing.record import UsageRecord
from byoc_control_plane.rows import TableRow, build_row
from byoc_control_plane.store import Store, insert_rows
from lab.control_plane.messages import heartbeat_event, watch_alert
from lab.control_plane.simulation import START_MS, fleet_messages
from lab.fakes.billing import ReplicaHistory

HOURS = 0.5
END_MS = START_MS + int(HOURS * 3_600_000)
MINUTES = 25  # of usage
DELAYED_MS = START_MS + 4 * 60_000  # before the last message of every silent replica
SILENT_EVERY, LETTERS_EVERY, HOLE_EVERY, UNBILLED_EVERY = 97, 61, 53, 41  # replicas


def _agent(number: int) -> Agent:
    return Agent(
        version="0.2.1" if number % 7 == 0 else "0.2.0",
        configuration_sha256=f"{number % 3:064x}",
        ledger_size=number + 1,
        ledger_root=f"{number:043}=",
    )


def state_rows(replicas: int, seed: int) -> Iterator[TableRow]:
    """Yield the state messages; each SILENT_EVERY-th replica ends ten minutes early."""
    chance = random.Random(seed)
    for fed in fleet_messages(replicas, seed, HOURS):
        number = int(fed.group.rpartition("-")[2])
        if number % SILENT_EVERY == 1 and fed.at_ms > END_MS - 1_200_000:
            continue
        event = msgspec.json.decode(fed.body)
        event["data"]["agent"] = msgspec.to_builtins(_agent(number))
        yield build_row(msgspec.json.encode(event), fed.at_ms + chance.randrange(50, 4000))


def alert_rows(replicas: int) -> Iterator[TableRow]:
    """Yield one heartbeat and one alert per service."""
    for number in range(0, replicas, 3):
        names = f"org-{number // 100}", f"s-{number // 3}", "eu-west-1", f"r-{number}"
        origin = Origin(*names)
        beat = heartbeat_event(END_MS - 20_000, 1, origin=origin, agent=_agent(number))
        data = msgspec.structs.replace(
            beat.data, dead_letters=int(number % LETTERS_EVERY == 9), backlog_records=number % 5
        )
        beat = msgspec.structs.replace(beat, data=data)
        yield build_row(encode(beat), END_MS - 19_000)
        alert = watch_alert(END_MS - 600_000, number, origin=origin)
        yield build_row(encode(alert), END_MS - 600_000 + 900)


def usage_records(replicas: int) -> Iterator[UsageRecord]:
    """Yield the usage of MINUTES, with missing records, gaps, and replicas without any."""
    for number in range(replicas):
        if number % UNBILLED_EVERY == UNBILLED_EVERY - 1:
            continue
        history = ReplicaHistory(
            organization_id=f"org-{number // 100}",
            service_id=f"s-{number // 3}",
            replica=f"r-{number}",
            pod_uid=f"uid-{number}",
            now_ms=START_MS,
            born_ms=START_MS,
            seed=number,
        )
        for minute in range(MINUTES):
            gap = minute == 3 and number % HOLE_EVERY == 1
            record = history.gap("target_unreadable") if gap else history.measured()
            if not (minute == 7 and number % HOLE_EVERY == 2):
                yield record


def usage_line(record: UsageRecord) -> bytes:
    """Return the row of a record with the columns that the views read."""
    data = record.data
    return msgspec.json.encode(
        {"source": record.source, "id": record.id}
        | {
            name: getattr(data, name)
            for name in (
                *("organization_id", "service_id", "replica", "region", "pod_uid"),
                *("container_name", "charge_period_start", "charge_period_end", "quality"),
                *("gap_reason", "epoch", "sequence"),
            )
        }
    )


def delayed_line(replicas: int) -> bytes:
    """Return the progress of an organization whose state messages had waited until DELAYED_MS."""
    return msgspec.json.encode(
        {
            "stream": "state",
            "consumer": "a",
            "at": rfc3339(DELAYED_MS),
            "steady_since": rfc3339(DELAYED_MS),
            "redelivery_seconds": 30,
            "organization_id": f"org-{min(1, (replicas - 1) // 100)}",
        }
    )


async def store_fleet(store: Store, replicas: int, *, seed: int = 7) -> None:
    """Insert a fleet as it is at END_MS. Without replicas, only reception has begun."""
    progress = [
        {
            "stream": stream,
            "consumer": "a",
            "at": rfc3339(END_MS),
            "steady_since": rfc3339(START_MS),
            "redelivery_seconds": 30,
        }
        for stream in ("state", "alerts")
    ]
    await insert_rows(store, "byoc_progress", map(msgspec.json.encode, progress))
    if not replicas:
        return
    await insert_rows(store, "byoc_progress", [delayed_line(replicas)])
    await insert_rows(store, "byoc_state", [row.line for row in state_rows(replicas, seed)])
    await insert_rows(store, "byoc_alerts", [row.line for row in alert_rows(replicas)])
    await insert_rows(store, "byoc_usage", map(usage_line, usage_records(replicas)))
