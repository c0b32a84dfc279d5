"""The chart's `tailnet`: off by default, closed until it is scaled, and no right but its ports."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import yaml

from lab.real.chart import render
from lab.real.chart.pods import pods
from lab.real.chart.render import CI, Manifest
from lab.real.parts import helm

VALUES = CI[[render.name(one) for one in CI].index("tailnet")]
ACCESS = CI[[render.name(one) for one in CI].index("access")]
ENDPOINTS = {"kubernetes": {6443}, "clickhouse": {9441, 8444}, "metrics": {9443}}
SERVERS = {"kubernetes": 443, "clickhouse": 9441, "metrics": 9090}  # ports behind nginx
API_SERVERS = ("10.0.1.0/24", "10.0.2.0/24")
NAME = "byoc-agents-tailnet"
RANGES = {"10.0.0.0/8", "100.64.0.0/10", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"}


def named(kind: str, name: str, *flags: str) -> Manifest:
    found = render.manifests(VALUES, *flags)
    (one,) = (x for x in found if (x["kind"], x["metadata"]["name"]) == (kind, name))
    return one


def pod(endpoint: str, *flags: str) -> dict[str, Any]:
    spec = named("Deployment", f"{NAME}-{endpoint}", *flags)["spec"]["template"]["spec"]
    return dict(spec)


def test_nothing_of_it_is_in_another_render() -> None:
    for values in CI:
        if values not in {VALUES, ACCESS}:
            text = render.text(values)
            assert "tailnet" not in text
            assert "9441" not in text


def test_no_pod_runs_until_it_is_scaled() -> None:
    for endpoint in ENDPOINTS:
        spec = named("Deployment", f"{NAME}-{endpoint}")["spec"]
        assert (spec["replicas"], spec["strategy"]) == (0, {"type": "Recreate"})
    always = ("--set", "tailnet.metrics.alwaysOn=true")
    assert named("Deployment", f"{NAME}-metrics", *always)["spec"]["replicas"] == 1
    assert named("Deployment", f"{NAME}-clickhouse", *always)["spec"]["replicas"] == 0


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_pod_has_no_right_and_one_container(endpoint: str) -> None:
    """A second container could listen on the loopback, which the tailnet reaches."""
    spec = pod(endpoint)
    assert spec["automountServiceAccountToken"] is False
    assert not any("projected" in volume for volume in spec["volumes"])
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & set(spec)
    (container,) = spec["containers"]
    assert container["securityContext"] == {
        "runAsNonRoot": True,
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    assert spec["securityContext"]["runAsUser"] == 65532
    writable = [one for one in container["volumeMounts"] if not one.get("readOnly")]
    assert [one["mountPath"] for one in writable] == ["/tmp"]


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_the_program_is_configured_to_offer_nothing_else(endpoint: str) -> None:
    spec = pod(endpoint)
    given = {one["name"]: one.get("value") for one in spec["containers"][0]["env"]}
    assert given.pop("POD_IP") is None, "from the pod's status"
    assert given == {
        "TS_KUBE_SECRET": "",
        "TS_USERSPACE": "true",
        "TS_AUTHKEY": "file:/etc/tailnet/key/authkey",
        "TS_AUTH_ONCE": "true",
        "TS_HOSTNAME": f"{endpoint}-svc-1",
        "TS_ACCEPT_DNS": "false",
        "TS_EXTRA_ARGS": "--advertise-tags=tag:byoc-endpoint",
        "TS_SERVE_CONFIG": "/etc/tailnet/serve/serve.json",
        "TS_NO_LOGS_NO_SUPPORT": "true",
        "TS_DISABLE_PORTMAPPER": "true",
        "TS_ENABLE_HEALTH_CHECK": "true",
        "TS_LOCAL_ADDR_PORT": "$(POD_IP):9002",
        "GOMEMLIMIT": "64MiB",
        "HOME": "/tmp",
    }
    assert spec["dnsPolicy"] == "Default"
    serve = json.loads(named("ConfigMap", f"{NAME}-{endpoint}")["data"]["serve.json"])
    assert serve == {
        "TCP": {
            str(port): {"TCPForward": f"10.100.200.10:{port}", "ProxyProtocol": 2}
            for port in ENDPOINTS[endpoint]
        }
    }


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_the_policy_of_a_pod(endpoint: str) -> None:
    spec = named("NetworkPolicy", f"{NAME}-{endpoint}")["spec"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert spec["ingress"] == []
    to_nginx, to_resolver, beyond = spec["egress"]
    assert {one["port"] for one in to_nginx["ports"]} == ENDPOINTS[endpoint]
    assert to_resolver["to"] == [{"ipBlock": {"cidr": "10.0.0.2/32"}}], "not the cluster's DNS"
    assert beyond["ports"] == [{"protocol": "TCP", "port": 443}], "no UDP: relay only"
    assert beyond["to"] == [{"ipBlock": {"cidr": "192.0.2.0/24"}}]


def test_direct_mode_adds_udp_and_nothing_else() -> None:
    name = f"{NAME}-clickhouse"
    relay = named("NetworkPolicy", name)
    direct = named("NetworkPolicy", name, "--set", "tailnet.mode=direct")
    assert direct["spec"]["egress"][2]["ports"].pop() == {"protocol": "UDP"}
    assert direct == relay


def test_without_addresses_every_public_one_has_to_be_asked_for() -> None:
    flags = ("--set", "tailnet.cidrs=null,networkPolicy.wide=true")
    *_, beyond = named("NetworkPolicy", f"{NAME}-metrics", *flags)["spec"]["egress"]
    (anywhere,) = beyond["to"]
    assert anywhere["ipBlock"]["cidr"] == "0.0.0.0/0"
    assert set(anywhere["ipBlock"]["except"]) >= RANGES


def test_nginx_is_reached_by_each_pod_on_its_ports_only() -> None:
    rules = named("NetworkPolicy", f"{NAME}-nginx")["spec"]["ingress"]
    found = {}
    for rule in rules:
        (peer,) = rule["from"]
        component = peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"]
        found[component] = {one["port"] for one in rule["ports"]}
    assert found == {f"tailnet-{name}": ports for name, ports in ENDPOINTS.items()}


def test_nginx_reaches_the_endpoints_own_servers_and_a_resolver_only() -> None:
    resolver, clickhouse, api_server, prometheus = egress_of_nginx()
    assert {one["port"] for one in resolver["ports"]} == {53}
    assert {one["port"] for one in clickhouse["ports"]} == {9441, 8444}
    assert api_server["to"] == [{"ipBlock": {"cidr": one}} for one in API_SERVERS]
    assert {one["port"] for one in api_server["ports"]} == {443, 6443}
    (peer,) = prometheus["to"]
    assert peer["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "monitoring"}
    assert {one["port"] for one in prometheus["ports"]} == {9090}


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_nginx_reaches_no_server_of_an_endpoint_that_is_off(endpoint: str) -> None:
    off = egress_of_nginx("--set", f"tailnet.{endpoint}.enabled=false")
    gone = [one for one in egress_of_nginx() if one not in off]
    assert [one["ports"][0]["port"] for one in gone] == [SERVERS[endpoint]]


def egress_of_nginx(*flags: str) -> list[dict[str, Any]]:
    spec = named("NetworkPolicy", f"{NAME}-nginx", *flags)["spec"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    return list(spec["egress"])


def test_clickhouse_is_reached_by_nginx_on_the_listeners_ports() -> None:
    rules = named("NetworkPolicy", "byoc-agents-clickhouse")["spec"]["ingress"]
    (rule,) = (one for one in rules if {"protocol": "TCP", "port": 9441} in one["ports"])
    (peer,) = rule["from"]
    labels = peer["podSelector"]["matchLabels"]
    assert labels["app.kubernetes.io/component"] == "tailnet-nginx"


def test_nothing_can_be_reached_from_outside_of_the_cluster() -> None:
    documents = render.manifests(VALUES, "--set", "tailnet.mode=direct")
    services = [one["spec"] for one in documents if one["kind"] == "Service"]
    assert {one.get("type", "ClusterIP") for one in services} == {"ClusterIP"}
    assert not any("externalIPs" in one for one in services)
    for one in pods(documents):
        assert not any("hostPort" in port for c in one.spec["containers"] for port in c["ports"])


def test_only_the_scaler_gets_a_right_and_only_to_scale() -> None:
    (rule,) = named("Role", f"{NAME}-scaler")["rules"]
    assert rule == {
        "apiGroups": ["apps"],
        "resources": ["deployments/scale"],
        "resourceNames": [f"{NAME}-{name}" for name in sorted(ENDPOINTS)],
        "verbs": ["get", "patch"],
    }
    without = render.manifests(VALUES, "--set", "tailnet.scalerServiceAccount=")
    assert not any(one["kind"] in {"Role", "RoleBinding"} for one in without)


def test_the_own_clickhouse_gets_the_listener() -> None:
    config = named("ConfigMap", "byoc-agents-clickhouse")["data"]["access-listener.xml"]
    source = (render.CHART / "files/access-listener.xml").read_text()
    assert config.strip() == source.strip()
    (server,) = (one for one in pods(render.manifests(VALUES)) if one.with_clickhouse)
    (own,) = (one for one in server.spec["containers"] if one["name"] == "clickhouse")
    mounts = {one["mountPath"]: one["name"] for one in own["volumeMounts"]}
    assert mounts["/etc/clickhouse-server/access"] == "access-listener"
    assert not any(
        one["name"] == "access-listener"
        for container in server.ours
        for one in container["volumeMounts"]
    ), "the sidecars do not see its key"


def test_the_operators_examples_have_the_same_listener() -> None:
    source = (render.CHART / "files/access-listener.xml").read_text()
    place = render.CHART / "examples/access-listener"
    (chi,) = yaml.safe_load_all((place / "altinity.yaml").read_text())
    assert chi["spec"]["configuration"]["files"]["config.d/access-listener.xml"] == source
    config, cluster = yaml.safe_load_all((place / "clickhouse-operator.yaml").read_text())
    assert config["data"]["access-listener.xml"] == source
    mounts = cluster["spec"]["containerTemplate"]["volumeMounts"]
    assert {one["mountPath"] for one in mounts} == {
        "/etc/clickhouse-server/config.d/access-listener.xml",
        "/etc/clickhouse-server/access",
    }


def test_the_listener_trusts_the_access_authority_only() -> None:
    root = ET.fromstring((render.CHART / "files/access-listener.xml").read_text())
    protocols = root.find("protocols")
    assert protocols is not None
    layers = {one.tag: {part.tag: part.text for part in one} for one in protocols}
    open_to_clients = {layer["port"]: layer for layer in layers.values() if "port" in layer}
    assert set(open_to_clients) == {"9441", "8444"}
    for layer in open_to_clients.values():
        assert layer["type"] == "tls"
        assert layer["verificationMode"] == "strict"
        assert layer["loadDefaultCAFile"] == "false"
        assert layer["caConfig"] == "/etc/clickhouse-server/access/access-ca.crt"
        assert layers[str(layer["impl"])]["type"] in {"tcp", "http"}
    assert {one.tag for one in root} == {"protocols"}, "nothing of the other ports changes"


REFUSED = {
    "tailnet.enabled: serves nothing": {
        "kubernetes": {"enabled": False},
        "clickhouse": {"enabled": False},
        "metrics": {"enabled": False},
    },
    "tailnet.image: is required": {"image": ""},
    "tailnet.nginx.image: is required": {"nginx": {"image": ""}},
    "tailnet.nginx.address: is required": {"nginx": {"address": ""}},
    "tailnet.nginx.address: fd00::1 is not of the family ipv4": {"nginx": {"address": "fd00::1"}},
    "tailnet.authKeySecret.name: is required": {"authKeySecret": {"name": ""}},
    "tailnet.dns: is required": {"dns": []},
    "tailnet.kubernetes.serverName: is required": {"kubernetes": {"serverName": ""}},
    "tailnet.kubernetes.cidrs: is required": {"kubernetes": {"cidrs": []}},
    "tailnet.clickhouse.replicas: is required": {"clickhouse": {"replicas": None}},
    "tailnet.metrics.tlsSecretName: is required": {"metrics": {"tlsSecretName": ""}},
    "tailnet.metrics.address: is required": {"metrics": {"address": ""}},
    "tailnet.accessCaConfigMap: is required": {"accessCaConfigMap": ""},
    "tailnet.cidrs: is required": {"cidrs": []},
    "tailnet.cidrs: 0.0.0.0/0 is wider than /8": {"cidrs": ["0.0.0.0/0"]},
    "tailnet.cidrs: 169.254.169.254/32 has addresses of the node": {
        "cidrs": ["169.254.169.254/32"]
    },
    "tailnet.cidrs: 10.0.0.0/8 is private and wider than /24": {"cidrs": ["10.0.0.0/8"]},
    "tailnet.cidrs: 172.16.0.0/12 is private and wider": {"cidrs": ["172.16.0.0/12"]},
    "tailnet.dns: 169.254.20.10/32 is an address of the node": {"dns": ["169.254.20.10/32"]},
    "tailnet.kubernetes.cidrs: 169.254.169.254/32 has": {
        "kubernetes": {"cidrs": ["169.254.169.254/32"]}
    },
    "tailnet.kubernetes.address: 169.254.169.254:80 is an address of the node": {
        "kubernetes": {"address": "169.254.169.254:80"}
    },
    "tailnet.metrics.address: 127.0.0.1:9090 is": {"metrics": {"address": "127.0.0.1:9090"}},
    "tailnet.clickhouse.replicas: 169.254.169.254 is": {
        "clickhouse": {"replicas": {"a.b": "169.254.169.254"}}
    },
    "tailnet.scalerServiceAccount: default is": {"scalerServiceAccount": "default"},
    "tailnet.loginServer: http://head.example.com:8080 is plain http": {
        "loginServer": "http://head.example.com:8080"
    },
    "tailnet.loginServer: http://127.0.0.1.example.com is plain http": {
        "loginServer": "http://127.0.0.1.example.com"
    },
    "hostname: metrics-svc-1 is another endpoint's": {"clickhouse": {"hostname": "metrics-svc-1"}},
    "mode": {"mode": "exit-node"},
    "image": {"image": "tailscale/tailscale:latest"},
    "dns": {"dns": ["10.0.0.0/8"]},
    "subnetRoutes": {"subnetRoutes": ["10.0.0.0/8"]},
    "networkPolicy.enabled: is required by tailnet.enabled": {
        "top": {"networkPolicy": {"enabled": False}}
    },
    "tailnet.enabled: does not use httpsProxy": {
        "top": {"httpsProxy": "http://proxy.example.com:3128"}
    },
    "accessListener.secretName: is required by tailnet.clickhouse": {
        "top": {"accessListener": {"secretName": ""}}
    },
    "accessListener.secretName: has no effect for owner other": {
        "top": {"clickhouse": {"owner": "other"}}
    },
}  # fmt: skip


@pytest.mark.parametrize(("text", "changes"), REFUSED.items(), ids=REFUSED)
def test_settings_that_cannot_work_are_refused(
    text: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    top = changes.get("top", {})
    own = {name: value for name, value in changes.items() if name != "top"}
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump({**top, "tailnet": own}))
    where = [str(render.CHART), "-f", str(VALUES), "-f", str(file)]
    done = render.run(helm.VERSIONS[0], "template", "x", *where)
    assert done.returncode != 0
    assert text in done.stderr


@pytest.mark.parametrize(
    "flags",
    [
        ("tailnet.loginServer=https://head.example.com",),
        ("tailnet.loginServer=http://127.0.0.1:8080",),
        ("tailnet.loginServer=http://localhost:8080",),
        ("tailnet.loginServer=http://head.example.com", "allowInsecureEndpoints=true"),
    ],
)
def test_a_coordination_server_over_https_or_for_a_trial_is_accepted(
    flags: tuple[str, ...],
) -> None:
    given = pod("metrics", *(part for flag in flags for part in ("--set", flag)))
    env = {one["name"]: one.get("value") for one in given["containers"][0]["env"]}
    url = flags[0].partition("=")[2]
    assert env["TS_EXTRA_ARGS"].startswith(f"--login-server={url} ")


def test_both_families_and_ipv6_are_written_as_nginx_and_go_want_them() -> None:
    cluster = ("--set", "networkPolicy.family=ipv6", "--set", "tailnet.nginx.address=fd00::10")
    flags = (*cluster, "--set", "tailnet.dns={fd00::2/128}")
    conf = named("ConfigMap", f"{NAME}-nginx", *flags)["data"]["nginx.conf"]
    assert "listen [::]:9441 proxy_protocol so_keepalive=on;" in conf
    serve = json.loads(named("ConfigMap", f"{NAME}-metrics", *flags)["data"]["serve.json"])
    assert serve["TCP"]["9443"]["TCPForward"] == "[fd00::10]:9443"
    given = {
        one["name"]: one.get("value") for one in pod("metrics", *flags)["containers"][0]["env"]
    }
    assert given["TS_LOCAL_ADDR_PORT"] == "[$(POD_IP)]:9002"
    dual = named("ConfigMap", f"{NAME}-nginx", "--set", "networkPolicy.family=dual")
    assert (
        "listen [::]:9441 proxy_protocol so_keepalive=on ipv6only=off;"
        in dual["data"]["nginx.conf"]
    )
