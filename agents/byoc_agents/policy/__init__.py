"""Policies for other systems to enforce, all rendered from the gate's own destinations table.

`inputs` has the facts of a configuration and `flows` derives the packets from them. `kubernetes`,
`cilium`, `aws`, `nftables` and `table` render five formats; `drift` compares a manifest with a
rendered policy. Only `byoc_agents.policy.cli` reads settings.
"""
