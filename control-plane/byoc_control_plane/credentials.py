"""Who may deliver for whom: tokens and signing keys by organization.

Both texts have one credential per line: `ORGANIZATION:CREDENTIAL`, or `CREDENTIAL` for every
organization, here named "". Of several lines of one organization the last is the newest, and the
others are those that a rotation replaces. A line that begins with `#` is a comment.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Generic, NamedTuple, TypeVar

import structlog

from byoc_agents.sinks.https import signing_keys

T = TypeVar("T")


class Credential(NamedTuple):
    """A credential of one organization."""

    secret: bytes  # SHA-256 of a token, or a signing key
    newest: bool


Credentials = Mapping[str, tuple[Credential, ...]]  # organization -> its own, the newest last


def split_lines(text: str) -> Iterator[tuple[str, str]]:
    """Yield the organization and the credential of each word, in order."""
    for line in text.splitlines():
        if not line.startswith("#"):
            for word in line.split():
                organization, _, credential = word.rpartition(":")  # no credential holds a colon
                yield organization, credential


def parse_tokens(text: str) -> Credentials:
    """Return the digests of the tokens. Raises ValueError."""
    if not (text.isascii() and text.replace("\n", " ").isprintable()):
        raise ValueError("other characters")
    return _grouped(
        (owner, [_digest(token)] if token else []) for owner, token in split_lines(text)
    )


def parse_signing_secrets(text: str) -> Credentials:
    """Return the keys of `whsec_BASE64`. Raises ValueError."""
    return _grouped((owner, signing_keys(secret)) for owner, secret in split_lines(text))


def _grouped(found: Iterator[tuple[str, list[bytes]]]) -> Credentials:
    secrets: dict[str, list[bytes]] = {}
    for owner, keys in found:
        if not keys:
            raise ValueError("an organization without a credential")
        secrets.setdefault(owner, []).extend(keys)
    return {
        owner: tuple(Credential(key, key == keys[-1]) for key in dict.fromkeys(keys))
        for owner, keys in secrets.items()
    }


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


class Parsed(Generic[T]):
    """The parsed form of a text that may change. A text with a mistake replaces nothing."""

    def __init__(self, text: Callable[[], str], parse: Callable[[str], T]) -> None:
        """Parse once. Raises ValueError."""
        self._text = text
        self._parse = parse
        self._known = text()
        self._value = parse(self._known)

    def __call__(self) -> T:
        """Return the value of the current text, or of the last one without a mistake."""
        text = self._text()
        if text != self._known:
            self._known = text
            try:
                self._value = self._parse(text)
            except ValueError as error:
                structlog.get_logger().error("credentials.invalid", error=str(error))
        return self._value


class Keyring:
    """The tokens and signing keys of all organizations."""

    def __init__(self, tokens: Callable[[], str], signing_secrets: Callable[[], str]) -> None:
        """Both return the current text. Raises ValueError."""
        self._tokens = Parsed(tokens, _by_digest)
        self._keys = Parsed(signing_secrets, parse_signing_secrets)

    def find_owners(self, authorization: str) -> Mapping[str, bool]:
        """Return the organizations of a bearer token, and whether it is the newest of each."""
        scheme, _, token = authorization.partition(" ")
        return self._tokens().get(_digest(token), {}) if scheme == "Bearer" else {}

    def find_keys(self, owners: Mapping[str, bool]) -> list[Credential]:
        """Return the signing keys of these organizations, and those that serve every one."""
        keys = self._keys()
        return [key for owner in dict.fromkeys([*owners, ""]) for key in keys.get(owner, ())]


def _by_digest(text: str) -> Mapping[bytes, Mapping[str, bool]]:
    found: dict[bytes, dict[str, bool]] = {}
    for owner, credentials in parse_tokens(text).items():
        for digest, newest in credentials:
            found.setdefault(digest, {})[owner] = newest
    return found
