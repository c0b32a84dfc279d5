"""The errors of the access path. Each has a reason of a closed set, for logs and ledger lines."""

from typing import ClassVar

from byoc_agents.errors import ByocError


class DocumentError(ByocError):
    """The payload of a trusted envelope is not the document that its type names."""

    reason: ClassVar[str] = "not_valid"


class PolicyError(ByocError):
    """The policy file is missing or not valid. `str()` has every mistake that was found."""


class AuthorityError(ByocError):
    """The certificate authority cannot be read, or cannot sign: a key, a CSR or a name."""


class TailnetError(ByocError):
    """The Kubernetes API did not confirm that an endpoint of the tailnet was scaled."""


class ServerError(ByocError):
    """A ClickHouse server did not confirm a statement. After a time-out it may have run it."""
