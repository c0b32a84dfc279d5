"""What is rendered into pods: settings that the agents take, a ClickHouse left alone."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct

from byoc_agents.app.context import ClickHouseSettings
from byoc_agents.app.run import DAEMONS, configure, daemon
from byoc_agents.app.settings import CoreSettings, settings_of
from lab.real.chart import reference, render
from lab.real.chart.pods import Pod, environment, pods, printed_pod

SECRETS = {  # what the mounted Secrets hold
    "token": "control-plane-token",
    "signing-secret": "whsec_" + "A" * 32,
    "webhook-token": "alertmanager-token",
    "fingerprint-secret": "f" * 32,
    "password": "clickhouse-password",
}
CASES = [(values, version) for values in render.CI for version in (render.NEW, render.OLD)]
by_case = pytest.mark.parametrize(
    ("values", "kubernetes"), CASES, ids=[f"{render.name(v)}-{k}" for v, k in CASES]
)
GIVEN_BY_EKS = frozenset({"AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE"})


def every_pod(values: Path, kubernetes: str) -> list[Pod]:
    """Return all pods that hold one of our containers."""
    found = [pod for pod in pods(render.manifests(values, kubernetes=kubernetes)) if pod.ours]
    bitnami = render.name(values) == "bitnami"
    return [*found, *([printed_pod(values, kubernetes)] if bitnami else [])]


def mounted(container: dict[str, Any], directory: Path) -> dict[str, str]:
    """Return the environment with the Secrets' files where this test can have them."""
    found = environment(container)
    for name, value in environment(container).items():
        file = directory / Path(value).name
        if name.startswith("BYOC_") and name.endswith("_FILE") and file.name in SECRETS:
            file.write_text(SECRETS[file.name])
            found[name] = str(file)
    return found


@by_case
def test_the_agents_take_every_setting_and_miss_none(
    values: Path, kubernetes: str, tmp_path: Path
) -> None:
    """`configure` refuses BYOC_ variables it does not know, and says which are missing."""
    for pod in every_pod(values, kubernetes):
        for container in pod.ours:
            run, *daemons = container["args"]
            assert run == "run"
            settings = configure(daemons, mounted(container, tmp_path)).described()
            assert settings["BYOC_ORGANIZATION_ID"] == "org-1"
            if pod.beside:
                assert settings["BYOC_REPLICA"] == "chi-events-0-0-0"


def test_check_config_itself_says_so(tmp_path: Path) -> None:
    values = render.CHART / "ci" / "all-sidecars-values.yaml"
    (pod,) = every_pod(values, render.NEW)
    for container in pod.ours:
        done = subprocess.run(
            [sys.executable, "-m", "byoc_agents.app.cli", "check-config", *container["args"][1:]],
            env=mounted(container, tmp_path),
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert "BYOC_BILLING_BUCKET" in done.stdout or container["name"] != "billing-scraper"
        assert SECRETS["token"] not in done.stdout


def test_every_setting_of_the_agents_has_a_place_in_the_chart() -> None:
    """A new setting fails here until a value sets it or the schema lists it under `settings`."""
    structs: list[type[Struct]] = [CoreSettings, ClickHouseSettings]
    structs += [daemon(name).settings for name in DAEMONS]
    known = {one.variable for struct in structs for one, _ in settings_of(struct).values()}
    known |= {f"{name}_FILE" for name in known if name.endswith(("PASSWORD", "TOKEN"))}
    listed = set(re.findall(r"BYOC_\w+", str(_enumerations(reference.schema()))))
    rendered = {
        name
        for values in render.CI
        for pod in every_pod(values, render.NEW)
        for container in pod.ours
        for name in environment(container)
        if name.startswith("BYOC_")
    }
    assert listed <= known
    by_file = {"BYOC_ALERTS_TOKEN", "BYOC_ALERTS_SIGNING_SECRET", "BYOC_ALERTS_WEBHOOK_TOKEN"}
    by_file |= {"BYOC_ALERTS_FINGERPRINT_SECRET"}
    assert known - listed - rendered == by_file | {"BYOC_CLICKHOUSE_PASSWORD"}


@by_case
def test_sidecars_never_hold_clickhouse_back(values: Path, kubernetes: str) -> None:
    """No readiness, no start to wait for, a liveness of their own, and never more than asked."""
    for pod in every_pod(values, kubernetes):
        for container in pod.ours:
            port = int(environment(container)["BYOC_LISTEN"].rpartition(":")[2])
            assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": port}
            assert "startupProbe" not in container
            assert ("readinessProbe" in container) == (not pod.beside)
            assert container["resources"]["requests"] == container["resources"]["limits"]
            liveness = container["livenessProbe"]
            patience = liveness["periodSeconds"] * liveness["failureThreshold"]
            assert patience >= 60, "a busy node is no dead agent"


@by_case
def test_native_sidecars_start_before_clickhouse_and_stop_after_it(
    values: Path, kubernetes: str
) -> None:
    """Kubernetes stops native sidecars when the containers are gone, in the opposite order."""
    wanted = kubernetes == render.NEW and render.name(values) != "all-sidecars"
    for pod in filter(lambda one: one.beside, every_pod(values, kubernetes)):
        native = [one["name"] for one in pod.spec.get("initContainers", [])]
        plain = [one["name"] for one in pod.spec["containers"]]
        ours = [one["name"] for one in pod.ours]
        assert (native, plain) == (ours, ["clickhouse"]) if wanted else ([], ["clickhouse", *ours])
        assert all(one.get("restartPolicy") == ("Always" if wanted else None) for one in pod.ours)


@by_case
def test_there_is_time_to_drain(values: Path, kubernetes: str) -> None:
    for pod in every_pod(values, kubernetes):
        drain = {int(environment(one)["BYOC_SHUTDOWN_GRACE_SECONDS"]) for one in pod.ours}
        before = 60 if pod.beside else 0  # clickhouse.stopSeconds
        assert pod.spec["terminationGracePeriodSeconds"] >= before + max(drain) + 10


@by_case
def test_no_container_of_ours_may_do_anything(values: Path, kubernetes: str) -> None:
    for pod in every_pod(values, kubernetes):
        assert pod.spec.get("automountServiceAccountToken", False) is False
        for container in pod.ours:
            rights = container["securityContext"]
            assert rights["capabilities"] == {"drop": ["ALL"]}
            assert rights["readOnlyRootFilesystem"] is True
            assert rights["allowPrivilegeEscalation"] is False
            assert rights["runAsNonRoot"] is True
            assert rights["seccompProfile"] == {"type": "RuntimeDefault"}
            written = [one for one in container["volumeMounts"] if not one.get("readOnly")]
            assert [one["mountPath"] for one in written] == ["/var/lib/byoc-agents"]


@by_case
def test_every_mount_has_its_volume_and_no_port_is_there_twice(
    values: Path, kubernetes: str
) -> None:
    for pod in every_pod(values, kubernetes):
        volumes = [one["name"] for one in pod.spec.get("volumes", [])]
        assert len(volumes) == len(set(volumes))
        mounts = {mount["name"] for one in pod.ours for mount in one["volumeMounts"]}
        claimed = mounts - set(volumes)
        assert claimed in (set(), {"byoc-spool"})
        assert not claimed or "claim" in values.read_text()
        ports = [p["containerPort"] for one in pod.ours for p in one.get("ports", [])]
        assert len(ports) == len(set(ports))


@pytest.mark.parametrize(
    ("called", "target", "shared", "ids"),
    [
        ("default", "auto", True, (101, 101)),
        ("altinity", "auto", True, (101, 101)),
        ("all-sidecars", "process:clickhouse-server", True, (101, 101)),
        ("refused", "clickhouse:http://127.0.0.1:8123", False, (101, 101)),
        ("bitnami", "clickhouse:http://127.0.0.1:8123", None, (1001, 1001)),
    ],
)
def test_the_scraper_reads_its_neighbour_as_far_as_it_may(
    called: str, target: str, shared: bool | None, ids: tuple[int, int]
) -> None:
    """The kernel's counters want one process namespace, uid and gid; else ClickHouse's own."""
    values = render.CHART / "ci" / f"{called}-values.yaml"
    (pod,) = [one for one in every_pod(values, render.NEW) if one.beside]
    scraper = next(one for one in pod.ours if "billing-scraper" in one["args"])
    assert environment(scraper)["BYOC_BILLING_TARGET"] == target
    assert pod.spec.get("shareProcessNamespace") is shared
    rights = scraper["securityContext"]
    assert (rights["runAsUser"], rights["runAsGroup"]) == ids


def test_the_size_is_told_by_the_downward_api_where_there_is_one() -> None:
    named = {"BYOC_LIMITS_CPU_MILLICORES": "1m", "BYOC_LIMITS_MEMORY_BYTES": "1"}
    for called, wanted in (("default", named), ("refused", {})):
        values = render.CHART / "ci" / f"{called}-values.yaml"
        (pod,) = [one for one in every_pod(values, render.NEW) if one.beside]
        scraper = next(one for one in pod.ours if "billing-scraper" in one["args"])
        fields = [one for one in scraper["env"] if "resourceFieldRef" in one.get("valueFrom", {})]
        found = {one["name"]: one["valueFrom"]["resourceFieldRef"] for one in fields}
        assert {name: ref["divisor"] for name, ref in found.items()} == wanted
        assert all(ref["containerName"] == "clickhouse" for ref in found.values())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], {"BYOC_LIMITS_CPU_MILLICORES", "BYOC_LIMITS_MEMORY_BYTES"}),
        (["clickhouse.hasCpuLimit=false"], {"BYOC_LIMITS_MEMORY_BYTES"}),
        (["clickhouse.hasMemoryLimit=false"], {"BYOC_LIMITS_CPU_MILLICORES"}),
        (["clickhouse.hasLimits=false"], set()),
        (["clickhouse.resources.limits.cpu=null"], {"BYOC_LIMITS_MEMORY_BYTES"}),
        (["clickhouse.resources.limits=null"], set()),
    ],
)
def test_a_figure_without_a_limit_is_not_asked_of_the_downward_api(
    options: list[str], expected: set[str]
) -> None:
    """It would give the node's size."""
    values = render.CHART / "ci" / "default-values.yaml"
    more = [argument for option in options for argument in ("--set", option)]
    (pod,) = [one for one in pods(render.manifests(values, *more)) if one.beside]
    scraper = next(one for one in pod.ours if "billing-scraper" in one["args"])
    assert {one["name"] for one in scraper["env"] if "LIMITS" in one["name"]} == expected


@by_case
def test_only_who_calls_aws_has_an_identity(values: Path, kubernetes: str) -> None:
    for pod in every_pod(values, kubernetes):
        for container in pod.ours:
            calls = bool({"billing-scraper", "state-exporter"} & set(container["args"]))
            found = environment(container)
            assert ("AWS_EC2_METADATA_DISABLED" in found) == calls
            assert calls or not [name for name in found if name.startswith("AWS_")]


def test_a_forwarder_of_its_own_has_an_account_without_a_role() -> None:
    documents = render.manifests(render.CHART / "ci" / "default-values.yaml")
    accounts = {d["metadata"]["name"]: d for d in documents if d["kind"] == "ServiceAccount"}
    (forwarder,) = [one for one in pods(documents) if not one.beside]
    (clickhouse,) = [one for one in pods(documents) if one.beside]
    annotations = {name: one["metadata"].get("annotations", {}) for name, one in accounts.items()}
    assert annotations[forwarder.spec["serviceAccountName"]] == {}
    role = annotations[clickhouse.spec["serviceAccountName"]]["eks.amazonaws.com/role-arn"]
    assert role == "arn:aws:iam::111122223333:role/byoc-agents"


def test_a_projected_token_is_for_our_containers_only() -> None:
    values = render.CHART / "ci" / "refused-values.yaml"
    (pod,) = every_pod(values, render.NEW)
    holders = [
        one["name"]
        for one in [*pod.spec["initContainers"], *pod.spec["containers"]]
        if "byoc-token" in str(one["volumeMounts"])
    ]
    assert holders == ["byoc-agents"]
    assert environment(pod.ours[0]).keys() >= GIVEN_BY_EKS
    (account,) = [d for d in render.manifests(values) if d["kind"] == "ServiceAccount"]
    assert "annotations" not in account["metadata"]


def _enumerations(node: Any) -> list[Any]:
    if isinstance(node, dict):
        own = [node["propertyNames"]] if "propertyNames" in node else []
        return own + [found for child in node.values() for found in _enumerations(child)]
    return (
        [found for child in node for found in _enumerations(child)]
        if isinstance(node, list)
        else []
    )
