"""The statements of a grant: exact text, and no value that could become SQL."""

import re
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from byoc_agents.access import clickhouse_sql as sql

ID = "0190a7c2-7e5b-7c3e-8d21-f0a4b6c8d9e0"
NAME = "byoc_grant_0190a7c27e5b7c3e8d21f0a4b6c8d9e0"
URI = f"spiffe://svc-1.byoc/grant/{ID}"
END = datetime(2026, 11, 27, 9, tzinfo=UTC)


def user(**changes: Any) -> sql.GrantUser:
    usual: dict[str, Any] = {
        "grant_id": ID,
        "certificate_uri": URI,
        "role": "byoc_access_reader",
        "ticket": "CS-1234",
        "valid_until": END,
    }
    return sql.GrantUser(**usual | changes)


def read_back(**changes: Any) -> list[dict[str, Any]]:
    """Return the row of `read_back` for the user above, as the HTTP client decodes it."""
    usual = {
        "name": NAME,
        "auth_type": ["ssl_certificate"],
        "auth_params": [f'{{"subject_alt_names":["URI:{URI}"]}}'],
        "valid_until": [int(END.timestamp())],
        "default_roles_list": ["byoc_access_reader"],
        "default_roles_all": 0,
        "grantees_any": 0,
        "roles": ["byoc_access_reader"],
        "grants": 0,
        "settings": [
            ["log_comment", user().log_comment, "CONST", None],
            [None, None, None, "byoc_access"],
        ],
    }
    return [usual | changes]


def test_one_statement_creates_the_user_with_all_its_limits() -> None:
    assert sql.create_user(user()) == (
        f"CREATE USER IF NOT EXISTS {NAME} IDENTIFIED WITH ssl_certificate SAN 'URI:{URI}'"
        " VALID UNTIL '2026-11-27T09:00:00Z' HOST ANY DEFAULT ROLE byoc_access_reader"
        f' SETTINGS log_comment = \'{{"grant":"{ID}","ticket":"CS-1234"}}\' CONST,'
        " PROFILE 'byoc_access' GRANTEES NONE"
    )


def test_the_user_can_be_kept_in_memory() -> None:
    assert f"{NAME} IN memory IDENTIFIED" in sql.create_user(user(storage=sql.Storage.MEMORY))


def test_the_end_is_sent_in_utc_whatever_its_zone() -> None:
    berlin = END.astimezone(timezone(timedelta(hours=1)))
    assert sql.create_user(user(valid_until=berlin)) == sql.create_user(user())


INVALID = {
    "an ID in upper case": {"grant_id": ID.upper()},
    "an ID with SQL": {"grant_id": f"{ID}'; DROP USER x; --"},
    "an ID with a line end": {"grant_id": f"{ID}\n"},
    "the URI of another grant": {"certificate_uri": URI.replace("0190a7c2", "0190a7c3")},
    "a URI with a quote": {"certificate_uri": f"spiffe://a'b/grant/{ID}"},
    "a URI with a wildcard": {"certificate_uri": f"spiffe://*/grant/{ID}"},
    "another scheme": {"certificate_uri": f"https://svc-1.byoc/grant/{ID}"},
    "another role": {"role": "admin"},
    "a role with a prefix of ours": {"role": "byoc_access_admin"},
    "a ticket with a quote": {"ticket": "CS'1"},
    "a ticket with a backslash": {"ticket": "CS\\1"},
    "a ticket with a double quote": {"ticket": 'CS"1'},
    "no ticket": {"ticket": ""},
    "a long ticket": {"ticket": "C" * 65},
    "an end without a zone": {"valid_until": datetime(2026, 11, 27, 9)},  # noqa: DTZ001
    "an end with a fraction": {"valid_until": END.replace(microsecond=1)},
}


@pytest.mark.parametrize("changes", INVALID.values(), ids=INVALID)
def test_another_value_never_becomes_a_statement(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        user(**changes)


@given(st.text())
def test_no_text_but_an_id_names_a_user(text: str) -> None:
    if re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", text):
        assert sql.user_name(text).startswith("byoc_grant_")
    else:
        for build in (sql.user_name, sql.drop_user, sql.kill_queries, sql.read_back):
            with pytest.raises(ValueError, match="expected a UUID"):
                build(text)


def test_the_end_of_a_grant() -> None:
    assert sql.drop_user(ID) == f"DROP USER IF EXISTS {NAME}"
    assert sql.kill_queries(ID) == f"KILL QUERY WHERE user = '{NAME}' ASYNC"
    assert sql.drop_orphan("byoc_grant_ffff") == "DROP USER IF EXISTS byoc_grant_ffff"


@pytest.mark.parametrize(
    "name", ["byoc_grant_", "byoc_state_exporter", "byoc_grant_x; DROP", "byoc_grant_é", "default"]
)
def test_only_users_of_grants_are_dropped_as_orphans(name: str) -> None:
    with pytest.raises(ValueError, match="byoc_grant_"):
        sql.drop_orphan(name)


def test_the_read_back_user_is_the_created_one() -> None:
    assert sql.user_differences(user(), read_back()) == []


DIFFERENT: dict[str, tuple[dict[str, Any], str]] = {
    "no certificate": ({"auth_type": ["no_password"]}, "certificate"),
    "a password as well": (
        {"auth_type": ["ssl_certificate", "sha256_password"], "auth_params": ["{}", "{}"]},
        "certificate",
    ),
    "another certificate": (
        {"auth_params": ['{"subject_alt_names":["URI:spiffe://x/grant/1"]}']},
        "certificate",
    ),
    "a certificate by name as well": (
        {"auth_params": [f'{{"common_names":["a"],"subject_alt_names":["URI:{URI}"]}}']},
        "certificate",
    ),
    "two certificates": (
        {"auth_params": [f'{{"subject_alt_names":["URI:{URI}","DNS:a"]}}']},
        "certificate",
    ),
    "parameters that are not JSON": ({"auth_params": ["?"]}, "certificate"),
    "another end": ({"valid_until": [int(END.timestamp()) + 3600]}, "valid_until"),
    "no end": ({"valid_until": [0]}, "valid_until"),
    "another role": ({"roles": ["admin"]}, "role"),
    "a second role": ({"roles": ["byoc_access_reader", "admin"]}, "role"),
    "no role": ({"roles": []}, "role"),
    "a role that is not active": ({"default_roles_list": []}, "role"),
    "a grant of its own": ({"grants": 1}, "grants"),
    "another setting": ({"settings": [["readonly", "0", "CONST", None]]}, "settings"),
    "no settings": ({"settings": []}, "settings"),
    "may be granted on": ({"grantees_any": 1}, "grantees"),
}


@pytest.mark.parametrize(("changes", "field"), DIFFERENT.values(), ids=DIFFERENT)
def test_a_difference_of_the_read_back_user_is_named(changes: dict[str, Any], field: str) -> None:
    assert sql.user_differences(user(), read_back(**changes)) == [field]


def test_a_user_that_is_not_there_is_missing() -> None:
    assert sql.user_differences(user(), []) == ["missing"]


def test_all_roles_active_is_the_same_as_the_one_role_active() -> None:
    changed = read_back(default_roles_all=1, default_roles_list=[])
    assert sql.user_differences(user(), changed) == []


def test_the_setup_needs_a_key_and_keeps_no_placeholder() -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        sql.setup_script(b"short")
    script = sql.setup_script(bytes(15) + b"\x01")
    assert "SELECT 0, 1 " in script
    assert "_HALF" not in script


def test_plain_names_change_the_names_of_tables_and_columns_only() -> None:
    hashed, plain = sql.setup_script(bytes(16)), sql.setup_script(bytes(16), sql.Names.PLAIN)
    changed = [
        (old.strip(), new.strip())
        for old, new in zip(hashed.splitlines(), plain.splitlines(), strict=True)
        if old != new
    ]
    assert len(changed) == 17
    assert {new.rpartition(" AS ")[2].rstrip(",") for _, new in changed} == {
        *("database", "databases", "table", "tables", "column"),
    }
    assert "identity_key" in plain
    assert "sipHash64Keyed(name_key" not in plain


def test_no_file_grants_a_source_or_all_of_system() -> None:
    for file in sql.FILES:
        text = "\n".join(sql.split_statements(sql.read_file(file)))
        assert not re.search(
            r"REMOTE|SOURCES|SELECT ON system\.|GRANT ALL|ON \*\.\* TO byoc_access_[mrst]",
            (text.replace("REVOKE ALL ON *.*", "")),
        ), file


def test_each_role_contains_the_one_before() -> None:
    granted = sql.role_grants()
    assert list(granted) == list(sql.ROLES)
    inner = [inner for _, inner in granted.values()]
    assert inner == [frozenset(), *({role} for role in sql.ROLES[:-1])]
    every = frozenset().union(*(views for views, _ in granted.values()))
    assert every == set(sql.views())


def test_the_views_user_may_read_exactly_the_columns_of_the_views() -> None:
    """A column that no view reads is not granted, and the other way round."""
    read: set[tuple[str, str]] = set()
    for text in sql.views().values():
        table, alias = re.findall(r"FROM (system\.\w+) AS (\w)", text)[-1]
        read |= {(table, name) for name in re.findall(rf"\b{alias}\.(\w+)", text)}
    granted = {
        (place, column)
        for right, _, _ in sql.grants("views.sql")
        for columns, place in re.findall(r"^SELECT\(([^)]*)\) ON (system\.\w+)$", right)
        for column in columns.split(", ")
    }
    assert granted == read
    assert len(granted) > 150


def test_every_setting_of_the_profile_is_constant_and_read() -> None:
    settings = sql.profile_settings()
    assert settings["readonly"] == "1"
    assert len(settings) == sql.read_file("roles.sql").count(" CONST")
