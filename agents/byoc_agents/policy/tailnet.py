"""The destinations of the chart's tailnet, which is another program: Tailscale.

The egress gate is in our daemons only. It does not see these connections, so the NetworkPolicy of
the chart is what limits them.
"""

PROGRAM = "tailnet (another program)"
NOTE = (
    f"The rows of {PROGRAM} are enforced by its NetworkPolicy only, not by the egress gate. With"
    " tailnet.loginServer the coordination server is that one, and the relays are those it names."
)
# (host, port, protocol, purpose, how often, setting). Recorded from version 1.102.5 by
# tests/real/test_real_tailnet.py, but for the names of the relays, which the server gives.
RELAYED = (
    ("controlplane.tailscale.com", 443, "https", "coordination", "while a pod runs", "loginServer"),
    ("login.tailscale.com", 443, "https", "coordination", "while a pod runs", "loginServer"),
    ("derp*.tailscale.com", 443, "https", "relay", "while a pod runs", "loginServer"),
)
DIRECT = (
    ("derp*.tailscale.com", 3478, "udp", "own public address (STUN)", "while a pod runs", "mode"),
    ("any public address", "any", "udp", "engineers' machines", "during access", "mode"),
)


def destinations_of_tailnet(mode: str) -> list[tuple[object, ...]]:
    """Return rows as of the destinations table: mode `relay` or `direct`."""
    return [
        (host, port, protocol, purpose, PROGRAM, frequency, f"tailnet.{setting}")
        for host, port, protocol, purpose, frequency, setting in (
            *RELAYED,
            *(DIRECT if mode == "direct" else ()),
        )
    ]
