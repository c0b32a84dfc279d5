"""Read the billing objects whose exact bytes a ledger keeps (BYOC_LEDGER_KEEP_BODIES)."""

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from byoc_agents.audit.audit import Audit
from byoc_agents.audit.intervals import Spans
from byoc_agents.audit.readers import Hours, ProgressCallback, UnreadableError
from byoc_agents.billing.objects import ObjectKey, parse_key
from byoc_agents.billing.record import TYPE
from byoc_agents.ledger.query import Filter, Send, events
from byoc_agents.report.bodies import read_kept


def read_bodies(
    audit: Audit, ledgers: Mapping[str, Path], hours: Hours, progress: ProgressCallback
) -> int:
    """Audit each object of the ledgers once, however often and with whatever outcome it was sent.

    `ledgers` maps a daemon's name to its ledger's directory. Returns the number of records
    without a kept body, which the audit reports as missing. Raises UnreadableError.
    """
    read, unkept = _Sequences(), _Sequences()
    try:
        for send in events(ledgers, Filter(type=TYPE)):
            if not isinstance(send, Send) or not hours.selects(send.id) or read.has(send.id):
                continue
            if (body := read_kept(send)) is None:
                unkept.add(send.id)
                audit.claim(send.id)
                continue
            read.add(send.id)
            _add(audit, send, body)
            progress(audit.objects)
    except OSError as error:
        raise UnreadableError(f"{error.filename}: {error.strerror}") from error
    missing = unkept.count_without(read)
    if missing and not audit.objects:
        raise UnreadableError(
            f"{', '.join(map(str, ledgers.values()))}: {missing} billing records, none in a kept "
            "body: expected BYOC_LEDGER_KEEP_BODIES=true when they were sent"
        )
    return missing


def _add(audit: Audit, send: Send, body: bytes) -> None:
    if hashlib.sha256(body).hexdigest() != send.sha256:
        audit.refuse(send.id, f"{send.body}: expected the SHA-256 of the ledger, {send.sha256}")
    else:
        audit.add(send.id, body)


class _Sequences:
    """The records that the keys of objects name. Its size depends on the holes between them."""

    def __init__(self) -> None:
        self.named: defaultdict[tuple[str, str, str, int, bool], Spans] = defaultdict(Spans)

    def has(self, key: str) -> bool:
        """Return whether all records that a key names were added."""
        name = parse_key(key)
        return name is not None and not self._spans(name).find_uncovered(name.first, name.last + 1)

    def add(self, key: str) -> None:
        """Add the records that a key names."""
        if name := parse_key(key):
            self._spans(name).add(name.first, name.last + 1)

    def count_without(self, other: "_Sequences") -> int:
        """Return how many records are not in the other one."""
        return sum(spans.minus(other.named[n]).total() for n, spans in self.named.items())

    def _spans(self, name: ObjectKey) -> Spans:
        place = (name.organization_id, name.service_id, name.pod, name.epoch, name.shared)
        return self.named[place]
