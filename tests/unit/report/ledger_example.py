"""Two days of three daemons as they would have written them, bodies and all."""

from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

import msgspec

from byoc_agents.app.cloudevents import Event, encode, rfc3339
from byoc_agents.billing.objects import seal
from byoc_agents.errors import Reason, SendError
from byoc_agents.ledger import FileLedger
from byoc_agents.message import Message, Outcome, Receipt
from byoc_agents.schema import EXAMPLES
from lab.fakes.core import START_MS, FakeClock
from tests.unit.ledger.ledger_fakes import QuickDisk

BOUND = 8 * 1024**2
BUCKET = "s3://acme-byoc-usage"
QUEUE = "sqs://byoc-state.fifo"
CONTROL_PLANE = "https://api.control-plane.example/v1/events"
MINUTE_MS = 60_000


async def write_example_ledger(
    state_dir: Path, hours: int = 30, *, keep_bodies: bool = True
) -> Path:
    """Write the ledgers of the three daemons below the directory."""
    clock = FakeClock(wall_ms=START_MS)
    made = [
        FileLedger(
            state_dir / daemon / "ledger",
            clock=clock,
            max_bytes=BOUND,
            keep_bodies=keep_bodies,
            disk=QuickDisk(),
        )
        for daemon in ("billing-scraper", "state-exporter", "alert-forwarder")
    ]
    billing, state, alerts = made
    async with billing, state, alerts:
        for quarter in range(hours * 4):
            now_ms = clock.wall_ns() // 1_000_000
            await send(billing, BUCKET, [usage(now_ms, quarter)])
            down = hours * 2 < quarter < hours * 2 + 8
            for beat in range(2):
                outcome = trouble(Reason.TIMEOUT, "no response within 10 s") if down else None
                await send(state, QUEUE, [heartbeat(now_ms, quarter * 2 + beat)], outcome)
            if quarter % 9 == 0:
                batch = [alert(now_ms, quarter * 10 + n) for n in range(1 + quarter % 7)]
                await send(alerts, CONTROL_PLANE, batch)
            await clock.advance(900)
        billing.record_refusal("imds", "169.254.169.254:80 is not a destination")
        alerts.record_refusal("host", "evil.example:443 is not a destination")
        alerts.record_refusal("redirect", "302 of https://api.control-plane.example to elsewhere")
        late = [alert(clock.wall_ns() // 1_000_000, 99_999)]
        await send(alerts, CONTROL_PLANE, late, trouble(Reason.REJECTED, "status 422"))
        await alerts.intent(CONTROL_PLANE, late)  # and then the daemon ended
    return state_dir


async def send(
    ledger: FileLedger, destination: str, batch: Sequence[Message], outcome: Outcome | None = None
) -> None:
    """Announce, and say how it ended: stored, where nothing else is given."""
    line = await ledger.intent(destination, batch)
    await ledger.receipt(line, batch, [outcome or stored(message) for message in batch])


def stored(message: Message) -> Receipt:
    return Receipt(Reason.OK, 200, f"etag-{message.id[-12:]}")


def trouble(reason: Reason, detail: str) -> SendError:
    return SendError(reason, detail)


def of(kind: str, number: int, now_ms: int) -> Event:
    """Return the example event of a type with an id of its own."""
    event = EXAMPLES[kind]
    return msgspec.structs.replace(event, id=f"{number:032x}", time=rfc3339(now_ms))


def usage(now_ms: int, quarter: int) -> Message:
    records = [encode(_usage(now_ms + n * MINUTE_MS, quarter * 15 + n)) for n in range(15)]
    return seal(records, created_at_ms=now_ms, compression="gzip" if quarter % 2 else "zstd")


def _usage(now_ms: int, sequence: int) -> Event:
    event = of("byoc.billing.usage.v1", sequence, now_ms)
    data = event.data  # type: ignore[attr-defined]
    used = msgspec.structs.replace(data.used, cpu_core_seconds=Decimal(sequence) / 7)
    start, end = rfc3339(now_ms), rfc3339(now_ms + MINUTE_MS)
    data = msgspec.structs.replace(
        data, sequence=sequence, used=used, charge_period_start=start, charge_period_end=end
    )
    return msgspec.structs.replace(event, data=data)


def heartbeat(now_ms: int, number: int) -> Message:
    return message(of("byoc.service.state.v1", number, now_ms), now_ms)


def alert(now_ms: int, number: int) -> Message:
    return message(of("byoc.alert.v1", number, now_ms), now_ms)


def message(event: Event, now_ms: int) -> Message:
    return Message(event.id, event.type, encode(event), now_ms)
