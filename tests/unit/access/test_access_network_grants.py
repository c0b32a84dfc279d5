"""Grants without a user in ClickHouse: they open while it is down, and end with their endpoint."""

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from byoc_agents.access.clickhouse_admin import user_of
from byoc_agents.access.documents import CLICKHOUSE, ENDPOINTS, KUBERNETES, METRICS
from byoc_agents.access.grants import GRANTS
from byoc_agents.access.machine import ENDS, Grant, State
from byoc_agents.access.orders import Approve, Revoke, Submit
from byoc_agents.access.policy import load_policy, load_stored_policy
from byoc_agents.access.tailnet import Tailnet
from byoc_agents.access_commands import main
from byoc_agents.durable.model import WriteBatch
from tests.unit.access.access_documents import (
    GRANT_ID,
    grant_id,
    grant_of,
    policy_text,
    request_envelope,
    request_fields,
    withdrawal_envelope,
)
from tests.unit.access.scripted_broker import Harness, ScriptedScaler, account_of, touch

USER = user_of(GRANT_ID)
NOBODY: dict[str, list[str]] = {"r0": [], "r1": []}
ROLES = {
    "kubernetes-view": {"endpoints": [KUBERNETES]},
    "metrics-view": {"endpoints": [METRICS]},
    "network": {"endpoints": [KUBERNETES, METRICS]},
    "all": {"clickhouse_role": "byoc_access_reader", "endpoints": list(ENDPOINTS)},
}
VIEW: dict[str, Any] = {"role": "kubernetes-view", "endpoints": [KUBERNETES]}
METRICS_VIEW: dict[str, Any] = {"role": "metrics-view", "endpoints": [METRICS]}
DOCUMENTED = Path(__file__).parents[3] / "docs" / "access.md"


@pytest.fixture
def harness(tmp_path: Path) -> Harness:
    """Give a harness in which no server responds."""
    harness = Harness(tmp_path)
    harness.use_tailnet()
    harness.write_policy(roles=ROLES)
    for server in harness.servers.values():
        server.reachable = False
    return harness


def attempts(harness: Harness) -> set[str]:
    """Return the requests to the servers, apart from the sweep's list of users."""
    found = {method for server in harness.servers.values() for method, _ in server.attempts}
    return found - {"list_users"}


# Opening.


@pytest.mark.parametrize("request_", [VIEW, METRICS_VIEW], ids=["kubernetes", "metrics"])
async def test_it_opens_while_no_server_responds(
    harness: Harness, request_: dict[str, Any]
) -> None:
    async with harness.running():
        grant = await harness.open_grant(**request_)
        assert (grant.replicas, grant.touched) == ((), ())
        assert harness.scaler.up == set(request_["endpoints"])
        await harness.passes_with_tailnet(31, 3)
        assert harness.grant().state is State.OPEN
    assert attempts(harness) == set()
    assert harness.users == NOBODY


async def test_a_grant_for_clickhouse_still_fails_then(harness: Harness) -> None:
    async with harness.running():
        await harness.order(Submit(envelope=request_envelope(role="all", endpoints=[CLICKHOUSE])))
        await harness.order(Approve(id=GRANT_ID, by="anna"))
        await harness.passes_with_tailnet(31, 2)
        assert harness.grant().ended_because.startswith("unreachable")
    assert harness.scaler.up == set()


@pytest.mark.parametrize(
    ("request_", "signed"), [(VIEW, False), (METRICS_VIEW, True)], ids=["kubernetes", "metrics"]
)
async def test_it_has_a_certificate_only_if_an_endpoint_asks_for_one(
    harness: Harness, request_: dict[str, Any], signed: bool
) -> None:
    async with harness.running():
        grant = await harness.open_grant(**request_)
        assert bool(grant.certificate) is signed
        assert ("certificate" in harness.named()) is signed


async def test_the_endpoint_is_scaled_after_the_durable_line(harness: Harness) -> None:
    async with harness.running():
        await harness.open_grant(**VIEW)
    steps = harness.steps
    assert steps.index("fact.opening") < steps.index("scale.db/tailnet-kubernetes.1")
    assert steps.index("scale.db/tailnet-kubernetes.1") < steps.index("fact.open")


async def test_the_rights_are_those_of_the_request_and_not_of_the_role(harness: Harness) -> None:
    """A role may allow all endpoints; a request for one of them gets no more than that."""
    async with harness.running():
        grant = await harness.open_grant(role="all", endpoints=[METRICS])
        assert grant.replicas == ()
        assert harness.scaler.up == {METRICS}
    assert harness.users == NOBODY


async def test_an_approver_cannot_give_a_role_without_the_requests_endpoint(
    harness: Harness,
) -> None:
    async with harness.running():
        await harness.order(Submit(envelope=request_envelope(role="all", endpoints=[CLICKHOUSE])))
        answer = await harness.order(Approve(id=GRANT_ID, by="anna", role="kubernetes-view"))
        assert answer.startswith("refused: endpoints")
        assert harness.grant().state is State.PENDING
    assert harness.scaler.up == set()


@pytest.mark.parametrize("tailnet", [False, True], ids=["no tailnet", "another endpoint"])
async def test_it_does_not_open_if_the_broker_could_not_end_it(
    harness: Harness, tailnet: bool
) -> None:
    harness.tailnet = None
    if tailnet:
        scaler = ScriptedScaler({METRICS: "db/tailnet-metrics"})
        harness.tailnet = tailnet_of(harness, scaler)
    async with harness.running():
        await harness.order(Submit(envelope=request_envelope(**VIEW)))
        await harness.order(Approve(id=GRANT_ID, by="anna"))
        await harness.passes(1, 3)
        stored = await harness.stored()
        assert stored.state is State.FAILED
        expected = "tailnet: kubernetes: not scaled by the broker, so it could not end access"
        assert stored.ended_because == expected
        assert (await harness.events())[-1]["reason"] == "tailnet"
    assert "open" not in harness.named()


def tailnet_of(harness: Harness, scaler: ScriptedScaler) -> Tailnet:
    return Tailnet(scaler.deployments, scaler, harness.clock)


async def test_it_does_not_open_if_its_endpoint_cannot_be_scaled(harness: Harness) -> None:
    harness.scaler.error = "status 403"
    async with harness.running() as broker:
        await harness.order(Submit(envelope=request_envelope(**VIEW)))
        await harness.order(Approve(id=GRANT_ID, by="anna"))
        await harness.passes_with_tailnet(1, 3)
        # The patch may have had an effect: only a response with no pod ends the grant.
        assert [one.state for one in broker.grants] == [State.CLOSING]
        harness.scaler.error = ""
        await harness.passes_with_tailnet(31, 3)
        stored = await harness.stored()
        assert (stored.state, stored.ended_because) == (
            State.FAILED,
            "tailnet: kubernetes: status 403",
        )


# Ends.


@pytest.mark.parametrize("how", ["revoke", "kill switch", "policy", "withdrawal", "time", "clock"])
async def test_each_end_scales_its_endpoint_down_and_then_it_is_closed(
    harness: Harness, how: str
) -> None:
    async with harness.running() as broker:
        await harness.open_grant(**VIEW)
        match how:
            case "revoke":
                await harness.order(Revoke(id=GRANT_ID))
            case "kill switch":
                touch(harness.kill_file)
            case "policy":
                harness.write_policy(roles=ROLES | {"kubernetes-view": {"endpoints": [METRICS]}})
            case "withdrawal":
                await harness.order(Submit(envelope=withdrawal_envelope()))
            case "time":
                await harness.clock.advance(3600)
            case "clock":
                harness.clock.step_wall(-120)
        await harness.passes_with_tailnet(1, 4)
        assert harness.scaler.up == set()
        assert broker.grants == []
        assert (await harness.stored()).state is State.CLOSED
    names = harness.named()
    assert names.index("closing") < names.index("collecting") < names.index("closed")
    assert "collected" not in names
    assert attempts(harness) == set()


@pytest.mark.parametrize("trouble", ["an error", "a pod that stays"])
async def test_it_is_closing_and_overdue_until_its_endpoint_has_no_pod(
    harness: Harness, trouble: str
) -> None:
    async with harness.running() as broker:
        await harness.open_grant(**VIEW)
        if trouble == "an error":
            harness.scaler.error = "status 500"
        else:
            harness.scaler.held = True
        await harness.order(Revoke(id=GRANT_ID))
        await harness.passes_with_tailnet(30, 4)
        assert harness.grant().state is State.CLOSING
        assert broker.overdue_seconds == 120
        assert "collecting" not in harness.named()
        harness.scaler.error, harness.scaler.held = "", False
        await harness.passes_with_tailnet(31, 4)
        assert broker.overdue_seconds == 0
        assert (await harness.stored()).state is State.CLOSED


async def test_a_shared_endpoint_keeps_an_ended_grant_closing_until_the_other_ends(
    harness: Harness,
) -> None:
    """The first engineer can still use the endpoint, so nothing may say that access has ended."""
    async with harness.running() as broker:
        await harness.open_grant(**VIEW)
        other = grant_id(2)
        envelope = request_envelope(id=other, engineer={"id": "eng-2", "name": "B"}, **VIEW)
        await harness.order(Submit(envelope=envelope))
        await harness.order(Approve(id=other, by="anna"))
        await harness.order(Revoke(id=GRANT_ID))
        await harness.passes_with_tailnet(30, 4)
        assert harness.grant().state is State.CLOSING
        assert harness.grant(other).state is State.OPEN
        assert broker.overdue_seconds == 120
        await harness.order(Revoke(id=other))
        await harness.passes_with_tailnet(1, 4)
        assert broker.grants == []


async def test_a_grant_with_a_user_waits_for_its_other_endpoints_too(harness: Harness) -> None:
    for server in harness.servers.values():
        server.reachable = True
    async with harness.running():
        await harness.open_grant(role="all", endpoints=[CLICKHOUSE, METRICS])
        harness.scaler.error = "status 500"
        await harness.order(Revoke(id=GRANT_ID))
        await harness.passes_with_tailnet(1, 3)
        assert harness.users == NOBODY  # this end waits for nothing
        assert (harness.grant().state, harness.grant().touched) == (State.CLOSING, ())
        harness.scaler.error = ""
        await harness.passes_with_tailnet(31, 4)
        assert (await harness.stored()).state is State.CLOSED


async def test_an_endpoint_that_is_no_longer_scaled_makes_the_record_incomplete(
    harness: Harness,
) -> None:
    async with harness.running():
        await harness.open_grant(**VIEW)
    harness.tailnet = None
    async with harness.running():
        await harness.order(Revoke(id=GRANT_ID))
        await harness.passes(1, 4)
        stored = await harness.stored()
        assert stored.state is State.CLOSED_INCOMPLETE
        assert "kubernetes: no longer scaled by the broker" in stored.reason


async def test_a_broker_that_closes_at_its_stop_waits_for_the_endpoint(harness: Harness) -> None:
    harness.limits = msgspec.structs.replace(harness.limits, close_on_stop=True)
    async with harness.running() as broker:
        await harness.open_grant(**VIEW)
        stopping = asyncio.create_task(broker.finish())
        while not stopping.done():
            await harness.clock.advance(1)
            await asyncio.sleep(0.01)
        await stopping
        assert harness.scaler.up == set()


async def test_the_sweep_drops_a_user_that_such_a_grant_must_not_have(harness: Harness) -> None:
    for server in harness.servers.values():
        server.reachable = True
    async with harness.running():
        grant = await harness.open_grant(**VIEW)
        harness.servers["r0"].users[USER] = account_of(grant)
        await harness.passes_with_tailnet(31)
        assert harness.users == NOBODY
        assert harness.grant().state is State.OPEN
        drift = [fact for fact in harness.facts() if fact.fact == "drift"]
        assert [(one.reason, one.detail["user"]) for one in drift] == [("orphan", USER)]


# Restarts and crashes.


async def test_a_restart_leaves_it_open_and_its_endpoint_up(harness: Harness) -> None:
    async with harness.running():
        await harness.open_grant(**VIEW)
    before = len(harness.scaler.calls)
    harness.connect_tailnet()
    async with harness.running():
        await harness.passes_with_tailnet(31, 2)
        assert harness.grant().state is State.OPEN
    assert ("db/tailnet-kubernetes", 0) not in harness.scaler.calls[before:]


async def test_a_grant_of_an_earlier_version_keeps_its_user_until_its_end(
    harness: Harness,
) -> None:
    """Earlier versions created a user for every grant, and stored its replicas."""
    for server in harness.servers.values():
        server.reachable = True
    payload = msgspec.json.encode(request_fields(endpoints=[METRICS], role="all"))
    both = ("r0", "r1")
    stored = grant_of(State.OPEN, payload=payload, role="all", replicas=both, touched=both)
    stored = msgspec.structs.replace(stored, opened_ms=stored.since_ms)
    for server in harness.servers.values():
        server.users[USER] = account_of(stored)
    raw = msgspec.json.encode(stored)
    async with harness.running():
        await harness.spool.commit(WriteBatch(state={GRANTS + GRANT_ID: raw}))
        await harness.passes_with_tailnet(0)
        assert harness.grant().state is State.OPEN
        assert harness.users == {"r0": [USER], "r1": [USER]}
        await harness.order(Revoke(id=GRANT_ID))
        await harness.passes_with_tailnet(1, 4)
        assert harness.users == NOBODY
        assert (await harness.stored()).state is State.CLOSED
    assert "collected" in harness.named()


def run_killed(harness: Harness, step: int) -> None:
    """Run a grant from request to revocation in a process that SIGKILL ends after so many steps."""
    child = os.fork()
    if child == 0:
        try:
            asyncio.run(run_whole(harness, step))
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL
    replicas = json.loads((harness.directory / "scaled.json").read_text())
    harness.scaler.replicas = dict(replicas)
    harness.scaler.pods = dict(replicas)


async def run_whole(harness: Harness, step: int = 0) -> None:
    def on_step(_step: str) -> None:
        content = json.dumps(harness.scaler.replicas)
        (harness.directory / "scaled.json").write_text(content)
        if len(harness.steps) == step:
            os.kill(os.getpid(), signal.SIGKILL)

    harness.on_step = on_step
    async with harness.running():
        for name, order in (
            ("1", Submit(envelope=request_envelope(**METRICS_VIEW))),
            ("2", Approve(id=GRANT_ID, by="anna")),
            ("3", Revoke(id=GRANT_ID, by="anna")),
        ):
            harness.orders.create()
            harness.orders.place(name, order)
            await harness.passes_with_tailnet(0)
        await harness.passes_with_tailnet(1, 4)


def made(directory: Path) -> Harness:
    harness = Harness(directory)
    harness.use_tailnet()
    harness.write_policy(roles=ROLES)
    return harness


def test_after_any_kill_the_next_broker_ends_what_was_begun(tmp_path: Path) -> None:
    whole = made(tmp_path / "whole")
    asyncio.run(run_whole(whole))
    assert [step for step in whole.steps if step.endswith("user")] == []
    assert len(whole.steps) > 20
    for step in range(1, len(whole.steps) + 1):
        harness = made(tmp_path / str(step))
        run_killed(harness, step)
        names = harness.named()
        assert METRICS not in harness.scaler.up or "opening" in names, whole.steps[step - 1]
        if names and names[-1] in {"collecting", "closed"}:
            assert harness.scaler.up == set()
        asyncio.run(resume(harness))


async def resume(harness: Harness) -> None:
    harness.on_step = lambda _: None
    harness.connect_tailnet()
    async with harness.running() as broker:
        await harness.passes_with_tailnet(0)
        harness.orders.place("4", Revoke(id=GRANT_ID, by="anna"))
        await harness.passes_with_tailnet(1, 6)
        assert broker.grants == []
        assert harness.scaler.up == set()
        names = harness.named()
        if "pending" in names:
            stored = await harness.stored()
            assert {State(name) for name in names if name in set(State)} & ENDS == {stored.state}
    assert harness.users == NOBODY
    assert harness.ledger_problems() == []


# The evidence, and the policy.


async def test_evidence_and_report_say_that_there_was_no_user(
    harness: Harness, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = harness.directory
    (directory / "access-broker").symlink_to(harness.state)
    async with harness.running():
        await harness.open_grant(**METRICS_VIEW)
        await harness.order(Revoke(id=GRANT_ID))
        await harness.passes_with_tailnet(1, 4)
        environ = {"BYOC_STATE_DIR": str(directory), "BYOC_ACCESS_CA_DIR": str(directory / "ca")}
        out, page = directory / "evidence", directory / "page.html"
        assert main(["evidence", GRANT_ID, "--out", str(out)], environ) == 0
        assert main(["report", "--html", str(page)], environ) == 0
        assert main(["show", GRANT_ID], environ) == 0
    assert "user         none in ClickHouse" in capsys.readouterr().out
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["endpoints"], summary["clickhouse_user"]) == ([METRICS], "")
    assert (
        "had no user in ClickHouse: its endpoints are metrics" in (out / "README.txt").read_text()
    )
    assert list(out.glob("*-queries.jsonl")) == []
    assert ">no user in ClickHouse<" in page.read_text()
    assert main(["verify", str(out), "--json"], {}) == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert any("the grant had no user in ClickHouse (endpoints: metrics)" in one for one in notes)


async def test_a_summary_that_invents_a_user_is_found(
    harness: Harness, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = harness.directory
    (directory / "access-broker").symlink_to(harness.state)
    async with harness.running():
        await harness.open_grant(**METRICS_VIEW)
        await harness.order(Revoke(id=GRANT_ID))
        await harness.passes_with_tailnet(1, 4)
        environ = {"BYOC_STATE_DIR": str(directory), "BYOC_ACCESS_CA_DIR": str(directory / "ca")}
        out = directory / "evidence"
        assert main(["evidence", GRANT_ID, "--out", str(out)], environ) == 0
    summary = json.loads((out / "summary.json").read_text()) | {"clickhouse_user": USER}
    (out / "summary.json").write_text(json.dumps(summary))
    capsys.readouterr()
    assert main(["verify", str(out)], {}) == 1
    assert "summary.json: `clickhouse_user` is not that of" in capsys.readouterr().out


@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_the_documented_policy_opens_each_endpoint(tmp_path: Path, endpoint: str) -> None:
    """With its own roles and limits; only the keys, which are examples there, are the tests'."""
    harness = Harness(tmp_path)
    harness.use_tailnet()
    example = DOCUMENTED.read_text().partition("```yaml\n")[2].partition("```")[0]
    roles = load_policy(example.encode()).file.roles
    name = next(name for name, role in roles.items() if endpoint in role.endpoints)
    raw = {
        key: {k: v for k, v in msgspec.to_builtins(role).items() if v is not None}
        for key, role in roles.items()
    }
    harness.write_policy(roles=raw)
    async with harness.running():
        grant = await harness.open_grant(role=name, endpoints=[endpoint], duration_seconds=600)
        assert harness.scaler.up == {endpoint}
        assert bool(grant.replicas) is (endpoint == CLICKHOUSE)


def test_policies_and_grants_of_earlier_versions_are_still_read() -> None:
    """They named any endpoint, and a role of ClickHouse for each."""
    old = {"r": {"clickhouse_role": "byoc_access_reader", "endpoints": ["kubernetes", "other"]}}
    role = load_stored_policy(policy_text(roles=old).encode()).file.roles["r"]
    assert role.endpoints == ("kubernetes", "other")
    raw = msgspec.json.encode(grant_of(State.OPEN))
    assert msgspec.json.decode(raw, type=Grant).needs_user
