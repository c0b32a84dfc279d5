"""The rendered pods: settings that the daemons take, a ClickHouse left alone."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct

from byoc_agents.app.run import DAEMONS, OPTIONAL_DAEMONS, configure, daemon_spec
from byoc_agents.app.runtime import ClickHouseSettings
from byoc_agents.app.settings import CoreSettings, settings_of
from lab.real.chart import reference, render
from lab.real.chart.pods import Pod, environment, ours, pods, printed_pod

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
DEFAULT = render.CHART / "ci" / "default-values.yaml"
APART = (65532, 65532)  # uid and gid of a daemon that shares none with ClickHouse
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
def test_the_daemons_take_every_setting_and_miss_none(
    values: Path, kubernetes: str, tmp_path: Path
) -> None:
    """`configure` refuses BYOC_ variables it does not know, and says which are missing."""
    for pod in every_pod(values, kubernetes):
        for container in pod.ours:
            run, *daemons = container["args"]
            assert run == "run"
            settings = configure(daemons, mounted(container, tmp_path)).describe()
            assert settings["BYOC_ORGANIZATION_ID"] == "org-1"
            if pod.with_clickhouse:
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


def test_every_setting_of_the_daemons_has_a_place_in_the_chart() -> None:
    """A new setting fails here until a value sets it or the schema lists it under `settings`."""
    structs: list[type[Struct]] = [CoreSettings, ClickHouseSettings]
    structs += [daemon_spec(name).settings for name in DAEMONS]
    known = {one.variable for struct in structs for one, _ in settings_of(struct).values()}
    of_broker = {
        one.variable
        for name in OPTIONAL_DAEMONS
        for one, _ in settings_of(daemon_spec(name).settings).values()
    }
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
    assert listed <= known | of_broker
    by_file = {"BYOC_ALERTS_TOKEN", "BYOC_ALERTS_SIGNING_SECRET", "BYOC_ALERTS_WEBHOOK_TOKEN"}
    by_file |= {"BYOC_ALERTS_FINGERPRINT_SECRET", "BYOC_METRICS_TOKEN"}
    assert known - listed - rendered == by_file | {"BYOC_CLICKHOUSE_PASSWORD"}


@by_case
def test_sidecars_never_hold_clickhouse_back(values: Path, kubernetes: str) -> None:
    """No readiness, no start to wait for, a liveness of their own, and never more than asked."""
    for pod in every_pod(values, kubernetes):
        for container in pod.ours:
            port = int(environment(container)["BYOC_LISTEN"].rpartition(":")[2])
            assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": port}
            assert "startupProbe" not in container
            assert ("readinessProbe" in container) == (not pod.with_clickhouse)
            assert container["resources"]["requests"] == container["resources"]["limits"]
            liveness = container["livenessProbe"]
            patience = liveness["periodSeconds"] * liveness["failureThreshold"]
            assert patience >= 60, "a busy node does not mean a dead daemon"


@by_case
def test_native_sidecars_start_before_clickhouse_and_stop_after_it(
    values: Path, kubernetes: str
) -> None:
    """Kubernetes stops native sidecars when the containers are gone, in the opposite order."""
    wanted = kubernetes == render.NEW and render.name(values) != "all-sidecars"
    for pod in filter(lambda one: one.with_clickhouse, every_pod(values, kubernetes)):
        native = [one["name"] for one in pod.spec.get("initContainers", [])]
        plain = [one["name"] for one in pod.spec["containers"]]
        ours = [one["name"] for one in pod.ours]
        assert (native, plain) == (ours, ["clickhouse"]) if wanted else ([], ["clickhouse", *ours])
        assert all(one.get("restartPolicy") == ("Always" if wanted else None) for one in pod.ours)


@by_case
def test_there_is_time_to_drain(values: Path, kubernetes: str) -> None:
    for pod in every_pod(values, kubernetes):
        drain = {int(environment(one)["BYOC_SHUTDOWN_GRACE_SECONDS"]) for one in pod.ours}
        before = 60 if pod.with_clickhouse else 0  # clickhouse.stopSeconds
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
    ("called", "meter", "target", "shared", "ids"),
    [
        ("default", "process", "auto", True, APART),
        ("altinity", "process", "auto", True, APART),
        ("all-sidecars", "cgroup", "process:clickhouse-server", True, (101, 101)),
        ("refused", "clickhouse", "clickhouse:http://127.0.0.1:8123", None, APART),
        ("bitnami", "clickhouse", "clickhouse:http://127.0.0.1:8123", None, APART),
    ],
)
def test_each_meter_gets_what_it_needs_and_no_more(
    called: str, meter: str, target: str, shared: bool | None, ids: tuple[int, int]
) -> None:
    """Only the cgroup's counters need ClickHouse's uid and gid."""
    values = render.CHART / "ci" / f"{called}-values.yaml"
    (pod,) = [one for one in every_pod(values, render.NEW) if one.with_clickhouse]
    scraper = next(one for one in pod.ours if "billing-scraper" in one["args"])
    assert environment(scraper)["BYOC_BILLING_TARGET"] == target
    assert environment(scraper)["BYOC_BILLING_METER"] == meter
    assert pod.spec.get("shareProcessNamespace") is shared
    for container in pod.ours:
        rights = container["securityContext"]
        expected = ids if container is scraper else APART
        assert (rights["runAsUser"], rights["runAsGroup"]) == expected


def test_the_forwarder_gets_the_namespace_of_the_release() -> None:
    """Its default matchers select the alerts of this namespace only."""
    documents = render.manifests(DEFAULT, "--namespace", "another")
    (found,) = [
        environment(container)["BYOC_ALERTS_NAMESPACE"]
        for pod in pods(documents)
        for container in pod.ours
        if container["name"] == "alert-forwarder"
    ]
    assert found == "another"


@by_case
def test_the_hash_of_the_configuration_has_the_uid_of_the_pod(
    values: Path, kubernetes: str, tmp_path: Path
) -> None:
    """The hash leaves without a key. The uid has 122 random bits, so it cannot be guessed."""
    for pod in every_pod(values, kubernetes):
        for container in pod.ours:
            daemons = container["args"][1:]
            if not {"state-exporter", "alert-forwarder"} & set(daemons):
                continue  # no message of the others has the hash
            by_name = {one["name"]: one for one in container["env"]}
            source = by_name["BYOC_POD_UID"]["valueFrom"]["fieldRef"]["fieldPath"]
            assert source == "metadata.uid"
            environ = mounted(container, tmp_path)
            texts = {
                configure(daemons, environ | {"BYOC_POD_UID": uid}).text() for uid in ("u-1", "u-2")
            }
            assert len(texts) == 2


def test_clickhouse_keeps_its_own_ids() -> None:
    (pod,) = [one for one in every_pod(DEFAULT, render.NEW) if one.with_clickhouse]
    (clickhouse,) = pod.spec["containers"]
    for rights in (clickhouse["securityContext"], pod.spec["securityContext"]):
        assert (rights["runAsUser"], rights["runAsGroup"]) == (101, 101)
    assert pod.spec["securityContext"]["fsGroup"] == 101  # the sidecars write the spool by it


def test_an_account_that_the_customer_names_is_kept() -> None:
    """The role is then trusted for that account, by a token that only our containers hold."""
    documents = render.manifests(render.CHART / "ci" / "altinity-values.yaml")
    (pod,) = [one for one in pods(documents) if one.with_clickhouse]
    assert pod.spec["serviceAccountName"] == "clickhouse"
    accounts = {d["metadata"]["name"] for d in documents if d["kind"] == "ServiceAccount"}
    assert accounts == {"byoc-agents-alert-forwarder"}, "no account that no pod uses"
    instead = ("--set", "clickhouse.serviceAccountName=,serviceAccount.name=for-it")
    (pod,) = [
        one
        for one in pods(render.manifests(render.CHART / "ci" / "altinity-values.yaml", *instead))
        if one.with_clickhouse
    ]
    assert pod.spec["serviceAccountName"] == "for-it"
    named = ("--set", "clickhouse.serviceAccountName=clickhouse")
    printed = render.CHART / "ci" / "bitnami-values.yaml"
    assert "serviceAccount:" in render.printed(printed)
    assert "serviceAccount:" not in render.printed(printed, *named)


def test_the_size_is_read_from_the_downward_api_where_there_is_one() -> None:
    named = {"BYOC_LIMITS_CPU_MILLICORES": "1m", "BYOC_LIMITS_MEMORY_BYTES": "1"}
    for called, wanted in (("default", named), ("refused", {})):
        values = render.CHART / "ci" / f"{called}-values.yaml"
        (pod,) = [one for one in every_pod(values, render.NEW) if one.with_clickhouse]
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
    (pod,) = [one for one in pods(render.manifests(values, *more)) if one.with_clickhouse]
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


def secret_modes(spec: dict[str, Any]) -> dict[str, int]:
    """Return volume -> mode of its files, of the Secrets and tokens that our containers mount."""
    mounted = {mount["name"] for one in ours(spec) for mount in one["volumeMounts"]}
    volumes = [one for one in spec.get("volumes", []) if one["name"] in mounted]
    return {
        one["name"]: source["defaultMode"]
        for one in volumes
        for kind in ("secret", "projected")
        if (source := one.get(kind))
    }


@by_case
def test_secrets_are_readable_by_the_pods_group_only(values: Path, kubernetes: str) -> None:
    """The kubelet adds every container to the fsGroup; without one, 0440 is for root alone."""
    case = render.name(values)
    for pod in every_pod(values, kubernetes):
        not_ours = case == "openshift" or pod.owner == "Pod/printed"
        modes = set(secret_modes(pod.spec).values())
        assert modes <= {0o444 if not_ours else 0o440}, pod.owner
        if not not_ours:
            wanted = 101 if pod.with_clickhouse else 65532
            assert pod.spec["securityContext"]["fsGroup"] == wanted


@pytest.mark.parametrize(
    ("case", "owner", "modes"),
    [
        ("default", "StatefulSet/byoc-agents-clickhouse", {"byoc-token": 0o440}),
        ("altinity", "ClickHouseInstallationTemplate/byoc-agents", {"byoc-token": 0o440}),
        ("bitnami", "Pod/printed", {"byoc-token": 0o444}),
        ("default", "Deployment/byoc-agents-alert-forwarder", {"byoc-alerts": 0o440}),
        ("openshift", "Deployment/byoc-agents-alert-forwarder", {"byoc-alerts": 0o444}),
        (
            "mesh-operator",
            "Deployment/byoc-agents-alert-forwarder",
            {"byoc-alerts": 0o440, "byoc-alerts-tls": 0o440, "byoc-metrics": 0o440},
        ),
    ],
)
def test_each_owners_pods_have_the_modes_that_can_be_read(
    case: str, owner: str, modes: dict[str, int]
) -> None:
    values = render.CHART / "ci" / f"{case}-values.yaml"
    (pod,) = [one for one in every_pod(values, render.NEW) if one.owner == owner]
    assert secret_modes(pod.spec) == modes


def test_a_forwarder_of_its_own_has_an_account_without_a_role() -> None:
    documents = render.manifests(DEFAULT)
    accounts = {d["metadata"]["name"] for d in documents if d["kind"] == "ServiceAccount"}
    (forwarder,) = [one for one in pods(documents) if not one.with_clickhouse]
    (clickhouse,) = [one for one in pods(documents) if one.with_clickhouse]
    used = {one.spec["serviceAccountName"] for one in (forwarder, clickhouse)}
    assert used == accounts == {"byoc-agents", "byoc-agents-alert-forwarder"}
    assert not [name for name in environment(forwarder.ours[0]) if name.startswith("AWS_")]
    assert "byoc-token" not in str(forwarder.spec)


@pytest.mark.parametrize("called", ["default", "altinity", "refused", "deployments"])
def test_a_token_of_our_own_audience_is_mounted_into_our_containers_only(called: str) -> None:
    documents = render.manifests(render.CHART / "ci" / f"{called}-values.yaml")
    for pod in pods(documents):
        containers = [*pod.spec.get("initContainers", []), *pod.spec["containers"]]
        holders = {one["name"] for one in containers if "byoc-token" in str(one)}
        callers = {one["name"] for one in pod.ours if environment(one).keys() & GIVEN_BY_EKS}
        assert holders == callers <= {one["name"] for one in pod.ours}
        tokens = [one for one in pod.spec.get("volumes", []) if one["name"] == "byoc-token"]
        sources = [source for one in tokens for source in one["projected"]["sources"]]
        audiences = [source["serviceAccountToken"]["audience"] for source in sources]
        assert audiences == (["byoc-agents"] if holders else [])
    accounts = [d for d in documents if d["kind"] == "ServiceAccount"]
    assert not [one for one in accounts if "annotations" in one["metadata"]], "EKS would inject"


def test_a_scraper_of_its_own_is_one_process_for_all_replicas() -> None:
    """Its name is part of the objects' keys, so it stays the same when the pod is replaced."""
    values = render.CHART / "ci" / "replicas-values.yaml"
    (pod,) = every_pod(values, render.NEW)
    (container,) = pod.ours
    found = environment(container)
    assert found["BYOC_REPLICA"] == "byoc-agents-billing-scraper"
    assert found["BYOC_CLICKHOUSE_URL"] == (
        "chi-a-0-0=https://chi-a-0-0.clickhouse.svc:8443,"
        "chi-a-0-1=https://chi-a-0-1.clickhouse.svc:8443"
    )
    assert (found["BYOC_BILLING_METER"], found["BYOC_BILLING_TARGET"]) == ("clickhouse", "auto")
    assert not [name for name in found if "POD_UID" in name or "LIMITS" in name]
    assert "shareProcessNamespace" not in pod.spec
    assert not [d for d in render.manifests(values) if d["kind"] == "StatefulSet"]


@pytest.mark.parametrize("values", render.CI, ids=render.name)
def test_each_deployment_has_an_account_and_a_policy_of_its_own(values: Path) -> None:
    documents = render.manifests(values)
    accounts = {d["metadata"]["name"] for d in documents if d["kind"] == "ServiceAccount"}
    deployments = {d["metadata"]["name"]: d for d in documents if d["kind"] == "Deployment"}
    policies = [d for d in documents if d["kind"] == "NetworkPolicy"]
    for name, document in deployments.items():
        template = document["spec"]["template"]
        assert template["spec"]["serviceAccountName"] == name
        selected = [
            one["metadata"]["name"]
            for one in policies
            if one["spec"]["podSelector"]["matchLabels"].items()
            <= template["metadata"]["labels"].items()
        ]
        assert selected == [name]
    assert set(deployments) <= accounts


def _enumerations(node: Any) -> list[Any]:
    if isinstance(node, dict):
        own = [node["propertyNames"]] if "propertyNames" in node else []
        return own + [found for child in node.values() for found in _enumerations(child)]
    return (
        [found for child in node for found in _enumerations(child)]
        if isinstance(node, list)
        else []
    )
