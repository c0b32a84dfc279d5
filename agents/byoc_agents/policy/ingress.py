"""Judges rendered manifests that open ClickHouse to clients: the ways in and their filters. Pure.

Expected is one shape: a Service of an AWS network load balancer with a list of client networks, an
Istio Gateway that ends TLS (or passes it through), a cert-manager Certificate for its hosts, and an
AuthorizationPolicy on the gateway's pods. Every other way in is a finding.
"""

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from ipaddress import ip_network
from typing import Any

from byoc_agents.policy.drift import PolicyFinding

KubernetesObject = Mapping[str, Any]

PORTS = frozenset({443, 8443, 9440})
"""HTTPS, ClickHouse's HTTPS, and its native protocol in TLS."""
_LB = "service.beta.kubernetes.io/aws-load-balancer-"
_TLS_VERSIONS = ("TLSV1_2", "TLSV1_3")
_ISTIO, _CERTIFICATES = "networking.istio.io/", "cert-manager.io/"


def judge(given: Sequence[object]) -> list[PolicyFinding]:
    """Return the findings about the documents; none if they open nothing."""
    known = [one for one in given if isinstance(one, Mapping)]
    services = [one for one in known if one.get("kind") == "Service"]
    gateways = [one for one in known if _is(one, _ISTIO, "Gateway")]
    certificates = [one for one in known if _is(one, _CERTIFICATES, "Certificate")]
    policies = [one for one in known if _is(one, "security.istio.io/", "AuthorizationPolicy")]
    found: list[PolicyFinding] = []
    for service in services:
        found += _judge_service(service)
    for gateway in gateways:
        found += _judge_gateway(gateway, certificates)
        found += _judge_authorization(gateway, policies)
    private = any(_scheme(one) == "internal" for one in services if _balanced(one))
    for document in known:
        found += _judge_other(document, private=private)
    if gateways and not any(_balanced(service) for service in services):
        found.append(
            PolicyFinding("Service", "no load balancer for the Gateway", "type LoadBalancer")
        )
    return found


def _judge_service(service: KubernetesObject) -> Iterator[PolicyFinding]:
    where, spec = _name(service), _map(service.get("spec"))
    if spec.get("externalIPs"):
        yield PolicyFinding(f"{where}.spec.externalIPs", "opens node addresses", "none")
    if spec.get("type") == "NodePort":
        yield PolicyFinding(f"{where}.spec.type", "NodePort", "LoadBalancer with an IP filter")
    if not _balanced(service):
        return
    notes = _annotations(service)
    if notes.get(f"{_LB}type") not in {"external", "nlb-ip"}:
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
    for number, port in enumerate(_list(spec.get("ports"))):
        if _map(port).get("port") not in PORTS:
            place = f"{where}.spec.ports[{number}]"
            yield PolicyFinding(place, f"opens {_map(port).get('port')}", _ports())


def _judge_gateway(
    gateway: KubernetesObject, certificates: Sequence[KubernetesObject]
) -> Iterator[PolicyFinding]:
    where, spec = _name(gateway), _map(gateway.get("spec"))
    for number, server in enumerate(map(_map, _list(spec.get("servers")))):
        place = f"{where}.spec.servers[{number}]"
        port, tls = _map(server.get("port")), _map(server.get("tls"))
        if port.get("number") not in PORTS:
            yield PolicyFinding(f"{place}.port.number", f"opens {port.get('number')}", _ports())
        hosts = [str(host).rpartition("/")[2] for host in _list(server.get("hosts"))]
        if not hosts or "*" in hosts:
            yield PolicyFinding(f"{place}.hosts", "accepts every name", "the names of the service")
        mode = tls.get("mode")
        if mode == "PASSTHROUGH":
            continue  # ClickHouse has the certificate
        if mode not in {"SIMPLE", "MUTUAL"}:
            yield PolicyFinding(
                f"{place}.tls.mode", str(mode or "no TLS"), "SIMPLE, MUTUAL or PASSTHROUGH"
            )
            continue
        if tls.get("minProtocolVersion") not in _TLS_VERSIONS:
            yield PolicyFinding(
                f"{place}.tls.minProtocolVersion", "missing", " or ".join(_TLS_VERSIONS)
            )
        yield from _judge_certificate(
            place, hosts, str(tls.get("credentialName")), certificates, gateway
        )


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
    return fnmatchcase(host, name) and name.count(".") == host.count(".")


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
    for policy in bound:
        for number, rule in enumerate(_list(_map(policy.get("spec")).get("rules"))):
            yield from _judge_rule(f"{_name(policy)}.spec.rules[{number}]", _map(rule))


def _selects(spec: KubernetesObject, labels: KubernetesObject) -> bool:
    wanted = _map(_map(spec.get("selector")).get("matchLabels"))
    return bool(labels) and all(labels.get(name) == value for name, value in wanted.items())


def _judge_rule(place: str, rule: KubernetesObject) -> Iterator[PolicyFinding]:
    sources = [_map(_map(one).get("source")) for one in _list(rule.get("from"))]
    if not sources:
        yield PolicyFinding(f"{place}.from", "allows every client", "ipBlocks")
    for source in sources:
        blocks = source.get("ipBlocks") or source.get("remoteIpBlocks")
        yield from _judge_blocks(f"{place}.from.source.ipBlocks", blocks)
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
    for block in _list(blocks):
        try:
            network = ip_network(str(block), strict=False)
        except ValueError:
            yield PolicyFinding(place, f"{block!r} is not a network", expected)
            continue
        if network.prefixlen == 0:
            yield PolicyFinding(place, f"{block} is every address", expected)


def _judge_other(document: KubernetesObject, *, private: bool) -> Iterator[PolicyFinding]:
    where, kind = _name(document), document.get("kind")
    if kind in {"Ingress", "HTTPRoute", "TLSRoute", "TCPRoute"} or _is(
        document, "gateway.networking.k8s.io/", "Gateway"
    ):
        yield PolicyFinding(where, "is a way in that is not judged", "an Istio Gateway")
    pod = _pod_of(document)
    if pod.get("hostNetwork"):
        yield PolicyFinding(f"{where} hostNetwork", "listens on the node", "false")
    for container in map(_map, _list(pod.get("containers"))):
        if any(_map(port).get("hostPort") for port in _list(container.get("ports"))):
            yield PolicyFinding(f"{where} hostPort", "opens a port of the node", "none")
    if private and kind in {"Issuer", "ClusterIssuer"}:
        solvers = _list(_map(_map(document.get("spec")).get("acme")).get("solvers"))
        if any("http01" in _map(solver) for solver in solvers):
            yield PolicyFinding(
                f"{where}.spec.acme.solvers", "http01 for an internal load balancer", "dns01"
            )


def _pod_of(document: KubernetesObject) -> KubernetesObject:
    spec = _map(document.get("spec"))
    if document.get("kind") == "CronJob":
        spec = _map(_map(spec.get("jobTemplate")).get("spec"))
    return spec if document.get("kind") == "Pod" else _map(_map(spec.get("template")).get("spec"))


def _balanced(service: KubernetesObject) -> bool:
    return _map(service.get("spec")).get("type") == "LoadBalancer"


def _scheme(service: KubernetesObject) -> str:
    return str(_annotations(service).get(f"{_LB}scheme", ""))


def _annotations(document: KubernetesObject) -> KubernetesObject:
    return _map(_map(document.get("metadata")).get("annotations"))


def _namespace(document: KubernetesObject) -> object:
    return _map(document.get("metadata")).get("namespace")


def _is(document: KubernetesObject, group: str, kind: str) -> bool:
    return document.get("kind") == kind and str(document.get("apiVersion")).startswith(group)


def _name(document: KubernetesObject) -> str:
    return f"{document.get('kind')}/{_map(document.get('metadata')).get('name')}"


def _map(value: object) -> KubernetesObject:
    return value if isinstance(value, Mapping) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _ports() -> str:
    return ", ".join(map(str, sorted(PORTS)))
