"""`policy egress-rules --uid` by the kernel: nft, a network namespace, several uids."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from byoc_agents.policy import cli
from lab.real.chart import render
from lab.real.chart.pods import pods
from lab.real.netlab.namespaces import Namespace, run
from lab.real.netlab.pair import HELLO, OTHER, POD, RESOLVER, S3, SQS, pair
from lab.real.parts import docker, nft
from lab.real.parts.docker import BASE, Container, Engine
from lab.real.parts.process import PartError

pytestmark = pytest.mark.real

DAEMON, CLICKHOUSE, ANOTHER = 65532, 101, 1000
FAMILIES = (0, 1)  # of an address pair: IPv4, IPv6
by_family = pytest.mark.parametrize("family", FAMILIES, ids=["ipv4", "ipv6"])
SETTINGS = {
    "BYOC_ORGANIZATION_ID": "org-1",
    "BYOC_SERVICE_ID": "svc-1",
    "BYOC_REGION": "eu-central-1",
    "BYOC_BILLING_BUCKET": "vendor-usage-eu-central-1",
    "BYOC_STATE_QUEUE_URL": "https://sqs.eu-central-1.amazonaws.com/444455556666/state.fifo",
}
CIDRS = {
    "s3": ["198.51.100.0/24", "2001:db8:51::/64"],
    "sqs": ["203.0.113.10/32", "2001:db8:13::10/128"],
    "sts": ["10.0.5.0/24"],
}
RESOLVERS = ["203.0.113.53/32", "2001:db8:13::53/128"]
TRY = """
import ctypes, errno, json, os, socket, sys
uid, way, attempts = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
os.setgroups([])
os.setresgid(uid, uid, uid)
os.setresuid(uid, uid, uid)
if way == "user namespace":  # in which this uid is called 65532
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: /proc/self is this user's again
    assert libc.unshare(0x10000000) == 0, os.strerror(ctypes.get_errno())  # CLONE_NEWUSER
    open("/proc/self/uid_map", "w").write(f"65532 {uid} 1")
    assert os.getuid() == 65532
found = []
for kind, host, port in attempts:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    protocol = 262 if way == "mptcp" else 0
    try:
        if kind == "udp":
            made = socket.socket(family, socket.SOCK_DGRAM)
        else:
            made = socket.socket(family, socket.SOCK_STREAM, protocol)
        with made as link:
            link.settimeout(5)
            link.connect((host, port))
            if kind == "udp":
                link.send(b"question")
            found.append("reached" if link.recv(100) else "closed")
    except OSError as error:
        found.append(errno.errorcode.get(error.errno, str(error)))
print(json.dumps(found))
"""
KEEP = """
import encodings.idna, os, socket, sys  # not readable any more as another user
uid, host, port = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
os.setresgid(uid, uid, uid)
os.setresuid(uid, uid, uid)
with socket.create_connection((host, port), 5) as link:
    sys.stdout.write(link.recv(100).decode())
    sys.stdout.flush()
    for line in sys.stdin:
        link.sendall(line.encode())
        sys.stdout.write(link.recv(100).decode())
        sys.stdout.flush()
"""
LISTEN = """
import os, socket, sys
uid, port = int(sys.argv[1]), int(sys.argv[2])
os.setresgid(uid, uid, uid)
os.setresuid(uid, uid, uid)
with socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True) as server:
    print("ready", flush=True)
    while True:
        link, _ = server.accept()
        link.sendall(b"hello\\n")
        link.close()
"""


@pytest.fixture(scope="module")
def ends() -> Iterator[tuple[Namespace, Namespace]]:
    with pair() as found:
        yield found


@pytest.fixture
def pod(ends: tuple[Namespace, Namespace]) -> Iterator[Namespace]:
    """Give the pod's namespace without rules."""
    yield ends[0]
    ends[0].run(run, "nft", "flush", "ruleset")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> "Command":
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    return Command(capsys)


class Command:
    """`byoc-agents policy egress-rules` for the two daemons that are sidecars."""

    def __init__(self, printed: pytest.CaptureFixture[str]) -> None:
        self._printed = printed

    def __call__(self, *more: str) -> tuple[int, str]:
        """Return (exit code, standard output)."""
        flags = [f"--cidr={name}={one}" for name, all_of in CIDRS.items() for one in all_of]
        flags += [f"--dns={one}" for one in RESOLVERS]
        daemons = ("billing-scraper", "state-exporter", "--identity=irsa", f"--uid={DAEMON}")
        code = cli.main(["egress-rules", *daemons, *flags, *more])
        return code, self._printed.readouterr().out

    def rules(self, *also: str) -> str:
        code, text = self(*(f"--also={one}" for one in also))
        assert code == 0
        return text


def load(pod: Namespace, rules: str) -> None:
    """Load the rules and see that nft has them."""
    pod.run(lambda: run("nft", "-f", "-", text=rules))
    assert "goto daemons" in pod.run(run, "nft", "list", "ruleset")


def attempt(pod: Namespace, uid: int, *attempts: tuple[str, str, int], way: str = "") -> list[str]:
    """Return `reached`, or the name of the error, for each attempt of a process with this uid."""
    words = [sys.executable, "-I", "-c", TRY, str(uid), way, json.dumps(attempts)]
    found: list[str] = json.loads(pod.run(lambda: run(*words)))
    return found


def counted(pod: Namespace, chain: str, action: str) -> int:
    """Return the packets that the rules of one chain have counted."""
    listed = json.loads(
        pod.run(run, "nft", "-j", "list", "chain", "inet", "byoc_agents_pod", chain)
    )
    rules = [one["rule"]["expr"] for one in listed["nftables"] if "rule" in one]
    return sum(
        part["counter"]["packets"]
        for rule in rules
        if any(action in part for part in rule)
        for part in rule
        if "counter" in part
    )


@contextmanager
def running(pod: Namespace, script: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Run a script inside until the end of the block."""
    words = [sys.executable, "-I", "-c", script, *map(str, arguments)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process: subprocess.Popen[str] = pod.run(lambda: subprocess.Popen(words, **pipes))
    with process:
        try:
            yield process
        finally:
            process.kill()


def answer(process: subprocess.Popen[str], line: str = "") -> str:
    """Send a line, if there is one, and return the next line of the process."""
    assert process.stdin
    assert process.stdout
    process.stdin.write(line)
    process.stdin.flush()
    return process.stdout.readline()


@by_family
def test_without_rules_everybody_reaches_everything(pod: Namespace, family: int) -> None:
    """The control of the tests below."""
    everywhere = [
        *(("tcp", one[family], 443) for one in (S3, SQS, OTHER)),
        ("tcp", SQS[family], 9000),
        *(("udp", one[family], 53) for one in (RESOLVER, OTHER)),
    ]
    for uid in (DAEMON, CLICKHOUSE):
        assert attempt(pod, uid, *everywhere) == ["reached"] * len(everywhere)


@by_family
def test_the_daemons_reach_their_destinations_and_nothing_else(
    pod: Namespace, command: Command, family: int
) -> None:
    load(pod, command.rules())
    reached = attempt(
        pod,
        DAEMON,
        ("tcp", S3[family], 443),
        ("tcp", SQS[family], 443),
        ("udp", RESOLVER[family], 53),
    )
    assert reached == ["reached"] * 3
    refused = attempt(
        pod,
        DAEMON,
        ("tcp", OTHER[family], 443),
        ("tcp", SQS[family], 9000),
        ("udp", OTHER[family], 53),
    )
    assert refused[:2] == ["ECONNREFUSED"] * 2
    assert refused[2] in {"ECONNREFUSED", "EPERM"}
    assert counted(pod, "daemons", "reject") == 3, "one packet each: an attempt fails at once"


@by_family
def test_clickhouse_is_refused_where_only_the_daemons_connect(
    pod: Namespace, command: Command, family: int
) -> None:
    load(pod, command.rules())
    attempts = [("tcp", S3[family], 443), ("tcp", SQS[family], 443)]
    for uid in (CLICKHOUSE, ANOTHER):
        assert attempt(pod, uid, *attempts) == ["ECONNREFUSED"] * 2
    assert counted(pod, "others", "reject") == 4, "one packet each: an attempt fails at once"


@by_family
def test_everything_else_of_clickhouse_is_as_without_the_rules(
    pod: Namespace, command: Command, family: int
) -> None:
    load(pod, command.rules())
    attempts = [
        ("tcp", OTHER[family], 443),
        ("tcp", SQS[family], 9000),
        ("udp", RESOLVER[family], 53),
        ("udp", OTHER[family], 53),
    ]
    assert attempt(pod, CLICKHOUSE, *attempts) == ["reached"] * 4


@by_family
@pytest.mark.parametrize("also", ["s3", "by-address"])
def test_clickhouse_reaches_what_the_customer_names_as_its_own_too(
    pod: Namespace, command: Command, also: str, family: int
) -> None:
    """By its kind, or by an address that is in a network of the daemons."""
    load(pod, command.rules(*(S3_HOSTS if also == "by-address" else [also])))
    attempts = [("tcp", S3[family], 443), ("tcp", SQS[family], 443)]
    assert attempt(pod, CLICKHOUSE, *attempts) == ["reached", "ECONNREFUSED"]
    assert attempt(pod, DAEMON, *attempts) == ["reached"] * 2
    assert counted(pod, "others", "accept") == 1


S3_HOSTS = [f"{S3[0]}/32", f"{S3[1]}/128"]


@pytest.mark.parametrize("way", ["user namespace", "mptcp"])
def test_another_name_of_the_uid_or_another_protocol_is_no_way_around(
    pod: Namespace, command: Command, way: str
) -> None:
    """In a user namespace of its own a process may call itself 65532."""
    load(pod, command.rules())
    attempts = [("tcp", SQS[family], 443) for family in FAMILIES]
    found = attempt(pod, CLICKHOUSE, *attempts, way=way)
    assert set(found) <= {"ECONNREFUSED"} | ({"EPROTONOSUPPORT"} if way == "mptcp" else set())


@by_family
def test_connections_from_outside_and_within_the_pod_are_left_alone(
    ends: tuple[Namespace, Namespace], pod: Namespace, command: Command, family: int
) -> None:
    """Prometheus at a daemon, clients at ClickHouse, a daemon at ClickHouse over loopback."""
    load(pod, command.rules())
    with (
        running(pod, LISTEN, DAEMON, 9464) as daemon,
        running(pod, LISTEN, CLICKHOUSE, 8123) as clickhouse,
    ):
        for process in (daemon, clickhouse):
            assert answer(process) == "ready\n"
        from_outside = [("tcp", POD[family], port) for port in (9464, 8123)]
        assert attempt(ends[1], ANOTHER, *from_outside) == ["reached"] * 2
        loopback = ("127.0.0.1", "::1")[family]
        assert attempt(pod, DAEMON, ("tcp", loopback, 8123)) == ["reached"]


@by_family
def test_rules_can_be_loaded_again_and_leave_open_connections_alone(
    pod: Namespace, command: Command, family: int
) -> None:
    """The first connection is older than all rules; at once the next attempt is refused."""
    hello = HELLO.decode()
    with (
        running(pod, KEEP, CLICKHOUSE, SQS[family], 443) as clickhouse,
        running(pod, KEEP, DAEMON, SQS[family], 443) as daemon,
    ):
        assert [answer(one) for one in (clickhouse, daemon)] == [hello] * 2
        for also, s3 in (([], "ECONNREFUSED"), (["s3"], "reached"), ([], "ECONNREFUSED")):
            load(pod, command.rules(*also))
            found = attempt(pod, CLICKHOUSE, ("tcp", S3[family], 443), ("tcp", SQS[family], 443))
            assert found == [s3, "ECONNREFUSED"]
            for process in (clickhouse, daemon):
                assert answer(process, f"{s3} {also}\n") == f"{s3} {also}\n"
    tables = pod.run(run, "nft", "list", "tables").split("\n")
    assert tables == ["table inet byoc_agents_pod", ""]


def test_what_the_kernel_has_is_checked_against_the_settings(
    pod: Namespace, command: Command, tmp_path: Path
) -> None:
    """The listing of nft itself, with its own spelling and counters."""
    load(pod, command.rules("s3", "10.0.4.9/32"))
    attempt(pod, CLICKHOUSE, ("tcp", SQS[0], 443))
    listed = tmp_path / "listed"
    options = ("--also=s3", "--also=10.0.4.9/32", f"--check={listed}")
    for flags in ((), ("-s",), ("-s", "-y"), ("-a",)):
        listed.write_text(pod.run(run, "nft", *flags, "list", "ruleset"))
        expected = 1 if "-a" in flags else 0  # with handles every line is another
        assert command(*options)[0] == expected
    pod.run(run, "nft", "insert", "rule", "inet", "byoc_agents_pod", "others", "accept")
    listed.write_text(pod.run(run, "nft", "list", "ruleset"))
    code, said = command(*options)
    assert code == 1
    assert "chain others: not in the table: accept: expected no such entry" in said


def rendered() -> dict[str, Any]:
    """Return the init container that the chart renders for this network."""
    rules = {"enabled": True, "image": "registry.example.com/nft:1", "dns": RESOLVERS}
    flags = (
        *(
            "--set-json",
            f"networkPolicy.cidrs={json.dumps(CIDRS | {'control-plane': ['10.0.0.0/24']})}",
        ),
        *("--set-json", f"sidecars.egressRules={json.dumps(rules)}"),
    )
    documents = render.manifests(render.CHART / "ci" / "default-values.yaml", *flags)
    (pod,) = [one for one in pods(documents) if one.with_clickhouse]
    container: dict[str, Any] = pod.spec["initContainers"][0]
    return container


def confined(container: dict[str, Any], *capabilities: str) -> list[str]:
    """Return its command for root with these capabilities at most, as in a container."""
    bounds = ",".join(["-all", *(f"+{one.lower()}" for one in capabilities)])
    limits = (f"--bounding-set={bounds}", "--inh-caps=-all", "--no-new-privs", "--clear-groups")
    return ["setpriv", *limits, *container["command"], *container["args"]]


def test_the_init_container_of_the_chart_loads_them_with_one_capability(pod: Namespace) -> None:
    container = rendered()
    capabilities = container["securityContext"]["capabilities"]
    with pytest.raises(PartError, match="Operation not permitted"):
        pod.run(run, *confined(container))
    for _ in range(2):  # a sandbox whose first attempt was interrupted runs it again
        pod.run(run, *confined(container, *capabilities["add"]))
    attempts = [("tcp", SQS[family], 443) for family in FAMILIES]
    assert attempt(pod, CLICKHOUSE, *attempts) == ["ECONNREFUSED"] * 2
    assert attempt(pod, DAEMON, *attempts) == ["reached"] * 2


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Give an engine with an image that has nft and its libraries, and nothing else."""
    archive = tmp_path_factory.mktemp("image") / "nft.tar"
    nft.write_layer(archive)
    with docker.engine() as found:
        found.output("import", str(archive), nft.IMAGE)
        yield found


def options_of(container: dict[str, Any], pause: Container) -> dict[str, str]:
    """Return the options of Docker that equal the rendered container's rights and limits."""
    asked = dict(container["securityContext"])
    rights = asked.pop("capabilities")
    assert asked == {
        "runAsNonRoot": False,
        "runAsUser": 0,
        "runAsGroup": 0,
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "seccompProfile": {"type": "RuntimeDefault"},  # which Docker's own profile is
    }
    found = {"--network": f"container:{pause.id}", "--user": "0:0", "--read-only": "true"}
    found |= {"--security-opt": "no-new-privileges", "--cap-drop": ",".join(rights["drop"])}
    memory = container["resources"]["limits"]["memory"]
    return found | {"--cap-add": ",".join(rights["add"]), "--memory": memory.removesuffix("i")}


def test_a_container_runtime_runs_it_with_its_rights_and_limits(
    engine: Engine, command: Command, tmp_path: Path
) -> None:
    """In the network namespace of the pod's sandbox, whose rules then outlive the container."""
    container = rendered()
    words = [*container["command"], *container["args"]]
    with engine.run(BASE, "sleep", "3600", options=("--network=none",)) as pause:
        given = options_of(container, pause)
        for changed, code in (({"--cap-add": ""}, 1), ({}, 0)):
            flags = [f"{name}={value}" for name, value in (given | changed).items() if value]
            with engine.run(nft.IMAGE, *words, options=flags) as made:
                assert made.wait() == code, made.logs()
        listed = tmp_path / "listed"
        inside = ("nsenter", f"--net=/proc/{pause.pid}/ns/net", "nft", "list", "ruleset")
        listed.write_text(run(*inside))
    assert command(f"--check={listed}") == (0, "")


def test_what_the_page_says_is_not_covered(pod: Namespace, command: Command) -> None:
    """Root, which may take the daemons' uid or remove the rules."""
    load(pod, command.rules())
    attempts = [("tcp", SQS[family], 443) for family in FAMILIES]
    assert os.geteuid() == 0
    assert attempt(pod, 0, *attempts) == ["ECONNREFUSED"] * 2, "as long as it stays root"
    assert attempt(pod, DAEMON, *attempts) == ["reached"] * 2, "a process of root that changed"
    pod.run(run, "nft", "flush", "ruleset")
    assert not re.search("byoc", pod.run(run, "nft", "list", "ruleset"))
    assert attempt(pod, CLICKHOUSE, *attempts) == ["reached"] * 2
