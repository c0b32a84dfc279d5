"""The optional objects of the chart for access: the ingress and the engineers' ClusterRole."""

import asyncio
import copy
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator  # type: ignore[import-untyped]

from byoc_agents import __version__
from byoc_agents.access.orders import Approve, Submit
from byoc_agents.app.cli import main
from byoc_agents.app.run import configure
from byoc_agents.policy import ingress
from lab.real.chart import render
from lab.real.chart.render import CI, Manifest
from lab.real.parts import helm, install, manifests
from tests.unit.access.access_documents import GRANT_ID
from tests.unit.access.program_harness import Program, until

DEFAULT = CI[[render.name(one) for one in CI].index("default")]
ON = (
    *("--set", "ingress.enabled=true", "--set", "ingress.hosts={ch.svc-1.example.com}"),
    *("--set", "ingress.allowFrom={203.0.113.0/24}", "--set", "ingress.issuer.name=letsencrypt"),
)
PRIVATE = (*ON, "--set", "ingress.variant=private")
ACCESS = render.CHART / "ci" / "access-values.yaml"
SUPPORT = ("--set", "supportView.enabled=true")
OURS = {"Service", "Certificate", "Gateway", "VirtualService", "AuthorizationPolicy"}


def added(*flags: str, version: str = helm.VERSIONS[0]) -> list[Manifest]:
    """Return the documents that the flags add to a render."""
    without = render.manifests(DEFAULT, version=version)
    return [one for one in render.manifests(DEFAULT, *flags, version=version) if one not in without]


@pytest.mark.parametrize("version", helm.VERSIONS)
@pytest.mark.parametrize("flags", [ON, PRIVATE], ids=["public", "private"])
def test_the_check_accepts_the_ingress(
    version: str, flags: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = added(*flags, version=version)
    assert {one["kind"] for one in made} == OURS
    file = tmp_path / "rendered.yaml"
    file.write_text(render.text(DEFAULT, *flags, version=version))
    assert (main(["policy", "ingress", "--check", str(file)]), capsys.readouterr().out) == (0, "")


def test_a_render_without_the_filters_is_not_accepted() -> None:
    made = added(*ON)
    service = next(one for one in made if one["kind"] == "Service")
    del service["spec"]["loadBalancerSourceRanges"]
    assert len(ingress.judge(made)) == 1
    assert len(ingress.judge([one for one in made if one["kind"] != "AuthorizationPolicy"])) == 2


def test_the_variants_differ_in_the_scheme_alone() -> None:
    public, private = ({one["kind"]: one for one in added(*flags)} for flags in (ON, PRIVATE))
    name = "service.beta.kubernetes.io/aws-load-balancer-scheme"
    notes = (
        public["Service"]["metadata"]["annotations"],
        private["Service"]["metadata"]["annotations"],
    )
    assert [one.pop(name) for one in notes] == ["internet-facing", "internal"]
    assert public == private


def test_every_other_object_is_the_same_with_and_without() -> None:
    """With all off, the golden renders of the chart show that nothing changed."""
    without = render.manifests(DEFAULT)
    assert [one for one in without if one not in render.manifests(DEFAULT, *ON, *SUPPORT)] == []
    for values in CI:
        text = render.text(values)
        assert "LoadBalancer" not in text
        assert ("byoc-support-view" in text) == (values == ACCESS)
        assert "-ingress" not in text


REFUSED = {
    "ingress.hosts: is required": {"hosts": []},
    "ingress.allowFrom: is required": {"allowFrom": []},
    "ingress.issuer.name: is required": {"issuer": {"name": ""}},
    "ingress.clickhouseHost: is required": {"owner": "other"},
    "ingress.allowFrom": {"allowFrom": ["0.0.0.0/0"]},
    "ingress.allowFrom: 128.0.0.0/1 is wider than /8": {"allowFrom": ["0.0.0.0/1", "128.0.0.0/1"]},
    "ingress.allowFrom: 2000::/3 is wider than /20": {"allowFrom": ["2000::/3"]},
    "ingress.allowFrom: ::ffff:0:0/96 contains IPv4": {"allowFrom": ["::ffff:0:0/96"]},
    "ingress.variant": {"variant": "open"},
}


@pytest.mark.parametrize(("text", "changes"), REFUSED.items(), ids=REFUSED)
def test_a_value_that_opens_too_much_or_is_missing_is_refused(
    text: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    usual: dict[str, Any] = {
        "enabled": True,
        "hosts": ["ch.svc-1.example.com"],
        "allowFrom": ["203.0.113.0/24"],
        "issuer": {"name": "letsencrypt"},
    }
    owner = changes.get("owner", "chart")
    given = usual | {name: value for name, value in changes.items() if name != "owner"}
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump({"ingress": given, "clickhouse": {"owner": owner}}))
    where = [str(render.CHART), "-f", str(DEFAULT), "-f", str(file)]
    done = render.run(helm.VERSIONS[0], "template", "x", *where)
    assert done.returncode != 0
    assert text in done.stderr


# --- the schemas of Istio and cert-manager ---


def schema(document: Manifest) -> dict[str, Any] | None:
    """Return the projects' own schema of a document, closed: an unknown field fails."""
    group, _, version = document["apiVersion"].partition("/")
    for file in install.resource_definitions():
        for definition in yaml.load_all(file.read_text(), Loader=yaml.CSafeLoader):
            spec: dict[str, Any] = definition["spec"] if definition else {"group": ""}
            if spec["group"] == group and spec["names"]["kind"] == document["kind"]:
                (one,) = (one for one in spec["versions"] if one["name"] == version)
                found: dict[str, Any] = close(one["schema"]["openAPIV3Schema"])
                found["properties"] |= {"apiVersion": {}, "kind": {}, "metadata": {}}
                return found
    return None


def close(node: Any) -> Any:
    if isinstance(node, list):
        return [close(one) for one in node]
    if not isinstance(node, dict):
        return node
    made = {key: close(value) for key, value in node.items()}
    preserved = node.get("x-kubernetes-preserve-unknown-fields")
    if node.get("type") == "object" and "properties" in node and not preserved:
        made.setdefault("additionalProperties", False)
    return made


@pytest.mark.parametrize("kind", sorted(OURS - {"Service"}))
def test_the_projects_own_schema_knows_every_field(kind: str) -> None:
    (document,) = (one for one in added(*ON) if one["kind"] == kind)
    known = schema(document)
    assert known
    assert [error.message for error in Draft7Validator(known).iter_errors(document)] == []
    misspelled = copy.deepcopy(document)
    misspelled["spec"]["selecter"] = {}
    assert not Draft7Validator(known).is_valid(misspelled)


def test_kubernetes_knows_every_field_of_the_rest() -> None:
    own = {"Service", "ClusterRole", "ClusterRoleBinding"}
    documents = [one for one in added(*ON, *SUPPORT) if one["kind"] in own]
    assert {one["kind"] for one in documents} == own
    assert manifests.mistakes([("1.29.0", one) for one in documents]) == ["", "", ""]


# --- the ClusterRole ---

FORBIDDEN = {
    *("secrets", "configmaps", "pods/exec", "pods/attach", "pods/log", "pods/portforward"),
    *("pods/proxy", "nodes/proxy", "services/proxy", "serviceaccounts/token", "users", "groups"),
    *("serviceaccounts", "roles", "clusterroles", "rolebindings", "clusterrolebindings"),
}


def test_the_engineers_role_reads_health_and_nothing_that_holds_a_secret() -> None:
    role, binding = added(*SUPPORT)
    assert (role["kind"], binding["kind"]) == ("ClusterRole", "ClusterRoleBinding")
    for rule in role["rules"]:
        assert set(rule) == {"apiGroups", "resources", "verbs"}, "no URL and no name"
        assert set(rule["verbs"]) <= {"get", "list", "watch"}
        assert not FORBIDDEN & set(rule["resources"])
        assert all("*" not in one and "/" not in one for one in rule["resources"])
        assert "*" not in rule["apiGroups"]
    read = {name for rule in role["rules"] for name in rule["resources"]}
    assert read >= {"nodes", "pods", "events", "persistentvolumeclaims", "volumeattachments"}
    assert "aggregationRule" not in role
    assert not any("aggregate-to" in label for label in role["metadata"]["labels"])
    assert binding["subjects"] == [
        {"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "byoc-support-view"}
    ]
    assert binding["roleRef"]["name"] == role["metadata"]["name"] == "byoc-support-view"


# The access broker.

BROKER = """
accessBroker:
  enabled: true
  servers: {r0: "https://ch-0.shop.svc:8443", r1: "https://ch-1.shop.svc:8443"}
  eventsUrl: https://control.example.com/v1/events
  requestsUrl: https://control.example.com/v1/access
  secretName: broker
  caSecretName: broker-ca
  policy: |
    version: 1
"""


@pytest.fixture
def broker(tmp_path: Path) -> tuple[str, ...]:
    file = tmp_path / "broker.yaml"
    file.write_text(BROKER)
    return ("-f", str(file))


@pytest.mark.parametrize("version", helm.VERSIONS)
def test_the_broker_adds_its_own_objects_and_changes_no_other(
    version: str, broker: tuple[str, ...]
) -> None:
    before = render.manifests(DEFAULT, version=version)
    after = render.manifests(DEFAULT, *broker, version=version)
    made = [one for one in after if one not in before]
    assert [one for one in before if one not in after] == []
    assert sorted(one["kind"] for one in made) == [
        *("ConfigMap", "Deployment", "Job", "NetworkPolicy", "NetworkPolicy"),
        *("PersistentVolumeClaim", "ServiceAccount"),
    ]
    ends = ("-access-broker", "-access-broker-end")
    assert {one["metadata"]["name"].endswith(ends) for one in made} == {True}


def deployment(broker: tuple[str, ...]) -> Manifest:
    return next(one for one in added(*broker) if one["kind"] == "Deployment")


def test_the_broker_has_no_rights_and_no_token_in_the_cluster(broker: tuple[str, ...]) -> None:
    pod = deployment(broker)["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert not any("subPath" in mount for mount in container["volumeMounts"])
    assert "hostNetwork" not in pod


def test_the_brokers_secrets_are_readable_by_its_pods_group_only(
    broker: tuple[str, ...],
) -> None:
    pod = deployment(broker)["spec"]["template"]["spec"]
    secrets = [one["secret"] for one in pod["volumes"] if "secret" in one]
    assert [one["defaultMode"] for one in secrets] == [0o440, 0o440]
    assert pod["securityContext"]["fsGroup"] == 65532


def test_the_broker_requires_the_token_for_its_metrics_too(broker: tuple[str, ...]) -> None:
    flags = ("--set", "monitoring.tokenSecret.name=m")
    pod = deployment((*broker, *flags))["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    variables = {one["name"]: one.get("value") for one in container["env"]}
    assert variables["BYOC_METRICS_TOKEN_FILE"] == "/etc/byoc-agents/metrics/token"
    assert "byoc-metrics" in {one["name"] for one in container["volumeMounts"]}
    (secret,) = [one["secret"] for one in pod["volumes"] if one["name"] == "byoc-metrics"]
    assert (secret["secretName"], secret["defaultMode"]) == ("m", 0o440)


def test_the_program_accepts_the_settings_of_its_container(
    broker: tuple[str, ...], tmp_path: Path
) -> None:
    """The files of the Secret are other ones here; every other setting is as rendered."""
    (container,) = deployment(broker)["spec"]["template"]["spec"]["containers"]
    environ = {one["name"]: one["value"] for one in container["env"] if "value" in one}
    for name, text in (
        ("PASSWORD", "x"),
        ("TOKEN", "token"),
        ("SIGNING_SECRET", "whsec_" + "c2VjcmV0" * 5),
    ):
        file = tmp_path / name
        file.write_text(text)
        environ[f"BYOC_ACCESS_{name}_FILE"] = str(file)
    found = configure(container["args"][1:], environ)
    assert {(d.host, d.port) for d in found.destinations} == {
        *(("ch-0.shop.svc", 8443), ("ch-1.shop.svc", 8443), ("control.example.com", 443))
    }
    (policy,) = [
        one for one in added(*broker) if one["kind"] == "NetworkPolicy" and "egress" in one["spec"]
    ]
    ports = {port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]}
    assert ports == {53, 443, 8443}
    (client,) = policy["spec"]["ingress"]
    assert [port["port"] for port in client["ports"]] == [container["ports"][0]["containerPort"]]


def test_the_kill_switch_is_on_until_a_person_sets_it_off(broker: tuple[str, ...]) -> None:
    for flags, text in (((), "on"), (("--set-string", "accessBroker.killSwitch=off"), "off")):
        found = next(one for one in added(*broker, *flags) if one["kind"] == "ConfigMap")
        assert found["data"]["kill-switch"] == text
        assert found["data"]["policy.yaml"] == "version: 1\n"


@pytest.mark.parametrize("field", ["policy", "secretName", "caSecretName", "eventsUrl"])
def test_a_broker_without_a_required_value_is_refused(broker: tuple[str, ...], field: str) -> None:
    done = render.run(
        *(helm.VERSIONS[0], "template", "x", str(render.CHART), "-f", str(DEFAULT)),
        *(*broker, "--set", f"accessBroker.{field}="),
    )
    assert done.returncode
    assert f"accessBroker.{field}: is required" in done.stderr


# Its image.


def images_of(documents: list[Manifest]) -> set[str]:
    """Return the images of the broker and of its hook."""
    pods = [
        one["spec"]["template"]["spec"] for one in documents if one["kind"] in {"Deployment", "Job"}
    ]
    return {container["image"] for pod in pods for container in pod["containers"]}


def test_the_image_is_that_of_the_release_unless_another_one_is_given(
    broker: tuple[str, ...],
) -> None:
    digest = "sha256:" + "1" * 64
    for flags, image in (
        ((), f"byoc-agents/access-broker:{__version__}"),
        (
            ("--set", "image.repository=r.example.com/x"),
            f"r.example.com/x/access-broker:{__version__}",
        ),
        (("--set", f"image.digests.access-broker={digest}"), f"byoc-agents/access-broker@{digest}"),
        (("--set", "accessBroker.image=r.example.com/own:2"), "r.example.com/own:2"),
    ):
        made = [
            one
            for one in render.manifests(DEFAULT, *broker, *flags)
            if "-access-broker" in one["metadata"]["name"]
        ]
        assert images_of(made) == {image}


def test_a_required_digest_is_required_of_the_broker_too(broker: tuple[str, ...]) -> None:
    digest = "sha256:" + "1" * 64
    names = ("billing-scraper", "state-exporter", "alert-forwarder")
    flags = [f"--set=image.digests.{name}={digest}" for name in names]
    flags += ["--set=image.requireDigest=true", f"--set=clickhouse.image=clickhouse@{digest}"]
    command = ("template", "x", str(render.CHART), "-f", str(DEFAULT), *broker, *flags)
    refused = render.run(helm.VERSIONS[0], *command)
    assert refused.returncode
    assert "image.digests.access-broker: is required by image.requireDigest" in refused.stderr
    given = f"--set=image.digests.access-broker={digest}"
    assert render.run(helm.VERSIONS[0], *command, given).returncode == 0


def test_only_settings_of_the_broker_are_further_settings(broker: tuple[str, ...]) -> None:
    command = (helm.VERSIONS[0], "template", "x", str(render.CHART), "-f", str(DEFAULT), *broker)
    for setting, taken in (("BYOC_ACCESS_STORAGE", True), ("BYOC_ALERTS_MATCHERS", False)):
        done = render.run(*command, "--set-string", f"accessBroker.settings.{setting}=memory")
        assert (done.returncode == 0) is taken, setting


# The end of all access before an uninstall.


def test_an_uninstall_sets_the_kill_switch_first_and_waits(broker: tuple[str, ...]) -> None:
    flags = ("--set", "accessBroker.uninstallWaitSeconds=90")
    made = added(*broker, *flags)
    (job,) = [one for one in made if one["kind"] == "Job"]
    (deployment,) = [one for one in made if one["kind"] == "Deployment"]
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-delete"
    assert job["spec"]["backoffLimit"] == 0
    assert job["spec"]["activeDeadlineSeconds"] > 90
    pod, running = (one["spec"]["template"]["spec"] for one in (job, deployment))
    (container,), (daemon,) = pod["containers"], running["containers"]
    assert container["args"] == ["access", "kill", "on", "--wait", "90"]
    for field in ("image", "securityContext"):
        assert container[field] == daemon[field], "the same user may write into the same volume"
    assert pod["securityContext"] == running["securityContext"]
    (volume,), (mount,) = pod["volumes"], container["volumeMounts"]
    assert volume in running["volumes"]
    assert mount in daemon["volumeMounts"]
    (state,) = [one for one in daemon["env"] if one["name"] == "BYOC_STATE_DIR"]
    assert container["env"] == [state]
    labels = job["spec"]["template"]["metadata"]["labels"]
    for policy in (one for one in made if one["kind"] == "NetworkPolicy"):
        selected = policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
        assert selected == policy["metadata"]["name"].endswith("-end")
        assert not (selected and {"ingress", "egress"} & policy["spec"].keys()), "it has no network"
    (claim,) = [one for one in made if one["kind"] == "PersistentVolumeClaim"]
    assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}


def test_the_hook_runs_on_the_brokers_node_or_on_any_if_no_broker_was_scheduled(
    broker: tuple[str, ...],
) -> None:
    """A required affinity whose selector matches the pod itself admits any node, if there is none.

    So the selector must match both pods, and no other pod of any release.
    """
    made = added(*broker)
    (job,) = [one for one in made if one["kind"] == "Job"]
    pod = job["spec"]["template"]
    (rule,) = pod["spec"]["affinity"]["podAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]
    assert rule.keys() == {"topologyKey", "labelSelector"}, "of the same namespace only"
    assert rule["topologyKey"] == "kubernetes.io/hostname"
    everything = [
        one["spec"]["template"]["metadata"]["labels"]
        for one in render.manifests(DEFAULT, *broker)
        if one["kind"] in {"Deployment", "StatefulSet", "DaemonSet", "Job"}
    ]
    matched = [labels for labels in everything if selects(rule["labelSelector"], labels)]
    components = [labels["app.kubernetes.io/component"] for labels in matched]
    assert sorted(components) == ["access-broker", "access-broker-end"]
    assert len(everything) > len(matched)
    assert not selects(
        rule["labelSelector"], matched[0] | {"app.kubernetes.io/instance": "another"}
    )


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    expressions = selector.get("matchExpressions", [])
    assert all(one["operator"] == "In" for one in expressions)
    return selector["matchLabels"].items() <= labels.items() and all(
        labels.get(one["key"]) in one["values"] for one in expressions
    )


async def test_the_command_of_the_hook_ends_all_access(
    broker: tuple[str, ...], tmp_path: Path
) -> None:
    """With the program itself, and servers that follow a script; again without the broker."""
    (job,) = [one for one in added(*broker) if one["kind"] == "Job"]
    (container,) = job["spec"]["template"]["spec"]["containers"]
    program = Program(made_folder(tmp_path))
    async with program.fakes():
        async with program.running():
            await program.order(Submit(envelope=program.request()), "1")
            await program.order(Approve(id=GRANT_ID, by="anna"), "2")
            await until(lambda: "open" in program.plane.states(), program.process)
            code, said = await run_as_hook(program, container)
            assert (code, said.splitlines()[-1]) == (0, "nobody has access")
            assert program.users == {"r0": [], "r1": []}
            assert program.kill_switch.exists()
        code, said = await run_as_hook(program, container)
        assert (code, said.splitlines()[-1]) == (0, "nobody has access")


async def test_the_hook_fails_while_access_is_open(broker: tuple[str, ...], tmp_path: Path) -> None:
    """Without a running broker, nobody ends an open grant: the uninstall must not go on."""
    flags = ("--set", "accessBroker.uninstallWaitSeconds=1")
    (job,) = [one for one in added(*broker, *flags) if one["kind"] == "Job"]
    (container,) = job["spec"]["template"]["spec"]["containers"]
    program = Program(made_folder(tmp_path))
    async with program.fakes():
        async with program.running():
            await program.order(Submit(envelope=program.request()), "1")
            await program.order(Approve(id=GRANT_ID, by="anna"), "2")
            await until(lambda: "open" in program.plane.states(), program.process)
        code, said = await run_as_hook(program, container)
        assert code == 1, said
        assert "not all access has ended in 1 s" in said


def made_folder(directory: Path) -> Path:
    folder = directory / "program"
    folder.mkdir()
    return folder


async def run_as_hook(program: Program, container: dict[str, Any]) -> tuple[int, str]:
    """Run the arguments of the hook's container with the state of the program."""
    command = (sys.executable, "-m", "byoc_agents.app.cli", *map(str, container["args"]))
    environ = {one["name"]: one["value"] for one in container["env"]}
    assert environ == {"BYOC_STATE_DIR": "/var/lib/byoc-agents"}
    environ["BYOC_STATE_DIR"] = str(program.directory / "state")
    done = await asyncio.create_subprocess_exec(
        *command,
        env={"PATH": os.environ["PATH"], **environ},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await done.communicate()
    return done.returncode or 0, said.decode()


# The endpoints of the tailnet, which the broker scales.


def test_the_broker_may_patch_the_scale_of_its_endpoints_and_nothing_else() -> None:
    documents = {(one["kind"], one["metadata"]["name"]): one for one in render.manifests(ACCESS)}
    name = "byoc-agents-access-broker"
    role = documents["Role", name]
    assert role["rules"] == [
        {
            "apiGroups": ["apps"],
            "resources": ["deployments/scale"],
            "resourceNames": ["byoc-agents-tailnet-clickhouse"],
            "verbs": ["patch"],
        }
    ], "not the endpoint that is always on"
    binding = documents["RoleBinding", name]
    (subject,) = binding["subjects"]
    assert (subject["kind"], subject["name"]) == ("ServiceAccount", name)
    assert binding["roleRef"]["name"] == name
    bound = [one for kind, one in documents if "Binding" in kind and name in one]
    assert bound == [name]
    pod = documents["Deployment", name]["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    (volume,) = [one for one in pod["volumes"] if "projected" in one]
    token, authority = volume["projected"]["sources"]
    assert token == {"serviceAccountToken": {"expirationSeconds": 3600, "path": "token"}}
    assert authority["configMap"]["name"] == "kube-root-ca.crt"
    (container,) = pod["containers"]
    environ = {one["name"]: one.get("value") for one in container["env"]}
    assert environ["BYOC_ACCESS_TAILNET"] == "clickhouse=clickhouse/byoc-agents-tailnet-clickhouse"
    (mount,) = [one for one in container["volumeMounts"] if one["name"] == volume["name"]]
    assert mount["mountPath"] == environ["BYOC_ACCESS_KUBERNETES_DIR"]
    scaled = documents["Deployment", "byoc-agents-tailnet-clickhouse"]
    assert scaled["spec"]["replicas"] == 0


def test_the_addresses_of_the_api_server_are_required_and_the_only_ones_of_its_port() -> None:
    command = ("template", "x", str(render.CHART), "-f", str(ACCESS))
    without = ("--set-json", "networkPolicy.cidrs.kubernetes=[]")
    refused = render.run(helm.VERSIONS[0], *command, *without)
    assert refused.returncode
    assert "networkPolicy.cidrs.kubernetes: is required" in refused.stderr
    flags = ("--set", "accessBroker.kubernetesUrl=https://10.0.1.5:6443")
    for given, port, cidrs in (
        ((), 443, {"10.0.1.0/24", "10.0.2.0/24"}),
        (flags, 6443, {"10.0.1.5/32"}),
    ):
        (policy,) = [
            one
            for one in render.manifests(ACCESS, *given)
            if one["kind"] == "NetworkPolicy" and one["metadata"]["name"].endswith("access-broker")
        ]
        reached = {
            peer["ipBlock"]["cidr"]
            for rule in policy["spec"]["egress"]
            if rule["ports"] == [{"protocol": "TCP", "port": port}]
            for peer in rule["to"]
            if "ipBlock" in peer
        }
        assert cidrs <= reached
        assert reached - cidrs <= {"203.0.113.0/24"}, "the control plane's"


def test_without_an_endpoint_to_scale_the_broker_has_no_token(broker: tuple[str, ...]) -> None:
    for documents in (
        added(*broker),
        render.manifests(ACCESS, "--set", "tailnet.clickhouse.alwaysOn=true"),
        render.manifests(ACCESS, "--set", "tailnet.enabled=false"),
    ):
        (found,) = [
            one
            for one in documents
            if one["kind"] == "Deployment" and one["metadata"]["name"].endswith("access-broker")
        ]
        pod = found["spec"]["template"]["spec"]
        assert not any("projected" in one for one in pod["volumes"])
        assert "BYOC_ACCESS_TAILNET" not in str(pod)
        roles = [one["metadata"]["name"] for one in documents if one["kind"] == "Role"]
        assert "byoc-agents-access-broker" not in roles
