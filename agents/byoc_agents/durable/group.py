"""Group commit: run the operations that wait for the spool's thread in one transaction.

Commits that only add are merged into one change. So SQLite is called a few times per transaction,
not a few times per message: each call releases the interpreter to the thread of the event loop.
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
    """The effect of an operation on disk usage."""

    READ = 1
    GROW = 2  # stores new data: only while the reserve for acknowledgements is held
    SHRINK = 3  # may use the reserve


class Operation(NamedTuple):
    """Work on the store, and the future of its caller."""

    work: Callable[[Store], Any]
    future: asyncio.Future[Any]
    kind: OperationKind
    added: Change | None = None  # its whole effect, if it is a plain change


def grows(group: Sequence[Operation]) -> bool:
    """Return whether one of them stores new data."""
    return any(operation.kind is OperationKind.GROW for operation in group)


def run_group(group: Sequence[Operation], store: Store) -> list[Any]:
    """Return one answer per operation. If one fails, all run again, each in its own savepoint.

    Blocks. Raises SpoolCorruptError and SpoolUnavailableError; any other error is an answer.
    """
    try:
        with store.transaction():
            return _answers(group, store)
    except (SpoolCorruptError, SpoolUnavailableError):
        raise  # the whole transaction is lost
    except Exception:  # noqa: BLE001  raised again below, and returned to its caller
        return [run_isolated(operation.work, store) for operation in group]


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


def run_isolated(work: Callable[[Store], T], store: Store) -> T | Exception:
    """Run one operation in a savepoint. Return its value, or its error so that others continue.

    Blocks. Raises SpoolCorruptError and SpoolUnavailableError: the whole transaction is lost.
    """
    try:
        with store.savepoint():
            return work(store)
    except (SpoolCorruptError, SpoolUnavailableError):
        raise  # the whole transaction is lost
    except Exception as error:  # noqa: BLE001  returned to the caller
        return error
