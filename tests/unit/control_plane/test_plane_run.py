"""The start and the end of a process that receives."""

import os
import signal
import socket
import subprocess
import sys

import pytest


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
