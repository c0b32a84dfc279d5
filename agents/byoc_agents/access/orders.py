"""Orders of the customer: files in a folder, so that the broker needs no listener.

A command writes an order completely or not at all, and waits for the file with its answer. The
broker removes an order only after its effect is stored: an order that a crash interrupted is
carried out again, which changes nothing if it was complete.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec

from byoc_agents.access.documents import UUID7, GrantId, Identifier, Seconds
from byoc_agents.app.files import read_regular
from byoc_agents.durable.files import Disk
from byoc_agents.envelope import MAX_ENVELOPE_BYTES

MAX_ORDER_BYTES = 2 * MAX_ENVELOPE_BYTES  # an envelope in base64, and the rest
MAX_ORDERS = 100  # of one pass
ALL = "all"

Comment = Annotated[str, msgspec.Meta(max_length=500)]


class _Order(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=str.lower):
    """The base of the orders; the field `type` is the name of the class."""


class Submit(_Order, frozen=True, kw_only=True):
    """Take an envelope of the vendor: a request or a withdrawal."""

    envelope: bytes


class Approve(_Order, frozen=True, kw_only=True):
    """Approve a request; in mode `signed` by the envelope, otherwise by the other fields."""

    id: GrantId
    by: Identifier = "unnamed"
    duration_seconds: Seconds | None = None
    role: Identifier | None = None
    comment: Comment = ""
    envelope: bytes = b""


class Deny(_Order, frozen=True, kw_only=True):
    """Deny a request."""

    id: GrantId
    by: Identifier = "unnamed"
    comment: Annotated[str, msgspec.Meta(min_length=1, max_length=500)]


class Revoke(_Order, frozen=True, kw_only=True):
    """End a grant, or with `all` every grant."""

    id: Annotated[str, msgspec.Meta(pattern=rf"^(?:{ALL}|{UUID7})\Z")]
    by: Identifier = "unnamed"
    comment: Comment = ""


class Forget(_Order, frozen=True, kw_only=True):
    """Give up a replica that will never answer again: its grants end as incomplete."""

    replica: Identifier
    by: Identifier = "unnamed"
    comment: Annotated[str, msgspec.Meta(min_length=1, max_length=500)]


class CheckServers(_Order, frozen=True, kw_only=True):
    """Check every server as before an opening, and answer with the problems."""


Order = Submit | Approve | Deny | Revoke | Forget | CheckServers

_DECODER = msgspec.json.Decoder(Order)


class OrderFile(NamedTuple):
    """One order, or why it cannot be used."""

    name: str
    order: Order | None
    mistake: str = ""


class OrderFolder:
    """The folders `orders` and `answers` of the broker's directory. Methods block."""

    def __init__(self, directory: Path, disk: Disk | None = None) -> None:
        self._orders = directory / "orders"
        self._answers = directory / "answers"
        self._disk = disk or Disk()

    def create(self) -> None:
        """Create the folders. Raises OSError."""
        for folder in (self._orders, self._answers):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def place(self, name: str, order: Order) -> None:
        """Write an order. Raises OSError."""
        self._disk.place(msgspec.json.encode(order), self._orders / f"{name}.json")

    def read(self) -> Sequence[OrderFile]:
        """Return the oldest orders by name. Raises OSError if the folder cannot be read."""
        paths = sorted(self._orders.glob("*.json"))[:MAX_ORDERS]
        return [_read(path) for path in paths]

    def finish(self, name: str, answer: str) -> None:
        """Write the answer, then remove the order. Raises OSError."""
        self._disk.place(answer.encode(), self._answers / f"{name}.txt")
        self._disk.remove(self._orders / f"{name}.json")

    def take_answer(self, name: str) -> str | None:
        """Return and remove an answer, or return None if there is none yet."""
        path = self._answers / f"{name}.txt"
        with contextlib.suppress(FileNotFoundError):
            answer = path.read_text()
            path.unlink()
            return answer
        return None


def _read(path: Path) -> OrderFile:
    try:
        content = read_regular(str(path), MAX_ORDER_BYTES)
        assert content is not None  # noqa: S101  no version was given
        return OrderFile(path.stem, _DECODER.decode(content.content))
    except msgspec.MsgspecError as error:
        return OrderFile(path.stem, None, f"not an order: {error}")
    except (OSError, ValueError) as error:
        return OrderFile(path.stem, None, f"cannot be read: {type(error).__name__}")
