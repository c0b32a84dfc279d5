"""What waits for the spool's thread, done together in one transaction.

Commits that only add are made one change, so that SQLite is called a few times a transaction and
not a few times a message: each call gives the interpreter away to the loop's thread.
"""

import asyncio
from collections.abc import Callable, Sequence
from enum import Enum
from itertools import groupby
from typing import Any, NamedTuple, TypeVar

from byoc_agents.durable.store import Store
from byoc_agents.durable.write_batch import Change, merged
from byoc_agents.errors import SpoolCorruptError, SpoolUnavailableError

T = TypeVar("T")


class OperationKind(Enum):
    """What an operation does to the disk."""

    READ = 1
    GROW = 2  # takes new data: only while there is room kept for acknowledgements
    SHRINK = 3  # may use that room


class Operation(NamedTuple):
    """Work on the store, and who waits for it."""

    work: Callable[[Store], Any]
    future: asyncio.Future[Any]
    kind: OperationKind
    added: Change | None = None  # all that it does, where it is a plain change


def grows(group: Sequence[Operation]) -> bool:
    """Tell whether one of them takes new data."""
    return any(operation.kind is OperationKind.GROW for operation in group)


def together(group: Sequence[Operation], store: Store) -> list[Any]:
    """Return one answer each: all at once; where one fails, all again, each at its savepoint."""
    try:
        with store.all():
            return _answers(group, store)
    except (SpoolCorruptError, SpoolUnavailableError):
        raise  # the whole transaction is lost
    except Exception:  # noqa: BLE001  found again, and given to its caller
        return [tried(operation.work, store) for operation in group]


def _answers(group: Sequence[Operation], store: Store) -> list[Any]:
    if len(group) == 1:
        return [group[0].work(store)]
    answers: list[Any] = []
    for plain, some in groupby(group, lambda operation: operation.added is not None):
        operations = list(some)
        if plain:
            store.apply(merged([one.added for one in operations if one.added]))
            answers += [None] * len(operations)
        else:
            answers += [operation.work(store) for operation in operations]
    return answers


def tried(work: Callable[[Store], T], store: Store) -> T | Exception:
    """Do one operation; what it does wrong is its own affair, not that of its group."""
    try:
        with store.whole():
            return work(store)
    except (SpoolCorruptError, SpoolUnavailableError):
        raise  # the whole transaction is lost
    except Exception as error:  # noqa: BLE001  given to the caller
        return error
