"""The four AWS documents: identity policy, trust policy, bucket policy, endpoint policy.

Condition keys: aws:SourceVpce, aws:SecureTransport, aws:PrincipalArn, aws:ResourceAccount (IAM
global keys), s3:TlsVersion, s3:if-none-match (S3 user guide, "Enforce conditional writes").
"""

from typing import Any

from byoc_agents.egress.regions import partition
from byoc_agents.errors import ConfigError
from byoc_agents.policy.inputs import Facts, Objects, Options, Rendered

VERSION = "2012-10-17"
ROLE_AUDIENCE = "byoc-agents"  # of the token that the chart mounts for our containers only
ROLE, VPCE = "<CUSTOMER_ROLE_ARN>", "<VPC_ENDPOINT_ID>"
MIN_TLS = "1.2"
ONE_ROLE = (
    "A pod has one role: every container of the pod can use the permissions of each daemon."
    " Nothing here reads, lists or deletes."
)
NO_AWS = "These daemons call no AWS service: attach no policy and give them no role."
BOTH = "The bucket is in another account: this grants nothing without the bucket's own policy."
VENDOR = "For the vendor's bucket; one such policy may hold the statements of many customers."
ENDPOINT = (
    "A gateway endpoint serves every pod and node of its route tables: whatever else they need from"
    " S3 (image layers of ECR, backups) needs statements in addition to these."
)
PRINCIPAL = (
    "A gateway endpoint's policy has no Principal; the condition aws:PrincipalArn names the role."
)
WITHOUT_PUT = "Uploads in parts and copies are refused too: they carry no If-None-Match."


def iam_policy(facts: Facts, options: Options) -> Rendered:
    """Return the role's permissions: put objects into its own folder, send to one queue."""
    if options.trust:
        return _trust(facts, options)
    statements = [*_put(facts, options), *_send(facts, options)]
    notes = (ONE_ROLE, BOTH) if facts.objects else (ONE_ROLE,)
    return Rendered(_document(statements), notes if statements else (NO_AWS,))


def bucket_policy(facts: Facts, options: Options) -> Rendered:
    """Return the vendor's policy: this role, this endpoint, only TLS, no overwriting."""
    objects = _objects(facts)
    role, vpce = {"AWS": options.role or ROLE}, options.vpce or VPCE
    bucket, folder = _arn(facts, objects.bucket), _folder(facts, objects)
    put = {"Action": "s3:PutObject", "Resource": folder}
    all_of_it = {"Action": "s3:*", "Resource": [bucket, f"{bucket}/*"]}
    statements = [
        _statement(
            "PutNewObjectsByTheEndpoint",
            put,
            role,
            {"StringEquals": {"aws:SourceVpce": vpce}, "Null": {"s3:if-none-match": "false"}},
        ),
        _deny(
            "NothingByAnotherWay", all_of_it, role, {"StringNotEquals": {"aws:SourceVpce": vpce}}
        ),
        _deny("NothingIsOverwritten", put, "*", {"Null": {"s3:if-none-match": "true"}}),
        _deny("TlsOnly", all_of_it, "*", {"Bool": {"aws:SecureTransport": "false"}}),
        _deny("NoOldTls", all_of_it, "*", {"NumericLessThan": {"s3:TlsVersion": MIN_TLS}}),
    ]
    return Rendered(_document(statements), (VENDOR, WITHOUT_PUT))


def endpoint_policy(facts: Facts, options: Options) -> Rendered:
    """Return the gateway endpoint's policy: only putting objects into that folder."""
    put = {"Action": "s3:PutObject", "Resource": _folder(facts, _objects(facts))}
    condition = {"ArnEquals": {"aws:PrincipalArn": options.role or ROLE}}
    document = _document([_statement("PutObjectsOnly", put, "*", condition)])
    return Rendered(document, (ENDPOINT, PRINCIPAL))


def literal(text: str) -> str:
    """Return the text with `*`, `?` and `$` escaped for a policy."""
    return "".join(f"${{{char}}}" if char in "*?$" else char for char in text)


def _objects(facts: Facts) -> Objects:
    if facts.objects is None:
        raise ConfigError(["BYOC_BILLING_BUCKET: expected billing-scraper and an S3 bucket"])
    return facts.objects


def _arn(facts: Facts, bucket: str) -> str:
    return f"arn:{partition(facts.region)}:s3:::{bucket}"


def _folder(facts: Facts, objects: Objects) -> str:
    return f"{_arn(facts, objects.bucket)}/{literal(objects.folder)}*"


def _put(facts: Facts, options: Options) -> list[dict[str, Any]]:
    if not facts.objects:
        return []
    owner = facts.objects.owner
    account = {"Condition": {"StringEquals": {"aws:ResourceAccount": owner}}} if owner else {}
    put = {
        "Sid": "BillingScraperPutsObjects",
        "Effect": "Allow",
        "Action": "s3:PutObject",
        "Resource": _folder(facts, facts.objects),
    }
    return [put | account, *_key("BillingScraper", ["kms:GenerateDataKey"], "s3", facts, options)]


def _send(facts: Facts, options: Options) -> list[dict[str, Any]]:
    if not facts.queue_arn:
        return []
    send = {
        "Sid": "StateExporterSendsMessages",
        "Effect": "Allow",
        "Action": "sqs:SendMessage",
        "Resource": facts.queue_arn,
    }
    actions = ["kms:GenerateDataKey", "kms:Decrypt"]
    return [send, *_key("StateExporter", actions, "sqs", facts, options)]


def _key(
    who: str, actions: list[str], service: str, facts: Facts, options: Options
) -> list[dict[str, Any]]:
    """Return the statement for a customer-managed key, restricted to one service."""
    if not options.kms_key:
        return []
    region = facts.queue_arn.split(":")[3] if service == "sqs" else facts.region
    via = f"{service}.{region}.amazonaws.com"
    return [
        {
            "Sid": f"{who}UsesTheKey",
            "Effect": "Allow",
            "Action": actions,
            "Resource": options.kms_key,
            "Condition": {"StringEquals": {"kms:ViaService": via}},
        }
    ]


def _trust(facts: Facts, options: Options) -> Rendered:
    """Return the trust policy: one service account, by IRSA or by EKS Pod Identity."""
    namespace, _, name = (options.service_account or "<NAMESPACE>/<SERVICE_ACCOUNT>").partition("/")
    if options.trust == "pod-identity":
        tags = {"kubernetes-namespace": namespace, "kubernetes-service-account": name}
        condition = {"StringEquals": {f"aws:RequestTag/{key}": tags[key] for key in tags}}
        actions = {"Action": ["sts:AssumeRole", "sts:TagSession"]}
        service = {"Service": "pods.eks.amazonaws.com"}
        return Rendered(_document([_statement("PodIdentity", actions, service, condition)]))
    provider = options.oidc_provider or "<OIDC_PROVIDER>"  # host and path, without https://
    subject = f"system:serviceaccount:{namespace}:{name}"
    claims = {f"{provider}:aud": ROLE_AUDIENCE, f"{provider}:sub": subject}
    account = options.role.split(":")[4] if options.role else "<ACCOUNT>"
    arn = f"arn:{partition(facts.region)}:iam::{account}:oidc-provider/{provider}"
    action = {"Action": "sts:AssumeRoleWithWebIdentity"}
    condition = {"StringEquals": claims}
    return Rendered(_document([_statement("Irsa", action, {"Federated": arn}, condition)]))


def _document(statements: list[dict[str, Any]]) -> dict[str, Any]:
    return {"Version": VERSION, "Statement": statements}


def _statement(sid: str, what: dict[str, Any], who: Any, condition: Any) -> dict[str, Any]:
    return {"Sid": sid, "Effect": "Allow", "Principal": who, **what, "Condition": condition}


def _deny(sid: str, what: dict[str, Any], who: Any, condition: Any) -> dict[str, Any]:
    return _statement(sid, what, who, condition) | {"Effect": "Deny"}
