"""What the label values of /metrics can be: closed words, our versions and, of the broker, names.

The programs run with names of the customer in every place that can hold one: settings, the answers
of ClickHouse and of the control plane, labels and annotations of alerts, requests for access.
"""

import asyncio
import json
import os
import re
import sys
from pathlib import Path
from typing import get_args

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from byoc_agents import __version__
from byoc_agents.access.broker import REFUSED_DOCUMENTS
from byoc_agents.access.machine import State
from byoc_agents.access.orders import Approve
from byoc_agents.alerts.counts import OUTCOMES
from byoc_agents.billing.record import GapReason, Quality
from byoc_agents.errors import Reason, SpoolErrorReason
from lab.demo.alertmanager import notification
from lab.fakes.http import WEBHOOK_HEADERS, WEBHOOK_TOKEN, FakeHttp, Reply, Request
from lab.fakes.state import HEALTHY, FakeClickHouse
from tests.unit.access.access_documents import GRANT_ID
from tests.unit.access.program_harness import Program, until

DAEMONS = ("alert-forwarder", "billing-scraper", "state-exporter")
PLANTED = "planted"
TABLE = f"{PLANTED}_db.{PLANTED}_orders"
START_MS = 1_795_435_200_000
Series = set[tuple[str, str]]  # (label, value) of all series

CLOSED: dict[str, set[str]] = {  # label -> all values that it can have
    "daemon": {*DAEMONS, "access-broker", "+".join(DAEMONS)},
    "version": {__version__},
    "outcome": {*OUTCOMES},
    "code": {"200", "400", "401", "413", "415", "503"},
    "result": {"sent", *(reason.value for reason in Reason)},
    "reason": {*get_args(SpoolErrorReason), *(reason.value for reason in Reason), "lost", "older"}
    | {*get_args(GapReason), *REFUSED_DOCUMENTS},
    "source": {"none", "process"},
    "quality": {*get_args(Quality)},
    "state": {state.value for state in State},
}
REACHED = (  # before the page is judged
    'byoc_send_attempts_total{daemon="alert-forwarder",result="bad_response"}',
    'byoc_messages_sent_total{daemon="billing-scraper"}',
    'byoc_messages_sent_total{daemon="state-exporter"}',
)


def read_series(text: str) -> Series:
    return {
        pair
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        for pair in sample.labels.items()
    }


def not_closed(found: Series) -> list[tuple[str, str]]:
    return sorted(pair for pair in found if pair[1] not in CLOSED.get(pair[0], ()))


def refuse(request: Request) -> Reply:
    """Reject each event with the customer's text in the answer."""
    body = f'{{"error": "{TABLE} {request.body[:100]!r}"}}'.encode()
    return Reply(422, {"content-type": "application/json", "x-error": TABLE}, body)


def value_of(text: str, line: str) -> float:
    found = re.search(rf"^{re.escape(line)} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


@pytest.fixture
def place(tmp_path: Path) -> Path:
    own = tmp_path / f"{PLANTED}-directory"
    for name in ("bucket", "queue"):
        (own / f"{PLANTED}-{name}").mkdir(parents=True)
    return own


async def test_the_three_daemons_have_closed_words_only(place: Path) -> None:
    plane, clickhouse = FakeHttp(apply=refuse), FakeClickHouse(text=TABLE)
    clickhouse.server.rows = HEALTHY | {"version": f"24.8.{PLANTED}", f"{TABLE}.x": "1"}
    log = place / "log"
    async with plane, clickhouse, aiohttp.ClientSession() as session:
        environ = {
            "PATH": os.environ["PATH"],
            "BYOC_ORGANIZATION_ID": f"{PLANTED}-organization",
            "BYOC_SERVICE_ID": f"{PLANTED}-service",
            "BYOC_REGION": f"{PLANTED}-region",
            "BYOC_REPLICA": f"{PLANTED}-pod",
            "BYOC_STATE_DIR": str(place / "state"),
            "BYOC_LISTEN": "127.0.0.1:0",
            "BYOC_BILLING_BUCKET": f"file://{place}/{PLANTED}-bucket",
            "BYOC_BILLING_TARGET": f"pid:{os.getpid()}",
            "BYOC_BILLING_SAMPLE_SECONDS": "0.2",
            "BYOC_BILLING_WINDOW_SECONDS": "1",
            "BYOC_BILLING_SEAL_SECONDS": "1",
            "BYOC_STATE_QUEUE_URL": f"file://{place}/{PLANTED}-queue",
            "BYOC_STATE_POLL_SECONDS": "0.1",
            "BYOC_CLICKHOUSE_URL": clickhouse.url,
            "BYOC_CLICKHOUSE_USER": f"{PLANTED}_user",
            "BYOC_ALERTS_URL": f"{plane.url}/{PLANTED}",
            "BYOC_ALERTS_LISTEN": "127.0.0.1:0",
            "BYOC_ALERTS_TOKEN": f"{PLANTED}-token",
            "BYOC_ALERTS_SIGNING_SECRET": "whsec_" + "a2tr" * 8,
            "BYOC_ALERTS_WEBHOOK_TOKEN": WEBHOOK_TOKEN,
            "BYOC_ALERTS_FINGERPRINT_SECRET": PLANTED * 5,
            "BYOC_ALERTS_MATCHERS": "{}",
            "BYOC_ALERTS_LABELS": f"alertname,{PLANTED}_label",
            "BYOC_ALERTS_ANNOTATIONS": "summary",
            "BYOC_ALLOW_INSECURE_ENDPOINTS": "true",
        }
        with log.open("wb") as stream:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "byoc_agents.app.cli", "run", *DAEMONS),
                env=environ, stdout=stream, stderr=stream,
            )  # fmt: skip
        try:
            pages = await until(lambda: address(log, "admin.listening"), process)
            hook = await until(lambda: address(log, "webhook.listening"), process)
            alert = notification(f"{PLANTED}_alert", START_MS, None)
            alert["alerts"][0]["labels"] |= {f"{PLANTED}_label": TABLE, "table": TABLE}
            alert["alerts"][0]["annotations"] = {"summary": TABLE}
            for headers in (WEBHOOK_HEADERS, {"Authorization": f"Bearer {PLANTED}"}):
                async with session.post(f"{hook}/v1/alerts", json=alert, headers=headers) as answer:
                    await answer.read()
            text = ""
            async with asyncio.timeout(30):
                while any(value_of(text, line) < 1 for line in REACHED):
                    await asyncio.sleep(0.05)
                    async with session.get(f"{pages}/metrics") as page:
                        text = await page.text()
        except BaseException:
            sys.stdout.write(log.read_text())
            raise
        finally:
            if process.returncode is None:
                process.terminate()
                await process.wait()
    assert clickhouse.server.queries
    assert PLANTED not in text
    found = read_series(text)
    assert not_closed(found) == []
    assert {"daemon", "outcome", "code", "result", "source", "quality"} <= {
        name for name, _ in found
    }


def address(log: Path, event: str) -> str:
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]
    found = next((line for line in lines if line["event"] == event), None)
    return f"http://{found['host']}:{found['port']}" if found else ""


async def test_the_broker_has_the_names_of_its_servers_too(tmp_path: Path) -> None:
    program = Program(tmp_path, replicas=(f"{PLANTED}-0",))
    async with program.fakes(), program.running():
        reason = {"kind": "incident", "ticket": "CS-7777777", "text": f"{TABLE} is slow"}
        program.plane.envelopes.append(program.request(reason=reason))
        await until(lambda: "pending" in program.plane.states(), program.process)
        await program.order(Approve(id=GRANT_ID, by=f"{PLANTED}-person"), "approve")
        await until(lambda: "open" in program.plane.states(), program.process)
        text = await program.page("/metrics")
    found = read_series(text)
    assert ("state", "open") in found
    assert not_closed(found) == [("replica", f"{PLANTED}-0")]
    assert "7777777" not in text
    assert GRANT_ID not in text
