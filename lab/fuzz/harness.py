"""A harness passes bytes from outside to one parser and checks the result.

A harness raises AssertionError, or any exception that the parser should not have raised. `make
test` runs the harnesses with fixed inputs (hypothesis), `make fuzz` with inputs guided by coverage
(atheris), for any time.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple


class Harness(NamedTuple):
    """The harness of one parser."""

    feed: Callable[[bytes], None]
    seeds: Sequence[bytes]  # inputs in good form, to be changed
    words: Sequence[bytes] = ()  # what its grammar is made of


def text(data: bytes) -> str:
    """Decode bytes as settings and files are decoded."""
    return data.decode(errors="replace")
