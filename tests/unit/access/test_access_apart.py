"""The other daemons load nothing of the access broker."""

import subprocess
import sys

import pytest

from byoc_agents.app.run import DAEMONS

PROGRAM = """
import sys
from byoc_agents.app import cli, run
run.daemon_spec(sys.argv[1])
loaded = {name for name in sys.modules if name.startswith("byoc_agents.access")}
print(sorted(loaded | {"cryptography"} & set(sys.modules)))
"""


@pytest.mark.parametrize("daemon", DAEMONS)
def test_a_daemon_loads_neither_the_broker_nor_cryptography(daemon: str) -> None:
    command = [sys.executable, "-c", PROGRAM, daemon]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"


def test_the_broker_loads_cryptography_only_when_it_needs_it() -> None:
    program = "import sys, byoc_agents.access.broker; print('cryptography' in sys.modules)"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "False\n"
