"""Records that a customer writes by hand: ClickHouse bills what the verifier does, digit by digit.

All of them are loaded by one statement, each below the folder of an organization of its own.
"""

import json
import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import zstandard
from msgspec.structs import replace

from byoc_agents.app.cloudevents import encode, parse_rfc3339
from byoc_agents.audit import Audit, Report
from byoc_agents.audit.validate import YEAR_2100_MS
from byoc_agents.billing.record import Counter, Resized, UsageRecord, record_id
from byoc_agents.message import Message
from byoc_control_plane.schema import table_statements
from lab.fakes.billing import NOON_MS, ReplicaHistory, altered, objects
from lab.real.parts import install
from tests.real.engine_process import run_engine
from tests.real.test_real_chdb import expected, stored
from tests.real.test_real_older_engine import FORMAT_SETTINGS, usage_statements

pytestmark = pytest.mark.real

ENGINES = [pytest.param(install.chdb, id="26.9"), pytest.param(install.older_chdb, id="25.8")]
NUMBERS = (
    *("0", "1", "-1", "-0", "-0.0", "01", "1E3", "60000.0", "0.0000001", "1.50000000", "1.5"),
    *(str(2**31), str(2**32), str(2**32 + 5), str(2**63 - 1), str(-(2**63)), str(2**63)),
    *(str(2**64 - 1), str(2**64), str(2**64 + 60000), str(2**96), str(2**128), str(2**128 + 5)),
    *("123456789012345678901234567890.123456", "999999999999999.999999", "1e400", "1e-400"),
    *(
        "NaN",
        "Infinity",
        "-Infinity",
        "null",
        "true",
        '"5"',
        '"#5"',
        '"\\u00235"',
        '""',
        "[]",
        "{}",
    ),
)
FIGURES = (
    *("elapsed_milliseconds", "cpu_millicores", "memory_bytes", "counted_milliseconds"),
    *("cpu_core_seconds", "memory_byte_seconds", "memory_max_bytes", "start", "end", "expected"),
    *("observed", "clock_step_milliseconds", "epoch", "sequence", "machine_cpus"),
    *("counter_milliseconds", "cpu_millicores_start", "memory_bytes_end"),
)
TIMES = (
    *("0000-01-01T00:00:00.000Z", "0001-01-01T00:00:00.000Z", "1900-01-01T00:00:00.000Z"),
    *("1969-12-31T23:59:59.999Z", "1970-01-01T00:00:00.000Z", "2100-01-01T00:00:00.000Z"),
    *("2100-01-01T00:00:00.001Z", "2299-12-31T23:59:59.999Z", "9999-12-31T23:59:59.999Z"),
    *("2026-11-23T12:01:00Z", "2026-11-23T12:01:00.0009Z", "2026-11-23T12:01:00.000+00:00"),
    *("2026-11-23T14:01:00.000+02:00", "2026-11-23 12:01:00.000Z", "20261123T120100Z"),
    *("2026-11-23T24:00:00.000Z", "2026-02-30T12:00:00.000Z", "2026-11-23T12:01:60.000Z", ""),
)
TEXTS = ("", "x", "#x", "\\u0023x", "\\ud800", "\\u0000", "é", "\\u00e9", '\\":5,\\"')


def base(organization_id: str, kind: str = "measured") -> list[UsageRecord]:
    """Return three sound records; the second is the one that a customer changes."""
    history = ReplicaHistory(organization_id=organization_id)
    first = history.measured()
    second = history.gap("target_absent") if kind == "gap" else history.measured()
    size = replace(second.data.allocated, counted_milliseconds=60_000)
    if kind == "resized":
        cpu, memory = size.cpu_millicores, size.memory_bytes
        assert cpu
        assert memory
        ends = Resized(
            cpu_millicores_start=cpu,
            cpu_millicores_end=cpu + 1,
            memory_bytes_start=memory + 1,
            memory_bytes_end=memory,
        )
        size = replace(size, resized=ends)
    more: dict[str, Any] = {"machine_cpus": 8, "counter_milliseconds": 60_000}
    if kind == "gap":
        assert first.data.counter
        end = first.data.counter.end
        more = {"counter": Counter(start=end, end=end)}
    return [first, altered(second, allocated=size, **more), history.measured()]


def change(line: str, name: str, value: str) -> str:
    """Return a line with another value of one field of its data, and the id that fits it."""
    head, mark, data = line.partition('"data":')
    data, count = re.subn(
        rf'"{re.escape(name)}":("(?:[^"\\]|\\.)*"|[^,{{}}]+)',
        lambda _: f'"{name}":{value}',
        data,
        count=1,
    )
    assert count == 1, name
    return with_own_id(head + mark + data)


def with_own_id(line: str) -> str:
    """Return a line with the id of its data, if that is a record's."""
    try:
        record = json.loads(line)
        usage = record["data"]
        parts = UsageParts(usage)
        return line.replace(f'"id":"{record["id"]}"', f'"id":"{record_id(parts)}"', 1)  # type: ignore[arg-type]
    except (ValueError, TypeError, KeyError):
        return line


class UsageParts:
    """The fields of `data` from which the id is computed, of any JSON."""

    def __init__(self, usage: Any) -> None:
        self.organization_id, self.service_id = usage["organization_id"], usage["service_id"]
        self.pod_uid, self.replica = usage["k8s.pod.uid"], usage["replica"]
        self.container_id, self.incarnation = usage["container.id"], usage["incarnation"]
        self.charge_period_start = usage["charge_period_start"]
        self.charge_period_end = usage["charge_period_end"]
        self.quality, self.gap_reason = usage["quality"], usage["gap_reason"]


def changed_lines() -> Iterator[tuple[str, str, str]]:
    """Yield the title of a change, the kind of the record, and `name=value`."""
    for name in FIGURES:
        kind = "resized" if name.endswith(("_start", "_end")) else "measured"
        for value in NUMBERS:
            yield f"{name}={value}", kind, f"{name}={value}"
    for name in ("cpu_core_seconds", "memory_byte_seconds", "memory_max_bytes", "start", "end"):
        for value in ("0", "1", "0.000001", "-1", "null"):
            yield f"gap {name}={value}", "gap", f"{name}={value}"
    for name in ("charge_period_start", "charge_period_end"):
        for value in TIMES:
            for kind in ("measured", "gap"):
                yield f"{kind} {name}={value}", kind, f'{name}="{value}"'
    texts = ("region", "incarnation", "container.id", "k8s.container.name", "quality", "gap_reason")
    for name in (*texts, "restart_observed", "source_changed", "cpu_source", "memory_source"):
        for value in (*(f'"{text}"' for text in TEXTS), "5", "null", "true", '"true"', "[]", "{}"):
            yield f"{name}={value}", "measured", f"{name}={value}"


def rewritten(line: str) -> dict[str, str]:
    """Return other writings of a line, most of which are not a record."""
    twice = {
        f"{name} twice": re.sub(rf'("{re.escape(name)}":)', rf'"{name}":0,\1', line, count=1)
        for name in (
            *(
                "specversion",
                "id",
                "type",
                "data",
                "organization_id",
                "epoch",
                "sequence",
                "unknown",
            ),
            *("allocated", "used", "counter", "samples", "resized", "cpu_millicores", "start"),
            *("cpu_core_seconds", "memory_byte_seconds", "expected", "memory_bytes_end", "time"),
        )
    }
    without = {
        f"without {name}": re.sub(
            rf'"{re.escape(name)}":("[^"]*"|null|[-0-9.]+),', "", line, count=1
        )
        for name in (
            *("specversion", "id", "subject", "time", "datacontenttype", "region", "epoch"),
            *("cpu_millicores", "cpu_source", "counted_milliseconds", "cpu_core_seconds", "start"),
            *(
                "k8s.pod.uid",
                "gap_reason",
                "quality",
                "expected",
                "machine_cpus",
                "elapsed_milliseconds",
            ),
        )
    }
    return {
        **twice,
        **without,
        "as it is": line,
        "escaped key twice": line.replace('"id":', '"\\u0069d":"x","id":', 1),
        "escaped key": line.replace('"epoch":', '"epoc\\u0068":', 1),
        "spaces": line.replace('":', '" : ').replace(",", " , "),
        "white space around": f" \t\r{line} \t\r",
        "byte order mark": f"\ufeff{line}",
        "another type": line.replace("usage.v1", "usage.v2", 1),
        "another version": line.replace('"1.0"', '"1.1"', 1),
        "two records": f"{line}{line}",
        "an array": f"[{line}]",
        "a field more": line.replace('"data":{', '"data":{"more":{"a":[1,2.5,null]},', 1),
        "a field that looks like a figure": line.replace('"data":{', '"data":{"more":"\\":5,",', 1),
        "counter of an array": re.sub(r'"counter":\{[^}]*\}', '"counter":["#0","#1"]', line),
        "counter of a text": re.sub(r'"counter":\{[^}]*\}', '"counter":"x"', line),
        "no counter": re.sub(r'"counter":\{[^}]*\}', '"counter":null', line),
        "no size": re.sub(r'"allocated":\{.*?\},"used"', '"allocated":null,"used"', line),
        "samples of a text": re.sub(r'"samples":\{[^}]*\}', '"samples":"x"', line),
        "another source": line.replace("/replicas/", "/replicas/x", 1),
        "another id": re.sub('"id":"..', '"id":"zz', line, count=1),
        "garbage": "garbage",
        "nothing": "",
        "a number": "5",
        "an object": "{}",
        "data that is null": re.sub('"data":.*', '"data":null}', line),
        "unknown source": line.replace('"source":"cgroup.v2"', '"source":"x"', 1),
        "no source": line.replace('"source":"cgroup.v2"', '"source":"none"', 1),
        "cut": line[:-1],
    }


def cases() -> dict[str, tuple[str, list[bytes]]]:
    """Return organization -> (title of the change, the three lines)."""
    found: list[tuple[str, str, Any]] = []
    for what, kind, assignment in changed_lines():
        name, _, value = assignment.partition("=")
        found.append((what, kind, lambda line, n=name, v=value: change(line, n, v)))
    for kind in ("measured", "gap", "resized"):
        for what in rewritten(encode(base("org", kind)[1]).decode()):
            found.append((f"{kind}: {what}", kind, lambda line, w=what: rewritten(line)[w]))  # noqa: PERF401
    named: dict[str, tuple[str, list[bytes]]] = {}
    for number, (what, kind, make) in enumerate(found):
        organization = f"org-{number}"
        before, line, after = (encode(record) for record in base(organization, kind))
        named[organization] = (what, [before, make(line.decode()).encode(), after])
    return named | {
        "org-utf8": ("bytes that are not UTF-8", not_utf8("org-utf8")),
        "org-clean": ("nothing", [encode(record) for record in base("org-clean")]),
    }


def not_utf8(organization_id: str) -> list[bytes]:
    before, line, after = (encode(record) for record in base(organization_id))
    return [before, line.replace(b"eu-west-1", b"eu-west-\xff"), after]


def packed(lines: list[bytes], organization_id: str) -> Message:
    """Return an object with these lines, by the key of sound ones."""
    (message,) = objects(base(organization_id))
    body = zstandard.ZstdCompressor(write_checksum=True).compress(b"\n".join(lines) + b"\n")
    return replace(message, body=body)


def audited(message: Message) -> Report:
    audit = Audit()
    audit.add(message.id, message.body)
    return audit.report("")


@pytest.mark.parametrize("engine", ENGINES)
def test_every_changed_record_is_billed_as_the_verifier_does(engine: Any, tmp_path: Path) -> None:
    named, wanted = cases(), {}
    for organization, (_, lines) in named.items():
        message = packed(lines, organization)
        path = tmp_path / "objects" / message.id
        path.parent.mkdir(parents=True)
        path.write_bytes(message.body)
        report = audited(message)
        if "altered_object" in report.counts:  # the place of a record, which only the key says
            assert named[organization][0].startswith(("epoch=", "sequence="))
            continue
        sums = expected(report)[f"{organization}/service-1"]
        left_out = sum(report.counts.get(kind, 0) for kind in ("altered_record", "torn_object"))
        wanted[organization] = {**sums, "left_out": Decimal(left_out)}
    load, *_ = usage_statements(tmp_path / "objects")
    columns = [name for name in wanted["org-clean"] if name != "left_out"]
    totals = ", ".join(f"sum({name}) AS {name}" for name in (*columns, "altered_records"))
    queries = [
        f"SELECT organization_id, {totals} FROM billing_totals GROUP BY organization_id",
        "SELECT organization_id, reason, count() AS n FROM byoc_usage_rejected FINAL GROUP BY ALL",
    ]
    asked = [f"{query} SETTINGS {FORMAT_SETTINGS}" for query in queries]
    statements = [*table_statements(), load, load]
    answers = run_engine(engine(), str(tmp_path / "engine"), [*statements, *asked], "JSONEachRow")
    assert set(answers[: len(statements)]) == {""}
    summed, rejected = (
        [json.loads(line) for line in answer.splitlines()] for answer in answers[-2:]
    )
    found = {
        row["organization_id"]: {name: Decimal(row[name]) for name in columns}
        | {"left_out": Decimal(row["altered_records"])}
        for row in summed
    }
    for row in rejected:
        found[row["organization_id"]]["left_out"] += int(row["n"])
    differing = {
        named[organization][0]: (sums, found.get(organization))
        for organization, sums in wanted.items()
        if found.get(organization) != sums
    }
    assert list(differing) == []
    assert found["org-clean"]["records"] == 3
    assert len({row["reason"] for row in rejected}) > 8
    refused = sum(sums["left_out"] for sums in wanted.values())
    assert len(wanted) / 3 < refused < len(wanted)


DAY_MS = 86_400_000
TEN_YEARS_MS = 3652 * DAY_MS
REPLICAS = 200


@pytest.mark.parametrize("engine", ENGINES)
def test_records_of_any_year_make_no_day_that_is_not_asked_for(engine: Any, tmp_path: Path) -> None:
    """One customer's clock is wrong, and 200 of its replicas were away for ten years."""
    clean = ReplicaHistory(organization_id="org-2")
    sent = [clean.measured(), clean.gap("target_absent"), clean.measured()]
    wrong = ReplicaHistory(now_ms=DAY_MS)
    early = wrong.measured()
    wrong.now_ms = YEAR_2100_MS - DAY_MS
    sent += [early, wrong.measured()]
    for number in range(REPLICAS):
        away = ReplicaHistory(
            organization_id="org-3",
            replica=f"r-{number}",
            pod_uid=f"u-{number}",
            now_ms=NOON_MS - TEN_YEARS_MS,
        )
        sent.append(away.gap("target_absent", period_ms=TEN_YEARS_MS + DAY_MS))
    load, *_ = usage_statements(stored(tmp_path / "objects", objects(sent)))
    query = "SELECT {} FROM billing_completeness_since(since = '2026-11-20') {}"
    queries = [
        query.format(
            "organization_id, count() AS days, sum(records) AS records, sum(gap_seconds) AS gap",
            "GROUP BY organization_id ORDER BY organization_id",
        ),
        query.format("max(day) <= today() + 1 AS past", "WHERE uncovered_seconds > 0"),
    ]
    asked = [f"{one} SETTINGS {FORMAT_SETTINGS}, max_memory_usage = 200000000" for one in queries]
    statements = [*table_statements(), load]
    answers = run_engine(engine(), str(tmp_path / "engine"), [*statements, *asked], "JSONEachRow")
    assert set(answers[: len(statements)]) == {""}
    by_organization = {
        row["organization_id"]: row for row in map(json.loads, answers[-2].splitlines())
    }
    assert {name: row["records"] for name, row in by_organization.items()} == {
        "org-1": "1",  # the one of 2099; that of 1970 is before the day
        "org-2": "3",
        "org-3": "0",  # the gaps began before
    }
    assert by_organization["org-2"] | {"gap": Decimal(by_organization["org-2"]["gap"])} == {
        "organization_id": "org-2",
        "days": "1",
        "records": "3",
        "gap": Decimal(60),
    }
    since_ms = parse_rfc3339("2026-11-20T00:00:00Z")
    lasted = REPLICAS * Decimal(NOON_MS + DAY_MS - since_ms) / 1000
    assert Decimal(by_organization["org-3"]["gap"]) == lasted
    assert int(by_organization["org-1"]["days"]) < 2 + 365 * 10
    assert json.loads(answers[-1])["past"]


def test_a_damaged_object_stops_the_load_of_its_own_customer_only(tmp_path: Path) -> None:
    """As docs/contracts/billing.md says: once per customer, with `v1/org=ORG/` in the path."""
    for number in (1, 2):
        message = packed([encode(one) for one in base(f"org-{number}")], f"org-{number}")
        body = message.body
        if number == 1:
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 0xFF]) + body[middle + 1 :]
        path = tmp_path / "objects" / message.id
        path.parent.mkdir(parents=True)
        path.write_bytes(body)
        if number == 1:
            assert audited(replace(message, body=body)).counts == {"torn_object": 1}
    whole, *_ = usage_statements(tmp_path / "objects")
    loads = [whole.replace("/v1/**/", f"/v1/org=org-{number}/**/") for number in (1, 2)]
    count = "SELECT organization_id, count() FROM byoc_usage FINAL GROUP BY 1 ORDER BY 1"
    for package in (install.chdb, install.older_chdb):
        queries = [*table_statements(), whole, *loads, count]
        place = str(tmp_path / package.__name__)
        *_, all_together, first, second, found = run_engine(package(), place, queries)
        assert re.match(r"Code: \d+", all_together)
        assert re.match(r"Code: \d+", first)
        assert "org=org-1/" in first  # so the object is named
        assert second == ""
        assert ("org-2", "3") in [tuple(row.split("\t")) for row in found.splitlines()]
