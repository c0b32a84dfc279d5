"""In which order states have to come: all but heartbeats that a later one may have replaced.

Only the latest heartbeat waits. One whose request timed out is replaced by the next, and the queue
can take it after that one all the same. The ledger tells: no answer ever said that it was stored.
"""

from collections.abc import Iterable
from typing import Any

from byoc_agents.ledger.query import STORED

Body = dict[str, Any]  # a CloudEvents envelope of the queue
Send = dict[str, Any]  # or a refusal, which has no reason: a line of `ledger show --json`


def ordered(bodies: Iterable[Body], ledger: Iterable[Send], *, damaged: bool) -> list[Body]:
    """Return those of the states that have to come in order.

    In a spool file that was damaged a heartbeat can come back that had been replaced: then only
    transitions have to.
    """
    good = () if damaged else (one for one in ledger if one.get("reason") in STORED)
    stored = {one["id"] for one in good}
    return [one for one in bodies if one["data"]["kind"] == "transition" or one["id"] in stored]
