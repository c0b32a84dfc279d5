"""Select the states whose order is fixed: all but heartbeats that a later one may have replaced.

Only the latest heartbeat is kept in the spool. After a timeout it is replaced by the next one, but
the queue may still accept it later. The ledger has no receipt for such a heartbeat.
"""

from collections.abc import Iterable
from typing import Any

from byoc_agents.ledger.query import STORED

Body = dict[str, Any]  # a CloudEvents envelope of the queue
Send = dict[str, Any]  # or a refusal, which has no reason: a line of `ledger show --json`


def ordered(bodies: Iterable[Body], ledger: Iterable[Send], *, damaged: bool) -> list[Body]:
    """Return the states that must arrive in order.

    Recovery of a damaged spool file can bring back a replaced heartbeat: then only transitions
    must arrive in order.
    """
    good = () if damaged else (one for one in ledger if one.get("reason") in STORED)
    stored = {one["id"] for one in good}
    return [one for one in bodies if one["data"]["kind"] == "transition" or one["id"] in stored]
