"""Check at the end of the demo that everything was delivered, and nothing twice."""

from collections.abc import Sequence

from rich.text import Text

from byoc_agents.audit import Report
from byoc_agents.audit.render import text
from lab.demo.alert_scenes import alert_faults
from lab.demo.compare import TOLERANCE_RATIO, Compared, compare, usage_faults
from lab.demo.stage import Stage
from lab.demo.state_scenes import state_faults
from lab.demo.storage import BUCKET
from lab.demo.tables import alerts_table, comparison_table, records_table, states_table


async def verdict(stage: Stage) -> int:
    """Show the received data, compare it with the real figures; return 0 if they agree, else 1."""
    records = sorted(stage.storage.records, key=lambda usage: (usage.epoch, usage.sequence))
    compared = compare(records, stage.runs)
    report = await stage.storage.audit()
    show = stage.screen.print
    show("", states_table(stage.queue.transitions), alerts_table(stage.plane.alerts))
    show(records_table(records, "The usage records in the bucket"), comparison_table(compared))
    show(f"[bold]byoc-agents verify s3://{BUCKET}[/]", *map(Text, text(report)), "")
    return conclude(stage, compared, report)


def conclude(stage: Stage, compared: Sequence[Compared], report: Report) -> int:
    """Print the result. Return 0 if all figures agree, else 1."""
    show = stage.screen.print
    wrong = [*usage_faults(compared, report), *state_faults(stage), *alert_faults(stage)]
    if wrong:
        show("[bold red]FAILED[/]", *map(Text, wrong))
        return 1
    show(
        f"[bold green]Well[/]: every CPU second within {TOLERANCE_RATIO:.0%}; every record, state"
        " and alert once and in order, through outages, a kill and a restart."
    )
    return 0
