"""Model some rules of Altinity's operator: the objects it makes of a template and an installation.

Read in Altinity/clickhouse-operator at release-0.25.6 (commit
8d7dc3f2c0f6ef2e4e6be99792dd44cbefeb424c): PodTemplate.MergeFrom,
stsSetupVolumesForUsedPVCTemplates, StatefulSetAppendVolumeMountsInAllContainers,
normalizeConfigurationUserPassword. The merge was compared with that release's own code, compiled.
Releases up to 0.24.4 are built with k8s.io/api 0.27, which has no restartPolicy of a container.
"""

import copy
import hashlib
from typing import Any

RELEASES = ("0.23.7", "0.24.4", "0.24.5", "0.25.6")
FIRST_WITH_NATIVE_SIDECARS = (0, 24, 5)
DEFAULT_PASSWORD = "default"  # clickhouse.config.user.default.password of the operator's settings


def merge_pod_template(first: Any, second: Any) -> Any:
    """Return `first`, of the chart's template, filled up from `second`, of the installation.

    Values of `first` win. Lists are merged by position, except a container's environment, which is
    appended. So two lists with different entries become a list of mixed entries.
    """
    if isinstance(first, dict) and isinstance(second, dict):
        merged = {key: copy.deepcopy(value) for key, value in first.items()}
        for key, value in second.items():
            if key == "env":
                merged[key] = [*first.get(key, []), *value]
            else:
                merged[key] = merge_pod_template(merged.get(key), value)
        return merged
    if isinstance(first, list) and isinstance(second, list):
        both = [merge_pod_template(a, b) for a, b in zip(first, second, strict=False)]
        return [*both, *first[len(both) :], *second[len(both) :]]
    return copy.deepcopy(second if first in (None, "", [], {}) else first)


def build_pod_spec(
    chit: dict[str, Any], chi: dict[str, Any], release: str
) -> tuple[dict[str, Any], list[str]]:
    """Return the spec of ClickHouse's pods, and the names of their StatefulSet's claims."""
    given = chi["spec"]["defaults"]["templates"]
    name, data = given["podTemplate"], given["dataVolumeClaimTemplate"]
    own = _named(chi, name) or {}
    spec: dict[str, Any] = merge_pod_template(_named(chit, name) or {}, own)["spec"]
    if tuple(map(int, release.split("."))) < FIRST_WITH_NATIVE_SIDECARS:
        for container in spec.get("initContainers", []):
            container.pop("restartPolicy", None)
    for container in spec["containers"]:
        mounts = container.setdefault("volumeMounts", [])
        if data not in [mount["name"] for mount in mounts]:
            mounts.append({"name": data, "mountPath": "/var/lib/clickhouse"})
    templates = [
        one["name"]
        for document in (chit, chi)
        for one in document["spec"]["templates"].get("volumeClaimTemplates", [])
    ]
    mounted = [mount["name"] for one in spec["containers"] for mount in one["volumeMounts"]]
    return spec, [one for one in dict.fromkeys(mounted) if one in templates]


def find_problems(spec: dict[str, Any], claims: list[str]) -> list[str]:
    """Return why the API server or the kubelet would not start ClickHouse with this spec."""
    known = {*claims, *(volume["name"] for volume in spec.get("volumes", []))}
    sidecars = spec.get("initContainers", [])
    every = [*sidecars, *spec["containers"]]
    found = [f"{one['name']}: no image" for one in every if not one.get("image")]
    found += [
        f"{one['name']}: no volume {mount['name']}"
        for one in every
        for mount in one.get("volumeMounts", [])
        if mount["name"] not in known
    ]
    found += [
        f"{one['name']}: an init container that never ends"
        for one in sidecars
        if one.get("restartPolicy") != "Always" and "livenessProbe" in one  # a daemon
    ]
    found += [
        f"volume {volume['name']}: of several types"
        for volume in spec.get("volumes", [])
        if len(volume) != 2  # its name and its type
    ]
    return found


def find_password_hash(user: str, settings: dict[str, Any]) -> str:
    """Return the SHA-256 that the server gets for a user's password, as 64 hex digits."""
    given: str = settings.get(f"{user}/password_sha256_hex", "")
    plain = settings.get(f"{user}/password", "") or DEFAULT_PASSWORD
    return given or hashlib.sha256(plain.encode()).hexdigest()


def _named(document: dict[str, Any], name: str) -> dict[str, Any] | None:
    templates = document["spec"]["templates"].get("podTemplates", [])
    return next((one for one in templates if one["name"] == name), None)
