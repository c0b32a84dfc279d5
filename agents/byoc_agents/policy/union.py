"""Judges the network policies of a manifest that select the same pod: their rules add up.

A NetworkPolicy or CiliumNetworkPolicy only adds flows to those of the others, so one wide policy
undoes a narrow one (Kubernetes documentation, "Network Policies"; Cilium's "Policy Enforcement
Modes"). Each rule of another policy must be one that the table has too.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from byoc_agents.policy.drift import PolicyFinding, canonical
from byoc_agents.policy.inputs import Options

KUBERNETES, CILIUM = "networking.k8s.io", "cilium.io"
CLUSTERWIDE = "CiliumClusterwideNetworkPolicy"
DIRECTIONS = {"Ingress": "ingress", "Egress": "egress"}
NAMESPACE_LABEL = "io.kubernetes.pod.namespace"


@dataclass(frozen=True, slots=True)
class Pod:
    """The pod that a policy selects, and the rules that its table has, by API group."""

    labels: Mapping[str, str]
    namespace: str  # empty: unknown
    wanted: Mapping[str, Mapping[str, Any]]
    accepted: frozenset[str] = field(default_factory=frozenset)  # names of other owners' policies


def judge_metadata(document: Mapping[str, Any], options: Options) -> list[PolicyFinding]:
    """Return the findings about a manifest's namespace, and about one that is being deleted."""
    metadata = _mapping(document.get("metadata"))
    found = []
    namespace = metadata.get("namespace")
    if options.namespace and namespace != options.namespace:
        problem = f"is {namespace}" if namespace else "is missing"
        found.append(PolicyFinding("metadata.namespace", problem, options.namespace))
    if metadata.get("deletionTimestamp"):
        problem = "is set: the policy is being deleted"
        found.append(PolicyFinding("metadata.deletionTimestamp", problem, "no such entry"))
    return found


def judge_others(document: object, manifest: Iterable[object], pod: Pod) -> list[PolicyFinding]:
    """Return the rules of the other policies that select the pod and are not in its table."""
    found: list[PolicyFinding] = []
    for other in manifest:
        if other is document or not isinstance(other, Mapping) or not is_network_policy(other):
            continue
        if isinstance(document, Mapping) and _replaces(other, document, pod):
            title = f"{other.get('kind')} {_name(other)}"
            problem = "appears twice: the last one that is applied replaces the others"
            found.append(PolicyFinding(title, problem, "one document of this kind and name"))
        if _name(other) not in pod.accepted:
            found += _judge(other, pod)
    return found


def _replaces(other: Mapping[str, Any], document: Mapping[str, Any], pod: Pod) -> bool:
    """Return whether both are one object of the cluster, if applied in the pod's namespace."""
    return (
        other.get("kind") == document.get("kind")
        and _name(other) == _name(document)
        and not _elsewhere(other, pod)
    )


def is_network_policy(document: Mapping[str, Any]) -> bool:
    """Return whether the document is a network policy of any kind."""
    return str(document.get("kind", "")).endswith("NetworkPolicy")


def _judge(other: Mapping[str, Any], pod: Pod) -> Iterator[PolicyFinding]:
    title = f"{other.get('kind')} {_name(other)}"
    group = str(other.get("apiVersion", KUBERNETES)).partition("/")[0]
    if group not in {KUBERNETES, CILIUM}:
        yield PolicyFinding(title, f"is a policy of {group}, which is not judged", "--accept NAME")
        return
    if other.get("kind") != CLUSTERWIDE and _elsewhere(other, pod):
        return
    several = other.get("specs")
    specs = several if isinstance(several, list) else []
    for spec in specs if specs and other.get("spec") is None else [other.get("spec"), *specs]:
        if isinstance(spec, Mapping):
            yield from _judge_spec(title, spec, group, pod)
        else:
            yield PolicyFinding(title, "has no spec", "a spec")


def namespace_of(document: Mapping[str, Any]) -> str:
    """Return the namespace of a manifest; empty if it has none."""
    return str(_mapping(document.get("metadata")).get("namespace") or "")


def _elsewhere(other: Mapping[str, Any], pod: Pod) -> bool:
    namespace = namespace_of(other)
    return bool(namespace and pod.namespace and namespace != pod.namespace)


def _judge_spec(
    title: str, spec: Mapping[str, Any], group: str, pod: Pod
) -> Iterator[PolicyFinding]:
    if group == CILIUM and spec.get("nodeSelector") is not None:
        return  # a policy of nodes
    selector = spec.get("podSelector" if group == KUBERNETES else "endpointSelector")
    if not may_select(selector, dict(pod.labels) | {NAMESPACE_LABEL: pod.namespace}):
        return
    wanted = _mapping(_mapping(pod.wanted.get(group)).get("spec"))
    for direction in _directions(spec, group):
        rules = spec.get(direction) or []
        allowed = [canonical(rule) for rule in wanted.get(direction, [])]
        for number, rule in enumerate(rules if isinstance(rules, list) else [rules]):
            if canonical(rule) in allowed or (group == CILIUM and rule == {}):
                continue  # an empty rule of Cilium allows nothing
            text = msgspec.json.encode(canonical(rule)).decode()
            yield PolicyFinding(
                f"{title}: spec.{direction}[{number}]",
                f"selects the same pod, and allows flows that are not in the table: {text}",
                "a rule of the table, another selector, or --accept NAME",
            )


def _directions(spec: Mapping[str, Any], group: str) -> list[str]:
    """Return the directions in which a policy has rules in force."""
    types = spec.get("policyTypes")
    if group == CILIUM or not isinstance(types, list) or not types:
        return list(DIRECTIONS.values())
    return [value for name, value in DIRECTIONS.items() if name in types]


def may_select(selector: object, labels: Mapping[str, str]) -> bool:
    """Return whether a selector may match a pod of which some labels are known.

    A label that is not known may have any value; a malformed selector may match everything.
    """
    if not isinstance(selector, Mapping):
        return True
    for key, value in _mapping(selector.get("matchLabels")).items():
        if labels.get(_bare(key), "") not in {"", str(value)}:
            return False
    expressions = selector.get("matchExpressions")
    listed = expressions if isinstance(expressions, list) else []
    return all(_may_match(one, labels) for one in listed if isinstance(one, Mapping))


def _may_match(expression: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    value = labels.get(_bare(expression.get("key")), "")
    listed = expression.get("values")
    values = [str(one) for one in listed] if isinstance(listed, list) else []
    operator = expression.get("operator")
    if not value or operator == "Exists":
        return True
    if operator == "In":
        return value in values
    return value not in values if operator == "NotIn" else operator != "DoesNotExist"


def _bare(key: object) -> str:
    """Return a label's name without the source that Cilium writes before it."""
    text = str(key)
    return next((text.removeprefix(s) for s in ("k8s:", "any:") if text.startswith(s)), text)


def _name(document: Mapping[str, Any]) -> str:
    return str(_mapping(document.get("metadata")).get("name", ""))


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
