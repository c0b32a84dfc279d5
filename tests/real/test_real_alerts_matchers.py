"""Our matchers compared with Alertmanager's own: same texts, same verdict, same alerts.

`amtool` 0.25 reads each text as a route's matcher and says where an alert would go. Where we differ
on purpose, the table says so, and why.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest

from byoc_agents.alerts.matchers import parse
from lab.real.parts import install

LABELS = {
    "severity": "critical",
    "job": "clickhouse",
    "path": 'a"b\\c',
    "note": "two\nlines",
    "x": "ab",
}
VALID = (
    'severity="critical"',
    "severity=critical",
    " severity = critical ",
    'severity!="critical"',
    'severity=~"crit"',
    'severity=~"crit.*"',
    "severity=~critical|warning",
    'severity!~"crit.*"',
    '{severity="critical",job=~"click.+"}',
    '{ severity = "critical" , job != "x" , }',
    'severity="critical",job="x"',
    'severity="critical",',
    "{}",
    'absent=""',
    'absent!=""',
    'absent=~".+"',
    'absent!~".+"',
    'a:b=""',
    r'path="a\"b\\c"',
    r'note="two\nlines"',
    'note=~"two.lines"',
    'note=~"(?s)two.lines"',
    r'job=~"\w+"',
    'job=~"a|click,.*|clickhouse"',
    'x=~"(?i)AB"',
    'x=~"(?i:A)b"',
    'x=~"(?P<n>a)b"',
    'x=~"[[:alpha:]]{2}"',
    r'x=~"a\x62"',
    'x=~"b|a"',
    'x=~"^ab$"',
    'x=~""',
    'x!~""',
    'x!="ab", x=~"a."',
    r'x=~"\bab\b"',
    r'x=~"\p{L}+"',
    r'x=~"\Qab\E"',
    'x=~"(?m)^ab$"',
    'x=~"(?U)a.*"',
    r'x=~"ab\z"',
)
INVALID = (
    "severity",
    '="x"',
    '{a="b" c="d"}',
    'a="b" c="d"',
    'a="b',
    'a=b"',
    'a=="b"',
    'a=~"(x"',
    'a=~"x)"',
    'a=~"[x"',
    'a=~"*x"',
    'a=~"x++"',
    'a=~"x{2000}"',
    'a=~"(?=x)"',
    r'a=~"(x)\1"',
    r'a=~"x\"',
    '{a="b"}}',
    'a="b", ,c="d"',
    ',a="b"',
    'a="b"c',
    "a=b,c",
    r'a=~"\C"',
)
STRICTER = {  # they take it, we refuse it at the start
    "": "matches everything: {} says so",
    "severity=": 'an empty value: severity="" says so',
    '{severity="critical"': "half a pair of braces",
    'severity="critical"}': "half a pair of braces",
    "job=click house": "a value without quotes holds no spaces",
    "job='clickhouse'": "their quotes would be part of the value",
    "x=a{b}": "braces in a value without quotes",
    "x=a=b": "= in a value without quotes",
}
WIDER = {  # they refuse it, we take it: as Alertmanager's UTF-8 parser does since 0.27
    '"severity"="critical"': "a quoted name",
    'severität="x"': "a name beyond ASCII",
    'a-b="c"': "a name with other signs",
    '1a="c"': "a name that begins with a digit",
    'severity="critical";job="x"': "several sets, which are several routes there",
}


def theirs(directory: Path, text: str) -> bool | None:
    """Return whether Alertmanager matches LABELS; None when it refuses the text."""
    routes = [{"receiver": "taken", "matchers": [text]}]
    config = {
        "route": {"receiver": "other", "routes": routes},
        "receivers": [{"name": "taken"}, {"name": "other"}],
    }
    file = directory / "config.yml"
    file.write_text(json.dumps(config))  # JSON is YAML
    if amtool("check-config", str(file)) is None:
        return None
    labels = [f"{name}={json.dumps(value)}" for name, value in LABELS.items()]
    said = amtool("config", "routes", "test", f"--config.file={file}", *labels)
    assert said in {"taken", "other"}
    return said == "taken"


def amtool(*arguments: str) -> str | None:
    """Return what it says, or None when it refuses."""
    place = install.debian()
    done = subprocess.run(
        [place / "usr/bin/amtool", *arguments],
        env=os.environ | install.library_path(place),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in {0, 1}, done.stderr
    return done.stdout.strip() if done.returncode == 0 else None


def ours(text: str) -> bool | None:
    try:
        return parse(text).matches(LABELS)
    except ValueError:
        return None


@pytest.mark.parametrize("text", VALID)
def test_both_take_it_and_match_the_same(tmp_path: Path, text: str) -> None:
    assert theirs(tmp_path, text) is not None
    assert ours(text) is theirs(tmp_path, text)


@pytest.mark.parametrize("text", INVALID)
def test_both_refuse_it(tmp_path: Path, text: str) -> None:
    assert (theirs(tmp_path, text), ours(text)) == (None, None)


@pytest.mark.parametrize("text", STRICTER, ids=STRICTER.values())
def test_we_refuse_what_they_take(tmp_path: Path, text: str) -> None:
    assert theirs(tmp_path, text) is not None
    assert ours(text) is None


@pytest.mark.parametrize("text", WIDER, ids=WIDER.values())
def test_we_take_what_they_refuse(tmp_path: Path, text: str) -> None:
    assert theirs(tmp_path, text) is None
    assert ours(text) is not None


def test_both_outcomes_are_in_the_table() -> None:
    """Else a parser that matches everything, or nothing, would pass."""
    assert {ours(text) for text in VALID} == {True, False}
