"""Decide requests by the documents that `byoc-agents policy` prints, as IAM does.

Semantics: IAM user guide, "Policy evaluation logic", "IAM JSON policy elements: Condition
operators", "Single-valued vs. multivalued context keys" and "IAM policy elements: Variables and
tags". Written apart from the product's own comparison of documents, so that each tests the other.
A statement with a variable that has no value does not apply, as the user guide warns.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Context = Mapping[str, str | Sequence[str]]  # condition key -> value; absent if it does not apply
_VARIABLE = re.compile(r"\$\{([^},]+)(?:, *'([^']*)')?\}")
_NAME = re.compile(r"(?:(ForAllValues|ForAnyValue):)?(\w+?)(IfExists)?")


@dataclass(frozen=True, slots=True)
class Request:
    """One request: principal, action, resource and condition keys."""

    action: str
    resource: str
    principal: str = ""  # ARN; empty for a call that is not signed
    context: Context = field(default_factory=dict)

    @property
    def keys(self) -> dict[str, list[str]]:
        """Return the context with lower-case keys, with IAM's own keys about the principal."""
        own: dict[str, str | Sequence[str]] = dict(self.context)
        if self.principal:
            account = self.principal.split(":")[4]
            own = {"aws:PrincipalArn": self.principal, "aws:PrincipalAccount": account} | own
        return {
            key.lower(): [value] if isinstance(value, str) else list(value)
            for key, value in own.items()
        }


class _NoValueError(Exception):
    """A variable has no value in the request."""


def decides(document: Mapping[str, Any], request: Request) -> str:
    """Return `Deny`, `Allow`, or an empty text for the implicit denial."""
    found = {s["Effect"] for s in _listed(document["Statement"]) if applies(s, request)}
    return "Deny" if "Deny" in found else "Allow" if "Allow" in found else ""


def permits(request: Request, *documents: Mapping[str, Any]) -> bool:
    """Return whether each document allows the request, as is required across accounts."""
    return all(decides(document, request) == "Allow" for document in documents)


def applies(statement: Mapping[str, Any], request: Request) -> bool:
    """Return whether a statement is about a request."""
    try:
        return (
            _about(statement, "Principal", lambda given: _is_principal(given, request))
            and _about(statement, "Action", lambda given: _is_action(given, request))
            and _about(statement, "Resource", lambda given: _is_resource(given, request))
            and all(
                _holds(operator, key, _listed(values), request)
                for operator, tests in statement.get("Condition", {}).items()
                for key, values in tests.items()
            )
        )
    except _NoValueError:
        return False


def _about(statement: Mapping[str, Any], name: str, matches: Callable[[Any], bool]) -> bool:
    if f"Not{name}" in statement:
        return not matches(statement[f"Not{name}"])
    return name not in statement or matches(statement[name])


def _is_principal(given: Any, request: Request) -> bool:
    if given == "*":
        return True
    own = {"*", request.principal}
    if request.principal:
        account = request.principal.split(":")[4]
        own |= {account, f"arn:aws:iam::{account}:root"}
    return any(one in own for one in _listed(given.get("AWS", [])))


def _is_action(given: Any, request: Request) -> bool:
    return any(_like(one.lower(), request.action.lower(), {}) for one in _listed(given))


def _is_resource(given: Any, request: Request) -> bool:
    return any(_like(one, request.resource, request.keys) for one in _listed(given))


def _holds(name: str, key: str, wanted: list[Any], request: Request) -> bool:
    parsed = _NAME.fullmatch(name)
    assert parsed, name
    quantifier, operator, if_exists = parsed.groups()
    have = request.keys.get(key.lower())
    texts = [str(one).lower() if isinstance(one, bool) else str(one) for one in wanted]
    if operator == "Null":
        return (have is None) == (texts == ["true"])
    if have is None:
        return (
            bool(if_exists)
            or quantifier == "ForAllValues"
            or ("Not" in operator and quantifier != "ForAnyValue")
        )
    if operator.startswith("Numeric"):
        return all(_NUMERIC[operator](float(value), float(texts[0])) for value in have)
    meets = [_meets(operator, value, texts, request) for value in have]
    return any(meets) if quantifier == "ForAnyValue" else all(meets)


_NUMERIC: dict[str, Callable[[float, float], bool]] = {
    "NumericLessThan": lambda value, limit: value < limit,
    "NumericLessThanEquals": lambda value, limit: value <= limit,
    "NumericGreaterThan": lambda value, limit: value > limit,
}


def _meets(operator: str, value: str, wanted: list[str], request: Request) -> bool:
    """Return whether one value of the request meets the operator and the policy's values."""
    plain = operator.replace("Not", "")
    if plain in {"StringLike", "ArnLike", "ArnEquals"}:
        found = any(_like(one, value, request.keys) for one in wanted)
    elif plain == "StringEqualsIgnoreCase":
        found = value.lower() in {_filled(one, request.keys).lower() for one in wanted}
    else:
        assert plain in {"StringEquals", "Bool"}, operator
        found = value in {_filled(one, request.keys) for one in wanted}
    return found != ("Not" in operator)


def _filled(text: str, keys: Mapping[str, list[str]]) -> str:
    def value(found: re.Match[str]) -> str:
        name, default = found.groups()
        if name in {"*", "?", "$"}:
            return name
        values = keys.get(name.lower(), [])
        if len(values) == 1:
            return values[0]
        if default is None:
            raise _NoValueError(name)
        return default

    return _VARIABLE.sub(value, text)


def _like(pattern: str, text: str, keys: Mapping[str, list[str]]) -> bool:
    """Match with `*` and `?`; those inside the value of a variable are characters."""
    parts, at = [], 0
    for found in _VARIABLE.finditer(pattern):
        parts += [_wild(pattern[at : found.start()]), re.escape(_filled(found[0], keys))]
        at = found.end()
    return bool(re.fullmatch("".join([*parts, _wild(pattern[at:])]), text, re.DOTALL))


def _wild(text: str) -> str:
    return re.escape(text).replace(r"\*", ".*").replace(r"\?", ".")


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]
