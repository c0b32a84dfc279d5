"""Single steps of a store, and its content after them."""

from collections.abc import Callable

from byoc_agents.durable.model import WriteBatch
from byoc_agents.durable.store import SpoolStore
from byoc_agents.message import Message


def message(number: int, body: bytes = b"body", *, replaces: str = "") -> Message:
    return Message(f"m{number}", "t", body, created_at_ms=number, events=2, replaces=replaces)


def do(store: SpoolStore, work: Callable[[], object]) -> None:
    """One transaction."""
    with store.transaction():
        work()


def apply(store: SpoolStore, **change: object) -> None:
    do(store, lambda: store.apply(WriteBatch(**change)))  # type: ignore[arg-type]


def ids(store: SpoolStore) -> list[str]:
    return [m.id for m in store.peek(1000, 1 << 30)]


def seen(store: SpoolStore) -> object:
    return store.peek(1000, 1 << 30), store.staged(), store.state(""), store.dead_letters()
