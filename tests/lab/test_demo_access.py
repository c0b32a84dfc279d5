"""`make demo-access` without root: the engineer connects on the loopback interface."""

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import aiohttp
import psutil
import pytest

from byoc_agents.access.clickhouse_admin import user_of
from lab.demo import access_route
from lab.demo.access import RECORD
from lab.fakes.access import CANCELLED, LONG_QUERY, RUNNING_QUERY, FakeClickHouseServer
from lab.tailnet.certificates import GRANT

USER, URI = user_of(GRANT), f"spiffe://svc-1.byoc/grant/{GRANT}"
USER_PARAMS = json.dumps({"subject_alt_names": [f"URI:{URI}"]}, separators=(",", ":"))
SECONDS = 300  # it takes ten; this is for a machine that is very busy
STEPS = [
    *("prepared", "checked", "requested", "refused before the approval", "approved"),
    *("certificate", "queried", "revoked", "refused after the revocation", "kill switch"),
    *("collected", "verified"),
]


async def run(directory: Path, *options: str) -> tuple[int | None, str, str]:
    """Run the demo; return its exit code, output and errors. No process of it is left."""
    argv = [sys.executable, "-m", "lab.demo.access", "--directory", str(directory), *options]
    environ = os.environ | {"BYOC_TYPO": "1"}
    demo = await asyncio.create_subprocess_exec(*argv, stdout=PIPE, stderr=PIPE, env=environ)
    async with asyncio.timeout(SECONDS):
        out, err = await demo.communicate()
    left = [one for one in psutil.process_iter(["cmdline"]) if str(directory) in str(one.info)]
    assert left == []
    return demo.returncode, out.decode(), err.decode()


async def test_it_ends_by_itself_with_one_line_per_step(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    (directory / "of-an-earlier-run").touch()
    code, out, err = await run(directory, "--loopback")
    print(out)
    assert (code, err) == (0, "")
    assert not (directory / "of-an-earlier-run").exists()
    recorded = [json.loads(line) for line in (directory / RECORD).read_text().splitlines()]
    assert [step["name"] for step in recorded] == STEPS
    first, second, *lines, last = out.splitlines()
    assert first == f"the files of this run are in {directory}"
    assert second == "no tailnet: asked for"
    assert last == f"OK: {len(STEPS)} steps, recorded in {RECORD}"
    for step, line in zip(recorded, lines, strict=True):
        assert line.endswith(f" s  {step['happened']}  [{step['where']}]")
        place = step["where"].split(", ")[0]
        assert place.startswith("byoc-agents access ") or (directory / place).exists()


@pytest.mark.parametrize("euid", [0, 1000])
def test_a_machine_without_the_parts_gets_the_reason(
    euid: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: euid)
    monkeypatch.setattr(access_route, "CACHE", tmp_path)
    monkeypatch.setenv("PATH", "")
    expected = "network namespaces need root" if euid else "no ip, nft, curl here"
    assert access_route.find_obstacle() == expected


# The stand-in's query that runs.


@pytest.fixture
def fake() -> FakeClickHouseServer:
    fake = FakeClickHouseServer(lambda: 0)
    fake.users[USER] = {"auth_params": [USER_PARAMS], "valid_until": [1], "name": USER}
    return fake


async def post(fake: FakeClickHouseServer, statement: str) -> None:
    async with aiohttp.ClientSession() as session, session.post(fake.http.url, data=statement):
        pass


async def test_a_long_query_survives_its_user_and_ends_by_kill_query(
    fake: FakeClickHouseServer,
) -> None:
    """As ClickHouse's documentation of DROP USER and KILL QUERY says."""
    async with fake.http:
        running = asyncio.create_task(fake.run_query(URI, LONG_QUERY))
        await asyncio.sleep(0)  # it begins
        assert await fake.run_query(URI, RUNNING_QUERY) == "1\n"
        await post(fake, f"DROP USER IF EXISTS {USER}")
        assert await fake.run_query(URI, RUNNING_QUERY) is None
        assert not running.done()
        assert len(fake.running[USER]) == 1
        await post(fake, f"KILL QUERY WHERE user = '{USER}' ASYNC")
        assert await running == CANCELLED
    assert fake.running == {}
    rows = [row["type"] for row in fake.query_log[USER] if row["query"] == LONG_QUERY]
    assert rows == ["QueryStart", "ExceptionWhileProcessing"]
