"""The chart by real Helm 3 and Helm 4: lint, render, refuse, and say what to do."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator  # type: ignore[import-untyped]

from byoc_agents import __version__
from lab.real.chart import golden, reference, render
from lab.real.chart.__main__ import PRINTED
from lab.real.parts import helm

EVERY = [*render.CI, *render.EXAMPLES]
DEFAULT = render.CHART / "ci" / "default-values.yaml"
by_values = pytest.mark.parametrize(
    "values", EVERY, ids=[f"{one.parent.name}-{render.name(one)}" for one in EVERY]
)
by_version = pytest.mark.parametrize("version", helm.VERSIONS)


@by_version
def test_it_lints_strictly_with_every_set_of_values(version: str) -> None:
    for values in EVERY:
        done = render.run(version, "lint", "--strict", str(render.CHART), "-f", str(values))
        assert done.returncode == 0, f"{values}: {done.stdout}{done.stderr}"
        assert "[WARNING]" not in done.stdout


@by_values
def test_both_helms_render_the_same(values: Path) -> None:
    three, four = (render.manifests(values, version=version) for version in helm.VERSIONS)
    assert three
    assert three == four


@pytest.mark.parametrize("values", render.CI, ids=render.name)
def test_a_render_is_what_it_was(values: Path) -> None:
    """`python -m lab.real.chart --update` writes them again; the diff is for a person to read."""
    assert golden.file(values).read_text() == golden.settled(render.manifests(values))


def test_every_golden_render_has_its_values() -> None:
    assert set(golden.PLACE.glob("*.yaml")) == set(map(golden.file, render.CI))


def test_the_example_for_bitnami_is_what_the_chart_prints() -> None:
    assert PRINTED.read_text() == render.printed(PRINTED.with_name("values.yaml"))


@by_version
def test_a_missing_identity_is_refused_with_everything_else_that_is_missing(version: str) -> None:
    done = render.run(version, "template", "x", str(render.CHART))
    assert done.returncode != 0
    for value in (
        *("organizationId", "serviceId", "region", "billingScraper.bucket"),
        *("stateExporter.queueUrl", "alertForwarder.url", "alertForwarder.secretName"),
        "aws.roleArn",
    ):
        assert f"  - {value}: is required" in done.stderr


REFUSED: dict[str, tuple[str, str]] = {
    "misspelled": ("organizationID=a", "organizationID"),
    "misspelled-inside": ("billingScraper.buckett=a", "buckett"),
    "no-region": ("region=Frankfurt", "region"),
    "no-fifo": (
        "stateExporter.queueUrl=https://sqs.eu-central-1.amazonaws.com/1/plain",
        "queueUrl",
    ),
    "bucket-is-a-url": ("billingScraper.bucket=s3://vendor", "bucket"),
    "no-such-identity": ("aws.identity=node", "identity"),
    "role-is-a-name": ("aws.roleArn=byoc", "roleArn"),
    "a-setting-that-a-value-sets": ("settings.BYOC_LISTEN=0.0.0.0:1", "BYOC_LISTEN"),
    "another-daemons-setting": ("billingScraper.settings.BYOC_STATE_LIMITS=a", "BYOC_STATE_LIMITS"),
    "root": ("clickhouse.runAsUser=0", "runAsUser"),
    "loopback-only": ("sidecars.listenHost=127.0.0.1", "listenHost"),
    "url-with-a-password": ("httpsProxy=http://u:p@proxy:3128", "httpsProxy"),
    "scraper-elsewhere": ("billingScraper.target=clickhouse:https://a.example.com", "target"),
    "no-cidr": ("networkPolicy.cidrs.s3[0]=vendor", "s3"),
    "no-such-meter": ("billingScraper.meter=kernel", "meter"),
}
IMPOSSIBLE: dict[str, tuple[str, str]] = {
    "too-little-time": ("clickhouse.terminationGracePeriodSeconds=30", "30 is too short"),
    "plain-http": ("alertForwarder.url=http://control.example.com/v1", "is plain http"),
    "nothing": (
        "billingScraper.enabled=false,stateExporter.enabled=false,alertForwarder.enabled=false",
        "at least one must be enabled",
    ),
    "deployment-of-nothing": ("stateExporter.placement=deployment", "stateExporter.servers"),
    "scraper-of-nothing": (
        "billingScraper.placement=deployment,billingScraper.meter=clickhouse",
        "billingScraper.servers: is required",
    ),
    "scraper-far-from-processes": (
        "billingScraper.placement=deployment,billingScraper.servers.a=https://a.svc:8443",
        "billingScraper.meter: process needs ClickHouse's pod; expected clickhouse",
    ),
    "claims-of-others": ("clickhouse.owner=other,sidecars.spool.kind=claim", "volumeName"),
    "bitnami-shares": ("clickhouse.owner=bitnami", "which process needs; expected clickhouse"),
    "a-process-for-clickhouse": (
        "billingScraper.meter=clickhouse,billingScraper.target=auto",
        "billingScraper.target: names a process",
    ),
    "one-role-for-a-named-account": (
        "clickhouse.serviceAccountName=own,aws.identity=podIdentity",
        "aws.identity: EKS associates one role with the account own",
    ),
    "no-account-of-altinitys-clickhouse": (
        "clickhouse.owner=altinity",
        "clickhouse.serviceAccountName: is required for owner altinity",
    ),
    "no-addresses": ("networkPolicy.cidrs=null", "networkPolicy.cidrs.s3: is required"),
    "all-addresses": (
        "networkPolicy.cidrs.s3[0]=0.0.0.0/0",
        "cidrs.s3: 0.0.0.0/0 is wider than /8 (IPv6: /24, or /104 if it embeds IPv4)",
    ),
    "all-addresses-of-ipv6": ("networkPolicy.cidrs.sqs[0]=::/0", "cidrs.sqs: ::/0 is wider"),
    "all-of-ipv4-by-nat64": ("networkPolicy.cidrs.sqs[0]=64:ff9b::/96", "64:ff9b::/96 is wider"),
    "all-addresses-in-two-halves": (
        "networkPolicy.cidrs.sts[0]=0.0.0.0/1,networkPolicy.cidrs.sts[1]=128.0.0.0/1",
        "cidrs.sts: 128.0.0.0/1 is wider",
    ),
    "all-resolvers": ("networkPolicy.dns[0]=0.0.0.0/0", "networkPolicy.dns: 0.0.0.0/0 is wider"),
    "nobody-permits-it-for-clickhouse": (
        "networkPolicy.selectClickHouse=false",
        "networkPolicy.selectClickHouse: is required for clickhouse.owner chart with sidecars",
    ),
    "print-own": ("sidecars.print=true", "sidecars.print"),
    "images-by-tag": (
        "image.requireDigest=true",
        "image.digests.billing-scraper: is required by image.requireDigest; expected sha256:",
    ),
    "one-image-for-three-by-tag": (
        "image.requireDigest=true,sidecars.oneProcess=true",
        "image.digests.byoc-agents: is required by image.requireDigest",
    ),
    "clickhouse-by-tag": (
        "image.requireDigest=true",
        "clickhouse.image: clickhouse/clickhouse-server:25.8 has no digest",
    ),
    "keys-of-nobody": ("aws.identity=secret", "aws.secretName"),
}


@by_version
@pytest.mark.parametrize(("change", "named"), REFUSED.values(), ids=REFUSED)
def test_the_schema_refuses(version: str, change: str, named: str) -> None:
    done = _with(version, change)
    assert done.returncode != 0
    assert "values don't meet the specifications of the schema" in done.stderr
    assert named in done.stderr


@pytest.mark.parametrize(("change", "named"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_what_cannot_work_is_refused_with_its_reason(change: str, named: str) -> None:
    done = _with(helm.VERSIONS[0], change)
    assert done.returncode != 0
    assert "byoc-agents cannot be installed with these values:" in done.stderr
    assert named in done.stderr


def test_with_digests_required_every_rendered_image_has_one() -> None:
    values = render.CHART / "ci" / "pod-identity-claims-values.yaml"
    assert yaml.safe_load(values.read_text())["image"]["requireDigest"] is True
    images = re.findall(r"^ *-? *image: *\"?([^\s\"]+)", render.text(values), re.MULTILINE)
    assert len(images) == 7, "three daemons, their tests and ClickHouse"
    assert [image for image in images if not re.search("@sha256:[0-9a-f]{64}$", image)] == []


def test_native_sidecars_are_refused_where_kubernetes_has_none() -> None:
    arguments = ("--kube-version", render.OLD, "--set", "sidecars.native=always")
    done = render.run(
        helm.VERSIONS[0], "template", "x", str(render.CHART), "-f", str(DEFAULT), *arguments
    )
    assert "has no native sidecars" in done.stderr


def test_every_value_is_described_and_the_reference_is_current() -> None:
    assert reference.FILE.read_text() == reference.markdown()
    rows = list(reference.described())
    assert all(text for _, _, text in rows)
    assert _closed(reference.schema()), "an unknown value would be taken in silence"


NOTES = {
    "default": (
        "svc-1 of org-1",
        "logs -l byoc-agents/sidecars=byoc-agents",
        "is an emptyDir",
        "for ClickHouse in the same pod too",
    ),
    "altinity": (
        "useTemplates: [{name: byoc-agents}]",
        "podTemplate: byoc-agents",
        "0.24.5",
        "spec.taskID",
    ),
    "bitnami": ("--show-only templates/sidecars.yaml", "No NetworkPolicy of this chart selects"),
    "replicas": ("monitoring.labels is empty", "ignores the PodMonitors"),
    "refused": ("a lower bound; each record names its source", "-c byoc-agents"),
}


@pytest.mark.parametrize(("called", "words"), NOTES.items(), ids=NOTES)
def test_the_notes_say_how_to_check(called: str, words: tuple[str, ...]) -> None:
    """By Helm 4 alone: Helm 3 shows notes only if it reaches a cluster."""
    values = render.CHART / "ci" / f"{called}-values.yaml"
    arguments = ("byoc-agents", str(render.CHART), "-f", str(values), "--dry-run=client")
    done = render.run(helm.VERSIONS[1], "install", *arguments)
    assert done.returncode == 0, done.stderr
    notes = done.stdout.partition("NOTES:")[2]
    assert [word for word in (*words, "/status") if word not in notes] == []


def test_the_charts_version_is_the_products() -> None:
    chart = yaml.safe_load((render.CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == chart["version"] == __version__


def _with(version: str, change: str) -> Any:
    flags = ("-f", str(DEFAULT), "--set", change)
    return render.run(version, "template", "x", str(render.CHART), *flags)


def _closed(node: dict[str, Any]) -> bool:
    """Return whether no object with fixed names takes others."""
    inner = node.get("properties", {})
    if inner and node.get("additionalProperties") is not False:
        return False
    return all(_closed(child) for child in inner.values())


def test_the_schema_is_json_schema() -> None:
    Draft7Validator.check_schema(reference.schema())
    Draft7Validator(reference.schema()).validate(json.loads(json.dumps(reference.defaults())))
