"""Withhold values of labels and annotations that should not be under an allowed name.

The allow-list of names is the first line of defense, and this check of the values is the second.
The value of a default label must match the pattern of that label, `PATTERNS`: a name as Kubernetes
limits it, or one word. The values of labels that the customer adds, and of annotations, have no
known pattern: they are withheld if they look like an address or a secret. Both are about forms, not
about meanings.
"""

import re
from collections.abc import Mapping, Sequence

import msgspec

CUT = "…"  # the last character of a value that was cut


class Form(msgspec.Struct, frozen=True):
    """A form that is withheld. Every value of this form contains `mark`."""

    mark: str
    pattern: re.Pattern[str]


def _form(mark: str, pattern: str) -> Form:
    return Form(mark, re.compile(pattern))


# By a character that every value of these forms contains. To look for a character or a mark takes a
# hundredth of the time that a form takes, and every alert is checked.
FORMS = (
    (
        ".",
        (
            _form("", r"\d(?<![\d.]\d)\d{0,2}\.(?:\d{1,3}\.){2}\d{1,3}(?![\d.])"),  # IPv4
            _form("@", r"\w@[\w-]+\.\w"),  # e-mail
            _form("eyJ", r"\beyJ[\w-]{8,}\."),  # JSON Web Token
        ),
    ),
    (
        ":",
        (
            _form("", r"[0-9A-Fa-f]{1,4}:(?:[0-9A-Fa-f]{1,4}:){2}"),  # IPv6
            _form("::", r"::[0-9A-Fa-f]"),
            _form("://", r"\w://"),  # URL
        ),
    ),
    (
        "-",
        (
            _form("ip-", r"\bip-\d+-\d+-\d+-\d+"),  # host name of an EC2 instance
            _form("-----BEGIN ", "-----BEGIN "),  # private key
            _form("xox", r"\bxox[abp]-"),
            _form("sk-", r"\bsk-\w{20}"),
        ),
    ),
    ("_", (_form("", r"\bgh[pousr]_\w{20}|\bwhsec_"),)),
)
# A name of a secret with its value. A value of this form has : or =, and one of the marks if its
# case is folded.
NAMED = re.compile(r"(?i:passw(?:or)?d|secret|token|api[_-]?key|credentials?)\s*[=:]")
NAMED_MARKS = ("passw", "secret", "token", "key", "credent")
MIN_KEY = 20  # characters of the shortest form without any of the above, without white space
ACCESS_KEY = re.compile(r"(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[\w-]{35}")  # of AWS; of Google
# Another key or a hash is inside one run of these characters.
RUN = re.compile(r"[A-Za-z0-9+/]{32,}+")
HEX = re.compile(r"[0-9A-Fa-f][0-9A-Fa-f]{31}")  # `re` finds a single first character faster
# base64: both cases and digits, longer than any name
BASE64 = re.compile(
    r"(?=[a-z+/0-9]*+[A-Z])(?=[A-Z+/0-9]*+[a-z])(?=[A-Za-z+/]*+\d)[A-Za-z0-9+/]{40}"
)
# RFC 1123 label. Kubernetes limits a namespace to it, and gives longer names to no pod that a
# controller makes. A dot, which only the name of a pod or of its owner may contain, is refused: it
# would admit the name of every host.
KUBERNETES = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?|")
# A word: letters and digits, joined by single hyphens or underscores, at most 64 characters. The
# names and severities of the rules of kube-prometheus and of Altinity's operator are such words. In
# a word that is long enough for a key, a digit goes before a letter at most once: of 39 random
# characters, 2 in 100 texts are like this.
ONE_WORD = re.compile(
    r"[A-Za-z0-9]{0,19}"
    r"|(?!.{65}|(?=.{20})(?:.*?\d[A-Za-z]){2})[A-Za-z0-9]+(?:[_-][A-Za-z0-9]+)*"
)
PATTERNS = {
    "alertname": ONE_WORD,
    "severity": ONE_WORD,
    "reason": ONE_WORD,
    "cluster": ONE_WORD,
    "namespace": KUBERNETES,
    "pod": KUBERNETES,
    "replica": KUBERNETES,
}
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
    given: Mapping[str, str], names: Sequence[str], longest: int, *, labels: bool = False
) -> Picked:
    """Return the values of `given` that may be sent, at most `longest` characters each.

    With `labels`, values with white space, and those that do not match the pattern of their label,
    are withheld.
    """
    values: dict[str, str] = {}
    cut, withheld = [], []
    for name in names:
        value = given.get(name)
        if value is None:
            continue
        pattern = PATTERNS.get(name) if labels else None
        short = SHORT_WORD.fullmatch(value)
        if short and pattern is not KUBERNETES:  # every other pattern allows it
            values[name] = value
            continue
        if pattern is not None:
            if pattern.fullmatch(value) and (short or not is_refused(value)):
                values[name] = value
            else:
                withheld.append(name)
            continue
        shown = value[:longest]
        if is_refused(shown) or not _is_text(shown) or (labels and not WORD.fullmatch(shown)):
            withheld.append(name)
            continue
        if len(value) > longest:
            cut.append(name)
            shown = value[: longest - 1] + CUT
        values[name] = shown
    return Picked(values, cut, withheld)


def is_refused(value: str) -> bool:
    """Return whether a value contains something that looks like an address or a secret."""
    for character, forms in FORMS:
        if character in value:
            for form in forms:
                if form.mark in value and form.pattern.search(value):
                    return True
    if (":" in value or "=" in value) and _names_secret(value):
        return True
    if max(map(len, value.split()), default=0) < MIN_KEY:
        return False
    return ACCESS_KEY.search(value) is not None or any(
        HEX.search(value, *run.span()) or BASE64.match(value, run.start())
        for run in RUN.finditer(value)
    )


def _names_secret(value: str) -> bool:
    folded = value.casefold()
    return any(mark in folded for mark in NAMED_MARKS) and NAMED.search(value) is not None


def _is_text(value: str) -> bool:
    """Return whether a value has no invisible characters other than line ends and tabs."""
    return value.isprintable() or value.replace("\n", "").replace("\t", "").isprintable()
