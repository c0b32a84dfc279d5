"""The output of a rendered policy; YAML contains its notes as comments."""

import textwrap

import msgspec
import yaml

from byoc_agents.errors import ConfigError
from byoc_agents.policy.inputs import Rendered
from byoc_agents.policy.table import markdown

WIDTH = 96  # columns of a comment


def printed(rendered: Rendered, form: str) -> tuple[str, tuple[str, ...]]:
    """Return (text, notes that the form cannot contain). Raises ConfigError for an unfit form."""
    if form == "yaml":
        tree = msgspec.json.decode(msgspec.json.encode(rendered.document))  # no shared parts
        body = yaml.safe_dump(tree, sort_keys=False, width=WIDTH)
        return comments(rendered.notes) + body, ()
    if form == "json":
        return msgspec.json.format(msgspec.json.encode(rendered.document)).decode() + "\n", (
            rendered.notes
        )
    if form == "markdown" and isinstance(rendered.document, list):
        return markdown(rendered.document), rendered.notes
    if form == "text" and rendered.text:
        return rendered.text, rendered.notes
    raise ConfigError([f"--format {form}: this command has no such form"])


def comments(notes: tuple[str, ...]) -> str:
    """Return the notes as comment lines."""
    wrapped = (textwrap.wrap(note, WIDTH - 4, break_on_hyphens=False) for note in notes)
    return "".join(
        f"# {'-' if number == 0 else ' '} {line}\n"
        for lines in wrapped
        for number, line in enumerate(lines)
    )
