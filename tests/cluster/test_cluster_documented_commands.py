"""The commands of docs/install-kubernetes.md, run on a real cluster as they are written.

The page's values are for AWS and Altinity's operator; this cluster has LocalStack instead, and the
chart's own ClickHouse. kubectl, helm, curl, openssl and `byoc-agents` are real. `aws` and
`clickhouse-client` are the stand-ins of lab/real/stand_ins.py: the one has no account here, and the
other no server outside the cluster.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from lab.cluster import components, environment
from lab.cluster.cluster import Cluster, Manifest
from lab.cluster.environment import ALERTS, NAMESPACE, RELEASE, Received
from lab.real import stand_ins
from lab.real.parts.install import ROOT
from lab.real.stored import KEYS

pytestmark = pytest.mark.cluster
PAGE = ROOT / "docs" / "install-kubernetes.md"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
HEAD = """set -euo pipefail
trap 'echo "failed: $BASH_COMMAND" >&2' ERR
trap 'kill $(jobs -p) 2>&- || true' EXIT
"""


def blocks(language: str) -> list[str]:
    """Return the page's fenced blocks with this language."""
    return [text for found, text in BLOCK.findall(PAGE.read_text()) if found == language]


def section(title: str) -> list[str]:
    """Return the blocks without a language from a heading to the next one."""
    _, _, rest = PAGE.read_text().partition(f"\n## {title}\n")
    return [text for found, text in BLOCK.findall(rest.partition("\n## ")[0]) if not found]


@pytest.fixture
def empty(cluster: Cluster) -> Iterator[None]:
    """Take away the secret that the page makes, and give it back."""
    before = cluster.get("secret", "byoc-alerts", NAMESPACE)
    kept = {key: before[key] for key in ("apiVersion", "kind", "data")}
    kept["metadata"] = {"name": "byoc-alerts", "namespace": NAMESPACE}
    secrets = ("secret", "byoc-alerts", "byoc-clickhouse", "--ignore-not-found")
    cluster.kubectl("-n", NAMESPACE, "delete", *secrets)
    try:
        yield
    finally:
        environment.remove_chart(cluster)
        cluster.kubectl("-n", NAMESPACE, "delete", *secrets)
        cluster.apply([kept])


def write_programs(cluster: Cluster, directory: Path) -> None:
    """Write launchers of the real clients and of two stand-ins."""
    directory.mkdir()
    stand_ins.install(directory, "aws", "clickhouse-client")
    config = f"--kubeconfig={shlex.quote(str(cluster.kubeconfig))}"
    commands = {name: f"{path} {config}" for name, path in components.programs().items()}
    # A person types slower than a port-forward begins.
    commands["curl"] = "/usr/bin/curl --retry 20 --retry-delay 1 --retry-all-errors"
    for name, command in commands.items():
        path = directory / name
        path.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        path.chmod(0o755)


def merged() -> Manifest:
    """Return the page's values with the parts replaced that this cluster does not have."""
    text, *_ = blocks("yaml")
    page, here = yaml.safe_load(text), environment.values()
    for name in ("aws", "clickhouse", "allowInsecureEndpoints", "networkPolicy"):
        page[name] = here[name]
    for name in ("monitoring", "settings", "image"):
        del page[name]  # another operator's kinds, private names, a registry
    del page["sidecars"]["egressRules"]  # an image of the customer's; test_cluster_egress_rules.py
    for name in ("billingScraper", "stateExporter", "alertForwarder", "sidecars"):
        page[name] = {**page[name], **here[name]}
    assert page["billingScraper"]["bucket"] == environment.BUCKET
    return dict(page)


@pytest.mark.usefixtures("empty")
def test_every_command_of_the_page_works(
    cluster: Cluster, received: Received, tmp_path: Path
) -> None:
    write_programs(cluster, tmp_path / "programs")
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("helm", "agents"):
        (tree / name).symlink_to(ROOT / name)
    (tree / "values.yaml").write_text(yaml.safe_dump(merged()))
    for name in ("token", "signing-secret"):  # which the vendor gives
        (tree / name).write_text(ALERTS[name])
    install, check, upgrade = (
        section("Install in five steps"),
        section("Check it"),
        section("Upgrade"),
    )
    variables = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("BYOC_", "AWS_"))},
        **KEYS,
        "AWS_ENDPOINT_URL_S3": received.localstack,
        "AWS_DEFAULT_REGION": "eu-central-1",
        "PATH": f"{tmp_path}/programs:{Path(sys.executable).parent}:{os.environ['PATH']}",
        stand_ins.CALLS: str(tmp_path / "calls.jsonl"),
    }

    def run(*scripts: str) -> str:
        script = HEAD + "".join(scripts)
        done = subprocess.run(
            ["bash", "-c", script],
            check=False,
            cwd=tree,
            env=variables,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "STATUS: deployed" in run(*install)
    environment.wait_for_chart(cluster)
    cluster.wait(received.bucket.writes, "usage records", NAMESPACE)
    (commands,) = check
    # The bucket of the page is the vendor's.
    said = run(commands.replace("s3://vendor-usage-eu-central-1/", f"s3://{environment.BUCKET}/"))
    assert said.count("Succeeded") == 3
    assert '"source": "process"' in said or '"source":"process"' in said
    assert "OK" in said
    (commands,) = upgrade
    assert "STATUS: deployed" in run(commands)
    environment.wait_for_chart(cluster)
    cluster.helm("uninstall", RELEASE, "-n", NAMESPACE, "--wait")
