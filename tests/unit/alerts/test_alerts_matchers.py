"""Matchers: which labels they match, and where an error is reported."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from byoc_agents.alerts.matchers import parse

LABELS = {"severity": "critical", "job": "clickhouse", "path": 'a"b\\c', "note": "two\nlines"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('severity="critical"', True),
        ("severity=critical", True),
        ('severity!="critical"', False),
        ('severity=~"crit"', False),
        ('severity=~"crit.*"', True),
        ("severity=~critical|warning", True),
        ('severity!~"crit.*"', False),
        ('{severity="critical",job=~"click.+"}', True),
        ('{ severity = "critical" , job != "x" , }', True),
        ('severity="critical",job="x"', False),
        ('severity="x";job="clickhouse"', True),
        ('severity="x"\n{job="clickhouse"}\n', True),
        ('{severity="x"};\n;{job="x"}', False),
        ('"severity"="critical"', True),
        ("{}", True),
        ('absent=""', True),
        ('absent!=""', False),
        ('absent=~".+"', False),
        ('absent!~".+"', True),
        (r'path="a\"b\\c"', True),
        (r'note="two\nlines"', True),
        (r'job=~"\w+"', True),
        ('job=~"a;b|click,.*|clickhouse"', True),
    ],
)
def test_matches(text: str, expected: bool) -> None:
    assert parse(text).matches(LABELS) is expected


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "column 1: expected a matcher"),
        (" ; \n ", "column"),
        ("severity", "column 9: expected =, !=, =~ or !~ after severity"),
        ("severity=", "column 10: expected a value after ="),
        ('="x"', "column 1: expected a label name"),
        ('{a="b"', "column 1: { without }"),
        ('{a="b" c="d"}', "column 8: expected , or }"),
        ('a="b" c="d"', "column 7: expected , between matchers and ; between sets"),
        ('a="b"}', "column 6: expected , between"),
        ('a="b', 'column 3: " without a closing "'),
        (
            'a="b";\nc=~"(x"',
            "line 2, column 4: invalid regular expression '(x': missing ): (x",
        ),
        ('a=="b"', "column 3: expected a value after ="),
        ("a='b'", "column 3: expected a value after ="),
    ],
)
def test_an_error_names_line_and_column(text: str, error: str) -> None:
    with pytest.raises(ValueError, match=re.escape(error)):
        parse(text)


def test_a_pattern_matches_against_all_of_a_long_value() -> None:
    value = "a" * 100_000 + "b"
    assert parse('x=~"a+b"').matches({"x": value})
    assert not parse('x=~"(a+)+c"').matches({"x": value})


@given(st.text(), st.sampled_from(["=", "!="]), st.text())
def test_every_text_can_be_quoted(value: str, operator: str, other: str) -> None:
    quoted = value.replace("\\", "\\\\").replace('"', '\\"')
    matcher = parse(f'x{operator}"{quoted}"')
    assert matcher.matches({"x": other}) is ((value == other) == (operator == "="))


@given(st.text(max_size=30))
def test_any_text_is_parsed_or_raises_value_error(text: str) -> None:
    reason = ""
    try:
        parse(text).matches(LABELS)
    except ValueError as error:
        reason = str(error)
    assert not reason or "column" in reason
