"""A store on disk, and that it has counted rightly when the test ends."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from byoc_agents.durable.store import SpoolStore, count


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool.db"


@pytest.fixture
def store(path: Path) -> Iterator[SpoolStore]:
    store = SpoolStore(path, max_bytes=1 << 20)
    yield store
    assert store.totals() == count(store.connection)
    store.close()
