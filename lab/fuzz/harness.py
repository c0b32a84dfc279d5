"""A harness: bytes from outside go into one parser, and its result is judged.

A harness raises AssertionError, or whatever the parser should not have raised. The same harnesses
are run by `make test` (hypothesis, always the same inputs) and by `make fuzz` (atheris, guided by
coverage, as long as is wished).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple


class Harness(NamedTuple):
    """One parser."""

    feed: Callable[[bytes], None]
    seeds: Sequence[bytes]  # inputs in good form, to be changed
    words: Sequence[bytes] = ()  # what its grammar is made of


def text(data: bytes) -> str:
    """Return bytes as a setting or a file gives them to us."""
    return data.decode(errors="replace")
