"""Patterns compared with Python's `re`, with RE2's semantics, and in linear time."""

import re
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from byoc_agents.alerts.matchers import Pattern

ATOMS = st.sampled_from(["a", "b", ".", "[ab]", "[^a]", r"\d", r"\W", "[a-c0]", "", "^", "$"])
TREES = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda t: f"(?:{t[0]}|{t[1]})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,2}", "{1,}"])).map(
            lambda t: f"(?:{t[0]}){t[1]}"
        ),
    ),
    max_leaves=6,
)


@given(TREES, st.text("ab0c\n_", max_size=6))
def test_agrees_with_python_on_common_syntax(pattern: str, text: str) -> None:
    # Python's $ also matches before a final line end. RE2's $ does not: it is Python's \Z.
    expected = re.fullmatch(pattern.replace("$", r"\Z"), text, re.ASCII) is not None
    assert Pattern(pattern).matches(text) == expected


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("critical|warning", "critical", True),
        ("critical|warning", "critical2", False),
        ("", "", True),
        ("", "x", False),
        (".+", "line\nline", False),
        ("(?s).+", "line\nline", True),
        ("(?i)criTIcal", "CRITical", True),
        ("a(?i)b|c", "aB", True),
        ("a(?i)b|c", "C", True),
        ("(?i:a)b", "AB", False),
        ("(?i)[^a]", "A", False),
        ("(?i)[A-Z]", "ß", False),  # its upper case is two letters
        ("(?i)[a-z]", "İ", False),  # its lower case is two characters
        ("(?i)i", "\u0131", False),  # a different letter, although its upper case is I
        ("(?i)s", "\u017f", True),
        ("(?i)k", "\u212a", True),  # the Kelvin sign
        ("(?P<x>a)(?<y>b)", "ab", True),
        ("[[:alpha:]]+[[:^digit:]]", "abc-", True),
        (r"[\d-]+[\]x-]", "1-2]", True),
        ("[^]a]", "]", False),
        ("[]a]+", "]a", True),
        (r"[\Wa]+", "a-", True),
        (r"[\W]", "b", False),
        ("a{,2}", "a{,2}", True),
        ("a{", "a{", True),
        ("x]}", "x]}", True),
        (r"\x41\x{1F600}", "A\U0001f600", True),
        (r"ch\.example\.com:\d+", "ch.example.com:8123", True),
        (r"ch\.example\.com", "chxexample.com", False),
        ("(a*)*", "aaa", True),
        ("$^", "", True),
        ("a+?", "aa", True),
        ("ü[ж-щ]+", "üш", True),
        (r"\bab\b", "ab", True),
        (r"\p{L}+", "aü", True),
        (r"\p{L}+", "a1", False),
        (r"\Qa.b\E", "a.b", True),
        (r"\Qa.b\E", "axb", False),
        (r"ab\z", "ab", True),
        ("(?m)a$\n^b", "a\nb", True),
        ("(?U)a.*", "abc", True),
        ("critical|", "", True),
        ("a|b", "a|b", False),
        ("x" * 5000, "x" * 5000, True),
    ],
)
def test_has_the_semantics_of_re2(pattern: str, text: str, expected: bool) -> None:
    assert Pattern(pattern).matches(text) is expected


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("a(b", "missing ): a(b"),
        ("a)b", "unexpected ): a)b"),
        ("[ab.", "missing ]: [ab."),
        ("*a", "no argument for repetition operator: *"),
        ("a**", "bad repetition operator: **"),
        ("a{1001}", "invalid repetition size: {1001}"),
        ("(?=a)", "invalid perl operator: (?="),
        (r"(a)\1", r"invalid escape sequence: \1"),
        (r"a\C", r"invalid escape sequence: \C"),
        ("a\\", "trailing \\"),
        ("[z-a]", "invalid character class range: z-a"),
        ("[[:none:]]", "invalid character class range: [:none:]"),
        ("(a{99}){99}", "invalid repetition size: {99}"),
        ("[a-z]" * 100_000, "pattern too large"),
    ],
)
def test_an_invalid_pattern_is_refused_with_the_reason(pattern: str, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        Pattern(pattern)


def test_the_library_is_loaded_only_if_a_pattern_is_not_made_of_literals() -> None:
    program = """
import sys
from byoc_agents.alerts.matchers import parse
parse('severity=~"critical|warning", namespace!~"|kube-system"')
assert "re2" not in sys.modules
parse('severity=~"crit.*"')
assert "re2" in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.parametrize(
    "pattern", ["(a+)+b", "(a|a)*b", "(a|aa)+$b", "(.*)*(.*)*(.*)*x", "a*" * 99]
)
def test_no_pattern_takes_more_than_linear_time(pattern: str) -> None:
    """Python's `re` needs more than the age of the universe for the first of these."""
    before = time.process_time()
    Pattern(pattern).matches("a" * 4096 + "!")
    assert time.process_time() - before < 2
