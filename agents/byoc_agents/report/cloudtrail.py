"""`byoc-agents ledger verify --cloudtrail FILE`: the ledger against the customer's own records.

CloudTrail records each PutObject and SendMessage if the trail has data events. Such an event has no
body, but the object's key, or the message's de-duplication id and the MessageId of the response:
the ledger has all of them.
"""

import gzip
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec

from byoc_agents.app.cloudevents import parse_rfc3339
from byoc_agents.ledger.query import STORED, Filter, Send, events

MARGIN_MS = 15 * 60_000  # AWS accepts requests with a clock that differs by up to 15 minutes
MAX_PROBLEMS = 100  # listed; the others are counted
GZIP = b"\x1f\x8b"
SUFFIXES = (".json", ".jsonl", ".gz")
SENDS = {
    "s3.amazonaws.com": {"PutObject"},
    "sqs.amazonaws.com": {"SendMessage", "SendMessageBatch"},
}


class Key(NamedTuple):
    """A message at its receiver: `s3://bucket` and key, or `/account/queue` and id."""

    place: str
    id: str


class TrailVerdict(msgspec.Struct, kw_only=True):
    """The result of the comparison."""

    problems: list[str] = []
    more_problems: int = 0
    notes: list[str] = []
    events: int = 0  # PutObject and SendMessage events, counted by message
    sends: int = 0  # of the ledger, to S3 and SQS

    @property
    def ok(self) -> bool:
        """Return whether there is no problem."""
        return not self.problems

    def add(self, problem: str) -> None:
        """Add a problem, or count it if there are many."""
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(problem)
        else:
            self.more_problems += 1


class TrailSend(NamedTuple):
    """One message in an event of the trail."""

    key: Key
    time_ms: int
    text: str  # of the event, for people


def compare(ledgers: Mapping[str, Path], files: Sequence[Path], identity: str = "") -> TrailVerdict:
    """Compare the sends of all these ledgers with the events of a trail. Blocks.

    Only events of an identity whose ARN contains `identity` are looked at. Raises OSError, and
    ValueError if a file is not of CloudTrail.
    """
    verdict = TrailVerdict()
    sends = [one for one in events(ledgers, Filter()) if isinstance(one, Send) and _is_aws(one)]
    by_message_id = {one.reference: _key(one) for one in sends if one.reference}
    span: list[int] = []
    trail: list[TrailSend] = []
    for record in _records(files):
        span.append(_time_ms(record))
        if _is_send(record) and identity in str(record.get("userIdentity", {}).get("arn", "")):
            trail += _sends(record, by_message_id)
    verdict.events, verdict.sends = len(trail), len(sends)
    if not span:
        verdict.add("the trail has no event")
        return verdict
    _find_unknown(verdict, trail, sends)
    _find_missing(verdict, trail, sends, (min(span), max(span)))
    return verdict


def _find_unknown(verdict: TrailVerdict, trail: Sequence[TrailSend], sends: Sequence[Send]) -> None:
    """Report what the trail has more often than the ledger."""
    known = Counter(map(_key, sends))
    times = [parse_rfc3339(one.time) for one in sends]
    first, last = (min(times), max(times)) if times else (0, 0)
    outside = 0
    for one in sorted(trail, key=lambda one: one.time_ms):
        known[one.key] -= 1
        if known[one.key] >= 0:
            continue
        if times and not first - MARGIN_MS <= one.time_ms <= last + MARGIN_MS:
            outside += 1
        else:
            verdict.add(f"in the trail, not in the ledger: {one.text}")
    if outside:
        verdict.notes.append(f"{outside} events are outside of the time of the ledger's lines")


def _find_missing(
    verdict: TrailVerdict,
    trail: Sequence[TrailSend],
    sends: Sequence[Send],
    span: tuple[int, int],
) -> None:
    """Report confirmed sends, during the trail's time, that the trail has less often."""
    seen = Counter(one.key for one in trail)
    outside = 0
    for send in sends:
        if send.reason not in STORED:
            continue
        seen[_key(send)] -= 1
        if seen[_key(send)] >= 0:
            continue
        if not span[0] + MARGIN_MS <= parse_rfc3339(send.time) <= span[1] - MARGIN_MS:
            outside += 1
        else:
            where = f"{send.destination} {send.id}"
            verdict.add(f"in the ledger, not in the trail: {send.time} {send.daemon} {where}")
    if outside:
        verdict.notes.append(f"{outside} sends are outside of the time of the trail's events")


def _is_aws(send: Send) -> bool:
    return send.destination.startswith(("s3://", "sqs://"))


def _key(send: Send) -> Key:
    if send.destination.startswith("sqs://"):
        return Key(urlsplit(send.destination).path, send.id)
    return Key(send.destination, send.id)


# Events.


def _is_send(record: Mapping[str, Any]) -> bool:
    return record.get("eventName") in SENDS.get(str(record.get("eventSource")), set())


def _time_ms(record: Mapping[str, Any]) -> int:
    return parse_rfc3339(str(record.get("eventTime")))


def _sends(record: Mapping[str, Any], by_message_id: Mapping[str, Key]) -> Iterator[TrailSend]:
    request, response = record.get("requestParameters") or {}, record.get("responseElements") or {}
    about = f"{record['eventTime']} {record['eventName']}"
    event = f"(event {record.get('eventID', 'without id')})"
    if "bucketName" in request:
        key = Key(f"s3://{request['bucketName']}", str(request.get("key", "")))
        yield TrailSend(key, _time_ms(record), f"{about} {key.place}/{key.id} {event}")
        return
    queue = urlsplit(str(request.get("queueUrl", ""))).path
    for entry, ended in _entries(str(record["eventName"]), request, response):
        message_id = str(ended.get("messageId", ""))
        dedup_id = str(entry.get("messageDeduplicationId", ""))
        key = by_message_id.get(message_id) or Key(queue, dedup_id or message_id)
        yield TrailSend(key, _time_ms(record), f"{about} {queue} {key.id} {event}")


def _entries(
    name: str, request: Mapping[str, Any], response: Mapping[str, Any]
) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Return the request and the response of each message of an event, {} if one is not there.

    An event is one request: a batch has its messages in `entries`, and those that the queue
    accepted in `successful`. CloudTrail leaves out parameters that are too long.
    """
    if name == "SendMessage":
        return [(request, response)]
    entries = {str(one.get("id")): one for one in request.get("entries") or ()}
    accepted = {str(one.get("id")): one for one in response.get("successful") or ()}
    ids = [*entries, *(id_ for id_ in accepted if id_ not in entries)]
    return [(entries.get(id_, {}), accepted.get(id_, {})) for id_ in ids] or [({}, {})]


# Files.


def _records(files: Iterable[Path]) -> Iterator[dict[str, Any]]:
    for file in files:
        inside = sorted(path for path in file.rglob("*") if path.name.endswith(SUFFIXES))
        for path in inside if file.is_dir() else [file]:
            yield from _records_of(path)


def _records_of(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the events of `{"Records": [...]}` or of JSON lines, packed with gzip or not."""
    content = path.read_bytes()
    try:
        content = gzip.decompress(content) if content.startswith(GZIP) else content
    except (OSError, EOFError) as error:
        raise ValueError(f"{path}: {error}: expected a gzip file of CloudTrail") from error
    try:
        found = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        yield from _json_lines(path, content)
        return
    records = found.get("Records", [found]) if isinstance(found, dict) else found
    for number, record in enumerate(records if isinstance(records, list) else [records], 1):
        yield _check_event(record, f"{path}: record {number}")


def _json_lines(path: Path, content: bytes) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(content.splitlines(), 1):
        place = f"{path}:{number}"
        if not line.strip():
            continue
        try:
            found = msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"{place}: {error}: expected an event of CloudTrail") from error
        records = found.get("Records", [found]) if isinstance(found, dict) else [found]
        for record in records if isinstance(records, list) else [records]:
            yield _check_event(record, place)


def _check_event(record: Any, place: str) -> dict[str, Any]:
    """Return the event if it has what every event has. Raises ValueError."""
    if isinstance(record, dict) and isinstance(record.get("eventSource"), str):
        try:
            _time_ms(record)
        except ValueError as error:
            raise ValueError(f"{place}: eventTime: {error}") from error
        return record
    raise ValueError(f"{place}: expected an event of CloudTrail, with eventSource and eventTime")
