"""The printed Terraform, read by HashiCorp's own parser and compared with the CloudFormation.

The provider's schema is not checked: the provider comes from no registry that a test can reach.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from byoc_agents.app import cli as agents
from byoc_control_plane import cli as plane
from lab.real.parts.install import hcl_oracle

pytestmark = pytest.mark.real
ROLE = "arn:aws:iam::111122223333:role/byoc-agents"
VENDOR = [
    *("--region", "eu-central-1", "--bucket", "vendor-usage", "--queue", "state.fifo"),
    *("--owner", "444455556666", "--account", "111122223333"),
    *("--oidc-provider", "oidc.eks.example/id/X", "--service-account", "byoc/consumer"),
]
CUSTOMER = [
    *("billing-scraper", "state-exporter", "--identity", "irsa", "--trust", "irsa"),
    *("--role", ROLE, "--oidc-provider", "oidc.eks.example/id/X"),
    *("--service-account", "clickhouse/clickhouse"),
]
# Resource of CloudFormation -> (type and name of Terraform, its attribute, the property)
SAME = {
    "vendor": {
        "BucketPolicy": ("aws_s3_bucket_policy.bucket_policy", "policy", "PolicyDocument"),
        "QueuePolicy": ("aws_sqs_queue_policy.queue_policy", "policy", "PolicyDocument"),
        "ConsumerPolicy": ("aws_iam_policy.consumer_policy", "policy", "PolicyDocument"),
        "CompactorPolicy": ("aws_iam_policy.compactor_policy", "policy", "PolicyDocument"),
        "ConsumerRole": (
            "aws_iam_role.consumer_role", "assume_role_policy", "AssumeRolePolicyDocument",
        ),
        "Queue": ("aws_sqs_queue.queue", "redrive_policy", "RedrivePolicy"),
    },
    "customer": {
        "S3Endpoint": ("aws_vpc_endpoint.s3_endpoint", "policy", "PolicyDocument"),
        "SqsEndpoint": ("aws_vpc_endpoint.sqs_endpoint", "policy", "PolicyDocument"),
        "StsEndpoint": ("aws_vpc_endpoint.sts_endpoint", "policy", "PolicyDocument"),
        "Boundary": ("aws_iam_policy.boundary", "policy", "PolicyDocument"),
        "Role": ("aws_iam_role.role", "assume_role_policy", "AssumeRolePolicyDocument"),
    },
}  # fmt: skip
REFERENCES = {  # as the parser's program writes them -> as CloudFormation has them
    "ref:aws_vpc_endpoint.s3_endpoint.id": {"Ref": "S3Endpoint"},
    "ref:aws_vpc_endpoint.sqs_endpoint.id": {"Ref": "SqsEndpoint"},
    "ref:aws_sqs_queue.dead_letters.arn": {"Fn::GetAtt": ["DeadLetters", "Arn"]},
}


def printed(side: str, form: str, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    if side == "vendor":
        assert plane.main(["stack", *VENDOR, "--format", form]) == 0
    else:
        assert agents.main(["policy", "stack", *CUSTOMER, "--format", form]) == 0
    return capsys.readouterr().out


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the settings of the customer's daemons."""
    for name, value in {
        "BYOC_ORGANIZATION_ID": "org-1",
        "BYOC_SERVICE_ID": "svc-1",
        "BYOC_REGION": "eu-central-1",
        "BYOC_BILLING_BUCKET": "vendor-usage",
        "BYOC_STATE_QUEUE_URL": "https://sqs.eu-central-1.amazonaws.com/444455556666/state.fifo",
    }.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("settings")
@pytest.mark.parametrize("side", SAME)
def test_terraform_has_the_documents_of_cloudformation(
    side: str, capsys: pytest.CaptureFixture[str]
) -> None:
    done = subprocess.run(
        [hcl_oracle()],
        input=printed(side, "terraform", capsys),
        capture_output=True,
        text=True,
        check=True,
    )
    found = {".".join(one["labels"]): one["attributes"] for one in json.loads(done.stdout)}
    template = json.loads(printed(side, "json", capsys))["Resources"]
    for name, (place, attribute, wanted) in SAME[side].items():
        text: Any = found[place][attribute]
        for reference, value in REFERENCES.items():
            text = text.replace(json.dumps(reference), json.dumps(value))
        assert json.loads(text) == template[name]["Properties"][wanted]
    if side == "vendor":
        for queue in ("queue", "dead_letters"):
            assert found[f"aws_sqs_queue.{queue}"]["fifo_throughput_limit"] == "perMessageGroupId"
            assert found[f"aws_sqs_queue.{queue}"]["deduplication_scope"] == "messageGroup"
    else:
        inline = found["aws_iam_role_policy.role"]["policy"]
        assert "ref:aws_vpc_endpoint.s3_endpoint.id" in inline
        assert found["aws_iam_role.role"]["tags"]["byoc-sqs-vpce"].startswith(
            "ref:aws_vpc_endpoint"
        )


def test_a_file_that_terraform_cannot_read_is_refused(tmp_path: Path) -> None:
    """The program above would see a mistake."""
    for text in ('resource "a" "b" {\n  x = "${y"\n}\n', 'resource "a" "b" {\n  x = f(1)\n}\n'):
        done = subprocess.run(
            [hcl_oracle()], input=text, capture_output=True, text=True, check=False, cwd=tmp_path
        )
        assert done.returncode == 1
        assert "main.tf:2" in done.stderr
