"""How many scrapers of a fleet seal in its busiest second: the figures of docs/scale.md."""

import random
import uuid
from collections import Counter
from pathlib import Path

import pytest

from byoc_agents.billing.sealer import seal_phase_ms

SEAL_MS = 900_000
PAGE = Path(__file__).parents[3] / "docs" / "scale.md"


@pytest.mark.parametrize(("replicas", "most"), [(1_000, 6), (10_000, 26), (100_000, 146)])
def test_the_busiest_second_is_the_stated_one(replicas: int, most: int) -> None:
    chance = random.Random(1)
    for _ in range({1_000: 0, 10_000: 1_000, 100_000: 11_000}[replicas]):
        chance.getrandbits(128)  # the three fleets are one after the other
    uids = (uuid.UUID(int=chance.getrandbits(128), version=4) for _ in range(replicas))
    seconds = Counter(seal_phase_ms(str(uid), SEAL_MS) // 1000 for uid in uids)
    assert max(seconds.values()) == most
    text = " ".join(PAGE.read_text().split())
    ratio = max(seconds.values()) / (replicas * 1000 / SEAL_MS)
    assert f"{most} " in text
    assert f"{replicas:,} " in text
    assert f"{ratio:.1f} times" in text
