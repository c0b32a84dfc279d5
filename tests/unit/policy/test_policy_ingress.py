"""`policy ingress --check`: one accepted shape, and a finding for each way around it."""

import copy
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from byoc_agents.app.cli import main
from byoc_agents.policy.ingress import judge

LB = "service.beta.kubernetes.io/aws-load-balancer-"
LABELS = {"istio": "ingressgateway"}
HOST = "ch.svc-1.example.com"
Documents = list[dict[str, Any]]


def meta(name: str = "in", **more: Any) -> dict[str, Any]:
    return {"name": name, "namespace": "istio-ingress", **more}


def accepted() -> Documents:
    """Return a Service, a Gateway, a Certificate and an AuthorizationPolicy without a finding."""
    return [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": meta(
                annotations={f"{LB}type": "external", f"{LB}scheme": "internet-facing"}
            ),
            "spec": {
                "type": "LoadBalancer",
                "externalTrafficPolicy": "Local",
                "loadBalancerSourceRanges": ["203.0.113.0/24"],
                "selector": LABELS,
                "ports": [{"port": 443}, {"port": 9440}],
            },
        },
        {
            "apiVersion": "networking.istio.io/v1",
            "kind": "Gateway",
            "metadata": meta(),
            "spec": {
                "selector": LABELS,
                "servers": [
                    {
                        "port": {"number": 443, "name": "https", "protocol": "HTTPS"},
                        "hosts": [HOST],
                        "tls": {
                            "mode": "SIMPLE",
                            "credentialName": "in-tls",
                            "minProtocolVersion": "TLSV1_2",
                        },
                    }
                ],
            },
        },
        {
            "apiVersion": "cert-manager.io/v1",
            "kind": "Certificate",
            "metadata": meta(),
            "spec": {
                "secretName": "in-tls",
                "dnsNames": [HOST],
                "privateKey": {"rotationPolicy": "Always"},
                "issuerRef": {"name": "x"},
            },
        },
        {
            "apiVersion": "security.istio.io/v1",
            "kind": "AuthorizationPolicy",
            "metadata": meta(),
            "spec": {
                "selector": {"matchLabels": LABELS},
                "rules": [
                    {
                        "from": [{"source": {"ipBlocks": ["203.0.113.0/24"]}}],
                        "to": [{"operation": {"ports": ["443", "9440"]}}],
                    }
                ],
            },
        },
    ]


SERVICE, GATEWAY, CERTIFICATE, AUTHORIZATION = range(4)


def test_the_accepted_shape_has_no_finding() -> None:
    assert judge(accepted()) == []


def test_documents_that_open_nothing_have_no_finding() -> None:
    inside = {"apiVersion": "v1", "kind": "Service", "metadata": meta(), "spec": {"ports": []}}
    assert judge([inside, None, "text"]) == []


def put(number: int, *path: str | int, value: Any) -> Callable[[Documents], None]:
    """Return a change of one place; `...` removes it."""

    def change(documents: Documents) -> None:
        place: Any = documents[number]
        for key in path[:-1]:
            place = place[key]
        if value is ...:
            del place[path[-1]]
        else:
            place[path[-1]] = value

    return change


def add(document: dict[str, Any]) -> Callable[[Documents], None]:
    return lambda documents: documents.append(document)


def workload(kind: str, version: str = "apps/v1", **spec: Any) -> dict[str, Any]:
    return {"apiVersion": version, "kind": kind, "metadata": meta(), "spec": spec}


def copied(number: int, *changes: Callable[[Documents], None]) -> Callable[[Documents], None]:
    """Return a change that adds a changed copy of a document."""

    def change(documents: Documents) -> None:
        others = copy.deepcopy(documents)
        for one in changes:
            one(others)
        documents.append(others[number])

    return change


def blocks(*networks: str) -> Callable[[Documents], None]:
    return put(
        *(AUTHORIZATION, "spec", "rules", 0, "from", 0, "source", "ipBlocks"),
        value=list(networks),
    )


RULES = (AUTHORIZATION, "spec", "rules")
SELECTED = (AUTHORIZATION, "spec", "selector", "matchLabels")
SIDECAR: dict[str, Any] = {
    "initContainers": [{"name": "s", "ports": [{"hostPort": 1}]}],
    "containers": [],
}
POD = {"containers": [{"name": "a", "ports": [{"containerPort": 1, "hostPort": 1}]}]}
TO_443 = {"operation": {"ports": ["443"]}}
PASSED: dict[str, Any] = {
    "port": {"number": 443, "protocol": "TLS"},
    "tls": {"mode": "PASSTHROUGH"},
}
SERVERS = ("spec", "servers", 0)
CHANGES: dict[str, tuple[Callable[[Documents], None], str]] = {
    "no IP filter": (
        put(SERVICE, "spec", "loadBalancerSourceRanges", value=...),
        (
            "Service/in.spec.loadBalancerSourceRanges: missing: every address:"
            " expected the networks of the clients"
        ),
    ),
    "a filter of every address": (
        put(SERVICE, "spec", "loadBalancerSourceRanges", value=["10.0.0.0/8", "0.0.0.0/0"]),
        (
            "Service/in.spec.loadBalancerSourceRanges: 0.0.0.0/0 is every address:"
            " expected the networks of the clients"
        ),
    ),
    "a filter of every IPv6 address": (
        put(SERVICE, "spec", "loadBalancerSourceRanges", value=["::/0"]),
        "::/0 is every address",
    ),
    "a filter that is not a network": (
        put(SERVICE, "spec", "loadBalancerSourceRanges", value=["office"]),
        "'office' is not a network",
    ),
    "the client's address is hidden": (
        put(SERVICE, "spec", "externalTrafficPolicy", value="Cluster"),
        "Service/in.spec.externalTrafficPolicy: hides the client's address",
    ),
    "a port without TLS": (
        put(SERVICE, "spec", "ports", value=[{"port": 8123}]),
        "Service/in.spec.ports[0]: opens 8123: expected 443, 8443, 9440",
    ),
    "a classic load balancer": (
        put(SERVICE, "metadata", "annotations", f"{LB}type", value=...),
        f"Service/in {LB}type: missing: expected external, a network load balancer",
    ),
    "no scheme": (
        put(SERVICE, "metadata", "annotations", f"{LB}scheme", value=...),
        f"Service/in {LB}scheme: missing: expected internal or internet-facing",
    ),
    "node ports": (
        put(SERVICE, "spec", "type", value="NodePort"),
        "Service/in.spec.type: NodePort: expected LoadBalancer with an IP filter",
    ),
    "addresses of nodes": (
        put(SERVICE, "spec", "externalIPs", value=["192.0.2.1"]),
        "Service/in.spec.externalIPs: opens node addresses: expected none",
    ),
    "no TLS": (put(GATEWAY, *SERVERS, "tls", value=...), "servers[0].tls.mode: no TLS"),
    "TLS 1.0": (
        put(GATEWAY, *SERVERS, "tls", "minProtocolVersion", value="TLSV1_0"),
        "servers[0].tls.minProtocolVersion",
    ),
    "every host": (put(GATEWAY, *SERVERS, "hosts", value=["ns/*"]), "accepts every name"),
    "a port of the gateway": (
        put(GATEWAY, *SERVERS, "port", "number", value=9000),
        "servers[0].port.number: opens 9000",
    ),
    "a host without a certificate": (
        put(GATEWAY, *SERVERS, "hosts", value=["other.example.com"]),
        "other.example.com is not in the Certificate: expected its dnsNames",
    ),
    "a certificate by hand": (
        put(GATEWAY, *SERVERS, "tls", "credentialName", value="by-hand"),
        "no Certificate makes by-hand in this namespace",
    ),
    "a certificate of another namespace": (
        put(CERTIFICATE, "metadata", "namespace", value="other"),
        "no Certificate makes in-tls in this namespace",
    ),
    "a wildcard over two labels": (
        put(CERTIFICATE, "spec", "dnsNames", value=["*.example.com"]),
        f"{HOST} is not in the Certificate",
    ),
    "a key without an end": (
        put(CERTIFICATE, "spec", "privateKey", value=...),
        "privateKey.rotationPolicy: keeps one key: expected Always",
    ),
    "no authorization": (
        lambda documents: documents.__delitem__(AUTHORIZATION),
        "Gateway/in: no AuthorizationPolicy allows named clients",
    ),
    "an authorization that only denies": (
        put(AUTHORIZATION, "spec", "action", value="DENY"),
        "no AuthorizationPolicy allows named clients",
    ),
    "an authorization of other pods": (
        put(AUTHORIZATION, "spec", "selector", "matchLabels", value={"a": "b"}),
        "no AuthorizationPolicy allows named clients",
    ),
    "an authorization of every client": (
        put(AUTHORIZATION, "spec", "rules", 0, "from", value=...),
        "rules[0].from: allows every client: expected ipBlocks",
    ),
    "an authorization of every address": (
        put(
            AUTHORIZATION, "spec", "rules", 0, "from", 0, "source", "ipBlocks", value=["0.0.0.0/0"]
        ),
        "ipBlocks: 0.0.0.0/0 is every address",
    ),
    "an authorization of every port": (
        put(AUTHORIZATION, "spec", "rules", 0, "to", value=...),
        "rules[0].to.operation.ports: allows every port",
    ),
    "an authorization of another port": (
        put(AUTHORIZATION, "spec", "rules", 0, "to", 0, "operation", "ports", value=["9000"]),
        "rules[0].to.operation.ports: allows 9000",
    ),
    "an Ingress": (
        add({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": meta()}),
        (
            "Ingress/in: networking.k8s.io/v1 is not judged:"
            " expected a known kind, or --accept KIND/NAME"
        ),
    ),
    "a Gateway of Kubernetes": (
        add({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": meta()}),
        "Gateway/in: gateway.networking.k8s.io/v1 is not judged",
    ),
    "a port of the node": (
        add(workload("Deployment", template={"spec": POD})),
        "Deployment/in hostPort: opens a port of the node: expected none",
    ),
    "the network of the node": (
        add(workload("Pod", "v1", hostNetwork=True)),
        "Pod/in hostNetwork: listens on the node: expected false",
    ),
    "a second load balancer of ClickHouse itself": (
        copied(SERVICE, put(SERVICE, "spec", "selector", value={"app": "clickhouse"})),
        "Service/in.spec.selector: leads to no Gateway of its namespace",
    ),
    "a load balancer of another namespace": (
        copied(SERVICE, put(SERVICE, "metadata", "namespace", value="clickhouse")),
        "Service/in.spec.selector: leads to no Gateway of its namespace",
    ),
    "a load balancer without a selector": (
        copied(SERVICE, put(SERVICE, "spec", "selector", value=...)),
        "Service/in.spec.selector: leads to no Gateway of its namespace",
    ),
    "a port without TLS behind one with": (
        put(SERVICE, "spec", "ports", value=[{"port": 9440, "targetPort": 9000}]),
        "Service/in.spec.ports[0].targetPort: leads to 9000: expected 443, 8443, 9440",
    ),
    "a port of the pod by its name": (
        put(SERVICE, "spec", "ports", value=[{"port": 443, "targetPort": "http"}]),
        "ports[0].targetPort: leads to http",
    ),
    "UDP": (
        put(SERVICE, "spec", "ports", value=[{"port": 443, "protocol": "UDP"}]),
        "ports[0].protocol: UDP: expected TCP",
    ),
    "security groups instead of the filter": (
        put(SERVICE, "metadata", "annotations", f"{LB}security-groups", value="sg-1"),
        f"Service/in {LB}security-groups: is not judged: expected no such annotation",
    ),
    "another controller": (
        put(SERVICE, "spec", "loadBalancerClass", value="example.com/other"),
        "Service/in.spec.loadBalancerClass: example.com/other: expected service.k8s.aws/nlb",
    ),
    "two halves of every address": (
        put(SERVICE, "spec", "loadBalancerSourceRanges", value=["0.0.0.0/1", "128.0.0.0/1"]),
        "0.0.0.0/1, 128.0.0.0/1: more public addresses than a /8 of IPv4",
    ),
    "every public IPv6 address": (blocks("2000::/3"), "more public addresses than a /20 of IPv6"),
    "IPv4 addresses as IPv6": (
        blocks("::ffff:0:0/97", "::ffff:8000:0/97"),
        "more public addresses than a /8 of IPv4",
    ),
    "more than private addresses": (blocks("10.0.0.0/7"), "more public addresses than a /8"),
    "another policy of the root namespace": (
        copied(
            AUTHORIZATION,
            put(AUTHORIZATION, "metadata", "namespace", value="istio-system"),
            put(AUTHORIZATION, "spec", value={"rules": [{"to": [TO_443]}]}),
        ),
        "AuthorizationPolicy/in.spec.rules[0].from: allows every client",
    ),
    "another policy by another label of the pods": (
        copied(
            AUTHORIZATION,
            put(*SELECTED, value={"app": "istio-gateway"}),
            put(*RULES, value=[{"to": [TO_443]}]),
        ),
        "AuthorizationPolicy/in.spec.rules[0].from: allows every client",
    ),
    "a policy of another target": (
        put(AUTHORIZATION, "spec", value={"targetRefs": [{"kind": "Service", "name": "x"}]}),
        "Gateway/in: no AuthorizationPolicy allows named clients",
    ),
    "an address that the client writes": (
        put(*RULES, 0, "from", 0, "source", value={"remoteIpBlocks": ["203.0.113.0/24"]}),
        "from.source.remoteIpBlocks: a client can write it: expected ipBlocks",
    ),
    "another action": (
        copied(AUTHORIZATION, put(AUTHORIZATION, "spec", "action", value="CUSTOM")),
        "AuthorizationPolicy/in.spec.action: CUSTOM is not judged",
    ),
    "HTTP": (
        put(GATEWAY, *SERVERS, "port", "protocol", value="HTTP"),
        "servers[0].port.protocol: HTTP: expected HTTPS or TLS",
    ),
    "HTTP with TLS that passes through": (
        put(GATEWAY, *SERVERS, "tls", value={"mode": "PASSTHROUGH"}),
        "servers[0].port.protocol: HTTPS: expected TLS",
    ),
    "every name of a top domain": (
        put(GATEWAY, *SERVERS, value=PASSED | {"hosts": ["*.com"]}),
        "servers[0].hosts: accepts every name",
    ),
    "a cipher without encryption": (
        put(GATEWAY, *SERVERS, "tls", "cipherSuites", value=["NULL-SHA"]),
        "servers[0].tls.cipherSuites: NULL-SHA",
    ),
    "TLS 1.0 at most": (
        put(GATEWAY, *SERVERS, "tls", "maxProtocolVersion", value="TLSV1_0"),
        "servers[0].tls.maxProtocolVersion: TLSV1_0",
    ),
    "a pattern as a name of the certificate": (
        put(CERTIFICATE, "spec", "dnsNames", value=["[a-z]*.svc-1.example.com"]),
        f"{HOST} is not in the Certificate",
    ),
    "a port of the node of an init container": (
        add(workload("Deployment", template={"spec": SIDECAR})),
        "Deployment/in hostPort: opens a port of the node",
    ),
    "a load balancer of an operator": (
        add(
            workload(
                "ClickHouseInstallation",
                "clickhouse.altinity.com/v1",
                templates={"serviceTemplates": [{"spec": {"type": "LoadBalancer"}}]},
            )
        ),
        "ClickHouseInstallation/in type: LoadBalancer: expected ClusterIP",
    ),
    "the network of the node by an operator": (
        add(
            workload(
                "ClickHouseInstallation",
                "clickhouse.altinity.com/v1",
                templates={"podTemplates": [{"spec": {"hostNetwork": True}}]},
            )
        ),
        "ClickHouseInstallation/in hostNetwork: listens on the node",
    ),
}
UNKNOWN = {
    "GRPCRoute": "gateway.networking.k8s.io/v1",
    "UDPRoute": "gateway.networking.k8s.io/v1alpha2",
    "TargetGroupBinding": "elbv2.k8s.aws/v1beta1",
    "IngressRouteTCP": "traefik.io/v1alpha1",
    "Route": "route.openshift.io/v1",
    "HTTPProxy": "projectcontour.io/v1",
    "TransportServer": "k8s.nginx.org/v1",
    "TCPIngress": "configuration.konghq.com/v1beta1",
    "EnvoyFilter": "networking.istio.io/v1alpha3",
    "ServiceEntry": "networking.istio.io/v1",
    "Service": "serving.knative.dev/v1",
    "Deployment": "example.com/v1",
}


@pytest.mark.parametrize(("kind", "version"), UNKNOWN.items())
def test_an_unknown_kind_is_a_finding_unless_it_is_accepted(kind: str, version: str) -> None:
    documents = [*accepted(), workload(kind, version)]
    assert [str(one) for one in judge(documents)] == [
        f"{kind}/in: {version} is not judged: expected a known kind, or --accept KIND/NAME"
    ]
    assert judge(documents, frozenset({f"{kind}/in"})) == []
    assert len(judge(documents, frozenset({f"{kind}/other"}))) == 1


def test_an_accepted_kind_may_not_make_a_load_balancer() -> None:
    given = workload("Database", "example.com/v1", service={"type": "LoadBalancer"})
    assert [str(one) for one in judge([given], frozenset({"Database/in"}))] == [
        "Database/in type: LoadBalancer: expected ClusterIP"
    ]


def test_a_load_balancer_without_a_gateway_is_a_finding() -> None:
    assert [str(one) for one in judge(accepted()[:GATEWAY])] == [
        "Service/in: leads to no Gateway: expected an Istio Gateway in the same file"
    ]


@pytest.mark.parametrize(
    "networks",
    [
        ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fd00::/8"],
        ["11.0.0.0/9", "11.128.0.0/9"],
        ["2001:db8::/20"],
        ["::ffff:10.0.0.0/104"],
    ],
)
def test_private_networks_and_a_sum_at_the_limit_are_a_filter(networks: list[str]) -> None:
    documents = accepted()
    blocks(*networks)(documents)
    put(SERVICE, "spec", "loadBalancerSourceRanges", value=networks)(documents)
    assert judge(documents) == []


@pytest.mark.parametrize(("change", "text"), CHANGES.values(), ids=CHANGES)
def test_a_way_around_is_one_finding(change: Callable[[Documents], None], text: str) -> None:
    documents = copy.deepcopy(accepted())
    change(documents)
    found = [str(one) for one in judge(documents)]
    assert any(text in one for one in found), found
    extra = [one for one in found if text not in one]
    assert extra == [] or text.endswith("IP filter"), "a NodePort leaves the Gateway without one"


def test_tls_of_clickhouse_itself_needs_no_certificate_of_the_gateway() -> None:
    documents = accepted()
    documents[GATEWAY]["spec"]["servers"][0] |= PASSED
    del documents[CERTIFICATE]
    assert judge(documents) == []


def test_a_private_name_needs_dns01() -> None:
    acme: dict[str, Any] = {"acme": {"solvers": [{"http01": {}}]}}
    issuer = {
        "apiVersion": "cert-manager.io/v1",
        "kind": "ClusterIssuer",
        "metadata": {"name": "x"},
    }
    documents = [*accepted(), issuer | {"spec": acme}]
    assert judge(documents) == []
    documents[SERVICE]["metadata"]["annotations"][f"{LB}scheme"] = "internal"
    assert [str(one) for one in judge(documents)] == [
        "ClusterIssuer/x.spec.acme.solvers: http01 for an internal load balancer: expected dns01"
    ]


def test_the_command_and_its_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rendered.yaml"
    argv = ["policy", "ingress", "--check", str(file)]
    file.write_text(yaml.safe_dump_all(accepted()))
    assert (main(argv), capsys.readouterr().out) == (0, "")
    file.write_text(yaml.safe_dump_all(accepted()).replace("203.0.113.0/24", "0.0.0.0/0"))
    assert main([*argv, "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert [one["problem"] for one in report["findings"]] == ["0.0.0.0/0 is every address"] * 2
    file.write_text(yaml.safe_dump_all([*accepted(), workload("Route", "example.com/v1")]))
    assert (main(argv), "Route/in" in capsys.readouterr().out) == (1, True)
    assert main([*argv, "--accept", "Route/in"]) == 0
    assert capsys.readouterr().err == "note: Route/in is not judged, as --accept says\n"
    file.write_text("a: 1\na: 2\n")
    assert main(argv) == 1
    assert "appears twice" in capsys.readouterr().out
    file.write_text("a: [")
    assert main(argv) == 2
    assert main(["policy", "ingress", "--check", str(tmp_path / "none")]) == 2


def places(value: object, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the keys that lead to each value at any depth."""
    inside: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        inside = value.items()
    elif isinstance(value, list):
        inside = enumerate(value)
    for key, one in inside:
        yield (*place, key)
        yield from places(one, (*place, key))


def replaced(place: tuple[Any, ...], value: object) -> Documents:
    documents: Documents = json.loads(json.dumps(accepted()))  # no two of them share an object
    at: Any = documents
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    return documents


@pytest.mark.parametrize("value", [["x"], {"a": "b"}, [None], None, 0, "x"], ids=repr)
def test_a_field_of_another_type_is_judged(value: object) -> None:
    """Manifests of others may be malformed: each is judged, and none ends the command."""
    judged = ("type", "number", "protocol", "mode", "port", "kind", f"{LB}type")
    for place in places(accepted()):
        found = judge(replaced(place, value))
        if isinstance(value, list | dict) and place[-1] in judged and place[-1] != "port":
            assert found, place


@pytest.mark.parametrize(
    ("number", "place", "field"),
    [
        (0, (), "loadBalancerClass"),
        (0, (), "externalIPs"),
        (0, ("ports", 0), "protocol"),
        (0, ("ports", 0), "targetPort"),
        (1, ("servers", 0, "tls"), "maxProtocolVersion"),
        (1, ("servers", 0, "tls"), "cipherSuites"),
        (3, (), "action"),
    ],
)
def test_a_field_that_is_null_is_one_that_is_not_there(
    number: int, place: tuple[Any, ...], field: str
) -> None:
    assert judge(replaced((number, "spec", *place, field), None)) == []
