"""`policy ingress --check`: one accepted shape, and a finding for each way around it."""

import copy
import json
from collections.abc import Callable
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


POD = {"containers": [{"name": "a", "ports": [{"containerPort": 1, "hostPort": 1}]}]}
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
        put(AUTHORIZATION, "kind", value="Other"),
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
        "Ingress/in: is a way in that is not judged: expected an Istio Gateway",
    ),
    "a Gateway of Kubernetes": (
        add({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": meta()}),
        "Gateway/in: is a way in that is not judged",
    ),
    "a port of the node": (
        add({"kind": "Deployment", "metadata": meta(), "spec": {"template": {"spec": POD}}}),
        "Deployment/in hostPort: opens a port of the node: expected none",
    ),
    "the network of the node": (
        add({"kind": "Pod", "metadata": meta(), "spec": {"hostNetwork": True}}),
        "Pod/in hostNetwork: listens on the node: expected false",
    ),
}


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
    documents[GATEWAY]["spec"]["servers"][0]["tls"] = {"mode": "PASSTHROUGH"}
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
    file.write_text(yaml.safe_dump_all(accepted()[:GATEWAY]).replace("203.0.113.0/24", "0.0.0.0/0"))
    assert main([*argv, "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert [one["problem"] for one in report["findings"]] == ["0.0.0.0/0 is every address"]
    file.write_text("a: 1\na: 2\n")
    assert main(argv) == 1
    assert "appears twice" in capsys.readouterr().out
    file.write_text("a: [")
    assert main(argv) == 2
    assert main(["policy", "ingress", "--check", str(tmp_path / "none")]) == 2
