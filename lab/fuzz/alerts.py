"""Harnesses of the webhook's body, the settings' matchers, and their patterns."""

from pathlib import Path

import msgspec

from byoc_agents.alerts.matchers import Matcher, Pattern, Selector, parse
from byoc_agents.alerts.payload import FINGERPRINT, Group, NotAWebhookError, read
from lab.fuzz.harness import Harness, text

DATA = Path(__file__).parents[2] / "tests" / "unit" / "alerts" / "data"
SPECIAL = "\\.+*?()|[]{}^$"


def webhook(data: bytes) -> None:
    """Read a body. A body built from the result is parsed to the same result."""
    try:
        group = read(data)
    except NotAWebhookError:
        return
    assert group.invalid >= 0
    assert group.truncated >= 0
    for alert in group.alerts:
        assert FINGERPRINT.fullmatch(alert.fingerprint)
        assert alert.starts_at_ms > 0
        assert alert.ends_at_ms is None or alert.status == "resolved"
        assert all(isinstance(value, str) for value in alert.labels.values())
    again = read(_body(group))
    assert [one.fingerprint for one in again.alerts] == [one.fingerprint for one in group.alerts]
    assert [one.labels for one in again.alerts] == [one.labels for one in group.alerts]


def _body(group: Group) -> bytes:
    alerts = [
        {
            "status": one.status,
            "labels": one.labels,
            "annotations": one.annotations,
            "startsAt": "2026-11-23T12:00:00Z",
            "fingerprint": one.fingerprint,
        }
        for one in group.alerts
    ]
    return msgspec.json.encode({"receiver": group.receiver, "alerts": alerts})


def matchers(data: bytes) -> None:
    """Parse matchers. Formatted and parsed again they are equal, and match any labels."""
    try:
        selector = parse(text(data))
    except ValueError as error:
        judge(error)
        return
    labels = {m.name: m.value for matchers in selector.sets for m in matchers}
    for some in ({}, labels, dict.fromkeys(labels, "x")):
        assert selector.matches(some) in {True, False}
    assert _plain(parse(_written(selector))) == _plain(selector)


def judge(error: ValueError) -> None:
    """Check that the error has a position."""
    assert "column" in str(error)


def _plain(selector: Selector) -> list[list[tuple[str, str, str]]]:
    return [[(m.name, m.operator, m.value) for m in matchers] for matchers in selector.sets]


def _written(selector: Selector) -> str:
    return ";".join("{" + ",".join(map(_matcher, matchers)) + "}" for matchers in selector.sets)


def _matcher(matcher: Matcher) -> str:
    return f"{_quoted(matcher.name)}{matcher.operator}{_quoted(matcher.value)}"


def _quoted(plain: str) -> str:
    return '"' + plain.replace("\\", "\\\\").replace('"', '\\"') + '"'


def pattern(data: bytes) -> None:
    """Compile a pattern and run it over texts; a text's own pattern matches that text alone."""
    source = text(data)
    literal = "".join(f"\\{c}" if c in SPECIAL else c for c in source)
    own = Pattern(literal)
    assert own.matches(source)
    assert not own.matches(f"{source}x")
    try:
        compiled = Pattern(source)
    except ValueError:
        return
    for subject in ("", source[:64], "a" * 64, source[:64][::-1]):
        assert compiled.matches(subject) in {True, False}


HALF_A_PAIR = (
    b'{"alerts":[{"status":"firing","labels":{"a":"\\ud800"},"startsAt":"2026-01-01T00:00:00Z"}]}'
)
HARNESSES = {
    "webhook": Harness(
        webhook,
        [path.read_bytes() for path in sorted(DATA.glob("*.json"))]
        + [HALF_A_PAIR],
        [b'"alerts":', b'"startsAt":"', b"0001-01-01T00:00:00Z", b'"\\ud800"', b"[", b"{", b"null",
         b"9999-12-31T23:59:60+23:59", b"-1", b"1e400", b'"resolved"', b'"fingerprint":"'],
    ),
    "matchers": Harness(
        matchers,
        [b'severity=~"critical|warning"', b'{a="b", "c d"!~x.*};\n{}', b'a="\\n\\"\\\\"'],
        [b"=~", b"!~", b"!=", b"=", b"{", b"}", b",", b";", b'"', b"\\n", b"\n", "é".encode()],
    ),
    "pattern": Harness(
        pattern,
        [rb"critical|warning", rb"(?i)[[:^alpha:]]{2,5}?\x{1F600}", rb"(?P<x>a*)*[^\d-]$",
         rb"[a-z]+"],
        [b"(?i)", b"(?s:", b"[[:", b":]]", b"{1000}", b"{0,1000}", b"\\x{", b"(", b")", b"|",
         b"\\D", b"[^", b"]", b"*", b"+?", b"^", b"$", "ß".encode(), "İ".encode()],
    ),
}  # fmt: skip
