"""Scaling the endpoints of the tailnet: by hand, by the broker, and by the program."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from byoc_agents.access.daemon import destinations
from byoc_agents.access.errors import TailnetError
from byoc_agents.access.machine import State
from byoc_agents.access.orders import Approve, Revoke, Submit
from byoc_agents.access.settings import Settings
from byoc_agents.access.source import BrokerCollector, BrokerSource
from byoc_agents.access.tailnet import (
    CHECK_SECONDS,
    MAX_RESPONSE_BYTES,
    SILENT_SECONDS,
    DeploymentScaler,
    KubernetesScaler,
    Tailnet,
)
from byoc_agents.app.run import configure
from byoc_agents.app.runtime import ClickHouseSettings
from byoc_agents.app.settings import load
from byoc_agents.egress.destinations import DestinationKind
from byoc_agents.egress.gate import EgressRefusedError, Gate
from byoc_agents.errors import ConfigError
from byoc_agents.ledger.format import FactLine
from lab.fakes.certificate import certificate
from lab.fakes.core import FakeClock
from lab.fakes.http import FakeHttp, Reply, always, close, garbage, hang, lose, reply
from lab.fakes.kubernetes import JSON, FakeKubernetes
from tests.unit.access.access_documents import GRANT_ID, request_envelope
from tests.unit.access.program_harness import Program, until
from tests.unit.access.scripted_broker import Harness, ScriptedScaler

CLICKHOUSE, METRICS = "clickhouse", "metrics"
DEPLOYMENTS = {CLICKHOUSE: "db/tailnet-clickhouse", METRICS: "db/tailnet-metrics"}


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def scaler() -> ScriptedScaler:
    return ScriptedScaler(DEPLOYMENTS)


@pytest.fixture
def tailnet(scaler: ScriptedScaler, clock: FakeClock) -> Tailnet:
    return Tailnet(DEPLOYMENTS, scaler, clock)


async def settle(tailnet: Tailnet, clock: FakeClock, seconds: float = 2.0) -> None:
    """Reconcile each second, as `run` does."""
    for _ in range(int(seconds)):
        await tailnet.reconcile()
        await clock.advance(1)


async def test_only_needed_endpoints_are_up_and_all_are_down_at_the_end(
    tailnet: Tailnet, scaler: ScriptedScaler, clock: FakeClock
) -> None:
    for needed in ({CLICKHOUSE}, {CLICKHOUSE, METRICS}, {METRICS}, set[str](), {"kubernetes"}):
        tailnet.set_needed(needed)
        await settle(tailnet, clock)
        assert scaler.up == needed & {*DEPLOYMENTS}
    assert tailnet.late_seconds == 0
    assert tailnet.unexpected_count == 0


async def test_nothing_is_scaled_before_the_broker_knows_its_grants(
    tailnet: Tailnet, scaler: ScriptedScaler, clock: FakeClock
) -> None:
    """A restart must not cut the connections of an open grant."""
    scaler.replicas = dict.fromkeys(DEPLOYMENTS.values(), 1)
    await settle(tailnet, clock, SILENT_SECONDS - 1)
    assert scaler.calls == []
    await settle(tailnet, clock)
    assert scaler.up == set(), "a broker that states nothing needs nothing"


async def test_a_broker_that_falls_silent_loses_its_endpoints(
    tailnet: Tailnet, scaler: ScriptedScaler, clock: FakeClock
) -> None:
    tailnet.set_needed({CLICKHOUSE})
    await settle(tailnet, clock, SILENT_SECONDS - 1)
    assert scaler.up == {CLICKHOUSE}
    await settle(tailnet, clock)
    assert scaler.up == set()


async def test_the_state_is_set_again_every_half_a_minute(
    tailnet: Tailnet, scaler: ScriptedScaler, clock: FakeClock
) -> None:
    """An upgrade of the chart sets 0, and anybody else may set 1."""
    tailnet.set_needed({CLICKHOUSE})
    await settle(tailnet, clock)
    first = len(scaler.calls)
    scaler.replicas = {DEPLOYMENTS[CLICKHOUSE]: 0, DEPLOYMENTS[METRICS]: 1}
    await settle(tailnet, clock, CHECK_SECONDS)
    assert scaler.up == {CLICKHOUSE}
    assert len(scaler.calls) == first + 2


async def test_a_pod_that_nobody_needs_is_counted_once_and_removed(
    tailnet: Tailnet, scaler: ScriptedScaler, clock: FakeClock
) -> None:
    tailnet.set_needed(())
    await settle(tailnet, clock)
    scaler.replicas[DEPLOYMENTS[METRICS]] = scaler.pods[DEPLOYMENTS[METRICS]] = 1
    scaler.held = True  # it takes long to end
    await settle(tailnet, clock, 2 * CHECK_SECONDS)
    assert (tailnet.take_unexpected(), tailnet.take_unexpected()) == ([METRICS], [])
    assert tailnet.unexpected_count == 1
    assert tailnet.late_seconds > CHECK_SECONDS / 2
    scaler.held = False
    await settle(tailnet, clock, 2 * CHECK_SECONDS)
    assert (tailnet.late_seconds, tailnet.unexpected_count) == (0, 1)
    assert scaler.pods == dict.fromkeys(DEPLOYMENTS.values(), 0)


async def test_a_pod_that_ends_slowly_after_a_grant_is_late_and_not_unexpected(
    tailnet: Tailnet, scaler: ScriptedScaler, clock: FakeClock
) -> None:
    tailnet.set_needed({CLICKHOUSE})
    await settle(tailnet, clock)
    tailnet.set_needed(())
    scaler.held = True
    await settle(tailnet, clock, 10)
    assert tailnet.late_seconds == pytest.approx(10)
    scaler.held = False
    await settle(tailnet, clock, CHECK_SECONDS)
    assert (tailnet.late_seconds, tailnet.unexpected_count) == (0, 0)


async def test_a_failure_is_late_and_tried_again_with_growing_waits(
    tailnet: Tailnet, scaler: ScriptedScaler, clock: FakeClock
) -> None:
    scaler.error = "status 403"
    tailnet.set_needed(())
    tried = []
    for second in range(100):
        before = len(scaler.calls)
        await tailnet.reconcile()
        if len(scaler.calls) > before:
            tried.append(second)
        tailnet.set_needed(())
        await clock.advance(1)
    assert tried == [0, 1, 3, 7, 15, 31, 61, 91]
    assert tailnet.errors == dict.fromkeys(DEPLOYMENTS, "status 403")
    assert tailnet.late_seconds == pytest.approx(100)
    scaler.error = ""
    await settle(tailnet, clock, CHECK_SECONDS)
    assert (tailnet.late_seconds, tailnet.errors) == (0, dict.fromkeys(DEPLOYMENTS, ""))


async def test_an_end_during_an_opening_wins(
    tailnet: Tailnet, scaler: ScriptedScaler, clock: FakeClock
) -> None:
    """A slow response to the first patch does not leave the endpoint up."""
    scaler.gate = asyncio.Event()
    tailnet.set_needed({CLICKHOUSE})
    opening = asyncio.create_task(tailnet.open([CLICKHOUSE, "kubernetes"]))
    await scaler.called.wait()
    tailnet.set_needed(())
    ending = asyncio.create_task(tailnet.reconcile())
    await asyncio.sleep(0)
    scaler.gate.set()
    await asyncio.gather(opening, ending)
    await settle(tailnet, clock)
    assert scaler.up == set()
    assert scaler.calls[0] == (DEPLOYMENTS[CLICKHOUSE], 1)


async def test_an_endpoint_is_up_from_the_patch_on_until_no_pod_is_left(
    tailnet: Tailnet, scaler: ScriptedScaler, clock: FakeClock
) -> None:
    """Also while a response is awaited, after an error, and before the first response."""
    assert tailnet.find_up([METRICS, "other"]) == [METRICS]
    tailnet.set_needed(())
    await settle(tailnet, clock)
    assert tailnet.find_up([METRICS]) == []
    scaler.gate = asyncio.Event()
    tailnet.set_needed([METRICS])
    opening = asyncio.create_task(tailnet.open([METRICS]))
    scaler.called.clear()
    await scaler.called.wait()
    assert tailnet.find_up([METRICS]) == [METRICS]
    scaler.gate.set()
    await opening
    tailnet.set_needed(())
    scaler.error = "status 500"
    await settle(tailnet, clock)
    assert tailnet.find_up([METRICS]) == [METRICS]
    scaler.error, scaler.held = "", True
    await settle(tailnet, clock, 40)
    assert tailnet.find_up([METRICS]) == [METRICS]
    scaler.held = False
    await settle(tailnet, clock, 70)
    assert tailnet.find_up([METRICS]) == []
    assert tailnet.find_unknown([METRICS, "other"]) == ["other"]


async def test_a_defect_of_the_scaler_does_not_end_the_task(clock: FakeClock) -> None:
    class Broken:
        calls = 0

        async def scale(self, deployment: str, replicas: int) -> int:
            self.calls += 1
            raise ZeroDivisionError(f"{deployment} {replicas}")

    broken = Broken()
    tailnet = Tailnet(DEPLOYMENTS, broken, clock)
    tailnet.set_needed(())
    running = asyncio.create_task(tailnet.run())
    await clock.parked()
    await clock.advance(1)
    await clock.parked()
    assert broken.calls >= 2
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert running.cancelled()


# --- the Kubernetes API ---


@pytest.fixture
async def api() -> AsyncIterator[FakeKubernetes]:
    fake = FakeKubernetes(*DEPLOYMENTS.values())
    async with fake.http:
        yield fake


@pytest.fixture
def account(tmp_path: Path) -> Path:
    """Make the directory of a service account."""
    folder = tmp_path / "account"
    folder.mkdir()
    (folder / "token").write_text("token-of-the-account\n")
    return folder


Made = Callable[..., KubernetesScaler]


@pytest.fixture
async def made(api: FakeKubernetes, account: Path) -> AsyncIterator[Made]:
    async with aiohttp.ClientSession() as session:
        yield lambda url=api.http.url: KubernetesScaler(url, account, session, timeout_seconds=0.5)


async def test_a_patch_sets_the_replicas_and_returns_the_pods(
    api: FakeKubernetes, made: Made
) -> None:
    scaler: DeploymentScaler = made()
    assert [await scaler.scale("db/tailnet-metrics", n) for n in (1, 1, 0, 0)] == [0, 1, 1, 0]
    assert api.patches() == [("tailnet-metrics", n) for n in (1, 1, 0, 0)]
    assert {request.method for request in api.http.requests} == {"PATCH"}


async def test_a_new_token_of_the_kubelet_is_used_at_once(
    api: FakeKubernetes, made: Made, account: Path
) -> None:
    scaler = made()
    await scaler.scale("db/tailnet-metrics", 1)
    api.token = "another"
    with pytest.raises(TailnetError, match="status 401"):
        await scaler.scale("db/tailnet-metrics", 0)
    (account / "token").write_text("another")
    assert await scaler.scale("db/tailnet-metrics", 0) == 1


def scale_of(replicas: int) -> bytes:
    return b'{"spec":{"replicas":%d},"status":{"replicas":1}}' % replicas


FAULTS: dict[str, tuple[Any, str]] = {
    "forbidden": (reply(403, JSON, b'{"message":"secret"}'), "status 403"),
    "not found": (reply(404), "status 404"),
    "unavailable": (reply(503), "status 503"),
    "a redirect": (reply(307, {"location": "https://example.com/"}), "status 307"),
    "not JSON": (reply(200, JSON, b"secret"), "another form"),
    "nested JSON": (reply(200, JSON, b'{"x":' * 5000), "another form"),
    "another document": (reply(200, JSON, b'{"kind":"Status"}'), "another form"),
    "another number": (reply(200, JSON, scale_of(3)), "3 replicas: expected 1"),
    "too large": (reply(200, JSON, b" " * (MAX_RESPONSE_BYTES + 1)), "more than"),
    "no HTTP": (garbage(), "Error"),
    "a closed connection": (close, "Error|Disconnected"),
    "a lost response": (lose(), "Error|Disconnected"),
    "no response": (hang, "no response in 0.5 s"),
}


@pytest.mark.parametrize(("fault", "error"), FAULTS.values(), ids=FAULTS)
async def test_a_failure_is_one_error_without_text_of_the_response(
    api: FakeKubernetes, made: Made, fault: Any, error: str
) -> None:
    api.http.script = always(fault)
    with pytest.raises(TailnetError, match=error) as caught:
        await made().scale("db/tailnet-metrics", 1)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("text", ["", " \n", "two\nlines", "caf\u00e9"])
async def test_a_token_that_no_header_can_contain_is_not_sent(
    api: FakeKubernetes, made: Made, account: Path, text: str
) -> None:
    (account / "token").write_text(text)
    with pytest.raises(TailnetError, match="token of the service account"):
        await made().scale("db/tailnet-metrics", 1)
    (account / "token").unlink()
    with pytest.raises(TailnetError, match="FileNotFoundError"):
        await made().scale("db/tailnet-metrics", 1)
    assert api.http.requests == []


def server_context(directory: Path) -> tuple[ssl.SSLContext, Path]:
    """Return the TLS of a server at 127.0.0.1, and its certificate, which is its own CA."""
    served, key = certificate(directory, "localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(served, key)
    return context, served


async def test_only_the_clusters_own_authority_is_trusted(account: Path, tmp_path: Path) -> None:
    """A token must not reach a server that another authority vouches for."""
    context, served = server_context(tmp_path)
    (tmp_path / "other").mkdir()
    stranger, _ = certificate(tmp_path / "other", "localhost")
    response = Reply(200, JSON, scale_of(1))
    async with (
        FakeHttp(apply=lambda _: response, tls=context) as server,
        aiohttp.ClientSession() as session,
    ):
        url = server.url.replace("localhost", "127.0.0.1")
        scaler = KubernetesScaler(url, account, session)
        (account / "ca.crt").write_bytes(stranger.read_bytes())
        with pytest.raises(TailnetError, match="Certificate"):
            await scaler.scale("db/tailnet-metrics", 1)
        assert server.requests == []
        (account / "ca.crt").write_bytes(served.read_bytes())
        assert await scaler.scale("db/tailnet-metrics", 1) == 1


# --- the settings and the destinations ---

REQUIRED = {
    "BYOC_ORGANIZATION_ID": "org-1",
    "BYOC_SERVICE_ID": "svc-1",
    "BYOC_REGION": "eu-west-1",
    "BYOC_ACCESS_POLICY_FILE": "/policy.yaml",
    "BYOC_ACCESS_CA_DIR": "/ca",
    "BYOC_ACCESS_SERVERS": "r0=https://ch-0.db.svc:8443",
    "BYOC_ACCESS_PASSWORD": "x",
    "BYOC_ACCESS_EVENTS_URL": "file:///events",
}


def test_each_deployment_is_a_destination_with_its_own_path() -> None:
    setting = ",".join(f"{name}={one}" for name, one in DEPLOYMENTS.items())
    found = configure(["access-broker"], REQUIRED | {"BYOC_ACCESS_TAILNET": setting}).destinations
    ours = [one for one in found if one.kind is DestinationKind.KUBERNETES]
    assert {(one.host, one.port) for one in ours} == {("kubernetes.default.svc", 443)}
    gate = Gate(found)
    for one in ours:
        assert one.path.endswith("/scale")
        assert one.serves(one.path)
        assert not one.serves("/api/v1/namespaces/db/secrets")
        assert not one.serves(one.path.removesuffix("/scale"))
    assert gate.destinations == tuple(found)
    without = configure(["access-broker"], REQUIRED).destinations
    assert DestinationKind.KUBERNETES not in {one.kind for one in without}


async def test_the_gate_refuses_every_other_path_of_the_api(
    api: FakeKubernetes, account: Path
) -> None:
    setting = {"BYOC_ACCESS_TAILNET": "metrics=db/tailnet-metrics"}
    url = {"BYOC_ACCESS_KUBERNETES_URL": api.http.url}
    gate = Gate(configure(["access-broker"], REQUIRED | setting | url).destinations)
    async with gate.session() as session:
        scaler = KubernetesScaler(api.http.url, account, session)
        assert await scaler.scale("db/tailnet-metrics", 1) == 0
        with pytest.raises(TailnetError, match="EgressRefusedError"):
            await scaler.scale("db/tailnet-clickhouse", 1)
        with pytest.raises(EgressRefusedError):
            await session.get(f"{api.http.url}/api/v1/namespaces/db/secrets")
    assert len(api.http.requests) == 1


async def test_the_gate_refuses_the_health_page_of_a_pod() -> None:
    """It reports nothing about membership in the tailnet (test_real_tailnet.py)."""
    setting = {"BYOC_ACCESS_TAILNET": "metrics=db/tailnet-metrics"}
    found = configure(["access-broker"], REQUIRED | setting).destinations
    assert {one.host for one in found} == {"kubernetes.default.svc", "ch-0.db.svc"}
    async with Gate(found).session() as session:
        for host in ("127.0.0.1", "tailnet-metrics.db.svc"):
            with pytest.raises(EgressRefusedError):
                await session.get(f"http://{host}:9002/healthz")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("BYOC_ACCESS_TAILNET", "tailnet-clickhouse", "expected endpoint=namespace/name"),
        ("BYOC_ACCESS_TAILNET", "a=b/c/d", "expected endpoint=namespace/name"),
        ("BYOC_ACCESS_TAILNET", "a=b/../c", "expected endpoint=namespace/name"),
        ("BYOC_ACCESS_TAILNET", "a=b/c,a=b/d", "a is given twice"),
        ("BYOC_ACCESS_KUBERNETES_URL", "https://api/prefix", "expected https://host"),
        ("BYOC_ACCESS_KUBERNETES_URL", "api:6443", "expected https://host"),
    ],
)
def test_a_mistake_in_a_setting_is_reported(name: str, value: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        configure(["access-broker"], REQUIRED | {name: value})


# --- the broker ---


@pytest.fixture
def harness(tmp_path: Path, scaler: ScriptedScaler) -> Harness:
    made = Harness(tmp_path)
    made.tailnet = Tailnet(DEPLOYMENTS, scaler, made.clock)
    return made


async def reconciled(harness: Harness) -> None:
    assert harness.tailnet is not None
    await harness.tailnet.reconcile()


async def test_an_opening_scales_its_endpoints_before_it_creates_users(
    harness: Harness, scaler: ScriptedScaler
) -> None:
    async with harness.running():
        await harness.open_grant(endpoints=["clickhouse"])
        assert scaler.up == {CLICKHOUSE}
        await harness.order(Revoke(id=GRANT_ID, by="anna", comment="done"), "2")
        await reconciled(harness)
        assert scaler.up == set()


async def test_an_opening_fails_if_its_endpoints_cannot_be_scaled(
    harness: Harness, scaler: ScriptedScaler
) -> None:
    scaler.error = "status 403"
    async with harness.running():
        await harness.order(Submit(envelope=request_envelope(endpoints=["clickhouse"])))
        await harness.order(Approve(id=GRANT_ID, by="anna"), "2")
        await harness.passes(1, 3)
        stored = await harness.stored()
        assert (stored.state, stored.ended_because) == (
            State.FAILED,
            "tailnet: clickhouse: status 403",
        )
        assert all(not server.users for server in harness.servers.values())
        assert "opened" not in harness.named()


async def test_an_end_does_not_wait_for_the_kubernetes_api(
    harness: Harness, scaler: ScriptedScaler
) -> None:
    async with harness.running() as broker:
        await harness.open_grant(endpoints=["clickhouse"])
        scaler.gate = asyncio.Event()  # no response ever
        harness.kill_file.touch()
        reconciling = asyncio.create_task(reconciled(harness))
        async with asyncio.timeout(5):
            await harness.passes(1, 3)
        assert [one.state for one in broker.grants] in ([], [State.COLLECTING])
        assert all(not server.users for server in harness.servers.values())
        reconciling.cancel()
        await asyncio.gather(reconciling, return_exceptions=True)


async def test_two_grants_share_an_endpoint_until_the_last_one_ends(
    harness: Harness, scaler: ScriptedScaler
) -> None:
    other = GRANT_ID[:-1] + ("0" if GRANT_ID[-1] != "0" else "1")
    async with harness.running():
        await harness.open_grant(endpoints=["clickhouse"])
        engineer = {"id": "eng-2", "name": "B"}
        await harness.order(
            Submit(
                envelope=request_envelope(id=other, endpoints=["clickhouse"], engineer=engineer)
            ),
            "2",
        )
        await harness.order(Approve(id=other, by="anna"), "3")
        await harness.order(Revoke(id=GRANT_ID, by="anna"), "4")
        await reconciled(harness)
        assert scaler.up == {CLICKHOUSE}
        await harness.order(Revoke(id=other, by="anna"), "5")
        await reconciled(harness)
        assert scaler.up == set()


async def test_an_unexpected_pod_is_a_line_of_the_ledger(
    harness: Harness, scaler: ScriptedScaler
) -> None:
    scaler.replicas[DEPLOYMENTS[METRICS]] = scaler.pods[DEPLOYMENTS[METRICS]] = 1
    async with harness.running() as broker:
        await harness.passes(1)
        await reconciled(harness)
        await harness.passes(31)
        drift = [fact for fact in harness.facts() if fact.fact == "drift"]
        assert [(fact.reason, fact.detail) for fact in drift] == [
            ("tailnet", {"endpoint": METRICS})
        ]
        samples = {
            sample.name: sample.value
            for family in BrokerCollector("access-broker", broker, None).collect()
            for sample in family.samples
        }
        assert samples["byoc_access_tailnet_unexpected_total"] == 1
        assert samples["byoc_access_tailnet_pods"] in {0, 1}


async def test_a_restart_with_an_open_grant_leaves_the_endpoint_up(
    harness: Harness, scaler: ScriptedScaler
) -> None:
    async with harness.running():
        await harness.open_grant(endpoints=["clickhouse"])
    before = len(scaler.calls)
    harness.tailnet = Tailnet(DEPLOYMENTS, scaler, harness.clock)
    await reconciled(harness)
    async with harness.running():
        await harness.passes(1)
        await reconciled(harness)
    assert (DEPLOYMENTS[CLICKHOUSE], 0) not in scaler.calls[before:]
    assert scaler.up == {CLICKHOUSE}


async def test_a_broker_that_closes_at_its_stop_scales_to_0(
    harness: Harness, scaler: ScriptedScaler
) -> None:
    harness.limits = type(harness.limits)(record_seconds=0.5, close_on_stop=True)
    async with harness.running() as broker:
        await harness.open_grant(endpoints=["clickhouse"])
        stopping = asyncio.create_task(BrokerSource(broker, None, harness.clock).finish())
        while not stopping.done():
            await harness.clock.advance(1)
            await asyncio.sleep(0.01)
        await stopping
    assert scaler.up == set()


# --- the program ---


async def test_the_program_scales_the_endpoint_for_the_time_of_the_grant(
    tmp_path: Path, account: Path
) -> None:
    """Over TLS, with the process's gate and its system calls as they are in a pod."""
    context, served = server_context(tmp_path)
    (account / "ca.crt").write_bytes(served.read_bytes())
    program, api = Program(tmp_path), FakeKubernetes("db/tailnet-clickhouse", tls=context)
    async with program.fakes(), api.http:
        environ = {
            "BYOC_ACCESS_TAILNET": "clickhouse=db/tailnet-clickhouse",
            "BYOC_ACCESS_KUBERNETES_URL": api.http.url.replace("localhost", "127.0.0.1"),
            "BYOC_ACCESS_KUBERNETES_DIR": str(account),
        }
        async with program.running(**environ):
            await until(api.patches, program.process)
            assert set(api.patches()) == {("tailnet-clickhouse", 0)}
            await program.order(Submit(envelope=program.request()), "1")
            await program.order(Approve(id=GRANT_ID, by="anna"), "2")
            await until(lambda: "open" in program.plane.states(), program.process)
            assert api.replicas == {"db/tailnet-clickhouse": 1}
            program.kill_switch.touch()
            await until(lambda: api.replicas["db/tailnet-clickhouse"] == 0, program.process)
        assert program.process.returncode == 0
    assert all(isinstance(fact, FactLine) for fact in program.facts())
    assert {request.method for request in api.http.requests} == {"PATCH"}


def test_the_table_of_destinations_names_the_setting_and_the_purpose() -> None:
    core = configure(["access-broker"], REQUIRED).core
    own = Settings(
        policy_file="/p",
        ca_dir="/ca",
        servers={"r0": "https://ch-0.db.svc:8443"},
        password="x",
        events_url="file:///events",
        tailnet={"metrics": "db/tailnet-metrics"},
    )
    (row,) = [
        one
        for one in destinations(core, ClickHouseSettings(), own, {})
        if one.kind is DestinationKind.KUBERNETES
    ]
    assert (row.setting, row.daemon) == ("BYOC_ACCESS_KUBERNETES_URL", "access-broker")
    assert "tailnet" in row.purpose


MALFORMED = (
    "https://hunter1:hunter2@[::1/p?hunter3",
    "https://hunter1:hunter2@h\u2100x/p?hunter3",
    "https://hunter1:hunter2@h:99999/p?hunter3",
    "https://hunter1:hunter2@h:port/p?hunter3",
    "https:///p?hunter3",
)


@pytest.mark.parametrize("url", MALFORMED)
@pytest.mark.parametrize("name", ["EVENTS", "REQUESTS", "KUBERNETES"])
def test_a_malformed_url_is_refused_without_its_user_password_and_query(
    name: str, url: str
) -> None:
    variable = f"BYOC_ACCESS_{name}_URL"
    needed = {"BYOC_ACCESS_TOKEN": "t" * 20, "BYOC_ACCESS_SIGNING_SECRET": f"whsec_{'A' * 43}="}
    with pytest.raises(ConfigError) as caught:
        load([Settings], REQUIRED | needed | {variable: url}, {})
    (mistake,) = caught.value.mistakes
    assert mistake.startswith(f"{variable}: invalid value '")
    assert "): expected https://host[:port]" in mistake
    assert "NFKC" not in mistake
    assert "hunter" not in mistake
