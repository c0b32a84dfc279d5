"""`byoc-agents ledger verify --cloudtrail`: what one of two books has and the other does not."""

import asyncio
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from byoc_agents.errors import Reason, SendError
from byoc_agents.ledger import FileLedger
from byoc_agents.message import Message, Receipt
from byoc_agents.report import main
from lab.fakes.core import FakeClock
from tests.unit.ledger.ledger_fakes import QuickDisk

Output = pytest.CaptureFixture[str]
Event = dict[str, Any]
ROLE = "arn:aws:sts::111122223333:assumed-role/byoc-agents/pod-1"
QUEUE = "https://sqs.eu-west-1.amazonaws.com/444455556666/state.fifo"
HOURS = 6


def put(key: str, hour: float, **more: Any) -> Event:
    """Return the event of a PutObject, with the fields that are looked at."""
    return event("s3.amazonaws.com", "PutObject", hour) | {
        "requestParameters": {"bucketName": "usage", "key": key, "x-id": "PutObject"},
        "responseElements": None,
        **more,
    }


def sent(message_id: str, hour: float, dedup_id: str = "") -> Event:
    """Return the event of a SendMessage; CloudTrail hides the body."""
    fifo = {"messageDeduplicationId": dedup_id, "messageGroupId": "g"} if dedup_id else {}
    hidden = {"messageBody": "HIDDEN_DUE_TO_SECURITY_REASONS"}
    return event("sqs.amazonaws.com", "SendMessage", hour) | {
        "requestParameters": {"queueUrl": QUEUE, **hidden, **fifo},
        "responseElements": {"messageId": message_id, "mD5OfMessageBody": "0" * 32},
    }


def event(source: str, name: str, hour: float) -> Event:
    minutes = round(hour * 60)
    return {
        "eventVersion": "1.09",
        "userIdentity": {"type": "AssumedRole", "arn": ROLE},
        "eventTime": f"2026-11-23T{12 + minutes // 60:02}:{minutes % 60:02}:01Z",
        "eventSource": source,
        "eventName": name,
        "eventID": f"{name}-{hour}",
    }


async def live(directory: Path) -> None:
    """Deliver one object and one message per hour; the first object only at the second try."""
    clock = FakeClock()
    billing, state = (
        FileLedger(directory / name / "ledger", clock=clock, max_bytes=1 << 20, disk=QuickDisk())
        for name in ("billing-scraper", "state-exporter")
    )
    async with billing, state:
        for hour in range(HOURS):
            batch = [Message(f"v1/{hour}", "t", b"body", created_at_ms=0)]
            if hour == 0:
                line = await billing.intent("s3://usage", batch)
                await billing.receipt(line, batch, [SendError(Reason.TIMEOUT, "no response")])
            line = await billing.intent("s3://usage", batch)
            await billing.receipt(line, batch, [Receipt(Reason.OK, 200, "etag")])
            batch = [Message(f"id-{hour}", "t", b"{}", created_at_ms=0, group="g")]
            line = await state.intent(QUEUE.replace("https:", "sqs:"), batch)
            await state.receipt(line, batch, [Receipt(Reason.OK, 200, f"message-{hour}")])
            await clock.advance(3600)


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    asyncio.run(live(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def trail() -> list[Event]:
    """Return the customer's view of the same six hours, and of a read, which sends nothing."""
    puts = [put(f"v1/{hour}", hour) for hour in range(HOURS)]
    messages = [sent(f"message-{hour}", hour) for hour in range(HOURS)]
    return [*puts, *messages, event("s3.amazonaws.com", "GetObject", -1), *ends()]


def ends() -> list[Event]:
    """Return events that show which time the trail covers."""
    return [event("sts.amazonaws.com", "AssumeRole", at) for at in (-1, HOURS + 1)]


def records(events: list[Event]) -> bytes:
    return json.dumps({"Records": events}).encode()


def json_lines(events: list[Event]) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in events)


def verify(capsys: Output, state_dir: Path, content: bytes, *more: str) -> tuple[int, str]:
    file = state_dir / "trail.json"
    file.write_bytes(content)
    capsys.readouterr()
    code = main(["verify", str(state_dir), "--cloudtrail", str(file), *more])
    return code, capsys.readouterr().out


@pytest.mark.parametrize(
    "form",
    [
        records,
        json_lines,
        lambda events: gzip.compress(records(events)),
        lambda events: gzip.compress(json_lines(events)),
    ],
    ids=["records", "lines", "records.gz", "lines.gz"],
)
def test_two_books_that_agree(
    form: Callable[[list[Event]], bytes], state_dir: Path, trail: list[Event], capsys: Output
) -> None:
    """An attempt without a response may have reached AWS or not."""
    code, out = verify(capsys, state_dir, form(trail))
    assert (code, "cloudtrail: OK" in out) == (0, True)
    assert "12 sends in the trail, 13 sends in the ledgers" in out
    assert verify(capsys, state_dir, form([*trail, put("v1/0", 0)]))[0] == 0


@pytest.mark.parametrize(
    "extra",
    [
        put("v1/9", 3),
        put("v1/3", 3),
        put("v1/3", 3) | {"requestParameters": {"bucketName": "other", "key": "v1/3"}},
        put("v1/9", 3, errorCode="AccessDenied"),
        sent("message-9", 3),
        sent("message-9", 3, "id-9"),
    ],
    ids=["key", "twice", "bucket", "refused", "message", "fifo"],
)
def test_a_send_that_the_ledger_does_not_have_is_found(
    extra: Event, state_dir: Path, trail: list[Event], capsys: Output
) -> None:
    code, out = verify(capsys, state_dir, records([*trail, extra]))
    assert code == 1
    assert out.count("problem") == 1
    assert f"in the trail, not in the ledger: {extra['eventTime']}" in out


@pytest.mark.parametrize("missing", [3, HOURS + 3], ids=["object", "message"])
def test_a_send_that_the_trail_does_not_have_is_found(
    missing: int, state_dir: Path, trail: list[Event], capsys: Output
) -> None:
    del trail[missing]
    code, out = verify(capsys, state_dir, records(trail))
    assert code == 1
    assert out.count("problem") == 1
    assert "in the ledger, not in the trail: 2026-11-23T15:00:00.000Z" in out


def test_messages_are_matched_by_their_deduplication_id_and_in_batches(
    state_dir: Path, trail: list[Event], capsys: Output
) -> None:
    others = [one for one in trail if one["eventName"] != "SendMessage"]
    batch = event("sqs.amazonaws.com", "SendMessageBatch", 2) | {
        "requestParameters": {
            "queueUrl": QUEUE,
            "entries": [{"id": str(n), "messageDeduplicationId": f"id-{n}"} for n in range(3)],
        },
        "responseElements": None,
    }
    answered = event("sqs.amazonaws.com", "SendMessageBatch", 4) | {
        "requestParameters": {"queueUrl": QUEUE, "entries": [{"id": str(n)} for n in range(3)]},
        "responseElements": {
            "successful": [{"id": str(n), "messageId": f"message-{n + 3}"} for n in range(3)]
        },
    }
    assert verify(capsys, state_dir, records([*others, batch, answered]))[0] == 0
    assert verify(capsys, state_dir, records([*others, batch]))[0] == 1


def batch_sent(hour: float, entries: dict[str, str]) -> Event:
    """Return the one event of a request with several messages: id -> MessageId, "" = failed."""
    hidden = {"messageBody": "HIDDEN_DUE_TO_SECURITY_REASONS", "messageGroupId": "g"}
    failed = {"senderFault": False, "code": "InternalError", "message": "try again"}
    places = {id_: str(place) for place, id_ in enumerate(entries)}
    return event("sqs.amazonaws.com", "SendMessageBatch", hour) | {
        "requestParameters": {
            "queueUrl": QUEUE,
            "entries": [
                {"id": place, "messageDeduplicationId": id_, **hidden}
                for id_, place in places.items()
            ],
        },
        "responseElements": {
            "successful": [
                {"id": places[id_], "messageId": message_id, "mD5OfMessageBody": "0" * 32}
                for id_, message_id in entries.items()
                if message_id
            ],
            "failed": [
                {"id": places[id_], **failed}
                for id_, message_id in entries.items()
                if not message_id
            ],
        },
        "requestID": f"request-{hour}",
        "readOnly": False,
        "resources": [{"type": "AWS::SQS::Queue", "ARN": "arn:aws:sqs:eu-west-1:4:state.fifo"}],
        "eventType": "AwsApiCall",
        "managementEvent": False,
        "eventCategory": "Data",
    }


async def send_batches(directory: Path) -> None:
    """Send three messages in one request, of which the queue refuses the last; send it again."""
    clock = FakeClock()
    path = directory / "state-exporter" / "ledger"
    messages = [Message(f"id-{n}", "t", b"{}", created_at_ms=0, group="g") for n in range(3)]
    accepted = [Receipt(Reason.OK, 200, f"message-{n}") for n in range(3)]
    refused = SendError(Reason.SERVER_ERROR, "InternalError")
    attempts: list[tuple[list[Message], list[Receipt | SendError]]] = [
        (messages, [*accepted[:2], refused]),
        (messages[2:], [accepted[2]]),
    ]
    async with FileLedger(path, clock=clock, max_bytes=1 << 20, disk=QuickDisk()) as ledger:
        for batch, outcomes in attempts:
            line = await ledger.intent(QUEUE.replace("https:", "sqs:"), batch)
            await ledger.receipt(line, batch, outcomes)
            await clock.advance(3600)


def without_parameters(record: Event) -> Event:
    return record | {"requestParameters": {"omitted": True, "reason": "too long"}}


@pytest.mark.parametrize(
    ("batch", "problem"),
    [
        (batch_sent(0, {"id-0": "message-0", "id-1": "message-1", "id-2": ""}), ""),
        (
            batch_sent(0, {"id-0": "message-0", "id-1": "message-1", "id-2": "", "id-9": "other"}),
            "2026-11-23T12:00:01Z SendMessageBatch /444455556666/state.fifo id-9 (event",
        ),
        (
            batch_sent(0, {"id-0": "message-0", "id-2": ""}),
            "in the ledger, not in the trail: 2026-11-23T12:00:00.000Z state-exporter",
        ),
        (without_parameters(batch_sent(0, {"id-0": "message-0", "id-1": "message-1"})), ""),
        (without_parameters(batch_sent(0, {"id-0": ""})), "in the trail, not in the ledger"),
    ],
    ids=["agrees", "one more", "one missing", "only the response", "nothing to compare"],
)
def test_a_batch_is_one_event_with_a_message_per_entry(
    batch: Event, problem: str, tmp_path: Path, capsys: Output
) -> None:
    asyncio.run(send_batches(tmp_path / "state"))
    again = batch_sent(1, {"id-2": "message-2"})
    code, out = verify(capsys, tmp_path / "state", records([batch, again, *ends()]))
    assert code == (1 if problem else 0)
    assert problem in out


def test_only_the_time_that_both_cover_is_compared(
    state_dir: Path, trail: list[Event], capsys: Output
) -> None:
    late = put("v1/99", HOURS + 5)  # after the copy of the ledger was made
    code, out = verify(capsys, state_dir, records([*trail, late]))
    assert code == 0
    assert "1 events are outside of the time of the ledger's lines" in out
    first = [one for one in trail if one["eventTime"] < "2026-11-23T15:30"]
    code, out = verify(capsys, state_dir, records(first))
    assert code == 0
    assert "sends are outside of the time of the trail's events" in out


def test_events_of_another_identity_can_be_left_out(
    state_dir: Path, trail: list[Event], capsys: Output
) -> None:
    stranger = put("v1/9", 3, userIdentity={"arn": "arn:aws:iam::111122223333:user/ann"})
    content = records([*trail, stranger])
    assert verify(capsys, state_dir, content)[0] == 1
    assert verify(capsys, state_dir, content, "--identity", "assumed-role/byoc-agents/")[0] == 0


def test_a_directory_of_files_is_read(state_dir: Path, trail: list[Event], capsys: Output) -> None:
    place = state_dir.parent / "AWSLogs" / "eu-west-1"
    place.mkdir(parents=True)
    for number, one in enumerate(trail):
        (place / f"{number}.json.gz").write_bytes(gzip.compress(records([one])))
    (place / "README").write_text("no events")
    code = main(["verify", str(state_dir), "--cloudtrail", str(place.parent), "--json"])
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (code, last["daemon"], last["ok"], last["events"]) == (0, "cloudtrail", True, 12)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"no json", "expected an event of CloudTrail"),
        (b'{"eventSource": "s3.amazonaws.com"}', "eventTime: "),
        (b'{"Records": [7]}', "record 1: expected an event of CloudTrail"),
        (b"null", "record 1: expected an event of CloudTrail"),
        (b'{"Records": 5}', "record 1: expected an event of CloudTrail"),
        (b'{"Records": 5}\n{"Records": 6}', ":1: expected an event of CloudTrail"),
        (gzip.compress(b"{}")[:-6], "expected a gzip file"),
        (b"[" * 100_000, "expected an event of CloudTrail"),
    ],
    ids=["text", "time", "number", "null", "no list", "no list in a line", "gzip", "deep"],
)
def test_a_file_that_is_not_of_cloudtrail_is_refused(
    content: bytes, error: str, state_dir: Path, capsys: Output
) -> None:
    file = state_dir / "trail"
    file.write_bytes(content)
    assert main(["verify", str(state_dir), "--cloudtrail", str(file)]) == 2
    assert error in capsys.readouterr().err


def test_an_empty_trail_confirms_nothing(state_dir: Path, capsys: Output) -> None:
    code, out = verify(capsys, state_dir, records([]))
    assert code == 1
    assert "the trail has no event" in out
