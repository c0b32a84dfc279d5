"""The vendor's stack: made by moto from the printed template, and compared with what AWS says.

moto makes of the bucket's properties only the encryption, and neither policy: the test applies the
others with the values of the template, by the operations of S3 and SQS.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from moto import mock_aws

from byoc_agents.policy import cli as policy
from byoc_control_plane import cli

REGION, OWNER, CUSTOMER = "eu-central-1", "123456789012", "111122223333"  # moto's own account
BUCKET, QUEUE = "vendor-usage", "state.fifo"
ISSUER = "oidc.eks.eu-central-1.amazonaws.com/id/VENDOR"
ARGUMENTS = [
    *("--region", REGION, "--bucket", BUCKET, "--queue", QUEUE, "--owner", OWNER),
    *("--account", CUSTOMER, "--account", "444455556666"),
    *("--oidc-provider", f"https://{ISSUER}", "--service-account", "byoc/consumer,compactor"),
]
APPLIED = {  # property -> operation with the same shape
    "VersioningConfiguration": "put_bucket_versioning",
    "PublicAccessBlockConfiguration": "put_public_access_block",
    "OwnershipControls": "put_bucket_ownership_controls",
}


def stack(*arguments: str) -> int:
    return cli.main(["stack", *ARGUMENTS, *arguments])


@pytest.fixture
def template(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert stack("--format", "json") == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize("account", ["012345678901", "098765432109", "000000000001"])
def test_an_account_is_a_text_to_every_reader_of_yaml(
    account: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A reader of YAML 1.2 takes unquoted digits for a number, and drops the zero."""
    names = ["--region", REGION, "--bucket", BUCKET, "--queue", QUEUE, "--owner", account]
    assert cli.main(["stack", *names, "--account", account]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = [line.strip() for line in lines if "aws:PrincipalAccount: " in line]
    assert found
    assert set(found) == {f"aws:PrincipalAccount: '{account}'"}


def client(service: str) -> Any:
    keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret"}
    return botocore.session.get_session().create_client(service, region_name=REGION, **keys)


def without_metadata(response: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in response.items() if key != "ResponseMetadata"}


def identity_responses() -> dict[str, Any]:
    """Return what IAM says of the managed policies and of the roles."""
    iam = client("iam")
    found: dict[str, Any] = {}
    for part in ("consumer", "compactor"):
        name = f"byoc-control-plane-{part}"
        arn = f"arn:aws:iam::{OWNER}:policy/{name}"
        version = iam.get_policy(PolicyArn=arn)["Policy"]["DefaultVersionId"]
        found |= {
            f"get-policy-version-{part}": iam.get_policy_version(PolicyArn=arn, VersionId=version),
            f"get-role-{part}": iam.get_role(RoleName=name),
            f"list-attached-role-policies-{part}": iam.list_attached_role_policies(RoleName=name),
            f"list-role-policies-{part}": iam.list_role_policies(RoleName=name),
        }
    return found


def write_responses(directory: Path) -> None:
    """Write what the commands of the AWS command line print."""
    s3, sqs = client("s3"), client("sqs")
    responses = {
        name.replace("_", "-"): getattr(s3, name)(Bucket=BUCKET)
        for name in (
            "get_bucket_policy",
            "get_bucket_versioning",
            "get_bucket_encryption",
            "get_public_access_block",
            "get_bucket_ownership_controls",
            "get_bucket_lifecycle_configuration",
        )
    }
    for name, file in (
        (QUEUE, ""),
        (QUEUE.replace(".fifo", "-dead-letters.fifo"), "-dead-letters"),
    ):
        url = sqs.get_queue_url(QueueName=name)["QueueUrl"]
        responses[f"get-queue-attributes{file}"] = sqs.get_queue_attributes(
            QueueUrl=url, AttributeNames=["All"]
        )
    responses |= identity_responses()
    for name, response in responses.items():
        text = json.dumps(without_metadata(response), default=str)
        (directory / f"{name}.json").write_text(text)


@pytest.fixture
def account(template: dict[str, Any], tmp_path: Path) -> Iterator[Path]:
    """Yield a directory with the responses of an account that has the stack."""
    resources = dict(template["Resources"])
    bucket, queue = (
        json.dumps(resources.pop(name)["Properties"]["PolicyDocument"])
        for name in ("BucketPolicy", "QueuePolicy")
    )
    with mock_aws():
        client("cloudformation").create_stack(
            StackName="byoc",
            TemplateBody=json.dumps(template | {"Resources": resources}),
            Capabilities=["CAPABILITY_NAMED_IAM"],
        )
        s3 = client("s3")
        properties = template["Resources"]["Bucket"]["Properties"]
        for name, operation in APPLIED.items():
            getattr(s3, operation)(Bucket=BUCKET, **{name: properties[name]})
        s3.put_bucket_policy(Bucket=BUCKET, Policy=bucket)
        url = client("sqs").get_queue_url(QueueName=QUEUE)["QueueUrl"]
        client("sqs").set_queue_attributes(QueueUrl=url, Attributes={"Policy": queue})
        lifecycle = properties["LifecycleConfiguration"]["Rules"][0]
        rule = {key: lifecycle[key] for key in ("Status", "NoncurrentVersionExpiration")}
        rule |= {"ID": lifecycle["Id"], "Filter": {"Prefix": ""}}
        rule |= {"Expiration": {"ExpiredObjectDeleteMarker": True}}
        s3.put_bucket_lifecycle_configuration(
            Bucket=BUCKET, LifecycleConfiguration={"Rules": [rule]}
        )
        for part in ("consumer", "compactor"):  # moto attaches none of a template
            name = f"byoc-control-plane-{part}"
            arn = f"arn:aws:iam::{OWNER}:policy/{name}"
            client("iam").attach_role_policy(RoleName=name, PolicyArn=arn)
        write_responses(tmp_path)
        yield tmp_path


@pytest.mark.parametrize("form", ["cloudformation", "json"])
def test_cfn_lint_has_nothing_to_say(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stack("--format", form) == 0
    file = tmp_path / "template.yaml"
    file.write_text(capsys.readouterr().out)
    done = subprocess.run(
        [str(Path(sys.executable).with_name("cfn-lint")), "--", str(file)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_policies_are_those_of_the_policy_commands(
    template: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {
        "BYOC_ORGANIZATION_ID": "any",
        "BYOC_SERVICE_ID": "any",
        "BYOC_REGION": REGION,
        "BYOC_BILLING_BUCKET": BUCKET,
        "BYOC_BILLING_BUCKET_OWNER": OWNER,
        "BYOC_STATE_QUEUE_URL": f"https://sqs.{REGION}.amazonaws.com/{OWNER}/{QUEUE}",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    accounts = ["--tenants", "--account", CUSTOMER, "--account", "444455556666"]
    for command, daemon, resource in (
        ("bucket-policy", "billing-scraper", "BucketPolicy"),
        ("queue-policy", "state-exporter", "QueuePolicy"),
    ):
        capsys.readouterr()
        assert policy.main([command, daemon, *accounts]) == 0
        printed = json.loads(capsys.readouterr().out)
        assert template["Resources"][resource]["Properties"]["PolicyDocument"] == printed


def test_the_queues_have_high_throughput_and_the_second_takes_the_dead_letters(
    account: Path,
) -> None:
    own = json.loads((account / "get-queue-attributes.json").read_text())["Attributes"]
    dead = json.loads((account / "get-queue-attributes-dead-letters.json").read_text())
    for attributes in (own, dead["Attributes"]):
        assert attributes["FifoQueue"] == "true"
        assert attributes["DeduplicationScope"] == "messageGroup"
        assert attributes["FifoThroughputLimit"] == "perMessageGroupId"
        assert attributes["MessageRetentionPeriod"] == "1209600"
    redrive = json.loads(own["RedrivePolicy"])
    assert redrive == {
        "deadLetterTargetArn": dead["Attributes"]["QueueArn"],
        "maxReceiveCount": 1000,
    }


@pytest.mark.usefixtures("account")
def test_each_part_of_the_control_plane_has_a_role_with_its_permissions_only(
    template: dict[str, Any],
) -> None:
    """The template says which policy is attached: moto attaches none to the role of a stack."""
    iam = client("iam")
    for part, action in (("Consumer", "sqs:DeleteMessage"), ("Compactor", "s3:DeleteObject")):
        name = f"byoc-control-plane-{part.lower()}"
        (statement,) = iam.get_role(RoleName=name)["Role"]["AssumeRolePolicyDocument"]["Statement"]
        assert statement["Principal"]["Federated"].endswith(f"{OWNER}:oidc-provider/{ISSUER}")
        assert statement["Condition"]["StringEquals"][f"{ISSUER}:aud"] == "sts.amazonaws.com"
        attached = template["Resources"][f"{part}Role"]["Properties"]["ManagedPolicyArns"]
        assert attached == [{"Ref": f"{part}Policy"}]
        arn = f"arn:aws:iam::{OWNER}:policy/{name}"
        version = iam.get_policy(PolicyArn=arn)["Policy"]["DefaultVersionId"]
        found = iam.get_policy_version(PolicyArn=arn, VersionId=version)["PolicyVersion"]
        assert action in str(found["Document"])
        assert ("sqs:" in str(found["Document"])) == (part == "Consumer")


def test_an_account_with_the_stack_differs_in_nothing(
    account: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stack("--check", str(account)) == 0
    assert capsys.readouterr().out == ""


def _policy(change: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    """Return a change of the bucket's policy, which is a text in the response."""

    def changed(response: dict[str, Any]) -> None:
        document = json.loads(response["Policy"])
        change(document)
        response["Policy"] = json.dumps(document)

    return changed


def _statement(document: dict[str, Any], sid: str) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in document["Statement"] if one["Sid"] == sid)
    return found


CHANGES: dict[str, tuple[str, Callable[[dict[str, Any]], object], str]] = {
    "versions": (
        "get-bucket-versioning",
        lambda one: one.update(Status="Suspended"),
        "Status: is Suspended: expected Enabled",
    ),
    "never-versioned": ("get-bucket-versioning", lambda one: one.clear(), "Status: is missing"),
    "encryption": (
        "get-bucket-encryption",
        lambda one: one["ServerSideEncryptionConfiguration"]["Rules"].clear(),
        "has no list index out of range",
    ),
    "public": (
        "get-public-access-block",
        lambda one: one["PublicAccessBlockConfiguration"].update(BlockPublicPolicy=False),
        "BlockPublicPolicy: is False: expected True",
    ),
    "ownership": (
        "get-bucket-ownership-controls",
        lambda one: one["OwnershipControls"]["Rules"][0].update(ObjectOwnership="ObjectWriter"),
        "is [{'ObjectOwnership': 'ObjectWriter'}]",
    ),
    "lifecycle": (
        "get-bucket-lifecycle-configuration",
        lambda one: one["Rules"][0].update(NoncurrentVersionExpiration={"NoncurrentDays": 1}),
        "'NoncurrentDays': 1}",
    ),
    "another-action": (
        "get-bucket-policy",
        _policy(lambda one: _statement(one, "PutNewObjectsByTheEndpoint").update(Action="s3:*")),
        "Action: allows more than the table",
    ),
    "another-account": (
        "get-bucket-policy",
        _policy(lambda one: _statement(one, "PutNewObjectsByTheEndpoint").update(Principal="*")),
        "Principal: allows more than the table",
    ),
    "overwriting": (
        "get-bucket-policy",
        _policy(lambda one: one["Statement"].remove(_statement(one, "NothingIsOverwritten"))),
        "denies less than",
    ),
    "throughput": (
        "get-queue-attributes",
        lambda one: one["Attributes"].update(FifoThroughputLimit="perQueue"),
        "FifoThroughputLimit: is perQueue: expected perMessageGroupId",
    ),
    "redrive": (
        "get-queue-attributes",
        lambda one: one["Attributes"].update(RedrivePolicy='{"maxReceiveCount": 3}'),
        "maxReceiveCount: is 3: expected 1000",
    ),
    "no-redrive": (
        "get-queue-attributes",
        lambda one: one["Attributes"].pop("RedrivePolicy"),
        "RedrivePolicy: is missing",
    ),
    "dead-letters": (
        "get-queue-attributes-dead-letters",
        lambda one: one["Attributes"].update(MessageRetentionPeriod="60"),
        "MessageRetentionPeriod: is 60: expected 1209600",
    ),
}


OPEN = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Principal": "*"}]}
LIFECYCLE, DEAD = "get-bucket-lifecycle-configuration", "get-queue-attributes-dead-letters"
RULE = {"ID": "more", "Status": "Enabled", "Filter": {"Prefix": "v1/"}, "Expiration": {"Days": 1}}
CHANGES |= {
    "a-further-lifecycle-rule": (LIFECYCLE, lambda one: one["Rules"].append(RULE), "Rules: is"),
    "a-lifecycle-of-one-prefix": (
        LIFECYCLE,
        lambda one: one["Rules"][0].update(Filter={"Prefix": "other/"}),
        "'Filter': {'Prefix': 'other/'}",
    ),
    "objects-expire": (
        LIFECYCLE,
        lambda one: one["Rules"][0].update(Expiration={"Days": 1}),
        "'Expiration': {'Days': 1}",
    ),
    "few-old-versions": (
        LIFECYCLE,
        lambda one: one["Rules"][0]["NoncurrentVersionExpiration"].update(
            NewerNoncurrentVersions=1
        ),
        "'NewerNoncurrentVersions': 1",
    ),
    "no-end-of-delete-markers": (
        LIFECYCLE,
        lambda one: one["Rules"][0].pop("Expiration"),
        "ExpiredObjectDeleteMarker",
    ),
    "a-second-rule-of-ownership": (
        "get-bucket-ownership-controls",
        lambda one: one["OwnershipControls"]["Rules"].append({"ObjectOwnership": "ObjectWriter"}),
        "Rules: is [",
    ),
    "a-list": ("get-public-access-block", lambda _one: [], "has no list indices"),
    "open-dead-letters": (
        DEAD,
        lambda one: one["Attributes"].update(Policy=json.dumps(OPEN)),
        "expected nothing",
    ),
    "dead-letters-are-moved-on": (
        DEAD,
        lambda one: one["Attributes"].update(RedrivePolicy='{"maxReceiveCount": 1}'),
        "RedrivePolicy: is {",
    ),
    "dead-letters-are-refused": (
        DEAD,
        lambda one: one["Attributes"].update(RedriveAllowPolicy='{"redrivePermission":"denyAll"}'),
        "RedriveAllowPolicy: is {",
    ),
    "a-delay": (
        "get-queue-attributes",
        lambda one: one["Attributes"].update(DelaySeconds="900"),
        "DelaySeconds: is 900: expected 0",
    ),
    "small-messages": (
        "get-queue-attributes",
        lambda one: one["Attributes"].update(MaximumMessageSize="1024"),
        "MaximumMessageSize: is 1024: expected nothing",
    ),
    "deduplication-by-content": (
        "get-queue-attributes",
        lambda one: one["Attributes"].update(ContentBasedDeduplication="true"),
        "ContentBasedDeduplication: is true: expected False",
    ),
    "a-customer-key": (
        "get-queue-attributes",
        lambda one: one["Attributes"].update(KmsMasterKeyId="alias/other"),
        "KmsMasterKeyId: is alias/other",
    ),
    "a-first-page-of-policies": (
        "list-attached-role-policies-consumer",
        lambda one: one.update(IsTruncated=True, Marker="x"),
        "has no 'end: the response is the first page of several'",
    ),
    "a-first-page-of-inline-policies": (
        "list-role-policies-consumer",
        lambda one: one.update(IsTruncated=True, Marker="x"),
        "has no 'end: the response is the first page of several'",
    ),
    "another-role": (
        "get-role-consumer",
        lambda one: one["Role"].update(Arn="arn:aws:iam::999999999999:role/other"),
        "Arn: is arn:aws:iam::999999999999:role/other",
    ),
}


def _managed(response: dict[str, Any]) -> Any:
    return response["PolicyVersion"]["Document"]["Statement"]


def _trusted(response: dict[str, Any]) -> Any:
    return response["Role"]["AssumeRolePolicyDocument"]["Statement"][0]


EXTRA = {"PolicyName": "AdministratorAccess", "PolicyArn": "arn:aws:iam::aws:policy/Admin"}
CHANGES |= {
    "a-wider-action": (
        "get-policy-version-consumer",
        lambda one: _managed(one)[0].update(Action="sqs:*"),
        "Action: allows more than the table",
    ),
    "a-wider-resource": (
        "get-policy-version-compactor",
        lambda one: _managed(one)[1].update(Resource="arn:aws:s3:::vendor-usage/*"),
        "Resource: allows more than the table",
    ),
    "a-narrower-action": (
        "get-policy-version-compactor",
        lambda one: _managed(one)[1].update(Action=["s3:GetObject", "s3:PutObject"]),
        "Action: allows less than Statement[1]: Action [s3:getobject, s3:putobject]",
    ),
    "a-missing-statement": (
        "get-policy-version-compactor",
        lambda one: _managed(one).pop(0),
        "expected Resource arn:aws:s3:::vendor-usage\n",
    ),
    "one-more-statement": (
        "get-policy-version-consumer",
        lambda one: _managed(one).append({"Effect": "Allow", "Action": "*", "Resource": "*"}),
        "allows more than the table",
    ),
    "an-old-version": (
        "get-policy-version-consumer",
        lambda one: one["PolicyVersion"].update(IsDefaultVersion=False),
        "IsDefaultVersion: is False: expected True",
    ),
    "another-subject": (
        "get-role-consumer",
        lambda one: _trusted(one)["Condition"]["StringEquals"].pop(f"{ISSUER}:sub"),
        "allows more than the table",
    ),
    "a-longer-session": (
        "get-role-compactor",
        lambda one: one["Role"].update(MaxSessionDuration=43200),
        "MaxSessionDuration: is 43200: expected 3600",
    ),
    "another-policy-attached": (
        "list-attached-role-policies-consumer",
        lambda one: one["AttachedPolicies"].append(EXTRA),
        "AdministratorAccess",
    ),
    "a-policy-detached": (
        "list-attached-role-policies-compactor",
        lambda one: one["AttachedPolicies"].clear(),
        "is []: expected",
    ),
    "an-inline-policy": (
        "list-role-policies-compactor",
        lambda one: one["PolicyNames"].append("more"),
        "PolicyNames: is ['more']: expected []",
    ),
}


def test_another_order_of_statements_actions_and_policies_is_no_difference(
    account: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = account / "get-policy-version-compactor.json"
    response = json.loads(file.read_text())
    _managed(response).reverse()
    for statement in _managed(response):
        if isinstance(statement["Action"], list):
            statement["Action"].reverse()
        else:
            statement["Action"] = [statement["Action"]]
    file.write_text(json.dumps(response))
    assert stack("--check", str(account)) == 0
    assert capsys.readouterr().out == ""


def test_without_roles_only_the_policies_are_compared(
    account: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in (*account.glob("get-role-*"), *account.glob("list-*")):
        file.unlink()
    assert stack("--check", str(account)) == 2
    assert (
        "get-role-consumer.json is missing: expected `aws iam get-role" in capsys.readouterr().err
    )
    at = ARGUMENTS.index("--oidc-provider")
    assert cli.main(["stack", *ARGUMENTS[:at], "--check", str(account)]) == 0


@pytest.mark.parametrize("name", CHANGES)
def test_each_difference_is_named(
    name: str, account: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    operation, change, message = CHANGES[name]
    file = account / f"{operation}.json"
    response = json.loads(file.read_text())
    changed = change(response)
    file.write_text(json.dumps(changed if changed == [] else response))
    assert stack("--check", str(account)) == 1
    said = capsys.readouterr().out
    assert said.startswith(f"{operation}.json: ")
    assert message in said


def test_a_missing_response_is_no_agreement(
    account: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (account / "get-bucket-policy.json").unlink()
    (account / "get-bucket-versioning.json").write_text("no JSON")
    assert stack("--check", str(account)) == 2
    said = capsys.readouterr().err
    assert "get-bucket-policy.json is missing: expected `aws s3api get-bucket-policy" in said
    assert "get-bucket-versioning.json: Expecting value" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--queue", "plain"], "--queue: invalid value 'plain'"),
        (["--bucket", "s3://x"], "--bucket: invalid value"),
        (["--region", "nowhere"], "BYOC_REGION: invalid value 'nowhere'"),
        (["--service-account", ""], "--oidc-provider: expected together"),
        *(
            (["--oidc-provider", value], f"--oidc-provider: invalid value {value!r}")
            for value in ('oidc.x/"${y}', "http://oidc.x/y", "oidc", "oidc.x:443/y", "oidc.x/*")
        ),
        *(
            (["--service-account", value], f"--service-account: invalid value {value!r}")
            for value in ("*/*", "byoc", "byoc/", "byoc/*", "Byoc/x", "byoc/x,", "a.b/x", "a/x y")
        ),
    ],
)
def test_a_mistake_is_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stack(*arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "issuer",
    [
        "oidc.eks.eu-central-1.amazonaws.com/id/0123456789ABCDEF",
        "https://container.googleapis.com/v1/projects/p-1/locations/eu/clusters/c_1",
        "https://eastus.oic.prod-aks.azure.com/0a1b/2c3d/",
        "issuer.example.com",
    ],
)
def test_issuers_of_clusters_are_accepted(issuer: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert stack("--oidc-provider", issuer, "--service-account", "byoc/a.b-1,default") == 0
    assert f"oidc-provider/{issuer.removeprefix('https://')}" in capsys.readouterr().out
