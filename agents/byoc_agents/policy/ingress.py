"""Judges rendered manifests that open ClickHouse to clients: the ways in and their filters. Pure.

Expected is one shape: a Service of an AWS network load balancer with a list of client networks, an
Istio Gateway that ends TLS (or passes it through), a cert-manager Certificate for its hosts, and an
AuthorizationPolicy on the gateway's pods. Every object of an unknown kind is a finding, unless it
was accepted by its name.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from ipaddress import ip_network
from typing import Any

from byoc_agents.policy.drift import PolicyFinding
from byoc_agents.policy.widths import find_width_problem

KubernetesObject = Mapping[str, Any]

PORTS = frozenset({443, 8443, 9440})
"""HTTPS, ClickHouse's HTTPS, and its native protocol in TLS."""
_LB = "service.beta.kubernetes.io/aws-load-balancer-"
_TLS_VERSIONS = ("TLSV1_2", "TLSV1_3")
_ISTIO, _CERTIFICATES = "networking.istio.io", "cert-manager.io"


_LB_NOTES = frozenset(
    _LB + name
    for name in (
        *("type", "scheme", "name", "subnets", "nlb-target-type", "target-group-attributes"),
        *("attributes", "additional-resource-tags", "ip-address-type", "eip-allocations"),
        *("private-ipv4-addresses", "cross-zone-load-balancing-enabled"),
    )
)
"""Annotations of a load balancer that do not change who may connect."""
_SERVICE_NOTES = ("service.beta.kubernetes.io/", "service.kubernetes.io/")
_SERVICE_TYPES = ("ClusterIP", "ExternalName", "LoadBalancer")
_NLB_CLASS = "service.k8s.aws/nlb"
_CIPHERS = ("ECDHE-ECDSA-", "ECDHE-RSA-")
_KNOWN: Mapping[str, frozenset[str]] = {
    group: frozenset(kinds.split())
    for group, kinds in {
        "": "Namespace ServiceAccount ConfigMap Secret PersistentVolumeClaim PersistentVolume"
        " ResourceQuota LimitRange Pod PodTemplate ReplicationController Service Endpoints",
        "apps": "Deployment StatefulSet DaemonSet ReplicaSet",
        "batch": "Job CronJob",
        "policy": "PodDisruptionBudget",
        "autoscaling": "HorizontalPodAutoscaler",
        "rbac.authorization.k8s.io": "Role RoleBinding ClusterRole ClusterRoleBinding",
        "networking.k8s.io": "NetworkPolicy IngressClass",
        "storage.k8s.io": "StorageClass",
        "scheduling.k8s.io": "PriorityClass",
        "discovery.k8s.io": "EndpointSlice",
        "apiextensions.k8s.io": "CustomResourceDefinition",
        "admissionregistration.k8s.io": "ValidatingWebhookConfiguration"
        " MutatingWebhookConfiguration ValidatingAdmissionPolicy ValidatingAdmissionPolicyBinding",
        "monitoring.coreos.com": "ServiceMonitor PodMonitor PrometheusRule AlertmanagerConfig",
        "cilium.io": "CiliumNetworkPolicy",
        "networking.istio.io": "Gateway VirtualService DestinationRule",
        "security.istio.io": "AuthorizationPolicy PeerAuthentication RequestAuthentication",
        "cert-manager.io": "Certificate Issuer ClusterIssuer",
        "clickhouse.altinity.com": "ClickHouseInstallation ClickHouseInstallationTemplate",
        "clickhouse-keeper.altinity.com": "ClickHouseKeeperInstallation",
        "clickhouse.com": "ClickHouseCluster KeeperCluster",
    }.items()
}
"""By group: the kinds that are judged, and those that open nothing to clients."""


def judge(given: Sequence[object], accepted: frozenset[str] = frozenset()) -> list[PolicyFinding]:
    """Return the findings about the documents; none if they open nothing.

    `accepted` has the objects of unknown kinds, KIND/NAME, that somebody else has judged.
    """
    known = [one for one in map(_drop_nulls, given) if isinstance(one, Mapping)]
    services = [one for one in known if _is(one, "", "Service")]
    gateways = [one for one in known if _is(one, _ISTIO, "Gateway")]
    certificates = [one for one in known if _is(one, _CERTIFICATES, "Certificate")]
    policies = [one for one in known if _is(one, "security.istio.io", "AuthorizationPolicy")]
    found: list[PolicyFinding] = []
    for service in services:
        found += _judge_service(service, gateways)
    for gateway in gateways:
        found += _judge_gateway(gateway, certificates)
        found += _judge_authorization(gateway, policies)
    for policy in policies:
        found += _judge_policy(policy)
    private = any(_scheme(one) == "internal" for one in services if _balanced(one))
    for document in known:
        found += _judge_other(document, accepted, private=private)
    if gateways and not any(_balanced(service) for service in services):
        found.append(
            PolicyFinding("Service", "no load balancer for the Gateway", "type LoadBalancer")
        )
    return found


def _judge_service(
    service: KubernetesObject, gateways: Sequence[KubernetesObject]
) -> Iterator[PolicyFinding]:
    where, spec = _name(service), _map(service.get("spec"))
    if spec.get("externalIPs"):
        yield PolicyFinding(f"{where}.spec.externalIPs", "opens node addresses", "none")
    if spec.get("type") == "NodePort":
        yield PolicyFinding(f"{where}.spec.type", "NodePort", "LoadBalancer with an IP filter")
    elif not _among(spec.get("type", "ClusterIP"), _SERVICE_TYPES):
        yield PolicyFinding(f"{where}.spec.type", str(spec.get("type")), "ClusterIP")
    if _balanced(service):
        yield from _judge_balancer(where, service)
        yield from _judge_targets(where, service, gateways)


def _judge_balancer(where: str, service: KubernetesObject) -> Iterator[PolicyFinding]:
    notes, spec = _annotations(service), _map(service.get("spec"))
    if not _among(notes.get(f"{_LB}type"), ("external", "nlb-ip")):
        yield PolicyFinding(f"{where} {_LB}type", "missing", "external, a network load balancer")
    scheme = _scheme(service)
    if scheme not in {"internal", "internet-facing"}:
        yield PolicyFinding(f"{where} {_LB}scheme", "missing", "internal or internet-facing")
    yield from _judge_blocks(
        f"{where}.spec.loadBalancerSourceRanges", spec.get("loadBalancerSourceRanges")
    )
    if spec.get("externalTrafficPolicy") != "Local":
        yield PolicyFinding(
            f"{where}.spec.externalTrafficPolicy",
            "hides the client's address from the AuthorizationPolicy",
            "Local",
        )
    for name in notes:
        if name.startswith(_SERVICE_NOTES) and name not in _LB_NOTES:
            yield PolicyFinding(f"{where} {name}", "is not judged", "no such annotation")
    if spec.get("loadBalancerClass", _NLB_CLASS) != _NLB_CLASS:
        yield PolicyFinding(
            f"{where}.spec.loadBalancerClass", str(spec["loadBalancerClass"]), _NLB_CLASS
        )


def _judge_targets(
    where: str, service: KubernetesObject, gateways: Sequence[KubernetesObject]
) -> Iterator[PolicyFinding]:
    spec = _map(service.get("spec"))
    if gateways and not any(_leads_to(service, gateway) for gateway in gateways):
        yield PolicyFinding(
            f"{where}.spec.selector", "leads to no Gateway of its namespace", "the Gateway's pods"
        )
    elif not gateways:
        yield PolicyFinding(where, "leads to no Gateway", "an Istio Gateway in the same file")
    for number, port in enumerate(map(_map, _list(spec.get("ports")))):
        place = f"{where}.spec.ports[{number}]"
        if not _among(port.get("port"), PORTS):
            yield PolicyFinding(place, f"opens {port.get('port')}", _ports())
        target = port.get("targetPort")
        if target is not None and not _among(target, PORTS):
            yield PolicyFinding(f"{place}.targetPort", f"leads to {target}", _ports())
        if port.get("protocol", "TCP") != "TCP":
            yield PolicyFinding(f"{place}.protocol", str(port["protocol"]), "TCP")


def _leads_to(service: KubernetesObject, gateway: KubernetesObject) -> bool:
    """Return whether every pod of a Service is one of a Gateway."""
    pods = _map(_map(service.get("spec")).get("selector"))
    wanted = _map(_map(gateway.get("spec")).get("selector"))
    same = _namespace(service) == _namespace(gateway)
    return same and bool(wanted) and all(pods.get(key) == wanted[key] for key in wanted)


def _judge_gateway(
    gateway: KubernetesObject, certificates: Sequence[KubernetesObject]
) -> Iterator[PolicyFinding]:
    where, spec = _name(gateway), _map(gateway.get("spec"))
    for number, server in enumerate(map(_map, _list(spec.get("servers")))):
        place = f"{where}.spec.servers[{number}]"
        port, tls = _map(server.get("port")), _map(server.get("tls"))
        if not _among(port.get("number"), PORTS):
            yield PolicyFinding(f"{place}.port.number", f"opens {port.get('number')}", _ports())
        hosts = [str(host).rpartition("/")[2] for host in _list(server.get("hosts"))]
        if not hosts or any(host == "*" or _is_wide(host) for host in hosts):
            yield PolicyFinding(f"{place}.hosts", "accepts every name", "the names of the service")
        mode = tls.get("mode")
        wanted = {"TLS"} if mode == "PASSTHROUGH" else {"TLS", "HTTPS"}
        if not _among(port.get("protocol"), wanted):
            yield PolicyFinding(
                f"{place}.port.protocol", str(port.get("protocol")), " or ".join(sorted(wanted))
            )
        if mode == "PASSTHROUGH":
            continue  # ClickHouse has the certificate
        if not _among(mode, ("SIMPLE", "MUTUAL")):
            yield PolicyFinding(
                f"{place}.tls.mode", str(mode or "no TLS"), "SIMPLE, MUTUAL or PASSTHROUGH"
            )
            continue
        if tls.get("minProtocolVersion") not in _TLS_VERSIONS:
            yield PolicyFinding(
                f"{place}.tls.minProtocolVersion", "missing", " or ".join(_TLS_VERSIONS)
            )
        yield from _judge_tls(place, tls)
        yield from _judge_certificate(
            place, hosts, str(tls.get("credentialName")), certificates, gateway
        )


def _judge_tls(place: str, tls: KubernetesObject) -> Iterator[PolicyFinding]:
    newest = str(tls.get("maxProtocolVersion", "TLS_AUTO"))
    if newest not in {"TLS_AUTO", *_TLS_VERSIONS}:
        yield PolicyFinding(f"{place}.tls.maxProtocolVersion", newest, " or ".join(_TLS_VERSIONS))
    for cipher in map(str, _list(tls.get("cipherSuites"))):
        if not cipher.startswith(_CIPHERS) or not ("-GCM-" in cipher or "CHACHA20" in cipher):
            yield PolicyFinding(f"{place}.tls.cipherSuites", cipher, "ECDHE with AES-GCM")


def _judge_certificate(
    place: str,
    hosts: Sequence[str],
    secret: str,
    certificates: Sequence[KubernetesObject],
    gateway: KubernetesObject,
) -> Iterator[PolicyFinding]:
    made = [
        _map(one.get("spec"))
        for one in certificates
        if _map(one.get("spec")).get("secretName") == secret
        and _namespace(one) == _namespace(gateway)
    ]
    if not made:
        yield PolicyFinding(
            f"{place}.tls.credentialName",
            f"no Certificate makes {secret} in this namespace",
            "a cert-manager Certificate",
        )
        return
    names = [str(name) for name in _list(made[0].get("dnsNames"))]
    for host in hosts:
        if host != "*" and not any(_covers(name, host) for name in names):
            yield PolicyFinding(
                f"{place}.hosts", f"{host} is not in the Certificate", "its dnsNames"
            )
    if _map(made[0].get("privateKey")).get("rotationPolicy") != "Always":
        yield PolicyFinding(
            f"Certificate of {secret}.spec.privateKey.rotationPolicy", "keeps one key", "Always"
        )


def _covers(name: str, host: str) -> bool:
    """Return whether a DNS name of a certificate is for the host; `*` is one label."""
    return name == host or (name.startswith("*.") and host.partition(".")[2] == name[2:])


def _is_wide(host: str) -> bool:
    """Return whether a host is `*` under one label, such as `*.com`."""
    return "*" in host and host.count(".") < 2  # noqa: PLR2004  a domain has two labels


def _judge_authorization(
    gateway: KubernetesObject, policies: Sequence[KubernetesObject]
) -> Iterator[PolicyFinding]:
    where = _name(gateway)
    labels = _map(_map(gateway.get("spec")).get("selector"))
    bound = [
        one
        for one in policies
        if _namespace(one) == _namespace(gateway)
        and _map(one.get("spec")).get("action", "ALLOW") == "ALLOW"
        and _selects(_map(one.get("spec")), labels)
    ]
    if not bound:
        yield PolicyFinding(where, "no AuthorizationPolicy allows named clients", "one on its pods")


def _judge_policy(policy: KubernetesObject) -> Iterator[PolicyFinding]:
    """Judge what a policy allows, also one of other pods: it may apply to the gateway's too."""
    where, spec = _name(policy), _map(policy.get("spec"))
    action = spec.get("action", "ALLOW")
    if not _among(action, ("ALLOW", "DENY", "AUDIT")):
        yield PolicyFinding(f"{where}.spec.action", f"{action} is not judged", "ALLOW or DENY")
    if action == "ALLOW":
        for number, rule in enumerate(_list(spec.get("rules"))):
            yield from _judge_rule(f"{where}.spec.rules[{number}]", _map(rule))


def _selects(spec: KubernetesObject, labels: KubernetesObject) -> bool:
    if spec.get("targetRef") or spec.get("targetRefs"):
        return False
    wanted = _map(_map(spec.get("selector")).get("matchLabels"))
    return bool(labels) and all(labels.get(name) == value for name, value in wanted.items())


def _judge_rule(place: str, rule: KubernetesObject) -> Iterator[PolicyFinding]:
    sources = [_map(_map(one).get("source")) for one in _list(rule.get("from"))]
    if not sources:
        yield PolicyFinding(f"{place}.from", "allows every client", "ipBlocks")
    for source in sources:
        if source.get("remoteIpBlocks") and not source.get("ipBlocks"):
            yield PolicyFinding(
                f"{place}.from.source.remoteIpBlocks", "a client can write it", "ipBlocks"
            )
            continue
        yield from _judge_blocks(f"{place}.from.source.ipBlocks", source.get("ipBlocks"))
    targets = [_map(_map(one).get("operation")) for one in _list(rule.get("to"))]
    ports = [str(port) for target in targets for port in _list(target.get("ports"))]
    if not ports or any(not _list(target.get("ports")) for target in targets):
        yield PolicyFinding(f"{place}.to.operation.ports", "allows every port", _ports())
    for port in ports:
        if port not in {str(known) for known in PORTS}:
            yield PolicyFinding(f"{place}.to.operation.ports", f"allows {port}", _ports())


def _judge_blocks(place: str, blocks: object) -> Iterator[PolicyFinding]:
    """Judge a list of client networks."""
    expected = "the networks of the clients"
    if not _list(blocks):
        yield PolicyFinding(place, "missing: every address", expected)
    networks = []
    for block in _list(blocks):
        try:
            networks.append(ip_network(str(block), strict=False))
        except ValueError:
            yield PolicyFinding(place, f"{block!r} is not a network", expected)
    if problem := find_width_problem(networks):
        yield PolicyFinding(place, problem, expected)


def _judge_other(
    document: KubernetesObject, accepted: frozenset[str], *, private: bool
) -> Iterator[PolicyFinding]:
    where, kind = _name(document), document.get("kind")
    if not _among(kind, _KNOWN.get(_group(document), ())) and where not in accepted:
        yield PolicyFinding(
            where,
            f"{document.get('apiVersion')} is not judged",
            "a known kind, or --accept KIND/NAME",
        )
    if not _among(kind, ("ConfigMap", "Secret", "CustomResourceDefinition")):
        yield from _judge_fields(where, document)
    if private and _among(kind, ("Issuer", "ClusterIssuer")):
        solvers = _list(_map(_map(document.get("spec")).get("acme")).get("solvers"))
        if any("http01" in _map(solver) for solver in solvers):
            yield PolicyFinding(
                f"{where}.spec.acme.solvers", "http01 for an internal load balancer", "dns01"
            )


def _judge_fields(where: str, document: KubernetesObject) -> Iterator[PolicyFinding]:
    """Judge the fields of pods and Services at any depth, so also in an operator's templates."""
    fields = set(_walk(document))
    if "hostNetwork" in {name for name, _ in fields}:
        yield PolicyFinding(f"{where} hostNetwork", "listens on the node", "false")
    if "hostPort" in {name for name, _ in fields}:
        yield PolicyFinding(f"{where} hostPort", "opens a port of the node", "none")
    if not _is(document, "", "Service"):
        for name, value in sorted(fields):
            if value in {"LoadBalancer", "NodePort"}:
                yield PolicyFinding(f"{where} {name}", value, "ClusterIP")
            if name == "externalIPs":
                yield PolicyFinding(f"{where} externalIPs", "opens node addresses", "none")


def _walk(value: object, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield the name and text of every field at any depth that has a value, also of templates."""
    if isinstance(value, Mapping):
        for key, inside in value.items():
            yield from _walk(inside, str(key))
    elif isinstance(value, list):
        for inside in value:
            yield from _walk(inside, name)
    elif value:
        yield name, str(value)


def _balanced(service: KubernetesObject) -> bool:
    return _map(service.get("spec")).get("type") == "LoadBalancer"


def _scheme(service: KubernetesObject) -> str:
    return str(_annotations(service).get(f"{_LB}scheme", ""))


def _annotations(document: KubernetesObject) -> KubernetesObject:
    return _map(_map(document.get("metadata")).get("annotations"))


def _namespace(document: KubernetesObject) -> object:
    return _map(document.get("metadata")).get("namespace")


def _is(document: KubernetesObject, group: str, kind: str) -> bool:
    return document.get("kind") == kind and _group(document) == group


def _group(document: KubernetesObject) -> str:
    return str(document.get("apiVersion", "")).rpartition("/")[0]


def _name(document: KubernetesObject) -> str:
    return f"{document.get('kind')}/{_map(document.get('metadata')).get('name')}"


def _among(value: object, known: Collection[object]) -> bool:
    """Return whether a value is one of the known ones; a list or a mapping is none of them."""
    return value in list(known)


def _drop_nulls(value: object) -> object:
    """Return a value without the fields that are null: Kubernetes takes them as not there."""
    if isinstance(value, Mapping):
        return {key: _drop_nulls(one) for key, one in value.items() if one is not None}
    return [_drop_nulls(one) for one in value] if isinstance(value, list) else value


def _map(value: object) -> KubernetesObject:
    return value if isinstance(value, Mapping) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _ports() -> str:
    return ", ".join(map(str, sorted(PORTS)))
