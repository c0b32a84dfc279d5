"""Every parser of outside input, by name."""

from tests.fuzz import alerts, answers, billing, counters, ledgers, settings
from tests.fuzz.harness import Harness

HARNESSES: dict[str, Harness] = {
    **alerts.HARNESSES,
    **counters.HARNESSES,
    **answers.HARNESSES,
    **settings.HARNESSES,
    **ledgers.HARNESSES,
    **billing.HARNESSES,
}
