"""The messages of the simulated fleet have the figures from which docs/scale.md computes."""

import re
from itertools import groupby, pairwise
from pathlib import Path

import msgspec
import pytest

from byoc_agents.app.cloudevents import parse_rfc3339
from lab.control_plane.simulation import HOUR_MS, START_MS, Fed, count, fleet_messages

SCALE = (Path(__file__).parents[3] / "docs" / "scale.md").read_text()
REPLICAS = 1000


@pytest.fixture(scope="module")
def messages() -> list[Fed]:
    return list(fleet_messages(REPLICAS, 7, 1.0))


def first_figure(row: str) -> float:
    """Return the figure for 1,000 replicas, of the table whose columns are 1,000 to 100,000."""
    (line,) = [line for line in SCALE.splitlines() if line.startswith(f"| {row} |")]
    return float(line.split("|")[3].strip().removesuffix(" M"))


def test_the_generated_row_is_what_the_generator_makes(messages: list[Fed]) -> None:
    found = count(iter(messages))
    (row,) = re.findall(r"^\| 1,000 \| ([\d,]+) \| (\d+) \| (\d+) \|$", SCALE, re.MULTILINE)
    size = round(found["bytes"] / found["messages"])
    assert tuple(int(one.replace(",", "")) for one in row) == (
        *(found["messages"], size, found["most_in_one_second"]),
    )


def test_the_figures_of_a_day_follow_from_it(messages: list[Fed]) -> None:
    day = len(messages) * 24
    assert first_figure("state messages, and rows of `byoc_state`") == round(day / 1e6, 2)
    assert first_figure("requests to SQS of the exporters") == round(day / 1e6, 2)
    assert first_figure("requests to SQS of the consumers") == round(day / 1e6 / 5, 2)
    assert first_figure("state messages per second, mean") == round(day / 86_400, 1)
    assert first_figure("send to SQS FIFO") == pytest.approx(day * 0.5 / 1e6, abs=0.006)


def test_the_fleet_is_as_described(messages: list[Fed]) -> None:
    """In the stated shares replicas lag and restart; the others send every 300 s."""
    by_group = sorted(messages, key=lambda one: (one.group, one.at_ms))
    quiet = lagging = restarted = 0
    for _, part in groupby(by_group, key=lambda one: one.group):
        sent = list(part)
        data = [msgspec.json.decode(one.body)["data"] for one in sent]
        if any(one["reasons"] and one["state"] == "running" for one in data):
            lagging += 1
        elif any(one["state"] == "stopping" for one in data):
            restarted += 1
        else:
            quiet += 1
            assert len(sent) == 12
            apart = {b.at_ms - a.at_ms for a, b in pairwise(sent)}
            assert apart == {300_000}
    assert quiet + lagging + restarted == REPLICAS
    assert lagging / REPLICAS == pytest.approx(0.05, abs=0.02)
    assert restarted / REPLICAS == pytest.approx(0.02, abs=0.012)


def test_the_messages_come_in_order_of_time_over_all_replicas(messages: list[Fed]) -> None:
    """As a queue gets them. Those of one replica are in order of epoch and sequence as well."""
    assert all(a.at_ms <= b.at_ms for a, b in pairwise(messages))
    last: dict[str, tuple[int, int]] = {}
    for one in messages:
        event = msgspec.json.decode(one.body)
        assert parse_rfc3339(event["time"]) == one.at_ms
        number = (event["data"]["epoch"], event["data"]["sequence"])
        assert number > last.get(one.source, (0, -1))
        last[one.source] = number
    assert len(last) == REPLICAS


def test_every_message_is_of_the_hour_and_has_a_name_of_its_own(messages: list[Fed]) -> None:
    assert len({(one.source, one.id) for one in messages}) == len(messages)
    assert all(START_MS <= one.at_ms < START_MS + HOUR_MS for one in messages)
