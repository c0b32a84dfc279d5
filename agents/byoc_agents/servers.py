"""The servers to poll: one URL (the server in the same pod), or `name=url,name=url`."""

import re

from byoc_agents.app.settings import name
from byoc_agents.clickhouse import base_url

_NAMED = re.compile(r"\s*([^=:/\s]+)\s*=\s*(\S+?)\s*")


def parse_servers(text: str, replica: str) -> dict[str, str]:
    """Return replica name -> URL. A URL without a name is that of `replica`. Raises ValueError."""
    if not re.match(r"\s*[^=:/\s]+\s*=", text):
        return {replica: base_url(text.strip())}
    servers: dict[str, str] = {}
    for pair in text.split(","):
        match = _NAMED.fullmatch(pair)
        if not match:
            raise ValueError("expected name=url,name=url")
        if match[1] in servers:
            raise ValueError(f"{match[1]} is given twice")
        servers[name(match[1])] = base_url(match[2])
    return servers


def is_service(text: str) -> bool:
    """Return whether the setting names the replicas of a service, which then has a summary."""
    return _NAMED.match(text) is not None and "=" in text.partition(":")[0]
