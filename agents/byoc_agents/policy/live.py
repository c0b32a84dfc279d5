"""Compares the resources of a template with the responses of `aws ...`, given as files.

A directory holds one file per response, named after its operation. Policies are compared by what
they allow, other attributes by their values; attributes that the template does not set are not
judged.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from byoc_agents.errors import ConfigError
from byoc_agents.manifest import DuplicateKeyError, parse_json
from byoc_agents.policy import iam
from byoc_agents.policy.drift import PolicyFinding, canonical


@dataclass(frozen=True, slots=True)
class Description:
    """One response of the AWS command line, and what it should say.

    `find` returns the part that is compared; it raises KeyError, IndexError or TypeError if the
    response has no such part.
    """

    file: str
    command: str
    wanted: Any
    find: Callable[[Any], Any]
    policy: bool = False  # compared by what it allows


def read_responses(directory: str, responses: Sequence[Description]) -> dict[str, Any]:
    """Return file -> response. Raises ConfigError if one is missing or is not JSON."""
    found: dict[str, Any] = {}
    mistakes = []
    for file, command in {one.file: one.command for one in responses}.items():
        try:
            found[file] = parse_json((Path(directory) / file).read_text())
        except FileNotFoundError:
            mistakes.append(f"--check {directory}: {file} is missing: expected `{command}`")
        except (OSError, ValueError, DuplicateKeyError) as error:
            mistakes.append(f"--check {directory}: {file}: {error}: expected `{command}`")
    if mistakes:
        raise ConfigError(mistakes)
    return found


def differences(responses: Sequence[Description], given: Mapping[str, Any]) -> list[PolicyFinding]:
    """Return each difference, with the file it is in."""
    return [finding for one in responses for finding in _judge(one, given[one.file])]


def _judge(response: Description, given: Any) -> Iterator[PolicyFinding]:
    try:
        found = response.find(given)
    except (AttributeError, KeyError, IndexError, TypeError) as error:
        yield PolicyFinding(response.file, f"has no {error}", f"`{response.command}`")
        return
    if not response.policy:
        yield from _compare(response.file, response.wanted, found)
        return
    document = {"Policy": found} if isinstance(found, str) else found
    try:
        findings = iam.differences(response.wanted, document)
    except ValueError as error:
        findings = [PolicyFinding("document", str(error), "a policy document")]
    for one in findings:
        yield PolicyFinding(f"{response.file}: {one.where}", one.problem, one.expected)


def _compare(where: str, wanted: Any, given: Any) -> Iterator[PolicyFinding]:
    """Compare the entries that are wanted; lists are compared whole, without their order.

    An entry that is wanted as None may not exist.
    """
    if isinstance(wanted, Mapping) and isinstance(given, Mapping):
        for key, value in wanted.items():
            yield from _compare(f"{where}: {key}", value, given.get(key))
        return
    if isinstance(wanted, Mapping) and isinstance(given, str):  # JSON in a text
        try:
            yield from _compare(where, wanted, parse_json(given))
        except ValueError:
            yield PolicyFinding(where, f"is {given}", str(wanted))
        return
    if canonical(wanted) != canonical(given):
        problem = "is missing" if given is None else f"is {given}"
        yield PolicyFinding(where, problem, "nothing" if wanted is None else str(wanted))
