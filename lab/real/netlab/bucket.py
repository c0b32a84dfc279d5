"""Enough of IAM to obey a bucket policy: the rendered one decides, not this lab.

Semantics: "IAM JSON policy elements: condition operators" and "policy evaluation logic" of the
IAM user guide. Whoever asks is taken for the role: signatures are not checked here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

Context = Mapping[str, str]  # condition key -> value; a key that does not apply is absent


@dataclass(frozen=True, slots=True)
class BucketPolicy:
    """A policy's statements, as `byoc-agents policy bucket-policy` prints them."""

    statements: Sequence[Mapping[str, Any]]

    def allows(self, action: str, resource: str, context: Context) -> bool:
        """Tell whether some statement allows it and none denies it."""
        found = [s["Effect"] for s in self.statements if _applies(s, action, resource, context)]
        return "Allow" in found and "Deny" not in found


def _applies(statement: Mapping[str, Any], action: str, resource: str, context: Context) -> bool:
    return (
        any(fnmatchcase(action, pattern) for pattern in _listed(statement["Action"]))
        and any(fnmatchcase(resource, pattern) for pattern in _listed(statement["Resource"]))
        and all(
            OPERATORS[operator](context.get(key), wanted)
            for operator, tests in statement.get("Condition", {}).items()
            for key, wanted in tests.items()
        )
    )


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


# (the request's value or None where it has none, the policy's) -> does the condition hold?
OPERATORS: dict[str, Callable[[str | None, str], bool]] = {
    "StringEquals": lambda value, wanted: value == wanted,
    "StringNotEquals": lambda value, wanted: value != wanted,  # an absent key is not equal
    "Null": lambda value, wanted: (value is None) == (wanted == "true"),
    "Bool": lambda value, wanted: value == wanted,
    "NumericLessThan": lambda value, wanted: value is not None and float(value) < float(wanted),
}
