"""Withhold values of labels and annotations that look like an address or a secret.

The allow-list of names is the first line of defense. This check is the second, for values that
should not be under an allowed name. It is a heuristic: it recognizes forms, not meanings.
"""

import re
from collections.abc import Mapping, Sequence

import msgspec

CUT = "…"  # the last character of a value that was cut


class Form(msgspec.Struct, frozen=True):
    """A form that is withheld. Every value of this form has one of `marks`, if its case is folded.

    To look for a mark takes nanoseconds per character and for a form ten times as long, and every
    alert is checked. So a form is looked for only in a value with one of its marks.
    """

    marks: tuple[str, ...]
    pattern: re.Pattern[str]

    def is_in(self, value: str, folded: str) -> bool:
        """Return whether a value has the form. `folded` is the value with its case folded."""
        for mark in self.marks:
            if mark in folded:
                return self.pattern.search(value) is not None
        return False


FORMS = tuple(
    Form(marks, re.compile(pattern))
    for marks, pattern in (
        # Addresses: IPv4, IPv6, the host name of an EC2 instance, e-mail, URL.
        ((".",), r"\d(?<![\d.]\d)\d{0,2}\.(?:\d{1,3}\.){2}\d{1,3}(?![\d.])"),
        ((":",), r"[0-9A-Fa-f]{1,4}:(?:[0-9A-Fa-f]{1,4}:){2}"),
        (("::",), r"::[0-9A-Fa-f]"),
        (("ip-",), r"\bip-\d+-\d+-\d+-\d+"),
        (("@",), r"\w@[\w-]+\.\w"),
        (("://",), r"\w://"),
        # Secrets: AWS access key, JSON Web Token, private key, a name with a value, known prefixes.
        (("akia", "asia"), r"(?:AKIA|ASIA)[A-Z0-9]{16}"),
        (("eyj",), r"\beyJ[\w-]{8,}\."),
        (("-----begin ",), r"-----BEGIN "),
        (
            ("passw", "secret", "token", "key", "credent"),
            r"(?i:passw(?:or)?d|secret|token|api[_-]?key|credentials?)\s*[=:]",
        ),
        (
            ("_", "xox", "sk-"),
            r"\bgh[pousr]_\w{20}|\bxox[abp]-|\bsk-\w{20}|\bwhsec_",
        ),
    )
)
# A key or a hash is inside one run of these characters, which is longer than most words.
MIN_RUN = 32
RUN = re.compile(r"[A-Za-z0-9+/]{32,}+")
HEX = re.compile(r"[0-9A-Fa-f][0-9A-Fa-f]{31}")  # `re` finds a single first character faster
# base64: both cases and digits, longer than any name
BASE64 = re.compile(
    r"(?=[a-z+/0-9]*+[A-Z])(?=[A-Z+/0-9]*+[a-z])(?=[A-Za-z+/]*+\d)[A-Za-z0-9+/]{40}"
)
# A value without any of the forms: each form has another character or is longer. Most values are
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
        if is_refused(shown) or not _is_text(shown) or (words and not WORD.fullmatch(shown)):
            withheld.append(name)
            continue
        if len(value) > longest:
            cut.append(name)
            shown = value[: longest - 1] + CUT
        values[name] = shown
    return Picked(values, cut, withheld)


def is_refused(value: str) -> bool:
    """Return whether a value contains something that looks like an address or a secret."""
    folded = value.casefold()
    for form in FORMS:
        if form.is_in(value, folded):
            return True
    if max(map(len, value.split()), default=0) < MIN_RUN:
        return False
    return any(
        HEX.search(value, *run.span()) or BASE64.match(value, run.start())
        for run in RUN.finditer(value)
    )


def _is_text(value: str) -> bool:
    """Return whether a value has no invisible characters other than line ends and tabs."""
    return value.isprintable() or value.replace("\n", "").replace("\t", "").isprintable()
