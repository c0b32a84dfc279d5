"""Tests of the pods' placement, additions to pods, the objects' names, and `helm test`."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.real.chart import render
from lab.real.chart.pods import Pod, environment, pods
from lab.real.chart.render import Manifest
from lab.real.parts import helm

CI = render.CHART / "ci"
PLACED, DEFAULT = CI / "placed-values.yaml", CI / "default-values.yaml"
LABEL_CHARACTERS = 63  # the longest value of a label
HASH_CHARACTERS = 11  # a StatefulSet's controller-revision-hash is its name, "-" and up to 10 more
SCHEDULING = ("nodeSelector", "tolerations", "affinity", "priorityClassName")


def placed() -> dict[str, Pod]:
    """Return the pods of the example by the kind of their owner."""
    return {pod.owner.split("/")[0]: pod for pod in pods(render.manifests(PLACED))}


def given(name: str) -> dict[str, Any]:
    """Return the example's values of one component."""
    found: dict[str, Any] = yaml.safe_load(PLACED.read_text())[name]
    return found


@pytest.mark.parametrize(
    ("kind", "name"), [("Deployment", "alertForwarder"), ("StatefulSet", "clickhouse")]
)
def test_a_pod_runs_where_its_values_say(kind: str, name: str) -> None:
    pod, values = placed()[kind], given(name)
    for field in SCHEDULING:
        assert pod.spec.get(field) == values.get(field)
    assert pod.spec["imagePullSecrets"] == [{"name": "registry"}]
    assert pod.labels["team"] == "data"
    assert pod.annotations["example.com/owner"] == "data"


def test_a_label_of_the_selector_cannot_be_replaced() -> None:
    """The example tries to: the Deployment would no longer own its pods."""
    assert given("alertForwarder")["podLabels"]["app.kubernetes.io/name"] == "another"
    assert placed()["Deployment"].labels["app.kubernetes.io/name"] == "byoc-agents"


def test_a_spread_constraint_counts_the_pods_that_it_is_about() -> None:
    """Without a labelSelector it would count none, and so spread nothing."""
    pod = placed()["StatefulSet"]
    (constraint,) = pod.spec["topologySpreadConstraints"]
    selected = constraint["labelSelector"]["matchLabels"]
    assert selected.items() <= pod.labels.items()
    assert constraint["topologyKey"] == "topology.kubernetes.io/zone"


@pytest.mark.parametrize(
    ("kind", "name", "container"),
    [
        ("Deployment", "alertForwarder", "alert-forwarder"),
        ("StatefulSet", "billingScraper", "billing-scraper"),
    ],
)
def test_environment_and_volumes_are_added_to_the_daemons_container_only(
    kind: str, name: str, container: str
) -> None:
    pod, values = placed()[kind], given(name)
    for one in pod.ours:
        owner = one["name"] == container
        assert all((added in one["env"]) == owner for added in values["extraEnv"])
        assert all((added in one["volumeMounts"]) == owner for added in values["extraVolumeMounts"])
    assert all(volume in pod.spec["volumes"] for volume in values["extraVolumes"])
    assert "shared" not in str([one for one in pod.spec["containers"] if one not in pod.ours])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            "billingScraper.priorityClassName=high",
            "billingScraper.priorityClassName: has no effect for placement sidecar",
        ),
        (
            "clickhouse.owner=altinity,clickhouse.nodeSelector.a=b",
            "clickhouse.nodeSelector: has no effect for owner altinity",
        ),
        ("alertForwarder.extraEnv[0].name=BYOC_LISTEN", "extraEnv"),
        ("alertForwarder.extraEnv[0].name=AWS_PROFILE", "extraEnv"),
        ("alertForwarder.extraVolumes[0].name=byoc-spool", "extraVolumes"),
        ("fullnameOverride=Byoc", "fullnameOverride"),
    ],
)
def test_a_value_that_would_be_ignored_or_break_another_is_refused(change: str, said: str) -> None:
    done = render.run(
        helm.VERSIONS[0], "template", "x", str(render.CHART), "-f", str(DEFAULT), "--set", change
    )
    assert done.returncode != 0
    assert said in done.stderr


def test_a_budget_exists_if_more_than_one_pod_can_be_taken() -> None:
    """For one pod it would only stop the drain of its node."""

    def budgets(values: Path) -> list[Manifest]:
        return [d for d in render.manifests(values) if d["kind"] == "PodDisruptionBudget"]

    (budget,) = budgets(PLACED)
    assert budget["spec"]["maxUnavailable"] == 1
    labels = placed()["StatefulSet"].labels
    assert budget["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert budgets(DEFAULT) == []


def rendered_as(release: str, *flags: str, values: Path = PLACED) -> list[Manifest]:
    """Return the documents of a release of another name."""
    where = ("--kube-version", render.NEW, "--namespace", render.NAMESPACE)
    done = render.run(
        helm.VERSIONS[0], "template", release, str(render.CHART), "-f", str(values), *where, *flags
    )
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def names(documents: list[Manifest]) -> set[str]:
    """Return kind/name of each."""
    return {f"{d['kind']}/{d['metadata']['name']}" for d in documents}


def test_releases_whose_names_begin_alike_share_no_object() -> None:
    """A release's name may have 53 characters, of which the chart keeps the first ones."""
    pairs = [
        ("production-eu-central-1-customer-acme", "production-eu-central-1-customer-beta"),
        (f"byoc-agents-{'a' * 40}1", f"byoc-agents-{'a' * 40}2"),
    ]
    everything = CI / "mesh-operator-values.yaml"
    for pair in pairs:
        for values in (PLACED, everything):
            first, second = (names(rendered_as(one, values=values)) for one in pair)
            assert not first & second


@pytest.mark.parametrize("release", ["a", "b" * 28, "c" * 53, f"byoc-agents-{'d' * 41}"])
def test_every_name_fits_into_a_label(release: str) -> None:
    documents = rendered_as(release)
    for document in documents:
        name = document["metadata"]["name"]
        tail = HASH_CHARACTERS if document["kind"] == "StatefulSet" else 0
        assert len(name) + tail <= LABEL_CHARACTERS
        assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name)
        labels = document["metadata"]["labels"].values()
        assert max(map(len, labels)) <= LABEL_CHARACTERS


def test_short_names_are_kept_and_another_one_can_be_given() -> None:
    """An upgrade from 0.1.0 with a long name keeps its claims by the name that they have."""
    assert "StatefulSet/a-byoc-agents-clickhouse" in names(rendered_as("a"))
    long = "production-eu-central-1-customer-acme"
    kept = "production-eu-central-1-cust-byoc-agents"  # what 0.1.0 made of it
    flags = ("--set", f"fullnameOverride={kept}")
    assert f"StatefulSet/{kept}-clickhouse" in names(rendered_as(long, *flags))


@pytest.mark.parametrize("values", render.CI, ids=render.name)
def test_helm_test_checks_the_settings_of_every_container(values: Path) -> None:
    """By `check-config`: the images have no shell, and it opens no connection."""
    documents = render.manifests(values)
    tests = [d for d in documents if d["kind"] == "Pod"]
    assert all(d["metadata"]["annotations"]["helm.sh/hook"] == "test" for d in tests)
    checked = {one["name"]: one for d in tests for one in d["spec"]["containers"]}
    for pod in pods(documents):
        for container in pod.ours:
            checking = checked.pop(container["name"])
            assert checking["args"] == ["check-config", *container["args"][1:]]
            assert checking["image"] == container["image"]
            assert checking["securityContext"] == container["securityContext"]
            kept = [one for one in container["env"] if "resourceFieldRef" not in str(one)]
            assert checking["env"] == kept
            mounts = {one["name"] for one in checking.get("volumeMounts", [])}
            assert mounts == {one["name"] for one in container["volumeMounts"][1:]}
    assert not checked or "owner: bitnami" in values.read_text()
    for document in tests:
        volumes = {one["name"] for one in document["spec"].get("volumes", [])}
        mounted = [m for one in document["spec"]["containers"] for m in one.get("volumeMounts", [])]
        assert {one["name"] for one in mounted} == volumes


@pytest.mark.parametrize("values", render.CI, ids=render.name)
def test_every_hook_of_helm_test_is_a_pod(values: Path) -> None:
    """`helm test --logs` asks for the logs of each hook, and fails with one of another kind."""
    hooks = [
        one
        for one in render.manifests(values)
        if one["metadata"].get("annotations", {}).get("helm.sh/hook") == "test"
    ]
    assert {one["kind"] for one in hooks} == {"Pod"}


def test_helm_test_fails_if_a_setting_is_wrong() -> None:
    """The command of the pod, here: 0 with what the chart renders, 2 with a mistake."""
    (document,) = [d for d in render.manifests(CI / "refused-values.yaml") if d["kind"] == "Pod"]
    (container,) = document["spec"]["containers"]
    for change, code in (({}, 0), ({"BYOC_REGION": "Frankfurt"}, 2)):
        done = subprocess.run(
            [sys.executable, "-m", "byoc_agents.app.cli", *container["args"]],
            env=environment(container) | change,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stderr
