"""Every command of README.md and docs/install*.md, run as written: one script per page, in order.

A page's script is all of its fenced blocks without a language; a block of YAML is the values file
that the page names. `byoc-agents`, pip, openssl and the shell are real, and moto is the S3 that
`verify` reads. `lab/real/stand_ins.py` lists the programs that are stand-ins, what each checks and
what it does instead: Helm renders with both pinned versions, kubectl compares names and ports with
the result, aws checks a request with botocore's model, docker starts the container with the real
client and engine, make is `make --dry-run` (`.ci/run` runs `make test`, and
tests/lab/test_demo_whole.py the demo).

A command that fails, or a program that is neither real nor a stand-in, fails the page's script. So
no command can be added that is not run.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
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
from lab.real import stand_ins
from lab.real.parts.docker import Container, Engine
from lab.real.parts.images import until_healthy
from lab.real.parts.install import ROOT
from lab.real.parts.process import RealProcess, free_port

pytestmark = pytest.mark.real
INSTALL = sorted((ROOT / "docs").glob("install*.md"))
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
    """Run the commands of a page in a copy of the clone; return the output and the calls."""
    programs = tree.parent / "programs"
    programs.mkdir()
    stand_ins.install(programs)
    script = tree.parent / "script"
    script.write_text(HEAD + "".join(blocks(page, "")))
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


@pytest.mark.parametrize("page", [ROOT / "README.md", *INSTALL], ids=lambda page: page.stem)
def test_a_block_is_a_script_or_a_values_file(page: Path) -> None:
    """A block with another language would be a command that no test runs."""
    assert {language for language, _ in BLOCK.findall(page.read_text())} <= {"", "yaml"}
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
    (values,) = blocks(page, "yaml")
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
        run(page, tmp_path / "tree")
