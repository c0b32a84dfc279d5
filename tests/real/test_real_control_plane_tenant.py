"""A new customer's values in the real chart, and the end of a customer's supervision in chdb."""

import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import chdb.session
import pytest

from byoc_control_plane import cli
from byoc_control_plane.store import EmbeddedStore, fetch_rows
from byoc_control_plane.tenant import retire
from lab.control_plane.messages import Replica
from lab.fakes.core import START_MS
from lab.real.chart import render
from lab.real.chart.pods import environment, pods
from lab.real.parts import helm
from tests.real.control_plane_tables import empty, record_progress, store_events

pytestmark = pytest.mark.real
ROLE = "arn:aws:iam::111122223333:role/byoc-agents"
EXAMPLE = render.CHART.parents[1] / "docs/examples/values.yaml"
CHECK_CONFIG = (sys.executable, "-m", "byoc_agents.app.cli", "check-config")
LATER_MS = START_MS + 3_600_000
SILENT = "SELECT organization_id FROM silent_now ORDER BY 1"


@pytest.mark.parametrize("version", helm.VERSIONS)
def test_the_printed_values_make_a_release_whose_daemons_accept_them(
    version: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The forwarder reads the files that `add` wrote for the customer."""
    secrets = tmp_path / "secrets"
    arguments = ["--registry", str(tmp_path / "registry"), "--secrets", str(secrets), "--tenants"]
    arguments += ["--service", "svc-9", "--values", str(EXAMPLE), "--role", ROLE]
    assert cli.main(["tenant", "add", "org-9", *arguments]) == 0
    values = tmp_path / "values.yaml"
    values.write_text(capsys.readouterr().out)
    for name in ("webhook-token", "fingerprint-secret"):  # the customer's own
        (secrets / name).write_text("0123456789abcdef" * 4)
    checked = {}
    for pod in pods(render.manifests(values, version=version)):
        for container in pod.ours:
            found = environment(container)
            found |= {
                name: str(secrets / Path(value).name)
                for name, value in found.items()
                if value.startswith("/etc/byoc-agents/alerts/")
            }
            done = subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "byoc_agents.app.cli",
                    "check-config",
                    *container["args"][1:],
                ],
                env=found,
                capture_output=True,
                text=True,
                check=False,
            )
            assert (done.returncode, done.stderr) == (0, "")
            checked[container["name"]] = done.stdout
    assert checked.keys() == {"billing-scraper", "state-exporter", "alert-forwarder"}
    assert all("org-9" in said and "svc-9" in said for said in checked.values())
    assert "v1/account=111122223333/" in checked["billing-scraper"]


@pytest.mark.parametrize("version", helm.VERSIONS)
@pytest.mark.parametrize(("organization", "service"), [("1e3", "y"), ("0128", "0o17")])
def test_names_that_look_like_numbers_are_the_same_names_to_helm(
    version: str, organization: str, service: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    arguments = ["--registry", str(tmp_path / "registry"), "--secrets", str(tmp_path / "secrets")]
    arguments += ["--service", service, "--values", str(EXAMPLE), "--role", ROLE]
    assert cli.main(["tenant", "add", organization, *arguments]) == 0
    values = tmp_path / "values.yaml"
    values.write_text(capsys.readouterr().out)
    daemons = [one for pod in pods(render.manifests(values, version=version)) for one in pod.ours]
    assert daemons
    for found in map(environment, daemons):
        names = (found["BYOC_ORGANIZATION_ID"], found["BYOC_SERVICE_ID"])
        assert names == (organization, service)


@pytest.fixture
def session(tmp_path: Path) -> Iterator[chdb.session.Session]:
    """Two customers whose exporters have been silent for an hour."""
    session = empty(chdb.session.Session(str(tmp_path / "chdb")))
    for organization in ("org-1", "org-2"):
        for number in range(2):
            replica = Replica(replica=f"r-{number}", organization=organization)
            store_events(session, [replica.message(START_MS)], START_MS)
    record_progress(session, LATER_MS)
    yield session
    session.close()


@pytest.fixture
def store(session: chdb.session.Session) -> Iterator[EmbeddedStore]:
    with ThreadPoolExecutor(max_workers=1) as thread:
        yield EmbeddedStore(session, thread)


async def silent(store: EmbeddedStore) -> list[str]:
    return [row["organization_id"] for row in await fetch_rows(store, SILENT)]


async def test_a_removed_customer_is_silent_no_more(store: EmbeddedStore) -> None:
    assert await silent(store) == ["org-1", "org-1", "org-2", "org-2"]
    assert await retire(store, "org-1") == 2
    assert await silent(store) == ["org-2", "org-2"]
    assert await retire(store, "org-1") == 0
    assert await retire(store, "org-9") == 0
    assert await silent(store) == ["org-2", "org-2"]


async def test_a_message_that_comes_later_is_supervised_until_the_next_removal(
    session: chdb.session.Session, store: EmbeddedStore
) -> None:
    """Its time is after the removal, even if the clock of ClickHouse is behind."""
    await retire(store, "org-1")
    later_ms = time.time_ns() // 1_000_000 + 10_000  # of a process whose clock is ahead
    late = Replica(replica="r-0", organization="org-1", epoch=later_ms)
    late.heartbeat = 1
    store_events(session, [late.message(later_ms)], later_ms)
    record_progress(session, later_ms + 40_000)
    assert await silent(store) == ["org-1", "org-2", "org-2"]
    assert await retire(store, "org-1") == 1
    assert await silent(store) == ["org-2", "org-2"]
