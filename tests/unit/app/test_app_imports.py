"""What a daemon loads: each module stays in its memory until it ends."""

import json
import os
import subprocess
import sys

import pytest

from byoc_agents.app.deferred_imports import DEFERRED

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
deferred = "_LazyModule"  # `type` reads no attribute, which would load the module
print(json.dumps({name: type(module).__name__ == deferred for name, module in sys.modules.items()}))
"""


FIRST_USE = """
import importlib, sys
from byoc_agents.app import deferred_imports
from byoc_agents.egress.audit_hook import enforce_process
from byoc_agents.egress.gate import Gate
from byoc_agents.egress.seccomp import prepare_filter
deferred_imports.install()
sys.modules.pop(sys.argv[1], None)  # as if nothing had imported it yet
module = importlib.import_module(sys.argv[1])
before = type(module).__name__
install_filter = prepare_filter()
enforce_process(Gate([]), (), install_filter.addresses)
install_filter()
own = [name for name in dir(module) if not name.startswith("__")]
print(before, len(own), type(module).__name__)
"""


def imported(daemon: str) -> dict[str, bool]:
    """Return the names of all modules, and whether each waits for its first use."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("BYOC_")}
    command = [sys.executable, "-c", PROGRAM, "run", daemon]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    found: dict[str, bool] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("daemon", NOT_LOADED)
def test_a_daemon_loads_only_what_it_uses(daemon: str) -> None:
    found = imported(daemon)
    assert OWN[daemon] in found
    assert found.keys() & (OFFLINE | UNUSED | NOT_LOADED[daemon]) == set()


@pytest.mark.parametrize("daemon", NOT_LOADED)
def test_what_a_daemon_does_not_use_is_not_loaded_by_the_libraries(daemon: str) -> None:
    found = imported(daemon)
    deferred = {name for name, waits in found.items() if waits}
    assert deferred == found.keys() & DEFERRED
    assert len(deferred) > 8


@pytest.mark.parametrize("name", sorted(DEFERRED))
def test_a_deferred_module_is_loaded_at_its_first_use_in_an_enforced_process(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FIRST_USE, name], capture_output=True, text=True, check=True
    )
    before, used, after = done.stdout.split()
    assert (before, after) == ("_LazyModule", "module")
    assert int(used) > 0  # names that the module defines
