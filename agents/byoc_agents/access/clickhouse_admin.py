"""The interface to one ClickHouse server, on which the users of grants are made and ended."""

from collections.abc import Sequence
from typing import Protocol

import msgspec

USER_PREFIX = "byoc_grant_"  # only users with this prefix are ever created or dropped


class GrantAccount(msgspec.Struct, frozen=True, kw_only=True):
    """The user of one grant on a server."""

    grant_id: str
    certificate_uri: str  # the only name of the certificate that may log in
    role: str  # of ClickHouse
    ticket: str
    end_ms: int  # whole seconds

    @property
    def user(self) -> str:
        """The name of the user."""
        return user_of(self.grant_id)


class CollectedLogs(msgspec.Struct, frozen=True, kw_only=True):
    """The lines of a server's logs about one user, one JSON object per line."""

    queries: bytes
    sessions: bytes
    counts: dict[str, int]  # queries, failed_logins, result_rows, result_bytes
    gap: str = ""  # why the lines may not be all; "" = they are


class ClickHouseAdmin(Protocol):
    """One server. Every method may block for its time limit.

    Raises ServerError if the server cannot be reached or refuses: a statement may then have been
    run or not. Every method may be called again with the same values.
    """

    name: str  # of the replica

    async def find_problems(self, *, plain_names: bool, allow_open_system: bool) -> Sequence[str]:
        """Return the checks that this server fails; no grant opens on it then.

        Each text begins with the name of the check, and a colon if more follows. The arguments are
        what the policy allows: `tables: plain`, and `allow_open_system`.
        """
        ...

    async def read_clock_ms(self) -> int:
        """Return the server's wall time in milliseconds since 1970."""
        ...

    async def create_user(self, account: GrantAccount) -> None:
        """Create the user with all its limits at once. A user of that name is left as it is."""
        ...

    async def find_differences(self, account: GrantAccount) -> Sequence[str]:
        """Return how the server's user differs from the account; `missing` if it has none."""
        ...

    async def list_users(self) -> Sequence[str]:
        """Return the names of all users with the prefix of a grant."""
        ...

    async def drop_user(self, user: str) -> None:
        """Drop the user, or do nothing if it does not exist. No new query of it starts then."""
        ...

    async def kill_queries(self, user: str) -> None:
        """End the user's running queries, without waiting for their end."""
        ...

    async def running_queries(self, user: str) -> Sequence[str]:
        """Return the ids of the user's running queries."""
        ...

    async def collect(self, user: str, since_ms: int) -> CollectedLogs:
        """Write the server's logs to its tables, and return the lines about the user."""
        ...


def user_of(grant_id: str) -> str:
    """Return the name of a grant's user: the prefix and 32 hexadecimal digits."""
    return USER_PREFIX + grant_id.replace("-", "")
