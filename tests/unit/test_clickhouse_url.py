"""Which addresses and logins the ClickHouse client takes, and what it shows of them."""

import pytest

from byoc_agents.clickhouse import ClickHouse, base_url

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://127.0.0.1:8123", "http://127.0.0.1:8123"),
        ("https://ch/", "https://ch"),
        ("http://[::1]:8123", "http://[::1]:8123"),
    ],
)
def test_a_url_is_scheme_host_and_port(url: str, base: str) -> None:
    assert base_url(url) == base


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:8123",
        "ftp://ch",
        "http://",
        "http://ch:99999",
        "http://user:hunter2@ch",
        "http://ch/?password=hunter2",
        "http://ch/path",
        "http://ch\r\nX: 1",
    ],
)
def test_any_other_url_is_refused_without_being_printed(url: str) -> None:
    with pytest.raises(ValueError, match="expected http://host:port") as caught:
        ClickHouse(url)
    assert SECRET not in str(caught.value)


def test_a_line_end_in_a_login_is_refused() -> None:
    with pytest.raises(ValueError, match="printable"):
        ClickHouse("http://ch", "me", "a\r\nX-Evil: 1")


def test_the_repr_names_the_server_only() -> None:
    assert repr(ClickHouse("http://ch:8123", "me", SECRET)) == "ClickHouse(http://ch:8123)"
