"""Judges the API endpoint of an EKS cluster, and the vendor's access entries. Pure and offline.

The input is the output of `aws eks describe-cluster`, `describe-access-entry` and
`list-associated-access-policies`. The vendor's role may have one Kubernetes group, of the chart's
ClusterRole `byoc-support-view`, and no access policy of EKS: even AmazonEKSViewPolicy reads
ConfigMaps and the logs of pods.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_network

import msgspec

from byoc_agents.manifest import parse_json, parse_json_values
from byoc_agents.policy.drift import PolicyFinding
from byoc_agents.policy.widths import Network

SUPPORT_GROUP = "byoc-support-view"
NEEDED_LOGS = ("audit", "authenticator")


class VpcConfig(msgspec.Struct, rename="camel"):
    """`resourcesVpcConfig`, the part that is judged."""

    endpoint_public_access: bool
    endpoint_private_access: bool
    public_access_cidrs: list[str] = []


class LogSetup(msgspec.Struct):
    """One entry of `clusterLogging`."""

    types: list[str] = []
    enabled: bool = False


class Logging(msgspec.Struct, rename="camel"):
    """`logging`."""

    cluster_logging: list[LogSetup] = []


class AccessConfig(msgspec.Struct, rename="camel"):
    """`accessConfig`. A cluster of before access entries has none: it uses aws-auth."""

    authentication_mode: str = "CONFIG_MAP"


class Cluster(msgspec.Struct, rename="camel"):
    """A cluster, the part that is judged."""

    arn: str
    resources_vpc_config: VpcConfig
    logging: Logging = msgspec.field(default_factory=Logging)
    access_config: AccessConfig = msgspec.field(default_factory=AccessConfig)


class DescribedCluster(msgspec.Struct):
    """The output of `aws eks describe-cluster`."""

    cluster: Cluster


class AccessEntry(msgspec.Struct, rename="camel"):
    """An access entry."""

    principal_arn: str
    cluster_name: str = ""
    username: str = ""
    kubernetes_groups: list[str] = []
    type: str = "STANDARD"


class AccessPolicy(msgspec.Struct, rename="camel"):
    """An access policy of EKS."""

    policy_arn: str


class EntryOutput(msgspec.Struct, rename="camel"):
    """One output of `describe-access-entry` or of `list-associated-access-policies`."""

    access_entry: AccessEntry | None = None
    principal_arn: str = ""
    cluster_name: str = ""
    associated_access_policies: list[AccessPolicy] | None = None


@dataclass(frozen=True, slots=True)
class Vendor:
    """Who the vendor is to AWS."""

    account: str  # 12 digits
    networks: tuple[Network, ...] = ()


def parse_cluster(text: str) -> Cluster:
    """Return the cluster. Raises ValueError if it is not such an output, or has a key twice."""
    return msgspec.convert(parse_json(text), DescribedCluster).cluster


def parse_entries(text: str) -> list[EntryOutput]:
    """Return the outputs that a file holds one after the other, or in a list.

    Raises ValueError if there is none, if one is neither an entry nor a list of policies, or if
    one has a key twice.
    """
    values: list[object] = []
    for value in parse_json_values(text):
        values += value if isinstance(value, list) else [value]
    if not values:
        raise ValueError("no output in it")
    found = msgspec.convert(values, list[EntryOutput])
    for one in found:
        policies = one.associated_access_policies is not None and one.principal_arn
        if one.access_entry is None and not policies:
            raise ValueError("expected accessEntry, or principalArn and associatedAccessPolicies")
    return found


def judge_endpoint(cluster: Cluster, vendor: Vendor) -> tuple[list[PolicyFinding], list[str]]:
    """Return the findings about the cluster itself, and notes, which are not findings."""
    found, notes = [], []
    vpc = cluster.resources_vpc_config
    if not vpc.endpoint_private_access:
        found.append(
            PolicyFinding("cluster.resourcesVpcConfig.endpointPrivateAccess", "false", "true")
        )
    if vpc.endpoint_public_access:
        wrong = _judge_public(vpc.public_access_cidrs, vendor)
        found += wrong
        if not wrong:
            notes.append(
                "the public endpoint is open to the vendor's networks, as a break-glass path"
            )
    enabled = {
        name for setup in cluster.logging.cluster_logging if setup.enabled for name in setup.types
    }
    found += [
        PolicyFinding("cluster.logging.clusterLogging", f"{name} is off", f"{name} enabled")
        for name in NEEDED_LOGS
        if name not in enabled
    ]
    where, mode = (
        "cluster.accessConfig.authenticationMode",
        cluster.access_config.authentication_mode,
    )
    if mode == "API_AND_CONFIG_MAP":
        notes.append("the ConfigMap aws-auth gives access too, and is not judged")
    elif mode != "API":
        found.append(PolicyFinding(where, mode, "API, which has access entries"))
    return found, notes


def _judge_public(cidrs: Sequence[str], vendor: Vendor) -> list[PolicyFinding]:
    where = "cluster.resourcesVpcConfig.publicAccessCidrs"
    expected = ", ".join(map(str, vendor.networks)) or "no public endpoint"
    if not cidrs:  # EKS uses 0.0.0.0/0 then
        return [PolicyFinding(where, "empty: every address", expected)]
    return [
        PolicyFinding(f"{where}[{number}]", f"{cidr} is not the vendor's", expected)
        for number, cidr in enumerate(cidrs)
        if not _within(cidr, vendor.networks)
    ]


def _within(cidr: str, networks: tuple[Network, ...]) -> bool:
    try:
        given = ip_network(cidr)
    except ValueError:
        return False
    return any(
        given.version == network.version and given.subnet_of(network)  # type: ignore[arg-type]
        for network in networks
    )


def judge_entries(
    outputs: Sequence[EntryOutput], cluster: Cluster, vendor: Vendor
) -> list[PolicyFinding]:
    """Return the findings about the entries of the vendor's account, and of unknown accounts.

    Both outputs of each are needed: one has the groups, the other one the access policies of EKS.
    """
    found = []
    own, name = account_of(cluster.arn), cluster.arn.rpartition("/")[2]
    seen: dict[str, set[str]] = {}
    for output in outputs:
        entry = output.access_entry
        principal = entry.principal_arn if entry else output.principal_arn
        account, where = account_of(principal), f"accessEntry {principal}"
        if account == own:
            continue
        kinds = seen.setdefault(principal, set())
        if not kinds and account != vendor.account:
            expected = f"{own}, the customer's, or {vendor.account}, the vendor's"
            found.append(PolicyFinding(where, f"of account {account or 'unknown'}", expected))
        given = entry.cluster_name if entry else output.cluster_name
        if given != name:
            found.append(PolicyFinding(where, f"of cluster {given or 'unknown'}", name))
            continue  # it says nothing about this cluster
        if entry:
            kinds.add("describe-access-entry")
            found += _judge_entry(entry, where)
        if output.associated_access_policies is not None:
            kinds.add("list-associated-access-policies")
        found += [
            PolicyFinding(
                where, f"has {one.policy_arn.rpartition('/')[2]}", "no access policy of EKS"
            )
            for one in output.associated_access_policies or []
        ]
    found += [
        PolicyFinding(f"accessEntry {principal}", f"no output of {needed} for {name}", "both")
        for principal, kinds in seen.items()
        for needed in ("describe-access-entry", "list-associated-access-policies")
        if needed not in kinds
    ]
    return found


def is_of(output: EntryOutput, vendor: Vendor) -> bool:
    """Return whether an output is about a principal of the vendor's account."""
    entry = output.access_entry
    return account_of(entry.principal_arn if entry else output.principal_arn) == vendor.account


def _judge_entry(entry: AccessEntry, where: str) -> list[PolicyFinding]:
    found = []
    if ":role/" not in entry.principal_arn:
        found.append(PolicyFinding(where, "is not a role", "an IAM role"))
    elif entry.username and not entry.username.startswith(_session(entry.principal_arn)):
        expected = f"{_session(entry.principal_arn)}{{{{SessionName}}}}"
        found.append(PolicyFinding(where, f"username {entry.username}", expected))
    if entry.type != "STANDARD":
        found.append(PolicyFinding(where, f"type {entry.type}", "STANDARD"))
    if entry.kubernetes_groups != [SUPPORT_GROUP]:
        groups = ", ".join(entry.kubernetes_groups) or "no group"
        found.append(PolicyFinding(where, f"kubernetesGroups has {groups}", SUPPORT_GROUP))
    return found


def _session(role: str) -> str:
    """Return how the user names of a role's sessions begin, as EKS makes them by default."""
    partition, account = role.split(":")[1], account_of(role)
    return f"arn:{partition}:sts::{account}:assumed-role/{role.rpartition('/')[2]}/"


def account_of(arn: str) -> str:
    """Return the account of an ARN; empty if it has none."""
    parts = arn.split(":")
    return parts[4] if len(parts) > 5 and parts[0] == "arn" else ""  # noqa: PLR2004  ARN's form
