"""The comparison of the way of CPU seconds into objects: decoding and reckoning."""

import base64
import urllib.request

import pytest
import zstandard

from lab.bench import report
from lab.bench.billing_path import DEFAULT, FAST, SPEED, settings, storing
from lab.bench.otlp import OtlpError, Point, count_seconds, decode_points

# A request of the Collector 0.165.0: a process of half a core, read three times.
REQUEST = zstandard.decompress(
    base64.b64decode(
        "KLUv/WCiBbUOAHYYWzkgdzoAAPCnCM7QgwyyQgFBhTrDO19kWyrRltvoutGmJvspha6AkWfBgztC1sgPwpRRZr18GA00"
        "aJNPAEgASAC284C5n5OsKcAdzJ5YcosqoSVVARVB8pW4aEcoUToORCkQFnOFsLU2ntnmxAEYcbGKkVFlHbf5wcs7jWu5"
        "++cPv4s/6q6b8bF3cOLFEpoBHvcZ90qOt3L+V+8RYVZOu/j7vw/XaOlRkUbXqPgxenuU10R9n9OVkxAa2q5VLji+vTq2"
        "NKr8nZdcYBJwCTk2TyNBCzcQdX4P+O/vzsO7i1v3+2GoLwyW9a0eCXYMMzNjVWNDVmMD3IYzH8Zysi7M+pykIqbl1vnz"
        "xbwER/ppUmdLH1SR4EqQ1UtpSSVreJgFQEMiJi4a044LxVTRzufzguSiJY0/TdND5rMV64ee7eT9mmeYGBwbtkMD1j/P"
        "acBNzBoeC+bWE9RicQrzY452X96FVtyY38+da7DbPxMpIKACGcLZBg8oAOhCNMHMhUKIZUDLX0oFYBfiCaYuHEI0A97y"
        "S45kDUDuCYSEeRvILAGgF9wr8BOA1QCEFAmCq9fAbb6CgTHECiBwQAEUALXGCwzA3F2WAATvXhgIM5k/Dj0mAiYK"
    )
)
SECOND = 10**9
STARTED = 1_795_857_498_720_000_000


def test_a_real_request_is_decoded() -> None:
    points = list(decode_points(REQUEST))
    assert {point.series for point in points} == {
        ("18734", state) for state in ("user", "system", "wait")
    }
    assert {point.start_ns for point in points} == {STARTED}
    assert points[0].time_ns == 1_795_857_502_140_130_891
    assert [point.seconds for point in points if point.series[1] == "user"] == [0.19, 0.23, 0.29]
    assert count_seconds(points) == pytest.approx(0.30)


def test_each_cut_of_a_request_is_refused_or_has_fewer_points() -> None:
    """A cut between two messages is a valid, shorter request; no other cut is."""
    whole, valid = list(decode_points(REQUEST)), 0
    for size in range(len(REQUEST)):
        try:
            points = list(decode_points(REQUEST[:size]))
        except OtlpError:
            continue
        valid += 1
        assert points == whole[: len(points)]
        assert len(points) in {0, 3, 6}
    assert valid == 3


def test_differences_instead_of_totals_are_refused() -> None:
    cumulative, delta = b"\x18\x01\x10\x02", b"\x18\x01\x10\x01"
    assert cumulative in REQUEST
    with pytest.raises(OtlpError, match=r"temporality \[1\]: expected 2"):
        list(decode_points(REQUEST.replace(cumulative, delta)))


def point(
    second: float, value: float, *, start: float = 0, pid: str = "1", state: str = "user"
) -> Point:
    return Point((pid, state), int(second * SECOND), int(start * SECOND), value)


@pytest.mark.parametrize(
    ("points", "seconds"),
    [
        pytest.param([], 0, id="nothing"),
        pytest.param([point(9, 4.0)], 4, id="a single reading: the start is known"),
        pytest.param([point(9, 4.0), point(5, 2.0)], 4, id="in any order"),
        pytest.param([point(9, 4.0), point(9, 4.0)], 4, id="twice, after a restart of the meter"),
        pytest.param([point(9, 4.0), point(9, 1.0, state="system")], 5, id="two states"),
        pytest.param([point(9, 4.0), point(9, 1.0, state="wait")], 4, id="waiting is not CPU"),
        pytest.param([point(9, 4.0), point(9, 1.0, pid="2")], 5, id="two processes"),
        pytest.param([point(9, 4.0), point(19, 3.0, start=10)], 7, id="a value that fell"),
        pytest.param([point(9, 4.0), point(29, 6.0, start=10)], 10, id="a later start"),
        pytest.param(
            [point(9, 4.0, start=1), point(10, 5.0, start=0), point(11, 6.0, start=2)],
            6,
            id="a start that differs by the rounding of the boot time",
        ),
    ],
)
def test_the_last_value_of_each_run_counts(points: list[Point], seconds: float) -> None:
    assert count_seconds(points) == pytest.approx(seconds)


def test_a_process_that_was_there_before_counts_from_its_first_value() -> None:
    points = [point(90, 1.0), point(110, 3.0), point(120, 4.5)]
    assert count_seconds(points, since_ns=100 * SECOND) == pytest.approx(1.5)


def test_the_fast_pace_is_the_default_one_with_other_seconds() -> None:
    fast = (FAST.sample * SPEED, FAST.window * SPEED, FAST.seal * SPEED)
    assert fast == (DEFAULT.sample, DEFAULT.window, DEFAULT.seal)


def test_the_page_has_the_intervals_that_are_used() -> None:
    assert settings() in report.DOCS.read_text()


def test_the_store_keeps_each_body_in_its_own_list() -> None:
    with storing() as store:
        (url, first), (_, second) = store.bucket("first"), store.bucket("second")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        for body in (b"a", b"bc"):
            with opener.open(url, data=body, timeout=10) as response:
                assert response.status == 200
    assert (first, second) == ([b"a", b"bc"], [])
