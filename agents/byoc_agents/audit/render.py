"""The report for people: totals first, then information, then findings."""

from collections.abc import Iterable, Iterator, Sequence

from byoc_agents.audit.report import Finding, Gap, Report, Total

MAX_LINES = 20  # of one kind; all of them are in --json

_COLUMNS = (
    "replica",
    "objects",
    "records",
    "core seconds",
    "byte seconds",
    "allocated core seconds",
    "allocated byte seconds",
)


def text(report: Report) -> Iterator[str]:
    """Yield the lines of the report."""
    yield f"{report.target}: {report.objects} objects, {report.records} records"
    replicas: dict[tuple[str, str], list[Total]] = {}
    for total in report.replicas:
        replicas.setdefault((total.organization_id, total.service_id), []).append(total)
    for service in report.services:
        yield from _service(service, replicas[service.organization_id, service.service_id])
    yield from _section("stated gaps", [_gap(gap) for gap in report.gaps])
    yield from _section(
        "CPU across stated gaps, in no record",
        [f"{u.replica} {u.start} to {u.end}: {u.core_seconds} s" for u in report.unrecorded],
    )
    yield from _section(
        "epochs that ended; what their lost state directory had not sent cannot be seen",
        [
            f"{e.replica} epoch {e.epoch} after sequence {e.last_sequence}, then {e.next_epoch}"
            for e in report.epoch_ends
        ],
    )
    yield from problem_text(report)


def problem_text(report: Report) -> Iterator[str]:
    """Yield the lines about the problems; the last one is the verdict."""
    for kind, count in report.counts.items():
        lines = [_finding(f) for f in report.findings if f.kind == kind]
        yield from _section(f"problem {kind}", lines, count)
    wrong = sum(report.counts.values())
    yield ""
    if wrong:
        yield f"FAILED: {wrong} problem{'' if wrong == 1 else 's'} found"
    else:
        yield "OK: no missing, duplicate or damaged records"


def _service(service: Total, replicas: Sequence[Total]) -> Iterator[str]:
    yield ""
    name = f"{service.organization_id}/{service.service_id}"
    yield f"{name}  {service.first_start} to {service.last_end}"
    yield from _table([_COLUMNS, *map(_row, replicas), _row(service)])
    for figure, unknown in (
        ("CPU", service.unknown_allocated_cpu_seconds),
        ("memory", service.unknown_allocated_memory_seconds),
    ):
        if unknown:
            yield f"  allocated {figure} unknown for {unknown} s, which is in no sum"
    if service.excluded_records:
        excluded = f"{service.excluded_records} records, {service.excluded_core_seconds}"
        yield f"  excluded from all sums as impossible: {excluded} core seconds"


def _row(total: Total) -> tuple[str, ...]:
    return (
        total.replica or "all",
        str(total.objects),
        str(total.records),
        str(total.cpu_core_seconds),
        str(total.memory_byte_seconds),
        str(total.allocated_core_seconds),
        str(total.allocated_byte_seconds),
    )


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        yield "  ".join(["", first.ljust(widths[0]), *cells])


def _section(title: str, lines: Sequence[str], count: int | None = None) -> Iterator[str]:
    count = len(lines) if count is None else count
    if not count:
        return
    yield ""
    yield f"{title}: {count}"
    yield from (f"  {line}" for line in lines[:MAX_LINES])
    if count > MAX_LINES:
        yield f"  and {count - MAX_LINES} more; see --json"


def _gap(gap: Gap) -> str:
    return f"{gap.replica} {gap.start} to {gap.end}: {gap.reason}, {gap.seconds} s"


def _finding(finding: Finding) -> str:
    parts: Iterable[str] = (
        finding.replica,
        "" if finding.epoch is None else f"epoch {finding.epoch}",
        _sequences(finding),
        f"{finding.start} to {finding.end}" if finding.start or finding.end else "",
        "" if finding.core_seconds is None else f"{finding.core_seconds} core seconds",
        finding.key,
        finding.detail,
    )
    return " ".join(part for part in parts if part)


def _sequences(finding: Finding) -> str:
    first, last = finding.first_sequence, finding.last_sequence
    if first is None:
        return ""
    return f"sequence {first}" if first == last else f"sequences {first} to {last}"
