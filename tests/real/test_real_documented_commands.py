"""Every command of README.md, docs/install*.md, docs/access.md and docs/control-plane.md.

They are run as written: one script per page, in order. A page's script is all of its fenced blocks
without a language; a block of YAML is the file that the page names. `byoc-agents`, pip, openssl and
the shell are real, and moto is the S3 that `verify` reads. `lab/real/stand_ins.py` lists the
programs that are stand-ins, what each checks and what it does instead: Helm renders with both
pinned versions, kubectl compares names and ports with the result, aws checks a request with
botocore's model, docker starts the container with the real client and engine, Compose reads its
file, make is `make --dry-run` (`.ci/run` runs `make test`, and tests/lab/test_demo_whole.py and
test_real_access_story.py the demos).

A command that fails, or a program that is neither real nor a stand-in, fails the page's script. So
no command can be added that is not run.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from importlib.metadata import version as version_of
from pathlib import Path

import botocore.session
import msgspec
import pytest
import yaml
import zstandard

import byoc_agents
from byoc_agents.app.cloudevents import encode
from byoc_agents.billing.record import TYPE, UsageRecord, record_id
from byoc_agents.schema import EXAMPLES
from lab.demo.access import Scenario, Step
from lab.demo.access_route import through_loopback
from lab.real import stand_ins
from lab.real.parts import install
from lab.real.parts.compose import compose
from lab.real.parts.docker import Container, Engine
from lab.real.parts.images import until_healthy
from lab.real.parts.install import ROOT
from lab.real.parts.process import RealProcess, free_port
from tests.unit.policy import test_policy_eks

pytestmark = pytest.mark.real
INSTALL = sorted((ROOT / "docs").glob("install*.md"))
ACCESS, PLANE = ROOT / "docs" / "access.md", ROOT / "docs" / "control-plane.md"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
ACCOUNT = "111122223333"  # the customer's, on the pages
BUCKET = "vendor-usage-eu-central-1"
FOLDER = "v1/org=org-1/service=svc-1/date=2026-11-23/hour=12"
HEAD = "set -euo pipefail\ntrap 'echo \"failed: $BASH_COMMAND\" >&2' ERR\n"


def blocks(page: Path, language: str) -> list[str]:
    """Return the fenced blocks of a page with this language."""
    return [text for found, text in BLOCK.findall(page.read_text()) if found == language]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a copy of the files that a clone would have."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tmp_path / "tree" / name)
    return tmp_path / "tree"


def first_record() -> UsageRecord:
    """Return the example as the first record of its epoch."""
    example = EXAMPLES[TYPE]
    assert isinstance(example, UsageRecord)
    allocated = msgspec.structs.replace(example.data.allocated, resized=None)
    usage = msgspec.structs.replace(example.data, sequence=0, allocated=allocated)
    return msgspec.structs.replace(example, data=usage, id=record_id(usage))


@pytest.fixture
def aws(tmp_path: Path) -> Iterator[str]:
    """Run moto; the vendor's bucket has one record."""
    port = free_port()
    server = RealProcess(
        name="moto",
        command=[sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        port=port,
        ready_path="/moto-api/data.json",
        log=tmp_path / "moto.log",
        environment={"MOTO_ACCOUNT_ID": ACCOUNT},
    )
    server.start()
    try:
        url = f"http://127.0.0.1:{port}"
        s3 = botocore.session.get_session().create_client(
            "s3",
            region_name="eu-central-1",
            endpoint_url=url,
            aws_access_key_id="key",
            aws_secret_access_key="secret",
        )
        s3.create_bucket(
            Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": "eu-central-1"}
        )
        record = first_record()
        key = f"{FOLDER}/{record.data.pod_uid}-{record.data.epoch}-{0:010d}-{0:010d}.jsonl.zst"
        body = zstandard.ZstdCompressor(write_checksum=True).compress(encode(record) + b"\n")
        s3.put_object(Bucket=BUCKET, Key=key, Body=body)
        yield url
    finally:
        server.stop()


def run(page: Path, tree: Path, **environ: str) -> tuple[str, list[list[str]]]:
    """Run the commands of a page in a copy of the clone; return the output and the calls.

    `test_real_chart_egress_rules.py` runs the one that compares the rules of a pod.
    """
    scripts = [text for text in blocks(page, "") if "egress-rules" not in text]
    return run_script("".join(scripts), tree, **environ)


def run_script(text: str, tree: Path, **environ: str) -> tuple[str, list[list[str]]]:
    programs = tree.parent / "programs"
    programs.mkdir()
    stand_ins.install(programs)
    script = tree.parent / "script"
    script.write_text(HEAD + text)
    calls = tree.parent / "calls.jsonl"
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("BYOC_", "AWS_", "DOCKER_"))}
    path = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", str(script)],
        cwd=tree,
        env={**kept, "PATH": path, stand_ins.CALLS: str(calls), **environ},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout, [json.loads(line) for line in calls.read_text().splitlines()]


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *INSTALL, ACCESS, PLANE], ids=lambda page: page.stem
)
def test_a_block_is_a_script_or_a_values_file(page: Path) -> None:
    """A block with another language would be a command that no test runs."""
    more = {"sql"} if page == PLANE else set()
    found = {language for language, _ in BLOCK.findall(page.read_text())}
    assert found <= {"", "yaml", "text"} | more
    assert page.read_text().count("\n```") == 2 * len(BLOCK.findall(page.read_text()))
    assert blocks(page, "")


@pytest.mark.usefixtures("images")
def test_the_commands_of_the_readme_run(docker: Engine, tree: Path) -> None:
    """The container that `docker run` starts becomes healthy with the example's settings."""
    client = {stand_ins.DOCKER: docker.program, **_docker_environment(docker)}
    printed, calls = run(ROOT / "README.md", tree, **client)
    assert [call[0] for call in calls] == ["make", "make", "helm", "docker"]
    assert "vendor-usage-eu-central-1" in printed
    assert byoc_agents.__version__ in printed.splitlines()
    (started,) = re.findall(r"^[0-9a-f]{64}$", printed, re.MULTILINE)
    container = Container(docker, started)
    try:
        until_healthy(container)
    finally:
        container.stop()


def _docker_environment(docker: Engine) -> dict[str, str]:
    return {k: v for k, v in docker.environment().items() if k.startswith("DOCKER_")}


@pytest.mark.parametrize("page", INSTALL, ids=lambda page: page.stem)
def test_the_commands_of_an_installation_page_run(page: Path, tree: Path, aws: str) -> None:
    """The secrets of the vendor, a ledger and an empty state directory exist before."""
    values, *_ = blocks(page, "yaml")
    (tree / "values.yaml").write_text(values)
    assert yaml.safe_load(values)["billingScraper"]["bucket"] == BUCKET
    for name in ("token", "signing-secret"):
        (tree / name).write_text("text")
    state = tree.parent / "state"
    shutil.copytree(ROOT / "tests/upgrade/versions/0.2.0/billing-scraper/ledger", state / "ledger")
    printed, calls = run(
        page,
        tree,
        BYOC_STATE_DIR=str(state),
        AWS_ENDPOINT_URL=aws,
        AWS_ACCESS_KEY_ID="key",
        AWS_SECRET_ACCESS_KEY="secret",
    )
    assert {call[0] for call in calls} >= {"helm", "kubectl", "aws", "curl", "clickhouse-client"}
    for name in ("role", "boundary", "trust", "bucket", "queue"):
        assert json.loads((tree / f"{name}.json").read_text())["Version"] == "2012-10-17"
    assert "kind: AlertmanagerConfig" in printed


def test_the_commands_of_the_control_planes_page_run(tree: Path, aws: str) -> None:
    """The blocks, then the rotation and the removal of its tables; `compact` archives the record.

    pip installs without dependencies into a directory, the store is chdb, and Compose only reads
    its file. The directory of the vendor's values and the queue exist before.
    """
    installed = tree.parent / "installed"
    (tree / "vendor.yaml").write_text("region: eu-central-1\n")
    names = "STORE_PASSWORD", "READ_TOKEN", "TOKEN", "SIGNING_SECRET"
    secrets = [f"BYOC_PLANE_{name}=text\n" for name in names]
    (tree / "control-plane/.env").write_text("".join([*secrets, "GRAFANA_PASSWORD=text\n"]))
    clients = {"aws_access_key_id": "key", "aws_secret_access_key": "secret"}
    session = botocore.session.get_session()
    sqs = session.create_client("sqs", region_name="eu-central-1", endpoint_url=aws, **clients)
    queue = sqs.create_queue(QueueName="state.fifo", Attributes={"FifoQueue": "true"})["QueueUrl"]
    steps = re.findall(r"`(byoc-control-plane tenant [^`]* --registry [^`]*)`", PLANE.read_text())
    assert [step.split()[2] for step in steps] == ["rotate", "rotate", "remove"]
    text = "\n".join([*blocks(PLANE, ""), *steps])
    printed, calls = run_script(
        text,
        tree,
        PIP_TARGET=str(installed),
        PIP_NO_DEPS="1",
        PIP_NO_BUILD_ISOLATION="0",  # pip reads 0 as "no isolation": the build tools are here
        AWS_ENDPOINT_URL=aws,
        AWS_ACCESS_KEY_ID="key",
        AWS_SECRET_ACCESS_KEY="secret",
        BYOC_PLANE_BUCKET=BUCKET,
        BYOC_PLANE_REGION="eu-central-1",
        BYOC_PLANE_STORE_URL=f"chdb:{tree.parent / 'store'}",
        BYOC_PLANE_QUEUE_URL=queue,
        BYOC_PLANE_LISTEN=f"127.0.0.1:{free_port()}",
        BYOC_PLANE_EVENTS_LISTEN=f"127.0.0.1:{free_port()}",
        BYOC_PLANE_TOKEN="token",
        BYOC_PLANE_SIGNING_SECRET=f"whsec_{'c2VjcmV0' * 5}",
        **{
            stand_ins.INSTALLED: f"{installed}:{install.CHDB}",
            stand_ins.COMPOSE: str(compose()),
        },
    )
    commands = [" ".join(call[:2]) for call in calls]
    assert commands == [
        *("byoc-control-plane run", "byoc-control-plane stack", "byoc-control-plane tenant"),
        *("byoc-control-plane compact",) * 3,
        *("docker compose", *("byoc-control-plane tenant",) * 3),
    ]
    assert {"receiver", "clickhouse", "grafana"} <= set(printed.splitlines())
    assert yaml.safe_load((tree / "stack.yaml").read_text())["Resources"]
    values = yaml.safe_load((tree / "org-1/values.yaml").read_text())
    assert (values["organizationId"], values["region"]) == ("org-1", "eu-central-1")
    assert (tree / "org-1-new/token").read_text() != (tree / "org-1/token").read_text()
    assert "org-1:" not in (tree / "registry/tokens").read_text()
    assert (installed / "byoc_control_plane").is_dir()


def test_the_commands_of_the_access_page_run(tree: Path) -> None:
    """All blocks but the drill, and the policy, which `access policy` accepts."""
    (policy,) = blocks(ACCESS, "yaml")
    (tree / "policy.yaml").write_text(policy)
    for name, response in (
        ("describe-cluster", test_policy_eks.cluster()),
        ("describe-access-entry", test_policy_eks.entry()),
        ("list-associated-access-policies", test_policy_eks.policies()),
    ):
        (tree.parent / f"{name}.json").write_text(json.dumps(response))
    assert "`byoc-agents access policy policy.yaml`" in ACCESS.read_text()
    scripts = [text for text in blocks(ACCESS, "") if text not in drill()]
    printed, calls = run_script(
        "".join([*scripts, "byoc-agents access policy policy.yaml\n"]), tree
    )
    assert [call[0] for call in calls] == ["make", "aws", "aws", "aws"]
    assert "lab.demo.access" in printed
    assert "policy.yaml: OK" in printed


def steps_to_set_up() -> list[str]:
    """Return the commands of the numbered list of the access page, as written."""
    section = ACCESS.read_text().partition("## Set it up\n")[2].partition("\n\nThe broker ")[0]
    return re.findall(r"`((?:pip|byoc-agents) [^`]+)`", section)


def test_the_steps_to_set_up_access_run_as_written(tree: Path) -> None:
    """A wheel of this checkout is installed without an index; ClickHouse is the demo's stand-in.

    The servers, the organization and the file names are settings; the broker is stopped by SIGTERM.
    """
    place = tree.parent
    install_command, *prepare, start, check = steps_to_set_up()
    assert install_command == "pip install 'byoc-agents[access]'"
    assert [" ".join(one.split()[1:3]) for one in prepare] == [
        *("access sql", "access init-ca", "access policy"),
    ]
    assert (start, check) == ("byoc-agents run access-broker", "byoc-agents access check")
    installed, wheels = place / "installed", place / "wheels"
    pip = {"PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0"}  # pip reads 0 as "no isolation"
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("BYOC_", "PIP_"))}
    environ = kept | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"} | pip

    def call(command: str, **own: str) -> str:
        done = subprocess.run(
            ["bash", "-c", command], cwd=tree, env=environ | own, capture_output=True, text=True,
            timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        assert "does not provide the extra" not in done.stderr
        return done.stdout

    call(f"pip wheel -w {wheels} .")
    own = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "PIP_TARGET": str(installed)}
    call(install_command, **own)
    environ |= {"PATH": f"{installed / 'bin'}:{environ['PATH']}", "PYTHONPATH": str(installed)}
    used = call("python -c 'import byoc_agents; print(byoc_agents.__file__)'")
    assert used.startswith(str(installed))
    for one in requirements_of_extra(installed, "access"):
        assert version_of(one), f"{one} is not installed here"
    (policy,) = blocks(ACCESS, "yaml")
    (tree / "policy.yaml").write_text(policy)
    (tree / "DIRECTORY").mkdir()
    sql, _, checked = (call(one) for one in prepare)
    assert "CREATE ROLE IF NOT EXISTS byoc_access_reader" in sql
    assert {path.name for path in (tree / "DIRECTORY").iterdir()} == {
        *("access-ca.crt", "access-ca.key"),
    }
    assert checked.startswith("policy.yaml: OK")
    (place / "route").mkdir()
    with through_loopback(place / "route") as route:
        environ |= {
            "BYOC_ORGANIZATION_ID": "org-1",
            "BYOC_SERVICE_ID": "SERVICE",
            "BYOC_REGION": "eu-central-1",
            "BYOC_REPLICA": "broker",
            "BYOC_STATE_DIR": str(place / "state"),
            "BYOC_LISTEN": f"127.0.0.1:{free_port()}",
            "BYOC_ACCESS_POLICY_FILE": "policy.yaml",
            "BYOC_ACCESS_CA_DIR": "DIRECTORY",
            "BYOC_ACCESS_SERVERS": f"r0={route.server_url}",
            "BYOC_ACCESS_PASSWORD": "text",
            "BYOC_ACCESS_EVENTS_URL": f"file://{place / 'vendor'}",
        }
        for name in ("state", "vendor"):
            (place / name).mkdir()
        with (place / "broker.log").open("wb") as log:
            broker = subprocess.Popen(
                ["bash", "-c", f"exec {start}"], cwd=tree, env=environ, stdout=log, stderr=log
            )
            try:
                until(lambda: b"admin.listening" in (place / "broker.log").read_bytes(), broker)
                assert call(check) == "r0: ok\n"
            finally:
                broker.terminate()
                code = broker.wait(60)
    assert code == 0, (place / "broker.log").read_text()


def until(met: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Wait for a condition; fail if the process ends or after a minute."""
    deadline = time.monotonic() + 60
    while not met():
        assert process.poll() is None, "the program has ended"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def requirements_of_extra(installed: Path, extra: str) -> list[str]:
    """Return the names of the packages that an extra of the installed wheel needs."""
    (metadata,) = installed.glob("byoc_agents-*.dist-info/METADATA")
    found = re.findall(
        rf"^Requires-Dist: ([A-Za-z0-9_.-]+).*; extra == ['\"]{extra}['\"]$",
        metadata.read_text(),
        re.MULTILINE,
    )
    assert found
    return found


def drill() -> list[str]:
    return [text for text in blocks(ACCESS, "") if "access kill" in text]


def test_the_drill_of_the_access_page_ends_an_open_grant(tmp_path: Path) -> None:
    """`status` exits with 1 while somebody has access, as the page says."""
    (script,) = drill()
    steps = play_scenario(tmp_path / "scenario")
    while next(steps).name != "approved":
        pass
    environ = os.environ | {"BYOC_STATE_DIR": str(tmp_path / "scenario" / "state")}
    environ["PATH"] = f"{Path(sys.executable).parent}:{environ['PATH']}"
    done = [
        subprocess.run(
            ["bash", "-c", line], env=environ, capture_output=True, text=True, check=False
        )
        for line in script.splitlines()
    ]
    steps.close()
    assert [one.returncode for one in done] == [1, 0, 0, 0], [one.stderr for one in done]
    outputs = [one.stdout for one in done]
    assert "1 open" in outputs[0]
    assert "nobody has access" in outputs[1]
    assert outputs[2].startswith("nobody has access\nkill switch: on")
    assert outputs[3] == "kill switch: off\n"


def play_scenario(directory: Path) -> Generator[Step]:
    """Yield the steps of `make demo-access`; its programs end with the generator."""
    directory.mkdir()
    with through_loopback(directory) as route:
        yield from Scenario(directory, route).steps()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("kubectl -n elsewhere get pods -l a=b", "expected the namespace clickhouse"),
        ("kubectl -n clickhouse create secret generic other --from-file=x", "not a secret"),
        ("kubectl -n clickhouse create secret generic byoc-alerts --from-file=x", "no such file"),
        ("kubectl -n clickhouse delete pods", "invalid choice"),
        ("aws iam add-client-id-to-open-id-connect-provider --client x", "no option --client"),
        ("aws s3api get-bucket-polity --bucket b", "no operation"),
        ("clickhouse-client < /dev/null", "no user"),
        ("helm uninstall byoc-agents", "no stand-in"),
        ("make no-such-target", "No rule to make target"),
        ("docker compose -f compose.yaml up --build", "compose.yaml"),
        ("docker compose -f compose.yaml down", "no stand-in"),
        ("aws eks describe-cluster --cluster CLUSTER", "no option --cluster"),
        ("unknown-program", "unknown-program"),
    ],
)
def test_a_command_that_the_real_program_refuses_fails(
    command: str, message: str, tmp_path: Path
) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"```\n{command}\n```\n")
    (tmp_path / "tree").mkdir()
    with pytest.raises(AssertionError, match=message):
        run(page, tmp_path / "tree", **{stand_ins.COMPOSE: str(compose())})
