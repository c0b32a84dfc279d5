"""What `python -m lab.real.accuracy --mixed SECONDS` says of a measured load."""

import pytest

from lab.real.accuracy import TICKS_PER_SECOND, Row, main

TICKS = 4 / TICKS_PER_SECOND
ALLOWED = 1000.0 * 0.2 / 100 + TICKS  # for 1,000 core seconds


@pytest.mark.parametrize(
    ("used", "difference", "code"),
    [
        (1000.0, 0.0, 0),
        (1000.0, 0.999 * ALLOWED, 0),
        (1000.0, -0.999 * ALLOWED, 0),
        (1000.0, 1.001 * ALLOWED, 1),
        (1000.0, -1.001 * ALLOWED, 1),
        (0.1, 0.9 * TICKS, 0),  # a short load: the ticks decide
        (0.1, 1.1 * TICKS, 1),
    ],
)
def test_the_command_fails_beyond_the_promised_accuracy(
    used: float, difference: float, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    row = Row("process", "mixed", used, used + difference)
    assert main(["--mixed", "3600"], lambda _place, _seconds: row) == code
    assert ("FAILED" in capsys.readouterr().out) == (code == 1)
