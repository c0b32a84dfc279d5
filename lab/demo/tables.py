"""Tables of records, states and alerts for people."""

from collections.abc import Iterable, Sequence
from decimal import Decimal

from rich import box
from rich.table import Table

from byoc_agents.alerts.events import Alert
from byoc_agents.billing.record import Usage
from byoc_agents.state.message import StateV1
from lab.demo.compare import Compared

STYLES = {"measured": "green", "estimated": "yellow", "gap": "red"}


def records_table(records: Iterable[Usage], title: str | None = None) -> Table:
    """Return a table with one row per record."""
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    table.add_column("period (UTC)", no_wrap=True)
    table.add_column("quality", no_wrap=True)
    table.add_column("source", no_wrap=True)
    table.add_column("core s", justify="right", no_wrap=True)
    table.add_column("GB s", justify="right", no_wrap=True)
    table.add_column("samples", justify="right", no_wrap=True)
    table.add_column("remark", no_wrap=True)
    for usage in records:
        style = STYLES[usage.quality]
        table.add_row(*row(usage), style=None if usage.quality == "measured" else style)
    return table


def row(usage: Usage) -> tuple[str, ...]:
    """Return the cells of one record."""
    measured = usage.quality != "gap"
    return (
        f"{usage.charge_period_start[11:21]} - {usage.charge_period_end[11:21]}",
        usage.quality,
        usage.source,
        f"{usage.used.cpu_core_seconds:.2f}" if measured else "",
        f"{gigabyte_seconds(usage):.3f}" if measured else "",
        f"{usage.samples.observed}/{usage.samples.expected}" if measured else "",
        remark(usage),
    )


def remark(usage: Usage) -> str:
    """Return a sentence on anything unusual."""
    reported = {
        "a new run of the target": usage.restart_observed,
        "another source took over": usage.source_changed,
        "the clock was set": bool(usage.clock_step_milliseconds),
        GAPS.get(usage.gap_reason, usage.gap_reason): usage.quality == "gap",
        "samples missed, no CPU lost": usage.quality == "estimated"
        and usage.samples.observed < usage.samples.expected,
    }
    return ", ".join(text for text, is_so in reported.items() if is_so)


GAPS = {
    "target_absent": "nothing ran",
    "target_restarted": "between two runs",
    "no_checkpoint": "before the first start",
}


def gigabyte_seconds(usage: Usage) -> Decimal:
    """Return memory over time in 10^9 bytes x seconds."""
    return Decimal(usage.used.memory_byte_seconds) / 10**9


def comparison_table(compared: Sequence[Compared]) -> Table:
    """Return a table with one row per run."""
    table = Table(title="CPU: billed against used", box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("workload", no_wrap=True)
    table.add_column("billed, core s", justify="right")
    table.add_column("its own rusage, core s", justify="right")
    table.add_column("difference", justify="right")
    for one in compared:
        table.add_row(
            one.name,
            f"{one.billed_core_seconds:.3f}",
            f"{one.used_core_seconds:.3f}",
            f"{one.difference_ratio:+.2%}",
            style="green" if one.agrees else "bold red",
        )
    return table


def states_table(transitions: Iterable[StateV1]) -> Table:
    """Return a table with one row per transition."""
    table = Table(title="The states in the queue", box=box.SIMPLE_HEAD, title_justify="left")
    for name in ("observed (UTC)", "transition", "state", "before", "reasons"):
        table.add_column(name, no_wrap=True)
    for reported in transitions:
        reasons = ", ".join(f"{reason.code} {reason.value:g}" for reason in reported.reasons)
        before = str(reported.previous_state or "")
        at = reported.observed_at[11:21]
        table.add_row(at, str(reported.transition), str(reported.state), before, reasons)
    return table


def alerts_table(alerts: Iterable[Alert]) -> Table:
    """Return a table with one row per alert."""
    table = Table(title="The alerts at the control plane", box=box.SIMPLE_HEAD)
    table.title_justify = "left"
    for name in ("received (UTC)", "alert", "status", "summary"):
        table.add_column(name, no_wrap=True)
    for alert in alerts:
        name, summary = alert.labels["alertname"], alert.annotations["summary"]
        table.add_row(alert.received_at[11:21], name, alert.status, summary)
    return table
