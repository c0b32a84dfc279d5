"""The registry of customers: three files that receivers and consumers read while they run.

`tokens`, `signing-secrets` and `senders` have one line per entry, `ORGANIZATION:VALUE`. They are
what BYOC_PLANE_TOKEN_FILE, BYOC_PLANE_SIGNING_SECRET_FILE and BYOC_PLANE_SENDERS_FILE name. During
a rotation an organization has two lines in the first two files, the newest last: both are accepted.

Each step writes one file after the other, in an order by which the numbers of lines show where a
step was killed:

| tokens | signing secrets | interrupted | ended by |
|---|---|---|---|
| 0 | 1 | `add` | `add` again: the secret is not in use, and is removed |
| 1 | 2 | `rotate`, or `rotate --cancel` | either of them again: the second secret is removed |
| 2 | 1 | `rotate --finish` | `rotate --finish` again |
"""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from byoc_agents.durable.files import sync_directory
from byoc_control_plane.credentials import split_lines

TOKENS, SIGNING_SECRETS, SENDERS = "tokens", "signing-secrets", "senders"
# A file without entries is not empty: an empty file would not replace the last content.
HEADERS = {
    TOKENS: "# ORGANIZATION:TOKEN, written by byoc-control-plane tenant",
    SIGNING_SECRETS: "# ORGANIZATION:whsec_BASE64, written by byoc-control-plane tenant",
    SENDERS: "# ORGANIZATION:SENDER, written by byoc-control-plane tenant",
}


class RegistryError(Exception):
    """The registry does not allow the step. `str()` states why and what is expected."""


class Registry:
    """The files in one directory. All methods block; they raise OSError and RegistryError."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @contextmanager
    def locked(self, *, create: bool = False) -> Iterator[None]:
        """Keep other commands out; with `create` make a registry if there is none.

        Without it, raises RegistryError for a directory that is not a registry.
        """
        if create:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        elif not (self._directory / TOKENS).exists():
            raise RegistryError(
                f"{self._directory}: is not a registry: expected the directory of `tenant add`,"
                f" with the file {TOKENS}"
            )
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW  # a link could name any file
        with os.fdopen(os.open(self._directory / "lock", flags, 0o600)) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for name in HEADERS:
                if not (self._directory / name).exists():
                    self.write(name, [])
            yield

    def has(self, organization: str) -> bool:
        """Return whether the organization has credentials."""
        return bool(self._values(TOKENS, organization))

    def has_rotation(self, organization: str) -> bool:
        """Return whether two generations of its credentials are accepted."""
        return len(self._values(TOKENS, organization)) > 1

    def is_newest(self, organization: str, token: str, signing_secret: str) -> bool:
        """Return whether these are its newest credentials, entered by a step that was completed."""
        tokens, signing_secrets = (
            self._values(name, organization) for name in (TOKENS, SIGNING_SECRETS)
        )
        newest = (tokens[-1:], signing_secrets[-1:]) == ([token], [signing_secret])
        return newest and len(tokens) == len(signing_secrets)

    def add_credentials(self, organization: str, token: str, signing_secret: str) -> None:
        """Accept these in addition. Raises RegistryError during a rotation."""
        if self.has_rotation(organization):
            raise RegistryError(
                f"{organization}: a rotation has begun: expected `tenant rotate {organization}"
                " --finish`, or --cancel, first"
            )
        self._remove_unused_secret(organization)
        self._append(SIGNING_SECRETS, organization, signing_secret)
        self._append(TOKENS, organization, token)

    def check_sender(self, organization: str, sender: str) -> None:
        """Raise RegistryError if this role or user sends for another organization."""
        for owner, value in self._read(SENDERS):
            if value == sender and owner != organization:
                raise RegistryError(
                    f"--sender: {sender} sends for {owner}, and could send for both: expected a"
                    f" role or user of {organization} alone"
                )

    def add_sender(self, organization: str, sender: str) -> None:
        """Accept messages of the queue from this role or user. Raises as `check_sender` does."""
        self.check_sender(organization, sender)
        if sender not in self._values(SENDERS, organization):
            self._append(SENDERS, organization, sender)

    def finish_rotation(self, organization: str) -> None:
        """Accept only the newest credentials. Raises RegistryError if there is no rotation."""
        if not self.has_rotation(organization):
            raise self._no_rotation(organization)
        for name in (SIGNING_SECRETS, TOKENS):
            self._select_values(name, organization, lambda values: values[-1:])

    def cancel_rotation(self, organization: str) -> None:
        """Accept only the credentials before. Raises RegistryError if there is no rotation."""
        accepted = self._values(SIGNING_SECRETS, organization)
        if len(accepted) == 1 and self.has_rotation(organization):
            raise RegistryError(
                f"{organization}: the rotation was ended, and that was interrupted: expected"
                f" `tenant rotate {organization} --finish` again"
            )
        if not accepted[1:]:
            raise self._no_rotation(organization)
        for name in (TOKENS, SIGNING_SECRETS):
            self._select_values(name, organization, lambda values: values[:1])

    def remove(self, organization: str) -> int:
        """Accept nothing of this organization; return how many lines were removed."""
        return sum(self._select_values(name, organization, lambda _: []) for name in HEADERS)

    def _remove_unused_secret(self, organization: str) -> None:
        """Remove the signing secret of a step that was interrupted before it wrote the token."""
        used = len(self._values(TOKENS, organization))
        self._select_values(SIGNING_SECRETS, organization, lambda values: values[:used])

    @staticmethod
    def _no_rotation(organization: str) -> RegistryError:
        return RegistryError(
            f"{organization}: no rotation has begun, or it has ended already: expected"
            f" `tenant rotate {organization} --secrets DIRECTORY` first"
        )

    def _values(self, name: str, organization: str) -> list[str]:
        return [value for owner, value in self._read(name) if owner == organization]

    def _append(self, name: str, organization: str, value: str) -> None:
        self.write(name, [*self._read(name), (organization, value)])

    def _select_values(
        self, name: str, organization: str, choose: Callable[[list[str]], list[str]]
    ) -> int:
        entries = self._read(name)
        chosen = choose([value for owner, value in entries if owner == organization])
        kept = [
            (owner, value) for owner, value in entries if owner != organization or value in chosen
        ]
        if len(kept) < len(entries):
            self.write(name, kept)
        return len(entries) - len(kept)

    def _read(self, name: str) -> list[tuple[str, str]]:
        path = self._directory / name
        try:
            return list(split_lines(path.read_text()))
        except UnicodeDecodeError as error:
            raise RegistryError(
                f"{path}: is not UTF-8: expected lines ORGANIZATION:VALUE"
            ) from error

    def write(self, name: str, entries: Sequence[tuple[str, str]]) -> None:
        """Replace a file at once; a file that exists keeps its owner and mode."""
        path = self._directory / name
        lines = [HEADERS[name], *(f"{owner}:{value}" for owner, value in entries)]
        partial = path.with_name(f"{name}.partial")
        partial.unlink(missing_ok=True)
        write_secret(partial, "\n".join(lines) + "\n")
        if path.exists():
            shutil.copymode(path, partial)
            found = path.stat()
            with suppress(PermissionError):  # only root may; without it the owner is the same
                os.chown(partial, found.st_uid, found.st_gid)
        partial.replace(path)
        sync_directory(self._directory)


def write_secret(path: Path, text: str) -> None:
    """Create a durable file that only its owner may read. Raises FileExistsError and OSError."""
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
