"""The values that policies are made from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from byoc_agents.egress.destinations import Destination, ip_literal


@dataclass(frozen=True, slots=True)
class Listener:
    """A port that a daemon listens on."""

    daemon: str
    purpose: str  # metrics or webhook
    host: str
    port: int
    setting: str

    @property
    def open(self) -> bool:
        """Return whether it can be reached from outside the pod."""
        literal = ip_literal(self.host)
        return not (literal.is_loopback if literal else self.host == "localhost")


@dataclass(frozen=True, slots=True)
class Objects:
    """The bucket and the folder of the billing objects."""

    bucket: str
    folder: str  # prefix of every key of this service, `v1/org=O/service=S/`
    owner: str = ""  # 12 digits, or empty
    prefix: str = ""  # the configured start of the folder, `v1/`


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts of one configuration that policies need."""

    daemons: tuple[str, ...]
    region: str
    destinations: tuple[Destination, ...]
    proxy: Destination | None = None
    listeners: tuple[Listener, ...] = ()
    objects: Objects | None = None
    queue_arn: str = ""
    organization: str = ""
    service: str = ""

    @property
    def proxied(self) -> str:
        """Return a note about the proxy; empty without one."""
        if self.proxy is None:
            return ""
        return (
            f"All that is not local goes through {self.proxy}, S3 too: by this VPC's gateway"
            " endpoint only if the proxy itself does, and what the proxy allows is its own."
        )

    @property
    def reachable(self) -> tuple[Destination, ...]:
        """Return the destinations of packets: with a proxy, the proxy and the local ones."""
        if self.proxy is None:
            return self.destinations
        return (self.proxy, *(d for d in self.destinations if d.local))


@dataclass(frozen=True, slots=True)
class Options:
    """Values that a configuration does not have. An empty text becomes a `<PLACEHOLDER>`."""

    namespace: str = ""
    pod: Mapping[str, str] = field(default_factory=lambda: {"app.kubernetes.io/name": "clickhouse"})
    cidrs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # kind or host -> CIDRs
    dns: tuple[str, ...] = ()  # CIDRs of resolvers in addition to the cluster's, e.g. NodeLocal
    openshift: bool = False  # the cluster's resolver is OpenShift's
    family: str = "ipv4"  # ipv4, ipv6 or dual: what a host without a known address may have
    prometheus: str = "monitoring/app.kubernetes.io/name=prometheus"
    alertmanager: str = "monitoring/app.kubernetes.io/name=alertmanager"
    role: str = ""
    vpce: str = ""
    sqs_vpce: str = ""  # `none`: SQS is reached without an interface endpoint
    tenants: bool = False  # the policy of a bucket or queue of any number of customers
    accounts: tuple[str, ...] = ()  # of the customers, with `tenants`
    kms_key: str = ""
    trust: str = ""  # irsa or pod-identity: print the trust policy instead
    oidc_provider: str = ""
    audience: str = "byoc-agents"  # of the token that the chart mounts for our containers only
    cluster_arn: str = ""
    service_account: str = ""  # namespace/name, or namespace/name,name
    uids: tuple[int, ...] = ()  # of the daemons in a pod with other containers
    also: tuple[str, ...] = ()  # kinds, hosts or CIDRs that the pod's other uids reach too
    tailnet: str = ""  # relay or direct: the table has the rows of the chart's tailnet too


@dataclass(frozen=True, slots=True)
class Rendered:
    """A document, and the notes to read before applying it."""

    document: Any
    notes: tuple[str, ...] = ()
    text: str = ""  # another format, if one is more usual than YAML or JSON
