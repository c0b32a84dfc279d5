"""Compares two IAM documents by what they allow: the given one may allow no more and no less.

An Allow statement is covered by another if every request that matches it matches the other too.
The proof is per element (principal, action, resource, condition), so it is conservative: what
cannot be proved is reported. The rules are those of the IAM user guide, "Grammar of the IAM JSON
policy language" and "IAM JSON policy elements: Condition operators":

- Action names and condition keys ignore case; resources and StringEquals do not.
- A condition on a key that the request lacks is false. It is true for a negated operator, for
  IfExists, and for ForAllValues, which therefore never replace the plain operator.
- NotPrincipal, NotAction and NotResource in an Allow match almost everything.
- `${*}`, `${?}` and `${$}` are characters, every other `${...}` is a variable.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from byoc_agents.manifest import parse_json
from byoc_agents.policy.drift import PolicyFinding

ELEMENTS = ("Principal", "Action", "Resource")
KNOWN = frozenset({"Sid", "Effect", "Condition", *ELEMENTS, *(f"Not{name}" for name in ELEMENTS)})
# Names under which the AWS command line returns a document.
WRAPPERS = (
    "PolicyDocument",
    "AssumeRolePolicyDocument",
    "Policy",
    "Attributes",
    "PolicyVersion",  # of get-policy-version
    "Document",
)
_TOKEN = re.compile(r"\$\{([^}]*)\}|(.)", re.DOTALL)
_OPERATOR = re.compile(r"(?:(ForAllValues|ForAnyValue):)?(\w+?)(IfExists)?", re.IGNORECASE)
_QUANTIFIERS = {name.lower(): name for name in ("ForAllValues", "ForAnyValue")}
_OPERATORS = {
    name.lower(): name
    for name in (
        *("StringEquals", "StringNotEquals", "StringEqualsIgnoreCase"),
        *("StringNotEqualsIgnoreCase", "StringLike", "StringNotLike"),
        *("ArnEquals", "ArnNotEquals", "ArnLike", "ArnNotLike", "Bool", "Null", "BinaryEquals"),
        *(f"Numeric{how}" for how in ("Equals", "NotEquals", "LessThan", "LessThanEquals")),
        *(f"Numeric{how}" for how in ("GreaterThan", "GreaterThanEquals")),
        *(f"Date{how}" for how in ("Equals", "NotEquals", "LessThan", "LessThanEquals")),
        *(f"Date{how}" for how in ("GreaterThan", "GreaterThanEquals")),
        *("IpAddress", "NotIpAddress"),
    )
}
"""In lower case -> as the IAM user guide writes them; IAM ignores the case."""
_ACCOUNT = re.compile(r"arn:[\w-]+:iam::(\d{12}):root")
TRAPS = {
    "ForAllValues": "ForAllValues is also true if the request does not have the key",
    "IfExists": "IfExists is also true if the request does not have the key",
    "Not": "a negated operator is also true if the request does not have the key",
}


@dataclass(frozen=True, slots=True)
class Condition:
    """One operator and key of a Condition element."""

    quantifier: str  # ForAllValues, ForAnyValue or empty
    operator: str  # without quantifier and IfExists
    if_exists: bool
    key: str
    values: tuple[str, ...]

    @property
    def negated(self) -> bool:
        """Return whether the operator asks for a value that differs."""
        return "Not" in self.operator

    def implies(self, other: "Condition") -> bool:
        """Return whether every request that meets this meets the other."""
        if self.key.lower() != other.key.lower() or self.quantifier != other.quantifier:
            return False
        looser = self.if_exists and not other.if_exists and not self.negated
        if looser or not _same_operator(self, other):
            return False
        if self.operator == "Null" or self.operator.startswith(("Numeric", "Date")):
            return set(self.values) == set(other.values)
        if self.negated:
            return all(_is_covered(value, self.values, self) for value in other.values)
        return all(_is_covered(value, other.values, other) for value in self.values)

    def __str__(self) -> str:
        quantifier = f"{self.quantifier}:" if self.quantifier else ""
        operator = f"{quantifier}{self.operator}{'IfExists' if self.if_exists else ''}"
        return f"{operator} {self.key} {_join_values(self.values)}"


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement; an element that starts with Not is in `inverted`."""

    name: str  # position and Sid
    effect: str
    elements: Mapping[str, frozenset[str]]  # Principal, Action, Resource -> patterns
    inverted: frozenset[str]
    conditions: tuple[Condition, ...]
    unknown: tuple[str, ...]  # names that IAM does not have

    def find_wider(self, other: "Statement") -> list[str]:
        """Return the elements in which this matches requests that the other does not match."""
        found = [name for name in ELEMENTS if not self._within(name, other)]
        return found + [
            f"Condition.{wanted.key}"
            for wanted in other.conditions
            if not any(own.implies(wanted) for own in self.conditions)
        ]

    def _within(self, name: str, other: "Statement") -> bool:
        if (name in self.inverted) != (name in other.inverted):
            return False
        mine, theirs = self.elements.get(name), other.elements.get(name)
        if mine is None or theirs is None or name in self.inverted:
            return mine == theirs
        return bool(mine) and all(any(covers(b, a) for b in theirs) for a in mine)

    def describe(self, element: str) -> str:
        """Return an element as text."""
        if element.startswith("Condition."):
            key = element.partition(".")[2].lower()
            found = [str(one) for one in self.conditions if one.key.lower() == key]
            return ", ".join(found) or "no condition on it"
        prefix = "Not" if element in self.inverted else ""
        patterns = self.elements.get(element)
        return (
            "nothing" if patterns is None else f"{prefix}{element} {_join_values(sorted(patterns))}"
        )


def differences(wanted: Mapping[str, Any], given: object) -> list[PolicyFinding]:
    """Return the findings about a given document; none if it allows exactly the same."""
    document = unwrap_response(given)
    if not isinstance(document, Mapping):
        return [
            PolicyFinding("document", "is not a policy", "an object with Version and Statement")
        ]
    found = []
    if document.get("Version") != wanted["Version"]:  # older: variables are plain text
        version = str(document.get("Version", "missing"))
        found.append(PolicyFinding("Version", f"is {version}", str(wanted["Version"])))
    found += [
        PolicyFinding(str(name), "is not an element of a policy", "Version, Id and Statement")
        for name in document
        if name not in {"Version", "Id", "Statement"}
    ]
    have, wrong = _statements(document.get("Statement"))
    return found + wrong + _compare(_statements(wanted["Statement"])[0], have)


def unwrap_response(given: object) -> object:
    """Return the document inside a response of the AWS command line, e.g. of get-bucket-policy."""
    while isinstance(given, Mapping) and "Statement" not in given:
        found = [given[name] for name in WRAPPERS if given.get(name) is not None]
        if len(found) != 1:  # of several documents, one alone would be judged
            return given
        (inner,) = found
        given = parse_json(inner) if isinstance(inner, str) else inner
    return given


def covers(wide: str, narrow: str) -> bool:
    """Return whether every text that the pattern `narrow` matches is matched by `wide`."""
    return _covers(_tokens(wide), _tokens(narrow))


@lru_cache(maxsize=4096)
def _tokens(pattern: str) -> tuple[str, ...]:
    """Return a pattern as wildcards (`*`, `?`), characters (`=x`) and variables (`$name`)."""
    found = []
    for variable, char in _TOKEN.findall(pattern):
        if variable in {"*", "?", "$"} and not char:
            found.append(f"={variable}")
        elif char:
            found.append(char if char in "*?" else f"={char}")
        else:
            found.append(f"${variable.lower()}")
    return tuple(found)


def _covers(wide: tuple[str, ...], narrow: tuple[str, ...]) -> bool:
    """Return whether `wide` matches all that `narrow` matches, by columns of one table."""
    reach = [True, *[False] * len(narrow)]  # reach[length]: the tokens so far match narrow[:length]
    for token in wide:
        now = [reach[0] and token == "*", *[False] * len(narrow)]  # noqa: S105 - a wildcard
        for length, other in enumerate(narrow, 1):
            if token == "*":  # noqa: S105 - a wildcard
                now[length] = reach[length] or now[length - 1]
            elif token == "?":  # noqa: S105 - a wildcard
                now[length] = reach[length - 1] and (other == "?" or other.startswith("="))
            else:
                now[length] = reach[length - 1] and token == other
        reach = now
    return reach[-1]


def _compare(wanted: list[Statement], given: list[Statement]) -> list[PolicyFinding]:
    found: list[PolicyFinding] = []
    for mine in given:
        if mine.effect == "Allow":
            found += _wider(mine, [one for one in wanted if one.effect == "Allow"])
        elif not any(_is_implied(mine, one) for one in wanted):
            found.append(
                PolicyFinding(mine.name, "denies what the table does not deny", "no such Deny")
            )
    for one in wanted:
        same = [mine for mine in given if mine.effect == one.effect]
        if not any(_is_implied(one, mine) for mine in same):
            lost = "denies less" if one.effect == "Deny" else "allows less"
            found += _missing(one, same, lost)
    return found


def _is_implied(narrow: Statement, wide: Statement) -> bool:
    return narrow.effect == wide.effect and not narrow.find_wider(wide)


def _wider(mine: Statement, wanted: list[Statement]) -> list[PolicyFinding]:
    """Return the elements of an Allow that go beyond the wanted one that is nearest to it."""
    if not wanted:
        return [PolicyFinding(mine.name, "allows what the table does not", "no Allow statement")]
    nearest = _nearest(mine, wanted)
    return [
        PolicyFinding(f"{mine.name}.{element}", _trouble(mine, element), nearest.describe(element))
        for element in mine.find_wider(nearest)
    ]


def _missing(one: Statement, given: list[Statement], lost: str) -> list[PolicyFinding]:
    if not given:
        return [PolicyFinding(one.name, "is missing", f"a statement with Effect {one.effect}")]
    nearest = _nearest(one, given)
    return [
        PolicyFinding(
            f"{nearest.name}.{element}",
            f"{lost} than {one.name}: {nearest.describe(element)}",
            one.describe(element),
        )
        for element in one.find_wider(nearest)
    ]


def _nearest(one: Statement, others: Sequence[Statement]) -> Statement:
    """Return the statement that differs in the fewest elements, and has the same Sid if it can."""
    sid = one.name.partition(" ")[2]
    return min(
        others,
        key=lambda o: (
            len(one.find_wider(o)) + len(o.find_wider(one)),
            o.name.partition(" ")[2] != sid,
        ),
    )


def _trouble(mine: Statement, element: str) -> str:
    text = f"allows more than the table: {mine.describe(element)}"
    if element in mine.inverted:
        return f"{text} (everything but that)"
    key = element.partition(".")[2].lower()
    for one in mine.conditions:
        if key and one.key.lower() == key:
            traps = (one.quantifier, "IfExists" * one.if_exists, "Not" * one.negated)
            text += "".join(f" ({TRAPS[trap]})" for trap in traps if trap in TRAPS)
    return text


def _same_operator(one: Condition, other: Condition) -> bool:
    """Return whether the operator is the same, or narrower than a pattern's."""
    pair = (one.operator, other.operator)
    arn = {"ArnEquals", "ArnLike"}, {"ArnNotEquals", "ArnNotLike"}  # IAM: they behave identically
    if pair[0] == pair[1] or any(set(pair) <= both for both in arn):
        return True
    if pair == ("StringLike", "StringEquals"):
        return not any(_is_pattern(value) for value in one.values)
    if pair == ("StringNotEquals", "StringNotLike"):
        return not any(_is_pattern(value) for value in other.values)
    return pair in {("StringEquals", "StringLike"), ("StringNotLike", "StringNotEquals")}


def _is_pattern(value: str) -> bool:
    """Return whether a text may mean another one to StringLike than to StringEquals."""
    return any(character in value for character in "*?$")


def _is_covered(value: str, patterns: Iterable[str], condition: Condition) -> bool:
    """Return whether a value is among those of a condition, which may be patterns."""
    if "Like" in condition.operator or condition.operator.startswith("Arn"):
        return any(covers(pattern, value) for pattern in patterns)
    return value in patterns


def _statements(given: object) -> tuple[list[Statement], list[PolicyFinding]]:
    listed = given if isinstance(given, list) else [given]
    found, wrong = [], []
    for number, one in enumerate(listed):
        name = f"Statement[{number}]"
        if not isinstance(one, Mapping):
            wrong.append(PolicyFinding(name, "is not a statement", "an object"))
            continue
        try:
            statement = _statement(f"{name} {one['Sid']}" if "Sid" in one else name, one)
        except (TypeError, ValueError) as error:
            wrong.append(PolicyFinding(name, str(error), "an element as the IAM grammar has it"))
            continue
        found.append(statement)
        wrong += [
            PolicyFinding(f"{statement.name}.{key}", "is not an element", ", ".join(sorted(KNOWN)))
            for key in statement.unknown
        ]
    return found, wrong


def _statement(name: str, given: Mapping[str, Any]) -> Statement:
    """Return a statement. Raises ValueError and TypeError for one that IAM would refuse."""
    if given.get("Effect") not in {"Allow", "Deny"}:
        raise ValueError(f"has the Effect {given.get('Effect')}, not Allow or Deny")
    elements: dict[str, frozenset[str]] = {}
    inverted = set()
    for element in ELEMENTS:
        for key in (element, f"Not{element}"):
            if key not in given:
                continue
            if element in elements:
                raise ValueError(f"has {element} and Not{element}")
            patterns = _principals(given[key]) if element == "Principal" else _texts(given[key])
            elements[element] = frozenset(
                text.lower() if element == "Action" else text for text in patterns
            )
            inverted |= {element} if key != element else set()
    return Statement(
        name=name,
        effect=given["Effect"],
        elements=elements,
        inverted=frozenset(inverted),
        conditions=tuple(_conditions(given.get("Condition", {}))),
        unknown=tuple(str(key) for key in given if key not in KNOWN),
    )


def _principals(given: object) -> list[str]:
    if given == "*":
        return ["AWS:*"]
    if not isinstance(given, Mapping):
        raise TypeError("has a Principal that is neither * nor an object")
    # An account and its root are the same. Only a whole `*` is a wildcard in a principal.
    accounts = ((kind, _ACCOUNT.sub(r"\1", text)) for kind in given for text in _texts(given[kind]))
    return [
        f"{kind}:{text if text == '*' else text.replace('*', '${*}')}" for kind, text in accounts
    ]


def _conditions(given: object) -> Iterable[Condition]:
    if not isinstance(given, Mapping):
        raise TypeError("has a Condition that is not an object")
    for operator, tests in given.items():
        parsed = _OPERATOR.fullmatch(str(operator))
        if not parsed or not isinstance(tests, Mapping):
            raise ValueError(f"has a malformed condition {operator}")
        for key, values in tests.items():
            quantifier = _QUANTIFIERS.get((parsed[1] or "").lower(), "")
            plain = _OPERATORS.get(parsed[2].lower(), parsed[2])
            texts = sorted(_texts(values))
            if plain in {"Bool", "Null"}:  # their values are true and false, in any case
                texts = [text.lower() for text in texts]
            yield Condition(quantifier, plain, bool(parsed[3]), str(key), tuple(texts))


def _texts(given: object) -> list[str]:
    """Return a value or a list of values as texts; `true` and 1 are the same as their text."""
    listed = given if isinstance(given, list) else [given]
    if any(one is None or isinstance(one, list | Mapping) for one in listed):
        raise TypeError("has a value that is not a text")
    return [str(one).lower() if isinstance(one, bool) else str(one) for one in listed]


def _join_values(values: Sequence[str]) -> str:
    return values[0] if len(values) == 1 else f"[{', '.join(values)}]"
