"""The destinations table, and the output of every policy; YAML contains notes as comments."""

import re
import textwrap
from collections.abc import Sequence

import msgspec
import yaml

from byoc_agents.app.command_line import join
from byoc_agents.errors import ConfigError
from byoc_agents.policy import tailnet
from byoc_agents.policy.drift import PolicyFinding
from byoc_agents.policy.inputs import Facts, Options, Rendered

COLUMNS = ("host", "port", "protocol", "purpose", "daemon", "how often", "setting")
WIDTH = 96  # columns of a comment
AMBIGUOUS = re.compile(  # to PyYAML a text; to Helm, and other readers of YAML, a number or true
    r"[-+]?(\.[0-9_]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?|[-+]?0[xXoObB][0-9a-fA-F_]+|[yYnN]"
)
STACK_FORMS = {"cloudformation": "yaml", "json": "json", "terraform": "text"}
"""Value of --format of a stack -> the form; JSON is CloudFormation's."""


def destinations_table(facts: Facts, options: Options) -> Rendered:
    """Return one row for each destination of each daemon, the proxy's and the tailnet's."""
    every = [*facts.destinations, *([facts.proxy] if facts.proxy else [])]
    lines: list[tuple[object, ...]] = [
        (d.host, d.port, d.scheme, d.purpose, d.daemon or "all", d.frequency, d.setting)
        for d in every
    ]
    notes: tuple[str, ...] = (facts.proxied,) if facts.proxy else ()
    if options.tailnet:
        lines += tailnet.destinations_of_tailnet(options.tailnet)
        notes += (tailnet.NOTE,)
    rows = [dict(zip(COLUMNS, line, strict=True)) for line in lines]
    return Rendered(rows, notes, align_columns(rows))


def align_columns(rows: Sequence[dict[str, object]]) -> str:
    """Return rows of equal keys as columns of text."""
    lines = _cells(rows)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = (map(str.ljust, line, widths) for line in lines)
    return "".join("  ".join(cells).rstrip() + "\n" for cells in padded)


def markdown(rows: Sequence[dict[str, object]]) -> str:
    """Return rows of equal keys as a Markdown table."""
    head, *body = _cells(rows)
    lines = [head, ["---"] * len(head), *body]
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _cells(rows: Sequence[dict[str, object]]) -> list[list[str]]:
    head = list(rows[0]) if rows else list(COLUMNS)
    return [head, *([str(value) for value in row.values()] for row in rows)]


def findings_json(
    policy: str, manifest: str, found: Sequence[PolicyFinding], **more: object
) -> str:
    """Return the findings of a check as one JSON object; `more` are entries of the check's own."""
    report = {"policy": policy, "manifest": manifest, "ok": not found, "findings": found, **more}
    return msgspec.json.format(msgspec.json.encode(report)).decode() + "\n"


def print_rendered(rendered: Rendered, form: str) -> tuple[str, tuple[str, ...]]:
    """Return (text, notes that the form cannot contain). Raises ConfigError for an unfit form.

    YAML begins with `---`, so that several printed policies are one stream of documents.
    """
    if form == "yaml":
        tree = msgspec.json.decode(msgspec.json.encode(rendered.document))  # no shared parts
        body = dump_yaml(tree, width=WIDTH)
        return f"---\n{comments(rendered.notes)}{body}", ()
    if form == "json":
        return msgspec.json.format(msgspec.json.encode(rendered.document)).decode() + "\n", (
            rendered.notes
        )
    if form == "markdown" and isinstance(rendered.document, list):
        return markdown(rendered.document), rendered.notes
    if form == "text" and rendered.text:
        return rendered.text, rendered.notes
    fit = ["json", *["markdown"] * isinstance(rendered.document, list)]
    fit += [*["text"] * bool(rendered.text), "yaml"]
    raise ConfigError([f"--format: invalid value {form!r}: expected {join(fit)}"])


class _Quoting(yaml.SafeDumper):
    """Quotes also those texts that only another reader of YAML takes for a number or for true."""


def _represent_text(dumper: _Quoting, text: str) -> yaml.ScalarNode:
    style = "'" if AMBIGUOUS.fullmatch(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Quoting.add_representer(str, _represent_text)


def dump_yaml(tree: object, *, width: int) -> str:
    """Return the tree as YAML in which each text is a text for Helm and for CloudFormation too."""
    return yaml.dump(tree, Dumper=_Quoting, sort_keys=False, width=width)


def comments(notes: tuple[str, ...]) -> str:
    """Return the notes as comment lines."""
    wrapped = (textwrap.wrap(note, WIDTH - 4, break_on_hyphens=False) for note in notes)
    return "".join(
        f"# {'-' if number == 0 else ' '} {line}\n"
        for lines in wrapped
        for number, line in enumerate(lines)
    )
