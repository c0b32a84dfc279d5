"""The engineers' network path with real Tailscale and nginx, as the chart configures them.

The namespaces and programs are those of `lab/tailnet`. The pods get the environment, files and
NetworkPolicies of a render of the chart.
"""

import copy
import itertools
import json
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.real.chart import render
from lab.real.chart.render import Manifest
from lab.real.parts import helm
from lab.real.parts.install import ROOT
from lab.tailnet import certificates, environment, policies
from lab.tailnet.environment import (
    API,
    CLUSTER_NAME,
    CONTROL,
    ENGINEER,
    HOSTS,
    METRICS,
    RELAY,
    ROUTER,
    RULES,
    SERVICE,
    Environment,
)
from lab.tailnet.policies import CLUSTER_DNS, NODE_DNS, POD, PROMETHEUS, PROXY, SERVERS
from lab.tailnet.prometheus import SLOW_PATH

URI = f"spiffe://{SERVICE}.byoc/grant/{certificates.GRANT}"
ANSWER = f"{URI} hello\n"
CUT_SECONDS = 0.1  # the median of a few stops, as docs/access-network.md says
LATE_CUT_SECONDS = 1.0  # each of them, on a busy machine
RUNS = 3
EXPIRY_SECONDS = 5.0  # from an order of the tailnet's owner to the end of a connection
LOGOUT_SECONDS = 1.0  # from SIGTERM to the request that ends the node; measured: 0.01 s
PEAK_BYTES = 96 * 1024 * 1024  # of tailscaled with the chart's GOMEMLIMIT, as the page says
BULK_BYTES = {"direct": 300 * 1024 * 1024, "relay": 100 * 1024 * 1024}  # a relay is slower
NOWHERE = {"", "-"}  # in nginx's log: the connection was closed
LOG_SECONDS = 10.0  # until nginx has logged a connection
LIMIT = 8  # tailnet.connectionsPerAddress
HTTP = "GET /api/v1/query?query=up HTTP/1.1\r\nHost: {host}\r\n\r\n"
# What the pods send to the coordination server: each request, and the keys of each object in it.
# The page has the same names.
HTTP_HEADERS = {"Accept-Encoding", "Connection", "Content-Length", "Upgrade", "User-Agent"}
ABOUT_NODE = {
    *("Hostname", "RequestTags", "Services", "NetInfo", "BackendLogID", "NoLogsNoSupport"),
    *("OS", "OSVersion", "Distro", "DistroVersion", "DistroCodeName", "Machine"),
    *("GoArch", "GoArchVar", "GoVersion", "IPNVersion"),
    *("Container", "Env", "Desktop", "Userspace", "UserspaceRouter"),
    *("AppConnector", "StateEncrypted"),
}
ABOUT_NETWORK = {
    *("PreferredDERP", "DERPLatency", "WorkingUDP", "WorkingIPv6", "OSHasIPv6", "WorkingICMPv4"),
    *("UPnP", "PMP", "PCP", "MappingVariesByDestIP"),
}
SENT = {
    "GET /key": {"v"},
    "POST /ts2021": {"X-Tailscale-Handshake"},
    "POST /machine/register": {
        *("Version", "NodeKey", "OldNodeKey", "NLKey", "NodeKeySignature"),
        *("Auth", "Expiry", "Ephemeral", "Followup", "Hostinfo", "Ts-Lb"),
    },
    "POST /machine/map": {
        *("Version", "NodeKey", "DiscoKey", "Hostinfo", "Endpoints", "EndpointTypes", "Ts-Lb"),
        *("Compress", "KeepAlive", "Stream", "OmitPeers", "DebugFlags"),
    },
    "Auth": {"AuthKey"},
    "Hostinfo": ABOUT_NODE,
    "NetInfo": ABOUT_NETWORK,
    "Services": {"Proto", "Port"},
}
NOT_HERE = {"Distro", "DistroVersion", "DistroCodeName"}  # the lab's pod has no /etc/os-release
DIRECT_ONLY = {"DERPLatency", "MappingVariesByDestIP"}  # they need UDP
NO_TIME = "0001-01-01T00:00:00Z"
POD_NAME = "byoc-agents-tailnet-clickhouse"
PAGE = ROOT / "docs" / "access-network.md"
KUBECTL_VERSION = ("version", "--client", "--output=json")


@pytest.fixture(scope="module")
def charts(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[Manifest]]:
    """Render the chart for the namespaces of the lab."""
    place = tmp_path_factory.mktemp("values")

    def rendered(mode: str = "relay", **options: str) -> list[Manifest]:
        file = place / f"{mode}{len(options)}.yaml"
        file.write_text(yaml.safe_dump(environment.values(mode, **options)))
        return render.manifests(file)

    return rendered


@pytest.fixture(scope="module")
def lab(
    charts: Callable[..., list[Manifest]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Environment]:
    with environment.built(tmp_path_factory.mktemp("tn"), charts()) as found:
        yield found


@pytest.fixture
def relayed(lab: Environment, charts: Callable[..., list[Manifest]]) -> Iterator[str]:
    """Run the pod of ClickHouse's endpoint, by relay only; give its address in the tailnet."""
    yield lab.start_pod("clickhouse", charts())
    lab.stop_pod()


@pytest.fixture
def direct(lab: Environment, charts: Callable[..., list[Manifest]]) -> Iterator[str]:
    """Run the pod with `mode: direct`."""
    yield lab.start_pod("clickhouse", charts("direct"))
    lab.stop_pod()


def path_of(lab: Environment) -> tuple[str, str]:
    """Return the engineer's current path to the endpoint: (address, "") or ("", relay)."""
    peer = lab.peer(HOSTS["clickhouse"])
    assert peer is not None
    return str(peer["CurAddr"]), str(peer["Relay"])


def reach_directly(lab: Environment, address: str) -> None:
    """Send pings until the path is direct, as traffic would."""
    lab.tailscale("engineer", "ping", "--c=30", "--timeout=2s", "--until-direct", address)


# --- the path ---


def test_mutual_tls_passes_through_the_relay(lab: Environment, relayed: str) -> None:
    """The certificate reaches the server untouched, by name, and no UDP is used."""
    assert lab.ask(relayed)["answer"] == ANSWER
    http = lab.ask(relayed, 8444, send="POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello")
    assert http["answer"].endswith(ANSWER)
    assert path_of(lab) == ("", "lab")


def test_mutual_tls_passes_directly(lab: Environment, direct: str) -> None:
    reach_directly(lab, direct)
    assert lab.ask(direct)["answer"] == ANSWER
    address, _ = path_of(lab)
    assert address.startswith(f"{policies.PUBLIC}:"), "the cluster's public address"


def test_an_open_connection_falls_back_to_the_relay(lab: Environment, direct: str) -> None:
    """Measured: seconds of silence at the change, then the same connection goes on."""
    reach_directly(lab, direct)
    with lab.hold(direct) as held:
        policies.block_udp(ROUTER, blocked=True)
        try:
            deadline = time.monotonic() + 40
            while path_of(lab)[0] and time.monotonic() < deadline:
                assert "answer" in held.next()
            assert path_of(lab) == ("", "lab")
            assert held.answer_from_now_on() == ANSWER
        finally:
            policies.block_udp(ROUTER, blocked=False)
        times = [line["at"] for line in held.lines]
        longest = max(after - before for before, after in itertools.pairwise(times))
        assert longest < 20, "a client's timeout has to be longer"


def test_nginx_logs_the_engineers_address_and_the_name(lab: Environment, relayed: str) -> None:
    lab.ask(relayed)
    own = lab.tailscale("engineer", "ip", "-4").strip()
    found = [one for one in lab.proxy_log() if one.get("to") == f"{SERVERS}:9441"]
    assert found[-1]["engineer"] == own
    assert found[-1]["server_name"] == environment.REPLICA
    assert found[-1]["sent_bytes"] > 0


# --- who is refused ---


@pytest.mark.parametrize(
    "certificate", ["", "expired", "foreign"], ids=["none", "expired", "foreign"]
)
@pytest.mark.parametrize("port", [9441, 8444])
def test_a_peer_without_a_valid_certificate_is_refused(
    lab: Environment, relayed: str, port: int, certificate: str
) -> None:
    """By ClickHouse's listener itself: the connection reaches it, and no answer comes."""
    with logged(lab, to={f"{SERVERS}:{port}"}):
        assert "answer" not in lab.ask(relayed, port, certificate=certificate)


@pytest.mark.parametrize("name", ["other.svc-1.byoc", ""], ids=["wrong", "none"])
def test_a_peer_with_a_wrong_name_reaches_no_server(
    lab: Environment, relayed: str, name: str
) -> None:
    with logged(lab, to=NOWHERE):
        assert "error" in lab.ask(relayed, name=name)


def test_a_peer_without_the_tag_sees_nothing(lab: Environment, relayed: str) -> None:
    lab.start_engineer("stranger", "tag:other")
    try:
        assert lab.peers("stranger") == []
        assert lab.dial(relayed, 9441, "stranger") != "open"
    finally:
        lab.stop_engineer("stranger")


def test_more_connections_than_the_limit_are_closed(lab: Environment, relayed: str) -> None:
    """Per address in the tailnet: nginx sees one pod for all engineers."""
    with ExitStack() as stack:
        for _ in range(LIMIT):
            stack.enter_context(lab.hold(relayed))
        assert "error" in lab.ask(relayed)
    assert lab.ask(relayed)["answer"] == ANSWER


@pytest.fixture
def colleague(lab: Environment) -> Iterator[str]:
    """Join with a second node of the engineers' tag; give its namespace."""
    lab.start_engineer("stranger", environment.ENGINEER_TAG)
    yield "stranger"
    lab.stop_engineer("stranger")


def test_another_engineer_is_served_while_one_is_at_the_limit(
    lab: Environment, relayed: str, colleague: str
) -> None:
    with ExitStack() as stack:
        for _ in range(LIMIT):
            stack.enter_context(lab.hold(relayed))
        assert "error" in lab.ask(relayed)
        assert lab.ask(relayed, place=colleague)["answer"] == ANSWER
        assert "error" in lab.ask(relayed)


# --- the ends ---


def seconds_until_cut(
    lab: Environment, address: str, number: signal.Signals = signal.SIGTERM
) -> float:
    """Stop the pod under an open connection; return when its last answer came after the signal.

    A line is sent each 10 ms. The engineer sees silence: nothing closes the connection.
    """
    with lab.hold(address, timeout=2.0, interval=0.01) as held:
        for _ in range(20):
            assert "answer" in held.next()
        began = time.monotonic()
        lab.stop_pod(number)
        held.until_error()
    answers = [line["at"] for line in held.lines if "answer" in line]
    assert lab.dial(address, 9441) != "open"
    return float(max(answers[-1] - began, 0.0))


@pytest.mark.parametrize("mode", ["relay", "direct"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
def test_stopping_the_pod_cuts_an_open_connection(
    lab: Environment, charts: Callable[..., list[Manifest]], number: signal.Signals, mode: str
) -> None:
    """SIGTERM is what a scaling to 0 sends. SIGKILL alone is what the loss of a node does."""
    found = []
    for _ in range(RUNS):
        address = lab.start_pod("clickhouse", charts(mode))
        if mode == "direct":
            reach_directly(lab, address)
        found.append(seconds_until_cut(lab, address, number))
    print(f"{mode}, {number.name}: last answer after", [f"{one:.3f} s" for one in found])
    if number == signal.SIGTERM:  # the lab kills the programs one after another
        assert statistics.median(found) < CUT_SECONDS, found
    assert max(found) < LATE_CUT_SECONDS, found


def test_a_silent_coordination_server_does_not_delay_the_cut(
    lab: Environment, charts: Callable[..., list[Manifest]]
) -> None:
    """The program waits for an answer to its logout, 5 s, but ends its connections before that."""
    documents = charts()
    address = lab.start_pod("clickhouse", documents)
    spec = environment.pod_of(documents, POD_NAME)
    began = time.monotonic()
    with lab.silent_control():
        assert seconds_until_cut(lab, address) < LATE_CUT_SECONDS
        taken = time.monotonic() - began
    assert taken < spec["terminationGracePeriodSeconds"], "the kubelet would not have killed it"


def test_a_change_of_the_tailnets_policy_is_no_end(lab: Environment, relayed: str) -> None:
    """An open connection goes on, so it is not counted as an end of access."""
    with lab.hold(relayed) as held:
        lab.allow([{**RULES[0], "Ports": [9443]}])
        try:
            assert lab.dial(relayed, 9441) != "open"
            assert held.answer_from_now_on() == ANSWER
        finally:
            lab.allow(RULES)


def test_a_change_of_serve_is_no_end(lab: Environment, relayed: str) -> None:
    """Neither is this. The chart's pods restart with a changed file, which is one."""
    serve = lab.directory / "files-pod/serve/serve.json"
    with lab.hold(relayed) as held:
        serve.write_text(json.dumps({"TCP": {}}))
        lab.running["pod"].wait_for(lambda: lab.dial(relayed, 9441) != "open", "the change")
        assert held.answer_from_now_on() == ANSWER


def test_expiry_by_the_tailnets_owner_cuts_at_once(lab: Environment, relayed: str) -> None:
    with lab.hold(relayed, timeout=EXPIRY_SECONDS) as held:
        lab.order("expire/engineer")
        assert "error" in held.until_error()
    lab.stop_engineer()
    lab.start_engineer()


def test_without_the_coordination_server_connections_stay_and_no_pod_starts(
    lab: Environment, charts: Callable[..., list[Manifest]]
) -> None:
    address = lab.start_pod("clickhouse", charts())
    with lab.hold(address) as held:
        lab.running.pop("control").stop()
        assert lab.ask(address)["answer"] == ANSWER
        assert held.answer_from_now_on() == ANSWER
    lab.stop_pod()
    assert lab.dial(address, 9441) != "open"
    lab.start_endpoint("clickhouse", charts())
    assert not lab.healthy()
    lab.stop_pod()
    lab.start_control()  # it knows no node any more
    lab.stop_engineer()
    lab.start_engineer()


# --- the node in the tailnet ---


def registrations(lab: Environment) -> list[dict[str, Any]]:
    """Return the requests with which pods entered and left the tailnet, with their time."""
    found = [one for one in lab.requests_of_pods() if one["Path"] == "/machine/register"]
    return [one["Body"] | {"At": one["At"]} for one in found]


def has_node(lab: Environment, key: str) -> bool:
    return key in {one["Key"] for one in lab.nodes(HOSTS["clickhouse"])}


def test_the_node_is_ephemeral_and_tagged_and_a_stopped_pod_logs_it_out(
    lab: Environment, charts: Callable[..., list[Manifest]]
) -> None:
    lab.start_pod("clickhouse", charts())
    entered = registrations(lab)[-1]
    assert entered["Ephemeral"] is True
    assert entered["Hostinfo"]["RequestTags"] == [environment.ENDPOINT_TAG]
    assert entered["Expiry"] == NO_TIME
    (node,) = [one for one in lab.nodes(HOSTS["clickhouse"]) if one["Key"] == entered["NodeKey"]]
    assert node == {
        "Key": entered["NodeKey"], "Name": HOSTS["clickhouse"], "Ephemeral": True,
        "Tags": [environment.ENDPOINT_TAG], "Online": True,
    }  # fmt: skip
    began = time.time()
    lab.stop_pod()
    assert not has_node(lab, entered["NodeKey"])
    left = registrations(lab)[-1]
    assert left["NodeKey"] == entered["NodeKey"]
    assert left["Expiry"].startswith("1970-"), "a key that has expired: the node's own logout"
    print(f"logged out {left['At'] - began:.3f} s after SIGTERM")
    assert left["At"] - began < LOGOUT_SECONDS


def test_the_node_of_a_killed_pod_stays_until_the_server_removes_it(
    lab: Environment, charts: Callable[..., list[Manifest]]
) -> None:
    """The time is this server's own. Tailscale's documents 30 minutes to 48 hours."""
    lab.start_pod("clickhouse", charts())
    before = registrations(lab)
    key = before[-1]["NodeKey"]
    began = time.monotonic()
    lab.stop_pod(signal.SIGKILL)
    assert has_node(lab, key)
    lab.running["control"].wait_for(lambda: not has_node(lab, key), "the removal")
    assert time.monotonic() - began > environment.ABSENCE_SECONDS / 2
    assert registrations(lab) == before, "nothing logged it out"


def test_the_pod_of_a_removed_node_still_reports_that_it_is_healthy(
    lab: Environment, relayed: str
) -> None:
    """So the broker does not ask for it: its gate refuses the page (test_access_tailnet.py)."""
    key = registrations(lab)[-1]["NodeKey"]
    lab.order(f"remove/{HOSTS['clickhouse']}")
    assert not has_node(lab, key)
    before = len(lab.requests_of_pods())
    refused = before + 3  # the pod has noticed that it gets no network map any more
    lab.running["pod"].wait_for(lambda: len(lab.requests_of_pods()) >= refused, "its requests")
    assert lab.dial(relayed, 9441) != "open"
    assert lab.healthy()


@pytest.mark.parametrize("mode", ["direct", "relay"])
def test_the_memory_of_a_bulk_transfer_is_bounded(
    lab: Environment, charts: Callable[..., list[Manifest]], mode: str
) -> None:
    """By GOMEMLIMIT of the chart. The larger figure without it is why it is set."""
    peaks = []
    for documents in (charts(mode), without_variable(charts(mode), "GOMEMLIMIT")):
        address = lab.start_pod("clickhouse", documents)
        try:
            if mode == "direct":
                reach_directly(lab, address)
            seconds = lab.download(address, BULK_BYTES[mode])
            peaks.append(lab.peak_memory_bytes())
        finally:
            lab.stop_pod()
        rate = BULK_BYTES[mode] * 8 / 1e6 / seconds
        print(f"{mode}: {peaks[-1] / 2**20:.0f} MiB at most, {rate:.0f} Mbit/s")
    limited, unlimited = peaks
    assert limited < PEAK_BYTES
    assert unlimited > limited


def without_variable(documents: list[Manifest], name: str) -> list[Manifest]:
    """Return the manifests without a variable of the pod of ClickHouse's endpoint."""
    changed = copy.deepcopy(documents)
    for one in changed:
        if (one["kind"], one["metadata"]["name"]) == ("Deployment", POD_NAME):
            (container,) = one["spec"]["template"]["spec"]["containers"]
            container["env"] = [each for each in container["env"] if each["name"] != name]
    assert changed != documents
    return changed


# --- what else can be reached ---

OTHERS = [22, 80, 443, 6443, 8081, 9002, 9443]


def test_only_the_served_ports_answer(lab: Environment, relayed: str) -> None:
    """Whatever the tailnet's owner allows: a port without an entry in serve.json is refused."""
    lab.allow([{**RULES[0], "Ports": [9441, 8444, *OTHERS]}])
    try:
        assert [port for port in (9441, 8444) if lab.dial(relayed, port) != "open"] == []
        assert [port for port in OTHERS if lab.dial(relayed, port) == "open"] == []
    finally:
        lab.allow(RULES)


def test_a_listener_on_the_pods_loopback_would_be_reached(lab: Environment, relayed: str) -> None:
    """The reason why the pod has one container, and its health page is on the pod's address."""
    listening = (
        "import socket;s=socket.create_server(('127.0.0.1',7777));print(1,flush=True);s.accept()"
    )
    lab.allow([{**RULES[0], "Ports": [7777]}])
    command = [*environment.inside("pod"), sys.executable, "-c", listening]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        assert lab.dial(relayed, 7777) == "open"
    finally:
        process.kill()
        process.communicate()
        lab.allow(RULES)


def test_nothing_on_the_pods_loopback_listens(lab: Environment, relayed: str) -> None:
    assert relayed
    sockets = lab.output("pod", "ss", "-Hltun").splitlines()
    addresses = {line.split()[4] for line in sockets}
    assert not {one for one in addresses if one.startswith(("127.", "[::1]"))}
    assert f"{POD}:9002" in addresses


def test_the_peer_api_gives_no_name_of_the_cluster(lab: Environment, relayed: str) -> None:
    """It answers although the policy does not name its port, with the resolver of the pod."""
    peer = lab.peer(HOSTS["clickhouse"])
    assert peer is not None
    assert relayed in peer["TailscaleIPs"]
    (url,) = (one for one in peer["PeerAPIURL"] if "[" not in one)
    assert lab.asked_names("cluster-dns") == set()
    names = {CLUSTER_NAME, "peer-api.example.com"}
    assert not names & lab.asked_names("node-dns")
    for name in names:
        query = f"{url}/dns-query?q={name}&t=A"
        answer = lab.output("engineer", "curl", "-s", "-m", "5", query, check=False)
        assert "10.100.0.1" not in answer
    assert lab.asked_names("node-dns") >= names, "the pod did ask its own resolver"
    assert lab.asked_names("cluster-dns") == set(), "the cluster's DNS was never asked"
    assert lab.output("engineer", "curl", "-s", "-m", "5", url, check=False), "it does answer"
    upload = ["curl", "-s", "-m", "5", "-X", "PUT", "-d", "x", f"{url}/v0/put/file"]
    assert "200" not in lab.output("engineer", *upload, "-o", "/dev/null", "-w", "%{http_code}")


def test_the_node_offers_no_route_no_exit_and_no_ssh(lab: Environment, relayed: str) -> None:
    peer = lab.peer(HOSTS["clickhouse"])
    assert peer is not None
    assert [one.split("/")[0] for one in peer["AllowedIPs"]] == peer["TailscaleIPs"]
    assert relayed in peer["TailscaleIPs"]
    assert not peer["ExitNodeOption"]
    assert not peer.get("sshHostKeys")
    assert not peer.get("PrimaryRoutes")


def test_the_cluster_is_not_reachable_from_the_engineer_or_the_pod(
    lab: Environment, relayed: str
) -> None:
    assert relayed
    for address, port in ((PROXY, 9441), (SERVERS, 9441), (PROMETHEUS, 9090), (POD, 9002)):
        assert lab.dial(address, port, "engineer", 1) != "open"
    for address, port in ((SERVERS, 9441), (PROMETHEUS, 9090), (PROXY, 8081), (PROXY, 9443)):
        assert lab.dial(address, port, "pod", 1) != "open", "the NetworkPolicy of the pod"
    assert lab.dial(CLUSTER_DNS, 53, "proxy") == "open", "it listens, and nginx may ask it"
    for place in ("pod", "engineer"):
        assert lab.dial(CLUSTER_DNS, 53, place, 1) != "open"
    assert lab.dial(PROXY, 9441, "pod") == "open"
    assert lab.dial(SERVERS, 9441, "pod", 1) != "open"
    for place in ("vendor", "stranger"):
        assert lab.dial(PROXY, 9441, place, 1) != "open"


def test_the_engineers_machine_takes_no_connection_from_the_cluster(
    lab: Environment, relayed: str
) -> None:
    assert relayed
    assert lab.dial(ENGINEER, 22, "pod", 1) != "open"


# --- the other endpoints ---


def test_the_api_server_is_reached_by_its_name_with_its_own_tls(
    lab: Environment, charts: Callable[..., list[Manifest]]
) -> None:
    address = lab.start_pod("kubernetes", charts())
    try:
        text = f"GET /readyz HTTP/1.1\r\nHost: {API}\r\n\r\n"
        answer = lab.ask(address, 6443, name=API, send=text)["answer"]
        assert answer.startswith("HTTP/1.1 200")
        assert URI in answer
        assert "error" in lab.ask(address, 6443)
        assert lab.dial(address, 9441) != "open"
    finally:
        lab.stop_pod()


@pytest.fixture
def metrics(lab: Environment, charts: Callable[..., list[Manifest]]) -> Iterator[str]:
    yield lab.start_pod("metrics", charts())
    lab.stop_pod()


def test_metrics_are_read_with_a_certificate(lab: Environment, metrics: str) -> None:
    text = HTTP.format(host=METRICS)
    with logged(lab, verify={"SUCCESS"}):
        answer = lab.ask(metrics, 9443, name=METRICS, send=text)["answer"]
    assert answer.startswith("HTTP/1.1 200")
    assert '"path": "/api/v1/query?query=up"' in answer


def test_more_requests_for_metrics_than_the_limit_are_refused_to_that_engineer_only(
    lab: Environment, metrics: str, colleague: str
) -> None:
    """Nginx counts a connection while one of its requests runs: each of these asks for 20 s."""
    text = f"GET {SLOW_PATH} HTTP/1.1\r\nHost: {METRICS}\r\n\r\n"
    asked = {"name": METRICS, "send": text, "timeout": 30.0}
    usual = {"name": METRICS, "send": HTTP.format(host=METRICS)}
    with ThreadPoolExecutor(LIMIT) as threads:
        slow = [threads.submit(lab.ask, metrics, 9443, **asked) for _ in range(LIMIT)]
        lab.running["proxy"].wait_for(lambda: _slow_requests(lab) == LIMIT, "the requests")
        assert lab.ask(metrics, 9443, **usual)["answer"].startswith("HTTP/1.1 503")
        answer = lab.ask(metrics, 9443, place=colleague, **usual)["answer"]
        assert answer.startswith("HTTP/1.1 200")
        assert not any(one.done() for one in slow)
        assert all(one.result()["answer"].startswith("HTTP/1.1 200") for one in slow)
    assert lab.ask(metrics, 9443, **usual)["answer"].startswith("HTTP/1.1 200")


def _slow_requests(lab: Environment) -> int:
    return (lab.directory / "prometheus.log").read_text().count("slow")


@pytest.mark.parametrize("certificate", ["", "expired", "foreign"])
def test_metrics_are_refused_without_a_valid_certificate(
    lab: Environment, metrics: str, certificate: str
) -> None:
    text = HTTP.format(host=METRICS)
    found = lab.ask(metrics, 9443, name=METRICS, certificate=certificate, send=text)
    assert found.get("answer", "").startswith("HTTP/1.1 400"), found


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("GET /api/v1/admin/tsdb/delete_series", 404),
        ("GET /api/v1/query/../admin/tsdb/snapshot", 404),
        ("GET /-/quit", 404),
        ("DELETE /api/v1/query", 403),
    ],
)
def test_other_parts_of_prometheus_are_not_served(
    lab: Environment, metrics: str, line: str, status: int
) -> None:
    text = f"{line} HTTP/1.1\r\nHost: {METRICS}\r\n\r\n"
    answer = lab.ask(metrics, 9443, name=METRICS, send=text)["answer"]
    assert answer.startswith(f"HTTP/1.1 {status}")


def test_metrics_are_not_served_by_another_name(lab: Environment, metrics: str) -> None:
    assert "UNRECOGNIZED_NAME" in lab.ask(metrics, 9443, name="x.svc-1.byoc")["error"]


# --- the commands of docs/access-network.md ---


def commands(*program: str) -> list[str]:
    """Return the page's blocks of commands of a program."""
    section = PAGE.read_text().partition("## How an engineer connects\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```sh\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    return [block for block in blocks if block.startswith(program)]


@contextmanager
def logged(lab: Environment, **wanted: set[str]) -> Iterator[None]:
    """Wait for nginx's line about a connection that is made inside; it comes after its end."""
    before = len(lab.proxy_log())
    yield

    def found() -> bool:
        new = lab.proxy_log()[before:]
        return any(all(one[name] in texts for name, texts in wanted.items()) for one in new)

    deadline = time.monotonic() + LOG_SECONDS
    while not found():
        assert time.monotonic() < deadline, lab.proxy_log()[before:]
        time.sleep(0.02)


def run_as_written(
    lab: Environment, script: str, address: str, **instead: str
) -> subprocess.CompletedProcess[str]:
    """Run a block on the engineer's machine, with the address and the user that it leaves open.

    `instead` replaces other words of it.
    """
    folder = lab.directory / "engineer"
    folder.mkdir(exist_ok=True)
    for name, source in (
        ("certificate.pem", "good.pem"),
        ("engineer.key", "good.pem"),
        ("server-ca.crt", "server-ca.crt"),
    ):
        (folder / name).write_bytes((lab.directory / source).read_bytes())
    assert "ENDPOINT" in script
    for word, value in {"ENDPOINT": address, "USER": "byoc_grant_1", **instead}.items():
        script = script.replace(word, value)
    kubectl = helm.kubectl().parent
    head = f"cd {folder}; export KUBECONFIG={folder}/config PATH={kubectl}:$PATH; set -e\n"
    return lab.call("engineer", "sh", "-c", head + script)


def test_the_command_for_clickhouse_works_as_written(lab: Environment, relayed: str) -> None:
    """With another name, and without one, nginx closes the connection: curl exits with 35."""
    (script,) = commands("curl --connect-to r0")
    with logged(lab, server_name={environment.REPLICA}):
        done = run_as_written(lab, script, relayed)
    assert (done.returncode, done.stdout) == (0, f"{URI} SELECT 1\n"), done.stderr
    wrong = {"r0.ch.svc-1.byoc": "r1.ch.svc-1.byoc"}
    with logged(lab, server_name={"r1.ch.svc-1.byoc"}, to=NOWHERE):
        assert run_as_written(lab, script, relayed, **wrong).returncode == 35
    without = {"r0.ch.svc-1.byoc": relayed}
    with logged(lab, server_name=NOWHERE, to=NOWHERE):
        assert run_as_written(lab, script, relayed, **without).returncode == 35


def test_the_command_for_metrics_works_as_written(lab: Environment, metrics: str) -> None:
    (script,) = commands("curl --connect-to metrics")
    done = run_as_written(lab, script, metrics)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["path"] == "/api/v1/query?query=up"
    wrong = {"metrics.svc-1.byoc": "r0.ch.svc-1.byoc"}
    assert run_as_written(lab, script, metrics, **wrong).returncode == 35


def test_the_commands_for_the_api_server_work_as_written(
    lab: Environment, charts: Callable[..., list[Manifest]]
) -> None:
    """The kubeconfig has a login and the cluster's authority before, as that of EKS has."""
    (script,) = commands("kubectl")
    before = (
        "kubectl config set-cluster mine --server=https://unused:443"
        " --certificate-authority=server-ca.crt\n"
        "kubectl config set-credentials me --client-certificate=certificate.pem"
        " --client-key=engineer.key\n"
        "kubectl config set-context it --cluster=mine --user=me\n"
        "kubectl config use-context it\n"
    )
    address = lab.start_pod("kubernetes", charts())
    try:
        done = run_as_written(lab, before + script, address, CLUSTER="mine")
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith(f"{URI} \n")
        for wrong in ("--tls-server-name=other.svc-1.byoc", ""):
            changed = script.replace(f"--tls-server-name={API}", wrong)
            with logged(lab, to=NOWHERE):
                done = run_as_written(lab, before + changed, address, CLUSTER="mine")
            assert done.returncode != 0, done.stdout
    finally:
        lab.stop_pod()


def test_the_page_names_the_tested_versions_and_the_command_that_was_not_run(
    lab: Environment,
) -> None:
    page = " ".join(PAGE.read_text().split())
    version = lab.output("engineer", "curl", "--version").split()[1].rpartition(".")[0]
    client = json.loads(lab.output("engineer", str(helm.kubectl()), *KUBECTL_VERSION))
    short = "{major}.{minor}".format_map(client["clientVersion"])
    assert f"curl {version} and kubectl {short}" in page
    (script,) = commands("clickhouse-client")
    assert "**Not run**: `clickhouse-client`" in page
    assert f"--tls-sni-override {environment.REPLICA}" in script


# --- what the tailnet learns ---


def sent_names(found: list[dict[str, Any]]) -> dict[str, set[str]]:
    """Return the names in requests, as SENT has them. The headers of HTTP itself are left out."""
    names: dict[str, set[str]] = {}
    for one in found:
        called = f"{one['Method']} {one['Path']}"
        own = names.setdefault(called, set())
        own |= {*(one["Query"] or ()), *one["Headers"]} - HTTP_HEADERS
        if one["Encrypted"]:
            add_keys(names, called, one["Body"])
    return names


def add_keys(names: dict[str, set[str]], called: str, value: object) -> None:
    """Add the keys of an object, and of the objects in it. A latency is by relay, not by field."""
    for each in value if isinstance(value, list) else [value]:
        if isinstance(each, dict) and called != "DERPLatency":
            names.setdefault(called, set()).update(each)
            for key, inner in each.items():
                add_keys(names, key, inner)


def compare_with_page(names: dict[str, set[str]], missing: set[str]) -> None:
    """Fail for a request or a name that SENT does not have, and for one that was not sent."""
    assert names.keys() == SENT.keys()
    for called, found in names.items():
        assert SENT[called] - missing <= found <= SENT[called], called


def test_what_the_pod_sends_to_the_coordination_server(
    lab: Environment, charts: Callable[..., list[Manifest]]
) -> None:
    """From its start to its end. The page has this list: what a new version adds fails here."""
    before = len(lab.requests_of_pods())
    address = lab.start_pod("clickhouse", charts())
    assert lab.ask(address)["answer"] == ANSWER
    lab.running["pod"].wait_for(lambda: "Endpoints" in last_message(lab), "its addresses")
    lab.stop_pod()
    found = lab.requests_of_pods()[before:]
    compare_with_page(sent_names(found), NOT_HERE | DIRECT_ONLY)
    assert {one["Path"] for one in found if not one["Encrypted"]} == {"/key", "/ts2021"}
    messages = [one["Body"] for one in found if one["Encrypted"]]
    about: dict[str, Any] = {}
    for message in messages:
        about |= message["Hostinfo"] or {}
    assert about["Hostname"] == HOSTS["clickhouse"]
    assert about["RequestTags"] == [environment.ENDPOINT_TAG]
    assert about["NoLogsNoSupport"] is True
    services = {one["Proto"] for one in about.get("Services") or ()}
    assert services <= {"peerapi4", "peerapi6", "peerapi-dns-proxy"}, "no service of the pod"
    assert not about["NetInfo"]["WorkingUDP"]
    assert SERVERS not in json.dumps(found), "no address of another pod"
    endpoints = {one for message in messages for one in message.get("Endpoints") or ()}
    assert {one.rpartition(":")[0] for one in endpoints} == {POD}, "and no public one"


def last_message(lab: Environment) -> dict[str, Any]:
    """Return the last message of a pod; empty before the first one."""
    found = [one["Body"] for one in lab.requests_of_pods() if one["Path"] == "/machine/map"]
    return dict(found[-1]) if found else {}


def test_the_coordination_server_may_ask_for_more_but_not_for_serial_numbers(
    lab: Environment, relayed: str
) -> None:
    """It may read the preferences, whose private keys are zeros there, and the network map."""
    assert relayed
    host = HOSTS["clickhouse"]
    posture = answer_to(lab, f"question/{host}/posture/identity")
    assert json.loads(posture) == {"PostureDisabled": True}
    preferences = json.loads(answer_to(lab, f"question/{host}/debug/prefs"))
    assert preferences["Hostname"] == host
    keys = re.findall(r'"(?:privkey|nlpriv):(\w+)"', json.dumps(preferences))
    assert {digit for key in keys for digit in key} == {"0"}
    assert environment.ENGINEER_TAG in answer_to(lab, f"question/{host}/debug/netmap")


def answer_to(lab: Environment, question: str) -> str:
    """Let the coordination server ask the pod; return the body of the answer."""

    def answers() -> list[dict[str, Any]]:
        return [one for one in lab.requests_of_pods() if one["Path"].startswith("/c2n/")]

    before = len(answers())
    lab.order(question)
    lab.running["pod"].wait_for(lambda: len(answers()) > before, question)
    head, _, body = answers()[-1]["Body"].partition("\r\n\r\n")
    assert " 200 " in head.partition("\r\n")[0], head
    return str(body)


def test_the_page_has_every_name_and_no_other() -> None:
    section = PAGE.read_text().partition("## What the tailnet learns")[2].partition("\n## ")[0]
    table = section.partition("| request or object")[2].partition("\n\n")[0]
    rows = [line.split("|")[1:3] for line in table.splitlines()[2:]]
    found: dict[str, set[str]] = {}
    for where, names in rows:
        for called in re.findall(r"`([^`]+)`", where):
            found.setdefault(called, set()).update(re.findall(r"`([^`]+)`", names))
    assert found == SENT


def test_what_the_pod_sends_and_tries_in_direct_mode(
    lab: Environment, charts: Callable[..., list[Manifest]]
) -> None:
    """The cluster's public address in addition, and UDP to the relay and the engineer."""
    before = len(lab.requests_of_pods())
    address = lab.start_pod("clickhouse", charts("direct"))
    reach_directly(lab, address)
    assert lab.ask(address)["answer"] == ANSWER
    tried = {one for one in policies.tried(ROUTER) if one[0] != NODE_DNS}
    lab.stop_pod()
    found = lab.requests_of_pods()[before:]
    compare_with_page(sent_names(found), NOT_HERE | {"MappingVariesByDestIP"})
    messages = [one["Body"] for one in found if one["Encrypted"]]
    endpoints = {one for message in messages for one in message.get("Endpoints") or ()}
    assert {one.rpartition(":")[0] for one in endpoints} == {POD, policies.PUBLIC}
    engineers = {one for one in tried if one[:2] == (ENGINEER, "udp")}
    assert engineers
    assert tried - engineers == {
        (CONTROL, "tcp", 443),
        (RELAY, "tcp", 443),
        (RELAY, "udp", 3478),
        (policies.PROXY_SERVICE, "tcp", 9441),
    }


def test_which_hosts_the_pod_tries(lab: Environment, relayed: str) -> None:
    """Relay only: the coordination server, the relay, nginx, the nodes' resolver."""
    assert lab.ask(relayed)["answer"] == ANSWER
    found = {(host, protocol, port) for host, protocol, port in policies.tried(ROUTER)}
    expected = {(CONTROL, "tcp", 443), (RELAY, "tcp", 443), (policies.PROXY_SERVICE, "tcp", 9441)}
    blocked = {(RELAY, "udp", 3478)}  # STUN; the policy drops it
    assert expected <= found
    others = {one for one in found - expected - blocked if one[0] != NODE_DNS}
    assert {one for one in others if one[1] == "udp" and one[0] == ENGINEER} == others, others


def test_with_tailscales_own_server_it_asks_for_these_names(
    lab: Environment, charts: Callable[..., list[Manifest]]
) -> None:
    """Nothing answers here. No log server is asked for, and no name of the cluster."""
    before = lab.asked_names("node-dns")
    documents = charts(login_server="")
    policies.load(ROUTER, documents, "clickhouse")
    lab.start_endpoint("clickhouse", documents)

    def beyond() -> set[str]:
        return {host for host, _, port in policies.tried(ROUTER) if port == 443}

    lab.running["pod"].wait_for(lambda: bool(beyond()), "a connection by a built-in address")
    lab.stop_pod()
    names = {"controlplane.tailscale.com", "login.tailscale.com"}
    assert lab.asked_names("node-dns") - before <= names
    assert "controlplane.tailscale.com" in lab.asked_names("node-dns")
    assert lab.asked_names("cluster-dns") == set()
    found = policies.tried(ROUTER)
    assert {host for host, _, port in found if port == 53} == {NODE_DNS}
    gateway = POD.rpartition(".")[0] + ".1"
    assert not {gateway, CLUSTER_DNS} & {host for host, *_ in found}, "and no port mapping"


def test_the_pod_has_no_right_and_asks_no_kubernetes(lab: Environment, relayed: str) -> None:
    assert relayed
    status = Path(f"/proc/{lab.running['pod'].process.pid}/status").read_text()
    fields = dict(line.split(":\t") for line in status.splitlines() if ":\t" in line)
    assert fields["Uid"].split() == ["65532"] * 4
    assert {fields[name] for name in ("CapEff", "CapPrm", "CapBnd")} == {"0000000000000000"}
    assert fields["NoNewPrivs"] == "1"
    assert "10.100.0.1" not in {host for host, *_ in policies.tried(ROUTER)}
