"""Many senders, few inserts; each sender gets the result of its own rows only."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest

from byoc_agents.app.cloudevents import encode
from byoc_control_plane.inserter import Inserter
from byoc_control_plane.metrics import PlaneMetrics
from byoc_control_plane.rows import build_row
from byoc_control_plane.store import RowsRefusedError, StoreError
from lab.control_plane.memory_store import MemoryStore
from lab.control_plane.messages import Replica, watch_alert

NOW_MS = 1_795_435_200_000


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
async def inserter(store: MemoryStore) -> AsyncIterator[Inserter]:
    made = Inserter(store, PlaneMetrics(), max_rows=5)
    task = asyncio.ensure_future(made.run())
    yield made
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def refuse_replica(name: str, store: MemoryStore) -> None:
    def refuse(_table: str, row: dict[str, Any]) -> StoreError | None:
        return RowsRefusedError("no") if row.get("replica") == name else None

    store.refuse = refuse


async def test_what_waits_together_is_inserted_together_up_to_a_bound(
    store: MemoryStore, inserter: Inserter
) -> None:
    replicas = [Replica(replica=f"r-{n}") for n in range(12)]
    rows = [build_row(one.message(NOW_MS), NOW_MS) for one in replicas]
    await asyncio.gather(*(inserter.insert([row]) for row in rows))
    assert len(store.ids("byoc_state")) == 12
    assert store.inserts == 3


async def test_rows_of_several_tables_and_repeats_are_sorted_out(
    store: MemoryStore, inserter: Inserter
) -> None:
    state = build_row(Replica().message(NOW_MS), NOW_MS)
    alert = build_row(encode(watch_alert(NOW_MS, 1)), NOW_MS)
    await inserter.insert([state, alert, state])
    assert len(store.ids("byoc_state")) == len(store.ids("byoc_alerts")) == 1


async def test_an_event_with_the_source_and_id_of_another_organization_replaces_nothing(
    store: MemoryStore, inserter: Inserter
) -> None:
    """One insert has the rows of several senders, and anybody may know a source and an id."""
    event = json.loads(Replica().message(NOW_MS))
    foreign = event | {"data": event["data"] | {"organization_id": "org-2"}}
    other = event | {"data": event["data"] | {"version": "another"}}
    rows = [build_row(json.dumps(one).encode(), NOW_MS) for one in (event, foreign, other)]
    await asyncio.gather(*(inserter.insert([row]) for row in rows))
    assert store.inserts == 1
    found = [(row["organization_id"], row["version"]) for row in store.rows["byoc_state"]]
    assert found == [("org-1", "24.8.1"), ("org-2", "24.8.1"), ("org-1", "another")]


async def test_refused_rows_fail_their_own_sender_only(
    store: MemoryStore, inserter: Inserter
) -> None:
    refuse_replica("r-1", store)
    rows = [build_row(Replica(replica=f"r-{n}").message(NOW_MS), NOW_MS) for n in range(3)]
    found = await asyncio.gather(*(inserter.insert([row]) for row in rows), return_exceptions=True)
    assert [type(one) for one in found] == [type(None), RowsRefusedError, type(None)]
    assert len(store.ids("byoc_state")) == 2


async def test_a_store_that_is_away_fails_all_and_later_works_again(
    store: MemoryStore, inserter: Inserter
) -> None:
    row = build_row(Replica().message(NOW_MS), NOW_MS)
    store.error = StoreError("away")
    with pytest.raises(StoreError):
        await inserter.insert([row])
    store.error = None
    await inserter.insert([row])
    assert len(store.ids("byoc_state")) == 1
