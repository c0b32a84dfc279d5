"""Inputs in good form, changed at a few places, always the same: the short form of `make fuzz`."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.fuzz.harness import Harness
from lab.fuzz.harnesses import HARNESSES

EXAMPLES = 25
EDITS = 6


@st.composite
def changed(draw: st.DrawFn, harness: Harness) -> bytes:
    """Return a seed with pieces of it replaced by words of the grammar, bytes or other seeds."""
    content = draw(st.sampled_from(list(harness.seeds)))
    word = st.sampled_from([*harness.words, *harness.seeds, b""]) | st.binary(max_size=8)
    for _ in range(draw(st.integers(0, EDITS))):
        start = draw(st.integers(0, len(content)))
        gone = draw(st.integers(0, 4) | st.integers(0, len(content)))
        content = content[:start] + draw(word) + content[start + gone :]
    return content


@pytest.mark.parametrize("name", HARNESSES)
def test_any_input_is_read_or_refused_as_declared(name: str) -> None:
    harness = HARNESSES[name]

    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None)
    @given(changed(harness) | st.binary(max_size=64))
    def run(data: bytes) -> None:
        harness.feed(data)

    run()


@pytest.mark.parametrize("name", HARNESSES)
def test_a_harness_reads_its_own_seeds(name: str) -> None:
    for seed in HARNESSES[name].seeds:
        HARNESSES[name].feed(seed)
