"""The customer's stack: its documents are those of the other commands, and its drift is named."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from moto import mock_aws

from byoc_agents.app import cli
from byoc_agents.policy.template import label, quoted

REGION, ACCOUNT = "eu-central-1", "123456789012"  # moto's own
ROLE = f"arn:aws:iam::{ACCOUNT}:role/byoc-agents"
SETTINGS = {
    "BYOC_ORGANIZATION_ID": "org-1",
    "BYOC_SERVICE_ID": "svc-1",
    "BYOC_REGION": REGION,
    "BYOC_BILLING_BUCKET": "vendor-usage",
    "BYOC_BILLING_BUCKET_OWNER": "444455556666",
    "BYOC_STATE_QUEUE_URL": f"https://sqs.{REGION}.amazonaws.com/444455556666/state.fifo",
}
BOTH = ["billing-scraper", "state-exporter"]
TRUST = ["--oidc-provider", "oidc.eks.example/id/X", "--service-account", "clickhouse/clickhouse"]
IRSA = ["--identity", "irsa", "--trust", "irsa", "--role", ROLE, *TRUST]
Said = Callable[..., str]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Said:
    """Return what a policy command prints; it must end with the given code."""
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)

    def run(*arguments: str, code: int = 0) -> str:
        capsys.readouterr()
        assert cli.main(["policy", *arguments]) == code
        printed = capsys.readouterr()
        return printed.err if code == 2 else printed.out

    return run


def resources(said: Said, *arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(said("stack", *arguments, "--format", "json"))
    return found["Resources"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("daemons", [BOTH, BOTH[:1], BOTH[1:]], ids=["both", "s3", "sqs"])
def test_cfn_lint_has_nothing_to_say(daemons: list[str], said: Said, tmp_path: Path) -> None:
    file = tmp_path / "template.yaml"
    file.write_text(said("stack", *daemons, *IRSA))
    done = subprocess.run(
        [str(Path(sys.executable).with_name("cfn-lint")), "--", str(file)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_documents_are_those_of_the_policy_commands(said: Said) -> None:
    made = resources(said, *BOTH, *IRSA)
    ids = ["--vpce", "vpce-1", "--sqs-vpce", "vpce-2"]
    role = made["Role"]["Properties"]
    (inline,) = role["Policies"]
    cases = [
        (made["S3Endpoint"]["Properties"]["PolicyDocument"], "endpoint-policy", ["--role", ROLE]),
        (
            made["SqsEndpoint"]["Properties"]["PolicyDocument"],
            "sqs-endpoint-policy",
            ["--role", ROLE],
        ),
        (
            made["StsEndpoint"]["Properties"]["PolicyDocument"],
            "sts-endpoint-policy",
            ["--role", ROLE],
        ),
        (role["AssumeRolePolicyDocument"], "iam", IRSA),
        (inline["PolicyDocument"], "iam", ids),
        (made["Boundary"]["Properties"]["PolicyDocument"], "boundary", ids),
    ]
    for document, command, options in cases:
        text = json.dumps(document).replace('{"Ref": "S3Endpoint"}', '"vpce-1"')
        text = text.replace('{"Ref": "SqsEndpoint"}', '"vpce-2"')
        assert json.loads(text) == json.loads(said(command, *BOTH, *options))
    assert "Ref" in json.dumps(inline)  # so the role's keys are of use from these endpoints only


def test_only_the_endpoints_of_the_table_are_made(said: Said) -> None:
    assert resources(said, BOTH[0], *IRSA).keys() == {
        *("S3Endpoint", "EndpointGroup", "StsEndpoint", "Boundary", "Role")
    }
    cluster = f"arn:aws:eks:{REGION}:{ACCOUNT}:cluster/events"
    pod_identity = ["--identity", "pod-identity", "--trust", "pod-identity", "--role", ROLE]
    pod_identity += ["--cluster-arn", cluster, "--service-account", "clickhouse/clickhouse"]
    made = resources(said, *BOTH, *pod_identity)
    assert made.keys() == {*("S3Endpoint", "EndpointGroup", "SqsEndpoint", "Boundary", "Role")}
    tags = {tag["Key"]: tag["Value"] for tag in made["Role"]["Properties"]["Tags"]}
    assert tags == {
        "byoc-organization": "org-1",
        "byoc-service": "svc-1",
        "byoc-s3-vpce": {"Ref": "S3Endpoint"},
        "byoc-sqs-vpce": {"Ref": "SqsEndpoint"},
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*BOTH], "--role: is required for a stack"),
        ([*BOTH, *IRSA[:4]], "--oidc-provider: is required for a stack"),
        (["alert-forwarder", *IRSA], "these daemons call no AWS service"),
        (["state-exporter", *IRSA], "BYOC_STATE_QUEUE_URL: the queue is not in eu-central-1"),
        (["billing-scraper", *IRSA], "BYOC_REGION: invalid value 'cn-north-1'"),
    ],
)
def test_a_stack_that_cannot_work_is_refused(
    arguments: list[str], message: str, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BYOC_ALERTS_URL", "https://control.example.com/v1/events")
    if "the queue" in message:
        elsewhere = "https://sqs.eu-west-1.amazonaws.com/444455556666/state.fifo"
        monkeypatch.setenv("BYOC_STATE_QUEUE_URL", elsewhere)
    if "cn-north-1" in message:
        monkeypatch.setenv("BYOC_REGION", "cn-north-1")
    assert message in said("stack", *arguments, code=2)


def client(service: str) -> Any:
    keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret"}
    return botocore.session.get_session().create_client(service, region_name=REGION, **keys)


@pytest.fixture
def account(said: Said, tmp_path: Path) -> Iterator[Path]:
    """Yield a directory with the responses of an account that has the stack.

    moto keeps the documents of a stack as texts that are not JSON: the test sets them again.
    """
    template = json.loads(said("stack", *BOTH, *IRSA, "--format", "json"))
    with mock_aws():
        ec2, iam = client("ec2"), client("iam")
        vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
        subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.0.1.0/24")["Subnet"]["SubnetId"]
        (table,) = ec2.describe_route_tables(Filters=[{"Name": "vpc-id", "Values": [vpc]}])[
            "RouteTables"
        ]
        values = {
            "VpcId": vpc,
            "RouteTableIds": table["RouteTableId"],
            "SubnetIds": subnet,
            "ClientCidr": "10.0.0.0/16",
        }
        client("cloudformation").create_stack(
            StackName="byoc",
            TemplateBody=json.dumps(template),
            Parameters=[
                {"ParameterKey": key, "ParameterValue": value} for key, value in values.items()
            ],
            Capabilities=["CAPABILITY_NAMED_IAM"],
        )
        ids = {}
        for name in ("S3Endpoint", "SqsEndpoint", "StsEndpoint"):
            properties = template["Resources"][name]["Properties"]
            (made,) = ec2.describe_vpc_endpoints(
                Filters=[{"Name": "service-name", "Values": [properties["ServiceName"]]}]
            )["VpcEndpoints"]
            ids[name] = made["VpcEndpointId"]
            document = json.dumps(properties["PolicyDocument"])
            ec2.modify_vpc_endpoint(VpcEndpointId=ids[name], PolicyDocument=document)
        text = json.dumps(template["Resources"]["Role"]["Properties"]["Policies"][0])
        for name, identifier in ids.items():
            text = text.replace(f'{{"Ref": "{name}"}}', f'"{identifier}"')
        inline = json.loads(text)
        iam.put_role_policy(
            RoleName="byoc-agents",
            PolicyName=inline["PolicyName"],
            PolicyDocument=json.dumps(inline["PolicyDocument"]),
        )
        boundary = f"arn:aws:iam::{ACCOUNT}:policy/byoc-agents-boundary"
        answers = {
            "describe-vpc-endpoints": ec2.describe_vpc_endpoints(),
            "get-role": iam.get_role(RoleName="byoc-agents"),
            "get-role-policy": iam.get_role_policy(
                RoleName="byoc-agents", PolicyName="byoc-agents"
            ),
            "get-policy-version": iam.get_policy_version(PolicyArn=boundary, VersionId="v1"),
        }
        for name, response in answers.items():
            kept = {key: value for key, value in response.items() if key != "ResponseMetadata"}
            (tmp_path / f"{name}.json").write_text(json.dumps(kept, default=str))
        yield tmp_path


def test_an_account_with_the_stack_differs_in_nothing(account: Path, said: Said) -> None:
    assert said("stack", *BOTH, *IRSA, "--check", str(account)) == ""


def endpoint(response: dict[str, Any], service: str) -> dict[str, Any]:
    name = f"com.amazonaws.{REGION}.{service}"
    found: dict[str, Any] = next(o for o in response["VpcEndpoints"] if o["ServiceName"] == name)
    return found


OPEN = json.dumps(
    {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Principal": "*", "Action": "*", "Resource": "*"}],
    }
)
CHANGES: dict[str, tuple[str, Callable[[dict[str, Any]], object], str]] = {
    "s3-endpoint-is-open": (
        "describe-vpc-endpoints",
        lambda one: endpoint(one, "s3").update(PolicyDocument=OPEN),
        "Action: allows more than the table",
    ),
    "sqs-without-dns": (
        "describe-vpc-endpoints",
        lambda one: endpoint(one, "sqs").update(PrivateDnsEnabled=False),
        "PrivateDnsEnabled: is False: expected True",
    ),
    "no-sts": (
        "describe-vpc-endpoints",
        lambda one: one["VpcEndpoints"].remove(endpoint(one, "sts")),
        "has no 'single endpoint of com.amazonaws.eu-central-1.sts, but 0'",
    ),
    "session": (
        "get-role",
        lambda one: one["Role"].update(MaxSessionDuration=43200),
        "MaxSessionDuration: is 43200: expected 3600",
    ),
    "no-boundary": (
        "get-role",
        lambda one: one["Role"].pop("PermissionsBoundary"),
        "PermissionsBoundary: is missing",
    ),
    "tag": (
        "get-role",
        lambda one: one["Role"]["Tags"].pop(0),
        "byoc-organization: is missing: expected org-1",
    ),
    "trust": (
        "get-role",
        lambda one: one["Role"]["AssumeRolePolicyDocument"]["Statement"][0].pop("Condition"),
        "Condition.oidc.eks.example/id/X:sub: allows more",
    ),
    "permissions": (
        "get-role-policy",
        lambda one: one["PolicyDocument"]["Statement"][0].update(Action="s3:*"),
        "Action: allows more than the table",
    ),
    "boundary": (
        "get-policy-version",
        lambda one: one["PolicyVersion"].update(Document=json.loads(OPEN)),
        "allows more than the table",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_each_difference_is_named(name: str, account: Path, said: Said) -> None:
    operation, change, message = CHANGES[name]
    file = account / f"{operation}.json"
    response = json.loads(file.read_text())
    change(response)
    file.write_text(json.dumps(response))
    found = said("stack", *BOTH, *IRSA, "--check", str(account), code=1)
    assert found.startswith(f"{operation}.json")
    assert message in found


def test_names_and_texts_of_terraform() -> None:
    assert [label(name) for name in ("Role", "S3Endpoint", "VpcId")] == [
        *("role", "s3_endpoint", "vpc_id")
    ]
    assert quoted('a "b" ${aws:PrincipalTag/x} %{if}') == (
        '"a \\"b\\" $${aws:PrincipalTag/x} %%{if}"'
    )
