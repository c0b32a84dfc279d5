"""`byoc-control-plane stack`: the vendor's side as CloudFormation or Terraform, and a drift check.

Bucket and queue have the policies of `byoc-agents policy bucket-policy --tenants` and
`queue-policy --tenants`, made from the same destinations table.
"""

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from byoc_agents.app.command_line import CommandParser
from byoc_agents.app.settings import account_id
from byoc_agents.app.settings import name as region_name
from byoc_agents.billing.objects import DEFAULT_PREFIX
from byoc_agents.egress.destinations import dns_suffix, s3_destination, sqs_destination
from byoc_agents.egress.regions import partition
from byoc_agents.errors import ConfigError
from byoc_agents.policy import aws, live
from byoc_agents.policy.cli import queue_arn
from byoc_agents.policy.inputs import Facts, Objects, Options, Rendered
from byoc_agents.policy.live import Description
from byoc_agents.policy.render import STACK_FORMS, findings_json, print_rendered
from byoc_agents.policy.template import (
    Blocks,
    Json,
    Reference,
    Resource,
    Template,
    cloudformation,
    terraform,
)
from byoc_control_plane.cli import COMMANDS
from byoc_control_plane.settings import checked_argument

NAME = "byoc-control-plane"
QUEUE_NAME = r"[A-Za-z0-9_-]{1,67}\.fifo"  # SQS: 80 characters, with `-dead-letters`
# IAM: an issuer has no port and no query. `https://` is left out in the provider's ARN.
PROVIDER = r"(https://)?[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+(/[A-Za-z0-9._~-]+)*/?"
LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"  # of Kubernetes: a namespace
ACCOUNT_NAME = rf"{LABEL}(\.{LABEL})*"  # a ServiceAccount
SERVICE_ACCOUNT = rf"{LABEL}/{ACCOUNT_NAME}(,{ACCOUNT_NAME})*"
RETENTION_SECONDS = 1_209_600  # 14 days, the longest of SQS
VISIBILITY_SECONDS = 30  # the default of BYOC_PLANE_VISIBILITY_SECONDS
# The largest of SQS. A consumer that cannot insert receives a message again about every 30 s, so
# messages reach the dead-letter queue only after some eight hours without ClickHouse.
MAX_RECEIVES = 1000
OLD_VERSION_DAYS = 30  # a compacted object can be restored for so long
SESSION_SECONDS = 3600
LARGEST_MESSAGE_BYTES = 256 * 1024  # of the exporters
AUDIENCE = "sts.amazonaws.com"  # of the tokens of EKS for the vendor's own pods
HIGH_THROUGHPUT = {
    "FifoQueue": True,
    "DeduplicationScope": "messageGroup",
    "FifoThroughputLimit": "perMessageGroupId",
}
NOTES = (
    (
        "Consumer: BYOC_PLANE_QUEUE_URL is the queue's URL. A message that was received 1,000 times"
        " is moved to the dead-letter queue, from where `aws sqs start-message-move-task` returns"
        " it after the outage."
    ),
    "Bucket and queues stay when the stack is deleted.",
)


def make_parser() -> CommandParser:
    """Return the parser of the command."""
    parser = COMMANDS["stack"].parser()
    digits, names = checked_argument(account_id), checked_argument(region_name)
    parser.add_argument("--region", required=True, type=names)
    parser.add_argument("--bucket", required=True, metavar="NAME")
    parser.add_argument("--queue", required=True, metavar="NAME.fifo")
    parser.add_argument("--owner", required=True, type=digits, metavar="ID", help="your account")
    parser.add_argument(
        "--account", required=True, action="append", type=digits, metavar="ID",
        help="the account of a customer; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--prefix", default=DEFAULT_PREFIX, help="BYOC_BILLING_PREFIX without account="
    )
    parser.add_argument(
        "--oidc-provider", default="", metavar="HOST/PATH",
        help="of the cluster of your control plane: adds a role for consumer and compactor",
    )  # fmt: skip
    parser.add_argument("--service-account", default="", metavar="NAMESPACE/NAME[,NAME]")
    parser.add_argument(
        "--format", choices=tuple(STACK_FORMS), default="cloudformation",
        help="json: CloudFormation in JSON; with --check the findings",
    )  # fmt: skip
    parser.add_argument(
        "--json", action="store_const", const="json", dest="format", help="same as --format json"
    )
    parser.add_argument(
        "--check", default="", metavar="DIRECTORY", help="compare with responses of aws, as files"
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """Print the template, or with --check the findings; return 1 if there are any.

    Raises ConfigError.
    """
    asked = make_parser().parse_args(argv)
    template, expected = make_template(asked)
    if asked.check:
        found = live.differences(expected, live.read_responses(asked.check, expected))
        lines = "".join(f"{finding}\n" for finding in found)
        as_json = asked.format == "json"
        sys.stdout.write(findings_json("stack", asked.check, found) if as_json else lines)
        return 1 if found else 0
    rendered = Rendered(cloudformation(template), NOTES, terraform(template))
    text, notes = print_rendered(rendered, STACK_FORMS[asked.format])
    sys.stdout.write(text)
    for note in notes:
        sys.stderr.write(f"note: {note}\n")
    return 0


def make_template(asked: argparse.Namespace) -> tuple[Template, list[Description]]:
    """Return the template, and the responses of AWS about it. Raises ConfigError."""
    if not re.fullmatch(QUEUE_NAME, asked.queue, re.ASCII):
        raise ConfigError(
            [f"--queue: invalid value {asked.queue!r}: expected 1 to 67 of A-Z a-z 0-9 _ -, .fifo"]
        )
    if bool(asked.oidc_provider) != bool(asked.service_account):
        raise ConfigError(["--oidc-provider: expected together with --service-account"])
    for flag, given, pattern, wanted in (
        ("--oidc-provider", asked.oidc_provider, PROVIDER, "HOST/PATH of the cluster's issuer"),
        (
            *("--service-account", asked.service_account, SERVICE_ACCOUNT),
            "NAMESPACE/NAME[,NAME], names of Kubernetes",
        ),
    ):
        if given and not re.fullmatch(pattern, given, re.ASCII):
            raise ConfigError([f"{flag}: invalid value {given!r}: expected {wanted}"])
    url = f"https://sqs.{asked.region}.{dns_suffix(asked.region)}/{asked.owner}/{asked.queue}"
    prefix = f"{asked.prefix.rstrip('/')}/" if asked.prefix.rstrip("/") else ""
    facts = Facts(
        daemons=("billing-scraper", "state-exporter"),
        region=asked.region,
        destinations=(
            s3_destination(asked.bucket, asked.region, setting="--bucket"),
            sqs_destination(url, setting="--queue"),
        ),
        objects=Objects(asked.bucket, prefix, asked.owner, prefix),
        queue_arn=queue_arn(url, asked.region),
    )
    options = Options(tenants=True, accounts=tuple(asked.account))
    documents = {
        "bucket": aws.bucket_policy(facts, options).document,
        "queue": aws.queue_policy(facts, options).document,
    }
    dead = facts.queue_arn.replace(".fifo", "-dead-letters.fifo")
    allowed = _permissions(facts, prefix)
    resources = [
        *_bucket(asked.bucket, documents["bucket"]),
        *_queues(asked.queue, documents["queue"]),
        *_policies(allowed),
    ]
    trust = _trust(facts, asked) if asked.oidc_provider else None
    if trust:
        resources += _roles(trust)
    template = Template(
        "byoc-control-plane: the vendor's bucket, queues and permissions", resources
    )
    expected = [*_describe_bucket(asked.bucket, documents["bucket"])]
    expected += _describe_queues(asked.queue, documents["queue"], facts.queue_arn, dead)
    expected += _describe_policies(
        f"arn:{partition(asked.region)}:iam::{asked.owner}", allowed, trust
    )
    return template, expected


PRIVATE = {
    "BlockPublicAcls": True,
    "BlockPublicPolicy": True,
    "IgnorePublicAcls": True,
    "RestrictPublicBuckets": True,
}


def _bucket(name: str, policy: Any) -> list[Resource]:
    bucket = Reference("Bucket")
    return [
        Resource(
            "Bucket",
            "AWS::S3::Bucket",
            {
                "BucketName": name,
                "VersioningConfiguration": {"Status": "Enabled"},
                "BucketEncryption": {
                    "ServerSideEncryptionConfiguration": [
                        {"ServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}
                    ]
                },
                "PublicAccessBlockConfiguration": PRIVATE,
                "OwnershipControls": {"Rules": [{"ObjectOwnership": "BucketOwnerEnforced"}]},
                "LifecycleConfiguration": {
                    "Rules": [
                        {
                            "Id": "old-versions",
                            "Status": "Enabled",
                            "NoncurrentVersionExpiration": {"NoncurrentDays": OLD_VERSION_DAYS},
                            "ExpiredObjectDeleteMarker": True,
                        }
                    ]
                },
            },
            {
                "aws_s3_bucket": {"bucket": name},
                "aws_s3_bucket_versioning": {
                    "bucket": bucket,
                    "versioning_configuration": Blocks([{"status": "Enabled"}]),
                },
                "aws_s3_bucket_server_side_encryption_configuration": {
                    "bucket": bucket,
                    "rule": Blocks(
                        [
                            {
                                "apply_server_side_encryption_by_default": Blocks(
                                    [{"sse_algorithm": "AES256"}]
                                )
                            }
                        ]
                    ),
                },
                "aws_s3_bucket_public_access_block": {
                    "bucket": bucket,
                    "block_public_acls": True,
                    "block_public_policy": True,
                    "ignore_public_acls": True,
                    "restrict_public_buckets": True,
                },
                "aws_s3_bucket_ownership_controls": {
                    "bucket": bucket,
                    "rule": Blocks([{"object_ownership": "BucketOwnerEnforced"}]),
                },
                "aws_s3_bucket_lifecycle_configuration": {
                    "bucket": bucket,
                    "rule": Blocks(
                        [
                            {
                                "id": "old-versions",
                                "status": "Enabled",
                                "filter": Blocks([{}]),
                                "noncurrent_version_expiration": Blocks(
                                    [{"noncurrent_days": OLD_VERSION_DAYS}]
                                ),
                                "expiration": Blocks([{"expired_object_delete_marker": True}]),
                            }
                        ]
                    ),
                },
            },
            keep=True,
        ),
        Resource(
            "BucketPolicy",
            "AWS::S3::BucketPolicy",
            {"Bucket": bucket, "PolicyDocument": policy},
            {"aws_s3_bucket_policy": {"bucket": bucket, "policy": Json(policy)}},
        ),
    ]


def _queues(name: str, policy: Any) -> list[Resource]:
    dead = Reference("DeadLetters", "Arn", "arn")
    redrive = {"deadLetterTargetArn": dead, "maxReceiveCount": MAX_RECEIVES}
    own = {"RedrivePolicy": redrive, "VisibilityTimeout": VISIBILITY_SECONDS}
    terraform_own = {
        "redrive_policy": Json(redrive),
        "visibility_timeout_seconds": VISIBILITY_SECONDS,
    }
    queue = Reference("Queue")
    return [
        _queue("DeadLetters", name.replace(".fifo", "-dead-letters.fifo"), {}, {}),
        _queue("Queue", name, own, terraform_own),
        Resource(
            "QueuePolicy",
            "AWS::SQS::QueuePolicy",
            {"Queues": [queue], "PolicyDocument": policy},
            {"aws_sqs_queue_policy": {"queue_url": queue, "policy": Json(policy)}},
        ),
    ]


def _queue(logical: str, name: str, own: dict[str, Any], terraform_own: dict[str, Any]) -> Resource:
    return Resource(
        logical,
        "AWS::SQS::Queue",
        {
            "QueueName": name,
            **HIGH_THROUGHPUT,
            "MessageRetentionPeriod": RETENTION_SECONDS,
            "SqsManagedSseEnabled": True,
            **own,
        },
        {
            "aws_sqs_queue": {
                "name": name,
                "fifo_queue": True,
                "deduplication_scope": HIGH_THROUGHPUT["DeduplicationScope"],
                "fifo_throughput_limit": HIGH_THROUGHPUT["FifoThroughputLimit"],
                "message_retention_seconds": RETENTION_SECONDS,
                "sqs_managed_sse_enabled": True,
                **terraform_own,
            }
        },
        keep=True,
    )


def _permissions(facts: Facts, prefix: str) -> dict[str, Any]:
    """Return what the consumer and the compactor need, as their modules state it: documents."""
    assert facts.objects is not None  # noqa: S101  made above
    bucket = f"arn:{partition(facts.region)}:s3:::{facts.objects.bucket}"
    consume = {"Action": ["sqs:ReceiveMessage", "sqs:DeleteMessage"], "Resource": facts.queue_arn}
    listing = {"Action": "s3:ListBucket", "Resource": bucket}
    compact = {
        "Action": ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"],
        "Resource": f"{bucket}/{aws.literal(prefix)}*",
    }
    statements: dict[str, list[dict[str, Any]]] = {
        "Consumer": [consume],
        "Compactor": [listing, compact],
    }
    return {
        part: {"Version": aws.VERSION, "Statement": [{"Effect": "Allow", **one} for one in allowed]}
        for part, allowed in statements.items()
    }


def _policies(documents: Mapping[str, Any]) -> list[Resource]:
    return [
        Resource(
            f"{part}Policy",
            "AWS::IAM::ManagedPolicy",
            {"ManagedPolicyName": _name(part), "PolicyDocument": document},
            {"aws_iam_policy": {"name": _name(part), "policy": Json(document)}},
        )
        for part, document in documents.items()
    ]


def _name(part: str) -> str:
    """Return the name of a part's policy, and of its role."""
    return f"{NAME}-{part.lower()}"


def _trust(facts: Facts, asked: argparse.Namespace) -> Any:
    """Return the trust policy of both roles: pods of the vendor's cluster."""
    options = Options(
        trust="irsa",
        oidc_provider=asked.oidc_provider.removeprefix("https://"),
        service_account=asked.service_account,
        audience=AUDIENCE,
        role=f"arn:{partition(facts.region)}:iam::{asked.owner}:role/{NAME}",
    )
    return aws.iam_policy(facts, options).document


def _roles(trust: Any) -> list[Resource]:
    """Return a role for the consumer and one for the compactor, for pods of the same cluster."""
    return [
        Resource(
            f"{part}Role",
            "AWS::IAM::Role",
            {
                "RoleName": _name(part),
                "AssumeRolePolicyDocument": trust,
                "MaxSessionDuration": SESSION_SECONDS,
                "ManagedPolicyArns": [Reference(f"{part}Policy")],
            },
            {
                "aws_iam_role": {
                    "name": _name(part),
                    "assume_role_policy": Json(trust),
                    "max_session_duration": SESSION_SECONDS,
                },
                "aws_iam_role_policy_attachment": {
                    "role": Reference(f"{part}Role", terraform="name"),
                    "policy_arn": Reference(f"{part}Policy", terraform="arn"),
                },
            },
        )
        for part in ("Consumer", "Compactor")
    ]


def _describe_bucket(name: str, policy: Any) -> list[Description]:
    def describe(operation: str, wanted: Any, *keys: str, policy: bool = False) -> Description:
        def find(given: Any) -> Any:
            for key in keys:
                given = given[int(key) if isinstance(given, list) and key.isdigit() else key]
            return given

        command = f"aws s3api {operation} --bucket {name}"
        return Description(f"{operation}.json", command, wanted, find, policy)

    encryption = ("ServerSideEncryptionConfiguration", "Rules", "0")
    return [
        describe("get-bucket-policy", policy, "Policy", policy=True),
        describe("get-bucket-versioning", {"Status": "Enabled"}),
        describe(
            "get-bucket-encryption", {"SSEAlgorithm": "AES256"},
            *encryption, "ApplyServerSideEncryptionByDefault",
        ),
        describe("get-public-access-block", PRIVATE, "PublicAccessBlockConfiguration"),
        describe(
            "get-bucket-ownership-controls",
            {"Rules": [{"ObjectOwnership": "BucketOwnerEnforced"}]}, "OwnershipControls",
        ),
        Description(
            "get-bucket-lifecycle-configuration.json",
            f"aws s3api get-bucket-lifecycle-configuration --bucket {name}",
            {
                "Rules": [
                    {
                        "Status": "Enabled",
                        "Filter": {"Prefix": ""},
                        "NoncurrentVersionExpiration": {"NoncurrentDays": OLD_VERSION_DAYS},
                        "Expiration": {"ExpiredObjectDeleteMarker": True},
                    }
                ]
            },
            _find_rules,
        ),
    ]  # fmt: skip


def _find_rules(response: Any) -> dict[str, Any]:
    """Return the rules of a bucket's lifecycle, without names; all objects are the prefix ""."""
    rules = []
    for given in response["Rules"]:
        rule = {key: value for key, value in given.items() if key not in {"ID", "Prefix"}}
        rule["Filter"] = given.get("Filter") or {"Prefix": given.get("Prefix", "")}
        rules.append(rule)
    return {"Rules": rules}


def _describe_queues(name: str, policy: Any, arn: str, dead: str) -> list[Description]:
    common = {
        "MessageRetentionPeriod": RETENTION_SECONDS,
        "SqsManagedSseEnabled": True,
        "KmsMasterKeyId": None,
        "DelaySeconds": 0,
        "ContentBasedDeduplication": False,
        "MaximumMessageSize": None,
        "RedriveAllowPolicy": None,
        **HIGH_THROUGHPUT,
    }
    redrive = {"deadLetterTargetArn": dead, "maxReceiveCount": MAX_RECEIVES}
    url = "$(aws sqs get-queue-url --queue-name {} --output text)"
    command = f"aws sqs get-queue-attributes --attribute-names All --queue-url {url}"
    queue = ("get-queue-attributes.json", command.format(name))
    return [
        Description(
            *queue,
            {"QueueArn": arn, **common, "RedrivePolicy": redrive,
             "VisibilityTimeout": VISIBILITY_SECONDS},
            _find_attributes,
        ),
        Description(*queue, policy, lambda response: response["Attributes"]["Policy"], policy=True),
        Description(
            "get-queue-attributes-dead-letters.json",
            command.format(dead.rpartition(":")[2]),
            {"QueueArn": dead, **common, "Policy": None, "RedrivePolicy": None},
            _find_attributes,
        ),
    ]  # fmt: skip


def _find_attributes(response: Any) -> dict[str, Any]:
    """Return the attributes of a queue; its limit of a message only if the exporters exceed it."""
    attributes = dict(response["Attributes"])
    size = str(attributes.get("MaximumMessageSize", ""))
    if size.isdecimal() and int(size) >= LARGEST_MESSAGE_BYTES:
        del attributes["MaximumMessageSize"]
    return attributes


def _describe_policies(account: str, documents: Mapping[str, Any], trust: Any) -> list[Description]:
    """Describe the managed policies, and with `trust` the roles: nothing else may be attached."""
    found = []
    for part, document in documents.items():
        name, suffix = _name(part), f"-{part.lower()}.json"
        arn = f"{account}:policy/{name}"
        newest = f"aws iam get-policy --policy-arn {arn} --query Policy.DefaultVersionId"
        version = f"$({newest} --output text)"
        command = f"aws iam get-policy-version --policy-arn {arn} --version-id {version}"
        policy = (f"get-policy-version{suffix}", command)
        found += [
            Description(*policy, {"IsDefaultVersion": True}, lambda given: given["PolicyVersion"]),
            Description(
                *policy, document, lambda given: given["PolicyVersion"]["Document"], policy=True
            ),
        ]
        if trust:
            role = (f"get-role{suffix}", f"aws iam get-role --role-name {name}")
            attached = [{"PolicyName": name, "PolicyArn": arn}]
            found += [
                Description(
                    *role,
                    {"Arn": f"{account}:role/{name}", "MaxSessionDuration": SESSION_SECONDS},
                    lambda given: given["Role"],
                ),
                Description(
                    *role, trust, lambda given: given["Role"]["AssumeRolePolicyDocument"],
                    policy=True,
                ),
                Description(
                    f"list-attached-role-policies{suffix}",
                    f"aws iam list-attached-role-policies --role-name {name}",
                    {"AttachedPolicies": attached}, _find_whole_list,
                ),
                Description(
                    f"list-role-policies{suffix}",
                    f"aws iam list-role-policies --role-name {name}",
                    {"PolicyNames": []}, _find_whole_list,
                ),
            ]  # fmt: skip
    return found


def _find_whole_list(response: Any) -> Any:
    """Return the response. Raises KeyError if it is the first page of several."""
    if response.get("IsTruncated") is True:
        raise KeyError("end: the response is the first page of several")
    return response
