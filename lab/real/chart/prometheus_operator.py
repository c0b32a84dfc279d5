"""Model the Prometheus operator: the alertmanager.yml that it makes of an AlertmanagerConfig.

Read in prometheus-operator/prometheus-operator, pkg/alertmanager/amcfg.go (convertRoute,
AddAlertmanagerConfigs, getEnforcer) at commit ef97620a867a2fba9ecf0d7dd36d53922959ea24. Only the
fields that the chart uses are modeled; another field of a route is a KeyError.
"""

from typing import Any, Literal

Strategy = Literal["OnNamespace", "OnNamespaceExceptForAlertmanagerNamespace", "None"]
FIELDS = {
    "groupBy": "group_by",
    "groupWait": "group_wait",
    "groupInterval": "group_interval",
    "repeatInterval": "repeat_interval",
    "continue": "continue",
}


def build_configuration(
    document: dict[str, Any], namespace: str, strategy: Strategy, alertmanager_namespace: str
) -> dict[str, Any]:
    """Return a configuration with the AlertmanagerConfig's route before the customer's own.

    The customer's own route sends everything to `default`.
    """
    prefix = f"{namespace}/{document['metadata']['name']}/"
    first = _convert_route(document["spec"]["route"], prefix)
    enforced = strategy == "OnNamespace" or (
        strategy == "OnNamespaceExceptForAlertmanagerNamespace"
        and namespace != alertmanager_namespace
    )
    if enforced:
        first["matchers"].append(f'namespace="{namespace}"')
    first["continue"] = True  # of every first-level route
    names = [prefix + one["name"] for one in document["spec"]["receivers"]]
    return {
        "route": {"receiver": "default", "routes": [first, {"receiver": "default"}]},
        "receivers": [{"name": name} for name in ("default", *names)],
    }


def _convert_route(given: dict[str, Any], prefix: str) -> dict[str, Any]:
    rest = {
        FIELDS[key]: value
        for key, value in given.items()
        if key not in {"receiver", "matchers", "routes"}
    }
    return rest | {
        "receiver": prefix + given["receiver"],
        "matchers": [
            f'{m["name"]}{m["matchType"]}"{m["value"]}"' for m in given.get("matchers", [])
        ],
        "routes": [_convert_route(child, prefix) for child in given.get("routes", [])],
    }
