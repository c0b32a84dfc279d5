"""What a daemon loads: each module stays in its memory until it ends."""

import json
import os
import subprocess
import sys

import pytest

# Commands, and what only they need.
OFFLINE = {
    *(f"byoc_agents.{name}" for name in ("access", "airgap", "audit", "policy", "report")),
    *("byoc_agents.schema", "byoc_agents.usage", "byoc_agents.app.command_line"),
    *("argparse", "difflib", "gettext", "jinja2", "re2", "yaml"),
}
# Parts of the standard library and of aiohttp's server that nothing uses.
UNUSED = {
    *("aiohttp.web", "aiohttp.web_fileresponse", "aiohttp.web_urldispatcher"),
    *("doctest", "logging.handlers", "psutil", "pydoc", "sqlite3.dump", "unittest", "zoneinfo"),
}
AWS = {"aiobotocore", "botocore", "configparser", "urllib3", "xml", "zipfile"}
BILLING, STATE, ALERTS = (f"byoc_agents.{name}" for name in ("billing", "state", "alerts"))
OWN = {"billing-scraper": BILLING, "state-exporter": STATE, "alert-forwarder": ALERTS}
NOT_LOADED = {
    "billing-scraper": {STATE, ALERTS},
    "state-exporter": {BILLING, ALERTS, "zstandard"},
    "alert-forwarder": {BILLING, STATE, "zstandard", *AWS},
}
PROGRAM = """
import json, sys
from byoc_agents.app.cli import main
assert main(sys.argv[1:]) == 2  # without settings, it ends when it has loaded the daemon
print(json.dumps(sorted(sys.modules)))
"""


def loaded(daemon: str) -> set[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("BYOC_")}
    command = [sys.executable, "-c", PROGRAM, "run", daemon]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("daemon", NOT_LOADED)
def test_a_daemon_loads_only_what_it_uses(daemon: str) -> None:
    found = loaded(daemon)
    assert OWN[daemon] in found
    assert found & (OFFLINE | UNUSED | NOT_LOADED[daemon]) == set()
