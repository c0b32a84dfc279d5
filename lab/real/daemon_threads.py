"""Run an image's daemons in an emulated machine, and print what the kernel enforces on them.

`python -m lab.real.daemon_threads SETTINGS COMMAND ...` starts them as the image's user, with the
settings (JSON), waits until they are ready, and prints one line of JSON.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from lab.real.parts.process import DIRECT, POLL_SECONDS, responds

USER, GROUP = 65532, 0  # `User` of the image
ADMIN = "http://127.0.0.1:9464"
READY_SECONDS = 90.0
ENFORCED = re.compile(r"^byoc_seccomp_enforced\S* (\S+)$", re.MULTILINE)


def observe(pid: int) -> dict[str, Any]:
    """Return the state of the kernel's filter in each thread, and the daemons' own metric."""
    found = []
    for status in sorted(Path(f"/proc/{pid}/task").glob("*/status")):
        fields = dict(line.split(":\t", 1) for line in status.read_text().splitlines())
        found.append([fields["Seccomp"], fields["NoNewPrivs"]])
    with DIRECT.open(f"{ADMIN}/metrics", timeout=10) as page:
        enforced = ENFORCED.findall(page.read().decode())
    return {"threads": found, "enforced": enforced}


def main(settings: str, *command: str) -> None:
    """Start, wait, observe, stop."""
    environment = os.environ | json.loads(settings)
    environment.pop("PYTHONPATH")
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, env=environment, stderr=log, user=USER, group=GROUP, extra_groups=[]
        )
        ready = _becomes_ready(process)
        seen = observe(process.pid) if ready else {}
        process.send_signal(signal.SIGTERM)
        code = process.wait(30)
        log.seek(0)
        text = log.read().decode()
    if not ready:
        sys.exit(f"not ready, ended with {code}:\n{text[-1500:]}")
    lines = [json.loads(line) for line in text.splitlines()]
    events = [line["event"] for line in lines if line["event"].startswith("seccomp.")]
    errors = [line for line in lines if line["level"] == "error"]
    print(json.dumps({"code": code, "events": events, "errors": errors, **seen}))


def _becomes_ready(process: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + READY_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if responds(f"{ADMIN}/readyz"):
            return True
        time.sleep(POLL_SECONDS)
    return False


if __name__ == "__main__":
    main(*sys.argv[1:])
