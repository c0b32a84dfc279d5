"""A count of what a gate refuses."""

import pytest

from tests.egress.gate_fakes import Counter


@pytest.fixture
def counter() -> Counter:
    return Counter()
