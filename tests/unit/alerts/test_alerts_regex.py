"""The automaton against Python's own `re` where both mean the same, and where `re` never ends."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from byoc_agents.alerts.regex import MAX_STATES, Pattern

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
def test_agrees_with_python_on_what_both_have(pattern: str, text: str) -> None:
    # Python's $ also matches before a last line end; RE2's does not: \Z says the same
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
        ("(?i)[A-Z]", "ß", False),  # its upper case are two letters
        ("(?i)[a-z]", "İ", False),  # its lower case are two characters
        ("(?i)i", "\u0131", False),  # another letter, though its upper case is I
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
    ],
)
def test_means_what_re2_means(pattern: str, text: str, expected: bool) -> None:
    assert Pattern(pattern).matches(text) is expected


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("a(b", "column 2: ( without )"),
        ("a)b", "column 2: unexpected )"),
        ("[ab", "column 1: [ without ]"),
        ("*a", "column 1: nothing before * to repeat"),
        ("a**", "column 4: * after a repeat"),
        ("a{2}{3}", "column 7: { after a repeat"),
        ("a{3,2}", "column 7: bad repeat {3,2}"),
        ("a{1001}", "column 8: bad repeat {1001}"),
        ("(?=a)", "column 3: unknown after (?; RE2 has no look-around"),
        (r"(a)\1", r"column 5: unknown escape \1"),
        (r"\pL", r"column 2: unknown escape \p"),
        ("a\\", "column 3: \\ at the end"),
        ("[z-a]", "column 5: bad range"),
        ("[[:none:]]", "column 10: no class [:none:]"),
        (r"\x{FFFFFF}", "column 11: no such character"),
        ("(" * 60 + ")" * 60, "column 52: more than 50 groups inside each other"),
        ("a" * 1001, "column 1000: a pattern has at most 1000 characters"),
        ("(?:a{100}){100}", f"column 1: the pattern needs more than {MAX_STATES} states"),
    ],
)
def test_a_mistake_names_its_column(pattern: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        Pattern(pattern)


@pytest.mark.parametrize(
    "pattern", ["(a+)+b", "(a|a)*b", "(a|aa)+$b", "(.*)*(.*)*(.*)*x", "a*" * 99]
)
def test_no_pattern_takes_more_than_linear_time(pattern: str) -> None:
    """Python's `re` needs more than the age of the universe for the first of these."""
    before = time.process_time()
    Pattern(pattern).matches("a" * 4096 + "!")
    assert time.process_time() - before < 2


def test_what_it_remembers_is_bounded() -> None:
    pattern = Pattern("(.*a.{12})")
    pattern.matches("".join(chr(200 + n % 5000) + "a" for n in range(9000)))
    assert len(pattern._moves) <= 4096
