"""The HTML page of all grants, for a security reviewer: one file that loads nothing."""

from collections.abc import Mapping, Sequence
from typing import Any

from byoc_agents import __version__
from byoc_agents.access_commands.state import COUNTS, GrantSummary
from byoc_agents.ledger.query import RecordedFact
from byoc_agents.report.html import make_environment, make_policy, read_static

PACKAGE = "byoc_agents.access_commands"
OPEN_STATES = frozenset({"opening", "open", "closing"})


class AccessPage:
    """Renders the page. Raises ConfigError if Jinja2 is not installed."""

    def __init__(self) -> None:
        self._environment = make_environment("access report --html", PACKAGE)

    def render(
        self,
        grants: Sequence[GrantSummary],
        facts: Mapping[str, Sequence[RecordedFact]],
        *,
        kill_switch: str,
        written_at: str,
    ) -> str:
        """Return the page of these grants, the newest last; `facts` are by grant."""
        style = read_static("style.css")
        values: dict[str, Any] = {
            "version": __version__,
            "style": style,
            "policy": make_policy(style),
            "grants": list(reversed(grants)),
            "facts": facts,
            "open": [grant for grant in grants if grant.state in OPEN_STATES],
            "gaps": [grant for grant in grants if grant.state == "closed_incomplete"],
            "used": [grant for grant in grants if grant.opened_at],
            "sums": {name: sum(grant.counts.get(name, 0) for grant in grants) for name in COUNTS},
            "kill_switch": kill_switch,
            "written_at": written_at,
            "classes": CLASSES,
        }
        text: str = self._environment.get_template("access.html").render(**values)
        return text


CLASSES = {
    **dict.fromkeys(("open", "opening", "closing", "collecting", "pending", "approved"), "open"),
    **dict.fromkeys(("closed",), "ok"),
}
"""The class of a state's badge; every other state is `failed`."""
