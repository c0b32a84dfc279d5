"""Values that are sent, and values that are withheld."""

import random
import re

import pytest

from byoc_agents.alerts.values import SHORT_WORD, is_refused, pick

LONGEST = 256


def shown(value: str, *, words: bool = True) -> dict[str, str]:
    picked = pick({"a": value}, ("a",), LONGEST, words=words)
    assert picked.withheld == ([] if picked.values else ["a"])
    return picked.values


@pytest.mark.parametrize(
    "value",
    [
        "",
        "critical",
        "READONLY_REPLICA",
        "chi-main-0-1-0",
        "byoc-agents-alert-forwarder-7c9d8b6f5d-x2x4z",
        "größe",
        "6f0a2c1e-7d1b-4f4c-9d0e-2b7c5a1f3e90",
        "ClickHouseDistributedFilesToInsertAreTooManyForTooLong",
    ],
)
def test_names_and_words_are_sent(value: str) -> None:
    assert shown(value) == {"a": value}


@pytest.mark.parametrize(
    "value",
    [
        "10.20.33.117:9363",
        "2001:db8:1:2::5",
        "::1",
        "ip-10-0-0-7.ec2.internal",
        "jane@customer.example",
        "https://internal.example/x",
        "AKIAIOSFODNN7EXAMPLE",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.x",
        "-----BEGIN PRIVATE KEY-----",
        "password=hunter2",
        "api_key: x",
        "ghp_0123456789abcdefghijABCDEFGHIJ",
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "0123456789abcdef0123456789abcdef",
        "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
        "a\x00b",
        "a\u202eb",
        "a\x1b[31m",
    ],
)
@pytest.mark.parametrize("words", [True, False])
def test_addresses_secrets_and_invisible_characters_are_withheld(
    value: str, *, words: bool
) -> None:
    assert shown(value, words=words) == {}


def test_a_query_is_not_a_label_but_may_be_an_allowed_annotation() -> None:
    text = "SELECT * FROM customers"
    assert shown(text) == {}
    assert shown(text, words=False) == {"a": text}


def test_a_long_value_is_checked_and_cut() -> None:
    assert pick({"a": "x" * 300}, ("a",), LONGEST).cut == ["a"]
    assert shown("10.0.0.1" + "x" * 300) == {}


def test_a_name_that_is_not_allowed_is_not_listed_as_withheld() -> None:
    assert pick({"b": "10.0.0.1"}, ("a",), LONGEST).withheld == []


def test_a_short_word_has_none_of_the_refused_forms() -> None:
    letters = "0123456789abcdefABCDEFAKIAeyJghpsk"
    rng = random.Random(1)
    for _ in range(10_000):
        word = "".join(rng.choices(letters, k=rng.randrange(20)))
        assert SHORT_WORD.fullmatch(word)
        assert not is_refused(word)


# All forms in one expression, without the marks and runs that make `is_refused` fast.
PLAIN = re.compile(
    r"""(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.])
    |(?:[0-9A-Fa-f]{1,4}:){3}|::[0-9A-Fa-f]
    |\bip-\d+-\d+-\d+-\d+
    |\w@[\w-]+\.\w
    |\w://
    |(?:AKIA|ASIA)[A-Z0-9]{16}
    |\beyJ[\w-]{8,}\.
    |-----BEGIN[ ]
    |(?i:passw(?:or)?d|secret|token|api[_-]?key|credentials?)\s*[=:]
    |\bgh[pousr]_\w{20}|\bxox[abp]-|\bsk-\w{20}|\bwhsec_
    |[0-9A-Fa-f]{32}
    |(?<![A-Za-z0-9+/])(?=[a-z+/0-9]*[A-Z])(?=[A-Z+/0-9]*[a-z])(?=[A-Za-z+/]*\d)[A-Za-z0-9+/]{40}
    """,
    re.VERBOSE,
)
# With letters that only fold to the letters of a form, and a digit that is not ASCII.
PARTS = [
    *(
        "0",
        "9",
        ".",
        ":",
        "::",
        "=",
        "@",
        "/",
        "-",
        "_",
        "é",
        "\u017f",
        "\u212a",
        "\u0131",
        "x",
        "A",
    ),
    *("10.", "255", "1.2.3.4", "f00:", "ip-", "1-2-3-4", "a@b.c", "://", "AKIA", "ASIA", "eyJ"),
    *("-----BEGIN", "passw", "d", "or", "SECRET", "\u017fecret", "to\u212aen", "ap\u0131_key"),
    *("toKen", "api-key", "credential", "ghp_", "xoxb-", "sk-", "whsec_", "\u0663", " ", "\n"),
    *("0123456789abcdef", "aBcDeFgHiJ0123456789", "ABCDEFGHIJKLMNOP", "abcdefghijklmnop"),
]


def test_the_fast_check_finds_exactly_the_forms_of_one_expression() -> None:
    rng = random.Random(2)
    found = 0
    for _ in range(30_000):
        value = "".join(rng.choices(PARTS, k=rng.randrange(1, 9)))
        assert is_refused(value) == (PLAIN.search(value) is not None), value
        found += is_refused(value)
    assert 5_000 < found < 25_000
