"""The harnesses of all parsers of outside input, by name."""

from lab.fuzz import alerts, answers, billing, counters, ledgers, settings
from lab.fuzz.harness import Harness

HARNESSES: dict[str, Harness] = {
    **alerts.HARNESSES,
    **counters.HARNESSES,
    **answers.HARNESSES,
    **settings.HARNESSES,
    **ledgers.HARNESSES,
    **billing.HARNESSES,
}
