"""The durable form of the grants: values in the state of the broker's spool.

A grant and the event about it are stored in one transaction, so neither exists without the other.
An ended grant stays: its id can never be used again.
"""

from collections.abc import Mapping, Sequence

import msgspec

from byoc_agents.access.control_facts import StatedControls
from byoc_agents.access.machine import ENDS, Grant
from byoc_agents.durable.model import WriteBatch
from byoc_agents.durable.spool import Spool
from byoc_agents.message import Message

GRANTS = "access/grant/"
HIGHEST_WALL = "access/highest_wall_ms"
CONTROLS = "access/controls"
WITHDRAWN = "access/withdrawn"
ROOM_BYTES = 256 * 1024  # that must be free in the spool before a grant opens: its later events

_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(Grant)
_WITHDRAWN = msgspec.json.Decoder(dict[str, int])
_CONTROLS = msgspec.json.Decoder(StatedControls)


class StoredGrants(msgspec.Struct):
    """The content of the store."""

    active: dict[str, Grant]  # those that have not ended, by id
    seen: dict[str, str]  # id -> SHA-256 of the request's payload, of every grant
    highest_wall_ms: int  # the latest wall time that was ever stored
    created_ms: int  # when the store was created
    withdrawn: dict[str, int]  # ids that were withdrawn before their requests came, and when
    controls: StatedControls  # what the ledger says about the kill switch and the policy


class GrantStore:
    """Reads and writes grants. Every method may wait for the disk, and raises SpoolError."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool

    async def load(self) -> StoredGrants:
        """Return the stored grants."""
        state = await self._spool.state("access/")
        info = await self._spool.info()
        grants = [_DECODER.decode(raw) for key, raw in state.items() if key.startswith(GRANTS)]
        return StoredGrants(
            active={grant.id: grant for grant in grants if grant.state not in ENDS},
            seen={grant.id: grant.payload_sha256 for grant in grants},
            highest_wall_ms=int(state.get(HIGHEST_WALL, b"0")),
            created_ms=info.epoch,
            withdrawn=_WITHDRAWN.decode(state.get(WITHDRAWN, b"{}")),
            controls=_CONTROLS.decode(state.get(CONTROLS, b"{}")),
        )

    async def save(self, grant: Grant, messages: Sequence[Message], highest_wall_ms: int) -> None:
        """Store a grant and the messages about it, together."""
        state = {
            GRANTS + grant.id: _ENCODER.encode(grant),
            HIGHEST_WALL: str(highest_wall_ms).encode(),
        }
        await self._spool.commit(WriteBatch(messages=messages, state=state))

    async def send(self, messages: Sequence[Message]) -> None:
        """Store events whose grants are stored already."""
        await self._spool.put(*messages)

    async def save_time(self, highest_wall_ms: int) -> None:
        """Store the latest wall time. It also shows whether the disk still accepts writes."""
        await self._spool.commit(WriteBatch(state={HIGHEST_WALL: str(highest_wall_ms).encode()}))

    async def save_withdrawn(self, withdrawn: Mapping[str, int]) -> None:
        """Store the withdrawals whose requests have not come."""
        await self._spool.commit(WriteBatch(state={WITHDRAWN: _ENCODER.encode(withdrawn)}))

    async def save_controls(self, stated: StatedControls) -> None:
        """Store what the ledger says about the controls."""
        await self._spool.commit(WriteBatch(state={CONTROLS: _ENCODER.encode(stated)}))

    async def all(self) -> list[Grant]:
        """Return every grant, ended ones included, by id."""
        state = await self._spool.state(GRANTS)
        return [_DECODER.decode(state[key]) for key in sorted(state)]

    def has_room(self) -> bool:
        """Return whether the events of another grant fit into the spool."""
        return self._spool.totals.bytes + ROOM_BYTES <= self._spool.max_bytes
