"""Policies for others to enforce, all rendered from the gate's own destinations table.

`facts` is what is known, `flows` which packets that means; `kubernetes`, `cilium`, `amazon`,
`rules` and `table` say it in five languages, `drift` compares a manifest with what is rendered.
Nothing here reads a setting: `byoc_agents.policy.cli` does.
"""
