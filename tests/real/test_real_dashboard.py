"""The dashboard as Grafana's component library reads it: texts, units, colors, types.

The server of Grafana is not part of it. What only the code of its panels reads is not tested.
"""

import asyncio
import copy
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import chdb.session
import msgspec
import pytest

from lab.dashboard.__main__ import BOARD, MAX_BYTES, PLACE, SCHEMES, draw, make_input
from lab.dashboard.fleets import LONG, REPLICAS, store_nothing, store_problems
from lab.dashboard.library import Shown, describe_panels, find_type_errors
from lab.dashboard.queries import View, fill_query
from tests.real.control_plane_tables import SessionStore, empty

pytestmark = pytest.mark.real

RED, ORANGE = "#E02F44", "#FF780A"  # of the light theme
EXTRA = 5  # replicas of the customer with long names


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chdb.session.Session]:
    session = chdb.session.Session(str(tmp_path_factory.mktemp("chdb")))
    yield session
    session.close()


def board() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(BOARD.read_text())
    return found


@pytest.fixture(scope="module")
def content(engine: chdb.session.Session) -> bytes:
    """Return the dashboard and the frames of a fleet with problems."""
    store = SessionStore(empty(engine))
    asyncio.run(store_problems(store))
    return asyncio.run(make_input(store))


@pytest.fixture(scope="module")
def shown(content: bytes) -> Mapping[str, Shown]:
    return describe_panels(content)


def test_grafana_ignores_nothing_of_a_panel(shown: Mapping[str, Shown]) -> None:
    """Each unit, option, override, transformation and sorted column is there."""
    assert shown.keys() == {panel["title"] for panel in board()["panels"]}
    assert {title: one.problems for title, one in shown.items() if one.problems} == {}


def test_each_figure_has_its_thousands_and_a_color(shown: Mapping[str, Shown]) -> None:
    found = {
        title: (one.values[0].text, one.values[0].color)
        for title, one in shown.items()
        if len(one.values) == 1
    }
    assert found["Replicas"][0] == str(REPLICAS + EXTRA)
    assert found["Rejected"] == ("1,234", RED)
    assert found["Silent"] == ("4", RED)
    assert found["Dead letters"] == ("2", RED)


def test_reception_lists_an_organization_whose_messages_waited(shown: Mapping[str, Shown]) -> None:
    panel = shown["Reception"]
    rows = list(zip(*(one.texts for one in panel.columns), strict=True))
    assert [one.title for one in panel.columns] == [
        "Stream",
        "Senders",
        "Behind by",
        "Uninterrupted",
    ]
    assert rows == [
        ("alerts", "all", "5 s", "30 mins"),
        ("state", "all", "5 s", "30 mins"),
        ("state", "org-1", "-", "2 mins"),
    ]


def test_the_longest_silence_is_first_with_its_units(shown: Mapping[str, Shown]) -> None:
    panel = shown["Silence"]
    first = {one.title: one.texts[0] for one in panel.columns}
    assert first == {
        "Organization": LONG[0],
        "Service": LONG[1],
        "Replica": LONG[2],
        "Daemon": "state-exporter",
        "Silent for": "30 mins",
        "Allowed": "3 mins",
        "Last seen": "3 hours ago",
    }
    assert "org-1" not in panel.column("Organization").texts  # its messages waited


def test_a_replica_that_needs_a_person_is_first(shown: Mapping[str, Shown]) -> None:
    panel = shown["Fleet"]
    healthy = panel.column("Healthy")
    assert len(healthy.texts) == REPLICAS + EXTRA
    silent = panel.column("Silent").texts
    assert silent[:4] == ["state-exporter"] * 4
    assert not any(silent[4:])
    assert healthy.texts[4:6] == ["no", "no"]
    colors = dict(zip(healthy.texts, healthy.colors, strict=True))
    assert colors["no"] == RED
    assert colors["yes"] != RED


def test_what_has_never_happened_is_no_time_long_ago(shown: Mapping[str, Shown]) -> None:
    """A moment of 1970 would be shown as 57 years ago."""
    panel = shown["Fleet"]
    for title in ("Usage until", "Alert forwarder"):
        texts = panel.column(title).texts
        assert "never" in texts, title
        assert not any("year" in text for text in texts), title
    assert panel.column("Usage until").texts.count("5 minutes ago") == 293
    assert panel.column("State exporter").texts[0] == "3 hours ago"


def test_the_age_of_the_usage_is_by_class_from_the_newest_one(shown: Mapping[str, Shown]) -> None:
    found = shown["Age of the usage"].values
    assert [one.title for one in found] == [
        "under 15 min",
        "under 1 h",
        "under 6 h",
        "under 1 day",
        "over 1 day",
        "never",
    ]
    assert [one.text for one in found] == ["293", "1", "1", "1", "1", "8"]
    assert len({one.color for one in found}) == 1  # more replicas are not worse


def test_days_have_values_with_units(shown: Mapping[str, Shown]) -> None:
    assert shown["Gaps"].column("Stated as not measured").texts == ["6 mins"] * 7
    assert shown["Gaps"].column("Without records").texts == ["0 s"] * 7
    assert shown["Missing usage records"].column("Missing records").texts == ["6"] * 7
    assert shown["SLO: delay"].column("Alerts").texts == ["900 ms"] * 7
    assert set(shown["SLO: usage that arrived"].column("Worst service").texts) == {"98.7%"}
    missing = shown["Missing usage"]
    assert {one.title for one in missing.columns} >= {"Missing records", "Stated as not measured"}
    assert missing.column("Missing records").texts[0] == "7"
    assert missing.column("Missing records").colors[0] == RED


def test_a_grant_has_its_state_and_times(shown: Mapping[str, Shown]) -> None:
    panel = shown["Access"]
    states = panel.column("State")
    assert states.texts == ["sent", "pending", "open", "closed", "closed_incomplete", "denied"]
    assert states.colors[2] == ORANGE
    assert states.colors[4] == RED
    assert len({states.colors[at] for at in (0, 1, 3, 5)} - {RED, ORANGE}) == 1
    assert panel.column("Opened at").texts[:3] == ["-", "-", "2026-11-23 12:04:30"]
    assert panel.column("Rows read").texts[3] == "1,234,638"


def test_an_empty_fleet_has_a_text_instead_of_rows(engine: chdb.session.Session) -> None:
    store = SessionStore(empty(engine))
    asyncio.run(store_nothing(store))
    found = describe_panels(asyncio.run(make_input(store)))
    for panel in board()["panels"]:
        one = found[panel["title"]]
        assert one.problems == [], panel["title"]
        if panel["type"] == "stat":
            assert [value.text for value in one.values] == ["0"]
        elif panel["title"] != "Fleet":  # there, the text would be that of each empty reason
            assert panel["fieldConfig"]["defaults"]["noValue"], panel["title"]


def _panel(found: dict[str, Any], title: str) -> dict[str, Any]:
    panel: dict[str, Any] = next(one for one in found["panels"] if one["title"] == title)
    return panel


def _wrong_unit(panel: dict[str, Any]) -> None:
    panel["fieldConfig"]["defaults"]["unit"] = "seconds"


def _missing_field(panel: dict[str, Any]) -> None:
    panel["fieldConfig"]["overrides"][0]["matcher"]["options"] = "organization"


def _wrong_option(panel: dict[str, Any]) -> None:
    panel["fieldConfig"]["overrides"][0]["properties"].append({"id": "title", "value": "A"})


def _missing_sort(panel: dict[str, Any]) -> None:
    panel["options"]["sortBy"] = [{"displayName": "silent_seconds", "desc": True}]


def _missing_column(panel: dict[str, Any]) -> None:
    options = {"renameByName": {"nothing": "Something"}, "indexByName": {}, "excludeByName": {}}
    panel["transformations"] = [{"id": "organize", "options": options}]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (_wrong_unit, "unknown unit seconds"),
        (_missing_field, "override of a missing field organization"),
        (_wrong_option, "unknown field option title"),
        (_missing_sort, "sorted by a missing column silent_seconds"),
        (_missing_column, "transformation of a missing column nothing"),
    ],
)
def test_a_mistake_in_a_panel_is_found(
    content: bytes, change: Callable[[dict[str, Any]], None], problem: str
) -> None:
    found = msgspec.json.decode(content)
    change(_panel(found["board"], "Silence"))
    assert describe_panels(msgspec.json.encode(found))["Silence"].problems == [problem]


def test_the_file_has_the_types_of_grafana() -> None:
    assert find_type_errors(board()) == []


def test_a_wrong_type_is_found() -> None:
    found = copy.deepcopy(board())
    _panel(found, "Fleet")["options"]["cellHeight"] = "small"
    (error,) = find_type_errors(found)
    assert '"small"' in error


def test_a_variable_without_a_value_is_refused() -> None:
    view = View(from_ms=0, to_ms=1)
    with pytest.raises(ValueError, match="without a value: '\\$__unknown"):
        fill_query("SELECT $__unknown(a)", view)


def test_a_column_that_the_data_source_gives_as_json_is_found(
    engine: chdb.session.Session,
) -> None:
    """An aggregate's state with a time zone is one: its texts would have quotes and no unit."""
    found = board()
    silence = _panel(found, "Silence")
    silence["targets"][0]["rawSql"] = "SELECT last_seen FROM byoc_agents"
    silence["fieldConfig"]["overrides"] = []
    content = asyncio.run(make_input(SessionStore(empty(engine)), found))
    assert describe_panels(content)["Silence"].problems == ["a column given as JSON: last_seen"]


async def test_the_components_draw_both_themes(content: bytes) -> None:
    """An error of a component fails the drawing; a page without panels would be a small file."""
    found = await draw(content, 1024, "png")
    assert found.keys() == set(SCHEMES)
    assert found["light"] != found["dark"]
    assert min(map(len, found.values())) > 200_000


def test_the_pictures_of_the_documentation_are_of_the_whole_dashboard() -> None:
    found = {scheme: (PLACE / f"dashboard-{scheme}.webp").read_bytes() for scheme in SCHEMES}
    assert len(set(found.values())) == len(SCHEMES)
    for body in found.values():
        assert (body[:4], body[8:16]) == (b"RIFF", b"WEBPVP8X")
        assert 20_000 < len(body) <= MAX_BYTES
