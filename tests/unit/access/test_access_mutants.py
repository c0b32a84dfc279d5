"""Defects of the access path, each put into a copy of the source: its test must fail there."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[3]
TESTS = "tests/unit/access"


class Mutant(NamedTuple):
    """One changed line, and the test that must notice it."""

    file: str
    line: str
    instead: str
    test: str


MUTANTS = {
    "two signatures of one key count as two": Mutant(
        "../envelope.py",
        "distinct = {key.public: key.id for key in current}\n    if len(distinct) < threshold:",
        "distinct = {key.public: key.id for key in current}\n"
        "    if len(signatures) < threshold or not distinct:",
        "test_access_envelope.py::test_one_key_counts_once_however_often_it_signs_or_is_pinned",
    ),
    "an expired key counts": Mutant(
        "../envelope.py",
        "if key.not_after_ms is None or now_ms < key.not_after_ms]",
        "]",
        "test_access_envelope.py::test_an_expired_key_does_not_count_from_its_end_on",
    ),
    "closing leads back to open": Mutant(
        "machine.py",
        "_row(State.OPENING, Cause.OPENED, State.OPEN)",
        "_row(frozenset({State.OPENING, State.CLOSING}), Cause.OPENED, State.OPEN)",
        "test_access_machine.py::test_no_row_leads_back",
    ),
    "the end by boot time does not count": Mutant(
        "machine.py",
        "return by_boot or moment.wall_ms >= grant.end_ms",
        "return moment.wall_ms >= grant.end_ms",
        "test_access_machine.py::test_what_is_due",
    ),
    "a kill switch that cannot be read is off": Mutant(
        "control_files.py",
        'return f"{MOUNTED} {UNREADABLE}"',
        'return ""',
        "test_access_control_files.py::test_a_mounted_switch_that_cannot_be_read_is_on",
    ),
    "a step takes effect although the ledger refused it": Mutant(
        "broker.py",
        "            if after.state in RELEASES:\n",
        "            if not after.state:\n",
        "test_access_broker.py::test_nothing_opens_while_the_ledger_fails_and_it_opens_later",
    ),
    "one approval is enough for a role that needs two": Mutant(
        "policy.py",
        "        if role.approvals_needed is not None:\n            return role.approvals_needed\n",
        "",
        "test_access_policy.py::test_a_role_with_its_own_number_of_approvals_always_needs_them",
    ),
    "a missing user is restored without a line": Mutant(
        "broker.py",
        'await self._record(grant, {"replica": admin.name}, fact="restored")',
        "await asyncio.sleep(0)",
        "test_access_broker.py::test_a_user_that_somebody_drops_is_restored_after_its_line",
    ),
    "the kill switch is off before its line": Mutant(
        "broker.py",
        '        return NOT_RECORDED if refused else ""\n',
        '        return ""\n',
        "test_access_control_facts.py::test_the_switch_is_off_only_after_its_line",
    ),
    "a used id can be used again": Mutant(
        "broker.py",
        "        if known is not None:\n",
        "        if known == b'':\n",
        "test_access_broker.py::test_an_id_with_other_bytes_is_a_conflict",
    ),
    "the sweep leaves unknown users": Mutant(
        "broker.py",
        "for user in sorted(set(users) - known):",
        "for user in sorted(set(users) - known - set(users)):",
        "test_access_broker.py::test_an_unknown_user_of_a_grant_is_dropped_by_the_sweep",
    ),
    "a hung mount is believed without end": Mutant(
        "control_files.py",
        "            if self._version and self._monotonic() - self._started < SLOW_SECONDS:\n",
        "            if self._version:\n",
        "test_access_control_files.py"
        "::test_a_late_response_keeps_the_known_content_for_a_bounded_time",
    ),
    "a lost lease does not end access": Mutant(
        "machine.py",
        "        return Due(Cause.CONTACT_LOST,",
        "        return None and Due(Cause.CONTACT_LOST,",
        "test_access_machine.py::test_what_is_due",
    ),
    "a grant for the network alone creates users": Mutant(
        "machine.py",
        "return CLICKHOUSE in self.request.endpoints or bool(self.replicas)",
        "return bool(self.request.endpoints)",
        "test_access_network_grants.py::test_it_opens_while_no_server_responds",
    ),
    "a grant is closed although its endpoint has a pod": Mutant(
        "broker.py",
        "        if self._find_up(current):\n            return\n",
        "",
        "test_access_network_grants.py::test_it_is_closing_and_overdue_until_its_endpoint_has_no_pod",
    ),
    "a patch that is under way counts as answered": Mutant(
        "tailnet.py",
        "return self.attempted == 0 and self.accepted == 0 and self.reached",
        "return self.accepted == 0 and self.reached",
        "test_access_tailnet.py::test_an_endpoint_is_up_from_the_patch_on_until_no_pod_is_left",
    ),
    "a grant opens that the broker could not end": Mutant(
        "broker.py",
        "        if unscaled := self._find_unscaled(current):\n",
        "        if unscaled := self._find_unscaled(current)[:0]:\n",
        "test_access_network_grants.py::test_it_does_not_open_if_the_broker_could_not_end_it",
    ),
    "the API's engineer gets a certificate": Mutant(
        "machine.py",
        "return self.needs_user or METRICS in self.request.endpoints",
        "return bool(self.request.endpoints)",
        "test_access_network_grants.py::test_it_has_a_certificate_only_if_an_endpoint_asks_for_one",
    ),
    "the sweep keeps a user that its grant must not have": Mutant(
        "broker.py",
        "if _counts_as_open(g) and g.needs_user}",
        "if _counts_as_open(g)}",
        "test_access_network_grants.py"
        "::test_the_sweep_drops_a_user_that_such_a_grant_must_not_have",
    ),
    "a text of the customer is sent as a reason": Mutant(
        "events.py",
        "return words if words in REASONS else OTHER",
        "return words",
        "test_access_events.py::test_a_text_that_begins_with_no_fixed_word_is_other",
    ),
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the product and of what its tests need."""
    place = tmp_path_factory.mktemp("mutants")
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("agents", "tests/unit", "lab/fakes", "control-plane"):
        shutil.copytree(ROOT / name, place / name, ignore=ignored)
    for name in ("pyproject.toml", "conftest.py", "lab/__init__.py"):
        shutil.copy(ROOT / name, place / name)
    (place / "tests" / "real").mkdir()  # conftest.py needs one file of it
    for path in (*(ROOT / "tests").glob("*.py"), ROOT / "tests" / "real" / "workers.py"):
        shutil.copy(path, place / path.relative_to(ROOT))
    return place


def run_tests(place: Path, test: str) -> subprocess.CompletedProcess[str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    environ = own | {"PYTHONPATH": f"{place / 'agents'}:{place}"}
    command = (sys.executable, "-m", "pytest", "-q", "-x", test)
    return subprocess.run(
        command, cwd=place, env=environ, capture_output=True, text=True, check=False, timeout=120
    )


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS)
def test_a_mutant_of_the_access_path_is_found(copy: Path, mutant: Mutant) -> None:
    path = copy / "agents" / "byoc_agents" / "access" / mutant.file
    source = path.read_text()
    assert source.count(mutant.line) == 1
    path.write_text(source.replace(mutant.line, mutant.instead))
    try:
        done = run_tests(copy, f"{TESTS}/{mutant.test}")
    finally:
        path.write_text(source)
    assert done.returncode == 1, done.stdout[-2000:] + done.stderr[-2000:]
    assert "1 failed" in done.stdout or "FAILED" in done.stdout


def test_the_copy_without_a_change_passes(copy: Path) -> None:
    """So it is the change that a test finds, and the copy's own source is what it runs."""
    program = "import byoc_agents; print(byoc_agents.__file__)"
    environ = os.environ | {"PYTHONPATH": f"{copy / 'agents'}:{copy}"}
    found = subprocess.run(
        (sys.executable, "-c", program), cwd=copy, env=environ, capture_output=True, text=True,
        check=True, timeout=60,
    )  # fmt: skip
    assert Path(found.stdout.strip()).is_relative_to(copy)
    done = run_tests(copy, f"{TESTS}/test_access_machine.py")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
