"""The CloudWatch queries of docs/access.md, over events of the API server's audit log.

AWS is not here. `Query` knows the commands and operators that AWS' documentation of Logs Insights
has (fields, filter, stats, sort, limit; =, like, not like, in, and, or), refuses every other word,
and evaluates them as it describes: a filter is kept if it is true, a text after `like` is a part of
the value, and a field that the event does not have is equal to nothing.
"""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "access.md").read_text()
QUERIES = [
    block
    for block in re.findall(r"^```text\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    if "@logStream" in block
]
EVERY, COUNTS, FORBIDDEN, SECRETS, RIGHTS = range(5)
VENDOR = "arn:aws:sts::111122223333:assumed-role/byoc-support/anna"
STREAM = "kube-apiserver-audit-0123456789abcdef"
# Fields of audit.k8s.io/v1 Event, and of the log event itself.
FIELDS = {
    *("@timestamp", "@logStream", "user.username", "user.extra.sessionName.0", "verb"),
    *("requestURI", "responseStatus.code", "sourceIPs.0", "objectRef.resource"),
    *("objectRef.subresource", "objectRef.apiGroup"),
}
FIELD = r"@?[A-Za-z][A-Za-z0-9]*(?:\.[A-Za-z0-9]+)*"
LIST = r'\[(?:"[^"]*"(?:, )?)+\]'
CONDITION = re.compile(
    rf'({FIELD}) (?:(=) "([^"]*)"|(like|not like) (?:"([^"]*)"|/([^/]*)/)|(in) ({LIST}))'
)


class Query:
    """One query. Raises ValueError for a word that it does not know."""

    def __init__(self, text: str) -> None:
        self.lines = [line.removeprefix("| ") for line in text.strip().split("\n")]
        self.filters: list[str] = []
        self.shown: list[str] = []
        self.by: list[str] = []
        made: set[str] = set()
        for line in self.lines:
            command, _, rest = line.partition(" ")
            match command:
                case "filter":
                    self.filters.append(rest)
                case "fields":
                    self.shown += rest.split(", ")
                case "stats":
                    name, self.by = self._read_stats(rest)
                    made.add(name)
                case "sort":
                    name, _, order = rest.partition(" ")
                    if order != "desc" or name not in {"@timestamp", *made}:
                        raise ValueError(line)
                case "limit":
                    if not 0 < int(rest) <= 10_000:
                        raise ValueError(line)
                case _:
                    raise ValueError(line)

    def _read_stats(self, rest: str) -> tuple[str, list[str]]:
        found = re.fullmatch(r"count\(\*\) as ([a-z]+) by (.+)", rest)
        if found is None:
            raise ValueError(rest)
        return found[1], found[2].split(", ")

    def fields(self) -> set[str]:
        """Return every name that the query uses."""
        conditions = [found[1] for text in self.filters for found in CONDITION.finditer(text)]
        return {*self.shown, *self.by, *conditions}

    def run(self, events: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the events that every filter keeps."""
        return [one for one in events if all(self._keeps(text, one) for text in self.filters)]

    def count(self, events: list[dict[str, Any]]) -> Counter[tuple[str, ...]]:
        """Return the rows of `stats`."""
        return Counter(tuple(value(e, name) or "" for name in self.by) for e in self.run(events))

    def _keeps(self, text: str, event: dict[str, Any]) -> bool:
        """Evaluate conditions: `and` binds before `or`, and no page uses both."""
        parts = re.split(r" (and|or) (?=[@a-z])", text)
        conditions, words = parts[::2], set(parts[1::2])
        if len(words) > 1:
            raise ValueError(f"expected parentheses: {text}")
        results = [self._holds(one, event) for one in conditions]
        return any(results) if words == {"or"} else all(results)

    def _holds(self, text: str, event: dict[str, Any]) -> bool:
        found = CONDITION.fullmatch(text)
        if found is None:
            raise ValueError(text)
        actual = value(event, found[1])
        if found[2]:
            return actual == found[3]
        if found[7]:
            return actual in json.loads(found[8])
        pattern = re.escape(found[5]) if found[5] is not None else found[6]
        like = actual is not None and re.search(pattern, actual) is not None
        return like if found[4] == "like" else not like


def value(event: dict[str, Any], name: str) -> str | None:
    """Return the value of `a.b.0`, as Logs Insights names what it finds in JSON."""
    place: Any = event
    for key in [name] if name.startswith("@") else name.split("."):
        if isinstance(place, list):
            place = place[int(key)] if int(key) < len(place) else None
        elif isinstance(place, dict):
            place = place.get(key)
        else:
            return None
    return None if place is None else str(place)


def event(
    verb: str, uri: str, user: str = VENDOR, code: int = 200, stream: str = STREAM
) -> dict[str, Any]:
    """Return a line of the audit log about a request, as an API server writes it."""
    path = uri.partition("?")[0].strip("/").split("/")
    group = path[1] if path[0] == "apis" else ""
    rest = path[3:] if group else path[2:]
    names = rest[2:] if rest[:1] == ["namespaces"] and len(rest) > 2 else rest
    reference = {"resource": names[0], "apiVersion": "v1"} | ({"apiGroup": group} if group else {})
    if len(names) > 2:
        reference["subresource"] = names[2]
    return {
        "@timestamp": "2026-11-27 08:00:00.000",
        "@logStream": stream,
        "kind": "Event",
        "apiVersion": "audit.k8s.io/v1",
        "stage": "ResponseComplete",
        "requestURI": uri,
        "verb": verb,
        "user": {"username": user, "extra": {"sessionName": [user.rpartition("/")[2]]}},
        "sourceIPs": ["10.0.0.7"],
        "objectRef": reference,
        "responseStatus": {"code": code},
    }


OWN = "arn:aws:sts::444455556666:assumed-role/admin/berta"
PODS = event("list", "/api/v1/namespaces/db/pods")
SECRET = event("get", "/api/v1/namespaces/db/secrets/key", code=403)
EXEC = event("create", "/api/v1/namespaces/db/pods/ch-0/exec?command=sh", code=403)
LOGS = event("get", "/api/v1/namespaces/db/pods/ch-0/log", code=403)
TOUCH = event("delete", "/apis/apps/v1/namespaces/db/deployments/a", code=403)
ASK = event("create", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", code=201)
BIND = event("create", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", OWN, 201)
OWN_SECRET = event("get", "/api/v1/namespaces/db/secrets/key", OWN)
KUBELET = event("get", "/api/v1/namespaces/db/secrets/key", "system:node:ip-10-0-0-1")
OTHER_LOG = event("get", "/api/v1/namespaces/db/secrets/key", stream="authenticator-0123")
ALL = [PODS, SECRET, EXEC, LOGS, TOUCH, ASK, BIND, OWN_SECRET, KUBELET, OTHER_LOG]


def test_there_are_five_queries_of_documented_words_and_fields_of_the_audit_log() -> None:
    assert len(QUERIES) == 5
    for text in QUERIES:
        query = Query(text)
        assert query.fields() <= FIELDS
        assert query.filters[0] == "@logStream like /^kube-apiserver-audit/"
        query.run(ALL)  # every condition is understood


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (EVERY, [PODS, SECRET, EXEC, LOGS, TOUCH, ASK]),
        (COUNTS, [PODS, SECRET, EXEC, LOGS, TOUCH, ASK]),
        (FORBIDDEN, [SECRET, EXEC, LOGS, TOUCH]),
        (SECRETS, [SECRET, OWN_SECRET]),
        (RIGHTS, [BIND]),
    ],
)
def test_a_query_finds_what_the_page_says(number: int, expected: list[dict[str, Any]]) -> None:
    assert Query(QUERIES[number]).run(ALL) == expected


def test_the_counts_are_per_engineer_and_right() -> None:
    counts = Query(QUERIES[COUNTS]).count([PODS, PODS, SECRET])
    assert counts == {("anna", "list", "pods", "200"): 2, ("anna", "get", "secrets", "403"): 1}


@pytest.mark.parametrize(
    "text", ["where a = 1", 'filter verb is "get"', "sort verb", "stats sum(a) as b by c"]
)
def test_a_word_that_is_not_documented_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Query(text).run(ALL)
