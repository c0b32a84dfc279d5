"""Schemas of the custom kinds in the chart, with the used fields only.

All objects are closed: another field is a mistake, or was not compared with its documentation.
"""

from typing import Any

TEXT: dict[str, Any] = {"type": "string", "minLength": 1}
TEXTS: dict[str, Any] = {"type": "array", "items": TEXT, "minItems": 1}
FLAG: dict[str, Any] = {"type": "boolean"}
LABELS: dict[str, Any] = {"type": "object", "additionalProperties": {"type": "string"}}
ANY: dict[str, Any] = {}
SECONDS: dict[str, Any] = {"type": "string", "pattern": "^[0-9]+(s|m|h)$"}


def thing(required: str = "", /, **fields: Any) -> dict[str, Any]:
    """Return a closed object's schema; `required` names fields with spaces between."""
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": fields,
        "required": required.split(),
    }


def many(items: Any) -> dict[str, Any]:
    """Return the schema of a list that is not empty."""
    return {"type": "array", "items": items, "minItems": 1}


PORT = thing("port protocol", port={"type": "string", "pattern": "^[0-9]+$"}, protocol=TEXT)
TO_PORTS = many(thing("ports", ports=many(PORT), rules=thing(dns=many(thing(matchName=TEXT)))))
SELECTOR = thing("matchLabels", matchLabels=LABELS)
MATCHER = thing("name value", name=TEXT, value=TEXT, matchType={"enum": ["=", "!=", "=~", "!~"]})
KEY = thing("name key", name=TEXT, key=TEXT)
AUTHORIZATION = thing("type credentials", type={"const": "Bearer"}, credentials=KEY)
ROUTE: dict[str, Any] = thing(
    "receiver",
    receiver=TEXT,
    matchers=many(MATCHER),
    groupBy=TEXTS,
    groupWait=SECONDS,
    groupInterval=SECONDS,
    repeatInterval=SECONDS,
    **{"continue": FLAG},
)
WEBHOOK = thing(
    "url sendResolved maxAlerts httpConfig",
    url={"type": "string", "pattern": "^https?://.+:9095/v1/alerts$"},
    sendResolved={"const": True},
    maxAlerts={"const": 0},
    httpConfig=thing(
        "authorization",
        authorization=AUTHORIZATION,
        tlsConfig=thing("ca", ca=thing(secret=KEY)),
    ),
)
RULE = thing(
    "alert expr labels annotations",
    alert=TEXT,
    expr=TEXT,
    labels=LABELS,
    annotations=LABELS,
    **{"for": SECONDS},
)
CLAIM = thing("name spec", name=TEXT, spec=ANY)

SPECS: dict[tuple[str, str], dict[str, Any]] = {
    ("monitoring.coreos.com/v1", "PodMonitor"): thing(
        "selector podMetricsEndpoints",
        selector=SELECTOR,
        podMetricsEndpoints=many(
            thing("port", port=TEXT, path=TEXT, interval=SECONDS, authorization=AUTHORIZATION)
        ),
    ),
    ("monitoring.coreos.com/v1", "PrometheusRule"): thing(
        "groups", groups=many(thing("name rules", name=TEXT, rules=many(RULE)))
    ),
    ("monitoring.coreos.com/v1alpha1", "AlertmanagerConfig"): thing(
        "route receivers",
        route=ROUTE | {"properties": ROUTE["properties"] | {"routes": many(ROUTE)}},
        receivers=many(thing("name", name=TEXT, webhookConfigs=many(WEBHOOK))),
    ),
    ("cilium.io/v2", "CiliumNetworkPolicy"): thing(
        "endpointSelector ingress egress",
        endpointSelector=SELECTOR,
        ingress=many(thing(fromEndpoints=many(SELECTOR), toPorts=TO_PORTS)),
        egress=many(
            thing(
                toEndpoints=many(SELECTOR),
                toFQDNs=many(thing("matchName", matchName=TEXT)),
                toCIDR=TEXTS,
                toEntities=TEXTS,
                toPorts=TO_PORTS,
            )
        ),
    ),
    ("networking.istio.io/v1", "Sidecar"): thing(
        "workloadSelector egress outboundTrafficPolicy",
        workloadSelector=thing("labels", labels=LABELS),
        outboundTrafficPolicy=thing("mode", mode={"const": "REGISTRY_ONLY"}),
        egress=many(thing("hosts", hosts=TEXTS)),
    ),
    ("networking.istio.io/v1", "ServiceEntry"): thing(
        "hosts ports resolution location exportTo",
        hosts=TEXTS,
        exportTo={"const": ["."]},
        location={"const": "MESH_EXTERNAL"},
        resolution={"const": "DNS"},
        ports=many(
            thing(
                "name number protocol",
                name=TEXT,
                number={"type": "integer"},
                protocol={"enum": ["TLS", "HTTP"]},
            )
        ),
    ),
    ("clickhouse.altinity.com/v1", "ClickHouseInstallationTemplate"): thing(
        "templates",
        templates=thing(
            "podTemplates",
            podTemplates=many(
                thing(
                    "name spec",
                    name=TEXT,
                    spec=ANY,  # a pod's own, which Kubernetes' schema checks
                    metadata=thing("labels", labels=LABELS, annotations=LABELS),
                )
            ),
            volumeClaimTemplates=many(CLAIM),
        ),
    ),
    ("clickhouse.altinity.com/v1", "ClickHouseInstallation"): thing(
        "useTemplates defaults configuration",
        useTemplates=many(thing("name", name=TEXT)),
        defaults=thing(
            templates=thing("podTemplate", podTemplate=TEXT, dataVolumeClaimTemplate=TEXT)
        ),
        configuration=thing(
            "clusters settings users profiles",
            clusters=many(thing("name layout", name=TEXT, layout=ANY)),
            settings={"type": "object"},
            users={"type": "object"},
            profiles={"type": "object"},
        ),
        templates=thing(
            podTemplates=many(thing("name spec", name=TEXT, spec=ANY)),
            volumeClaimTemplates=many(CLAIM),
        ),
    ),
}
METADATA = thing("name", name=TEXT, namespace=TEXT, labels=LABELS)


def schema(document: dict[str, Any]) -> dict[str, Any] | None:
    """Return the schema of a whole document of one of these kinds, else None."""
    spec = SPECS.get((document["apiVersion"], document["kind"]))
    if spec is None:
        return None
    return thing(
        "apiVersion kind metadata spec", apiVersion=TEXT, kind=TEXT, metadata=METADATA, spec=spec
    )
