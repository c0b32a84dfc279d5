"""The incarnation in records: one name per run of a counter, which shows nothing of the node."""

from decimal import Decimal

from byoc_agents.app.keyed_ids import keyed_id
from byoc_agents.billing.record import name_incarnation
from byoc_agents.billing.sources.clickhouse import CPU, UPTIME, reading_of
from byoc_agents.billing.sources.reading import name_run
from byoc_agents.billing.window import Sample
from tests.unit.billing.meter_run import SECOND, UP, Run, reading, sample

BOOT_ID = keyed_id("0b8f6a3e-6f0c-4a53-9d0e-0a4a4b1f7c11", "boot", "org", "svc", "replica-0")
OTHER_BOOT_ID = keyed_id("0b8f6a3e-6f0c-4a53-9d0e-0a4a4b1f7c11", "boot", "org", "svc", "replica-1")


def names(run: Run) -> list[str]:
    """Return the incarnation of each record."""
    return [name_incarnation(p.window.reading) for p in run.periods if p.window]


def seconds(first: int, last: int, **changes: object) -> list[Sample]:
    return [sample(n, reading(100 + n, **changes)) for n in range(first, last + 1, 5)]


def test_a_name_shows_no_part_and_no_two_replicas_have_the_same() -> None:
    name = name_run(BOOT_ID, 17, 1795430000)
    assert name == name_run(BOOT_ID, 17, 1795430000)
    assert (
        len({name, name_run(BOOT_ID, 17, 1795430001), name_run(OTHER_BOOT_ID, 17, 1795430000)}) == 3
    )
    assert BOOT_ID[:8] not in name
    assert name_run("", 17) == ""  # then the name is made of the incarnation


def test_the_start_of_a_server_is_not_in_its_name() -> None:
    figures = {CPU: Decimal(5_000_000), UPTIME: Decimal(100)}
    first = reading_of(figures, 5000 * SECOND, BOOT_ID)
    later = reading_of(figures, 5001 * SECOND, BOOT_ID)
    assert name_incarnation(first) == f"clickhouse:{first.run_name}"
    assert "4900" not in name_incarnation(first)
    assert first.run_name != later.run_name  # another start


def test_a_counter_keeps_the_first_name_that_its_records_have() -> None:
    """ClickHouse's start is only known to about a second, so each reading has its own name."""
    run = Run(sample(0, reading(100, run_name="a")))
    run.feed(seconds(5, 60, run_name="b")).feed(seconds(65, 120, run_name="c"))
    assert names(run) == ["cgroup.v2:a"] * 2


def test_a_counter_of_an_earlier_version_keeps_its_name_until_its_end() -> None:
    run = Run(sample(0, reading(100)))  # a checkpoint without a name
    old = name_incarnation(reading(100))
    run.feed(seconds(5, 60, run_name="b"))
    assert names(run) == [old]
    fresh = {"incarnation": "boot-1-8", "container_id": "d" * 64, "born_boot_ns": UP + 63 * SECOND}
    run.feed([sample(65, reading(1, run_name="d", **fresh))])
    run.feed([sample(120, reading(56, run_name="d", **fresh))])
    assert names(run)[-1] == "cgroup.v2:d"
    window = run.periods[-1].window
    assert window is not None
    assert window.restart_observed
