"""No object of the scraper, and no key, contains the pod's uid or the node's boot id."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import zstandard

from byoc_agents.app.clock import SystemClock
from byoc_agents.app.keyed_ids import keyed_id
from byoc_agents.billing.sources.procfs import ProcFs
from byoc_agents.billing.sources.reading import name_run

POD = "6f0a2c1e-7d1b-4f4c-9d0e-2b7c5a1f3e90"
BOOT = Path("/proc/sys/kernel/random/boot_id").read_text()
SCOPE = ("org", "svc")


async def test_objects_have_the_keyed_forms_only(tmp_path: Path) -> None:
    bucket = tmp_path / "bucket"
    bucket.mkdir()
    environ = {
        "BYOC_ORGANIZATION_ID": "org",
        "BYOC_SERVICE_ID": "svc",
        "BYOC_REGION": "eu-west-1",
        "BYOC_REPLICA": "r-0",
        "BYOC_POD_UID": POD,
        "BYOC_BILLING_BUCKET": f"file://{bucket}",
        "BYOC_BILLING_TARGET": f"pid:{os.getpid()}",
        "BYOC_STATE_DIR": str(tmp_path / "state"),
        "BYOC_LISTEN": "127.0.0.1:0",
    }
    command = [sys.executable, "-m", "byoc_agents.app.cli", "run", "billing-scraper"]
    process = await asyncio.create_subprocess_exec(*command, env=environ, stderr=PIPE)
    assert process.stderr
    while b"daemon.started" not in await asyncio.wait_for(process.stderr.readline(), 60):
        assert process.returncode is None
    process.send_signal(signal.SIGTERM)
    await asyncio.wait_for(process.communicate(), 60)
    stored = list(bucket.rglob("*.zst"))
    assert stored
    names = " ".join(str(path.relative_to(bucket)) for path in stored)
    read = zstandard.ZstdDecompressor().decompressobj
    content = b"".join(read().decompress(path.read_bytes()) for path in stored).decode()
    assert POD not in names + content
    assert keyed_id(POD, "pod", *SCOPE) in names
    assert keyed_id(POD, "pod", *SCOPE) in content
    assert BOOT[:8] not in content
    boot_id = SystemClock(*SCOPE, "r-0").boot_id
    assert boot_id[:8] not in content
    start_ticks = ProcFs().process(os.getpid()).start_ticks
    assert f"-{start_ticks}" not in content
    assert f'"process:{name_run(boot_id, os.getpid(), start_ticks)}"' in content
