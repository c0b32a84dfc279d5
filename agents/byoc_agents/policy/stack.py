"""The customer's side as a stack: role, boundary, VPC endpoints and their security group.

Every policy in it is the document that its own policy command prints. `<S3_ENDPOINT>` and
`<SQS_ENDPOINT>` are replaced by the endpoints that the stack makes.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from byoc_agents.egress.destinations import DestinationKind, dns_suffix
from byoc_agents.errors import ConfigError
from byoc_agents.policy import aws, live
from byoc_agents.policy.drift import PolicyFinding
from byoc_agents.policy.inputs import Facts, Options, Rendered
from byoc_agents.policy.live import Description
from byoc_agents.policy.template import (
    Blocks,
    Json,
    Parameter,
    Reference,
    Resource,
    Template,
    cloudformation,
    substitute,
    terraform,
)

S3_ENDPOINT, SQS_ENDPOINT = "<S3_ENDPOINT>", "<SQS_ENDPOINT>"
MADE = {S3_ENDPOINT: Reference("S3Endpoint"), SQS_ENDPOINT: Reference("SqsEndpoint")}
NAME = "byoc-agents"
SESSION_SECONDS = 3600
HTTPS = 443
VPC = Parameter("VpcId", "AWS::EC2::VPC::Id", "The VPC of the cluster")
ROUTES = Parameter("RouteTableIds", "CommaDelimitedList", "The route tables of the nodes' subnets")
SUBNETS = Parameter("SubnetIds", "List<AWS::EC2::Subnet::Id>", "One subnet per zone of the nodes")
CLIENTS = Parameter("ClientCidr", "String", "The network of the pods, for example 10.0.0.0/16")
USE = (
    (
        "The endpoints serve the whole VPC: a VPC that has endpoints of these services, or that"
        " needs more from them, needs statements in addition to these."
    ),
    "The cluster's OIDC provider must exist and have the audience of the tokens.",
)
NO_OTHER_EGRESS = {
    "IpProtocol": "-1",
    "CidrIp": "127.0.0.1/32",
    "Description": "none: an endpoint only answers",
}


def stack(facts: Facts, options: Options) -> Rendered:
    """Return CloudFormation as the document, and Terraform as the text. Raises ConfigError."""
    template = customer_template(facts, options)
    return Rendered(cloudformation(template), USE, terraform(template))


def customer_template(facts: Facts, options: Options) -> Template:
    """Return what the customer's account needs. Raises ConfigError."""
    _require(facts, options)
    kinds = {destination.kind for destination in facts.destinations}
    endpoints = []
    parameters = [VPC]
    if facts.objects:
        parameters.append(ROUTES)
        endpoints.append(_gateway(facts, options))
    services = {
        DestinationKind.SQS: aws.sqs_endpoint_policy,
        DestinationKind.STS: aws.sts_endpoint_policy,
    }
    interfaces = [
        _interface(kind, facts, render(facts, options).document)
        for kind, render in services.items()
        if kind in kinds
    ]
    if interfaces:
        parameters += [SUBNETS, CLIENTS]
        interfaces.insert(0, _security_group())
    return Template(
        "byoc-agents: the customer's role, and the private ways to the vendor",
        [*endpoints, *interfaces, *_role(facts, options)],
        parameters,
    )


def _require(facts: Facts, options: Options) -> None:
    needed = {
        "--role": options.role,
        "--trust": options.trust,
        "--service-account": options.service_account,
        "--cluster-arn" if options.trust == "pod-identity" else "--oidc-provider": (
            options.cluster_arn if options.trust == "pod-identity" else options.oidc_provider
        ),
    }
    wrong = [f"{flag}: is required for a stack" for flag, value in needed.items() if not value]
    if options.trust == "web-identity":
        wrong.append("--trust: invalid value 'web-identity' for a stack: expected a cluster in AWS")
    if not (facts.objects or facts.queue_arn):
        wrong.append("stack: these daemons call no AWS service: expected another daemon")
    if facts.queue_arn and facts.queue_arn.split(":")[3] != facts.region:
        wrong.append(
            f"BYOC_STATE_QUEUE_URL: the queue is not in {facts.region}: expected the same region,"
            " since an interface endpoint serves no other"
        )
    if not wrong and dns_suffix(facts.region) != "amazonaws.com":
        wrong.append(f"BYOC_REGION: invalid value {facts.region!r}: expected a region outside China"
                     " for a stack, whose endpoints have other names there")  # fmt: skip
    if wrong:
        raise ConfigError(wrong)


def _documents(facts: Facts, options: Options) -> dict[str, Any]:
    """Return the documents of the role, restricted to the endpoints of the stack."""
    own = dataclasses.replace(options, trust="", vpce=S3_ENDPOINT, sqs_vpce=SQS_ENDPOINT)
    return {
        "trust": aws.iam_policy(facts, options).document,
        "permissions": aws.iam_policy(facts, own).document,
        "boundary": aws.boundary(facts, own).document,
    }


def _role(facts: Facts, options: Options) -> list[Resource]:
    path, _, name = options.role.partition(":role/")[2].rpartition("/")
    path = f"/{path}/" if path else "/"
    documents = {key: substitute(one, MADE) for key, one in _documents(facts, options).items()}
    tags = substitute(_tags(facts), MADE)
    boundary = {"policy": Json(documents["boundary"]), "name": f"{name}-boundary"}
    return [
        Resource(
            "Boundary",
            "AWS::IAM::ManagedPolicy",
            {"ManagedPolicyName": f"{name}-boundary", "PolicyDocument": documents["boundary"]},
            {"aws_iam_policy": boundary},
        ),
        Resource(
            "Role",
            "AWS::IAM::Role",
            {
                "RoleName": name,
                "Path": path,
                "AssumeRolePolicyDocument": documents["trust"],
                "MaxSessionDuration": SESSION_SECONDS,
                "PermissionsBoundary": Reference("Boundary"),
                "Policies": [{"PolicyName": NAME, "PolicyDocument": documents["permissions"]}],
                "Tags": [{"Key": key, "Value": value} for key, value in tags.items()],
            },
            {
                "aws_iam_role": {
                    "name": name,
                    "path": path,
                    "assume_role_policy": Json(documents["trust"]),
                    "max_session_duration": SESSION_SECONDS,
                    "permissions_boundary": Reference("Boundary", terraform="arn"),
                    "tags": tags,
                },
                "aws_iam_role_policy": {
                    "name": NAME,
                    "role": Reference("Role"),
                    "policy": Json(documents["permissions"]),
                },
            },
        ),
    ]


def _tags(facts: Facts) -> dict[str, str]:
    """Return the tags that the policies of any number of customers read."""
    found = {aws.ORGANIZATION_TAG: facts.organization, aws.SERVICE_TAG: facts.service}
    if facts.objects:
        found[aws.VPCE_TAG] = S3_ENDPOINT
    if facts.queue_arn:
        found[aws.SQS_VPCE_TAG] = SQS_ENDPOINT
    return found


def _gateway(facts: Facts, options: Options) -> Resource:
    document = aws.endpoint_policy(facts, options).document
    service = f"com.amazonaws.{facts.region}.s3"
    return Resource(
        "S3Endpoint",
        "AWS::EC2::VPCEndpoint",
        {
            "VpcEndpointType": "Gateway",
            "ServiceName": service,
            "VpcId": VPC,
            "RouteTableIds": ROUTES,
            "PolicyDocument": document,
        },
        {
            "aws_vpc_endpoint": {
                "vpc_endpoint_type": "Gateway",
                "service_name": service,
                "vpc_id": VPC,
                "route_table_ids": ROUTES,
                "policy": Json(document),
            }
        },
    )


def _interface(kind: DestinationKind, facts: Facts, document: Any) -> Resource:
    service = f"com.amazonaws.{facts.region}.{kind}"
    group = Reference("EndpointGroup", "GroupId")
    return Resource(
        f"{kind.capitalize()}Endpoint",
        "AWS::EC2::VPCEndpoint",
        {
            "VpcEndpointType": "Interface",
            "ServiceName": service,
            "VpcId": VPC,
            "SubnetIds": SUBNETS,
            "SecurityGroupIds": [group],
            "PrivateDnsEnabled": True,
            "PolicyDocument": document,
        },
        {
            "aws_vpc_endpoint": {
                "vpc_endpoint_type": "Interface",
                "service_name": service,
                "vpc_id": VPC,
                "subnet_ids": SUBNETS,
                "security_group_ids": [group],
                "private_dns_enabled": True,
                "policy": Json(document),
            }
        },
    )


def _security_group() -> Resource:
    meaning = "byoc-agents: HTTPS from the pods to the interface endpoints"
    rule = {"IpProtocol": "tcp", "FromPort": HTTPS, "ToPort": HTTPS, "CidrIp": CLIENTS}
    block = {"protocol": "tcp", "from_port": HTTPS, "to_port": HTTPS, "cidr_blocks": [CLIENTS]}
    return Resource(
        "EndpointGroup",
        "AWS::EC2::SecurityGroup",
        {
            "GroupDescription": meaning,
            "VpcId": VPC,
            "SecurityGroupIngress": [rule | {"Description": "the pods"}],
            "SecurityGroupEgress": [NO_OTHER_EGRESS],
        },
        {
            "aws_security_group": {
                "description": meaning,
                "vpc_id": VPC,
                "ingress": Blocks([block | {"description": "the pods"}]),
            }
        },
    )


def check_stack(directory: str, facts: Facts, options: Options) -> list[PolicyFinding]:
    """Return how the account differs from the stack. Raises ConfigError if a file is missing."""
    template = customer_template(facts, options)
    wanted = [one for one in template.resources if one.kind == "AWS::EC2::VPCEndpoint"]
    responses = [response for one in wanted for response in _endpoint_responses(one)]
    given = live.read_responses(directory, [*responses, *_role_responses(facts, options, {})])
    ids = {}
    for mark, reference in MADE.items():
        service = next((o for o in wanted if o.name == reference.resource), None)
        if service:
            try:
                endpoint = _endpoint(service.properties["ServiceName"])(given[ENDPOINTS])
                ids[mark] = endpoint["VpcEndpointId"]
            except (KeyError, TypeError):
                continue  # the endpoint is missing, which is a finding of its own
    return live.differences([*responses, *_role_responses(facts, options, ids)], given)


ENDPOINTS = "describe-vpc-endpoints.json"


def _endpoint(service: str) -> Any:
    """Return a function that finds the only endpoint of a service in a response."""

    def find(response: Any) -> Any:
        found = [one for one in response["VpcEndpoints"] if one["ServiceName"] == service]
        if len(found) != 1:
            raise KeyError(f"single endpoint of {service}, but {len(found)}")
        return found[0]

    return find


def _endpoint_responses(resource: Resource) -> list[Description]:
    wanted = resource.properties
    find = _endpoint(wanted["ServiceName"])
    command = "aws ec2 describe-vpc-endpoints"
    plain = {key: wanted[key] for key in ("VpcEndpointType", "PrivateDnsEnabled") if key in wanted}
    return [
        Description(ENDPOINTS, command, plain | {"State": "available"}, find),
        Description(
            ENDPOINTS, command, wanted["PolicyDocument"],
            lambda response: find(response)["PolicyDocument"], policy=True,
        ),
    ]  # fmt: skip


def _role_responses(facts: Facts, options: Options, ids: Mapping[str, Any]) -> list[Description]:
    documents = {key: substitute(one, ids) for key, one in _documents(facts, options).items()}
    name = options.role.rpartition("/")[2]
    get_role = ("get-role.json", f"aws iam get-role --role-name {name}")
    boundary = f"{options.role.partition(':role/')[0]}:policy/{name}-boundary"
    facts_of_role = {
        "MaxSessionDuration": SESSION_SECONDS,
        "PermissionsBoundary": {"PermissionsBoundaryArn": boundary},
    }
    return [
        Description(*get_role, facts_of_role, lambda response: response["Role"]),
        Description(
            *get_role, substitute(_tags(facts), ids), lambda response: as_tags(response["Role"])
        ),
        Description(
            *get_role, documents["trust"],
            lambda response: response["Role"]["AssumeRolePolicyDocument"], policy=True,
        ),
        Description(
            "get-role-policy.json",
            f"aws iam get-role-policy --role-name {name} --policy-name {NAME}",
            documents["permissions"], lambda response: response["PolicyDocument"], policy=True,
        ),
        Description(
            "get-policy-version.json",
            f"aws iam get-policy-version --policy-arn {boundary} --version-id VERSION",
            documents["boundary"], lambda response: response["PolicyVersion"]["Document"],
            policy=True,
        ),
    ]  # fmt: skip


def as_tags(resource: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tags of a resource."""
    return {tag["Key"]: tag["Value"] for tag in resource["Tags"]}
