"""The harnesses of all parsers of outside input, by name."""

from lab.fuzz import alerts, billing, counters, ledgers, responses, settings
from lab.fuzz.harness import Harness

HARNESSES: dict[str, Harness] = {
    **alerts.HARNESSES,
    **counters.HARNESSES,
    **responses.HARNESSES,
    **settings.HARNESSES,
    **ledgers.HARNESSES,
    **billing.HARNESSES,
}
