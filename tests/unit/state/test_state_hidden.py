"""Empty rows: there are none, or we may not see them."""

from byoc_agents.state.observation import Observation, Seen, Source
from byoc_agents.state.probes import Prober
from lab.fakes.core import FakeClock
from lab.fakes.state import ScriptedServer

EMPTY = {
    "system.parts.max": "0",
    "system.parts.sum": "0",
    "system.replicas.tables": "0",
    "system.replicas.expired": "0",
    "system.replicas.lag": "0",
    "system.replicas.queue": "0",
    "system.mutations.pending": "0",
    "system.mutations.stuck": "0",
    "system.detached_parts.detached": "0",
}
FILTERED = {Source.PARTS, Source.REPLICAS, Source.MUTATIONS, Source.DETACHED_PARTS}


def hidden(seen: Observation) -> set[Source]:
    return {source for source, how in seen.seen.items() if how is Seen.HIDDEN}


async def empty(**more: str | None) -> Observation:
    """Look at a server that shows no table; None takes a row away."""
    server = ScriptedServer()
    server.rows |= EMPTY
    del server.rows["system.asynchronous_metrics.NumberOfDetachedParts"]
    for name, value in more.items():
        key = name.replace("__", ".")
        server.rows.pop(key, None) if value is None else server.rows.update({key: value})
    return await Prober(server, clock=FakeClock()).observe()


async def test_empty_rows_beside_active_parts_are_a_missing_grant() -> None:
    seen = await empty()
    assert hidden(seen) == FILTERED
    assert seen.figures.stuck_mutations is None, "not 0: not seen"
    assert seen.figures.replicated_tables is None


async def test_a_few_visible_parts_of_many_are_a_missing_grant() -> None:
    assert hidden(await empty(system__parts__sum="9")) == FILTERED


async def test_what_shows_rows_is_not_hidden_even_then() -> None:
    assert hidden(await empty(system__replicas__tables="2")) == FILTERED - {Source.REPLICAS}


async def test_empty_rows_of_a_server_without_parts_are_the_truth() -> None:
    seen = await empty(system__metrics__PartsActive="0")
    assert hidden(seen) == set()
    assert seen.figures.stuck_mutations == 0


async def test_an_old_server_proves_its_emptiness_by_its_largest_partition() -> None:
    largest = "system__asynchronous_metrics__MaxPartCountForPartition"
    no_metric: dict[str, str | None] = {"system__metrics__PartsActive": None}
    assert hidden(await empty(**no_metric, **{largest: "0"})) == set()
    assert hidden(await empty(**no_metric, **{largest: "3"})) == FILTERED
    assert hidden(await empty(**no_metric, **{largest: None})) == FILTERED, "no proof, no health"


async def test_shared_merge_tree_has_no_replicas_and_that_is_no_blindness() -> None:
    seen = await empty(system__parts__sum="100", system__parts__shared="1")
    assert seen.shared_merge_tree
    assert hidden(seen) == set()
