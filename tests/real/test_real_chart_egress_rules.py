"""`sidecars.egressRules`: the rules of the command, in one init container, and nothing else."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.real.chart import reference, render
from lab.real.chart.altinity_operator import build_pod_spec, find_problems
from lab.real.chart.pods import Pod, as_manifest, environment, pods, printed_pod
from lab.real.parts import helm, manifests

CI, ALTINITY = render.CHART / "ci", render.CHART / "examples" / "altinity"
PAGE = render.CHART.parents[1] / "docs" / "install-kubernetes.md"
NAME = "byoc-egress-rules"
DIGEST = f"registry.example.com/nft@sha256:{'a' * 64}"
PRINT = (sys.executable, "-m", "byoc_agents.app.cli", "policy", "egress-rules")
IDENTITY = {"irsa": "irsa", "podIdentity": "pod-identity", "secret": "environment"}
CIDRS = {
    "s3": ["3.5.136.0/22", "2a05:d07a:c000::/40"],
    "sqs": ["10.0.4.0/24"],
    "sts": ["10.0.5.0/24"],
    "control-plane": ["203.0.113.0/24"],
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "chart": ("default", {}),
    "several-of-each": (
        "default",
        {"sidecars.egressRules": {"dns": ["10.96.0.10/32", "fd00::a/128"], "also": ["s3", "sts"]}},
    ),
    "an-address-and-a-host": (
        "default",
        {
            "sidecars.egressRules": {
                "also": ["10.0.4.9/32", "2001:db8::/64", "sqs.eu-central-1.amazonaws.com"]
            }
        },
    ),
    "one-process": ("default", {"sidecars": {"oneProcess": True}}),
    "forwarder-too": ("default", {"alertForwarder": {"placement": "sidecar"}}),
    "one-sidecar": ("default", {"billingScraper": {"enabled": False}}),
    "altinity": ("altinity", {}),
    "bitnami": ("bitnami", {}),
    "other": ("bitnami", {"clickhouse": {"owner": "other"}}),
    "proxy": ("proxy", {"networkPolicy": {"cidrs": {"proxy": ["10.0.6.7/32"]}}}),
    "pod-identity": ("pod-identity-claims", {}),
    "pod-identity-of-ipv6": ("ipv6", {"istio": {"enabled": False}}),
    "any-address-for-the-policy": ("default", {"networkPolicy": {"wide": True}}),
    "cilium": ("default", {"networkPolicy": {"enabled": False, "cilium": True}}),
    "endpoints": ("closed-network", {}),
}


def merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(first)
    for key, value in second.items():
        old = result.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        result[key] = merged(old or {}, value) if both else value
    return result


def write(directory: Path, example: str, changes: Mapping[str, Any]) -> tuple[Path, dict[str, Any]]:
    """Write an example with the rules on; return the file and its values."""
    given = yaml.safe_load((CI / f"{example}-values.yaml").read_text())
    rules = {"enabled": True, "image": DIGEST, "dns": ["10.96.0.10/32"]}
    given = merged(given, {"networkPolicy": {"cidrs": CIDRS}, "sidecars": {"egressRules": rules}})
    for path, value in changes.items():
        change = value
        for key in reversed(path.split(".")):
            change = {key: change}
        given = merged(given, change)
    file = directory / f"{example}-values.yaml"
    file.write_text(yaml.safe_dump(given))
    return file, given


def pod_of(values: Path, kubernetes: str = render.NEW, *flags: str) -> Pod:
    if re.search("owner: (bitnami|other)", values.read_text()):
        return printed_pod(values, kubernetes)
    documents = render.manifests(values, *flags, kubernetes=kubernetes)
    (pod,) = [one for one in pods(documents) if one.with_clickhouse]
    return pod


def command(values: Mapping[str, Any], pod: Pod, *more: str, given: str = "") -> tuple[int, str]:
    """Run the command for the settings of the pod's containers."""
    usual = reference.defaults()
    rules = values["sidecars"]["egressRules"]
    flags = ["--uid=65532", f"--identity={IDENTITY[values['aws'].get('identity', 'irsa')]}"]
    flags += [f"--family={merged(usual, values)['networkPolicy']['family']}"]
    flags += [f"--dns={cidr}" for cidr in rules["dns"]]
    flags += [f"--also={name}" for name in rules.get("also", [])]
    for name, cidrs in values["networkPolicy"]["cidrs"].items():
        flags += [f"--cidr={name}={cidr}" for cidr in cidrs]
    daemons = [name for one in pod.ours for name in one["args"][1:]]
    environ = {name: value for one in pod.ours for name, value in environment(one).items()}
    done = subprocess.run(
        [*PRINT, *daemons, *flags, *more],
        env={"PATH": os.environ["PATH"]} | environ,
        input=given,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode < 2, done.stderr
    return done.returncode, done.stdout


@pytest.mark.parametrize(("example", "changes"), CASES.values(), ids=CASES)
def test_the_rules_are_those_that_the_command_prints(
    example: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    """Byte for byte, and before all sidecars: native ones start in the order of the list."""
    values, given = write(tmp_path, example, changes)
    for kubernetes in (render.NEW, render.OLD):
        pod = pod_of(values, kubernetes)
        first, *others = pod.spec["initContainers"]
        assert (first["name"], first["command"]) == (NAME, ["nft"])
        assert command(given, pod) == (0, first["args"][0])
        assert len(first["args"]) == 1
        native = kubernetes == render.NEW
        assert [one["name"] for one in others] == [one["name"] for one in pod.ours if native]
    checked = command(given, pod, "--check=-", given=first["args"][0])
    assert checked == (0, "")
    assert command(given, pod, "--check=-", "--also=0.0.0.0/0", given=first["args"][0])[0] == 1


def test_the_page_of_the_installation_compares_a_pod_with_its_settings(tmp_path: Path) -> None:
    """Its values, with those of its section on these rules, and its command."""
    page = PAGE.read_text()
    section = page.partition("\n## Rules by uid\n")[2].partition("\n## ")[0]
    block, command = re.findall(r"^```(?:yaml)?\n(.+?)^```", section, re.MULTILINE | re.DOTALL)
    usual = yaml.safe_load(page.partition("```yaml\n")[2].partition("```")[0])
    step_1 = tmp_path / "step-1.yaml"  # another file: a rendered file is kept by its name
    step_1.write_text(yaml.safe_dump(usual))
    first = pod_of(step_1).spec["initContainers"][0]
    assert first["name"] == NAME, "the values of step 1 hold ClickHouse and the daemons apart"
    assert usual["sidecars"]["egressRules"]["also"] == []
    values = tmp_path / "values.yaml"
    values.write_text(yaml.safe_dump(merged(usual, yaml.safe_load(block))))
    rules = pod_of(values).spec["initContainers"][0]["args"][0]
    words = shlex.split(command.partition("byoc-agents ")[2].replace("\\\n", ""))
    for flags, code in ((words, 0), ([*words, "--also=sqs"], 1)):
        done = subprocess.run(
            [sys.executable, "-m", "byoc_agents.app.cli", *flags],
            env={"PATH": os.environ["PATH"]} | dict(re.findall(r"\b(BYOC_\w+)=(\S+)", page)),
            input=rules,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, not done.stdout) == (code, code == 0), done.stdout + done.stderr


@pytest.mark.parametrize("example", ["default", "altinity", "bitnami"])
def test_the_container_is_all_that_is_added(example: str, tmp_path: Path) -> None:
    """Every other container, volume and object is as without the rules."""
    values, _ = write(tmp_path, example, {})
    off = ("--set", "sidecars.egressRules.enabled=false")
    if example == "bitnami":
        first, second = (yaml.safe_load(render.printed(values, *flags)) for flags in (off, ()))
        added = second["initContainers"].pop(0)
        assert second == first
    else:
        first, second = render.manifests(values, *off), render.manifests(values)
        (pod,) = [one for one in pods(second) if one.with_clickhouse]
        added = pod.spec["initContainers"].pop(0)
        assert second == first
    assert added["name"] == NAME


@pytest.mark.parametrize("example", ["default", "altinity", "bitnami"])
def test_kubernetes_knows_every_field(example: str, tmp_path: Path) -> None:
    values, _ = write(tmp_path, example, {})
    (mistake,) = manifests.mistakes([(render.NEW, as_manifest(pod_of(values)))])
    assert not mistake


def test_only_that_container_has_rights_and_only_over_the_network(tmp_path: Path) -> None:
    values, _ = write(tmp_path, "default", {})
    pod = pod_of(values)
    every: list[dict[str, Any]] = [*pod.spec["initContainers"], *pod.spec["containers"]]
    first, *others = every
    assert first["securityContext"] == {
        "runAsNonRoot": False,
        "runAsUser": 0,
        "runAsGroup": 0,
        "seccompProfile": {"type": "RuntimeDefault"},
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]},
    }
    assert "volumeMounts" not in first
    assert "env" not in first
    assert "restartPolicy" not in first
    assert first["resources"]["requests"] == first["resources"]["limits"]
    for container in others:
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["securityContext"]["runAsNonRoot"] is True


def test_the_daemons_have_the_uid_of_the_rules_and_clickhouse_another(tmp_path: Path) -> None:
    for example in ("default", "altinity", "bitnami"):
        values, given = write(tmp_path, example, {})
        pod = pod_of(values)
        (uid,) = re.findall(r"meta skuid (\d+) ", pod.spec["initContainers"][0]["args"][0])
        assert {str(one["securityContext"]["runAsUser"]) for one in pod.ours} == {uid}
        assert str(merged(reference.defaults(), given)["clickhouse"]["runAsUser"]) != uid


def test_altinitys_operator_starts_it_with_the_sidecars(tmp_path: Path) -> None:
    values, _ = write(tmp_path, "altinity", {})
    installation = yaml.safe_load((ALTINITY / "chi.yaml").read_text())
    (template,) = [
        one for one in render.manifests(values) if one["kind"] == "ClickHouseInstallationTemplate"
    ]
    spec, claims = build_pod_spec(template, installation, "0.25.6")
    assert find_problems(spec, claims) == []
    assert spec["initContainers"][0]["name"] == NAME


IMPOSSIBLE: dict[str, tuple[dict[str, Any], str]] = {
    "no-image": (
        {"sidecars.egressRules.image": ""},
        "sidecars.egressRules.image: is required: an image of yours that has the program nft",
    ),
    "image-by-tag": (
        {"sidecars.egressRules.image": "registry.example.com/nft:1", "image.requireDigest": True},
        "sidecars.egressRules.image: registry.example.com/nft:1 has no digest",
    ),
    "no-resolver": ({"sidecars.egressRules.dns": []}, "sidecars.egressRules.dns: is required"),
    "no-addresses": (
        {"networkPolicy.cidrs.sqs": [], "networkPolicy.wide": True},
        "networkPolicy.cidrs.sqs: is required by sidecars.egressRules: the addresses of sqs.eu-",
    ),
    "no-addresses-with-cilium-alone": (
        {"networkPolicy.cidrs": None, "networkPolicy.enabled": False, "networkPolicy.cilium": True},
        "networkPolicy.cidrs.s3: is required by sidecars.egressRules",
    ),
    "no-such-destination": (
        {"sidecars.egressRules.also": ["gcs"]},
        "sidecars.egressRules.also: no destination of the sidecars is gcs; expected a CIDR, or one",
    ),
    "one-uid": (
        {"clickhouse.runAsUser": 65532},
        "clickhouse.runAsUser: 65532 is the uid of the sidecars",
    ),
    "clickhouses-uid": (
        {"billingScraper.meter": "cgroup"},
        "billingScraper.meter: cgroup gives the scraper ClickHouse's uid",
    ),
    "clickhouses-uid-in-one-process": (
        {"billingScraper.meter": "cgroup", "sidecars.oneProcess": True},
        "billingScraper.meter: cgroup gives the scraper ClickHouse's uid",
    ),
    "openshift": ({"openshift": True}, "OpenShift gives all containers of a namespace one uid"),
    "mesh": ({"istio.enabled": True}, "the mesh's proxy connects for all containers"),
    "no-sidecar": (
        {
            "billingScraper.enabled": False,
            "stateExporter.placement": "deployment",
            "stateExporter.servers.a": "https://a.svc:8443",
        },
        "sidecars.egressRules: no daemon is a sidecar; expected enabled: false",
    ),
}


def refusal(values: Path) -> str:
    where = ("template", "x", str(render.CHART), "-f", str(values))
    done = render.run(helm.VERSIONS[0], *where)
    assert done.returncode != 0
    return done.stderr


@pytest.mark.parametrize(("changes", "said"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_values_with_which_the_rules_cannot_hold_are_refused(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    values, _ = write(tmp_path, "default", changes)
    assert said in refusal(values)
    off, _ = write(tmp_path, "default", changes | {"sidecars.egressRules.enabled": False})
    done = render.run(helm.VERSIONS[0], "template", "x", str(render.CHART), "-f", str(off))
    assert "egressRules" not in done.stderr


@pytest.mark.parametrize(
    "changes",
    [
        {"sidecars.egressRules.dns": ["kube-dns"]},
        {"sidecars.egressRules.also": ["s3;flush"]},
        {"sidecars.egressRules.image": "a b"},
        {"sidecars.egressRules.uid": 1},
    ],
    ids=str,
)
def test_the_schema_refuses_what_no_rule_can_contain(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    values, _ = write(tmp_path, "default", changes)
    assert "values don't meet the specifications of the schema" in refusal(values)
