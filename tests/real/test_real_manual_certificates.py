"""`tests/manual/clickhouse_certificates.sh`: PASS for each fact of a right server, else FAIL.

The servers are stand-ins: one behaves as the script expects, the other one is wrong in everything
that can be wrong in one server. The script itself, curl, openssl and the TLS are real.
"""

import asyncio
import datetime as dt
import os
import re
import ssl
import sys
import time
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from lab.fakes.clickhouse_native import ServerError
from lab.fakes.http import FakeHttp, Reply, Request
from lab.real.parts.install import ROOT
from lab.tailnet import certificates
from lab.tailnet.listener import HTTPS_PORT, NATIVE_PORT, Query, listening, strict_context

pytestmark = pytest.mark.quiet  # the script waits for fixed times
SCRIPT = ROOT / "tests" / "manual" / "clickhouse_certificates.sh"
SERVICE = "svc-1"
USER = "byoc_grant_manual"
CREATE = re.compile(
    rf"CREATE USER {USER} (?P<memory>IN memory)? ?IDENTIFIED WITH ssl_certificate"
    r" SAN 'URI:(?P<uri>[^']+)' VALID UNTIL '(?P<end>[^']+)' HOST ANY DEFAULT ROLE byoc_manual"
    r" GRANTEES NONE"
)
RUNNING_SECONDS = 20
HOUR_SECONDS = 3600
FACTS = 23
FALSE_FACTS = [
    "VALID UNTIL with Z is stored as that moment",
    "the role is active at login",
    "no certificate: the handshake ends, before any password",
    "the user may read nothing else",
    "the user may read no file by the function file()",
    "VALID UNTIL ends a live native session at its next query",
    "VALID UNTIL refuses the next login",
    "DROP USER refuses the next login",
    "KILL QUERY by the user's name ends it",
    "a user IN memory takes a role of another storage",
    "such a user logs in",
    "query_log has the user's queries",
    "session_log has certificate_serial",
]


class Server:
    """A stand-in with one user, and with mistakes if it is `wrong`."""

    def __init__(self, *, wrong: bool) -> None:
        self.wrong = wrong
        self.uri, self.end = "", 0.0
        self.queries = 0
        self.killed, self.idle = asyncio.Event(), asyncio.Event()

    # --- the administrator ---

    def administer(self, request: Request) -> Reply:
        return Reply(200, {}, self._administer(request.body.decode()).encode())

    def _administer(self, text: str) -> str:  # noqa: PLR0911  one per statement
        if found := CREATE.fullmatch(text):
            if self.wrong and found["memory"]:
                return "Code: 511. DB::Exception: There is no role byoc_manual in users memory\n"
            self.uri = found["uri"]
            self.end = dt.datetime.fromisoformat(found["end"]).timestamp()
            return ""
        if text.startswith("DROP USER"):
            self.uri = self.uri if self.wrong and text.endswith(f"USER {USER}") else ""
            return ""
        if text.startswith("KILL QUERY"):
            if not self.wrong:
                self.killed.set()
            return ""
        if text.startswith("SELECT abs(toUnixTimestamp(arrayJoin(valid_until))"):
            stored = self.end + (HOUR_SECONDS if self.wrong else 0)
            return f"{int(abs(stored - time.time() - 600) < 60)}\n"
        if text.startswith("SELECT version()"):
            return "26.9 (stand-in)\n"
        if text.startswith("SELECT count() > 0 FROM system.query_log"):
            return f"{int(self.queries > 0 and not self.wrong)}\n"
        if "certificate_serial" in text:
            return f"{int(not self.wrong)}\n"
        known = text == "SYSTEM FLUSH LOGS" or "byoc_manual" in text
        return "" if known else "Code: 62. DB::Exception: Syntax error\n"

    # --- an engineer ---

    def log_in(self, user: str, uri: str) -> "Session":
        ended = time.time() >= self.end and not self.wrong
        if user != USER or not uri or uri != self.uri or ended:
            raise ServerError(516, "Authentication failed (AUTHENTICATION_FAILED)")
        return Session(self, self.end)

    async def answer(self, query: Query) -> tuple[int, bytes]:
        try:
            assert query.headers.get("x-clickhouse-ssl-certificate-auth", "on") == "on"
            session = self.log_in(query.headers.get("x-clickhouse-user", ""), query.uri)
            rows = await session.run(query.text)
        except ServerError as error:
            return 403, f"{error}\n".encode()
        return 200, "".join(f"{row}\n" for row in rows).encode()


class Session:
    """A session, with the end that the user had at the login."""

    def __init__(self, server: Server, end: float) -> None:
        self._server, self._end = server, end

    async def run(self, text: str) -> list[str]:
        server = self._server
        if time.time() >= self._end and not server.wrong:
            raise ServerError(720, "The user has expired (USER_EXPIRED)")
        server.queries += 1
        if text.startswith("SELECT sleep(3)"):
            await asyncio.sleep(3)
            return ["0"]
        if text.startswith("SELECT sleepEachRow"):
            try:
                async with asyncio.timeout(RUNNING_SECONDS):
                    await server.killed.wait()
            except TimeoutError:
                return ["0"] * RUNNING_SECONDS
            finally:
                server.idle.set()
            raise ServerError(394, "Query was cancelled (QUERY_WAS_CANCELLED)")
        if text == "SELECT currentRoles()":
            return ["[]" if server.wrong else "['byoc_manual']"]
        if ("system.query_log" in text or "file(" in text) and not server.wrong:
            raise ServerError(497, "Not enough privileges (ACCESS_DENIED)")
        return [text.split()[1]]


async def run_script(directory: Path, host: str, *, wrong: bool) -> tuple[int, list[str]]:
    """Run the script at a stand-in; return its exit code, and its lines of facts."""
    certificates.make(directory, SERVICE, dt.datetime.now(dt.UTC))
    context = strict_context(*map(Path, certificates.server_files(directory)))
    if wrong:
        context.verify_mode = ssl.CERT_OPTIONAL
    server = Server(wrong=wrong)
    administrator = FakeHttp(apply=server.administer)
    ports = (NATIVE_PORT, HTTPS_PORT)
    programs = directory / "bin"
    programs.mkdir()
    client = programs / "clickhouse-client"
    client.write_text(f'#!/bin/sh\nexec {sys.executable} -m tests.real.clickhouse_client "$@"\n')
    client.chmod(0o755)
    serving = listening(host, context, server.answer, ports, server.log_in)
    async with administrator, serving:
        environ = os.environ | {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "ADMIN_URL": administrator.url,
            "HOST": host,
            "NAME": certificates.NAMES[0],
            "SERVER_CA": str(directory / "server-ca.crt"),
            "ACCESS_CA": str(directory / "authority"),
            "SERVICE": SERVICE,
        }
        script = await asyncio.create_subprocess_exec(
            SCRIPT, cwd=ROOT, env=environ, stdout=PIPE, stderr=PIPE
        )
        out, err = await script.communicate()
        server.killed.set()  # the query that the wrong server has not ended
        await asyncio.wait_for(server.idle.wait(), 10)
    print(out.decode(), err.decode())
    assert script.returncode is not None
    lines = out.decode().splitlines()
    return script.returncode, [line for line in lines if line.startswith(("PASS ", "FAIL "))]


async def test_a_right_server_passes_and_each_false_fact_of_a_wrong_one_fails(
    tmp_path: Path,
) -> None:
    """Both run at once, at loopback addresses of their own: the script's ports are fixed."""
    for name in ("right", "wrong"):
        (tmp_path / name).mkdir()
    right, wrong = await asyncio.gather(
        run_script(tmp_path / "right", "127.84.0.1", wrong=False),
        run_script(tmp_path / "wrong", "127.84.0.2", wrong=True),
    )
    code, lines = right
    assert (code, len(lines)) == (0, FACTS)
    facts = [line.removeprefix("PASS ") for line in lines]
    assert not any(fact.startswith("FAIL ") for fact in facts)
    expected = [f"FAIL {fact}: " if fact in FALSE_FACTS else f"PASS {fact}" for fact in facts]
    code, lines = wrong
    assert code == sum(one.startswith("FAIL ") for one in expected) == len(FALSE_FACTS)
    assert [line[: len(one)] for line, one in zip(lines, expected, strict=True)] == expected
