"""Every rendered document against Kubernetes' own schemas, and checkov's opinion of them."""

import copy
import json
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft7Validator  # type: ignore[import-untyped]

from lab.real.chart import crds, render
from lab.real.chart.pods import as_manifest, ours, pods, printed_pod
from lab.real.chart.render import Manifest
from lab.real.parts import manifests

VERSIONS = {"1.25.0": render.OLD, "1.29.0": render.NEW, "1.37.0": render.NEW}
EXAMPLES = render.CHART / "examples"
BESIDE, EVERY = {"StatefulSet", "Pod"}, {"StatefulSet", "Pod", "Deployment", "Job"}
# check -> (what it may fail on, why we do not do as it says)
SKIPS: dict[str, tuple[set[str], str]] = {
    "CKV_K8S_8": ({"Pod"}, "a pod of `helm test` ends by itself"),
    "CKV_K8S_9": (BESIDE, "a sidecar's readiness would be the readiness of ClickHouse's pod"),
    "CKV_K8S_15": (EVERY, "Always makes each start of ClickHouse's pod depend on the registry"),
    "CKV_K8S_21": (
        {
            *EVERY,
            "ServiceAccount",
            "Service",
            "ConfigMap",
            "NetworkPolicy",
            "PersistentVolumeClaim",
            "Role",
            "RoleBinding",
        },
        "the namespace is the release's: `helm install --namespace`",
    ),
    "CKV_K8S_35": ({"StatefulSet"}, "ClickHouse reads a user's password from its environment"),
    "CKV_K8S_40": (EVERY, "ClickHouse's uid is 101; on OpenShift the namespace sets every uid"),
    "CKV_K8S_43": (EVERY, "the default names a version; image.digests pins by digest"),
}


def _documents(kubernetes: str) -> list[tuple[str, Manifest]]:
    """Return (where from, document), each document once, pods of other kinds' templates too."""
    found: dict[str, tuple[str, Manifest]] = {}
    for values in [*render.CI, *render.EXAMPLES]:
        rendered = render.manifests(values, kubernetes=kubernetes)
        templates = [as_manifest(pod) for pod in pods(rendered)]
        if "owner: bitnami" in values.read_text():
            templates.append(as_manifest(printed_pod(values, kubernetes)))
        for document in [*rendered, *templates]:
            where = f"{values.stem}: {document['kind']}/{document['metadata']['name']}"
            found.setdefault(json.dumps(document, sort_keys=True), (where, document))
    return list(found.values())


@pytest.mark.parametrize(("schemas", "rendered_for"), VERSIONS.items(), ids=VERSIONS)
def test_kubernetes_knows_every_field(schemas: str, rendered_for: str) -> None:
    """Strictly: a misspelled field fails. A kind that it does not know has a schema of ours."""
    known = [(w, d) for w, d in _documents(rendered_for) if crds.schema(d) is None]
    answers = manifests.mistakes([(schemas, document) for _, document in known])
    assert [f"{w}: {m}" for (w, _), m in zip(known, answers, strict=True) if m] == []
    assert len(known) > 50


def test_kinds_of_others_have_a_closed_schema_of_ours() -> None:
    checked = set()
    for where, document in [*_documents(render.NEW), *_chi()]:
        if schema := crds.schema(document):
            errors = [
                f"{where}: {e.message}" for e in Draft7Validator(schema).iter_errors(document)
            ]
            assert errors == []
            checked.add(document["kind"])
    assert checked == {kind for _, kind in crds.SPECS}


def test_a_misspelled_field_and_an_unknown_kind_are_noticed() -> None:
    """The checks above can fail."""
    _, deployment = next(x for x in _documents(render.NEW) if x[1]["kind"] == "Deployment")
    misspelled = copy.deepcopy(deployment)
    container = misspelled["spec"]["template"]["spec"]["containers"][0]
    container["readOnlyRootFilesytem"] = True
    unknown = deployment | {"kind": "Deploiment"}
    wrong, unheard = manifests.mistakes([(render.NEW, misspelled), (render.NEW, unknown)])
    assert "readOnlyRootFilesytem" in wrong
    assert unheard.startswith("unknown: ")
    _, monitor = next(x for x in _documents(render.NEW) if x[1]["kind"] == "PodMonitor")
    schema = crds.schema(monitor)
    assert schema
    assert not Draft7Validator(schema).is_valid(monitor | {"spec": {"selecter": {}}})


def test_native_sidecars_are_unknown_before_their_time() -> None:
    """RestartPolicy of a container came with 1.28: renders for older versions have none."""
    for where, document in _documents(render.OLD):
        assert '"restartPolicy": "Always"' not in json.dumps(document), where


def test_the_altinity_example_names_the_template_of_its_release() -> None:
    (_, chi), rendered = _chi()[0], render.manifests(EXAMPLES / "altinity" / "values.yaml")
    (template,) = [one for one in rendered if one["kind"] == "ClickHouseInstallationTemplate"]
    assert chi["spec"]["useTemplates"] == [{"name": template["metadata"]["name"]}]
    (pod,) = template["spec"]["templates"]["podTemplates"]
    assert chi["spec"]["defaults"]["templates"]["podTemplate"] == pod["name"]


def test_checkov_finds_nothing_but_what_is_justified(tmp_path: Path) -> None:
    """Each skip is needed, and stays with the kinds that its reason is about."""
    for number, (_, document) in enumerate(_documents(render.NEW)):
        if crds.schema(document) is None:
            (tmp_path / f"{number}.yaml").write_text(yaml.safe_dump(_judged(document)))
    found = {(one["check_id"], one["resource"]) for one in manifests.checkov(tmp_path)}
    unjustified = [
        (check, resource)
        for check, resource in sorted(found)
        if resource.split(".")[0] not in SKIPS.get(check, (set(), ""))[0]
    ]
    assert unjustified == []
    assert {check for check, _ in found} == set(SKIPS)


def _judged(document: Manifest) -> Manifest:
    """Return the document without a container of another owner's: ClickHouse's in its pod."""
    if document["kind"] != "Pod":
        return document
    spec = document["spec"] | {"initContainers": [], "containers": ours(document["spec"])}
    return document | {"spec": spec}


def _chi() -> list[tuple[str, Manifest]]:
    text = (EXAMPLES / "altinity" / "chi.yaml").read_text()
    return [("chi.yaml", document) for document in yaml.safe_load_all(text)]
