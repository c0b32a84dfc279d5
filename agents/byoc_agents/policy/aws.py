"""The AWS documents: of the role, its boundary and its trust, of bucket, queue and endpoints.

Condition keys: aws:SourceVpce, aws:SecureTransport, aws:PrincipalArn, aws:PrincipalAccount,
aws:PrincipalTag, aws:PrincipalIsAWSService, aws:ResourceAccount (IAM global keys), s3:TlsVersion,
s3:if-none-match (S3 user guide, "Enforce conditional writes"), s3:authType and s3:signatureversion
("Signature Version 4 authentication specific policy keys"), s3:x-amz-server-side-encryption-*.
"""

from typing import Any

import msgspec

from byoc_agents.egress.regions import partition
from byoc_agents.errors import ConfigError
from byoc_agents.policy.inputs import Facts, Objects, Options, Rendered

VERSION = "2012-10-17"
ROLE, VPCE, SQS_VPCE = "<CUSTOMER_ROLE_ARN>", "<VPC_ENDPOINT_ID>", "<SQS_VPC_ENDPOINT_ID>"
VENDOR_ACCOUNT = "<VENDOR_ACCOUNT>"
NO_ENDPOINT = "none"  # --sqs-vpce: there is no interface endpoint
MIN_TLS = "1.2"
SIGNATURE, AUTH_TYPE = "AWS4-HMAC-SHA256", "REST-HEADER"

# Quotas of AWS in bytes or characters: IAM counts without white space, S3 and SQS with it.
INLINE, MANAGED, TRUST = 10_240, 6_144, 2_048
BUCKET, QUEUE, VPC_ENDPOINT = 20_480, 8_192, 20_480

# Tags of a customer's role, for policies of any number of customers.
ORGANIZATION_TAG, SERVICE_TAG = "byoc-organization", "byoc-service"
VPCE_TAG, SQS_VPCE_TAG = "byoc-s3-vpce", "byoc-sqs-vpce"

ONE_ROLE = (
    "A pod has one role: every container of the pod can use the permissions of each daemon."
    " Nothing here reads, lists or deletes."
)
NO_AWS = "These daemons call no AWS service: attach no policy and give them no role."
BOTH = "The bucket is in another account: this grants nothing without the bucket's own policy."
FROM_ANYWHERE = (
    "Without {flag} the role's keys work from any network, unless another policy refuses them:"
    " {flag} adds aws:SourceVpce to the {service} statement."
)
BOUNDARY_NOTE = (
    "Attach it as the role's permissions boundary: a wider policy attached later grants no more. A"
    " role that ClickHouse uses too would lose ClickHouse's permissions."
)
SESSION = "Set the role's maximum session duration to 3600 s, the shortest that IAM accepts."
VENDOR = "For the vendor's bucket; one such policy may hold the statements of many customers."
VENDOR_QUEUE = "For the vendor's queue; one such policy may hold the statements of many customers."
NO_SQS_ENDPOINT = (
    "Without an interface endpoint of SQS the queue cannot tell the customer's network from"
    " another."
)
ENDPOINT = (
    "A gateway endpoint serves every pod and node of its route tables: whatever else they need from"
    " S3 (image layers of ECR, backups) needs statements in addition to these."
)
INTERFACE = (
    "An interface endpoint serves every pod of its VPC: whatever else they need from {service}"
    " needs statements in addition to these."
)
PRINCIPAL = (
    "An endpoint's policy names no role as Principal; the condition aws:PrincipalArn does it."
)
NO_PRIVATE_PATH = (
    "A cluster outside AWS has no endpoint of a VPC: whoever has a token of these service accounts"
    " can use the role from every network."
)
UNSIGNED = (
    "AssumeRoleWithWebIdentity is not signed, so the caller has no ARN: the role is the resource."
)
WITHOUT_PUT = "Uploads in parts and copies are refused too: they carry no If-None-Match."
TENANTS = (
    "It does not grow with the number of customers. AWS states aws:PrincipalAccount, which"
    " separates the customers. The tags are on each customer's role and under his control: "
)
TENANT_TAGS = (
    f"{ORGANIZATION_TAG} and {SERVICE_TAG} separate the services in one account, {{vpce}} is the"
    " only endpoint that his role may use."
)
TENANT_PREFIX = (
    "Each customer sets BYOC_BILLING_PREFIX to {prefix}account=ACCOUNT/, his account's 12 digits."
)
ANY_ACCOUNT = (
    "Without --account every AWS account may write, into a folder of its own number: read only the"
    " folders of customers, and expire the rest. S3 takes a policy with variables and without named"
    " principals for public, so Block Public Access refuses it unless BlockPublicPolicy and"
    " RestrictPublicBuckets are off. --account names some hundred customers."
)
ANY_SENDER = (
    "Without --account every AWS account with these tags may send. The queue does not separate its"
    " senders: compare the organization in a message with the attribute SenderId, or use one queue"
    " per customer."
)


def iam_policy(facts: Facts, options: Options) -> Rendered:
    """Return the role's permissions: put objects into its own folder, send to one queue."""
    if options.trust:
        return _trust(facts, options)
    statements = _permissions(facts, options)
    if not statements:
        return Rendered(_document([], INLINE), (NO_AWS,))
    notes = [ONE_ROLE, *([BOTH] if facts.objects else [])]
    if facts.objects and not options.vpce:
        notes.append(FROM_ANYWHERE.format(flag="--vpce", service="S3"))
    if facts.queue_arn and not options.sqs_vpce:
        notes.append(FROM_ANYWHERE.format(flag="--sqs-vpce", service="SQS"))
    return Rendered(_document(statements, INLINE), tuple(notes))


def boundary(facts: Facts, options: Options) -> Rendered:
    """Return the permissions boundary of the role: the same permissions as an upper limit."""
    statements = _permissions(facts, options)
    return Rendered(_document(statements, MANAGED), (BOUNDARY_NOTE, SESSION))


def bucket_policy(facts: Facts, options: Options) -> Rendered:
    """Return the vendor's policy: this role, this endpoint, only TLS, no overwriting."""
    objects = _objects(facts)
    bucket = _arn(facts, objects.bucket)
    all_of_it = {"Action": "s3:*", "Resource": [bucket, f"{bucket}/*"]}
    if options.tenants:
        folder = f"{bucket}/{literal(objects.prefix)}{TENANT_FOLDER}"
        vpce = _tag(VPCE_TAG)
        who = _tenants(facts.region, options)
        other = _another_way(all_of_it, VPCE_TAG, facts)
        tags = TENANTS + TENANT_TAGS.format(vpce=VPCE_TAG)
        prefix = TENANT_PREFIX.format(prefix=objects.prefix)
        notes = [tags, prefix, *([] if options.accounts else [ANY_ACCOUNT]), WITHOUT_PUT]
    else:
        folder, vpce = _folder(facts, objects), options.vpce or VPCE
        who = {"AWS": options.role or ROLE}
        not_by = {"StringNotEquals": {"aws:SourceVpce": vpce}}
        other = _deny("NothingByAnotherWay", all_of_it, who, not_by)
        notes = [VENDOR, WITHOUT_PUT]
    put = {"Action": "s3:PutObject", "Resource": folder}
    # without variables: one that has no value would switch a denial off
    every = f"{bucket}/{literal(objects.prefix)}account=*"
    uploaded = put | {"Resource": every} if options.tenants else put
    statements = [
        _statement(
            "PutNewObjectsByTheEndpoint",
            put,
            who,
            {
                "StringEquals": {"aws:SourceVpce": vpce},
                "Null": {"s3:if-none-match": "false"},
            },
        ),
        other,
        *_uploads(uploaded, options),
        _deny("TlsOnly", all_of_it, "*", {"Bool": {"aws:SecureTransport": "false"}}),
        _deny("NoOldTls", all_of_it, "*", {"NumericLessThan": {"s3:TlsVersion": MIN_TLS}}),
    ]
    return Rendered(_document(statements, BUCKET, spaced=True), tuple(notes))


def queue_policy(facts: Facts, options: Options) -> Rendered:
    """Return the policy of the vendor's queue: this role, this endpoint, only TLS."""
    queue = _queue(facts)
    all_of_it = {"Action": "sqs:*", "Resource": queue}
    send = {"Action": "sqs:SendMessage", "Resource": queue}
    who: Any = {"AWS": options.role or ROLE}
    if options.tenants:
        who = _tenants(queue.split(":")[3], options)
        condition = {
            "StringEquals": {"aws:SourceVpce": _tag(SQS_VPCE_TAG)},
            "Null": {
                f"aws:PrincipalTag/{name}": "false" for name in (ORGANIZATION_TAG, SERVICE_TAG)
            },
        }
        ways = [_another_way(all_of_it, SQS_VPCE_TAG, facts, queue.split(":")[4])]
        tags = TENANTS + TENANT_TAGS.format(vpce=SQS_VPCE_TAG)
        notes = [tags, *([] if options.accounts else [ANY_SENDER])]
    elif options.sqs_vpce == NO_ENDPOINT:
        condition, ways, notes = {}, [], [VENDOR_QUEUE, NO_SQS_ENDPOINT]
    else:
        vpce = options.sqs_vpce or SQS_VPCE
        condition = {"StringEquals": {"aws:SourceVpce": vpce}}
        not_by = {"StringNotEquals": {"aws:SourceVpce": vpce}}
        ways, notes = [_deny("NothingByAnotherWay", all_of_it, who, not_by)], [VENDOR_QUEUE]
    statements = [
        _statement("SendByTheEndpoint", send, who, condition),
        *ways,
        _deny("TlsOnly", all_of_it, "*", {"Bool": {"aws:SecureTransport": "false"}}),
    ]
    return Rendered(_document(statements, QUEUE, spaced=True), tuple(notes))


def endpoint_policy(facts: Facts, options: Options) -> Rendered:
    """Return the gateway endpoint's policy: only putting objects into that folder."""
    objects = _objects(facts)
    put = {"Action": "s3:PutObject", "Resource": _folder(facts, objects)}
    condition = _by_role(options)
    if objects.owner:
        condition["StringEquals"] = {"aws:ResourceAccount": objects.owner}
    document = _document([_statement("PutObjectsOnly", put, "*", condition)], VPC_ENDPOINT)
    return Rendered(document, (ENDPOINT, PRINCIPAL))


def sqs_endpoint_policy(facts: Facts, options: Options) -> Rendered:
    """Return the policy of SQS's interface endpoint: only sending to that queue."""
    send = {"Action": "sqs:SendMessage", "Resource": _queue(facts)}
    statements = [_statement("SendMessagesOnly", send, "*", _by_role(options))]
    notes = (INTERFACE.format(service="SQS"), PRINCIPAL)
    return Rendered(_document(statements, VPC_ENDPOINT), notes)


def sts_endpoint_policy(_facts: Facts, options: Options) -> Rendered:
    """Return the policy of STS's interface endpoint: only taking that role by a token."""
    action = {"Action": "sts:AssumeRoleWithWebIdentity", "Resource": options.role or ROLE}
    statements = [_statement("TakeOneRoleOnly", action, "*", {})]
    notes = (INTERFACE.format(service="STS"), UNSIGNED)
    return Rendered(_document(statements, VPC_ENDPOINT), notes)


def literal(text: str) -> str:
    """Return the text with `*`, `?` and `$` escaped for a policy."""
    return "".join(f"${{{char}}}" if char in "*?$" else char for char in text)


def _tag(name: str, default: str = "") -> str:
    """Return the variable of a principal's tag. Without a default a request without it matches not.

    IAM user guide, "Policy variables with no value" and "Specifying default values".
    """
    return (
        f"${{aws:PrincipalTag/{name}, '{default}'}}" if default else f"${{aws:PrincipalTag/{name}}}"
    )


TENANT_FOLDER = (
    f"account=${{aws:PrincipalAccount}}/org={_tag(ORGANIZATION_TAG)}/service={_tag(SERVICE_TAG)}/*"
)


def _tenants(region: str, options: Options) -> Any:
    """Return the customers as Principal: the accounts that are given, else everybody."""
    start = f"arn:{partition(region)}:iam::"
    roots = [f"{start}{account}:root" for account in options.accounts]
    return {"AWS": roots} if roots else "*"


def _another_way(what: dict[str, Any], tag: str, facts: Facts, owner: str = "") -> dict[str, Any]:
    """Return the denial for everybody but the vendor and AWS's own services.

    The default keeps it in force for roles without the tag: a variable without a value would
    switch the statement off.
    """
    vendor = owner or (facts.objects.owner if facts.objects else "") or VENDOR_ACCOUNT
    not_by = {"aws:PrincipalAccount": vendor, "aws:SourceVpce": _tag(tag, NO_ENDPOINT)}
    condition = {
        "StringNotEquals": not_by,
        "BoolIfExists": {"aws:PrincipalIsAWSService": "false"},
    }
    return _deny("NothingByAnotherWay", what, "*", condition)


def _uploads(put: dict[str, Any], options: Options) -> list[dict[str, Any]]:
    """Return the denials about the upload itself: only new objects, signed, readable."""
    encryption = "s3:x-amz-server-side-encryption"
    found = [
        _deny("NothingIsOverwritten", put, "*", {"Null": {"s3:if-none-match": "true"}}),
        _deny(
            "NoOtherSignature", put, "*", {"StringNotEquals": {"s3:signatureversion": SIGNATURE}}
        ),
        _deny("NoSignedLinks", put, "*", {"StringNotEquals": {"s3:authType": AUTH_TYPE}}),
        _deny(
            "NoKeyOfTheCaller", put, "*", {"Null": {f"{encryption}-customer-algorithm": "false"}}
        ),
    ]
    if options.kms_key:  # a request without these headers gets the bucket's default encryption
        wanted = ((encryption, "aws:kms"), (f"{encryption}-aws-kms-key-id", options.kms_key))
        found += [
            _deny(sid, put, "*", {"Null": {key: "false"}, "StringNotEquals": {key: value}})
            for sid, (key, value) in zip(("NoOtherEncryption", "NoOtherKey"), wanted, strict=True)
        ]
    return found


def _objects(facts: Facts) -> Objects:
    if facts.objects is None:
        raise ConfigError(["BYOC_BILLING_BUCKET: expected billing-scraper and an S3 bucket"])
    return facts.objects


def _queue(facts: Facts) -> str:
    if not facts.queue_arn:
        raise ConfigError(["BYOC_STATE_QUEUE_URL: expected state-exporter and an SQS queue"])
    return facts.queue_arn


def _arn(facts: Facts, bucket: str) -> str:
    """Return a bucket's ARN. Raises ConfigError for the alias of an access point."""
    if bucket.endswith("-s3alias"):
        wanted = "expected the name of a bucket: an access point has an ARN and a policy of its own"
        raise ConfigError([f"BYOC_BILLING_BUCKET: invalid value {bucket!r}: {wanted}"])
    return f"arn:{partition(facts.region)}:s3:::{bucket}"


def _folder(facts: Facts, objects: Objects) -> str:
    return f"{_arn(facts, objects.bucket)}/{literal(objects.folder)}*"


def _by_role(options: Options) -> dict[str, Any]:
    return {"ArnEquals": {"aws:PrincipalArn": options.role or ROLE}}


def _permissions(facts: Facts, options: Options) -> list[dict[str, Any]]:
    return [*_put(facts, options), *_send(facts, options)]


def _put(facts: Facts, options: Options) -> list[dict[str, Any]]:
    if not facts.objects:
        return []
    equal = {"aws:ResourceAccount": facts.objects.owner, "aws:SourceVpce": options.vpce}
    equal = {key: value for key, value in equal.items() if value}
    put = {
        "Sid": "BillingScraperPutsObjects",
        "Effect": "Allow",
        "Action": "s3:PutObject",
        "Resource": _folder(facts, facts.objects),
        "Condition": ({"StringEquals": equal} if equal else {})
        | {"Null": {"s3:if-none-match": "false"}},
    }
    return [put, *_key("BillingScraper", ["kms:GenerateDataKey"], "s3", facts, options)]


def _send(facts: Facts, options: Options) -> list[dict[str, Any]]:
    if not facts.queue_arn:
        return []
    send: dict[str, Any] = {
        "Sid": "StateExporterSendsMessages",
        "Effect": "Allow",
        "Action": "sqs:SendMessage",
        "Resource": facts.queue_arn,
    }
    if options.sqs_vpce not in {"", NO_ENDPOINT}:
        send["Condition"] = {"StringEquals": {"aws:SourceVpce": options.sqs_vpce}}
    actions = ["kms:GenerateDataKey", "kms:Decrypt"]
    return [send, *_key("StateExporter", actions, "sqs", facts, options)]


def _key(
    who: str, actions: list[str], service: str, facts: Facts, options: Options
) -> list[dict[str, Any]]:
    """Return the statement for a customer-managed key, restricted to one service.

    It names no endpoint: S3 and SQS call KMS, not the daemon.
    """
    if not options.kms_key:
        return []
    region = facts.queue_arn.split(":")[3] if service == "sqs" else facts.region
    via: Any = f"{service}.{region}.amazonaws.com"
    if partition(region) == "aws-cn":  # China's documents show both spellings
        via = [via, f"{via}.cn"]
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
    """Return the trust policy: service accounts of one cluster, by a token or EKS Pod Identity.

    AWS takes the issuer of a token to the letter: a slash at the end of AKS's is part of the
    provider's ARN and of the condition keys.
    """
    asked = options.service_account or "<NAMESPACE>/<SERVICE_ACCOUNT>"
    namespace, _, names = asked.partition("/")
    if options.trust == "pod-identity":
        cluster = options.cluster_arn or "<CLUSTER_ARN>"
        tags = {
            "eks-cluster-arn": cluster,
            "kubernetes-namespace": namespace,
            "kubernetes-service-account": _one_or_list(names.split(",")),
        }
        account = options.cluster_arn.split(":")[4] if options.cluster_arn else "<ACCOUNT>"
        equal = {f"aws:RequestTag/{key}": tags[key] for key in tags}
        condition = {"StringEquals": {"aws:SourceAccount": account} | equal}
        actions = {"Action": ["sts:AssumeRole", "sts:TagSession"]}
        service = {"Service": "pods.eks.amazonaws.com"}
        document = _document([_statement("PodIdentity", actions, service, condition)], TRUST)
        return Rendered(document, (SESSION,))
    provider = options.oidc_provider or "<OIDC_PROVIDER>"  # host and path, without https://
    subjects = [f"system:serviceaccount:{namespace}:{name}" for name in names.split(",")]
    claims = {f"{provider}:aud": options.audience, f"{provider}:sub": _one_or_list(subjects)}
    account = options.role.split(":")[4] if options.role else "<ACCOUNT>"
    arn = f"arn:{partition(facts.region)}:iam::{account}:oidc-provider/{provider}"
    action = {"Action": "sts:AssumeRoleWithWebIdentity"}
    condition = {"StringEquals": claims}
    outside = options.trust == "web-identity"
    sid = "WebIdentity" if outside else "Irsa"
    document = _document([_statement(sid, action, {"Federated": arn}, condition)], TRUST)
    return Rendered(document, (SESSION, NO_PRIVATE_PATH) if outside else (SESSION,))


def _one_or_list(values: list[str]) -> str | list[str]:
    """Return the only value, or the list of those of which one must match."""
    return values[0] if len(values) == 1 else values


def _document(
    statements: list[dict[str, Any]], limit: int, *, spaced: bool = False
) -> dict[str, Any]:
    """Return the document. Raises ConfigError if it is larger than AWS accepts."""
    document = {"Version": VERSION, "Statement": statements}
    text = msgspec.json.encode(document)
    size = len(msgspec.json.format(text)) + 1 if spaced else len(text)
    if size > limit:
        raise ConfigError([f"policy: invalid size {size} bytes: expected at most {limit}"])
    return document


def _statement(sid: str, what: dict[str, Any], who: Any, condition: Any) -> dict[str, Any]:
    found = {"Sid": sid, "Effect": "Allow", "Principal": who, **what}
    return found | ({"Condition": condition} if condition else {})


def _deny(sid: str, what: dict[str, Any], who: Any, condition: Any) -> dict[str, Any]:
    return _statement(sid, what, who, condition) | {"Effect": "Deny"}
