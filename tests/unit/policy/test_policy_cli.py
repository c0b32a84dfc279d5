"""`byoc-agents policy` as a person meets it: forms, notes, exit codes, no secrets."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from byoc_agents.app.cli import main
from byoc_agents.app.run import DAEMONS, configure, daemon_spec
from byoc_agents.app.runtime import ClickHouseSettings
from byoc_agents.app.settings import CoreSettings, settings_of
from byoc_agents.manifest import documents
from byoc_agents.policy.cli import COMMANDS, IDENTITIES, STAND_INS, queue_arn

SETTINGS = {
    "BYOC_ORGANIZATION_ID": "org-1",
    "BYOC_SERVICE_ID": "svc-1",
    "BYOC_REGION": "eu-west-1",
    "BYOC_BILLING_BUCKET": "vendor-usage",
    "BYOC_STATE_QUEUE_URL": "https://sqs.eu-west-1.amazonaws.com/123456789012/state.fifo",
    "BYOC_ALERTS_URL": "https://api.vendor.example/v1/alerts",
}
ENDPOINT = "https://bucket.vpce-1a.s3.eu-west-1.vpce.amazonaws.com"
ROLE = "arn:aws:iam::210987654321:role/r"
GIVEN = ["--role", ROLE, "--vpce", "vpce-0abc", "--sqs-vpce", "vpce-0def", "--dns", "10.0.0.2/32"]
GIVEN += ["--namespace", "clickhouse"]
# A stack is compared with answers of AWS: test_policy_stack.py.
POLICIES = [command for command in COMMANDS if command != "stack"]


@pytest.fixture(autouse=True)
def environ(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def policy(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(["policy", *argv]) == 0
    return capsys.readouterr().out


def test_no_secret_of_a_daemon_is_needed_or_read(
    environ: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The files of the secrets are in the pod, not where somebody prints the policies."""
    structs: list[type[msgspec.Struct]] = [CoreSettings, ClickHouseSettings]
    structs += [daemon_spec(name).settings for name in DAEMONS]
    secrets = {
        setting.variable
        for struct in structs
        for setting, _ in settings_of(struct).values()
        if setting.secret and setting.variable != "BYOC_HTTPS_PROXY"  # a destination
    }
    assert {"BYOC_METRICS_TOKEN", "BYOC_ALERTS_TOKEN"} < secrets
    for variable in secrets:
        environ.setenv(f"{variable}_FILE", "/no/such/file")
    assert policy(capsys, "table")


def test_the_table_has_a_row_for_each_destination_of_each_daemon(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = json.loads(policy(capsys, "table", "--format", "json", "--identity", "irsa"))
    assert {(row["daemon"], row["host"]) for row in rows} == {
        ("billing-scraper", "127.0.0.1"),
        ("billing-scraper", "vendor-usage.s3.eu-west-1.amazonaws.com"),
        ("billing-scraper", "sts.eu-west-1.amazonaws.com"),
        ("state-exporter", "127.0.0.1"),
        ("state-exporter", "sqs.eu-west-1.amazonaws.com"),
        ("state-exporter", "sts.eu-west-1.amazonaws.com"),
        ("alert-forwarder", "api.vendor.example"),
    }
    assert all(all(str(value) for value in row.values()) for row in rows), "every column says it"


@pytest.mark.parametrize(
    ("mode", "protocols"), [("relay", {"https"}), ("direct", {"https", "udp"})]
)
def test_the_tailnets_rows_are_marked_as_another_programs(
    mode: str, protocols: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    usual = json.loads(policy(capsys, "table", "--format", "json"))
    assert main(["policy", "table", "--tailnet", mode, "--format", "json"]) == 0
    said = capsys.readouterr()
    rows = json.loads(said.out)
    added = [row for row in rows if row not in usual]
    assert [row for row in rows if row in usual] == usual
    assert {row["daemon"] for row in added} == {"tailnet (another program)"}
    assert {row["protocol"] for row in added} == protocols
    assert "NetworkPolicy only, not by the egress gate" in said.err


def test_another_policy_has_no_rows_of_the_tailnet(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "networkpolicy", "--tailnet", "relay"]) == 2
    assert "--tailnet: invalid with networkpolicy: expected table" in capsys.readouterr().err


@pytest.mark.parametrize("variable", ["", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
@pytest.mark.parametrize(
    ("identity", "more"), [("irsa", {"sts"}), ("pod-identity", {"pod-identity"}), ("keys", set())]
)
def test_every_destination_has_its_kind_whatever_setting_named_it(
    variable: str, identity: str, more: set[str]
) -> None:
    pod = SETTINGS | IDENTITIES[identity] | STAND_INS
    if variable:
        pod |= {variable: ENDPOINT, "AWS_ENDPOINT_URL_STS": "https://sts.eu-west-1.amazonaws.com"}
    found = configure(list(DAEMONS), pod | {"BYOC_ALERTS_NAMESPACE": "db"}, None).destinations
    assert {str(one.kind) for one in found} == {"clickhouse", "s3", "sqs", "control-plane"} | more
    assert {one.daemon for one in found if one.kind == "s3"} == {"billing-scraper"}
    assert {one.daemon for one in found if one.kind == "sqs"} == {"state-exporter"}


def test_addresses_by_kind_apply_to_an_endpoint_of_any_variable(
    environ: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    environ.setenv("AWS_ENDPOINT_URL", ENDPOINT)
    text = policy(capsys, "networkpolicy", "billing-scraper", "--cidr", "s3=10.9.8.0/24")
    assert "10.9.8.0/24" in text


def test_the_table_is_the_same_in_every_form(capsys: pytest.CaptureFixture[str]) -> None:
    rows = json.loads(policy(capsys, "table", "--format", "json"))
    assert yaml.safe_load(policy(capsys, "table", "--format", "yaml")) == rows
    cells = [[str(value) for value in row.values()] for row in rows]
    text = policy(capsys, "table").splitlines()
    assert [re.split(" {2,}", line) for line in text[1:]] == cells
    marked = policy(capsys, "table", "--format", "markdown").splitlines()
    assert [line.strip("| ").split(" | ") for line in marked[2:]] == cells


@pytest.mark.parametrize(("identity", "port"), [("irsa", 443), ("pod-identity", 80), ("keys", 443)])
def test_the_pods_identity_counts_and_not_that_of_who_asks(
    identity: str,
    port: int,
    environ: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    environ.setenv("AWS_ACCESS_KEY_ID", "mine")
    environ.setenv("AWS_SECRET_ACCESS_KEY", "mine")
    text = policy(capsys, "networkpolicy", "billing-scraper", "--identity", identity)
    rules = yaml.safe_load(text)["spec"]["egress"]
    assert rules[-1]["ports"][0]["port"] == port
    assert ("sts." in text) is (identity == "irsa")


@pytest.mark.parametrize("command", POLICIES)
def test_every_policy_is_printed_and_is_found_unchanged_by_its_check(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    form = "yaml" if COMMANDS[command].form == "yaml" else "json"
    manifest = tmp_path / "manifest"
    manifest.write_text(policy(capsys, command, *GIVEN, "--format", form))
    assert main(["policy", command, *GIVEN, "--check", str(manifest)]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("command", POLICIES)
def test_every_policy_sees_another_configuration(
    command: str,
    environ: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    form = "yaml" if COMMANDS[command].form == "yaml" else "json"
    manifest = tmp_path / "manifest"
    manifest.write_text(policy(capsys, command, *GIVEN, "--format", form))
    environ.setenv("BYOC_BILLING_BUCKET", "another-bucket")
    environ.setenv("BYOC_ALERTS_URL", "https://api.vendor.example:8443/")
    environ.setenv(
        "BYOC_STATE_QUEUE_URL", "https://sqs.eu-west-1.amazonaws.com/123456789012/another.fifo"
    )
    given = [one.replace("role/r", "role/another") for one in GIVEN]
    assert main(["policy", command, *given, "--check", str(manifest)]) == 1
    assert re.search("another|8443", capsys.readouterr().out)


def test_a_check_finds_its_policy_in_a_rendered_chart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chart = tmp_path / "chart.yaml"
    mine = policy(capsys, "networkpolicy", "--namespace", "db")
    spec = "spec: {podSelector: {}, egress: [{}]}"
    other = f"kind: NetworkPolicy\nmetadata: {{name: clickhouse}}\n{spec}"
    chart.write_text(f"---\n---\nkind: Service\n---\n{other}\n---\n{mine}")
    check = ["policy", "networkpolicy", "--namespace", "db", "--check", str(chart)]
    assert main(check) == 1
    assert "NetworkPolicy clickhouse: spec.egress[0]: selects the" in capsys.readouterr().out
    assert main([*check, "--accept", "clickhouse"]) == 0
    chart.write_text(mine.replace("169.254.0.0/16", "169.254.170.0/24"))
    assert main(check) == 1
    assert "169.254.170.0/24" in capsys.readouterr().out
    chart.write_text("kind: Service\n")
    assert main(check) == 1


@pytest.mark.parametrize("kind", ["networkpolicy", "cilium"])
def test_the_namespace_counts_and_has_to_be_given(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = tmp_path / "manifest"
    given = [kind, "--namespace", "clickhouse"]
    text = policy(capsys, *given)
    manifest.write_text(text)
    assert policy(capsys, *given, "--check", str(manifest)) == ""
    manifest.write_text(text.replace("namespace: clickhouse", "namespace: kube-public"))
    assert main(["policy", *given, "--check", str(manifest)]) == 1
    assert capsys.readouterr().out == "metadata.namespace: is kube-public: expected clickhouse\n"
    manifest.write_text(text)
    assert main(["policy", kind, "--check", str(manifest)]) == 1
    assert (
        capsys.readouterr().out == "metadata.namespace: is not judged: expected --namespace NAME\n"
    )


WIDE = '{"Effect": "Allow", "Action": "*", "Resource": "*"}'
TWICE: dict[str, Callable[[str], str]] = {
    "JSON, the wide one first": lambda text: f'{{"Statement": [{WIDE}], {text.strip()[1:]}',
    "JSON, the wide one last": lambda text: f'{text.strip()[:-1]}, "Statement": [{WIDE}]}}',
    "YAML": lambda text: f"Statement: [{WIDE}]\n{yaml.safe_dump(json.loads(text))}",
    "in the document inside": lambda text: json.dumps(
        {"Policy": f'{{"Statement": [{WIDE}], {text.strip()[1:]}'}
    ),
}


@pytest.mark.parametrize("form", TWICE)
def test_a_key_that_appears_twice_is_found(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = tmp_path / "manifest"
    manifest.write_text(TWICE[form](policy(capsys, "iam")))
    assert main(["policy", "iam", "--check", str(manifest)]) == 1
    assert "the key 'Statement' appears twice" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000], ids=["lists", "objects"])
@pytest.mark.parametrize("command", ["iam", "networkpolicy"])
def test_a_manifest_that_is_nested_too_deeply_is_refused(
    command: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = tmp_path / "manifest"
    manifest.write_text(text)
    assert main(["policy", command, "--check", str(manifest)]) == 2
    assert f"--check {manifest}: " in capsys.readouterr().err


OPEN = {"podSelector": {}, "policyTypes": ["Egress"], "egress": [{}]}
OTHER = {"metadata": {"name": "other", "namespace": "clickhouse"}, "spec": OPEN}
FULL = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", **OTHER}
LISTS: dict[str, dict[str, Any]] = {
    "a list": {"kind": "List", "apiVersion": "v1", "items": [FULL]},
    "a list in a list": {
        "kind": "List",
        "apiVersion": "v1",
        "items": [{"kind": "List", "apiVersion": "v1", "items": [FULL]}],
    },
    "as the API server returns it": {
        "kind": "NetworkPolicyList",
        "apiVersion": "networking.k8s.io/v1",
        "items": [OTHER],
    },
    "with an empty kind": {
        "kind": "NetworkPolicyList",
        "apiVersion": "networking.k8s.io/v1",
        "items": [{"kind": "", "apiVersion": "", **OTHER}],
    },
}


@pytest.mark.parametrize("form", LISTS)
def test_a_wide_policy_in_a_list_is_found(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["networkpolicy", "--namespace", "clickhouse"]
    manifest = tmp_path / "manifest"
    text = policy(capsys, *given)
    manifest.write_text(f"{text}---\n{json.dumps(LISTS[form])}\n")
    assert main(["policy", *given, "--check", str(manifest)]) == 1
    assert "NetworkPolicy other: spec.egress[0]: selects the same pod" in capsys.readouterr().out


def test_a_key_before_a_merge_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`kubectl` takes the merged `spec`, and PyYAML the one that is written before it."""
    given = ["networkpolicy", "--namespace", "clickhouse"]
    manifest = tmp_path / "manifest"
    text = policy(capsys, *given)
    wide = json.dumps({"spec": {**yaml.safe_load(text)["spec"], "egress": [{}]}})
    manifest.write_text(f"{text}<<: {wide}\n")
    assert main(["policy", *given, "--check", str(manifest)]) == 1
    assert "the key '<<' follows other keys" in capsys.readouterr().out
    manifest.write_text(f"<<: {wide}\n{text}")
    assert policy(capsys, *given, "--check", str(manifest)) == ""


def test_printed_policies_may_be_one_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of Kubernetes are found by kind and name; AWS's have none."""
    cluster = ["networkpolicy", "cilium"]
    manifest = tmp_path / "all.yaml"
    texts = [policy(capsys, command, *GIVEN) for command in cluster]
    texts += [policy(capsys, command, *GIVEN, "--format", "yaml") for command in ("table", "iam")]
    manifest.write_text("".join(texts))
    for command in cluster:
        assert policy(capsys, command, *GIVEN, "--check", str(manifest)) == ""
    assert main(["policy", "iam", *GIVEN, "--check", str(manifest)]) == 1
    said = f"{manifest}: holds 4 documents, and policies of AWS have no name to choose one by"
    assert capsys.readouterr().out == f"{said}: expected one\n"


def test_printed_json_in_one_file_is_a_clear_mistake(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = tmp_path / "all.json"
    texts = [policy(capsys, command, *GIVEN) for command in ("iam", "boundary")]
    manifest.write_text("".join(texts))
    assert main(["policy", "iam", *GIVEN, "--check", str(manifest)]) == 2
    said = capsys.readouterr().err
    assert "expected one JSON document, or YAML documents with `---` between them" in said


@pytest.mark.parametrize("name", ["s3", "proxy", "api.vendor.example"])
def test_addresses_have_the_name_of_a_kind_or_of_a_host(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A kind without a destination is accepted: one list may serve several configurations."""
    policy(capsys, "networkpolicy", "alert-forwarder", "--cidr", "s3=10.9.8.0/24")
    policy(capsys, "networkpolicy", "--cidr", f"{name}=10.9.8.0/24")


def test_addresses_of_a_host_that_is_no_destination_are_noted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """They may belong to another daemon's destination, so this is not a mistake."""
    assert main(["policy", "networkpolicy", "--cidr", "api.vendor.exampel=10.9.8.0/24"]) == 0
    said = capsys.readouterr().err
    assert "note: --cidr api.vendor.exampel: no destination has this host" in said


@pytest.mark.parametrize(
    ("form", "start"),
    [("cloudformation", "---\n"), ("json", "{"), ("terraform", "# ")],
)
def test_a_stack_has_the_forms_of_the_control_planes_stack(
    form: str, start: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--trust", "irsa", "--oidc-provider", "o.example/id", "--service-account", "db/ch"]
    assert policy(capsys, "stack", "--role", ROLE, *given, "--format", form).startswith(start)


def test_a_merged_key_of_yaml_may_be_overridden() -> None:
    text = "base: &base {a: 1}\nmine:\n  <<: *base\n  a: 2\n"
    assert documents(text, "x") == [{"base": {"a": 1}, "mine": {"a": 2}}]
    assert documents("kind: List\nitems: [{a: 1}, {b: 2}]", "x") == [{"a": 1}, {"b": 2}]


def test_the_findings_are_printed_as_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = tmp_path / "manifest"
    manifest.write_text(policy(capsys, "iam"))
    check = ["policy", "iam", "--json", "--check", str(manifest)]
    assert main(check) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == {"policy": "iam", "manifest": str(manifest), "ok": True, "findings": []}
    manifest.write_text(manifest.read_text().replace("s3:PutObject", "s3:*"))
    assert main(check) == 1
    report = json.loads(capsys.readouterr().out)
    assert not report["ok"]
    assert report["findings"] == [
        {
            "where": "Statement[0] BillingScraperPutsObjects.Action",
            "problem": "allows more than the table: Action s3:*",
            "expected": "Action s3:putobject",
        }
    ]


def test_a_policy_of_any_number_of_customers_follows_from_the_settings(
    environ: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tenants = ["bucket-policy", "billing-scraper", "--tenants"]
    assert "<VENDOR_ACCOUNT>" in policy(capsys, *tenants)
    environ.setenv("BYOC_BILLING_BUCKET_OWNER", "999999999999")
    text = policy(capsys, *tenants)
    assert "vendor-usage/v1/account=${aws:PrincipalAccount}/org=${aws:PrincipalTag/" in text
    manifest = tmp_path / "manifest"
    manifest.write_text(text)
    assert policy(capsys, *tenants, "--check", str(manifest)) == ""
    manifest.write_text(text.replace("account=${aws:PrincipalAccount}", "account=*"))
    assert main(["policy", *tenants, "--check", str(manifest)]) == 1


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["bucket-policy", "--check", "pyproject.toml"], "--check"),
        (["table", "--check", "no-such-file"], "cannot be read"),
        (["iam", "--format", "text"], "--format: invalid value 'text': expected json or yaml"),
        (
            ["networkpolicy", "--format", "markdown"],
            "'markdown': expected json or yaml",
        ),
        (["stack", "--format", "text"], "expected cloudformation, json or terraform"),
        (["stack", "--format", "yaml"], "expected cloudformation, json or terraform"),
        (["iam", "--format", "terraform"], "invalid value 'terraform': expected json or yaml"),
        (
            ["networkpolicy", "--cidr", "s4=10.0.0.0/8"],
            "expected s3, sqs, sts, control-plane, proxy, kubernetes or a host name",
        ),
        (["networkpolicy", "--cidr", "sqss=10.0.0.0/8"], "; did you mean 'sqs'?"),
        (["networkpolicy", "--cidr", "s3=10.0.0.1/8"], "--cidr: invalid value"),
        (["networkpolicy", "--dns", "resolver"], "--dns: invalid value"),
        (["bucket-policy", "--role", "agents"], "--role: invalid value 'agents': expected arn:"),
        (["iam", "--vpce", "none"], "--vpce: invalid value 'none': expected vpce-ID"),
        (["iam", "--sqs-vpce", "*"], "--sqs-vpce: invalid value '*': expected vpce-ID or none"),
        (["iam", "--cluster-arn", "one"], "--cluster-arn: invalid value 'one': expected arn:"),
        (["iam", "--service-account", "ch"], "--service-account: invalid value 'ch': expected"),
        (["iam", "--service-account", "ns/ch,"], "--service-account: invalid value 'ns/ch,'"),
        (["bucket-policy", "--tenants", "--account", "1"], "--account: invalid value '1'"),
        (["bucket-policy", "--account", "1" * 12], "--account: invalid without --tenants"),
        (["queue-policy", "billing-scraper"], "BYOC_STATE_QUEUE_URL"),
        (["bucket-policy", "state-exporter"], "BYOC_BILLING_BUCKET"),
        (["table", "--config", "no-such-file"], "no-such-file"),
        (["table", "billing"], "invalid value 'billing': expected billing-scraper, state-exporter"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_is_reported_with_exit_code_2(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["policy", *argv]) == 2
    assert said in capsys.readouterr().err


def test_placeholders_are_asked_for_before_anything_is_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = tmp_path / "manifest"
    manifest.write_text("{}")
    assert main(["policy", "bucket-policy", "--check", str(manifest)]) == 2
    assert "<CUSTOMER_ROLE_ARN>, <VPC_ENDPOINT_ID>" in capsys.readouterr().err


def test_no_secret_is_read_or_shown(
    environ: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in STAND_INS:
        environ.setenv(f"{name}_FILE", "/no/such/file")
    environ.setenv("BYOC_HTTPS_PROXY", "http://me:at@hunter2@proxy.example:3128")
    pods = ["--oidc-provider", "oidc.example/id", "--service-account", "db/clickhouse"]
    stack = ["--role", ROLE, "--trust", "irsa", *pods]
    for command in COMMANDS:
        assert main(["policy", command, *(stack if command == "stack" else [])]) == 0
        assert "hunter2" not in "".join(capsys.readouterr())


def test_json_and_tables_print_their_notes_beside_and_yaml_inside(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["policy", "iam"]) == 0
    assert "note: A pod has one role" in capsys.readouterr().err
    assert main(["policy", "networkpolicy"]) == 0
    said = capsys.readouterr()
    assert "# - It cannot contain names" in said.out
    assert said.err == ""


def test_a_directory_instead_of_a_bucket_leaves_nothing_to_grant(
    environ: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    environ.setenv("BYOC_BILLING_BUCKET", "file:///tmp/usage")
    found: Any = json.loads(policy(capsys, "iam", "billing-scraper"))
    assert found["Statement"] == []


@pytest.mark.parametrize("prefix", ["v1/", "v1", "", "a/b/"])
def test_the_folder_is_where_the_scraper_puts_its_objects(
    prefix: str, environ: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    environ.setenv("BYOC_BILLING_PREFIX", prefix)
    (put,) = json.loads(policy(capsys, "iam", "billing-scraper"))["Statement"]
    folder = f"{(prefix or 'v1').rstrip('/')}/org=org-1/service=svc-1/*"  # empty = not set
    assert put["Resource"] == f"arn:aws:s3:::vendor-usage/{folder}"


@pytest.mark.parametrize(
    ("url", "arn"),
    [
        (SETTINGS["BYOC_STATE_QUEUE_URL"], "arn:aws:sqs:eu-west-1:123456789012:state.fifo"),
        (
            "https://sqs.us-east-1.amazonaws.com/123456789012/a.fifo",
            "arn:aws:sqs:us-east-1:123456789012:a.fifo",
        ),
        (
            "https://vpce-1.sqs.eu-west-1.vpce.amazonaws.com/123456789012/a.fifo",
            "arn:aws:sqs:eu-west-1:123456789012:a.fifo",
        ),
        (
            "https://sqs.cn-north-1.amazonaws.com.cn/123456789012/a.fifo",
            "arn:aws-cn:sqs:cn-north-1:123456789012:a.fifo",
        ),
        ("http://127.0.0.1:4566/000000000000/a.fifo", "arn:aws:sqs:eu-west-1:000000000000:a.fifo"),
        ("https://queues.example/a.fifo", "arn:aws:sqs:eu-west-1:<ACCOUNT>:a.fifo"),
    ],
)
def test_a_queues_arn_follows_from_its_url(url: str, arn: str) -> None:
    assert queue_arn(url, "eu-west-1") == arn
