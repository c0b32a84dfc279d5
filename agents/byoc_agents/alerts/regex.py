r"""Anchored regular expressions with Alertmanager's syntax and semantics (RE2).

RE2 matches every pattern in time linear in the text, so a label's value cannot stall the daemon. It
is imported only for patterns that are not an alternation of literals, because it uses 3 MiB.
"""

from collections.abc import Callable

SPECIAL = frozenset(r"\.+*?()[]{}^$")  # without | : "critical|warning" is a set of two literals
MAX_PATTERN_BYTES = 1 << 20  # of memory per pattern: its program and its matching cache
ANY_BYTE = r"\C"  # RE2 has it; Go's regexp, and so Alertmanager, does not


class Pattern:
    """One compiled pattern. It must match the whole text."""

    def __init__(self, text: str) -> None:
        """Compile the pattern. Raises ValueError with the reason if it is invalid."""
        self.text = text
        self._match = _compile(text)

    def matches(self, text: str) -> bool:
        """Return whether all of `text` matches."""
        return self._match(text)


def _compile(text: str) -> Callable[[str], bool]:
    if SPECIAL.isdisjoint(text):
        return frozenset(text.split("|")).__contains__
    import re2  # noqa: PLC0415  most configurations only have literals

    if ANY_BYTE in text.replace(r"\\", ""):
        raise ValueError(rf"invalid escape sequence: {ANY_BYTE}")
    options = re2.Options()
    options.log_errors = False
    options.never_capture = True
    options.max_mem = MAX_PATTERN_BYTES
    try:
        compiled = re2.compile(text, options)
    except re2.error as error:
        (reason,) = error.args
        raise ValueError(reason.decode(errors="replace")) from error
    return lambda value: compiled.fullmatch(value) is not None
