"""AWS's files (tokens and keys), read off the event loop and handed to botocore.

botocore opens these files in the event loop, when it needs them. A file on a mount that no longer
answers would stop every daemon of the process. So they are read in a thread, within a time, before
botocore runs, and botocore gets the content from here.
"""

import asyncio
import os
from collections.abc import Iterable
from typing import Any

from aiobotocore.credentials import AioContainerProvider
from botocore.exceptions import ConfigNotFound

from byoc_agents.app.files import MAX_CONFIG_BYTES, Content, FileContent
from byoc_agents.egress.aws_settings import read_sections

READ_SECONDS = 1.0  # for one file; a local file takes less than a millisecond
TOKEN_FILE = "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"  # noqa: S105  a variable's name
TOKEN = "AWS_CONTAINER_AUTHORIZATION_TOKEN"  # noqa: S105


class AwsFiles:
    """The last content of each file. `read` reads them again, off the event loop."""

    def __init__(self, paths: Iterable[str], *, seconds: float = READ_SECONDS) -> None:
        """Read nothing yet. Empty paths and /dev/null count as missing files."""
        self._paths = [_expand_path(path) for path in paths if path not in {"", os.devnull}]
        self._seconds = seconds
        self._contents: dict[str, Content] = {}
        self._errors: dict[str, Exception] = {}
        self._late: dict[str, FileContent] = {}  # readings that have not ended

    async def read(self) -> None:
        """Read every file that changed, each within the time. Raises nothing: see `text`."""
        for path in self._paths:
            known = self._contents.get(path)
            late = self._late.pop(path, None)
            reading = late or FileContent(path, MAX_CONFIG_BYTES, known.version if known else None)
            if not await asyncio.to_thread(reading.wait, 0 if late else self._seconds):
                self._late[path] = reading
            try:
                content = reading.result()
            except (OSError, ValueError) as error:
                self._errors[path] = error
                continue
            self._errors.pop(path, None)
            if content is not None:
                self._contents[path] = content

    def text(self, path: str) -> str:
        """Return a file's text. Raises OSError, or ValueError if it cannot be read.

        A file that does not answer is an error even if it was read before: botocore keeps keys that
        are still valid.
        """
        path = _expand_path(path)
        if path in self._errors:
            raise self._errors[path]
        if path not in self._contents:
            raise FileNotFoundError(path)
        return self._contents[path].content.decode()

    def sections(self, path: str) -> dict[str, dict[str, str]]:
        """Return section -> key -> value; a replacement for botocore's parser of the keys' file."""
        try:
            return read_sections(self.text(path).encode())
        except FileNotFoundError as error:
            raise ConfigNotFound(path=path) from error

    def profiles(self, path: str) -> dict[str, Any]:
        """Return {"profiles": ...}; a replacement for botocore's parser of the configuration."""
        names = self.sections(path).items()
        return {"profiles": {name.removeprefix("profile ").strip('"'): one for name, one in names}}

    def token_loader(self, path: str) -> Any:
        """Return a function that returns the token; a replacement for botocore's loader."""
        return lambda: self.text(path)


class ContainerProvider(AioContainerProvider):  # type: ignore[misc]  # botocore has no types
    """botocore's provider for EKS Pod Identity and ECS, with a token that was read before."""

    def __init__(self, files: AwsFiles) -> None:
        """Take the token from `files`, if a variable names its file."""
        super().__init__(environ=dict(os.environ))
        self._files = files
        self._token_path = self._environ.pop(TOKEN_FILE, "")

    def _build_headers(self) -> Any:
        if self._token_path:
            self._environ[TOKEN] = self._files.text(self._token_path)
        return super()._build_headers()


def use_files(resolver: Any, files: AwsFiles) -> None:
    """Make botocore's credential providers take their files from `files`."""
    for provider in resolver.providers:
        match provider.METHOD:
            case "assume-role-with-web-identity":
                provider._token_loader_cls = files.token_loader  # noqa: SLF001  a parameter
            case "shared-credentials-file":
                provider._ini_parser = files.sections  # noqa: SLF001  a parameter
            case "config-file":
                provider._config_parser = files.profiles  # noqa: SLF001  a parameter
    if any(provider.METHOD == "container-role" for provider in resolver.providers):
        resolver.insert_after("container-role", ContainerProvider(files))
        resolver.remove("container-role")


def file_paths(session: Any) -> list[str]:
    """Return the paths of the files that botocore's providers may read."""
    names = ("config_file", "credentials_file")
    configured = [session.get_config_variable(name) or "" for name in names]
    variables = ("AWS_WEB_IDENTITY_TOKEN_FILE", TOKEN_FILE)
    return [
        *configured,
        *(os.environ.get(name, "") for name in variables),
    ]


def _expand_path(path: str) -> str:
    """Return a path as botocore opens it."""
    return os.path.expanduser(os.path.expandvars(path))  # noqa: PTH111  Path has no expandvars
