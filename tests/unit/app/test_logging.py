"""Logs: one line of JSON an event, the libraries' included."""

import errno
import fcntl
import io
import json
import logging
import os
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from byoc_agents.app import logging as log


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Leave nothing of what `configure` sets up to the tests that follow."""
    root = logging.getLogger()
    handlers, level, shown = root.handlers[:], root.level, structlog.get_config()
    yield
    logging.captureWarnings(capture=False)
    root.handlers[:] = handlers
    root.setLevel(level)  # by name it would stay in the loggers' caches
    structlog.configure(**shown)


@pytest.fixture
def stream() -> io.StringIO:
    out = io.StringIO()
    log.configure("info", out)
    return out


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_an_event_is_one_line_with_its_fields(stream: io.StringIO) -> None:
    structlog.get_logger().bind(daemon="a").info("message.sent", messages=2, text="two\nlines")
    (line,) = lines(stream)
    assert line.pop("timestamp").endswith("Z")
    expected = {"event": "message.sent", "level": "info", "daemon": "a", "messages": 2}
    assert line == expected | {"text": "two\nlines"}


def test_what_is_below_the_level_is_not_written(stream: io.StringIO) -> None:
    structlog.get_logger().debug("x")
    logging.getLogger("library").info("chatter")
    assert stream.getvalue() == ""


def test_a_librarys_warning_is_one_short_line_without_its_trace(stream: io.StringIO) -> None:
    try:
        raise ZeroDivisionError("secret detail")
    except ZeroDivisionError:
        logging.getLogger("asyncio").exception("Task %s failed %s", "t", "x" * 1000)
    (line,) = lines(stream)
    assert (line["event"], line["library"], line["level"]) == ("library.logged", "asyncio", "error")
    assert (line["error"], len(line["text"])) == ("ZeroDivisionError", log.MAX_LIBRARY_TEXT)
    assert "Traceback" not in stream.getvalue()
    assert "secret" not in stream.getvalue()


def test_a_malformed_record_is_written_as_it_is(stream: io.StringIO) -> None:
    text, args = "%d items", ("no number",)
    record = logging.LogRecord("library", logging.WARNING, "", 0, text, args, None)
    logging.getLogger().handlers[0].handle(record)
    assert [line["text"] for line in lines(stream)] == ["%d items"]


def test_pythons_own_warnings_are_lines_too(stream: io.StringIO) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=True)
        warnings.warn("old", DeprecationWarning, stacklevel=1)
        logging.captureWarnings(capture=False)
    (line,) = lines(stream)
    assert line["library"] == "py.warnings"
    assert "old" in line["text"]


def test_our_own_defect_carries_its_trace_inside_the_line(stream: io.StringIO) -> None:
    try:
        raise ZeroDivisionError("why")
    except ZeroDivisionError:
        structlog.get_logger().exception("daemon.task_failed")
    (line,) = lines(stream)
    assert "ZeroDivisionError: why" in line["exception"]


class Full(io.StringIO):
    """A log on a disk that is full."""

    full = True

    def flush(self) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")


def test_a_log_that_cannot_be_written_stops_nobody_and_says_so_later() -> None:
    full = Full()
    log.configure("info", full)
    structlog.get_logger().error("one")
    structlog.get_logger().error("two")
    full.full = False
    structlog.get_logger().error("three")
    assert {"event": "log.lost", "level": "error", "lines": 2} in lines(full)


def test_a_log_that_is_closed_stops_nobody(stream: io.StringIO) -> None:
    stream.close()
    structlog.get_logger().error("no reader")


LINE = json.dumps({"text": "x" * 980}) + "\n"


def drained(descriptor: int, lines: int) -> list[str]:
    """Read so many lines."""
    with os.fdopen(descriptor) as reader:
        return [reader.readline() for _ in range(lines)]


def test_a_pipe_that_nobody_reads_blocks_nobody_and_the_losses_are_reported() -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    lost: list[int] = []
    output = log.QueuedOutput(writer, max_bytes=10 * len(LINE), on_lost=lost.append)
    for _ in range(100):
        output.write(LINE)
    output.close(0.01)  # returns although the thread is stopped in the write
    assert 75 <= sum(lost) <= 95
    kept = 100 - sum(lost)
    got = drained(reader, kept + 1)
    reports = [json.loads(line)["lines"] for line in got if "log.lost" in line]
    assert got.count(LINE) == kept
    assert sum(reports) == sum(lost)
    os.close(writer)


def test_lines_come_out_in_order_and_close_waits_for_the_last() -> None:
    reader, writer = os.pipe()
    output = log.QueuedOutput(writer)
    for number in range(200):
        output.write(f"{number}\n")
    output.close()
    os.close(writer)
    with os.fdopen(reader) as pipe:
        assert pipe.read().split() == [str(number) for number in range(200)]


def test_a_reader_that_has_gone_and_a_full_disk_only_lose_lines() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    for descriptor in (writer, os.open("/dev/full", os.O_WRONLY)):
        lost: list[int] = []
        output = log.QueuedOutput(descriptor, on_lost=lost.append)
        output.write(LINE)
        output.close()
        assert sum(lost) == 1
        os.close(descriptor)


def test_a_descriptor_that_others_made_non_blocking_loses_nothing() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    output = log.QueuedOutput(writer, on_lost=lambda _: pytest.fail("lost"))
    for _ in range(50):
        output.write(LINE)
    assert drained(reader, 50) == [LINE] * 50
    output.close()
    os.close(writer)


def test_the_lone_surrogates_of_a_peer_are_written_escaped() -> None:
    reader, writer = os.pipe()
    output = log.QueuedOutput(writer)
    output.write("\udcff\n")
    output.close()
    os.close(writer)
    with os.fdopen(reader) as pipe:
        assert pipe.read() == "\\udcff\n"
