"""The figures of the bench: lines of growth, ratios to peers, and the names in a request."""

import pytest

from lab.bench import plot, receivers, sender
from lab.bench.collector import Exporter, Queue
from lab.bench.figures import Better, Line, row
from lab.bench.outage import OF_A_GROUP, grouped_posts


@pytest.mark.parametrize(
    ("power", "fixed", "expected"), [(1, 0, 1.0), (2, 0, 2.0), (0, 5, 0.0), (1, 1_000, 0.0)]
)
def test_the_exponent_is_the_slope_of_the_last_decade(
    power: int, fixed: float, expected: float
) -> None:
    points = [(float(n), fixed + float(n**power)) for n in (1, 3, 10, 30, 100)]
    line = Line("reading", "files", points)
    assert line.exponent() == pytest.approx(expected, abs=0.1)


def test_the_start_of_a_line_does_not_count() -> None:
    """A fixed cost weighs most there."""
    flat, linear = [(1.0, 50.0), (3.0, 50.0)], [(10.0, 10.0), (30.0, 30.0), (100.0, 100.0)]
    assert Line("reading", "files", flat + linear).exponent() == pytest.approx(1)


def test_a_line_of_one_point_has_no_exponent() -> None:
    with pytest.raises(ValueError, match="1 points in the last decade: expected at least 2"):
        Line("reading", "files", [(1.0, 1.0), (100.0, 1.0)]).exponent()


@pytest.mark.parametrize(
    ("value", "better", "peer"),
    [
        (0.9, "lower", False),
        (1.1, "lower", True),
        (1.1, "higher", False),
        (0.9, "higher", True),
        (1.1, None, False),
    ],
)
def test_a_ratio_on_the_other_side_of_one_is_the_peers(
    value: float, better: Better | None, peer: bool
) -> None:
    assert row("hop", "CPU: ours / theirs", [value], "x", better=better).peer_is_better is peer


def test_each_panel_of_the_plot_names_its_line() -> None:
    lines = [
        Line(f"line {number}", "files", [(float(n), n * 2e3) for n in (1, 3, 10)])
        for number in range(4)
    ]
    drawn = plot.grown(lines)
    assert all(f">line {number}</text>" in drawn for number in range(4))
    assert drawn.count("exponent 1.00") == 4
    assert drawn.count("<circle") == 12


@pytest.mark.parametrize("bodies", [sender.webhooks, sender.posts])
def test_the_names_of_alerts_are_found_in_json(bodies: object) -> None:
    assert callable(bodies)
    found = [receivers.find_names(body) for body in bodies(2, first=41)]
    assert found == [{b"A41"}, {b"A42"}]


def test_the_names_of_alerts_are_found_in_protobuf() -> None:
    """Two attributes of OTLP as the Collector writes them: the value before the key."""
    body = b"".join(b"2\x12\x12\x05\n\x03%s\n\talertname" % name for name in (b"A41", b"A42"))
    assert receivers.find_names(body) == {b"A41", b"A42"}


def test_a_hundred_alerts_share_a_group() -> None:
    bodies = grouped_posts(OF_A_GROUP + 1)
    assert [b'"service": "s0"' in body for body in bodies] == [True] * OF_A_GROUP + [False]


def test_a_queue_without_batches_sends_each_request_alone() -> None:
    queue = Queue(fsync=False, batch=0, consumers=1)
    assert "batch" not in queue.settings()
    assert str(queue) == "queue on disk, fsync off, one alert per request, 1 consumer"
    assert str(Queue()) == "queue on disk, fsync on, batches of up to 100, 10 consumers"


def test_a_collector_never_gives_up() -> None:
    """It must not lose an alert of its own accord."""
    settings = Exporter("http://127.0.0.1:1/").settings("logs", Queue())
    assert settings["retry_on_failure"] == {"max_elapsed_time": "0s"}
    assert settings["sending_queue"]["block_on_overflow"] is True
    assert settings["sending_queue"]["storage"] == "file_storage"
    assert "tls" not in settings
