"""An engineer at work: runs `client` in a place, with the certificates of a directory."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.real.parts.install import ROOT
from lab.real.parts.process import PartError
from lab.tailnet.certificates import NAMES

END_SECONDS = 60.0  # a busy machine; each wait ends as soon as it may


@dataclass
class Held:
    """An open connection of an engineer. `lines` are the objects that the client prints."""

    process: subprocess.Popen[str]
    lines: list[dict[str, Any]] = field(default_factory=list)

    def next(self) -> dict[str, Any]:
        """Return the next answer, or the error that ended the connection."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise PartError("the client ended without a word")
        self.lines.append(json.loads(line))
        return self.lines[-1]

    def answer_from_now_on(self) -> str:
        """Return an answer that came after this call, not one that has waited to be read."""
        now = time.monotonic()
        while (line := self.next())["at"] <= now:
            pass
        return str(line.get("answer", line))

    def until_error(self) -> dict[str, Any]:
        """Read until the connection ends, and return the error. Raises PartError if it does not."""
        deadline = time.monotonic() + END_SECONDS
        while "error" not in (line := self.next()):
            if time.monotonic() > deadline:
                raise PartError(f"the connection is still open after {END_SECONDS:g} s")
        return line

    def close(self) -> None:
        """End the client."""
        self.process.communicate(timeout=30)


@dataclass(frozen=True)
class Engineer:
    """The engineer's programs. A certificate is the file NAME.pem of the directory, or none: "".

    With the option `user` they speak ClickHouse's native protocol.
    """

    directory: Path
    before: tuple[str, ...] = ()  # the command that enters the engineer's place

    def ask(self, address: str, port: int, **options: Any) -> dict[str, Any]:
        """Send one line over TLS; return the client's line: `answer` or `error`."""
        done = self._run(self._client("ask", address, port, **options))
        if not done.stdout:
            raise PartError(done.stderr)
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    def download(self, address: str, port: int, size_bytes: int, **options: Any) -> float:
        """Receive this many bytes of `listener`; return the seconds. Raises PartError."""
        command = self._client("download", address, port, **options, bytes=size_bytes)
        found = json.loads(self._run(command).stdout)
        if found.get("received_bytes", 0) < size_bytes:
            raise PartError(str(found))
        return float(found["seconds"])

    def dial(self, address: str, port: int, seconds: float = 3) -> str:
        """Connect only; return "open" or the error."""
        done = self._run(self._client("dial", address, port, timeout=seconds))
        found = json.loads(done.stdout)
        return "open" if "connected" in found else str(found["error"])

    @contextmanager
    def hold(self, address: str, port: int, **options: Any) -> Iterator[Held]:
        """Keep a connection open, with a line every `interval`; the first answer has come."""
        command = self._client("hold", address, port, **{"timeout": 20.0} | options)
        process = subprocess.Popen(
            [*self.before, *command],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        held = Held(process)
        try:
            first = held.next()
            if "error" in first:
                raise PartError(str(first))
            yield held
        finally:
            held.close()

    def _run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.before, *command], cwd=ROOT, capture_output=True, text=True, check=False
        )

    def _client(self, do: str, address: str, port: int, **options: Any) -> list[str]:
        certificate = options.get("certificate", "good")
        given = {
            "name": options.get("name", NAMES[0]),
            "authority": str(self.directory / "server-ca.crt"),
            "certificate": str(self.directory / f"{certificate}.pem") if certificate else "",
            "timeout": str(options.get("timeout", 8.0)),
        }
        more = ("send", "user", "interval", "bytes")
        given |= {name: options[name] for name in more if name in options}
        flags = [f"--{name}={value}" for name, value in given.items()]
        return [sys.executable, "-m", "lab.tailnet.client", do, address, str(port), *flags]
