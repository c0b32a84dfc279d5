"""An engine of ClickHouse in a process of its own: chdb has one session, and one version, there."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from lab.control_plane.processes import ROOT

WORKER = """
import json, os, sys
from chdb.session import Session

place, form, queries = sys.argv[1], sys.argv[2], json.load(sys.stdin)
session = Session(place)
found = []
for query in queries:
    try:
        found.append(str(session.query(query, form)))
    except RuntimeError as error:
        found.append(str(error))
print(json.dumps(found), flush=True)
os._exit(0)  # the engine's own threads may wait for the replica without an end
"""


def run_engine(
    package: Path, place: str, queries: Sequence[str], output_format: str = "TSV"
) -> list[str]:
    """Return what each query gives, or its error.

    `package` is the directory of chdb, and `place` the session's, with its parameters.
    """
    done = subprocess.run(
        [sys.executable, "-c", WORKER, place, output_format],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(package)},
        input=json.dumps(queries),
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return found
