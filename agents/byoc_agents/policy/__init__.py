"""Policies for other systems to enforce, all rendered from the gate's own destinations table.

`inputs` has the facts of a configuration and `flows` derives the packets from them. `kubernetes`,
`cilium`, `aws`, `nftables` and `table` render five formats. `manifest` reads documents, `drift`
compares one with a rendered policy, `iam` compares AWS's documents, and `union` judges the other
network policies of the same pod. Only `byoc_agents.policy.cli` reads settings.
"""
