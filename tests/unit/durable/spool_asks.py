"""Operations of a spool that are asked for at once, and how their answers can have come about."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, NamedTuple

from hypothesis import strategies as st

from byoc_agents.durable.model import WriteBatch
from byoc_agents.durable.spool import Spool
from byoc_agents.durable.store import ROW_OVERHEAD_BYTES
from byoc_agents.errors import SpoolError, SpoolUnavailableError
from byoc_agents.message import Message
from tests.unit.durable.plain_spool import Model

MAX_BYTES = 10 * ROW_OVERHEAD_BYTES + 6000
CANCELLED = ("", "", "", "before", "midway")


class Ask(NamedTuple):
    """One operation: the call, its effect on a model, and when it is cancelled."""

    name: str
    of: Callable[[Spool], Awaitable[Any]]
    on: Callable[[Model], Any]
    cancelled: str = ""  # "before" it begins, or "midway", when it has been asked for


def commit(change: WriteBatch) -> Ask:
    return Ask(str(change), lambda s: s.commit(change), lambda m: m.commit(change, MAX_BYTES))


def put(message: Message) -> Ask:
    return commit(WriteBatch(messages=[message]))


def remove(ids: Sequence[str]) -> Ask:
    return Ask(f"remove {ids}", lambda s: s.remove(ids), lambda m: m.remove(ids))


def dead_letter(message: Message) -> Ask:
    name = f"dead_letter {message}"
    return Ask(
        name, lambda s: s.dead_letter(message, "rejected", "400"), lambda m: m.dead_letter(message)
    )


def requeue(message_id: str) -> Ask:
    return Ask(
        f"requeue {message_id}", lambda s: s.requeue(message_id), lambda m: m.requeue(message_id)
    )


BODIES = st.tuples(st.integers(0, 1 << 64), st.sampled_from([1, 1, 4, 250])).map(
    lambda drawn: b"%020d" % drawn[0] * drawn[1]  # up to more than a page
)
NUMBERS = st.integers(0, 7)
IDS = NUMBERS.map("m{}".format)
MESSAGES = st.builds(
    Message,
    id=IDS,
    type=st.just("t"),
    body=BODIES,
    created_at_ms=st.integers(0, 9),
    events=st.integers(0, 3),
    replaces=st.sampled_from(["", "", "", "a", "b"]),
)
CHANGES = st.builds(
    WriteBatch,
    messages=st.lists(MESSAGES, max_size=2),
    state=st.dictionaries(st.sampled_from("xyz"), st.none() | st.binary(max_size=3), max_size=2),
    stage=st.lists(st.binary(max_size=64), max_size=2),
    unstage=st.integers(0, 2),
)
ASKS = st.one_of(
    MESSAGES.map(put),
    CHANGES.map(commit),
    st.lists(IDS, min_size=1, max_size=3).map(remove),
    MESSAGES.map(dead_letter),
    IDS.map(requeue),
)
BATCHES = st.lists(
    st.builds(lambda ask, when: ask._replace(cancelled=when), ASKS, st.sampled_from(CANCELLED)),
    min_size=1,
    max_size=6,
)


async def asked(spool: Spool, batch: Sequence[Ask]) -> list[Any]:
    """Start all at once, one task per operation. Return an answer or an error for each."""
    tasks = [asyncio.ensure_future(ask.of(spool)) for ask in batch]
    for when in ("before", "midway"):
        for ask, task in zip(batch, tasks, strict=True):
            if ask.cancelled == when:
                task.cancel()
        await asyncio.sleep(0)  # by now they have asked
    return await asyncio.gather(*tasks, return_exceptions=True)


def explained(model: Model, batch: Sequence[Ask], answers: Sequence[Any]) -> Iterator[list[Model]]:
    """Yield each way in which the answers can have come about: the models after 0, 1, ... asks."""
    if not batch:
        yield [model]
        return
    for after in _outcomes(model, batch[0], answers[0]):
        for rest in explained(after, batch[1:], answers[1:]):
            yield [model, *rest]


def _outcomes(model: Model, ask: Ask, answer: Any) -> Iterator[Model]:
    if isinstance(answer, SpoolUnavailableError):  # the disk refused it
        yield model
        return
    after = model.copy()
    try:
        said = ask.on(after)
    except SpoolError as error:
        after, said = model, error
    if isinstance(answer, asyncio.CancelledError):
        yield from [model] if ask.cancelled == "before" else [after, model]
    elif (type(said), str(said)) == (type(answer), str(answer)) or _same_error(said, answer):
        yield after


def _same_error(one: Any, other: Any) -> bool:
    return isinstance(one, SpoolError) and type(one) is type(other)
