"""Empty rows: there are none, or a grant is missing."""

from byoc_agents.state.observation import ProbeSource, SourceResult, StateObservation
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
FILTERED = {
    ProbeSource.PARTS,
    ProbeSource.REPLICAS,
    ProbeSource.MUTATIONS,
    ProbeSource.DETACHED_PARTS,
}


def hidden(observation: StateObservation) -> set[ProbeSource]:
    return {source for source, how in observation.sources.items() if how is SourceResult.HIDDEN}


async def empty(**more: str | None) -> StateObservation:
    """Look at a server that shows no table; None takes a row away."""
    server = ScriptedServer()
    server.rows |= EMPTY
    del server.rows["system.asynchronous_metrics.NumberOfDetachedParts"]
    for name, value in more.items():
        key = name.replace("__", ".")
        server.rows.pop(key, None) if value is None else server.rows.update({key: value})
    return await Prober(server, clock=FakeClock()).observe()


async def test_empty_rows_with_active_parts_are_a_missing_grant() -> None:
    observation = await empty()
    assert hidden(observation) == FILTERED
    assert observation.figures.stuck_mutations is None, "not 0: not seen"
    assert observation.figures.replicated_tables is None


async def test_a_few_visible_parts_of_many_are_a_missing_grant() -> None:
    assert hidden(await empty(system__parts__sum="9")) == FILTERED


async def test_a_table_that_shows_rows_is_not_hidden() -> None:
    assert hidden(await empty(system__replicas__tables="2")) == FILTERED - {ProbeSource.REPLICAS}


async def test_empty_rows_of_a_server_without_parts_are_the_truth() -> None:
    observation = await empty(system__metrics__PartsActive="0")
    assert hidden(observation) == set()
    assert observation.figures.stuck_mutations == 0


async def test_an_old_server_proves_its_emptiness_by_its_largest_partition() -> None:
    largest = "system__asynchronous_metrics__MaxPartCountForPartition"
    no_metric: dict[str, str | None] = {"system__metrics__PartsActive": None}
    assert hidden(await empty(**no_metric, **{largest: "0"})) == set()
    assert hidden(await empty(**no_metric, **{largest: "3"})) == FILTERED
    assert hidden(await empty(**no_metric, **{largest: None})) == FILTERED, "no proof, no health"


async def test_shared_merge_tree_has_no_replicas_and_that_is_no_blindness() -> None:
    observation = await empty(system__parts__sum="100", system__parts__shared="1")
    assert observation.shared_merge_tree
    assert hidden(observation) == set()
