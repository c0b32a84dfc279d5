"""The start and the end of a process that receives."""

import os
import signal
import socket
import subprocess
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from byoc_agents.app.settings import load
from byoc_agents.errors import ConfigError
from byoc_control_plane.run import Process
from byoc_control_plane.settings import ConsumerSettings, PlaneSettings, ReceiverSettings
from lab.control_plane.memory_store import MemoryStore


def test_sigterm_ends_a_process_that_waits_for_clickhouse_with_0() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # no listen: connections are refused
        environ = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "BYOC_"))}
        environ |= {
            "BYOC_PLANE_STORE_URL": f"http://127.0.0.1:{closed.getsockname()[1]}/",
            "BYOC_PLANE_QUEUE_URL": "http://127.0.0.1:9/000000000000/q.fifo",
            "BYOC_PLANE_LISTEN": "127.0.0.1:0",
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "byoc_control_plane", "run", "consumer"],
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        with process:
            try:
                assert process.stdout is not None
                assert "store.not_ready" in process.stdout.readline()
                process.send_signal(signal.SIGTERM)
                try:
                    code = process.wait(20)
                except subprocess.TimeoutExpired:
                    pytest.fail("it still runs 20 seconds after SIGTERM")
                assert code == 0
            finally:
                process.kill()


async def test_a_credentials_file_that_changed_after_the_settings_is_a_mistake_of_them(
    tmp_path: Path,
) -> None:
    secret = tmp_path / "secrets"
    secret.write_text("whsec_c2VjcmV0IG9mIHRoZSBzaWduYXR1cmVzISE=")
    environ = {
        "BYOC_PLANE_STORE_URL": "http://127.0.0.1:9/",
        "BYOC_PLANE_TOKEN": "token-of-the-receiver",
        "BYOC_PLANE_SIGNING_SECRET_FILE": str(secret),
    }
    plane, own = load([PlaneSettings, ReceiverSettings], environ, {})
    secret.write_text("whsec_c2Vj")  # half-written
    async with AsyncExitStack() as stack:
        process = Process(MemoryStore(), plane, stack)
        with pytest.raises(ConfigError, match="or BYOC_PLANE_SIGNING_SECRET: expected 24 to 64"):
            await process.open_receiver(own)


async def test_a_senders_file_that_changed_after_the_settings_is_a_mistake_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    senders = tmp_path / "senders"
    senders.write_text("org-1:AROAONE\norg-2:AROATWO")
    endpoint = {"AWS_ENDPOINT_URL_SQS": "http://127.0.0.1:9"}
    environ = {
        "BYOC_PLANE_STORE_URL": "http://127.0.0.1:9/",
        "BYOC_PLANE_QUEUE_URL": "http://127.0.0.1:9/000000000000/q.fifo",
        "BYOC_PLANE_SENDERS_FILE": str(senders),
    }
    plane, own = load([PlaneSettings, ConsumerSettings], environ, {})
    senders.write_text("org-1:AROAONE\norg-2")  # half-written
    async with AsyncExitStack() as stack:
        process = Process(MemoryStore(), plane, stack)
        with pytest.raises(ConfigError, match="BYOC_PLANE_SENDERS: not ORGANIZATION"):
            await process.open_consumer(own, endpoint)
