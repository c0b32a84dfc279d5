"""Withhold values of labels and annotations that look like an address or a secret.

The allow-list of names is the first line of defense. This check is the second, for values that
should not be under an allowed name. It is a heuristic: it recognizes forms, not meanings.
"""

import re
from collections.abc import Mapping, Sequence

import msgspec

CUT = "…"  # the last character of a value that was cut
ADDRESS = (
    r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.])",  # IPv4
    r"(?:[0-9A-Fa-f]{1,4}:){3}|::[0-9A-Fa-f]",  # IPv6
    r"\bip-\d+-\d+-\d+-\d+",  # host name of an EC2 instance
    r"\w@[\w-]+\.\w",  # e-mail
    r"\w://",  # URL
)
SECRET = (
    r"(?:AKIA|ASIA)[A-Z0-9]{16}",  # AWS access key
    r"\beyJ[\w-]{8,}\.",  # JSON Web Token
    r"-----BEGIN ",
    r"(?i:passw(?:or)?d|secret|token|api[_-]?key|credentials?)\s*[=:]",
    r"\bgh[pousr]_\w{20}|\bxox[abp]-|\bsk-\w{20}|\bwhsec_",
    r"[0-9A-Fa-f]{32}",  # a key or a hash
    # base64: a run of letters of both cases and digits that is longer than in any name
    r"(?<![A-Za-z0-9+/])(?=[a-z+/0-9]*[A-Z])(?=[A-Z+/0-9]*[a-z])(?=[A-Za-z+/]*\d)[A-Za-z0-9+/]{40}",
)
REFUSED = re.compile("|".join((*ADDRESS, *SECRET)))
# No form of REFUSED matches such a value: each has another character or is longer. Most values are
# like this, so it is checked first.
SHORT_WORD = re.compile(r"[A-Za-z0-9]{0,19}")
WORD = re.compile(r"\S*")  # names, numbers and words, but not sentences, which could be queries


class Picked(msgspec.Struct, frozen=True):
    """The values of the allowed names, and the names of values that were cut or withheld."""

    values: dict[str, str]
    cut: list[str]  # longer than allowed
    withheld: list[str]  # refused: absent from `values`


def pick(
    given: Mapping[str, str], names: Sequence[str], longest: int, *, words: bool = False
) -> Picked:
    """Return the values of `given` that may be sent, at most `longest` characters each.

    With `words`, values with white space are withheld.
    """
    values: dict[str, str] = {}
    cut, withheld = [], []
    for name in names:
        value = given.get(name)
        if value is None:
            continue
        if SHORT_WORD.fullmatch(value):
            values[name] = value
            continue
        shown = value[:longest]
        if REFUSED.search(shown) or not _is_text(shown) or (words and not WORD.fullmatch(shown)):
            withheld.append(name)
            continue
        if len(value) > longest:
            cut.append(name)
            shown = value[: longest - 1] + CUT
        values[name] = shown
    return Picked(values, cut, withheld)


def _is_text(value: str) -> bool:
    """Return whether a value has no invisible characters other than line ends and tabs."""
    return value.replace("\n", "").replace("\t", "").isprintable()
