"""One list of resources as a CloudFormation template and as a Terraform file."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

INDENT = "  "


@dataclass(frozen=True, slots=True)
class Reference:
    """An attribute of a resource that is known after it was made."""

    resource: str
    cloudformation: str = ""  # empty: what `Ref` returns
    terraform: str = "id"


@dataclass(frozen=True, slots=True)
class Parameter:
    """A value that the person who makes the stack gives."""

    name: str
    kind: str  # of CloudFormation
    meaning: str

    @property
    def many(self) -> bool:
        """Return whether it is a list."""
        return self.kind == "CommaDelimitedList" or self.kind.startswith("List<")


@dataclass(frozen=True, slots=True)
class Json:
    """A document that Terraform takes as a text, and CloudFormation as it is."""

    document: Any


@dataclass(frozen=True, slots=True)
class Blocks:
    """Blocks of one name in Terraform."""

    bodies: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Resource:
    """One resource of CloudFormation, which may be several of Terraform: type -> body."""

    name: str
    kind: str
    properties: Mapping[str, Any]
    terraform: Mapping[str, Mapping[str, Any]]
    keep: bool = False  # it stays when the stack is deleted


@dataclass(frozen=True, slots=True)
class Template:
    """The resources of one side."""

    description: str
    resources: Sequence[Resource]
    parameters: Sequence[Parameter] = field(default_factory=tuple)


def cloudformation(template: Template) -> dict[str, Any]:
    """Return the template as CloudFormation reads it."""
    found: dict[str, Any] = {
        "AWSTemplateFormatVersion": "2010-09-09",
        "Description": template.description,
    }
    if template.parameters:
        found["Parameters"] = {
            one.name: {"Type": one.kind, "Description": one.meaning} for one in template.parameters
        }
    kept = {"DeletionPolicy": "Retain", "UpdateReplacePolicy": "Retain"}
    found["Resources"] = {
        one.name: {
            "Type": one.kind,
            **(kept if one.keep else {}),
            "Properties": _plain(one.properties),
        }
        for one in template.resources
    }
    return found


def _plain(value: Any) -> Any:  # noqa: PLR0911  one per kind of value
    match value:
        case Reference(resource, "", _):
            return {"Ref": resource}
        case Reference(resource, attribute, _):
            return {"Fn::GetAtt": [resource, attribute]}
        case Parameter(name):
            return {"Ref": name}
        case Json(document):
            return _plain(document)
        case Mapping():
            return {key: _plain(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_plain(inner) for inner in value]
    return value


def terraform(template: Template) -> str:
    """Return the template as a file of Terraform, for the provider hashicorp/aws 5 or later."""
    types = {one.name: next(iter(one.terraform)) for one in template.resources}
    parts = [f"# {template.description}\n"]
    for parameter in template.parameters:
        kind = "list(string)" if parameter.many else "string"
        parts.append(
            f'variable "{label(parameter.name)}" {{\n  type        = {kind}\n'
            f"  description = {quoted(parameter.meaning)}\n}}\n"
        )
    for one in template.resources:
        for number, (kind, body) in enumerate(one.terraform.items()):
            lines = list(_body(body, types, INDENT))
            if one.keep and not number:
                lines += [
                    f"{INDENT}lifecycle {{",
                    f"{INDENT * 2}prevent_destroy = true",
                    f"{INDENT}}}",
                ]
            head = f'resource "{kind}" "{label(one.name)}" {{'
            parts.append("\n".join([head, *lines, "}", ""]))
    return "\n".join(parts)


def label(name: str) -> str:
    """Return the name as Terraform writes names: `sqs_endpoint` of `SqsEndpoint`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def quoted(text: str) -> str:
    """Return a text as HCL reads it, without interpolation."""
    plain = msgspec.json.encode(text).decode()  # HCL has the escapes of JSON that this makes
    return plain.replace("${", "$${").replace("%{", "%%{")


def _body(body: Mapping[str, Any], types: Mapping[str, str], indent: str) -> Iterator[str]:
    for key, value in body.items():
        if isinstance(value, Blocks):
            for inner in value.bodies:
                yield f"{indent}{key} {{"
                yield from _body(inner, types, indent + INDENT)
                yield f"{indent}}}"
        else:
            yield f"{indent}{key} = {_expression(value, types, indent)}"


def _expression(  # noqa: PLR0911  one per kind of value
    value: Any, types: Mapping[str, str], indent: str
) -> str:
    inner = indent + INDENT
    match value:
        case Reference(resource, _, attribute):
            return f"{types[resource]}.{label(resource)}.{attribute}"
        case Parameter(name):
            return f"var.{label(name)}"
        case Json(document):
            return f"jsonencode({_expression(document, types, indent)})"
        case bool():
            return str(value).lower()
        case int():
            return str(value)
        case str():
            return quoted(value)
        case Mapping():
            pairs = (f"{quoted(k)} = {_expression(v, types, inner)}" for k, v in value.items())
            return "{\n" + "".join(f"{inner}{pair}\n" for pair in pairs) + f"{indent}}}"
    items = (_expression(one, types, inner) for one in value)
    return "[\n" + "".join(f"{inner}{item},\n" for item in items) + f"{indent}]"


def substitute(document: Any, values: Mapping[str, Any]) -> Any:
    """Return a document in which each text that is a key is replaced by its value."""
    if isinstance(document, Mapping):
        return {key: substitute(inner, values) for key, inner in document.items()}
    if isinstance(document, list | tuple):
        return [substitute(inner, values) for inner in document]
    return values.get(document, document) if isinstance(document, str) else document
