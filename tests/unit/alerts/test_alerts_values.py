"""Values that are sent, and values that are withheld."""

import random
import re
import string

import pytest

from byoc_agents.alerts.settings import LABELS
from byoc_agents.alerts.values import PATTERNS, SHORT_WORD, is_refused, pick

LONGEST = 256


def shown(value: str, *, labels: bool = True) -> dict[str, str]:
    picked = pick({"a": value}, ("a",), LONGEST, labels=labels)
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
        "AIzaSyDaGmWKa4JsXZ-HjGw7ISLn_3namBGewQe",
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
@pytest.mark.parametrize("labels", [True, False])
def test_addresses_secrets_and_invisible_characters_are_withheld(
    value: str, *, labels: bool
) -> None:
    assert shown(value, labels=labels) == {}


# Of the rules of kube-prometheus, of Altinity's operator, of this project and of common metrics.
WORDS = [
    "",
    "Watchdog",
    "ClickHouseDistributedConnectionExceptions",
    "etcdHighNumberOfFailedGRPCRequests",
    "KubeContainerWaiting",
    "KubeStateMetricsShardingMismatch",
    "NodeFilesystemSpaceFillingUp",
    "HAProxy5xxErrorsOfTheFrontend",
    "ClickHouseDistributedFilesToInsertAreTooManyForTooLong",
    "critical",
    "P1",
    "KEEPER_SESSION_EXPIRED",
    "OOMKilled",
    "byoc-1",
    "prod_eu-west-1",
    "gke_analytics_europe-west3_main2",
    "3rd-cluster-of-us-east-1-v2",
]
NAMES = [
    "",
    "0",
    "clickhouse",
    "chi-main-0-1-0",
    "byoc-agents-alert-forwarder-7c9d8b6f5d-x2x4z",
    "6f0a2c1e-7d1b-4f4c-9d0e-2b7c5a1f3e90",
    "x" * 63,
]
NOT_A_WORD = [
    "db1.acme.internal",
    "x.svc.cluster.local:9000",
    "SELECT*FROM(customers)",
    "AIzaSyDaGmWKa4JsXZ-HjGw7ISLn_3namBGewQe",
    "AIzaSyDaGmWKaxJsXZ-HjGwyISLn_3namBGewQe",  # only one digit before a letter
    "sales.orders",
    "sales/orders",
    "Jane Doe",
    "jane@customer",
    "größe",
    "orders\n",
    "_orders",
    "orders-",
    "arn:aws:eks:us-east-1:111122223333:cluster/main",
    "glpat-4hWyK2zT9qXv7mNb3cRd",
    "Vq3nT8xK1mZ6pL9dRw2yB5hJ",
    "0123456789abcdef0123456789abcdef",
    "AKIAIOSFODNN7EXAMPLE",
    "ghp_0123456789abcdefghijABCDEFGHIJ",
    "ip-10-0-0-7",
    "x" * 65,
]
NOT_A_NAME = ["Orders", "sales_orders", "-a", "a-", "x" * 64]


def of_label(name: str, value: str) -> dict[str, str]:
    picked = pick({name: value}, LABELS, LONGEST, labels=True)
    assert picked.withheld == ([] if picked.values else [name])
    assert picked.cut == []
    return picked.values


def test_every_default_label_has_a_pattern() -> None:
    assert PATTERNS.keys() == set(LABELS)


@pytest.mark.parametrize("name", ["alertname", "severity", "reason", "cluster"])
def test_the_value_of_a_default_label_is_one_word(name: str) -> None:
    assert [value for value in WORDS if of_label(name, value) != {name: value}] == []
    assert [value for value in [*NOT_A_WORD, "a--b"] if of_label(name, value)] == []


@pytest.mark.parametrize("name", ["namespace", "pod", "replica"])
def test_the_value_of_a_label_of_kubernetes_is_a_name_as_kubernetes_limits_it(name: str) -> None:
    assert [value for value in NAMES if of_label(name, value) != {name: value}] == []
    assert [value for value in NOT_A_WORD + NOT_A_NAME if of_label(name, value)] == []


def test_a_label_that_the_customer_adds_is_checked_for_forms_only() -> None:
    assert shown("db1.acme.internal") == {"a": "db1.acme.internal"}
    assert shown("SELECT*FROM(customers)") == {"a": "SELECT*FROM(customers)"}


def test_an_annotation_with_the_name_of_a_default_label_is_a_text() -> None:
    text = {"reason": "The disk is full."}
    assert pick(text, ("reason",), LONGEST).values == text


def test_most_random_keys_are_no_word() -> None:
    rng = random.Random(3)
    letters = string.ascii_letters + string.digits + "-_"
    keys = ["".join(rng.choices(letters, k=39)) for _ in range(5_000)]
    assert sum(bool(of_label("reason", key)) for key in keys) < 0.03 * len(keys)


def test_a_query_is_not_a_label_but_may_be_an_allowed_annotation() -> None:
    text = "SELECT * FROM customers"
    assert shown(text) == {}
    assert shown(text, labels=False) == {"a": text}


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
    |(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[\w-]{35}
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
    *("AIza", "-_" * 16),
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
