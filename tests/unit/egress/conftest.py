"""A count of what a gate refuses."""

import pytest

from tests.unit.egress.gate_fakes import Counter


@pytest.fixture
def counter() -> Counter:
    return Counter()
