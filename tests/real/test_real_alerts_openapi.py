"""The OpenAPI file of docs/contracts against a receiver: schemathesis sends what the file allows.

It also sends what the file forbids, and compares each answer with the file. It connects to the real
daemon's webhook and to the reference receiver; two servers that break the file must fail.
"""

import asyncio
import base64
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiohttp import web

from byoc_agents.app.clock import SystemClock
from lab.real.parts import install
from lab.real.parts.process import RealProcess, free_port
from lab.receiver import Receiver, listening

FILE = install.ROOT / "docs" / "contracts" / "control-plane.openapi.yaml"
TOKEN, HOOK = "token-of-the-plane", "token-of-alertmanager"
SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()
PATIENCE_SECONDS = 100
EXAMPLES = 60  # of the random ones; those for each keyword of the schemas come on top
FLAGS = (
    "--checks=all",
    "--seed=1",
    "--generation-deterministic",
    "--max-redirects=0",
    "--no-shrink",
    "--no-color",
)


@dataclass
class Verdict:
    """The exit code and the output of schemathesis."""

    exit_code: int
    text: str


async def verdict(directory: Path, url: str, path: str, *flags: str) -> Verdict:
    """Run schemathesis against one path of one server."""
    command = await asyncio.to_thread(install.schemathesis)
    process = await asyncio.create_subprocess_exec(
        *(*command, "run", str(FILE), f"--url={url}", f"--include-path={path}", *FLAGS, *flags),
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={
            "PATH": os.environ["PATH"],
            "NO_PROXY": "*",
            "PYTHONPATH": str(install.ROOT / "lab" / "real"),
            "SCHEMATHESIS_HOOKS": "schemathesis_hooks",
            "TOKEN": TOKEN if path == "/v1/events" else HOOK,
            "SIGNING_SECRET": SECRET,
        },
    )
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return Verdict(process.returncode or 0, said.decode())


@pytest.fixture
def webhook(tmp_path: Path) -> Iterator[RealProcess]:
    """Start the real daemon; `url` is the webhook's, not that of the pages."""
    port, pages = free_port(), free_port()
    process = RealProcess(
        name="alert-forwarder",
        command=[sys.executable, "-m", "byoc_agents.app.cli", "run", "alert-forwarder"],
        port=pages,
        ready_path="/readyz",
        log=tmp_path / "forwarder.log",
        environment={
            "BYOC_ORGANIZATION_ID": "org",
            "BYOC_SERVICE_ID": "svc",
            "BYOC_REGION": "eu-west-1",
            "BYOC_STATE_DIR": str(tmp_path / "state"),
            "BYOC_LISTEN": f"127.0.0.1:{pages}",
            "BYOC_LOG_LEVEL": "error",
            "BYOC_SHUTDOWN_GRACE_SECONDS": "1",
            "BYOC_ALERTS_LISTEN": f"127.0.0.1:{port}",
            "BYOC_ALERTS_URL": "http://127.0.0.1:9/v1/events",
            "BYOC_ALERTS_TOKEN": TOKEN,
            "BYOC_ALERTS_SIGNING_SECRET": SECRET,
            "BYOC_ALERTS_WEBHOOK_TOKEN": HOOK,
            "BYOC_ALERTS_FINGERPRINT_SECRET": "f" * 32,
            "BYOC_ALERTS_MATCHERS": 'severity=~"critical|warning"',
            "BYOC_ALERTS_ANNOTATIONS": "summary",
        },
    )
    with process:
        process.port = port
        yield process


async def test_the_webhook_keeps_to_the_file(webhook: RealProcess, tmp_path: Path) -> None:
    found = await verdict(tmp_path, webhook.url, "/v1/alerts", f"--max-examples={EXAMPLES}")
    assert found.exit_code == 0, found.text
    assert "Fuzzing" in found.text
    assert "Authentication failed" not in found.text


async def test_the_reference_receiver_keeps_to_the_file(tmp_path: Path) -> None:
    receiver = Receiver(TOKEN, SECRET, clock=SystemClock())
    async with listening(receiver) as url:
        server = url.removesuffix("/v1/events")
        found = await verdict(
            tmp_path,
            server,
            "/v1/events",
            f"--max-examples={EXAMPLES}",
            "--generation-with-security-parameters=false",  # the hook says who we are
        )
    assert found.exit_code == 0, found.text
    assert receiver.events, "nothing got past the signature: nothing was tried"


@asynccontextmanager
async def answering(path: str, response: web.Response) -> AsyncIterator[str]:
    """Answer whatever comes with the same."""

    async def same(_: web.Request) -> web.Response:
        return web.Response(status=response.status, body=response.body, headers=response.headers)

    app = web.Application()
    app.router.add_post(path, same)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


@pytest.mark.parametrize("path", ["/v1/alerts", "/v1/events"])
@pytest.mark.parametrize(
    ("check", "response"),
    [
        ("not_a_server_error", lambda: web.Response(status=500)),
        ("status_code_conformance", lambda: web.Response(status=418)),
        ("negative_data_rejection", lambda: web.json_response({"status": "stored"})),
        ("ignored_auth", lambda: web.json_response({"status": "stored"})),
    ],
    ids=["500", "undocumented", "takes everything", "asks for no token"],
)
async def test_a_server_that_breaks_the_file_is_found_out(
    tmp_path: Path, path: str, check: str, response: Callable[[], web.Response]
) -> None:
    flags = ("--max-examples=20", "--max-failures=1", f"--checks={check}")
    async with answering(path, response()) as url:
        found = await verdict(tmp_path, url, path, *flags)
    assert found.exit_code == 1, found.text
    assert re.search(r"\d failures? in", found.text), "it failed at something else"
